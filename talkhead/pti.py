"""Pivotal tuning: the generator learns one person's face around latents that hold still.

Source: thesis §4.3.2.2; Roich et al. 2021.
"""

import copy
import math

import torch

from talkhead.errors import TalkheadError
from talkhead.losses import Perceptual
from talkhead.training import settled


def tune(generator, images, pivots, steps=350, lr=3e-4, perceptual="auto", batch=4, locality=0.0, locality_radius=30.0,
         least_gain=0.02, seed=0, on_record=None):
    """A copy of the generator that draws these images at these latents.

    generator        stylegan.Generator; left as it is
    images           float (N, 3, R, R) in [-1, 1], R the generator's resolution: one picture, or frames of a clip
    pivots           float (N, L, 512), tensor or numpy: the encoder's code of each image
    steps            most optimiser steps
    lr               Adam's learning rate
    perceptual       name of a losses.Perceptual, or such a loss
    batch            images of one step; fewer images are all taken in every step
    locality         weight of the wish that faces `locality_radius` away from the pivots stay as they were; 0 leaves it out
    least_gain       tuning ends when 50 steps lower their mean loss by less than this part of it; 0 takes all steps
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
    pivots = torch.as_tensor(pivots)
    device = next(generator.parameters()).device
    _check(generator, images, pivots)
    if isinstance(perceptual, str):
        perceptual = Perceptual(perceptual)
    images, pivots, perceptual = images.to(device), pivots.to(device), perceptual.to(device)
    tuned = _child(generator)
    tuner = _Tuner(generator, tuned, perceptual.to(device), lr, locality, locality_radius, seed)
    order, history = _minibatches(len(images), batch, seed), []
    for step in range(1, steps + 1):
        pick = next(order).to(device)
        record = {"step": step} | tuner.step(images[pick], pivots[pick])
        if not math.isfinite(record["loss"]):
            raise TalkheadError(f"tuning, step {step}: the loss is {record['loss']}; lower --lr")
        if on_record is not None:
            on_record(record)
        history.append(record["loss"])
        if settled(history, least_gain):
            break
    return tuned.requires_grad_(False)


def _check(generator, images, pivots):
    size, layers = generator.resolution, generator.num_ws
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
        raise TalkheadError(f"images of shape {tuple(images.shape)}: this generator wants (N, 3, {size}, {size}); resize them")
    if len(images) == 0 or len(pivots) != len(images):
        raise TalkheadError(f"{len(images)} images and {len(pivots)} pivots: give one pivot for each image, and at least one")
    if pivots.ndim != 3 or pivots.shape[1] != layers:
        raise TalkheadError(f"pivots of shape {tuple(pivots.shape)}: this generator wants (N, {layers}, 512); use its own encoder")


def _child(generator):
    """A copy to tune: its synthesis learns, its mapping stays. It is no longer the generator of that fingerprint."""
    child = copy.deepcopy(generator).eval()
    for name, parameter in child.named_parameters():
        parameter.requires_grad_(not name.startswith("mapping"))
    child.lineage = set(getattr(generator, "lineage", ()))
    child.fingerprint = f"{getattr(generator, 'fingerprint', 'unnamed')}-tuned"
    return child


def _minibatches(count, batch, seed):
    """Indices without end: everything in every step if it is few, else a new order in every round."""
    random = torch.Generator().manual_seed(seed)
    if count <= batch:
        while True:
            yield torch.arange(count)
    while True:
        # A round's last few wait for the next one: every batch is of one size.
        yield from torch.randperm(count, generator=random)[: count - count % batch].split(batch)


class _Tuner:
    """One optimiser step on the child."""

    def __init__(self, parent, child, perceptual, lr, locality, radius, seed):
        self.parent, self.child, self.perceptual, self.locality, self.radius = parent, child, perceptual, locality, radius
        self.adam = torch.optim.Adam([p for p in child.parameters() if p.requires_grad], lr=lr)
        self.random = torch.Generator().manual_seed(seed)

    def step(self, images, pivots):
        with torch.enable_grad():
            parts = self._distance(self.child.synthesis(pivots), images)
            loss = sum(parts.values())
            if self.locality:
                parts["locality"] = sum(self._distance(*self._neighbours(pivots)).values())
                loss = loss + self.locality * parts["locality"]
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.adam.step()
        return {"loss": loss.item()} | {name: value.item() for name, value in parts.items()}

    def _distance(self, drawn, images):
        """Eq. 4.7, as its two terms."""
        return {"perceptual": self.perceptual(drawn, images).mean(), "pixel": (drawn - images).abs().mean()}

    def _neighbours(self, pivots):
        """Child's and parent's picture of latents on the way from a pivot to a random face."""
        with torch.no_grad():
            z = torch.randn(len(pivots), self.parent.config["z_dim"], generator=self.random).to(pivots.device)
            way = self.parent.mapping(z) - pivots
            latents = pivots + self.radius * way / way.flatten(1).norm(dim=1).view(-1, 1, 1)
            wanted = self.parent.synthesis(latents)
        return self.child.synthesis(latents), wanted
