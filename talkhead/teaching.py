"""How speech models are taught: clips in, a trained model out.

Source: thesis §4.3.2.1.
"""

import copy
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from talkhead import speech, training
from talkhead.audio2latent import displacements
from talkhead.codes import SAMPLES_PER_FRAME, Codes, find, split
from talkhead.errors import TalkheadError
from talkhead.latents import Basis
from talkhead.losses import Perceptual
from talkhead.team import Team

LEAD = 25  # frames of speech before a training chunk, at most, from which the features learn how loud it is
LAG = 8  # frames of speech after a chunk, more than its last window sees


def train(clips, generator, encoder, out, model, *, steps, batch=16, frames=25, lr=2e-4, latent_weight=250.0,
          image_weight=1.0, image_frames=8, mouth_weight=0.0, perceptual="auto", augment=True, identity_noise=0.3,
          cool_down=0.0, hold_out=10, validate_every=200, average=0.998, accumulate=1, precision="float32", seed=0, device="cpu", **run):
    """Train a speech model on talking clips; yield log records. The file's "model" is the best one by validation.

    clips           clips of aligned faces with sound, or folders of them. Beside a clip may lie NNNNNN.json with its
                    "speaker" (else the folder's name is taken) and NNNNNN.track.npy, its true mouth opening (T, 3)
    generator       stylegan.Generator with `fingerprint`; frozen
    encoder         encoders.ResNetEncoder; frozen. Its codes are computed once and kept beside `out`, in NAME.codes
    out             path of the .pt; resumed if it exists
    model           SecondModel; in a new run its basis is fitted to the codes of the training clips
    steps           optimiser steps of `batch` chunks of `frames` frames
    latent_weight, image_weight   weights of eqs 4.4 and 4.5
    image_frames    frames in a step of which images are drawn for eq. 4.5, of as many chunks; 0 trains on latents alone
    mouth_weight    weight of the squared error of the mouth's opening as the displacement tells it, in spreads
    perceptual      name of a losses.Perceptual, or such a loss
    augment         vary the sound: microphone, loudness, noise, and speed (of the faces too) by up to an eighth
    identity_noise  how far the model sees an identity beside its place, in spreads of the basis: a few hundred faces are
                    soon learned by heart, with every nod and blink that went with them
    cool_down       share of the steps, the last ones, over which the learning rate falls to nothing along a cosine
    hold_out        speakers kept for validation: how many, or which; names of clips and of their folders are taken too
    average         share that the running average of the weights keeps each step; the average is what is validated
    accumulate      turns in which a batch is worked on, to fit into memory: the result is the same
    precision       "float32", or "bfloat16" or "float16" for the networks' passes under autocast
    run             how training.fit logs and saves
    yields          {"step", "seconds", "loss", "latent", …}, step 0 while clips are encoded, and where measured
                    "val_latent", "val_correlation" of the mouth's opening, "val_log_spread" (log of predicted by true
                    spread: below 0 the mouth moves too little), "val_error" (share of the opening's variance missed)
    raises          TalkheadError if clips cannot be read, or nothing is left to train on

    Source: thesis §4.3.2.1, eqs 4.4–4.6; §4.3.4 for the weights and Adam's rate.
    Departure: Σ_t ‖·‖² is a mean over frames and over the L·512 entries, because a sum would drown the image term, whose
    distance is a mean over pixels; the thesis leaves this open. The image term is computed on some frames of a step.
    Augmentation, identity noise, the mouth term, the falling rate and averaged weights are ours.
    """
    generator, encoder = generator.to(device).eval().requires_grad_(False), encoder.to(device).eval()
    if not encoder.num_ws == generator.num_ws == model.num_ws:
        raise TalkheadError(f"layers: generator {generator.num_ws}, encoder {encoder.num_ws}, speech model {model.num_ws}; "
                            "use networks that were made for each other")
    team = Team(batch, accumulate, precision, device)
    with Codes(Path(out).with_suffix(".codes"), encoder) as codes:
        lessons = []
        if not team.leads:
            team.wait()  # for the leader to encode the clips: then they are there, if this process sees its disk
        for clip in find(clips):
            lessons.append(codes.learn(clip, device))
            if team.leads and len(lessons) % run.get("log_every", 10) == 0:
                yield {"step": 0, "clips": len(lessons)}
        if team.leads:
            team.wait()
        training_set, held_out = split(lessons, hold_out, seed)
        settings = {"batch": batch, "frames": frames, "lr": lr, "latent_weight": latent_weight, "image_weight": image_weight,
                    "image_frames": image_frames, "mouth_weight": mouth_weight, "augment": augment,
                    "identity_noise": identity_noise, "average": average}
        if cool_down:
            settings |= {"cool_down": cool_down, "steps": steps}
        mouth = _Mouth(model.config["components"])
        if team.leads and not Path(out).exists():
            _measure(model, mouth, training_set, codes)
        if isinstance(perceptual, str) and image_frames:
            perceptual = Perceptual(perceptual).to(device)
        trainer = _Trainer(model.to(device), mouth.to(device), generator, perceptual, codes, training_set, held_out, settings, seed, team)
        header = {"kind": "audio2latent", "config": {
            "network": model.config, "generator": getattr(generator, "fingerprint", None), "encoder": codes.fingerprint,
            "training": settings | {"clips": len(training_set), "held_out": len(held_out)}},
            "perceptual": perceptual.name if image_frames else None}
        checks = {"validate": trainer.validate, "validate_every": validate_every, "keep_best": "val_error"} if held_out else {}
        state = {"model": trainer.average, "live": model, "mouth": mouth, "optimizer": trainer.adam}
        yield from training.fit(trainer.step, state, steps=steps, out=out, header=header, seed=seed,
                                team=team, unit="chunks", feed=trainer.feed, **checks, **run)


class _Trainer:
    """One optimiser step of the speech model, and its validation."""

    def __init__(self, model, mouth, generator, perceptual, codes, training_set, held_out, settings, seed, team):
        self.model, self.mouth, self.generator, self.perceptual = model, mouth, generator, perceptual
        self.codes, self.training_set, self.held_out, self.settings, self.seed, self.team = codes, training_set, held_out, settings, seed, team
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.adam = torch.optim.Adam(model.parameters(), lr=settings["lr"])
        self.device = team.device
        lengths = np.array([lesson.frames for lesson in training_set])
        self.chances = lengths / lengths.sum()
        self.feed = training.Feed(self._batch)

    def step(self, index):
        self._set_rate(index)
        chunks = self.feed(index)  # for each turn
        record = self.team.descend(lambda share: self._loss(share, *chunks[share.turn]), self.adam, longest=1.0)
        self._follow(min(self.settings["average"], (1 + index) / (10 + index)))
        return record

    def _loss(self, share, windows, identity, target, there, portion, shown):
        """The mean loss of a share of the batch, weighed by its portion of the frames that are there.

        windows (B, T, 12, 28), identity (B, L, 512), target (B, T, L, 512); there (B, T), which frames the clips have;
        shown   (2, n), chunk and frame of each picture to be drawn
        """
        windows, identity, target, there = (part.to(self.device) for part in (windows, identity, target, there))
        with self.team.autocast():
            predicted = self.model.coordinates(windows, self._blur(identity, share))[0].float()  # (B, T, K)
        wanted = target - identity[:, None]
        true = self.model.basis.project(wanted, centre=False)
        latent = portion * self._latent_loss(predicted[there], true[there], wanted[there])
        mouth = portion * F.mse_loss(self._opening(predicted[there]), self._opening(true[there]))
        loss = self.settings["latent_weight"] * latent + self.settings["mouth_weight"] * mouth
        record = {"latent": latent.detach(), "mouth": mouth.detach()}
        if self.settings["image_frames"]:
            chunk, frame = shown
            image = self._image_loss(identity[chunk], predicted[chunk, frame], wanted[chunk, frame])
            image = image.sum() * share.of / self.settings["image_frames"]
            loss = loss + self.settings["image_weight"] * image
            record["image"] = image.detach()
        return loss, {"loss": loss.detach()} | record

    def _blur(self, identity, share):
        basis = self.model.basis
        away = share.randn(self.settings["batch"], len(basis.stdev), device=self.device) * basis.stdev
        return identity + self.settings["identity_noise"] * basis.expand(away)

    def _opening(self, coordinates):
        return self.mouth(coordinates / self.model.motion_spread)

    @staticmethod
    def _latent_loss(predicted, true, wanted):
        """Mean squared error of the latents. By Pythagoras, for the basis is orthonormal: what lies outside it is missed
        whatever is predicted, and latents need not be made to know how far apart they are."""
        outside = wanted.square().sum() - true.square().sum()
        return (F.mse_loss(predicted, true, reduction="sum") + outside) / wanted.numel()

    def _image_loss(self, identity, predicted, wanted):
        """Perceptual distances (n,) of the frames drawn from predicted codes to those drawn from the encoded frames."""
        with self.team.autocast():
            with torch.no_grad():
                projected = self.generator.synthesis(identity + wanted, noise="const")
            drawn = self.generator.synthesis(identity + self.model.basis.expand(predicted), noise="const")
            return self.perceptual(drawn.float(), projected.float())

    def _set_rate(self, index):
        if "cool_down" in self.settings:
            total = self.settings["steps"]
            left = min((total - index) / (self.settings["cool_down"] * total), 1.0)
            self.adam.param_groups[0]["lr"] = self.settings["lr"] * (0.5 - 0.5 * math.cos(math.pi * left))

    def _follow(self, keep):
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.model.parameters()):
                slow.lerp_(fast, 1 - keep)

    def _batch(self, index):
        """What `_loss` takes in each turn: chunks of random clips. A chunk may be longer than its clip."""
        size, pictures = self.settings["batch"], self.settings["image_frames"]
        rng = np.random.default_rng([self.seed, index])
        picks = rng.choice(len(self.training_set), size, p=self.chances)
        # Each chunk has its own randomness, so that no process need make another's.
        chunks = [_Chunk(self.training_set[pick], self.settings, np.random.default_rng([self.seed, index, k])) for k, pick in enumerate(picks)]
        counts = np.array([chunk.there.sum() for chunk in chunks])
        shown = np.stack([np.arange(pictures) % size, (rng.random(pictures) * counts[np.arange(pictures) % size]).astype(int)])
        turns = []
        for share in self.team.shares:
            parts = zip(*(chunk.read(self.codes) for chunk in share(chunks)))
            mine = shown[:, shown[0] % share.of == share.first]
            turns.append([*(torch.from_numpy(np.stack(part)) for part in parts),
                          float(share(counts).sum() * share.of / counts.sum()), (mine[0] // share.of, mine[1])])
        return turns

    @torch.no_grad()
    def validate(self):
        """How the averaged model does on whole held-out clips, each driven from the code of its middle frame."""
        self.average.eval()
        missed, spread, correlations, spreads, latent = 0.0, 0.0, [], [], []
        for lesson in self.held_out:
            codes, audio = self.codes.read(lesson)
            identity = codes[len(codes) // 2]
            windows = speech.windows(speech.mfcc(audio), len(codes))
            moved = torch.as_tensor(np.stack(list(displacements(self.average, windows, identity, chunk=100)))).to(self.device)
            wanted = torch.as_tensor(codes - identity).to(self.device)
            latent.append(F.mse_loss(moved, wanted).item())
            mine, true = (self._opening(self.average.basis.project(x, centre=False)).cpu().numpy() for x in (moved, wanted))
            missed, spread = missed + ((mine - true) ** 2).sum(), spread + ((true - true.mean()) ** 2).sum()
            if true.std() > 1e-3 and mine.std() > 0:
                shown = true if lesson.opening is None else lesson.opening
                correlations.append(np.corrcoef(mine, shown)[0, 1])
                spreads.append(math.log(mine.std() / true.std()))
        mean = {"val_correlation": correlations, "val_log_spread": spreads, "val_latent": latent}
        return {"val_error": float(missed / max(spread, 1e-12))} | {name: float(np.mean(x)) if x else 0.0 for name, x in mean.items()}


class _Chunk:
    """A part of a clip, heard a little faster or slower than it was, and where its frames lie in the clip."""

    def __init__(self, lesson, settings, rng):
        count, self.augment = settings["frames"], settings["augment"]
        self.lesson, self.rng = lesson, rng
        self.speed = rng.uniform(7 / 8, 9 / 8) if self.augment else 1.0
        start = int(rng.integers(max(lesson.frames - math.ceil(count * self.speed), 0) + 1))
        self.first = start - int(rng.integers(min(start, 4), min(start, LEAD) + 1))
        self.end = start + math.ceil(count * self.speed) + LAG
        self.skip = math.ceil((start - self.first) / self.speed)
        self.times = self.first + (self.skip + np.arange(count) + 0.5) * self.speed - 0.5  # in frames of the clip
        self.there = self.times < lesson.frames - 0.5

    def read(self, codes):
        """Windows (T, 12, 28), an identity (L, 512), targets (T, L, 512), and which frames are there (T,)."""
        latents, audio = codes.read(self.lesson)
        heard = audio[self.first * SAMPLES_PER_FRAME : self.end * SAMPLES_PER_FRAME]
        if self.augment:
            heard = speech.disturb(speech.hasten(heard, self.speed), self.rng)
        windows = speech.windows(speech.mfcc(heard), self.skip + len(self.times))[self.skip :]
        identity = latents[self.rng.integers(self.lesson.frames)]
        return windows, identity, _at(latents, self.times), self.there


class _Mouth(nn.Module):
    """How far a displacement opens the mouth, in spreads: a linear reading of its coordinates."""

    def __init__(self, components):
        super().__init__()
        self.register_buffer("weights", torch.zeros(components))

    def forward(self, coordinates):
        """Coordinates in spreads (..., K) to openings (...)."""
        return coordinates @ self.weights


def _measure(model, mouth, lessons, codes):
    """Fit the basis to codes of the training clips, then measure the spreads and the mouth's reading in it."""
    components = model.config["components"]
    # Neighbouring frames are alike, and the decomposition's cost grows with the square of their number.
    every = max(1, sum(lesson.frames for lesson in lessons) // max(4 * components, 3000))
    model.basis = Basis.fit((codes.read(lesson)[0][::every] for lesson in lessons), components)
    sound, motion, tracked = _Moments(), _Moments(), _Moments()
    for lesson in lessons:
        latents, audio = codes.read(lesson)
        moved = torch.from_numpy(latents - latents.mean(0))
        moved = model.basis.project(moved, centre=False).double().numpy()  # (T, K)
        sound.add(speech.mfcc(audio))
        motion.add(moved)
        if lesson.opening is not None:
            tracked.add(np.column_stack([moved, lesson.opening - lesson.opening.mean()]))
    model.feature_spread.copy_(torch.from_numpy(sound.spread()))
    model.motion_spread.copy_(torch.from_numpy(motion.spread()))
    reading = _read_tracks(tracked, motion.spread()) if tracked.count else _widest(motion)
    mouth.weights.copy_(torch.from_numpy(reading))


class _Moments:
    """Second moments of rows that come in pieces."""

    def __init__(self):
        self.count, self.sums = 0, 0.0

    def add(self, rows):
        rows = np.asarray(rows, float)
        self.count, self.sums = self.count + len(rows), self.sums + rows.T @ rows

    def matrix(self):
        return self.sums / self.count

    def spread(self):
        return np.sqrt(np.maximum(np.diag(self.matrix()), 1e-12))


def _read_tracks(tracked, spread):
    """The linear reading of coordinates in spreads that comes nearest to the measured openings. (K,)"""
    matrix, opening = tracked.matrix(), tracked.spread()[-1]
    covariance = matrix[:-1, :-1] / np.outer(spread, spread)
    return np.linalg.solve(covariance + 1e-3 * np.eye(len(spread)), matrix[:-1, -1] / spread) / opening


def _widest(motion):
    """Nobody measured the mouths: a reading along the widest motion. (K,)"""
    values, vectors = np.linalg.eigh(motion.matrix())
    return vectors[:, -1] * motion.spread() / math.sqrt(max(values[-1], 1e-12))


def _at(codes, times):
    """Codes between frames: (T, L, 512) at times (n,) in frames, linearly, held at the ends."""
    times = np.clip(times, 0, len(codes) - 1)
    before = np.minimum(times.astype(int), max(len(codes) - 2, 0))
    after = np.minimum(before + 1, len(codes) - 1)
    part = (times - before).astype(np.float32)[:, None, None]
    return codes[before] * (1 - part) + codes[after] * part
