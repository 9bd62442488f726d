"""Training of audio2latent models on talking clips.

Source: thesis §4.2.2.3 (first model), §4.3.2.1 (second model).
"""

import copy
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from talkhead import mfcc, training
from talkhead.audio2latent import FirstModel, SecondModel, displacements
from talkhead.audio_features import AudioFeatures, Mfcc
from talkhead.distributed import Distributed
from talkhead.encoders import Encoder
from talkhead.errors import TalkheadError
from talkhead.latent_cache import SAMPLES_PER_FRAME, LatentCache, Windows, list_clips, split
from talkhead.latents import W_DIM, Basis
from talkhead.losses import Perceptual
from talkhead.stylegan import Generator

# Frames of audio before a training window, at most; the features estimate the speech level from them.
CONTEXT_BEFORE = 25
CONTEXT_AFTER = 8  # frames of audio after a training window, more than its last feature window covers
FEATURE_STD_CLIPS = 100  # clips from which the std of the features is estimated


def train(
    clips: Sequence[str | os.PathLike],
    generator: Generator,
    encoder: Encoder,
    out: str | os.PathLike,
    model: FirstModel | SecondModel,
    *,
    steps: int,
    features: AudioFeatures | None = None,
    batch: int = 16,
    frames: int = 25,
    lr: float = 2e-4,
    latent_weight: float | None = None,
    image_weight: float = 1.0,
    image_frames: int = 8,
    mouth_weight: float = 0.0,
    perceptual: str | Perceptual = "auto",
    augment: bool = True,
    identity_noise: float | None = None,
    best_of_n: int = 1,
    patience: int | None = None,
    lr_decay: float = 0.0,
    hold_out: int | Sequence[str] = 10,
    validate_every: int = 200,
    ema_decay: float = 0.998,
    accumulate: int = 1,
    precision: str = "float32",
    seed: int = 0,
    device: str | torch.device = "cpu",
    **run: Any,
) -> Iterator[dict]:
    """Train an audio2latent model on talking clips; yield log records. The file's "model" is the best by validation.

    clips           clips of aligned faces with audio, or folders of them. Optional files beside a clip: NNNNNN.json
                    with its "speaker" (default: the folder's name) and NNNNNN.track.npy, its true mouth opening (T, 3)
    generator       stylegan.Generator with `fingerprint`; frozen
    encoder         encoders.ResNetEncoder; frozen. Its latents are computed once and cached beside `out`, in NAME.codes
    out             path of the .pt; resumed if it exists
    model           FirstModel or SecondModel; a new run starts from the principal components of the training latents
    steps           optimiser steps of `batch` windows of `frames` frames
    features        AudioFeatures that are the model's input; None: Mfcc
    latent_weight, image_weight   weights of eqs 4.4 and 4.5 (4.2). None: 250 for the second model, 0 for the first
    image_frames    frames per step, each of another window, that are synthesized for eq. 4.5; 0 trains without images
    mouth_weight    weight of the MSE of the mouth opening predicted linearly from the displacement, in standard
                    deviations
    perceptual      name of a losses.Perceptual, or such a loss
    augment         augment the audio: microphone, loudness, noise, and speed (of the faces too) by up to an eighth.
                    Without it, features of a network are computed once and cached with the latents
    identity_noise  std of the Gaussian noise added to the identity's PCA coordinates, in standard deviations; prevents
                    memorising a few hundred training faces. None: 0.3 for the second model, 0 for the first
    best_of_n       noise samples per window of the first model; the loss is that of the sample nearest to the true
                    latents. With 1, the model learns to ignore the noise
    patience        validations without improvement after which the learning rate falls to a tenth; 0: never.
                    None: 10 for the first model, 0 for the second
    lr_decay        fraction of the steps, the last ones, over which the learning rate decays to 0 along a cosine
    hold_out        validation speakers: their number or their names; names of clips and of their folders also count
    ema_decay       decay per step of the EMA of the weights; the EMA is validated
    accumulate      micro-batches of a batch, to fit into memory; the result is the same
    precision       "float32", or "bfloat16" or "float16" for the networks' passes under autocast
    run             logging and saving options of training.fit
    yields          {"step", "seconds", "loss", "latent", …}, step 0 while clips are encoded, and where validated
                    "val_latent", "val_correlation" of the mouth opening, "val_log_spread" (log of predicted by true
                    std: below 0 the mouth moves too little), "val_error" (fraction of the opening's variance not
                    explained)
    raises          TalkheadError if clips cannot be read, no training clips are left, or model and features do not fit

    Source: thesis §4.2.2.3, eq. 4.2, and §4.2.4 (first model); §4.3.2.1, eqs 4.4–4.6, and §4.3.4 (second); Figures 4.2
    and 4.8 for the identity, a frame outside of the predicted ones.
    Departure: Σ_t ‖·‖² is a mean over frames and over the L·512 entries, because a sum would outweigh the image term,
    whose distance is a mean over pixels; the thesis leaves this open. The image term is computed on some frames of a
    step, and for the first model too against the projected frames, not the filmed ones: speech cannot restore what the
    encoder loses. Augmentation, identity noise, best-of-N noise, the mouth term, learning rate decay and EMA are ours.
    """
    generator, encoder = generator.to(device).eval().requires_grad_(False), encoder.to(device).eval()
    if not encoder.num_ws == generator.num_ws == model.num_ws:
        raise TalkheadError(
            f"layers: generator {generator.num_ws}, encoder {encoder.num_ws}, speech model {model.num_ws}; "
            "use networks of the same generator"
        )
    features = features or Mfcc()
    if tuple(features.shape) != model.window_shape:
        raise TalkheadError(
            f"features: windows of {features.name} are {tuple(features.shape)}, "
            f"this speech model takes {model.window_shape}; build it for these features"
        )
    model.feature_id = features.identity
    latent_weight, identity_noise, patience = (  # type: ignore[assignment]  # the defaults have these types
        model.defaults[name] if given is None else given
        for name, given in (
            ("latent_weight", latent_weight),
            ("identity_noise", identity_noise),
            ("patience", patience),
        )
    )
    if not (latent_weight or mouth_weight or image_weight and image_frames):
        raise TalkheadError("weights: all loss terms are off; set latent_weight, image_weight or mouth_weight above 0")
    team = Distributed(batch, accumulate, precision, device)
    with LatentCache(Path(out).with_suffix(".codes"), encoder) as cache:
        encoded = []
        if not team.is_main:
            team.wait()  # until the main process has encoded the clips: a process on the same disk finds them cached
        windows = Windows(cache, features)
        for clip in list_clips(clips):
            encoded.append(cache.encode(clip, device))
            windows.encode(encoded[-1])
            if team.is_main and len(encoded) % run.get("log_every", 10) == 0:
                yield {"step": 0, "clips": len(encoded)}
        if team.is_main:
            team.wait()
        training_set, held_out = split(encoded, hold_out, seed)
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
            _initialise(model, mouth, training_set, cache, windows)
        if isinstance(perceptual, str) and image_frames:
            perceptual = Perceptual(perceptual).to(device)
        trainer = _Trainer(
            model.to(device),
            mouth.to(device),
            generator,
            perceptual,
            cache,
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
                "encoder": cache.fingerprint,
                "training": settings | {"clips": len(training_set), "held_out": len(held_out)},
            },
            "perceptual": perceptual.name if image_frames else None,  # type: ignore[union-attr]  # loaded above
        }
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
            validate=trainer.validate if held_out else None,
            validate_every=validate_every,
            keep_best="val_error",
            **run,
        )


class _Trainer:
    """Optimiser step and validation of an audio2latent model."""

    def __init__(
        self, model, mouth, generator, perceptual, cache, windows, training_set, held_out, settings, seed, team
    ):
        self.model, self.mouth, self.generator, self.perceptual = model, mouth, generator, perceptual
        self.cache, self.windows, self.training_set, self.held_out = cache, windows, training_set, held_out
        self.settings, self.seed, self.team, self.done = settings, seed, team, 0
        self.plateau = _Plateau(settings.get("patience", 0))
        self.ema = copy.deepcopy(model).requires_grad_(False)
        self.adam = torch.optim.Adam(model.parameters(), lr=settings["lr"])
        self.device = team.device
        lengths = np.array([clip.frames for clip in training_set])
        self.clip_probabilities = lengths / lengths.sum()
        self.feed = training.Prefetcher(self._batch)

    def step(self, index):
        self._set_rate(index)
        parts = self.feed(index)  # one per micro-batch
        record = self.team.optimizer_step(lambda share: self._loss(share, *parts[share.turn]), self.adam, longest=1.0)
        training.update_ema(self.ema, self.model, self.settings["ema_decay"], index)
        self.done = index + 1
        return record

    def _loss(self, share, windows, identity, target, valid, portion, synthesized):
        """Mean loss of a micro-batch, weighted by its portion of the valid frames.

        windows (B, T, C, S), identity (B, L, 512), target (B, T, L, 512); valid (B, T) is false past the clip's end;
        synthesized   (2, n), window and frame of each image of eq. 4.5
        """
        windows, identity, target, valid = (x.to(self.device) for x in (windows, identity, target, valid))
        wanted = target - identity[:, None]
        true = self.model.project(wanted)
        with self.team.autocast():
            identity_coords = self.model.project_identity(identity).float()
        identity_coords = identity_coords + self.settings["identity_noise"] * share.randn(
            self.settings["batch"], identity_coords.shape[1], device=self.device
        )
        noise = self._noise(share, windows, identity_coords, true, valid) if self.model.noise_width else None
        with self.team.autocast():
            # (B, T, K or L·512)
            predicted = self.model.predict_coords(windows, identity_coords, noise=noise)[0].float()
        latent = portion * self._latent_loss(predicted[valid], true[valid], wanted[valid])
        mouth = portion * F.mse_loss(self.mouth(predicted[valid]), self.mouth(true[valid]))
        loss = self.settings["latent_weight"] * latent + self.settings["mouth_weight"] * mouth
        record = {"latent": latent.detach(), "mouth": mouth.detach()}
        if self.settings["image_frames"]:
            window, frame = synthesized
            image = self._image_loss(identity[window], predicted[window, frame], wanted[window, frame])
            image = image.sum() * share.of / self.settings["image_frames"]
            loss = loss + self.settings["image_weight"] * image
            record["image"] = image.detach()
        return loss, {"loss": loss.detach()} | record

    @torch.no_grad()
    def _noise(self, share, windows, identity_coords, true, valid):
        """Noise of each window (B, T, n): of `best_of_n` samples, the one with the least motion error."""
        shape = windows.shape[1], self.model.noise_width
        samples = [
            share.randn(self.settings["batch"], *shape, device=self.device) for _ in range(self.settings["best_of_n"])
        ]
        if len(samples) == 1:
            return samples[0]
        # (N, B, T, L·512)
        predicted = torch.stack(
            [self.model.predict_coords(windows, identity_coords, noise=noise)[0].float() for noise in samples]
        )
        error = ((predicted - true).square().mean(-1) * valid).sum(-1)
        return torch.stack(samples)[error.argmin(0), torch.arange(len(identity_coords), device=self.device)]

    @staticmethod
    def _latent_loss(predicted, true, wanted):
        """MSE of the latents, computed from coordinates: the basis is orthonormal, so the squared error is that of the
        coordinates plus the constant part of `wanted` outside the basis (Pythagoras)."""
        outside = wanted.square().sum() - true.square().sum()  # 0 for the first model, which predicts whole latents
        return (F.mse_loss(predicted, true, reduction="sum") + outside) / wanted.numel()

    def _image_loss(self, identity, predicted, wanted):
        """Perceptual distances (n,) between images of the predicted latents and of the encoder's latents."""
        with self.team.autocast():
            with torch.no_grad():
                projected = self.generator.synthesis(identity + wanted, noise="const")
            drawn = self.generator.synthesis(identity + self.model.expand(predicted), noise="const")
            return self.perceptual(drawn.float(), projected.float())

    def _set_rate(self, index):
        if self.plateau.patience and index % self.settings["validate_every"] == 0:
            self.plateau.load_state_dict(self.team.copy(self.plateau.state_dict()))  # only the main process validates
        rate = self.settings["lr"] * 0.1**self.plateau.falls
        if "lr_decay" in self.settings:
            total = self.settings["steps"]
            left = min((total - index) / (self.settings["lr_decay"] * total), 1.0)
            rate *= 0.5 - 0.5 * math.cos(math.pi * left)
        self.adam.param_groups[0]["lr"] = rate

    def _batch(self, index):
        """Arguments of `_loss` for each micro-batch: windows of random clips. A window may be longer than its clip."""
        size, images = self.settings["batch"], self.settings["image_frames"]
        rng = np.random.default_rng([self.seed, index])
        picks = rng.choice(len(self.training_set), size, p=self.clip_probabilities)
        # Each window has its own random generator, so that a process reads only its own windows.
        chunks = [
            _TrainingWindow(self.training_set[pick], self.settings, np.random.default_rng([self.seed, index, k]))
            for k, pick in enumerate(picks)
        ]
        counts = np.array([chunk.valid.sum() for chunk in chunks])
        window = np.arange(images) % size
        synthesized = np.stack([window, (rng.random(images) * counts[window]).astype(int)])
        parts = []
        for share in self.team.shares:
            arrays = zip(*(chunk.read(self.cache, self.windows) for chunk in share(chunks)))
            own = synthesized[:, synthesized[0] % share.of == share.first]
            parts.append(
                [
                    *(torch.from_numpy(np.stack(array)) for array in arrays),
                    float(share(counts).sum() * share.of / counts.sum()),
                    (own[0] // share.of, own[1]),
                ]
            )
        return parts

    @torch.no_grad()
    def validate(self):
        """Validation record of the EMA model on whole held-out clips; the identity is the middle frame's latent."""
        self.ema.eval()
        error, variance, correlations, log_stds, latent = 0.0, 0.0, [], [], []
        for clip in self.held_out:
            latents, windows = self.cache.read(clip)[0], self.windows.read(clip)
            identity = latents[len(latents) // 2]
            predicted = np.stack(list(displacements(self.ema, windows, identity, chunk=100)))
            predicted, wanted = (torch.as_tensor(x).to(self.device) for x in (predicted, latents - identity))
            latent.append(F.mse_loss(predicted, wanted).item())
            opening, true = (self.mouth(self.ema.project(x)).cpu().numpy() for x in (predicted, wanted))
            error, variance = error + ((opening - true) ** 2).sum(), variance + ((true - true.mean()) ** 2).sum()
            if true.std() > 1e-3 and opening.std() > 0:
                measured = true if clip.opening is None else clip.opening
                correlations.append(np.corrcoef(opening, measured)[0, 1])
                log_stds.append(math.log(opening.std() / true.std()))
        mean = {"val_correlation": correlations, "val_log_spread": log_stds, "val_latent": latent}
        error = float(error / max(variance, 1e-12))
        if self.plateau.patience and self.done % self.settings["validate_every"] == 0:  # the last step's is extra
            self.plateau.step(error)
        return {"val_error": error} | {name: float(np.mean(x)) if x else 0.0 for name, x in mean.items()}


class _Plateau:
    """Count of learning rate drops: one for every `patience` validations in a row without improvement."""

    def __init__(self, patience):
        self.patience, self.best, self.idle, self.falls = patience, math.inf, 0, 0

    def step(self, error):
        better = error < self.best
        self.best, self.idle = min(error, self.best), 0 if better else self.idle + 1
        if self.idle == self.patience:
            self.idle, self.falls = 0, self.falls + 1

    def state_dict(self):
        return {"best": self.best, "idle": self.idle, "falls": self.falls}

    def load_state_dict(self, state):
        self.best, self.idle, self.falls = state["best"], state["idle"], state["falls"]


class _TrainingWindow:
    """Random window of a clip, played slightly faster or slower, with its frame times in the clip."""

    def __init__(self, clip, settings, rng):
        count, self.augment = settings["frames"], settings["augment"]
        self.clip, self.rng = clip, rng
        self.speed = rng.uniform(7 / 8, 9 / 8) if self.augment else 1.0
        length = math.ceil(count * self.speed)
        start = int(rng.integers(max(clip.frames - length, 0) + 1))
        self.first = start - int(rng.integers(min(start, 4), min(start, CONTEXT_BEFORE) + 1))
        self.end = start + length + CONTEXT_AFTER
        self.skip = math.ceil((start - self.first) / self.speed)
        self.times = self.first + (self.skip + np.arange(count) + 0.5) * self.speed - 0.5  # in frames of the clip
        self.valid = self.times < clip.frames - 0.5
        # End of the frames before the predicted ones; first frame after them.
        self.before, self.after = math.floor(self.times[0]), min(clip.frames, math.ceil(self.times[-1]) + 1)

    def read(self, cache, windows):
        """Feature windows (T, C, S), identity (L, 512), targets (T, L, 512) and mask of the valid frames (T,)."""
        latents, audio = cache.read(self.clip)
        if self.augment or not windows.cached:
            audio = audio[self.first * SAMPLES_PER_FRAME : self.end * SAMPLES_PER_FRAME]
            if self.augment:
                audio = mfcc.augment_audio(mfcc.change_speed(audio, self.speed), self.rng)
            inputs = windows.features.windows(audio)[self.skip :]
        else:
            inputs = windows.read(self.clip)[self.first + self.skip :]
        inputs = inputs[: len(self.times)]
        inputs = np.pad(inputs, ((0, len(self.times) - len(inputs)), (0, 0), (0, 0)))
        return inputs, self._identity(latents), _interpolated(latents, self.times), self.valid

    def _identity(self, latents):
        """Latent of a random frame: one outside the predicted frames if possible."""
        outside = self.before + self.clip.frames - self.after
        if not outside:
            return latents[self.rng.integers(self.clip.frames)]
        frame = int(self.rng.integers(outside))
        return latents[frame if frame < self.before else frame - self.before + self.after]


class _Mouth(nn.Module):
    """Linear regression of the mouth opening, in standard deviations, from a model's motion."""

    def __init__(self, model):
        super().__init__()
        self.register_buffer("weights", torch.zeros_like(model.project(torch.zeros(model.num_ws, W_DIM))))

    def forward(self, motion):
        """Motion (..., K or L·512) to openings (...)."""
        return motion @ self.weights


def _initialise(model, mouth, clips, cache, windows):
    """Initialise the model from a PCA of the training latents and the stds along it, and fit the mouth regression."""
    # Neighbouring frames are alike, and the cost of the PCA grows with the square of their number.
    every = max(1, sum(clip.frames for clip in clips) // max(4 * model.components, 3000))
    basis = Basis.fit((cache.read(clip)[0][::every] for clip in clips), model.components)
    features, motion, tracked = _RunningMoments(), _RunningMoments(), _RunningMoments()
    for clip in clips[:: max(1, len(clips) // FEATURE_STD_CLIPS)]:
        features.add(windows.read(clip).swapaxes(1, 2).reshape(-1, model.window_shape[0]))
    for clip in clips:
        latents = cache.read(clip)[0]
        coords = torch.from_numpy(latents - latents.mean(0))
        coords = basis.project(coords, centre=False).double().numpy()  # (T, K)
        motion.add(coords)
        if clip.opening is not None:
            tracked.add(np.column_stack([coords, clip.opening - clip.opening.mean()]))
    # A floor on the std: along components with little motion the weights would be large and amplify prediction errors.
    std = np.maximum(motion.std(), 0.05 * motion.std().max())
    weights = _regress_opening(tracked, std) / std if tracked.count else _first_component(motion) / motion.std()
    model.init_from_pca(basis, torch.from_numpy(motion.std()).float(), torch.from_numpy(features.std()).float())
    # The basis is orthonormal, so weights on coordinates expand to weights on displacements.
    mouth.weights.copy_(model.project(basis.expand(torch.from_numpy(weights).float())))


class _RunningMoments:
    """Second moments of rows that are added in blocks."""

    def __init__(self):
        self.count, self.sums = 0, 0.0

    def add(self, rows):
        rows = np.asarray(rows, float)
        self.count, self.sums = self.count + len(rows), self.sums + rows.T @ rows

    def matrix(self):
        return self.sums / self.count

    def std(self):
        return np.sqrt(np.maximum(np.diag(self.matrix()), 1e-12))


def _regress_opening(tracked, std):
    """Ridge regression weights (K,) of the measured openings on the coordinates, both in standard deviations."""
    matrix, opening = tracked.matrix(), tracked.std()[-1]
    covariance = matrix[:-1, :-1] / np.outer(std, std)
    return np.linalg.solve(covariance + 1e-3 * np.eye(len(std)), matrix[:-1, -1] / std) / opening


def _first_component(motion):
    """Weights (K,) of the motion's first principal component, used if no mouth opening was measured."""
    values, vectors = np.linalg.eigh(motion.matrix())
    return vectors[:, -1] * motion.std() / math.sqrt(max(values[-1], 1e-12))


def _interpolated(latents, times):
    """Linear interpolation of latents (T, L, 512) at times (n,) in frames, clamped to the ends."""
    times = np.clip(times, 0, len(latents) - 1)
    before = np.minimum(times.astype(int), max(len(latents) - 2, 0))
    after = np.minimum(before + 1, len(latents) - 1)
    part = (times - before).astype(np.float32)[:, None, None]
    return latents[before] * (1 - part) + latents[after] * part
