"""Training of StyleGAN2, with ADA, FID, and optionally an encoder trained along by reconstruction."""

import copy
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from talkhead import ada, fid
from talkhead.distributed import Distributed
from talkhead.errors import TalkheadError
from talkhead.images import sheet, to_frames
from talkhead.latents import z_stream
from talkhead.stylegan import Discriminator, Generator
from talkhead.training import Prefetcher, fit, update_ema

if TYPE_CHECKING:
    from talkhead.datasets import Images

# Left, right, top and bottom of the box around the mouth in an FFHQ crop, as fractions of its side.
MOUTH = (0.3125, 0.6875, 0.5625, 0.8125)


class _EMA:
    """Exponential moving average of a generator's weights."""

    def __init__(self, generator, half_life):
        self.copy = copy.deepcopy(generator).eval().requires_grad_(False)
        self.half_life = half_life

    @torch.no_grad()
    def update(self, generator, batch, images):
        # A short half-life at first: an average over thousands of early images would lag far behind.
        half_life = min(self.half_life, 0.05 * max(images, 1))
        update_ema(self.copy, generator, 0.5 ** (batch / max(half_life, 1e-8)))
        for average, buffer in zip(self.copy.buffers(), generator.buffers()):
            average.copy_(buffer)


def train(
    images: "Images",
    out: str | os.PathLike,
    generator: Generator,
    discriminator: Discriminator,
    *,
    steps: int,
    batch: int = 16,
    lr: float = 0.002,
    beta1: float = 0.0,
    r1: float = 10.0,
    r1_interval: int = 16,
    pl_weight: float = 2.0,
    pl_interval: int = 4,
    style_mixing: float = 0.9,
    ema_half_life: int = 10_000,
    flip: bool = False,
    freeze_d: int = 0,
    encoder: nn.Module | None = None,
    encoder_lr: float = 0.001,
    reconstruction: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    reconstruction_weight: float = 10.0,
    mouth_weight: float = 0.0,
    lips: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    lip_weight: float = 0.0,
    w_weight: float = 0.0,
    feature_weight: float = 1.0,
    sample_share: float = 0.5,
    augment: str = "none",
    augment_p: float = 0.0,
    ada_target: float = 0.6,
    ada_images: int = 500_000,
    jitter: float = 0.0,
    lr_decay: float = 0.0,
    fid_every: int = 0,
    fid_images: int = 10_000,
    fid_features: str | fid.FeatureNetwork = "inception",
    reconstruct_only: int = 0,
    accumulate: int = 1,
    precision: str = "float32",
    lineage: Iterable[str] = (),
    seed: int = 0,
    device: str | torch.device = "cpu",
    **run: Any,
) -> Iterator[dict]:
    """Train a generator against a discriminator; yield log records.

    images            datasets.Images
    out               path of the .pt, resumed if it exists; its "model" is the EMA of the generator
    generator, discriminator   networks of one resolution; training starts from their weights
    beta1             Adam's β1; StyleGAN2's is 0, and reconstruction alone converges faster with 0.9
    r1, r1_interval   weight γ of the R1 penalty, and the steps between two applications (lazy regularisation)
    pl_weight, pl_interval   weight of path-length regularisation, 0 to leave it out, and the steps between applications
    style_mixing      probability that an image takes its later layers from a second z
    ema_half_life     half-life of the EMA, in images
    freeze_d          frozen levels of the discriminator, highest resolution first (Mo et al. 2020): for fine-tuning
                      weights of a large set on a small one
    augment           augmentation of all discriminator inputs, against overfitting: "none", "ada" or "fixed"
    augment_p         probability of each augmentation, 0 to 1, if fixed; with ada, that of the first step
    ada_target        ADA's target for E[sign(D(real))]
    ada_images        images in which ADA can move the probability from 0 to 1
    jitter            probability of a slight shift and recolouring of each training image, for all losses (ada.jitter)
    lr_decay          share of the steps, at the end, over which all learning rates decay to zero along a cosine, so
                      that generator and encoder converge together; the EMA is of the generator alone
    encoder           network images -> w_plus; if given, it is trained with the generator to reconstruct the images,
                      and reconstructions are fakes for the discriminator too
    sample_share      share of samples from z in a batch of fakes, if there is an encoder; the rest are reconstructions
    reconstruction    distance of two image batches -> (N,); needed with an encoder
    encoder_lr        learning rate of the encoder; 0 freezes it, so that latents keep their meaning
    mouth_weight      weight of the reconstruction distance of the box around the mouth of aligned faces
    lips, lip_weight  distance of the lips of two image batches -> (N,), such as losses.LipDistance, and its weight
    w_weight          weight of the reconstruction distance of a quarter of the images, drawn from the mean of their
                      latents over the layers: it keeps the layers' latents alike, so that W draws faces too
    feature_weight    weight of the distance between discriminator activations of image and reconstruction
    reconstruct_only  number of first steps with reconstruction alone, without the discriminator
    fid_every         steps between measurements of FID and KID against the images, also done at the end; 0 for none.
                      The file's "model" is then the EMA of the best FID, or if an encoder is trained along, which fits
                      only the latest generator, the last EMA
    fid_images        fakes of each measurement, from fixed z; compared with as many images, or all. FID is biased
                      upwards for few images: only numbers of equally many images may be compared
    fid_features      "inception" or "mobilenet", with the weights in torch's hub cache, or a feature network of fid.py
    accumulate        micro-batches per step and process, to save memory: the result is the same
    precision         "float32", or "bfloat16" or "float16" for forward and backward passes under autocast; R1 and path
                      length are always float32
    lineage           fingerprints of the generators whose encoders and speech models fit this one too
    run               logging and saving options of training.fit; its `samples` are faces of fixed z, and with an
                      encoder images above their reconstructions
    yields            {"step", "seconds", "images", losses…}, and where measured "fid", "kid" and "fid_features", the
                      network's name
    raises            TalkheadError as training.fit does, and at once if Inception's weights are missing

    Source: thesis §3.3.1.2, §4.2.2.1; Karras et al. 2020 for the losses.
    Departure: the encoder, its reconstruction loss and the discriminator's feature distance (Larsen et al. 2016) are
    ours: they train a generator on few images within hours on a CPU, and are off unless an encoder is given. Path
    lengths are compared with their mean before the step, not after it, so that micro-batches are independent. The
    reconstruction loss takes images without augmentation; the feature distance augments both sides alike.
    """
    team = Distributed(batch, accumulate, precision, device, whole=4)
    trainer = _Trainer(
        images, generator.to(device), discriminator.to(device), encoder and encoder.to(device), team, locals()
    )
    state = {
        "model": trainer.ema.copy,
        "generator": generator,
        "discriminator": discriminator,
        "generator_optimizer": trainer.g_optimizer,
        "discriminator_optimizer": trainer.d_optimizer,
        "scalars": trainer.scalars,
    }
    if encoder is not None:
        state |= {"encoder": encoder, "encoder_optimizer": trainer.e_optimizer}
    header = {
        "kind": "generator",
        "config": generator.config | ({"lineage": sorted(lineage)} if lineage else {}),
        "perceptual": getattr(reconstruction, "name", None),
        "learnt_from": _kind(images),
    }
    checks: dict[str, Any] = {}
    if fid_every:
        fid = _Fid(images, trainer.ema.copy, fid_images, fid_features, seed, device)
        header |= {"fid_images": fid_images, "fid_features": fid.network.name}
        checks = {
            "validate": fid,
            "validate_every": fid_every,
            "keep_best": "fid" if encoder is None or encoder_lr == 0 else None,
        }
    yield from fit(
        trainer.step,
        state,
        steps=steps,
        out=out,
        header=header,
        team=team,
        seed=seed,
        feed=trainer.feed,
        draw=trainer.draw,
        **checks,
        **run,
    )


def _kind(images):
    """Kind of all images, "film", "still" or "moments"; None if they are mixed or unknown."""
    kinds = {origin.kind for origin in getattr(images, "origins", ())}
    return kinds.pop() if len(kinds) == 1 else None


class _Fid:
    """FID and KID between the images of a generator and training images, both as uint8."""

    def __init__(self, images, generator, count, network, seed, device):
        self.network = fid.named(network, device)
        # A copy, because Images caches one order at a time and the Prefetcher's thread uses another.
        self.images, self.generator, self.count = copy.copy(images), generator, count
        self.seed, self.device = seed, device
        self.real = None  # features of the training images
        if min(count, len(images)) < 2:
            raise TalkheadError(
                f"FID of {min(count, len(images))} images: needs two or more; pass more, or leave fid_every out"
            )
        fid.warn_of_few(min(count, len(images)), self.network)

    def __call__(self):
        if self.real is None:
            batches = (self.images.batch(index, fid.TOGETHER, self.seed) for index in itertools.count())
            self.real = self._features(batches, min(self.count, len(self.images)))
        return fid.compare_features(self.real, self._features(self._fakes(), self.count), self.network)

    def _features(self, batches, count):
        features = fid.FeatureAccumulator(self.network)
        for batch in itertools.islice(batches, math.ceil(count / fid.TOGETHER)):
            features.look(to_frames(batch))
        return features.features()[:count]

    @torch.no_grad()
    def _fakes(self):
        random, count = z_stream(self.seed), fid.TOGETHER
        while True:
            z = torch.randn(count, self.generator.z_dim, generator=random).to(self.device)
            yield self.generator(
                z, noise=lambda side: torch.randn(count, 1, side, side, generator=random).to(self.device)
            )


class _Scalars:
    """Running numbers that are saved in the checkpoint."""

    def __init__(self, **values):
        self.values = values

    def state_dict(self):
        return dict(self.values)

    def load_state_dict(self, values):
        self.values |= values  # values missing in a file of an older version keep their initial value


class _Trainer:
    """Optimiser steps in StyleGAN2's order: generator, its regulariser, discriminator, its regulariser."""

    def __init__(self, images, generator, discriminator, encoder, team, options):
        self.generator, self.discriminator, self.encoder, self.team = generator, discriminator, encoder, team
        self.options = {
            key: options[key]
            for key in options
            if key not in ("images", "generator", "discriminator", "encoder", "team")
        }
        if encoder is not None and options["reconstruction"] is None:
            raise TalkheadError("encoder: needs a reconstruction loss; pass reconstruction")
        if generator.resolution != discriminator.config["resolution"]:
            raise TalkheadError(
                f"resolution: generator {generator.resolution}², discriminator {discriminator.config['resolution']}²; "
                "use the same for both"
            )
        ada.check(options["augment"], options["augment_p"], options["jitter"])
        self.device = team.device
        self.ema = _EMA(generator, options["ema_half_life"])
        self.g_optimizer = _lazy_adam(generator, options, options["pl_interval"] if options["pl_weight"] else 0)
        self.d_optimizer = _lazy_adam(discriminator, options, options["r1_interval"])
        self.d_trained = _unfrozen(discriminator, options["freeze_d"])
        self.g_optimizers = [self.g_optimizer]
        self.rates = [
            (self.g_optimizer, self.g_optimizer.param_groups[0]["lr"]),
            (self.d_optimizer, self.d_optimizer.param_groups[0]["lr"]),
        ]
        self.samples = team.batch  # fakes from z; with an encoder the rest are reconstructions
        if encoder is not None:
            self._add_encoder(encoder)
        adaptive = (
            {"augment": float(options["augment_p"]), "signs": 0, "judged": 0} if options["augment"] == "ada" else {}
        )
        self.scalars = _Scalars(pl_mean=0.0, **adaptive)
        self.feed = Prefetcher(
            lambda index: [
                images.batch(index, team.batch, options["seed"], options["flip"], share) for share in team.shares
            ]
        )
        self.sheet_images = images.batch(0, 8, options["seed"]) if encoder is not None else None

    def _add_encoder(self, encoder):
        rate, parts = self.options["encoder_lr"], self.team.shares[0].of
        self.e_optimizer = torch.optim.Adam(encoder.parameters(), lr=rate)
        if rate > 0:
            self.g_optimizers.append(self.e_optimizer)
            self.rates.append((self.e_optimizer, rate))
        encoder.requires_grad_(rate > 0).train(rate > 0)
        self.team.convert_sync_batchnorm(encoder)
        self.samples = round(self.team.batch * self.options["sample_share"])
        if self.samples % parts:
            raise TalkheadError(
                f"sample_share: {self.samples} of {self.team.batch} images do not divide into {parts} micro-batches; "
                "pass a share that gives a multiple"
            )

    def _latents(self, count, share):
        """Latents (count, L, w_dim) of random z, some with style mixing."""
        generator = self.generator
        z = torch.cat([share.randn(count, generator.z_dim), share.randn(count, generator.z_dim)]).to(self.device)
        first, second = generator.mapping(z).chunk(2)
        self.w_means.append(first[:, 0].detach().float().mean(0))
        cut = torch.randint(1, generator.num_ws, (count,))
        cut[torch.rand(count) >= self.options["style_mixing"]] = generator.num_ws
        early = (torch.arange(generator.num_ws) < share(cut)[:, None]).to(self.device)
        return torch.where(early[..., None], first, second)

    def _synthesize(self, w_plus, count, share):
        """Images of latents, each with its own random noise."""
        return self.generator.synthesis(w_plus, lambda side: share.randn(count, 1, side, side, device=self.device))

    def step(self, index):
        options, optimizer_step = self.options, self.team.optimizer_step
        real = self._jittered([batch.to(self.device) for batch in self.feed(index)])
        self._set_rates(index)
        adversarial = self.encoder is None or index >= options["reconstruct_only"]
        record, fakes = {"images": (index + 1) * options["batch"]}, []
        self.w_means = []  # per micro-batch, for w_avg
        self._set_requires_grad(False)
        record |= optimizer_step(
            lambda share: self._generator_loss(share, real[share.turn], adversarial, fakes), *self.g_optimizers
        )
        self._set_requires_grad(True)
        if adversarial:
            if options["pl_weight"] and index % options["pl_interval"] == 0:
                record |= optimizer_step(self._path_loss, self.g_optimizer, scaled=False)
                self._update_pl_mean(record["path_length"])
            record |= optimizer_step(
                lambda share: self._discriminator_loss(share, real[share.turn], fakes[share.turn]), self.d_optimizer
            )
            if index % options["r1_interval"] == 0:
                record |= optimizer_step(
                    lambda share: self._r1_loss(share, real[share.turn]), self.d_optimizer, scaled=False
                )
            if options["augment"] != "none":
                record["augment"] = self._augment_p()
            if options["augment"] == "ada":
                self._update_augment_p(record["real_signs"])
        if self.w_means:
            self.generator.w_avg.lerp_(self.team.mean(torch.stack(self.w_means).mean(0)), 0.002)
        self.ema.update(self.generator, options["batch"], record["images"])
        return record

    def _jittered(self, micro_batches):
        if not self.options["jitter"]:
            return micro_batches
        seed, jittered = torch.randint(2**62, ()).item(), []
        for images, share in zip(micro_batches, self.team.shares):
            torch.manual_seed(seed)  # every micro-batch draws for the whole batch
            jittered.append(ada.jitter(images, self.options["jitter"], share))
        return jittered

    def _set_rates(self, index):
        if self.options["lr_decay"]:
            left = min((self.options["steps"] - index) / (self.options["lr_decay"] * self.options["steps"]), 1.0)
            for optimizer, rate in self.rates:
                optimizer.param_groups[0]["lr"] = rate * (0.5 - 0.5 * math.cos(math.pi * left))

    def _set_requires_grad(self, trained):
        """Switch gradients of the discriminator's parameters that are not frozen."""
        self.discriminator.requires_grad_(False)
        for parameter in self.d_trained:
            parameter.requires_grad_(trained)

    def _augment_p(self):
        return self.scalars.values["augment"] if self.options["augment"] == "ada" else float(self.options["augment_p"])

    def _sample_params(self, share):
        """Augmentation parameters of a micro-batch of discriminator inputs; None without augmentation."""
        return (
            None
            if self.options["augment"] == "none"
            else ada.sample_params(self.options["batch"], self._augment_p(), share)
        )

    def _update_augment_p(self, signs):
        """Add a step's mean sign of D(real); every `ada.INTERVAL` steps, update ADA's probability."""
        values, batch = self.scalars.values, self.options["batch"]
        # A sum of signs is a whole number; rounding makes it independent of the micro-batches.
        values["signs"] += round(self.team.mean(signs).item() * batch)
        values["judged"] += 1
        if values["judged"] == ada.INTERVAL:
            values["augment"] = ada.update_p(
                values["augment"],
                values["signs"] / (ada.INTERVAL * batch),
                batch,
                self.options["ada_target"],
                self.options["ada_images"],
            )
            values["signs"] = values["judged"] = 0

    def _generator_loss(self, share, real, adversarial, fakes):
        options, parts, loss, record = self.options, [], 0.0, {}
        batch, samples = options["batch"], self.samples
        with self.team.autocast():
            if adversarial and samples:
                parts.append(self._synthesize(self._latents(samples, share), samples, share))
            if self.encoder is not None:
                codes = self.encoder(real)
                rebuilt = self._synthesize(codes, batch, share)
                loss = loss + self._reconstruction(rebuilt.float(), real, record)
                if options["w_weight"]:
                    loss = loss + options["w_weight"] * self._w_reconstruction(codes, real, share, record)
                parts.append(rebuilt[: (batch - samples) // share.of])
            fake = torch.cat(parts)
            if adversarial:
                params = self._sample_params(share)
                logits, activations = self.discriminator(_augmented(fake, params), features=True)
                realism = F.softplus(-logits).mean()
                loss = loss + realism
                record["generator"] = realism.detach()
                if self.encoder is not None and options["feature_weight"]:
                    loss = loss + options["feature_weight"] * self._feature_distance(
                        activations, real, params, samples // share.of
                    )
        fakes.append(fake.detach().float())
        return loss, record

    def _reconstruction(self, rebuilt, real, record):
        options = self.options
        distance = options["reconstruction"](rebuilt, real).mean()
        record["reconstruction"] = distance.detach()
        loss = options["reconstruction_weight"] * distance
        if options["mouth_weight"]:
            left, right, top, bottom = (round(edge * self.generator.resolution) for edge in MOUTH)
            mouth = options["reconstruction"](
                rebuilt[..., top:bottom, left:right], real[..., top:bottom, left:right]
            ).mean()
            record["mouth"] = mouth.detach()
            loss = loss + options["mouth_weight"] * mouth
        if options["lip_weight"]:
            lips = options["lips"](rebuilt, real).mean()
            record["lips"] = lips.detach()
            loss = loss + options["lip_weight"] * lips
        return loss

    def _w_reconstruction(self, codes, real, share, record):
        """Reconstruction distance of images of w, the mean of W+ over its layers."""
        few = max(1, len(real) // 4)
        w = codes[:few].mean(1, keepdim=True).expand(-1, self.generator.num_ws, -1)
        images = self._synthesize(w, max(1, self.options["batch"] // 4), share)
        distance = self.options["reconstruction"](images.float(), real[:few]).mean()
        record["w_reconstruction"] = distance.detach()
        return distance

    def _feature_distance(self, activations, real, params, samples):
        """L1 distance between discriminator activations of images and reconstructions, which follow `samples` fakes."""
        rebuilt = len(real) - samples
        params = params and {name: values[samples:] for name, values in params.items()}
        with torch.no_grad():
            _, targets = self.discriminator(_augmented(real[:rebuilt], params), features=True)
        distances = (F.l1_loss(x[samples:].float(), y.float()) for x, y in zip(activations, targets))
        return sum(distances) / len(targets)

    def _path_loss(self, share):
        options, count = self.options, max(1, self.options["batch"] // 2)
        w_plus = self._latents(count, share)
        images = self._synthesize(w_plus, count, share)
        weights = share.randn(count, *images.shape[1:], device=self.device) / self.generator.resolution
        (grad,) = torch.autograd.grad((images * weights).sum(), w_plus, create_graph=True)
        lengths = grad.square().sum(2).mean(1).sqrt()
        loss = (
            (lengths - self.scalars.values["pl_mean"]).square().mean() * options["pl_weight"] * options["pl_interval"]
        )
        return loss, {"path_length": lengths.detach().mean()}

    def _update_pl_mean(self, length):
        before = self.scalars.values["pl_mean"]
        self.scalars.values["pl_mean"] = before + 0.01 * (self.team.mean(length).item() - before)

    def _discriminator_loss(self, share, real, fake):
        with self.team.autocast():
            fake_logits = self.discriminator(_augmented(fake, self._sample_params(share)))
            real_logits = self.discriminator(_augmented(real, self._sample_params(share)))
            loss = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
        logits = {"real_logits": real_logits.detach().mean(), "fake_logits": fake_logits.detach().mean()}
        return loss, {"discriminator": loss.detach()} | logits | {"real_signs": real_logits.detach().sign().mean()}

    def _r1_loss(self, share, real):
        real = real.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(
            self.discriminator(_augmented(real, self._sample_params(share))).sum(), real, create_graph=True
        )
        penalty = grad.square().sum((1, 2, 3)).mean()
        return penalty * self.options["r1"] / 2 * self.options["r1_interval"], {"r1": penalty.detach()}

    @torch.no_grad()
    def draw(self):
        """Sample sheet of the EMA: three rows from z, and with an encoder images above their reconstructions."""
        ema, random = self.ema.copy, z_stream(self.options["seed"])
        rows = [ema(torch.randn(8, ema.z_dim, generator=random).to(self.device)) for _ in range(3)]
        if self.encoder is not None:
            training = self.encoder.training
            rows += [self.sheet_images, ema.synthesis(self.encoder.eval()(self.sheet_images.to(self.device)))]
            self.encoder.train(training)
        return sheet(*rows)


def _augmented(images, params):
    return images if params is None else ada.augment(images, params)


def _unfrozen(discriminator, frozen):
    """Parameters of the discriminator without its first `frozen` levels; the first level includes from_rgb."""
    levels = [
        [discriminator.from_rgb, discriminator.from_rgb_bias],
        *(list(block.parameters()) for block in discriminator.blocks),
    ]
    if frozen > len(discriminator.blocks):
        raise TalkheadError(
            f"freeze_d {frozen}: this discriminator has {len(discriminator.blocks)} levels; pass at most that"
        )
    excluded = {id(parameter) for level in levels[: frozen + 1] for parameter in level} if frozen else set()
    return [parameter for parameter in discriminator.parameters() if id(parameter) not in excluded]


def _lazy_adam(network, options, interval):
    """Adam with StyleGAN2's correction for a regulariser applied every `interval` steps (0: none)."""
    ratio = interval / (interval + 1) if interval else 1.0
    return torch.optim.Adam(
        network.parameters(), lr=options["lr"] * ratio, betas=(options["beta1"] ** ratio, 0.99**ratio), fused=True
    )
