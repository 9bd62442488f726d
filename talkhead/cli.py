"""The commands: each reads, calls one library function, and writes.

Rooms are imported inside commands, because torch takes seconds to load and `--help` should not.
"""

import contextlib
import functools
import os
from collections import Counter

import click
from click.core import ParameterSource

from talkhead import __version__, options, shell
from talkhead.errors import TalkheadError

# ---------------------------------------------------------------------------------------------------------------
# What several commands do with their options

def _perceptual(name, device):
    """A perceptual distance by name; where "auto" had to choose, which one it is gets said."""
    from talkhead.losses import Perceptual

    perceptual = Perceptual(name).to(device)
    if name == "auto":
        shell.say(f"perceptual loss: {perceptual.name}" + ("" if perceptual.name == "lpips" else ", because torch's cache holds no VGG weights for lpips"))
    return perceptual


def _features(name, device):
    """A feature network for FID by name: Inception, or the bundled encoder's trunk."""
    from talkhead import checkpoints, inception

    if name == "encoder":
        return inception.FaceFeatures(checkpoints.load_encoder(checkpoints.bundled("encoder"), device=device))
    return inception.named(name, device)


def _load(device, **paths):
    """The networks at `paths` (None: the bundled ones), on their device, and fitting each other."""
    from talkhead import checkpoints
    from talkhead.training import pick_device

    device = pick_device(device)
    found = {kind: path or checkpoints.bundled(kind) for kind, path in paths.items()}
    generator = checkpoints.load_generator(found.pop("generator"), device)
    loaders = {"encoder": checkpoints.load_encoder, "audio2latent": checkpoints.load_audio2latent}
    return device, generator, *(loaders[kind](path, generator, device) for kind, path in found.items())


def _join(device):
    """Train together with the other processes that torchrun started, until the command ends; the device of this one."""
    from talkhead import team, training

    return click.get_current_context().with_resource(team.join(training.pick_device(device)))


def _share(shard):
    """The share of this process: as told, else by the environment. From now on it speaks for itself."""
    from talkhead import jobs

    shard = click.get_current_context().meta["talkhead.shard"] = shard or jobs.shard()
    return shard


def _each(work, listing, folder, shard, overwrite, fields=("source",), suffix=".mp4", beside=()):
    """Do the work of this process's share of a list; one line tells how it went, the manifest the rest."""
    from talkhead import jobs

    shard = _share(shard)
    if listing == "-" and shard.of > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise click.UsageError("--list -: processes of torchrun cannot each read stdin; name a file")
    items = jobs.read_list(listing, fields, suffix)
    if shard.why:
        shell.say(f"{len(shard(items))} of {len(items)} lines of {listing}, by {shard.why}")
    records = jobs.run(items, functools.partial(_noted, work), folder, shard, beside, overwrite)
    counts, manifest = Counter(), jobs.manifest_path(folder, shard)
    try:
        _watch_list(records, fields, len(shard(items)), counts)
    except (KeyboardInterrupt, SystemExit):
        shell.say(f"stopped: {_told(counts)} of {len(shard(items))}; see {manifest}")
        raise
    shell.say(f"{_told(counts)}; see {manifest}")
    jobs.meet()
    click.get_current_context().exit(int(counts["failed"] > 0))


def _told(counts):
    return ", ".join(f"{counts[status]} {status}" for status in ("done", "skipped", "failed"))


def _noted(work, *arguments):
    """Do some work; what would be said on the way is recorded with the number of frames."""
    meta = click.get_current_context().meta
    notes = meta["talkhead.notes"] = []
    try:
        with shell.memory():
            return {"frames": work(*arguments)} | ({"notes": notes} if notes else {})
    finally:
        del meta["talkhead.notes"]


def _watch_list(records, fields, total, counts):
    """Count records by status, and say at once what failed."""
    with shell.progress(None, total, "clip") as bar:
        for record in records:
            bar.update()
            counts[record["status"]] += 1
            if record["status"] == "failed":
                bar.clear()
                sources, reason = [record[field] for field in fields], " ".join(record["reason"].split())
                named = any(source in reason for source in sources)
                shell.say("failed: " + ("" if named else f"{', '.join(sources)}: ") + reason)


def _device(name, listing):
    """Where to compute: for a list, a device of this process's own."""
    from talkhead import jobs
    from talkhead.training import pick_device

    return pick_device(name) if listing is None else jobs.own_device(pick_device(name))


def _finder(detector, detector_model, device):
    """A function that gives the face detector. It is loaded once, and not before it is wanted: what is aligned needs none."""
    @functools.cache
    def find():
        from talkhead import faces

        return faces.detector(detector, detector_model, device)
    return find


def _aligned_frames(reader, size, aligned, find):
    """The frames of a reader as square faces: as they are where they are aligned, else detected and cropped."""
    if aligned or reader.aligned:
        height, width = reader.size
        if height != width:
            raise TalkheadError(f"{reader.name}: {width}x{height}, but an aligned face is square; leave --aligned out")
        shell.say(f"{reader.name}: " + ("its metadata says it is aligned" if reader.aligned else "taken as aligned"))
        return iter(reader)
    from talkhead import faces

    shell.say(f"{reader.name}: aligning the face that {find().name} finds")
    return (crop for crop, _, _ in faces.align_frames(reader, find(), size))


def _lessons(generator, encoder, frames, device):
    """What a generator is tuned on: frames as images of its size, and their pivots, the codes that the encoder gives them."""
    import numpy as np

    from talkhead import inversion, training

    pivots = np.stack(list(inversion.encode(encoder, frames, device=device)))
    return training.to_images(np.stack([training.resize(frame, generator.resolution) for frame in frames])), pivots


def _images(sources, size, every, limit):
    """Training images, saying which files were left out."""
    from talkhead.datasets import Images

    images = Images(sources, size, every, limit)
    _left_out(images.skipped, len(images))
    return images


def _left_out(problems, frames):
    for problem in problems:
        shell.say(f"left out: {problem}")
    if problems:
        shell.say(f"{len(problems)} {'file was' if len(problems) == 1 else 'files were'} left out; {frames} frames of the others were taken")


def _networks(init, critic_channels, freeze_d, **sizes):
    """A generator and its critic, new or grown out of the file `init`, and the fingerprints of that file's generator."""
    from talkhead import checkpoints, stylegan

    weights = {"config": {"resolution": 256}} if init is None else checkpoints.read(init, "generator")
    config = {key: value for key, value in weights["config"].items() if key != "lineage"}
    if sizes["resolution"] not in (None, config["resolution"]):
        config.pop("channels", None)  # they were for its levels
    config |= {key: value for key, value in sizes.items() if value is not None}
    generator = stylegan.Generator(**config)
    critic = stylegan.Discriminator(generator.resolution, critic_channels or config.get("channels"), config.get("clamp"))
    if init is None:
        return generator, critic, set()
    training = weights.get("training", {})
    stylegan.inherit(generator, {name: value.float() for name, value in training.get("generator", weights["model"]).items()})
    judged = training.get("discriminator", {})
    if {name: value.shape for name, value in judged.items()} == {name: value.shape for name, value in critic.state_dict().items()}:
        critic.load_state_dict(judged)
    elif freeze_d:
        raise TalkheadError(f"{init}: no critic of these sizes, and --freeze-d holds levels of one that has learnt; leave it out, or change no sizes")
    else:
        shell.say(f"{init}: no critic of these sizes; a new one learns from the start")
    return generator, critic, {checkpoints.fingerprint(weights["model"]), *weights["config"].get("lineage", ())}


def _encoder(init, num_ws, shape):
    """An encoder for a generator of `num_ws` layers: new, or grown out of the file `init`."""
    from talkhead import checkpoints, encoders

    if init is None:
        return encoders.ResNetEncoder(num_ws, **shape)
    smaller = checkpoints.load_encoder(init)
    if not isinstance(smaller, encoders.ResNetEncoder):
        raise TalkheadError(f"{init}: only an encoder of architecture resnet is trained along; leave it out")
    if smaller.num_ws > num_ws:
        raise TalkheadError(f"{init}: an encoder of {smaller.num_ws} layers, the generator has {num_ws}; pass one of a smaller generator")
    encoder = encoders.ResNetEncoder(**smaller.config | {"num_ws": num_ws})
    encoders.inherit(encoder, smaller)
    return encoder


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


def _save_encoder(path, encoder, generator_file):
    """Write an encoder that was trained along with the generator in a file."""
    from talkhead import checkpoints, files

    weights = files.load_weights(generator_file, kind="generator")
    config = encoder.config | {"generator": checkpoints.fingerprint(weights["model"])}
    header = {"kind": "encoder", "config": config, "step": weights["step"], "perceptual": weights["perceptual"]}
    files.save_weights(path, header | {"model": encoder.state_dict()})


# ---------------------------------------------------------------------------------------------------------------
# Commands

@click.group(cls=shell.Shell, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="talkhead")
def cli():
    """A photo and a speech recording become a talking-head video.

    \b
      talkhead generate --identity face.png --audio speech.wav -o out.mp4
      talkhead align clip.mp4 | talkhead invert > latents.npy

    A file named "-" is stdin or stdout. Frames flow between commands as lossless MP4, latents as .npy.
    """


@cli.command()
@options.source
@options.output("Aligned clip, picture, or folder of pictures.")
@options.number("--size", 256, "Side of the aligned frames in pixels.", least=1)
@options.number("--smoothing", 2.0, "Smooth the crop over so many frames; 0 crops each for itself, as FFHQ does.")
@options.one_of("--on-missing", ["fail", "hold", "skip"], "fail", "What to do with a frame where no face is found.")
@options.output("Write the corners of each crop here (.npy, frames × 4 × 2), to put it back later.", "--quads", default=None)
@options.listed("the path of a clip")
@options.detection
@options.device
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


def _align(source, output, find, size, smoothing, on_missing, quads=None):
    """Crop one clip; how many frames were written."""
    import numpy as np

    from talkhead import faces, files
    from talkhead.training import resize

    with files.read_frames(source) as reader:
        if reader.aligned:
            shell.say(f"{reader.name}: aligned already, only resized")
            height, width = reader.size
            whole = np.array([(-0.5, -0.5), (-0.5, height - 0.5), (width - 0.5, height - 0.5), (width - 0.5, -0.5)])
            crops = ((resize(frame, size), whole, index) for index, frame in enumerate(reader))
        else:
            shell.say(f"{reader.name}: landmarks by {find().name}")
            crops = faces.align_frames(reader, find(), size, smoothing=smoothing, on_missing=on_missing)
        corners = []
        with files.FrameWriter(output, sound=reader.sound, metadata=reader.metadata | {"talkhead_aligned": str(size)}) as writer:
            for crop, quad, index in shell.progress(crops):
                writer.write(crop)
                corners += [np.full((4, 2), np.nan)] * (index - len(corners)) + [quad]
    if quads:
        files.write_array(quads, np.stack(corners))
    return writer.count


@cli.command()
@options.source
@options.output("Latents (.npy, float32, frames × layers × 512).")
@options.weights_in("generator")
@options.weights_in("encoder")
@options.one_of("--method", ["encoder", "optimise", "sequential", "hybrid"], "encoder",
        "One pass of the encoder; or optimise every frame alone (Algorithm 1), each from the one before (2), or from the encoder's code.")
@options.one_of("--space", ["w+", "w", "z"], "w+", "A latent for every layer, one for all, or what the mapping network is fed.")
@options.steps(5000)
@options.number("--next-steps", 500, "Steps for a frame that starts from the one before.", least=1)
@options.number("--hybrid-steps", 100, "Steps for a frame that starts from the encoder's code.", least=1)
@options.lr(0.01)
@options.number("--pixel-weight", 1.0, "Weight of the pixel loss beside the perceptual one.")
@options.perceptual
@options.number("--exploration", 0.01, "Noise on latents that start at the mean, fading; 0 leaves it out.")
@options.number("--tolerance", 0.0, "End a frame early when 50 steps lower its loss by less than this part; 0 takes all steps.")
@options.precision
@options.batch(4)
@click.option("--log", metavar="FILE", callback=options.writable, help="Write the loss of every frame's steps here, as JSON lines.")
@options.number("--log-every", 10, "Steps of a frame between two of its records in the log.", least=1)
@options.listed("the path of a clip")
@options.seed
@options.device
def invert(source, output, listing, shard, overwrite, generator, encoder, method, perceptual, log, log_every, device, **options):
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
    work = functools.partial(_invert, generator=generator, encoder=encoder, method=method, perceptual=perceptual, device=device, **options)
    if listing is not None:
        return _each(work, listing, output, shard, overwrite, suffix=".npy", beside=[".json"])
    work(source, output, log=log, log_every=log_every)


def _invert(source, output, generator, encoder, method, perceptual, device, log=None, log_every=1, **options):
    """Find the latents of one clip; how many were written."""
    from talkhead import files, inversion

    about = {"generator": generator.fingerprint, "fps": files.FPS, "method": method, "space": options["space"]}
    with files.read_frames(source) as reader:
        if not reader.aligned:
            shell.say(f"{reader.name}: not marked as aligned; taken as it is")
        if method == "encoder":
            latents = inversion.invert(shell.progress(reader, reader.count), generator, method, *encoder, device=device, **options)
            return files.write_latents(output, latents, about)
        return _optimised(reader, output, generator, method, encoder, perceptual, log, log_every, about, device=device, **options)


def _optimised(reader, output, generator, method, encoder, perceptual, log, log_every, about, **options):
    """Latents by optimisation, written: what is shown, logged and kept on the way is settled here; how many they are."""
    from talkhead import files, inversion

    planned = inversion.planned_steps(method, options["batch"], options["steps"], options["next_steps"], options["hybrid_steps"])
    total = None if reader.count is None else sum(map(planned, range(reader.count)))
    partial = output + ".part" if output != "-" and (os.path.isfile(output) or not os.path.exists(output)) else None
    resumed = partial is not None and os.path.exists(partial)
    if resumed:
        shell.say(f"{partial}: going on from what was done")
    with shell.DescentLog(total, log, log_every, resumed) as watch:
        latents = inversion.invert(reader, generator, method, *encoder, perceptual=perceptual, partial=partial, on_record=watch.record, **options)
        count = files.write_latents(output, watch.path(latents, planned), about | {"perceptual": perceptual.name})
    if options["tolerance"]:
        shell.say(f"{watch.early} of {len(watch.taken)} frames converged early; {sum(watch.taken.values())} steps in all")
    if partial is not None and os.path.exists(partial):
        os.remove(partial)
    return count


@cli.command()
@options.input_option("--identity", "The face that speaks: a picture or a clip; or prepared, so that no encoder is asked: latents that invert wrote (.npy), "
                                    "or a tuned generator and its face, of pti (.pt).")
@options.input_option("--audio", "What it says: any file with a sound track, or a pipe, which is spoken as it comes. With --latents, the sound to go along.")
@options.input_option("--latents", "Render these latents instead (.npy).")
@options.output("Video, folder of pictures, or a pipe.")
@options.output("Write the latents here too (.npy).", "--latents-out", default=None)
@options.weights_in("generator")
@options.weights_in("encoder")
@options.weights_in("audio2latent")
@options.alignment
@click.option("--pti", is_flag=True, help="Tune the generator on the identity first: closer to the person, and slower.")
@options.number("--pti-steps", 350, "Steps of that tuning.", least=1)
@options.number("--pti-frames", 125, "Frames of an identity clip to tune on.", least=1)
@click.option("--label", is_flag=True, help='Write "synthetic" into every frame, for all to see.')
@options.motion
@options.one_of("--precision", ["float32", "bfloat16", "float16"], "float32", "Arithmetic of the drawing; a GPU is faster at the halves.")
@options.batch(8)
@options.listed("identity, tab, audio")
@options.seed
@options.device
def generate(identity, audio, latents, output, latents_out, listing, shard, overwrite, generator, encoder, audio2latent,
             label, gain, gate, layers, blink, blink_latent, precision, batch, device, detector, detector_model, **options):
    """Make a face speak, or render latents.

    Sound from a pipe is spoken while it comes, each frame drawn for itself (--batch 1) to be there soon.

    \b
      talkhead generate --identity face.png --audio speech.wav -o out.mp4
      talkhead generate --identity me.pt --audio - -o - < speech.wav > out.mp4
      talkhead generate --latents - < latents.npy -o back.mp4
      talkhead generate --list pairs.txt -o talking/
    """
    from talkhead import files, synthesis

    _check_inputs(identity, audio, latents, listing, options["pti"])
    device, drawing = _device(device, listing), {"precision": precision, "labelled": label}
    if latents is not None:
        device, generator = _load(device, generator=generator)
        path = files.read_latents(latents)
        _check_owner(latents, files.read_about(latents), generator)
        with contextlib.nullcontext() if audio is None else _sound(audio) as sound:
            return _draw(generator, path, len(path), sound, output, latents_out, batch=batch, **drawing)
    # Before the networks are loaded: what is wrong with it is known at once, and a recorder need not wait.
    opened = None if listing is not None else click.get_current_context().with_resource(_sound(audio))
    told, tuned = generator, identity if identity and identity.endswith(".pt") else None
    seen = {} if identity and _prepared(identity) else {"encoder": encoder}
    device, generator, listener, *seer = _load(device, generator=told or tuned, audio2latent=audio2latent, **seen)
    motion = {"gain": gain, "gate": gate, "layers": layers, "blink": blink, "seed": options["seed"]}
    if blink:
        motion["blink_latent"] = _blink(blink_latent, generator)
    options |= {"find": _finder(detector, detector_model, device), "perceptual": _perceptual("auto", device) if options["pti"] else None}

    def speak(identity, audio, output, latents_out=None):
        with opened or _sound(audio) as sound:
            face, speaker = _identity(identity, generator, told, seer, audio2latent, device, **options)
            size = 1 if sound.live and _by_default("batch") else batch
            path = synthesis.drive(*seer or [None], listener, face, sound, size, **motion)
            frames = None if sound.count is None else -(-sound.count * 25 // sound.rate)
            return _draw(speaker, path, frames, sound, output, latents_out, batch=size, **drawing)

    if listing is not None:
        return _each(speak, listing, output, shard, overwrite, fields=("identity", "audio"))
    speak(identity, audio, output, latents_out)


def _sound(source):
    """A sound that is heard as it comes, and goes along with the frames."""
    from talkhead import files

    return files.read_sound(source, keep=True, on_wait=lambda: shell.say(f"{source}: nothing has come for {files.PATIENCE:.0f} s; waiting"))


def _blink(source, generator):
    """The latent that shuts a face's eyes, (L, 512), in a file; None is the bundled one."""
    from talkhead import checkpoints, files

    source = source or str(checkpoints.WEIGHTS / "blink.npy")
    owner = files.read_about(source).get("generator")
    if owner is not None and owner not in generator.lineage:
        raise TalkheadError(f"{source}: shuts the eyes of generator {owner}, not of {generator.fingerprint}; pass its own as --blink-latent, "
                            "which examples/learn_blink.py makes")
    latent = files.read_latents(source)[0]
    if len(latent) != generator.num_ws:
        raise TalkheadError(f"{source}: has {len(latent)} layers, the generator {generator.num_ws}; pass another --blink-latent")
    return latent


def _by_default(option):
    """Whether the caller left an option of this command alone."""
    return click.get_current_context().get_parameter_source(option) is ParameterSource.DEFAULT


def _prepared(identity):
    """Whether a file holds a face as latents, and not as pictures."""
    return identity.endswith((".pt", ".npy"))


def _draw(generator, path, frames, sound, output, latents_out, batch, precision, labelled):
    """Draw a path of so many frames as a video; how many they are."""
    from talkhead import files, synthesis

    with contextlib.ExitStack() as stack:
        if latents_out:
            path = stack.enter_context(files.latents_along(latents_out, path, {"generator": generator.fingerprint, "fps": files.FPS}))
        pictures = synthesis.synthesize(generator, path, batch, precision=precision)
        if labelled:
            pictures = synthesis.label(pictures)
        about = {"talkhead_aligned": str(generator.resolution)}
        writer = stack.enter_context(files.FrameWriter(output, sound=sound, synthetic=True, metadata=about))
        for picture in shell.progress(pictures, frames):
            writer.write(picture)
    return writer.count


def _check_inputs(identity, audio, latents, listing, pti):
    if latents is None and listing is None and (identity is None or audio is None):
        raise click.UsageError("pass --identity and --audio, or --latents")
    if latents is not None and identity is not None:
        raise click.UsageError("pass --identity or --latents, not both: the latents say already who is seen")
    if pti and identity is not None and _prepared(identity):
        raise click.UsageError("--pti tunes on pictures; pass one as --identity, or leave --pti out")


def _check_owner(name, about, generator):
    """Latents that say which generator they belong to are drawn by it, or by one tuned from it."""
    owner = about.get("generator")
    if owner is not None and owner not in generator.lineage:
        raise TalkheadError(f"{name}: latents of generator {owner}, not of {generator.fingerprint}; pass theirs as --generator")


def _identity(source, generator, told, seer, audio2latent, device, pti, pti_steps, pti_frames, aligned, find, perceptual, seed):
    """The face that will speak, uint8 (S, S, 3) or its code (L, 512), and the generator that draws it, tuned on it if asked.

    generator, seer   the networks loaded: generator, and [encoder] or []
    told              the --generator that the caller named, or None
    """
    from itertools import islice

    from talkhead import files, tune

    if _prepared(source):
        return _prepared_identity(source, generator, told, audio2latent, device)
    with files.read_frames(source, limit=pti_frames if pti else 1) as reader:
        frames = list(islice(_aligned_frames(reader, 256, aligned, find), pti_frames if pti else 1))
    if pti:
        images, pivots = _lessons(generator, *seer, frames, device)
        with shell.progress(None, pti_steps, "step") as bar:
            generator = tune(generator, images, pivots, pti_steps, perceptual=perceptual, seed=seed, on_record=lambda record: bar.update())
    return frames[0], generator


def _prepared_identity(source, generator, told, audio2latent, device):
    """A code (L, 512) out of a file, and the generator that draws it."""
    from talkhead import checkpoints, files

    if source.endswith(".npy"):
        codes = files.read_latents(source)
        _check_owner(source, files.read_about(source), generator)
        return codes.mean(0), generator
    tuned = checkpoints.load_generator(source, device)
    if tuned.identity is None:
        raise TalkheadError(f"{source}: holds no face beside the generator; tune again with talkhead pti, or pass it as --generator and a picture as --identity")
    if told is not None and tuned.fingerprint != generator.fingerprint:
        raise TalkheadError(f"{source}: a face of generator {tuned.fingerprint}, not of {generator.fingerprint}; leave --generator out")
    checkpoints.load_audio2latent(audio2latent or checkpoints.bundled("audio2latent"), tuned, device)  # of the same family?
    return tuned.identity, tuned


@cli.command()
@options.source
@options.trained("the tuned generator")
@options.weights_in("generator")
@options.weights_in("encoder")
@options.alignment
@options.number("--steps", 350, "Most optimiser steps; a resumed run goes on to here.", least=1)
@options.batch(4)
@options.lr(3e-4)
@options.perceptual
@options.number("--least-gain", 0.02, "End when 50 steps lower their mean loss by less than this part; 0 takes all steps.")
@options.number("--limit", 125, "Frames of a clip to tune on.", least=1)
@options.sheets
@options.run
def pti(source, output, generator, encoder, perceptual, limit, aligned, detector, detector_model, tensorboard, device, **options):
    """Tune a generator on a face, so that it draws this very person (pivotal tuning).

    \b
      talkhead pti face.png -o me.pt
      talkhead generate --identity me.pt --audio speech.wav -o out.mp4
    """
    from talkhead import files, pti

    device, generator, encoder = _load(_join(device), generator=generator, encoder=encoder)
    with files.read_frames(source, limit=limit) as reader:
        frames = list(_aligned_frames(reader, 256, aligned, _finder(detector, detector_model, device)))
    images, pivots = _lessons(generator, encoder, frames, device)
    records = pti.train(images, generator, pivots, output, perceptual=_perceptual(perceptual, device), **options)
    shell.watch(records, options["steps"], tensorboard)


@cli.command()
@click.argument("real", callback=options.from_stdin)
@click.argument("fake", callback=options.from_stdin)
@click.option("--landmarks", metavar="FILE", help="True landmarks of REAL (.npy, frames × 68 × 2).")
@click.option("--lmd/--no-lmd", default=True, show_default=True, help="Measure the distance of the mouth landmarks, which needs a detector.")
@click.option("--fid", is_flag=True, help="Compare all frames of REAL with all of FAKE, as FID and KID.")
@options.fid_features
@options.detection
@options.device
def metrics(real, fake, landmarks, lmd, fid, fid_features, detector, detector_model, device):
    """Compare a generated clip with the real one: PSNR, SSIM, LMD and FID as JSON.

    \b
      talkhead metrics real.mp4 out.mp4
      talkhead metrics real.mp4 out.mp4 --no-lmd --fid --fid-features encoder
    """
    from talkhead import faces, files, metrics
    from talkhead.training import pick_device

    device = pick_device(device)
    features = _features(fid_features, device) if fid else None
    find = faces.detector(detector, detector_model, device) if lmd else None
    known = None if landmarks is None else files.read_array(landmarks)
    with files.read_frames(real) as truth, files.read_frames(fake) as made:
        shell.print_records([metrics.compare(shell.progress(truth), made, find, known, features)])


@cli.command()
@click.option("-o", "--output", metavar="FOLDER", required=True, help="Where to write the clips; those that are there are kept.")
@click.option("--count", type=click.IntRange(min=1), required=True, help="How many clips.")
@options.number("--start", 0, "Number of the first clip; its face and speech depend on it and on --seed alone.")
@options.number("--size", 256, "Side of the frames in pixels.", least=1)
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Cut the speech after so long.")
@click.option("--frames", type=click.IntRange(min=1), help="No speech: so many unconnected moments of each face.")
@click.option("--portraits", metavar="FOLDER", help="Blend the faces out of these photos.  [default: drawn faces]")
@options.names("--exclude", "Portraits never to use, by file name without its ending.", default=())
@options.names("--voices", 'Voices of espeak-ng; "none" for recordings alone.  [default: all]', default=None)
@click.option("--recordings", metavar="PATH", multiple=True, help="Real talking clips, or folders of them, to drive some puppets; may be repeated.")
@options.number("--recorded-share", 0.5, "Share of the clips that recordings drive, where there are any.")
@click.option("--people", type=click.IntRange(min=1), help="So many faces take turns.  [default: every clip has a face of its own]")
@click.option("--detector-model", metavar="FILE", help="MediaPipe's face landmarker, for portraits and recordings.")
@options.number("--workers", 1, "Processes.", least=1)
@options.shard
@options.seed
def synth(output, count, recordings, shard, **options):
    """Make clips of talking puppets, with their truth.

    \b
      talkhead synth -o puppets/ --count 10 --size 128
      talkhead synth -o puppets/ --count 10000 --shard 0/4
    """
    from talkhead import datasets, puppet

    clips = datasets.clips(recordings)
    shard = _share(shard)
    if shard.why:
        shell.say(f"{len(shard(range(count)))} of {count} clips, by {shard.why}")
    records = puppet.synth(output, count, recordings=clips, shard=shard, **options)
    shell.print_records(shell.progress(records, len(shard(range(count))), "clip"))


@cli.command()
@options.sources
@click.option("-o", "--output", metavar="FILE", required=True, callback=options.writable,
              help="The packed file (.npy); the .json beside it tells what came from where.")
@options.number("--size", 256, "Side of the frames in pixels.", least=1)
@options.data
def pack(sources, output, size, every, limit):
    """Decode clips and pictures once, into one file that the trainers read at random: data sets larger than memory.

    \b
      talkhead pack clips/ -o faces.npy --size 128
      talkhead train-stylegan faces.npy -o generator.pt --resolution 128 --steps 100000
    """
    from talkhead import datasets

    paths = datasets.clips(sources)
    records = list(shell.progress(datasets.pack(paths, output, size, every, limit), len(paths), "file"))
    problems, frames = [record["left_out"] for record in records if "left_out" in record], sum(record.get("frames", 0) for record in records)
    _left_out(problems, frames)
    shell.print_records([{"file": output, "frames": frames, "size": size, "left_out": len(problems)}])


@cli.command("train-stylegan")
@options.sources
@options.trained("the generator")
@click.option("--resolution", type=click.IntRange(min=8), help="Side of the pictures, a power of two.  [default: 256, or that of --init]")
@options.widths("Channels at 4², 8², … up to the resolution.  [default: StyleGAN2's config F, or those of --init]")
@options.widths("The critic's, likewise.  [default: the generator's]", "--critic-channels")
@click.option("--mapping-layers", type=click.IntRange(min=1), help="Layers from Z to W.  [default: 8, or those of --init]")
@options.init_option("Start from the generator in this file; it may be of a lower resolution, with the same channels where both have levels.")
@options.training_steps
@options.batch(16)
@options.lr(0.002)
@options.number("--beta1", 0.0, "Adam's memory of gradients; without a critic, 0.9 learns faster.")
@options.number("--r1", 10.0, "Weight of the R1 penalty.")
@options.number("--r1-every", 16, "Steps between two R1 penalties.", least=1)
@options.number("--path-length", 2.0, "Weight of the path-length penalty; 0 leaves it out.")
@options.number("--path-every", 4, "Steps between two path-length penalties.", least=1)
@options.number("--style-mixing", 0.9, "Share of pictures that mix two styles.")
@options.number("--average-images", 10_000, "Half life of the weight average, in pictures.", least=1)
@click.option("--flip", is_flag=True, help="Mirror half of the pictures.")
@options.number("--freeze-d", 0, "Levels of the critic that stay as they are in --init, from the pictures' own size downwards.")
@options.one_of("--augment", ["none", "ada", "fixed"], "none", "Change at random what the critic sees, for small sets: as often as it takes (ada), or always as often.")
@options.number("--augment-p", 0.0, "Probability of each change, if fixed; where ada starts a new run.")
@options.number("--augment-target", 0.6, "What ada holds the mean sign of the critic's logits for real pictures at.")
@options.number("--augment-images", 500_000, "Pictures that would take ada's probability from 0 to 1.", least=1)
@click.option("--encoder-out", metavar="FILE", callback=options.writable, help="Train an encoder along, by reconstruction, and write it here (.pt).")
@click.option("--encoder-init", metavar="FILE", help="Start it from these weights, made for --init.  [default: a new one]")
@options.encoder_shape
@options.number("--encoder-lr", 0.001, "The encoder's learning rate; 0 holds it still, and what was trained for --init fits the result.")
@options.number("--reconstruction-weight", 10.0, "Weight of the reconstruction.")
@options.number("--mouth-weight", 0.0, "Weight of the mouth's own reconstruction.")
@options.number("--feature-weight", 1.0, "Weight of the reconstruction as the critic sees it.")
@options.number("--sample-share", 0.5, "Share of a fake batch drawn from z; the rest are reconstructions. Needs an encoder.")
@options.number("--reconstruct-only", 0, "First so many steps reconstruct, without a critic.")
@options.number("--fid-every", 0, "Steps between two measurements of FID and KID against the training pictures, where the best is kept; 0 for none.")
@options.number("--fid-images", 10_000, "Pictures drawn for that, and training pictures taken; fewer than features make FID too large.", least=2)
@options.fid_features
@options.perceptual
@options.data
@options.sheets
@options.run
def train_stylegan(sources, output, init, resolution, channels, critic_channels, mapping_layers, encoder_out, encoder_init,
                   width, input_size, stem_stride, pool_size, perceptual, every, limit, tensorboard, device, **options):
    """Train the face generator on pictures or clips, or on what was packed of them.

    \b
      talkhead train-stylegan clips/ -o generator.pt --resolution 64 --steps 100000
    """
    import torch

    from talkhead import stylegan

    if options["freeze_d"] and not init:
        raise click.UsageError("--freeze-d needs --init: a new critic has to learn at every level")
    device = _join(device)
    if options["fid_every"]:
        options["fid_features"] = _features(options["fid_features"], device)
    torch.manual_seed(options["seed"])
    sizes = {"resolution": resolution, "channels": channels, "mapping_layers": mapping_layers}
    generator, critic, lineage = _networks(init, critic_channels, options["freeze_d"], **sizes)
    if encoder_out or encoder_init:
        shape = {"width": width, "input_size": input_size, "stem_stride": stem_stride, "pool_size": pool_size}
        along = _encoder(encoder_init, generator.num_ws, shape)
        options |= {"encoder": along, "reconstruction": _perceptual(perceptual, device)}
        if options["encoder_lr"] == 0:
            options["lineage"] = lineage
        if encoder_out:
            options["on_save"] = lambda: _save_encoder(encoder_out, along, output)
    elif options["reconstruct_only"]:
        raise click.UsageError("--reconstruct-only needs --encoder-out or --encoder-init: only an encoder can reconstruct")
    images = _images(sources, generator.resolution, every, limit)
    images.warn_of_mixture()
    records = stylegan.train(images, output, generator, critic, device=device, **options)
    shell.watch(records, options["steps"], tensorboard)


@cli.command("train-encoder")
@options.sources
@options.trained("the encoder")
@options.weights_in("generator")
@options.one_of("--arch", ["resnet", "psp"], "resnet", "ResNet18 with one linear layer, or pSp's IR-SE-50 with a feature pyramid.")
@options.encoder_shape
@options.one_of("--head", ["pyramid", "last", "w+", "w"], "pyramid", "How psp makes latents: each from the map of its scale, each from the last map, all by one layer, or one for all.")
@click.option("--imagenet", metavar="FILE", help="Start resnet's first blocks from torchvision's resnet18 weights.")
@click.option("--irse", metavar="FILE", help="Start psp's trunk from a face-recognition network, model_ir_se50.pth.")
@options.init_option("Start from these weights of an encoder; architecture, sizes and all.")
@options.training_steps
@options.batch(8)
@options.number("--lr", None, "Learning rate.  [default: 0.004, psp 0.0001]")
@click.option("--pixel", type=click.Choice(["rms", "mse"]), help="Pixel loss: root mean square or mean square.  [default: rms, psp mse]")
@options.number("--pixel-weight", 1.0, "Weight of the pixel loss.")
@options.number("--perceptual-weight", None, "Weight of the perceptual loss.  [default: 1, psp 0.8]")
@options.number("--latent-weight", 0.0, "Weight of staying near the mean latent.")
@click.option("--identity-network", metavar="FILE", help="Face recognition for an identity loss: model_ir_se50.pth, or a program of torch.export.")
@options.number("--identity-weight", 0.1, "Weight of the identity loss.")
@click.option("--loss-size", type=click.IntRange(min=8), help="Compare larger pictures at this size.  [default: the generator's, psp 256]")
@options.perceptual
@click.option("--flip", is_flag=True, help="Mirror half of the pictures.")
@options.validation
@options.data
@options.sheets
@options.run
def train_encoder(sources, output, generator, arch, width, input_size, stem_stride, pool_size, head, imagenet, irse, init,
                  identity_network, perceptual, validation, every, limit, tensorboard, device, **options):
    """Train an encoder to find the latents of a frozen generator.

    \b
      talkhead train-encoder clips/ --generator generator.pt -o encoder.pt --steps 50000
      talkhead train-encoder clips/ --arch psp --irse model_ir_se50.pth --identity-network model_ir_se50.pth -o psp.pt --steps 500000
    """
    import torch

    from talkhead import checkpoints, inversion, losses

    for_resnet, for_psp = imagenet or (stem_stride, pool_size) != (4, 1), irse or head != "pyramid"
    if not init and (for_psp if arch == "resnet" else for_resnet):
        raise click.UsageError("--imagenet, --stem-stride and --pool-size are for --arch resnet, --irse and --head for --arch psp")
    device, generator = _load(_join(device), generator=generator)
    torch.manual_seed(options["seed"])
    if init:
        encoder = checkpoints.load_encoder(init)
    else:
        own = {"head": head} if arch == "psp" else {"stem_stride": stem_stride, "pool_size": pool_size}
        encoder = _new_encoder(arch, generator, imagenet, irse, width=width, input_size=input_size, **own)
    if identity_network:
        options["identity"] = losses.identity_network(identity_network, device)
    size = inversion.training_size(generator, encoder, options["loss_size"])
    images = _images(sources, size, every, limit)
    held_out = _images(validation, size, every, limit) if validation else None
    records = inversion.train(images, generator, output, encoder, perceptual=_perceptual(perceptual, device), validation=held_out,
                              device=device, **options)
    shell.watch(records, options["steps"], tensorboard)


@cli.command("train-audio2latent")
@options.sources
@options.trained("the speech model")
@options.weights_in("generator")
@options.weights_in("encoder")
@options.number("--components", 2500, "Principal components of the latents that it moves along.", least=1)
@options.widths("Channels of its five convolutions.  [default: 64,128,256,256,512]")
@options.number("--hidden", 2048, "Width of its wide layer after them.", least=1)
@options.number("--features", 256, "Speech features per frame.", least=1)
@options.number("--lstm", 256, "Width of its three LSTM layers.", least=1)
@options.number("--decoder", 512, "Width of its decoder.", least=1)
@options.training_steps
@options.batch(16)
@options.number("--frames", 25, "Video frames of each example.", least=1)
@options.lr(2e-4)
@options.number("--latent-weight", 250.0, "Weight of the loss on latents.")
@options.number("--image-weight", 1.0, "Weight of the perceptual loss on pictures.")
@options.number("--image-frames", 8, "Pictures drawn in a step for that loss; 0 trains on latents alone.")
@options.number("--mouth-weight", 0.0, "Weight of the loss on the mouth's opening.")
@options.perceptual
@click.option("--augment/--no-augment", default=True, show_default=True, help="Vary loudness, speed, noise and microphone of the speech.")
@click.option("--hold-out", metavar="N|NAME,…", default="10", show_default=True, callback=options.hold_out,
              help="Speakers, or single clips, kept to measure on: how many, or which.")
@options.number("--validate-every", 200, "Steps between two measurements; the best model is kept.", least=1)
@options.number("--identity-noise", 0.3, "Blur of the identity that the model is shown, so that it learns no face by heart.")
@options.number("--cool-down", 0.0, "Share of the steps, the last ones, over which the learning rate falls to nothing.")
@options.number("--average", 0.998, "Share that the running average of the weights keeps each step.")
@options.run
def train_audio2latent(sources, output, generator, encoder, components, channels, hidden, features, lstm, decoder,
                       tensorboard, device, **options):
    """Train the speech model on talking clips.

    \b
      talkhead train-audio2latent clips/ --generator generator.pt --encoder encoder.pt \\
          -o audio2latent.pt --steps 50000
    """
    import torch

    from talkhead import audio2latent

    device, generator, encoder = _load(_join(device), generator=generator, encoder=encoder)
    torch.manual_seed(options["seed"])
    sizes = {"channels": tuple(channels)} if channels else {}
    model = audio2latent.SecondModel(generator.num_ws, components, hidden=hidden, features=features, lstm=lstm, decoder=decoder, **sizes)
    if options["image_frames"]:
        options["perceptual"] = _perceptual(options["perceptual"], device)
    records = audio2latent.train(sources, generator, encoder, output, model, device=device, **options)
    shell.watch(records, options["steps"], tensorboard)


@cli.group()
def weights():
    """Files of weights: what is to be had, what they hold, and copies of them."""


@weights.command("list")
def weights_list():
    """Tell about weights: those that came with the package, then public ones that can be fetched, a JSON object each."""
    from talkhead import checkpoints, downloads

    found = sorted(checkpoints.WEIGHTS.glob("*.pt"))
    shell.print_records({"file": str(path)} | checkpoints.describe(path) for path in found)
    shell.print_records(downloads.describe(name) for name in downloads.REGISTRY)
    if not found:
        raise TalkheadError(f"{checkpoints.WEIGHTS}: no weights came with this package; train them, or install a release")


@weights.command("fetch")
@click.argument("name")
@click.option("-o", "--output", metavar="FILE", callback=options.writable,
              help="Where to put the file.  [default: where the library that wants it looks]")
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

    shell.say(downloads.terms(name))
    with tqdm(unit="B", unit_scale=True, unit_divisor=1024, smoothing=0, disable=None) as bar:
        def on_progress(done, total):
            if bar.n == 0:
                bar.initial = done  # what an earlier call brought is not this one's speed
            bar.total = total
            bar.update(done - bar.n)

        record = downloads.fetch(name, output, accept_licence, url, on_progress)
    shell.print_records([record])


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
    shell.print_records(records)
    ctx.exit(int(any(record["ok"] is False for record in records)))


@weights.command("show")
@click.argument("file")
def weights_show(file):
    """Tell what a weights file holds, as JSON: talkhead's, rosinality's, NVIDIA's, PTI's, pSp's, e4e's or ReStyle's.

    \b
      talkhead weights show stylegan2-ffhq-config-f.pt
    """
    from talkhead import checkpoints

    shell.print_records([checkpoints.describe(file)])


@weights.command("convert")
@click.argument("source", metavar="SOURCE")
@options.weights_out("the converted weights")
@options.one_of("--to", ["talkhead", "rosinality", "nvidia"], "talkhead", "Whose layout.")
@click.option("--part", type=click.Choice(["generator", "encoder"]), help="Which of two networks in one file, as pSp's have them.")
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
@options.weights_out("the copy")
@click.option("--half/--full", default=True, show_default=True, help="Half precision, or as it is.")
def weights_export(source, output, half):
    """Copy weights without what only training needs.

    \b
      talkhead weights export run/generator.pt -o generator.pt
    """
    from talkhead import checkpoints

    checkpoints.export(source, output, half)
