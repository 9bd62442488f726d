"""Training of the motion model: a GAN of video in latent space (thesis §3.4)."""

import copy
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from talkhead import ada, training, video_files
from talkhead.distributed import Distributed
from talkhead.errors import TalkheadError
from talkhead.images import resize, sheet, to_images
from talkhead.latent_cache import LatentCache, list_clips
from talkhead.latents import Basis, random_latents, why_not_random
from talkhead.video_gan import ImageDiscriminator, _check_choice, motion

SPREADS = 3.0  # spreads of real motion at which a hidden output of one lies
PREVIOUS = 0.2  # spreads of W that MoCoGAN-HD's sampled faces move in a step, at most
QUEUE = 4096  # pictures that contrastive learning remembers as other ones
TEMPERATURE = 0.07  # of its comparisons
CHANGED = 0.5  # probability of each change between its two views of a picture
# MoCoGAN-HD's configuration, by the options of `train`, LatentGenerator and VideoDiscriminator.
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


def _log_generator(fake, real):
    return sum(F.softplus(-logits).mean() for logits in fake)


def _log_discriminator(fake, real):
    return sum(F.softplus(bad).mean() + F.softplus(-good).mean() for bad, good in zip(fake, real))


def _relativistic_generator(fake, real):
    return _relativistic_discriminator(real, fake)


def _relativistic_discriminator(fake, real):
    """Jolicoeur-Martineau 2018, with squared errors: real is to be one more than the mean of fake, and fake no more than that of real."""
    return sum(
        0.5 * ((good - bad.mean() - 1).square().mean() + (bad - good.mean()).square().mean())
        for bad, good in zip(fake, real)
    )


ADVERSARIAL = {
    "log": (_log_generator, _log_discriminator),
    "relativistic": (_relativistic_generator, _relativistic_discriminator),
}


def train(
    clips,
    generator,
    encoder,
    out,
    model,
    discriminator,
    *,
    steps,
    batch=8,
    frames=16,
    d_size: int | None = None,
    shallow=False,
    real="auto",
    start="encode",
    contrastive=False,
    image_discriminator=False,
    adversarial="log",
    information_weight=1.0,
    r1=1.0,
    r1_interval=4,
    interpolation=0.0,
    burn_in=64,
    generator_steps=1,
    lr=1e-4,
    d_lr: float | None = None,
    beta1=0.5,
    ema_decay=0.999,
    accumulate=1,
    precision="float32",
    seed=0,
    device="cpu",
    **run,
):
    """Train a motion model against a discriminator of videos, on talking clips; yield log records. The file's "model" is the running average.

    clips           clips of aligned faces, or folders of them; shorter ones than `frames` are left out
    generator       stylegan.Generator with `fingerprint`; frozen
    encoder         one of `encoders`; frozen. Its codes are computed once and kept beside `out`, in NAME.codes
    out             path of the .pt; resumed if it exists
    model           LatentGenerator; in a new run its basis is fitted to the codes of the clips
    discriminator          VideoDiscriminator
    steps           optimiser steps of `batch` windows of `frames` frames
    d_size     side of the frames that the discriminators see; None is the generator's
    shallow         draw fakes and projected video no finer than `d_size`, by the lower levels of the generator alone: faster, and
                    real and fake are drawn alike. Needs projected video
    real            what the discriminators take for real: "video", the clips themselves (eq. 3.7); "projected", what the generator draws
                    of their codes (eq. 3.10); "auto", video if the generator says that it has learnt from films, else projected
    start           "encode": a fake video starts from a frame of a clip; "sample": from a random face of the generator
    contrastive     let frames of a fake video look alike, as two views of one picture do and two pictures do not
    image_discriminator    let frames of a fake video look like its first, to a discriminator of pictures
    adversarial     "log", eqs 3.7 and 3.10; or "relativistic", MoCoGAN-HD's
    information_weight   of eq. 3.8
    r1, r1_interval    weight γ of the discriminator's gradient penalty on real video, and how often it is applied
    interpolation   weight of a gradient penalty between real and fake video, as in MoCoGAN-HD; 0 leaves it out
    burn_in         most frames that pass before the window that is judged, in every second step: so later ones are learned too
    generator_steps steps of the motion model for one of the discriminator
    lr, d_lr   Adam's rates; None is the same for the discriminator
    ema_decay       share that the running average of the weights keeps each step
    accumulate      turns in which a batch is worked on, to fit into memory: the result is the same
    precision       "float32", or "bfloat16" or "float16" for the pictures and discriminators under autocast
    run             how training.fit logs and saves; its `samples` are strips of a real clip, and of two faces moved by two noises
    yields          {"step", "seconds", "generator", "discriminator", "information", "real_logits", "fake_logits", …}, and running means of
                    "motion", "speed" and "variety": how much the latents change within a window, from frame to frame, and by other
                    noise, as parts of what they do in the clips
    raises          TalkheadError if clips or options cannot be used, as training.fit does, and when training has collapsed

    Source: thesis §3.4.3 and §3.4.6, eqs 3.7–3.10; §3.4.4 for Adam's rate. Window, batch and Adam's β1 are not told: they are MoCoGAN-HD's.
    Departure: the generator's term of eq. 3.7 is the usual one that does not saturate; R1, the warm-up, and averaged weights are ours.
    Relativistic losses compare with means over the part of a batch that a process works on in one turn.
    """
    generator, encoder = generator.to(device).eval().requires_grad_(False), encoder.to(device).eval()
    if not encoder.num_ws == generator.num_ws == model.num_ws:
        raise TalkheadError(
            f"layers: generator {generator.num_ws}, encoder {encoder.num_ws}, motion model {model.num_ws}; "
            "use networks that were made for each other"
        )
    _check_choice("real", real, ("auto", "video", "projected"))
    _check_choice("start", start, ("encode", "sample"))
    _check_choice("adversarial", adversarial, tuple(ADVERSARIAL))
    if real == "auto":
        real = "video" if getattr(generator, "learnt_from", None) == "film" else "projected"
    size = d_size or generator.resolution
    if size > generator.resolution:
        raise TalkheadError(
            f"d_size {size}: the generator draws {generator.resolution}x{generator.resolution}; pass no more"
        )
    if shallow and real == "video":
        raise TalkheadError(
            "shallow: only projected video is drawn as the fakes are; pass --real projected, or leave --shallow out"
        )
    drawing = generator.shallow(size) if shallow else generator
    why = why_not_random(generator) if start == "sample" else ""
    if why:
        warnings.warn(
            f"start sample: {why}; pass --start encode, or a generator that was trained on them", stacklevel=1
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
    with LatentCache(Path(out).with_suffix(".codes"), encoder, sound=False) as codes:
        lessons = []
        if not team.is_main:
            team.wait()  # for the leader to encode the clips: then they are there, if this process sees its disk
        for clip in paths:
            lessons.append(codes.encode(clip, device))
            if team.is_main and len(lessons) % run.get("log_every", 10) == 0:
                yield {"step": 0, "clips": len(lessons)}
        if team.is_main:
            team.wait()
        lessons = _long_enough(lessons, frames)
        if team.is_main and not Path(out).exists():
            _measure(model, codes, lessons, generator, start)
        trainer = _Trainer(
            model.to(device),
            discriminator.to(device),
            generator,
            drawing,
            codes,
            lessons,
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
                "training": settings | {"clips": len(lessons)},
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


def _long_enough(lessons, frames):
    """The clips that a window fits into; two at least, for one would be learned by heart."""
    if frames < 2:
        raise TalkheadError(f"frames {frames}: motion takes two at least")
    kept = [lesson for lesson in lessons if lesson.frames >= frames]
    short = len(lessons) - len(kept)
    if not kept:
        longest = max(lesson.frames for lesson in lessons)
        raise TalkheadError(
            f"{lessons[0].path}: the longest clip has {longest} frames, a window {frames}; pass longer clips, or lower --frames"
        )
    if len(kept) == 1:
        raise TalkheadError(
            f"{kept[0].path}: is the only clip of {frames} frames or more, which a discriminator would learn by heart; pass more clips"
        )
    if short:
        warnings.warn(
            f"{short} of {len(lessons)} clips are shorter than a window of {frames} frames, and left out", stacklevel=1
        )
    return kept


def _measure(model, codes, lessons, generator, start):
    """Fit the basis of a motion model, its axes and its reach."""
    components = model.config["components"]
    if start == "sample":  # of the faces that the generator knows, as MoCoGAN-HD does
        basis = Basis.fit(random_latents(generator, 1000, 20), components)
        layers = model.basis.num_ws  # which agree
        model.basis = Basis(
            basis.mean.repeat(layers), basis.components.repeat(1, layers) / layers**0.5, basis.stdev * layers**0.5
        )
        model.motion_scale = PREVIOUS * model.basis.stdev if model.displace == "previous" else model.basis.stdev.clone()
        return
    # Neighbouring frames are alike, and the decomposition's cost grows with the square of their number.
    every = max(1, sum(lesson.frames for lesson in lessons) // max(4 * components, 3000))
    read = (model._own(torch.from_numpy(codes.read(lesson)[0][::every])) for lesson in lessons)
    basis = Basis.fit(read, components)
    model.basis, products, count = basis, 0.0, 0
    for lesson in lessons:
        path = torch.from_numpy(codes.read(lesson)[0])
        moved = path.diff(dim=0) if model.displace == "previous" else path - path.mean(0)
        moved = model.project(moved).double()  # (T, K)
        products, count = products + moved.T @ moved, count + len(moved)
    variances, axes = (part.flip(-1) for part in torch.linalg.eigh(products / count))
    turn = (axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()).T  # rows, of fixed sign
    spread = (turn.square() @ basis.stdev.double().square()).sqrt()
    model.basis = Basis(basis.mean, turn.float() @ basis.components, spread)
    model.motion_scale = SPREADS * variances.clamp(min=1e-12).sqrt().float()


class _Trainer:
    """One optimiser step of the motion model, and one of its discriminators."""

    def __init__(self, model, discriminator, generator, drawing, codes, lessons, settings, d_lr, seed, team, out):
        self.model, self.discriminator, self.generator, self.drawing, self.codes, self.lessons = (
            model,
            discriminator,
            generator,
            drawing,
            codes,
            lessons,
        )
        self.settings, self.seed, self.team, self.device = settings, seed, team, team.device
        width = model.lstm.hidden_size
        self.ema = copy.deepcopy(model).requires_grad_(False)
        self.information = nn.Sequential(
            nn.Linear(width, model.noise), nn.ReLU(), nn.Linear(model.noise, model.noise)
        ).to(self.device)
        self.image = (
            ImageDiscriminator(settings["d_size"], discriminator.config["width"]).to(self.device)
            if self._sees_images()
            else None
        )
        self.discriminators = nn.ModuleList([discriminator] if self.image is None else [discriminator, self.image])
        betas = settings["beta1"], 0.999
        self.g_adam = torch.optim.Adam(
            [*model.parameters(), *self.information.parameters()], lr=settings["lr"], betas=betas
        )
        self.d_adam = torch.optim.Adam(self.discriminators.parameters(), lr=d_lr, betas=betas)
        self.watch, self.others = (
            _CollapseMonitor(team, out),
            _NegativeQueue(team, settings["batch"]) if settings["contrastive"] else None,
        )
        self.state = {
            "model": self.ema,
            "live": model,
            "information": self.information,
            "discriminators": self.discriminators,
            "generator_optimizer": self.g_adam,
            "discriminator_optimizer": self.d_adam,
            "watch": self.watch,
        }
        if self.others is not None:
            self.state["others"] = self.others
        lengths = np.array([lesson.frames for lesson in lessons])
        self.chances = lengths / lengths.sum()
        self.feed = training.Prefetcher(self._batch)
        self.losses = ADVERSARIAL[settings["adversarial"]]

    def _sees_images(self):
        return self.settings["contrastive"] or self.settings["image_discriminator"]

    def _batch(self, index):
        """For each turn: identities (b, L, 512), windows of codes (b, T, L, 512), and of real video the identities' frames and the windows'."""
        rng = np.random.default_rng([self.seed, index])
        picks = rng.choice(len(self.lessons), self.settings["batch"], p=self.chances)
        examples = [(self.lessons[pick], np.random.default_rng([self.seed, index, k])) for k, pick in enumerate(picks)]
        return [
            [torch.from_numpy(np.stack(part)) for part in zip(*(self._window(*example) for example in share(examples)))]
            for share in self.team.shares
        ]

    def _window(self, lesson, rng):
        path, _ = self.codes.read(lesson)
        first, who = rng.integers(lesson.frames - self.settings["frames"] + 1), rng.integers(lesson.frames)
        last = first + self.settings["frames"]
        window = path[who], path[first:last]
        if self.settings["real"] == "projected":
            return window
        with video_files.read_frames(lesson.path, limit=int(max(last, who + 1))) as reader:
            film = np.stack([resize(frame, self.settings["d_size"]) for frame in reader])
        return *window, film[who], film[first:last]

    def step(self, index):
        turns = [[part.to(self.device) for part in turn] for turn in self.feed(index)]
        self.real = [self._real(*turn) for turn in turns]  # identities' pictures and videos
        self.discriminators.requires_grad_(False)
        for _ in range(self.settings["generator_steps"]):
            self.fakes = []
            record = self.team.optimizer_step(
                lambda share: self._generator_loss(share, *turns[share.turn][:2]), self.g_adam
            )
        self.discriminators.requires_grad_(True)
        record |= self.team.optimizer_step(self._discriminator_loss, self.d_adam)
        if self.settings["r1"] and index % self.settings["r1_interval"] == 0:
            record |= self.team.optimizer_step(self._r1_loss, self.d_adam, scaled=False)
        if self.others is not None:
            self.others.remember()
        self._update_ema(min(self.settings["ema_decay"], (1 + index) / (10 + index)))
        return record | self.watch(record)

    def _update_ema(self, keep):
        with torch.no_grad():
            for slow, fast in zip(self.ema.parameters(), self.model.parameters()):
                slow.lerp_(fast, 1 - keep)

    def _real(self, identity, window, face=None, film=None):
        """What is taken for real, small enough for the discriminators: a picture of each identity (b, 3, S, S), and a video (b, T, 3, S, S)."""
        if film is not None:
            return to_images(face), to_images(film.flatten(0, 1)).unflatten(0, film.shape[:2])
        with torch.no_grad():
            drawn = self._draw(torch.cat([identity[:, None], window], 1))
        return drawn[:, 0], drawn[:, 1:]

    def _draw(self, latents):
        """Pictures of latents (b, T, L, 512) at the discriminators' size: (b, T, 3, S, S)."""
        with self.team.autocast():
            images = self.drawing.synthesis(latents.flatten(0, 1), noise="const").float()
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
                face = self._draw(identity[:, None])[:, 0]
        noise, moved, hidden = self._move(share, identity)
        fake = self._draw(identity[:, None] + self.model.expand(moved))
        with self.team.autocast():
            judged = self.discriminator(fake, face)
            opposite = (
                self.discriminator(video, self.real[share.turn][0])
                if settings["adversarial"] == "relativistic"
                else None
            )
            realism = self.losses[0](judged, opposite)
        told = F.cosine_similarity(self.information(hidden), noise, dim=-1).mean()  # eq. 3.8
        loss = realism - settings["information_weight"] * told
        record = {"generator": realism.detach(), "information": told.detach()}
        if self.image is not None:
            loss = loss + self._looks(share, face, fake, record)
        self.fakes.append((face, fake.detach()))
        with torch.no_grad():
            _, other, _ = self._move(share, identity)
        return loss, record | _statistics(moved.detach(), other, true)

    def _move(self, share, identity):
        """Noise (b, T, noise), and what the model makes of it: coordinates and hidden outputs."""
        settings, state = self.settings, None
        early = int(torch.randint(settings["burn_in"] + 1, ())) * int(torch.randint(2, ()))
        noise = share.randn(settings["batch"], early + settings["frames"], self.model.noise).to(self.device)
        if early:
            with torch.no_grad():
                _, _, state = self.model.coordinates(noise[:, :early], identity)
        moved, hidden, _ = self.model.coordinates(noise[:, early:], identity, state)
        return noise[:, early:], moved, hidden

    def _looks(self, share, face, fake, record):
        """MoCoGAN-HD's losses on pictures: a frame is to look like the first one, and to be told to show the same."""
        views = [self._view(share, picture) for picture in (face, self._some_frame(fake))]
        with self.team.autocast():
            (_, first), (logit, later) = map(self.image, views)
        loss = 0.0
        if self.settings["image_discriminator"]:
            loss = -logit.float().mean()
            record["image_generator"] = loss.detach()
        if self.settings["contrastive"]:
            alike = (first * later).sum(1).float().mean()
            loss, record["alike"] = loss - alike, alike.detach()
        return loss

    def _some_frame(self, video):
        return video[:, int(torch.randint(video.shape[1], ()))]

    def _view(self, share, images):
        return ada.augment(images, ada.sample_params(self.settings["batch"], CHANGED, share))

    def _discriminator_loss(self, share):
        (face, video), (start, fake) = self.real[share.turn], self.fakes[share.turn]
        with self.team.autocast():
            bad, good = self.discriminator(fake, start), self.discriminator(video, face)
            loss = self.losses[1](bad, good)
        record = {
            "discriminator": loss.detach(),
            "real_logits": _mean(good).detach(),
            "fake_logits": _mean(bad).detach(),
        }
        if self.settings["interpolation"]:
            loss = loss + self.settings["interpolation"] * self._interpolation_penalty(
                share, (face, video), (start, fake)
            )
        if self.image is not None:
            loss = loss + self._image_loss(share, start, fake, record)
        return loss, record

    def _image_loss(self, share, face, fake, record):
        frame = self._some_frame(fake)
        seen = []
        for picture in (face, frame):
            with self.team.autocast():
                seen.append([self.image(self._view(share, picture)) for _ in range(2)])
        (good, _), (bad, _) = seen[0][0], seen[1][0]
        loss = 0.0
        if self.settings["image_discriminator"]:
            loss = F.relu(1 - good.float()).mean() + F.relu(1 + bad.float()).mean()
            record["image_discriminator"] = loss.detach()
        if self.settings["contrastive"]:
            contrast = sum(
                self.others.contrast(kind, one[1].float(), other[1].float()) for kind, (one, other) in enumerate(seen)
            )
            self.others.note(share, torch.stack([views[0][1].detach().float() for views in seen], 1))
            loss, record["contrast"] = loss + 2 * contrast, contrast.detach()
        return loss

    def _interpolation_penalty(self, share, real, fake):
        """How far the discriminator's slope is from one between real and fake (Gulrajani et al. 2017), over colours as MoCoGAN-HD has it."""
        part = share(torch.rand(self.settings["batch"], 1, 1, 1, 1)).to(self.device)
        video = torch.lerp(fake[1], real[1], part).requires_grad_(True)
        logits = self.discriminator(video, torch.lerp(fake[0], real[0], part[:, 0]))
        slopes = [torch.autograd.grad(scale.sum(), video, create_graph=True)[0] for scale in logits]
        return sum((slope.norm(dim=2) - 1).square().mean() for slope in slopes) / len(slopes)

    def _r1_loss(self, share):
        face, video = self.real[share.turn]
        video = video.detach().requires_grad_(True)
        logits = sum(scale.flatten(1).mean(1).sum() for scale in self.discriminator(video, face))
        (slope,) = torch.autograd.grad(logits, video, create_graph=True)
        penalty = slope.square().flatten(1).sum(1).mean()
        return penalty * self.settings["r1"] / 2 * self.settings["r1_interval"], {"r1": penalty.detach()}

    @torch.no_grad()
    def draw(self):
        """Eight moments of 1.3 seconds each: a clip as the generator draws it, its face moved by two noises, and another face by the same."""
        rows, times = [], range(0, 32, 4)
        for lesson in (self.lessons[0], self.lessons[-1]):
            path = self.codes.read(lesson)[0]
            moved = [np.stack(list(motion(self.ema, path[0], seed, 32)))[::4] for seed in (1, 2)]
            strips = [path[[min(time, len(path) - 1) for time in times]], *(path[0] + away for away in moved)]
            rows += [self.generator.synthesis(torch.from_numpy(strip).to(self.device)) for strip in strips]
        return sheet(*rows)


def _mean(logits):
    return sum(scale.float().mean() for scale in logits) / len(logits)


def _statistics(moved, other, true):
    """How much coordinates (b, T, K) change within a window, from frame to frame, and by other noise or in another moment: made, and real."""
    return {
        "motion": _change(moved),
        "speed": moved.diff(dim=1).square().sum(-1).mean(),
        "variety": (moved - other).square().sum(-1).mean() / 2,
        "real_motion": _change(true),
        "real_speed": true.diff(dim=1).square().sum(-1).mean(),
        "real_variety": true.square().sum(-1).mean() / 2,
    }


def _change(coordinates):
    return coordinates.var(1, unbiased=False).sum(-1).mean()


class _CollapseMonitor:
    """Running means of how motion compares with the clips' and of the discriminator's loss, and when to give up: state of the run.

    Collapse is the known failure of such training: the face stands still, moves the same whatever the noise, or the discriminator tells real from
    fake so surely that nothing can be learned from it.
    """

    NAMES = ("motion", "speed", "variety", "real_motion", "real_speed", "real_variety", "discriminator")
    AFTER = 100  # steps that are never a collapse
    STILL, ALIKE, SURE = 0.05, 0.01, 0.01

    def __init__(self, team, out):
        self.team, self.out, self.count, self.means = team, out, 0, [0.0] * len(self.NAMES)

    def __call__(self, record):
        """The running figures of a step's record, which take the place of its own. TalkheadError if they show a collapse."""
        seen = self.team.mean(torch.stack([torch.as_tensor(record[name]).float() for name in self.NAMES])).tolist()
        self.count += 1
        rate = max(1 / self.count, 0.02)
        self.means = [mean + rate * (value - mean) for mean, value in zip(self.means, seen)]
        mean = dict(zip(self.NAMES, self.means))
        told = {name: mean[name] / max(mean[f"real_{name}"], 1e-12) for name in ("motion", "speed", "variety")}
        for name in ("real_motion", "real_speed", "real_variety"):
            del record[name]
        if self.count > self.AFTER:
            self._judge(told["motion"], told["variety"], mean["discriminator"])
        return told

    def _judge(self, motion, variety, loss):
        advice = f"{self.out}, if it is there, holds the last checkpoint; start anew with another --output and "
        if motion < self.STILL:
            raise TalkheadError(
                f"training has collapsed: faces move {motion:.3f} of what they do in the clips; {advice}a lower --d-lr or more --r1"
            )
        if variety < self.ALIKE:
            raise TalkheadError(
                f"training has collapsed: all noise makes the same motion; {advice}more --information-weight"
            )
        if 0 <= loss < self.SURE:
            raise TalkheadError(
                f"training has collapsed: the discriminator is never wrong (loss {loss:.4f}); {advice}a lower --d-lr or more --r1"
            )

    def state_dict(self):
        return {"count": self.count, "means": list(self.means)}

    def load_state_dict(self, state):
        self.count, self.means = state["count"], list(state["means"])


class _NegativeQueue:
    """What contrastive learning takes for other pictures: features of earlier first frames and of later ones. State of the run.

    Departure from MoCoGAN-HD: only earlier steps' pictures, not the others of a batch, so that a batch can be worked on in parts; and
    as the discriminator sees them, without a slow copy of it.
    """

    def __init__(self, team, batch, width=256):
        random = torch.Generator().manual_seed(0)
        self.team, self.place = team, 0
        self.queue = F.normalize(torch.randn(QUEUE, 2, width, generator=random), dim=-1).to(team.device)
        self.noted = torch.zeros(batch, 2, width, device=team.device)

    def contrast(self, kind, one, other):
        """Two views (b, F) of the same pictures are to be more alike than either is to the others."""
        loss = 0.0
        for view, positive in ((one, other), (other, one)):
            logits = torch.cat([(view * positive).sum(1, keepdim=True), view @ self.queue[:, kind].T], 1) / TEMPERATURE
            loss = loss + F.cross_entropy(logits, torch.zeros(len(view), dtype=torch.long, device=view.device)) / 2
        return loss

    def note(self, share, features):
        self.noted[share.first :: share.of] = features

    def remember(self):
        """Put what all processes noted in a step into the queue, over the oldest."""
        features = self.team.mean(self.noted) * self.team.size
        where = (self.place + torch.arange(len(features))) % QUEUE
        self.queue[where.to(self.queue.device)] = features
        self.place = (self.place + len(features)) % QUEUE
        self.noted.zero_()

    def state_dict(self):
        return {"queue": self.queue.clone(), "place": self.place}

    def load_state_dict(self, state):
        self.queue.copy_(state["queue"])
        self.place = state["place"]
