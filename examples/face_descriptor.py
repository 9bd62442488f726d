"""Tell people apart by dlib's face descriptor: 128 numbers a face, nearer than 0.6 if two faces are one person's.

    python examples/face_descriptor.py --weights face_descriptor/ --detector-model face_landmarker.task \\
        photo.jpg other.jpg

Prints a JSON object for each pair of photos: their distance. The weights are dlib's
dlib_face_recognition_resnet_model_v1 (public domain), as face-api converted them (MIT): face_recognition_model.bin, one
byte a number, and its manifest, which tells where each array lies and its scale.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from talkhead import image_files, landmarks
from talkhead.errors import TalkheadError

SAME_PERSON = 0.6  # dlib's own threshold
SIDE, PADDING = 150, 0.25  # of a chip: pixels, and what is left around the mean face, by its side
MEAN_RGB = (122.782, 117.001, 104.298)
WEIGHTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "weights" / "face_descriptor"
MANIFEST = "face_recognition_model-weights_manifest.json"

# The mean face that dlib aligns to: the 68 landmarks from the eyebrows on, fractions of the side of the box around it.
MEAN_FACE = np.stack(
    [
        [
            0.000213256,
            0.0752622,
            0.18113,
            0.29077,
            0.393397,
            0.586856,
            0.689483,
            0.799124,
            0.904991,
            0.98004,
            0.490127,
            0.490127,
            0.490127,
            0.490127,
            0.36688,
            0.426036,
            0.490127,
            0.554217,
            0.613373,
            0.121737,
            0.187122,
            0.265825,
            0.334606,
            0.260918,
            0.182743,
            0.645647,
            0.714428,
            0.793132,
            0.858516,
            0.79751,
            0.719335,
            0.254149,
            0.340985,
            0.428858,
            0.490127,
            0.551395,
            0.639268,
            0.726104,
            0.642159,
            0.556721,
            0.490127,
            0.423532,
            0.338094,
            0.290379,
            0.428096,
            0.490127,
            0.552157,
            0.689874,
            0.553364,
            0.490127,
            0.42689,
        ],
        [
            0.106454,
            0.038915,
            0.0187482,
            0.0344891,
            0.0773906,
            0.0773906,
            0.0344891,
            0.0187482,
            0.038915,
            0.106454,
            0.203352,
            0.307009,
            0.409805,
            0.515625,
            0.587326,
            0.609345,
            0.628106,
            0.609345,
            0.587326,
            0.216423,
            0.178758,
            0.179852,
            0.231733,
            0.245099,
            0.244077,
            0.231733,
            0.179852,
            0.178758,
            0.216423,
            0.244077,
            0.245099,
            0.780233,
            0.745405,
            0.727388,
            0.742578,
            0.727388,
            0.745405,
            0.780233,
            0.864805,
            0.902192,
            0.909281,
            0.902192,
            0.864805,
            0.784792,
            0.778746,
            0.785343,
            0.778746,
            0.784792,
            0.824182,
            0.831803,
            0.824182,
        ],
    ],
    1,
)
# Landmarks that hold still when a face moves: no eyebrows, no lower lip.
STEADY = np.array([*range(27, 55), *range(60, 65)])


class Descriptor:
    """dlib's face recognition network, a ResNet of 29 layers.

    folder   holds face_recognition_model.bin and its manifest
    raises   TalkheadError if they are missing, or of another network

    Source: King 2017, dlib's dnn_face_recognition_ex.cpp; the order of its layers as in face-api.
    """

    STAGES = {"conv32": 3, "conv64": 3, "conv128": 2, "conv256": 2}

    def __init__(self, folder, device="cpu"):
        self.weights = {name: value.to(device) for name, value in read_weights(folder).items()}
        self.device = device
        missing = {
            f"{block}/{name}" for block in self._blocks() for name in ("conv1/conv/filters", "conv2/scale/biases")
        } - self.weights.keys()
        if missing or "fc" not in self.weights:
            raise TalkheadError(
                f"{folder}: not dlib's face descriptor ({', '.join(sorted(missing)[:1] or ['fc'])} is not in it); give "
                "face-api's face_recognition_model"
            )

    def _blocks(self):
        """Names of the residual blocks, in order."""
        for stage, count in self.STAGES.items():
            if stage != "conv32":
                yield f"{stage}_down"
            yield from (f"{stage}_{number + 1}" for number in range(count))
        yield "conv256_down_out"

    def _conv(self, x, name, stride=1, padding=1):
        w = self.weights
        x = F.conv2d(x, w[f"{name}/conv/filters"], w[f"{name}/conv/bias"], stride, padding)
        return x * w[f"{name}/scale/weights"].view(-1, 1, 1) + w[f"{name}/scale/biases"].view(-1, 1, 1)

    @torch.no_grad()
    def __call__(self, chips, batch=16):
        """Descriptors of face chips: uint8 (N, 150, 150, 3), see `chip`, to float32 (N, 128).

        raises   TalkheadError if the chips have another size
        """
        chips = np.asarray(chips)
        if chips.shape[1:] != (SIDE, SIDE, 3) or chips.dtype != np.uint8:
            raise TalkheadError(
                f"face chips are {chips.dtype} {chips.shape}, wanted uint8 (N, {SIDE}, {SIDE}, 3); cut them by chip()"
            )
        parts = [self._describe(chips[first : first + batch]) for first in range(0, len(chips), batch)]
        return np.concatenate(parts) if parts else np.zeros((0, 128), np.float32)

    def _describe(self, chips):
        x = torch.from_numpy(np.ascontiguousarray(chips)).to(self.device).permute(0, 3, 1, 2).float()
        x = (x - torch.tensor(MEAN_RGB, device=self.device).view(3, 1, 1)) / 256
        x = F.max_pool2d(F.relu(self._conv(x, "conv32_down", 2, 0)), 3, 2)
        for block in self._blocks():
            down = "down" in block
            y = F.relu(self._conv(x, f"{block}/conv1", 2 if down else 1, 0 if down else 1))
            y = self._conv(y, f"{block}/conv2")
            x = F.avg_pool2d(x, 2) if down else x
            # An odd size and new channels are filled up with zeros.
            short, wide = [0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]], y.shape[1] - x.shape[1]
            x = F.relu(F.pad(y, short) + F.pad(x, [0, 0, 0, 0, 0, wide]))
        return (x.mean((2, 3)) @ self.weights["fc"]).cpu().numpy()


def read_weights(folder):
    """The arrays of a quantised model of face-api: {name: float32 tensor}, filters as torch has them, (out, in, h, w).

    raises   TalkheadError if the manifest or the file that it names is missing or does not fit
    """
    manifest = Path(folder) / MANIFEST
    try:
        groups = json.loads(manifest.read_text())
        weights = {}
        for group in groups:
            data = b"".join((manifest.parent / name).read_bytes() for name in group["paths"])
            place = 0
            for entry in group["weights"]:
                packed = entry.get("quantization", {"dtype": entry["dtype"], "scale": 1, "min": 0})
                values = np.frombuffer(data, packed["dtype"], int(np.prod(entry["shape"])), place)
                place += values.nbytes
                values = torch.from_numpy(
                    (values * np.float32(packed["scale"]) + np.float32(packed["min"])).reshape(entry["shape"])
                )
                weights[entry["name"]] = values.permute(3, 2, 0, 1).contiguous() if values.ndim == 4 else values
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise TalkheadError(
            f"{manifest}: cannot be read ({problem}); give the folder of face-api's face_recognition_model, both files"
        ) from problem
    return weights


_loaded = {}


def descriptors(images, weights=WEIGHTS):
    """Descriptors of face chips: uint8 (N, 150, 150, 3), see `chip`, to float32 (N, 128).

    `weights` is the folder of the model, read once.
    """
    key = str(weights)
    if key not in _loaded:
        _loaded[key] = Descriptor(weights)
    return _loaded[key](images)


def chip(image, landmarks):
    """Cut a face out as dlib does, upright and scaled: uint8 (H, W, 3) and landmarks (68, 2) in pixels to uint8 (150,
    150, 3).

    The similarity is the one of least squares from the mean face to the landmarks. What lies outside the picture is
    black.

    Source: dlib's get_face_chip_details and extract_image_chip, bilinear over a pyramid.
    """
    wanted = (PADDING + MEAN_FACE[STEADY - 17]) / (2 * PADDING + 1) * SIDE
    turn, shift = similarity(wanted, np.asarray(landmarks, np.float64)[STEADY])
    picture = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    scale = np.hypot(*turn[0])
    while scale >= 2:  # pixels of the picture to one of the chip: shrunk first, or fine detail would alias
        picture = F.avg_pool2d(picture, 2, ceil_mode=False)
        turn, shift, scale = turn / 2, (shift - 0.5) / 2, scale / 2
    y, x = np.mgrid[:SIDE, :SIDE]
    at = np.stack([x, y], -1) @ turn.T + shift  # (SIDE, SIDE, 2), pixels of the picture
    height, width = picture.shape[2:]
    at = torch.from_numpy(((at + 0.5) / (width, height) * 2 - 1).astype(np.float32))[None]
    cut = F.grid_sample(picture, at, mode="bilinear", padding_mode="zeros", align_corners=False)
    return cut[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def similarity(start, end):
    """The turn, scale and shift that bring points nearest to others, without mirroring.

    (N, 2), (N, 2) to (2, 2) and (2,): end ≈ start @ turn.T + shift.
    """
    a, b = start - start.mean(0), end - end.mean(0)
    size = (a**2).sum()
    along, across = (a * b).sum() / size, (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / size
    turn = np.array([[along, -across], [across, along]])
    return turn, end.mean(0) - turn @ start.mean(0)


def distances(some, others):
    """Euclidean distances between descriptors: (N, 128), (M, 128) to (N, M)."""
    return np.linalg.norm(some[:, None] - others[None], axis=-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--weights", default=WEIGHTS, help="folder of the face descriptor")
    parser.add_argument("--detector-model", help="MediaPipe's face landmarker")
    options = parser.parse_args()
    detector = landmarks.detector("mediapipe", options.detector_model)
    chips = []
    for path in options.photos:
        image = image_files.read_image(path)
        found = detector(image)
        if not len(found):
            raise TalkheadError(f"{path}: no face found; leave it out")
        chips.append(chip(image, max(found, key=lambda landmarks: np.ptp(landmarks, 0).prod())))
    away = distances(*[descriptors(np.stack(chips), options.weights)] * 2)
    for one, other in itertools.combinations(range(len(chips)), 2):
        near = float(away[one, other])
        print(
            json.dumps(
                {
                    "photos": [str(options.photos[one]), str(options.photos[other])],
                    "distance": round(near, 4),
                    "same_person": near < SAME_PERSON,
                }
            )
        )


if __name__ == "__main__":
    try:
        main()
    except TalkheadError as problem:
        sys.exit(f"face_descriptor.py: {problem}")
