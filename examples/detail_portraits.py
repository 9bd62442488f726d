"""Measure photos that speak: likeness, stillness of what should not move, and closed lips of smiling faces.

    python examples/detail_portraits.py PHOTO... -o OUT --audio speech.mpg --phonemes speech.align \\
        --detector-model face_landmarker.task

PHOTO are portraits or folders of them. --audio is a recording, --phonemes its timed words or sounds. OUT/portraits.json
has a row for each photo, OUT/portraits.md the means; OUT/sheet-N.png shows photo, generator's frame and five moments
each. Identities are told apart by dlib's face descriptor (face_descriptor.py).
"""

import tempfile
from pathlib import Path

import click
import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

import talkhead
from face_descriptor import WEIGHTS, Descriptor, chip
from puppets import variety
from talkhead import checkpoints, detail, faces, files, image_files, keypoints, metrics, phonemes, synthesis
from talkhead.landmarks import detector, mouth_opening

TOOTHY = 0.06  # gap of the lips in widths of the mouth from which a photo counts as smiling with teeth


def portrait(path, sound, closures, networks, find, describe, network):
    """The figures of one photo, and the pictures of its row on the sheet."""
    generator, encoder, speech_model = networks
    photo = talkhead.read_image(path)
    square = faces.quad(find(photo)[0])
    crop = faces.crop(photo, square, detail.native_side(square))
    face = detail.Photo(crop, network)
    code = synthesis.code_of(encoder, face, generator)
    latents = np.stack(list(synthesis.speech_to_latents(None, speech_model, code, sound)))
    frames = np.stack(list(synthesis.with_detail(latents, face, generator, code, batch=8)))
    landmarks = [next(iter(find(frame)), None) for frame in frames]
    own = descriptor(crop, find(crop), describe)
    apart = [
        np.linalg.norm(descriptor(frame, [points], describe) - own)
        for frame, points in list(zip(frames, landmarks))[::6]
        if points is not None
    ]
    opening = np.array([np.nan if points is None else mouth_opening(points) for points in landmarks])
    moved = np.abs(frames.astype(np.int16) - crop).max((0, 3))
    outside = ~head(face.points, crop.shape[:2])
    gap = np.linalg.norm(face.points[keypoints.places(13)] - face.points[keypoints.places(14)]) / np.linalg.norm(
        face.points[keypoints.places(61)] - face.points[keypoints.places(291)]
    )
    shut = (
        metrics.met_closures(opening, closures, metrics.closed_threshold(opening))
        if not np.isnan(opening).any()
        else None
    )
    row = {
        "photo": Path(path).stem,
        "side": len(crop),
        "tone": variety.group(variety.tone_angle(crop), variety.TONES),
        "toothy": bool(gap > TOOTHY),
        "distance": float(np.mean(apart)),
        "worst": float(np.max(apart)),
        "outside": float(moved[outside].mean()) if outside.any() else 0.0,
        "forehead": flicker(frames, face.points),
        "unseen": int(np.isnan(opening).sum()),
        "closures": None if shut is None else float(np.mean(shut)),
        "range": float(np.ptp(np.nanquantile(opening, (0.05, 0.95)))),
    }
    moments = np.linspace(4, len(frames) - 8, 5).astype(int)
    render = next(synthesis.synthesize(generator, latents[moments[1:2]]))
    return row, [crop, render, *frames[moments]]


def descriptor(picture, found, describe):
    return describe(chip(picture, found[0])[None])[0]


def head(points, shape):
    """Where the head and the neck below it are: bool (H, W)."""
    outline = points[keypoints.places(*keypoints.OVAL)]
    middle = outline.mean(0)
    polygon = (middle + (outline - middle) * 1.6) * shape[1]
    return cv2.fillPoly(np.zeros(shape, np.uint8), [np.int32(polygon)], 1).astype(bool)


def flicker(frames, points):
    """Variance over time of the forehead in the written video, over what the codec changes in a still one (mean
    square)."""
    side = len(frames[0])
    brows = points[keypoints.places(*sum(keypoints.BROWS, ()))] * side
    top = points[keypoints.places(10)][1] * side
    box = (
        slice(int(top + 0.2 * (brows[:, 1].min() - top)), int(brows[:, 1].min())),
        slice(int(brows[2:8, 0].min()), int(brows[2:8, 0].max())),
    )
    with tempfile.TemporaryDirectory() as folder:
        written = []
        for name, clip in (("moving", frames), ("still", np.repeat(frames[:1], len(frames), 0))):
            with talkhead.FrameWriter(f"{folder}/{name}.mp4") as video:
                for frame in clip:
                    video.write(frame)
            written.append(
                np.stack([frame[box] for frame in talkhead.read_frames(f"{folder}/{name}.mp4")]).astype(np.float32)
            )
    noise = np.mean((written[1] - frames[0][box][: written[1].shape[1], : written[1].shape[2]]) ** 2)
    return float(written[0].var(0).mean() / max(noise, 1e-6))


@click.command()
@click.argument("photos", nargs=-1, required=True)
@click.option("-o", "--output", required=True)
@click.option("--audio", required=True)
@click.option("--phonemes", "timing", required=True)
@click.option("--detector-model", required=True)
@click.option("--limit", type=int)
def main(photos, output, audio, timing, detector_model, limit):
    """Let portraits speak, and measure them."""
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    find, describe, network = (
        detector("mediapipe", detector_model),
        Descriptor(WEIGHTS),
        checkpoints.load_keypoints(),
    )
    generator = talkhead.load_generator(talkhead.bundled("generator"))
    networks = (
        generator,
        talkhead.load_encoder(talkhead.bundled("encoder"), generator),
        talkhead.load_audio2latent(talkhead.bundled("audio2latent"), generator),
    )
    sound, closures = talkhead.read_audio(audio), phonemes.read_closures(timing).times
    paths = [
        str(path)
        for place in photos
        for path in (sorted(files.find(place, image_files.PICTURES)) if Path(place).is_dir() else [Path(place)])
    ][:limit]
    rows, shown = [], []
    for path in tqdm(paths):
        row, pictures = portrait(path, sound, closures, networks, find, describe, network)
        rows.append(row)
        shown.append(
            np.hstack(
                [
                    np.asarray(Image.fromarray(picture).resize((192, 192), Image.Resampling.LANCZOS))
                    for picture in pictures
                ]
            )
        )
        if len(shown) == 10 or path == paths[-1]:
            talkhead.write_image(str(output / f"sheet-{(len(rows) - 1) // 10}.png"), np.vstack(shown))
            shown = []
    files.write_json(str(output / "portraits.json"), {"rows": rows})
    (output / "portraits.md").write_text(as_table(rows), encoding="utf-8")
    click.echo(as_table(rows))


def as_table(rows):
    """Means and worst, of all photos and of groups of them, as Markdown."""
    groups = {"all": rows, "toothy smiles": [row for row in rows if row["toothy"]]}
    groups |= {f"tone {tone}": [row for row in rows if row["tone"] == tone] for tone in variety.TONES}
    lines = [
        "| photos | number | distance, mean | worst | outside, grey levels | forehead / codec noise, mean | worst | /p "
        "b m/ shut | range |",
        "|" + "---|" * 9,
    ]
    for name, group in groups.items():
        if group:
            closures = [row["closures"] for row in group if row["closures"] is not None]
            lines.append(
                f"| {name} | {len(group)} | {np.mean([row['distance'] for row in group]):.3f} | "
                f"{max(row['worst'] for row in group):.3f} | {max(row['outside'] for row in group):.3f} | "
                f"{np.mean([row['forehead'] for row in group]):.2f} | {max(row['forehead'] for row in group):.2f} | "
                f"{np.mean(closures):.2f} | {np.mean([row['range'] for row in group]):.3f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
