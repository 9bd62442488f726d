"""GAN inversion: frames → latents, by an encoder, by optimisation, or by both.

Source: thesis §3.3.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from talkhead import files, legacy
from talkhead.encoders import Encoder
from talkhead.errors import TalkheadError
from talkhead.fingerprints import digest
from talkhead.images import resize_images, to_images
from talkhead.latents import z_stream
from talkhead.losses import Perceptual, pixel_loss
from talkhead.stylegan import Generator
from talkhead.training import has_converged

# Fractions of a frame's steps over which the learning rate ramps up and down; Karras et al. 2020, appendix D.
RAMP_UP, RAMP_DOWN = 0.05, 0.25

# Steps of each frame after the first, by method; the encoder's latent is a nearer start than that of the frame before.
STEPS, HYBRID_STEPS = 5000, 500  # of a frame by itself, and from the encoder's code
NEXT_STEPS = {"sequential": 500, "hybrid": 100}

# ---- frames to latents ----


def encode(
    encoder: Encoder, frames: Iterable[np.ndarray], batch: int = 16, device: str | torch.device | None = None
) -> Iterator[np.ndarray]:
    """Encode frames to W+ latents.

    encoder  one of `encoders`; set to evaluation mode, in which a latent does not depend on its batch
    frames   iterable of uint8 (H, H, 3), aligned faces of any size
    device   None: the encoder's; else the encoder is moved there
    yields   float32 numpy (L, 512), one per frame, a batch at a time
    raises   TalkheadError if a frame is not square

    Source: thesis §3.3.2.2.
    """
    encoder.eval()
    device = _settle(device, encoder)
    for images in _batches(frames, batch):
        with torch.no_grad():
            latents = encoder(images.to(device))
        yield from latents.float().cpu().numpy()


def invert(
    frames: Iterable[np.ndarray],
    generator: Generator,
    method: str = "encoder",
    encoder: Encoder | None = None,
    space: str = "w+",
    steps: int = STEPS,
    next_steps: int | None = None,
    hybrid_steps: int = HYBRID_STEPS,
    lr: float = 0.01,
    pixel_weight: float = 1.0,
    perceptual: str | Perceptual = "auto",
    w_noise: float = 0.01,
    tolerance: float = 0.0,
    precision: str = "float32",
    seed: int = 0,
    batch: int = 4,
    device: str | torch.device | None = None,
    partial: os.PathLike | str | None = None,
    on_record: Callable[[dict], None] | None = None,
) -> Iterator[np.ndarray]:
    """Invert frames: find the latents from which the generator reproduces them.

    frames        iterable of uint8 (H, H, 3), aligned faces; resized to the generator's size
    generator     a stylegan.Generator; not trained
    method        "encoder"     one pass of the encoder
                  "optimise"    Algorithm 1: every frame independently, from the mean latent
                  "sequential"  Algorithm 2: every frame from the latent of the frame before
                  "hybrid"      every frame from the encoder's latent plus the offset found for the frame before
    encoder       for "encoder" and "hybrid": one of `encoders`
    space         "w+", a latent for each layer; "w", one latent for all; or "z", the input of the mapping network. The
                  result is always in W+
    steps         optimiser steps of a frame that starts at the mean latent
    next_steps    steps of each frame after the first, in "sequential" and "hybrid". None: NEXT_STEPS of the method
    hybrid_steps  steps of the first frame in "hybrid", which may be a single photo
    lr            Adam's peak learning rate
    pixel_weight  λ, the weight of the mean squared error relative to the perceptual distance
    perceptual    name of a losses.Perceptual, or such a loss
    w_noise       std of the noise on a latent that starts at the mean, in stds of its space; decays over the first
                  three quarters of the steps. 0: no noise, and the seed has no effect
    tolerance     a frame has converged when 50 steps lower their mean loss by less than this fraction; its learning
                  rate then ramps down over a third of the steps taken so far. 0: every frame takes all its steps
    precision     "float32", or "bfloat16" for the networks' passes under autocast
    batch         frames optimised together, with the same result as one by one ("sequential" and "hybrid" use 1)
    device        None: the generator's; else both networks are moved there
    partial       path of a file that stores latents as they are found: a stopped run resumes from it, with the same
                  result bit for bit. The file stays; remove it when the result is saved
    on_record     called with {"frame", "step", "loss", "perceptual", "pixel", "lr", "steps"} of every frame before
                  every step; "steps" is the frame's planned number
    yields        float32 numpy (L, 512) of each frame, as soon as it is found
    raises        TalkheadError if a frame is not square, the encoder is missing or its L differs, a loss is not finite,
                  or the partial file is of another run or clip

    Source: thesis §3.3.1.1, Algorithms 1 and 2 (line 6 read as w_{t−1}); §2.5.3.
    Departure: the thesis steps until convergence. Here the number of steps is fixed, and the learning rate ramps up
    over the first 5 % of them and down along a cosine over the last 25 %, as in Karras et al. 2020, so that the end
    does not jitter. With a tolerance, the steps of a converged frame count as the first 75 %, and the ramp down
    follows. w_noise is theirs too, at a fifth of its strength: theirs costs 2 dB at few steps, and with this one two
    seeds still end in different latents (Fig. 3.7). Z has no mean to start at (z = 0 is no face, and does not map to
    w_avg): the start is, of 1000 random z, the one whose w is nearest to w_avg.
    """
    if method not in ("encoder", "optimise", "sequential", "hybrid"):
        raise TalkheadError(f"method {method!r}: unknown; take encoder, optimise, sequential or hybrid")
    if space not in ("w+", "w", "z"):
        raise TalkheadError(f"space {space!r}: unknown; take w+, w or z")
    if precision not in ("float32", "bfloat16"):
        raise TalkheadError(f"precision {precision!r}: unknown; take float32 or bfloat16")
    if method in ("encoder", "hybrid"):
        _check_encoder(encoder, generator, method, space)
    device = _settle(device, generator, *([encoder] if encoder is not None else []))
    if method == "encoder":
        return encode(encoder, frames, batch, device)  # type: ignore[arg-type]  # it is not None, by _check_encoder
    if isinstance(perceptual, str):
        perceptual = Perceptual(perceptual)
    projector = _Projector(generator, perceptual.to(device), space, lr, pixel_weight, tolerance, precision, on_record)
    next_steps = next_steps or NEXT_STEPS.get(method)
    plans: dict[str, Callable[[], _Independent | _Sequential | _Hybrid]] = {
        "optimise": lambda: _Independent(projector, steps, w_noise, seed),
        "sequential": lambda: _Sequential(projector, steps, next_steps, w_noise, seed),
        "hybrid": lambda: _Hybrid(projector, encoder, hybrid_steps, next_steps),
    }
    plan = plans[method]()
    batch = 1 if method in NEXT_STEPS else batch
    options = {"method": method, "batch": batch} | projector.options() | plan.options() if partial is not None else {}
    return _optimised(frames, projector, plan, batch, _Partial(partial, options, projector.mean.shape))


def _check_encoder(encoder, generator, method, space):
    if encoder is None:
        raise TalkheadError(f"method {method}: needs an encoder; pass --encoder, or --method optimise")
    if encoder.num_ws != generator.num_ws:
        raise TalkheadError(
            f"encoder of {encoder.num_ws} layers, generator of {generator.num_ws}; pass an encoder trained for it"
        )
    if method == "encoder" and space == "w":
        raise TalkheadError("method encoder: encoders give W+ latents; pass --set space=w+, or --method hybrid")
    if space == "z":
        raise TalkheadError(f"method {method}: encoders give no z; pass --set space=w+, or another method")


def _settle(device, *networks):
    """Move networks to a device, by default that of the first; return the device."""
    device = next(networks[0].parameters()).device if device is None else torch.device(device)
    for network in networks:
        network.to(device)
    return device


def _batches(frames, batch):
    """Yield batches of frames as images, float (n, 3, H, H); checks that all are square and of one size."""
    frames = enumerate(frames)
    while group := list(islice(frames, batch)):
        for index, frame in group:
            height, width = frame.shape[:2]
            if height != width:
                raise TalkheadError(
                    f"frame {index}: {width}x{height} is not a square face; align it first (talkhead align)"
                )
            if frame.shape != group[0][1].shape:
                raise TalkheadError(
                    f"frame {index}: {height} pixels wide, the one before {group[0][1].shape[0]}; "
                    "give frames of one size"
                )
        yield torch.cat([to_images(frame[None]) for _, frame in group])


# ---- optimisation ----


def _optimised(frames, projector, plan, batch, partial):
    """Yield W+ latents, float32 numpy (L, 512), of frames: from the partial file, else by optimisation."""
    index, last = 0, None
    for images in _batches(frames, batch):
        codes = partial.recall(images)
        if codes is None:
            codes = projector(images, plan.begin(index, images, last))
            partial.keep(images, codes)
        codes = codes.to(projector.device)
        yield from projector.w_plus(codes).detach().cpu().numpy()
        index, last = index + len(images), (images, codes)


class _Independent:
    """Starts of Algorithm 1: the mean latent for every frame."""

    def __init__(self, projector, steps, w_noise, seed):
        self.projector, self.steps, self.w_noise, self.seed = projector, steps, w_noise, seed
        self.scale = w_noise * projector.std() if w_noise else 0.0

    def options(self):
        return {"steps": self.steps, "w_noise": self.w_noise, "seed": self.seed}

    def begin(self, index, images, last):
        noises = [
            _Noise(self.scale, frame, self.seed) if self.scale else None for frame in range(index, index + len(images))
        ]
        mean = self.projector.mean
        return [self.projector.start(index + k, mean, self.steps, noise) for k, noise in enumerate(noises)]


class _Sequential:
    """Starts of Algorithm 2: as in Algorithm 1 for the first frame, then the latent of the frame before."""

    def __init__(self, projector, steps, next_steps, w_noise, seed):
        self.projector, self.next_steps = projector, next_steps
        self.first = _Independent(projector, steps, w_noise, seed)

    def options(self):
        return self.first.options() | {"next_steps": self.next_steps}

    def begin(self, index, images, last):
        if last is None:
            return self.first.begin(index, images, last)
        # No w_noise: the start is near the optimum, and the trajectory must stay smooth.
        return [self.projector.start(index, last[1][-1], self.next_steps)]


class _Hybrid:
    """Starts of thesis §2.5.3: the encoder's latent plus the offset that optimisation found for the frame before."""

    def __init__(self, projector, encoder, steps, next_steps):
        self.projector, self.encoder, self.steps, self.next_steps = projector, encoder.eval(), steps, next_steps

    def options(self):
        return {"encoder": digest(self.encoder), "hybrid_steps": self.steps, "next_steps": self.next_steps}

    def begin(self, index, images, last):
        (code,), steps = self._encoded(images), self.steps
        if last is not None:
            code, steps = code + last[1][-1] - self._encoded(last[0])[-1], self.next_steps
        return [self.projector.start(index, code, steps)]

    @torch.no_grad()
    def _encoded(self, images):
        codes = self.encoder(images.to(self.projector.device)).float()
        # W has one latent for all layers: the layers of the start are averaged.
        return codes.mean(1, keepdim=True) if self.projector.space == "w" else codes


def planned_steps(
    method: str, steps: int = STEPS, next_steps: int | None = None, hybrid_steps: int = HYBRID_STEPS
) -> Callable[[int], int]:
    """Number of steps that `invert` plans, as a function of the frame index. Arguments as in `invert`."""
    if method == "optimise":
        return lambda frame: steps
    first, later = steps if method == "sequential" else hybrid_steps, next_steps or NEXT_STEPS[method]
    return lambda frame: later if frame else first


class _Noise:
    """Decaying noise on a latent, which helps to avoid poor local minima; seeded per frame."""

    def __init__(self, scale, frame, seed):
        self.scale, self.random = scale, torch.Generator().manual_seed(seed * 1_000_003 + frame)

    def __call__(self, step, steps, shape):
        fade = max(0.0, 1 - step / ((1 - RAMP_DOWN) * steps)) ** 2
        return self.scale * fade * torch.randn(shape, generator=self.random)


class _FrameOptimization:
    """Optimisation of one frame: its code (L or 1, 512), number of steps and Adam state."""

    def __init__(self, frame, code, steps, lr, tolerance, noise):
        self.frame, self.steps, self.lr, self.tolerance, self.noise = frame, steps, lr, tolerance, noise
        self.code = code.detach().clone()
        self.adam = torch.optim.Adam([self.code], lr=lr)
        self.losses = []

    @property
    def taken(self):
        return len(self.losses)

    @property
    def rate(self):
        return self.lr * learning_rate_ramp(self.taken, self.steps)

    def sample_point(self):
        """Code at which the loss is evaluated, with noise if any."""
        noise = self.noise and self.noise(self.taken, self.steps, self.code.shape)
        return self.code if noise is None else self.code + noise.to(self.code.device)

    def step(self, loss, gradient):
        self.adam.param_groups[0]["lr"] = self.rate
        self.code.grad = gradient
        self.adam.step()
        self.losses.append(loss)
        # Slow progress while the learning rate still rises does not mean convergence.
        if self.taken < (1 - RAMP_DOWN) * self.steps and has_converged(
            self.losses[math.ceil(RAMP_UP * self.steps) :], self.tolerance
        ):
            self.steps = math.ceil(self.taken / (1 - RAMP_DOWN))


class _Projector:
    """Optimiser of a batch of frames' codes for one generator: (L, 512) in W+, (1, 512) in W, (1, z_dim) in Z."""

    def __init__(self, generator, perceptual, space, lr, pixel_weight, tolerance, precision, on_record):
        self.generator, self.perceptual, self.space, self.on_record = generator, perceptual, space, on_record
        self.lr, self.pixel_weight, self.tolerance, self.precision = lr, pixel_weight, tolerance, precision
        self.device = next(generator.parameters()).device
        self.mean = self._mean()

    def options(self):
        """Options that a resumed run must share with the stopped one."""
        return {
            "generator": digest(self.generator),
            "perceptual": self.perceptual.name,
            "space": self.space,
            "lr": self.lr,
            "pixel_weight": self.pixel_weight,
            "tolerance": self.tolerance,
            "precision": self.precision,
        }

    def _mean(self):
        if self.space != "z":
            return self.generator.w_avg.detach().expand(1 if self.space == "w" else self.generator.num_ws, -1)
        z, w = self._samples()
        return z[(w - self.generator.w_avg).square().sum(1).argmin()][None]

    @torch.no_grad()
    def _samples(self):
        z = torch.randn(1000, self.generator.z_dim, generator=z_stream()).to(self.device)
        return z, self.generator.mapping(z)[:, 0]

    def std(self):
        """RMS distance of the space's latents from their mean, as in Karras et al. 2020."""
        points = self._samples()[self.space != "z"]
        return (points - points.mean(0)).square().sum(1).mean().sqrt().item()

    def w_plus(self, codes):
        latents = self.generator.mapping(codes[:, 0]) if self.space == "z" else codes
        return latents.expand(-1, self.generator.num_ws, -1)

    def start(self, frame, code, steps, noise=None):
        return _FrameOptimization(frame, code, steps, self.lr, self.tolerance, noise)

    def __call__(self, images, runs):
        """Optimise a batch of frames; return their codes. The frames' losses are independent."""
        targets = resize_images(images.to(self.device), self.generator.resolution)
        active = None
        while left := [k for k, run in enumerate(runs) if run.taken < run.steps]:
            if left != active:
                active, loss_terms = left, self._loss_to(targets[left])
            self._step([runs[k] for k in left], loss_terms)
        return torch.stack([run.code for run in runs])

    def _loss_to(self, targets):
        """Two terms of Algorithm 1's loss as a function of images; the targets' features are computed once."""
        with self._autocast():
            distance = self.perceptual.toward(targets)
        return lambda images: (distance(images), pixel_loss(images, targets))

    def _autocast(self):
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def _step(self, runs, loss_terms):
        points = torch.stack([run.sample_point() for run in runs]).requires_grad_(True)
        with torch.enable_grad():
            with self._autocast():
                perceptual, pixel = loss_terms(self.generator.synthesis(self.w_plus(points)))  # (n,) each
            losses = perceptual + self.pixel_weight * pixel
            # Only the latent receives a gradient, even if the generator is not frozen.
            (gradients,) = torch.autograd.grad(losses.sum(), points)
        for run, gradient, values in zip(runs, gradients, torch.stack([losses, perceptual, pixel], 1).tolist()):
            self._report(run, *values)
            run.step(values[0], gradient)

    def _report(self, run, loss, perceptual, pixel):
        if not math.isfinite(loss):
            raise TalkheadError(f"frame {run.frame}, step {run.taken}: the loss is {loss}; lower --lr")
        if self.on_record is not None:
            self.on_record(
                {
                    "frame": run.frame,
                    "step": run.taken,
                    "loss": loss,
                    "perceptual": perceptual,
                    "pixel": pixel,
                    "lr": run.rate,
                    "steps": run.steps,
                }
            )


def learning_rate_ramp(step: int, steps: int) -> float:
    """Factor of the learning rate: ramps up over the first 5 % of the steps, down along a cosine over the last 25 %.

    Source: Karras et al. 2020, appendix D.
    """
    done = (step + 1) / steps
    down = min(1.0, (1 - step / steps) / RAMP_DOWN)
    return min(1.0, done / RAMP_UP) * (0.5 - 0.5 * math.cos(math.pi * down))


class _Partial:
    """File of the codes found so far: the run's options as a line of JSON, then for each frame the SHA-256 of its image
    and its code. A truncated record is dropped. Without a path, stores nothing."""

    def __init__(self, path, options, shape):
        self.path, self.shape = path and Path(path), tuple(shape)
        self.head = json.dumps({"talkhead": "partial latents"} | options).encode() + b"\n"
        self.size = 32 + 4 * math.prod(shape)  # bytes of a record
        self.read = self.begun = 0  # frames recalled or kept by this run; frames in the file
        if self.path is not None and self.path.exists():
            with files.reading(self.path) as stream:
                self._check(stream.readline(1 << 16), options)
                self.begun = (os.fstat(stream.fileno()).st_size - len(self.head)) // self.size

    def _check(self, head, options):
        try:
            found = legacy.renamed(json.loads(head))
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.pop("talkhead", None) != "partial latents":
            raise TalkheadError(
                f"{self.path}: not the partial latents of a stopped run; move it away, or name another output"
            )
        for name in options | found:
            if found.get(name) != options.get(name):
                raise TalkheadError(
                    f"{self.path}: was begun with {name}={found.get(name)}, now {options.get(name)}; "
                    "pass the same options to resume, or delete it to start again"
                )
        self.head = head  # as version 0.1 may have written it

    def recall(self, images):
        """Stored codes of the next images, float (n, …); None unless all are stored."""
        if self.path is None or self.read + len(images) > self.begun:
            return None
        with files.reading(self.path) as stream:
            stream.seek(len(self.head) + self.read * self.size)
            codes = [self._code(stream.read(self.size), image, self.read + k) for k, image in enumerate(images)]
        self.read += len(images)
        return torch.stack(codes)

    def _code(self, record, image, frame):
        if record[:32] != _image_digest(image):
            raise TalkheadError(
                f"{self.path}: frame {frame} differs from that of the stopped run; "
                "pass the same clip to resume, or delete it to start again"
            )
        return torch.from_numpy(np.frombuffer(record[32:], np.float32).reshape(self.shape).copy())

    def keep(self, images, codes):
        if self.path is None:
            return
        records = [_image_digest(image) + code.cpu().numpy().tobytes() for image, code in zip(images, codes)]
        with files.os_errors_in_one_line(self.path):
            if not self.path.exists():
                with files.atomic(self.path) as fresh:
                    fresh.write_bytes(self.head)
            with open(self.path, "r+b") as stream:
                # Overwrites an incomplete batch of the stopped run, since recall needs whole batches.
                stream.truncate(len(self.head) + self.read * self.size)
                stream.seek(0, os.SEEK_END)
                stream.write(b"".join(records))
        self.read = self.begun = self.read + len(images)


def _image_digest(image):
    return hashlib.sha256(image.contiguous().numpy().tobytes()).digest()
