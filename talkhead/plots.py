"""Plots: latent trajectories, losses, mouth openings, strips and sheets of frames.

Each function returns a matplotlib Figure; `save` writes it as PNG, SVG or PDF. matplotlib is an extra, imported on use.
Colours are Okabe and Ito's and cividis, distinguishable with colour blindness; lines differ in their dashes too.
"""

import importlib.util
import json
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch

from talkhead import files, image_files
from talkhead.directions import Directions
from talkhead.errors import TalkheadError
from talkhead.images import to_frames
from talkhead.latents import Basis, lerp, slerp, why_not_random, z_stream
from talkhead.phonemes import closures

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

    from talkhead.stylegan import Generator
    from talkhead.video_files import FrameReader

KINDS = (".png", ".svg", ".pdf")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
TIME = "cividis"
GREY = "0.8"
STYLE = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "talkhead",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
PLANES = ("shared", "centred", "own")
# Fields of a log record that are not curves.
COUNTERS = ("step", "steps", "frame", "seconds", "data_seconds", "images", "clips")
LOG_RATIO = 10  # ratio of the largest to the smallest positive value from which an axis is logarithmic
LABEL_WIDTH = 28  # characters, at which labels are wrapped


# Figures --------------------------------------------------------------------------------------------------------------


def installed() -> None:
    """Raise TalkheadError if there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise TalkheadError("matplotlib is not installed; pip install 'talkhead[plot]'")


@contextmanager
def style() -> Iterator[None]:
    """Context manager with the matplotlib settings of these plots."""
    installed()
    import matplotlib

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]  # names are checked when it runs
        yield


def board(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> "tuple[Figure, np.ndarray]":
    """Empty Figure of `width` x `height` inches, without a window, and its axes (rows, columns)."""
    installed()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: "Figure", destination: str | os.PathLike, synthetic: bool = False) -> None:
    """Write a figure atomically; the same figure gives the same bytes.

    destination  path that ends in .png, .svg or .pdf
    synthetic    mark it as showing generated faces, as image_files.write_image does; in SVG and PDF by keywords
    raises       TalkheadError if the suffix is another, or the file cannot be written
    """
    kind = Path(destination).suffix.lower()
    if kind not in KINDS:
        raise TalkheadError(f"{destination}: unknown figure format; end the name in {', '.join(KINDS)}")
    tags: dict = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(kind, {})
    if synthetic:
        tags |= (
            image_files.synthetic_tags()
            if kind == ".png"
            else {"Keywords": "; ".join(f"{key}: {value}" for key, value in image_files.synthetic_tags().items())}
        )
    with style(), files.atomic(destination) as temporary:
        figure.savefig(temporary, metadata=tags)


def names(paths: Iterable[str | os.PathLike]) -> list[str]:
    """Short labels of files: names without suffix, with their folders if names are equal."""
    places = [Path(path) for path in paths]
    stems = [place.stem for place in places]
    return [place.stem if stems.count(place.stem) == 1 else str(place.with_suffix("")) for place in places]


def label_files(paths: Sequence[str | os.PathLike], labels: list[str] | None = None) -> dict:
    """{label: file} for a figure; None: the labels are `names`."""
    chosen = labels or names(paths)
    if len(chosen) != len(paths) or len(set(chosen)) < len(chosen):
        raise TalkheadError(f"labels: {len(paths)} files need as many different ones")
    return dict(zip(chosen, paths))


def _line_style(index):
    """Colour and dashes of a line by its index."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}


def wrapped(label: str) -> str:
    """A label in lines of at most LABEL_WIDTH characters."""
    return "\n".join(textwrap.wrap(label, LABEL_WIDTH)) or label


def _hide(panels):
    for axes in panels:
        axes.set_visible(False)


# Latent trajectories --------------------------------------------------------------------------------------------------


def in_plane(*paths: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Project latent trajectories on the first two principal components of all their latents.

    paths    float (T, L, 512) each
    returns  [(T, 2), …] and the share of the variance on each axis, (2,)
    raises   TalkheadError if their layers differ or they have fewer than three latents in all

    Source: thesis §3.3.1.1 (Figs 3.7 and 3.8).
    """
    if len({path.shape[1:] for path in paths}) > 1:
        raise TalkheadError(
            f"latents of {' and '.join(str(len(path[0])) for path in paths)} layers: made with different generators; "
            "draw each alone"
        )
    latents = torch.from_numpy(np.concatenate(paths)).double()
    if len(latents) < 3:
        raise TalkheadError(
            f"latents of {len(latents)} frame{'s' * (len(latents) > 1)}: a plane takes three; draw longer paths"
        )
    basis = Basis.fit(latents, 2)
    total = (latents - latents.mean(0)).square().sum() / (len(latents) - 1)
    return [basis.project(torch.from_numpy(path)).numpy() for path in paths], (
        basis.stdev.double().square() / total
    ).numpy()


def trajectories(paths: Mapping[str, np.ndarray], fps: float = files.FPS, plane: str = "shared") -> "Figure":
    """Plot latent trajectories in a plane of principal components, with time as colour.

    paths    {label: float32 (T, L, 512)}
    fps      frames per second
    plane    "shared": principal components of all latents; "centred": the same, after subtracting each path's mean;
             "own": each path's own components. All panels have one scale
    returns  Figure

    Source: thesis §3.3.1.1 (Figs 3.7 and 3.8).
    """
    if plane not in PLANES:
        raise TalkheadError(f"plane {plane!r}: unknown; choose from {', '.join(PLANES)}")
    latents = [path - path.mean(0) if plane == "centred" else path for path in paths.values()]
    planes = [in_plane(path) for path in latents] if plane == "own" else [in_plane(*latents)]
    points = [each for projected, _ in planes for each in projected]
    shares = [share for projected, share in planes for _ in projected]
    columns, rows = _grid(len(points), 3)
    longest = max(len(path) for path in points)
    with style():
        figure, panels = board(4 * columns + 1.2, 4.2 * rows + 0.3, rows, columns)
        for index, (axes, label) in enumerate(zip(panels.flat, paths)):
            if plane != "own":
                for other in points:
                    axes.plot(*other.T, color=GREY, linewidth=1, zorder=1)
            dots = path_panel(axes, points[index], shares[index], points, fps, longest)
            axes.set_title(wrapped(label))
        _hide(panels.flat[len(points) :])
        _ends(panels.flat[0], points[0], labelled=True)  # one legend for all panels
        figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.colorbar(dots, ax=panels, label="time in the clip, seconds", shrink=0.7)
    return figure


def _grid(count, max_columns):
    """Columns and rows for `count` panels, with few empty cells."""
    columns = count if count <= max_columns else min(range(max_columns, 1, -1), key=lambda columns: -count % columns)
    return columns, -(-count // columns)


def path_panel(
    axes: "Axes",
    points: np.ndarray,
    share: np.ndarray,
    among: Sequence[np.ndarray],
    fps: float = files.FPS,
    longest: int | None = None,
) -> "PathCollection":
    """Plot a path (T, 2), with equal scales that fit all paths `among`; returns the scatter plot for a colour bar."""
    axes.plot(*points.T, color="0.55", linewidth=1, zorder=2)
    every = np.concatenate(among)
    middle, half = (every.max(0) + every.min(0)) / 2, max(0.55 * np.ptp(every, axis=0).max(), 1e-6)
    axes.set(
        xlim=(middle[0] - half, middle[0] + half),
        ylim=(middle[1] - half, middle[1] + half),
        box_aspect=1,
        xlabel=f"component 1 ({share[0]:.0%} of the variance)",
        ylabel=f"component 2 ({share[1]:.0%})",
    )
    _ends(axes, points)
    return axes.scatter(
        points[:, 0],
        points[:, 1],
        c=np.arange(len(points)) / fps,
        cmap=TIME,
        vmin=0,
        vmax=((longest or len(points)) - 1) / fps,
        s=24,
        zorder=3,
    )


def _ends(axes, points, labelled=False):
    for name, point, mark in (("first frame", points[0], "o"), ("last frame", points[-1], "s")):
        axes.plot(
            *point,
            mark,
            markersize=10,
            markerfacecolor="none",
            markeredgecolor="black",
            zorder=4,
            label=name if labelled else None,
        )


# Logs -----------------------------------------------------------------------------------------------------------------


def read_log(source: str | os.PathLike | BinaryIO) -> list[dict]:
    """Read the records of a trainer's stdout, or of `invert --log`: JSON lines.

    returns  list of dicts
    raises   TalkheadError if a line is not a record, or there is none; an incomplete last line is skipped
    """
    with files.reading(source) as stream:
        lines = files.decoded(stream.read(), "replace").split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError:
            if number == len(lines):
                break
            record = "no JSON"
        if record is not None and not _is_record(record):
            raise TalkheadError(
                f"{source}, line {number}: not a JSON object with a step; pass a trainer's output, or invert --log"
            )
        records += [record] if record is not None else []
    if not records:
        raise TalkheadError(f"{source}: holds no records; pass a trainer's output, or invert --log")
    return records


def _is_record(record):
    """True for a dict with a step, integer counters, and no integer that a float cannot hold."""
    return (
        isinstance(record, dict)
        and "step" in record
        and all(type(record[name]) is int for name in ("step", "steps", "frame") if name in record)
        and all(abs(value) < 1 << 53 for value in record.values() if type(value) is int)
    )


def _keys(records):
    """Names of the curves in records, in order of appearance, with speeds last."""
    found = {}
    for record in records:
        found |= dict.fromkeys(
            key for key, value in record.items() if type(value) in (int, float) and key not in COUNTERS
        )
    return sorted(found, key=_is_speed)


def _is_speed(key):
    return key.endswith("_per_second")


def curve(records: Iterable[dict], key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Values of a log over its steps.

    records  list of dicts with "step", and with "frame" if there are several frames
    returns  steps (n,), and mean, minimum and maximum over frames, each (n,)
    """
    found: dict[int, list[float]] = {}
    for record in records:
        if type(record.get(key)) in (int, float):
            found.setdefault(record["step"], []).append(record[key])
    steps = sorted(found)
    rows = np.array([(np.mean(found[step]), min(found[step]), max(found[step])) for step in steps]).reshape(-1, 3)
    return np.array(steps), *rows.T


def _by_steps(label, records):
    """Group the frames of an inversion by their number of steps: {label: records}.

    A mean over different numbers of steps would jump where the shorter ones end.
    """
    groups = {}
    for record in records:
        groups.setdefault(record.get("steps"), []).append(record)
    if len(groups) == 1:
        return {label: records}
    return {
        f"{label}, {_frames({record['frame'] for record in group})} of {steps} steps": group
        for steps, group in groups.items()
    }


def _frames(frames):
    return f"frame {min(frames) + 1}" if len(frames) == 1 else f"{len(frames)} frames"


def _running(values, count):
    """Moving average of `count` values, of fewer at the ends."""
    ones = np.ones(min(count, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def losses(logs: Mapping[str, Sequence[dict]], keys: Sequence[str] = (), smooth: int = 1) -> "Figure":
    """Plot loss curves of one or several runs over steps, a panel for each key.

    logs     {label: records}, from `read_log`; of an inversion, the mean over frames and the band from minimum to
             maximum
    keys     keys of the records; empty: "loss", or if no log has it, all but speeds
    smooth   length of a moving average, drawn over the raw curve
    returns  Figure
    raises   TalkheadError if no log has a key
    """
    every = [key for records in logs.values() for key in _keys(records)]
    keys = list(keys) or (["loss"] if "loss" in every else [key for key in every if not _is_speed(key)])
    keys = list(dict.fromkeys(keys))
    unknown = [key for key in keys if key not in every]
    if unknown:
        raise TalkheadError(f"{unknown[0]}: no log has this key; choose from {', '.join(dict.fromkeys(every))}")
    columns, rows = _grid(len(keys), 3)
    with style():
        figure, panels = board(max(5.2 * columns, 7), 3.8 * rows + 0.4, rows, columns)
        for axes, key in zip(panels.flat, keys):
            for index, (run, records) in enumerate(logs.items()):
                for label, group in _by_steps(run, records).items():
                    _curve(axes, group, key, label, _line_style(index), smooth)
            _scale(axes)
            axes.set(xlabel="step", ylabel=key)
        _hide(panels.flat[len(keys) :])
        lines, labels = _legend(panels.flat[: len(keys)])
        if len(labels) > 1:
            legend_above(figure, lines, labels)
        else:
            figure.suptitle(next(iter(logs)))
    return figure


def _curve(axes, records, key, label, line, smooth):
    steps, mean, least, most = curve(records, key)
    if len(steps) == 0:
        return
    if (most > least).any():
        axes.fill_between(steps, least, most, color=line["color"], alpha=0.15, linewidth=0)
    elif smooth > 1:
        axes.plot(steps, mean, color=line["color"], alpha=0.3, linewidth=0.8)
    marker = "o" if len(steps) < 3 else None
    axes.plot(steps, _running(mean, smooth) if smooth > 1 else mean, label=label, marker=marker, linewidth=1.6, **line)


def _legend(panels):
    """Legend lines and labels of all panels, each label once."""
    found = {}
    for axes in panels:
        for line, label in zip(*axes.get_legend_handles_labels()):
            found.setdefault(label, line)
    return list(found.values()), list(found)


def legend_above(figure: "Figure", lines: Sequence["Artist"], labels: Sequence[str]) -> None:
    """Add a legend above all panels; the figure grows for it."""
    width, height = figure.get_size_inches()
    columns = max(min(int(width / (0.7 + 0.09 * max(map(len, labels)))), len(labels)), 1)
    figure.set_size_inches(width, height + 0.26 * (-(-len(labels) // columns)))
    figure.legend(lines, labels, loc="outside upper center", ncols=columns)


def _scale(axes):
    """Make the y axis logarithmic if its values are positive and of a wide range."""
    from matplotlib import ticker

    values = np.concatenate([line.get_ydata() for line in axes.lines] or [np.zeros(1)])
    values = values[np.isfinite(values)]
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    if len(values) and values.min() > 0 and values.max() > LOG_RATIO * values.min():
        logarithmic(axes)


def logarithmic(axes: "Axes") -> None:
    """Make the y axis logarithmic, with at most about six plain numbers."""
    from matplotlib import ticker

    axes.set_yscale("log")
    bottom, top = axes.get_ylim()
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if top < 200 * bottom else (1,)))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def dashboard(records: Sequence[dict], title: str | None = None, smooth: int = 1) -> "Figure":
    """Plot all curves of a training log, a panel each; validation curves ("val_…") share the panel of training.

    records  list of dicts, from `read_log`
    title    name of the run
    smooth   as in `losses`
    returns  Figure
    """
    panels_of: dict[str, list[str]] = {}
    for key in _keys(records):
        panels_of.setdefault(key.removeprefix("val_"), []).append(key)
    if not panels_of:
        raise TalkheadError(f"{title or 'log'}: its records hold nothing but steps; pass a trainer's output")
    columns, rows = _grid(len(panels_of), 4)
    with style():
        figure, panels = board(max(3.6 * columns, 6), 2.7 * rows + 0.5, rows, columns)
        for axes, (name, keys) in zip(panels.flat, panels_of.items()):
            for index, key in enumerate(keys):
                _curve(axes, records, key, "held out" if key != name else "training", _line_style(index), smooth)
            _scale(axes)
            axes.set_title(name if name in keys else keys[0])
            axes.set_xlabel("step")
            if len(keys) > 1:
                axes.legend()
        _hide(panels.flat[len(panels_of) :])
        hours = max((record.get("seconds", 0) for record in records), default=0) / 3600
        time = f", {hours:.1f} h" if hours >= 0.1 else ""
        figure.suptitle(f"{title or 'training'}: step {max(record['step'] for record in records)}{time}")
    return figure


# Sheets of frames -----------------------------------------------------------------------------------------------------


def sheet(
    rows: Mapping[str, Sequence[np.ndarray] | np.ndarray], heads: Sequence[str] | None = None, side: float = 1.1
) -> "Figure":
    """Sheet of images in labelled rows, with column heads.

    rows     {label: n images, uint8 (H, W, 3)}
    heads    n texts, or None
    side     side of an image, inches
    returns  Figure
    """
    count = max(len(images) for images in rows.values())
    labels = [wrapped(label) for label in rows]
    margin = 0.25 + 0.095 * max(len(line) for label in labels for line in label.split("\n"))
    lines = max((head.count("\n") + 1 for head in heads), default=0) if heads else 0
    top = 0.1 + 0.21 * lines
    size = margin + side * count + 0.05, top + side * len(rows) + 0.05
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=size)
        panels = figure.subplots(
            len(rows),
            count,
            squeeze=False,
            gridspec_kw={
                "left": margin / size[0],
                "right": 1 - 0.05 / size[0],
                "bottom": 0.05 / size[1],
                "top": 1 - top / size[1],
                "wspace": 0.03,
                "hspace": 0.03,
            },
        )
        for label, images, line in zip(labels, rows.values(), panels):
            for axes in line:
                axes.set_axis_off()
            for axes, image in zip(line, images):
                axes.imshow(image, aspect="auto", interpolation="nearest" if len(image) < 64 else "antialiased")
            figure.text(
                (margin - 0.1) / size[0],
                np.mean([line[0].get_position().y0, line[0].get_position().y1]),
                label,
                ha="right",
                va="center",
            )
        for head, axes in zip(heads or (), panels[0]):
            axes.set_title(head, fontsize=10, pad=4)
    return figure


def strip(
    rows: Mapping[str, Sequence[np.ndarray] | np.ndarray],
    times: Sequence[float],
    phonemes: Sequence[tuple[float, float, str]] = (),
) -> "Figure":
    """Strips of frames of several clips at the same times, headed by the phonemes.

    rows      {label: frames at these times, uint8 (H, W, 3)}
    times     seconds, one for each column
    phonemes  list of (start, end, label)
    returns   Figure

    Source: thesis §5.3 (Figs 5.1 to 5.4).
    """
    return sheet(
        rows, [f"{_phoneme_at(time, phonemes)}\n{time:.2f} s" if phonemes else f"{time:.2f} s" for time in times]
    )


def _phoneme_at(time, phonemes):
    return next((label for start, end, label in phonemes if start <= time < end and label != "SIL"), "–")


def moments(
    count: int, columns: int, start: float = 0.0, seconds: float | None = None, fps: float = files.FPS
) -> list[float]:
    """Evenly spaced times, `columns` of them, over part of a clip of `count` frames, each at the middle of a frame."""
    first = round(start * fps)
    last = count - 1 if seconds is None else min(first + round(seconds * fps), count) - 1
    if first > last:
        raise TalkheadError(f"start {start:g} s: the clip ends at {count / fps:g} s; begin earlier")
    return sorted({(frame + 0.5) / fps for frame in np.linspace(first, last, columns).round().astype(int)})


def frames_at(reader: "FrameReader", times: Sequence[float]) -> list[np.ndarray]:
    """Frames of a clip at increasing times in seconds; the last frame also serves for two frames beyond the end."""
    wanted = [int(time * reader.fps) for time in times]
    frames, last = {}, -1
    for last, frame in zip(range(wanted[-1] + 1), reader):
        if last in wanted or last >= wanted[-1] - 2:
            frames[last] = frame
    if last < wanted[-1] - 2:
        raise TalkheadError(f"{reader.name}: ends before {times[-1]:.2f} s; pass clips of one length, or earlier times")
    return [frames[min(index, last)] for index in wanted]


@torch.no_grad()
def interpolation(
    generator: "Generator", ends: np.ndarray | None = None, columns: int = 7, seed: int = 0
) -> dict[str, np.ndarray]:
    """Images of linear and spherical interpolations in the latent spaces of a generator.

    generator  stylegan.Generator
    ends       float32 (2, L, 512), interpolated in W+; None: two random faces, interpolated in Z and W
    columns    images of each interpolation, including the ends
    seed       seed of the random faces
    returns    {"W+, lerp": uint8 (columns, R, R, 3), …}

    Source: thesis §3.3.1.2, Fig. 3.12.
    """
    like = next(generator.parameters())
    spaces: dict[str, tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]]
    if ends is None:
        why = why_not_random(generator)
        if why:
            raise TalkheadError(f"generator: {why}; pass latents of two faces to interpolate")
        z = torch.randn(2, generator.z_dim, generator=z_stream(seed)).to(like)
        spaces = {"Z": (z, generator.mapping), "W": (generator.mapping(z), torch.clone)}
    else:
        spaces = {"W+": (torch.as_tensor(ends).to(like), torch.clone)}
    rows = {}
    for space, (points, to_w) in spaces.items():
        t = torch.linspace(0, 1, columns).view(-1, *[1] * (points.ndim - 1)).to(like)
        for name, interpolate in (("lerp", lerp), ("slerp", slerp)):
            rows[f"{space}, {name}"] = to_frames(generator.synthesis(to_w(interpolate(points[:1], points[1:], t))))
    return rows


@torch.no_grad()
def directions(
    generator: "Generator", start: np.ndarray, found: Directions, columns: int = 7, reach: float = 3.0
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Images of a latent moved along directions.

    generator   stylegan.Generator
    start       float32 (L, 512), the latent in the middle column
    found       directions.Directions, as `directions.find` returns them
    columns     images of each direction
    reach       largest amount to either side, in standard deviations
    returns     {label: uint8 (columns, R, R, 3)}, and the heads of the columns

    Source: thesis §3.4, §4.3.1.3 (the basis V); §2.6.
    """
    amounts, like = np.linspace(-reach, reach, columns, dtype=np.float32), next(generator.parameters())
    rows = {
        f"component {index}, {share:.1%}": to_frames(
            generator.synthesis(torch.from_numpy(start + amounts[:, None, None] * direction).to(like))
        )
        for index, (direction, share) in enumerate(zip(*found), 1)
    }
    return rows, ["mean" if abs(amount) < 1e-6 else f"{amount:+.1f} σ".replace("-", "−") for amount in amounts.tolist()]


# Mouths ---------------------------------------------------------------------------------------------------------------


def mouths(
    curves: Mapping[str, Sequence[float] | np.ndarray],
    audio: np.ndarray | None = None,
    phonemes: Sequence[tuple[float, float, str]] = (),
    fps: float = files.FPS,
    rate: int = 16000,
) -> "Figure":
    """Plot mouth openings above the sound and its phonemes; bilabial closures (/p b m/) are shaded.

    curves    {label: (T,)}, from `landmarks.mouth_opening`; NaN without a face
    audio     float32 (N,) in [-1, 1], or None
    phonemes  list of (start, end, label), seconds
    fps       frames per second of the curves
    rate      sample rate of the audio, Hz
    returns   Figure

    Source: thesis §5.3 (bilabial events).
    """
    seconds = max(len(values) for values in curves.values()) / fps
    below = audio is not None or len(phonemes) > 0
    with style():
        width = float(np.clip(2.4 * seconds, 8, 48))
        figure, panels = board(
            width, 5.4 if below else 3.6, 2 if below else 1, sharex=True, height_ratios=[2, 1] if below else [1]
        )
        axes = panels[0, 0]
        for index, (label, values) in enumerate(curves.items()):
            axes.plot((np.arange(len(values)) + 0.5) / fps, values, label=label, linewidth=1.8, **_line_style(index))
        axes.set(ylabel="mouth opening /\ndistance of the eyes", xlim=(0, seconds))
        axes.set_ylim(bottom=0)
        for panel in panels.flat:
            for count, (start, end) in enumerate(closures(phonemes)):
                panel.axvspan(
                    start,
                    end,
                    color="#F0E442",
                    alpha=0.5,
                    linewidth=0,
                    zorder=0,
                    label="/p b m/" if count == 0 and panel is axes else None,
                )
        if below:
            _sound(panels[1, 0], audio, phonemes, seconds, rate)
        panels[-1, 0].set_xlabel("time, seconds")
        legend_above(figure, *axes.get_legend_handles_labels())
    return figure


def _sound(axes, audio, phonemes, seconds, rate):
    """Plot the envelope of a waveform and the phonemes, at alternating heights so that they do not overlap."""
    peak = 1.0
    if audio is not None and len(audio):
        blocks = np.array_split(audio[: round(seconds * rate)], min(2000, len(audio)))
        time = (np.arange(len(blocks)) + 0.5) / len(blocks) * min(seconds, len(audio) / rate)
        peak = max(float(np.abs(audio).max()), 1e-3)
        axes.fill_between(
            time,
            [block.min() / peak for block in blocks],
            [block.max() / peak for block in blocks],
            color="0.45",
            linewidth=0,
        )
    spoken = [(start, end, label) for start, end, label in phonemes if label != "SIL" and start < seconds]
    for count, (start, end, label) in enumerate(spoken):
        axes.axvline(start, color="0.75", linewidth=0.6)
        axes.text(
            (start + min(end, seconds)) / 2, 1.35 + 0.5 * (count % 2), label, ha="center", va="center", fontsize=9
        )
    axes.set(ylabel="sound", ylim=(-1.1, 2.15 if spoken else 1.1), yticks=[])
    axes.grid(False)
