"""Dubbing of a filmed clip: new lip motion, with the head, eyes, light and background of the film.

    frames, quads ─ Film ─┐
    audio ─ speech model ─┴─ dub ─▶ frames of the clip's size

The motion of the filmed mouth is removed from each frame's keypoints, which gives the mouth at rest in that frame's
pose; the motion for the new audio is added, and the frame's own pixels are warped along, as `detail` does with a photo.
"""

import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice, tee

import numpy as np

from talkhead import faces
from talkhead.detail import Detail, Frame, Inside, Photo, draw, follow, locate, transfer
from talkhead.errors import TalkheadError
from talkhead.images import resize
from talkhead.keypoints import LOWER_INNER, MOVED_BY_SPEECH, NOT_MOVED_BY_SPEECH, UPPER_INNER, KeypointNetwork, places

REST_QUANTILE = 0.15  # fraction of the frames, those of the smallest opening, in which the mouth counts as at rest
# Measured opening of dubbed lips over the intended one, by MediaPipe on dubbed clips of GRID's speaker s1.
OPENING_BIAS = 1.14
BATCH = 8  # frames whose keypoints are detected together
GAINS = (0.5, 2.0)  # range of `own_gain`

_UPPER, _LOWER = places(*UPPER_INNER[3:8]), places(*LOWER_INNER[3:8])


class Film:
    """Frames of a clip, kept in a temporary file to bound memory, with the face's quad and keypoints in each.

    tracked  iterator of (frame uint8 (H, W, 3), quad float (4, 2), index) of `faces.follow`; quad is None if aligned
    network  keypoints.KeypointNetwork
    size     None: whole frames; else the frames are cropped to the aligned face, of this side
    sound    float32 (N,) mono at 16 kHz, the clip's audio, or None
    raises   TalkheadError if there are no frames

    `gain` is a factor on the motion of the mouth, such as of `own_gain`. `points`, float (T, K, 2), are the keypoints,
    `starts` those with the mouth at rest, both in fractions of the quads.
    """

    def __init__(
        self,
        tracked: Iterable[tuple[np.ndarray, np.ndarray | None, int]],
        network: KeypointNetwork,
        size: int | None = None,
        sound: np.ndarray | None = None,
    ) -> None:
        self.network, self.sound, self.gain = network, sound, 1.0
        self.quads: list[np.ndarray | None] = []
        points: list[np.ndarray] = []
        self._file = tempfile.TemporaryFile()
        pairs: Iterator[tuple[np.ndarray, np.ndarray | None]] = ((frame, quad) for frame, quad, _ in tracked)
        if size is not None:
            pairs = ((_crop(frame, quad, size), None) for frame, quad in pairs)
        while chunk := list(islice(pairs, BATCH)):
            geometry = [Frame(*frame.shape[:2], quad) for frame, quad in chunk]  # type: ignore[call-arg]  # two sides
            points.extend(locate(network, [frame for frame, _ in chunk], geometry))
            for frame, quad in chunk:
                self._file.write(np.ascontiguousarray(frame).tobytes())
                self.quads.append(quad)
        if not points:
            raise TalkheadError("the clip has no frames to dub; pass one that shows a face")
        self.shape, self.frame = frame.shape, geometry[-1]
        self.points = np.stack(points)
        self.starts = rest_keypoints(self.points, network)
        self.blur = self.photo(len(points) - 1).blur

    def __len__(self) -> int:
        return len(self.points)

    def image(self, index: int) -> np.ndarray:
        """Frame of an index: uint8 (H, W, 3)."""
        count = int(np.prod(self.shape))
        self._file.seek(index * count)
        return np.frombuffer(self._file.read(count), np.uint8).reshape(self.shape)

    def photo(self, index: int) -> Photo:
        """detail.Photo of a frame, with the mouth at rest."""
        photo = Photo(self.image(index), self.network, self.quads[index], neutral=False, points=self.points[index])
        photo.start = self.starts[index]
        return photo

    def crop(self, index: int, size: int) -> np.ndarray:
        """Aligned face of a frame: uint8 (size, size, 3)."""
        return _crop(self.image(index), self.quads[index], size)

    @property
    def resting(self) -> int:
        """Index of the frame with the smallest mouth opening."""
        return int(openings(self.points).argmin())

    def face(self, size: int) -> np.ndarray:
        """Aligned face with the mouth at rest: uint8 (size, size, 3)."""
        return self.photo(self.resting).face(size)


def _crop(frame, quad, size):
    return resize(frame, size) if quad is None else faces.crop(frame, quad, size)


def openings(points: np.ndarray) -> np.ndarray:
    """Gap of the inner lips, (T,), in mouth widths, of keypoints (T, K, 2)."""
    gap = np.linalg.norm(points[:, _UPPER] - points[:, _LOWER], axis=-1).mean(1)
    return gap / np.linalg.norm(points[:, places(61)] - points[:, places(291)], axis=-1)


def rest_keypoints(points: np.ndarray, network: KeypointNetwork) -> np.ndarray:
    """Keypoints of a film with the mouth at rest in every frame.

    points   float (T, K, 2)
    returns  (T, K, 2): mouth, jaw and cheeks averaged over the frames of the smallest opening, in each frame's pose
    """
    pose = points[:, NOT_MOVED_BY_SPEECH].mean(0)
    transforms = [_similarity(pose, face[NOT_MOVED_BY_SPEECH]) for face in points]  # from the mean pose to each frame's
    opening = openings(points)
    shut = np.flatnonzero(opening <= np.quantile(opening, REST_QUANTILE))
    mouths = [(points[t][MOVED_BY_SPEECH] - transforms[t][1]) @ np.linalg.inv(transforms[t][0]).T for t in shut]
    face = np.array(points[shut[0]])
    face[NOT_MOVED_BY_SPEECH] = pose
    face[MOVED_BY_SPEECH] = np.mean(mouths, 0)
    rest = network.neutral(face)[MOVED_BY_SPEECH]
    starts = np.array(points)
    for start, (matrix, shift) in zip(starts, transforms):
        start[MOVED_BY_SPEECH] = rest @ matrix.T + shift
    return starts


def _similarity(source, target):
    """Least-squares similarity transform from source to target: rotation and scale (2, 2), shift (2,)."""
    a, b = source - source.mean(0), target - target.mean(0)
    along, across = (a * b).sum(), (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()
    matrix = np.array([[along, -across], [across, along]]) / (a * a).sum()
    return matrix, target.mean(0) - source.mean(0) @ matrix.T


def back_and_forth(count: int) -> Iterator[int]:
    """Endless frame indices, forwards and backwards: 0, 1, …, count - 1, count - 2, …, 1, 0, 1, …"""
    index, step = 0, 1
    while True:
        yield index
        if not 0 <= index + step < count:
            step = -step
        index = min(max(index + step, 0), count - 1)


def dub(film: Film, frames: Iterable[np.ndarray], rest: np.ndarray, batch: int = 1) -> Iterator[np.ndarray]:
    """Transfer the lip motion of a generator's frames to a film, which is repeated back and forth.

    film    Film
    frames  iterator of uint8 (R, R, 3): the generator's frames of the speaking identity
    rest    uint8 (R, R, 3), the generator's render of the identity
    batch   frames processed together, as in `detail.follow`
    yields  uint8 (H, W, 3)
    """
    start = Detail(film.photo(film.resting), rest)

    def dub_frame(frame, points, index, image):
        target, _ = transfer(film.starts[index], start.rest, start.rest + film.gain * (points - start.rest))
        geometry = Frame(*film.shape[:2], film.quads[index])
        inside = Inside(frame, points, *start.skins)
        return draw(image, geometry, film.points[index], target, inside=inside, blur=film.blur)

    indices, again = tee(back_and_forth(len(film)))
    return follow(film.network, zip(frames, indices, map(film.image, again)), dub_frame, batch)


def own_gain(film: Film, frames: Iterable[np.ndarray]) -> float:
    """Gain that gives the generated mouth the range of opening that it has in the film.

    film    Film
    frames  iterator of uint8 (R, R, 3): the identity speaking the film's own sound
    returns float in GAINS; 1 if either mouth hardly moves
    """
    frames = iter(frames)
    chunks = iter(lambda: list(islice(frames, BATCH)), [])
    generated = np.concatenate([film.network.read(np.stack(chunk)) for chunk in chunks])
    count = min(len(generated), len(film))
    ranges = [np.ptp(np.quantile(openings(points[:count]), (0.05, 0.95))) for points in (film.points, generated)]
    return float(np.clip(ranges[0] / ranges[1] / OPENING_BIAS, *GAINS)) if min(ranges) > 0.02 else 1.0
