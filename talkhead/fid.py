"""FID and KID, and the feature networks for them.

A feature network here is a function of uint8 frames (N, H, W, 3) that returns float32 (N, D), with attributes `name`
and `width`, its D. Distances of different networks are not comparable, so the name is reported with each number.
"""

import os
import warnings
from pathlib import Path
from typing import Protocol

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
CLASSES = 1008  # of the Inception network of 2015; later ones with the same layers have 1000
SIDE = 299  # pixels, Inception's input
SMALLEST = 75  # pixels; smaller inputs leave an empty feature map
EPSILON = 0.001  # of Inception's batch normalisation

# Branches of Inception's blocks: each is a chain of convolutions; "a+b" are two convolutions of the same map.
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


class FeatureNetwork(Protocol):
    """Feature network: a function of uint8 frames (N, H, W, 3) that returns float32 (N, D)."""

    name: str
    width: int  # D

    def __call__(self, frames: np.ndarray) -> np.ndarray: ...


def named(network: str | FeatureNetwork, device: str | torch.device = "cpu") -> FeatureNetwork:
    """Feature network by name, "inception" or "mobilenet"; a network is returned as it is.

    raises   TalkheadError if the name is unknown, or its weights are missing
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
    """Inception-v3 up to the last average pooling (pool3), with FID's weights of 2015: 2048 features.

    path     the weights as pytorch-fid publishes them; None is their path in torch's hub cache
    device   torch device
    raises   TalkheadError if the file is missing, damaged or of another network

    Sizes come from the shapes in the file. As in TensorFlow's network, and unlike the published one, average pooling
    excludes padding, and the last block has max pooling.

    Source: Heusel et al. 2017; Szegedy et al. 2016 for the layers.
    """

    name = "inception"
    device: str | torch.device

    def __init__(self, path: str | os.PathLike | None = None, device: str | torch.device = "cpu") -> None:
        path = Path(path) if path else files.hub_folder() / WEIGHTS
        hint = f"talkhead weights fetch inception-fid, or put pytorch-fid's {WEIGHTS} there"
        if not path.is_file():
            raise TalkheadError(f"{path}: file not found; FID needs it; run {hint}")
        try:
            self.convolutions, self.device = _read(path), "cpu"
            self.width = self._pool3(torch.zeros(1, 3, SMALLEST, SMALLEST)).shape[1]  # fails if layers do not fit
        except (TalkheadError, KeyError, TypeError, AttributeError, RuntimeError) as problem:
            raise TalkheadError(
                f"{path}: not the Inception weights of FID, or damaged; delete it and run {hint}"
            ) from problem
        self.convolutions = {
            name: (weight.to(device), bias.to(device)) for name, (weight, bias) in self.convolutions.items()
        }
        self.device = device

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
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
        """Convolution and ReLU; without padding if strided or `inner`, else the map keeps its size."""
        weight, bias = self.convolutions[name]
        padding = 0 if inner or stride > 1 else [side // 2 for side in weight.shape[2:]]
        return F.relu_(F.conv2d(x, weight, bias, stride, padding))


def _read(path):
    """Convolutions {name: (weight, bias)} of a weights file, with batch normalisation folded in."""
    state, end, convolutions = files.load_weights(path), ".conv.weight", {}
    if len(state["fc.bias"]) != CLASSES:
        raise TalkheadError(f"{path}: a classifier of {len(state['fc.bias'])} classes, not {CLASSES}")
    for name in [key.removesuffix(end) for key in state if key.endswith(end)]:
        scale, shift, mean, variance = (
            state[f"{name}.bn.{part}"].float() for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / (variance + EPSILON).sqrt()
        convolutions[name] = state[name + end].float() * scale[:, None, None, None], shift - mean * scale
    return convolutions


class MobileNetFeatures:
    """MobileNetV2's pooled features at its training resolution: 1280 features; 14 MB of weights.

    raises   TalkheadError if its weights are missing or damaged
    """

    name = "mobilenet"

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.network, self.device = mobilenet.MobileNet().to(device), device
        self.width = self.network.width

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        images = F.interpolate(
            to_images(frames).to(self.device),
            (mobilenet.SIDE, mobilenet.SIDE),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        return self.network(images).cpu().numpy()


class FaceFeatures:
    """Features of an image encoder, trained on faces alone: its last feature map, averaged.

    encoder  ResNetEncoder in evaluation mode, on its device
    raises   TalkheadError if it is of another architecture

    `name` contains a hash of its weights, because features of different encoders are not comparable.
    """

    def __init__(self, encoder: ResNetEncoder) -> None:
        if not isinstance(encoder, ResNetEncoder):
            raise TalkheadError("FID features: the encoder has another architecture; take one of architecture resnet")
        self.encoder, self.name = encoder, f"encoder-{digest(encoder)}"
        self.width: int = encoder.layer4[-1].bn2.num_features  # type: ignore[union-attr, assignment]  # a batch norm's

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        maps = self.encoder.features(to_images(frames).to(self.encoder.w_avg.device))
        return maps.unflatten(1, (self.width, -1)).mean(2).cpu().numpy()


TOGETHER = 16  # frames in a batch of a feature network
KERNEL_MOST = 10_000  # images of a set, chosen at random, that KID takes
TOO_FEW = "features: fewer than two images; FID and KID need two or more"


class FeatureAccumulator:
    """Features of frames that are added one by one; the frames are not kept."""

    _pending: list[np.ndarray]

    def __init__(self, network: FeatureNetwork) -> None:
        # One growing buffer: many small arrays between the network's own would fragment the heap.
        self.network, self._pending, self._buffer = network, [], bytearray()

    def add(self, frame: np.ndarray) -> None:
        """Add one frame, uint8 (H, W, 3)."""
        self._pending.append(frame)
        if len(self._pending) == TOGETHER:
            self._flush()

    def look(self, frames: np.ndarray) -> None:
        """Add a batch of frames, uint8 (N, H, W, 3)."""
        self._buffer += self.network(frames).astype(np.float32).tobytes()

    def _flush(self):
        if self._pending:
            self.look(np.stack(self._pending))
            self._pending = []

    def features(self) -> np.ndarray:
        """Features of all frames so far, float32 (N, D)."""
        self._flush()
        return np.frombuffer(bytes(self._buffer), np.float32).reshape(-1, self.network.width)


def compare_features(real: np.ndarray, fake: np.ndarray, network: FeatureNetwork) -> dict:
    """FID and KID of two sets of features, and the name of their network.

    real, fake  float (N, D), features by `network`
    network     feature network as in fid.py
    returns     {"fid": `frechet_distance`, "kid": `kernel_distance`, "fid_features": the network's name}. FID is
                comparable only for the same feature network and number of images
    raises      TalkheadError as `frechet_distance` and `kernel_distance`
    """
    return {"fid": frechet_distance(real, fake), "kid": kernel_distance(real, fake), "fid_features": network.name}


def warn_of_few(count: int, network: FeatureNetwork) -> None:
    """Warn if there are fewer images than features: FID's covariances are singular then, and its bias is large."""
    if count < network.width:
        warnings.warn(
            f"FID of {count} images by {network.width} features: its covariances are singular, its bias is large; "
            "compare it only with FID of as many images, or use KID, which has no bias",
            stacklevel=2,
        )


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Fréchet distance between two sets of features, FID for Inception's.

    real, fake  float (N, D), a feature vector for each image; at least two
    returns     float: |m1 − m2|² + tr(S1 + S2 − 2·√(S1·S2)), with means m and covariances S (over N − 1). Its bias
                falls with 1/N, so that only numbers of the same N are comparable
    raises      TalkheadError if the widths differ, there are too few vectors or one is not finite

    Source: thesis §5.2.1; Heusel et al. 2017.
    The trace of √(S1·S2) is computed as the sum of the singular values of the product of the centred features, which is
    exact and real even with fewer images than features, where the matrix square root fails.
    """
    statistics = []
    for features in _checked(real, fake):
        statistics.append(FeatureStatistics(features.shape[1]))
        statistics[-1].add(features)
    return statistics_distance(*statistics)


class FeatureStatistics:
    """Running mean and scatter matrix of features, for the Fréchet distance in constant memory.

    `root` is a matrix R with RᵀR = Σ (x − mean)(x − mean)ᵀ: the centred rows while they are few, then the triangular
    factor of their QR decomposition.
    """

    mean: np.ndarray
    root: np.ndarray

    def __init__(self, width: int) -> None:
        self.count, self.mean, self.root = 0, np.zeros(width), np.zeros((0, width))

    def add(self, rows: np.ndarray) -> None:
        """Add features (n, D)."""
        rows = np.asarray(rows, np.float64)
        mean, count = rows.mean(0), self.count + len(rows)
        # The joint scatter is the sum of both, plus one row for the gap between the means.
        gap = np.sqrt(self.count * len(rows) / count) * (mean - self.mean)
        stack = np.concatenate([self.root, rows - mean, gap[None]] if self.count else [rows - mean])
        # In mode "r" it returns one matrix, which numpy does not type.
        self.root = np.linalg.qr(stack, mode="r") if len(stack) > stack.shape[1] else stack  # type: ignore[assignment]
        self.mean = self.mean + (mean - self.mean) * (len(rows) / count)
        self.count = count


def statistics_distance(real: FeatureStatistics, fake: FeatureStatistics) -> float:
    """Fréchet distance of two `FeatureStatistics`; as `frechet_distance`."""
    if min(real.count, fake.count) < 2:
        raise TalkheadError(TOO_FEW)
    gap = real.mean - fake.mean
    own, other = (each.root / np.sqrt(each.count - 1) for each in (real, fake))
    root = np.linalg.svd(own @ other.T, compute_uv=False).sum()
    return float(gap @ gap + np.square(own).sum() + np.square(other).sum() - 2 * root)


def kernel_distance(real: np.ndarray, fake: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0) -> float:
    """Kernel distance between two sets of features, KID for Inception's.

    real, fake  float (N, D)
    subsets     number of pairs of random subsets
    size        vectors in a subset, at most N
    returns     float: the mean over pairs of the unbiased squared maximum mean discrepancy for the kernel (x·y / D +
                1)³; about 0, sometimes negative, for sets from one distribution
    raises      TalkheadError if the widths differ, there are too few vectors or one is not finite

    Source: Bińkowski et al. 2018.
    """
    real, fake = _checked(real, fake)
    random, size = np.random.default_rng(seed), min(size, len(real), len(fake))
    return float(
        np.mean(
            [
                _discrepancy(*(each[random.choice(len(each), size, replace=False)] for each in (real, fake)))
                for _ in range(subsets)
            ]
        )
    )


def _discrepancy(x, y):
    count = len(x)
    # Without the diagonal: no vector is compared with itself.
    within = sum(values.sum() - np.trace(values) for values in (_kernel(x, x), _kernel(y, y)))
    return within / (count * (count - 1)) - 2 * _kernel(x, y).mean()


def _kernel(x, y):
    values = x @ y.T / x.shape[1] + 1
    return values * values * values  # about fifty times faster than numpy's power


def _checked(real, fake):
    """Both sets as float64 (N, D); TalkheadError if they do not fit."""
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise TalkheadError(f"features: shapes {real.shape} and {fake.shape}; pass (N, D) both, of one network")
    if min(len(real), len(fake)) < 2:
        raise TalkheadError(TOO_FEW)
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise TalkheadError("features: values are not finite; check the frames and the feature network")
    return real, fake
