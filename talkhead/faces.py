"""Face alignment: landmarks to FFHQ quads, crops, tracking through a clip, and pasting crops back.

    frame ─ detector ─▶ landmarks (68, 2) ─ quad ─▶ corners (4, 2) ─ crop ─▶ aligned (S, S, 3)
    frame ◀────────────────────────────── paste ──────────────────────────── generated (S, S, 3)
    StyleGAN3's transform (3, 3) ◀── quad_transforms ── corners (4, 2)

Points are pixels, x then y; (0, 0) is the centre of the top left pixel. The 68 are numbered as iBUG 300-W does:
jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, lips 48-67; "left" is the left of the image.

Pillow does the resampling, because the FFHQ crop is defined by Pillow's filters.
"""

import itertools
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np
import PIL.Image

from talkhead.errors import TalkheadError
from talkhead.files import read_array
from talkhead.landmarks import overlap

# ---------------------------------------------------------------------------------------------------------------
# Geometry


def quad(landmarks: np.ndarray) -> np.ndarray:
    """FFHQ quad of a face: a square centred below the eyes, rotated with the head.

    landmarks  (68, 2)
    returns    float64 (4, 2): top left, bottom left, bottom right, top right

    Source: thesis §3.2; Karras et al. 2019 (FFHQ).
    """
    points = np.asarray(landmarks, np.float64)
    left, right = points[36:42].mean(0), points[42:48].mean(0)
    eyes = (left + right) / 2
    eye_to_eye = right - left
    eye_to_mouth = (points[48] + points[54]) / 2 - eyes
    # Direction to the right: the mean of the line between the eyes and the perpendicular of the line from eyes to
    # mouth.
    x = eye_to_eye + (eye_to_mouth[1], -eye_to_mouth[0])
    x *= max(2.0 * np.hypot(*eye_to_eye), 1.8 * np.hypot(*eye_to_mouth)) / np.hypot(*x)  # length: half a side
    y = np.array((-x[1], x[0]))  # a quarter turn: down
    centre = eyes + 0.1 * eye_to_mouth
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def whole_quad(image: np.ndarray) -> np.ndarray:
    """Quad of a whole image that is a crop already: its corners, (4, 2)."""
    height, width = np.shape(image)[:2]
    return np.array([(0, 0), (0, height), (width, height), (width, 0)]) - 0.5


def mean_square(quads: np.ndarray) -> np.ndarray:
    """Upright square at the mean centre of quads (T, 4, 2), with their mean side: (4, 2)."""
    half = np.mean([_side(corners) for corners in quads]) / 2
    return np.mean(quads, (0, 1)) + half * np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)])


def quad_transforms(quads: np.ndarray, frame: np.ndarray | None = None) -> np.ndarray:
    """Transforms under which a StyleGAN3 draws aligned faces where they were in the film.

    quads    (T, 4, 2), of the crops, as `align_frames` gives them; rows of NaN, which have no crop, are left out
    frame    (4, 2), the square of the film that the images show, the same for all; None is `mean_square` of the quads.
             Faces are drawn at their own size, so its side should be near that of the quads
    returns  float64 (T, 3, 3), rotation and translation for `synthesis(w_plus, transform=…)`: a place in the image, in
             its sides from its centre, to the place in the aligned face that is drawn there
    raises   TalkheadError if the quads are no squares, or all are NaN

    Changes of the quads' sides are left out: a StyleGAN3 follows translation of its Fourier features and R follows
    rotation, T roughly; neither follows scale. `align_frames` with a wide `side_smoothing` keeps the sides alike.

    Source: Karras et al. 2021, "Alias-free generative adversarial networks", §3; thesis §6.1.
    """
    quads = _squares(quads)
    quads = quads[~np.isnan(quads).any((1, 2))]
    if len(quads) == 0:
        raise TalkheadError("quads: NaN in all frames; pass those of a clip with a face")
    frame = mean_square(quads) if frame is None else _squares(np.asarray(frame)[None])[0]
    x = quads[:, 3] - quads[:, 0]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    turns = np.stack([x, x[:, ::-1] * (-1, 1)], 1)  # rows: directions to the right of the face, and down
    transforms = np.tile(np.eye(3), (len(quads), 1, 1))
    transforms[:, :2, :2] = turns @ np.stack([frame[3] - frame[0], frame[1] - frame[0]], 1)
    transforms[:, :2, 2:] = turns @ (frame.mean(0) - quads.mean(1))[..., None]
    transforms[:, :2] /= _side(frame)
    return transforms


def align(image: np.ndarray, landmarks: np.ndarray, size: int = 256) -> np.ndarray:
    """FFHQ crop of the face with these landmarks: `crop(image, quad(landmarks), size)`."""
    return crop(image, quad(landmarks), size)


def crop(image: np.ndarray, quad: np.ndarray, size: int = 256) -> np.ndarray:
    """Crop the square of a quad out of an image, upright, like FFHQ.

    image    uint8 (H, W, 3)
    quad     (4, 2): top left, bottom left, bottom right, top right
    size     side of the result in pixels
    returns  uint8 (size, size, 3)

    Outside the image, the padding is mirrored, blurred, and fades to the median colour.

    Source: thesis §3.2; equal to recreate_aligned_images of NVIDIA's ffhq-dataset (transform size 4 * size).
    """
    corners = np.array(quad, np.float64)
    pil_image, corners = _shrink(PIL.Image.fromarray(np.ascontiguousarray(image)), corners, size)
    pil_image, corners = _surround(pil_image, corners)
    # Sampled at four times the size, then reduced by Lanczos: the quad may still be larger than the result.
    pil_image = pil_image.transform(
        (4 * size, 4 * size), PIL.Image.Transform.QUAD, (corners + 0.5).ravel(), PIL.Image.Resampling.BILINEAR
    )
    return np.asarray(pil_image.resize((size, size), PIL.Image.Resampling.LANCZOS))


def _side(corners):
    return np.hypot(*(corners[3] - corners[0]))


def _shrink(pil_image, corners, size):
    """Reduce an image whose quad is at least four times the wanted size, by an integer factor."""
    factor, reduced = _reduction(corners, pil_image.size, size)
    if factor < 2:
        return pil_image, corners
    return pil_image.resize(reduced, PIL.Image.Resampling.LANCZOS), corners / factor


def _reduction(corners, lengths, size):
    """Integer factor by which an image of these lengths (width, height) is reduced, and the reduced lengths."""
    factor = int(_side(corners) / size * 0.5)
    return factor, [max(int(np.rint(length / max(factor, 1))), 1) for length in lengths]


def _surround(pil_image, corners):
    """Crop the image to the quad and a border, and pad it where the quad comes near or crosses its edge."""
    side = _side(corners)
    border = max(int(np.rint(side * 0.1)), 3)
    low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    start = np.maximum(low - border, 0)
    stop = np.minimum(high + border, pil_image.size)
    if (start >= stop).any():
        raise TalkheadError("crop: the quad lies outside the image; pass the quad of a face in this image")
    pil_image, corners = pil_image.crop((*start, *stop)), corners - start
    low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    before = np.maximum(border - low, 0)
    after = np.maximum(high - pil_image.size + border, 0)
    if max(before.max(), after.max()) <= border - 4:
        return pil_image, corners
    least = max(int(np.rint(side * 0.3)), 1)
    before, after = np.maximum(before, least), np.maximum(after, least)
    return PIL.Image.fromarray(_pad(np.asarray(pil_image), before, after, side * 0.02)), corners + before


def _pad(image, before, after, blur):
    """Pad an image: mirrored, blurred near the edge, fading to the median colour far out.

    image   uint8 (H, W, 3)
    before  (2,) pixels to add left and above
    after   (2,) pixels to add right and below
    blur    standard deviation in pixels
    """
    from scipy.ndimage import gaussian_filter  # 0.1 s to import, which most crops do not need

    padded = np.pad(image.astype(np.float32), ((before[1], after[1]), (before[0], after[0]), (0, 0)), "reflect")
    height, width = padded.shape[:2]
    across = _outwards(width, before[0], after[0])[None, :]
    down = _outwards(height, before[1], after[1])[:, None]
    out = np.maximum(across, down)[..., None].astype(np.float32)  # (H, W, 1): 1 at the rim, 0 at the edge, < 0 inside
    padded += (gaussian_filter(padded, (blur, blur, 0)) - padded) * np.clip(3 * out + 1, 0, 1)
    padded += (np.median(padded, axis=(0, 1)) - padded) * np.clip(out, 0, 1)
    return np.clip(np.rint(padded), 0, 255).astype(np.uint8)


def _outwards(length, before, after):
    """Position in the padding along one axis: 1 at the rim, 0 at the image's edge, negative inside."""
    index = np.arange(length)
    return 1 - np.minimum(index / before, index[::-1] / after)


# ---------------------------------------------------------------------------------------------------------------
# Photos rotated by a quarter, half or three-quarter turn

TURNS = 4  # quarter turns in a circle
DETECTION_SIDE = (
    1500  # pixels of the longer side for `upright_rotation`; a larger photo is reduced by an integer factor
)
TRUSTED_ERROR = 0.05  # eye distances between two detections of one face that can be trusted


def upright_rotation(image: np.ndarray, detector: Callable[[np.ndarray], list[np.ndarray]]) -> int:
    """Number of counterclockwise quarter turns that put the largest face of a photo upright, 0 to 3.

    image     uint8 (H, W, 3)
    detector  callable, image -> list of (68, 2), largest first (see `detector`)

    Detectors handle faces lying on their side, but take an upside-down face for an upright one. So the detector is run
    on all four rotations; each detection votes for the rotation by its roll angle, with a weight that falls with the
    distance to a second detection in its own aligned crop. The photo stays as it is if it wins, or if no face is found.
    """
    factor = max(image.shape[:2]) // DETECTION_SIDE
    if factor > 1:
        image = np.asarray(PIL.Image.fromarray(np.ascontiguousarray(image)).reduce(factor))
    votes = np.zeros(TURNS)
    # (detections left, quarter turns); upside down, the most error-prone, comes last
    for left, turn in ((3, 0), (2, 1), (1, 3), (0, 2)):
        turned = np.ascontiguousarray(np.rot90(image, turn))
        face = next(iter(detector(turned)), None)
        if face is not None:
            error = _self_consistency(turned, face, detector)
            votes[(turn + _roll_quadrant(face)) % TURNS] += np.exp(-error / TRUSTED_ERROR)
        second, first = np.sort(votes)[-2:]
        if first - second > left:
            break
    best = int(votes.argmax())
    return best if votes[best] > votes[0] + 1e-6 else 0


def _roll_quadrant(face):
    """Number of counterclockwise quarter turns that put a face upright."""
    x, y = face[48:60].mean(0) - face[36:48].mean(0)  # from the eyes down to the mouth
    return int(np.rint(np.arctan2(-x, y) / (np.pi / 2))) % TURNS


def _self_consistency(image, face, detector):
    """Mean distance of a face to its second detection in its own aligned crop, in eye distances; 1 if not found."""
    corners = quad(face)
    try:
        found = detector(crop(image, corners))
    except TalkheadError:  # the face lies outside the image
        return 1.0
    wanted = (face - corners[0]) @ np.linalg.inv(
        np.stack([corners[3] - corners[0], corners[1] - corners[0]])
    ) * 256 - 0.5
    return min((np.linalg.norm(other - wanted, axis=1).mean() / 64 for other in found), default=1.0)


def _turned_back(points, turn, shape):
    """Map points of `np.rot90(image, turn)` back to the image, of shape (height, width)."""
    x, y = points[..., 0], points[..., 1]
    right, bottom = shape[1] - 1, shape[0] - 1
    return np.stack([(x, y), (right - y, x), (right - x, bottom - y), (y, bottom - x)][turn], -1)


class _Upright:
    """Detector that rotates a photo by quarter turns first and maps the landmarks back."""

    def __init__(self, detector, turn):
        self.detector, self.turn = detector, turn

    def __call__(self, image):
        found = self.detector(np.ascontiguousarray(np.rot90(image, self.turn)))
        return [_turned_back(face, self.turn, image.shape) for face in found]


# ---------------------------------------------------------------------------------------------------------------
# Clips

ON_MISSING = ("fail", "hold", "skip")
FACES = ("largest", "left", "right")  # or a number
MAX_LEADING = 100  # frames without a face, 4 s, buffered at the start of a clip with "hold"
MAX_LOST = 25  # frames without the face, 1 s, after which a face is chosen anew
SHOT_JUMP = 0.25  # sides; a quad that moves further in one frame is another shot or a detection error


def align_frames(
    frames: Iterable[np.ndarray],
    detector: Callable[[np.ndarray], list[np.ndarray]],
    size: int = 256,
    smoothing: float = 2.0,
    on_missing: str = "fail",
    missing: list[int] | None = None,
    face: str | int = "largest",
    side_smoothing: float | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Track one face through a clip and crop it like FFHQ, with quads smoothed in time.

    frames      iterator of uint8 (H, W, 3); its .name, if it has one, begins the error messages
    detector    callable, image -> list of (68, 2), largest first (see `detector`)
    size        side of the crops in pixels
    smoothing   standard deviation, in frames, of a centred Gaussian over the quads; 0 is FFHQ's crop, frame by frame
    on_missing  frames without a face: "fail"; "hold" the quad before (for leading frames, the first one found); "skip"
                the frame
    missing     a list that receives the index of every frame without a face
    face        choice among several faces: "largest", "left", "right", or its number from 1, counted from the left of
                the image
    side_smoothing   as `smoothing`, of the quads' sides alone, which grow as a mouth opens; None is as `smoothing`
    returns     iterator of (crop uint8 (size, size, 3), its quad float64 (4, 2), index of the frame)
    raises      TalkheadError if a face is missing with "fail", none is ever found, or there are fewer than number
                `face`
    warns       if a face is chosen among several: their number, and the choice

    The face chosen in the first frame with a face is tracked by overlap; without overlap, to the nearest face that was
    not there before; after a second without it, a face is chosen again.
    Frames are buffered only for the width of the Gaussian, so memory is constant. A photo (a single frame) may be
    rotated by quarter turns (see `upright_rotation`); its crop is upright.

    Source: thesis §3.2, §3.3.1.1.
    Departure: the quads are smoothed; the thesis crops frame by frame.
    """
    return (
        (crop(frame, corners, size), corners, index)
        for frame, corners, index in follow(frames, detector, smoothing, on_missing, missing, face, side_smoothing)
    )


def follow(
    frames: Iterable[np.ndarray],
    detector: Callable[[np.ndarray], list[np.ndarray]],
    smoothing: float = 2.0,
    on_missing: str = "fail",
    missing: list[int] | None = None,
    face: str | int = "largest",
    side_smoothing: float | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Track one face through a clip without cropping; arguments as `align_frames`.

    returns  iterator of (frame uint8 (H, W, 3), quad float64 (4, 2), index of the frame)
    """
    if on_missing not in ON_MISSING:
        raise TalkheadError(f"on_missing {on_missing!r}: unknown; choose from {', '.join(ON_MISSING)}")
    name = getattr(frames, "name", None) or "frames"
    if face not in FACES and not (type(face) is int and face > 0):
        raise TalkheadError(
            f"face {face!r}: unknown; choose from {', '.join(FACES)}, or a number from 1, counted from the left"
        )
    filled = _fill_missing(_track(frames, detector, face, name), on_missing, name, [] if missing is None else missing)
    return ((frame, corners, index) for index, frame, corners in _smooth(filled, smoothing, side_smoothing))


def _track(frames, detector, which, name):
    """Track one face, yielding (index, frame, quad or None, shot), where shot counts the jumps so far."""
    last, corners, others = None, None, []
    lost, shot = 0, 0
    frames = iter(frames)
    opening = list(itertools.islice(frames, 2))
    if len(opening) == 1:
        detector = _Upright(detector, upright_rotation(opening[0], detector))
    for index, frame in enumerate(itertools.chain(opening, frames)):
        found = detector(frame)
        tracking = last is not None and lost < MAX_LOST
        face = (
            _match_track(found, last, others)
            if tracking
            else _choose(found, which, f"{name}, frame {index}" if index else name)
        )
        others = [other for other in found if other is not face]
        if face is None:
            lost += 1
            yield index, frame, None, shot
            continue
        before, corners = corners, quad(face)
        if before is not None and np.abs(corners - before).max() > SHOT_JUMP * _side(before):
            shot += 1
        last, lost = face, 0
        yield index, frame, corners, shot


def _choose(found, which, where):
    """Choose a face of a frame, given the faces from the largest on; None if there is none."""
    if not found:
        return None
    order = sorted(range(len(found)), key=lambda index: found[index][:, 0].mean())
    if type(which) is int and which > len(found):
        raise TalkheadError(f"{where}: face {which} is wanted, and {len(found)} found; pass another --face")
    taken = 0 if which == "largest" else order[{"left": 0, "right": -1}[which] if type(which) is str else which - 1]
    if len(found) > 1:
        number = f"number {order.index(taken) + 1} from the left"
        warnings.warn(
            f"{where}: {len(found)} faces found, and {number if taken else f'the largest, {number},'} is taken; "
            "pass --face for another",
            stacklevel=2,
        )
    return found[taken]


def _match_track(found, last, others):
    """Match the face `last` of the frame before: the best overlap, else the nearest that is none of the `others`."""
    best = max(found, key=lambda face: overlap(face, last), default=None)
    if best is None or overlap(best, last) > 0:
        return best
    new = [face for face in found if not any(overlap(face, other) > 0 for other in others)]
    return min(new, key=lambda face: np.linalg.norm(face.mean(0) - last.mean(0)), default=None)


def _fill_missing(track, on_missing, name, missing):
    """Fill in missing quads of a track, skip the frame or fail, yielding (index, frame, quad, shot)."""
    leading, held, index = [], None, -1
    for index, frame, corners, shot in track:
        if corners is not None:
            held = corners, shot
            for earlier in leading:
                yield *earlier, *held
            leading = []
            yield index, frame, corners, shot
            continue
        missing.append(index)
        if on_missing == "fail":
            if index == 0 and next(track, None) is None:
                raise TalkheadError(f"{name}: no face found; choose an image with a face seen from the front")
            raise TalkheadError(f"{name}, frame {index}: no face found; trim the clip or pass --on-missing hold")
        if on_missing == "hold" and held:
            yield index, frame, *held
        elif on_missing == "hold":
            leading.append((index, frame))
            if len(leading) > MAX_LEADING:
                raise TalkheadError(
                    f"{name}: no face found in the first {MAX_LEADING} frames; trim the clip or pass --on-missing skip"
                )
    if held is None and index >= 0:
        raise TalkheadError(f"{name}: no face found in any frame; choose a clip with a face seen from the front")


def _smooth(filled, sigma, side_sigma):
    """Smooth the quads in time by a Gaussian, within a shot, yielding (index, frame, quad).

    side_sigma   standard deviation of another Gaussian for their sides, or None
    """
    radius = math.ceil(3 * max(sigma, side_sigma or 0))
    before, after = deque(maxlen=radius), deque()

    def middle():
        index, frame, corners, shot = after.popleft()
        now = (index, corners, shot)
        near = [*before, now, *((i, c, s) for i, _, c, s in after)]
        before.append(now)  # without its frame: only later frames are kept
        same = [(i, c) for i, c, s in near if s == shot]

        def mean(values, sigma):
            weights = np.exp([-0.5 * ((i - index) / max(sigma, 1e-9)) ** 2 for i, _ in same])
            return np.average(values, axis=0, weights=weights)

        corners = mean([c for _, c in same], sigma)
        if side_sigma is not None:
            centre, side = corners.mean(0), mean([_side(c) for _, c in same], side_sigma)
            corners = centre + (corners - centre) * side / _side(corners)
        return index, frame, corners

    for item in filled:
        after.append(item)
        if len(after) > radius:
            yield middle()
    while after:
        yield middle()


# ---------------------------------------------------------------------------------------------------------------
# Pasting crops back into the frame

MAX_COORDINATE = 1e6  # pixels, beyond any image
OVAL = (0.5, 0.51, 0.42, 0.48)  # pasted ellipse: centre x, y, half width, half height, in sides of the crop
GAIN_RANGE = (2 / 3, 3 / 2)  # limits of the contrast change by the colour match


def paste(
    frames: Iterable[np.ndarray],
    crops: Iterable[np.ndarray],
    quads: np.ndarray,
    size: int | None = None,
    feather: float = 0.15,
    match_colour: bool = True,
) -> Iterator[np.ndarray]:
    """Paste generated crops back into the frames, the inverse of `align_frames`.

    frames        iterator of uint8 (H, W, 3), the clip that was aligned; a single frame is a photo, used for all crops
    crops         iterator of generated frames uint8 (S, S, 3); S may differ from the aligned size
    quads         (T, 4, 2), the quad of each frame; NaN, or no row, for a frame that stays as it is
    size          the `size` of the `crop` that used the quads; None for the side of the crops
    feather       width of the blend from face to frame, as a part of the crop's side; 0: a hard edge
    match_colour  match the face's mean and contrast to the frame's own face (upper half, per colour channel)
    yields        uint8 (H, W, 3)
    raises        TalkheadError if the quads are no squares in these frames
    warns         if frames or quads and crops do not end together

    Only an ellipse around the face is pasted, because the background in a generated crop's corners is arbitrary.
    Outside of it, frames are unchanged bit for bit. Memory is constant.

    Source: thesis §6.1 (an aligned face makes the background move).
    Departure: the thesis leaves the solution open.
    """
    if not 0 <= feather <= min(OVAL[2:]):
        raise TalkheadError(f"feather {feather}: wanted a fraction of the crop's side, 0 to {min(OVAL[2:])}")
    name = getattr(frames, "name", None) or "frames"
    quads = _squares(quads)
    frames, crops = iter(frames), iter(crops)
    first = next(frames, None)
    following = next(frames, None)
    if first is None:
        raise TalkheadError(f"{name}: no frames; pass the clip or photo that was aligned")
    if following is None and len(quads) == 1:
        places = ((first, quads[0], crop) for crop in crops)
    else:
        frames = itertools.chain([first] if following is None else [first, following], frames)
        places = _align_streams(frames, quads, crops, name)
    transfer, before = None, None
    for frame, corners, crop in places:
        if crop is None:
            yield frame
            continue
        if crop.shape[0] != crop.shape[1]:
            raise TalkheadError(f"crops: {crop.shape[1]}x{crop.shape[0]}, but a crop is square; pass aligned frames")
        if match_colour and (before is None or np.abs(corners - before).max() > SHOT_JUMP * _side(before)):
            transfer = _ColorTransfer()  # the light changes with the shot
        before = corners
        yield _pasted(frame, crop, corners, size or len(crop), feather, transfer)


def read_landmarks(path: str | os.PathLike | BinaryIO) -> np.ndarray:
    """Read landmarks from a .npy: numbers (T, 68, 2), pixels; NaN where no face was found.

    raises  TalkheadError if it holds anything else, or points outside of any image
    """
    points = read_array(path)
    if points.ndim != 3 or points.shape[1:] != (68, 2) or points.dtype.kind not in "fiu":
        raise TalkheadError(
            f"{path}: holds {points.dtype} {points.shape}, wanted landmarks (frames, 68, 2); pass them, or a clip"
        )
    far = (np.abs(points) > MAX_COORDINATE).any(axis=(1, 2))
    if far.any():
        raise TalkheadError(f"{path}, frame {int(np.argmax(far))}: landmarks outside of any image; make them again")
    return points


def _squares(quads):
    """Check that quads are squares, and return them as float64 (T, 4, 2)."""
    quads = np.asarray(quads)
    if quads.ndim != 3 or quads.shape[1:] != (4, 2) or len(quads) == 0 or quads.dtype.kind not in "fiu":
        raise TalkheadError(
            f"quads: {quads.dtype}, shape {quads.shape}, wanted (frames, 4, 2); pass what talkhead align --quads wrote"
        )
    quads = np.where(np.abs(quads) > MAX_COORDINATE, 0.0, quads).astype(np.float64)  # then fails as no square
    down, right = quads[:, 1] - quads[:, 0], quads[:, 3] - quads[:, 0]
    uneven = np.abs(np.stack([quads[:, 2] - quads[:, 1] - right, down + right[:, ::-1] * (1, -1)])).max((0, 2))
    side = np.linalg.norm(right, axis=1)
    wrong = (uneven > 0.01 * side) | (side == 0)  # False where there is no quad: NaN is not greater
    if wrong.any():
        raise TalkheadError(
            f"quads, frame {int(np.argmax(wrong))}: not a square; pass what talkhead align --quads wrote"
        )
    return quads


def _align_streams(frames, quads, crops, name):
    """Yield each frame with its quad and crop, or with None and None if it has no quad: then no crop is taken."""
    for index, frame in enumerate(frames):
        corners = quads[index] if index < len(quads) else None
        if corners is None or np.isnan(corners).any():
            yield frame, None, None
            continue
        crop = next(crops, None)
        if crop is None:
            warnings.warn(
                f"{name}: is longer than the crops, which end at frame {index}; the result ends there", stacklevel=3
            )
            return
        yield frame, corners, crop
    if next(crops, None) is not None:
        warnings.warn(
            f"{name}: ends, or has no more quads, before the crops end; the crops left over are dropped", stacklevel=3
        )


def _pasted(frame, crop, corners, size, feather, transfer):
    """Paste one crop into one frame."""
    # From here on pixels are areas: (0, 0) is the top left corner of the image.
    corners = _sampled_quad(corners, frame.shape[1::-1], size) + 0.5
    start = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    stop = np.minimum(np.ceil(corners.max(0)).astype(int), frame.shape[1::-1])
    if (start >= stop).any():
        raise TalkheadError("paste: the quad lies outside the frame; pass the clip that was aligned")
    corners -= start
    width, height = stop - start
    across, down = corners[3] - corners[0], corners[1] - corners[0]
    # (u, v): coordinates in the crop, 0 to 1, of the pixels of the frame.
    inverse = np.linalg.inv(np.stack([across, down], axis=1))
    columns, rows = np.arange(width) + 0.5 - corners[0, 0], np.arange(height)[:, None] + 0.5 - corners[0, 1]
    u, v = ((a * columns).astype(np.float32) + (b * rows).astype(np.float32) for a, b in inverse)
    mask = _mask(u, v, feather)

    pil_image = PIL.Image.fromarray(np.ascontiguousarray(crop))
    side = int(np.rint(_side(corners)))
    if side < len(crop):  # or the transform would alias
        pil_image = pil_image.resize((max(side, 1),) * 2, PIL.Image.Resampling.LANCZOS)
    scaled = inverse * pil_image.width
    coefficients = np.concatenate([scaled, -scaled @ corners[:1].T], axis=1).ravel()
    warped = pil_image.transform(
        (int(width), int(height)), PIL.Image.Transform.AFFINE, coefficients, PIL.Image.Resampling.BICUBIC
    )

    background = frame[start[1] : stop[1], start[0] : stop[0]].astype(np.float32)
    face = np.asarray(warped, np.float32)
    if transfer is not None:
        face = transfer(face, background, u, v)
    result = frame.copy()
    blend = background + mask[..., None] * (face - background)
    result[start[1] : stop[1], start[0] : stop[0]] = np.clip(np.rint(blend), 0, 255)
    return result


def _sampled_quad(corners, lengths, size):
    """Quad that `crop` really sampled: FFHQ rounds the lengths of an image that it reduces, which shifts the quad."""
    factor, reduced = _reduction(corners, lengths, size)
    if factor < 2:
        return corners
    return (corners / factor + 0.5) * np.divide(lengths, reduced) - 0.5


def _mask(u, v, feather):
    """Blending weight of the crop: 1 over the face, falling smoothly to 0 at the ellipse around it."""
    x, y = (u - OVAL[0]) / OVAL[2], (v - OVAL[1]) / OVAL[3]
    inward = (1 - np.sqrt(x * x + y * y)) * min(OVAL[2:])  # approximate distance from the ellipse, in sides
    if feather == 0:
        return (inward >= 0).astype(np.float32)
    ramp = np.clip(inward / feather, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


class _ColorTransfer:
    """Colour transfer from frames to crops: mean and std of each RGB channel over the upper half of the face.

    The mouth is excluded: it differs between the two, and the face would flicker as it opens. The moments are averaged
    over about a second to suppress noise.

    Source: Reinhard et al. 2001, in RGB.
    """

    DECAY = 1 - 1 / 25  # of the moving average: one second of frames

    def __init__(self):
        self.moments = self.weight = 0  # moving average of the moments, and its total weight

    def __call__(self, crop, frame, u, v):
        step = max(min(u.shape) // 64, 1)  # a subset of the pixels suffices
        change = self._change(*(values[::step, ::step] for values in (crop, frame, u, v)))
        return crop if change is None else crop * change[0] + change[1]

    def _change(self, crop, frame, u, v):
        weights = (
            np.clip(np.sin(np.pi * np.clip(u, 0, 1)) * np.sin(np.pi * np.clip(v / 0.68, 0, 1)), 0, None)[..., None] ** 2
        )
        if weights.sum() < 1:
            return None
        # (3,) each
        moments = [(weights * values).sum((0, 1)) / weights.sum() for values in (crop, crop**2, frame, frame**2)]
        self.weight = self.DECAY * self.weight + (1 - self.DECAY)
        self.moments = self.DECAY * self.moments + (1 - self.DECAY) * np.stack(moments)
        own, own_squared, wanted, wanted_squared = self.moments / self.weight
        std, wanted_std = (
            np.sqrt(np.maximum(squared - mean**2, 1))
            for squared, mean in ((own_squared, own), (wanted_squared, wanted))
        )
        gain = np.clip(wanted_std / std, *GAIN_RANGE)
        return np.float32(gain), np.float32(wanted - own * gain)
