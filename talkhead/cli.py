"""The commands: each reads, calls one library function, and writes.

Modules are imported inside commands, because torch takes seconds to load and `--help` should not.
"""

import functools

import click

from talkhead import __version__, cli_io, cli_options
from talkhead.errors import TalkheadError

# ---------------------------------------------------------------------------------------------------------------
# Shared by several commands


def _perceptual(name, device):
    """A perceptual distance by name; the choice of "auto" is logged."""
    from talkhead.losses import Perceptual

    perceptual = Perceptual(name).to(device)
    if name == "auto":
        cli_io.log(
            f"perceptual loss: {perceptual.name}"
            + ("" if perceptual.name == "lpips" else ", because torch's cache holds no VGG weights for lpips")
        )
    return perceptual


def _load(device, **paths):
    """The device, and the networks at `paths` (None: the bundled ones), which fit each other."""
    from talkhead import checkpoints, distributed

    device = distributed.pick_device(device)
    return device, *checkpoints.load_networks(device, **paths).values()


def _device(name, listing):
    """The torch device; for a list, one of this process's own."""
    from talkhead import jobs
    from talkhead.distributed import pick_device

    return pick_device(name) if listing is None else jobs.own_device(pick_device(name))


def _finder(detector, detector_model, device):
    """A function that returns the face detector, loaded on its first call: aligned input needs none."""

    @functools.cache
    def find():
        from talkhead import landmarks

        return landmarks.detector(detector, detector_model, device)

    return find


def _images(sources, size, every, limit):
    """Training images; files left out are logged."""
    from talkhead.datasets import Images

    images = Images(sources, size, every, limit)
    _left_out(images.skipped, len(images))
    return images


def _left_out(problems, frames):
    for problem in problems:
        cli_io.log(f"left out: {problem}")
    if problems:
        cli_io.log(
            f"{len(problems)} {'file was' if len(problems) == 1 else 'files were'} left out; {frames} frames of the others were taken"
        )


def _labelled(paths, labels):
    """{label: file} for a figure; labels default to the file names."""
    from talkhead import plots

    labels = labels or plots.names(paths)
    if len(labels) != len(paths) or len(set(labels)) < len(labels):
        raise click.UsageError(f"--labels: {len(paths)} files need as many different labels")
    return dict(zip(labels, paths))


def _openings(path, find):
    """Mouth opening in each frame of a clip, or of landmarks (.npy); NaN where no face is found."""
    import numpy as np

    from talkhead import faces, landmarks, video_files

    if path.endswith(".npy"):
        return landmarks.mouth_opening(faces.read_landmarks(path))
    with video_files.read_frames(path) as reader:
        seen = [find()(frame) for frame in cli_io.progress(reader, reader.count)]
    return np.array([landmarks.mouth_opening(found[0]) if found else np.nan for found in seen])


# ---------------------------------------------------------------------------------------------------------------
# Commands


@click.group(cls=cli_io.Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="talkhead")
def cli():
    """A photo and a speech recording become a talking-head video.

    \b
      talkhead generate --identity face.png --audio speech.wav -o out.mp4
      talkhead align clip.mp4 | talkhead invert > latents.npy

    A file named "-" is stdin or stdout. Frames flow between commands as lossless MP4, latents as .npy.
    """


@cli.command()
@cli_options.source
@cli_options.output("Aligned clip, picture, or folder of pictures.")
@cli_options.number("--size", 256, "Side of the aligned frames in pixels.", least=1)
@cli_options.number("--smoothing", 2.0, "Smooth the crop over so many frames; 0 crops each for itself, as FFHQ does.")
@cli_options.one_of(
    "--on-missing", ["fail", "hold", "skip"], "fail", "Frames without a face: fail, hold the last one, or skip."
)
@cli_options.face
@cli_options.output(
    "Write the corners of each crop here (.npy, frames × 4 × 2), for paste to put it back.", "--quads", default=None
)
@cli_options.listed("the path of a clip")
@cli_options.detection
@cli_options.device
def align(source, output, quads, listing, shard, overwrite, detector, detector_model, device, **options):
    """Crop a clip or image to its face, as FFHQ does.

    \b
      talkhead align photo.jpg -o face.png
      talkhead align clip.mpg --quads quads.npy > aligned.mp4
      talkhead align --list clips.txt -o aligned/
    """
    from talkhead import clips

    find = _finder(detector, detector_model, _device(device, listing))
    work = functools.partial(clips.align_clip, find=find, progress=cli_io.progress, **options)
    if listing is not None:
        return cli_io.run_list(work, listing, output, shard, overwrite)
    work(source, output, quads=quads)


@cli.command()
@cli_options.source
@click.option(
    "--into",
    metavar="FILE",
    required=True,
    callback=cli_options.from_stdin,
    help="The clip that was aligned, or a photo, which then stands still behind the face.",
)
@click.option(
    "--quads",
    metavar="FILE",
    required=True,
    callback=cli_options.from_stdin,
    help="Corners of the crops, as align --quads writes them.",
)
@cli_options.output("Video, picture, folder of pictures, or a pipe.")
@cli_options.number("--feather", 0.15, "Part of the crop's side over which the face fades into the frame; 0 cuts hard.")
@click.option(
    "--match-colour/--no-match-colour",
    default=True,
    show_default=True,
    help="Give the face the colours that it has in the frame.",
)
def paste(source, into, quads, output, feather, match_colour):
    """Put a talking head back into the frames that it was cut from.

    It keeps its sound; without one, the clip's is used.

    \b
      talkhead align photo.jpg --quads quads.npy -o face.png
      talkhead generate --identity face.png --audio speech.wav | talkhead paste --into photo.jpg --quads quads.npy -o out.mp4
    """
    from talkhead import clips

    clips.paste_clip(source, into, quads, output, feather, match_colour, cli_io.progress)


@cli.command()
@cli_options.source
@cli_options.output("Latents (.npy, float32, frames × layers × 512).")
@cli_options.weights_in("generator")
@cli_options.weights_in("encoder")
@cli_options.one_of(
    "--method",
    ["encoder", "optimise", "sequential", "hybrid"],
    "encoder",
    "Encoder; Algorithm 1 (frames alone) or 2 (from the one before); or encoder, then optimisation.",
)
@cli_options.one_of("--space", ["w+", "w", "z"], "w+", "Latent space of the optimisation.")
@cli_options.steps(5000)
@click.option(
    "--next-steps",
    type=click.IntRange(min=1),
    help="Steps for each frame of a clip after the first.  [default: 500 sequential, 100 hybrid]",
)
@cli_options.lr(0.01)
@cli_options.perceptual
@cli_options.precision
@cli_options.batch(4)
@click.option(
    "--log", metavar="FILE", callback=cli_options.writable, help="Write the loss of the steps here, as JSON lines."
)
@cli_options.number("--log-every", 10, "Steps of a frame between two of its records in the log.", least=1)
@cli_options.listed("the path of a clip")
@cli_options.seed
@cli_options.device
@cli_options.settings("inversion.invert")
def invert(
    source, output, listing, shard, overwrite, generator, encoder, method, perceptual, log, log_every, device, **options
):
    """Find the latents from which a generator draws each frame.

    Optimising into a named file keeps what is done in FILE.part: the same command goes on from there.

    \b
      talkhead align clip.mpg | talkhead invert > latents.npy
      talkhead invert face.png --method hybrid -o face.npy
      talkhead invert --list aligned.txt -o latents/ --shard 0/4
    """
    from talkhead import checkpoints, clips

    device = _device(device, listing)
    encoder = {"encoder": encoder} if method in ("encoder", "hybrid") else {}
    options |= checkpoints.load_networks(device, generator=generator, **encoder)
    options["perceptual"] = None if method == "encoder" else _perceptual(perceptual, device)
    work = functools.partial(clips.invert_clip, method=method, device=device, progress=cli_io.progress, **options)
    if listing is not None:
        return cli_io.run_list(work, listing, output, shard, overwrite, suffix=".npy", beside=[".json"])
    work(source, output, log_file=log, log_every=log_every)


@cli.command()
@cli_options.input_option(
    "--identity",
    "The face: an image or clip; latents (.npy, .npz, .pt); or a tuned generator of pti (.pt).",
)
@cli_options.input_option(
    "--audio",
    "Speech: any file with sound, or a live pipe; with --latents, the sound track.",
)
@click.option(
    "--noise-seed",
    metavar="N,N,…",
    callback=cli_options.whole_numbers,
    help="Move the face from noise instead of speech; several seeds follow each other.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), help="Duration of the motion from noise.  [default: 4]"
)
@cli_options.input_option("--latents", "Latents to render (.npy; NVIDIA's .npz; a .pt of one tensor).")
@cli_options.output("Video, folder of pictures, or a pipe.")
@cli_options.output("Write the latents here too (.npy).", "--latents-out", default=None)
@cli_options.weights_in("generator")
@cli_options.weights_in("encoder")
@cli_options.weights_in("audio2latent")
@click.option("--model", type=click.Choice(["first", "second"]), help="Bundled speech model.  [default: second]")
@cli_options.audio_features
@click.option("--deterministic", is_flag=True, help="Give the first model no noise: no seed changes what it makes.")
@cli_options.weights_in("video_gan")
@cli_options.alignment
@cli_options.one_of(
    "--on-missing",
    ["fail", "hold", "skip"],
    "fail",
    "Identity frames without a face: fail, hold the last one, or skip.",
)
@click.option(
    "--detail/--no-detail",
    default=True,
    show_default=True,
    help="Carry the photo along at its own resolution, or show the generator's own frames.",
)
@click.option("--whole", is_flag=True, help="The whole photo or clip speaks, not the face cut out of it.")
@click.option(
    "--size", type=click.IntRange(16, 4096), help="Side of the face cut out.  [default: the photo's own, at most 1024]"
)
@click.option(
    "--neutral/--no-neutral",
    default=True,
    show_default=True,
    help="Bring a mouth that is open in the photo to rest first.",
)
@click.option("--pti", is_flag=True, help="Tune the generator on the identity first: closer to the person, and slower.")
@click.option("--label", is_flag=True, help='Write "synthetic" into every frame, for all to see.')
@cli_options.motion
@cli_options.one_of(
    "--precision",
    ["float32", "bfloat16", "float16"],
    "float32",
    "Arithmetic of the drawing; a GPU is faster at the halves.",
)
@click.option("--batch", type=click.IntRange(min=1), help="Frames drawn together.  [default: 8, 1 for live sound]")
@cli_options.listed("identity, tab, audio")
@cli_options.seed
@cli_options.device
@cli_options.settings("identities.load_identity")
def generate(
    identity,
    audio,
    noise_seed,
    seconds,
    latents,
    output,
    latents_out,
    listing,
    shard,
    overwrite,
    generator,
    encoder,
    audio2latent,
    model,
    features,
    features_model,
    deterministic,
    video_gan,
    label,
    gain,
    gate,
    layers,
    blink,
    blink_latent,
    precision,
    batch,
    device,
    detector,
    detector_model,
    pti,
    **options,
):
    """Make a face speak, or move from noise, or render latents.

    A clip as the identity is dubbed: its frames keep all but the mouth, which says what --audio says.

    Sound from a pipe is spoken while it comes, each frame drawn for itself (--batch 1) to be there soon.

    \b
      talkhead generate --identity photo.jpg --audio speech.wav -o out.mp4
      talkhead generate --identity photo.jpg --audio speech.wav --whole -o out.mp4
      talkhead generate --identity clip.mp4 --audio other.wav --whole -o dubbed.mp4
      talkhead generate --identity me.pt --audio - -o - < speech.wav > out.mp4
      talkhead generate --identity face.png --noise-seed 7 --seconds 4 -o out.mp4
      talkhead generate --latents - < latents.npy -o back.mp4
      talkhead generate --list pairs.txt -o talking/
    """
    from talkhead.clips import live_sound
    from talkhead.talking_head import TalkingHead, noise_segments

    _check_inputs(identity, audio, noise_seed, seconds, latents, listing, options | {"pti": pti})
    audio2latent, device = _speech_model(model, audio2latent), _device(device, listing)
    if audio is not None and latents is None:  # what is wrong with it is known before networks are loaded
        audio = click.get_current_context().with_resource(live_sound(audio))
    options |= {"tune": pti, "find": _finder(detector, detector_model, device)}
    options["perceptual"] = _perceptual("auto", device) if pti else None
    motion = {"gain": gain, "gate": gate, "layers": layers, "blink": blink, "seed": options["seed"]}
    head = TalkingHead(
        generator,
        encoder,
        audio2latent,
        video_gan,
        identity,
        drives=None if latents is not None else "video_gan" if noise_seed else "audio2latent",
        features=features,
        features_model=features_model,
        device=device,
        identity_options=options,
        motion=motion | {"deterministic": deterministic},
        blink_latent=blink_latent,
        batch=batch,
        drawing={"precision": precision, "labelled": label},
        progress=cli_io.progress,
    )
    if latents is not None:
        head.render(latents, output, latents_out, identity, audio)
    elif noise_seed:
        work = functools.partial(head.move, segments=noise_segments(noise_seed, seconds or 4))
        if listing is not None:
            return cli_io.run_list(work, listing, output, shard, overwrite, fields=("identity",))
        work(identity, output, latents_out)
    elif listing is not None:
        cli_io.run_list(head.speak, listing, output, shard, overwrite, fields=("identity", "audio"))
    else:
        head.speak(identity, audio, output, latents_out)


def _speech_model(model, file):
    """The speech model's file; None is the bundled second one."""
    from talkhead import checkpoints

    if model and file:
        raise click.UsageError("pass --model or --audio2latent, not both: the file says which model it holds")
    return checkpoints.bundled("first") if model == "first" else file


def _check_inputs(identity, audio, noise_seed, seconds, latents, listing, options):
    from talkhead import files

    if noise_seed and (audio is not None or latents is not None):
        raise click.UsageError("pass one of --audio, --noise-seed and --latents: each says how the face moves")
    if seconds is not None and not noise_seed:
        raise click.UsageError("--seconds goes with --noise-seed; speech and latents are as long as they are")
    if latents is None and listing is None and (identity is None or audio is None and not noise_seed):
        raise click.UsageError("pass --identity and --audio or --noise-seed, or --latents")
    if (
        latents is not None
        and identity is not None
        and (options["pti"] or not options["detail"] or files.is_prepared(identity))
    ):
        raise click.UsageError(
            "--latents say how the face moves; --identity is then the photo that moves, without --pti and --no-detail"
        )
    if options["whole"] and (options["size"] or not options["detail"]):
        raise click.UsageError("--whole keeps the photo's size and detail; leave --size and --no-detail out")
    if (options["whole"] or options["size"]) and (
        identity is None and listing is None or identity is not None and files.is_prepared(identity)
    ):
        raise click.UsageError("--whole and --size want a photo or clip as --identity")
    if options["pti"] and identity is not None and files.is_prepared(identity):
        raise click.UsageError("--pti tunes on pictures; pass one as --identity, or leave --pti out")


@cli.command()
@cli_options.source
@cli_options.trained("the tuned generator")
@cli_options.weights_in("generator")
@cli_options.weights_in("encoder")
@cli_options.alignment
@cli_options.number("--steps", 350, "Most optimiser steps; a resumed run goes on to here.", least=1)
@cli_options.batch(4)
@cli_options.lr(3e-4)
@cli_options.perceptual
@cli_options.number("--limit", 125, "Frames of a clip to tune on.", least=1)
@cli_options.samples
@cli_options.run
@cli_options.settings("pti.train", "training.fit")
def pti(
    source,
    output,
    generator,
    encoder,
    perceptual,
    limit,
    aligned,
    face,
    detector,
    detector_model,
    tensorboard,
    device,
    **options,
):
    """Tune a generator on a face, so that it draws this very person (pivotal tuning).

    \b
      talkhead pti face.png -o me.pt
      talkhead generate --identity me.pt --audio speech.wav -o out.mp4
    """
    from talkhead import clips, pti

    device, generator, encoder = _load(cli_io.init_process_group(device), generator=generator, encoder=encoder)
    find = _finder(detector, detector_model, device)
    images, pivots, photo = clips.read_tuning_set(source, generator, encoder, find, aligned, face, limit, device)
    perceptual = _perceptual(perceptual, device)
    records = pti.train(images, generator, pivots, output, photo=photo, perceptual=perceptual, **options)
    cli_io.follow_training(records, options["steps"], tensorboard)


@cli.command()
@click.argument("pairs", metavar="REAL FAKE [REAL FAKE]...", nargs=-1, callback=cli_options.pairs)
@cli_options.records
@click.option(
    "--list",
    "listing",
    metavar="FILE",
    is_eager=True,
    callback=cli_options.from_stdin,
    help="Compare the pairs that lines of a file name: REAL, tab, FAKE.",
)
@cli_options.shard
@click.option("--overwrite", is_flag=True, help="Measure again what is in the output file already.")
@cli_options.number("--workers", 1, "Processes.", least=1)
@click.option("--table", is_flag=True, help="Print a table for people instead of JSON.")
@click.option(
    "--protocol",
    metavar="thesis|FILE",
    help="Measure as the thesis does, or as what metrics printed into FILE was measured.",
)
@click.option(
    "--size",
    type=click.IntRange(min=11),
    help="Resize square frames to this side.  [default: compare frames of one size]",
)
@click.option(
    "--lmd/--no-lmd",
    default=True,
    show_default=True,
    help="Measures that need a detector: LMD, mouth opening, jitter, sharpness.",
)
@click.option(
    "--landmarks",
    metavar="PATH",
    help="True landmarks of REAL (.npy, frames × 68 × 2), or a folder with NAME.landmarks.npy.",
)
@click.option(
    "--phonemes",
    metavar="PATH",
    help="Timed phonemes for /p b m/ closures: TextGrid, .mlf, .lab, .align, .json, or a folder of them.",
)
@click.option(
    "--fid",
    is_flag=True,
    help="FID and KID of all frames; of several pairs, over the whole set.",
)
@cli_options.fid_features
@click.option("--lpips", is_flag=True, help="Measure LPIPS (VGG), which needs weights.")
@click.option(
    "--identity-network",
    metavar="FILE",
    help="Face recognition for identity similarity: model_ir_se50.pth, or a torch.export program.",
)
@click.option("--aligned", is_flag=True, help="The faces are aligned already.")
@click.option("--syncnet", metavar="FILE", help="SyncNet's weights, syncnet_v2.model, for LSE-C and LSE-D.")
@click.option("--networks", is_flag=True, help="Size and speed of the three networks, with clips or alone.")
@cli_options.weights_in("generator")
@cli_options.weights_in("encoder")
@cli_options.weights_in("audio2latent")
@cli_options.detection
@cli_options.device
@cli_options.settings("evaluation.Protocol")
def metrics(
    pairs,
    output,
    listing,
    shard,
    overwrite,
    workers,
    table,
    protocol,
    networks,
    generator,
    encoder,
    audio2latent,
    **options,
):
    """Compare generated clips with the real ones, each number with the protocol that it was measured by.

    REAL and FAKE are clips, or two folders of clips that are matched by name.

    \b
      talkhead metrics real.mp4 out.mp4
      talkhead metrics real.mp4 out.mp4 --no-lmd --fid --fid-features encoder
      talkhead metrics real/ fake/ -o metrics.jsonl --workers 8 --table
      talkhead metrics --list pairs.txt --protocol metrics.jsonl -o again.jsonl
    """
    from talkhead import evaluation, files

    clips = _pairs(pairs, listing, networks)
    speed, records = [], []
    if networks:
        paths = {"generator": generator, "encoder": encoder, "audio2latent": audio2latent}
        speed = [evaluation.network_speed(*_load(options["device"], **paths)[1:])]
    if clips:
        place = None if output == "-" else output
        work = {"overwrite": overwrite, "workers": workers, "shard": cli_io.shard_of(shard)}
        records = _measured(clips, _protocol(protocol, options), place, table, **work)
    if table:
        click.echo(evaluation.table(records + speed))
    elif not clips and output != "-":
        files.write_json(output, speed[0])
    else:
        cli_io.print_records(speed)
    click.get_current_context().exit(int(any("error" in record for record in records)))


def _pairs(places, listing, networks):
    """Pairs of clips to compare."""
    from talkhead import evaluation, jobs

    if places and listing is not None:
        raise click.UsageError("name pairs, or a --list of them, not both")
    if listing is not None:
        return [tuple(item.sources.values()) for item in jobs.read_list(listing, ("real", "fake"), ".json")]
    if not places and not networks:
        raise click.UsageError("name REAL and FAKE, or a --list of such pairs")
    pairs, alone = evaluation.match(places)
    if alone:
        cli_io.log(
            f"{len(alone)} clips have no partner of the same name and are left out: {', '.join(alone[:3])}{', …' if len(alone) > 3 else ''}"
        )
    return pairs


def _protocol(place, options):
    """The evaluation protocol of the options, or of a former record."""
    from talkhead import evaluation

    if place is None:
        return evaluation.Protocol(**options)
    source = click.get_current_context().get_parameter_source
    explicit = {name for name in options if source(name) is not click.core.ParameterSource.DEFAULT}
    recorded = evaluation.read_protocol(place)
    protocol = evaluation.Protocol(**evaluation.replay(recorded, options, explicit, f"--protocol {place}"))
    evaluation.check(recorded, protocol, f"--protocol {place}")
    return protocol


def _measured(pairs, protocol, output, quiet, shard, **options):
    """Records of all pairs, printed unless they go to a file; failures are logged."""
    from talkhead import evaluation

    records = []
    if len(pairs) == 1 and output is None:
        found = evaluation.evaluate(pairs, protocol, watch=cli_io.progress)
    else:
        found = cli_io.progress(
            evaluation.evaluate(pairs, protocol, output, shard=shard, **options),
            len(shard(pairs)) + (len(pairs) > 1),
            "pair",
        )
    for record in found:
        if "error" in record:
            cli_io.log(f"failed: {' '.join(record['error'].split())}")
        if output is None and not quiet:
            cli_io.print_records([record])
        records.append(record)
    return records


@cli.command()
@cli_options.sources
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    required=True,
    callback=cli_options.writable,
    help="The packed file (.npy); the .json beside it tells what came from where.",
)
@cli_options.number("--size", 256, "Side of the frames in pixels.", least=1)
@cli_options.data
def pack(sources, output, size, every, limit):
    """Decode clips and pictures once, into one file that the trainers read at random: data sets larger than memory.

    \b
      talkhead pack clips/ -o faces.npy --size 128
      talkhead train-stylegan faces.npy -o generator.pt --resolution 128 --steps 100000
    """
    from talkhead import datasets

    paths = datasets.clips(sources)
    records = list(cli_io.progress(datasets.pack(paths, output, size, every, limit), len(paths), "file"))
    problems, frames = (
        [record["left_out"] for record in records if "left_out" in record],
        sum(record.get("frames", 0) for record in records),
    )
    _left_out(problems, frames)
    cli_io.print_records([{"file": output, "frames": frames, "size": size, "left_out": len(problems)}])


@cli.command("train-stylegan")
@cli_options.sources
@cli_options.trained("the generator")
@click.option("--resolution", type=click.IntRange(min=8), help="Side of the images.  [default: 256, or that of --init]")
@cli_options.widths("Channels at 4², 8², … up to the resolution.  [default: config F's, or those of --init]")
@cli_options.init_option("Generator to start from, of this or a lower resolution.")
@cli_options.training_steps
@cli_options.batch(16)
@cli_options.lr(0.002)
@click.option("--flip", is_flag=True, help="Mirror half of the images.")
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
@cli_options.data
@cli_options.samples
@cli_options.run
@cli_options.settings(
    "train_stylegan.train", "train_autoencoder.new_networks", "encoders.ResNetEncoder", "training.fit"
)
def train_stylegan(
    sources, output, init, encoder_out, encoder_init, perceptual, every, limit, tensorboard, device, **options
):
    """Train the face generator on images or clips, or on what was packed of them.

    \b
      talkhead train-stylegan clips/ -o generator.pt --resolution 64 --steps 100000
    """
    import torch

    from talkhead import checkpoints, encoders, evaluation, losses, train_autoencoder, train_stylegan

    if options["freeze_d"] and not init:
        raise click.UsageError("--freeze-d needs --init: a new discriminator is trained at every level")
    if options.get("reconstruct_only") and not (encoder_out or encoder_init):
        raise click.UsageError("--set reconstruct_only needs --encoder-out or --encoder-init: an encoder reconstructs")
    device = cli_io.init_process_group(device)
    if options["fid_every"]:
        options["fid_features"] = evaluation.features(options.get("fid_features", "inception"), device)
    torch.manual_seed(options["seed"])
    shape, frozen = cli_options.taken(options, encoders.ResNetEncoder), options["freeze_d"]
    networks = train_autoencoder.new_networks(init, **cli_options.taken(options, train_autoencoder.new_networks))
    generator, discriminator, lineage = networks
    if encoder_out or encoder_init:
        encoder = train_autoencoder.paired_encoder(encoder_init, generator, **shape)
        options |= {"encoder": encoder, "reconstruction": _perceptual(perceptual, device)}
        if options.get("lip_weight"):
            options["lips"] = losses.LipDistance(checkpoints.load_keypoints()).to(device)
        if options["encoder_lr"] == 0:
            options["lineage"] = lineage
        if encoder_out:
            options["on_save"] = functools.partial(train_autoencoder.save_encoder, encoder_out, encoder)
    images = _images(sources, generator.resolution, every, limit)
    images.warn_of_mixture()
    records = train_stylegan.train(images, output, generator, discriminator, freeze_d=frozen, device=device, **options)
    cli_io.follow_training(records, options["steps"], tensorboard)


@cli.command("train-encoder")
@cli_options.sources
@cli_options.trained("the encoder")
@cli_options.weights_in("generator")
@cli_options.one_of("--arch", ["resnet", "psp"], "resnet", "ResNet18 with one linear layer, or pSp's feature pyramid.")
@cli_options.number("--width", 64, "The encoder's width; 64 is ResNet18, or IR-SE-50.", least=1)
@cli_options.number("--input-size", 256, "Side of the encoder's input images.", least=1)
@click.option("--imagenet", metavar="FILE", help="Start resnet's first blocks from torchvision's resnet18 weights.")
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
@click.option("--flip", is_flag=True, help="Mirror half of the images.")
@cli_options.validation
@cli_options.data
@cli_options.samples
@cli_options.run
@cli_options.settings("train_encoder.train", "encoders.ResNetEncoder", "encoders.PSPEncoder", "training.fit")
def train_encoder(
    sources,
    output,
    generator,
    arch,
    imagenet,
    irse,
    init,
    identity_network,
    perceptual,
    validation,
    every,
    limit,
    tensorboard,
    device,
    **options,
):
    """Train an encoder to find the latents of a frozen generator.

    \b
      talkhead train-encoder clips/ --generator generator.pt -o encoder.pt --steps 50000
      talkhead train-encoder clips/ --arch psp --irse model_ir_se50.pth --identity-network model_ir_se50.pth -o psp.pt --steps 500000
    """
    import torch

    from talkhead import checkpoints, encoders, losses, train_encoder

    others = {"resnet": encoders.PSPEncoder, "psp": encoders.ResNetEncoder}[arch]
    shape = cli_options.taken(options, {"resnet": encoders.ResNetEncoder, "psp": encoders.PSPEncoder}[arch])
    if not init and (cli_options.taken(options, others) or (irse if arch == "resnet" else imagenet)):
        raise click.UsageError(
            "--imagenet, stem_stride and pool_size are for --arch resnet, --irse, head and deltas for --arch psp"
        )
    device, generator = _load(cli_io.init_process_group(device), generator=generator)
    torch.manual_seed(options["seed"])
    if init:
        encoder = checkpoints.load_encoder(init)
    else:
        encoder = train_encoder.new_encoder(arch, generator, imagenet, irse, **shape)
    if identity_network:
        options["identity"] = losses.identity_network(identity_network, device)
    size = train_encoder.training_size(generator, encoder, options.get("loss_size"))
    images = _images(sources, size, every, limit)
    options["validation"] = _images(validation, size, every, limit) if validation else None
    options["perceptual"] = _perceptual(perceptual, device)
    records = train_encoder.train(images, generator, output, encoder, device=device, **options)
    cli_io.follow_training(records, options["steps"], tensorboard)


@cli.command("train-audio2latent")
@cli_options.sources
@cli_options.trained("the speech model")
@cli_options.weights_in("generator")
@cli_options.weights_in("encoder")
@cli_options.one_of(
    "--model", ["first", "second"], "second", "The thesis's first model, for a few people, or its second."
)
@cli_options.audio_features
@click.option("--components", type=click.IntRange(min=1), help="Second model: size of its PCA basis.  [default: 2500]")
@click.option("--deterministic", is_flag=True, help="First model: without noise.")
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
@cli_options.run
@cli_options.settings("train_audio2latent.train", "audio2latent.FirstModel", "audio2latent.SecondModel", "training.fit")
def train_audio2latent(
    sources, output, generator, encoder, model, features, features_model, deterministic, tensorboard, device, **options
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

    sizes = {}
    for network in audio2latent.MODELS.values():
        sizes |= cli_options.taken(options, network)
    try:
        sizes = audio2latent.check_sizes(model, sizes | ({"noise_width": 0} if deterministic else {}))
    except TalkheadError as problem:
        raise click.UsageError(str(problem)) from problem
    device, generator, encoder = _load(cli_io.init_process_group(device), generator=generator, encoder=encoder)
    torch.manual_seed(options["seed"])
    name = features or audio2latent.MODELS[model].defaults["features"]
    features = audio_features.features(name, features_model, device)
    model = audio2latent.build(model, num_ws=generator.num_ws, window_shape=features.shape, **sizes)
    if options.get("image_frames") != 0:
        options["perceptual"] = _perceptual(options["perceptual"], device)
    records = train_audio2latent.train(
        sources, generator, encoder, output, model, features=features, device=device, **options
    )
    cli_io.follow_training(records, options["steps"], tensorboard)


@cli.command("train-video-gan")
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
@cli_options.one_of("--start", ["encode", "sample"], "encode", "Faces to train on: those of the clips, or random ones.")
@cli_options.one_of(
    "--real",
    ["auto", "video", "projected"],
    "auto",
    "Real samples: clips (eq. 3.7), or their reconstructions (eq. 3.10).",
)
@cli_options.training_steps
@cli_options.batch(8)
@cli_options.number("--frames", 16, "Video frames of each sample.", least=2)
@cli_options.lr(1e-4)
@cli_options.samples
@cli_options.run
@cli_options.settings(
    "train_video_gan.train", "video_gan.LatentGenerator", "video_gan.VideoDiscriminator", "training.fit"
)
def train_video_gan(sources, output, generator, encoder, tensorboard, device, **options):
    """Train the motion model on clips: head and face motion from noise alone.

    \b
      talkhead train-video-gan clips/ -o video_gan.pt --steps 20000 --samples sheets/
      talkhead train-video-gan clips/ -o theirs.pt --steps 20000 --preset mocogan-hd
    """
    import torch

    from talkhead import train_video_gan, video_gan

    device, generator, encoder = _load(cli_io.init_process_group(device), generator=generator, encoder=encoder)
    torch.manual_seed(options["seed"])
    model = video_gan.LatentGenerator(generator.num_ws, **cli_options.taken(options, video_gan.LatentGenerator))
    discriminator = video_gan.VideoDiscriminator(**cli_options.taken(options, video_gan.VideoDiscriminator))
    records = train_video_gan.train(sources, generator, encoder, output, model, discriminator, device=device, **options)
    cli_io.follow_training(records, options["steps"], tensorboard)


@cli.group()
def plot():
    """Draw figures (PNG, SVG, PDF); needs the extra plot."""


@plot.command("trajectory")
@cli_options.sources
@cli_options.figure
@cli_options.one_of(
    "--plane",
    ["shared", "centred", "own"],
    "shared",
    "Components of all paths; of all, each from its own mean; or each path's own.",
)
@cli_options.labels
def plot_trajectory(sources, output, plane, labels):
    """Draw latents (.npy) in the plane of their first two principal components, coloured by time.

    \b
      talkhead plot trajectory encoder.npy sequential.npy -o paths.png
    """
    from talkhead import files, plots

    paths = {label: files.read_latents(path) for label, path in _labelled(sources, labels).items()}
    plots.save(plots.trajectories(paths, plane=plane), output)


@plot.command("losses")
@cli_options.sources
@cli_options.figure
@cli_options.names("--keys", "Numbers of the logs to draw.  [default: loss, or if no log has it, all]", ())
@cli_options.number("--smooth", 1, "Mean of so many records.", least=1)
@cli_options.labels
def plot_losses(sources, output, keys, smooth, labels):
    """Draw curves from the logs of trainers and of invert --log; several runs together.

    \b
      talkhead plot losses optimise.jsonl sequential.jsonl -o losses.svg
    """
    from talkhead import plots

    logs = {label: plots.read_log(path) for label, path in _labelled(sources, labels).items()}
    plots.save(plots.losses(logs, keys, smooth), output)


@plot.command("dashboard")
@cli_options.source
@cli_options.figure
@cli_options.number("--smooth", 1, "Mean of so many records.", least=1)
def plot_dashboard(source, output, smooth):
    """Draw every number of a training log.

    \b
      talkhead plot dashboard train.jsonl -o run.png
    """
    from talkhead import plots

    plots.save(
        plots.dashboard(plots.read_log(source), None if source == "-" else plots.names([source])[0], smooth), output
    )


def _said(phonemes, clips):
    """Timed phonemes of the first clip, from a file or a folder of them."""
    from talkhead.phonemes import read

    return read(phonemes, clips[0]) if phonemes else ()


@plot.command("strip")
@cli_options.sources
@cli_options.figure
@cli_options.number("--columns", 8, "Frames of each clip.", least=1)
@cli_options.number("--start", 0.0, "Start time in seconds.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop after so long.  [default: at the end of the first clip]",
)
@cli_options.phonemes
@cli_options.labels
def plot_strip(sources, output, columns, start, seconds, phonemes, labels):
    """Draw frames of clips one under the other, at the same moments.

    \b
      talkhead plot strip real.mp4 out.mp4 --phonemes real.json -o strip.png
    """
    from talkhead import files, plots, video_files

    rows, times, synthetic = {}, None, False
    for label, path in _labelled(sources, labels).items():
        with video_files.read_frames(path) as reader:
            if times is None:
                count = reader.count or sum(1 for _ in video_files.read_frames(path))  # some kinds of file do not tell
                times = plots.moments(count, columns, start, seconds)
            rows[label] = plots.frames_at(reader, times)
            synthetic |= files.SYNTHETIC_TYPE in reader.metadata.values()
    plots.save(plots.strip(rows, times, _said(phonemes, sources)), output, synthetic)


@plot.command("mouth")
@cli_options.sources
@cli_options.figure
@cli_options.input_option("--audio", "The sound to draw under the curves: any file with a sound track.")
@cli_options.phonemes
@cli_options.labels
@cli_options.detection
@cli_options.device
def plot_mouth(sources, output, audio, phonemes, labels, detector, detector_model, device):
    """Draw mouth openings of clips or landmarks (.npy) over the sound and its phonemes.

    \b
      talkhead plot mouth real.mp4 out.mp4 --audio real.mp4 --phonemes real.json -o mouth.png
    """
    from talkhead import audio_files, plots

    find = _finder(detector, detector_model, device)
    said = _said(phonemes, sources)
    sound = None if audio is None else audio_files.read_audio(audio)
    curves = {label: _openings(path, find) for label, path in _labelled(sources, labels).items()}
    plots.save(plots.mouths(curves, sound, said), output)


@plot.command("interpolate")
@click.argument("ends", metavar="[LATENTS LATENTS]", nargs=-1)
@cli_options.figure
@cli_options.weights_in("generator")
@cli_options.number("--columns", 7, "Pictures on each way.", least=2)
@cli_options.seed
@cli_options.device
def plot_interpolate(ends, output, generator, columns, seed, device):
    """Draw lerp and slerp between two latents (.npy), or between random faces in Z and W.

    \b
      talkhead plot interpolate me.npy you.npy -o ways.png
    """
    import numpy as np

    from talkhead import files, identities, plots

    if len(ends) not in (0, 2):
        raise click.UsageError("pass two files of latents, the ends of the way, or none")
    codes = [files.read_latents(path)[0] for path in ends]
    _, generator = _load(device, generator=generator)
    for path, code in zip(ends, codes):
        identities.check_fit(path, code, generator)
    plots.save(
        plots.sheet(plots.interpolation(generator, np.stack(codes) if codes else None, columns, seed)),
        output,
        synthetic=True,
    )


@plot.command("components")
@cli_options.sources
@cli_options.figure
@cli_options.weights_in("generator")
@cli_options.number("--components", 5, "Number of principal components, largest variance first.", least=1)
@cli_options.number("--columns", 7, "Pictures of each.", least=2)
@cli_options.number("--reach", 3.0, "Range to either side, in standard deviations.")
@cli_options.device
def plot_components(sources, output, generator, components, columns, reach, device):
    """Draw images along each principal component of latents (.npy), from their mean.

    \b
      talkhead plot components latents.npy -o components.png
    """
    import numpy as np

    from talkhead import files, identities, plots

    codes = [files.read_latents(path) for path in sources]
    _, generator = _load(device, generator=generator)
    for path, each in zip(sources, codes):
        identities.check_fit(path, each[0], generator)
    plots.save(
        plots.sheet(*plots.components(generator, np.concatenate(codes), components, columns, reach)),
        output,
        synthetic=True,
    )


@cli.group()
def weights():
    """Weight files: list, fetch, verify, describe, convert and export."""


@weights.command("list")
def weights_list():
    """List weights: the bundled ones, then public ones that can be fetched, a JSON object each."""
    from talkhead import checkpoints, downloads

    found = sorted(checkpoints.WEIGHTS.glob("*.pt"))
    cli_io.print_records({"file": str(path)} | checkpoints.describe(path) for path in found)
    cli_io.print_records(downloads.describe(name) for name in downloads.REGISTRY)
    if not found:
        raise TalkheadError(
            f"{checkpoints.WEIGHTS}: no weights came with this package; train them, or install a release"
        )


@weights.command("fetch")
@click.argument("name")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    callback=cli_options.writable,
    help="Destination.  [default: the cache of the library that needs it]",
)
@click.option("--accept-licence", is_flag=True, help="You read the licence that is printed, and accept it.")
@click.option("--url", help="Take it from here instead.")
def weights_fetch(name, output, accept_licence, url):
    """Download public weights; one that was cut short goes on where it stopped.

    \b
      talkhead weights fetch face-landmarker
      talkhead weights fetch vgg16 --accept-licence
    """
    from tqdm import tqdm

    from talkhead import downloads

    cli_io.log(downloads.terms(name))
    with tqdm(unit="B", unit_scale=True, unit_divisor=1024, smoothing=0, disable=None) as bar:

        def on_progress(done, total):
            if bar.n == 0:
                bar.initial = done  # what an earlier call brought is not this one's speed
            bar.total = total
            bar.update(done - bar.n)

        record = downloads.fetch(name, output, accept_licence, url, on_progress)
    cli_io.print_records([record])


@weights.command("verify")
@click.argument("places", metavar="FILE|NAME...", nargs=-1, required=True)
@click.pass_context
def weights_verify(ctx, places):
    """Compare files with the sizes and hashes that public weights should have; exit status 1 if any is wrong.

    \b
      talkhead weights verify vgg16 e4e_ffhq_encode.pt
    """
    from talkhead import downloads

    records = [downloads.verify(place) for place in places]
    cli_io.print_records(records)
    ctx.exit(int(any(record["ok"] is False for record in records)))


@weights.command("show")
@click.argument("file")
def weights_show(file):
    """Describe a weights file as JSON: talkhead's, rosinality's, NVIDIA's, PTI's, pSp's, e4e's or ReStyle's.

    \b
      talkhead weights show stylegan2-ffhq-config-f.pt
    """
    from talkhead import checkpoints

    cli_io.print_records([checkpoints.describe(file)])


@weights.command("convert")
@click.argument("source", metavar="SOURCE")
@cli_options.weights_out("the converted weights")
@cli_options.one_of("--to", ["talkhead", "rosinality", "nvidia"], "talkhead", "Layout of the copy.")
@click.option(
    "--part",
    type=click.Choice(["generator", "encoder"]),
    help="Network to take from a file that holds two, as pSp's do.",
)
def weights_convert(source, output, to, part):
    """Rewrite weights in another project's layout, number for number.

    \b
      talkhead weights convert stylegan2-ffhq-config-f.pt -o ffhq.pt
      talkhead weights convert network-snapshot.pkl -o ffhq.pt --to rosinality
      talkhead weights convert psp_ffhq_encode.pt -o encoder.pt --part encoder
    """
    from talkhead import checkpoints

    checkpoints.convert(source, output, to, part)


@weights.command("export")
@click.argument("source", metavar="SOURCE")
@cli_options.weights_out("the copy")
@click.option("--half/--full", default=True, show_default=True, help="Half precision, or as it is.")
def weights_export(source, output, half):
    """Copy weights without what only training needs.

    \b
      talkhead weights export run/generator.pt -o generator.pt
    """
    from talkhead import checkpoints

    checkpoints.export(source, output, half)
