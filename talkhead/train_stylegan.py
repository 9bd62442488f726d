"""Training of StyleGAN2, with ADA, FID, and an encoder beside it by reconstruction."""

import copy
import itertools
import math

import torch
import torch.nn.functional as F

from talkhead import ada, fid
from talkhead.distributed import Distributed
from talkhead.errors import TalkheadError
from talkhead.images import sheet, to_frames
from talkhead.latents import z_stream
from talkhead.training import Prefetcher, fit

MOUTH = (
    0.3125,
    0.6875,
    0.5625,
    0.8125,
)  # left, right, top, bottom of the mouth's surroundings in an FFHQ crop, of its side


class _EMA:
    """The slow copy of a generator that is used once training is done."""

    def __init__(self, generator, half_life):
        self.copy = copy.deepcopy(generator).eval().requires_grad_(False)
        self.half_life = half_life

    @torch.no_grad()
    def update(self, generator, batch, seen):
        # A short memory at first: an average over thousands of early images would lag far behind.
        half_life = min(self.half_life, 0.05 * max(seen, 1))
        keep = 0.5 ** (batch / max(half_life, 1e-8))
        torch._foreach_lerp_(list(self.copy.parameters()), list(generator.parameters()), 1 - keep)
        for slow, fast in zip(self.copy.buffers(), generator.buffers()):
            slow.copy_(fast)


def train(
    images,
    out,
    generator,
    discriminator,
    *,
    steps,
    batch=16,
    lr=0.002,
    beta1=0.0,
    r1=10.0,
    r1_interval=16,
    pl_weight=2.0,
    pl_interval=4,
    style_mixing=0.9,
    ema_half_life=10_000,
    flip=False,
    freeze_d=0,
    encoder=None,
    encoder_lr=0.001,
    reconstruction=None,
    reconstruction_weight=10.0,
    mouth_weight=0.0,
    lips=None,
    lip_weight=0.0,
    feature_weight=1.0,
    sample_share=0.5,
    augment="none",
    augment_p=0.0,
    ada_target=0.6,
    ada_images=500_000,
    jitter=0.0,
    lr_decay=0.0,
    fid_every=0,
    fid_images=10_000,
    fid_features="inception",
    reconstruct_only=0,
    accumulate=1,
    precision="float32",
    lineage=(),
    seed=0,
    device="cpu",
    **run,
):
    """Train a generator against a discriminator; yield log records. The file's "model" is the running average.

    images              datasets.Images
    generator, discriminator   networks of one resolution; what they hold is the start
    beta1               Adam's memory of gradients; StyleGAN2 has none, and reconstruction alone learns faster with 0.9
    r1, r1_interval        weight γ of R1 and how often it is applied (lazily)
    pl_weight, pl_interval    weight of path-length regularisation, 0 to leave it out, and how often
    style_mixing        chance that an image takes its later layers from a second z
    ema_half_life      half life of the running average, in images
    freeze_d            levels of the discriminator that stay as they are, from the pictures' own downwards: for a start from
                        weights of many pictures, and few new ones (Mo et al. 2020)
    augment             whether all that the discriminator sees is changed at random, so that it cannot learn few images by heart:
                        "none", "ada" (as often as it takes) or "fixed"
    augment_p           how often: the probability of each change, from 0 to 1, if fixed, and where ada starts a new run
    ada_target      what ada holds the mean sign of the discriminator's logits for real images at
    ada_images      so many would take its probability from 0 to 1
    jitter              probability with which a training image is moved and recoloured a little before anything learns from it (augmentation.jitter)
    lr_decay           share of the steps, the last ones, over which all learning rates fall to nothing along a cosine: generator and encoder
                        come to rest together, where the running average is of the generator alone
    encoder             images -> w_plus; if given, it is trained with the generator to reconstruct the images, and
                        the discriminator judges reconstructions too
    sample_share        share of a fake batch that is drawn from z, where there is an encoder; the rest are reconstructions
    reconstruction      distance of two image batches -> (N,); needed with an encoder
    encoder_lr          its learning rate; 0 holds it still, so that latents keep their meaning while the pictures improve
    mouth_weight        weight of the same distance between the mouths alone: an aligned face has its mouth in one place
    lips, lip_weight    distance of the lips of two image batches -> (N,), such as losses.LipDistance, and its weight
    feature_weight      weight of the distance between the discriminator's activations of image and reconstruction
    reconstruct_only    first so many steps reconstruct and leave the discriminator alone
    fid_every           steps between two measurements of FID and KID against the images, and one at the end; 0 for none. The
                        file's "model" is then the best average by FID, unless an encoder learns along: it fits the last one
    fid_images          pictures that the average draws for it, from z of their own, always the same; and as many of the
                        images, or all. FID of few is too large: only numbers of equally many pictures may be compared
    fid_features        "inception" or "mobilenet", for the weights in torch's hub cache, or a feature network as in fid.py
    accumulate          turns in which a batch is worked on, to fit into memory: the result is the same
    precision           "float32", or "bfloat16" or "float16" for forward and backward passes under autocast; R1 and
                        path length are always float32
    lineage             fingerprints of the generators whose encoders and speech models fit this one too
    run                 how training.fit logs and saves; its `samples` are faces drawn from the same z every time, and with an
                        encoder pictures over their reconstructions
    yields              {"step", "seconds", "images", losses…}, and "fid", "kid" and "fid_features", their network, where measured
    raises              TalkheadError as training.fit does, and at once if Inception's weights are not there

    Source: thesis §3.3.1.2, §4.2.2.1; Karras et al. 2020 for the losses.
    Departure: the encoder, its reconstruction loss and the discriminator's feature distance (Larsen et al. 2016) are ours: they
    make a generator out of few images in hours on a CPU, and are off unless an encoder is given. Path lengths are compared
    with their mean before the step, not after it, so that parts of a batch need not wait for each other. Augmentation
    leaves the reconstruction loss alone; the feature distance is between image and reconstruction changed alike.
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
    checks = {}
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
    """What kind of pictures these are, if all are of one: "film", "still", "moments"."""
    kinds = {origin.kind for origin in getattr(images, "origins", ())}
    return kinds.pop() if len(kinds) == 1 else None


class _Fid:
    """How far the pictures of a generator are from training images, as a feature network sees both. Both are looked at as bytes."""

    def __init__(self, images, generator, count, network, seed, device):
        self.network = fid.named(network, device)
        # A copy remembers an order of the images for itself: the Feed's thread looks up another meanwhile.
        self.images, self.generator, self.count, self.seed, self.device = (
            copy.copy(images),
            generator,
            count,
            seed,
            device,
        )
        self.real = None  # features of the images
        if min(count, len(images)) < 2:
            raise TalkheadError(
                f"FID of {min(count, len(images))} pictures: it compares two or more; pass more, or leave fid_every out"
            )
        fid.warn_of_few(min(count, len(images)), self.network)

    def __call__(self):
        if self.real is None:
            batches = (self.images.batch(index, fid.TOGETHER, self.seed) for index in itertools.count())
            self.real = self._seen(batches, min(self.count, len(self.images)))
        return fid.compare_features(self.real, self._seen(self._drawn(), self.count), self.network)

    def _seen(self, batches, count):
        cloud = fid.FeatureAccumulator(self.network)
        for batch in itertools.islice(batches, math.ceil(count / fid.TOGETHER)):
            cloud.look(to_frames(batch))
        return cloud.features()[:count]

    @torch.no_grad()
    def _drawn(self):
        random, count = z_stream(self.seed), fid.TOGETHER
        while True:
            z = torch.randn(count, self.generator.z_dim, generator=random).to(self.device)
            yield self.generator(
                z, noise=lambda side: torch.randn(count, 1, side, side, generator=random).to(self.device)
            )


class _Scalars:
    """Running numbers that a checkpoint must keep."""

    def __init__(self, **values):
        self.values = values

    def state_dict(self):
        return dict(self.values)

    def load_state_dict(self, values):
        self.values |= values  # what a file of an older version does not have starts anew


class _Trainer:
    """One optimiser step of each network, in StyleGAN2's order: generator, its regulariser, discriminator, its regulariser."""

    def __init__(self, images, generator, discriminator, encoder, team, options):
        self.generator, self.discriminator, self.encoder, self.team = generator, discriminator, encoder, team
        self.options = {
            key: options[key]
            for key in options
            if key not in ("images", "generator", "discriminator", "encoder", "team")
        }
        if encoder is not None and options["reconstruction"] is None:
            raise TalkheadError("an encoder is to be trained along: pass reconstruction, the distance that it lowers")
        if generator.resolution != discriminator.config["resolution"]:
            raise TalkheadError(
                f"generator is {generator.resolution}², discriminator {discriminator.config['resolution']}²; give both one resolution"
            )
        ada.check(options["augment"], options["augment_p"], options["jitter"])
        self.device = team.device
        self.ema = _EMA(generator, options["ema_half_life"])
        self.g_optimizer = _lazy_adam(generator, options, options["pl_interval"] if options["pl_weight"] else 0)
        self.d_optimizer = _lazy_adam(discriminator, options, options["r1_interval"])
        self.learning = _above(discriminator, options["freeze_d"])
        self.g_optimizers = [self.g_optimizer]
        self.rates = [
            (self.g_optimizer, self.g_optimizer.param_groups[0]["lr"]),
            (self.d_optimizer, self.d_optimizer.param_groups[0]["lr"]),
        ]
        self.samples = team.batch  # how many of the fakes are drawn from z
        if encoder is not None:
            self._take_along(encoder)
        adaptive = (
            {"augment": float(options["augment_p"]), "signs": 0, "judged": 0} if options["augment"] == "ada" else {}
        )
        self.scalars = _Scalars(pl_mean=0.0, **adaptive)
        self.feed = Prefetcher(
            lambda index: [
                images.batch(index, team.batch, options["seed"], options["flip"], share) for share in team.shares
            ]
        )
        self.shown = images.batch(0, 8, options["seed"]) if encoder is not None else None

    def _take_along(self, encoder):
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
                f"sample_share: {self.samples} of {self.team.batch} pictures cannot be cut into {parts} parts; pass a multiple"
            )

    def _latents(self, count, share):
        """w_plus of fresh z, some with two styles."""
        generator = self.generator
        z = torch.cat([share.randn(count, generator.z_dim), share.randn(count, generator.z_dim)]).to(self.device)
        first, second = generator.mapping(z).chunk(2)
        self.drawn.append(first[:, 0].detach().float().mean(0))
        cut = torch.randint(1, generator.num_ws, (count,))
        cut[torch.rand(count) >= self.options["style_mixing"]] = generator.num_ws
        early = (torch.arange(generator.num_ws) < share(cut)[:, None]).to(self.device)
        return torch.where(early[..., None], first, second)

    def _pictures(self, w_plus, count, share):
        """Pictures of latents, with fresh noise in each."""
        return self.generator.synthesis(w_plus, lambda side: share.randn(count, 1, side, side, device=self.device))

    def step(self, index):
        options, optimizer_step = self.options, self.team.optimizer_step
        real = self._jittered([batch.to(self.device) for batch in self.feed(index)])
        self._set_rates(index)
        adversarial = self.encoder is None or index >= options["reconstruct_only"]
        record, fakes = {"images": (index + 1) * options["batch"]}, []
        self.drawn = []  # means of W
        self._judge(False)
        record |= optimizer_step(
            lambda share: self._generator_loss(share, real[share.turn], adversarial, fakes), *self.g_optimizers
        )
        self._judge(True)
        if adversarial:
            if options["pl_weight"] and index % options["pl_interval"] == 0:
                record |= optimizer_step(self._path_loss, self.g_optimizer, scaled=False)
                self._remember_path(record["pl_weight"])
            record |= optimizer_step(
                lambda share: self._discriminator_loss(share, real[share.turn], fakes[share.turn]), self.d_optimizer
            )
            if index % options["r1_interval"] == 0:
                record |= optimizer_step(
                    lambda share: self._r1_loss(share, real[share.turn]), self.d_optimizer, scaled=False
                )
            if options["augment"] != "none":
                record["augment"] = self._probability()
            if options["augment"] == "ada":
                self._adapt(record["real_signs"])
        if self.drawn:
            self.generator.w_avg.lerp_(self.team.mean(torch.stack(self.drawn).mean(0)), 0.002)
        self.ema.update(self.generator, options["batch"], record["images"])
        return record

    def _jittered(self, turns):
        if not self.options["jitter"]:
            return turns
        start, changed = torch.randint(2**62, ()).item(), []
        for images, share in zip(turns, self.team.shares):
            torch.manual_seed(start)  # every share draws for the whole batch
            changed.append(ada.jitter(images, self.options["jitter"], share))
        return changed

    def _set_rates(self, index):
        if self.options["lr_decay"]:
            left = min((self.options["steps"] - index) / (self.options["lr_decay"] * self.options["steps"]), 1.0)
            for optimizer, rate in self.rates:
                optimizer.param_groups[0]["lr"] = rate * (0.5 - 0.5 * math.cos(math.pi * left))

    def _judge(self, learning):
        self.discriminator.requires_grad_(False)
        for parameter in self.learning:
            parameter.requires_grad_(learning)

    def _probability(self):
        return self.scalars.values["augment"] if self.options["augment"] == "ada" else float(self.options["augment_p"])

    def _changes(self, share):
        """Random changes for this share of a batch that the discriminator is to see."""
        return (
            None
            if self.options["augment"] == "none"
            else ada.sample_params(self.options["batch"], self._probability(), share)
        )

    def _adapt(self, signs):
        """Count the signs of a step's logits for real images; after every few steps, move the probability."""
        values, batch = self.scalars.values, self.options["batch"]
        values["signs"] += round(
            self.team.mean(signs).item() * batch
        )  # a whole number, in however many parts it was summed
        values["judged"] += 1
        if values["judged"] == ada.EVERY:
            values["augment"] = ada.update_p(
                values["augment"],
                values["signs"] / (ada.EVERY * batch),
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
                parts.append(self._pictures(self._latents(samples, share), samples, share))
            if self.encoder is not None:
                rebuilt = self._pictures(self.encoder(real), batch, share)
                loss = loss + self._reconstruction(rebuilt.float(), real, record)
                parts.append(rebuilt[: (batch - samples) // share.of])
            fake = torch.cat(parts)
            if adversarial:
                changes = self._changes(share)
                logits, seen = self.discriminator(_changed(fake, changes), features=True)
                realism = F.softplus(-logits).mean()
                loss = loss + realism
                record["generator"] = realism.detach()
                if self.encoder is not None and options["feature_weight"]:
                    loss = loss + options["feature_weight"] * self._feature_distance(
                        seen, real, changes, samples // share.of
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

    def _feature_distance(self, seen, real, changes, samples):
        rebuilt = len(real) - samples
        alike = changes and {name: values[samples:] for name, values in changes.items()}
        with torch.no_grad():
            _, wanted = self.discriminator(_changed(real[:rebuilt], alike), features=True)
        return sum(F.l1_loss(ours[samples:].float(), theirs.float()) for ours, theirs in zip(seen, wanted)) / len(
            wanted
        )

    def _path_loss(self, share):
        options, count = self.options, max(1, self.options["batch"] // 2)
        w_plus = self._latents(count, share)
        images = self._pictures(w_plus, count, share)
        weights = share.randn(count, *images.shape[1:], device=self.device) / self.generator.resolution
        (grad,) = torch.autograd.grad((images * weights).sum(), w_plus, create_graph=True)
        lengths = grad.square().sum(2).mean(1).sqrt()
        loss = (
            (lengths - self.scalars.values["pl_mean"]).square().mean() * options["pl_weight"] * options["pl_interval"]
        )
        return loss, {"pl_weight": lengths.detach().mean()}

    def _remember_path(self, length):
        before = self.scalars.values["pl_mean"]
        self.scalars.values["pl_mean"] = before + 0.01 * (self.team.mean(length).item() - before)

    def _discriminator_loss(self, share, real, fake):
        with self.team.autocast():
            fake_logits = self.discriminator(_changed(fake, self._changes(share)))
            real_logits = self.discriminator(_changed(real, self._changes(share)))
            loss = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
        logits = {"real_logits": real_logits.detach().mean(), "fake_logits": fake_logits.detach().mean()}
        return loss, {"discriminator": loss.detach()} | logits | {"real_signs": real_logits.detach().sign().mean()}

    def _r1_loss(self, share, real):
        real = real.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(
            self.discriminator(_changed(real, self._changes(share))).sum(), real, create_graph=True
        )
        penalty = grad.square().sum((1, 2, 3)).mean()
        return penalty * self.options["r1"] / 2 * self.options["r1_interval"], {"r1": penalty.detach()}

    @torch.no_grad()
    def draw(self):
        """What the average draws: three rows from z, and with an encoder a row of pictures over their reconstructions."""
        average, random = self.ema.copy, z_stream(self.options["seed"])
        rows = [average(torch.randn(8, average.z_dim, generator=random).to(self.device)) for _ in range(3)]
        if self.encoder is not None:
            training = self.encoder.training
            rows += [self.shown, average.synthesis(self.encoder.eval()(self.shown.to(self.device)))]
            self.encoder.train(training)
        return sheet(*rows)


def _changed(images, changes):
    return images if changes is None else ada.augment(images, changes)


def _above(discriminator, frozen):
    """The discriminator's parameters but for those of so many levels from the pictures on; the first holds the colours too."""
    levels = [
        [discriminator.from_rgb, discriminator.from_rgb_bias],
        *(list(block.parameters()) for block in discriminator.blocks),
    ]
    if frozen > len(discriminator.blocks):
        raise TalkheadError(
            f"freeze_d {frozen}: this discriminator has {len(discriminator.blocks)} levels to freeze; pass fewer"
        )
    still = {id(parameter) for level in levels[: frozen + 1] for parameter in level} if frozen else set()
    return [parameter for parameter in discriminator.parameters() if id(parameter) not in still]


def _lazy_adam(network, options, every):
    """Adam as StyleGAN2 sets it when a regulariser is applied only every so many steps."""
    ratio = every / (every + 1) if every else 1.0
    return torch.optim.Adam(
        network.parameters(), lr=options["lr"] * ratio, betas=(options["beta1"] ** ratio, 0.99**ratio), fused=True
    )
