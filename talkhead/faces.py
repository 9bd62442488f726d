"""Where a face is, and its FFHQ crop: landmarks, quads, aligned frames.

    frame ─ detector ─▶ landmarks (68, 2) ─ quad ─▶ corners (4, 2) ─ crop ─▶ aligned (S, S, 3)
    frame ◀────────────────────────────── paste ──────────────────────────── generated (S, S, 3)

Points are pixels, x then y; (0, 0) is the centre of the top left pixel. The 68 are numbered as iBUG 300-W does:
jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, lips 48-67; "left" is the left of the picture.

Pillow is used here although reading files is another room's: the FFHQ crop is defined by Pillow's own filters.
"""

import itertools
import math
import warnings
from collections import deque

import numpy as np
import PIL.Image

from talkhead.errors import TalkheadError
from talkhead.files import read_array
from talkhead.landmarks import overlap

# ---------------------------------------------------------------------------------------------------------------
# Geometry


def quad(landmarks):
    """The square that FFHQ cuts out: centred below the eyes, turned with the head.

    landmarks  (68, 2)
    returns    float64 (4, 2): top left, bottom left, bottom right, top right

    Source: thesis §3.2; Karras et al. 2019 (FFHQ).
    """
    points = np.asarray(landmarks, np.float64)
    left, right = points[36:42].mean(0), points[42:48].mean(0)
    eyes = (left + right) / 2
    eye_to_eye = right - left
    eye_to_mouth = (points[48] + points[54]) / 2 - eyes
    # The mean of two estimates of "to the right": along the eyes, and across the line from eyes to mouth.
    x = eye_to_eye + (eye_to_mouth[1], -eye_to_mouth[0])
    x *= max(2.0 * np.hypot(*eye_to_eye), 1.8 * np.hypot(*eye_to_mouth)) / np.hypot(*x)  # half a side long
    y = np.array((-x[1], x[0]))  # a quarter turn: down
    centre = eyes + 0.1 * eye_to_mouth
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def whole_quad(image):
    """The quad of a picture that is one crop already: its own corners, (4, 2)."""
    height, width = np.shape(image)[:2]
    return np.array([(0, 0), (0, height), (width, height), (width, 0)]) - 0.5


def align(image, landmarks, size=256):
    """FFHQ's crop of the face with these landmarks: `crop(image, quad(landmarks), size)`."""
    return crop(image, quad(landmarks), size)


def crop(image, quad, size=256):
    """Cut a square out of an image and turn it upright, as FFHQ was cut.

    image    uint8 (H, W, 3)
    quad     (4, 2): top left, bottom left, bottom right, top right
    size     side of the result
    returns  uint8 (size, size, 3)

    Where the quad leaves the image, the image is continued by its mirror, blurred, and fades to its median colour.

    Source: thesis §3.2; equal to recreate_aligned_images of NVIDIA's ffhq-dataset (transform size 4 * size).
    """
    corners = np.array(quad, np.float64)
    picture, corners = _shrink(PIL.Image.fromarray(np.ascontiguousarray(image)), corners, size)
    picture, corners = _surround(picture, corners)
    # Four samples a pixel each way, then a Lanczos reduction: the quad may still be larger than the result.
    picture = picture.transform(
        (4 * size, 4 * size), PIL.Image.Transform.QUAD, (corners + 0.5).ravel(), PIL.Image.Resampling.BILINEAR
    )
    return np.asarray(picture.resize((size, size), PIL.Image.Resampling.LANCZOS))


def _side(corners):
    return np.hypot(*(corners[3] - corners[0]))


def _shrink(picture, corners, size):
    """Reduce a picture whose quad is more than four times the wanted size, by a whole factor."""
    factor, reduced = _reduction(corners, picture.size, size)
    if factor < 2:
        return picture, corners
    return picture.resize(reduced, PIL.Image.Resampling.LANCZOS), corners / factor


def _reduction(corners, lengths, size):
    """The whole factor by which a picture of these lengths (width, height) is reduced, and its lengths then."""
    factor = int(_side(corners) / size * 0.5)
    return factor, [max(int(np.rint(length / max(factor, 1))), 1) for length in lengths]


def _surround(picture, corners):
    """Cut the picture down to the quad and a border, and pad it where the quad comes near or over its edge."""
    side = _side(corners)
    border = max(int(np.rint(side * 0.1)), 3)
    low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    start = np.maximum(low - border, 0)
    stop = np.minimum(high + border, picture.size)
    if (start >= stop).any():
        raise TalkheadError("crop: the quad lies outside the image; pass the quad of a face in this image")
    picture, corners = picture.crop((*start, *stop)), corners - start
    low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    before = np.maximum(border - low, 0)
    after = np.maximum(high - picture.size + border, 0)
    if max(before.max(), after.max()) <= border - 4:
        return picture, corners
    least = max(int(np.rint(side * 0.3)), 1)
    before, after = np.maximum(before, least), np.maximum(after, least)
    return PIL.Image.fromarray(_pad(np.asarray(picture), before, after, side * 0.02)), corners + before


def _pad(image, before, after, blur):
    """Continue an image beyond its edges: mirrored, blurred near the edge and median-coloured far out.

    image   uint8 (H, W, 3)
    before  (2,) pixels to add left and above
    after   (2,) pixels to add right and below
    blur    standard deviation in pixels
    """
    from scipy.ndimage import gaussian_filter  # a tenth of a second that most crops can do without

    padded = np.pad(image.astype(np.float32), ((before[1], after[1]), (before[0], after[0]), (0, 0)), "reflect")
    height, width = padded.shape[:2]
    across = _outwards(width, before[0], after[0])[None, :]
    down = _outwards(height, before[1], after[1])[:, None]
    out = np.maximum(across, down)[..., None].astype(
        np.float32
    )  # (H, W, 1): 1 at the rim, 0 at the old edge, < 0 inside
    padded += (gaussian_filter(padded, (blur, blur, 0)) - padded) * np.clip(3 * out + 1, 0, 1)
    padded += (np.median(padded, axis=(0, 1)) - padded) * np.clip(out, 0, 1)
    return np.clip(np.rint(padded), 0, 255).astype(np.uint8)


def _outwards(length, before, after):
    """Along one axis, how far into the padding: 1 at the rim, 0 at the image's edge, negative inside."""
    index = np.arange(length)
    return 1 - np.minimum(index / before, index[::-1] / after)


# ---------------------------------------------------------------------------------------------------------------
# Photos that lie on their side or on their head

TURNS = 4  # quarters: the ways a photo may lie
LOOKED_AT = 1500  # pixels of the longer side that say which way is up; a larger photo is reduced by a whole factor
SURE = 0.05  # eye distances by which two looks at one face differ where the detector may be trusted


def upright_rotation(image, detector):
    """How many quarter turns, counterclockwise, set the largest face of a photo upright: 0 to 3.

    image     uint8 (H, W, 3)
    detector  callable, image -> list of (68, 2), largest first (see `detector`)

    Detectors read faces that lie on their side well enough, but see an upright face in one that stands on its head. So the
    photo is looked at in all four turns, each look says which way is up, and has the more to say the better the detector
    agrees with itself when it sees what the look cut out. Where the photo as it is wins, or nobody sees a face, it stays so.
    """
    factor = max(image.shape[:2]) // LOOKED_AT
    if factor > 1:
        image = np.asarray(PIL.Image.fromarray(np.ascontiguousarray(image)).reduce(factor))
    votes = np.zeros(TURNS)
    for left, turn in (
        (3, 0),
        (2, 1),
        (1, 3),
        (0, 2),
    ):  # the looks that are left; the likeliest to be misread comes last
        turned = np.ascontiguousarray(np.rot90(image, turn))
        face = next(iter(detector(turned)), None)
        if face is not None:
            votes[(turn + _roll_quadrant(face)) % TURNS] += np.exp(-_self_consistency(turned, face, detector) / SURE)
        second, first = np.sort(votes)[-2:]
        if first - second > left:
            break
    best = int(votes.argmax())
    return best if votes[best] > votes[0] + 1e-6 else 0


def _roll_quadrant(face):
    """Quarter turns, counterclockwise, that set a face upright."""
    x, y = face[48:60].mean(0) - face[36:48].mean(0)  # from the eyes down to the mouth
    return int(np.rint(np.arctan2(-x, y) / (np.pi / 2))) % TURNS


def _self_consistency(image, face, detector):
    """How far a face lies from where it is seen again in its own aligned crop, in eye distances; 1 where it is not seen."""
    corners = quad(face)
    try:
        seen = detector(crop(image, corners))
    except TalkheadError:  # the face lies outside the picture
        return 1.0
    wanted = (face - corners[0]) @ np.linalg.inv(
        np.stack([corners[3] - corners[0], corners[1] - corners[0]])
    ) * 256 - 0.5
    return min((np.linalg.norm(other - wanted, axis=1).mean() / 64 for other in seen), default=1.0)


def _turned_back(points, turn, shape):
    """Points of a picture turned by `np.rot90(picture, turn)`, in the picture itself, of shape (height, width)."""
    x, y = points[..., 0], points[..., 1]
    right, bottom = shape[1] - 1, shape[0] - 1
    return np.stack([(x, y), (right - y, x), (right - x, bottom - y), (y, bottom - x)][turn], -1)


class _Upright:
    """A detector for a photo that has to be turned to be read."""

    def __init__(self, detector, turn):
        self.detector, self.turn = detector, turn

    def __call__(self, image):
        found = self.detector(np.ascontiguousarray(np.rot90(image, self.turn)))
        return [_turned_back(face, self.turn, image.shape) for face in found]


# ---------------------------------------------------------------------------------------------------------------
# Clips

ON_MISSING = ("fail", "hold", "skip")
FACES = ("largest", "left", "right")  # or a number
LEADING = 100  # frames kept while a clip that opens without a face is held: four seconds
LOST = 25  # frames after which the largest face is chosen anew: a second
JUMP = 0.25  # sides: a quad that moves so far in one frame is another shot, or a slip of the detector


def align_frames(frames, detector, size=256, smoothing=2.0, on_missing="fail", missing=None, face="largest"):
    """Follow one face through a clip and crop it, as FFHQ does but with a quad that does not tremble.

    frames      iterator of uint8 (H, W, 3); its .name, if it has one, opens the error messages
    detector    callable, image -> list of (68, 2), largest first (see `detector`)
    size        side of the crops
    smoothing   standard deviation in frames of a Gaussian over the quads, centred; 0 is FFHQ's own, frame by frame
    on_missing  a frame without a face: "fail"; "hold" the quad before it (the first one found, for frames that lead);
                "skip" the frame
    missing     a list that receives the index of every frame without a face
    face        which to take where there are several: "largest", "left", "right", or its number counted from the left, from 1,
                as the pictures lie
    returns     iterator of (crop uint8 (size, size, 3), quad float64 (4, 2) that cut it, index of the frame)
    raises      TalkheadError where a face is missing and may not be, none is ever found, or there are fewer than `face` says
    warns       where a face is chosen among several: how many there are, and which was taken

    The face that is chosen in the first frame that has one is followed by overlap; after a leap, to the nearest face that was
    not there before; after a second without it, one is chosen again.
    Frames are kept only for the width of the Gaussian, so memory is flat. A photo, a single frame, may lie on its side or on
    its head (see `upright_rotation`); its crop is upright.

    Source: thesis §3.2, §3.3.1.1.
    Departure: the quads are smoothed; the thesis crops frame by frame.
    """
    return (
        (crop(frame, corners, size), corners, index)
        for frame, corners, index in follow(frames, detector, smoothing, on_missing, missing, face)
    )


def follow(frames, detector, smoothing=2.0, on_missing="fail", missing=None, face="largest"):
    """Follow one face through a clip, uncropped: arguments as `align_frames`; iterator of (frame uint8 (H, W, 3), quad float64 (4, 2), index)."""
    if on_missing not in ON_MISSING:
        raise TalkheadError(f"on_missing {on_missing!r}: unknown; choose from {', '.join(ON_MISSING)}")
    name = getattr(frames, "name", None) or "frames"
    if face not in FACES and not (type(face) is int and face > 0):
        raise TalkheadError(
            f"face {face!r}: unknown; choose from {', '.join(FACES)}, or a number from 1, counted from the left"
        )
    filled = _fill_missing(_track(frames, detector, face, name), on_missing, name, [] if missing is None else missing)
    return ((frame, corners, index) for index, frame, corners in _smooth(filled, smoothing))


def _track(frames, detector, which, name):
    """Follow one face: (index, frame, quad or None, shot), where shot counts the jumps so far."""
    last, corners, others = None, None, []
    lost, shot = 0, 0
    frames = iter(frames)
    opening = list(itertools.islice(frames, 2))
    if len(opening) == 1:
        detector = _Upright(detector, upright_rotation(opening[0], detector))
    for index, frame in enumerate(itertools.chain(opening, frames)):
        found = detector(frame)
        chosen = last is not None and lost < LOST
        face = (
            _match_track(found, last, others)
            if chosen
            else _chosen(found, which, f"{name}, frame {index}" if index else name)
        )
        others = [other for other in found if other is not face]
        if face is None:
            lost += 1
            yield index, frame, None, shot
            continue
        before, corners = corners, quad(face)
        if before is not None and np.abs(corners - before).max() > JUMP * _side(before):
            shot += 1
        last, lost = face, 0
        yield index, frame, corners, shot


def _chosen(found, which, where):
    """The face that is meant among those of a frame, which come the largest first; None if there is none."""
    if not found:
        return None
    order = sorted(range(len(found)), key=lambda place: found[place][:, 0].mean())
    if type(which) is int and which > len(found):
        raise TalkheadError(f"{where}: face {which} is wanted, and {len(found)} found; pass another --face")
    taken = 0 if which == "largest" else order[{"left": 0, "right": -1}[which] if type(which) is str else which - 1]
    if len(found) > 1:
        number = f"number {order.index(taken) + 1} from the left"
        warnings.warn(
            f"{where}: {len(found)} faces found, and {number if taken else f'the largest, {number},'} is taken; pass --face for another",
            stacklevel=2,
        )
    return found[taken]


def _match_track(found, last, others):
    """The face that was `last` a frame ago: what overlaps it most, else the nearest that is none of the `others`."""
    best = max(found, key=lambda face: overlap(face, last), default=None)
    if best is None or overlap(best, last) > 0:
        return best
    new = [face for face in found if not any(overlap(face, other) > 0 for other in others)]
    return min(new, key=lambda face: np.linalg.norm(face.mean(0) - last.mean(0)), default=None)


def _fill_missing(track, on_missing, name, missing):
    """Give each frame of a track a quad, or leave it out, or fail: (index, frame, quad, shot)."""
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
                raise TalkheadError(f"{name}: no face found; choose a picture with a face seen from the front")
            raise TalkheadError(f"{name}, frame {index}: no face found; trim the clip or pass --on-missing hold")
        if on_missing == "hold" and held:
            yield index, frame, *held
        elif on_missing == "hold":
            leading.append((index, frame))
            if len(leading) > LEADING:
                raise TalkheadError(
                    f"{name}: no face found in the first {LEADING} frames; trim the clip or pass --on-missing skip"
                )
    if held is None and index >= 0:
        raise TalkheadError(f"{name}: no face found in any frame; choose a clip with a face seen from the front")


def _smooth(filled, sigma):
    """Average each quad with its neighbours in time, within a shot: (index, frame, quad)."""
    radius = math.ceil(3 * sigma)
    before, after = deque(maxlen=radius), deque()

    def middle():
        index, frame, corners, shot = after.popleft()
        now = (index, corners, shot)
        near = [*before, now, *((i, c, s) for i, _, c, s in after)]
        before.append(now)  # its frame is let go: only frames to come are kept
        same = [(i, c) for i, c, s in near if s == shot]
        weights = np.exp([-0.5 * ((i - index) / max(sigma, 1e-9)) ** 2 for i, _ in same])
        return index, frame, np.average([c for _, c in same], axis=0, weights=weights)

    for item in filled:
        after.append(item)
        if len(after) > radius:
            yield middle()
    while after:
        yield middle()


# ---------------------------------------------------------------------------------------------------------------
# Back into the frame

FAR = 1e6  # pixels: where no point of a picture lies
OVAL = (
    0.5,
    0.51,
    0.42,
    0.48,
)  # the part of a crop that is put back, in sides: its centre, half its width and half its height
LIKENESS = (2 / 3, 3 / 2)  # how far the colour match may change the contrast


def paste(frames, crops, quads, size=None, feather=0.15, match_colour=True):
    """Put generated crops back where `crop` cut them out: `align_frames` undone.

    frames        iterator of uint8 (H, W, 3), the clip that was aligned; a single one is a photo, and stands still
    crops         iterator of uint8 (S, S, 3), what was generated; of any side, which may change
    quads         (T, 4, 2), what cut the face out of each frame; NaN, or no row, for a frame that is left as it is
    size          the `size` of the `crop` that used the quads; None for the side of the crops
    feather       part of the crop's side over which the face fades into the frame; 0 cuts hard
    match_colour  give the face the mean and the contrast that the frame's own has there (upper half; each colour for itself)
    yields        uint8 (H, W, 3)
    raises        TalkheadError if the quads are no squares in these frames; warns where one of the clips ends before the other

    What is put back is the oval of the face: corners of the crop hold background, which generators draw as they like. Outside
    it a frame stays as it was, bit for bit. Frames are let go as they come, so memory is flat.

    Source: thesis §6.1 (an aligned face makes the background move).
    Departure: the thesis leaves the mending open.
    """
    if not 0 <= feather <= min(OVAL[2:]):
        raise TalkheadError(f"feather {feather}: wanted a part of the crop's side, 0 to {min(OVAL[2:])}")
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
        shown = itertools.chain([first] if following is None else [first, following], frames)
        places = _together(shown, quads, crops, name)
    tone, before = None, None
    for frame, corners, crop in places:
        if crop is None:
            yield frame
            continue
        if crop.shape[0] != crop.shape[1]:
            raise TalkheadError(f"crops: {crop.shape[1]}x{crop.shape[0]}, but a crop is square; pass aligned frames")
        if match_colour and (before is None or np.abs(corners - before).max() > JUMP * _side(before)):
            tone = _ColorTransfer()  # another shot has other light
        before = corners
        yield _pasted(frame, crop, corners, size or len(crop), feather, tone)


def read_landmarks(path):
    """Landmarks that were written down: a .npy of numbers (T, 68, 2), pixels; NaN where no face was seen.

    raises  TalkheadError if it holds anything else, or points that lie in no picture
    """
    points = read_array(path)
    if points.ndim != 3 or points.shape[1:] != (68, 2) or points.dtype.kind not in "fiu":
        raise TalkheadError(
            f"{path}: holds {points.dtype} {points.shape}, wanted landmarks (frames, 68, 2); pass them, or a clip"
        )
    far = (np.abs(points) > FAR).any(axis=(1, 2))
    if far.any():
        raise TalkheadError(f"{path}, frame {int(np.argmax(far))}: landmarks outside of any picture; make them again")
    return points


def _squares(quads):
    """Quads as float64 (T, 4, 2), if they are squares."""
    quads = np.asarray(quads)
    if quads.ndim != 3 or quads.shape[1:] != (4, 2) or len(quads) == 0 or quads.dtype.kind not in "fiu":
        raise TalkheadError(
            f"quads: {quads.dtype}, shape {quads.shape}, wanted (frames, 4, 2); pass what talkhead align --quads wrote"
        )
    quads = np.where(np.abs(quads) > FAR, 0.0, quads).astype(np.float64)  # no square then
    down, right = quads[:, 1] - quads[:, 0], quads[:, 3] - quads[:, 0]
    uneven = np.abs(np.stack([quads[:, 2] - quads[:, 1] - right, down + right[:, ::-1] * (1, -1)])).max((0, 2))
    side = np.linalg.norm(right, axis=1)
    wrong = (uneven > 0.01 * side) | (side == 0)  # False where there is no quad: NaN is not greater
    if wrong.any():
        raise TalkheadError(
            f"quads, frame {int(np.argmax(wrong))}: not a square; pass what talkhead align --quads wrote"
        )
    return quads


def _together(frames, quads, crops, name):
    """Each frame with its quad and the crop that belongs there, or with None and None: crops are there for quads alone."""
    for index, frame in enumerate(frames):
        corners = quads[index] if index < len(quads) else None
        if corners is None or np.isnan(corners).any():
            yield frame, None, None
            continue
        crop = next(crops, None)
        if crop is None:
            warnings.warn(
                f"{name}: goes on after the crops have ended, at frame {index}; the result ends there", stacklevel=3
            )
            return
        yield frame, corners, crop
    if next(crops, None) is not None:
        warnings.warn(
            f"{name}: ends, or has no more quads, before the crops end; the crops left over are dropped", stacklevel=3
        )


def _pasted(frame, crop, corners, size, feather, tone):
    """One frame with one crop put back."""
    corners = _taken(corners, frame.shape[1::-1], size) + 0.5  # from here on pixels are areas: (0, 0) is a corner
    start = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    stop = np.minimum(np.ceil(corners.max(0)).astype(int), frame.shape[1::-1])
    if (start >= stop).any():
        raise TalkheadError("paste: the quad lies outside the frame; pass the clip that was aligned")
    corners -= start
    width, height = stop - start
    across, down = corners[3] - corners[0], corners[1] - corners[0]
    # (u, v): 0 to 1 over the crop, for a place in the frame.
    inverse = np.linalg.inv(np.stack([across, down], axis=1))
    columns, rows = np.arange(width) + 0.5 - corners[0, 0], np.arange(height)[:, None] + 0.5 - corners[0, 1]
    u, v = ((a * columns).astype(np.float32) + (b * rows).astype(np.float32) for a, b in inverse)
    mask = _mask(u, v, feather)

    picture = PIL.Image.fromarray(np.ascontiguousarray(crop))
    side = int(np.rint(_side(corners)))
    if side < len(crop):  # or pixels of the crop would be skipped
        picture = picture.resize((max(side, 1),) * 2, PIL.Image.Resampling.LANCZOS)
    scaled = inverse * picture.width
    coefficients = np.concatenate([scaled, -scaled @ corners[:1].T], axis=1).ravel()
    turned = picture.transform(
        (int(width), int(height)), PIL.Image.Transform.AFFINE, coefficients, PIL.Image.Resampling.BICUBIC
    )

    under = frame[start[1] : stop[1], start[0] : stop[0]].astype(np.float32)
    over = np.asarray(turned, np.float32)
    if tone is not None:
        over = tone(over, under, u, v)
    result = frame.copy()
    blend = under + mask[..., None] * (over - under)
    result[start[1] : stop[1], start[0] : stop[0]] = np.clip(np.rint(blend), 0, 255)
    return result


def _taken(corners, lengths, size):
    """Where `crop` really took its pixels: FFHQ rounds the lengths of a picture that it reduces, and so shifts the quad."""
    factor, reduced = _reduction(corners, lengths, size)
    if factor < 2:
        return corners
    return (corners / factor + 0.5) * np.divide(lengths, reduced) - 0.5


def _mask(u, v, feather):
    """How much of the crop is seen: 1 over the face, smoothly down to 0 at the oval around it."""
    x, y = (u - OVAL[0]) / OVAL[2], (v - OVAL[1]) / OVAL[3]
    inward = (1 - np.sqrt(x * x + y * y)) * min(OVAL[2:])  # about the distance from the oval, in sides
    if feather == 0:
        return (inward >= 0).astype(np.float32)
    ramp = np.clip(inward / feather, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


class _ColorTransfer:
    """Gives crops the colours that frames have: mean and deviation, of each colour, over the upper half of the face.

    The mouth is left out, for it is what differs, and the face would flicker as it opens. What is measured is averaged over
    about a second, so that noise does not show.

    Source: Reinhard et al. 2001, in RGB.
    """

    MEMORY = 1 - 1 / 25  # a second of frames

    def __init__(self):
        self.seen = self.kept = 0

    def __call__(self, crop, frame, u, v):
        step = max(min(u.shape) // 64, 1)  # a mean does not need every pixel
        change = self._change(*(values[::step, ::step] for values in (crop, frame, u, v)))
        return crop if change is None else crop * change[0] + change[1]

    def _change(self, crop, frame, u, v):
        weights = (
            np.clip(np.sin(np.pi * np.clip(u, 0, 1)) * np.sin(np.pi * np.clip(v / 0.68, 0, 1)), 0, None)[..., None] ** 2
        )
        if weights.sum() < 1:
            return None
        moments = [
            (weights * values).sum((0, 1)) / weights.sum() for values in (crop, crop**2, frame, frame**2)
        ]  # (3,) each
        self.kept = self.MEMORY * self.kept + (1 - self.MEMORY)
        self.seen = self.MEMORY * self.seen + (1 - self.MEMORY) * np.stack(moments)
        own, own_squared, wanted, wanted_squared = self.seen / self.kept
        spread, wanted_spread = (
            np.sqrt(np.maximum(squared - mean**2, 1))
            for squared, mean in ((own_squared, own), (wanted_squared, wanted))
        )
        gain = np.clip(wanted_spread / spread, *LIKENESS)
        return np.float32(gain), np.float32(wanted - own * gain)
