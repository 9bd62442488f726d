"""Pivotal tuning: the generator learns one person's face around latents that hold still.

Source: thesis §4.3.2.2; Roich et al. 2021.
"""

import copy
import math

import numpy as np
import torch

from talkhead.distributed import Distributed
from talkhead.errors import TalkheadError
from talkhead.fingerprints import digest
from talkhead.images import sheet
from talkhead.losses import Perceptual
from talkhead.training import EarlyStopping, fit, seeded

SHOWN = 8  # images of a sample sheet


def tune(
    generator,
    images,
    pivots,
    steps=350,
    lr=3e-4,
    perceptual="auto",
    batch=4,
    locality=0.0,
    locality_radius=30.0,
    min_delta=0.02,
    seed=0,
    on_record=None,
):
    """A copy of the generator that draws these images at these latents.

    generator        stylegan.Generator; left as it is
    images           float (N, 3, R, R) in [-1, 1], R the generator's resolution: one picture, or frames of a clip
    pivots           float (N, L, 512), tensor or numpy: the encoder's code of each image
    steps            most optimiser steps
    lr               Adam's learning rate
    perceptual       name of a losses.Perceptual, or such a loss
    batch            images of one step; fewer images are all taken in every step
    locality         weight of the wish that faces `locality_radius` away from the pivots stay as they were; 0 leaves it out
    min_delta       tuning ends when 50 steps lower their mean loss by less than this part of it; 0 takes all steps
    on_record        called with {"step", "loss", "perceptual", "pixel"…} after every step
    returns          a stylegan.Generator, frozen, in evaluation mode. `lineage` holds the fingerprints of what
                     it came from, so that what was trained for the parent still fits it
    raises           TalkheadError if the shapes do not fit each other or the generator, or a loss is not finite

    Everything but the mapping network is tuned. What the pivots do not reach moves little, so other
    expressions of the face are drawn with the same motion, and more of the person.

    Source: thesis §4.3.2.2, eqs 4.7 and 4.8; locality: Roich et al. 2021, §3.3.
    Departure: the pixel term is the mean absolute difference, as the text's name L1 says, where
    eq. 4.8 prints a norm; the steps end early, because a small generator is done in a few dozen.
    """
    tuner = _Tuner(images, generator, pivots, perceptual, lr, locality, locality_radius, seed, batch=batch)
    converged = EarlyStopping(min_delta)
    for index in range(steps):
        record = {name: float(value) for name, value in seeded(tuner.step, index, seed, tuner.team.device).items()}
        if not math.isfinite(record["loss"]):
            raise TalkheadError(f"tuning, step {index + 1}: the loss is {record['loss']}; lower --lr")
        if on_record is not None:
            on_record({"step": index + 1} | record)
        if converged(record):
            break
    return tuner.child.requires_grad_(False)


def train(
    images,
    generator,
    pivots,
    out,
    *,
    photo=None,
    steps=350,
    batch=4,
    lr=3e-4,
    perceptual="auto",
    locality=0.0,
    locality_radius=30.0,
    min_delta=0.02,
    accumulate=1,
    precision="float32",
    seed=0,
    **run,
):
    """Tune a generator as `tune` does, into a file, where a run that was stopped is resumed; yield log records.

    images, generator, pivots   as in `tune`
    out          path of the .pt; resumed if it exists. When the tuning has ended, it holds the generator, and beside it
                 "identity", the mean of the pivots, float32 (L, 512): what the face that was tuned on speaks from
    photo        uint8 (S, S, 3), the aligned face at its own resolution, kept in the file too: `generate` gives the frames its detail
    steps … min_delta          as in `tune`; fewer images than a batch are a batch
    accumulate   turns in which a batch is worked on, to fit into memory: the result is the same
    precision    "float32", or "bfloat16" or "float16" for the networks' passes under autocast
    run          how training.fit logs and saves; its `samples` are some of the images over what is drawn at their pivots
    yields       {"step", "seconds", "loss", "perceptual", "pixel"…}
    raises       TalkheadError as `tune` and training.fit do; the file of another face, generator or recipe is refused

    Source and departure as in `tune`.
    """
    tuner = _Tuner(
        images,
        generator,
        pivots,
        perceptual,
        lr,
        locality,
        locality_radius,
        seed,
        batch=batch,
        accumulate=accumulate,
        precision=precision,
    )
    converged, child = EarlyStopping(min_delta), tuner.child
    about = {
        "generator": digest(generator),
        "images": digest({"images": images}),
        "pivots": _simhash(tuner.pivots),
        "batch": tuner.team.batch,
        "lr": lr,
        "locality": locality,
        "locality_radius": locality_radius,
        "min_delta": min_delta,
        "seed": seed,
    }
    header = {
        "kind": "generator",
        "config": child.config | {"lineage": sorted(child.lineage)},
        "perceptual": tuner.perceptual.name,
        "tuning": about,
        "identity": tuner.pivots.mean(0).cpu(),
    } | ({} if photo is None else {"photo": torch.from_numpy(np.ascontiguousarray(photo))})
    yield from fit(
        tuner.step,
        {"model": child, "optimizer": tuner.adam, "rest": converged},
        steps=steps,
        out=out,
        header=header,
        team=tuner.team,
        seed=seed,
        converged=converged,
        draw=tuner.draw,
        **run,
    )


def _check(generator, images, pivots):
    size, layers = generator.resolution, generator.num_ws
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
        raise TalkheadError(
            f"images of shape {tuple(images.shape)}: this generator wants (N, 3, {size}, {size}); resize them"
        )
    if len(images) == 0 or len(pivots) != len(images):
        raise TalkheadError(
            f"{len(images)} images and {len(pivots)} pivots: give one pivot for each image, and at least one"
        )
    if pivots.ndim != 3 or pivots.shape[1] != layers:
        raise TalkheadError(
            f"pivots of shape {tuple(pivots.shape)}: this generator wants (N, {layers}, 512); use its own encoder"
        )


def _child(generator):
    """A copy to tune: its synthesis learns, its mapping stays. It is no longer the generator of that fingerprint."""
    child = copy.deepcopy(generator).eval()
    for name, parameter in child.named_parameters():
        parameter.requires_grad_(not name.startswith("mapping"))
    child.lineage = set(getattr(generator, "lineage", ()))
    child.fingerprint = f"{getattr(generator, 'fingerprint', 'unnamed')}-tuned"
    return child


def _team(count, batch, **options):
    """Fewer images than a batch are a batch."""
    try:
        return Distributed(min(batch, count), **options)
    except TalkheadError as problem:
        raise (
            problem if batch <= count else TalkheadError(f"{count} images, all taken in every step: {problem}")
        ) from problem


def _picks(index, batch, count, seed):
    """Which images a step takes: every one once a round, in an order set by the seed alone."""
    positions = range(index * batch, (index + 1) * batch)
    orders = {
        turn: np.random.default_rng([seed, turn]).permutation(count)
        for turn in {position // count for position in positions}
    }
    return [int(orders[position // count][position % count]) for position in positions]


def _simhash(latents):
    """16 hex digits that say where latents point, and do not hang on their last bits: another number of threads rounds an
    encoder's codes otherwise, and the run is still the same. Each bit is the side of a random plane that they lie on.
    """
    random, flat = torch.Generator().manual_seed(0), latents.detach().cpu().double().flatten()
    sides = [torch.randn(len(flat), generator=random).double() @ flat > 0 for _ in range(64)]
    return f"{sum(int(side) << k for k, side in enumerate(sides)):016x}"


class _Tuner:
    """A child of the generator, and one optimiser step on it."""

    def __init__(self, images, generator, pivots, perceptual, lr, locality, radius, seed, batch, **team):
        pivots = torch.as_tensor(pivots)
        _check(generator, images, pivots)
        device = next(generator.parameters()).device
        self.team = _team(len(images), batch, device=device, **team)
        perceptual = Perceptual(perceptual) if isinstance(perceptual, str) else perceptual
        self.images, self.pivots, self.perceptual = images.to(device), pivots.to(device), perceptual.to(device)
        self.parent, self.child, self.locality, self.radius, self.seed = (
            generator,
            _child(generator),
            locality,
            radius,
            seed,
        )
        self.adam = torch.optim.Adam([p for p in self.child.parameters() if p.requires_grad], lr=lr)

    def step(self, index):
        picks = _picks(index, self.team.batch, len(self.images), self.seed)
        return self.team.optimizer_step(lambda share: self._loss(share, share(picks)), self.adam)

    def _loss(self, share, picks):
        images, pivots = self.images[picks], self.pivots[picks]
        near = self._near(share, pivots) if self.locality else None
        with torch.enable_grad(), self.team.autocast():
            parts = self._distance(pivots, images)
            loss = sum(parts.values())
            if self.locality:
                with torch.no_grad():
                    wanted = self.parent.synthesis(near).float()
                parts["locality"] = sum(self._distance(near, wanted).values())
                loss = loss + self.locality * parts["locality"]
        return loss, {"loss": loss.detach()} | {name: value.detach() for name, value in parts.items()}

    def _distance(self, latents, images):
        """Eq. 4.7, as its two terms."""
        drawn = self.child.synthesis(latents).float()
        return {"perceptual": self.perceptual(drawn, images).mean(), "pixel": (drawn - images).abs().mean()}

    @torch.no_grad()
    def _near(self, share, pivots):
        """Latents on the way from each pivot to a random face."""
        z = share.randn(self.team.batch, self.parent.z_dim).to(pivots.device)
        way = self.parent.mapping(z) - pivots
        return pivots + self.radius * way / way.flatten(1).norm(dim=1).view(-1, 1, 1)

    @torch.no_grad()
    def draw(self):
        some = slice(None, None, math.ceil(len(self.images) / SHOWN))
        return sheet(self.images[some], self.child.synthesis(self.pivots[some]))
