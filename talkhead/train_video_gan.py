"""Training of the motion model, a video GAN in latent space (thesis §3.4)."""

import copy
import os
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from talkhead import ada, training, video_files
from talkhead.distributed import Distributed
from talkhead.encoders import Encoder
from talkhead.errors import TalkheadError
from talkhead.images import resize, sheet, to_images
from talkhead.latent_cache import LatentCache, list_clips
from talkhead.latents import Basis, random_latents, why_not_random
from talkhead.stylegan import Generator
from talkhead.video_gan import ImageDiscriminator, LatentGenerator, VideoDiscriminator, _check_choice, motion

MOTION_RANGE = 3.0  # standard deviations of real motion that an LSTM output of one stands for
SAMPLED_STEP = 0.2  # largest step per frame from a sampled start, in standard deviations of W (MoCoGAN-HD)
QUEUE_SIZE = 4096  # negatives kept for the contrastive loss
TEMPERATURE = 0.07  # of the contrastive loss
VIEW_P = 0.5  # probability of each augmentation in the two views of an image
# MoCoGAN-HD's configuration, as options of `train`, LatentGenerator and VideoDiscriminator.
PRESETS = {
    "mocogan-hd": {
        "space": "w",
        "start": "sample",
        "displace": "previous",
        "contrastive": True,
        "image_discriminator": True,
        "real": "video",
        "hidden": 384,
        "adversarial": "relativistic",
        "norm": "instance",
        "conditional": False,
        "interpolation": 10.0,
        "r1": 0.0,
        "burn_in": 0,
        "generator_steps": 5,
    }
}


# Adversarial losses of the generator and the discriminator, summed over scales. Both take the lists of logits of fakes
# and reals; the non-saturating generator loss ignores the reals.


def _log_generator(fake, real):
    return sum(F.softplus(-logits).mean() for logits in fake)


def _log_discriminator(fake, real):
    return sum(F.softplus(f).mean() + F.softplus(-r).mean() for f, r in zip(fake, real))


def _relativistic_generator(fake, real):
    return _relativistic_discriminator(real, fake)


def _relativistic_discriminator(fake, real):
    """Relativistic average least-squares loss: real logits aim at mean(fake) + 1, fake logits at mean(real).

    Source: Jolicoeur-Martineau 2018.
    """
    return sum(0.5 * ((r - f.mean() - 1).square().mean() + (f - r.mean()).square().mean()) for f, r in zip(fake, real))


ADVERSARIAL = {
    "log": (_log_generator, _log_discriminator),
    "relativistic": (_relativistic_generator, _relativistic_discriminator),
}


def train(
    clips: Collection[str | os.PathLike],
    generator: Generator,
    encoder: Encoder,
    out: str | os.PathLike,
    model: LatentGenerator,
    discriminator: VideoDiscriminator,
    *,
    steps: int,
    batch: int = 8,
    frames: int = 16,
    d_size: int | None = None,
    shallow: bool = False,
    real: str = "auto",
    start: str = "encode",
    contrastive: bool = False,
    image_discriminator: bool = False,
    adversarial: str = "log",
    information_weight: float = 1.0,
    r1: float = 1.0,
    r1_interval: int = 4,
    interpolation: float = 0.0,
    burn_in: int = 64,
    generator_steps: int = 1,
    lr: float = 1e-4,
    d_lr: float | None = None,
    beta1: float = 0.5,
    ema_decay: float = 0.999,
    accumulate: int = 1,
    precision: str = "float32",
    seed: int = 0,
    device: str | torch.device = "cpu",
    **run: Any,
) -> Iterator[dict]:
    """Train a motion model against a video discriminator on talking clips; yield log records.

    clips           clips of aligned faces, or folders of them; clips shorter than `frames` are skipped
    generator       stylegan.Generator with `fingerprint`; frozen
    encoder         one of `encoders`; frozen. Its latents are computed once and cached beside `out`, in NAME.codes
    out             path of the .pt, resumed if it exists; its "model" is the EMA
    model           LatentGenerator; in a new run its basis is fitted to the latents of the clips
    discriminator   VideoDiscriminator
    steps           optimiser steps of `batch` windows of `frames` frames
    d_size          side of the frames that the discriminators take; None is the generator's
    shallow         synthesize fakes and projected video at `d_size` by the generator's lower levels alone: faster, and
                    real and fake come from the same levels. Needs projected video
    real            real samples of the discriminators: "video", the clips (eq. 3.7); "projected", the generator's
                    images of their latents (eq. 3.10); "auto", video if the generator was trained on films, else
                    projected
    start           first face of a fake video: "encode", a frame of a clip; "sample", a random face of the generator
    contrastive     add MoCoGAN-HD's contrastive loss between the frames of a fake video
    image_discriminator   add MoCoGAN-HD's image discriminator, for which the first face is real and later frames fake
    adversarial     "log", eqs 3.7 and 3.10; or "relativistic", MoCoGAN-HD's
    information_weight    weight of eq. 3.8
    r1, r1_interval       weight γ of the R1 penalty on real video, and the steps between two applications
    interpolation   weight of the gradient penalty between real and fake video, as in MoCoGAN-HD; 0 leaves it out
    burn_in         maximum frames before the training window, in half of the steps, so that late frames are trained too
    generator_steps       steps of the motion model per step of the discriminator
    lr, d_lr        Adam's learning rates; d_lr None is lr
    ema_decay       EMA decay per step
    accumulate      micro-batches per step and process, to save memory: the result is the same
    precision       "float32", or "bfloat16" or "float16" for synthesis and discriminators under autocast
    run             logging and saving options of training.fit; its `samples` are strips of a real clip, and of two
                    faces moved by two noises
    yields          {"step", "seconds", "generator", "discriminator", "information", "real_logits", "fake_logits", …},
                    and running means, as ratios to the clips': "motion", the variance of the latents within a window,
                    "speed", their mean squared frame difference, and "variety", their difference between two noises
    raises          TalkheadError if clips or options cannot be used, if training collapses, and as training.fit does

    Source: thesis §3.4.3 and §3.4.6, eqs 3.7–3.10; §3.4.4 for Adam's rate. The thesis does not give window, batch and
    Adam's β1; they are MoCoGAN-HD's.
    Departure: the generator's term of eq. 3.7 is the non-saturating one; R1, the burn-in and the EMA are ours.
    Relativistic losses compare with means over a micro-batch.
    """
    generator, encoder = generator.to(device).eval().requires_grad_(False), encoder.to(device).eval()
    if not encoder.num_ws == generator.num_ws == model.num_ws:
        raise TalkheadError(
            f"layers: generator {generator.num_ws}, encoder {encoder.num_ws}, motion model {model.num_ws}; "
            "use networks trained for one generator"
        )
    _check_choice("real", real, ("auto", "video", "projected"))
    _check_choice("start", start, ("encode", "sample"))
    _check_choice("adversarial", adversarial, tuple(ADVERSARIAL))
    if real == "auto":
        real = "video" if getattr(generator, "learnt_from", None) == "film" else "projected"
    size = d_size or generator.resolution
    if size > generator.resolution:
        raise TalkheadError(
            f"d_size {size}: exceeds the generator's {generator.resolution}x{generator.resolution}; pass no more"
        )
    if shallow and real == "video":
        raise TalkheadError(
            "shallow: real video does not come from the generator's lower levels; "
            "pass --set real=projected, or leave shallow out"
        )
    synthesizer = generator.shallow(size) if shallow else generator
    why = why_not_random(generator) if start == "sample" else ""
    if why:
        warnings.warn(
            f"start sample: {why}; pass --set start=encode, or a generator that was trained on them", stacklevel=1
        )
    team = Distributed(batch, accumulate, precision, device)
    settings = {
        "batch": batch,
        "frames": frames,
        "d_size": size,
        "shallow": shallow,
        "real": real,
        "start": start,
        "contrastive": contrastive,
        "image_discriminator": image_discriminator,
        "adversarial": adversarial,
        "information_weight": information_weight,
        "r1": r1,
        "r1_interval": r1_interval,
        "interpolation": interpolation,
        "burn_in": burn_in,
        "generator_steps": generator_steps,
        "lr": lr,
        "beta1": beta1,
        "ema_decay": ema_decay,
        "discriminator": discriminator.config,
    }
    paths = list_clips(clips)
    with LatentCache(Path(out).with_suffix(".codes"), encoder, sound=False) as cache:
        encoded = []
        if not team.is_main:
            team.wait()  # until the main process has encoded the clips; on a shared disk this process finds them
        for clip in paths:
            encoded.append(cache.encode(clip, device))
            if team.is_main and len(encoded) % run.get("log_every", 10) == 0:
                yield {"step": 0, "clips": len(encoded)}
        if team.is_main:
            team.wait()
        encoded = _long_enough(encoded, frames)
        if team.is_main and not Path(out).exists():
            _fit_basis(model, cache, encoded, generator, start)
        trainer = _Trainer(
            model.to(device),
            discriminator.to(device),
            generator,
            synthesizer,
            cache,
            encoded,
            settings,
            d_lr or lr,
            seed,
            team,
            out,
        )
        header = {
            "kind": "video_gan",
            "config": {
                "network": model.config,
                "generator": getattr(generator, "fingerprint", None),
                "encoder": getattr(encoder, "fingerprint", None),
                "training": settings | {"clips": len(encoded)},
            },
        }
        yield from training.fit(
            trainer.step,
            trainer.state,
            steps=steps,
            out=out,
            header=header,
            seed=seed,
            team=team,
            unit="clips",
            feed=trainer.feed,
            draw=trainer.draw,
            **run,
        )


def _long_enough(encoded, frames):
    """Clips of at least `frames` frames; TalkheadError if fewer than two, which a discriminator would memorise."""
    if frames < 2:
        raise TalkheadError(f"frames {frames}: motion needs at least two; pass 2 or more")
    kept = [clip for clip in encoded if clip.frames >= frames]
    short = len(encoded) - len(kept)
    if not kept:
        longest = max(clip.frames for clip in encoded)
        raise TalkheadError(
            f"{encoded[0].path}: the longest clip has {longest} frames, a window {frames}; "
            "pass longer clips, or lower frames"
        )
    if len(kept) == 1:
        raise TalkheadError(
            f"{kept[0].path}: is the only clip of {frames} frames or more, and a discriminator would memorise it; "
            "pass more clips"
        )
    if short:
        warnings.warn(
            f"{short} of {len(encoded)} clips are shorter than a window of {frames} frames, and skipped", stacklevel=1
        )
    return kept


def _fit_basis(model, cache, encoded, generator, start):
    """Fit a motion model's PCA basis, turned to the principal axes of motion, and its `motion_scale`."""
    components = model.config["components"]
    if start == "sample":  # PCA of the generator's random latents, as in MoCoGAN-HD
        basis = Basis.fit(random_latents(generator, 1000, 20), components)
        layers = model.basis.num_ws  # a random latent has the same vector in each
        model.basis = Basis(
            basis.mean.repeat(layers), basis.components.repeat(1, layers) / layers**0.5, basis.stdev * layers**0.5
        )
        model.motion_scale = (
            SAMPLED_STEP * model.basis.stdev if model.displace == "previous" else model.basis.stdev.clone()
        )
        return
    # Frames are subsampled: neighbours are similar, and the cost of PCA grows with the square of their number.
    every = max(1, sum(clip.frames for clip in encoded) // max(4 * components, 3000))
    read = (model._basis_layers(torch.from_numpy(cache.read(clip)[0][::every])) for clip in encoded)
    basis = Basis.fit(read, components)
    model.basis, products, count = basis, 0.0, 0
    for clip in encoded:
        path = torch.from_numpy(cache.read(clip)[0])
        motion = path.diff(dim=0) if model.displace == "previous" else path - path.mean(0)
        motion = model.project(motion).double()  # (T, K)
        products, count = products + motion.T @ motion, count + len(motion)
    variances, axes = (part.flip(-1) for part in torch.linalg.eigh(products / count))
    rotation = (axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()).T  # rows, of fixed sign
    stdev = (rotation.square() @ basis.stdev.double().square()).sqrt()
    model.basis = Basis(basis.mean, rotation.float() @ basis.components, stdev)
    model.motion_scale = MOTION_RANGE * variances.clamp(min=1e-12).sqrt().float()


class _Trainer:
    """Optimiser steps of the motion model and its discriminators."""

    def __init__(self, model, discriminator, generator, synthesizer, cache, encoded, settings, d_lr, seed, team, out):
        self.model, self.discriminator, self.generator = model, discriminator, generator
        self.synthesizer, self.cache, self.encoded = synthesizer, cache, encoded
        self.settings, self.seed, self.team, self.device = settings, seed, team, team.device
        width = model.lstm.hidden_size
        self.ema = copy.deepcopy(model).requires_grad_(False)
        self.information = nn.Sequential(
            nn.Linear(width, model.noise), nn.ReLU(), nn.Linear(model.noise, model.noise)
        ).to(self.device)
        self.image = (
            ImageDiscriminator(settings["d_size"], discriminator.config["width"]).to(self.device)
            if self._uses_images()
            else None
        )
        self.discriminators = nn.ModuleList([discriminator] if self.image is None else [discriminator, self.image])
        betas = settings["beta1"], 0.999
        self.g_adam = torch.optim.Adam(
            [*model.parameters(), *self.information.parameters()], lr=settings["lr"], betas=betas
        )
        self.d_adam = torch.optim.Adam(self.discriminators.parameters(), lr=d_lr, betas=betas)
        self.monitor = _CollapseMonitor(team, out)
        self.negatives = _NegativeQueue(team, settings["batch"]) if settings["contrastive"] else None
        self.state = {
            "model": self.ema,
            "live": model,
            "information": self.information,
            "discriminators": self.discriminators,
            "generator_optimizer": self.g_adam,
            "discriminator_optimizer": self.d_adam,
            "watch": self.monitor,
        }
        if self.negatives is not None:
            self.state["others"] = self.negatives
        lengths = np.array([clip.frames for clip in encoded])
        self.clip_probabilities = lengths / lengths.sum()
        self.feed = training.Prefetcher(self._batch)
        self.losses = ADVERSARIAL[settings["adversarial"]]

    def _uses_images(self):
        return self.settings["contrastive"] or self.settings["image_discriminator"]

    def _batch(self, index):
        """Micro-batches of identities (b, L, 512) and windows of latents (b, T, L, 512).

        With real video, also the identities' frames and the windows' frames.
        """
        rng = np.random.default_rng([self.seed, index])
        picks = rng.choice(len(self.encoded), self.settings["batch"], p=self.clip_probabilities)
        samples = [(self.encoded[pick], np.random.default_rng([self.seed, index, k])) for k, pick in enumerate(picks)]
        return [
            [torch.from_numpy(np.stack(part)) for part in zip(*(self._window(*sample) for sample in share(samples)))]
            for share in self.team.shares
        ]

    def _window(self, clip, rng):
        path, _ = self.cache.read(clip)
        first, still = rng.integers(clip.frames - self.settings["frames"] + 1), rng.integers(clip.frames)
        last = first + self.settings["frames"]
        window = path[still], path[first:last]
        if self.settings["real"] == "projected":
            return window
        with video_files.read_frames(clip.path, limit=int(max(last, still + 1))) as reader:
            video = np.stack([resize(frame, self.settings["d_size"]) for frame in reader])
        return *window, video[still], video[first:last]

    def step(self, index):
        micro_batches = [[part.to(self.device) for part in parts] for parts in self.feed(index)]
        self.real = [self._real(*parts) for parts in micro_batches]  # identities' images and videos
        self.discriminators.requires_grad_(False)
        for _ in range(self.settings["generator_steps"]):
            self.fakes = []
            record = self.team.optimizer_step(
                lambda share: self._generator_loss(share, *micro_batches[share.turn][:2]), self.g_adam
            )
        self.discriminators.requires_grad_(True)
        record |= self.team.optimizer_step(self._discriminator_loss, self.d_adam)
        if self.settings["r1"] and index % self.settings["r1_interval"] == 0:
            record |= self.team.optimizer_step(self._r1_loss, self.d_adam, scaled=False)
        if self.negatives is not None:
            self.negatives.push()
        training.update_ema(self.ema, self.model, self.settings["ema_decay"], index)
        return record | self.monitor(record)

    def _real(self, identity, window, face=None, video=None):
        """Real samples at the discriminators' size: images of the identities (b, 3, S, S), videos (b, T, 3, S, S)."""
        if video is not None:
            return to_images(face), to_images(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        with torch.no_grad():
            images = self._synthesize(torch.cat([identity[:, None], window], 1))
        return images[:, 0], images[:, 1:]

    def _synthesize(self, latents):
        """Images of latents (b, T, L, 512) at the discriminators' size: (b, T, 3, S, S)."""
        with self.team.autocast():
            images = self.synthesizer.synthesis(latents.flatten(0, 1), noise="const").float()
        size = (self.settings["d_size"],) * 2
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        return images.unflatten(0, latents.shape[:2])

    def _generator_loss(self, share, identity, window):
        settings = self.settings
        true = self.model.project(window - identity[:, None])
        face, video = self.real[share.turn]
        if settings["start"] == "sample":
            z = share.randn(settings["batch"], self.generator.z_dim).to(self.device)
            identity = self.generator.mapping(z)
            with torch.no_grad():
                face = self._synthesize(identity[:, None])[:, 0]
        noise, coordinates, hidden = self._sample_motion(share, identity)
        fake = self._synthesize(identity[:, None] + self.model.expand(coordinates))
        with self.team.autocast():
            logits = self.discriminator(fake, face)
            real_logits = (
                self.discriminator(video, self.real[share.turn][0])
                if settings["adversarial"] == "relativistic"
                else None
            )
            realism = self.losses[0](logits, real_logits)
        information = F.cosine_similarity(self.information(hidden), noise, dim=-1).mean()  # eq. 3.8
        loss = realism - settings["information_weight"] * information
        record = {"generator": realism.detach(), "information": information.detach()}
        if self.image is not None:
            loss = loss + self._image_generator_loss(share, face, fake, record)
        self.fakes.append((face, fake.detach()))
        with torch.no_grad():
            _, other, _ = self._sample_motion(share, identity)
        return loss, record | _motion_statistics(coordinates.detach(), other, true)

    def _sample_motion(self, share, identity):
        """Noise (b, T, noise), the model's coordinates (b, T, K) for it, and the LSTM's outputs (b, T, H)."""
        settings, state = self.settings, None
        early = int(torch.randint(settings["burn_in"] + 1, ())) * int(torch.randint(2, ()))
        noise = share.randn(settings["batch"], early + settings["frames"], self.model.noise).to(self.device)
        if early:
            with torch.no_grad():
                _, _, state = self.model.coordinates(noise[:, :early], identity)
        coordinates, hidden, _ = self.model.coordinates(noise[:, early:], identity, state)
        return noise[:, early:], coordinates, hidden

    def _image_generator_loss(self, share, face, fake, record):
        """MoCoGAN-HD's image losses of the generator: hinge adversarial, and similarity to the first face."""
        views = [self._view(share, images) for images in (face, self._random_frame(fake))]
        with self.team.autocast():
            (_, first), (logit, later) = map(self.image, views)
        loss = 0.0
        if self.settings["image_discriminator"]:
            loss = -logit.float().mean()
            record["image_generator"] = loss.detach()
        if self.settings["contrastive"]:
            similarity = (first * later).sum(1).float().mean()
            loss, record["alike"] = loss - similarity, similarity.detach()
        return loss

    def _random_frame(self, video):
        return video[:, int(torch.randint(video.shape[1], ()))]

    def _view(self, share, images):
        return ada.augment(images, ada.sample_params(self.settings["batch"], VIEW_P, share))

    def _discriminator_loss(self, share):
        (face, video), (start, fake) = self.real[share.turn], self.fakes[share.turn]
        with self.team.autocast():
            fake_logits, real_logits = self.discriminator(fake, start), self.discriminator(video, face)
            loss = self.losses[1](fake_logits, real_logits)
        record = {
            "discriminator": loss.detach(),
            "real_logits": _mean(real_logits).detach(),
            "fake_logits": _mean(fake_logits).detach(),
        }
        if self.settings["interpolation"]:
            loss = loss + self.settings["interpolation"] * self._interpolation_penalty(
                share, (face, video), (start, fake)
            )
        if self.image is not None:
            loss = loss + self._image_discriminator_loss(share, start, fake, record)
        return loss, record

    def _image_discriminator_loss(self, share, face, fake, record):
        outputs = []  # logits and features of two views, for the first faces and for later frames
        for images in (face, self._random_frame(fake)):
            with self.team.autocast():
                outputs.append([self.image(self._view(share, images)) for _ in range(2)])
        (real_logits, _), (fake_logits, _) = outputs[0][0], outputs[1][0]
        loss = 0.0
        if self.settings["image_discriminator"]:
            loss = F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean()
            record["image_discriminator"] = loss.detach()
        if self.settings["contrastive"]:
            contrast = sum(
                self.negatives.info_nce(kind, one[1].float(), other[1].float())
                for kind, (one, other) in enumerate(outputs)
            )
            self.negatives.stage(share, torch.stack([views[0][1].detach().float() for views in outputs], 1))
            loss, record["contrast"] = loss + 2 * contrast, contrast.detach()
        return loss

    def _interpolation_penalty(self, share, real, fake):
        """WGAN-GP gradient penalty (Gulrajani et al. 2017); the norm is over colours only, as in MoCoGAN-HD."""
        t = share(torch.rand(self.settings["batch"], 1, 1, 1, 1)).to(self.device)
        video = torch.lerp(fake[1], real[1], t).requires_grad_(True)
        logits = self.discriminator(video, torch.lerp(fake[0], real[0], t[:, 0]))
        gradients = [torch.autograd.grad(scale.sum(), video, create_graph=True)[0] for scale in logits]
        return sum((gradient.norm(dim=2) - 1).square().mean() for gradient in gradients) / len(gradients)

    def _r1_loss(self, share):
        face, video = self.real[share.turn]
        video = video.detach().requires_grad_(True)
        logits = sum(scale.flatten(1).mean(1).sum() for scale in self.discriminator(video, face))
        (gradient,) = torch.autograd.grad(logits, video, create_graph=True)
        penalty = gradient.square().flatten(1).sum(1).mean()
        return penalty * self.settings["r1"] / 2 * self.settings["r1_interval"], {"r1": penalty.detach()}

    @torch.no_grad()
    def draw(self):
        """Sample sheet of 8 frames from 1.3 s: two clips, each projected, then its face moved by two noises."""
        rows, times = [], range(0, 32, 4)
        for clip in (self.encoded[0], self.encoded[-1]):
            path = self.cache.read(clip)[0]
            displacements = [np.stack(list(motion(self.ema, path[0], seed, 32)))[::4] for seed in (1, 2)]
            strips = [path[[min(time, len(path) - 1) for time in times]], *(path[0] + each for each in displacements)]
            rows += [self.generator.synthesis(torch.from_numpy(strip).to(self.device)) for strip in strips]
        return sheet(*rows)


def _mean(logits):
    return sum(scale.float().mean() for scale in logits) / len(logits)


def _motion_statistics(fake, other, true):
    """Variance within a window, squared frame difference, and distance between two noises; generated and real.

    fake, other   coordinates (b, T, K) of one identity by two noises
    true          coordinates (b, T, K) of the clips, from the identity
    """
    return {
        "motion": _variance(fake),
        "speed": fake.diff(dim=1).square().sum(-1).mean(),
        "variety": (fake - other).square().sum(-1).mean() / 2,
        "real_motion": _variance(true),
        "real_speed": true.diff(dim=1).square().sum(-1).mean(),
        "real_variety": true.square().sum(-1).mean() / 2,
    }


def _variance(coordinates):
    return coordinates.var(1, unbiased=False).sum(-1).mean()


class _CollapseMonitor:
    """Running means of the motion statistics and the discriminator's loss; detects collapse. Saved with the run.

    Collapse: faces stand still, all noise gives the same motion, or the discriminator is never wrong, so that its
    gradients vanish.
    """

    NAMES = ("motion", "speed", "variety", "real_motion", "real_speed", "real_variety", "discriminator")
    GRACE_STEPS = 100  # first steps, never taken for a collapse
    MIN_MOTION, MIN_VARIETY, MIN_LOSS = 0.05, 0.01, 0.01

    def __init__(self, team, out):
        self.team, self.out, self.count, self.means = team, out, 0, [0.0] * len(self.NAMES)

    def __call__(self, record):
        """Running means of a step's record, as ratios to the clips'; TalkheadError on collapse."""
        values = self.team.mean(torch.stack([torch.as_tensor(record[name]).float() for name in self.NAMES])).tolist()
        self.count += 1
        rate = max(1 / self.count, 0.02)
        self.means = [mean + rate * (value - mean) for mean, value in zip(self.means, values)]
        mean = dict(zip(self.NAMES, self.means))
        ratios = {name: mean[name] / max(mean[f"real_{name}"], 1e-12) for name in ("motion", "speed", "variety")}
        for name in ("real_motion", "real_speed", "real_variety"):
            del record[name]
        if self.count > self.GRACE_STEPS:
            self._check(ratios["motion"], ratios["variety"], mean["discriminator"])
        return ratios

    def _check(self, motion, variety, loss):
        advice = f"{self.out}, if it exists, is the last checkpoint; restart with another --output and "
        if motion < self.MIN_MOTION:
            raise TalkheadError(
                f"training has collapsed: faces move {motion:.3f} times as much as in the clips; "
                f"{advice}a lower --d-lr or more --r1"
            )
        if variety < self.MIN_VARIETY:
            raise TalkheadError(
                f"training has collapsed: all noise makes the same motion; {advice}more --information-weight"
            )
        if 0 <= loss < self.MIN_LOSS:
            raise TalkheadError(
                f"training has collapsed: the discriminator is never wrong (loss {loss:.4f}); "
                f"{advice}a lower --d-lr or more --r1"
            )

    def state_dict(self):
        return {"count": self.count, "means": list(self.means)}

    def load_state_dict(self, state):
        self.count, self.means = state["count"], list(state["means"])


class _NegativeQueue:
    """Queue of negatives for the contrastive loss: features of first faces and later frames. Saved with the run.

    Departure from MoCoGAN-HD: negatives come only from earlier steps, not from the same batch, so that a batch can be
    split into micro-batches; their features are the discriminator's own, without a momentum copy of it.
    """

    def __init__(self, team, batch, width=256):
        random = torch.Generator().manual_seed(0)
        self.team, self.position = team, 0
        self.queue = F.normalize(torch.randn(QUEUE_SIZE, 2, width, generator=random), dim=-1).to(team.device)
        self.staged = torch.zeros(batch, 2, width, device=team.device)

    def info_nce(self, kind, one, other):
        """InfoNCE loss of two views (b, F) against the queue; kind 0 is first faces, kind 1 later frames."""
        loss = 0.0
        for view, positive in ((one, other), (other, one)):
            logits = torch.cat([(view * positive).sum(1, keepdim=True), view @ self.queue[:, kind].T], 1) / TEMPERATURE
            loss = loss + F.cross_entropy(logits, torch.zeros(len(view), dtype=torch.long, device=view.device)) / 2
        return loss

    def stage(self, share, features):
        """Hold a micro-batch's features (b, 2, F) until `push`."""
        self.staged[share.first :: share.of] = features

    def push(self):
        """Replace the oldest entries by the features that all processes staged in this step."""
        features = self.team.mean(self.staged) * self.team.size
        slots = (self.position + torch.arange(len(features))) % QUEUE_SIZE
        self.queue[slots.to(self.queue.device)] = features
        self.position = (self.position + len(features)) % QUEUE_SIZE
        self.staged.zero_()

    def state_dict(self):
        return {"queue": self.queue.clone(), "place": self.position}

    def load_state_dict(self, state):
        self.queue.copy_(state["queue"])
        self.position = state["place"]
