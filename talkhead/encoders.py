"""Image encoders: image → W+ latent, in one pass or iteratively.

ResNet18 with one linear head is the thesis's own encoder. pSp (Richardson et al. 2021), e4e (Tov et al. 2021) and
ReStyle (Alaluf et al. 2021) share the trunk of a face recognition network, IR-SE-50; the modules have the names of
those projects' files, so that their weights load without renaming.

Source: thesis §3.3.2.
"""

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from talkhead import files
from talkhead.errors import TalkheadError
from talkhead.images import resize_images

if TYPE_CHECKING:
    from talkhead.stylegan import Generator

# torchvision's names of ResNet18's stem and first four residual blocks, two per layer.
IMAGENET_PARTS = ("conv1", "bn1", "layer1", "layer2")


# ---- ResNet18 ----


class Sparse(nn.Conv2d):
    """1×1 convolution with a stride of `step`.

    The input is subsampled first: with few channels, oneDNN's AVX-512 gradient of a strided 1×1 convolution writes out
    of bounds.
    """

    def __init__(self, in_channels: int, out_channels: int, step: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)
        self.step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[..., :: self.step, :: self.step])


class Block(nn.Module):
    """ResNet's basic block: two 3×3 convolutions and a shortcut, with torchvision's parameter names."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(Sparse(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class ResNetEncoder(nn.Module):
    """ResNet18 encoder: predicts the offset of the W+ latent from the mean latent in one pass.

    num_ws       L, the generator's latent layers
    width        channels of the first stage; 64 is ResNet18
    input_size   images of other sizes are resized to this, pixels
    w_dim        width of one latent
    stem_stride  downsampling factor of the stem: 4 is ResNet18 (strided convolution, then max pooling); 2 has no
                 pooling and 1 no stride either, which keeps the detail of inputs much smaller than 256
    pool_size    side of the averaged last feature map; 1 is ResNet18
    rank         of the head, a product of two matrices; None: one matrix. See `reduce_rank`.
    w_avg        float (w_dim,) or (L, w_dim), the generator's mean latent; None: zeros

    With width 64, stem_stride 4 and pool_size 1, all but the head equals torchvision's resnet18, in names and values.

    Source: thesis §3.3.2.2, Table 3.1.
    Departure: the table prints 6144 outputs for a 256×256 generator; L·512 are needed.
    """

    w_avg: torch.Tensor

    def __init__(
        self,
        num_ws: int,
        width: int = 64,
        input_size: int = 256,
        w_dim: int = 512,
        stem_stride: int = 4,
        pool_size: int = 1,
        rank: int | None = None,
        w_avg: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        if stem_stride not in (1, 2, 4):
            raise TalkheadError(f"encoder: stem_stride {stem_stride}; take 1, 2 or 4")
        self.config: dict = {
            "num_ws": num_ws,
            "width": width,
            "input_size": input_size,
            "w_dim": w_dim,
            "stem_stride": stem_stride,
            "pool_size": pool_size,
        } | ({"rank": rank} if rank else {})
        self.num_ws, self.w_dim, self.input_size = num_ws, w_dim, input_size
        self.conv1 = nn.Conv2d(3, width, 7, 1 if stem_stride == 1 else 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem_stride == 4 else nn.Identity()
        self.layer1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(Block(4 * width, 8 * width, 2), Block(8 * width, 8 * width, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(pool_size)
        count = 8 * width * pool_size**2
        self.reduce = nn.Linear(count, rank, bias=False) if rank else nn.Identity()
        self.fc = nn.Linear(rank or count, num_ws * w_dim)
        self.register_buffer("w_avg", torch.zeros(num_ws, w_dim))
        if w_avg is not None:
            self.w_avg.copy_(w_avg)
        self._initialise()

    def _initialise(self):
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        # Training starts near the mean face, since latents far from it give no useful images.
        nn.init.normal_(self.fc.weight, std=1e-3)
        nn.init.zeros_(self.fc.bias)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features, float (N, 8·width·pool_size²), of images, float (N, 3, H, W) in [-1, 1]."""
        images = resize_images(images, self.input_size)
        x = self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=True))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.avgpool(x).flatten(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """W+ latents, float (N, L, w_dim), of images, float (N, 3, H, W) in [-1, 1] of any size."""
        offset = self.fc(self.reduce(self.features(images))).view(-1, self.num_ws, self.w_dim)
        return self.w_avg + offset

    def load_imagenet(self, path: str | os.PathLike) -> None:
        """Initialise the stem and the first four residual blocks from ImageNet weights.

        path    torchvision's resnet18 state dict, such as resnet18-f37072fd.pth
        raises  TalkheadError if the file is not that, or this encoder is not as wide as ResNet18

        Source: thesis §3.3.2.2 ("the first 4 ResNet blocks").
        """
        _load_parts(self, path, IMAGENET_PARTS, "torchvision's resnet18 weights", "resnet18-f37072fd.pth")


@torch.no_grad()
def reduce_rank(encoder: ResNetEncoder, features: torch.Tensor, rank: int) -> ResNetEncoder:
    """Copy a ResNetEncoder with a head of lower rank: the one that changes its latents least, in the mean square.

    encoder   without a rank of its own
    features  float (N, C), `encoder.features` of the images on which the change is to be least
    rank      of the new head: of L·w_dim·C weights, (L·w_dim + C)·rank are left
    raises    TalkheadError if the rank is not below C, or the head has one already
    """
    fc, features = encoder.fc, features.double()
    if "rank" in encoder.config or not 0 < rank < fc.in_features:
        raise TalkheadError(
            f"encoder: a head of {fc.in_features} inputs has no rank {rank} below its own; take a lower"
        )
    mean, weight = features.mean(0), fc.weight.double()
    # A little noise beside the features, so that directions they do not cover are not lost.
    covariance = (features - mean).mT @ (features - mean) / len(features)
    covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(len(mean), dtype=torch.float64)
    factor = torch.linalg.cholesky(covariance)
    left, values, right = torch.linalg.svd(weight @ factor, full_matrices=False)
    scale = values[:rank].sqrt()  # on both sides, so that neither leaves half precision
    reduce = scale[:, None] * torch.linalg.solve_triangular(factor, right[:rank], upper=False, left=False)
    head = left[:, :rank] * scale
    state = encoder.state_dict() | {
        "reduce.weight": reduce,
        "fc.weight": head,
        "fc.bias": fc.bias + (weight - head @ reduce) @ mean,
    }
    reduced = ResNetEncoder(**encoder.config, rank=rank)
    reduced.load_state_dict(state)
    return reduced


@torch.no_grad()
def extend_layers(smaller: ResNetEncoder, num_ws: int) -> ResNetEncoder:
    """Copy a ResNetEncoder for `num_ws` latent layers, at least its own; the new layers' heads copy its last one."""
    encoder, state = ResNetEncoder(**smaller.config | {"num_ws": num_ws}), smaller.state_dict()
    for name in ("fc.weight", "fc.bias", "w_avg"):
        layers = state[name].unflatten(0, (smaller.num_ws, -1))
        state[name] = torch.cat([layers, layers[-1:].expand(num_ws - smaller.num_ws, *layers.shape[1:])]).flatten(0, 1)
    encoder.load_state_dict(state)
    return encoder


# ---- weights of other networks ----


def _load_parts(network, path, parts, what, example):
    """Load some modules of a network from a file of weights; the others stay as they are."""
    weights = _read_state(path, what, example)
    try:
        wanted = {
            name: weights[name]
            for name in network.state_dict()
            if name.split(".")[0] in parts and not _optional(name, weights)
        }
    except KeyError as error:
        raise TalkheadError(f"{path}: not {what}; give {example}") from error
    try:
        network.load_state_dict(wanted, strict=False)
    except RuntimeError as error:
        raise TalkheadError(
            f"{path}: width differs from this encoder's {network.config['width']}; use width 64 or train from scratch"
        ) from error


def _optional(name, state):
    """True for a missing batch counter of a batch normalisation; unused, and absent in files before torch 0.4.1."""
    return name.endswith(".num_batches_tracked") and name not in state


def _read_state(path, what, example):
    """Read a state dict of another project, of any torch.save format, without running code from the file."""
    try:
        weights = files.load_weights(path)
    except files.NotPlainWeights as error:
        raise TalkheadError(f"{path}: not {what}; give {example}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise TalkheadError(f"{path}: not {what}; give {example}")
    return weights


# ---- IR-SE-50 ----

BLOCKS = (3, 4, 14, 3)  # residual blocks of IR-SE-50 at 1/2, 1/4, 1/8 and 1/16 of the input size
SE_REDUCTION = 16  # channel reduction of squeeze-and-excitation

# pSp's crop of an aligned face for recognition: top, bottom, left, right in a 256² image; then scaled to 112².
RECOGNITION_CROP = (35, 223, 32, 220)
ALIGNED_SIZE, RECOGNITION_SIZE = 256, 112  # pixels

IRSE_PARTS = ("input_layer", "body")
IRSE_WEIGHTS, IRSE_FILE = "the weights of an IR-SE-50 face recognition network", "model_ir_se50.pth"


class Excitation(nn.Module):
    """Squeeze-and-excitation: channel weights from globally pooled features (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, max(1, channels // SE_REDUCTION), 1, bias=False)
        self.fc2 = nn.Conv2d(max(1, channels // SE_REDUCTION), channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class IRBlock(nn.Module):
    """IR-SE residual block: batch normalisation first, excitation last; the shortcut subsamples where widths agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        if in_channels == out_channels:
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(Sparse(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False),
            nn.PReLU(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            Excitation(out_channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class IRSE50(nn.Module):
    """Trunk of the face recognition network IR-SE-50: 50 layers in residual blocks with squeeze-and-excitation.

    width      channels of the first layers; 64 is IR-SE-50
    channels   of the input

    Source: Deng et al. 2019 (ArcFace), §3.2; thesis §3.3.2.1.
    """

    def __init__(self, width: int = 64, channels: int = 3) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width)
        )
        blocks, in_channels = [], width
        for out_channels, count in zip((width, 2 * width, 4 * width, 8 * width), BLOCKS):
            blocks += [IRBlock(in_channels, out_channels, 2)] + [
                IRBlock(out_channels, out_channels, 1) for _ in range(count - 1)
            ]
            in_channels = out_channels
        self.body = nn.Sequential(*blocks)

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps at H/4, H/8 and H/16, with 2, 4 and 8 times `width` channels, of float (N, channels, H, H)."""
        if images.device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        x, found, last = self.input_layer(images), [], 0
        for count in BLOCKS:
            x = self.body[last : last + count](x)
            last += count
            found.append(x)
        return found[1:]


class FaceRecognition(IRSE50):
    """Face recognition network IR-SE-50: identity embeddings of aligned faces.

    width   channels of the first layers; 64 is IR-SE-50
    size    width of an embedding
    affine  the last batch normalisation has weights

    Source: the identity loss of pSp (thesis §3.3.2.1): its crop of the face, and the layout of model_ir_se50.pth.
    """

    def __init__(self, width: int = 64, size: int = 512, affine: bool = True) -> None:
        super().__init__(width)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(8 * width),
            nn.Identity(),
            nn.Flatten(),
            nn.Linear(8 * width * 7**2, size),
            nn.BatchNorm1d(size, affine=affine),
        )

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings, float (N, size) of length 1, of cropped faces, float (N, 3, 112, 112)."""
        return F.normalize(self.output_layer(self.maps(images)[-1]), dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings, float (N, size) of length 1, of FFHQ-aligned images, float (N, 3, H, H) in [-1, 1], any size."""
        top, bottom, left, right = RECOGNITION_CROP
        images = resize_images(images, ALIGNED_SIZE)[:, :, top:bottom, left:right]
        return self.embed(F.adaptive_avg_pool2d(images, RECOGNITION_SIZE))


def load_face_recognition(path: str | os.PathLike) -> FaceRecognition:
    """Load a FaceRecognition, frozen and in evaluation mode, from a file of the layout of model_ir_se50.pth.

    raises   TalkheadError if the file has another layout
    """
    weights = _read_state(path, IRSE_WEIGHTS, IRSE_FILE)
    try:
        network = FaceRecognition(
            len(weights["input_layer.0.weight"]),
            len(weights["output_layer.3.weight"]),
            "output_layer.4.weight" in weights,
        )
        network.load_state_dict(weights)
    except (RuntimeError, KeyError) as error:
        raise TalkheadError(f"{path}: not {IRSE_WEIGHTS}; give {IRSE_FILE}") from error
    return network.eval().requires_grad_(False)


# ---- pSp, e4e ----

COARSE, MIDDLE = 3, 7  # the pyramid's map at H/16 gives latents 0-2, H/8 latents 3-6, H/4 the others


class EqualLinear(nn.Module):
    """StyleGAN's linear layer with equalised learning rate: weights from N(0, 1), scaled at run time."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight / math.sqrt(self.weight.shape[1]), self.bias)


class Map2Style(nn.Module):
    """Head for one latent: strided convolutions down to one pixel, and a linear layer."""

    def __init__(self, channels: int, w_dim: int, halvings: int) -> None:
        super().__init__()
        layers = []
        for _ in range(halvings):
            layers += [nn.Conv2d(channels, channels, 3, 2, 1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(channels, w_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.convs(x).flatten(1))


class PSPEncoder(IRSE50):
    """pSp encoder: IR-SE-50 and a head that predicts the offset of the W+ latent from the mean latent, in one pass.

    num_ws      L, the generator's latent layers
    head        "pyramid"  every latent from a map of its scale: coarse (0-2), middle (3-6), fine (pSp)
                "last"     every latent from the last map (ReStyle)
                "w+"       all latents by one linear layer from the last map (pSp)
                "w"        one latent, for every layer, from the averaged last map (pSp, e4e)
    deltas      the first latent is in W, the others are offsets from it (e4e); for "pyramid" and "last"
    width       channels of the first layers; 64 is IR-SE-50
    input_size  images of other sizes are resized to this, pixels; a power of two from 32
    w_dim       width of one latent
    channels    of the input: 3, or 6 inside a ReStyle
    w_avg       float (w_dim,) or (L, w_dim), added to the offset; None: zeros

    Source: thesis §3.3.2.1; Richardson et al. 2021 (pSp), Tov et al. 2021 (e4e), Alaluf et al. 2021 (ReStyle).
    """

    w_avg: torch.Tensor

    def __init__(
        self,
        num_ws: int,
        head: str = "pyramid",
        deltas: bool = False,
        width: int = 64,
        input_size: int = 256,
        w_dim: int = 512,
        channels: int = 3,
        w_avg: torch.Tensor | None = None,
    ) -> None:
        super().__init__(width, channels)
        halvings = int(math.log2(max(input_size, 1))) - 4
        if input_size != 2 ** (halvings + 4) or halvings < 1:
            raise TalkheadError(f"encoder: input_size {input_size}; take a power of two from 32")
        self.config: dict = {
            "arch": "psp",
            "num_ws": num_ws,
            "head": head,
            "deltas": deltas,
            "width": width,
            "input_size": input_size,
            "w_dim": w_dim,
            "channels": channels,
        }
        self.num_ws, self.w_dim, self.input_size, self.head, self.deltas = num_ws, w_dim, input_size, head, deltas
        out_channels = 8 * width
        if head == "pyramid":
            self.styles = nn.ModuleList(
                Map2Style(out_channels, w_dim, halvings + (k >= COARSE) + (k >= MIDDLE)) for k in range(num_ws)
            )
            self.latlayer1 = nn.Conv2d(4 * width, out_channels, 1)
            self.latlayer2 = nn.Conv2d(2 * width, out_channels, 1)
        elif head == "last":
            self.styles = nn.ModuleList(Map2Style(out_channels, w_dim, halvings) for _ in range(num_ws))
        elif head == "w+":
            self.output_layer_2 = nn.Sequential(
                nn.BatchNorm2d(out_channels),
                nn.AdaptiveAvgPool2d(7),
                nn.Flatten(),
                nn.Linear(out_channels * 7**2, out_channels),
            )
            self.linear = EqualLinear(out_channels, num_ws * w_dim)
        elif head == "w":
            self.linear = EqualLinear(out_channels, w_dim)
        else:
            raise TalkheadError(f"encoder: head {head!r}; take pyramid, last, w+ or w")
        self.register_buffer("w_avg", torch.zeros(num_ws, w_dim))
        if w_avg is not None:
            self.w_avg.copy_(w_avg)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """W+ latents, float (N, L, w_dim), of images, float (N, channels, H, W) in [-1, 1] of any size."""
        return self.w_avg + self.offset(images)

    def offset(self, images: torch.Tensor) -> torch.Tensor:
        """Offset of `forward` from the mean latent, float (N, L, w_dim)."""
        fine, middle, coarse = self.maps(resize_images(images, self.input_size))
        if self.head == "w":
            return self.linear(coarse.mean((2, 3)))[:, None].expand(-1, self.num_ws, -1)
        if self.head == "w+":
            return self.linear(self.output_layer_2(coarse)).view(-1, self.num_ws, self.w_dim)
        if self.head == "pyramid":
            middle = _upsample_to(middle, coarse) + self.latlayer1(middle)
            fine = _upsample_to(fine, middle) + self.latlayer2(fine)
            maps = [coarse if k < COARSE else middle if k < MIDDLE else fine for k in range(self.num_ws)]
        else:
            maps = [coarse] * self.num_ws
        latents = torch.stack([style(x) for style, x in zip(self.styles, maps)], 1)
        return torch.cat([latents[:, :1], latents[:, :1] + latents[:, 1:]], 1) if self.deltas else latents

    def load_irse(self, path: str | os.PathLike) -> None:
        """Initialise the trunk from a face recognition network, as pSp does.

        path    state dict of the layout of model_ir_se50.pth
        raises  TalkheadError if the file is not that, or this encoder has another width or other input channels
        """
        _load_parts(self, path, IRSE_PARTS, IRSE_WEIGHTS, IRSE_FILE)


def _upsample_to(like, x):
    """Resize x bilinearly to the size of `like`, corners aligned as in pSp's pyramid."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)


# ---- ReStyle ----


class ReStyle(nn.Module):
    """Iterative encoder (ReStyle): each pass takes the image and its reconstruction so far, and corrects the latent.

    encoder     PSPEncoder of 6 channels; the reconstruction of its first pass is the image of w_avg
    decoder     the stylegan.Generator that it was trained with; frozen
    iterations  passes

    A generator tuned afterwards does not replace the decoder: the encoder is trained on this one's images.

    Source: Alaluf et al. 2021, §3.
    """

    def __init__(self, encoder: PSPEncoder, decoder: "Generator", iterations: int = 5) -> None:
        super().__init__()
        if encoder.num_ws != decoder.num_ws:
            raise TalkheadError(
                f"encoder has {encoder.num_ws} layers, its generator {decoder.num_ws}; the file is damaged"
            )
        self.encoder, self.decoder, self.iterations = encoder, decoder.requires_grad_(False), iterations
        self.config: dict = {
            "arch": "restyle",
            "encoder": encoder.config,
            "decoder": decoder.config,
            "iterations": iterations,
        }
        self.num_ws, self.w_dim, self.input_size = encoder.num_ws, encoder.w_dim, encoder.input_size

    @property
    def w_avg(self) -> torch.Tensor:
        return self.encoder.w_avg

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """W+ latents, float (N, L, w_dim), of images, float (N, 3, H, W) in [-1, 1] of any size."""
        images = resize_images(images, self.input_size)
        latents = self.w_avg.expand(len(images), -1, -1)
        drawn = self._synthesize(self.w_avg[None]).expand_as(images)
        for index in range(self.iterations):
            if index:
                drawn = self._synthesize(latents)
            latents = latents + self.encoder.offset(torch.cat([images, drawn], 1))
        return latents

    def _synthesize(self, latents):
        # Averaged, not resampled, as in the encoder's training.
        return F.adaptive_avg_pool2d(self.decoder.synthesis(latents), self.input_size)


# ---- encoders from files ----

Encoder = ResNetEncoder | PSPEncoder | ReStyle


def build(config: dict, generator: Callable[..., "Generator"] | None = None) -> Encoder:
    """Build an untrained encoder from its `config`.

    config     {"arch": "psp" or "restyle", …}; without "arch", a ResNetEncoder
    generator  function of a decoder's config, such as stylegan.Generator; builds the decoder of a ReStyle
    raises     TalkheadError if the architecture is unknown; TypeError or KeyError if the config does not fit it
    """
    config = dict(config)
    arch = config.pop("arch", "resnet")
    if arch == "resnet":
        return ResNetEncoder(**config)
    if arch == "psp":
        return PSPEncoder(**config)
    if arch == "restyle":
        encoder, decoder = build(config["encoder"]), generator(**config["decoder"])  # type: ignore[misc]  # not None
        return ReStyle(encoder, decoder, config["iterations"])  # type: ignore[arg-type]  # a PSPEncoder
    raise TalkheadError(f"encoder of architecture {arch!r}: unknown to this version; take resnet, psp or restyle")


# (head, deltas) of each encoder_type in the options of pSp, e4e and ReStyle.
PSP_TYPES = {
    "GradualStyleEncoder": ("pyramid", False),
    "Encoder4Editing": ("pyramid", True),
    "BackboneEncoder": ("last", False),
    "ProgressiveBackboneEncoder": ("last", True),
    "BackboneEncoderUsingLastLayerIntoWPlus": ("w+", False),
    "BackboneEncoderUsingLastLayerIntoW": ("w", False),
    "SingleStyleCodeEncoder": ("w", False),
}
RESTYLE_ITERATIONS = 5


def from_psp(
    state: dict[str, torch.Tensor],
    latent_avg: torch.Tensor | None,
    opts: dict,
    decoder: tuple[dict, dict[str, torch.Tensor]] | None = None,
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Convert an encoder of pSp, e4e or ReStyle to the arguments of `build` and `load_state_dict`.

    state       state dict of the encoder alone: names without their prefix "encoder."
    latent_avg  float (512,), (1, 512) or (L, 512), the mean latent; None if the file has none
    opts        dict of its training options; {} if unknown
    decoder     for ReStyle, whose input has 6 channels: (config, state) of its stylegan.Generator
    returns     (config, state)
    raises      TalkheadError if it is another network, or a part is missing

    Sizes come from shapes. Only deltas (e4e), the start from the mean latent, and L of head "w" come from the options.
    """
    name, head, deltas = _psp_type(state, opts)
    channels, restyle = state["input_layer.0.weight"].shape[1], state["input_layer.0.weight"].shape[1] == 6
    if channels not in (3, 6):
        raise TalkheadError(
            f"{name}: {channels} input channels, of segmentation maps or sketches; pass an encoder of face images"
        )
    # ReStyle always starts at the mean latent, whatever its options say.
    wanted = restyle or opts.get("start_from_latent_avg", False)
    if wanted and latent_avg is None:
        raise TalkheadError(
            f"{name}: the file lacks latent_avg, the mean latent; take it from the generator of its training"
        )
    config = {"arch": "psp", "head": head, "deltas": deltas, "channels": channels} | _psp_sizes(
        state, head, latent_avg, opts
    )
    shape = config["num_ws"], config["w_dim"]
    mean = latent_avg if wanted else None
    if mean is not None and tuple(mean.shape) not in (shape, (1, shape[1]), shape[1:]):
        raise TalkheadError(
            f"{name}: latent_avg has shape {tuple(mean.shape)}, latents {shape}; "
            "the file is damaged or mixes two networks"
        )
    state = {**state, "w_avg": (torch.zeros(1) if mean is None else mean.float()).expand(shape).clone()}
    _check_names(name, config, state)
    if not restyle:
        return config, state
    if decoder is None:
        raise TalkheadError(f"{name}: a ReStyle encoder without its generator; pass the whole file")
    iterations = opts.get("n_iters_per_batch", RESTYLE_ITERATIONS)
    state = {f"encoder.{key}": value for key, value in state.items()}
    state |= {f"decoder.{key}": value for key, value in decoder[1].items()}
    return {"arch": "restyle", "encoder": config, "decoder": decoder[0], "iterations": iterations}, state


def _psp_type(state, opts):
    """encoder_type, head and deltas of an encoder of pSp, e4e or ReStyle."""
    name = opts.get("encoder_type")
    if "conv1.weight" in state:
        raise TalkheadError(
            f"{name or 'encoder'}: its trunk is ResNet34, which is not supported; pass an encoder on IR-SE-50"
        )
    if (
        "input_layer.0.weight" not in state
        or "body.23.res_layer.5.fc2.weight" not in state
        or "body.24.res_layer.1.weight" in state
    ):
        raise TalkheadError(
            f"{name or 'encoder'}: not an encoder of pSp, e4e or ReStyle on IR-SE-50; pass one of those"
        )
    if name is None:
        names = {
            "latlayer1.weight": "GradualStyleEncoder",
            "styles.0.linear.weight": "BackboneEncoder",
            "output_layer_2.3.weight": "BackboneEncoderUsingLastLayerIntoWPlus",
        }
        name = next((found for key, found in names.items() if key in state), "BackboneEncoderUsingLastLayerIntoW")
        if name == "GradualStyleEncoder" and "stylegan_size" in opts:
            name = "Encoder4Editing"
    if name not in PSP_TYPES:
        raise TalkheadError(f"encoder of type {name}: unknown; known are {', '.join(PSP_TYPES)}")
    return name, *PSP_TYPES[name]


def _psp_sizes(state, head, latent_avg, opts):
    """num_ws, width, input_size and w_dim of an encoder with these weights."""
    sizes = {"width": state["input_layer.0.weight"].shape[0], "input_size": ALIGNED_SIZE}
    if head in ("pyramid", "last"):
        halvings = sum(key.startswith("styles.0.convs.") and key.endswith(".weight") for key in state)
        return sizes | {
            "num_ws": sum(key.startswith("styles.") and key.endswith(".linear.weight") for key in state),
            "w_dim": state["styles.0.linear.weight"].shape[0],
            "input_size": 2 ** (halvings + 4),
        }
    outputs = state["linear.weight"].shape[0]
    if head == "w+":
        w_dim = 512 if latent_avg is None else latent_avg.shape[-1]
        return sizes | {"num_ws": outputs // w_dim, "w_dim": w_dim}
    resolution = opts.get("output_size") or opts.get("stylegan_size") or 1024
    return sizes | {"num_ws": 2 * int(math.log2(resolution)) - 2, "w_dim": outputs}


def _check_names(name, config, state):
    with torch.device("meta"):
        wanted = build(config).state_dict()
    wrong = sorted(
        key
        for key in wanted.keys() | state.keys()
        if key not in wanted
        or not _optional(key, state)
        and (key not in state or wanted[key].shape != state[key].shape)
    )
    if wrong:
        raise TalkheadError(
            f"{name}: {wrong[0]} is missing, unexpected or of another shape; the file is damaged or of another network"
        )
