"""Measure a face generator and its encoder on people that neither was trained on, and on faces drawn from noise.

    python examples/measure_faces.py --generator generator.pt --encoder encoder.pt --portraits photos/ \\
        --people examples/held_out_people.txt --composites held-out.npy --detector-model face_landmarker.task -o report/

Prints JSON objects:
  inversion  PSNR in dB and sharpness of G(E(photo)) at --size, for each collection of photos and each tone of skin.
             Sharpness is how much lies in the finest octave (what a 3x3 mean takes away), beside the photo's
  drawn      Fréchet and kernel distance (FID, KID) of --count faces drawn from z to composites of held-out people, by
             MobileNetV2's features, and of one half of the composites to the other
  nobody     how near drawn faces, and composites, come to a portrait by dlib's face descriptor, and how many come
             nearer than --least
Writes inverted.png (photos over G(E(photo)), by tone) and drawn.png. A part whose input is missing is left out.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from contact_sheet import captioned, sheet
from face_descriptor import WEIGHTS, chip, descriptors, distances
from puppets import puppet, variety
from talkhead import checkpoints, datasets, fid, image_files, inversion, landmarks, metrics, synthesis
from talkhead.errors import TalkheadError
from talkhead.images import resize, to_images

COLUMNS = 12  # pictures in a row of a sheet


def detail(frame):
    """Sharpness: standard deviation of the finest octave, which a 3x3 mean takes away. uint8 (S, S, 3) to float."""
    image = to_images(frame[None])
    return (image - F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="reflect"), 3, 1)).std().item()


def inverted(stills, generator, encoder, size):
    """What the encoder's codes of portraits draw: (photo, drawing), each uint8 (size, size, 3)."""
    photos = [resize(still.image, size) for still in stills]
    drawn = synthesis.synthesize(generator, inversion.encode(encoder, photos))
    return [(photo, resize(frame, size)) for photo, frame in zip(photos, drawn)]


def inversion_record(group, pairs):
    return {
        "part": "inversion",
        "group": group,
        "photos": len(pairs),
        "psnr": round(float(np.mean([metrics.psnr(a[None], b[None]) for a, b in pairs])), 2),
        "sharpness": round(float(np.mean([detail(b) / detail(a) for a, b in pairs])), 3),
    }


def random_faces(generator, count, psi, seed):
    """Faces drawn from z, one by one: uint8 (R, R, 3)."""
    rng = np.random.default_rng(seed)
    for first in range(0, count, fid.TOGETHER):
        z = torch.from_numpy(
            rng.standard_normal((min(fid.TOGETHER, count - first), generator.z_dim)).astype(np.float32)
        )
        with torch.no_grad():
            yield from synthesis.synthesize(generator, generator.mapping(z, psi).numpy())


def clouds(network, frames):
    """Features of frames that come one by one: float32 (N, D)."""
    seen = fid.FeatureAccumulator(network)
    for frame in frames:
        seen.add(frame)
    return seen.features()


def nobody(what, frames, find, donors, names, weights, least):
    """How near faces come to donors' descriptors: a record. Faces that no detector finds are counted."""
    chips = [chip(frame, found[0]) for frame in frames if len(found := find(frame))]
    record = {"part": "nobody", "faces": what, "count": len(frames), "found": len(chips)}
    if chips:
        near = distances(descriptors(np.stack(chips), weights), donors)
        nearest = near.min(1)
        record |= {
            "mean": round(float(nearest.mean()), 3),
            "least": round(float(nearest.min()), 3),
            "nearest": names[int(near.min(0).argmin())],
            "nearer": int((nearest < least).sum()),
            "limit": least,
        }
    return record


def read_people(path):
    return tuple(
        line.strip()
        for line in Path(path).read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", help="[default: the bundled one]")
    parser.add_argument("--encoder", help="[default: the bundled one]")
    parser.add_argument(
        "--portraits",
        action="append",
        default=[],
        help="folder of photos, those of held-out people among them; may be repeated",
    )
    parser.add_argument("--people", help="file of held-out people, one a line")
    parser.add_argument(
        "--composites", help="composites of held-out people: clips of synth.py, or what was packed of them"
    )
    parser.add_argument("--detector-model", help="MediaPipe's face landmarker")
    parser.add_argument("--descriptor", default=WEIGHTS, help="folder of the face descriptor")
    parser.add_argument("--cache", help=".npz that keeps the aligned portraits, such as portraits.npz of synth.py")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the sheets")
    parser.add_argument("--size", type=int, default=256, help="pixels at which photos and drawings are compared")
    parser.add_argument("--count", type=int, default=5000, help="faces drawn from z")
    parser.add_argument(
        "--checked",
        type=int,
        nargs=2,
        default=(200, 50),
        help="of them, and of the composites, held against the portraits",
    )
    parser.add_argument("--psi", type=float, default=0.7, help="truncation")
    parser.add_argument("--least", type=float, default=0.45, help="distance from which a face is nobody's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = checkpoints.load_generator(options.generator or checkpoints.bundled("generator"))
    encoder = checkpoints.load_encoder(options.encoder or checkpoints.bundled("encoder"), generator)
    options.output.mkdir(parents=True, exist_ok=True)
    stills = (
        puppet.portraits(options.portraits, options.detector_model, cache=options.cache) if options.portraits else []
    )
    if stills and options.people:
        held = read_people(options.people)
        mine = [still for still in stills if puppet.shows(still, held)]
        if not mine:
            raise TalkheadError(f"{options.people}: nobody of it is among the portraits; pass their folders")
        pairs = inverted(mine, generator, encoder, options.size)
        groups = defaultdict(list)
        for still, pair in zip(mine, pairs):
            for group in (
                "all",
                still.people[0].rpartition(":")[0] or "no collection",
                f"tone {still.tone}",
                "glasses" if still.glasses else "no glasses",
            ):
                groups[group].append(pair)
        for group, chosen in groups.items():
            print(json.dumps(inversion_record(group, chosen)), flush=True)
        rows = []
        for tone in variety.TONES:
            chosen = groups.get(f"tone {tone}", [])[:COLUMNS]
            rows += [list(row) for row in zip(*chosen)]
        write_sheet(
            options.output / "inverted.png",
            rows,
            f"held-out people over G(E(photo)), by tone: {', '.join(variety.TONES)}",
        )
    first = list(
        random_faces(generator, min(options.count, max(options.checked[0], 4 * COLUMNS)), options.psi, options.seed)
    )
    write_sheet(
        options.output / "drawn.png",
        [first[start : start + COLUMNS] for start in range(0, 4 * COLUMNS, COLUMNS)],
        f"drawn from z, psi {options.psi}",
    )
    composites = datasets.Images([options.composites], generator.resolution).frames if options.composites else None
    if composites is not None:
        network = fid.named("mobilenet")
        real = clouds(network, composites)
        drawn = clouds(network, random_faces(generator, options.count, options.psi, options.seed))
        print(
            json.dumps(
                {"part": "drawn", "count": len(drawn), "composites": len(real)}
                | fid.compare_features(real, drawn, network)
            ),
            flush=True,
        )
        print(
            json.dumps(
                {"part": "drawn", "of": "one half of the composites", "count": len(real) // 2}
                | fid.compare_features(real[::2], real[1::2], network)
            ),
            flush=True,
        )
    if stills:
        find = landmarks.detector("mediapipe", options.detector_model)
        donors = descriptors(np.stack([chip(still.image, still.landmarks) for still in stills]), options.descriptor)
        names = [still.names[0] for still in stills]
        print(
            json.dumps(
                nobody("drawn", first[: options.checked[0]], find, donors, names, options.descriptor, options.least)
            ),
            flush=True,
        )
        if composites is not None:
            picks = np.unique(np.linspace(0, len(composites) - 1, options.checked[1]).astype(int))
            print(
                json.dumps(
                    nobody(
                        "composites",
                        [composites[pick] for pick in picks],
                        find,
                        donors,
                        names,
                        options.descriptor,
                        options.least,
                    )
                ),
                flush=True,
            )


def write_sheet(path, rows, caption):
    """A row of up to COLUMNS pictures each; what is missing of one stays white."""
    if rows := [row for row in rows if row]:
        rows = [row + [np.full_like(row[0], 255)] * (COLUMNS - len(row)) for row in rows]
        image_files.write_image(path, captioned(sheet(rows, COLUMNS, 128), caption), synthetic=True)


if __name__ == "__main__":
    try:
        main()
    except TalkheadError as problem:
        sys.exit(f"measure_faces.py: {problem}")
