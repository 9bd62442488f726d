"""The commands: each reads, calls one library function, and writes.

Rooms are imported inside commands, because torch takes seconds to load and `--help` should not.
"""

import contextlib
import functools
import os
from collections import Counter

import click
from click.core import ParameterSource

from talkhead import __version__, cli_io, cli_options
from talkhead.errors import TalkheadError

# ---------------------------------------------------------------------------------------------------------------
# What several commands do with their options


def _perceptual(name, device):
    """A perceptual distance by name; where "auto" had to choose, which one it is gets said."""
    from talkhead.losses import Perceptual

    perceptual = Perceptual(name).to(device)
    if name == "auto":
        cli_io.log(
            f"perceptual loss: {perceptual.name}"
            + ("" if perceptual.name == "lpips" else ", because torch's cache holds no VGG weights for lpips")
        )
    return perceptual


def _features(name, device):
    """A feature network for FID by name: Inception, or the bundled encoder's trunk."""
    from talkhead import evaluation

    return evaluation.features(name, device)


def _load(device, **paths):
    """The networks at `paths` (None: the bundled ones), on their device, and fitting each other."""
    from talkhead import checkpoints
    from talkhead.distributed import pick_device

    device = pick_device(device)
    found = {kind: path or checkpoints.bundled(kind) for kind, path in paths.items()}
    generator = checkpoints.load_generator(found.pop("generator"), device)
    encoder = [checkpoints.load_encoder(found.pop("encoder"), generator, device)] if "encoder" in found else []
    return (
        device,
        generator,
        *encoder,
        *(_load_driver(kind, path, generator, encoder, device) for kind, path in found.items()),
    )


def _load_driver(kind, path, generator, encoder, device):
    """The network that says how a face moves, if it fits the generator, and the encoder where there is one."""
    from talkhead import checkpoints

    if kind == "video_gan":
        return checkpoints.load_video_gan(path, generator, *encoder or [None], device)
    return checkpoints.load_audio2latent(path, generator, device)


def _each(work, listing, folder, shard, overwrite, fields=("source",), suffix=".mp4", beside=()):
    """Do the work of this process's share of a list; one line tells how it went, the manifest the rest."""
    from talkhead import jobs

    shard = cli_io.shard_of(shard)
    if listing == "-" and shard.of > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise click.UsageError("--list -: processes of torchrun cannot each read stdin; name a file")
    items = jobs.read_list(listing, fields, suffix)
    if shard.why:
        cli_io.log(f"{len(shard(items))} of {len(items)} lines of {listing}, by {shard.why}")
    records = jobs.run(items, functools.partial(_noted, work), folder, shard, beside, overwrite)
    counts, manifest = Counter(), jobs.manifest_path(folder, shard)
    try:
        _watch_list(records, fields, len(shard(items)), counts)
    except (KeyboardInterrupt, SystemExit):
        cli_io.log(f"stopped: {_told(counts)} of {len(shard(items))}; see {manifest}")
        raise
    cli_io.log(f"{_told(counts)}; see {manifest}")
    jobs.barrier()
    click.get_current_context().exit(int(counts["failed"] > 0))


def _told(counts):
    return ", ".join(f"{counts[status]} {status}" for status in ("done", "skipped", "failed"))


def _noted(work, *arguments):
    """Do some work; what would be said on the way is recorded with the number of frames."""
    meta = click.get_current_context().meta
    notes = meta["talkhead.notes"] = []
    try:
        with cli_io.memory():
            return {"frames": work(*arguments)} | ({"notes": notes} if notes else {})
    finally:
        del meta["talkhead.notes"]


def _watch_list(records, fields, total, counts):
    """Count records by status, and say at once what failed."""
    with cli_io.progress(None, total, "clip") as bar:
        for record in records:
            bar.update()
            counts[record["status"]] += 1
            if record["status"] == "failed":
                bar.clear()
                sources, reason = [record[field] for field in fields], " ".join(record["reason"].split())
                named = any(source in reason for source in sources)
                cli_io.log("failed: " + ("" if named else f"{', '.join(sources)}: ") + reason)


def _device(name, listing):
    """Where to compute: for a list, a device of this process's own."""
    from talkhead import jobs
    from talkhead.distributed import pick_device

    return pick_device(name) if listing is None else jobs.own_device(pick_device(name))


def _finder(detector, detector_model, device):
    """A function that gives the face detector. It is loaded once, and not before it is wanted: what is aligned needs none."""

    @functools.cache
    def find():
        from talkhead import landmarks

        return landmarks.detector(detector, detector_model, device)

    return find


def _followed(reader, aligned, face, find, on_missing="fail"):
    """The frames of a reader, each with the quad of the face in it, None where it is aligned, and its index."""
    if aligned or reader.aligned:
        height, width = reader.size
        if height != width:
            raise TalkheadError(f"{reader.name}: {width}x{height}, but an aligned face is square; leave --aligned out")
        cli_io.log(f"{reader.name}: " + ("its metadata says it is aligned" if reader.aligned else "taken as aligned"))
        return ((frame, None, index) for index, frame in enumerate(reader))
    from talkhead import faces

    cli_io.log(f"{reader.name}: aligning the face that {find().name} finds")
    return faces.follow(reader, find(), on_missing=on_missing, face=face)


def _cut(frame, quad, size):
    """The face in a frame, (size, size, 3); one that is aligned is left as it is."""
    from talkhead import faces

    return frame if quad is None else faces.crop(frame, quad, size)


def _lessons(name, generator, encoder, frames, device):
    """What a generator is tuned on: frames as images of its size, and their pivots, the codes that the encoder gives them."""
    import numpy as np

    from talkhead import inversion
    from talkhead.images import resize, to_images

    side = len(frames[0])
    if side < generator.resolution:
        cli_io.log(
            f"{name}: {side}x{side}, enlarged to the generator's {generator.resolution}: it learns the blur too; pass the photo as it was, "
            f"or align it with --size {generator.resolution}"
        )
    pivots = np.stack(list(inversion.encode(encoder, frames, device=device)))
    return to_images(np.stack([resize(frame, generator.resolution) for frame in frames])), pivots


def _images(sources, size, every, limit):
    """Training images, saying which files were left out."""
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


def _networks(init, d_channels, freeze_d, **sizes):
    """A generator and its discriminator, new or grown out of the file `init`, and the fingerprints of that file's generator."""
    from talkhead import checkpoints, fingerprints, stylegan

    weights = {"config": {"resolution": 256}} if init is None else checkpoints.read(init, "generator")
    config = {key: value for key, value in weights["config"].items() if key != "lineage"}
    if init is not None and sizes["resolution"] not in (None, config["resolution"]):
        config["channels"] = stylegan.extend_widths(config["channels"], sizes["resolution"])
    config |= {key: value for key, value in sizes.items() if value is not None}
    generator = stylegan.build(config)
    discriminator = stylegan.Discriminator(
        generator.resolution, d_channels or config.get("channels"), config.get("clamp")
    )
    if init is None:
        return generator, discriminator, set()
    training = weights.get("training", {})
    stylegan.load_matching_weights(
        generator, {name: value.float() for name, value in training.get("generator", weights["model"]).items()}
    )
    judged = training.get("discriminator", {})
    if {name: value.shape for name, value in judged.items()} == {
        name: value.shape for name, value in discriminator.state_dict().items()
    }:
        discriminator.load_state_dict(judged)
    elif freeze_d:
        raise TalkheadError(
            f"{init}: no discriminator of these sizes, and --freeze-d holds levels of one that has learnt; leave it out, or change no sizes"
        )
    else:
        cli_io.log(f"{init}: no discriminator of these sizes; a new one learns from the start")
    return generator, discriminator, {fingerprints.fingerprint(weights["model"]), *weights["config"].get("lineage", ())}


def _encoder(init, num_ws, shape):
    """An encoder for a generator of `num_ws` layers: new, or grown out of the file `init`."""
    from talkhead import checkpoints, encoders

    if init is None:
        return encoders.ResNetEncoder(num_ws, **shape)
    smaller = checkpoints.load_encoder(init)
    if not isinstance(smaller, encoders.ResNetEncoder):
        raise TalkheadError(f"{init}: only an encoder of architecture resnet is trained along; leave it out")
    if smaller.num_ws > num_ws:
        raise TalkheadError(
            f"{init}: an encoder of {smaller.num_ws} layers, the generator has {num_ws}; pass one of a smaller generator"
        )
    return encoders.extend_layers(smaller, num_ws)


def _new_encoder(arch, generator, imagenet, irse, **shape):
    """An encoder for a generator, that starts at its mean face; what a classifier or a face-recognition network gives it."""
    from talkhead import encoders

    network = {"resnet": encoders.ResNetEncoder, "psp": encoders.PSPEncoder}[arch]
    encoder = network(generator.num_ws, w_dim=generator.w_dim, w_avg=generator.w_avg.cpu(), **shape)
    if imagenet:
        encoder.load_imagenet(imagenet)
    if irse:
        encoder.load_irse(irse)
    return encoder


def _save_encoder(path, encoder, weights):
    """Write an encoder that was trained along with a generator, of which these weights were saved."""
    from talkhead import files, fingerprints

    config = encoder.config | {"generator": fingerprints.fingerprint(weights["model"])}
    header = {"kind": "encoder", "config": config, "step": weights["step"], "perceptual": weights["perceptual"]}
    files.save_weights(path, header | {"model": encoder.state_dict()})


def _labelled(paths, labels):
    """What each file is called in a picture: as told, or as it is named."""
    from talkhead import plots

    labels = labels or plots.names(paths)
    if len(labels) != len(paths) or len(set(labels)) < len(labels):
        raise click.UsageError(f"--labels: {len(paths)} files need as many different labels")
    return dict(zip(labels, paths))


def _openings(path, find):
    """How far the mouth is open in each frame of a clip, or in landmarks (.npy); NaN where no face is seen."""
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
@cli_options.one_of("--on-missing", ["fail", "hold", "skip"], "fail", "What to do with a frame where no face is found.")
@cli_options.face
@cli_options.output(
    "Write the corners of each crop here (.npy, frames × 4 × 2), for paste to put it back.", "--quads", default=None
)
@cli_options.listed("the path of a clip")
@cli_options.detection
@cli_options.device
def align(source, output, quads, listing, shard, overwrite, detector, detector_model, device, **options):
    """Crop a clip or picture to its face, the way FFHQ does.

    \b
      talkhead align photo.jpg -o face.png
      talkhead align clip.mpg --quads quads.npy > aligned.mp4
      talkhead align --list clips.txt -o aligned/
    """
    work = functools.partial(_align, find=_finder(detector, detector_model, _device(device, listing)), **options)
    if listing is not None:
        return _each(work, listing, output, shard, overwrite)
    work(source, output, quads=quads)


def _align(source, output, find, size, smoothing, on_missing, face, quads=None):
    """Crop one clip; how many frames were written."""
    import numpy as np

    from talkhead import faces, files, video_files
    from talkhead.images import resize

    with video_files.read_frames(source) as reader:
        # Of a picture that is reduced before it is cropped, the quad alone does not tell where the crop lies to a pixel.
        about = {"size": size, "frame": list(reader.size), "fps": reader.fps, "smoothing": smoothing}
        if reader.aligned:
            cli_io.log(f"{reader.name}: aligned already, only resized")
            height, width = reader.size
            about |= {"size": height, "smoothing": 0.0}
            crops = ((resize(frame, size), faces.whole_quad(frame), index) for index, frame in enumerate(reader))
        else:
            cli_io.log(f"{reader.name}: landmarks by {find().name}")
            crops = faces.align_frames(reader, find(), size, smoothing=smoothing, on_missing=on_missing, face=face)
        corners = []
        with video_files.FrameWriter(
            output, sound=reader.sound, metadata=reader.metadata | {"talkhead_aligned": str(size)}
        ) as writer:
            for crop, quad, index in cli_io.progress(crops):
                writer.write(crop)
                corners += [np.full((4, 2), np.nan)] * (index - len(corners)) + [quad]
    if quads:
        files.write_array(quads, np.stack(corners))
        if os.path.isfile(quads):  # and no pipe
            files.write_json(os.path.splitext(quads)[0] + ".json", about)
    return writer.count


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
    help="Where the face was cut out: what align --quads wrote.",
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

    It keeps its sound; where it has none, the clip's is taken.

    \b
      talkhead align photo.jpg --quads quads.npy -o face.png
      talkhead generate --identity face.png --audio speech.wav | talkhead paste --into photo.jpg --quads quads.npy -o out.mp4
    """
    from talkhead import faces, files, video_files

    corners, about = files.read_array(quads), files.read_about(quads)
    with video_files.read_frames(source) as head, video_files.read_frames(into) as clip:
        if about.get("frame") not in (None, list(clip.size)):
            height, width = about["frame"]
            raise TalkheadError(
                f"{into}: {clip.size[1]}x{clip.size[0]}, but the quads are of frames of {width}x{height}; pass the clip that was aligned"
            )
        tags = {key: value for key, value in (clip.metadata | head.metadata).items() if key != files.ALIGNED_TAG}
        frames = faces.paste(clip, head, corners, about.get("size"), feather, match_colour)
        with video_files.FrameWriter(output, sound=head.sound or clip.sound, metadata=tags) as writer:
            for frame in cli_io.progress(frames, head.count):
                writer.write(frame)


@cli.command()
@cli_options.source
@cli_options.output("Latents (.npy, float32, frames × layers × 512).")
@cli_options.weights_in("generator")
@cli_options.weights_in("encoder")
@cli_options.one_of(
    "--method",
    ["encoder", "optimise", "sequential", "hybrid"],
    "encoder",
    "One pass of the encoder; or optimise every frame alone (Algorithm 1), each from the one before (2), or from the encoder's code.",
)
@cli_options.one_of(
    "--space", ["w+", "w", "z"], "w+", "A latent for every layer, one for all, or what the mapping network is fed."
)
@cli_options.steps(5000)
@click.option(
    "--next-steps",
    type=click.IntRange(min=1),
    help="Steps for each frame of a clip after the first.  [default: 500 sequential, 100 hybrid]",
)
@cli_options.number(
    "--hybrid-steps", 500, "Steps for a photo, or a clip's first frame, from the encoder's code.", least=1
)
@cli_options.lr(0.01)
@cli_options.number("--pixel-weight", 1.0, "Weight of the pixel loss beside the perceptual one.")
@cli_options.perceptual
@cli_options.number("--w-noise", 0.01, "Noise on latents that start at the mean, fading; 0 leaves it out.")
@cli_options.number(
    "--tolerance", 0.0, "End a frame early when 50 steps lower its loss by less than this part; 0 takes all steps."
)
@cli_options.precision
@cli_options.batch(4)
@click.option(
    "--log",
    metavar="FILE",
    callback=cli_options.writable,
    help="Write the loss of every frame's steps here, as JSON lines.",
)
@cli_options.number("--log-every", 10, "Steps of a frame between two of its records in the log.", least=1)
@cli_options.listed("the path of a clip")
@cli_options.seed
@cli_options.device
def invert(
    source, output, listing, shard, overwrite, generator, encoder, method, perceptual, log, log_every, device, **options
):
    """Find the latents that make a generator draw each frame.

    Optimising into a named file keeps what is done in FILE.part: the same command goes on from there.

    \b
      talkhead align clip.mpg | talkhead invert > latents.npy
      talkhead invert face.png --method hybrid -o face.npy
      talkhead invert --list aligned.txt -o latents/ --shard 0/4
    """
    networks = {"generator": generator} | ({"encoder": encoder} if method in ("encoder", "hybrid") else {})
    device, generator, *encoder = _load(_device(device, listing), **networks)
    perceptual = None if method == "encoder" else _perceptual(perceptual, device)
    work = functools.partial(
        _invert,
        generator=generator,
        encoder=encoder,
        method=method,
        perceptual=perceptual,
        device=device,
        **options,
    )
    if listing is not None:
        return _each(work, listing, output, shard, overwrite, suffix=".npy", beside=[".json"])
    work(source, output, log=log, log_every=log_every)


def _invert(source, output, generator, encoder, method, perceptual, device, log=None, log_every=1, **options):
    """Find the latents of one clip; how many were written."""
    from talkhead import files, inversion, video_files

    about = {"generator": generator.fingerprint, "fps": files.FPS, "method": method, "space": options["space"]}
    with video_files.read_frames(source) as reader:
        if not reader.aligned:
            cli_io.log(f"{reader.name}: not marked as aligned; taken as it is")
        if method == "encoder":
            latents = inversion.invert(
                cli_io.progress(reader, reader.count), generator, method, *encoder, device=device, **options
            )
            return files.write_latents(output, latents, about)
        return _optimised(
            reader, output, generator, method, encoder, perceptual, log, log_every, about, device=device, **options
        )


def _optimised(reader, output, generator, method, encoder, perceptual, log, log_every, about, **options):
    """Latents by optimisation, written: what is shown, logged and kept on the way is settled here; how many they are."""
    from talkhead import files, inversion

    planned = inversion.planned_steps(method, options["steps"], options["next_steps"], options["hybrid_steps"])
    total = None if reader.count is None else sum(map(planned, range(reader.count)))
    partial = output + ".part" if output != "-" and (os.path.isfile(output) or not os.path.exists(output)) else None
    resumed = partial is not None and os.path.exists(partial)
    if resumed:
        cli_io.log(f"{partial}: going on from what was done")
    with cli_io.InversionLog(total, log, log_every, resumed) as watch:
        latents = inversion.invert(
            reader,
            generator,
            method,
            *encoder,
            perceptual=perceptual,
            partial=partial,
            on_record=watch.record,
            **options,
        )
        count = files.write_latents(output, watch.path(latents, planned), about | {"perceptual": perceptual.name})
    if options["tolerance"]:
        cli_io.log(
            f"{watch.early} of {len(watch.taken)} frames converged early; {sum(watch.taken.values())} steps in all"
        )
    if partial is not None and os.path.exists(partial):
        os.remove(partial)
    return count


@cli.command()
@cli_options.input_option(
    "--identity",
    "The face that speaks or moves: a picture or a clip; or prepared, so that no encoder is asked: latents that invert "
    "or others wrote (.npy, .npz, .pt), or a tuned generator and its face, of pti (.pt).",
)
@cli_options.input_option(
    "--audio",
    "What it says: any file with a sound track, or a pipe, which is spoken as it comes. With --latents, the sound to go along.",
)
@click.option(
    "--noise-seed",
    metavar="N,N,…",
    callback=cli_options.whole_numbers,
    help="No speech: move the face by chance. The same seed moves every face alike; several follow each other without a seam.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), help="How long it moves by chance.  [default: 4]"
)
@cli_options.input_option(
    "--latents", "Render these latents instead (.npy; NVIDIA's .npz; a .pt of one tensor, as e4e and PTI write)."
)
@cli_options.output("Video, folder of pictures, or a pipe.")
@cli_options.output("Write the latents here too (.npy).", "--latents-out", default=None)
@cli_options.weights_in("generator")
@cli_options.weights_in("encoder")
@cli_options.weights_in("audio2latent")
@click.option(
    "--model", type=click.Choice(["first", "second"]), help="Which of the bundled speech models.  [default: second]"
)
@cli_options.audio_features
@click.option("--deterministic", is_flag=True, help="Give the first model no noise: no seed changes what it makes.")
@cli_options.weights_in("video_gan")
@cli_options.alignment
@cli_options.one_of(
    "--on-missing",
    ["fail", "hold", "skip"],
    "fail",
    "What to do with a frame of an identity clip where no face is found.",
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
@cli_options.number("--pti-steps", 350, "Steps of that tuning.", least=1)
@cli_options.number("--pti-frames", 125, "Frames of an identity clip to tune on.", least=1)
@click.option("--label", is_flag=True, help='Write "synthetic" into every frame, for all to see.')
@cli_options.motion
@cli_options.one_of(
    "--precision",
    ["float32", "bfloat16", "float16"],
    "float32",
    "Arithmetic of the drawing; a GPU is faster at the halves.",
)
@cli_options.batch(8)
@cli_options.listed("identity, tab, audio; with --noise-seed, identity")
@cli_options.seed
@cli_options.device
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
    **options,
):
    """Make a face speak, or move by chance, or render latents.

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
    from talkhead import files, load_features_for, synthesis
    from talkhead.dubbing import Film

    _check_inputs(identity, audio, noise_seed, seconds, latents, listing, options)
    device, drawing = _device(device, listing), {"precision": precision, "labelled": label}
    if latents is not None:
        device, generator, *seer = _load(device, generator=generator, **({"encoder": encoder} if identity else {}))
        path, code, look = files.read_latents(latents), None, None
        _check_owner(latents, files.read_about(latents), generator)
        if identity:
            options |= {"find": _finder(detector, detector_model, device), "perceptual": None}
            code, _, look = _identity(identity, generator, None, seer, {}, device, speaks=False, **options)
        with contextlib.nullcontext() if audio is None else _sound(audio) as sound:
            return _draw(
                generator, path, len(path), sound, output, latents_out, look, code, head=True, batch=batch, **drawing
            )
    drives = {"video_gan": video_gan} if noise_seed else {"audio2latent": _speech_model(model, audio2latent)}
    # Before the networks are loaded: what is wrong with it is known at once, and a recorder need not wait.
    opened = None if audio is None else click.get_current_context().with_resource(_sound(audio))
    told, tuned = generator, identity if identity and _prepared(identity) and not files.is_latents(identity) else None
    seen = {} if identity and _prepared(identity) else {"encoder": encoder}
    device, generator, *seer, driver = _load(device, generator=told or tuned, **seen, **drives)
    motion = {
        "gain": gain,
        "gate": gate,
        "layers": layers,
        "blink": blink,
        "seed": options["seed"],
        "deterministic": deterministic,
    }
    if blink:
        motion["blink_latent"] = _blink(blink_latent, generator)
    options |= {
        "find": _finder(detector, detector_model, device),
        "perceptual": _perceptual("auto", device) if options["pti"] else None,
    }
    face_of = functools.partial(
        _identity,
        generator=generator,
        told=told,
        seer=seer,
        drives=drives,
        device=device,
        speaks=not noise_seed,
        **options,
    )
    if not noise_seed:
        features = load_features_for(driver, features, features_model, device)

    def speak(identity, audio, output, latents_out=None):
        with opened or _sound(audio) as sound:
            code, speaker, look = face_of(identity)
            size = 1 if sound.live and _by_default("batch") else batch
            if isinstance(look, Film):
                synthesis.match_range(look, speaker, driver, code, features)
            path = synthesis.speech_to_latents(None, driver, code, sound, size, features=features, **motion)
            frames = None if sound.count is None else -(-sound.count * 25 // sound.rate)
            return _draw(
                speaker,
                path,
                frames,
                sound,
                output,
                latents_out,
                look,
                code,
                blink,
                options["seed"],
                batch=size,
                **drawing,
            )

    def wander(identity, output, latents_out=None):
        code, mover, look = face_of(identity)
        segments = _segments(noise_seed, seconds)
        path = synthesis.noise_to_latents(None, driver, code, segments, batch=batch, gain=gain)
        return _draw(
            mover,
            path,
            sum(count for _, count in segments),
            None,
            output,
            latents_out,
            look,
            code,
            head=True,
            batch=batch,
            **drawing,
        )

    fields, work = (("identity",), wander) if noise_seed else (("identity", "audio"), speak)
    if listing is not None:
        return _each(work, listing, output, shard, overwrite, fields=fields)
    work(*((identity,) if noise_seed else (identity, audio)), output, latents_out)


def _segments(seeds, seconds):
    """Each seed and its part of the frames, as equal as they can be."""
    from talkhead import files

    frames = max(len(seeds), round((seconds or 4) * files.FPS))
    ends = [frames * k // len(seeds) for k in range(len(seeds) + 1)]
    return [(seed, end - start) for seed, start, end in zip(seeds, ends, ends[1:])]


def _sound(source):
    """A sound that is heard as it comes, and goes along with the frames."""
    from talkhead import audio_files, files

    return audio_files.read_sound(
        source, keep=True, on_wait=lambda: cli_io.log(f"{source}: nothing has come for {files.PATIENCE:.0f} s; waiting")
    )


def _blink(source, generator):
    """The latent that shuts a face's eyes, (L, 512), in a file; None is the bundled one."""
    from talkhead import checkpoints, files, latents

    source = source or str(checkpoints.WEIGHTS / "blink.npy")
    owner = files.read_about(source).get("generator")
    if owner is not None and owner not in generator.lineage:
        raise TalkheadError(
            f"{source}: shuts the eyes of generator {owner}, not of {generator.fingerprint}; pass its own as --blink-latent, "
            "which examples/learn_blink.py makes"
        )
    latent = files.read_latents(source)[0]
    if len(latent) != generator.num_ws and (owner is None or len(latent) > generator.num_ws):
        raise TalkheadError(
            f"{source}: has {len(latent)} layers, the generator {generator.num_ws}; pass another --blink-latent"
        )
    return latents.extend_layers(latent, generator.num_ws)


def _by_default(option):
    """Whether the caller left an option of this command alone."""
    return click.get_current_context().get_parameter_source(option) is ParameterSource.DEFAULT


def _prepared(identity):
    """Whether a file holds a face as latents, or with a generator tuned on it, and not as pictures."""
    return identity.lower().endswith((".pt", ".npy", ".npz"))


def _draw(
    generator,
    path,
    frames,
    sound,
    output,
    latents_out,
    look=None,
    code=None,
    blink=0.0,
    seed=0,
    head=False,
    *,
    batch,
    precision,
    labelled,
):
    """Draw a path of so many frames as a video, with the detail of a photo or film; how many they are."""
    from talkhead import files, synthesis, video_files

    with contextlib.ExitStack() as stack:
        if latents_out:
            path = stack.enter_context(
                files.tee_latents(latents_out, path, {"generator": generator.fingerprint, "fps": files.FPS})
            )
        pictures = synthesis.synthesize(generator, path, batch, precision=precision)
        about = {"talkhead_aligned": str(generator.resolution)}
        if look is not None:
            pictures = synthesis.with_detail(
                pictures, look, generator, code, precision=precision, blink=blink, seed=seed, head=head, batch=batch
            )
            about = {"talkhead_aligned": str(look.frame.height)} if look.frame.quad is None else {}
        if labelled:
            pictures = synthesis.label(pictures)
        writer = stack.enter_context(video_files.FrameWriter(output, sound=sound, synthetic=True, metadata=about))
        for picture in cli_io.progress(pictures, frames):
            writer.write(picture)
    return writer.count


def _speech_model(model, file):
    """The file of the speech model that is meant; None is the bundled second one."""
    from talkhead import checkpoints

    if model and file:
        raise click.UsageError("pass --model or --audio2latent, not both: the file says which model it holds")
    return checkpoints.bundled("first") if model == "first" else file


def _check_inputs(identity, audio, noise_seed, seconds, latents, listing, options):
    if noise_seed and (audio is not None or latents is not None):
        raise click.UsageError("pass one of --audio, --noise-seed and --latents: each says how the face moves")
    if seconds is not None and not noise_seed:
        raise click.UsageError("--seconds goes with --noise-seed; speech and latents are as long as they are")
    if latents is None and listing is None and (identity is None or audio is None and not noise_seed):
        raise click.UsageError("pass --identity and --audio or --noise-seed, or --latents")
    if (
        latents is not None
        and identity is not None
        and (options["pti"] or not options["detail"] or _prepared(identity))
    ):
        raise click.UsageError(
            "--latents say how the face moves; --identity is then the photo that moves, without --pti and --no-detail"
        )
    if options["whole"] and (options["size"] or not options["detail"]):
        raise click.UsageError("--whole keeps the photo's size and detail; leave --size and --no-detail out")
    if (options["whole"] or options["size"]) and (
        identity is None and listing is None or identity is not None and _prepared(identity)
    ):
        raise click.UsageError("--whole and --size want a photo or clip as --identity")
    if options["pti"] and identity is not None and _prepared(identity):
        raise click.UsageError("--pti tunes on pictures; pass one as --identity, or leave --pti out")


def _check_owner(name, about, generator):
    """Latents that say which generator they belong to are drawn by it, or by one tuned from it."""
    owner = about.get("generator")
    if owner is not None and owner not in generator.lineage:
        raise TalkheadError(
            f"{name}: latents of generator {owner}, not of {generator.fingerprint}; pass theirs as --generator"
        )


def _check_fit(name, latent, generator):
    """Latents to be drawn are of this generator, and of its layers."""
    from talkhead import files

    _check_owner(name, files.read_about(name), generator)
    if len(latent) != generator.num_ws:
        raise TalkheadError(
            f"{name}: latents of {len(latent)} layers, this generator has {generator.num_ws}; pass theirs as --generator"
        )


def _identity(
    source,
    generator,
    told,
    seer,
    drives,
    device,
    speaks,
    pti,
    pti_steps,
    pti_frames,
    detail,
    perceptual,
    seed,
    **places,
):
    """The code (L, 512) of the face that will speak, the generator that draws it, tuned on it if asked, and its detail: Photo, Film or None.

    generator, seer   the networks loaded: generator, and [encoder] or []
    told              the --generator that the caller named, or None
    drives            {kind: path} of what moves it, which a tuned generator must fit
    speaks            whether a sound moves it: then a clip is a film to be dubbed
    places            how faces are found and which size is wanted, for `_look` and `_followed`
    """
    from itertools import islice

    from talkhead import synthesis, tune, video_files
    from talkhead.dubbing import Film

    if _prepared(source):
        return _prepared_identity(source, generator, told, drives, device, detail, places["neutral"])
    with video_files.read_frames(source, limit=None if detail and speaks else pti_frames if pti else 1) as reader:
        if detail:
            look = _look(reader, generator, speaks, **places)
            frames = [look.face(synthesis.aligned_side(generator))]
            if pti and isinstance(look, Film):
                frames += [
                    look.crop(index, len(frames[0]))
                    for index in range(0, len(look), -(-len(look) // max(pti_frames - 1, 1)))
                ]
        else:
            look, followed = (
                None,
                _followed(reader, *(places[name] for name in ("aligned", "face", "find", "on_missing"))),
            )
            frames = [
                _cut(frame, quad, synthesis.aligned_side(generator))
                for frame, quad, _ in islice(followed, pti_frames if pti else 1)
            ]
    if pti:
        images, pivots = _lessons(reader.name, generator, *seer, frames, device)
        with cli_io.progress(None, pti_steps, "step") as bar:
            generator = tune(
                generator,
                images,
                pivots,
                pti_steps,
                perceptual=perceptual,
                seed=seed,
                on_record=lambda record: bar.update(),
            )
    return synthesis.encode_identity(*seer, frames[0]), generator, look


def _look(reader, generator, speaks, aligned, face, find, on_missing, whole, size, neutral):
    """The detail of a photo, or of a clip that is to be dubbed with its sound, if it has any: Photo or Film."""
    from itertools import chain, islice

    from talkhead import audio_files, faces, synthesis
    from talkhead.detail import native_side
    from talkhead.dubbing import Film

    tracked = _followed(reader, aligned, face, find, on_missing)
    if whole and (aligned or reader.aligned):
        raise TalkheadError(f"{reader.name}: aligned already; --whole wants the picture that it was cut from")
    frame, quad, _ = first = next(tracked)
    own = native_side(faces.whole_quad(frame) if quad is None else quad)
    if own < generator.resolution:
        cli_io.log(
            f"{reader.name}: the face is {own} pixels wide there, fewer than the {generator.resolution} of the generator; a larger photo is drawn better"
        )
    look = synthesis.identity_of(
        islice(chain([first], tracked), None if speaks else 1), generator, whole, size, neutral, name=reader.name
    )
    if isinstance(look, Film):
        with contextlib.suppress(TalkheadError):  # no sound track, or a pipe that has been read
            look.sound = audio_files.read_audio(reader.name)
    return look


def _prepared_identity(source, generator, told, drives, device, detail, neutral):
    """A code (L, 512) out of a file, the generator that draws it, and the Photo that a tuned generator keeps, or None."""
    from talkhead import checkpoints, files
    from talkhead.detail import Photo

    if files.is_latents(source):
        codes = files.read_latents(source)
        _check_owner(source, files.read_about(source), generator)
        return codes.mean(0), generator, None
    tuned = checkpoints.load_generator(source, device)
    if tuned.identity is None:
        raise TalkheadError(
            f"{source}: holds no face beside the generator; tune again with talkhead pti, or pass it as --generator and a picture as --identity"
        )
    if told is not None and tuned.fingerprint != generator.fingerprint:
        raise TalkheadError(
            f"{source}: a face of generator {tuned.fingerprint}, not of {generator.fingerprint}; leave --generator out"
        )
    for kind, path in drives.items():
        _load_driver(kind, path or checkpoints.bundled(kind), tuned, [], device)  # of the same family?
    look = (
        Photo(tuned.photo, checkpoints.load_keypoints(), neutral=neutral)
        if detail and tuned.photo is not None
        else None
    )
    return tuned.identity, tuned, look


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
@cli_options.number(
    "--min-delta", 0.02, "End when 50 steps lower their mean loss by less than this part; 0 takes all steps."
)
@cli_options.number("--limit", 125, "Frames of a clip to tune on.", least=1)
@cli_options.sheets
@cli_options.run
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
    from talkhead import pti, synthesis, video_files
    from talkhead.detail import native_side

    device, generator, encoder = _load(cli_io.init_process_group(device), generator=generator, encoder=encoder)
    with video_files.read_frames(source, limit=limit) as reader:
        followed = _followed(reader, aligned, face, _finder(detector, detector_model, device))
        frame, quad, _ = next(followed)
        photo = _cut(frame, quad, None if quad is None else native_side(quad))
        side = synthesis.aligned_side(generator)
        frames = [_cut(frame, quad, side), *(_cut(frame, quad, side) for frame, quad, _ in followed)]
    images, pivots = _lessons(reader.name, generator, encoder, frames, device)
    records = pti.train(
        images, generator, pivots, output, photo=photo, perceptual=_perceptual(perceptual, device), **options
    )
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
    "--fps",
    type=click.FloatRange(min=1),
    default=25.0,
    show_default=True,
    help="Frames a second at which clips are compared.",
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
    help="Measure what needs landmarks, and so a detector: LMD and its velocity, the mouth's opening, jitter, sharpness.",
)
@click.option(
    "--landmarks",
    metavar="PATH",
    help="True landmarks of REAL (.npy, frames × 68 × 2), or a folder with NAME.landmarks.npy.",
)
@click.option(
    "--enlarge",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    help="Enlarge frames so many times for the detector.",
)
@cli_options.number("--max-lag", 5, "Frames by which the mouth may be late or early.")
@click.option(
    "--phonemes",
    metavar="PATH",
    help="When sounds are made, for the share of /p b m/ with shut lips: a TextGrid, .mlf, .lab, .align "
    "or a puppet's .json, or a folder of them by REAL's names.",
)
@click.option(
    "--dictionary",
    metavar="FILE",
    help="Pronunciations in CMUdict's format, where words are timed.  [default: GRID's words]",
)
@cli_options.number(
    "--shut-below", 0.25, "Lips are shut below this share of the way from the true mouth's rest to its widest."
)
@cli_options.number("--closure-tolerance", 1, "Frames by which lips may shut too early or too late.")
@click.option(
    "--fid",
    is_flag=True,
    help="Compare all frames of REAL with all of FAKE, as FID and KID; of several pairs, all of the set.",
)
@cli_options.fid_features
@click.option("--lpips", is_flag=True, help="Measure LPIPS (VGG), which needs weights.")
@click.option(
    "--identity-network",
    metavar="FILE",
    help="Face recognition for the cosine of identities: model_ir_se50.pth, or a program of torch.export.",
)
@click.option("--aligned", is_flag=True, help="The faces are aligned already.")
@click.option("--syncnet", metavar="FILE", help="SyncNet's weights, syncnet_v2.model, for LSE-C and LSE-D.")
@click.option(
    "--networks", is_flag=True, help="Tell how large and how fast the three networks are, too; or alone, without clips."
)
@cli_options.weights_in("generator")
@cli_options.weights_in("encoder")
@cli_options.weights_in("audio2latent")
@cli_options.detection
@cli_options.device
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
    speed = (
        [
            evaluation.network_speed(
                *_load(options["device"], generator=generator, encoder=encoder, audio2latent=audio2latent)[1:]
            )
        ]
        if networks
        else []
    )
    records = (
        _measured(
            clips,
            _protocol(protocol, options),
            None if output == "-" else output,
            table,
            overwrite=overwrite,
            workers=workers,
            shard=cli_io.shard_of(shard),
        )
        if clips
        else []
    )
    if table:
        click.echo(evaluation.table(records + speed))
    elif not clips and output != "-":
        files.write_json(output, speed[0])
    else:
        cli_io.print_records(speed)
    click.get_current_context().exit(int(any("error" in record for record in records)))


def _pairs(places, listing, networks):
    """Which clips are compared."""
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
    """How they are compared: as the options say, or as somebody did before."""
    from talkhead import evaluation

    if place is None:
        return evaluation.Protocol(**options)
    source = click.get_current_context().get_parameter_source
    explicit = {name for name in options if source(name) is not click.core.ParameterSource.DEFAULT}
    told = evaluation.read_protocol(place)
    protocol = evaluation.Protocol(**evaluation.replay(told, options, explicit, f"--protocol {place}"))
    evaluation.check(told, protocol, f"--protocol {place}")
    return protocol


def _measured(pairs, protocol, output, quiet, shard, **options):
    """Measure pairs, print the records unless they go to a file, say what failed; all of them."""
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
@click.option(
    "--resolution",
    type=click.IntRange(min=8),
    help="Side of the pictures, a power of two.  [default: 256, or that of --init]",
)
@cli_options.widths(
    "Channels at 4², 8², … up to the resolution.  [default: StyleGAN2's config F, or those of --init, each further level half as wide]"
)
@cli_options.widths("The discriminator's, likewise.  [default: the generator's]", "--d-channels")
@click.option(
    "--mapping-layers", type=click.IntRange(min=1), help="Layers from Z to W.  [default: 8, or those of --init]"
)
@cli_options.init_option(
    "Start from the generator in this file; it may be of a lower resolution, with the same channels where both have levels."
)
@cli_options.training_steps
@cli_options.batch(16)
@cli_options.lr(0.002)
@cli_options.number("--beta1", 0.0, "Adam's memory of gradients; without a discriminator, 0.9 learns faster.")
@cli_options.number("--r1", 10.0, "Weight of the R1 penalty.")
@cli_options.number("--r1-interval", 16, "Steps between two R1 penalties.", least=1)
@cli_options.number("--pl-weight", 2.0, "Weight of the path-length penalty; 0 leaves it out.")
@cli_options.number("--pl-interval", 4, "Steps between two path-length penalties.", least=1)
@cli_options.number("--style-mixing", 0.9, "Share of pictures that mix two styles.")
@cli_options.number("--ema-half-life", 10_000, "Half life of the weight average, in pictures.", least=1)
@click.option("--flip", is_flag=True, help="Mirror half of the pictures.")
@cli_options.number(
    "--freeze-d",
    0,
    "Levels of the discriminator that stay as they are in --init, from the pictures' own size downwards.",
)
@cli_options.one_of(
    "--augment",
    ["none", "ada", "fixed"],
    "none",
    "Change at random what the discriminator sees, for small sets: as often as it takes (ada), or always as often.",
)
@cli_options.number("--augment-p", 0.0, "Probability of each change, if fixed; where ada starts a new run.")
@cli_options.number(
    "--ada-target", 0.6, "What ada holds the mean sign of the discriminator's logits for real pictures at."
)
@cli_options.number("--ada-images", 500_000, "Pictures that would take ada's probability from 0 to 1.", least=1)
@cli_options.number(
    "--jitter",
    0.0,
    "Probability with which a training picture is moved, bent and recoloured a little before anything learns from it.",
)
@cli_options.number(
    "--lr-decay", 0.0, "Share of the steps, the last ones, over which the learning rates fall to nothing."
)
@click.option(
    "--encoder-out",
    metavar="FILE",
    callback=cli_options.writable,
    help="Train an encoder along, by reconstruction, and write it here (.pt).",
)
@click.option(
    "--encoder-init", metavar="FILE", help="Start it from these weights, made for --init.  [default: a new one]"
)
@cli_options.encoder_shape
@cli_options.number(
    "--encoder-lr",
    0.001,
    "The encoder's learning rate; 0 holds it still, and what was trained for --init fits the result.",
)
@cli_options.number("--reconstruction-weight", 10.0, "Weight of the reconstruction.")
@cli_options.number("--mouth-weight", 0.0, "Weight of the mouth's own reconstruction.")
@cli_options.number(
    "--lip-weight",
    0.0,
    "Weight of where the lips are, as the bundled keypoint network reads them in picture and reconstruction.",
)
@cli_options.number("--feature-weight", 1.0, "Weight of the reconstruction as the discriminator sees it.")
@cli_options.number(
    "--sample-share", 0.5, "Share of a fake batch drawn from z; the rest are reconstructions. Needs an encoder."
)
@cli_options.number("--reconstruct-only", 0, "First so many steps reconstruct, without a discriminator.")
@cli_options.number(
    "--fid-every",
    0,
    "Steps between two measurements of FID and KID against the training pictures, where the best is kept; 0 for none.",
)
@cli_options.number(
    "--fid-images",
    10_000,
    "Pictures drawn for that, and training pictures taken; fewer than features make FID too large.",
    least=2,
)
@cli_options.fid_features
@cli_options.perceptual
@cli_options.data
@cli_options.sheets
@cli_options.run
def train_stylegan(
    sources,
    output,
    init,
    resolution,
    channels,
    d_channels,
    mapping_layers,
    encoder_out,
    encoder_init,
    width,
    input_size,
    stem_stride,
    pool_size,
    perceptual,
    every,
    limit,
    tensorboard,
    device,
    **options,
):
    """Train the face generator on pictures or clips, or on what was packed of them.

    \b
      talkhead train-stylegan clips/ -o generator.pt --resolution 64 --steps 100000
    """
    import torch

    from talkhead import checkpoints, losses, train_stylegan

    if options["freeze_d"] and not init:
        raise click.UsageError("--freeze-d needs --init: a new discriminator has to learn at every level")
    device = cli_io.init_process_group(device)
    if options["fid_every"]:
        options["fid_features"] = _features(options["fid_features"], device)
    torch.manual_seed(options["seed"])
    sizes = {"resolution": resolution, "channels": channels, "mapping_layers": mapping_layers}
    generator, discriminator, lineage = _networks(init, d_channels, options["freeze_d"], **sizes)
    if encoder_out or encoder_init:
        shape = {"width": width, "input_size": input_size, "stem_stride": stem_stride, "pool_size": pool_size}
        along = _encoder(encoder_init, generator.num_ws, shape)
        options |= {"encoder": along, "reconstruction": _perceptual(perceptual, device)}
        if options["lip_weight"]:
            options["lips"] = losses.LipDistance(checkpoints.load_keypoints()).to(device)
        if options["encoder_lr"] == 0:
            options["lineage"] = lineage
        if encoder_out:
            options["on_save"] = functools.partial(_save_encoder, encoder_out, along)
    elif options["reconstruct_only"]:
        raise click.UsageError(
            "--reconstruct-only needs --encoder-out or --encoder-init: only an encoder can reconstruct"
        )
    images = _images(sources, generator.resolution, every, limit)
    images.warn_of_mixture()
    records = train_stylegan.train(images, output, generator, discriminator, device=device, **options)
    cli_io.follow_training(records, options["steps"], tensorboard)


@cli.command("train-encoder")
@cli_options.sources
@cli_options.trained("the encoder")
@cli_options.weights_in("generator")
@cli_options.one_of(
    "--arch", ["resnet", "psp"], "resnet", "ResNet18 with one linear layer, or pSp's IR-SE-50 with a feature pyramid."
)
@cli_options.encoder_shape
@cli_options.one_of(
    "--head",
    ["pyramid", "last", "w+", "w"],
    "pyramid",
    "How psp makes latents: each from the map of its scale, each from the last map, all by one layer, or one for all.",
)
@click.option("--imagenet", metavar="FILE", help="Start resnet's first blocks from torchvision's resnet18 weights.")
@click.option("--irse", metavar="FILE", help="Start psp's trunk from a face-recognition network, model_ir_se50.pth.")
@cli_options.init_option("Start from these weights of an encoder; architecture, sizes and all.")
@cli_options.training_steps
@cli_options.batch(8)
@cli_options.number("--lr", None, "Learning rate.  [default: 0.004, psp 0.0001]")
@click.option(
    "--pixel",
    type=click.Choice(["rms", "mse"]),
    help="Pixel loss: root mean square or mean square.  [default: rms, psp mse]",
)
@cli_options.number("--pixel-weight", 1.0, "Weight of the pixel loss.")
@cli_options.number("--perceptual-weight", None, "Weight of the perceptual loss.  [default: 1, psp 0.8]")
@cli_options.number("--latent-weight", 0.0, "Weight of staying near the mean latent.")
@click.option(
    "--identity-network",
    metavar="FILE",
    help="Face recognition for an identity loss: model_ir_se50.pth, or a program of torch.export.",
)
@cli_options.number("--identity-weight", 0.1, "Weight of the identity loss.")
@click.option(
    "--loss-size",
    type=click.IntRange(min=8),
    help="Compare larger pictures at this size.  [default: the generator's, psp 256]",
)
@cli_options.perceptual
@click.option("--flip", is_flag=True, help="Mirror half of the pictures.")
@cli_options.validation
@cli_options.data
@cli_options.sheets
@cli_options.run
def train_encoder(
    sources,
    output,
    generator,
    arch,
    width,
    input_size,
    stem_stride,
    pool_size,
    head,
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

    from talkhead import checkpoints, losses, train_encoder

    for_resnet, for_psp = imagenet or (stem_stride, pool_size) != (4, 1), irse or head != "pyramid"
    if not init and (for_psp if arch == "resnet" else for_resnet):
        raise click.UsageError(
            "--imagenet, --stem-stride and --pool-size are for --arch resnet, --irse and --head for --arch psp"
        )
    device, generator = _load(cli_io.init_process_group(device), generator=generator)
    torch.manual_seed(options["seed"])
    if init:
        encoder = checkpoints.load_encoder(init)
    else:
        own = {"head": head} if arch == "psp" else {"stem_stride": stem_stride, "pool_size": pool_size}
        encoder = _new_encoder(arch, generator, imagenet, irse, width=width, input_size=input_size, **own)
    if identity_network:
        options["identity"] = losses.identity_network(identity_network, device)
    size = train_encoder.training_size(generator, encoder, options["loss_size"])
    images = _images(sources, size, every, limit)
    held_out = _images(validation, size, every, limit) if validation else None
    records = train_encoder.train(
        images,
        generator,
        output,
        encoder,
        perceptual=_perceptual(perceptual, device),
        validation=held_out,
        device=device,
        **options,
    )
    cli_io.follow_training(records, options["steps"], tensorboard)


@cli.command("train-audio2latent")
@cli_options.sources
@cli_options.trained("the speech model")
@cli_options.weights_in("generator")
@cli_options.weights_in("encoder")
@cli_options.one_of(
    "--model", ["first", "second"], "second", "The thesis's first model, for a few people, or its second, for anybody."
)
@cli_options.audio_features
@cli_options.widths(
    "Channels of its convolutions.  [default: 32,32,64,64 in the first model, 64,128,256,256,512 in the second]"
)
@cli_options.width("--lstm", "Width of its three LSTM layers.  [default: 64 in the first model, 256 in the second]")
@cli_options.width("--decoder", "Width of its decoder.  [default: 256 in the first model, 512 in the second]")
@cli_options.width(
    "--components", "Second model: principal components of the latents that it moves along.  [default: 2500]"
)
@cli_options.width("--hidden", "Second model: width of the wide layer after the convolutions.  [default: 2048]")
@cli_options.width("--embedding", "Second model: width of the layer after that.  [default: 256]")
@cli_options.width("--identity-width", "First model: numbers that say whose face it is.  [default: 128]")
@cli_options.width("--noise-width", "First model: numbers of noise for each frame.  [default: 10]")
@click.option("--deterministic", is_flag=True, help="First model: without noise.")
@cli_options.training_steps
@cli_options.batch(16)
@cli_options.number("--frames", 25, "Video frames of each example.", least=1)
@cli_options.lr(2e-4)
@cli_options.number(
    "--latent-weight", None, "Weight of the loss on latents.  [default: 0 for the first model, 250 for the second]"
)
@cli_options.number("--image-weight", 1.0, "Weight of the perceptual loss on pictures.")
@cli_options.number("--image-frames", 8, "Pictures drawn in a step for that loss; 0 trains on latents alone.")
@cli_options.number("--mouth-weight", 0.0, "Weight of the loss on the mouth's opening.")
@cli_options.perceptual
@click.option(
    "--augment/--no-augment",
    default=True,
    show_default=True,
    help="Vary loudness, speed, noise and microphone of the speech.",
)
@click.option(
    "--hold-out",
    metavar="N|NAME,…",
    default="10",
    show_default=True,
    callback=cli_options.hold_out,
    help="Speakers, or single clips, kept to measure on: how many, or which.",
)
@cli_options.number("--validate-every", 200, "Steps between two measurements; the best model is kept.", least=1)
@cli_options.number(
    "--identity-noise",
    None,
    "Blur of the identity that the model is shown, so that it learns no face by heart.  "
    "[default: 0 for the first model, 0.3 for the second]",
)
@cli_options.number(
    "--best-of-n",
    1,
    "Draws of the first model's noise, of which it learns from the nearest; of one, it learns to ignore noise.",
    least=1,
)
@click.option(
    "--patience",
    type=click.IntRange(min=0),
    help="Lower the learning rate to a tenth after so many measurements without progress; "
    "0 never does.  [default: 10 for the first model, 0 for the second]",
)
@cli_options.number(
    "--lr-decay", 0.0, "Share of the steps, the last ones, over which the learning rate falls to nothing."
)
@cli_options.number("--ema-decay", 0.998, "Share that the running average of the weights keeps each step.")
@cli_options.run
def train_audio2latent(
    sources,
    output,
    generator,
    encoder,
    model,
    features,
    features_model,
    channels,
    lstm,
    decoder,
    components,
    hidden,
    embedding,
    identity_width,
    noise_width,
    deterministic,
    tensorboard,
    device,
    **options,
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

    widths = _widths(
        model,
        {
            "channels": channels,
            "lstm": lstm,
            "decoder": decoder,
            "components": components,
            "hidden": hidden,
            "embedding": embedding,
            "identity_width": identity_width,
            "noise_width": 0 if deterministic else noise_width,
        },
    )

    device, generator, encoder = _load(cli_io.init_process_group(device), generator=generator, encoder=encoder)
    torch.manual_seed(options["seed"])
    features = audio_features.features(
        features or audio2latent.MODELS[model].defaults["features"], features_model, device
    )
    model = audio2latent.build(model, num_ws=generator.num_ws, window_shape=features.shape, **widths)
    if options["image_frames"]:
        options["perceptual"] = _perceptual(options["perceptual"], device)
    records = train_audio2latent.train(
        sources, generator, encoder, output, model, features=features, device=device, **options
    )
    cli_io.follow_training(records, options["steps"], tensorboard)


def _widths(model, told):
    """The widths that were told of a speech model, if it has such parts."""
    told = {name: value for name, value in told.items() if value is not None}
    strangers = told.keys() & (
        {"components", "hidden", "embedding"} if model == "first" else {"identity_width", "noise_width"}
    )
    if strangers:
        raise click.UsageError(
            f"--{sorted(strangers)[0].replace('_', '-')}: the {model} model has no such part; leave it out"
        )
    lengths = {"first": 4, "second": 5}
    if len(told.get("channels", range(lengths[model]))) != lengths[model]:
        raise click.UsageError(f"--channels: the {model} model has {lengths[model]} convolutions; name as many widths")
    return {{"embedding": "features"}.get(name, name): value for name, value in told.items()}


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
    help="Another model's settings, in the place of the defaults below.",
)
@cli_options.number("--components", 384, "Principal components of the latents that it moves along.", least=1)
@cli_options.number("--noise", 512, "Numbers of noise for each frame.", least=1)
@click.option(
    "--hidden",
    type=click.IntRange(min=1),
    help="Width of the LSTM, with a layer after it.  [default: that of --components, and none]",
)
@cli_options.one_of("--space", ["w_plus", "w"], "w_plus", "Whether each layer of latents moves by itself.")
@cli_options.one_of(
    "--displace",
    ["identity", "previous"],
    "identity",
    "What is displaced: the identity's latents, or the frame before.",
)
@cli_options.one_of(
    "--start", ["encode", "sample"], "encode", "What faces it learns to move: those of the clips, or random ones."
)
@cli_options.one_of(
    "--real",
    ["auto", "video", "projected"],
    "auto",
    "What the discriminator takes for real: clips (eq. 3.7), or clips as the "
    "generator draws them (eq. 3.10); auto asks the generator's file whether it was trained on films.",
)
@click.option("--contrastive", is_flag=True, help="Add MoCoGAN-HD's contrastive loss.")
@click.option("--image-discriminator", is_flag=True, help="Add a discriminator of single frames.")
@cli_options.one_of("--adversarial", ["log", "relativistic"], "log", "The adversarial loss.")
@cli_options.number("--information-weight", 1.0, "Weight of the information loss.")
@cli_options.number("--width", 64, "Channels of the video discriminator's first layer.", least=1)
@cli_options.number("--scales", 2, "Scales at which it looks.", least=1)
@cli_options.one_of("--norm", ["none", "instance"], "none", "Normalisation inside it.")
@click.option(
    "--conditional/--unconditional",
    default=True,
    show_default=True,
    help="Whether it sees the identity beside each frame.",
)
@click.option(
    "--d-size", type=click.IntRange(min=8), help="Side of the frames that it sees.  [default: the generator's]"
)
@click.option("--shallow", is_flag=True, help="Draw no finer than that: faster. Needs projected video.")
@cli_options.number("--r1", 1.0, "Weight of its gradient penalty on real video.")
@cli_options.number("--r1-interval", 4, "Steps between two such penalties.", least=1)
@cli_options.number("--interpolation", 0.0, "Weight of a gradient penalty between real and fake video, MoCoGAN-HD's.")
@cli_options.training_steps
@cli_options.batch(8)
@cli_options.number("--frames", 16, "Video frames of each example.", least=2)
@cli_options.number("--burn-in", 64, "Most frames that pass before an example, in every second step.")
@cli_options.number("--generator-steps", 1, "Steps for one of the discriminator.", least=1)
@cli_options.lr(1e-4)
@cli_options.number("--d-lr", None, "The discriminator's learning rate.  [default: that of --lr]")
@cli_options.number("--beta1", 0.5, "Adam's memory of gradients.")
@cli_options.number("--ema-decay", 0.999, "Share that the running average of the weights keeps each step.")
@cli_options.sheets
@cli_options.run
def train_video_gan(
    sources,
    output,
    generator,
    encoder,
    components,
    noise,
    hidden,
    space,
    displace,
    width,
    scales,
    norm,
    conditional,
    tensorboard,
    device,
    **options,
):
    """Train the motion model on clips: how faces move when nothing drives them but noise.

    \b
      talkhead train-video-gan clips/ -o video_gan.pt --steps 20000 --samples sheets/
      talkhead train-video-gan clips/ -o theirs.pt --steps 20000 --preset mocogan-hd
    """
    import torch

    from talkhead import train_video_gan, video_gan

    device, generator, encoder = _load(cli_io.init_process_group(device), generator=generator, encoder=encoder)
    torch.manual_seed(options["seed"])
    model = video_gan.LatentGenerator(generator.num_ws, components, noise, hidden, space, displace)
    discriminator = video_gan.VideoDiscriminator(width, scales, norm, conditional)
    records = train_video_gan.train(sources, generator, encoder, output, model, discriminator, device=device, **options)
    cli_io.follow_training(records, options["steps"], tensorboard)


@cli.group()
def plot():
    """Draw paths, losses, frames and mouths, for people to look at (PNG, SVG, PDF); needs the extra plot."""


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
    """Draw latents (.npy) in the plane of their first two principal components, colour telling the time.

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
    """What is said in the first clip, by a file of times or a folder of them."""
    from talkhead.phonemes import read

    return read(phonemes, clips[0]) if phonemes else ()


@plot.command("strip")
@cli_options.sources
@cli_options.figure
@cli_options.number("--columns", 8, "Frames of each clip.", least=1)
@cli_options.number("--start", 0.0, "Where to begin, in seconds.")
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
    """Draw how far mouths are open, in clips or by landmarks (.npy), over the sound and its phonemes.

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
    """Draw the straight and the round way through W+ between two latents (.npy), or through Z and W between random faces.

    \b
      talkhead plot interpolate me.npy you.npy -o ways.png
    """
    import numpy as np

    from talkhead import files, plots

    if len(ends) not in (0, 2):
        raise click.UsageError("pass two files of latents, the ends of the way, or none")
    codes = [files.read_latents(path)[0] for path in ends]
    _, generator = _load(device, generator=generator)
    for path, code in zip(ends, codes):
        _check_fit(path, code, generator)
    plots.save(
        plots.sheet(plots.interpolation(generator, np.stack(codes) if codes else None, columns, seed)),
        output,
        synthetic=True,
    )


@plot.command("components")
@cli_options.sources
@cli_options.figure
@cli_options.weights_in("generator")
@cli_options.number("--components", 5, "How many principal components, the widest first.", least=1)
@cli_options.number("--columns", 7, "Pictures of each.", least=2)
@cli_options.number("--reach", 3.0, "How far to go to either side, in standard deviations.")
@cli_options.device
def plot_components(sources, output, generator, components, columns, reach, device):
    """Draw what moves along each principal component of some latents (.npy), from their mean.

    \b
      talkhead plot components latents.npy -o components.png
    """
    import numpy as np

    from talkhead import files, plots

    codes = [files.read_latents(path) for path in sources]
    _, generator = _load(device, generator=generator)
    for path, each in zip(sources, codes):
        _check_fit(path, each[0], generator)
    plots.save(
        plots.sheet(*plots.components(generator, np.concatenate(codes), components, columns, reach)),
        output,
        synthetic=True,
    )


@cli.group()
def weights():
    """Files of weights: what is to be had, what they hold, and copies of them."""


@weights.command("list")
def weights_list():
    """Tell about weights: those that came with the package, then public ones that can be fetched, a JSON object each."""
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
    help="Where to put the file.  [default: where the library that wants it looks]",
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
    """Tell what a weights file holds, as JSON: talkhead's, rosinality's, NVIDIA's, PTI's, pSp's, e4e's or ReStyle's.

    \b
      talkhead weights show stylegan2-ffhq-config-f.pt
    """
    from talkhead import checkpoints

    cli_io.print_records([checkpoints.describe(file)])


@weights.command("convert")
@click.argument("source", metavar="SOURCE")
@cli_options.weights_out("the converted weights")
@cli_options.one_of("--to", ["talkhead", "rosinality", "nvidia"], "talkhead", "Whose layout.")
@click.option(
    "--part", type=click.Choice(["generator", "encoder"]), help="Which of two networks in one file, as pSp's have them."
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
