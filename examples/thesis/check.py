"""Check that every stage of run.sh can do its work on a corpus: what would fail hours later fails here, in one line.

    python check.py split.tsv --generator G --encoder E --size 256 --hold-out-first NAME,… --hold-out-second N \\
        [--small] [--fid]

split.tsv is what split.py wrote. Nothing is trained; of the corpus, one clip of each set is opened, and frames are
counted as 75 a clip.
"""

import argparse
import sys
from pathlib import Path

import torch

from talkhead import (
    audio2latent,
    audio_files,
    checkpoints,
    fid,
    landmarks,
    latent_cache,
    losses,
    plots,
    stylegan,
    video_files,
)
from talkhead.errors import TalkheadError

FRAMES = 75  # of a clip of GRID; TCD-TIMIT's are longer


def sets(path):
    """{set: [(speaker, clip)]}"""
    found = {"taught": [], "unheard": [], "unseen": []}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            speaker, clip, name = line.rstrip("\n").split("\t")
            found[name].append((speaker, clip))
    return found


def clips(found):
    """There is something to train on and something to measure on, and it has pictures and sound."""
    for name, least, use in (("taught", 2, "train on"), ("unheard", 1, "measure the first model on")):
        if len(found[name]) < least:
            raise TalkheadError(f"corpus: {len(found[name])} clips to {use}; it takes {least}")
    for members in filter(None, found.values()):
        with video_files.read_frames(members[0][1], limit=1) as reader:
            next(reader)
        with audio_files.read_sound(members[0][1]) as sound:
            next(sound)


def speech_model(name, taught, hold_out, components):
    """Of the clips that are taught, some are kept, and the others have as many frames as a basis takes."""
    lessons = [
        latent_cache.EncodedClip(Path(clip).stem, speaker, speaker, clip, FRAMES, None) for speaker, clip in taught
    ]
    try:
        rest, _ = latent_cache.split(lessons, hold_out, seed=0)
    except TalkheadError as problem:
        raise TalkheadError(f"stage {name}: {problem}") from None
    frames = sum(lesson.frames for lesson in rest)
    if components >= frames:
        raise TalkheadError(
            f"stage {name}: {components} components take more than the {frames} frames of {len(rest)} clips; give more "
            "clips"
        )


def networks(generator, encoder, size):
    """Generator A and its encoder fit each other, and generator B can grow out of A."""
    generator = checkpoints.load_generator(generator)
    checkpoints.load_encoder(encoder, generator)
    with torch.device("meta"):
        stylegan.Generator(size, stylegan.extend_widths(generator.config["channels"], size))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split")
    parser.add_argument("--generator", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--hold-out-first", required=True)
    parser.add_argument("--hold-out-second", required=True)
    parser.add_argument("--detector-model")
    parser.add_argument("--small", action="store_true", help="the second model is the bundled one")
    parser.add_argument("--fid", action="store_true")
    options = parser.parse_args()
    try:
        found = sets(options.split)
        clips(found)
        # With the sizes that run.sh leaves at the thesis's.
        first = 128 if options.small else audio2latent.FirstModel(num_ws=4).components
        speech_model("first", found["taught"], options.hold_out_first.split(","), first)
        if not options.small:
            told = options.hold_out_second
            speech_model(
                "second",
                found["taught"],
                int(told) if told.isdigit() else told.split(","),
                audio2latent.SecondModel(num_ws=4).components,
            )
        networks(options.generator, options.encoder, options.size)
        landmarks.detector("auto", options.detector_model)
        plots.installed()
        if options.fid:
            fid.named("inception")
    except TalkheadError as problem:
        return f"run.sh: {problem}"
    print(f"every stage fits the corpus; perceptual loss: {losses.Perceptual('auto').name}")


if __name__ == "__main__":
    sys.exit(main())
