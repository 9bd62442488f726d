"""How far apart two images are: to the eye, by pixel, and as a person."""

import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from talkhead.downloads import REGISTRY
from talkhead.encoders import load_face_recognition
from talkhead.errors import TalkheadError
from talkhead.keypoints import mouth_windows
from talkhead.metrics import SSIM_K1, SSIM_K2, SSIM_SIGMA, SSIM_WINDOW
from talkhead.mobilenet import MobileNet

# The file that torchvision downloads for `vgg16(weights="IMAGENET1K_V1")`, and LPIPS reads from torch's cache.
VGG16_URL = REGISTRY["vgg16"].urls[0]

# The binomial blur of Burt and Adelson.
BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)

# A pyramid stops halving here: below it, a level holds less than a face's layout.
SMALLEST_LEVEL = 4  # pixels


def vgg_weights():
    """The place where torch's cache keeps (or would keep) VGG-16's ImageNet weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG16_URL).name


class Perceptual(nn.Module):
    """A perceptual distance between images, one number for each pair.

    name  "lpips"    LPIPS with VGG-16 (Zhang 2018), as the thesis uses; needs VGG's weights in
                     torch's cache and never fetches them
          "mobilenet"  the same between what MobileNetV2 sees, every channel counting alike; its weights, 14 MB,
                     are looked for there too
          "ssim"     1 − SSIM (Wang 2004); needs no file, and draws eyes and mouths best of those that need none
          "pyramid"  L1 over the levels of a Laplacian pyramid (Bojanowski 2018); needs no file
          "auto"     LPIPS where its weights are, the pyramid elsewhere; `.name` tells which

    Called with images and targets, float (N, 3, H, W) in [-1, 1], returns float (N,), 0 for equal images.
    Its own weights are frozen; gradients flow to the images, not to the targets. Where the targets stay the
    same from step to step, `toward(targets)` is cheaper: what depends on them alone is computed once.

    raises  TalkheadError if the network's weights are missing or unreadable, or the name is unknown

    Source: thesis §3.3.1.1, Algorithms 1 and 2 (LPIPS); eq. 3.2, 4.5.
    Departure: the others, because a machine without a network has no VGG weights. SSIM and the pyramid are not
    learned and know nothing of faces: the one asks for the pattern around every pixel, the other for edges in the
    right place at every scale. MobileNetV2 has learnt the same pictures as VGG, at a hundredth of its work.
    """

    def __init__(self, name="auto"):
        super().__init__()
        if name == "auto":
            name = "lpips" if vgg_weights().is_file() else "pyramid"
        networks = {"lpips": _lpips, "mobilenet": MobileNet, "ssim": None, "pyramid": None}
        if name not in networks:
            raise TalkheadError(f"perceptual loss {name!r}: unknown; take auto, lpips, mobilenet, ssim or pyramid")
        self.name = name
        self.network = networks[name] and networks[name]()

    def train(self, mode=True):
        # LPIPS drops features at random in training mode, and a distance must not be random.
        return super().train(False)

    def forward(self, images, targets):
        return self.toward(targets)(images)

    def toward(self, targets):
        """The distance to some targets: a function of images (N, 3, H, W) that returns (N,), equal to calling with both."""
        if self.name == "pyramid":
            return lambda images: pyramid_distance(images, targets)
        if self.name == "ssim":
            return _structure(targets)
        with torch.no_grad():
            wanted = _unit_features(self._seen(targets))
        return lambda images: self._distance(_unit_features(self._seen(images)), wanted)

    def _seen(self, images):
        """Feature maps (N, C, h, w) of several depths."""
        return (
            self.network.net(self.network.scaling_layer(images)) if self.name == "lpips" else self.network.maps(images)
        )

    def _distance(self, seen, wanted):
        """The lpips package's own weights of each channel, its forward in two halves; MobileNet's channels all count alike."""
        squares = [(one - other).square() for one, other in zip(seen, wanted)]
        weighed = (
            [weigh(square).float() for square, weigh in zip(squares, self.network.lins)]
            if self.name == "lpips"
            else squares
        )
        return sum(square.mean((2, 3)).sum(1) for square in weighed)


def _lpips():
    weights = vgg_weights()
    if not weights.is_file():
        raise TalkheadError(
            f"{weights.name}: not found; download {VGG16_URL} into {weights.parent} or take the pyramid loss"
        )
    import lpips  # imports torchvision whole: seconds that the pyramid need not pay

    try:
        with warnings.catch_warnings():
            # lpips still calls torchvision by its old argument names.
            warnings.simplefilter("ignore", UserWarning)
            network = lpips.LPIPS(net="vgg", verbose=False)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TalkheadError(f"{weights}: not VGG-16's weights; delete it and download {VGG16_URL} again") from error
    return network.eval().requires_grad_(False)


def _unit_features(seen):
    """Each place's feature vector of length one, at every depth; Zhang et al. 2018, eq. 1."""
    return [
        x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in map(torch.Tensor.float, seen)
    ]  # autocast would sum squares in halves


def pyramid_distance(images, targets):
    """L1 between the Laplacian pyramids of two images, each level counting alike.

    images, targets  float (N, 3, H, W) in [-1, 1]
    returns          float (N,): the sum over levels of the mean absolute difference

    A level is an image minus its blur; the next level is the blur, every second pixel. The last is
    the small blurred image itself, so no difference goes unseen.

    Source: Bojanowski et al., "Optimizing the Latent Space of Generative Networks" (2018), §3.2:
    their weight 2^2j for level j turns a sum over ever fewer pixels into this mean, up to one constant.
    """
    level = images - targets  # the pyramid is linear: one of the difference serves for two
    distance = 0
    while min(level.shape[-2:]) >= 2 * SMALLEST_LEVEL:
        blurred = _blur(level)
        distance = distance + (level - blurred).abs().mean((1, 2, 3))
        level = blurred[:, :, ::2, ::2]
    return distance + level.abs().mean((1, 2, 3))


def _structure(targets):
    """1 − SSIM to some targets, mean over windows and channels: a function of images that returns (N,).

    The constants are those of the measure (metrics.ssim), for values from 0 to 1.

    raises  TalkheadError if a side is shorter than the window
    """
    if min(targets.shape[-2:]) < SSIM_WINDOW:
        raise TalkheadError(
            f"pictures of {targets.shape[-1]}x{targets.shape[-2]}: ssim looks at windows of {SSIM_WINDOW} pixels; take the pyramid"
        )
    line = torch.exp(-0.5 * ((torch.arange(SSIM_WINDOW, device=targets.device) - SSIM_WINDOW // 2) / SSIM_SIGMA) ** 2)
    line = (line / line.sum()).expand(3, 1, 1, -1)

    def mean(x):
        return F.conv2d(F.conv2d(x, line, groups=3), line.mT, groups=3)

    def distance(images):
        with torch.autocast(images.device.type, enabled=False):  # small differences of squares
            x = images.float() / 2 + 0.5
            mean_x = mean(x)
            spread_x, shared = mean(x * x) - mean_x**2, mean(x * y) - mean_x * mean_y
            alike = (2 * mean_x * mean_y + SSIM_K1**2) * (2 * shared + SSIM_K2**2)
            alike = alike / ((mean_x**2 + mean_y**2 + SSIM_K1**2) * (spread_x + spread_y + SSIM_K2**2))
            return 1 - alike.mean((1, 2, 3))

    with torch.no_grad(), torch.autocast(targets.device.type, enabled=False):
        y = targets.float() / 2 + 0.5
        mean_y = mean(y)
        spread_y = mean(y * y) - mean_y**2
    return distance


def _blur(images):
    """Convolve with the binomial kernel down and across; mirrored at the border, so a constant stays itself."""
    channels = images.shape[1]
    kernel = images.new_tensor(BLUR)
    images = F.pad(images, (2, 2, 2, 2), mode="reflect")
    images = F.conv2d(images, kernel.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)
    return F.conv2d(images, kernel.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)


def pixel_loss(images, targets):
    """The mean squared difference of each pair: (1/N)·‖a − b‖² over its N pixel values.

    images, targets  float (N, 3, H, W)
    returns          float (N,)

    Source: thesis Algorithm 1, line 5.
    """
    return (images - targets).square().mean((1, 2, 3))


class LipDistance(nn.Module):
    """How far apart the lips of two pictures are, as a keypoint network reads them: a loss that asks for openings and closures alone.

    keypoints   keypoints.KeypointNetwork; its second regressor looks at the surroundings of the mouth, where the target has it

    Called with images and targets, float (N, 3, S, S) in [-1, 1], aligned faces, returns float (N,): the mean distance of the 40 keypoints of
    the lips in widths of the mouth. Gradients flow to the images, not to the targets.

    Departure: the thesis has no such term; lips are a hundredth of a face, and what compares pixels hardly sees whether they touch.
    """

    def __init__(self, keypoints):
        super().__init__()
        self.keypoints = keypoints.eval().requires_grad_(False)

    def train(self, mode=True):
        return super().train(False)

    def forward(self, images, targets):
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():
            small = F.interpolate(
                targets.float(), (self.keypoints.size,) * 2, mode="bilinear", antialias=True, align_corners=False
            )
            centres, sides = mouth_windows(self.keypoints.face(small).view(len(targets), -1, 2).cpu().numpy())
            centres, sides = (
                torch.as_tensor(value, dtype=torch.float32, device=images.device) for value in (centres, sides)
            )
            wanted = self._lips(targets.float(), centres, sides)
        with torch.autocast(images.device.type, enabled=False):
            return (self._lips(images.float(), centres, sides) - wanted).norm(dim=2).mean(1) * self.keypoints.WINDOW

    def _lips(self, images, centres, sides):
        """Keypoints of the lips (N, K, 2) in fractions of the windows."""
        matrix = torch.diag_embed(sides[:, None].expand(-1, 2))
        matrix = torch.cat([matrix, (2 * centres - 1)[..., None]], 2)
        size = (
            2 * self.keypoints.mouth_size
        )  # twice as fine, and then averaged: a window may hold more pixels than the network looks at
        grid = F.affine_grid(matrix, [len(images), 3, size, size], align_corners=False)
        windows = F.avg_pool2d(
            F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False), 2
        )
        return self.keypoints.mouth(windows).view(len(images), -1, 2)


def identity_network(path, device="cpu"):
    """A face recognition network for `identity_loss`, frozen.

    path    model_ir_se50.pth, the network of pSp's own loss, or a state dict of its layout; or a program
            written by torch.export.save: float (N, 3, H, W) in [-1, 1] to (N, D), any N. A program runs what
            it holds: load only what you trust
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
    """Whether a file is an archive of torch.export, where torch.save would put a pickle in its first folder."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not any(name.count("/") == 1 and name.endswith("/data.pkl") for name in archive.namelist())


def identity_loss(network, images, targets):
    """How unlike two faces are as persons: 1 − the cosine of their embeddings.

    network          maps float (N, 3, H, W) in [-1, 1] to (N, D) embeddings, as ArcFace does
    images, targets  float (N, 3, H, W) in [-1, 1]
    returns          float (N,) in [0, 2]; the targets get no gradient

    Source: thesis §3.3.2.1 (the loss pSp adds).
    """
    with torch.no_grad():
        wanted = network(targets)
    return 1 - F.cosine_similarity(network(images), wanted, dim=1)
