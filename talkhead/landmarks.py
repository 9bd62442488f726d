"""Face landmark detectors: images to the 68 points of iBUG 300-W."""

import contextlib
import importlib.util
import itertools
import os
import pickle
import shutil
import sys
import tempfile
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from .downloads import REGISTRY
from .errors import TalkheadError
from .files import cache_folder, hub_folder

if TYPE_CHECKING:
    import torch

DETECTORS = ("auto", "face-alignment", "mediapipe")
MEDIAPIPE_MODEL_URL = REGISTRY["face-landmarker"].urls[0]
# Each of the 68 points is the mean of two vertices of MediaPipe's 468/478 mesh (the same one twice if one fits alone):
# the vertices nearest to the points of 44 photos annotated with 68 points, kept symmetric and, for the jaw, on the
# mesh's outline. Use: mesh[..., MEDIAPIPE_68, :].mean(-2).
MEDIAPIPE_68 = np.array(
    [
        (127, 127),
        (93, 234),
        (93, 132),
        (58, 215),
        (58, 136),
        (136, 136),
        (150, 176),
        (148, 176),
        (152, 152),
        (377, 400),
        (379, 400),
        (365, 365),
        (288, 365),
        (288, 435),
        (323, 361),
        (323, 454),
        (356, 356),  # jaw
        (70, 70),
        (63, 63),
        (105, 105),
        (66, 66),
        (107, 107),  # left brow
        (336, 336),
        (296, 296),
        (334, 334),
        (293, 293),
        (300, 300),  # right brow
        (168, 168),
        (6, 197),
        (5, 195),
        (4, 4),
        (75, 75),
        (97, 97),
        (2, 2),
        (326, 326),
        (305, 305),  # nose
        (33, 33),
        (160, 160),
        (158, 158),
        (133, 133),
        (153, 153),
        (144, 144),  # left eye
        (362, 362),
        (385, 385),
        (387, 387),
        (263, 263),
        (373, 373),
        (380, 380),  # right eye
        (61, 61),
        (39, 40),
        (37, 37),
        (0, 0),
        (267, 267),
        (269, 270),
        (291, 291),  # outer lips
        (321, 405),
        (314, 314),
        (17, 17),
        (84, 84),
        (91, 181),
        (78, 78),
        (82, 82),
        (13, 13),
        (312, 312),
        (308, 308),
        (317, 317),
        (14, 14),
        (87, 87),  # inner lips
    ]
)


class Detector:
    """Face detector: `detector(image)` returns the landmarks of each face, the largest face first.

    image    uint8 (H, W, 3) RGB
    returns  list of float32 (68, 2), pixels; empty if no face is found

    `name` is the name of the library, `weights` the paths of its weight files.
    """

    name = ""
    weights: tuple[Path, ...] = ()

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        found = self._find(np.ascontiguousarray(image))  # type: ignore[attr-defined]  # of subclasses
        faces = [np.asarray(face, np.float32) for face in found]
        return sorted(faces, key=_area, reverse=True)


class MediaPipe(Detector):
    """Google's MediaPipe Face Landmarker (478 points), reduced to 68 points.

    model    path of a face_landmarker .task file
    faces    maximum number of faces

    It runs image by image: its video mode smooths the points over time, which would blur the lip closure of a /p/;
    `align_frames` tracks and smooths the quads instead.
    """

    name = "mediapipe"

    def __init__(self, model: str | os.PathLike, faces: int = 4) -> None:
        self.weights = (Path(model),)
        try:
            weights = Path(model).read_bytes()
        except OSError as error:
            raise TalkheadError(
                f"{model}: {error.strerror}; pass MediaPipe's face landmarker, from {MEDIAPIPE_MODEL_URL}"
            ) from error
        with _quiet():
            import mediapipe
            from mediapipe.tasks.python import BaseOptions, vision

            options = vision.FaceLandmarkerOptions(
                base_options=BaseOptions(model_asset_buffer=weights), num_faces=faces
            )
            try:
                landmarker = vision.FaceLandmarker.create_from_options(options)
            except (RuntimeError, ValueError) as error:
                raise TalkheadError(
                    f"{model}: not a MediaPipe face landmarker ({error}); fetch it again from {MEDIAPIPE_MODEL_URL}"
                ) from None
            self._image = lambda pixels: mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)
            self._detect = landmarker.detect
            self._detect(self._image(np.zeros((64, 64, 3), np.uint8)))  # triggers its last start-up messages
        # At interpreter exit, its worker thread is gone and its __del__ would print a traceback: close it with this
        # object, or never.
        landmarker.__class__ = type("FaceLandmarker", (type(landmarker),), {"__del__": lambda self: None})
        weakref.finalize(self, landmarker.close).atexit = False

    def meshes(self, image: np.ndarray) -> list[np.ndarray]:
        """Detect all 478 points of each face, in the library's order: list of float32 (478, 2), pixels.

        The detector is designed for faces at least a fifth of the image wide; if it finds none, overlapping squares of
        half the shorter side are searched.
        """
        found = self._detect_meshes(image)
        if found:
            return found
        side = min(image.shape[:2]) // 2
        if side < 64:
            return []
        starts = [_tile_starts(length, side) for length in image.shape[:2]]
        candidates = []
        for top, left in itertools.product(*starts):
            middle = (left + side / 2, top + side / 2)
            for mesh in self._detect_meshes(image[top : top + side, left : left + side]):
                mesh += np.float32((left, top))  # type: ignore[arg-type]  # an array, which NumPy's stubs do not know
                candidates.append((np.linalg.norm(mesh.mean(0) - middle), mesh))
        # A face lies in several squares: keep the detection nearest to the centre of its square.
        for _, mesh in sorted(candidates, key=lambda pair: pair[0]):
            if not any(overlap(mesh, other) > 0.2 for other in found):
                found.append(mesh)
        return found

    def _detect_meshes(self, image):
        height, width = image.shape[:2]
        result = self._detect(self._image(np.ascontiguousarray(image)))
        return [
            np.array([(point.x * width, point.y * height) for point in face], np.float32)
            for face in result.face_landmarks
        ]

    def _find(self, image):
        return [from_mesh(mesh) for mesh in self.meshes(image)]


def from_mesh(mesh: np.ndarray) -> np.ndarray:
    """Reduce a MediaPipe mesh to the 68 points: (..., 468 or 478, 2) -> (..., 68, 2)."""
    return mesh[..., MEDIAPIPE_68, :].mean(-2)


def _area(points):
    width, height = np.ptp(points, axis=0)
    return width * height


def overlap(points: np.ndarray, others: np.ndarray) -> float:
    """Intersection over union of the bounding boxes of two sets of points, 0 to 1."""
    low = np.maximum(points.min(0), others.min(0))
    high = np.minimum(points.max(0), others.max(0))
    common = np.prod(np.maximum(high - low, 0))
    return common / max(_area(points) + _area(others) - common, 1e-9)


def _tile_starts(length, side):
    """Start offsets of squares that cover a length, each overlapping half of its neighbour."""
    count = int(np.ceil(2 * (length - side) / side)) + 1
    return np.linspace(0, length - side, count).astype(int)


@contextlib.contextmanager
def _quiet():
    """Capture the output of C++ code on stderr and stdout; print it on stderr if the block fails."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    with tempfile.TemporaryFile() as captured:
        kept = {number: os.dup(number) for number in (1, 2)}
        for number in kept:
            os.dup2(captured.fileno(), number)
        try:
            yield
        except TalkheadError:
            raise
        except BaseException:
            captured.seek(0)
            os.write(kept[2], captured.read())
            raise
        finally:
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)


def _link(weights, folder):
    """Make a folder of links to the files, or of copies where links are not allowed, as on Windows."""
    folder.mkdir()
    for path in weights:
        try:
            (folder / path.name).symlink_to(path.resolve())
        except OSError:
            shutil.copy(path, folder)


class FaceAlignment(Detector):
    """Bulat's face-alignment: S3FD detects the faces, FAN the 68 points.

    folder  folder of the library's weight files; None for torch's hub cache ($TORCH_HOME/hub/checkpoints)
    device  "cpu", "cuda", "cuda:1", "mps"

    Nothing is downloaded: missing weights are an error.
    Source: thesis §3.3.1.1.
    """

    name = "face-alignment"
    longest = 1280  # pixels; S3FD's memory grows with the image, and FAN's input is 256 anyway

    def __init__(self, folder: str | os.PathLike | None = None, device: "str | torch.device" = "cpu") -> None:
        folder = Path(folder) if folder else hub_folder()
        import face_alignment
        import torch

        self.weights = tuple(folder / Path(url).name for url in _face_alignment_urls())
        missing = [url for url in _face_alignment_urls() if not (folder / Path(url).name).is_file()]
        if missing:
            raise TalkheadError(
                f"{folder}: lacks face-alignment's weights; put {' and '.join(missing)} there "
                "(talkhead weights fetch s3fd and fan do)"
            )
        hub = torch.hub._hub_dir  # not get_dir(): setting that would ignore later changes of $TORCH_HOME
        with _benchmark_kept(), tempfile.TemporaryDirectory() as stand_in:
            _link(self.weights, Path(stand_in) / "checkpoints")
            torch.hub.set_dir(stand_in)
            try:
                # compile: not at first use
                self._network = face_alignment.FaceAlignment(
                    face_alignment.LandmarksType.TWO_D, device=str(device), compile=False
                )
            except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
                raise TalkheadError(
                    f"{folder}: face-alignment cannot use these weights "
                    f"({str(error).splitlines()[0]}); fetch them again"
                ) from None
            finally:
                torch.hub._hub_dir = hub

    def _find(self, image):
        factor = max(max(image.shape[:2]) / self.longest, 1.0)
        if factor > 1:
            size = [round(length / factor) for length in image.shape[1::-1]]
            image = np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BOX))
        with _benchmark_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "No faces were detected": an empty list here
            found = self._network.get_landmarks_from_image(image)
        return [(np.asarray(face) + 0.5) * factor - 0.5 for face in (found or [])]  # None if no face is found


@contextlib.contextmanager
def _benchmark_kept():
    """Restore cuDNN's benchmark mode, which face-alignment switches on for the whole process."""
    import torch

    before = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _face_alignment_urls():
    """URLs of the two weight files of the installed version of face-alignment."""
    from face_alignment.api import models_urls as networks
    from face_alignment.detection.sfd.sfd_detector import models_urls as detectors

    return [networks["2DFAN-4"], detectors["s3fd"]]


def _has_face_alignment():
    folder = hub_folder()
    # The cheap check first: importing the library takes seconds.
    if not (list(folder.glob("2DFAN4-*")) and list(folder.glob("s3fd-*")) and _installed("face_alignment")):
        return False
    return all((folder / Path(url).name).is_file() for url in _face_alignment_urls())


def _mediapipe_model():
    """Path of MediaPipe's model by environment or cache folder, else None."""
    named = os.environ.get("TALKHEAD_MEDIAPIPE_MODEL")
    if named:
        return Path(named).expanduser()
    return next(iter(sorted(cache_folder().glob("face_landmarker*.task"))), None)


def _installed(package):
    return importlib.util.find_spec(package) is not None


def detector(
    name: str = "auto", model: str | os.PathLike | None = None, device: "str | torch.device" = "cpu"
) -> Detector:
    """Create a face detector, by name or by what is installed.

    name     "face-alignment", "mediapipe", or "auto": face-alignment if its weights are in torch's cache, else
             MediaPipe
    model    MediaPipe's .task file, or the folder of face-alignment's weights. Default: for MediaPipe
             $TALKHEAD_MEDIAPIPE_MODEL, else face_landmarker*.task in talkhead's cache (`files.cache_folder`); for
             face-alignment torch's hub cache
    device   for face-alignment; MediaPipe runs on the CPU
    returns  Detector
    raises   TalkheadError with the package to install or the file to fetch, and its folder

    Nothing is downloaded.
    """
    if name not in DETECTORS:
        raise TalkheadError(f"detector {name!r}: unknown; choose from {', '.join(DETECTORS)}")
    try:
        return _choose(name, model, device)
    except (ImportError, OSError) as error:  # for example, a missing system library
        raise TalkheadError(
            f"detector: a library does not load ({error}); install it or pass --set detector=NAME of another"
        ) from error


def _choose(name, model, device):
    if name == "auto" and model:
        name = "face-alignment" if Path(model).is_dir() else "mediapipe"
    if name == "face-alignment" or (name == "auto" and _has_face_alignment()):
        if not _installed("face_alignment"):
            raise TalkheadError("detector: face-alignment is not installed; pip install face-alignment")
        return FaceAlignment(model, device)
    found = model or _mediapipe_model()
    if name == "auto" and not (found and _installed("mediapipe")):
        lacking = [] if _installed("mediapipe") else ["pip install mediapipe"]
        if not found:
            lacking.append(
                f"run talkhead weights fetch face-landmarker ({MEDIAPIPE_MODEL_URL} as "
                f"{cache_folder() / 'face_landmarker.task'})"
            )
        raise TalkheadError(
            f"detector: no {'weights' if not found else 'library'} found; {' and '.join(lacking)}, "
            f"or put face-alignment's weights into {hub_folder()}"
        )
    if not _installed("mediapipe"):
        raise TalkheadError("detector: mediapipe is not installed; pip install mediapipe")
    if not found:
        raise TalkheadError(
            f"detector: no MediaPipe model; run talkhead weights fetch face-landmarker ({MEDIAPIPE_MODEL_URL} as "
            f"{cache_folder() / 'face_landmarker.task'}), or pass --detector-model"
        )
    return MediaPipe(found)


def mouth_opening(landmarks: np.ndarray) -> np.ndarray:
    """Mouth opening: mean gap between the inner lips, divided by the distance between the eyes.

    landmarks  (..., 68, 2)
    returns    (...), 0 = closed, in speech seldom above 0.20; NaN where both eyes coincide
    """
    points = np.asarray(landmarks)
    gap = np.linalg.norm(points[..., [61, 62, 63], :] - points[..., [67, 66, 65], :], axis=-1).mean(-1)
    eyes = points[..., 42:48, :].mean(-2) - points[..., 36:42, :].mean(-2)
    apart = np.linalg.norm(eyes, axis=-1)
    return np.divide(gap, apart, out=np.full(np.shape(gap), np.nan), where=apart > 0)[()]
