"""Where a face is, and its FFHQ crop: landmarks, quads, aligned frames.

    frame ─ detector ─▶ landmarks (68, 2) ─ quad ─▶ corners (4, 2) ─ crop ─▶ aligned (S, S, 3)

Points are pixels, x then y; (0, 0) is the centre of the top left pixel. The 68 are numbered as iBUG 300-W does:
jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, lips 48-67; "left" is the left of the picture.

Pillow is used here although reading files is another room's: the FFHQ crop is defined by Pillow's own filters.
"""

import contextlib
import importlib.util
import inspect
import itertools
import math
import os
import pickle
import sys
import tempfile
import warnings
import weakref
from collections import deque
from pathlib import Path

import numpy as np
import PIL.Image

from .errors import TalkheadError
from .files import cache_folder, hub_folder

DETECTORS = ("auto", "face-alignment", "mediapipe")

MEDIAPIPE_MODEL_URL = ("https://storage.googleapis.com/mediapipe-models/face_landmarker/"
                       "face_landmarker/float16/latest/face_landmarker.task")

# Which vertices of MediaPipe's 468/478 mesh stand for each of the 68 points: the mean of the two (twice the same
# where one vertex fits alone). Chosen as the vertices nearest to 44 photos marked with 68 points, kept symmetric and,
# for the jaw, on the mesh's outline. Use: mesh[..., MEDIAPIPE_68, :].mean(-2).
MEDIAPIPE_68 = np.array([
    (127, 127), (93, 234), (93, 132), (58, 215), (58, 136), (136, 136), (150, 176), (148, 176), (152, 152),
    (377, 400), (379, 400), (365, 365), (288, 365), (288, 435), (323, 361), (323, 454), (356, 356),      # jaw
    (70, 70), (63, 63), (105, 105), (66, 66), (107, 107),                                                # left brow
    (336, 336), (296, 296), (334, 334), (293, 293), (300, 300),                                          # right brow
    (168, 168), (6, 197), (5, 195), (4, 4), (75, 75), (97, 97), (2, 2), (326, 326), (305, 305),          # nose
    (33, 33), (160, 160), (158, 158), (133, 133), (153, 153), (144, 144),                                # left eye
    (362, 362), (385, 385), (387, 387), (263, 263), (373, 373), (380, 380),                              # right eye
    (61, 61), (39, 40), (37, 37), (0, 0), (267, 267), (269, 270), (291, 291),                            # outer lips
    (321, 405), (314, 314), (17, 17), (84, 84), (91, 181),
    (78, 78), (82, 82), (13, 13), (312, 312), (308, 308), (317, 317), (14, 14), (87, 87),                # inner lips
])


# ---------------------------------------------------------------------------------------------------------------
# Detectors

class Detector:
    """Finds faces: `detector(image)` -> list of landmarks, the largest face first.

    image    uint8 (H, W, 3) RGB
    returns  list of float32 (68, 2), pixels; empty where no face is seen

    `name` tells which library is behind it, `weights` in which files what it has learnt lies.
    """

    name = ""
    weights = ()

    def __call__(self, image):
        faces = [np.asarray(face, np.float32) for face in self._find(np.ascontiguousarray(image))]
        return sorted(faces, key=_area, reverse=True)


class MediaPipe(Detector):
    """Google's Face Landmarker (478 points), reduced to the 68.

    model    path of a face_landmarker .task file
    faces    the most faces to look for

    It runs image by image: its video mode smooths the points over time, which would blur lips that must shut on a
    /p/; `align_frames` tracks and smooths the quads instead.
    """

    name = "mediapipe"

    def __init__(self, model, faces=4):
        self.weights = (Path(model),)
        try:
            weights = Path(model).read_bytes()
        except OSError as error:
            raise TalkheadError(f"{model}: {error.strerror}; it should be MediaPipe's face landmarker, "
                                f"from {MEDIAPIPE_MODEL_URL}") from error
        with _quiet():
            import mediapipe
            from mediapipe.tasks.python import BaseOptions, vision
            options = vision.FaceLandmarkerOptions(base_options=BaseOptions(model_asset_buffer=weights), num_faces=faces)
            try:
                landmarker = vision.FaceLandmarker.create_from_options(options)
            except (RuntimeError, ValueError) as error:
                raise TalkheadError(f"{model}: not a MediaPipe face landmarker ({error}); "
                                    f"fetch it again from {MEDIAPIPE_MODEL_URL}") from None
            self._image = lambda pixels: mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)
            self._detect = landmarker.detect
            self._detect(self._image(np.zeros((64, 64, 3), np.uint8)))     # its last start-up remarks come here
        # At interpreter exit its worker thread is gone already and its own __del__ prints a traceback: close it with
        # this object, or never.
        landmarker.__class__ = type("FaceLandmarker", (type(landmarker),), {"__del__": lambda self: None})
        weakref.finalize(self, landmarker.close).atexit = False

    def meshes(self, image):
        """All 478 points of each face, in the library's order: list of float32 (478, 2), pixels.

        Its detector was made for faces a fifth of the picture wide or more, so where it sees none in the whole, it
        looks again in overlapping squares of half the shorter side.
        """
        found = self._look(image)
        if found:
            return found
        side = min(image.shape[:2]) // 2
        if side < 64:
            return []
        starts = [_spread(length, side) for length in image.shape[:2]]
        seen = []
        for top, left in itertools.product(*starts):
            middle = (left + side / 2, top + side / 2)
            for mesh in self._look(image[top:top + side, left:left + side]):
                mesh += np.float32((left, top))
                seen.append((np.linalg.norm(mesh.mean(0) - middle), mesh))
        # A face lies in several squares: the one that holds it best, near its middle, speaks for it.
        for _, mesh in sorted(seen, key=lambda pair: pair[0]):
            if not any(_overlap(mesh, other) > 0.2 for other in found):
                found.append(mesh)
        return found

    def _look(self, image):
        height, width = image.shape[:2]
        result = self._detect(self._image(np.ascontiguousarray(image)))
        return [np.array([(point.x * width, point.y * height) for point in face], np.float32)
                for face in result.face_landmarks]

    def _find(self, image):
        return [from_mesh(mesh) for mesh in self.meshes(image)]


def from_mesh(mesh):
    """The 68 points of a MediaPipe mesh: (..., 468 or 478, 2) -> (..., 68, 2)."""
    return mesh[..., MEDIAPIPE_68, :].mean(-2)


def _area(points):
    width, height = np.ptp(points, axis=0)
    return width * height


def _overlap(points, others):
    """Of the boxes around two sets of points: area in common over area together, 0 to 1."""
    low = np.maximum(points.min(0), others.min(0))
    high = np.minimum(points.max(0), others.max(0))
    common = np.prod(np.maximum(high - low, 0))
    return common / max(_area(points) + _area(others) - common, 1e-9)


def _spread(length, side):
    """Where squares start that cover a length, each half over its neighbour."""
    count = int(np.ceil(2 * (length - side) / side)) + 1
    return np.linspace(0, length - side, count).astype(int)


@contextlib.contextmanager
def _quiet():
    """Swallow what C++ code writes to stderr and stdout; give it back on stderr if the block fails."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        kept = {number: os.dup(number) for number in (1, 2)}
        for number in kept:
            os.dup2(said.fileno(), number)
        try:
            yield
        except TalkheadError:
            raise
        except BaseException:
            said.seek(0)
            os.write(kept[2], said.read())
            raise
        finally:
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)


class FaceAlignment(Detector):
    """Bulat's face-alignment: S3FD finds the faces, FAN the 68 points.

    folder  holds the library's weight files; None for torch's hub cache ($TORCH_HOME/hub/checkpoints)
    device  "cpu", "cuda", "cuda:1", "mps"

    The network is never touched: missing weights are an error.
    Source: thesis §3.3.1.1.
    """

    name = "face-alignment"
    longest = 1280      # pixels: S3FD's memory grows with the image, and FAN sees a face at 256 anyway

    def __init__(self, folder=None, device="cpu"):
        folder = Path(folder) if folder else hub_folder()
        import face_alignment
        import torch

        self.weights = tuple(folder / Path(url).name for url in _face_alignment_urls())
        missing = [url for url in _face_alignment_urls() if not (folder / Path(url).name).is_file()]
        if missing:
            raise TalkheadError(f"{folder}: lacks face-alignment's weights; put {' and '.join(missing)} there "
                                "(talkhead weights fetch s3fd and fan do)")
        # Plain torch, no compiler run on first use; older versions do not have the switch.
        plain = {"compile": False} if "compile" in inspect.signature(face_alignment.FaceAlignment).parameters else {}
        hub = torch.hub._hub_dir    # not get_dir(): to set that would pin a folder that $TORCH_HOME may still move
        with _benchmark_kept(), tempfile.TemporaryDirectory() as stand_in:
            (Path(stand_in) / "checkpoints").symlink_to(folder.resolve())
            torch.hub.set_dir(stand_in)
            try:
                self._network = face_alignment.FaceAlignment(face_alignment.LandmarksType.TWO_D, device=str(device),
                                                             **plain)
            except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
                raise TalkheadError(f"{folder}: face-alignment cannot use these weights "
                                    f"({str(error).splitlines()[0]}); fetch them again") from None
            finally:
                torch.hub._hub_dir = hub

    def _find(self, image):
        factor = max(max(image.shape[:2]) / self.longest, 1.0)
        if factor > 1:
            size = [round(length / factor) for length in image.shape[1::-1]]
            image = np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BOX))
        with _benchmark_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")                     # "No faces were detected" is an empty list here
            found = self._network.get_landmarks_from_image(image)
        return [(np.asarray(face) + 0.5) * factor - 0.5 for face in (found or [])]      # None where it sees no face


@contextlib.contextmanager
def _benchmark_kept():
    """face-alignment switches cuDNN's benchmark on for the whole process: put it back."""
    import torch

    before = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


# Finding the files

def _face_alignment_urls():
    """The two files that the installed version wants: their names change with it."""
    from face_alignment.api import models_urls as networks
    from face_alignment.detection.sfd.sfd_detector import models_urls as detectors
    return [networks["2DFAN-4"], detectors["s3fd"]]


def _has_face_alignment():
    folder = hub_folder()
    # The cheap look first: importing the library costs seconds.
    if not (list(folder.glob("2DFAN4-*")) and list(folder.glob("s3fd-*")) and _installed("face_alignment")):
        return False
    return all((folder / Path(url).name).is_file() for url in _face_alignment_urls())


def _mediapipe_model():
    """The model file by environment or cache folder, else None."""
    named = os.environ.get("TALKHEAD_MEDIAPIPE_MODEL")
    if named:
        return Path(named).expanduser()
    return next(iter(sorted(cache_folder().glob("face_landmarker*.task"))), None)


def _installed(package):
    return importlib.util.find_spec(package) is not None


def detector(name="auto", model=None, device="cpu"):
    """A face detector, by name or by what this machine has.

    name     "face-alignment", "mediapipe", or "auto": face-alignment if its weights are in torch's cache, else MediaPipe
    model    MediaPipe's .task file, or the folder of face-alignment's weights. Without it, MediaPipe's is looked for in
             $TALKHEAD_MEDIAPIPE_MODEL, then as face_landmarker*.task in talkhead's own cache (`files.cache_folder`);
             face-alignment's in torch's hub cache
    device   for face-alignment; MediaPipe runs on the CPU
    returns  Detector; its .name says which it is
    raises   TalkheadError saying what to install or fetch, and where to put it

    Nothing is downloaded.
    """
    if name not in DETECTORS:
        raise TalkheadError(f"detector {name!r}: unknown; choose from {', '.join(DETECTORS)}")
    try:
        return _choose(name, model, device)
    except (ImportError, OSError) as error:     # a system library that they link to, say
        raise TalkheadError(f"detector: a library does not load ({error}); install it or pass another --detector") from error


def _choose(name, model, device):
    if name == "auto" and model:
        name = "face-alignment" if Path(model).is_dir() else "mediapipe"
    if name == "face-alignment" or (name == "auto" and _has_face_alignment()):
        if not _installed("face_alignment"):
            raise TalkheadError("detector: face-alignment is not installed; pip install face-alignment")
        return FaceAlignment(model, device)
    found = model or _mediapipe_model()
    if name == "auto" and not (found and _installed("mediapipe")):
        raise TalkheadError(f"detector: no weights found; pip install mediapipe and run talkhead weights fetch face-landmarker "
                            f"({MEDIAPIPE_MODEL_URL} as {cache_folder() / 'face_landmarker.task'}), or fill {hub_folder()} for face-alignment")
    if not _installed("mediapipe"):
        raise TalkheadError("detector: mediapipe is not installed; pip install mediapipe")
    if not found:
        raise TalkheadError(f"detector: no MediaPipe model; run talkhead weights fetch face-landmarker ({MEDIAPIPE_MODEL_URL} as "
                            f"{cache_folder() / 'face_landmarker.task'}), or pass --detector-model")
    return MediaPipe(found)


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
    x *= max(2.0 * np.hypot(*eye_to_eye), 1.8 * np.hypot(*eye_to_mouth)) / np.hypot(*x)     # half a side long
    y = np.array((-x[1], x[0]))                                                             # a quarter turn: down
    centre = eyes + 0.1 * eye_to_mouth
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


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
    picture = picture.transform((4 * size, 4 * size), PIL.Image.Transform.QUAD, (corners + 0.5).ravel(),
                                PIL.Image.Resampling.BILINEAR)
    return np.asarray(picture.resize((size, size), PIL.Image.Resampling.LANCZOS))


def _side(corners):
    return np.hypot(*(corners[3] - corners[0]))


def _shrink(picture, corners, size):
    """Reduce a picture whose quad is more than four times the wanted size, by a whole factor."""
    factor = int(_side(corners) / size * 0.5)
    if factor < 2:
        return picture, corners
    reduced = [max(int(np.rint(length / factor)), 1) for length in picture.size]
    return picture.resize(reduced, PIL.Image.Resampling.LANCZOS), corners / factor


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
    from scipy.ndimage import gaussian_filter            # a tenth of a second that most crops can do without

    padded = np.pad(image.astype(np.float32), ((before[1], after[1]), (before[0], after[0]), (0, 0)), "reflect")
    height, width = padded.shape[:2]
    across = _outwards(width, before[0], after[0])[None, :]
    down = _outwards(height, before[1], after[1])[:, None]
    out = np.maximum(across, down)[..., None].astype(np.float32)     # (H, W, 1): 1 at the rim, 0 at the old edge, < 0 inside
    padded += (gaussian_filter(padded, (blur, blur, 0)) - padded) * np.clip(3 * out + 1, 0, 1)
    padded += (np.median(padded, axis=(0, 1)) - padded) * np.clip(out, 0, 1)
    return np.clip(np.rint(padded), 0, 255).astype(np.uint8)


def _outwards(length, before, after):
    """Along one axis, how far into the padding: 1 at the rim, 0 at the image's edge, negative inside."""
    index = np.arange(length)
    return 1 - np.minimum(index / before, index[::-1] / after)


def mouth_opening(landmarks):
    """How far the mouth is open: the gap between the inner lips over the distance between the eyes.

    landmarks  (..., 68, 2)
    returns    (...), 0 = shut; speech seldom passes 0.20
    """
    points = np.asarray(landmarks)
    gap = np.linalg.norm(points[..., [61, 62, 63], :] - points[..., [67, 66, 65], :], axis=-1).mean(-1)
    eyes = points[..., 42:48, :].mean(-2) - points[..., 36:42, :].mean(-2)
    return gap / np.linalg.norm(eyes, axis=-1)


# ---------------------------------------------------------------------------------------------------------------
# Clips

ON_MISSING = ("fail", "hold", "skip")
LEADING = 100       # frames kept while a clip that opens without a face is held: four seconds
LOST = 25           # frames after which the largest face is chosen anew: a second
JUMP = 0.25         # sides: a quad that moves so far in one frame is another shot, or a slip of the detector


def align_frames(frames, detector, size=256, smoothing=2.0, on_missing="fail", missing=None):
    """Follow one face through a clip and crop it, as FFHQ does but with a quad that does not tremble.

    frames      iterator of uint8 (H, W, 3); its .name, if it has one, opens the error messages
    detector    callable, image -> list of (68, 2), largest first (see `detector`)
    size        side of the crops
    smoothing   standard deviation in frames of a Gaussian over the quads, centred; 0 is FFHQ's own, frame by frame
    on_missing  a frame without a face: "fail"; "hold" the quad before it (the first one found, for frames that lead);
                "skip" the frame
    missing     a list that receives the index of every frame without a face
    returns     iterator of (crop uint8 (size, size, 3), quad float64 (4, 2) that cut it, index of the frame)
    raises      TalkheadError where a face is missing and may not be, or none is ever found

    The largest face of the first frame that has one is followed by overlap; after a leap, to the nearest face that was
    not there before; after a second without it, to the largest.
    Frames are kept only for the width of the Gaussian, so memory is flat.

    Source: thesis §3.2, §3.3.1.1.
    Departure: the quads are smoothed; the thesis crops frame by frame.
    """
    if on_missing not in ON_MISSING:
        raise TalkheadError(f"on_missing {on_missing!r}: unknown; choose from {', '.join(ON_MISSING)}")
    name = getattr(frames, "name", None) or "frames"
    filled = _fill(_track(frames, detector), on_missing, name, [] if missing is None else missing)
    return ((crop(frame, corners, size), corners, index) for index, frame, corners in _smooth(filled, smoothing))


def _track(frames, detector):
    """Follow the largest face: (index, frame, quad or None, shot), where shot counts the jumps so far."""
    last, corners, others = None, None, []
    lost, shot = 0, 0
    for index, frame in enumerate(frames):
        found = detector(frame)
        chosen = last is not None and lost < LOST
        face = _same(found, last, others) if chosen else next(iter(found), None)
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


def _same(found, last, others):
    """The face that was `last` a frame ago: what overlaps it most, else the nearest that is none of the `others`."""
    best = max(found, key=lambda face: _overlap(face, last), default=None)
    if best is None or _overlap(best, last) > 0:
        return best
    new = [face for face in found if not any(_overlap(face, other) > 0 for other in others)]
    return min(new, key=lambda face: np.linalg.norm(face.mean(0) - last.mean(0)), default=None)


def _fill(track, on_missing, name, missing):
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
                raise TalkheadError(f"{name}: no face found in the first {LEADING} frames; "
                                    "trim the clip or pass --on-missing skip")
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
        before.append(now)                          # its frame is let go: only frames to come are kept
        same = [(i, c) for i, c, s in near if s == shot]
        weights = np.exp([-0.5 * ((i - index) / max(sigma, 1e-9)) ** 2 for i, _ in same])
        return index, frame, np.average([c for _, c in same], axis=0, weights=weights)

    for item in filled:
        after.append(item)
        if len(after) > radius:
            yield middle()
    while after:
        yield middle()
