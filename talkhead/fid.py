"""What networks see in pictures: the features whose clouds FID and KID compare.

A feature network here is a function of uint8 frames (N, H, W, 3) that returns float32 (N, D), with `name` and `width`, its
D. Distances by two networks have nothing to do with each other, so the name goes wherever such a number goes.
"""

from pathlib import Path

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
