"""Measure and draw what `video_gan_study.sh` trained: does the thesis's §3.4 hold here?

    python examples/video_gan_study.py OUT TRAINING HELD_OUT thesis video w …     # OUT/NAME.pt

What a face does is read from pictures alone. A linear reader, fitted on the training clips, tells five features of a
frame from its code as the encoder sees it, less the clip's mean: how far mouth and eyes are open, and where the head
turns, nods and tilts. How well it reads, held-out clips with known landmarks tell; everything measured is read by it,
generated and real frames alike, and real frames are first projected.

    diversity   mean distance of two motions of one face by different noise, as part of that of two held-out clips;
                features in real spreads
    motion      Fréchet distance of windows of 16 frames, as eight moments of the five features, from those of the clips
                of the held-out people; "floor" is that of one half of them from the other
    frames      Fréchet distance of the frames as the encoder's last map sees them, averaged (inception.FaceFeatures),
                likewise
    identity    mean cosine distance of that map from the identity's picture; and of the real clips' frames from their
                first
    transfer    correlation of the mouth's and of the head's motion of two faces under the same noise, and of one face
                under two noises
    blinks, mouth   movements a minute: how often the eyes close by more than two real spreads, or the mouth opens and
                    shuts by one
    drift       a long sequence: the last tenth's distance from the identity by the first tenth's, of latents, and of
                the encoder's map
    frames_per_s   latents and pictures, one after the other
"""

import argparse
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from talkhead import checkpoints, fid, files, image_files, latent_cache, synthesis
from talkhead.errors import TalkheadError
from talkhead.images import sheet, to_images
from talkhead.landmarks import mouth_opening
from talkhead.latents import Basis
from talkhead.video_gan import motion

FEATURES = ("mouth", "eyes", "turn", "nod", "tilt")
WINDOW, MOMENTS = 16, 8
SHOWN = 10  # frames of a strip


# ---- what a face does ----


def described(landmarks):
    """The five features of landmarks (T, 68, 2), in distances of the eyes: (T, 5)."""
    left, right = landmarks[:, 36:42].mean(1), landmarks[:, 42:48].mean(1)
    across = right - left
    apart = np.linalg.norm(across, axis=1)
    nose = landmarks[:, 30] - (left + right) / 2
    lids = [
        np.linalg.norm(landmarks[:, upper] - landmarks[:, lower], axis=1)
        for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46))
    ]
    along = (nose * across).sum(1) / apart**2
    down = (across[:, 0] * nose[:, 1] - across[:, 1] * nose[:, 0]) / apart**2
    return np.stack(
        [
            mouth_opening(landmarks),
            np.mean(lids, 0) / apart,
            along,
            down,
            np.arctan2(across[:, 1], across[:, 0]),
        ],
        1,
    )


class Reader:
    """The linear reading of features (5,) from codes (L, 512) less their mean, in spreads of the training clips."""

    def __init__(self, clips, components=128):
        self.basis = Basis.fit(
            (torch.from_numpy(path[::2]) for path, _ in clips),
            min(components, sum(len(path[::2]) for path, _ in clips) - 1),
        )
        moved = np.concatenate([self._coordinates(path - path.mean(0)) for path, _ in clips])
        told = np.concatenate([features - features.mean(0) for _, features in clips])
        self.spread = np.maximum(told.std(0), 1e-9)
        gram = moved.T @ moved
        self.weights = np.linalg.solve(
            gram + 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram)), moved.T @ (told / self.spread)
        )

    def _coordinates(self, moved):
        return self.basis.project(torch.from_numpy(moved), centre=False).numpy().astype(float)

    def __call__(self, path):
        """Features (T, 5) of codes (T, L, 512), in spreads, around their mean."""
        return self._coordinates(path - path.mean(0)) @ self.weights

    def judged(self, clips):
        """How readings correlate with what landmarks say, by feature: mean over clips."""
        found = [[correlation(mine, true) for mine, true in zip(self(path).T, features.T)] for path, features in clips]
        return dict(zip(FEATURES, np.nanmean(found, 0).round(3).tolist()))


def correlation(a, b):
    return float(np.corrcoef(a, b)[0, 1]) if min(np.std(a), np.std(b)) > 1e-9 else float("nan")


def windows(features):
    """Features (T, 5) to windows that overlap by half, (n, 40)."""
    picks = np.linspace(0, WINDOW - 1, MOMENTS).round().astype(int)
    cut = [features[start : start + WINDOW][picks] for start in range(0, len(features) - WINDOW + 1, WINDOW // 2)]
    return np.stack(cut).reshape(len(cut), -1) if cut else np.empty((0, MOMENTS * features.shape[1]))


def apart(motions):
    """Mean distance of two of some motions (T, 5), a frame: root of the mean square."""
    length = min(map(len, motions))
    return float(np.mean([np.sqrt(np.square(a[:length] - b[:length]).mean()) for a, b in combinations(motions, 2)]))


def movements(signal, depth):
    """How often a signal falls by `depth` below its median and comes back half way."""
    low, count = np.median(signal) - depth, 0
    down = False
    for value in signal:
        if not down and value < low:
            down, count = True, count + 1
        elif down and value > low + depth / 2:
            down = False
    return count


def rates(motions):
    """Movements a minute of eyes and mouth."""
    minutes = sum(map(len, motions)) / files.FPS / 60
    return {
        "blinks": sum(movements(each[:, 1], 2) for each in motions) / minutes,
        "mouth": sum(movements(-each[:, 0], 1) for each in motions) / minutes,
    }


def away(seen, start):
    """Cosine distance of features (T, D) from one (D,), mean over frames."""
    return float(np.mean(1 - seen @ start / np.linalg.norm(seen, axis=1) / np.linalg.norm(start)))


# ---- what is seen ----


class Stage:
    """Networks, and what they see of latents: pictures, codes of these, and the encoder's map of them."""

    def __init__(self, generator, encoder, reader=None):
        self.generator, self.encoder, self.look, self.reader = (
            generator,
            encoder,
            fid.FaceFeatures(encoder),
            reader,
        )

    def show(self, path):
        """Frames of latents (T, L, 512)."""
        return np.stack(list(synthesis.synthesize(self.generator, path)))

    @torch.no_grad()
    def see(self, path):
        """The five features and the encoder's map of the frames that latents (T, L, 512) make: (T, 5), (T, D)."""
        frames = self.show(path)
        again = np.concatenate([self.encoder(to_images(frames[k : k + 16])).numpy() for k in range(0, len(frames), 16)])
        return self.reader(again), np.concatenate([self.look(frames[k : k + 16]) for k in range(0, len(frames), 16)])


def known(folder, keep):
    """Clips with landmarks: [(codes (T, L, 512), features (T, 5)), …]."""
    found = []
    for clip in latent_cache.list_clips([folder]):
        marks = clip.with_suffix(".landmarks.npy")
        if not marks.exists():
            raise TalkheadError(f"{marks}: not there; the study reads motion by landmarks of the clips")
        lesson = keep.encode(clip, "cpu")
        if lesson.frames >= WINDOW:
            features = described(np.asarray(files.read_array(marks), float))
            found.append((keep.read(lesson)[0][: len(features)], features[: lesson.frames]))
    return found


# ---- a model ----


def measure(model, stage, identities, real, options):
    """All figures of a motion model, and its strips (rows of latents)."""
    frames = round(options.seconds * files.FPS)
    paths = {
        (who, seed): identity + np.stack(list(motion(model, identity, seed, frames)))
        for who, identity in enumerate(identities)
        for seed in range(options.seeds)
    }
    began = time.process_time()
    seen = {key: stage.see(path) for key, path in paths.items()}
    per_frame = (time.process_time() - began) / frames / len(paths)
    features, maps = ({key: value[part] for key, value in seen.items()} for part in (0, 1))
    starts = [stage.see(identity[None])[1][0] for identity in identities]
    same_face = [[features[who, seed] for seed in range(options.seeds)] for who in range(len(identities))]
    same_noise = [[features[who, seed] for who in range(len(identities))] for seed in range(options.seeds)]
    made = np.concatenate([windows(each) for each in features.values()])
    figures = {
        "diversity": float(np.mean([apart(motions) for motions in same_face])) / real["apart"],
        "motion": fid.frechet_distance(real["windows"], made),
        "motion_floor": real["floor"],
        "frames": fid.frechet_distance(real["maps"], np.concatenate(list(maps.values()))),
        "identity": float(np.mean([away(maps[who, seed], starts[who]) for who, seed in maps])),
        "identity_real": real["away"],
        "transfer": transfer(same_noise),
        "chance": transfer(same_face),
        "rates": rates(list(features.values())),
        "rates_real": real["rates"],
        "cpu_s_per_frame": per_frame,
    }
    figures["drift"] = drift(model, stage, identities[0], starts[0], round(options.long * files.FPS))
    strips = [
        [paths[0, seed] for seed in range(min(3, options.seeds))],
        [paths[who, 0] for who in range(min(3, len(identities)))],
    ]
    return figures, [path[np.linspace(0, len(path) - 1, SHOWN).astype(int)] for rows in strips for path in rows]


def transfer(groups):
    """Mean correlation of two motions of a group, of the mouth and of the head."""
    pairs = [pair for group in groups for pair in combinations(group, 2)]
    mouth = [correlation(a[:, 0], b[:, 0]) for a, b in pairs]
    head = [correlation(a[:, k], b[:, k]) for a, b in pairs for k in (2, 3, 4)]
    return {"mouth": float(np.nanmean(mouth)), "head": float(np.nanmean(head))}


def drift(model, stage, identity, start, frames):
    far, seen = np.empty(frames), {}
    began = time.process_time()
    for index, moved in enumerate(motion(model, identity, 1, frames)):
        far[index] = np.linalg.norm(moved)
        if index % max(1, frames // 100) == 0:
            seen[index] = identity + moved
    rate = frames / max(time.process_time() - began, 1e-9)
    looked = np.array([away(stage.see(path[None])[1], start) for path in seen.values()])
    part = max(1, len(looked) // 10)
    tenth = max(1, frames // 10)
    return {
        "minutes": frames / files.FPS / 60,
        "latents": float(far[-tenth:].mean() / max(far[:tenth].mean(), 1e-9)),
        "identity": float(looked[-part:].mean() / max(looked[:part].mean(), 1e-9)),
        "latents_per_s": rate,
    }


# ---- the report ----


def reality(stage, held_out):
    """The figures of the held-out clips as the generator draws them."""
    seen = [stage.see(path) for path, _ in held_out]
    features, maps = [part[0] for part in seen], [part[1] for part in seen]
    cut = [windows(each) for each in features]
    halves = np.concatenate(cut[::2]), np.concatenate(cut[1::2])
    return {
        "apart": apart(features),
        "windows": np.concatenate(cut),
        "floor": fid.frechet_distance(*halves),
        "maps": np.concatenate(maps),
        "away": float(np.mean([away(each[1:], each[0]) for each in maps])),
        "rates": rates(features),
    }


COLUMNS = {
    "diversity (> 0.5)": lambda x: f"{x['diversity']:.2f}",
    "motion (floor)": lambda x: f"{x['motion']:.1f} ({x['motion_floor']:.1f})",
    "frames": lambda x: f"{x['frames']:.1f}",
    "identity (real)": lambda x: f"{x['identity']:.4f} ({x['identity_real']:.4f})",
    "same noise: mouth, head (≥ 0.7)": lambda x: f"{x['transfer']['mouth']:.2f}, {x['transfer']['head']:.2f}",
    "same face: mouth, head (near 0)": lambda x: f"{x['chance']['mouth']:.2f}, {x['chance']['head']:.2f}",
    "blinks/min (real)": lambda x: f"{x['rates']['blinks']:.0f} ({x['rates_real']['blinks']:.0f})",
    "mouth/min (real)": lambda x: f"{x['rates']['mouth']:.0f} ({x['rates_real']['mouth']:.0f})",
    "drift: latents, identity": lambda x: f"{x['drift']['latents']:.2f}, {x['drift']['identity']:.2f}",
}


def table(results):
    rows = [
        ["run", *COLUMNS],
        ["---"] * (len(COLUMNS) + 1),
        *([name, *(form(figures) for form in COLUMNS.values())] for name, figures in results.items()),
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("training", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--generator", default=checkpoints.WEIGHTS / "generator.pt")
    parser.add_argument("--encoder", default=checkpoints.WEIGHTS / "encoder.pt")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--identities", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--long", type=float, default=600, help="seconds of the sequence in which drift is looked for")
    options = parser.parse_args()
    generator = checkpoints.load_generator(options.generator)
    encoder = checkpoints.load_encoder(options.encoder, generator)
    stage = Stage(generator, encoder)
    with latent_cache.LatentCache(options.out / "study.codes", encoder, sound=False) as keep:
        learnt, held_out = known(options.training, keep), known(options.held_out, keep)
    stage.reader = Reader(learnt)
    identities = [path[0] for path, _ in held_out[: options.identities]]
    real, results = reality(stage, held_out), {}
    for run in options.runs:
        model = checkpoints.load_video_gan(options.out / f"{run}.pt", generator, encoder)
        results[run], strips = measure(model, stage, identities, real, options)
        image_files.write_image(
            options.out / f"{run}.png",
            sheet(*(to_images(stage.show(strip)) for strip in strips)),
            synthetic=True,
        )
    real_strips = [path[np.linspace(0, len(path) - 1, SHOWN).astype(int)] for path, _ in held_out[:3]]
    image_files.write_image(
        options.out / "real.png",
        sheet(*(to_images(stage.show(strip)) for strip in real_strips)),
        synthetic=True,
    )
    reads = stage.reader.judged(held_out)
    files.write_json(
        options.out / "study.json",
        {"reader": reads, "clips": {"training": len(learnt), "held_out": len(held_out)}, "runs": results},
    )
    text = [
        "# Faces that move by chance (thesis §3.4)",
        "",
        table(results),
        "",
        f"Read from frames by a linear reader, whose correlation with the landmarks of {len(held_out)} held-out clips "
        "is " + ", ".join(f"{name} {value:.2f}" for name, value in reads.items()) + ".",
        f"Frames are compared as `{stage.look.name}` sees them. Strips: three noises of one face, then three faces "
        "under one noise (Fig. 3.28).",
        "",
        *(f"![{name}]({name}.png)" for name in (*results, "real")),
    ]
    (options.out / "study.md").write_text("\n".join(text) + "\n")
    print(table(results))


if __name__ == "__main__":
    try:
        main()
    except TalkheadError as problem:
        raise SystemExit(f"video_gan_study.py: {problem}") from None
