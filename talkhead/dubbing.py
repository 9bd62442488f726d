"""New lips for a filmed clip: every frame keeps head, eyes, light and background, and the mouth says something else.

    frames, quads ─ Film ─┐
    sound ─ speech model ─┴─ dub ─▶ frames of the clip's size

What the mouth did in the film is taken out of each frame's keypoints, which leaves the mouth at rest in that frame's pose; what the new sound asks for is put
on top, and the frame's own pixels are carried along, as `detail` does with a photo.
"""

import tempfile
from itertools import islice, tee

import numpy as np

from talkhead import faces
from talkhead.detail import Detail, Frame, Inside, Photo, draw, follow, locate, transfer
from talkhead.errors import TalkheadError
from talkhead.images import resize
from talkhead.keypoints import LOWER_INNER, MOVED_BY_SPEECH, NOT_MOVED_BY_SPEECH, UPPER_INNER, places

AT_REST = 0.15  # part of a film's frames, those with the smallest opening, in which the mouth counts as being at rest
DRAWN_WIDER = 1.14  # lips that are drawn apart are read so much wider than they were meant, by MediaPipe on dubbed clips of GRID's s1
BATCH = 8  # frames of a film whose keypoints are read together
GAINS = (0.5, 2.0)  # how far the speaker's own range of opening may change that of the speech model

_UPPER, _LOWER = places(*UPPER_INNER[3:8]), places(*LOWER_INNER[3:8])


class Film:
    """The frames of a clip and where the face is in each. Frames lie in a temporary file, so that memory stays flat.

    tracked  iterator of (frame uint8 (H, W, 3), quad float (4, 2), index), as `faces.follow` gives; of aligned frames the quad is None
    network  keypoints.KeypointNetwork
    size     None keeps the whole frames; else they are cut down to the aligned face, of this side
    sound    float32 (N,) mono at 16 kHz, what is said in the clip, or None
    raises   TalkheadError if there are no frames

    `gain` is a factor on the movement of the mouth, such as `own_gain` finds. `points` float (T, K, 2) are the keypoints, `starts` those with the mouth at
    rest, both in fractions of the quads.
    """

    def __init__(self, tracked, network, size=None, sound=None):
        self.network, self.sound, self.quads, self.gain, points = network, sound, [], 1.0, []
        self._file = tempfile.TemporaryFile()
        tracked = ((frame, quad) for frame, quad, _ in tracked)
        if size is not None:
            tracked = (
                (resize(frame, size) if quad is None else faces.crop(frame, quad, size), None)
                for frame, quad in tracked
            )
        while chunk := list(islice(tracked, BATCH)):
            places = [Frame(*frame.shape[:2], quad) for frame, quad in chunk]
            points.extend(locate(network, [frame for frame, _ in chunk], places))
            for frame, quad in chunk:
                self._file.write(np.ascontiguousarray(frame).tobytes())
                self.quads.append(quad)
        if not points:
            raise TalkheadError("the clip has no frames to dub; pass one that shows a face")
        self.shape, self.frame = frame.shape, places[-1]
        self.points = np.stack(points)
        self.starts = converged(self.points, network)
        self.blur = self.photo(len(points) - 1).blur

    def __len__(self):
        return len(self.points)

    def picture(self, index):
        """A frame: uint8 (H, W, 3)."""
        count = int(np.prod(self.shape))
        self._file.seek(index * count)
        return np.frombuffer(self._file.read(count), np.uint8).reshape(self.shape)

    def photo(self, index):
        """One frame as a detail.Photo with its mouth at rest."""
        photo = Photo(self.picture(index), self.network, self.quads[index], neutral=False, points=self.points[index])
        photo.start = self.starts[index]
        return photo

    def crop(self, index, size):
        """The aligned face of one frame as it is: uint8 (size, size, 3)."""
        picture = self.picture(index)
        return resize(picture, size) if self.quads[index] is None else faces.crop(picture, self.quads[index], size)

    @property
    def resting(self):
        """The frame in which the mouth is nearest to rest, by its index."""
        return int(openings(self.points).argmin())

    def face(self, size):
        """The aligned face at rest: uint8 (size, size, 3)."""
        return self.photo(self.resting).face(size)


def openings(points):
    """Gap of the inner lips in widths of the mouth: (T, K, 2) -> (T,)."""
    gap = np.linalg.norm(points[:, _UPPER] - points[:, _LOWER], axis=-1).mean(1)
    return gap / np.linalg.norm(points[:, places(61)] - points[:, places(291)], axis=-1)


def converged(points, network):
    """Keypoints of a film with the mouth at rest in every frame.

    points   float (T, K, 2)
    returns  (T, K, 2): mouth, jaw and cheeks as they are on average when the mouth is most nearly shut, in each frame's pose
    """
    pose = points[:, NOT_MOVED_BY_SPEECH].mean(0)
    ways = [_similarity(pose, face[NOT_MOVED_BY_SPEECH]) for face in points]  # the mean pose into each frame's
    opening = openings(points)
    quiet = np.flatnonzero(opening <= np.quantile(opening, AT_REST))
    mouths = [(points[t][MOVED_BY_SPEECH] - ways[t][1]) @ np.linalg.inv(ways[t][0]).T for t in quiet]
    face = np.array(points[quiet[0]])
    face[NOT_MOVED_BY_SPEECH] = pose
    face[MOVED_BY_SPEECH] = np.mean(mouths, 0)
    rest = network.neutral(face)[MOVED_BY_SPEECH]
    starts = np.array(points)
    for start, (turn, shift) in zip(starts, ways):
        start[MOVED_BY_SPEECH] = rest @ turn.T + shift
    return starts


def _similarity(source, target):
    """The turn and scale (2, 2) and the shift (2,) that bring source nearest to target, by least squares."""
    a, b = source - source.mean(0), target - target.mean(0)
    along, across = (a * b).sum(), (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()
    turn = np.array([[along, -across], [across, along]]) / (a * a).sum()
    return turn, target.mean(0) - source.mean(0) @ turn.T


def back_and_forth(count):
    """Indices of frames, forwards and backwards without an end: 0, 1, …, count - 1, count - 2, …, 1, 0, 1, …"""
    index, step = 0, 1
    while True:
        yield index
        if not 0 <= index + step < count:
            step = -step
        index = min(max(index + step, 0), count - 1)


def dub(film, frames, rest, batch=1):
    """Put the lips of a generator's frames on the frames of a film, which is repeated back and forth.

    film    Film
    frames  iterator of uint8 (R, R, 3): what the generator draws of the identity while it speaks
    rest    uint8 (R, R, 3), the generator's render of the identity
    batch   frames drawn together, as `detail.follow` takes it
    yields  uint8 (H, W, 3)
    """
    start = Detail(film.photo(film.resting), rest)

    def speak(frame, points, index, picture):
        target, _ = transfer(film.starts[index], start.rest, start.rest + film.gain * (points - start.rest))
        place = Frame(*film.shape[:2], film.quads[index])
        return draw(
            picture, place, film.points[index], target, inside=Inside(frame, points, *start.skins), blur=film.blur
        )

    indices, again = tee(back_and_forth(len(film)))
    return follow(film.network, zip(frames, indices, map(film.picture, again)), speak, batch)


def own_gain(film, frames):
    """The factor that gives the mouth the range of opening that it has in the film.

    film    Film
    frames  iterator of uint8 (R, R, 3): the identity speaking the film's own sound
    returns float; 1 if either mouth hardly moves
    """
    frames = iter(frames)
    read = np.concatenate(
        [film.network.read(np.stack(chunk)) for chunk in iter(lambda: list(islice(frames, BATCH)), [])]
    )
    count = min(len(read), len(film))
    ranges = [np.ptp(np.quantile(openings(points[:count]), (0.05, 0.95))) for points in (film.points, read)]
    return float(np.clip(ranges[0] / ranges[1] / DRAWN_WIDER, *GAINS)) if min(ranges) > 0.02 else 1.0
