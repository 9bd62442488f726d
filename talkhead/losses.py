"""Losses between images: perceptual (LPIPS and others), pixel, lip and identity."""

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from talkhead.downloads import REGISTRY
from talkhead.encoders import load_face_recognition
from talkhead.errors import TalkheadError
from talkhead.keypoints import KeypointNetwork, mouth_windows
from talkhead.metrics import SSIM_K1, SSIM_K2, SSIM_SIGMA, SSIM_WINDOW
from talkhead.mobilenet import MobileNet

# The file that torchvision downloads for `vgg16(weights="IMAGENET1K_V1")`; LPIPS reads it from torch's cache.
VGG16_URL = REGISTRY["vgg16"].urls[0]

BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # binomial kernel of Burt and Adelson
SMALLEST_LEVEL = 4  # pixels; smaller pyramid levels do not resolve a face's layout


def vgg_weights() -> Path:
    """Path of VGG-16's ImageNet weights in torch's cache, whether they exist or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG16_URL).name


class Perceptual(nn.Module):
    """Perceptual distance between images, one number per pair.

    name  "lpips"      LPIPS with VGG-16 (Zhang 2018), as in the thesis; reads VGG's weights from torch's cache, never
                       downloads them
          "mobilenet"  the same with MobileNetV2's features and equal channel weights; reads 14 MB of weights likewise
          "ssim"       1 − SSIM (Wang 2004); needs no weights, and of the two that need none gives the better eyes and
                       mouths
          "pyramid"    L1 over the levels of a Laplacian pyramid (Bojanowski 2018); needs no weights
          "auto"       LPIPS if its weights exist, else the pyramid; `.name` is the choice

    Called with images and targets, float (N, 3, H, W) in [-1, 1], returns float (N,), 0 for equal images.
    Its own weights are frozen; gradients flow to the images, not to the targets. For constant targets,
    `toward(targets)` is cheaper: it computes their features once.

    raises  TalkheadError if the network's weights are missing or unreadable, or the name is unknown

    Source: thesis §3.3.1.1, Algorithms 1 and 2 (LPIPS); eq. 3.2, 4.5.
    Departure: the thesis has LPIPS alone; the others work without VGG's weights. SSIM compares the local structure
    around each pixel, the pyramid edges at each scale; neither is trained. MobileNetV2 is trained on the same images as
    VGG, at a hundredth of its cost.
    """

    def __init__(self, name: str = "auto") -> None:
        super().__init__()
        if name == "auto":
            name = "lpips" if vgg_weights().is_file() else "pyramid"
        networks = {"lpips": _lpips, "mobilenet": MobileNet, "ssim": None, "pyramid": None}
        if name not in networks:
            raise TalkheadError(f"perceptual loss {name!r}: unknown; take auto, lpips, mobilenet, ssim or pyramid")
        self.name = name
        self.network = networks[name] and networks[name]()  # type: ignore[misc]  # called if not None

    def train(self, mode: bool = True) -> "Perceptual":
        # Always evaluation mode: LPIPS has dropout, and a distance must be deterministic.
        return super().train(False)

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.toward(targets)(images)

    def toward(self, targets: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Distance to fixed targets: a function of images (N, 3, H, W) that returns (N,)."""
        if self.name == "pyramid":
            return lambda images: pyramid_distance(images, targets)
        if self.name == "ssim":
            return _ssim_to(targets)
        with torch.no_grad():
            target_features = _unit_features(self._feature_maps(targets))
        return lambda images: self._distance(_unit_features(self._feature_maps(images)), target_features)

    def _feature_maps(self, images):
        """Feature maps (N, C, h, w) of several depths."""
        return (
            self.network.net(self.network.scaling_layer(images)) if self.name == "lpips" else self.network.maps(images)
        )

    def _distance(self, features, target_features):
        """Weighted squared distance of features, averaged over pixels: lpips' channel weights, or equal ones."""
        squares = [(x - y).square() for x, y in zip(features, target_features)]
        if self.name == "lpips":
            squares = [lin(square).float() for square, lin in zip(squares, self.network.lins)]
        return sum(square.mean((2, 3)).sum(1) for square in squares)


def _lpips():
    weights = vgg_weights()
    if not weights.is_file():
        raise TalkheadError(
            f"{weights.name}: not found; download {VGG16_URL} into {weights.parent} or take the pyramid loss"
        )
    import lpips  # slow to import: it loads all of torchvision

    try:
        with warnings.catch_warnings():
            # lpips calls torchvision by deprecated argument names.
            warnings.simplefilter("ignore", UserWarning)
            network = lpips.LPIPS(net="vgg", verbose=False)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TalkheadError(f"{weights}: not VGG-16's weights; delete it and download {VGG16_URL} again") from error
    return network.eval().requires_grad_(False)


def _unit_features(maps):
    """Normalise the feature vector of each pixel at each depth to unit length; Zhang et al. 2018, eq. 1."""
    # In float32: autocast would sum squares in half precision.
    return [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in map(torch.Tensor.float, maps)]


def pyramid_distance(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """L1 distance between the Laplacian pyramids of two images, with equal weights of all levels.

    images, targets  float (N, 3, H, W) in [-1, 1]
    returns          float (N,): the sum over levels of the mean absolute difference

    A level is an image minus its blur; the next image is the blur at half the side. The last level is the smallest
    image itself, so that the mean colour counts too.

    Source: Bojanowski et al., "Optimizing the Latent Space of Generative Networks" (2018), §3.2; their weight 2^2j of
    level j turns their sum over pixels into this mean, up to a constant.
    """
    level = images - targets  # the pyramid is linear, so the pyramid of the difference is enough
    distance = 0
    while min(level.shape[-2:]) >= 2 * SMALLEST_LEVEL:
        blurred = _blur(level)
        distance = distance + (level - blurred).abs().mean((1, 2, 3))
        level = blurred[:, :, ::2, ::2]
    return distance + level.abs().mean((1, 2, 3))


def _ssim_to(targets):
    """1 − SSIM to fixed targets, mean over windows and channels: a function of images that returns (N,).

    Constants are those of metrics.ssim, for values from 0 to 1.

    raises  TalkheadError if a side is shorter than the window
    """
    if min(targets.shape[-2:]) < SSIM_WINDOW:
        raise TalkheadError(
            f"images of {targets.shape[-1]}x{targets.shape[-2]}: ssim needs {SSIM_WINDOW} or more; take the pyramid"
        )
    line = torch.exp(-0.5 * ((torch.arange(SSIM_WINDOW, device=targets.device) - SSIM_WINDOW // 2) / SSIM_SIGMA) ** 2)
    line = (line / line.sum()).expand(3, 1, 1, -1)

    def mean(x):
        return F.conv2d(F.conv2d(x, line, groups=3), line.mT, groups=3)

    def distance(images):
        with torch.autocast(images.device.type, enabled=False):  # variances are small differences of squares
            x = images.float() / 2 + 0.5
            mean_x = mean(x)
            var_x, covariance = mean(x * x) - mean_x**2, mean(x * y) - mean_x * mean_y
            ssim = (2 * mean_x * mean_y + SSIM_K1**2) * (2 * covariance + SSIM_K2**2)
            ssim = ssim / ((mean_x**2 + mean_y**2 + SSIM_K1**2) * (var_x + var_y + SSIM_K2**2))
            return 1 - ssim.mean((1, 2, 3))

    with torch.no_grad(), torch.autocast(targets.device.type, enabled=False):
        y = targets.float() / 2 + 0.5
        mean_y = mean(y)
        var_y = mean(y * y) - mean_y**2
    return distance


def _blur(images):
    """Blur with the separable binomial kernel, reflected at the border."""
    channels = images.shape[1]
    kernel = images.new_tensor(BLUR)
    images = F.pad(images, (2, 2, 2, 2), mode="reflect")
    images = F.conv2d(images, kernel.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)
    return F.conv2d(images, kernel.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)


def pixel_loss(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each pair of images: (1/N)·‖a − b‖² over its N pixel values.

    images, targets  float (N, 3, H, W)
    returns          float (N,)

    Source: thesis Algorithm 1, line 5.
    """
    return (images - targets).square().mean((1, 2, 3))


class LipDistance(nn.Module):
    """Distance between the lip keypoints of two images: a loss for mouth opening and closure alone.

    keypoints   keypoints.KeypointNetwork; its mouth regressor is applied at the mouth's window in the target

    Called with images and targets, float (N, 3, S, S) in [-1, 1], aligned faces, returns float (N,): the mean distance
    of the 40 lip keypoints in widths of the mouth. Gradients flow to the images, not to the targets.

    Departure: the thesis has no such term; lips are a hundredth of a face, and pixel losses are nearly blind to
    closure.
    """

    def __init__(self, keypoints: KeypointNetwork) -> None:
        super().__init__()
        self.keypoints = keypoints.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "LipDistance":
        return super().train(False)

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():
            small = F.interpolate(
                targets.float(), (self.keypoints.size,) * 2, mode="bilinear", antialias=True, align_corners=False
            )
            centres, sides = mouth_windows(self.keypoints.face(small).view(len(targets), -1, 2).cpu().numpy())
            centres, sides = (  # type: ignore[assignment]  # as tensors from here on
                torch.as_tensor(value, dtype=torch.float32, device=images.device) for value in (centres, sides)
            )
            target_lips = self._lips(targets.float(), centres, sides)
        with torch.autocast(images.device.type, enabled=False):
            return (self._lips(images.float(), centres, sides) - target_lips).norm(dim=2).mean(
                1
            ) * self.keypoints.WINDOW

    def _lips(self, images, centres, sides):
        """Lip keypoints (N, K, 2) in fractions of the windows."""
        matrix = torch.diag_embed(sides[:, None].expand(-1, 2))
        matrix = torch.cat([matrix, (2 * centres - 1)[..., None]], 2)
        size = 2 * self.keypoints.mouth_size  # sampled at twice the network's size and averaged, against aliasing
        grid = F.affine_grid(matrix, [len(images), 3, size, size], align_corners=False)
        windows = F.avg_pool2d(
            F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False), 2
        )
        return self.keypoints.mouth(windows).view(len(images), -1, 2)


def identity_network(path: str | os.PathLike, device: str | torch.device = "cpu") -> nn.Module:
    """Load a frozen face recognition network for `identity_loss`.

    path    model_ir_se50.pth, the network of pSp's loss, or a state dict of its layout; or a program written by
            torch.export.save that maps float (N, 3, H, W) in [-1, 1] to (N, D), for any N. A program can run any code:
            load only trusted files
    raises  TalkheadError if it is neither
    """
    try:
        network = torch.export.load(path).module() if _is_program(path) else load_face_recognition(path)
    except (OSError, RuntimeError, TalkheadError) as error:
        raise TalkheadError(
            f"{path}: not a face recognition network; give model_ir_se50.pth, or export one with torch.export.save"
        ) from error
    return network.to(device).requires_grad_(False)


def _is_program(path):
    """True if a file is an archive of torch.export; one of torch.save has a pickle in its first folder."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not any(name.count("/") == 1 and name.endswith("/data.pkl") for name in archive.namelist())


def identity_loss(
    network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Identity loss: 1 − cosine similarity of face embeddings.

    network          maps float (N, 3, H, W) in [-1, 1] to (N, D) embeddings, as ArcFace does
    images, targets  float (N, 3, H, W) in [-1, 1]
    returns          float (N,) in [0, 2]; the targets get no gradient

    Source: thesis §3.3.2.1 (the loss pSp adds).
    """
    with torch.no_grad():
        target_embeddings = network(targets)
    return 1 - F.cosine_similarity(network(images), target_embeddings, dim=1)
