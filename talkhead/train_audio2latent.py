"""How speech models are taught: clips in, a trained model out.

Source: thesis §4.2.2.3 (the first model), §4.3.2.1 (the second).
"""

import copy
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from talkhead import mfcc, training
from talkhead.audio2latent import displacements
from talkhead.audio_features import Mfcc
from talkhead.distributed import Distributed
from talkhead.errors import TalkheadError
from talkhead.latent_cache import SAMPLES_PER_FRAME, LatentCache, Windows, list_clips, split
from talkhead.latents import W_DIM, Basis
from talkhead.losses import Perceptual

LEAD = 25  # frames of speech before a training chunk, at most, from which the features learn how loud it is
LAG = 8  # frames of speech after a chunk, more than its last window sees
HEARD_AT_FIRST = 100  # clips that tell how far the features spread


def train(
    clips,
    generator,
    encoder,
    out,
    model,
    *,
    steps,
    features=None,
    batch=16,
    frames=25,
    lr=2e-4,
    latent_weight: float | None = None,
    image_weight=1.0,
    image_frames=8,
    mouth_weight=0.0,
    perceptual="auto",
    augment=True,
    identity_noise: float | None = None,
    best_of_n=1,
    patience: int | None = None,
    lr_decay=0.0,
    hold_out=10,
    validate_every=200,
    ema_decay=0.998,
    accumulate=1,
    precision="float32",
    seed=0,
    device="cpu",
    **run,
):
    """Train a speech model on talking clips; yield log records. The file's "model" is the best one by validation.

    clips           clips of aligned faces with sound, or folders of them. Beside a clip may lie NNNNNN.json with its
                    "speaker" (else the folder's name is taken) and NNNNNN.track.npy, its true mouth opening (T, 3)
    generator       stylegan.Generator with `fingerprint`; frozen
    encoder         encoders.ResNetEncoder; frozen. Its codes are computed once and kept beside `out`, in NAME.codes
    out             path of the .pt; resumed if it exists
    model           FirstModel or SecondModel; a new run begins at the principal components of the training clips' codes
    steps           optimiser steps of `batch` chunks of `frames` frames
    features        what the model hears, AudioFeatures; None: Mfcc
    latent_weight, image_weight   weights of eqs 4.4 and 4.5 (4.2). None: 250 for the second model, 0 for the first
    image_frames    frames in a step of which images are drawn for eq. 4.5, of as many chunks; 0 trains without images
    mouth_weight    weight of the squared error of the mouth's opening as the displacement tells it, in spreads
    perceptual      name of a losses.Perceptual, or such a loss
    augment         vary the sound: microphone, loudness, noise, and speed (of the faces too) by up to an eighth
                    Without it, features of a network are computed once and kept with the codes
    identity_noise  how far the model sees an identity beside its place, in spreads of the basis: a few hundred faces are
                    soon learned by heart, with every nod and blink that went with them. None: 0.3 for the second model,
                    0 for the first
    best_of_n     how often the first model's noise is drawn for a chunk; it learns from the draw that comes nearest to the
                    true latents. From one draw alone, which tells nothing, it learns to ignore noise
    patience        measurements that bring nothing better after which the learning rate falls to a tenth; 0 lets it be.
                    None: 10 for the first model, 0 for the second
    lr_decay       share of the steps, the last ones, over which the learning rate falls to nothing along a cosine
    hold_out        speakers kept for validation: how many, or which; names of clips and of their folders are taken too
    ema_decay       share that the running average of the weights keeps each step; the average is what is validated
    accumulate      turns in which a batch is worked on, to fit into memory: the result is the same
    precision       "float32", or "bfloat16" or "float16" for the networks' passes under autocast
    run             how training.fit logs and saves
    yields          {"step", "seconds", "loss", "latent", …}, step 0 while clips are encoded, and where measured
                    "val_latent", "val_correlation" of the mouth's opening, "val_log_spread" (log of predicted by true
                    spread: below 0 the mouth moves too little), "val_error" (share of the opening's variance missed)
    raises          TalkheadError if clips cannot be read, nothing is left to train on, or model and features do not fit

    Source: thesis §4.2.2.3, eq. 4.2, and §4.2.4 (first model); §4.3.2.1, eqs 4.4–4.6, and §4.3.4 (second); Figures 4.2 and
    4.8 for the identity, a frame outside of what is predicted.
    Departure: Σ_t ‖·‖² is a mean over frames and over the L·512 entries, because a sum would drown the image term, whose
    distance is a mean over pixels; the thesis leaves this open. The image term is computed on some frames of a step, and
    for the first model too against the projected frames, not the filmed ones: what the encoder loses, speech cannot
    bring back. Augmentation, identity noise, draws of noise, the mouth term, cooling and averaged weights are ours.
    """
    generator, encoder = generator.to(device).eval().requires_grad_(False), encoder.to(device).eval()
    if not encoder.num_ws == generator.num_ws == model.num_ws:
        raise TalkheadError(
            f"layers: generator {generator.num_ws}, encoder {encoder.num_ws}, speech model {model.num_ws}; "
            "use networks that were made for each other"
        )
    features = features or Mfcc()
    if tuple(features.shape) != model.window_shape:
        raise TalkheadError(
            f"features: windows of {features.name} are {tuple(features.shape)}, this speech model takes {model.window_shape}; "
            "build it for these features"
        )
    model.feature_id = features.identity
    latent_weight, identity_noise, patience = (
        model.defaults[name] if told is None else told
        for name, told in (("latent_weight", latent_weight), ("identity_noise", identity_noise), ("patience", patience))
    )
    if not (latent_weight or mouth_weight or image_weight and image_frames):
        raise TalkheadError("weights: nothing to learn from; give latents, images or the mouth a weight above 0")
    team = Distributed(batch, accumulate, precision, device)
    with LatentCache(Path(out).with_suffix(".codes"), encoder) as codes:
        lessons = []
        if not team.is_main:
            team.wait()  # for the leader to encode the clips: then they are there, if this process sees its disk
        windows = Windows(codes, features)
        for clip in list_clips(clips):
            lessons.append(codes.encode(clip, device))
            windows.encode(lessons[-1])
            if team.is_main and len(lessons) % run.get("log_every", 10) == 0:
                yield {"step": 0, "clips": len(lessons)}
        if team.is_main:
            team.wait()
        training_set, held_out = split(lessons, hold_out, seed)
        settings = {
            "batch": batch,
            "frames": frames,
            "lr": lr,
            "latent_weight": latent_weight,
            "image_weight": image_weight,
            "image_frames": image_frames,
            "mouth_weight": mouth_weight,
            "augment": augment,
            "identity_noise": identity_noise,
            "ema_decay": ema_decay,
        }
        if lr_decay:
            settings |= {"lr_decay": lr_decay, "steps": steps}
        if model.noise_width:
            settings |= {"best_of_n": best_of_n}
        if patience:
            settings |= {"patience": patience, "validate_every": validate_every}
        mouth = _Mouth(model)
        if team.is_main and not Path(out).exists():
            _measure(model, mouth, training_set, codes, windows)
        if isinstance(perceptual, str) and image_frames:
            perceptual = Perceptual(perceptual).to(device)
        trainer = _Trainer(
            model.to(device),
            mouth.to(device),
            generator,
            perceptual,
            codes,
            windows,
            training_set,
            held_out,
            settings,
            seed,
            team,
        )
        header = {
            "kind": "audio2latent",
            "config": {
                "network": model.config,
                "features": features.identity,
                "generator": getattr(generator, "fingerprint", None),
                "encoder": codes.fingerprint,
                "training": settings | {"clips": len(training_set), "held_out": len(held_out)},
            },
            "perceptual": perceptual.name if image_frames else None,
        }
        checks = (
            {"validate": trainer.validate, "validate_every": validate_every, "keep_best": "val_error"}
            if held_out
            else {}
        )
        state = {
            "model": trainer.ema,
            "live": model,
            "mouth": mouth,
            "optimizer": trainer.adam,
            "plateau": trainer.plateau,
        }
        yield from training.fit(
            trainer.step,
            state,
            steps=steps,
            out=out,
            header=header,
            seed=seed,
            team=team,
            unit="chunks",
            feed=trainer.feed,
            **checks,
            **run,
        )


class _Trainer:
    """One optimiser step of the speech model, and its validation."""

    def __init__(
        self, model, mouth, generator, perceptual, codes, windows, training_set, held_out, settings, seed, team
    ):
        self.model, self.mouth, self.generator, self.perceptual = model, mouth, generator, perceptual
        self.codes, self.windows, self.training_set, self.held_out = codes, windows, training_set, held_out
        self.settings, self.seed, self.team, self.done = settings, seed, team, 0
        self.plateau = _Plateau(settings.get("patience", 0))
        self.ema = copy.deepcopy(model).requires_grad_(False)
        self.adam = torch.optim.Adam(model.parameters(), lr=settings["lr"])
        self.device = team.device
        lengths = np.array([lesson.frames for lesson in training_set])
        self.chances = lengths / lengths.sum()
        self.feed = training.Prefetcher(self._batch)

    def step(self, index):
        self._set_rate(index)
        chunks = self.feed(index)  # for each turn
        record = self.team.optimizer_step(lambda share: self._loss(share, *chunks[share.turn]), self.adam, longest=1.0)
        self._update_ema(min(self.settings["ema_decay"], (1 + index) / (10 + index)))
        self.done = index + 1
        return record

    def _loss(self, share, windows, identity, target, valid, portion, shown):
        """The mean loss of a share of the batch, weighed by its portion of the frames that are there.

        windows (B, T, C, S), identity (B, L, 512), target (B, T, L, 512); valid (B, T), which frames the clips have;
        shown   (2, n), chunk and frame of each picture to be drawn
        """
        windows, identity, target, valid = (part.to(self.device) for part in (windows, identity, target, valid))
        wanted = target - identity[:, None]
        true = self.model.project(wanted)
        with self.team.autocast():
            identity_coords = self.model.project_identity(identity).float()
        identity_coords = identity_coords + self.settings["identity_noise"] * share.randn(
            self.settings["batch"], identity_coords.shape[1], device=self.device
        )
        noise = self._noise(share, windows, identity_coords, true, valid) if self.model.noise_width else None
        with self.team.autocast():
            predicted = self.model.predict_coords(windows, identity_coords, noise=noise)[
                0
            ].float()  # (B, T, K or L·512)
        latent = portion * self._latent_loss(predicted[valid], true[valid], wanted[valid])
        mouth = portion * F.mse_loss(self.mouth(predicted[valid]), self.mouth(true[valid]))
        loss = self.settings["latent_weight"] * latent + self.settings["mouth_weight"] * mouth
        record = {"latent": latent.detach(), "mouth": mouth.detach()}
        if self.settings["image_frames"]:
            chunk, frame = shown
            image = self._image_loss(identity[chunk], predicted[chunk, frame], wanted[chunk, frame])
            image = image.sum() * share.of / self.settings["image_frames"]
            loss = loss + self.settings["image_weight"] * image
            record["image"] = image.detach()
        return loss, {"loss": loss.detach()} | record

    @torch.no_grad()
    def _noise(self, share, windows, identity_coords, true, valid):
        """Noise for each chunk (B, T, n): of all that is drawn, what brings the model nearest to the true motion."""
        shape = windows.shape[1], self.model.noise_width
        draws = [
            share.randn(self.settings["batch"], *shape, device=self.device) for _ in range(self.settings["best_of_n"])
        ]
        if len(draws) == 1:
            return draws[0]
        moved = torch.stack(
            [self.model.predict_coords(windows, identity_coords, noise=noise)[0].float() for noise in draws]
        )  # (draws, B, T, L·512)
        missed = ((moved - true).square().mean(-1) * valid).sum(-1)
        return torch.stack(draws)[missed.argmin(0), torch.arange(len(identity_coords), device=self.device)]

    @staticmethod
    def _latent_loss(predicted, true, wanted):
        """Mean squared error of the latents. By Pythagoras, for the basis is orthonormal: what lies outside it is missed
        whatever is predicted, and latents need not be made to know how far apart they are."""
        outside = wanted.square().sum() - true.square().sum()  # nothing, where latents are predicted whole
        return (F.mse_loss(predicted, true, reduction="sum") + outside) / wanted.numel()

    def _image_loss(self, identity, predicted, wanted):
        """Perceptual distances (n,) of the frames drawn from predicted codes to those drawn from the encoded frames."""
        with self.team.autocast():
            with torch.no_grad():
                projected = self.generator.synthesis(identity + wanted, noise="const")
            drawn = self.generator.synthesis(identity + self.model.expand(predicted), noise="const")
            return self.perceptual(drawn.float(), projected.float())

    def _set_rate(self, index):
        if self.plateau.patience and index % self.settings["validate_every"] == 0:
            self.plateau.load_state_dict(self.team.copy(self.plateau.state_dict()))  # the leader alone has measured
        rate = self.settings["lr"] * 0.1**self.plateau.falls
        if "lr_decay" in self.settings:
            total = self.settings["steps"]
            left = min((total - index) / (self.settings["lr_decay"] * total), 1.0)
            rate *= 0.5 - 0.5 * math.cos(math.pi * left)
        self.adam.param_groups[0]["lr"] = rate

    def _update_ema(self, keep):
        with torch.no_grad():
            for slow, fast in zip(self.ema.parameters(), self.model.parameters()):
                slow.lerp_(fast, 1 - keep)

    def _batch(self, index):
        """What `_loss` takes in each turn: chunks of random clips. A chunk may be longer than its clip."""
        size, pictures = self.settings["batch"], self.settings["image_frames"]
        rng = np.random.default_rng([self.seed, index])
        picks = rng.choice(len(self.training_set), size, p=self.chances)
        # Each chunk has its own randomness, so that no process need make another's.
        chunks = [
            _TrainingWindow(self.training_set[pick], self.settings, np.random.default_rng([self.seed, index, k]))
            for k, pick in enumerate(picks)
        ]
        counts = np.array([chunk.valid.sum() for chunk in chunks])
        shown = np.stack(
            [np.arange(pictures) % size, (rng.random(pictures) * counts[np.arange(pictures) % size]).astype(int)]
        )
        turns = []
        for share in self.team.shares:
            parts = zip(*(chunk.read(self.codes, self.windows) for chunk in share(chunks)))
            mine = shown[:, shown[0] % share.of == share.first]
            turns.append(
                [
                    *(torch.from_numpy(np.stack(part)) for part in parts),
                    float(share(counts).sum() * share.of / counts.sum()),
                    (mine[0] // share.of, mine[1]),
                ]
            )
        return turns

    @torch.no_grad()
    def validate(self):
        """How the averaged model does on whole held-out clips, each driven from the code of its middle frame."""
        self.ema.eval()
        missed, spread, correlations, spreads, latent = 0.0, 0.0, [], [], []
        for lesson in self.held_out:
            codes, windows = self.codes.read(lesson)[0], self.windows.read(lesson)
            identity = codes[len(codes) // 2]
            moved = torch.as_tensor(np.stack(list(displacements(self.ema, windows, identity, chunk=100)))).to(
                self.device
            )
            wanted = torch.as_tensor(codes - identity).to(self.device)
            latent.append(F.mse_loss(moved, wanted).item())
            mine, true = (self.mouth(self.ema.project(x)).cpu().numpy() for x in (moved, wanted))
            missed, spread = missed + ((mine - true) ** 2).sum(), spread + ((true - true.mean()) ** 2).sum()
            if true.std() > 1e-3 and mine.std() > 0:
                shown = true if lesson.opening is None else lesson.opening
                correlations.append(np.corrcoef(mine, shown)[0, 1])
                spreads.append(math.log(mine.std() / true.std()))
        mean = {"val_correlation": correlations, "val_log_spread": spreads, "val_latent": latent}
        error = float(missed / max(spread, 1e-12))
        if self.plateau.patience and self.done % self.settings["validate_every"] == 0:  # the last step's is extra
            self.plateau.see(error)
        return {"val_error": error} | {name: float(np.mean(x)) if x else 0.0 for name, x in mean.items()}


class _Plateau:
    """How often the learning rate fell to a tenth: whenever so many measurements in a row brought nothing better."""

    def __init__(self, patience):
        self.patience, self.best, self.idle, self.falls = patience, math.inf, 0, 0

    def see(self, error):
        better = error < self.best
        self.best, self.idle = min(error, self.best), 0 if better else self.idle + 1
        if self.idle == self.patience:
            self.idle, self.falls = 0, self.falls + 1

    def state_dict(self):
        return {"best": self.best, "idle": self.idle, "falls": self.falls}

    def load_state_dict(self, state):
        self.best, self.idle, self.falls = state["best"], state["idle"], state["falls"]


class _TrainingWindow:
    """A part of a clip, heard a little faster or slower than it was, and where its frames lie in the clip."""

    def __init__(self, lesson, settings, rng):
        count, self.augment = settings["frames"], settings["augment"]
        self.lesson, self.rng = lesson, rng
        self.speed = rng.uniform(7 / 8, 9 / 8) if self.augment else 1.0
        length = math.ceil(count * self.speed)
        start = int(rng.integers(max(lesson.frames - length, 0) + 1))
        self.first = start - int(rng.integers(min(start, 4), min(start, LEAD) + 1))
        self.end = start + length + LAG
        self.skip = math.ceil((start - self.first) / self.speed)
        self.times = self.first + (self.skip + np.arange(count) + 0.5) * self.speed - 0.5  # in frames of the clip
        self.valid = self.times < lesson.frames - 0.5
        # The frames before and after those that are predicted.
        self.before, self.after = math.floor(self.times[0]), min(lesson.frames, math.ceil(self.times[-1]) + 1)

    def read(self, codes, windows):
        """Windows (T, C, S), an identity (L, 512), targets (T, L, 512), and which frames are there (T,)."""
        latents, audio = codes.read(self.lesson)
        if self.augment or not windows.kept:
            heard = audio[self.first * SAMPLES_PER_FRAME : self.end * SAMPLES_PER_FRAME]
            if self.augment:
                heard = mfcc.augment_audio(mfcc.change_speed(heard, self.speed), self.rng)
            seen = windows.features.windows(heard)[self.skip :]
        else:
            seen = windows.read(self.lesson)[self.first + self.skip :]
        seen = seen[: len(self.times)]
        seen = np.pad(seen, ((0, len(self.times) - len(seen)), (0, 0), (0, 0)))
        return seen, self._identity(latents), _interpolated(latents, self.times), self.valid

    def _identity(self, latents):
        """A random frame's code: of a frame that is not predicted, if there is one."""
        outside = self.before + self.lesson.frames - self.after
        if not outside:
            return latents[self.rng.integers(self.lesson.frames)]
        frame = int(self.rng.integers(outside))
        return latents[frame if frame < self.before else frame - self.before + self.after]


class _Mouth(nn.Module):
    """How far a displacement opens the mouth, in spreads: a linear reading of a model's motion."""

    def __init__(self, model):
        super().__init__()
        self.register_buffer("weights", torch.zeros_like(model.project(torch.zeros(model.num_ws, W_DIM))))

    def forward(self, motion):
        """Motion (..., K or L·512) to openings (...)."""
        return motion @ self.weights


def _measure(model, mouth, lessons, codes, windows):
    """Fit a basis to codes of the training clips and begin there, with the spreads and the mouth's reading measured in it."""
    # Neighbouring frames are alike, and the decomposition's cost grows with the square of their number.
    every = max(1, sum(lesson.frames for lesson in lessons) // max(4 * model.components, 3000))
    basis = Basis.fit((codes.read(lesson)[0][::every] for lesson in lessons), model.components)
    sound, motion, tracked = _RunningMoments(), _RunningMoments(), _RunningMoments()
    for lesson in lessons[:: max(1, len(lessons) // HEARD_AT_FIRST)]:
        sound.add(windows.read(lesson).swapaxes(1, 2).reshape(-1, model.window_shape[0]))
    for lesson in lessons:
        latents = codes.read(lesson)[0]
        moved = torch.from_numpy(latents - latents.mean(0))
        moved = basis.project(moved, centre=False).double().numpy()  # (T, K)
        motion.add(moved)
        if lesson.opening is not None:
            tracked.add(np.column_stack([moved, lesson.opening - lesson.opening.mean()]))
    # Where faces hardly move, a reading would be all the greater, and hear nothing but what a model gets wrong there.
    spread = np.maximum(motion.spread(), 0.05 * motion.spread().max())
    reading = _read_tracks(tracked, spread) / spread if tracked.count else _widest(motion) / motion.spread()
    model.init_from_pca(basis, torch.from_numpy(motion.spread()).float(), torch.from_numpy(sound.spread()).float())
    # A basis is orthonormal: what reads coordinates, laid out in latents, reads displacements.
    mouth.weights.copy_(model.project(basis.expand(torch.from_numpy(reading).float())))


class _RunningMoments:
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


def _interpolated(codes, times):
    """Codes between frames: (T, L, 512) at times (n,) in frames, linearly, held at the ends."""
    times = np.clip(times, 0, len(codes) - 1)
    before = np.minimum(times.astype(int), max(len(codes) - 2, 0))
    after = np.minimum(before + 1, len(codes) - 1)
    part = (times - before).astype(np.float32)[:, None, None]
    return codes[before] * (1 - part) + codes[after] * part
