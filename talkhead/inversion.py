"""Frames to latents: by an encoder in one pass, by optimisation, or by both.

Source: thesis §3.3.
"""

import math
from itertools import islice

import torch
from torch.nn import functional as F

from talkhead.errors import TalkheadError
from talkhead.losses import Perceptual, identity_loss, pixel_loss
from talkhead.training import Feed, fit, sheet, to_images

# ---- frames to codes ----


def encode(encoder, frames, batch=16, device=None):
    """The encoder's code of each frame.

    encoder  a ResNetEncoder; put in evaluation mode, where a code does not depend on its batch
    frames   iterable of uint8 (H, H, 3), aligned faces of any size
    device   None is where the encoder is; else it is moved there
    yields   float32 numpy (L, 512), one for each frame, a batch at a time
    raises   TalkheadError if a frame is not square

    Source: thesis §3.3.2.2.
    """
    encoder.eval()
    device = _settle(device, encoder)
    for images in _batches(frames, batch):
        with torch.no_grad():
            codes = encoder(images.to(device))
        yield from codes.float().cpu().numpy()


def invert(frames, generator, method="encoder", encoder=None, space="w+", steps=5000, next_steps=500, hybrid_steps=100,
           lr=0.01, pixel_weight=1.0, perceptual="auto", exploration=0.01, seed=0, batch=4, device=None, on_loss=None):
    """The latent of each frame: what makes the generator draw it.

    frames        iterable of uint8 (H, H, 3), aligned faces; resized to the generator's size
    generator     a stylegan.Generator; not trained
    method        "encoder"     one pass of the encoder
                  "optimise"    Algorithm 1: every frame alone, from the mean latent
                  "sequential"  Algorithm 2: every frame from the code of the one before
                  "hybrid"      every frame alone, from the encoder's code
    encoder       for "encoder" and "hybrid": a ResNetEncoder
    space         "w+", a latent for each layer, or "w", one latent for all (repeated in the result)
    steps         optimiser steps of a frame that starts at the mean latent
    next_steps    of a frame that starts at the code of the one before
    hybrid_steps  of a frame that starts at the encoder's code
    lr            Adam's peak learning rate
    pixel_weight  λ, the weight of the mean squared error beside the perceptual distance
    perceptual    name of a losses.Perceptual, or such a loss
    exploration   noise on a latent that starts at the mean, in spreads of W; fades over three quarters
                  of its steps. 0 leaves it out, and then the seed has no effect
    batch         frames optimised together; each for itself, whoever its neighbours are ("sequential" takes one)
    device        None is where the generator is; else both networks are moved there
    on_loss       called as on_loss(frame index, step, loss) before every step
    yields        float32 numpy (L, 512) for each frame, as soon as it is known
    raises        TalkheadError if a frame is not square, the encoder is missing or of another L, or
                  a loss is not finite

    Source: thesis §3.3.1.1, Algorithms 1 and 2 (line 6 read as w_{t−1}); §2.5.3.
    Departure: where the thesis steps until convergence, the number of steps is fixed, and the
    learning rate rises over the first 5 % of them and falls along a cosine over the last 25 %, as in
    Karras et al. 2020: the end does not jitter. The exploration noise is theirs too, at a fifth of
    its strength: theirs costs 2 dB where steps are few, and this still sends two seeds to different places (Fig. 3.7).
    """
    if method not in ("encoder", "optimise", "sequential", "hybrid"):
        raise TalkheadError(f"method {method!r}: unknown; take encoder, optimise, sequential or hybrid")
    if space not in ("w+", "w"):
        raise TalkheadError(f"space {space!r}: unknown; take w+ or w")
    if method in ("encoder", "hybrid"):
        _check_encoder(encoder, generator, method, space)
    device = _settle(device, generator, *([encoder] if encoder is not None else []))
    if method == "encoder":
        return encode(encoder, frames, batch, device)
    if isinstance(perceptual, str):
        perceptual = Perceptual(perceptual)
    search = _Search(generator, perceptual.to(device), space, lr, pixel_weight, on_loss)
    if method == "sequential":
        return _sequential(frames, search, steps, next_steps, exploration, seed)
    if method == "hybrid":
        return _hybrid(frames, search, encoder, hybrid_steps, batch)
    return _independent(frames, search, steps, exploration, seed, batch)


def _check_encoder(encoder, generator, method, space):
    if encoder is None:
        raise TalkheadError(f"method {method}: needs an encoder; pass --encoder, or --method optimise")
    if encoder.num_ws != generator.num_ws:
        raise TalkheadError(f"encoder of {encoder.num_ws} layers, generator of {generator.num_ws}; pass an encoder trained for it")
    if method == "encoder" and space == "w":
        raise TalkheadError("method encoder: its codes are in W+; pass --space w+, or --method hybrid")


def _settle(device, *networks):
    """The device the first network is on, or the one asked for, with all of them there."""
    device = next(networks[0].parameters()).device if device is None else torch.device(device)
    for network in networks:
        network.to(device)
    return device


def _batches(frames, batch):
    """Frames to images, float (n, 3, H, H), a few at a time: all of one size."""
    frames = enumerate(frames)
    while group := list(islice(frames, batch)):
        for index, frame in group:
            height, width = frame.shape[:2]
            if height != width:
                raise TalkheadError(f"frame {index}: {width}x{height} is not a square face; align it first (talkhead align)")
            if frame.shape != group[0][1].shape:
                raise TalkheadError(f"frame {index}: {height} pixels wide, the one before {group[0][1].shape[0]}; give frames of one size")
        yield torch.cat([to_images(frame[None]) for _, frame in group])


def _resized(images, size):
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


# ---- optimisation ----


def _independent(frames, search, steps, exploration, seed, batch):
    """Algorithm 1."""
    spread = search.spread() if exploration else 0
    index = 0
    for images in _batches(frames, batch):
        noise = _Noise(exploration * spread, range(index, index + len(images)), steps, seed) if exploration else None
        start = search.w_avg.expand(len(images), -1, -1)
        yield from search(images, start, steps, index, noise).cpu().numpy()
        index += len(images)


def _sequential(frames, search, steps, next_steps, exploration, seed):
    """Algorithm 2."""
    code = None
    for index, images in enumerate(_batches(frames, 1)):
        if code is None:
            noise = _Noise(exploration * search.spread(), [index], steps, seed) if exploration else None
            code = search(images, search.w_avg[None], steps, index, noise)
        else:
            # No exploration: this start is next to the goal, and the path is to stay smooth.
            code = search(images, code, next_steps, index)
        yield code[0].cpu().numpy()


def _hybrid(frames, search, encoder, steps, batch):
    """Thesis §2.5.3: the encoder's code is where the optimisation starts."""
    encoder.eval()
    index = 0
    for images in _batches(frames, batch):
        with torch.no_grad():
            start = encoder(images.to(search.device)).float()
        yield from search(images, start, steps, index).cpu().numpy()
        index += len(images)


class _Noise:
    """Fading noise for latents in search of a good valley; each frame has its own, drawn from its index."""

    def __init__(self, scale, indices, steps, seed):
        self.scale, self.steps = scale, steps
        self.random = [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in indices]

    def __call__(self, step, shape):
        fade = max(0.0, 1 - step / (0.75 * self.steps)) ** 2
        return self.scale * fade * torch.stack([torch.randn(shape, generator=random) for random in self.random])


class _Search:
    """Adam over latents of one generator."""

    def __init__(self, generator, perceptual, space, lr, pixel_weight, on_loss):
        self.generator, self.perceptual, self.space = generator, perceptual, space
        self.lr, self.pixel_weight, self.on_loss = lr, pixel_weight, on_loss
        self.device = next(generator.parameters()).device
        self.w_avg = generator.w_avg.detach().expand(generator.num_ws, -1)  # (L, 512)

    @torch.no_grad()
    def spread(self):
        """The root mean squared distance of W's latents from their mean, as in Karras et al. 2020."""
        z = torch.randn(1000, self.generator.config["z_dim"], generator=torch.Generator().manual_seed(0))
        w = self.generator.mapping(z.to(self.device))[:, 0]
        return (w - w.mean(0)).square().sum(1).mean().sqrt().item()

    def __call__(self, images, start, steps, first_index, noise=None):
        """Codes of some images, float (n, L, 512), from codes near by. Each frame's sum has its own terms only."""
        targets = _resized(images.to(self.device), self.generator.resolution)
        # In W one latent is sought; a start whose layers differ is averaged.
        code = (start.mean(1, keepdim=True) if self.space == "w" else start).detach().clone().requires_grad_(True)
        adam = torch.optim.Adam([code], lr=self.lr)
        for step in range(steps):
            adam.param_groups[0]["lr"] = self.lr * learning_rate_ramp(step, steps)
            with torch.enable_grad():
                moved = code if noise is None else code + noise(step, code.shape[1:]).to(self.device)
                drawn = self.generator.synthesis(moved.expand(-1, self.generator.num_ws, -1))
                losses = self.perceptual(drawn, targets) + self.pixel_weight * pixel_loss(drawn, targets)  # (n,)
                # Only the latent receives a gradient, whether or not the generator is frozen.
                (code.grad,) = torch.autograd.grad(losses.sum(), code)
            self._report(losses, first_index, step)
            adam.step()
        return code.detach().expand(-1, self.generator.num_ws, -1)

    def _report(self, losses, first_index, step):
        values = losses.tolist()
        for index, value in enumerate(values, first_index):
            if not math.isfinite(value):
                raise TalkheadError(f"frame {index}, step {step}: the loss is {value}; lower --lr")
            if self.on_loss is not None:
                self.on_loss(index, step, value)


def learning_rate_ramp(step, steps):
    """What a learning rate is multiplied by: up over the first 5 %, down over the last 25 % of the steps.

    Source: Karras et al. 2020, appendix D.
    """
    done = (step + 1) / steps
    down = min(1.0, (1 - step / steps) / 0.25)
    return min(1.0, done / 0.05) * (0.5 - 0.5 * math.cos(math.pi * down))


# ---- training the encoder ----

# What those who published each encoder trained it with, where `train` is not told otherwise.
RECIPES = {
    "resnet": {"lr": 0.004, "pixel": "rms", "perceptual_weight": 1.0, "loss_size": None},  # thesis §3.3.2.2
    "psp": {"lr": 1e-4, "pixel": "mse", "perceptual_weight": 0.8, "loss_size": 256},  # pSp's own command for faces
}


def train(images, generator, out, encoder, *, steps, batch=8, lr=None, pixel=None, pixel_weight=1.0, perceptual_weight=None,
          perceptual="auto", latent_weight=0.0, identity=None, identity_weight=0.1, loss_size=None, flip=False, validation=None,
          validate_every=500, seed=0, device="cpu", **run):
    """Train an encoder to find the codes from which a frozen generator draws the images again; yield log records.

    images             training.Images
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
    validation         training.Images to measure every `validate_every` steps; the best encoder is then kept
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
    weights = {"pixel": pixel_weight, "perceptual": recipe["perceptual_weight"], "latent": latent_weight, "identity": identity_weight}
    distance = _Reconstruction(generator, encoder, perceptual.to(device), identity, weights, recipe["pixel"], recipe["loss_size"])
    adam = torch.optim.Adam(encoder.parameters(), lr=recipe["lr"])

    feed = Feed(lambda index: images.batch(index, batch, seed, flip))
    shown = (validation or images).batch(0, 8, seed)

    def step(index):
        encoder.train()
        loss, record = distance(feed(index).to(device))
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        return record

    @torch.no_grad()
    def validate():
        encoder.eval()
        count = math.ceil(len(validation) / batch)
        return {"validation": sum(distance(validation.batch(k, batch).to(device))[0].item() for k in range(count)) / count}

    @torch.no_grad()
    def draw():
        return sheet(_resized(shown, generator.resolution), generator.synthesis(encoder.eval()(shown.to(device))))

    header = {"kind": "encoder", "config": encoder.config | {"generator": getattr(generator, "fingerprint", None)}}
    checks = {} if validation is None else {"validate": validate, "validate_every": validate_every, "keep_best": "validation"}
    yield from fit(step, {"model": encoder, "optimizer": adam}, steps=steps, out=out, header=header, seed=seed,
                   batch=batch, feed=feed, draw=draw, **checks, **run)


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

    def __call__(self, images):
        codes = self.encoder(images)
        targets = _resized(images, self.size)
        drawn = _resized(self.generator.synthesis(codes), self.size)
        square = pixel_loss(drawn, targets)
        # The root's slope is endless at zero.
        parts = {"pixel": (square if self.pixel == "mse" else (square + 1e-8).sqrt()).mean(),
                 "perceptual": self.perceptual(drawn, targets).mean()}
        if self.weights["latent"]:
            parts["latent"] = (codes - self.generator.w_avg).flatten(1).norm(dim=1).mean()
        if self.identity is not None:
            parts["identity"] = identity_loss(self.identity, drawn, targets).mean()
        loss = sum(self.weights[name] * value for name, value in parts.items())
        return loss, {"loss": loss.item()} | {name: value.item() for name, value in parts.items()}
