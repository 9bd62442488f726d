"""Keypoint detection on aligned faces by a small network: lips, lids, brows, nose, cheeks and outline.

    aligned frames ─ KeypointNetwork.read ─▶ keypoints (N, K, 2)

Keypoints are vertices of MediaPipe's face mesh, whose detector labelled the training data; it is not needed at run
time. Unlike a face detector, the network also works on the soft renders of a small generator; it takes about 1 ms per
frame.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import nn

# Vertices of MediaPipe's mesh, from left to right in the image; lips and lids include the corners.
UPPER_OUTER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
LOWER_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
UPPER_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
UPPER_LIDS = ((33, 246, 161, 160, 159, 158, 157, 173, 133), (362, 398, 384, 385, 386, 387, 388, 466, 263))
LOWER_LIDS = ((33, 7, 163, 144, 145, 153, 154, 155, 133), (362, 382, 381, 380, 374, 373, 390, 249, 263))
BROWS = ((70, 63, 105, 66, 107), (336, 296, 334, 293, 300))
NOSE = (168, 6, 197, 195, 5, 4, 1, 2, 98, 327, 48, 278)
CHEEKS = (205, 425, 50, 280, 187, 411, 202, 422, 164, 18, 200, 199)
# Clockwise from the middle of the forehead.
OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149,
    150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip

JAW = OVAL[12:25] + (18, 200, 199, 202, 422)  # from one side of the jaw to the other, and the chin
LIPS = tuple(dict.fromkeys(UPPER_OUTER + LOWER_OUTER + UPPER_INNER + LOWER_INNER))
VERTICES = tuple(dict.fromkeys(LIPS + sum(UPPER_LIDS + LOWER_LIDS + BROWS, ()) + NOSE + CHEEKS + OVAL))
_INDEX = {vertex: index for index, vertex in enumerate(VERTICES)}


def places(*vertices: int) -> np.ndarray:
    """Keypoint indices of vertices of MediaPipe's mesh: an int, or an array of them."""
    return np.array([_INDEX[vertex] for vertex in vertices]).squeeze()


MOVED_BY_SPEECH = places(*dict.fromkeys(LIPS + JAW + CHEEKS))
NOT_MOVED_BY_SPEECH = places(*NOSE[:8], 33, 133, 362, 263, *OVAL[:6], *OVAL[-5:])
NEUTRAL_SCORES = 6  # principal components of mouth and jaw that predict the offset from rest
# Lip gaps, in mouth widths, at which the correction to rest starts and is complete.
NEUTRAL_FROM, NEUTRAL_FULL = 0.02, 0.06
REST_HANG = -0.02  # `hang` of shut lips at rest, in mouth widths: the median of 64 portraits


def hang(points: np.ndarray) -> float:
    """Distance of the mouth corners below the middle of the lips, in mouth widths: negative for a smile."""
    corners = points[places(61, 291)]
    offset = corners.mean(0) - points[places(13, 14)].mean(0)
    return float(offset @ _down(points) / np.linalg.norm(corners[1] - corners[0]))


def _down(points):
    """Unit vector (2,) from the nose to the chin."""
    down = points[places(152)] - points[places(168)]
    return down / np.linalg.norm(down)


class KeypointNetwork(nn.Module):
    """Two convolutional regressors: all keypoints from the whole frame, then the lips again from a mouth crop.

    widths, mouth_widths   channels of their stages; each stage halves the resolution
    size, mouth_size       sides of their inputs, pixels
    hidden                 width of their hidden dense layer
    """

    WINDOW = 1.7  # side of the mouth crop, in mouth widths

    def __init__(
        self,
        widths: list[int] | tuple[int, ...] = (24, 48, 96, 128, 160),
        mouth_widths: list[int] | tuple[int, ...] = (24, 48, 96, 128),
        size: int = 96,
        mouth_size: int = 64,
        hidden: int = 192,
    ) -> None:
        super().__init__()
        self.config = {
            "widths": list(widths),
            "mouth_widths": list(mouth_widths),
            "size": size,
            "mouth_size": mouth_size,
            "hidden": hidden,
        }
        self.size, self.mouth_size = size, mouth_size
        self.face = _regressor(widths, size, hidden, len(VERTICES))
        self.mouth = _regressor(mouth_widths, mouth_size, hidden, len(LIPS))
        for name, shape in (
            ("mean", (2 * len(MOVED_BY_SPEECH),)),
            ("basis", (NEUTRAL_SCORES, 2 * len(MOVED_BY_SPEECH))),
            ("weights", (NEUTRAL_SCORES + 1, 2 * len(MOVED_BY_SPEECH))),
        ):
            self.register_buffer(f"neutral_{name}", torch.zeros(shape))

    def neutral(self, points: np.ndarray) -> np.ndarray:
        """Estimate the keypoints of a face with its mouth shut and at rest, by regression learned on other faces.

        points   float (K, 2), fractions of the side
        returns  float (K, 2); unchanged if the lips are shut
        """
        gap = np.linalg.norm(points[places(*UPPER_INNER[3:8])] - points[places(*LOWER_INNER[3:8])], axis=-1).mean()
        width = np.linalg.norm(points[places(61)] - points[places(291)])
        share = np.clip((gap / width - NEUTRAL_FROM) / (NEUTRAL_FULL - NEUTRAL_FROM), 0, 1)
        mean, basis, weights = (getattr(self, f"neutral_{name}").cpu().numpy() for name in ("mean", "basis", "weights"))
        scores = (points[MOVED_BY_SPEECH].ravel() - mean) @ basis.T
        result = np.array(points, np.float64)
        result[MOVED_BY_SPEECH] += share * (np.append(1, np.clip(scores, -0.25, 0.25)) @ weights).reshape(-1, 2)
        # Close the remaining gap: lips at rest touch.
        gap = (result[places(*LOWER_INNER[1:-1])] - result[places(*UPPER_INNER[1:-1])]) * share / 2
        for upper, lower in ((UPPER_INNER, LOWER_INNER), (UPPER_OUTER, LOWER_OUTER)):
            result[places(*upper[1:-1])] += gap
            result[places(*lower[1:-1])] -= gap
        # Lift corners that the regression lowered too far, which would look grim.
        lift = hang(result) - max(hang(points), REST_HANG)
        if lift > 0:
            corners, down = result[places(61, 291)], _down(result)
            along = corners[1] - corners[0]
            x = 2 * (result[places(*LIPS)] - corners.mean(0)) @ along / (along @ along)
            result[places(*LIPS)] -= lift * np.linalg.norm(along) * np.clip(x**2, 0, 1)[:, None] * down
        return result

    def read(self, frames: np.ndarray | Sequence[np.ndarray], looks: int = 1) -> np.ndarray:
        """Detect the keypoints of aligned faces.

        frames    uint8 (N, S, S, 3) RGB, aligned, of any size
        looks     test-time augmentation: number of mouth crops, of other sizes or mirrored, whose results are averaged
        returns   float32 (N, K, 2), x then y, fractions of the side: (0, 0) is the top left corner of the image
        """
        frames = np.asarray(frames)
        whole = np.zeros((len(frames), 2), np.float32) + 0.5
        points = self._regress(self.face, frames, whole, np.ones(len(frames), np.float32), self.size)
        for _ in range(1 if looks == 1 else 2):  # the second pass crops around the lips found by the first
            centres, sides = mouth_windows(points)
            points[:, : len(LIPS)] = np.mean([self._lips(frames, centres, sides, k) for k in range(looks)], 0)
        return _uncross_lips(points)

    def _lips(self, frames, centres, sides, index):
        """Lip keypoints (N, len(LIPS), 2) from the augmented mouth crop of this index."""
        sides = sides * (1 + 0.06 * ((index // 2 + 1) % 3 - 1))
        if index % 2 == 0:
            return self._regress(self.mouth, frames, centres, sides, self.mouth_size)
        lips = self._regress(self.mouth, frames[:, :, ::-1], centres * (-1, 1) + (1, 0), sides, self.mouth_size)
        return lips[:, _MIRRORED_LIPS] * (-1, 1) + (1, 0)

    def _regress(self, network, frames, centres, sides, size):
        windows = np.stack([window(*item, size) for item in zip(frames, centres, sides)])
        images = torch.from_numpy(windows).permute(0, 3, 1, 2).to(next(self.parameters()).device, torch.float32)
        with torch.no_grad():
            points = network(images / 127.5 - 1).view(len(frames), -1, 2).cpu().numpy()
        return (points - 0.5) * sides[:, None, None] + centres[:, None]


def _uncross_lips(points):
    """Move inner lip points that are crossed, the lower above the upper, to their midpoint."""
    upper, lower = (places(*line[1:-1]) for line in (UPPER_INNER, LOWER_INNER))
    down = points[:, places(152)] - points[:, places(168)]
    gap = points[:, lower] - points[:, upper]
    crossed = (np.einsum("npc,nc->np", gap, down) < 0)[..., None]
    points[:, upper] += np.where(crossed, gap / 2, 0)
    points[:, lower] = np.where(crossed, points[:, upper], points[:, lower])
    return points


def mouth_windows(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Square mouth crops of keypoints (N, K, 2): centres (N, 2) and sides (N,), fractions of the frame's side."""
    centres = points[:, places(*dict.fromkeys(UPPER_OUTER + LOWER_OUTER))].mean(1)
    width = np.linalg.norm(points[:, places(61)] - points[:, places(291)], axis=-1)
    return centres, KeypointNetwork.WINDOW * np.maximum(width, 0.05)


_OPPOSITE = {
    vertex: other
    for line in (UPPER_OUTER, LOWER_OUTER, UPPER_INNER, LOWER_INNER)
    for vertex, other in zip(line, line[::-1])
}
_MIRRORED_LIPS = places(*(_OPPOSITE[vertex] for vertex in LIPS))


def window(image: np.ndarray, centre: np.ndarray, side: float, size: int) -> np.ndarray:
    """Crop a square of an image, uint8 (S, S, 3), to uint8 (size, size, 3); centre and side in fractions of S."""
    scale = side * len(image) / size  # pixels of the image per pixel of the result
    if scale > 1.5:  # area averaging first, against aliasing
        small = max(round(len(image) / scale), 2)
        image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        scale = side * small / size
    corner = np.asarray(centre) * len(image) - size * scale / 2
    shift = corner + (scale - 1) / 2
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT)


def _regressor(widths, size, hidden, points):
    """Network from images (N, 3, size, size) to (N, 2 * points): separable convolutions and two dense layers."""
    layers, before = [], 3
    for width in widths:
        layers += [
            nn.Conv2d(before, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        before, size = width, (size + 1) // 2
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(before * size * size, hidden), nn.SiLU(), nn.Linear(hidden, 2 * points)
    )
