"""Measure how people blink in real clips: how often, how long, how far. Where the constants of talkhead/vad.py come
from.

    python examples/measure_blinks.py grid/s1/ --model face_landmarker_v2_with_blendshapes.task

Needs MediaPipe. A lid's closure is the mean of MediaPipe's eyeBlinkLeft and eyeBlinkRight; a blink is a rise above the
clip's median by more than --least. Prints a JSON object for each clip, and one for all: blinks a minute; how many are
followed by another at once, and after how long; and what a blink lasts at half its height, takes to close from a tenth
of it and to open to a tenth, and its height: medians, and the spread of the logarithm.
"""

import argparse
import json

import mediapipe
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision

from talkhead import datasets, video_files

AGAIN_WITHIN = 0.6  # seconds from peak to peak: the second of two that belong together


def detector(model):
    return vision.FaceLandmarker.create_from_options(
        vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(model)), output_face_blendshapes=True, num_faces=1
        )
    )


def closures(clip, find):
    """(T,): how far the lids are shut, NaN where no face is found; and frames a second."""
    lids = []
    with video_files.read_frames(clip) as reader:
        for frame in reader:
            found = find.detect(
                mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
            ).face_blendshapes
            scores = {shape.category_name: shape.score for shape in found[0]} if found else {}
            lids.append((scores["eyeBlinkLeft"] + scores["eyeBlinkRight"]) / 2 if scores else np.nan)
        return np.array(lids), reader.fps


def blinks(lids, fps, least):
    """Each blink of a clip as (peak, seconds at half height, seconds to close, seconds to open, height)."""
    lids = np.interp(np.arange(len(lids)), np.flatnonzero(np.isfinite(lids)), lids[np.isfinite(lids)])
    above = lids - np.median(lids)
    found, at = [], 0
    while at < len(above):
        if above[at] < least:
            at += 1
            continue
        end = at
        while end < len(above) and above[end] >= least / 2:
            end += 1
        peak = at + int(np.argmax(above[at:end]))
        height = above[peak]
        before, after = crossing(above, peak, -1, height), crossing(above, peak, 1, height)
        if before is not None and after is not None:  # whole within the clip
            found.append((peak / fps, (before[0] + after[0]) / fps, before[1] / fps, after[1] / fps, float(height)))
        at = end + 1
    return found


def crossing(above, peak, way, height):
    """Frames from the peak to half and to a tenth of its height, between frames linearly.

    None where the clip ends before.
    """
    reached = []
    for level in (0.5 * height, 0.1 * height):
        at = peak
        while 0 <= at + way < len(above) and above[at + way] > level:
            at += way
        if not 0 <= at + way < len(above):
            return None
        reached.append(abs(at - peak) + (above[at] - level) / (above[at] - above[at + way]))
    return reached


def summary(clips):
    """What all clips say, each (seconds, its blinks)."""
    seconds = sum(length for length, _ in clips)
    found = [blink for _, blinks_of in clips for blink in blinks_of]
    peaks = [
        (blink[0], length - blink[0], [other[0] for other in blinks_of])
        for length, blinks_of in clips
        for blink in blinks_of
    ]
    followed = [
        min((other - peak for other in others if other > peak), default=np.inf)
        for peak, left, others in peaks
        if left > AGAIN_WITHIN
    ]
    again = [wait for wait in followed if wait <= AGAIN_WITHIN]
    _, half, close, reopen, height = np.array(found).T
    told = {
        "clips": len(clips),
        "seconds": round(seconds, 1),
        "blinks": len(found),
        "per_minute": round(60 * len(found) / seconds, 1),
        "again_share": round(len(again) / len(followed), 3),
    }
    for name, values in (
        ("again_after_s", again),
        ("half_height_s", half),
        ("close_s", close),
        ("open_s", reopen),
        ("height", height),
    ):
        logs = np.log(values)
        # Quartiles, because a gaze that sinks before a blink draws out some of them: 1.35 deviations lie between those
        # of a normal curve.
        told[name] = {
            "median": round(float(np.exp(np.median(logs))), 3),
            "log_spread": round(float(np.subtract(*np.percentile(logs, [75, 25])) / 1.35), 3),
        }
    return told


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", help="clips, or folders of them")
    parser.add_argument("--model", required=True, help="MediaPipe's face landmarker with blendshapes")
    parser.add_argument("--least", type=float, default=0.2, help="rise of the blendshape that counts as a blink")
    parser.add_argument("--limit", type=int, help="stop after so many clips")
    options = parser.parse_args()
    find, measured = detector(options.model), []
    for clip in datasets.clips(options.clips)[: options.limit]:
        lids, fps = closures(clip, find)
        if not np.isfinite(lids).any():
            continue
        measured.append((len(lids) / fps, blinks(lids, fps, options.least)))
        print(
            json.dumps(
                {
                    "clip": clip.name,
                    "blinks": [[round(float(value), 3) for value in blink] for blink in measured[-1][1]],
                    "open": round(float(np.nanmedian(lids)), 3),
                }
            ),
            flush=True,
        )
    print(json.dumps(summary(measured)))


if __name__ == "__main__":
    main()
