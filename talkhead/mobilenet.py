"""MobileNetV2 trained on ImageNet: a small feature network for a perceptual distance and for FID.

Torchvision's network and its weights file, which is not downloaded here.

Source: Sandler et al. 2018.
"""

import pickle
from pathlib import Path

import torch
from torch import nn

from talkhead.downloads import REGISTRY
from talkhead.errors import TalkheadError

URL = REGISTRY["mobilenet-v2"].urls[0]  # what torchvision downloads for `mobilenet_v2(weights="IMAGENET1K_V1")`
DEPTHS = (1, 3, 6, 13, 17)  # the last blocks at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input's size
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, in [0, 1]
SIDE = 224  # pixels, the training resolution


def weights_path() -> Path:
    """Path of the weights in torch's cache, whether they exist or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(URL).name


class MobileNet(nn.Module):
    """MobileNetV2 without its classifier, frozen; images are float (N, 3, H, W) in [-1, 1].

    raises  TalkheadError if the weights are missing, damaged or of another network
    """

    width = 1280  # of the pooled features

    def __init__(self) -> None:
        super().__init__()
        path = weights_path()
        if not path.is_file():
            raise TalkheadError(
                f"{path.name}: not found; download {URL} into {path.parent}, or run talkhead weights fetch mobilenet-v2"
            )
        from torchvision.models import mobilenet_v2  # slow to import

        network = mobilenet_v2(weights=None)
        try:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (
            RuntimeError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            pickle.UnpicklingError,
        ) as error:
            raise TalkheadError(f"{path}: not MobileNetV2's weights; delete it and download {URL} again") from error
        self.blocks = network.features.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "MobileNet":
        return super().train(False)  # keep the batch statistics of ImageNet

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size: list of (N, C, h, w), C = 16, 24, 32, 96, 320."""
        x, maps = self._normalised(images), []
        for depth, block in enumerate(self.blocks[: DEPTHS[-1] + 1]):
            x = block(x)
            if depth in DEPTHS:
                maps.append(x)
        return maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (N, 1280), the classifier's input."""
        return self.blocks(self._normalised(images)).mean((2, 3))

    def _normalised(self, images):
        return (images / 2 + 0.5 - self.mean) / self.std
