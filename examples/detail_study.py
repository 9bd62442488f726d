"""How well a photo moves: the first frame of a filmed clip speaks the clip's own sound, and is compared with the film.

    python examples/detail_study.py CLIPS -o OUT --detector-model face_landmarker.task [--mouths TRAINING_CLIPS]

CLIPS is a folder of talking clips that nothing was trained on. OUT/study.md and OUT/study.json hold the table,
OUT/NAME.png a sheet for each clip: film, generator's frames and result. Pictures are 256² crops; lips are found by
MediaPipe in crops enlarged twice (the generator's four times).

Rows: a still photo; the generator's own frames (`--no-detail`); the photo moved as `generate` does it, with the
keypoints of each frame read in several ways: by the keypoint network (what ships), by MediaPipe, by dense optical flow
(DIS) from the render of the identity, the same on an enlarged window around the mouth, and by a linear map from W+
fitted on --mouths; and, as a limit, with the keypoints that MediaPipe finds in the film itself: of mouth and jaw, which
is what perfect lips would reach while the head is still, and of the whole face.
"""

from pathlib import Path

import click
import cv2
import numpy as np
from tqdm import tqdm

import talkhead
from talkhead import checkpoints, detail, faces, inversion, keypoints, landmarks, metrics, synthesis
from talkhead.images import resize

VERTICES = np.array(keypoints.VERTICES)
SIZE = 256


class Given:
    """Stands for the keypoint network where the keypoints of the frames to come are known."""

    def __init__(self, *readings):
        self.readings = list(readings)

    def read(self, frames, looks=1):
        return np.stack([self.readings.pop(0) for _ in frames]).astype(np.float32)

    def neutral(self, points):
        return points


class Clip:
    """A film, its sound, and what the generator draws of its first frame."""

    def __init__(self, path, detector, networks):
        self.name, self.detector = Path(path).stem, detector
        generator, encoder, speech_model = networks
        with talkhead.read_frames(path) as frames:
            self.film = np.stack([crop for crop, _, _ in faces.align_frames(frames, detector, SIZE)])
        self.photo = detail.Photo(self.film[0], checkpoints.load_keypoints())
        code = synthesis.code_of(encoder, self.photo, generator)
        self.path = np.stack(list(synthesis.speech_to_latents(None, speech_model, code, talkhead.read_audio(path))))[
            : len(self.film)
        ]
        self.film = self.film[: len(self.path)]
        path = np.concatenate([code[None], self.path])
        self.raw = list(synthesis.synthesize(generator, self.path))
        self.rest, *self.renders = synthesis.synthesize(generator, path, window=detail.MOUTH_BOX)
        self.code = code
        self.truth = self.marks(self.film, 2)

    def marks(self, frames, enlarge):
        """MediaPipe's mesh in each frame, (T, 478, 2) fractions of the side; NaN where no face is seen."""
        meshes = [
            self.detector.meshes(cv2.resize(frame, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC))
            for frame in frames
        ]
        return np.stack(
            [(mesh[0] + 0.5) / (enlarge * len(frames[0])) if mesh else np.full((478, 2), np.nan) for mesh in meshes]
        )

    def moved(self, points, rest, readings):
        """The photo, its keypoints at `points`, moved by readings of the rest and of each frame."""
        draw = detail.Detail(detail.Photo(self.film[0], Given(points)), self.rest, Given(rest, *readings))
        return np.stack([draw(frame) for frame in self.renders])

    def at(self, points):
        """The photo with its keypoints at `points`, one set a frame; the inside of the mouth is the renders'."""
        draw, place = detail.Detail(self.photo, self.rest), detail.Frame(SIZE, SIZE)
        read = self.photo.network.read(np.stack(self.renders))
        return np.stack(
            [
                detail.draw(
                    self.film[0],
                    place,
                    points[0],
                    target,
                    inside=detail.Inside(frame, own, *draw.skins),
                    blur=self.photo.blur,
                )
                for target, frame, own in zip(points, self.renders, read)
            ]
        )


def by_flow(rest, frames, points, around=None):
    """Keypoints carried along by dense flow from the render of the identity: (T, K, 2)."""
    centre, side = (np.array([0.5, 0.5]), 1.0) if around is None else around
    grey = [cv2.cvtColor(keypoints.window(frame, centre, side, 256), cv2.COLOR_RGB2GRAY) for frame in (rest, *frames)]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    at = np.float32((points - centre) / side + 0.5) * 256 - 0.5
    inside = ((at > 0) & (at < 255)).all(1)[:, None]
    moved = [
        cv2.remap(flow.calc(grey[0], other, None), at[:, 0], at[:, 1], cv2.INTER_LINEAR).reshape(-1, 2)
        for other in grey[1:]
    ]
    return points + np.stack(moved) * inside * side / 256


def linear_map(paths, detector, networks):
    """A map from the displacement in W+ to that of the keypoints, by ridge regression on renders of training clips that
    MediaPipe marks."""
    generator, encoder, _ = networks
    sources, targets = [], []
    for path in tqdm(paths, desc="W+"):
        frames = list(talkhead.read_frames(path))[::3]
        if len(frames[0]) != len(frames[0][0]):
            frames = [crop for crop, _, _ in faces.align_frames(iter(frames), detector, SIZE)]
        codes = np.stack(list(inversion.encode(encoder, [resize(frame, generator.resolution) for frame in frames])))
        meshes = [
            detector.meshes(cv2.resize(frame, (512, 512), interpolation=cv2.INTER_CUBIC))
            for frame in synthesis.synthesize(generator, codes)
        ]
        seen = [index for index, mesh in enumerate(meshes) if mesh]
        marks = np.stack([(meshes[index][0][VERTICES] + 0.5) / 512 for index in seen])
        sources.append((codes[seen] - codes[seen].mean(0)).reshape(len(seen), -1))
        targets.append((marks - marks.mean(0)).reshape(len(seen), -1))
    x, y = np.concatenate(sources), np.concatenate(targets)
    kernel = x @ x.T
    return x.T @ np.linalg.solve(kernel + 0.01 * np.trace(kernel) / len(kernel) * np.eye(len(kernel)), y)


def measure(clip, frames, raw):
    """The figures of one result beside the film."""
    marks = clip.marks(frames, 2 if len(frames[0]) == SIZE else 4)
    frames = np.stack([resize(frame, SIZE) for frame in frames])
    true, found, own = (landmarks.from_mesh(points) * SIZE - 0.5 for points in (clip.truth, marks, raw))
    seen = ~np.isnan(found).any((1, 2))
    openings = [landmarks.mouth_opening(points[seen]) for points in (true, found, own)]
    ranges = [np.ptp(np.quantile(opening, (0.05, 0.95))) for opening in openings]
    laplacian = [
        np.mean([cv2.Laplacian(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var() for frame in film])
        for film in (frames, clip.film)
    ]
    mouths = [
        np.mean([metrics.sharpness(frame, points) for frame, points in zip(film[seen], places[seen])])
        for film, places in ((frames, found), (clip.film, true))
    ]
    psnr = [metrics.psnr(*pair) for pair in zip(clip.film[1:], frames[1:])]
    following = [metrics.correlation_and_lag(openings[0], opening) for opening in openings[1:]]
    return {
        "PSNR dB": np.mean(psnr),
        "SSIM": metrics.ssim(clip.film[1:], frames[1:]),
        "LMD px": metrics.lmd(true[seen], found[seen]),
        "correlation": following[0].correlation,
        "beside raw": following[0].correlation - following[1].correlation,
        "lag": following[0].lag,
        "range": ranges[1] / ranges[0],
        "sharpness": laplacian[0] / laplacian[1],
        "of the mouth": mouths[0] / mouths[1],
        "unseen": int((~seen).sum()),
    }


@click.command()
@click.argument("clips")
@click.option("-o", "--output", required=True)
@click.option("--detector-model", required=True, help="MediaPipe's face landmarker.")
@click.option("--mouths", help="Folder of clips to fit the map from W+ on.")
@click.option("--only", multiple=True, help="Measure these rows alone.")
def main(clips, output, detector_model, mouths, only):
    """Measure a photo that moves beside the film that it was taken from."""
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    detector = landmarks.detector("mediapipe", detector_model)
    generator = talkhead.load_generator(talkhead.bundled("generator"))
    networks = (
        generator,
        talkhead.load_encoder(talkhead.bundled("encoder"), generator),
        talkhead.load_audio2latent(talkhead.bundled("audio2latent"), generator),
    )
    fitted = (
        linear_map(sorted(str(path) for path in Path(mouths).iterdir())[:40], detector, networks) if mouths else None
    )
    table = {}
    for path in sorted(str(path) for path in Path(clips).iterdir() if path.suffix in (".mp4", ".mpg")):
        clip = Clip(path, detector, networks)
        raw = clip.marks(clip.raw, 4)
        results = rows(clip, raw, fitted)
        shown = {}
        for name, make in results.items():
            if not only or name in only:
                frames = make()
                table.setdefault(name, {})[clip.name] = measure(clip, frames, raw)
                shown[name] = frames
        write_sheet(output / f"{clip.name}.png", clip, shown)
        click.echo(
            f"{clip.name}: "
            + ", ".join(f"{name} {values[clip.name]['correlation']:.2f}" for name, values in table.items()),
            err=True,
        )
    talkhead.files.write_json(str(output / "study.json"), table)
    (output / "study.md").write_text(as_table(table), encoding="utf-8")
    click.echo(as_table(table))


def rows(clip, raw, fitted):
    """What is compared: {name: function that makes the frames}."""
    points, film = clip.photo.points, clip.truth[:, VERTICES]
    read = clip.photo.network.read(np.stack([clip.rest, *clip.renders]))
    rest_mark = clip.marks([clip.rest], 4)[0]
    mouth = tuple(item[0] for item in keypoints.mouth_windows(read[:1]))
    mouth_alone = np.where(np.isin(np.arange(len(VERTICES)), keypoints.MOVED_BY_SPEECH)[None, :, None], film, film[:1])
    result = {
        "still photo": lambda: np.repeat(clip.film[:1], len(clip.film), 0),
        "generator's frames": lambda: np.stack(clip.raw),
        "keypoint network": lambda: np.stack([*map(detail.Detail(clip.photo, clip.rest), clip.renders)]),
        "MediaPipe": lambda: clip.moved(
            film[0], rest_mark[VERTICES], np.where(np.isnan(raw[:, VERTICES]), rest_mark[VERTICES], raw[:, VERTICES])
        ),
        "flow": lambda: clip.moved(points, read[0], by_flow(clip.rest, clip.renders, read[0])),
        "flow around the mouth": lambda: clip.moved(points, read[0], by_flow(clip.rest, clip.renders, read[0], mouth)),
        "limit: mouth of the film": lambda: clip.at(mouth_alone),
        "limit: face of the film": lambda: clip.at(film),
    }
    if fitted is not None:
        moved = ((clip.path - clip.code).reshape(len(clip.path), -1) @ fitted).reshape(len(clip.path), -1, 2)
        result["linear map from W+"] = lambda: clip.moved(points, read[0], read[0] + moved)
    return result


def as_table(table):
    """Means over the clips, as Markdown; below them the clips of what ships."""
    figures = list(next(iter(next(iter(table.values())).values())))
    lines = ["| mean of clips | " + " | ".join(figures) + " |", "|" + "---|" * (len(figures) + 1)]
    for name, clips in table.items():
        lines.append(
            f"| {name} | "
            + " | ".join(f"{np.nanmean([values[figure] for values in clips.values()]):.3f}" for figure in figures)
            + " |"
        )
    for name, values in table.get("keypoint network", {}).items():
        lines.append(f"| *{name}* | " + " | ".join(f"{values[figure]:.3f}" for figure in figures) + " |")
    return "\n".join(lines) + "\n"


def write_sheet(path, clip, results):
    """Film, generator's frames and results, eight moments of each."""
    moments = np.linspace(4, len(clip.film) - 4, 8).astype(int)
    shown = [clip.film, *results.values()]
    talkhead.write_image(
        str(path),
        np.vstack([np.hstack([resize(frames[moment], SIZE) for moment in moments]) for frames in shown]),
    )


if __name__ == "__main__":
    main()
