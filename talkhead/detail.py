"""Photo detail on generated motion: the photo is warped by the motion of the generator's frames, at its own resolution.

    photo, render of the identity, rendered frames ─ Photo, Detail ─▶ frames of the photo's size

The generator supplies the motion and the inside of the mouth; all other pixels are the photo's. Motion is the
difference between the keypoints of a frame and those of the render of the identity, added to the photo's keypoints, so
that a render need not resemble the photo. There are two smooth warps, one above the line between the lips and one
below: closed lips can part, and open lips can close over teeth. Pixels that do not move stay bit for bit the same.

Source: thesis §6.1 (which leaves resolution and likeness open).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from typing import Any, NamedTuple

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
    KeypointNetwork,
    places,
)

GRID = 64  # nodes per side of a warp
CLOSED_GAP = 0.015  # gap between the inner keypoints of closed lips, in widths of the mouth
MOUTH_READINGS = 6  # readings of a photo's mouth that are averaged, because its keypoints must be exact
# In eye distances: motion of eyes, brows, nose and outline below this is keypoint noise; from twice this all is kept.
HEAD_NOISE = 0.008
LID_NOISE = 0.12  # closing of the lids, as a share of the eye's opening; likewise
MAX_CHIN_COMPRESSION = 0.5  # of the skin between lower lip and chin
SMOOTHING = 1e-6  # of the splines, against folds where neighbouring keypoints contradict each other
LUMA = np.array((0.299, 0.587, 0.114), np.float32)
# Top, left, bottom and right of the mouth of an aligned face, wide open too: fractions of the side.
MOUTH_BOX = 0.55, 0.25, 0.95, 0.75
# Brightness of the inside of the mouth relative to the skin, and the share kept of a render's contrast: small
# generators exaggerate it.
SHADE, CONTRAST = 0.4, 0.65
LIP_EDGE = 7.5  # width of the edge between lips and mouth, in blurs of the photo; less is sharper than in a film
# Rings around the face, for hair and neck: distance from its centre relative to the outline, and share of its motion.
RINGS = ((1.15, 0.75), (1.35, 0.3), (1.6, 0.0))

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
    """Photo of a face with its keypoints, to be animated by `Detail`.

    picture  uint8 (H, W, 3) RGB
    network  keypoints.KeypointNetwork
    quad     float (4, 2), pixels, of the aligned face in the photo, as in `faces.quad`; None: the photo is the aligned
             face
    neutral  close a mouth that is open in the photo before the animation
    points   float (K, 2), keypoints in fractions of the quad; None reads them
    aligned  uint8 (S, S, 3), the aligned face at the encoder's size, if the photo is a crop of another size
    raises   TalkheadError if the quad has no area, or the mouth lies outside the photo

    `points` and `start`, float (K, 2) in fractions of the quad, are the keypoints in the photo and with the mouth at
    rest.
    """

    def __init__(
        self,
        picture: np.ndarray,
        network: KeypointNetwork,
        quad: np.ndarray | None = None,
        neutral: bool = True,
        points: np.ndarray | None = None,
        aligned: np.ndarray | None = None,
    ) -> None:
        self.picture, self.network, self.aligned = np.ascontiguousarray(picture), network, aligned
        self.frame = Frame(len(picture), len(picture[0]), quad)
        self.points = (
            locate(network, [self.picture], [self.frame])[0] if points is None else np.asarray(points, np.float64)
        )
        self.start = network.neutral(self.points) if neutral else self.points
        self.blur = _blur(self.picture, self.frame)

    def face(self, size: int) -> np.ndarray:
        """Aligned face at rest for an encoder: uint8 (S, S, 3); `size` is the side if it is cut out of the photo."""
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
    """Animate a photo by a generator's frames: `Detail(photo, rest)(frame)`.

    photo    Photo
    rest     uint8 (R, R, 3), the generator's render of the identity, with the face at rest
    network  keypoint network for the frames; None is the photo's
    head     move head and brows with the render; without, their keypoint motion is ignored as noise, for speech alone

    A call takes a frame, uint8 (R, R, 3), and the closing of the lids by a blink, 0 to 1, as a minimum, because small
    generators hardly render it. It returns uint8 (H, W, 3), of the photo's size. No state is kept between frames.
    `stream` does the same for an iterator of frames and one of blinks, faster with a larger `batch`.
    """

    def __init__(
        self, photo: Photo, rest: np.ndarray, network: KeypointNetwork | None = None, head: bool = False
    ) -> None:
        self.photo, self.network, self.head = photo, network or photo.network, head
        self.rest = self.network.read(rest[None])[0].astype(np.float64)
        self.skins = _skin(rest, self.rest), _skin(photo.frame.aligned(photo.picture, 128), photo.points)

    def __call__(self, frame: np.ndarray, blink: float = 0.0) -> np.ndarray:
        return next(self.stream([frame], [blink]))

    def stream(
        self, frames: Iterable[np.ndarray], blinks: Iterable[float] = repeat(0.0), batch: int = 1
    ) -> Iterator[np.ndarray]:
        return follow(self.network, zip(frames, blinks), self._draw, batch)

    def _draw(self, frame, points, blink):
        target, lids = transfer(self.photo.start, self.rest, points, self.head)
        inside, lids = Inside(frame, points, *self.skins), np.maximum(lids, blink)
        return draw(self.photo.picture, self.photo.frame, self.photo.points, target, lids, inside, self.photo.blur)


def locate(network: KeypointNetwork, pictures: Sequence[np.ndarray], places: "Sequence[Frame]") -> np.ndarray:
    """Read the keypoints of still faces, averaged over several readings.

    network   keypoints.KeypointNetwork
    pictures  sequence of uint8 (H, W, 3)
    places    sequence of Frame, of the face in each image
    returns   float (N, K, 2), fractions of the quads
    raises    TalkheadError if a mouth lies outside its image
    """
    side = int(np.clip(places[0].scale, 128, 512))
    read = network.read(
        np.stack([place.aligned(picture, side) for picture, place in zip(pictures, places)]), MOUTH_READINGS
    ).astype(np.float64)
    for points, place in zip(read, places):
        lips = place.pixels(points[_UPPER_OUTER])
        if (lips < -1).any() or (lips > (place.width, place.height)).any():
            raise TalkheadError("photo: the mouth lies outside; choose a photo that shows the whole face")
    return read


def follow(network: KeypointNetwork, items: Iterable[tuple], draw: Callable[..., Any], batch: int = 1) -> Iterator[Any]:
    """Draw frames by the keypoints of others, in order.

    network  keypoints.KeypointNetwork
    items    iterator of (frame uint8 (R, R, 3), ...), read at most `batch` ahead
    draw     function of a frame, its keypoints float (K, 2) and the item's further values; called on as many threads as
             torch uses
    batch    frames whose keypoints are read together
    yields   results of `draw`
    """
    items = iter(items)
    with ThreadPoolExecutor(min(batch, torch.get_num_threads())) as pool:
        while chunk := list(islice(items, batch)):
            frames, *others = zip(*chunk)
            yield from pool.map(draw, frames, network.read(np.stack(frames)).astype(np.float64), *others)


class Inside(NamedTuple):
    """Source of the inside of the mouth: a render, its keypoints, and the skin colours around both mouths."""

    frame: np.ndarray  # uint8 (R, R, 3)
    points: np.ndarray  # float (K, 2), fractions
    own_skin: np.ndarray  # float32 (3,), of the render of the identity
    skin: np.ndarray  # float32 (3,), of the photo

    def coloured(self, image: np.ndarray) -> np.ndarray:
        """Colours of a part of the render adapted to the photo's lighting: float32 (h, w, 3).

        Brightness is scaled to the photo's skin, with less contrast; the hue is the skin's, redder where dark.
        """
        skin, own = (np.maximum(colour @ LUMA, 1) for colour in (self.skin, self.own_skin))
        bright = cv2.transform(image, LUMA[None]) * np.clip(skin / own, 0.4, 2.0)
        bright = SHADE * skin + CONTRAST * (bright - SHADE * skin)
        hue = 1.6 - 1.1 * np.clip(bright / skin, 0, 1)[..., None]
        return bright[..., None] * (self.skin / skin) ** hue


class Frame:
    """Position of an aligned face in an image: the transform between fractions of the quad and pixels."""

    def __init__(self, height: int, width: int, quad: np.ndarray | None = None) -> None:
        self.height, self.width, self.quad = height, width, quad
        corners = faces.whole_quad(np.empty((height, width))) if quad is None else np.asarray(quad, np.float64)
        self.corner = corners[0]
        self.matrix = np.stack([corners[3] - corners[0], corners[1] - corners[0]], axis=1)  # fractions -> pixels
        self.scale = float(np.sqrt(abs(np.linalg.det(self.matrix))))  # pixels a side
        if self.scale < 2:
            raise TalkheadError("detail: the quad has no area; pass the quad of a face in this photo")
        self.inverse = np.linalg.inv(self.matrix)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Pixels of fractions (..., 2) of the quad."""
        return points @ self.matrix.T + self.corner

    def aligned(self, image: np.ndarray, size: int) -> np.ndarray:
        """Aligned face by a fast crop, for keypoints: uint8 (size, size, 3)."""
        factor = self.scale / size
        small = (
            image
            if factor < 1.5
            else cv2.resize(image, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
        )
        shrink = np.array([small.shape[1] / self.width, small.shape[0] / self.height])
        matrix = self.matrix * shrink[:, None]
        corner = (self.corner + 0.5) * shrink - 0.5
        whole = np.column_stack([matrix / size, corner + matrix @ np.full(2, 0.5 / size)])
        return cv2.warpAffine(
            small, whole, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
        )


def native_side(quad: np.ndarray, most: int = 1024) -> int:
    """Side of a crop at the photo's own resolution: the quad's, even, and at most `most`."""
    return int(min(max(2 * round(np.linalg.norm(quad[3] - quad[0]) / 2), 2), most))


def transfer(
    start: np.ndarray, rest: np.ndarray, points: np.ndarray, head: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Transfer a render's keypoint motion from `rest` to `points` to the photo's keypoints `start`.

    start, rest, points  float (K, 2), fractions of the side
    head                 move head and brows with the render
    returns              target keypoints (K, 2), and the closing of the lids of either eye (2,): 0 as in the photo, 1
                         closed

    Lips, jaw and cheeks follow the render; the gap between the lips becomes the render's, so that closed lips close in
    the photo too. All other parts move with the head, if `head` is set and the motion exceeds the keypoint noise. Lids
    close by the same share as the render's.
    """
    eye = np.linalg.norm(start[places(33)] - start[places(263)])
    moved = points - rest
    linear, shift = _affine(rest[NOT_MOVED_BY_SPEECH], points[NOT_MOVED_BY_SPEECH])
    rigid = rest @ linear.T + shift - rest  # motion of the head
    rigid *= _ramp(np.abs(rigid[NOT_MOVED_BY_SPEECH]).mean() / eye, HEAD_NOISE, 2 * HEAD_NOISE)
    own, target = _smoothed(moved - rigid), start + rigid * head
    if head:
        size = np.linalg.norm(own[_BROWS].reshape(2, -1, 2).mean(1), axis=-1)
        target[_BROWS] += (
            own[_BROWS] * _ramp(np.repeat(size, len(_BROWS) // 2) / eye, 2 * HEAD_NOISE, 4 * HEAD_NOISE)[:, None]
        )
    target[MOVED_BY_SPEECH] += own[MOVED_BY_SPEECH]
    _set_gap(target, points)
    _push_chin(target, start)
    return target, _lid_closing(rest, points)


def _smoothed(moved):
    """Displacements smoothed along the lines of lips and jaw."""
    smooth = moved.copy()
    for line in (_UPPER_OUTER, _LOWER_OUTER, _UPPER_INNER, _LOWER_INNER, _CHIN):
        smooth[line[1:-1]] = (moved[line[:-2]] + 2 * moved[line[1:-1]] + moved[line[2:]]) / 4
    return smooth


def _set_gap(target, points):
    """Set the gap between the inner lips to a render's, moving both lips equally; changes `target`."""
    down = target[places(152)] - target[places(168)]
    down = down / np.linalg.norm(down)
    wanted = np.maximum((points[_LOWER_INNER] - points[_UPPER_INNER]) @ down, 0)
    change = (wanted - (target[_LOWER_INNER] - target[_UPPER_INNER]) @ down)[1:-1, None] / 2 * down
    for upper, lower in ((_UPPER_INNER, _LOWER_INNER), (_UPPER_OUTER, _LOWER_OUTER)):
        target[upper[1:-1]] -= change
        target[lower[1:-1]] += change


def _push_chin(target, start):
    """Push the chin down where the lower lip comes too close, which would fold the skin; changes `target`."""
    down = target[places(152)] - target[places(168)]
    down = down / np.linalg.norm(down)
    for upper, lower in zip(_BELOW_LIP, _BELOW_LIP[1:]):
        near = (1 - MAX_CHIN_COMPRESSION) * np.linalg.norm(start[lower] - start[upper]) - (
            target[lower] - target[upper]
        ) @ down
        target[lower] += max(near, 0) * down


def _lid_closing(rest, points):
    openings = np.array([[_opening(face, *lids) for lids in _LIDS] for face in (rest, points)])
    closing = 1 - openings[1] / np.maximum(openings[0], 1e-6)
    both = np.clip(closing.mean(), 0, 1)  # eyes blink together, and the mean has less noise
    return np.repeat(_ramp(both, LID_NOISE, 2 * LID_NOISE) * both, 2)


def _opening(face, upper, lower):
    return np.linalg.norm(face[upper[1:-1]] - face[lower[1:-1]], axis=-1).mean()


def _affine(source, target):
    """Least-squares affine map from source to target: linear part (2, 2) and shift (2,)."""
    ones = np.column_stack([source, np.ones(len(source))])
    solution = np.linalg.lstsq(ones, target, rcond=None)[0]
    return solution[:2].T, solution[2]


def _ramp(x, low, high):
    """Smooth step from 0 at `low` to 1 at `high`."""
    x = np.clip((x - low) / (high - low), 0, 1)
    return x * x * (3 - 2 * x)


# Warps ----------------------------------------------------------------------------------------------------------------


def _border():
    line = np.linspace(0, 1, 7)
    square = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    return square[((square == 0) | (square == 1)).any(1)]


_BORDER = _border()
_NODES = np.stack(np.meshgrid(*[(np.arange(GRID) + 0.5) / GRID] * 2), -1).reshape(-1, 2).astype(np.float32)
# Rows of a spline's weights: keypoints without the lids, which are drawn separately; rings and border; linear part.
_WARPED = np.setdiff1d(np.arange(len(VERTICES)), _INNER_LIDS)
_FIXED = np.arange(len(_WARPED), len(_WARPED) + len(RINGS) * len(OVAL) + len(_BORDER))
_LINEAR = _FIXED[-1] + 1 + np.arange(3)
# Rows of the warp above the line between the lips, and of that below: each leaves out the other lip.
_LAYERS = [np.append(np.flatnonzero(~np.isin(_WARPED, other)), _FIXED) for other in (_LOWER_LIP, _UPPER_LIP)]


def _kernel(at, points):
    square = (at[:, :1] - points[:, 0]) ** 2 + (at[:, 1:] - points[:, 1]) ** 2
    return square * np.sqrt(square)


def warp(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Warp fields that move keypoints from `source` to `target`, above and below the line between the lips.

    source, target  float (K, 2), fractions of the side
    returns         float32 (2, GRID, GRID, 2): for each node the offset, in fractions, to its source; zero at the
                    border

    Source: splines through scattered points with the kernel r³ (Duchon 1977), at the keypoints and at rings around the
    outline that follow its motion by decreasing shares.
    """
    outline, middle = target[_OVAL], target[_OVAL].mean(0)
    moved = source - target
    rings = np.concatenate([middle + (outline - middle) * far for far, _ in RINGS])
    points = np.concatenate([target[_WARPED], rings, _BORDER])
    values = np.concatenate([moved[_WARPED], *[part * moved[_OVAL] for _, part in RINGS], np.zeros_like(_BORDER)])
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
    product = cv2.gemm(terms, weights.reshape(-1, 4), 1, None, 0)  # type: ignore[call-overload]  # None: no third one
    fields[nodes] = product.reshape(-1, 2, 2) * limit[nodes, None, None]
    return fields.transpose(1, 0, 2).reshape(2, GRID, GRID, 2)


def _limit(points, head):
    """Weight of a warp at each node, (GRID²,): 1 on the face, 0 far from it, and without `head` 0 above the nose."""
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
    """Weights of a spline through points: of the kernel at each, and of its linear part, (n + 3, 2)."""
    count = len(points)
    ones = np.column_stack([np.ones(count), points])
    matrix = np.zeros((count + 3, count + 3))
    matrix[:count, :count] = kernel + SMOOTHING * np.eye(count)
    matrix[:count, count:], matrix[count:, :count] = ones, ones.T
    # Not numpy's solver: its threads would wait for torch's, many times a frame.
    return cv2.solve(matrix, np.concatenate([values, np.zeros((3, 2))]))[1]


# Rendering ------------------------------------------------------------------------------------------------------------


def draw(
    photo: np.ndarray,
    place: Frame,
    source: np.ndarray,
    target: np.ndarray,
    lids: Sequence[float] | np.ndarray = (0, 0),
    inside: Inside | None = None,
    blur: float = 0.5,
) -> np.ndarray:
    """Render the photo with its keypoints moved from `source` to `target`.

    photo           uint8 (H, W, 3)
    place           Frame of the face in it
    source, target  float (K, 2), fractions of the quad
    lids            closing of either eye's lids, 0 to 1
    inside          Inside, or None: then an open mouth shows the photo's own inside
    blur            std of the photo's blur, pixels
    returns         uint8 (H, W, 3)
    """
    fields = warp(source, target)
    moved = np.abs(fields).max((0, 3)) * place.scale > 1 / 64
    moved |= np.max(lids) > 0.01  # includes the eyes in the box
    if not moved.any():
        return photo.copy()
    rows, columns = _box(moved, place)
    across, down = (np.arange(part.start, part.stop, dtype=np.float32) for part in (columns, rows))
    mouth = Lines(place.pixels(target))
    at = x, y = _sources(fields, place, across, down, mouth)
    part = cv2.remap(photo, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    for eye, closing in zip(_LIDS, lids):
        if closing > 0.01:
            _close_eye(part, photo, at, place.pixels(target), eye, closing, across, down, blur)
    if inside is not None:
        shift = place.matrix @ (source[NOT_MOVED_BY_SPEECH] - target[NOT_MOVED_BY_SPEECH]).mean(0)
        _fill_mouth(part, photo, Lines(place.pixels(source)), mouth, shift, across, down, inside, blur, place.scale)
    result = photo.copy()
    result[rows, columns] = part
    return result


def _box(moved, place):
    """Slices of the photo's rows and columns that contain the moving nodes, bool (GRID, GRID)."""
    rows, columns = np.flatnonzero(moved.any(1)), np.flatnonzero(moved.any(0))
    low = np.array([columns[0] - 1, rows[0] - 1]) / GRID
    high = np.array([columns[-1] + 2, rows[-1] + 2]) / GRID
    corners = place.pixels(np.array([(x, y) for x in (low[0], high[0]) for y in (low[1], high[1])]))
    start = np.clip(np.floor(corners.min(0)).astype(int), 0, (place.width - 1, place.height - 1))
    stop = np.clip(np.ceil(corners.max(0)).astype(int) + 1, start + 1, (place.width, place.height))
    return slice(start[1], stop[1]), slice(start[0], stop[0])


def _sources(fields, place, across, down, mouth):
    """Source position of each pixel of a box: x and y, float32 (h, w), pixels of the photo."""
    matrix = place.inverse * GRID
    shift = matrix @ ((across[0], down[0]) - place.corner) - 0.5
    # One warp of four channels is faster than two of two.
    nodes = np.concatenate(list(fields @ place.matrix.T.astype(np.float32)), -1)
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
    """Seam between the two warps: the line between the lips, with a soft continuation beside the mouth.

    returns   slice of the rows of a box that it crosses; float32 (n, w), the share of each of their pixels below it;
              and bool (h,), the rows entirely below it
    """
    x, y = mouth.of_pixels(across[[0, -1]], down[:, None])
    reach = np.abs(mouth.middle).max() + 0.5 + 0.25 * mouth.half * max(np.abs(x).max() - 1, 0)
    low = (y > reach).all(1)
    crossed = np.flatnonzero(~low & ~(y < -reach).all(1))
    seam = slice(crossed[0], crossed[-1] + 1) if len(crossed) else slice(0)
    x, y = mouth.local(across, down[seam])
    soft = 1 + 0.5 * mouth.half * np.clip(np.abs(x) - 1, 0, None)
    return seam, np.clip(0.5 + (y - mouth.height(mouth.middle, x)) / soft, 0, 1), low


class Lines:
    """Inner lip lines in mouth coordinates: x is -1 and 1 at the corners, y is in pixels downwards.

    points  float (K, 2), pixels
    `upper` and `lower` bound the visible inside of the mouth; the gap of closed lips (CLOSED_GAP) is subtracted.
    """

    KNOTS = np.linspace(-1, 1, 257)

    def __init__(self, points: np.ndarray) -> None:
        corners = points[_UPPER_INNER[[0, -1]]]
        self.centre, along = corners.mean(0), corners[1] - corners[0]
        self.half = max(float(np.linalg.norm(along)) / 2, 1e-3)
        self.right = along / (2 * self.half)
        self.down = np.array((-self.right[1], self.right[0]))
        upper, lower = (self._line(points[line] - self.centre) for line in (_UPPER_INNER, _LOWER_INNER))
        self.middle = (upper + lower) / 2
        gap = np.maximum(lower - upper - 2 * CLOSED_GAP * self.half * (1 - self.KNOTS**2), 0)
        self.upper, self.lower = self.middle - gap / 2, self.middle + gap / 2

    def _line(self, points):
        x = np.maximum.accumulate(points @ self.right / self.half)
        return np.interp(self.KNOTS, x, points @ self.down)

    def local(self, across: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mouth coordinates of the pixels of a box: x and y, float32 (h, w)."""
        return self.of_pixels(*np.meshgrid(across, down))

    def of_pixels(self, px: np.ndarray, py: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mouth coordinates x and y, float32 (h, w), of pixels."""
        px, py = px - np.float32(self.centre[0]), py - np.float32(self.centre[1])
        return (
            px * np.float32(self.right[0] / self.half) + py * np.float32(self.right[1] / self.half),
            px * np.float32(self.down[0]) + py * np.float32(self.down[1]),
        )

    def height(self, line: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Height y of a line at each x."""
        index = np.clip((x + 1) * np.float32(len(self.KNOTS) // 2) + np.float32(0.5), 0, len(self.KNOTS) - 1).astype(
            np.int16
        )
        return line.astype(np.float32)[index]

    def pixels(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of mouth coordinates: float32 (h, w), (h, w)."""
        x = x * self.half
        return (
            (self.centre[0] + x * self.right[0] + y * self.down[0]).astype(np.float32),
            (self.centre[1] + x * self.right[1] + y * self.down[1]).astype(np.float32),
        )

    def cover(self, x: np.ndarray, y: np.ndarray, soft: float) -> np.ndarray:
        """Share of each pixel that shows the inside of the mouth: float32 (h, w), 0 to 1."""
        upper, lower = self.height(self.upper, x), self.height(self.lower, x)
        inside = np.clip(0.5 + (y - upper) / soft, 0, 1) * np.clip(0.5 + (lower - y) / soft, 0, 1)
        return inside * np.clip((lower - upper) / soft, 0, 1) * (np.abs(x) < 1)


def _fill_mouth(part, photo, before, mouth, shift, across, down, inside, blur, scale):
    """Render the inside of the mouth into a box of the result; changes `part`.

    before, mouth  Lines of the mouth in the photo and in the result
    shift          offset of the skull, and of the teeth, from the result to the photo, pixels
    """
    soft = max(1.0, LIP_EDGE * blur)
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
    if own.max() > 0.5:  # the photo's own teeth and tongue, which move with the skull
        visible = cv2.remap(photo, px, py, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        drawn += own * (visible - drawn)
    window = part[box]
    part[box] = np.clip(window + cover * (drawn - window) + 0.5, 0, 255)


def _rendered(mouth, x, y, frame, points):
    """Inside of a render's mouth, warped to another mouth: float32 (h, w, 3)."""
    source = Lines(points * len(frame) - 0.5)
    upper, lower = mouth.height(mouth.upper, x), mouth.height(mouth.lower, x)
    depth = np.clip((y - upper) / np.maximum(lower - upper, 1e-3), 0, 1)
    top, bottom = source.height(source.upper, x), source.height(source.lower, x)
    at = source.pixels(np.clip(x, -1, 1), top + depth * (bottom - top))
    return cv2.remap(frame, *at, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT).astype(np.float32)


def _sharpened(image, blur, wanted):
    """Sharpen an image of blur `blur` (std in pixels) to about the sharpness of blur `wanted`."""
    amount = min(blur / max(wanted, 0.5) - 1, 2.0)
    return image if amount <= 0 else image + amount * (image - cv2.GaussianBlur(image, (0, 0), max(blur, 0.5)))


def _close_eye(part, photo, at, points, eye, closing, across, down, blur):
    """Close an upper lid: its skin is stretched from the fold to the lashes; changes `part`."""
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
    lid = top + 0.95 * closing * np.maximum(bottom - top, 0)
    fold = top - 0.35 * length * np.clip(1.3 - np.abs(2 * x - 1), 0.1, 1)
    source = np.where(y < fold, y, fold + (y - fold) * (top - fold) / np.maximum(lid - fold, 1e-3))
    shifted = [axis[box] + ((source - y) * way).astype(np.float32) for axis, way in zip(at, below)]
    skin = cv2.remap(photo, *shifted, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT).astype(np.float32)
    soft = max(1.0, 2 * blur)
    cover = np.clip(0.5 + (lid - y) / soft, 0, 1) * ((x > -0.1) & (x < 1.1))
    window = part[box]
    part[box] = np.clip(window + cover[..., None] * (skin - window) + 0.5, 0, 255)


def _blur(photo, frame):
    """Estimate the blur of the face in a photo, std in pixels, from the effect of a further blur.

    For an image whose power falls with the square of frequency, the variance of the Laplacian falls with the fourth
    power of the blur.
    """
    middle = frame.pixels(np.array([(0.25, 0.3), (0.25, 0.9), (0.75, 0.3), (0.75, 0.9)]))
    start = np.clip(middle.min(0), 0, None).astype(int)
    stop = np.clip(middle.max(0), 0, (frame.width, frame.height)).astype(int)
    grey = cv2.cvtColor(photo[start[1] : stop[1], start[0] : stop[0]], cv2.COLOR_RGB2GRAY).astype(np.float32)
    if min(grey.shape) < 8:
        return 0.5
    before, after = (cv2.Laplacian(image, cv2.CV_32F).var() for image in (grey, cv2.GaussianBlur(grey, (0, 0), 1.0)))
    ratio = np.sqrt(after / max(before, 1e-6))
    return float(np.clip(np.sqrt(ratio / max(1 - ratio, 1e-3)), 0.3, 4.0))


def _skin(image, points):
    """Skin colour around the mouth: float32 (3,)."""
    spots = points[places(205, 425, 50, 280, 164, 200, 202, 422)] * len(image) - 0.5
    blurred = cv2.GaussianBlur(image, (0, 0), len(image) / 64)
    columns, rows = np.clip(np.rint(spots).astype(int), 0, len(image) - 1).T
    return np.median(blurred[rows, columns].astype(np.float32), axis=0)
