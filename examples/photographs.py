"""Try photographs: which of them survive align, invert and tuning, how long each stage takes, and whom it fails.

    python examples/photographs.py photos/ more/ -o report/ --detector-model face_landmarker.task

Takes pictures evenly out of all folders, and of some of them what cameras, scanners and painters make of a picture:
turned by EXIF, lying on its side without it, in grey, lit from one side, painted (flat patches instead of detail), with
a face of 64 pixels, of 8000 pixels. Writes photographs.jsonl (a line a picture), photographs.md (success, time and
likeness, by kind of picture and by tone of skin) and photographs.png (the aligned face, its inversion, the tuned one).
To hold generators of different sizes against each other, give all the same --compare-at: what they draw is enlarged to
it.

Tone of skin is measured on the aligned photo, as the individual typology angle of its cheeks (Chardon 1991): arctan((L*
- 50) / b*) in degrees, dark below 10, tan to 28, intermediate to 41, light above. Light and camera move it, so a group
is about how a photo looks, not about who is in it.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFilter
from tqdm import tqdm

from contact_sheet import sheet
from puppets import variety
from talkhead import checkpoints, faces, files, image_files, inversion, landmarks, metrics, pti, synthesis
from talkhead.errors import TalkheadError
from talkhead.images import resize, to_images

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
EXIF_ORIENTATION = 0x0112


def chosen(folders, count):
    """Pictures, evenly out of every folder's sorted ones: small folders whole, the rest shared by the large ones."""
    found = sorted((files.find(folder, SUFFIXES, deep=True) for folder in folders), key=len)
    picked = []
    for index, paths in enumerate(found):
        share = min(len(paths), (count - len(picked)) // (len(found) - index))
        picked += [paths[i] for i in np.linspace(0, len(paths) - 1, share).astype(int)]
    return picked


def variants(path, folder):
    """What may happen to a picture on its way: (kind, path) of copies of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with PIL.Image.open(path) as opened:
        picture = opened.convert("RGB")
    turned = picture.transpose(PIL.Image.Transpose.ROTATE_90)
    exif = PIL.Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # shown a quarter turn clockwise
    shade = 1 - 0.8 * variety.ramp(np.linspace(0, 1, picture.width), 0.3, 0.7)[:, None]
    lit = PIL.Image.fromarray((np.asarray(picture) * shade).astype(np.uint8))
    painted = picture.filter(PIL.ImageFilter.ModeFilter(1 + 2 * round(max(picture.size) / 160)))
    small, large = min(1.0, 110 / picture.width), 8000 / max(picture.size)
    copies = {
        "EXIF turn": (turned, {"exif": exif}),
        "on its side": (turned, {}),
        "upside down": (picture.transpose(PIL.Image.Transpose.ROTATE_180), {}),
        "grey": (picture.convert("L"), {}),
        "side light": (lit, {}),
        "painted": (painted, {}),
        "small": (picture.resize([round(small * side) for side in picture.size]), {}),
        "8000 pixels": (picture.resize([round(large * side) for side in picture.size]), {}),
    }
    for kind, (copy, options) in copies.items():
        copy.save(folder / f"{path.stem} {kind}.jpg", quality=90, **options)
        yield kind, folder / f"{path.stem} {kind}.jpg"


def enlarge(face, size):
    """As a viewer enlarges a picture, by bicubic interpolation."""
    return np.asarray(PIL.Image.fromarray(face).resize((size, size), PIL.Image.Resampling.BICUBIC))


def attempt(path, detector, generator, encoder, steps, size):
    """One picture through all stages: its record, and three pictures if it came through, of `size` pixels."""
    record, began = {"picture": path.name}, time.perf_counter()

    def lap(stage):
        nonlocal began
        record[f"{stage}_s"], began = round(time.perf_counter() - began, 3), time.perf_counter()

    try:
        ((photo, _, _),) = faces.align_frames([image_files.read_image(path)], detector, size)
        face = resize(photo, generator.resolution)
        lap("align")
        pivot = np.stack(list(inversion.encode(encoder, [face])))
        inverted = enlarge(next(synthesis.synthesize(generator, pivot)), size)
        lap("invert")
        final = enlarge(
            next(synthesis.synthesize(pti.tune(generator, to_images(face[None]), pivot, steps=steps), pivot)), size
        )
        lap("tune")
    except TalkheadError as problem:
        return record | {"failed": str(problem)}, None
    record["tone"] = variety.tone_angle(photo)
    for name, drawn in (("inverted", inverted), ("tuned", final)):
        record |= {f"{name}_psnr": float(metrics.psnr(photo, drawn)), f"{name}_ssim": float(metrics.ssim(photo, drawn))}
    return record, [photo, inverted, final]


def table(records, key, groups):
    lines = [
        f"| {key} | pictures | came through | PSNR inverted, dB | PSNR tuned, dB | least | SSIM tuned | align, s | "
        "invert, s | tune, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for group in groups:
        members = [record for record in records if record[key] == group]
        through = [record for record in members if "failed" not in record]
        figures = [
            f"{how([record[name] for record in through]):.2f}" if through else "–"
            for name, how in (
                ("inverted_psnr", np.mean),
                ("tuned_psnr", np.mean),
                ("tuned_psnr", min),
                ("tuned_ssim", np.mean),
                ("align_s", np.mean),
                ("invert_s", np.mean),
                ("tune_s", np.mean),
            )
        ]
        lines.append(f"| {group} | {len(members)} | {len(through)} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--count", type=int, default=60, help="photographs, before their variants")
    parser.add_argument("--varied", type=int, default=4, help="how many of them are also tried in eight variants")
    parser.add_argument("--steps", type=int, default=100, help="of tuning")
    for kind in ("generator", "encoder"):
        parser.add_argument(f"--{kind}", help="weights; the bundled ones if left out")
    parser.add_argument(
        "--compare-at", type=int, help="side that pictures are compared at; the generator's if left out"
    )
    parser.add_argument("--detector-model")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    detector = landmarks.detector("auto", options.detector_model)
    generator = checkpoints.load_generator(options.generator or checkpoints.bundled("generator"))
    encoder = checkpoints.load_encoder(options.encoder or checkpoints.bundled("encoder"), generator)
    originals = chosen(options.folders, options.count)
    tasks = [("as it is", path) for path in originals]
    for path in originals[:: max(1, len(originals) // max(1, options.varied))][: options.varied]:
        tasks += variants(path, options.output / "variants")
    records, rows = [], []
    with open(options.output / "photographs.jsonl", "w", encoding="utf-8") as log:
        for kind, path in tqdm(tasks, unit="picture", disable=None):
            record, pictures = attempt(
                path, detector, generator, encoder, options.steps, options.compare_at or generator.resolution
            )
            record = {"kind": kind, "folder": path.parent.name} | record
            record["tone of skin"] = variety.group(record["tone"], variety.TONES) if "tone" in record else "unknown"
            print(json.dumps(record), file=log, flush=True)
            records.append(record)
            rows += [pictures] if pictures else []
    own = [record for record in records if record["kind"] == "as it is"]
    failures = "\n".join(
        f"- {record['picture']} ({record['kind']}): {record['failed']}" for record in records if "failed" in record
    )
    report = "\n\n".join(
        [
            "# Photographs",
            table(own, "folder", sorted({record["folder"] for record in own})),
            table(own, "tone of skin", [*variety.TONES, "unknown"]),
            table(records, "kind", dict.fromkeys(record["kind"] for record in records)),
            f"Failures:\n\n{failures or 'none'}",
        ]
    )
    (options.output / "photographs.md").write_text(report + "\n")
    print(report)
    strips = [sum(rows[first : first + 6], []) for first in range(0, len(rows), 6)]
    image_files.write_image(
        options.output / "photographs.png",
        sheet([strip + [np.full_like(strip[0], 255)] * (18 - len(strip)) for strip in strips], 18, 96),
    )


if __name__ == "__main__":
    sys.exit(main())
