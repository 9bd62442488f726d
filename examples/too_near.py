"""Sort out clips of synth.py whose face is too near to a portrait's, by dlib's face descriptor.

    python examples/too_near.py stills/ --portraits photos/ --weights face_descriptor/ \\
        --detector-model face_landmarker.task --away near/

Prints a JSON object for each clip that is nearer than --least to somebody, and a summary; --away moves the files of
such clips there, and so nothing is trained on them. A clip is looked at where its mouth is shut best. The portraits are
all that may be known again, whether they were donors or not.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from face_descriptor import WEIGHTS, chip, descriptors, distances
from puppets import puppet
from talkhead import files, video_files
from talkhead.errors import TalkheadError
from talkhead.landmarks import mouth_opening


def calmest(clip):
    """The frame of a clip whose mouth is shut best, as a chip: uint8 (150, 150, 3)."""
    landmarks = files.read_array(clip.with_suffix(".landmarks.npy"))
    index = int(mouth_opening(landmarks).argmin())
    with video_files.read_frames(clip) as reader:
        for number, frame in enumerate(reader):
            if number == index:
                return chip(frame, landmarks[index])
    raise TalkheadError(f"{clip}: has no frame {index}, but landmarks of it; make it again")


def known(folders, model, cache, weights):
    """Names and descriptors of portraits: list of str, float32 (N, 128)."""
    stills = puppet.portraits(folders, model, cache=cache)
    return [still.names[0] for still in stills], descriptors(
        np.stack([chip(still.image, still.landmarks) for still in stills]), weights
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder that synth.py wrote")
    parser.add_argument("--portraits", required=True, action="append", help="folder of photos; may be repeated")
    parser.add_argument("--weights", default=WEIGHTS, help="folder of the face descriptor")
    parser.add_argument("--detector-model", help="MediaPipe's face landmarker")
    parser.add_argument("--least", type=float, default=0.45, help="distance from which a face is nobody's")
    parser.add_argument("--away", type=Path, help="folder to move clips to that are nearer")
    options = parser.parse_args()
    paths = sorted(path for path in options.clips.glob("*.mp4") if path.with_suffix(".json").is_file())
    if not paths:
        raise TalkheadError(f"{options.clips}: holds no finished clips; write some with synth.py")
    names, donors = known(options.portraits, options.detector_model, options.clips / "portraits.npz", options.weights)
    away = np.concatenate([distances(descriptors(calmest(path)[None], options.weights), donors) for path in paths])
    near = np.flatnonzero(away.min(1) < options.least)
    for index in near:
        path, nearest = paths[index], int(away[index].argmin())
        print(
            json.dumps(
                {"clip": path.name, "nearest": names[nearest], "distance": round(float(away[index, nearest]), 4)}
            )
        )
        if options.away:
            options.away.mkdir(parents=True, exist_ok=True)
            for file in options.clips.glob(f"{path.stem}.*"):
                file.rename(options.away / file.name)
    print(
        json.dumps(
            {
                "summary": "too near",
                "clips": len(paths),
                "least": options.least,
                "nearer": len(near),
                "portraits": len(names),
                "nearest": {"mean": round(float(away.min(1).mean()), 4), "least": round(float(away.min()), 4)},
            }
        )
    )


if __name__ == "__main__":
    try:
        main()
    except TalkheadError as problem:
        sys.exit(f"too_near.py: {problem}")
