"""Speech on top of an edit: does the mouth still follow the speaker?

    python examples/benchmarks/edited_speech.py CLIP... --edit smile --amounts 0 0.5 1

A photo says what filmed speakers say, with `edit` at each amount, with and without the photo's detail. Prints a JSON
object for each of these: correlations, means over the clips, of the mouth opening with the film's and with that of the
same speech unedited; and the mouth's mean width in distances between the eyes. Mouths are found by MediaPipe in frames
enlarged to at least 512 pixels.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from talkhead import (
    audio2latent,
    audio_files,
    checkpoints,
    directions,
    image_files,
    landmarks,
    metrics,
    protocol,
    synthesis,
    video_files,
)

EXAMPLES = Path(__file__).parents[1]
LEAST_SIDE = 512


def mouths(frames, detector):
    """Mouth opening of each frame (T,), and mean width of the mouth, both in distances between the eyes."""
    openings, widths = [], []
    for frame in frames:
        found = protocol.Enlarged(detector, -(-LEAST_SIDE // frame.shape[0]))(frame)
        points = found[0] if found else np.full((68, 2), np.nan)
        openings.append(landmarks.mouth_opening(points))
        eyes = points[42:48].mean(0) - points[36:42].mean(0)
        widths.append(np.linalg.norm(points[54] - points[48]) / np.linalg.norm(eyes))
    return np.array(openings), np.nanmean(widths)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", help="films of speakers")
    parser.add_argument("--edit", default="smile", help="a direction, as talkhead generate --edit takes it")
    parser.add_argument("--amounts", type=float, nargs="+", default=[0, 0.5, 1])
    parser.add_argument("--photo", default=str(EXAMPLES / "face.png"), help="an aligned face")
    parser.add_argument("--detector-model", help="the landmark detector's model file")
    options = parser.parse_args()
    generator = checkpoints.load_generator(checkpoints.bundled("generator"))
    encoder = checkpoints.load_encoder(checkpoints.bundled("encoder"), generator)
    model = checkpoints.load_audio2latent(checkpoints.bundled("audio2latent"), generator)
    features = audio2latent.load_features_for(model)
    detector = landmarks.detector("mediapipe", options.detector_model, "cpu")
    photo = image_files.read_image(options.photo)
    direction = directions.load_direction(options.edit, generator)
    sounds = [audio_files.read_audio(clip) for clip in options.clips]
    films = []
    for clip in options.clips:
        with video_files.read_frames(clip) as frames:
            films.append(mouths(frames, detector)[0])
    for detail in (False, True):
        unedited = None
        for amount in [0.0, *(amount for amount in options.amounts if amount)]:
            edit = np.float32(amount) * direction
            seen = [
                mouths(
                    synthesis.generate(
                        generator, encoder, model, photo, sound, detail=detail, features=features, edit=edit
                    ),
                    detector,
                )
                for sound in sounds
            ]
            openings = [opening for opening, _ in seen]
            unedited = unedited or openings
            record = {
                "detail": detail,
                options.edit: amount,
                "film": correlation(films, openings),
                "unedited": correlation(unedited, openings),
                "width": round(float(np.mean([width for _, width in seen])), 3),
            }
            print(json.dumps(record), flush=True)


def correlation(those, these):
    """Mean over clips of the correlation between two sets of mouth openings."""
    return round(float(np.mean([metrics.correlation_and_lag(*pair).correlation for pair in zip(those, these)])), 3)


if __name__ == "__main__":
    main()
