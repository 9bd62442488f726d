"""Training of encoders for a frozen generator by reconstruction (thesis §3.2)."""

import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from talkhead.datasets import Images
from talkhead.distributed import Distributed
from talkhead.encoders import PSPEncoder, ResNetEncoder
from talkhead.errors import TalkheadError
from talkhead.images import resize_images, sheet
from talkhead.inversion import _check_encoder, _settle
from talkhead.losses import Perceptual, identity_loss, pixel_loss
from talkhead.stylegan import Generator
from talkhead.training import Prefetcher, fit

# Published hyper-parameters of each architecture, the defaults of `train`.
RECIPES = {
    "resnet": {"lr": 0.004, "pixel": "rms", "perceptual_weight": 1.0, "loss_size": None},  # thesis §3.3.2.2
    "psp": {"lr": 1e-4, "pixel": "mse", "perceptual_weight": 0.8, "loss_size": 256},  # pSp's own command for faces
}


def train(
    images: Images,
    generator: Generator,
    out: str | os.PathLike,
    encoder: ResNetEncoder | PSPEncoder,
    *,
    steps: int,
    batch: int = 8,
    lr: float | None = None,
    pixel: str | None = None,
    pixel_weight: float = 1.0,
    perceptual_weight: float | None = None,
    perceptual: str | Perceptual = "auto",
    latent_weight: float = 0.0,
    identity: nn.Module | None = None,
    identity_weight: float = 0.1,
    loss_size: int | None = None,
    flip: bool = False,
    validation: Images | None = None,
    validate_every: int = 500,
    accumulate: int = 1,
    precision: str = "float32",
    seed: int = 0,
    device: str | torch.device = "cpu",
    **run: Any,
) -> Iterator[dict]:
    """Train an encoder by reconstructing the images with a frozen generator; yield log records.

    images             datasets.Images
    generator          stylegan.Generator with `fingerprint`; frozen
    out                path of the .pt; resumed if it exists
    encoder            ResNetEncoder or PSPEncoder with the generator's L and w_avg; trained from its present weights
    steps              optimiser steps of `batch` images
    lr, pixel, perceptual_weight, loss_size   None: the value in RECIPES for the encoder
    pixel              "rms", the L2 norm of the difference over √N (eq. 3.1), or "mse", its mean square (pSp)
    pixel_weight       weight of the pixel term
    perceptual_weight  weight of the perceptual distance (eq. 3.2)
    perceptual         name of a losses.Perceptual, or such a loss
    latent_weight      weight of the L2 norm of the offset from w_avg (pSp's regularisation, §3.3.2.1)
    identity           face recognition network of `losses.identity_loss`, with weight identity_weight; None: no such
                       loss
    loss_size          the loss compares the images of larger generators at this size, pixels
    validation         datasets.Images; their loss is computed every `validate_every` steps, and the best encoder kept
    accumulate         micro-batches of a batch, to fit into memory; the result is the same, except that batch
                       normalisation uses the statistics of one micro-batch
    precision          "float32", or "bfloat16" or "float16" for the passes under autocast
    run                logging and saving options of training.fit; its `samples` are images over their reconstructions
    yields             {"step", "seconds", "loss", "pixel", "perceptual"…}, and "validation" where computed
    raises             TalkheadError if the encoder's L differs, or it is a ReStyle

    Source: thesis §3.3.2.2, eqs 3.1–3.3; §3.3.2.1 and Richardson et al. 2021 for pSp, whose weights for faces are 1
    (L2), 0.8 (LPIPS), 0.1 (identity) and 0 (regularisation; 0.005 for its other tasks).
    Departure: the L2 norm is divided by √N, N the number of pixel values, so that the terms keep their balance at every
    size. pSp is trained here by Adam, not Ranger, and LPIPS uses VGG, not AlexNet.
    """
    _check_encoder(encoder, generator, "train", "w+")
    if pixel not in (None, "rms", "mse"):
        raise TalkheadError(f"pixel {pixel!r}: unknown; take rms or mse")
    recipe = _recipe(encoder, lr=lr, pixel=pixel, perceptual_weight=perceptual_weight, loss_size=loss_size)
    device = _settle(device, generator, encoder)
    generator.requires_grad_(False)
    encoder.requires_grad_(True)
    if isinstance(perceptual, str):
        perceptual = Perceptual(perceptual)
    weights = {
        "pixel": pixel_weight,
        "perceptual": recipe["perceptual_weight"],
        "latent": latent_weight,
        "identity": identity_weight,
    }
    distance = _Reconstruction(
        generator, encoder, perceptual.to(device), identity, weights, recipe["pixel"], recipe["loss_size"]
    )
    adam = torch.optim.Adam(encoder.parameters(), lr=recipe["lr"])

    team = Distributed(batch, accumulate, precision, device)
    team.convert_sync_batchnorm(encoder)
    feed = Prefetcher(lambda index: [images.batch(index, batch, seed, flip, share) for share in team.shares])
    shown = (validation or images).batch(0, 8, seed)

    def step(index):
        encoder.train()
        real = feed(index)
        return team.optimizer_step(lambda share: distance(real[share.turn].to(device), team.autocast()), adam)

    @torch.no_grad()
    def validate():
        encoder.eval()
        count = math.ceil(len(validation) / batch)
        losses = [distance(validation.batch(k, batch).to(device))[0].item() for k in range(count)]
        return {"validation": sum(losses) / count}

    @torch.no_grad()
    def draw():
        return sheet(resize_images(shown, generator.resolution), generator.synthesis(encoder.eval()(shown.to(device))))

    header = {
        "kind": "encoder",
        "config": encoder.config | {"generator": getattr(generator, "fingerprint", None)},
        "perceptual": perceptual.name,
    }
    yield from fit(
        step,
        {"model": encoder, "optimizer": adam},
        steps=steps,
        out=out,
        header=header,
        seed=seed,
        team=team,
        feed=feed,
        draw=draw,
        validate=None if validation is None else validate,
        validate_every=validate_every,
        keep_best="validation",
        **run,
    )


def training_size(generator: Generator, encoder: ResNetEncoder | PSPEncoder, loss_size: int | None = None) -> int:
    """Image size that `train` needs, pixels: smaller images lack detail, larger ones waste memory.

    Arguments and errors as in `train`.
    """
    compared = _recipe(encoder, loss_size=loss_size)["loss_size"] or generator.resolution
    return max(encoder.input_size, min(generator.resolution, compared))


def _recipe(encoder, **given):
    """Hyper-parameters of an encoder: those given, and for None those of RECIPES."""
    arch = encoder.config.get("arch", "resnet")
    if arch not in RECIPES:
        raise TalkheadError(f"encoder of architecture {arch}: training is not supported; use {' or '.join(RECIPES)}")
    return RECIPES[arch] | {name: value for name, value in given.items() if value is not None}


class _Reconstruction:
    """Reconstruction loss between images and the generator's images of their latents, and its terms for the log."""

    def __init__(self, generator, encoder, perceptual, identity, weights, pixel, size):
        self.generator, self.encoder, self.perceptual, self.identity = generator, encoder, perceptual, identity
        self.weights, self.pixel, self.size = weights, pixel, min(generator.resolution, size or generator.resolution)

    def __call__(self, images, precision=nullcontext()):
        with precision:
            latents = self.encoder(images)
            targets = resize_images(images, self.size)
            drawn = resize_images(self.generator.synthesis(latents).float(), self.size)
            square = pixel_loss(drawn, targets)
            # The epsilon bounds the gradient of the square root at zero.
            parts = {
                "pixel": (square if self.pixel == "mse" else (square + 1e-8).sqrt()).mean(),
                "perceptual": self.perceptual(drawn, targets).mean(),
            }
            if self.weights["latent"]:
                parts["latent"] = (latents - self.generator.w_avg).flatten(1).norm(dim=1).mean()
            if self.identity is not None:
                parts["identity"] = identity_loss(self.identity, drawn, targets).mean()
            loss = sum(self.weights[name] * value for name, value in parts.items())
        return loss, {"loss": loss.detach()} | {name: value.detach() for name, value in parts.items()}


def new_encoder(
    arch: str,
    generator: Generator,
    imagenet: str | os.PathLike | None = None,
    irse: str | os.PathLike | None = None,
    **shape: Any,
) -> ResNetEncoder | PSPEncoder:
    """A new encoder for a generator, whose first output is the mean latent.

    arch       "resnet" or "psp"
    imagenet   file of torchvision's resnet18, for the first blocks of resnet
    irse       file of a face-recognition network, for the trunk of psp
    shape      as `encoders.ResNetEncoder` or `PSPEncoder` takes it
    """
    network = {"resnet": ResNetEncoder, "psp": PSPEncoder}[arch]
    encoder = network(generator.num_ws, w_dim=generator.w_dim, w_avg=generator.w_avg.cpu(), **shape)
    if imagenet:
        encoder.load_imagenet(imagenet)
    if irse:
        encoder.load_irse(irse)
    return encoder
