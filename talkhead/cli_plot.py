"""The command `plot`: figures of latents, logs, clips and mouths."""

import functools

import click

from talkhead import cli_io, cli_options


@click.group()
def plot():
    """Draw figures (PNG, SVG, PDF); needs the extra plot."""


command = functools.partial(plot.command, cls=cli_options.Command)


@command("trajectory")
@cli_options.sources
@cli_options.figure
@cli_options.settings("plots.trajectories", "plots.label_files")
def plot_trajectory(sources, output, **options):
    """Draw latents (.npy) in the plane of their first two principal components, coloured by time.

    \b
      talkhead plot trajectory encoder.npy sequential.npy -o paths.png
    """
    from talkhead import files, plots

    labelled = plots.label_files(sources, **cli_options.taken(options, plots.label_files))
    paths = {label: files.read_latents(path) for label, path in labelled.items()}
    plots.save(plots.trajectories(paths, **options), output)


@command("losses")
@cli_options.sources
@cli_options.figure
@cli_options.names("--keys", "Numbers of the logs to draw.  [default: loss, or if no log has it, all]", ())
@cli_options.settings("plots.losses", "plots.label_files")
def plot_losses(sources, output, keys, **options):
    """Draw curves from the logs of trainers and of invert --log; several runs together.

    \b
      talkhead plot losses optimise.jsonl sequential.jsonl -o losses.svg
    """
    from talkhead import plots

    labelled = plots.label_files(sources, **cli_options.taken(options, plots.label_files))
    logs = {label: plots.read_log(path) for label, path in labelled.items()}
    plots.save(plots.losses(logs, keys, **options), output)


@command("dashboard")
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


@command("strip")
@cli_options.sources
@cli_options.figure
@cli_options.number("--columns", 8, "Frames of each clip.", least=1)
@cli_options.phonemes
@cli_options.settings("plots.moments", "plots.label_files")
def plot_strip(sources, output, columns, phonemes, **options):
    """Draw frames of clips one under the other, at the same moments.

    \b
      talkhead plot strip real.mp4 out.mp4 --phonemes real.json -o strip.png
    """
    from talkhead import plots, video_files

    rows, times, synthetic = {}, None, False
    for label, path in plots.label_files(sources, **cli_options.taken(options, plots.label_files)).items():
        with video_files.read_frames(path) as reader:
            if times is None:
                count = reader.count or sum(1 for _ in video_files.read_frames(path))  # some kinds of file do not tell
                times = plots.moments(count, columns, **options)
            rows[label] = plots.frames_at(reader, times)
            synthetic |= reader.synthetic
    plots.save(plots.strip(rows, times, _said(phonemes, sources)), output, synthetic)


@command("mouth")
@cli_options.sources
@cli_options.figure
@cli_options.input_option("--audio", "The sound to draw under the curves: any file with a sound track.")
@cli_options.phonemes
@cli_options.detector_model
@cli_options.device
@cli_options.settings("plots.label_files", "cli_io.finder")
def plot_mouth(sources, output, audio, phonemes, device, **options):
    """Draw mouth openings of clips or landmarks (.npy) over the sound and its phonemes.

    \b
      talkhead plot mouth real.mp4 out.mp4 --audio real.mp4 --phonemes real.json -o mouth.png
    """
    from talkhead import audio_files, plots

    find = cli_io.finder(device, **cli_options.taken(options, cli_io.finder))
    said = _said(phonemes, sources)
    sound = None if audio is None else audio_files.read_audio(audio)
    curves = {label: _openings(path, find) for label, path in plots.label_files(sources, **options).items()}
    plots.save(plots.mouths(curves, sound, said), output)


@command("interpolate")
@click.argument("ends", metavar="[LATENTS LATENTS]", nargs=-1)
@cli_options.figure
@cli_options.weights_in("generator")
@cli_options.device
@cli_options.settings("plots.interpolation")
def plot_interpolate(ends, output, generator, device, **options):
    """Draw lerp and slerp between two latents (.npy), or between random faces in Z and W.

    \b
      talkhead plot interpolate me.npy you.npy -o ways.png
    """
    import numpy as np

    from talkhead import files, identities, plots

    if len(ends) not in (0, 2):
        raise click.UsageError("pass two files of latents, the ends of the way, or none")
    codes = [files.read_latents(path)[0] for path in ends]
    _, generator = cli_io.load(device, generator=generator)
    for path, code in zip(ends, codes):
        identities.check_fit(path, code, generator)
    plots.save(
        plots.sheet(plots.interpolation(generator, np.stack(codes) if codes else None, **options)),
        output,
        synthetic=True,
    )


@command("components")
@cli_options.sources
@cli_options.figure
@cli_options.one_of(
    "--method", ["pca", "sefa"], "pca", "Principal components, or factorisation of the generator's weights (SeFa)."
)
@cli_options.layers("the components move")
@cli_options.output("Write the directions into this folder (.npy), for generate --edit.", "--directions-out", None)
@cli_options.weights_in("generator")
@cli_options.device
@cli_options.settings("directions.find", "plots.directions")
def plot_components(sources, output, directions_out, generator, device, **options):
    """Draw images along each component of latents (.npy), from their mean, in their standard deviations.

    \b
      talkhead plot components latents.npy -o components.png
      talkhead plot components latents.npy --method sefa --layers 2-5 --directions-out found/ -o found.png
    """
    import numpy as np

    from talkhead import directions, files, identities, plots

    codes = [files.read_latents(path) for path in sources]
    _, generator = cli_io.load(device, generator=generator)
    for path, each in zip(sources, codes):
        identities.check_fit(path, each[0], generator)
    codes = np.concatenate(codes)
    found = directions.find(generator, codes, **cli_options.taken(options, directions.find))
    if directions_out is not None:
        directions.write(directions_out, found.latents, generator)
    plots.save(plots.sheet(*plots.directions(generator, codes.mean(0), found, **options)), output, synthetic=True)


def _openings(path, find):
    """Mouth opening in each frame of a clip, or of landmarks (.npy); NaN where no face is found."""
    import numpy as np

    from talkhead import faces, landmarks, video_files

    if path.endswith(".npy"):
        return landmarks.mouth_opening(faces.read_landmarks(path))
    with video_files.read_frames(path) as reader:
        seen = [find()(frame) for frame in cli_io.progress(reader, reader.count)]
    return np.array([landmarks.mouth_opening(found[0]) if found else np.nan for found in seen])
