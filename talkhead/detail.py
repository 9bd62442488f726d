"""Photo detail on generated motion: the photo itself moves as the generator's frames do, at its own resolution.

    photo, render of the identity, rendered frames ─ Photo, Detail ─▶ frames of the photo's size

A generator supplies the motion and what newly appears, the inside of the mouth; everything else is the photo, carried along. Motion is read as
keypoints of each frame against those of the render of the identity, and moved to the photo's own keypoints, so a render need not look like the photo.
Two smooth warps carry the pixels, one for what lies above the line between the lips and one for what lies below: shut lips can part, and parted
ones can shut over teeth. Pixels that do not move are the photo's, bit for bit.

Source: thesis §6.1 (resolution and likeness are left open there).
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from typing import NamedTuple

import cv2
import numpy as np
import torch

from talkhead import faces
from talkhead.errors import TalkheadError
from talkhead.keypoints import (
    BROWS,
    LOWER_INNER,
    LOWER_LIDS,
    LOWER_OUTER,
    MOVED_BY_SPEECH,
    NOT_MOVED_BY_SPEECH,
    OVAL,
    UPPER_INNER,
    UPPER_LIDS,
    UPPER_OUTER,
    VERTICES,
    places,
)

GRID = 64  # nodes a side at which a warp is worked out
SHUT = 0.015  # gap of the inner lips, in widths of the mouth, that is still read between shut lips
LOOKS = 6  # at the mouth of a photo, whose place must be exact
HEAD_STILL = 0.008  # eye distances: motion of eyes, brows, nose and outline below this is taken for noise of the reading, and twice this is all kept
LID_STILL = 0.12  # part of the eye's opening by which a lid may seem to move before it does
MOST_PRESSED = 0.5  # part by which the skin between lower lip and chin may be pressed together
SMOOTHING = 1e-6  # of the splines: neighbours that contradict each other do not tear the skin
LUMA = np.float32((0.299, 0.587, 0.114))
SHADE, CONTRAST = (
    0.4,
    0.65,
)  # the inside of a mouth beside the skin, and what is kept of a render's contrast: small generators draw it too black and too white
LIP = 7.5  # blurs of the photo over which lips pass into the inside of the mouth; less makes the mouth sharper than a film's
RINGS = (
    (1.15, 0.75),
    (1.35, 0.3),
    (1.6, 0.0),
)  # hair and neck: how far out from the face's middle, in outlines, and what part of its motion they follow

_UPPER_INNER, _LOWER_INNER, _UPPER_OUTER, _LOWER_OUTER = (
    places(*line) for line in (UPPER_INNER, LOWER_INNER, UPPER_OUTER, LOWER_OUTER)
)
_UPPER_LIP = places(*UPPER_OUTER[1:-1], *UPPER_INNER[1:-1])
_LOWER_LIP = places(*LOWER_OUTER[1:-1], *LOWER_INNER[1:-1])
_OVAL, _CHIN = places(*OVAL), places(*OVAL[12:25])
_BELOW_LIP = places(17, 18, 200, 199, 152)
_BROWS = places(*sum(BROWS, ()))
_LIDS = [(places(*upper), places(*lower)) for upper, lower in zip(UPPER_LIDS, LOWER_LIDS)]
_INNER_LIDS = np.concatenate([places(*lids[1:-1]) for lids in UPPER_LIDS + LOWER_LIDS])


class Photo:
    """A photo of a face, with its keypoints: what `Detail` moves.

    picture  uint8 (H, W, 3) RGB
    network  keypoints.KeypointNetwork
    quad     float (4, 2), pixels: where the aligned face lies in the picture, as `faces.quad` gives it; None: the picture is the aligned face
    neutral  whether a mouth that is open in the photo is brought to rest before it speaks
    points   float (K, 2), the keypoints in fractions of the quad, where they are known
    aligned  uint8 (S, S, 3), the aligned face as FFHQ cuts it at the size that an encoder wants, where the picture is a crop of another size
    raises   TalkheadError if the quad has no area, or the mouth lies outside the picture

    `points` float (K, 2) is where the keypoints lie in the picture, `start` where the mouth is at rest; both in fractions of the quad.
    """

    def __init__(self, picture, network, quad=None, neutral=True, points=None, aligned=None):
        self.picture, self.network, self.aligned = np.ascontiguousarray(picture), network, aligned
        self.frame = Frame(len(picture), len(picture[0]), quad)
        self.points = (
            locate(network, [self.picture], [self.frame])[0] if points is None else np.asarray(points, np.float64)
        )
        self.start = network.neutral(self.points) if neutral else self.points
        self.blur = _blur(self.picture, self.frame)

    def face(self, size):
        """The aligned face at rest, as an encoder is to see it: uint8 (S, S, 3), of this side where it has to be cut out of the picture."""
        if self.frame.quad is not None:
            face = faces.crop(self.picture, self.frame.quad, size)
        else:
            face = self.picture if self.aligned is None else self.aligned
        return (
            face
            if np.allclose(self.start, self.points)
            else draw(face, Frame(*face.shape[:2]), self.points, self.start)
        )


class Detail:
    """The photo in the pose of a generator's frame: `Detail(photo, rest)(frame)`.

    photo    Photo
    rest     uint8 (R, R, 3), the generator's render of the identity, in which the face is at rest
    network  what reads the frames; None: what read the photo
    head     whether head and brows follow the render; speech moves neither, and what is read of them then is noise

    A call takes uint8 (R, R, 3), and the part, 0 to 1, by which a blink shuts the lids at least, which a small generator hardly shows. It returns uint8
    (H, W, 3), of the photo's size. Nothing is kept from one frame to the next. `stream` does the same for an iterator of frames and one of parts, and is faster
    with a larger `batch`.
    """

    def __init__(self, photo, rest, network=None, head=False):
        self.photo, self.network, self.head = photo, network or photo.network, head
        self.rest = self.network.read(rest[None])[0].astype(np.float64)
        self.skins = _skin(rest, self.rest), _skin(photo.frame.aligned(photo.picture, 128), photo.points)

    def __call__(self, frame, blink=0.0):
        return next(self.stream([frame], [blink]))

    def stream(self, frames, blinks=repeat(0.0), batch=1):
        return follow(self.network, zip(frames, blinks), self._draw, batch)

    def _draw(self, frame, points, blink):
        target, lids = transfer(self.photo.start, self.rest, points, self.head)
        inside, lids = Inside(frame, points, *self.skins), np.maximum(lids, blink)
        return draw(self.photo.picture, self.photo.frame, self.photo.points, target, lids, inside, self.photo.blur)


def locate(network, pictures, places):
    """Keypoints of still faces, read with care.

    network   keypoints.KeypointNetwork
    pictures  sequence of uint8 (H, W, 3)
    places    sequence of Frame: where the face is in each
    returns   float (N, K, 2), fractions of the quads
    raises    TalkheadError if a mouth lies outside its picture
    """
    side = int(np.clip(places[0].scale, 128, 512))
    read = network.read(
        np.stack([place.aligned(picture, side) for picture, place in zip(pictures, places)]), LOOKS
    ).astype(np.float64)
    for points, place in zip(read, places):
        lips = place.pixels(points[_UPPER_OUTER])
        if (lips < -1).any() or (lips > (place.width, place.height)).any():
            raise TalkheadError("the mouth lies outside the picture; choose a photo that shows the whole face")
    return read


def follow(network, items, draw, batch=1):
    """Frames drawn after the keypoints of others, in order.

    network  keypoints.KeypointNetwork
    items    iterator of (frame uint8 (R, R, 3), ...), read no further than `batch` ahead
    draw     function of a frame, its keypoints float (K, 2) and what else an item holds; called on as many threads as torch uses
    batch    frames whose keypoints are read together
    yields   what `draw` returns
    """
    items = iter(items)
    with ThreadPoolExecutor(min(batch, torch.get_num_threads())) as pool:
        while chunk := list(islice(items, batch)):
            frames, *others = zip(*chunk)
            yield from pool.map(draw, frames, network.read(np.stack(frames)).astype(np.float64), *others)


class Inside(NamedTuple):
    """Where the inside of the mouth is taken from: a render and its keypoints, and the skin around either mouth, which tells of the light."""

    frame: np.ndarray  # uint8 (R, R, 3)
    points: np.ndarray  # float (K, 2), fractions
    own_skin: np.ndarray  # float32 (3,), of the render of the identity
    skin: np.ndarray  # float32 (3,), of the photo

    def coloured(self, picture):
        """A part of the render in the photo's light: its brightness, with less contrast, and the skin's hue, redder where it is dark. float32 (h, w, 3)"""
        skin, own = (np.maximum(colour @ LUMA, 1) for colour in (self.skin, self.own_skin))
        bright = cv2.transform(picture, LUMA[None]) * np.clip(skin / own, 0.4, 2.0)
        bright = SHADE * skin + CONTRAST * (bright - SHADE * skin)
        hue = 1.6 - 1.1 * np.clip(bright / skin, 0, 1)[..., None]
        return bright[..., None] * (self.skin / skin) ** hue


class Frame:
    """Where an aligned face lies in a picture, and the way between fractions of the quad and pixels of the picture."""

    def __init__(self, height, width, quad=None):
        self.height, self.width, self.quad = height, width, quad
        corners = faces.whole_quad(np.empty((height, width))) if quad is None else np.asarray(quad, np.float64)
        self.corner = corners[0]
        self.matrix = np.stack([corners[3] - corners[0], corners[1] - corners[0]], axis=1)  # fractions -> pixels
        self.scale = float(np.sqrt(abs(np.linalg.det(self.matrix))))  # pixels a side
        if self.scale < 2:
            raise TalkheadError("detail: the quad has no area; pass the quad of a face in this photo")
        self.inverse = np.linalg.inv(self.matrix)

    def pixels(self, points):
        """Fractions (..., 2) -> pixels."""
        return points @ self.matrix.T + self.corner

    def aligned(self, picture, size):
        """The face cut out quickly, to be measured: uint8 (size, size, 3)."""
        factor = self.scale / size
        small = (
            picture
            if factor < 1.5
            else cv2.resize(picture, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
        )
        shrink = np.array([small.shape[1] / self.width, small.shape[0] / self.height])
        matrix = self.matrix * shrink[:, None]
        corner = (self.corner + 0.5) * shrink - 0.5
        whole = np.column_stack([matrix / size, corner + matrix @ np.full(2, 0.5 / size)])
        return cv2.warpAffine(
            small, whole, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
        )


def native_side(quad, most=1024):
    """The side of a crop that neither enlarges nor loses pixels of the photo: the quad's, even, and at most `most`."""
    return int(min(max(2 * round(np.linalg.norm(quad[3] - quad[0]) / 2), 2), most))


def transfer(start, rest, points, head=False):
    """Where the photo's keypoints go when a render's go from `rest` to `points`.

    start, rest, points  float (K, 2), fractions of the side
    head                 whether head and brows follow the render
    returns              (K, 2), and the parts (2,) by which the lids of either eye are shut: 0 as in the photo, 1 shut

    Lips, jaw and cheeks follow the render; the gap between the lips becomes the render's own, so that lips that are shut there shut here, whatever
    the photo's do. All other parts move with the head as a whole, and only if it may and moves by more than the reading's noise. Lids shut by the part
    that the render's do.
    """
    eye = np.linalg.norm(start[places(33)] - start[places(263)])
    moved = points - rest
    linear, shift = _affine(rest[NOT_MOVED_BY_SPEECH], points[NOT_MOVED_BY_SPEECH])
    turned = rest @ linear.T + shift - rest
    turned *= _ramp(np.abs(turned[NOT_MOVED_BY_SPEECH]).mean() / eye, HEAD_STILL, 2 * HEAD_STILL)
    own, target = _along(moved - turned), start + turned * head
    if head:
        size = np.linalg.norm(own[_BROWS].reshape(2, -1, 2).mean(1), axis=-1)
        target[_BROWS] += (
            own[_BROWS] * _ramp(np.repeat(size, len(_BROWS) // 2) / eye, 2 * HEAD_STILL, 4 * HEAD_STILL)[:, None]
        )
    target[MOVED_BY_SPEECH] += own[MOVED_BY_SPEECH]
    _set_gap(target, points)
    _push_chin(target, start)
    return target, _shut_lids(rest, points)


def _along(moved):
    """Displacements smoothed along the lines of lips and jaw, as flesh moves."""
    smooth = moved.copy()
    for line in (_UPPER_OUTER, _LOWER_OUTER, _UPPER_INNER, _LOWER_INNER, _CHIN):
        smooth[line[1:-1]] = (moved[line[:-2]] + 2 * moved[line[1:-1]] + moved[line[2:]]) / 4
    return smooth


def _set_gap(target, points):
    """Make the gap between the inner lips what it is in a render, moving both lips alike; changes `target`."""
    down = target[places(152)] - target[places(168)]
    down = down / np.linalg.norm(down)
    wanted = np.maximum((points[_LOWER_INNER] - points[_UPPER_INNER]) @ down, 0)
    change = (wanted - (target[_LOWER_INNER] - target[_UPPER_INNER]) @ down)[1:-1, None] / 2 * down
    for upper, lower in ((_UPPER_INNER, _LOWER_INNER), (_UPPER_OUTER, _LOWER_OUTER)):
        target[upper[1:-1]] -= change
        target[lower[1:-1]] += change


def _push_chin(target, start):
    """Push the chin down where the lower lip would come too near to it, or pass it and fold the skin; changes `target`."""
    down = target[places(152)] - target[places(168)]
    down = down / np.linalg.norm(down)
    for upper, lower in zip(_BELOW_LIP, _BELOW_LIP[1:]):
        near = (1 - MOST_PRESSED) * np.linalg.norm(start[lower] - start[upper]) - (target[lower] - target[upper]) @ down
        target[lower] += max(near, 0) * down


def _shut_lids(rest, points):
    openings = np.array([[_opening(face, *lids) for lids in _LIDS] for face in (rest, points)])
    shut = 1 - openings[1] / np.maximum(openings[0], 1e-6)
    both = np.clip(shut.mean(), 0, 1)  # eyes blink together, and two readings are better than one
    return np.repeat(_ramp(both, LID_STILL, 2 * LID_STILL) * both, 2)


def _opening(face, upper, lower):
    return np.linalg.norm(face[upper[1:-1]] - face[lower[1:-1]], axis=-1).mean()


def _affine(source, target):
    """Least squares: the linear map (2, 2) and shift (2,) that bring source nearest to target."""
    ones = np.column_stack([source, np.ones(len(source))])
    solution = np.linalg.lstsq(ones, target, rcond=None)[0]
    return solution[:2].T, solution[2]


def _ramp(x, low, high):
    """0 below `low`, 1 above `high`, smooth between."""
    x = np.clip((x - low) / (high - low), 0, 1)
    return x * x * (3 - 2 * x)


# ---------------------------------------------------------------------------------------------------------------
# Warps


def _border():
    line = np.linspace(0, 1, 7)
    square = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    return square[((square == 0) | (square == 1)).any(1)]


_BORDER = _border()
_NODES = np.stack(np.meshgrid(*[(np.arange(GRID) + 0.5) / GRID] * 2), -1).reshape(-1, 2).astype(np.float32)
_RIGID = np.setdiff1d(np.arange(len(VERTICES)), _INNER_LIDS)  # lids are drawn by themselves
_STEADY = np.arange(
    len(_RIGID), len(_RIGID) + len(RINGS) * len(OVAL) + len(_BORDER)
)  # the points of a spline that follow those
_LINEAR = _STEADY[-1] + 1 + np.arange(3)  # and of its linear part
_LAYERS = [
    np.append(np.flatnonzero(~np.isin(_RIGID, torn)), _STEADY) for torn in (_LOWER_LIP, _UPPER_LIP)
]  # above the line between the lips, and below


def _kernel(at, points):
    square = (at[:, :1] - points[:, 0]) ** 2 + (at[:, 1:] - points[:, 1]) ** 2
    return square * np.sqrt(square)


def warp(source, target):
    """Two smooth warps that bring keypoints from `source` to `target`: for what lies above the line between the lips, and below.

    source, target  float (K, 2), fractions of the side
    returns         float32 (2, GRID, GRID, 2): for each node, how far from it lies what comes there, in fractions; zero at the border

    Source: splines through scattered points with the kernel r³ (Duchon 1977), at the keypoints and at rings around the outline that follow it less and less.
    """
    outline, middle = target[_OVAL], target[_OVAL].mean(0)
    moved = source - target
    rings = np.concatenate([middle + (outline - middle) * far for far, _ in RINGS])
    points = np.concatenate([target[_RIGID], rings, _BORDER])
    values = np.concatenate([moved[_RIGID], *[part * moved[_OVAL] for _, part in RINGS], np.zeros_like(_BORDER)])
    limit = _limit(target, head=moved[NOT_MOVED_BY_SPEECH].any()).astype(np.float32)
    nodes = np.flatnonzero(limit)
    among = _kernel(points, points)
    weights = np.zeros((len(points) + 3, 2, 2), np.float32)
    for layer, keep in enumerate(_LAYERS):
        weights[np.append(keep, _LINEAR), layer] = _spline(points[keep], among[np.ix_(keep, keep)], values[keep])
    terms = np.column_stack(
        [_kernel(_NODES[nodes], points.astype(np.float32)), np.ones(len(nodes), np.float32), _NODES[nodes]]
    )
    fields = np.zeros((GRID * GRID, 2, 2), np.float32)
    fields[nodes] = cv2.gemm(terms, weights.reshape(-1, 4), 1, None, 0).reshape(-1, 2, 2) * limit[nodes, None, None]
    return fields.transpose(1, 0, 2).reshape(2, GRID, GRID, 2)


def _limit(points, head):
    """What part of a warp is left at each node: all of it on the face, nothing away from it; above the nose only if the head moves. (GRID²,)"""
    middle = points[_OVAL].mean(0)
    outline, nodes = points[_OVAL] - middle, _NODES - middle
    order = np.argsort(np.arctan2(outline[:, 1], outline[:, 0]))
    radius = np.interp(
        np.arctan2(nodes[:, 1], nodes[:, 0]),
        np.arctan2(outline[:, 1], outline[:, 0])[order],
        np.linalg.norm(outline, axis=1)[order],
        period=2 * np.pi,
    )
    far = np.linalg.norm(nodes, axis=1) / radius
    left = (1 - _ramp(far, RINGS[1][0], RINGS[2][0])) * _ramp(np.minimum(_NODES, 1 - _NODES).min(1), 0.01, 0.04)
    if head:
        return left
    eyes, nose, chin = points[places(33, 263)].mean(0), points[places(4)], points[places(152)]
    down = (chin - eyes) / ((chin - eyes) @ (chin - eyes))
    return left * _ramp((_NODES - eyes) @ down, 0.1, (nose - eyes) @ down)


def _spline(points, kernel, values):
    """What a spline through points weighs its kernel at each of them by, and its linear part: (n + 3, 2)."""
    count = len(points)
    ones = np.column_stack([np.ones(count), points])
    matrix = np.zeros((count + 3, count + 3))
    matrix[:count, :count] = kernel + SMOOTHING * np.eye(count)
    matrix[:count, count:], matrix[count:, :count] = ones, ones.T
    return cv2.solve(matrix, np.concatenate([values, np.zeros((3, 2))]))[
        1
    ]  # threads of numpy's own would wait for torch's, many times a frame


# ---------------------------------------------------------------------------------------------------------------
# Drawing


def draw(photo, place, source, target, lids=(0, 0), inside=None, blur=0.5):
    """The photo with its keypoints moved.

    photo           uint8 (H, W, 3)
    place           Frame of the face in it
    source, target  float (K, 2): where the keypoints are and where they come to lie, fractions of the quad
    lids            parts by which the eyes are shut
    inside          Inside, or None: lips that part show what the photo has between them
    blur            how much the photo is blurred, std in pixels
    returns         uint8 (H, W, 3)
    """
    fields = warp(source, target)
    moved = np.abs(fields).max((0, 3)) * place.scale > 1 / 64
    moved |= np.max(lids) > 0.01  # or the eyes would lie outside
    if not moved.any():
        return photo.copy()
    rows, columns = _box(moved, place)
    across, down = (np.arange(part.start, part.stop, dtype=np.float32) for part in (columns, rows))
    mouth = Lines(place.pixels(target))
    at = _sources(fields, place, across, down, mouth)
    part = cv2.remap(photo, *at, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    for eye, shut in zip(_LIDS, lids):
        if shut > 0.01:
            _shut_eye(part, photo, at, place.pixels(target), eye, shut, across, down, blur)
    if inside is not None:
        shift = place.matrix @ (source[NOT_MOVED_BY_SPEECH] - target[NOT_MOVED_BY_SPEECH]).mean(0)
        _fill_mouth(part, photo, Lines(place.pixels(source)), mouth, shift, across, down, inside, blur, place.scale)
    result = photo.copy()
    result[rows, columns] = part
    return result


def _box(moved, place):
    """The rows and columns of the picture that hold the nodes that move: bool (GRID, GRID) -> two slices."""
    rows, columns = np.flatnonzero(moved.any(1)), np.flatnonzero(moved.any(0))
    low = np.array([columns[0] - 1, rows[0] - 1]) / GRID
    high = np.array([columns[-1] + 2, rows[-1] + 2]) / GRID
    corners = place.pixels(np.array([(x, y) for x in (low[0], high[0]) for y in (low[1], high[1])]))
    start = np.clip(np.floor(corners.min(0)).astype(int), 0, (place.width - 1, place.height - 1))
    stop = np.clip(np.ceil(corners.max(0)).astype(int) + 1, start + 1, (place.width, place.height))
    return slice(start[1], stop[1]), slice(start[0], stop[0])


def _sources(fields, place, across, down, mouth):
    """Where each pixel of a box comes from: x and y, float32 (h, w), pixels of the photo."""
    matrix = place.inverse * GRID
    shift = matrix @ ((across[0], down[0]) - place.corner) - 0.5
    nodes = np.concatenate(
        list(fields @ place.matrix.T.astype(np.float32)), -1
    )  # four channels take less time than two
    moved = cv2.warpAffine(
        nodes, np.column_stack([matrix, shift]), (len(across), len(down)), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    *at, below_x, below_y = cv2.split(moved)
    seam, share, low = _seam(mouth, across, down)
    for axis, below in zip(at, (below_x, below_y)):
        axis[low] = below[low]
        axis[seam] += share * (below[seam] - axis[seam])
    return at[0] + across, at[1] + down[:, None]


def _seam(mouth, across, down):
    """The line between the lips, which grows soft beside the mouth: rows of a box that it crosses, the part of each of their pixels that lies below it,
    float32 (n, w), and which rows lie below it as a whole, bool (h,)."""
    x, y = mouth.of_pixels(across[[0, -1]], down[:, None])
    reach = np.abs(mouth.middle).max() + 0.5 + 0.25 * mouth.half * max(np.abs(x).max() - 1, 0)
    low = (y > reach).all(1)
    crossed = np.flatnonzero(~low & ~(y < -reach).all(1))
    seam = slice(crossed[0], crossed[-1] + 1) if len(crossed) else slice(0)
    x, y = mouth.local(across, down[seam])
    soft = 1 + 0.5 * mouth.half * np.clip(np.abs(x) - 1, 0, None)
    return seam, np.clip(0.5 + (y - mouth.look(mouth.middle, x)) / soft, 0, 1), low


class Lines:
    """The lines of the inner lips, in the mouth's own coordinates: x is -1 and 1 at the corners, y is pixels downwards.

    points  float (K, 2), pixels
    `upper` and `lower` bound what is seen of the mouth's inside; the gap that is read between shut lips is taken off.
    """

    KNOTS = np.linspace(-1, 1, 257)

    def __init__(self, points):
        corners = points[_UPPER_INNER[[0, -1]]]
        self.centre, along = corners.mean(0), corners[1] - corners[0]
        self.half = max(float(np.linalg.norm(along)) / 2, 1e-3)
        self.right = along / (2 * self.half)
        self.down = np.array((-self.right[1], self.right[0]))
        upper, lower = (self._line(points[line] - self.centre) for line in (_UPPER_INNER, _LOWER_INNER))
        self.middle = (upper + lower) / 2
        gap = np.maximum(lower - upper - 2 * SHUT * self.half * (1 - self.KNOTS**2), 0)
        self.upper, self.lower = self.middle - gap / 2, self.middle + gap / 2

    def _line(self, points):
        x = np.maximum.accumulate(points @ self.right / self.half)
        return np.interp(self.KNOTS, x, points @ self.down)

    def local(self, across, down):
        """Pixels of a box in the mouth's coordinates: x and y, float32 (h, w)."""
        return self.of_pixels(*np.meshgrid(across, down))

    def of_pixels(self, px, py):
        """x and y of pixels, each float32 (h, w)."""
        px, py = px - np.float32(self.centre[0]), py - np.float32(self.centre[1])
        return (
            px * np.float32(self.right[0] / self.half) + py * np.float32(self.right[1] / self.half),
            px * np.float32(self.down[0]) + py * np.float32(self.down[1]),
        )

    def look(self, line, x):
        """A line's height at each x."""
        index = np.clip((x + 1) * np.float32(len(self.KNOTS) // 2) + np.float32(0.5), 0, len(self.KNOTS) - 1).astype(
            np.int16
        )
        return line.astype(np.float32)[index]

    def pixels(self, x, y):
        """Back from the mouth's coordinates: float32 (h, w), (h, w)."""
        x = x * self.half
        return (
            (self.centre[0] + x * self.right[0] + y * self.down[0]).astype(np.float32),
            (self.centre[1] + x * self.right[1] + y * self.down[1]).astype(np.float32),
        )

    def cover(self, x, y, soft):
        """What part of each pixel shows the inside of the mouth: float32 (h, w), 0 to 1."""
        upper, lower = self.look(self.upper, x), self.look(self.lower, x)
        inside = np.clip(0.5 + (y - upper) / soft, 0, 1) * np.clip(0.5 + (lower - y) / soft, 0, 1)
        return inside * np.clip((lower - upper) / soft, 0, 1) * (np.abs(x) < 1)


def _fill_mouth(part, photo, before, mouth, shift, across, down, inside, blur, scale):
    """Draw the inside of the mouth into a box of the result; changes `part`.

    before, mouth  Lines of the mouth in the photo and in the result
    shift          how far the skull, and teeth with it, lies in the photo from where it lies in the result, pixels
    """
    soft = max(1.0, LIP * blur)
    reach = (
        np.abs(mouth.right) * mouth.half
        + np.abs(mouth.down) * (np.abs(np.stack([mouth.upper, mouth.lower])).max() + soft)
        + 1
    )
    low = np.floor(mouth.centre - reach - (across[0], down[0])).astype(int)
    high = np.ceil(mouth.centre + reach - (across[0], down[0])).astype(int) + 1
    box = slice(max(low[1], 0), max(high[1], 0)), slice(max(low[0], 0), max(high[0], 0))
    x, y = mouth.local(across[box[1]], down[box[0]])
    cover = mouth.cover(x, y, soft)[..., None]
    if not cover.any():
        return
    drawn = inside.coloured(_rendered(mouth, x, y, inside.frame, inside.points))
    drawn = _sharpened(drawn, 0.6 * scale / len(inside.frame), blur)
    px, py = (axis + np.float32(offset) for axis, offset in zip(mouth.pixels(x, y), shift))
    own = before.cover(*before.of_pixels(px, py), max(3.0, 4 * blur))[..., None]
    if own.max() > 0.5:  # teeth and tongue that the photo shows, which stay with the skull
        seen = cv2.remap(photo, px, py, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        drawn += own * (seen - drawn)
    window = part[box]
    part[box] = np.clip(window + cover * (drawn - window) + 0.5, 0, 255)


def _rendered(mouth, x, y, frame, points):
    """The inside of a render's mouth, brought to the place of another: float32 (h, w, 3)."""
    source = Lines(points * len(frame) - 0.5)
    upper, lower = mouth.look(mouth.upper, x), mouth.look(mouth.lower, x)
    depth = np.clip((y - upper) / np.maximum(lower - upper, 1e-3), 0, 1)
    top, bottom = source.look(source.upper, x), source.look(source.lower, x)
    at = source.pixels(np.clip(x, -1, 1), top + depth * (bottom - top))
    return cv2.remap(frame, *at, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT).astype(np.float32)


def _sharpened(picture, blur, wanted):
    """A picture that is blurred by `blur` pixels (std), made about as sharp as one that is blurred by `wanted`."""
    amount = min(blur / max(wanted, 0.5) - 1, 2.0)
    return picture if amount <= 0 else picture + amount * (picture - cv2.GaussianBlur(picture, (0, 0), max(blur, 0.5)))


def _shut_eye(part, photo, at, points, eye, shut, across, down, blur):
    """Draw an upper lid down: its skin is stretched from the fold to the lashes; changes `part`."""
    upper, lower = points[eye[0]], points[eye[1]]
    along = upper[-1] - upper[0]
    length = np.linalg.norm(along)
    right = along / length
    below = np.array((-right[1], right[0]))
    reach = 0.7 * length
    low = np.floor((upper[0] + upper[-1]) / 2 - reach - (across[0], down[0])).astype(int).clip(0)
    high = np.ceil((upper[0] + upper[-1]) / 2 + reach - (across[0], down[0])).astype(int).clip(0)
    box = slice(low[1], high[1]), slice(low[0], high[0])
    px, py = across[box[1]] - upper[0][0], (down[box[0]] - upper[0][1])[:, None]
    x, y = (px * right[0] + py * right[1]) / length, px * below[0] + py * below[1]

    def line(lid):
        return np.interp(x, (lid - upper[0]) @ right / length, (lid - upper[0]) @ below)

    top, bottom = line(upper), line(lower)
    lid = top + 0.95 * shut * np.maximum(bottom - top, 0)
    fold = top - 0.35 * length * np.clip(1.3 - np.abs(2 * x - 1), 0.1, 1)
    source = np.where(y < fold, y, fold + (y - fold) * (top - fold) / np.maximum(lid - fold, 1e-3))
    shifted = [axis[box] + ((source - y) * way).astype(np.float32) for axis, way in zip(at, below)]
    skin = cv2.remap(photo, *shifted, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT).astype(np.float32)
    soft = max(1.0, 2 * blur)
    cover = np.clip(0.5 + (lid - y) / soft, 0, 1) * ((x > -0.1) & (x < 1.1))
    window = part[box]
    part[box] = np.clip(window + cover[..., None] * (skin - window) + 0.5, 0, 255)


def _blur(photo, frame):
    """By how many pixels (std) the face in a photo is blurred, judged by how much a little more blur takes away.

    Of a picture whose power falls with the square of frequency, the variance of the Laplacian falls with the fourth power of the blur.
    """
    middle = frame.pixels(np.array([(0.25, 0.3), (0.25, 0.9), (0.75, 0.3), (0.75, 0.9)]))
    start = np.clip(middle.min(0), 0, None).astype(int)
    stop = np.clip(middle.max(0), 0, (frame.width, frame.height)).astype(int)
    grey = cv2.cvtColor(photo[start[1] : stop[1], start[0] : stop[0]], cv2.COLOR_RGB2GRAY).astype(np.float32)
    if min(grey.shape) < 8:
        return 0.5
    before, after = (
        cv2.Laplacian(picture, cv2.CV_32F).var() for picture in (grey, cv2.GaussianBlur(grey, (0, 0), 1.0))
    )
    ratio = np.sqrt(after / max(before, 1e-6))
    return float(np.clip(np.sqrt(ratio / max(1 - ratio, 1e-3)), 0.3, 4.0))


def _skin(picture, points):
    """The colour of the skin around the mouth: float32 (3,)."""
    spots = points[places(205, 425, 50, 280, 164, 200, 202, 422)] * len(picture) - 0.5
    blurred = cv2.GaussianBlur(picture, (0, 0), len(picture) / 64)
    columns, rows = np.clip(np.rint(spots).astype(int), 0, len(picture) - 1).T
    return np.median(blurred[rows, columns].astype(np.float32), axis=0)
