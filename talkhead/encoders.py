"""Networks that see: an image to its latent code in one pass.

Source: thesis §3.3.2.
"""

import pickle

import torch
from torch import nn
from torch.nn import functional as F

from talkhead.errors import TalkheadError

# What ResNet18 calls its stem and its first four residual blocks, two in each layer.
IMAGENET_PARTS = ("conv1", "bn1", "layer1", "layer2")


class Block(nn.Module):
    """ResNet's basic block: two 3×3 convolutions around a shortcut. Named as torchvision names its parts."""

    def __init__(self, wide_in, wide, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.downsample = None
        if stride != 1 or wide_in != wide:
            self.downsample = nn.Sequential(nn.Conv2d(wide_in, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class ResNetEncoder(nn.Module):
    """An image to its W+ code in one pass: ResNet18 predicts the offset from the mean latent.

    num_ws       L, the generator's latent layers
    width        channels of the first stage; 64 is ResNet18
    input_size   images of other sizes are resized to this, pixels
    w_dim        width of one latent
    stem_stride  what the first layers divide the size by: 4 is ResNet18 (strided convolution,
                 then max pooling); 2 leaves the pooling out and 1 the stride too, which keeps
                 the detail of inputs much smaller than 256
    pool_size    the last feature map is averaged to this many cells a side; 1 is ResNet18
    w_avg        float (w_dim,) or (L, w_dim), the generator's mean latent; zeros if not given

    With width 64, stem_stride 4 and pool_size 1 all but the head equals torchvision's resnet18, by
    name and by value.

    Source: thesis §3.3.2.2, Table 3.1.
    Departure: the table prints 6144 outputs for a 256×256 generator; L·512 are needed.
    """

    def __init__(self, num_ws, width=64, input_size=256, w_dim=512, stem_stride=4, pool_size=1, w_avg=None):
        super().__init__()
        if stem_stride not in (1, 2, 4):
            raise TalkheadError(f"encoder: stem_stride {stem_stride}; take 1, 2 or 4")
        self.config = {"num_ws": num_ws, "width": width, "input_size": input_size, "w_dim": w_dim,
                       "stem_stride": stem_stride, "pool_size": pool_size}
        self.num_ws, self.w_dim, self.input_size = num_ws, w_dim, input_size
        self.conv1 = nn.Conv2d(3, width, 7, 1 if stem_stride == 1 else 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem_stride == 4 else nn.Identity()
        self.layer1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(Block(4 * width, 8 * width, 2), Block(8 * width, 8 * width, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(pool_size)
        self.fc = nn.Linear(8 * width * pool_size**2, num_ws * w_dim)
        self.register_buffer("w_avg", torch.zeros(num_ws, w_dim))
        if w_avg is not None:
            self.w_avg.copy_(w_avg)
        self._initialise()

    def _initialise(self):
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        # Training starts next to the mean face: the generator draws nothing useful far from it.
        nn.init.normal_(self.fc.weight, std=1e-3)
        nn.init.zeros_(self.fc.bias)

    def features(self, images):
        """The trunk: float (N, 3, H, W) in [-1, 1] to pooled features, float (N, 8·width·pool_size²)."""
        if images.shape[-2:] != (self.input_size, self.input_size):
            images = F.interpolate(images, (self.input_size, self.input_size), mode="bilinear",
                                   align_corners=False, antialias=True)
        x = self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=True))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.avgpool(x).flatten(1)

    def forward(self, images):
        """float (N, 3, H, W) in [-1, 1], any size, to W+ codes, float (N, L, w_dim)."""
        offset = self.fc(self.features(images)).view(-1, self.num_ws, self.w_dim)
        return self.w_avg + offset

    def load_imagenet(self, path):
        """Start the stem and the first four residual blocks from a classifier's weights.

        path    torchvision's resnet18 state dict, such as resnet18-f37072fd.pth
        raises  TalkheadError if the file is not that, or this encoder is narrower than ResNet18

        Source: thesis §3.3.2.2 ("the first 4 ResNet blocks").
        """
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
            wanted = {name: weights[name] for name in self.state_dict() if name.split(".")[0] in IMAGENET_PARTS}
        except OSError as error:
            raise TalkheadError(f"{path}: {error.strerror}; give torchvision's resnet18 weights") from error
        except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
            raise TalkheadError(f"{path}: not torchvision's resnet18 weights; give resnet18-f37072fd.pth") from error
        try:
            self.load_state_dict(wanted, strict=False)
        except RuntimeError as error:
            raise TalkheadError(f"{path}: of another width than this encoder, which has {self.config['width']}; "
                                "take width 64 or start from scratch") from error


@torch.no_grad()
def inherit(encoder, smaller):
    """Give an encoder the weights of one for a smaller generator; latents it has beyond that start as the last of those.

    encoder, smaller   ResNetEncoder of one shape but for num_ws, which is no smaller in `encoder`
    """
    state, more = smaller.state_dict(), encoder.num_ws - smaller.num_ws
    for name in ("fc.weight", "fc.bias", "w_avg"):
        layers = state[name].unflatten(0, (smaller.num_ws, -1))
        state[name] = torch.cat([layers, layers[-1:].expand(more, *layers.shape[1:])]).flatten(0, 1)
    encoder.load_state_dict(state)
