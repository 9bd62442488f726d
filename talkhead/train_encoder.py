"""Training of an encoder for a frozen generator by reconstruction (thesis §3.2)."""

import math
from contextlib import nullcontext

import torch

from talkhead.distributed import Distributed
from talkhead.encoders import PSPEncoder, ResNetEncoder
from talkhead.errors import TalkheadError
from talkhead.images import resize_images, sheet
from talkhead.inversion import _check_encoder, _settle
from talkhead.losses import Perceptual, identity_loss, pixel_loss
from talkhead.training import Prefetcher, fit

# What those who published each encoder trained it with, where `train` is not told otherwise.
RECIPES = {
    "resnet": {"lr": 0.004, "pixel": "rms", "perceptual_weight": 1.0, "loss_size": None},  # thesis §3.3.2.2
    "psp": {"lr": 1e-4, "pixel": "mse", "perceptual_weight": 0.8, "loss_size": 256},  # pSp's own command for faces
}


def train(
    images,
    generator,
    out,
    encoder,
    *,
    steps,
    batch=8,
    lr: float | None = None,
    pixel: str | None = None,
    pixel_weight=1.0,
    perceptual_weight: float | None = None,
    perceptual="auto",
    latent_weight=0.0,
    identity=None,
    identity_weight=0.1,
    loss_size: int | None = None,
    flip=False,
    validation=None,
    validate_every=500,
    accumulate=1,
    precision="float32",
    seed=0,
    device="cpu",
    **run,
):
    """Train an encoder to find the codes from which a frozen generator draws the images again; yield log records.

    images             datasets.Images
    generator          stylegan.Generator with `fingerprint`; frozen
    out                path of the .pt; resumed if it exists
    encoder            ResNetEncoder or PSPEncoder with the generator's L and w_avg; what it holds is the start
    steps              optimiser steps of `batch` images
    lr, pixel, perceptual_weight, loss_size   None is what RECIPES has for the encoder
    pixel              "rms", the L2 norm of the difference over √N (eq. 3.1), or "mse", its mean square (pSp)
    pixel_weight       its weight
    perceptual_weight  weight of the perceptual distance (eq. 3.2)
    perceptual         name of a losses.Perceptual, or such a loss
    latent_weight      weight of the length of the offset from w_avg (pSp's regularisation, §3.3.2.1)
    identity           face recognition network for `losses.identity_loss`, weighed by identity_weight; None leaves it out
    loss_size          pictures of larger generators are compared at this size, pixels
    validation         datasets.Images to measure every `validate_every` steps; the best encoder is then kept
    accumulate         turns in which a batch is worked on, to fit into memory: the result is the same, but for batch
                       normalisation, which sees the pictures of one turn
    precision          "float32", or "bfloat16" or "float16" for the passes under autocast
    run                how training.fit logs and saves; its `samples` are pictures over their reconstructions
    yields             {"step", "seconds", "loss", "pixel", "perceptual"…}, and "validation" where measured
    raises             TalkheadError if the encoder is of another L, or a ReStyle

    Source: thesis §3.3.2.2, eqs 3.1–3.3; §3.3.2.1 and Richardson et al. 2021 for pSp, whose weights for faces are 1 (L2),
    0.8 (LPIPS), 0.1 (identity) and 0 (regularisation; 0.005 for its other tasks).
    Departure: the L2 norm is divided by √N, its number of pixel values, so that the terms keep their balance at every
    size. pSp is trained here by Adam, not Ranger, and LPIPS looks through VGG, not AlexNet.
    """
    _check_encoder(encoder, generator, "train", "w+")
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
        return {
            "validation": sum(distance(validation.batch(k, batch).to(device))[0].item() for k in range(count)) / count
        }

    @torch.no_grad()
    def draw():
        return sheet(resize_images(shown, generator.resolution), generator.synthesis(encoder.eval()(shown.to(device))))

    header = {
        "kind": "encoder",
        "config": encoder.config | {"generator": getattr(generator, "fingerprint", None)},
        "perceptual": perceptual.name,
    }
    checks = (
        {}
        if validation is None
        else {"validate": validate, "validate_every": validate_every, "keep_best": "validation"}
    )
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
        **checks,
        **run,
    )


def training_size(generator, encoder, loss_size=None):
    """The side of the pictures that `train` looks at, pixels: smaller ones lack detail, larger ones only take memory.

    Arguments and what is raised as in `train`.
    """
    compared = _recipe(encoder, loss_size=loss_size)["loss_size"] or generator.resolution
    return max(encoder.input_size, min(generator.resolution, compared))


def _recipe(encoder, **given):
    """What RECIPES has for an encoder, where it is not given."""
    arch = encoder.config.get("arch", "resnet")
    if arch not in RECIPES:
        raise TalkheadError(f"an encoder of architecture {arch} is used, not trained; take {' or '.join(RECIPES)}")
    return RECIPES[arch] | {name: value for name, value in given.items() if value is not None}


class _Reconstruction:
    """How far images are from what the generator makes of their codes: a loss, and its parts for the log."""

    def __init__(self, generator, encoder, perceptual, identity, weights, pixel, size):
        self.generator, self.encoder, self.perceptual, self.identity = generator, encoder, perceptual, identity
        self.weights, self.pixel, self.size = weights, pixel, min(generator.resolution, size or generator.resolution)

    def __call__(self, images, precision=nullcontext()):
        with precision:
            codes = self.encoder(images)
            targets = resize_images(images, self.size)
            drawn = resize_images(self.generator.synthesis(codes).float(), self.size)
            square = pixel_loss(drawn, targets)
            # The root's slope is endless at zero.
            parts = {
                "pixel": (square if self.pixel == "mse" else (square + 1e-8).sqrt()).mean(),
                "perceptual": self.perceptual(drawn, targets).mean(),
            }
            if self.weights["latent"]:
                parts["latent"] = (codes - self.generator.w_avg).flatten(1).norm(dim=1).mean()
            if self.identity is not None:
                parts["identity"] = identity_loss(self.identity, drawn, targets).mean()
            loss = sum(self.weights[name] * value for name, value in parts.items())
        return loss, {"loss": loss.detach()} | {name: value.detach() for name, value in parts.items()}


def new_encoder(arch, generator, imagenet=None, irse=None, **shape):
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
