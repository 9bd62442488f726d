"""Are drawn faces somebody? Draw faces from a generator and show beside each the donor portraits that it is most like.

    python examples/nearest_donors.py --donors photos/ --clips clips/ -o nobody/ --count 50

Draws --by
  codes  the codes that the encoder gives composite faces (a clip of synth.py each), drawn again
  mix    means of three such codes, weighted by chance: faces that are in no clip
  z      noise through the mapping network, for a generator that was trained to draw so (the bundled one was not: its
         card says it)

Prints a JSON object for each face and a summary, and writes pairs.png: the drawn face, its three nearest donors, their
distances. As a person, a face is the nearer to a donor the smaller the distance; whether it is too near is told by two
yardsticks: how far donors are from their own rendering by the generator (the same person) and from the donor nearest to
them (someone else, the most alike).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from contact_sheet import captioned, sheet
from likeness import Likeness, distances
from puppets import puppet
from talkhead import checkpoints, distributed, files, image_files, inversion, synthesis, video_files
from talkhead.errors import TalkheadError
from talkhead.images import resize

NEAREST = 3  # donors shown beside a face
LEAST_MIXED = 200  # composites whose codes are mixed


def composites(folder, count):
    """First frames of so many clips, evenly out of a folder."""
    paths = files.find(folder, {".mp4"})
    if not paths:
        raise TalkheadError(f"{folder}: holds no clips; write some with synth.py")
    for index in np.unique(np.linspace(0, len(paths) - 1, count).astype(int)):
        with video_files.read_frames(paths[index], limit=1) as reader:
            yield next(iter(reader))


def drawn(options, generator, encoder):
    """Faces that the model draws, list of uint8 (S, S, 3)."""
    rng = np.random.default_rng(options.seed)
    if options.by == "z":
        z = torch.from_numpy(rng.standard_normal((options.count, generator.z_dim)).astype(np.float32)).to(
            options.device
        )
        with torch.no_grad():
            codes = generator.mapping(z, options.psi).cpu().numpy()
    else:
        wanted = options.count if options.by == "codes" else max(options.count, LEAST_MIXED)
        known = np.stack(list(inversion.encode(encoder, composites(options.clips, wanted), device=options.device)))
        if options.by == "codes":
            codes = known[: options.count]
        else:
            several = min(3, len(known))
            codes = np.stack(
                [
                    np.tensordot(
                        rng.dirichlet([1.0] * several), known[rng.choice(len(known), several, replace=False)], 1
                    )
                    for _ in range(options.count)
                ]
            )
    return list(synthesis.synthesize(generator, codes.astype(np.float32)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--donors",
        required=True,
        action="append",
        help="folder of the portraits that composites were made of; may be repeated",
    )
    parser.add_argument("--clips", help="folder that synth.py wrote, for --by codes and mix")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("nobody"), help="folder for pairs.png, and for the aligned donors"
    )
    parser.add_argument("--by", choices=("codes", "mix", "z"), default="mix")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--psi", type=float, default=0.7, help="truncation, for --by z")
    for kind in ("generator", "encoder"):
        parser.add_argument(f"--{kind}", help="weights; the bundled ones if left out")
    parser.add_argument(
        "--identity-model",
        help="a face recognition network (see losses.identity_network); without it a stand-in, said in the record",
    )
    parser.add_argument("--detector-model", help="MediaPipe's face landmarker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.by != "z" and not options.clips:
        parser.error("--clips: needed to draw by codes or mix")
    options.device = distributed.pick_device(options.device)
    options.output.mkdir(parents=True, exist_ok=True)
    generator = checkpoints.load_generator(options.generator or checkpoints.bundled("generator"), options.device)
    encoder = checkpoints.load_encoder(options.encoder or checkpoints.bundled("encoder"), generator, options.device)
    faces = drawn(options, generator, encoder)
    donors = puppet.portraits(options.donors, options.detector_model, cache=options.output / "portraits.npz")
    photos = [resize(donor.image, generator.resolution) for donor in donors]
    likeness = Likeness(photos, options.identity_model, options.device)
    known = likeness.embed(photos)
    between = distances(known, known)
    np.fill_diagonal(between, np.inf)
    alike = between.min(1)
    rendered = list(synthesis.synthesize(generator, inversion.encode(encoder, photos, device=options.device)))
    seen_again = likeness.embed(rendered)
    same = 1 - (seen_again * known).sum(1)
    away = distances(likeness.embed(faces), known)
    pictures = []
    for number, (face, row) in enumerate(zip(faces, away)):
        near = np.argsort(row)[:NEAREST]
        print(
            json.dumps(
                {
                    "face": number,
                    "nearest": [{"donor": donors[k].names[0], "distance": round(float(row[k]), 4)} for k in near],
                }
            ),
            flush=True,
        )
        strip = sheet([[face, *(photos[k] for k in near)]], 1 + NEAREST, 112)
        pictures.append(captioned(strip, f"drawn {number}; donors at " + ", ".join(f"{row[k]:.2f}" for k in near)))
    blank = np.full_like(pictures[0], 255)
    pictures += [blank] * (-len(pictures) % 3)
    page = np.concatenate([np.concatenate(pictures[first : first + 3], 1) for first in range(0, len(pictures), 3)])
    limit = float(np.percentile(same, 95))
    summary = {
        "summary": "nearest donors",
        "faces": len(faces),
        "by": options.by,
        "donors": len(donors),
        "identity_by": likeness.name,
        "nearest_donor": {"mean": float(away.min(1).mean()), "least": float(away.min())},
        "same_person": {"median": float(np.median(same)), "p95": limit},
        "donors_nearest_other": {"mean": float(alike.mean()), "least": float(alike.min())},
        "donor_known_again": float(np.mean(distances(seen_again, known).argmin(1) == np.arange(len(known)))),
        "as_near_as_the_same_person": int((away.min(1) < limit).sum()),
    }
    print(json.dumps(summary))
    image_files.write_image(
        options.output / "pairs.png",
        captioned(
            page,
            f"{len(faces)} faces drawn by {options.by}, each beside its {NEAREST} nearest of {len(donors)} donors, by "
            f"{likeness.name}",
            f"nearest donor {summary['nearest_donor']['mean']:.2f} on average; a donor to its own rendering "
            f"{np.median(same):.2f} (median), to the nearest other donor {alike.mean():.2f}; as near as 95 % of donors "
            f"to their own rendering: {summary['as_near_as_the_same_person']}",
        ),
    )


if __name__ == "__main__":
    try:
        main()
    except TalkheadError as problem:
        sys.exit(f"nearest_donors.py: {problem}")
