"""What networks see in pictures: the features whose clouds FID and KID compare.

A feature network here is a function of uint8 frames (N, H, W, 3) that returns float32 (N, D), with `name` and `width`, its
D. Distances by two networks have nothing to do with each other, so the name goes wherever such a number goes.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from talkhead import files, mobilenet
from talkhead.downloads import REGISTRY
from talkhead.encoders import ResNetEncoder
from talkhead.errors import TalkheadError
from talkhead.fingerprints import digest
from talkhead.images import to_images

WEIGHTS = REGISTRY["inception-fid"].file
CLASSES = 1008  # of the network from 2015; later ones of the same layers have 1000
SIDE = 299  # pixels
SMALLEST = 75  # pixels: below it, a map of its vanishes
EPSILON = 0.001  # of its batch normalisation

# Its blocks: branches side by side, each a chain of convolutions, of which the last may be two on the same map.
_BRANCHES = {
    "A": ("branch1x1", "branch5x5_1 branch5x5_2", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"),
    "B": ("branch3x3", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"),
    "C": (
        "branch1x1",
        "branch7x7_1 branch7x7_2 branch7x7_3",
        "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5",
    ),
    "D": ("branch3x3_1 branch3x3_2", "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4"),
    "E": (
        "branch1x1",
        "branch3x3_1 branch3x3_2a+branch3x3_2b",
        "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a+branch3x3dbl_3b",
    ),
}
_BLOCKS = {
    "5b": "A",
    "5c": "A",
    "5d": "A",
    "6a": "B",
    "6b": "C",
    "6c": "C",
    "6d": "C",
    "6e": "C",
    "7a": "D",
    "7b": "E",
    "7c": "E",
}


def named(network, device="cpu"):
    """A feature network by its name, "inception" or "mobilenet"; or itself, if it is one.

    raises   TalkheadError if the name is another, or its weights are not there
    """
    if network == "inception":
        return Inception(device=device)
    if network == "mobilenet":
        return MobileNetFeatures(device)
    if isinstance(network, str):
        raise TalkheadError(
            f"features {network!r}: unknown; take inception or mobilenet, or a network such as FaceFeatures"
        )
    return network


class Inception:
    """Inception-v3 up to its last average (pool3), with the weights from 2015 that FID is defined by: 2048 features.

    path     the weights as pytorch-fid publishes them; None is their place in torch's hub cache
    device   where to compute
    raises   TalkheadError if the file is missing, damaged or of another network

    Sizes come from the shapes in the file. Where TensorFlow's network differs from the published one, so does this: an
    average at a border counts no padding, and the last block takes a maximum where the others average.

    Source: Heusel et al. 2017; Szegedy et al. 2016 for the layers.
    """

    name = "inception"

    def __init__(self, path=None, device="cpu"):
        path = Path(path) if path else files.hub_folder() / WEIGHTS
        mend = f"talkhead weights fetch inception-fid, or put pytorch-fid's {WEIGHTS} there"
        if not path.is_file():
            raise TalkheadError(f"{path}: not there, and FID looks through it; run {mend}")
        try:
            self.convolutions, self.device = _read(path), "cpu"
            self.width = self._pool3(torch.zeros(1, 3, SMALLEST, SMALLEST)).shape[1]  # fails where the parts do not fit
        except (TalkheadError, KeyError, TypeError, AttributeError, RuntimeError) as problem:
            raise TalkheadError(
                f"{path}: not the Inception weights of FID, or damaged; delete it and run {mend}"
            ) from problem
        self.convolutions = {
            name: (weight.to(device), bias.to(device)) for name, (weight, bias) in self.convolutions.items()
        }
        self.device = device

    @torch.no_grad()
    def __call__(self, frames):
        images = F.interpolate(to_images(frames).to(self.device), (SIDE, SIDE), mode="bilinear", align_corners=False)
        return self._pool3(images).cpu().numpy()

    def _pool3(self, x):
        x = self._conv(x, "Conv2d_1a_3x3", 2)
        x = self._conv(x, "Conv2d_2a_3x3", inner=True)
        x = F.max_pool2d(self._conv(x, "Conv2d_2b_3x3"), 3, 2)
        x = self._conv(x, "Conv2d_3b_1x1")
        x = F.max_pool2d(self._conv(x, "Conv2d_4a_3x3", inner=True), 3, 2)
        for block, kind in _BLOCKS.items():
            x = self._block(x, f"Mixed_{block}.", kind)
        return x.mean((2, 3))

    def _block(self, x, block, kind):
        halving = kind in "BD"
        outputs = []
        for chain in _BRANCHES[kind]:
            *first, last = chain.split()
            y = x
            for name in first:
                y = self._conv(y, block + name)
            outputs += [self._conv(y, block + name, 2 if halving else 1) for name in last.split("+")]
        if halving:
            return torch.cat([*outputs, F.max_pool2d(x, 3, 2)], 1)
        pooled = F.max_pool2d(x, 3, 1, 1) if block == "Mixed_7c." else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return torch.cat([*outputs, self._conv(pooled, block + "branch_pool")], 1)

    def _conv(self, x, name, stride=1, inner=False):
        """Convolve and cut off what is negative. One that strides, or is `inner`, pads nothing; others keep the map's size."""
        weight, bias = self.convolutions[name]
        padding = 0 if inner or stride > 1 else [side // 2 for side in weight.shape[2:]]
        return F.relu_(F.conv2d(x, weight, bias, stride, padding))


def _read(path):
    """The convolutions in a file of weights, their batch normalisation worked into them: {name: (weight, bias)}."""
    state, end, convolutions = files.load_weights(path), ".conv.weight", {}
    if len(state["fc.bias"]) != CLASSES:
        raise TalkheadError(f"{path}: a classifier of other classes")
    for name in [key.removesuffix(end) for key in state if key.endswith(end)]:
        scale, shift, mean, variance = (
            state[f"{name}.bn.{part}"].float() for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / (variance + EPSILON).sqrt()
        convolutions[name] = state[name + end].float() * scale[:, None, None, None], shift - mean * scale
    return convolutions


class MobileNetFeatures:
    """What MobileNetV2's classifier looks at, for pictures of the size that it has learnt at: 1280 features. Its file is 14 MB.

    raises   TalkheadError if its weights are missing or damaged
    """

    name = "mobilenet"

    def __init__(self, device="cpu"):
        self.network, self.device = mobilenet.MobileNet().to(device), device
        self.width = self.network.width

    @torch.no_grad()
    def __call__(self, frames):
        images = F.interpolate(
            to_images(frames).to(self.device),
            (mobilenet.SIDE, mobilenet.SIDE),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        return self.network(images).cpu().numpy()


class FaceFeatures:
    """The last map of an image encoder, averaged: a network that has learnt nothing but faces.

    encoder  ResNetEncoder in evaluation mode, on its device
    raises   TalkheadError if it is of another architecture

    `name` holds a hash of its numbers: another encoder sees otherwise.
    """

    def __init__(self, encoder):
        if not isinstance(encoder, ResNetEncoder):
            raise TalkheadError("features for FID: an encoder of another architecture; take one of architecture resnet")
        self.encoder, self.name, self.width = encoder, f"encoder-{digest(encoder)}", encoder.layer4[-1].bn2.num_features

    @torch.no_grad()
    def __call__(self, frames):
        seen = self.encoder.features(to_images(frames).to(self.encoder.w_avg.device))
        return seen.unflatten(1, (self.width, -1)).mean(2).cpu().numpy()


TOGETHER = 16  # frames that a feature network looks at at once
KERNEL_MOST = 10_000  # pictures of a set that the kernel distance takes, by lot


class FeatureAccumulator:
    """What a feature network sees in frames that come one by one, without keeping them."""

    def __init__(self, network):
        # One growing buffer: many small arrays would lie between the network's own and keep the heap from shrinking.
        self.network, self.waiting, self.numbers = network, [], bytearray()

    def add(self, frame):
        """Take one frame, uint8 (H, W, 3)."""
        self.waiting.append(frame)
        if len(self.waiting) == TOGETHER:
            self.look(np.stack(self.waiting))
            self.waiting = []

    def look(self, frames):
        """Take some frames, uint8 (N, H, W, 3), at once."""
        self.numbers += self.network(frames).astype(np.float32).tobytes()

    def features(self):
        """float32 (N, D) of all frames so far."""
        if self.waiting:
            self.look(np.stack(self.waiting))
            self.waiting = []
        return np.frombuffer(bytes(self.numbers), np.float32).reshape(-1, self.network.width)


def compare_features(real, fake, network):
    """Both distances of two clouds of features, and whose features they are.

    real, fake  float (N, D), as `network` saw them
    network     feature network as in fid.py
    returns     {"fid": `frechet_distance`, "kid": `kernel_distance`, "fid_features": the network's name}. Numbers of two
                networks, or of two numbers of pictures, may not be compared
    raises      TalkheadError as they do
    """
    return {"fid": frechet_distance(real, fake), "kid": kernel_distance(real, fake), "fid_features": network.name}


def warn_of_few(count, network):
    """Warn if so many pictures are fewer than a network's features: FID's covariances are singular then, its bias large."""
    if count < network.width:
        warnings.warn(
            f"FID of {count} pictures by {network.width} features: its covariances are singular, and it comes out too large; "
            "compare it with nothing but FID of as many pictures, or look at KID, which has no bias",
            stacklevel=2,
        )


def frechet_distance(real, fake):
    """Distance of two clouds of features, each taken for a normal distribution: FID, where they are Inception's.

    real, fake  float (N, D), a feature vector for each picture; two at least
    returns     float: |m1 − m2|² + tr(S1 + S2 − 2·√(S1·S2)), of the means and the covariances over N − 1; the fewer pictures,
                the larger: its bias goes with 1/N, so that only numbers of one N may be compared
    raises      TalkheadError if the widths differ, there are too few or one is not finite

    Source: thesis §5.2.1; Heusel et al. 2017.
    √(S1·S2) is never formed: its trace is the sum of the singular values of the product of the centred clouds, which
    is exact, and real, also where there are fewer pictures than features and the matrix root fails.
    """
    spreads = []
    for cloud in _features_of(real, fake):
        spreads.append(FeatureStatistics(cloud.shape[1]))
        spreads[-1].add(cloud)
    return statistics_distance(*spreads)


class FeatureStatistics:
    """Mean and scatter of a cloud of features that comes in pieces: what the Fréchet distance needs, in memory that does not grow.

    `root` is a matrix R with RᵀR = Σ (x − mean)(x − mean)ᵀ: the rows themselves while they are few, then the triangle of their QR
    decomposition.
    """

    def __init__(self, width):
        self.count, self.mean, self.root = 0, np.zeros(width), np.zeros((0, width))

    def add(self, rows):
        """Take some more features, (n, D)."""
        rows = np.asarray(rows, np.float64)
        mean, count = rows.mean(0), self.count + len(rows)
        # What two groups scatter together is what each does, and one row more for the gap between their means.
        gap = np.sqrt(self.count * len(rows) / count) * (mean - self.mean)
        stack = np.concatenate([self.root, rows - mean, gap[None]] if self.count else [rows - mean])
        self.root = np.linalg.qr(stack, mode="r") if len(stack) > stack.shape[1] else stack
        self.mean = self.mean + (mean - self.mean) * (len(rows) / count)
        self.count = count


def statistics_distance(real, fake):
    """`frechet_distance` of two clouds of which only the `FeatureStatistics` is left."""
    if min(real.count, fake.count) < 2:
        raise TalkheadError("features of fewer than two pictures: a distance of distributions needs more")
    gap = real.mean - fake.mean
    real, fake = (cloud.root / np.sqrt(cloud.count - 1) for cloud in (real, fake))
    root = np.linalg.svd(real @ fake.T, compute_uv=False).sum()
    return float(gap @ gap + np.square(real).sum() + np.square(fake).sum() - 2 * root)


def kernel_distance(real, fake, subsets=100, size=1000, seed=0):
    """Distance of two clouds of features without taking them for normal: KID, where they are Inception's.

    real, fake  float (N, D)
    subsets     how many pairs of subsets are compared, of `size` vectors each, or as many as there are
    returns     float: the mean over pairs of the unbiased squared maximum mean discrepancy for the kernel (x·y / D + 1)³;
                about 0, and sometimes below, where both come from one distribution
    raises      TalkheadError if the widths differ, there are too few or one is not finite

    Source: Bińkowski et al. 2018.
    """
    real, fake = _features_of(real, fake)
    random, size = np.random.default_rng(seed), min(size, len(real), len(fake))
    return float(
        np.mean(
            [
                _discrepancy(*(cloud[random.choice(len(cloud), size, replace=False)] for cloud in (real, fake)))
                for _ in range(subsets)
            ]
        )
    )


def _discrepancy(x, y):
    count = len(x)
    within = sum(
        values.sum() - np.trace(values) for values in (_kernel(x, x), _kernel(y, y))
    )  # no vector is compared with itself
    return within / (count * (count - 1)) - 2 * _kernel(x, y).mean()


def _kernel(x, y):
    values = x @ y.T / x.shape[1] + 1
    return values * values * values  # numpy takes some fifty times as long for a power


def _features_of(real, fake):
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise TalkheadError(f"features of shapes {real.shape} and {fake.shape}: wanted (N, D) both, of one network")
    if min(len(real), len(fake)) < 2:
        raise TalkheadError("features of fewer than two pictures: a distance of distributions needs more")
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise TalkheadError("features that are not finite: nothing can be said of their distance")
    return real, fake
