"""Measure and draw what `inversion_study.sh` made: does the thesis's §3.3 hold here?

    python examples/inversion_study.py cut CLIP SHORT.mp4 --frames 16     # the middle of a clip
    python examples/inversion_study.py report OUT puppet film             # OUT/puppet/: clip.mp4, RUN.npy, RUN.jsonl, …

Two numbers without a unit, which no scaling of the latent space changes, tell how smooth a path is:

    stride  mean distance of neighbouring frames / mean distance of any two: 1 where frames scatter, small on a path
    bend    mean ‖w_t − 2w_{t−1} + w_{t−2}‖ / mean ‖w_t − w_{t−1}‖: 0 for an even walk straight on, √2 = 1.41 for a
            random walk, √3 = 1.73 where every frame lies by itself around one place, 2 for a walk to and fro

Two more tell where it goes. Over all pairs of frames, the distance of two codes correlates

    follows  with the distance of the two pictures: the path is the video's
    drifts   with the time between them: the path goes on, whatever is seen
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import talkhead
from talkhead import checkpoints, files, image_files, inversion, latents, losses, metrics, plots, synthesis, video_files
from talkhead.errors import TalkheadError
from talkhead.images import resize, to_images

# Every run: what it is called, and its colour and line (Okabe and Ito's colours, which every kind of eye can tell
# apart).
RUNS = {
    "optimise-w": ("Algorithm 1 in W", "#D55E00", "--"),
    "optimise-0": ("Algorithm 1", "#0072B2", "-"),
    "optimise-1": ("Algorithm 1, another seed", "#0072B2", ":"),
    "optimise-still": ("Algorithm 1, no w_noise", "#56B4E9", "-."),
    "sequential-0": ("Algorithm 2", "#009E73", "-"),
    "sequential-1": ("Algorithm 2, another seed", "#009E73", ":"),
    "hybrid": ("hybrid", "#E69F00", "-"),
    "encoder": ("encoder", "#CC79A7", "-"),
}
SCATTERED, SMOOTH = 0.75, 0.5  # strides: above the one is scatter, below the other a path
STRAIGHT = 1.0  # bend below which a path goes on as it went, rather than anywhere
ON_PAR = 1.0  # dB
FACE = Path(__file__).with_name("face.png")


# ---- numbers ----


def apart(points):
    """Distances of any two of some points: float (T, …) to (T·(T − 1)/2,)."""
    points = np.asarray(points, np.float64).reshape(len(points), -1)
    return np.concatenate([np.linalg.norm(points[k + 1 :] - points[k], axis=1) for k in range(len(points) - 1)])


def path_numbers(codes):
    """How a path runs.

    codes    float (T, …), T ≥ 3; distances are Euclidean over all other axes
    returns  dict: length (sum of the distances of neighbours), step (their mean), curvature (mean ‖w_t − 2w_{t−1} +
             w_{t−2}‖), bend (curvature / step), spread (mean distance of two different frames), stride (step / spread)
    """
    codes = np.asarray(codes, np.float64).reshape(len(codes), -1)
    steps = np.linalg.norm(np.diff(codes, axis=0), axis=1)
    curvature = np.linalg.norm(np.diff(codes, 2, axis=0), axis=1).mean()
    spread = apart(codes).mean()
    return {
        "length": steps.sum(),
        "step": steps.mean(),
        "curvature": curvature,
        "bend": curvature / steps.mean(),
        "spread": spread,
        "stride": steps.mean() / spread,
    }


def pair_numbers(a, b):
    """Distance of two runs over one video.

    Mean distance of the same frame, and as a share of that of two frames within a run.
    """
    between = np.linalg.norm((np.asarray(a, np.float64) - b).reshape(len(a), -1), axis=1).mean()
    within = (path_numbers(a)["spread"] + path_numbers(b)["spread"]) / 2
    return {"between": between, "within": within, "ratio": between / within}


def following(codes, frames):
    """What a path's turns come from: correlations, over all pairs of frames, of how far apart two codes lie.

    codes    float (T, …)
    frames   uint8 (T, H, W, 3), what was inverted
    returns  dict: follows (with the distance of the two pictures), drifts (with the time between them)
    """
    return {
        name: float(np.corrcoef(apart(codes), apart(cause))[0, 1])
        for name, cause in (("follows", frames), ("drifts", np.arange(len(codes))))
    }


class Judge:
    """Draws latents and says how far the pictures are from the frames."""

    def __init__(self, generator, perceptual):
        self.generator, self.perceptual = generator, losses.Perceptual(perceptual)
        # The thesis's measure, whatever was minimised here; nothing is downloaded for it.
        self.lpips = losses.Perceptual("lpips") if losses.vgg_weights().is_file() else None

    @torch.no_grad()
    def __call__(self, codes, frames):
        """Numbers of a run, and its pictures, uint8 (T, R, R, 3).

        The loss is `invert`'s, at λ = 1 and without w_noise.
        """
        pictures = np.stack(list(synthesis.synthesize(self.generator, codes)))
        rows = [self.distances(code, frame) for code, frame in zip(torch.from_numpy(codes), frames)]
        means = {
            name: None if rows[0][name] is None else float(np.mean([row[name] for row in rows])) for name in rows[0]
        }
        return means | {
            "psnr": metrics.psnr(frames, pictures),
            "ssim": metrics.ssim(frames, pictures),
            "loss_of_frame": [row["loss"] for row in rows],
        }, pictures

    def distances(self, code, frame):
        drawn, target = self.generator.synthesis(code[None]), to_images(frame[None])
        perceptual, pixel = self.perceptual(drawn, target).item(), losses.pixel_loss(drawn, target).item()
        return {
            "loss": perceptual + pixel,
            "perceptual": perceptual,
            "pixel": pixel,
            "lpips": self.lpips(drawn, target).item() if self.lpips else None,
        }


def read_losses(path):
    """The loss of every frame before every step, float (T, steps), NaN after a frame's last.

    Read from the log of `invert --log`.
    """
    records = plots.read_log(path)
    table = np.full([1 + max(record[name] for record in records) for name in ("frame", "step")], np.nan)
    for record in records:
        table[record["frame"], record["step"]] = record["loss"]
    return table


class Clip:
    """A clip, and every run over it: codes, losses, pictures, numbers."""

    def __init__(self, folder, judge):
        self.name, self.folder = folder.name, folder
        with video_files.read_frames(folder / "clip.mp4") as reader:
            self.frames = np.stack([resize(frame, judge.generator.resolution) for frame in reader])
        self.codes = {run: files.read_latents(folder / f"{run}.npy") for run in RUNS}
        self.losses = {run: read_losses(folder / f"{run}.jsonl") for run in RUNS if run != "encoder"}
        self.pictures, self.numbers = {}, {}
        for run, codes in self.codes.items():
            quality, self.pictures[run] = judge(codes, self.frames)
            (own,), share = plots.in_plane(codes)
            self.numbers[run] = (
                self.times(run)
                | quality
                | {
                    "w_plus": path_numbers(codes),
                    "plane": path_numbers(own) | {"variance": share.tolist()},
                    **following(codes, self.frames),
                }
            )
        self.pairs = {
            kind: pair_numbers(self.codes[f"{kind}-0"], self.codes[f"{kind}-1"]) for kind in ("optimise", "sequential")
        }
        self.claims = claims(self.numbers, self.pairs)

    def times(self, run):
        """Seconds of a frame and of a step of it.

        The command's start-up, which a clip of one frame showed, is taken off.
        """
        startup, seconds = (float((self.folder / f"{name}.seconds").read_text()) for name in ("startup", run))
        taken = max(seconds - startup, 0.0)
        if run == "encoder":
            return {"seconds_per_frame": taken / (len(self.frames) - 1)}
        steps = int(np.isfinite(self.losses[run]).sum())
        return {"seconds_per_frame": taken / len(self.frames), "seconds_per_step": taken / steps, "steps": steps}


def claims(numbers, pairs):
    """The thesis's claims: [(claim, whether it holds, the numbers that say so)]."""
    w, alone, again, chain = (numbers[run] for run in ("optimise-w", "optimise-0", "optimise-1", "sequential-0"))
    won = np.mean(np.less(alone["loss_of_frame"], w["loss_of_frame"]))
    strides = [run["w_plus"]["stride"] for run in (alone, again)]
    ratio, path, gain = pairs["optimise"]["ratio"], chain["plane"], chain["psnr"] - alone["psnr"]
    return [
        (
            "W+ beats W on the same loss",
            bool(won > 0.5 and alone["loss"] < w["loss"]),
            f"{alone['loss']:.3f} in W+, {w['loss']:.3f} in W; lower in {won:.0%} of the frames",
        ),
        (
            "two runs of Algorithm 1 land in different places",
            bool(ratio > SCATTERED),
            f"one frame in two runs lies {ratio:.2f} times as far apart as two frames in one run; asked > {SCATTERED}",
        ),
        (
            "both runs scatter",
            bool(min(strides) > SCATTERED),
            f"stride {strides[0]:.2f} and {strides[1]:.2f}; asked > {SCATTERED}",
        ),
        (
            "Algorithm 2 draws a smooth path in its first two components",
            bool(path["stride"] < SMOOTH and path["bend"] < STRAIGHT),
            f"stride {path['stride']:.2f} and bend {path['bend']:.2f} there; asked < {SMOOTH} and < {STRAIGHT:.0f}",
        ),
        (
            "the two algorithms' quality is on a par",
            bool(gain > -ON_PAR),
            f"Algorithm 2 has {gain:+.1f} dB; asked > −{ON_PAR:.0f}",
        ),
    ]


# ---- pictures ----


def save(figure, path):
    plots.save(figure, path)
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        path, optimize=True
    )  # a third of the size


def curve(axes, x, losses, run):
    """The mean loss over frames, and the band between the luckiest and the worst frame."""
    label, colour, line = RUNS[run]
    axes.plot(x, np.nanmean(losses, 0), line, color=colour, label=label)
    axes.fill_between(x, np.nanmin(losses, 0), np.nanmax(losses, 0), color=colour, alpha=0.15, linewidth=0)


def draw_spaces(clip, path):
    """Fig. 3.6: the loss of Algorithm 1 in W and in W+."""
    with plots.style():
        figure, ((axes,),) = plots.board(7, 4)
        for run in ("optimise-w", "optimise-0"):
            curve(axes, np.arange(clip.losses[run].shape[1]), clip.losses[run], run)
        plots.logarithmic(axes)
        axes.set(
            xlabel="step", ylabel="loss", title=f"{clip.name}: W and W+ (mean and range of {len(clip.frames)} frames)"
        )
        axes.legend()
    save(figure, path)


def draw_methods(clip, path):
    """Fig. 3.14: the loss of each method over steps, and over the seconds they take."""
    with plots.style():
        figure, (panels,) = plots.board(11, 4.2, 1, 2, sharey=True)
        for run in ("optimise-0", "sequential-0", "hybrid"):
            curves = clip.losses[run][run == "sequential-0" :]  # Algorithm 2's first frame is Algorithm 1's
            curves = curves[:, ~np.isnan(curves).all(0)]
            steps = np.arange(curves.shape[1])
            curve(panels[0], steps, curves, run)
            curve(panels[1], steps * clip.numbers[run]["seconds_per_step"], curves, run)
        label, colour, _ = RUNS["encoder"]
        for axes, x in zip(panels, (0, clip.numbers["encoder"]["seconds_per_frame"])):
            axes.plot(x, clip.numbers["encoder"]["loss"], "D", color=colour, label=label)
            plots.logarithmic(axes)
        panels[0].set(xlabel="step", ylabel="loss", title=f"{clip.name}: methods")
        panels[1].set(xlabel="seconds of one frame", title="the same over time")
        panels[0].legend()
    save(figure, path)


def draw_paths(clip, path):
    """Figures 3.7 and 3.8: two runs of Algorithm 1 and one of Algorithm 2.

    They are drawn in one plane, and each in its own at one scale.
    """
    runs = ("optimise-0", "optimise-1", "sequential-0")
    together, share = plots.in_plane(*(clip.codes[run] for run in runs))
    own = [plots.in_plane(clip.codes[run]) for run in runs]
    with plots.style():
        figure, rows = plots.board(11, 7.6, 2, 3)
        for axes, run, points in zip(rows[0], runs, together):
            dots = plots.path_panel(axes, points, share, together)
            axes.set_title(f"{RUNS[run][0]}\nin the components of all three")
        for axes, ((points,), share) in zip(rows[1], own):
            plots.path_panel(axes, points, share, [points for (points,), _ in own])
            axes.set_title("in its own components")
        figure.colorbar(dots, ax=rows, label="time in the clip, seconds", shrink=0.6)
        figure.suptitle(f"{clip.name}: first two principal components of W+")
    save(figure, path)


def draw_strips(clip, path, columns=6):
    """Fig. 3.9: frames of the clip, and what each method makes of them."""
    seen = np.linspace(0, len(clip.frames) - 1, min(columns, len(clip.frames))).round().astype(int)
    rows = {"original": clip.frames} | {
        RUNS[run][0]: clip.pictures[run] for run in ("optimise-w", "optimise-0", "sequential-0", "hybrid", "encoder")
    }
    save(plots.sheet({label: pictures[seen] for label, pictures in rows.items()}), path)


# ---- interpolation ----


@torch.no_grad()
def interpolation(generator, encoder, frame, perceptual, path, columns=6):
    """Fig. 3.12: straight and round ways through Z, W and W+, drawn, and how direct and how even each is. Through Z and
    W only where random z are faces to the generator.

    frame    a face whose code is one end of the way in W+; the other end is that of face.png
    returns  {row: {"detour", "jump"}}: length of the way / distance of its ends, longest / mean step, both as the eye
             (the perceptual distance) sees them
    """
    ends = np.stack([*inversion.encode(encoder, [image_files.read_image(FACE)]), *inversion.encode(encoder, [frame])])
    random = {} if latents.why_not_random(generator) else plots.interpolation(generator, columns=columns, seed=1)
    rows = random | plots.interpolation(generator, ends, columns)
    numbers = {}
    for way, pictures in rows.items():
        images = to_images(pictures)
        steps, whole = perceptual(images[1:], images[:-1]), perceptual(images[:1], images[-1:])
        numbers[way] = {"detour": (steps.sum() / whole).item(), "jump": (steps.max() / steps.mean()).item()}
    save(plots.sheet(rows), path)
    return numbers


# ---- the report ----


def table(rows):
    """Markdown. rows: lists of cells, the heads first."""
    head, *rows = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def text(clip):
    """What a clip showed, as Markdown."""
    quality = [["method", "steps a frame", "seconds a frame", "loss", "perceptual", "LPIPS", "PSNR, dB", "SSIM"]]
    paths = [
        [
            "method",
            "path length",
            "step",
            "curvature",
            "bend",
            "stride",
            "bend in the plane",
            "stride in the plane",
            "follows",
            "drifts",
        ]
    ]
    for run, n in clip.numbers.items():
        steps = n.get("steps", 0) / len(clip.frames)
        quality.append(
            [
                RUNS[run][0],
                f"{steps:.0f}",
                n["seconds_per_frame"],
                f"{n['loss']:.3f}",
                f"{n['perceptual']:.3f}",
                "not measured" if n["lpips"] is None else f"{n['lpips']:.3f}",
                f"{n['psnr']:.1f}",
                n["ssim"],
            ]
        )
        paths.append(
            [
                RUNS[run][0],
                *(n["w_plus"][name] for name in ("length", "step", "curvature", "bend", "stride")),
                *(n["plane"][name] for name in ("bend", "stride")),
                n["follows"],
                n["drifts"],
            ]
        )
    verdicts = [
        ["claim", "holds", "measured"],
        *([claim, "yes" if holds else "**no**", measured] for claim, holds, measured in clip.claims),
    ]
    runs = [
        ["two runs of", "the same frame in both, apart", "two frames of one run, apart", "ratio"],
        *([RUNS[f"{kind}-0"][0], pair["between"], pair["within"], pair["ratio"]] for kind, pair in clip.pairs.items()),
    ]
    return f"## {clip.name}: {len(clip.frames)} frames\n\n" + "\n".join(map(table, (verdicts, quality, paths, runs)))


def report(out, clips, generator=None, encoder=None, perceptual="auto"):
    """Draw the clips of these names in a folder, and write study.md and study.json there."""
    generator = checkpoints.load_generator(generator or checkpoints.bundled("generator"))
    encoder = checkpoints.load_encoder(encoder or checkpoints.bundled("encoder"), generator)
    judge = Judge(generator, perceptual)
    clips = [Clip(out / name, judge) for name in clips]
    for clip in clips:
        draw_spaces(clip, clip.folder / "spaces.png")
        draw_methods(clip, clip.folder / "methods.png")
        draw_paths(clip, clip.folder / "paths.png")
        draw_strips(clip, clip.folder / "strips.png")
    ways = interpolation(generator, encoder, clips[0].frames[0], judge.perceptual, out / "interpolation.png")
    about = {
        "talkhead": talkhead.__version__,
        "generator": generator.fingerprint,
        "resolution": generator.resolution,
        "perceptual": judge.perceptual.name,
        "lpips": "measured" if judge.lpips else "not measured: VGG's weights are not in torch's cache",
    }
    files.write_json(
        out / "study.json",
        about
        | {
            "clips": {
                clip.name: {
                    "frames": len(clip.frames),
                    "runs": clip.numbers,
                    "pairs": clip.pairs,
                    "claims": [dict(zip(("claim", "holds", "measured"), claim)) for claim in clip.claims],
                }
                for clip in clips
            },
            "interpolation": ways,
        },
    )
    note = (
        f"Generator `{generator.fingerprint}` of {generator.resolution} pixels; loss: {judge.perceptual.name} + "
        f"pixels; LPIPS {about['lpips']}.\n"
    )
    ways = [["way", "detour", "jump"], *([name, way["detour"], way["jump"]] for name, way in ways.items())]
    (out / "study.md").write_text("\n".join([note, *map(text, clips), "## Interpolation\n", table(ways)]))


def cut(source, destination, frames):
    """Write the middle of an aligned clip, losslessly."""
    with video_files.read_frames(source) as reader:
        metadata, clip = reader.metadata, list(reader)
    if len(clip) < frames:
        raise TalkheadError(f"{source}: has {len(clip)} frames, wanted {frames}; set FRAMES lower")
    start = (len(clip) - frames) // 2
    with video_files.FrameWriter(destination, metadata=metadata, lossless=True) as writer:
        for frame in clip[start : start + frames]:
            writer.write(frame)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    job = jobs.add_parser("cut", help="take the middle of an aligned clip")
    job.add_argument("source")
    job.add_argument("destination")
    job.add_argument("--frames", type=int, required=True)
    job = jobs.add_parser("report", help="measure and draw the runs in a folder")
    job.add_argument("out", type=Path)
    job.add_argument("clips", nargs="+", help="names of the folders in it")
    job.add_argument("--generator", help="weights; the bundled ones if left out")
    job.add_argument("--encoder", help="weights; the bundled ones if left out")
    job.add_argument("--perceptual", default="auto", help="the loss that was minimised")
    options = vars(parser.parse_args())
    {"cut": cut, "report": report}[options.pop("job")](**options)


if __name__ == "__main__":
    try:
        main()
    except TalkheadError as problem:
        sys.exit(f"inversion_study.py: {problem}")
