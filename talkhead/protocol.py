"""Protocol of an evaluation: the measures of a pair of clips, how they are made, and their replay."""

import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from talkhead import (
    __version__,
    audio_files,
    downloads,
    faces,
    fid,
    files,
    landmarks,
    metrics,
    video_files,
)
from talkhead.errors import TalkheadError
from talkhead.phonemes import read_closures, read_dictionary

if TYPE_CHECKING:
    import torch

AHEAD = 4  # frames decoded ahead of the measures
FACE_SIDE = 256  # pixels, of the crops for the identity network
# Settings of a protocol, and the thesis's (§5.2.1; landmarks by FAN as in §3.3.1.1).
DEFAULTS = {
    "fps": 25.0,
    "size": None,
    "lmd": True,
    "fid": False,
    "fid_features": "inception",
    "lpips": False,
    "identity": False,
    "syncnet": False,
    "closures": False,
    "known_landmarks": False,
    "aligned": False,
    "detector": "auto",
    "enlarge": 1,
    "max_lag": metrics.MAX_LAG,
    "shut_below": metrics.CLOSED_SHARE,
    "closure_tolerance": metrics.CLOSURE_TOLERANCE,
}
THESIS = DEFAULTS | {"fid": True, "detector": "face-alignment"}
# Settings that are on if a file is given, and the option that names the file.
FILES = {"identity": "identity_network", "syncnet": "syncnet", "closures": "phonemes", "known_landmarks": "landmarks"}
RULES = {
    "rate": "frames are dropped or repeated by the time at which they are shown, to fps",
    "length": "the longer clip is cut to the shorter",
    "size": "equal, or refused; resized (bilinear, antialiased) where size is set",
    "crop": "none: whole frames as they come; for the identity, FFHQ's crop by the landmarks unless the clip is "
    "marked as aligned; for SyncNet, the face's box by the landmarks",
    "psnr": "RGB, peak 255, mean of decibels over frames; identical frames are left out and counted",
    "ssim": "RGB, 11x11 Gaussian of sigma 1.5, K1 0.01, K2 0.03, no borders, mean over patches, channels and frames",
    "lmd": "points 48-67 where they are in the frame, mean over points and over frames with a face in both, pixels of "
    "the compared frames",
    "means": "of a set: over the frames of all pairs; of correlations and SyncNet's, over pairs; of lags, the median",
}


class Protocol:
    """Evaluation protocol: settings and networks. Called with two clips, returns their record.

    fps                frames per second at which clips are compared
    size               side to which square frames are resized; None compares frames at their own, equal size
    lmd                compute landmark measures, `metrics.LandmarkMeasures`
    fid                compute FID and KID over all frames
    fid_features       feature network: "inception", "mobilenet", or "encoder", the bundled one
    lpips              compute LPIPS (VGG)
    identity_network   path of a face recognition network, as in `losses.identity_network`, for the cosine similarity of
                       the embeddings of each pair of frames
    syncnet            path of SyncNet's weights, for LSE-C and LSE-D of each clip with its own sound, or if it has
                       none, the other clip's
    phonemes           timing file, or a folder of them by the real clips' names, for `metrics.BilabialClosure`
    dictionary         pronouncing dictionary in the format of CMUdict, for words outside GRID
    landmarks          .npy (T, 68, 2) of the real clip, or a folder with NAME.landmarks.npy: then detection runs on the
                       fake clip alone
    aligned            treat all clips as aligned
    detector, detector_model   as in `landmarks.detector`
    enlarge            factor by which frames are enlarged for the detector, which misses small faces
    max_lag            frames, largest lag of the mouth that is tried
    shut_below         lips are closed below this share of the true mouth's range
    closure_tolerance  frames by which lips may close too early or too late
    device             torch device of the networks, or "auto"
    raises             TalkheadError if weights are missing, with their name, address and path

    `describe()` returns settings, versions and hashes of the weights as a JSON dict.
    """

    features: Any  # fid.FeatureNetwork, or None
    _description: dict | None

    def __init__(
        self,
        fps: float = 25.0,
        size: int | None = None,
        lmd: bool = True,
        fid: bool = False,
        fid_features: str = "inception",
        lpips: bool = False,
        identity_network: str | os.PathLike | None = None,
        syncnet: str | os.PathLike | None = None,
        phonemes: str | os.PathLike | None = None,
        dictionary: str | os.PathLike | None = None,
        landmarks: str | os.PathLike | None = None,
        aligned: bool = False,
        detector: str = "auto",
        detector_model: str | os.PathLike | None = None,
        enlarge: int = 1,
        max_lag: int = metrics.MAX_LAG,
        shut_below: float = metrics.CLOSED_SHARE,
        closure_tolerance: int = metrics.CLOSURE_TOLERANCE,
        device: str = "auto",
    ) -> None:
        self.options = {name: value for name, value in locals().items() if name != "self" and not name.startswith("__")}
        self.fps, self.size, self.max_lag, self.lips = fps, size, max_lag, (shut_below, fps, closure_tolerance)
        self.phonemes, self.landmarks, self.aligned = phonemes, landmarks, aligned
        if not lmd and (phonemes or landmarks):
            raise TalkheadError("metrics: closures and true landmarks need a detector; leave --no-lmd out")
        if phonemes and landmarks:
            raise TalkheadError(
                "metrics: closures need landmarks of both clips by one detector; leave landmarks out, or --phonemes"
            )
        if syncnet and fps != 25:
            raise TalkheadError(
                f"metrics: SyncNet needs 25 frames per second, not {fps:g}; leave --fps or --syncnet out"
            )
        self.weights, self.packages = {}, ["numpy", "av"]
        self.dictionary = None if dictionary is None else read_dictionary(dictionary)
        if dictionary:
            self.weights["dictionary"] = [dictionary]
        self.detector = self._load_detector(detector, detector_model, enlarge, device) if lmd else None
        self.features = self._load_features(fid_features, device) if fid else None
        self.perceptual = self._load_lpips(device) if lpips else None
        self.identity = self._load_identity(identity_network, device) if identity_network else None
        self.syncnet = self._load_syncnet(syncnet, device) if syncnet else None
        self._description = None

    def _load_detector(self, name, model, enlarge, device):
        detector = landmarks.detector(name, model, "cpu" if name == "mediapipe" else self._device(device))
        self.weights["detector"] = detector.weights
        self.packages.append(detector.name)
        return Enlarged(detector, enlarge)

    def _load_features(self, name, device):
        from talkhead import checkpoints

        if name == "inception":
            self.weights["fid"] = [_weights_path("inception-fid", "FID")]
        else:
            self.weights["fid"] = [checkpoints.bundled("encoder")]
        return features(name, self._device(device))

    def _load_lpips(self, device):
        self.weights["lpips"] = [_weights_path("vgg16", "LPIPS")]
        from talkhead import losses

        self.packages.append("lpips")
        network = losses.Perceptual("lpips").to(self._device(device))
        return lambda real, fake: network(fake, real)

    def _load_identity(self, path, device):
        self.weights["identity"] = [_weights_path("ir-se50", "identity", path)]
        from torch.nn import functional as F

        from talkhead import losses

        network = losses.identity_network(path, self._device(device))
        return lambda real, fake: F.cosine_similarity(network(real), network(fake), dim=1)

    def _load_syncnet(self, path, device):
        self.weights["syncnet"] = [_weights_path("syncnet", "LSE-C and LSE-D", path)]
        from talkhead import syncnet

        return syncnet.load(path, self._device(device))

    def _device(self, name):
        """Torch device by name; imports torch, which takes seconds, only if a network needs it."""
        from talkhead.distributed import pick_device

        self.packages += [] if "torch" in self.packages else ["torch"]
        return pick_device(name)

    def settings(self) -> dict:
        """Settings, in the form that `--protocol` replays."""
        own = {name: self.options[name] for name in DEFAULTS if name in self.options}
        own |= {name: self.options[option] is not None for name, option in FILES.items()}
        return own | {"detector": self.detector.name if self.detector else self.options["detector"]}

    def describe(self) -> dict:
        """JSON dict of settings, rules, files and sha256 of the weights, and versions."""
        if self._description is None:
            weights = {
                role: [{"file": Path(path).name, "sha256": downloads.verify(path)["sha256"]} for path in paths]
                for role, paths in self.weights.items()
            }
            self._description = {
                "settings": self.settings(),
                "rules": RULES,
                "weights": weights,
                "versions": {"talkhead": __version__} | {name: _version(name) for name in self.packages},
            }
        return self._description

    def __call__(
        self,
        real: str | os.PathLike,
        fake: str | os.PathLike,
        store: str | os.PathLike | None = None,
        watch: Callable[[Iterable], Iterable] = iter,
    ) -> dict:
        """Measure one pair.

        real, fake  paths of clips, or "-"
        store       folder in which features are saved, to compare a set as a whole; None computes FID of the pair alone
        watch       wraps the iterator of the real clip's frames, to show progress
        returns     dict: "real", "fake", the report of `metrics.compare` with the measures chosen here, "clips", codec,
                    rate and size of either, and "protocol". Measures of networks: "lpips"; "identity", cosine
                    similarity, and "identity_frames"; "lse_d", "lse_c" and "av_offset", and with prefix real_ those of
                    the real clip
        raises      TalkheadError if a clip cannot be read or the two cannot be compared
        """
        sounds = self._sounds(real, fake) if self.syncnet else None
        known = _landmarks(self.landmarks, real)
        closures = read_closures(self.phonemes, real, self.dictionary) if self.phonemes else None
        with ExitStack() as stack:
            readers = [stack.enter_context(video_files.read_frames(place, self.fps)) for place in (real, fake)]
            measures = [
                *([metrics.BilabialClosure(closures.times, closures.source, *self.lips)] if closures else []),
                *self._measures(readers, sounds),
            ]
            if known is not None and self.size:
                known = (known + 0.5) * (self.size / readers[0].size[1]) - 0.5
            extracted: Any = [fid.FeatureAccumulator(self.features) for _ in readers] if store else self.features
            clips = {
                name: {
                    "codec": reader.codec,
                    "fps": round(reader.source_fps, 3),
                    "size": list(reader.size),
                    "aligned": reader.aligned,
                }
                for name, reader in zip(("real", "fake"), readers)
            }
            frames = [stack.enter_context(_Prefetched(_sized(reader, self.size))) for reader in readers]
            report = metrics.compare(
                watch(frames[0]), frames[1], self.detector, known, extracted, measures, self.max_lag
            )
        if store:
            for place, accumulator in zip((real, fake), extracted):
                files.write_array(feature_path(store, place), accumulator.features())
        return {"real": str(real), "fake": str(fake)} | report | {"clips": clips, "protocol": self.describe()}

    def _measures(self, readers, sounds):
        if self.perceptual:
            yield _ImageMeasure("lpips", self.perceptual, self._device(self.options["device"]))
        if self.identity:
            aligned = self.aligned or all(reader.aligned for reader in readers)
            if not aligned and self.detector is None:
                raise TalkheadError(
                    f"{readers[1].name}: not marked as aligned, and the identity network needs aligned faces; "
                    "pass --set aligned=true if it is, or leave --no-lmd out"
                )
            yield _ImageMeasure(
                "identity",
                self.identity,
                self._device(self.options["device"]),
                None if aligned else FACE_SIDE,
                counted=True,
            )
        if self.syncnet:
            from talkhead import syncnet

            if self.detector is None and any(reader.size != (syncnet.SIDE, syncnet.SIDE) for reader in readers):
                raise TalkheadError(
                    f"{readers[1].name}: SyncNet needs crops of {syncnet.SIDE}x{syncnet.SIDE}, cut by landmarks; "
                    "leave --no-lmd out"
                )
            yield _SyncMeasure(self.syncnet, sounds)

    def _sounds(self, real, fake):
        """Sound of each clip; if a clip has none, the other's."""
        for place in (real, fake):
            if str(place) == "-":
                raise TalkheadError("-: SyncNet reads frames and sound, and a pipe can be read only once; pass a file")
        sounds = [_sound(place) for place in (real, fake)]
        if all(sound is None for sound in sounds):
            raise TalkheadError(f"{real}, {fake}: neither has a sound track, which SyncNet needs; leave --syncnet out")
        return [own if own is not None else other for own, other in zip(sounds, reversed(sounds))]


class Enlarged:
    """Landmark detector on enlarged frames, for detectors that miss small faces.

    detector   landmarks.Detector
    factor     whole number; 1 leaves frames as they are
    """

    def __init__(self, detector: landmarks.Detector, factor: int = 1) -> None:
        self.detector, self.factor, self.name, self.weights = detector, factor, detector.name, detector.weights

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        if self.factor == 1:
            return self.detector(image)
        from PIL import Image

        large = Image.fromarray(image).resize(
            [side * self.factor for side in image.shape[1::-1]], Image.Resampling.BICUBIC
        )
        # Pixel centres are at whole numbers: the centre of pixel 0, enlarged four times, is at 1.5.
        return [(face + 0.5) / self.factor - 0.5 for face in self.detector(np.asarray(large))]


def features(name: str, device: "str | torch.device" = "cpu") -> fid.FeatureNetwork:
    """Feature network for FID by name: "inception", "mobilenet", or "encoder", the bundled encoder's trunk."""
    from talkhead import checkpoints, fid

    if name == "encoder":
        encoder = checkpoints.load_encoder(checkpoints.bundled("encoder"), device=device)
        return fid.FaceFeatures(encoder)  # type: ignore[arg-type]  # a resnet
    return fid.named(name, device)


class _ImageMeasure:
    """Mean of a function of image pairs, computed in batches.

    function   of two batches, float (N, 3, H, W) in [-1, 1], to (N,)
    side       side of face crops by the landmarks, without pairs that lack a face; None is whole frames
    counted    report the number of pairs too
    """

    def __init__(self, name, function, device, side=None, counted=False):
        self.name, self.function, self.device, self.side, self.counted = name, function, device, side, counted
        self.pending, self.values = [], []

    def add(self, pair):
        if self.side is None:
            self.pending.append(pair[:2])
        elif pair.real_points is not None and pair.fake_points is not None:
            self.pending.append(
                (
                    faces.align(pair.real, pair.real_points, self.side),
                    faces.align(pair.fake, pair.fake_points, self.side),
                )
            )
        if len(self.pending) == fid.TOGETHER:
            self._flush()

    def _flush(self):
        import torch

        from talkhead.images import to_images

        if self.pending:
            with torch.no_grad():
                real, fake = (to_images(np.stack(frames)).to(self.device) for frames in zip(*self.pending))
                self.values += self.function(real, fake).flatten().tolist()
            self.pending = []

    def report(self):
        self._flush()
        mean = float(np.mean(self.values)) if self.values else None
        return {self.name: mean} | ({f"{self.name}_frames": len(self.values)} if self.counted else {})


class _SyncMeasure:
    """SyncNet's LSE-D, LSE-C and offset of either clip."""

    def __init__(self, network, sounds):
        from talkhead import syncnet

        self.evaluators, self.sounds = [syncnet.SyncNetEvaluator(network) for _ in range(2)], sounds

    def add(self, pair):
        for evaluator, frame, points in zip(self.evaluators, pair[:2], pair[2:]):
            evaluator.add(frame, points)

    def report(self):
        found = {}
        for prefix, evaluator, sound in zip(("real_", ""), self.evaluators, self.sounds):
            sync = evaluator.score(sound)
            found |= {
                prefix + name: value for name, value in zip(("lse_d", "lse_c", "av_offset"), sync or (None, None, None))
            }
        return found


class _Prefetched:
    """Iterator that a thread reads AHEAD items in advance; a context manager that ends the thread."""

    def __init__(self, items):
        self._items, self._thread, self._futures = iter(items), ThreadPoolExecutor(1), deque()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self):
        for _ in range(AHEAD):
            self._submit()
        while (item := self._futures.popleft().result()) is not None:
            self._submit()
            yield item

    def _submit(self):
        self._futures.append(self._thread.submit(next, self._items, None))


def _sized(reader, size):
    """Frames of a clip, resized if `size` is set."""
    if size is None:
        yield from reader
        return
    from talkhead.images import resize

    height, width = reader.size
    if height != width:
        raise TalkheadError(
            f"{reader.name}: {width}x{height}, and only square frames are resized; align it first, or leave size out"
        )
    for frame in reader:
        yield resize(frame, size)


def _sound(place):
    with video_files.read_frames(place, limit=1) as reader:
        silent = reader.sound is None
    return None if silent else audio_files.read_audio(place)


def _landmarks(place, clip):
    """Known landmarks of a clip, (T, 68, 2), or None."""
    if place is None:
        return None
    place = Path(place)
    if place.is_dir():
        place = place / f"{Path(clip).stem}.landmarks.npy"
    points = faces.read_landmarks(place)
    missing = np.isnan(points).any(axis=(1, 2))
    if missing.any():
        raise TalkheadError(
            f"{place}, frame {int(np.argmax(missing))}: landmarks are NaN, and are needed in every frame; "
            "leave landmarks out"
        )
    return points


def _weights_path(name, purpose, path=None):
    """Path of public weights, `path` or the default one; TalkheadError with their address if the file is missing."""
    weights = downloads.find(name)
    path = weights.path if path is None else Path(path)
    if not path.is_file():
        size = f"{weights.size / 1e6:.0f} MB" if weights.size else "size unknown"
        raise TalkheadError(
            f"{path}: file not found; {purpose} needs it; run talkhead weights fetch {name}, "
            f"or download {weights.urls[0]} ({size})"
        )
    return path


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def read_protocol(place: str | os.PathLike) -> dict:
    """Read a protocol: "thesis", or the path of a record, of a file of records, or of a `describe` dict.

    returns  dict with "settings", and "weights" and "versions" if known
    raises   TalkheadError if there is none
    """
    if str(place) == "thesis":
        return {"settings": dict(THESIS)}
    with files.os_errors_in_one_line(place):
        text = files.decoded(Path(place).read_bytes(), "replace")
    try:
        try:
            protocol = json.loads(text)
        except ValueError:
            protocol = json.loads(text.partition("\n")[0])  # a file of records
        protocol = protocol.get("protocol", protocol)
        unknown = set(protocol["settings"]) - set(DEFAULTS)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TalkheadError(
            f"{place}: no protocol of talkhead metrics; give thesis, or a file of the output of metrics"
        ) from None
    if unknown:
        raise TalkheadError(
            f"{place}: its protocol sets {', '.join(sorted(unknown))}, unknown to this version; use the one it names"
        )
    return protocol


def replay(recorded: dict, options: dict, explicit: Collection[str], place: str = "--protocol") -> dict:
    """Options of a `Protocol` that repeats a recorded one.

    recorded  recorded protocol, from `read_protocol`
    options   options of `Protocol` without it, from which files are taken
    explicit  names of options that the user set: they may not contradict the protocol
    place     name of the protocol in messages
    raises    TalkheadError if they do, or if a file that the protocol needs is missing, or one it does not use is given
    """
    options = dict(options)
    for name, value in (DEFAULTS | recorded["settings"]).items():
        flag = "--" + FILES.get(name, name).replace("_", "-")
        if name in FILES:
            if value and options.get(FILES[name]) is None:
                raise TalkheadError(f"{place}: the protocol measures with a file of {flag}; pass it")
            if not value and options.get(FILES[name]) is not None:
                raise TalkheadError(f"{place}: the protocol measures without {flag}; leave it out")
        elif name in explicit and options[name] != value:
            raise TalkheadError(
                f"{place}: the protocol says {json.dumps(value)}, not {flag} {options[name]}; leave one of them out"
            )
        else:
            options[name] = value
    return options


def check(recorded: dict, protocol: Protocol, place: str = "--protocol") -> None:
    """Compare the weights and versions of a replayed protocol with the present ones.

    raises   TalkheadError if weights differ
    warns    if versions differ
    """
    mine = protocol.describe()
    for role, wanted in recorded.get("weights", {}).items():
        found = mine["weights"].get(role, [])
        if [weight["sha256"] for weight in found] != [weight["sha256"] for weight in wanted]:
            names = [
                ", ".join(f"{weight['file']} {weight['sha256'][:12]}…" for weight in weights) or "nothing"
                for weights in (wanted, found)
            ]
            raise TalkheadError(
                f"{place}: measured with the {role} {names[0]}, and here is {names[1]}; pass the same files"
            )
    other = [
        f"{name} {then}, here {mine['versions'].get(name)}"
        for name, then in recorded.get("versions", {}).items()
        if mine["versions"].get(name) != then
    ]
    if other:
        warnings.warn(f"{place}: measured with {'; '.join(other)}", stacklevel=2)


def feature_path(store, place):
    """Path of the saved features of a clip."""
    return Path(store) / f"{sha256(str(place).encode()).hexdigest()[:24]}.npy"
