"""The commands: each reads, calls one library function, and writes.

Modules are imported inside commands, because torch takes seconds to load and `--help` should not.
"""

import functools

import click

from talkhead import __version__, cli_io, cli_options, cli_plot, cli_train, cli_weights

# ---------------------------------------------------------------------------------------------------------------
# Shared by several commands


def _device(name, listing):
    """The torch device; for a list, one of this process's own."""
    from talkhead import jobs
    from talkhead.distributed import pick_device

    return pick_device(name) if listing is None else jobs.own_device(pick_device(name))


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
@cli_options.output("Aligned clip, image, or folder of images.")
@cli_options.number("--size", 256, "Side of the aligned frames in pixels.", least=1)
@cli_options.one_of(
    "--on-missing", ["fail", "hold", "skip"], "fail", "Frames without a face: fail, hold the last one, or skip."
)
@cli_options.face
@cli_options.output(
    "Write the corners of each crop here (.npy, frames × 4 × 2), for paste to put it back.", "--quads", default=None
)
@cli_options.listed("the path of a clip")
@cli_options.detector_model
@cli_options.device
@cli_options.settings("clips.align_clip", "cli_io.finder", "jobs.run")
def align(source, output, quads, listing, shard, device, **options):
    """Crop a clip or image to its face, as FFHQ does.

    \b
      talkhead align photo.jpg -o face.png
      talkhead align clip.mpg --quads quads.npy > aligned.mp4
      talkhead align --list clips.txt -o aligned/
    """
    from talkhead import clips

    overwrite = cli_options.overwrite(options, listing)
    find = cli_io.finder(_device(device, listing), **cli_options.taken(options, cli_io.finder))
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
@cli_options.output("Video, image, folder of images, or a pipe.")
@cli_options.settings("clips.paste_clip")
def paste(source, into, quads, output, **options):
    """Put a talking head back into the frames that it was cut from.

    It keeps its sound; without one, the clip's is used.

    \b
      talkhead align photo.jpg --quads quads.npy -o face.png
      talkhead generate --identity face.png --audio speech.wav \\
          | talkhead paste --into photo.jpg --quads quads.npy -o out.mp4
    """
    from talkhead import clips

    clips.paste_clip(source, into, quads, output, progress=cli_io.progress, **options)


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
@cli_options.steps(5000)
@click.option(
    "--next-steps",
    type=click.IntRange(min=1),
    help="Steps for each frame of a clip after the first.  [default: 500 sequential, 100 hybrid]",
)
@cli_options.lr(0.01)
@cli_options.perceptual
@cli_options.batch(4)
@click.option(
    "--log",
    "log_file",
    metavar="FILE",
    callback=cli_options.writable,
    help="Write the loss of the steps here, as JSON lines.",
)
@cli_options.listed("the path of a clip")
@cli_options.device
@cli_options.settings("inversion.invert", "clips.invert_clip", "jobs.run")
def invert(source, output, listing, shard, generator, encoder, method, perceptual, log_file, device, **options):
    """Find the latents from which a generator draws each frame.

    Optimising into a named file keeps what is done in FILE.part: the same command goes on from there.

    \b
      talkhead align clip.mpg | talkhead invert > latents.npy
      talkhead invert face.png --method hybrid -o face.npy
      talkhead invert --list aligned.txt -o latents/ --shard 0/4
    """
    from talkhead import checkpoints, clips

    overwrite, device = cli_options.overwrite(options, listing), _device(device, listing)
    encoder = {"encoder": encoder} if method in ("encoder", "hybrid") else {}
    options |= checkpoints.load_networks(device, generator=generator, **encoder)
    options["perceptual"] = None if method == "encoder" else cli_io.perceptual(perceptual, device)
    work = functools.partial(clips.invert_clip, method=method, device=device, progress=cli_io.progress, **options)
    if listing is not None:
        return cli_io.run_list(work, listing, output, shard, overwrite, suffix=".npy", beside=[".json"])
    work(source, output, log_file=log_file)


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
@cli_options.output("Video, folder of images, or a pipe.")
@cli_options.output("Write the latents here too (.npy).", "--latents-out", default=None)
@cli_options.weights_in("generator")
@cli_options.weights_in("encoder")
@cli_options.weights_in("audio2latent")
@click.option("--model", type=click.Choice(["first", "second"]), help="Bundled speech model.  [default: second]")
@cli_options.features_model
@click.option("--deterministic", is_flag=True, help="Give the first model no noise: no seed changes what it makes.")
@cli_options.weights_in("video_gan")
@cli_options.alignment
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
@click.option("--label", "labelled", is_flag=True, help='Write "synthetic" into every frame, for all to see.')
@cli_options.edits
@cli_options.motion
@cli_options.listed("identity, tab, audio")
@cli_options.seed
@cli_options.device
@cli_options.settings(
    "talking_head.TalkingHead",
    "talking_head.TalkingHead.render",
    "synthesis.speech_to_latents",
    "identities.load_identity",
    "cli_io.finder",
    "jobs.run",
)
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
    audio2latent,
    model,
    device,
    pti,
    **options,
):
    """Make a face speak, or move from noise, or render latents.

    A clip as the identity is dubbed: its frames keep all but the mouth, which says what --audio says.

    Sound from a pipe is spoken while it comes, each frame drawn for itself (batch=1) to be there soon.

    With --quads of align, and a StyleGAN3, --latents are drawn where the head was in the clip.

    \b
      talkhead generate --identity photo.jpg --audio speech.wav -o out.mp4
      talkhead generate --identity photo.jpg --audio speech.wav --whole -o out.mp4
      talkhead generate --identity clip.mp4 --audio other.wav --whole -o dubbed.mp4
      talkhead generate --identity me.pt --audio - -o - < speech.wav > out.mp4
      talkhead generate --identity face.png --noise-seed 7 --seconds 4 -o out.mp4
      talkhead generate --identity face.png --audio speech.wav --edit smile=0.5 -o out.mp4
      talkhead generate --latents - < latents.npy -o back.mp4
      talkhead generate --generator sg3.pkl --latents latents.npy --quads quads.npy -o moving.mp4
      talkhead generate --list pairs.txt -o talking/
    """
    from talkhead.clips import live_sound
    from talkhead.synthesis import speech_to_latents
    from talkhead.talking_head import TalkingHead, noise_segments

    _check_inputs(identity, audio, noise_seed, seconds, latents, listing, options | {"pti": pti})
    overwrite = cli_options.overwrite(options, listing)
    audio2latent, device = _speech_model(model, audio2latent), _device(device, listing)
    if audio is not None and latents is None:  # what is wrong with it is known before networks are loaded
        audio = click.get_current_context().with_resource(live_sound(audio))
    networks = cli_options.taken(options, TalkingHead)
    rendering = cli_options.taken(options, TalkingHead.render)
    motion = cli_options.taken(options, speech_to_latents)
    find = cli_io.finder(device, **cli_options.taken(options, cli_io.finder))
    tuning = {"tune": pti, "perceptual": cli_io.perceptual("auto", device) if pti else None}
    head = TalkingHead(
        audio2latent=audio2latent,
        identity=identity,
        drives=None if latents is not None else "video_gan" if noise_seed else "audio2latent",
        device=device,
        identity_options=options | {"find": find, "seed": motion["seed"]} | tuning,
        motion=motion,
        progress=cli_io.progress,
        **networks,
    )
    if latents is not None:
        head.render(latents, output, latents_out, identity, audio, **rendering)
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
    if options.get("quads") and (latents is None or identity is not None):
        raise click.UsageError("--quads go with --latents, without --identity: they move the generator's own face")
    if options["whole"] and (options["size"] or not options["detail"]):
        raise click.UsageError("--whole keeps the photo's size and detail; leave --size and --no-detail out")
    if (options["whole"] or options["size"]) and (
        identity is None and listing is None or identity is not None and files.is_prepared(identity)
    ):
        raise click.UsageError("--whole and --size want a photo or clip as --identity")
    if options["pti"] and identity is not None and files.is_prepared(identity):
        raise click.UsageError("--pti tunes on images; pass one as --identity, or leave --pti out")


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
@cli_options.samples
@cli_options.device
@cli_options.settings("pti.train", "training.fit", "clips.read_tuning_set", "cli_io.finder", "cli_io.follow_training")
def pti(source, output, generator, encoder, perceptual, device, **options):
    """Tune a generator on a face, so that it draws this very person (pivotal tuning).

    \b
      talkhead pti face.png -o me.pt
      talkhead generate --identity me.pt --audio speech.wav -o out.mp4
    """
    from talkhead import clips, pti

    device, generator, encoder = cli_io.load(cli_io.init_process_group(device), generator=generator, encoder=encoder)
    find = cli_io.finder(device, **cli_options.taken(options, cli_io.finder))
    reading = cli_options.taken(options, clips.read_tuning_set)
    images, pivots, photo = clips.read_tuning_set(source, generator, encoder, find, device=device, **reading)
    perceptual, curves = cli_io.perceptual(perceptual, device), cli_options.curves(options)
    records = pti.train(images, generator, pivots, output, photo=photo, perceptual=perceptual, **options)
    cli_io.follow_training(records, options["steps"], **curves)


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
@click.option("--table", is_flag=True, help="Print a table for people instead of JSON.")
@click.option(
    "--protocol",
    metavar="thesis|FILE",
    help="Measure as the thesis does, or as what metrics printed into FILE was measured.",
)
@click.option(
    "--lmd/--no-lmd",
    default=True,
    show_default=True,
    help="Measures that need a detector: LMD, mouth opening, jitter, sharpness.",
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
@click.option(
    "--identity-network",
    metavar="FILE",
    help="Face recognition for identity similarity: model_ir_se50.pth, or a torch.export program.",
)
@click.option("--syncnet", metavar="FILE", help="SyncNet's weights, syncnet_v2.model, for LSE-C and LSE-D.")
@click.option("--networks", is_flag=True, help="Size and speed of the three networks, with clips or alone.")
@cli_options.detector_model
@cli_options.device
@cli_options.settings("protocol.Protocol", "evaluation.evaluate", "evaluation.measure_networks")
def metrics(pairs, output, listing, shard, table, protocol, networks, device, **options):
    """Compare generated clips with the real ones, each number with the protocol that it was measured by.

    REAL and FAKE are clips, or two folders of clips that are matched by name.

    \b
      talkhead metrics real.mp4 out.mp4
      talkhead metrics real.mp4 out.mp4 --no-lmd --fid --fid-features encoder
      talkhead metrics real/ fake/ -o metrics.jsonl --set workers=8 --table
      talkhead metrics --list pairs.txt --protocol metrics.jsonl -o again.jsonl
    """
    from talkhead import evaluation, files

    clips = _pairs(pairs, listing, networks)
    speed, records = [], []
    paths = cli_options.taken(options, evaluation.measure_networks)
    work = cli_options.taken(options, evaluation.evaluate)
    if networks:
        speed = [evaluation.measure_networks(device=device, **paths)]
    if clips:
        place = None if output == "-" else output
        protocol = _protocol(protocol, options | {"device": device})
        records = _measured(clips, protocol, place, table, shard=cli_io.shard_of(shard), **work)
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
            f"{len(alone)} clips have no partner of the same name and are left out: "
            f"{', '.join(alone[:3])}{', …' if len(alone) > 3 else ''}"
        )
    return pairs


def _protocol(place, options):
    """The evaluation protocol of the options, or of a former record."""
    from talkhead.protocol import Protocol, check, read_protocol, replay

    if place is None:
        return Protocol(**options)
    source = click.get_current_context().get_parameter_source
    explicit = {name for name in options if source(name) is not click.core.ParameterSource.DEFAULT}
    recorded = read_protocol(place)
    protocol = Protocol(**replay(recorded, options, explicit, f"--protocol {place}"))
    check(recorded, protocol, f"--protocol {place}")
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
def info(sources):
    """Show size, rate and sound of images and clips, and if they carry the mark of synthetic media.

    \b
      talkhead info out.mp4
    """
    from talkhead import video_files

    cli_io.print_records(map(video_files.describe, sources))


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
@cli_options.settings("datasets.pack")
def pack(sources, output, size, **options):
    """Decode clips and images once, into one file that the trainers read at random: data sets larger than memory.

    \b
      talkhead pack clips/ -o faces.npy --size 128
      talkhead train-stylegan faces.npy -o generator.pt --resolution 128 --steps 100000
    """
    from talkhead import datasets

    paths = datasets.clips(sources)
    records = list(cli_io.progress(datasets.pack(paths, output, size, **options), len(paths), "file"))
    problems, frames = (
        [record["left_out"] for record in records if "left_out" in record],
        sum(record.get("frames", 0) for record in records),
    )
    cli_io.left_out(problems, frames)
    cli_io.print_records([{"file": output, "frames": frames, "size": size, "left_out": len(problems)}])


for command in (
    cli_train.train_stylegan,
    cli_train.train_encoder,
    cli_train.train_audio2latent,
    cli_train.train_video_gan,
    cli_plot.plot,
    cli_weights.weights,
):
    cli.add_command(command)
