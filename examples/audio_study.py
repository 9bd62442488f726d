"""Measure and draw the speech models that `audio_study.sh` trained: does the thesis's chapter 4 hold here?

    python examples/audio_study.py CLIPS SEEN UNSEEN OUT --features mfcc bundled     # OUT/first-mfcc.pt, …

Everything is measured in the pictures that were drawn, through one encoder, that of the second model: it finds the code
of each frame. Two things are read from codes:

    the mouth's opening   by a linear reading, fitted to the true openings of CLIPS
    who somebody is       the mean code of a clip. Of a clip of a person never seen, `stray` is the distance from who
                          should speak, as a share of the distance from whoever of CLIPS is nearest: below 1 a face is
                          still more of the person than of anybody in training, above 1 it has become one of those
"""

import argparse
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import talkhead
from contact_sheet import sheet
from puppets import articulation
from talkhead import (
    audio_files,
    checkpoints,
    files,
    image_files,
    inversion,
    latent_cache,
    metrics,
    pti,
    synthesis,
    video_files,
)
from talkhead.audio2latent import load_features_for
from talkhead.errors import TalkheadError
from talkhead.images import resize, to_images
from talkhead.latents import Basis

MODELS = ("first", "second")
READ_FROM = 200  # clips of CLIPS
COMPONENTS = 64  # that the mouth is read in, at most
SHUT = 0.25  # lips count as shut below this share of the way from the true clip's 5th to its 95th percentile of opening
KEPT = 1.0  # `stray` below which a face is still the person's
COLUMNS, SIZE = 12, 128


# ---- what is seen through the encoder ----


@dataclass
class Clip:
    """A clip, and what is known of it."""

    path: Path
    person: str
    frames: list
    audio: np.ndarray
    opening: np.ndarray  # (T,)
    closures: list


def person(path):
    """Who is seen: told by the donors of a puppet's face, else by its speaker, else by its folder."""
    about = path.with_suffix(".json")
    told = files.read_json(about) if about.exists() else {}
    return "+".join(told.get("donors", ())) or told.get("speaker") or path.resolve().parent.name


def read(path):
    about = files.read_json(path.with_suffix(".json"))
    track = files.read_array(path.with_suffix(".track.npy"))[:, articulation.TRACK.index("opening")]
    with video_files.read_frames(path) as reader:
        frames = list(reader)
    return Clip(
        path,
        person(path),
        frames,
        audio_files.read_audio(path),
        track[: len(frames)],
        articulation.closures(about.get("phonemes", [])),
    )


class Eye:
    """Finds codes of pictures, and reads from them who is seen and how open the mouth is."""

    def __init__(self, encoder, clips, kept):
        self.encoder = encoder
        with latent_cache.LatentCache(kept, encoder) as known:
            lessons = [known.encode(path, "cpu") for path in clips]
            means = [known.read(lesson)[0].mean(0) for lesson in lessons]
            tracked = [lesson for lesson in lessons if lesson.opening is not None][:: max(1, len(lessons) // READ_FROM)]
            if not tracked:
                raise TalkheadError(
                    f"{clips[0].parent}: no clip has its mouth's track beside it; use clips that synth.py wrote"
                )
            paths = [known.read(lesson)[0] for lesson in tracked]
        self.people = {}
        for path, mean in zip(clips, means):
            self.people.setdefault(person(path), []).append(mean)
        self.people = {name: np.mean(found, 0) for name, found in self.people.items()}
        self.weights = self.reading(paths, [lesson.opening for lesson in tracked])

    @staticmethod
    def reading(paths, openings):
        """The direction of the mouth's opening, float64 (L·512,).

        Along it, the distance of codes from their mean tells how far the mouth opens beyond its own mean.
        """
        moved = torch.from_numpy(np.concatenate([path - path.mean(0) for path in paths])).float()
        wanted = np.concatenate([opening - opening.mean() for opening in openings])
        basis = Basis.fit(moved, min(COMPONENTS, len(moved) - 1, moved[0].numel()))
        x = basis.project(moved, centre=False).double().numpy()
        ridge = 1e-3 * np.square(x).sum(0).max()
        return basis.components.double().numpy().T @ np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ wanted)

    def look(self, frames):
        """Codes float32 (T, L, 512) of frames."""
        return np.stack(list(inversion.encode(self.encoder, frames)))

    def opening(self, path):
        return (path - path.mean(0)).reshape(len(path), -1).astype(np.float64) @ self.weights

    def stray(self, path, wanted):
        """Distance of a path from its person, whose true path is `wanted`.

        Returns (distance from them / from the nearest in training, who that is).
        """
        mean = path.mean(0)
        distances = {name: np.linalg.norm(mean - other) for name, other in self.people.items()}
        nearest = min(distances, key=distances.get)
        return float(np.linalg.norm(mean - wanted.mean(0)) / max(distances[nearest], 1e-12)), nearest


class Speaker:
    """A speech model with its generator and encoder."""

    def __init__(self, path, generator, encoder, features_model):
        self.generator, self.encoder = generator, encoder
        self.model = checkpoints.load_audio2latent(path, generator)
        self.features = load_features_for(
            self.model, path=features_model if self.model.feature_id["name"] != "mfcc" else None
        )

    def path(self, face, audio, seed=0):
        return np.stack(
            list(synthesis.speech_to_latents(self.encoder, self.model, face, audio, features=self.features, seed=seed))
        )

    def speak(self, face, audio, generator=None, seed=0):
        return np.stack(list(synthesis.synthesize(generator or self.generator, self.path(face, audio, seed))))


# ---- numbers ----


def motion(eye, heard, seen, true):
    """Measures of a mouth that follows a sound.

    heard: Clip whose sound it was; seen, true: codes of the frames drawn, and of that clip's own.
    """
    mine, theirs = eye.opening(seen), eye.opening(true)
    following = metrics.correlation_and_lag(heard.opening, mine)
    rest, wide = np.percentile(theirs, [5, 95])
    met = metrics.met_closures(mine, heard.closures, rest + SHUT * (wide - rest))
    return {
        "correlation": following.correlation,
        "lag": following.lag,
        "range": float(mine.std() / max(theirs.std(), 1e-12)),
        "closures": int(met.sum()),
        "asked": len(met),
    }


def mean(records):
    """The means of figures over clips; closures are added up and made a share."""
    summed = {name: sum(record[name] for record in records) for name in ("closures", "asked")}
    means = {
        name: float(np.mean([record[name] for record in records])) for name in records[0].keys() - {*summed, "nearest"}
    }
    if "stray" in means:
        means["kept"] = float(np.mean([record["stray"] < KEPT for record in records]))
    return means | {
        "clips": len(records),
        "closures": summed["closures"] / summed["asked"] if summed["asked"] else None,
        "asked": summed["asked"],
    }


def speaking(eye, speakers, pairs, strays=False):
    """Drive the face of one clip by the sound of another, with every model.

    Returns numbers by model, and the first pairs' rows for a strip.
    """
    numbers, rows = {name: [] for name in speakers}, []
    for face, heard in pairs:
        shown = [heard.frames]
        true, own = eye.look(heard.frames), eye.look(face.frames)
        for name, speaker in speakers.items():
            frames = speaker.speak(face.frames[0], heard.audio)
            seen = eye.look(frames)
            record = motion(eye, heard, seen, true)
            if strays:
                record["stray"], record["nearest"] = eye.stray(seen, own)
            numbers[name].append(record)
            shown.append(frames)
        rows += shown if len(rows) < 3 * len(shown) else []
    return {name: mean(records) for name, records in numbers.items()}, rows


def seeds(eye, speaker, clip):
    """Changes by another seed of the noise, as shares of the motion's own std: of all motion, and of the mouth's."""
    one, two = (speaker.path(clip.frames[0], clip.audio, seed) for seed in (1, 2))
    moved, opened = one - one.mean(0), eye.opening(one)
    return {
        "whole": float(np.linalg.norm(one - two) / max(np.linalg.norm(moved), 1e-12)),
        "mouth": float(np.linalg.norm(opened - eye.opening(two)) / max(np.linalg.norm(opened), 1e-12)),
    }


def tuning(eye, speaker, clips, frames, steps):
    """Measure the clip's end by three generators: untuned, tuned on one frame, and tuned on the clip's beginning.

    Returned are how near the frames are, and whether the mouth still moves.
    """
    numbers, rows = {}, []
    for clip in clips:
        small = [resize(frame, speaker.generator.resolution) for frame in clip.frames]
        pivots, count = np.stack(list(inversion.encode(speaker.encoder, clip.frames))), min(frames, len(small) // 2)
        true, shown = eye.look(clip.frames), [small]
        for name, some in (("not tuned", 0), ("one frame", 1), (f"{count} frames", count)):
            images = to_images(np.stack(small[:some])) if some else None
            tuned = pti.tune(speaker.generator, images, pivots[:some], steps=steps) if some else speaker.generator
            drawn = list(synthesis.synthesize(tuned, pivots[count:]))
            spoken = speaker.speak(clip.frames[0], clip.audio, tuned)
            record = motion(eye, clip, eye.look(spoken), true)
            record |= {"psnr": metrics.psnr(small[count:], drawn), "ssim": metrics.ssim(small[count:], drawn)}
            numbers.setdefault("several frames" if some > 1 else name, []).append(record)
            shown.append(spoken)
        rows += shown if len(rows) < 3 * len(shown) else []
    return {name: mean(records) for name, records in numbers.items()}, rows


def claims(found):
    """The thesis's claims: [(claim, whether it holds, the numbers that say so)]."""
    unseen, seen, tuned = found["unseen"], found["seen"], found["tuning"]
    by = {model: [name for name in seen if name.startswith(model)] for model in MODELS}
    stray = {model: np.mean([unseen[name]["stray"] for name in names]) for model, names in by.items()}
    worst = min(numbers["correlation"] for numbers in seen.values())
    ratio = np.mean([found["cross"][name]["correlation"] / max(seen[name]["correlation"], 1e-12) for name in seen])
    gain = tuned["several frames"]["psnr"] - tuned["one frame"]["psnr"]
    moves = tuned["several frames"]["correlation"] - tuned["not tuned"]["correlation"]
    return [
        (
            "mouths follow unseen speech (Figs 4.3, 4.9)",
            bool(worst > 0.8),
            f"correlation {worst:.2f} at least; asked > 0.8",
        ),
        (
            "they follow it as well in another's face (Fig. 4.4)",
            bool(ratio > 0.9),
            f"{ratio:.2f} of that correlation; asked > 0.9",
        ),
        (
            "the first model makes an unseen person one of those in training (Fig. 4.5)",
            bool(stray["first"] > KEPT),
            f"stray {stray['first']:.2f}; asked > {KEPT:.0f}",
        ),
        (
            "the second keeps them (Fig. 4.9)",
            bool(stray["second"] < KEPT),
            f"stray {stray['second']:.2f}; asked < {KEPT:.0f}",
        ),
        ("several frames tune better than one (Fig. 4.10)", bool(gain > 0), f"{gain:+.1f} dB on frames not tuned on"),
        (
            "tuning leaves the mouth's motion alone (Fig. 4.11)",
            bool(moves > -0.05),
            f"correlation {moves:+.2f}; asked > −0.05",
        ),
    ]


# ---- the report ----


def table(rows):
    """Markdown. rows: lists of cells, the heads first."""
    head, *rows = [
        ["–" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]) + "\n"


FIGURES = {
    "correlation": "correlation of the opening",
    "lag": "lag, frames",
    "range": "range of the opening, of the true one",
    "closures": "/p b m/ with shut lips",
    "asked": "of so many",
    "stray": "stray",
    "kept": "faces kept",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
}


def numbers_table(numbers, first):
    told = [name for name in FIGURES if name in next(iter(numbers.values()))]
    return table(
        [
            [first, *(FIGURES[name] for name in told)],
            *([name, *(record[name] for name in told)] for name, record in numbers.items()),
        ]
    )


def text(found):
    """What the study found, as Markdown."""
    parts = [
        ("Seen people, unseen speech", "seen.png", numbers_table(found["seen"], "model, features")),
        ("One's voice in another's face", "cross.png", numbers_table(found["cross"], "model, features")),
        ("People never seen", "unseen.png", numbers_table(found["unseen"], "model, features")),
        ("A generator tuned on the person", "tuning.png", numbers_table(found["tuning"], "tuned on")),
    ]
    noise = table(
        [
            ["model, features", "changed of the whole motion", "of the mouth's"],
            *([name, x["whole"], x["mouth"]] for name, x in found["seeds"].items()),
        ]
    )
    verdicts = table(
        [
            ["claim", "holds", "measured"],
            *([claim, "yes" if holds else "**no**", measured] for claim, holds, measured in found["claims"]),
        ]
    )
    note = (
        f"Generator `{found['generator']}`, the first model's `{found['first_generator']}`; {found['people']} people "
        f"to learn from; talkhead {talkhead.__version__}.\n"
    )
    return "\n".join(
        [
            note,
            verdicts,
            *(f"## {title}\n\n![{title}]({picture})\n\n{body}" for title, picture, body in parts),
            f"## Another seed of the first model's noise\n\n{noise}",
        ]
    )


def study(
    clips,
    seen,
    unseen,
    out,
    features,
    generator=None,
    encoder=None,
    first_generator=None,
    first_encoder=None,
    features_model=None,
    limit=20,
    tune_frames=125,
    tune_steps=350,
):
    """Measure the models in `out`, and write study.md, study.json and the strips there."""
    second = networks(generator, encoder)
    first = networks(first_generator, first_encoder) if first_generator or first_encoder else second
    eye = Eye(second[1], latent_cache.list_clips([clips]), out / "all.codes")
    speakers = {
        f"{model}, {name}": Speaker(
            out / f"{model}-{name}.pt", *(first if model == "first" else second), features_model
        )
        for name in features
        for model in MODELS
        if (out / f"{model}-{name}.pt").exists()
    }
    for model in MODELS:
        if not any(name.startswith(model) for name in speakers):
            raise TalkheadError(f"{out}: holds no {model}-{features[0]}.pt; train it, or name its features")
    known, strangers = (
        [read(path) for path in islice(latent_cache.list_clips([folder]), limit)] for folder in (seen, unseen)
    )
    found, rows = {}, {}
    others = [
        next((other for other in known[k + 1 :] + known[:k] if other.person != clip.person), strangers[0])
        for k, clip in enumerate(known)
    ]
    found["seen"], rows["seen"] = speaking(eye, speakers, [(clip, clip) for clip in known])
    found["cross"], rows["cross"] = speaking(eye, speakers, zip(known, others))
    found["unseen"], rows["unseen"] = speaking(eye, speakers, [(clip, clip) for clip in strangers], strays=True)
    best = max(
        (name for name in speakers if name.startswith("second")), key=lambda name: found["seen"][name]["correlation"]
    )
    found["tuning"], rows["tuning"] = tuning(eye, speakers[best], strangers[:5], tune_frames, tune_steps)
    found["seeds"] = {
        name: seeds(eye, speaker, known[0]) for name, speaker in speakers.items() if name.startswith("first")
    }
    found["claims"] = claims(found)
    found |= {"people": len(eye.people), "generator": second[0].fingerprint, "first_generator": first[0].fingerprint}
    for name, shown in rows.items():
        image_files.write_image(out / f"{name}.png", sheet(shown, COLUMNS, SIZE), synthetic=True)
    files.write_json(out / "study.json", found)
    (out / "study.md").write_text(text(found))


def networks(generator, encoder):
    generator = checkpoints.load_generator(generator or checkpoints.bundled("generator"))
    return generator, checkpoints.load_encoder(encoder or checkpoints.bundled("encoder"), generator)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, what in (
        ("clips", "what was learned from"),
        ("seen", "the same people with other sentences"),
        ("unseen", "other people"),
        ("out", "the folder that holds the models"),
    ):
        parser.add_argument(name, type=Path, help=what)
    parser.add_argument(
        "--features",
        nargs="+",
        default=["mfcc"],
        help="first- and second-FEATURES.pt are measured for these; of each model one must be there",
    )
    parser.add_argument("--features-model", help="the file of the network that makes them, if they need one")
    for kind in ("generator", "encoder", "first-generator", "first-encoder"):
        parser.add_argument(f"--{kind}", help="weights; the bundled ones if left out")
    parser.add_argument("--limit", type=int, default=20, help="clips looked at of each folder")
    parser.add_argument(
        "--tune-frames", type=int, default=125, help="frames of the longer tuning; at most half of a clip"
    )
    parser.add_argument("--tune-steps", type=int, default=350)
    study(**vars(parser.parse_args()))


if __name__ == "__main__":
    try:
        main()
    except TalkheadError as problem:
        sys.exit(f"audio_study.py: {problem}")
