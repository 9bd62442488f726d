"""Learn a direction in W+ from scored photos, such as a smile: how talkhead/weights/smile.npy was made.

    python examples/learn_directions.py smiles.tsv --validation others.tsv -o smile.npy
    talkhead generate --identity face.png --audio speech.wav --edit smile.npy=0.5 -o out.mp4

Lines of the table are FILE, tab, SCORE: for a smile 1 of a face that smiles and 0 of one that does not, best two photos
of each person, so that the faces differ in nothing else. Every face is aligned and encoded; the direction is the
change of their codes for a score that is 1 higher (directions.regress). Prints a JSON object with the correlation
between the scores of the photos and the position of their codes along the direction, in the photos learnt from and in
those of --validation; and draws some of these (else of those), each at the amounts -1, -0.5, 0, 0.5 and 1 and in its
own photo, beside the direction.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from contact_sheet import sheet
from talkhead import checkpoints, directions, faces, files, image_files, inversion, landmarks, synthesis
from talkhead.errors import TalkheadError
from talkhead.images import resize

AMOUNTS = (-1, -0.5, 0, 0.5, 1)
ROWS = 8


def scored(table, find, side):
    """Aligned faces uint8 (N, side, side, 3) of a table, and their scores (N,); photos without a face are left out."""
    crops, scores = [], []
    for number, line in enumerate(table.read_text().splitlines(), 1):
        try:
            path, score = line.split("\t")
            score = float(score)
        except ValueError:
            raise TalkheadError(f"{table}, line {number}: wanted FILE, tab, SCORE") from None
        photo = image_files.read_image(path)
        found = find(photo)
        if found:
            crops.append(faces.crop(photo, faces.quad(found[0]), side))
            scores.append(score)
    return np.stack(crops), np.array(scores)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path, help="table of photos to learn from")
    parser.add_argument("--validation", type=Path, help="table of photos of other people")
    parser.add_argument("--generator", help="weights; the bundled ones if left out")
    parser.add_argument("--encoder", help="weights; the bundled ones if left out")
    parser.add_argument("--detector-model", help="the landmark detector's model file")
    parser.add_argument("-o", "--output", type=Path, default=Path("direction.npy"))
    options = parser.parse_args()
    generator = checkpoints.load_generator(options.generator or checkpoints.bundled("generator"))
    encoder = checkpoints.load_encoder(options.encoder or checkpoints.bundled("encoder"), generator)
    find = landmarks.detector("auto", options.detector_model, "cpu")
    record = {}
    for part in ("scores", "validation"):
        if table := getattr(options, part):
            crops, scores = scored(table, find, synthesis.aligned_side(generator))
            codes = np.stack(list(inversion.encode(encoder, crops)))
            if part == "scores":
                direction = directions.regress(codes, scores)
            along = np.tensordot(codes, direction, 2)
            record[part] = {"photos": len(scores), "correlation": round(float(np.corrcoef(along, scores)[0, 1]), 3)}
    files.write_latents(options.output, direction[None], {"generator": generator.fingerprint})
    lowest = np.argsort(scores, kind="stable")[:ROWS]
    rows = [
        [
            *synthesis.synthesize(generator, [codes[index] + amount * direction for amount in AMOUNTS]),
            resize(crops[index], generator.resolution),
        ]
        for index in lowest
    ]
    picture = sheet(rows, len(AMOUNTS) + 1, generator.resolution)
    image_files.write_image(options.output.with_suffix(".png"), picture, synthetic=True)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
