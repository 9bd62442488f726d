"""The commands that train: `train-stylegan`, `train-encoder`, `train-audio2latent` and `train-video-gan`."""

import functools

import click

from talkhead import cli_io, cli_options
from talkhead.errors import TalkheadError

command = functools.partial(click.command, cls=cli_options.Command)
RUN = ("training.fit", "cli_io.follow_training")  # functions whose parameters --set gives in every trainer


@command("train-stylegan")
@cli_options.sources
@cli_options.trained("the generator")
@click.option("--resolution", type=click.IntRange(min=8), help="Side of the images.  [default: 256, or that of --init]")
@cli_options.widths("Channels at 4², 8², … up to the resolution.  [default: config F's, or those of --init]")
@cli_options.init_option("Generator to start from, of this or a lower resolution.")
@cli_options.training_steps
@cli_options.batch(16)
@cli_options.lr(0.002)
@cli_options.number("--freeze-d", 0, "Discriminator levels of --init to freeze, highest resolution first.")
@cli_options.one_of(
    "--augment", ["none", "ada", "fixed"], "none", "Discriminator augmentation: none, adaptive or fixed."
)
@click.option(
    "--encoder-out",
    metavar="FILE",
    callback=cli_options.writable,
    help="Train an encoder along, by reconstruction, and write it here (.pt).",
)
@click.option("--encoder-init", metavar="FILE", help="Encoder to start from, made for --init.  [default: a new one]")
@cli_options.number("--encoder-lr", 0.001, "The encoder's learning rate; 0 freezes it.")
@cli_options.number("--fid-every", 0, "Steps between two measurements of FID and KID; the best is kept.")
@cli_options.perceptual
@cli_options.samples
@cli_options.device
@cli_options.settings(
    "train_stylegan.train", "train_autoencoder.new_networks", "encoders.ResNetEncoder", "datasets.Images", *RUN
)
def train_stylegan(sources, output, init, encoder_out, encoder_init, perceptual, device, **options):
    """Train the face generator on images or clips, or on what was packed of them.

    \b
      talkhead train-stylegan clips/ -o generator.pt --resolution 64 --steps 100000
    """
    import torch

    from talkhead import checkpoints, datasets, encoders, losses, protocol, train_autoencoder, train_stylegan

    curves = cli_options.curves(options)
    if options["freeze_d"] and not init:
        raise click.UsageError("--freeze-d needs --init: a new discriminator is trained at every level")
    if options.get("reconstruct_only") and not (encoder_out or encoder_init):
        raise click.UsageError("--set reconstruct_only needs --encoder-out or --encoder-init: an encoder reconstructs")
    device = cli_io.init_process_group(device)
    if options["fid_every"]:
        options["fid_features"] = protocol.features(options.get("fid_features", "inception"), device)
    torch.manual_seed(options.setdefault("seed", 0))
    shape, frozen = cli_options.taken(options, encoders.ResNetEncoder), options["freeze_d"]
    networks = train_autoencoder.new_networks(init, **cli_options.taken(options, train_autoencoder.new_networks))
    generator, discriminator, lineage = networks
    if encoder_out or encoder_init:
        encoder = train_autoencoder.paired_encoder(encoder_init, generator, **shape)
        options |= {"encoder": encoder, "reconstruction": cli_io.perceptual(perceptual, device)}
        if options.get("lip_weight"):
            options["lips"] = losses.LipDistance(checkpoints.load_keypoints()).to(device)
        if options["encoder_lr"] == 0:
            options["lineage"] = lineage
        if encoder_out:
            options["on_save"] = functools.partial(train_autoencoder.save_encoder, encoder_out, encoder)
    images = _images(sources, generator.resolution, **cli_options.taken(options, datasets.Images))
    images.warn_of_mixture()
    records = train_stylegan.train(images, output, generator, discriminator, freeze_d=frozen, device=device, **options)
    cli_io.follow_training(records, options["steps"], **curves)


@command("train-encoder")
@cli_options.sources
@cli_options.trained("the encoder")
@cli_options.weights_in("generator")
@cli_options.one_of("--arch", ["resnet", "psp"], "resnet", "ResNet18 with one linear layer, or pSp's feature pyramid.")
@cli_options.number("--input-size", 256, "Side of the encoder's input images.", least=1)
@click.option("--irse", metavar="FILE", help="Start psp's trunk from a face-recognition network, model_ir_se50.pth.")
@cli_options.init_option("Encoder to start from, with its architecture and sizes.")
@cli_options.training_steps
@cli_options.batch(8)
@cli_options.number("--lr", None, "Learning rate.  [default: 0.004, psp 0.0001]")
@click.option(
    "--identity-network",
    metavar="FILE",
    help="Face recognition for an identity loss: model_ir_se50.pth, or a torch.export program.",
)
@cli_options.perceptual
@cli_options.validation
@cli_options.samples
@cli_options.device
@cli_options.settings(
    "train_encoder.train",
    "train_encoder.new_encoder",
    "encoders.ResNetEncoder",
    "encoders.PSPEncoder",
    "datasets.Images",
    *RUN,
)
def train_encoder(
    sources,
    output,
    generator,
    arch,
    irse,
    init,
    identity_network,
    perceptual,
    validation,
    device,
    **options,
):
    """Train an encoder to find the latents of a frozen generator.

    \b
      talkhead train-encoder clips/ --generator generator.pt -o encoder.pt --steps 50000
      talkhead train-encoder clips/ --arch psp --irse model_ir_se50.pth \\
          --identity-network model_ir_se50.pth -o psp.pt --steps 500000
    """
    import torch

    from talkhead import checkpoints, datasets, encoders, losses, train_encoder

    curves = cli_options.curves(options)
    networks, imagenet = {"resnet": encoders.ResNetEncoder, "psp": encoders.PSPEncoder}, options.pop("imagenet", None)
    shape = cli_options.taken(options, networks.pop(arch))
    others = cli_options.taken(options, *networks.values())
    if not init and (others or (irse if arch == "resnet" else imagenet)):
        raise click.UsageError(
            "imagenet, stem_stride and pool_size are for --arch resnet, --irse, head and deltas for --arch psp"
        )
    device, generator = cli_io.load(cli_io.init_process_group(device), generator=generator)
    torch.manual_seed(options.setdefault("seed", 0))
    if init:
        encoder = checkpoints.load_encoder(init)
    else:
        encoder = train_encoder.new_encoder(arch, generator, imagenet, irse, **shape)
    if identity_network:
        options["identity"] = losses.identity_network(identity_network, device)
    size = train_encoder.training_size(generator, encoder, options.get("loss_size"))
    data = cli_options.taken(options, datasets.Images)
    images = _images(sources, size, **data)
    options["validation"] = _images(validation, size, **data) if validation else None
    options["perceptual"] = cli_io.perceptual(perceptual, device)
    records = train_encoder.train(images, generator, output, encoder, device=device, **options)
    cli_io.follow_training(records, options["steps"], **curves)


@command("train-audio2latent")
@cli_options.sources
@cli_options.trained("the speech model")
@cli_options.weights_in("generator")
@cli_options.weights_in("encoder")
@cli_options.one_of(
    "--model", ["first", "second"], "second", "The thesis's first model, for a few people, or its second."
)
@click.option(
    "--features",
    metavar="NAME",
    help="Audio features: mfcc, bundled, deepspeech, wav2vec2, hubert, whisper.  "
    "[default: bundled for the first model, mfcc for the second]",
)
@cli_options.features_model
@click.option("--components", type=click.IntRange(min=1), help="Second model: size of its PCA basis.  [default: 2500]")
@click.option("--deterministic", is_flag=True, hidden=True, help="As --set noise_width=0; of version 0.1.")
@cli_options.training_steps
@cli_options.batch(16)
@cli_options.lr(2e-4)
@cli_options.perceptual
@click.option(
    "--hold-out",
    metavar="N|NAME,…",
    default="10",
    show_default=True,
    callback=cli_options.hold_out,
    help="Validation speakers, or single clips: how many, or which.",
)
@cli_options.device
@cli_options.settings("train_audio2latent.train", "audio2latent.FirstModel", "audio2latent.SecondModel", *RUN)
def train_audio2latent(
    sources, output, generator, encoder, model, features, features_model, deterministic, device, **options
):
    """Train the speech model on talking clips.

    \b
      talkhead train-audio2latent clips/ --generator generator.pt --encoder encoder.pt \\
          -o audio2latent.pt --steps 50000
      talkhead train-audio2latent clips/ --model first --generator generator.pt --encoder encoder.pt \\
          -o first.pt --steps 50000
    """
    import torch

    from talkhead import audio2latent, audio_features, train_audio2latent

    curves = cli_options.curves(options)
    sizes = cli_options.taken(options, *audio2latent.MODELS.values())
    try:
        sizes = audio2latent.check_sizes(model, sizes | ({"noise_width": 0} if deterministic else {}))
    except TalkheadError as problem:
        raise click.UsageError(str(problem)) from problem
    device, generator, encoder = cli_io.load(cli_io.init_process_group(device), generator=generator, encoder=encoder)
    torch.manual_seed(options.setdefault("seed", 0))
    name = features or audio2latent.MODELS[model].defaults["features"]
    features = audio_features.features(name, features_model, device)
    model = audio2latent.build(model, num_ws=generator.num_ws, window_shape=features.shape, **sizes)
    if options.get("image_frames") != 0:
        options["perceptual"] = cli_io.perceptual(options["perceptual"], device)
    records = train_audio2latent.train(
        sources, generator, encoder, output, model, features=features, device=device, **options
    )
    cli_io.follow_training(records, options["steps"], **curves)


@command("train-video-gan")
@cli_options.sources
@cli_options.trained("the motion model")
@cli_options.weights_in("generator")
@cli_options.weights_in("encoder")
@click.option(
    "--preset",
    type=click.Choice(["mocogan-hd"]),
    is_eager=True,
    expose_value=False,
    callback=cli_options.preset,
    help="Another model's settings instead of the defaults.",
)
@cli_options.number("--components", 384, "Size of the PCA basis of its motion.", least=1)
@cli_options.training_steps
@cli_options.batch(8)
@cli_options.lr(1e-4)
@cli_options.samples
@cli_options.device
@cli_options.settings("train_video_gan.train", "video_gan.LatentGenerator", "video_gan.VideoDiscriminator", *RUN)
def train_video_gan(sources, output, generator, encoder, device, **options):
    """Train the motion model on clips: head and face motion from noise alone.

    \b
      talkhead train-video-gan clips/ -o video_gan.pt --steps 20000 --samples sheets/
      talkhead train-video-gan clips/ -o theirs.pt --steps 20000 --preset mocogan-hd
    """
    import torch

    from talkhead import train_video_gan, video_gan

    curves = cli_options.curves(options)
    device, generator, encoder = cli_io.load(cli_io.init_process_group(device), generator=generator, encoder=encoder)
    torch.manual_seed(options.setdefault("seed", 0))
    model = video_gan.LatentGenerator(generator.num_ws, **cli_options.taken(options, video_gan.LatentGenerator))
    discriminator = video_gan.VideoDiscriminator(**cli_options.taken(options, video_gan.VideoDiscriminator))
    records = train_video_gan.train(sources, generator, encoder, output, model, discriminator, device=device, **options)
    cli_io.follow_training(records, options["steps"], **curves)


def _images(sources, size, **options):
    """Training images; files left out are logged."""
    from talkhead.datasets import Images

    images = Images(sources, size, **options)
    cli_io.left_out(images.skipped, len(images))
    return images
