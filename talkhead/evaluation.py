"""Evaluation of pairs and sets of clips by a reproducible protocol.

    pairs ─ Protocol ─▶ records ─ summarise ─▶ record of the set ─ table ─▶ text

A record is a JSON dict, one line of a file. Its "protocol" holds the settings, weights and versions, and can be
replayed.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
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
    image_files,
    jobs,
    landmarks,
    metrics,
    video_files,
)
from talkhead.errors import TalkheadError
from talkhead.phonemes import read_closures, read_dictionary

if TYPE_CHECKING:
    import torch

    from talkhead.audio2latent import FirstModel, SecondModel
    from talkhead.encoders import Encoder
    from talkhead.stylegan import Generator

AHEAD = 4  # frames decoded ahead of the measures
FACE_SIDE = 256  # pixels, of the crops for the identity network
VIDEO_SUFFIXES = {".mp4", ".mpg", ".mpeg", ".avi", ".mov", ".mkv", ".webm"}

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


# Protocol -------------------------------------------------------------------------------------------------------------


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
                "metrics: closures need landmarks of both clips by one detector; leave --landmarks out, or --phonemes"
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
                files.write_array(_feature_path(store, place), accumulator.features())
        return {"real": str(real), "fake": str(fake)} | report | {"clips": clips, "protocol": self.describe()}

    def _measures(self, readers, sounds):
        if self.perceptual:
            yield _ImageMeasure("lpips", self.perceptual, self._device(self.options["device"]))
        if self.identity:
            aligned = self.aligned or all(reader.aligned for reader in readers)
            if not aligned and self.detector is None:
                raise TalkheadError(
                    f"{readers[1].name}: not marked as aligned, and the identity network needs aligned faces; "
                    "pass --aligned if it is, or leave --no-lmd out"
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
        return fid.FaceFeatures(checkpoints.load_encoder(checkpoints.bundled("encoder"), device=device))  # type: ignore[arg-type]  # a resnet
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
            f"{reader.name}: {width}x{height}, and only square frames are resized; align it first, or leave --size out"
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
            "leave --landmarks out"
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


# Replaying a protocol -------------------------------------------------------------------------------------------------


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
            if value and options[FILES[name]] is None:
                raise TalkheadError(f"{place}: the protocol measures with a file of {flag}; pass it")
            if not value and options[FILES[name]] is not None:
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


# Sets of pairs --------------------------------------------------------------------------------------------------------


def match(places: Sequence[str | os.PathLike]) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of clips: files in their order, folders of clips matched by name.

    places   real, fake, real, fake, …: clips, folders of images (a clip each), or two folders of clips, at any depth
    returns  list of (real, fake), and a list of the clips in folders without a partner
    raises   TalkheadError if a place does not exist, a folder is paired with a file, or no names match
    """
    pairs, alone = [], []
    for real, fake in zip(places[::2], places[1::2]):
        folders = [_is_set(place) for place in (real, fake)]
        if folders == [False, False]:
            pairs.append((str(real), str(fake)))
            continue
        if not all(folders):
            raise TalkheadError(
                f"{real}, {fake}: one is a folder of clips, the other a single clip; give two of a kind"
            )
        ours, theirs = _clips(real), _clips(fake)
        common = [name for name in ours if name in theirs]
        if not common:
            raise TalkheadError(f"{real}, {fake}: no clips of one name; name them alike, or pass --list")
        pairs += [(str(ours[name]), str(theirs[name])) for name in common]
        alone += [
            str(clip)
            for found, other in ((ours, theirs), (theirs, ours))
            for name, clip in found.items()
            if name not in other
        ]
    return pairs, alone


def _is_set(place):
    """True for a folder of clips; a folder of images is a clip itself."""
    if str(place) == "-" or not Path(place).is_dir():
        return False
    suffixes = {
        path.suffix.lower() for path in Path(place).iterdir() if path.is_file() and not files.is_hidden(path.name)
    }
    return bool(suffixes & VIDEO_SUFFIXES) or not suffixes & image_files.PICTURES


def _clips(folder):
    """Clips in a folder by name: {relative path without suffix: path}."""
    folder, found = Path(folder), {}
    for path in sorted(folder.rglob("*")):
        is_clip = path.suffix.lower() in VIDEO_SUFFIXES if path.is_file() else not _is_set(path)
        if is_clip and not files.is_hidden(path.relative_to(folder)):
            name = path.relative_to(folder).with_suffix("") if path.is_file() else path.relative_to(folder)
            if str(name) in found:
                raise TalkheadError(f"{path}: {found[str(name)].name} has the same name; keep one of them there")
            found[str(name)] = path
    return found


def evaluate(
    pairs: Sequence[tuple[str, str]],
    protocol: Protocol,
    output: str | os.PathLike | None = None,
    overwrite: bool = False,
    workers: int = 1,
    shard: jobs.Shard = jobs.Shard(),
    watch: Callable[[Iterable], Iterable] = iter,
) -> Iterator[dict]:
    """Measure pairs, in one or several processes; a failure is recorded, and the next pair follows.

    pairs      list of all (real, fake) paths
    protocol   Protocol
    output     file of records (JSON lines), to which each is appended; pairs in it are skipped unless they failed. A
               shard writes its own, NAME-I-of-N, and reads those of all shards. None writes no file
    overwrite  measure again the pairs in the file
    workers    number of processes
    shard      jobs.Shard, this process's part of the pairs
    watch      as in `Protocol`, for a single pair without a file
    yields     the record of each pair, in order; of a failed one {"real", "fake", "error", "protocol"}, and "traceback"
               if it is a bug. For several pairs the last record is that of `summarise`, with FID and KID over all
               frames
    raises     TalkheadError if the file was made by another protocol, or cannot be written. A single pair without a
               file raises its own error
    """
    alone, pairs = len(pairs) == 1, shard(pairs)
    if alone and output is None:
        yield from (protocol(real, fake, watch=watch) for real, fake in pairs)
        return
    with ExitStack() as stack:
        store = None
        if protocol.features and not alone:
            store = Path(f"{output}.features") if output else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            with files.os_errors_in_one_line(store):
                store.mkdir(exist_ok=True)
        ledger = stack.enter_context(_Ledger(output, protocol.describe(), shard, overwrite)) if output else None
        known = {
            pair: record for pair, record in (ledger.known if ledger else {}).items() if _has_features(store, pair)
        }
        waiting = [pair for pair in pairs if pair not in known]
        made = stack.enter_context(_Workers(protocol, workers if len(waiting) > 1 else 1, store))(waiting)
        records = []
        for pair in pairs:
            if pair in known:
                record = known[pair]
            else:
                record = next(made)
                if ledger:
                    ledger.add(record)
            records.append(record)
            yield record
        if not alone:
            summary = summarise(records) | {"protocol": protocol.describe()}
            if store:
                summary |= _set_distance(
                    store, [record for record in records if "error" not in record], protocol.features
                )
            if ledger:
                ledger.add(summary)
            yield summary


def measured(
    protocol: Protocol, real: str | os.PathLike, fake: str | os.PathLike, store: str | os.PathLike | None = None
) -> dict:
    """Record of a pair, also if it fails."""
    try:
        return protocol(real, fake, store)
    except TalkheadError as problem:
        error = {"error": str(problem)}
    except Exception as problem:  # a bug must not stop the other pairs
        error = {"error": f"{type(problem).__name__}: {problem}", "traceback": traceback.format_exc()}
    return {"real": str(real), "fake": str(fake)} | error | {"protocol": protocol.describe()}


class _Workers:
    """Records of pairs, in order, by this process or a pool; a context manager that ends the pool."""

    def __init__(self, protocol, count, store):
        self.protocol, self.store = protocol, store
        context = multiprocessing.get_context("spawn")
        self.pool = (
            ProcessPoolExecutor(count, context, _start_worker, (protocol.options, protocol.describe(), store, count))
            if count > 1
            else None
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def __call__(self, pairs):
        if self.pool is None:
            yield from (measured(self.protocol, *pair, self.store) for pair in pairs)
            return
        try:
            yield from self.pool.map(_measured, pairs)
        except BrokenProcessPool as problem:
            raise TalkheadError(
                "metrics: a process was killed, perhaps for lack of memory; lower --workers; "
                "with -o, finished pairs are kept"
            ) from problem


_worker = None  # in a worker process: its protocol and folder of features


def _start_worker(options, described, store, count):
    global _worker
    protocol = Protocol(**options)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(max(1, os.cpu_count() // count))
    protocol._description = described  # saves hashing the weights again
    _worker = protocol, store


def _measured(pair):
    protocol, store = _worker
    return measured(protocol, *pair, store)


class _Ledger:
    """File of records that is appended to; a context manager.

    known   {(real, fake): record} in this file and those of other shards, without failed ones
    """

    def __init__(self, path, protocol, shard, overwrite):
        base = Path(path)
        self.path = base if shard.of == 1 else base.with_name(f"{base.stem}-{shard.index}-of-{shard.of}{base.suffix}")
        self.known = {}
        own = [] if overwrite else self._read(self.path, protocol)
        if not overwrite:
            for other in sorted({base, *base.parent.glob(f"{base.stem}-*-of-*{base.suffix}")} - {self.path}):
                self._take(self._read(other, protocol))
        self._take(own)
        with files.os_errors_in_one_line(self.path), files.atomic(self.path) as place:
            Path(place).write_text("".join(json.dumps(record) + "\n" for record in own), encoding="utf-8")
        with files.os_errors_in_one_line(self.path):
            self._stream = open(self.path, "a", encoding="utf-8")

    def _take(self, records):
        self.known |= {(record["real"], record["fake"]): record for record in records}

    @staticmethod
    def _read(path, protocol):
        """Records of a file that did not fail."""
        if not path.exists():
            return []
        with files.os_errors_in_one_line(path):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        records = []
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):  # cut off when a process was killed
                continue
            try:
                record = json.loads(line)
                other = {name for name in ("settings", "weights") if record["protocol"][name] != protocol[name]}
                if "real" in record and "error" not in record:
                    hash((record["real"], record["fake"]))
                    json.dumps([record, summarise([record])], allow_nan=False)
            except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
                raise TalkheadError(
                    f"{path}, line {number}: not a record of talkhead metrics; name another file"
                ) from None
            if other:
                raise TalkheadError(
                    f"{path}, line {number}: measured with other {' and '.join(sorted(other))}; "
                    f"pass --protocol {path} to repeat them, --overwrite to measure all again, or name another file"
                )
            records += [record] if "real" in record and "error" not in record else []
        return records

    def add(self, record):
        with files.os_errors_in_one_line(self.path):
            self._stream.write(json.dumps(record, allow_nan=False) + "\n")
            self._stream.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with files.os_errors_in_one_line(self.path):
            self._stream.close()


def _feature_path(store, place):
    """Path of the saved features of a clip."""
    return Path(store) / f"{sha256(str(place).encode()).hexdigest()[:24]}.npy"


def _has_features(store, pair):
    return store is None or all(_feature_path(store, place).exists() for place in pair)


def _set_distance(store, records, network):
    """FID and KID of all frames of a set, from the saved features of its clips, in constant memory."""
    sides = [
        [
            np.load(_feature_path(store, place), mmap_mode="r")
            for place in dict.fromkeys(record[side] for record in records)
        ]
        for side in ("real", "fake")
    ]
    counts = [sum(map(len, side)) for side in sides]
    if min(counts) < 2:
        return {"fid": None, "kid": None, "fid_features": network.name, "fid_pictures": counts}
    statistics = [_statistics(side, network.width) for side in sides]
    samples = [_sample(side, count) for side, count in zip(sides, counts)]
    fid.warn_of_few(min(counts), network)
    return {
        "fid": fid.statistics_distance(*statistics),
        "kid": fid.kernel_distance(*samples),
        "fid_features": network.name,
        "fid_pictures": counts,
    }


def _statistics(arrays, width):
    statistics, pending = fid.FeatureStatistics(width), []
    for number, array in enumerate(arrays, 1):
        pending.append(array)
        # In large blocks: each QR decomposition costs as much as thousands of images.
        if sum(map(len, pending)) > 2 * width or number == len(arrays):
            statistics.add(np.concatenate(pending))
            pending = []
    return statistics


def _sample(arrays, count):
    """All features, or fid.KERNEL_MOST of them at random."""
    if count <= fid.KERNEL_MOST:
        return np.concatenate(arrays)
    chosen = np.sort(np.random.default_rng(0).choice(count, fid.KERNEL_MOST, replace=False))
    starts = np.cumsum([0, *map(len, arrays)])
    parts = np.split(chosen, np.searchsorted(chosen, starts[1:-1]))
    return np.concatenate([array[part - start] for array, part, start in zip(arrays, parts, starts)])


# Summary of a set -----------------------------------------------------------------------------------------------------

# Weight of a pair in the mean of a set: the field that counts its frames; None is equal weights.
_WEIGHED = {
    "psnr": "psnr_frames",
    "ssim": "frames",
    "lpips": "frames",
    "identity": "identity_frames",
    "lmd": "lmd_frames",
    "velocity_error": "velocity_frames",
    "real_jitter": "frames",
    "fake_jitter": "frames",
    "real_sharpness": "frames",
    "fake_sharpness": "frames",
    "closure_rate": "closures",
    "real_closure_rate": "closures",
    "closure_luck": "closures",
    "opening_correlation": None,
    "opening_best": None,
    "lse_d": None,
    "lse_c": None,
    "real_lse_d": None,
    "real_lse_c": None,
}
_SUMMED = (
    "frames",
    "identical",
    "real_no_face",
    "fake_no_face",
    "lmd_frames",
    "velocity_frames",
    "identity_frames",
    "closures",
)
_MEDIAN = ("opening_lag", "av_offset", "real_av_offset")


def summarise(records: Sequence[dict]) -> dict:
    """Summary record of a set: {"summary": True, "pairs", "failed", …}, with sums, means or medians of the fields.

    records  records of `Protocol`; failed ones are only counted
    """
    good = [
        record | {"psnr_frames": record["frames"] - record["identical"]} for record in records if "error" not in record
    ]
    summary: dict = {"summary": True, "pairs": len(records), "failed": len(records) - len(good)}
    for name in dict.fromkeys(name for record in good for name in record):
        found = [record for record in good if record.get(name) is not None]
        if name in _SUMMED:
            summary[name] = sum(record[name] for record in found)
        elif name in _MEDIAN:
            summary[name] = float(np.median([record[name] for record in found])) if found else None
        elif name in _WEIGHED:
            weights = [record[_WEIGHED[name]] if _WEIGHED[name] else 1 for record in found]
            summary[name] = (
                float(np.average([record[name] for record in found], weights=weights)) if sum(weights) else None
            )
    return summary


_COLUMNS = (
    ("psnr", "PSNR", 2),
    ("ssim", "SSIM", 3),
    ("lpips", "LPIPS", 3),
    ("fid", "FID", 2),
    ("kid", "KID", 4),
    ("identity", "identity", 3),
    ("lmd", "LMD", 2),
    ("velocity_error", "velocity", 2),
    ("opening_correlation", "opening r", 2),
    ("opening_lag", "lag", 1),
    ("closure_rate", "closures", 2),
    ("real_closure_rate", "of real", 2),
    ("lse_c", "LSE-C", 2),
    ("lse_d", "LSE-D", 2),
    ("real_jitter", "jitter real", 2),
    ("fake_jitter", "fake", 2),
    ("real_sharpness", "sharp real", 0),
    ("fake_sharpness", "fake", 0),
)


def table(records: Sequence[dict]) -> str:
    """Text table of records: a line for each pair and for the set, then the protocol."""
    shown = [record for record in records if "error" not in record and "networks" not in record]
    columns = [column for column in _COLUMNS if any(column[0] in record for record in shown)]
    lines = [["", "frames", *(heading for _, heading, _ in columns)]]
    for record in shown:
        name = f"all {record['pairs'] - record['failed']}" if record.get("summary") else _short(record["fake"])
        infinite = record.get("psnr") is None and record.get("identical")
        lines.append(
            [
                name,
                str(record.get("frames", "–")),
                *(
                    "∞" if field == "psnr" and infinite else _number(record.get(field), digits)
                    for field, _, digits in columns
                ),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = (
        [
            "  ".join(
                cell.ljust(width) if not column else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths))
            ).rstrip()
            for line in lines
        ]
        if shown
        else []
    )
    text += [f"failed: {' '.join(record['error'].split())}" for record in records if "error" in record]
    text += [_table_of_networks(record) for record in records if "networks" in record]
    return "\n".join([*text, *(["", _protocol_line(shown[-1])] if shown else [])])


def _short(path, limit=40):
    path = str(path)
    return path if len(path) <= limit else "…" + path[1 - limit :]


def _number(value, digits):
    return "–" if value is None else f"{value:.{digits}f}"


def _protocol_line(record):
    """The protocol in one line."""
    protocol, size = record["protocol"], record.get("size")
    settings = protocol["settings"]
    parts = [f"{settings['fps']:g} fps"] + ([f"{size[1]}x{size[0]} pixels"] if size else [])
    parts += [f"landmarks by {settings['detector']}"] if settings["lmd"] else []
    parts += [f"FID by {record['fid_features']}"] if record.get("fid_features") else []
    parts += [f"closures ±{settings['closure_tolerance']} frames"] if settings["closures"] else []
    return ", ".join([*parts, *(f"{name} {found}" for name, found in protocol["versions"].items())])


def _table_of_networks(record):
    millions = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in record["parameters"].items())
    return (
        f"{record['frames_per_second']:.1f} frames/s at {record['size'][0]}x{record['size'][1]} on {record['device']}; "
        f"parameters: {millions}"
    )


# Size and speed of the networks ---------------------------------------------------------------------------------------


def network_speed(
    generator: "Generator",
    encoder: "Encoder",
    audio2latent: "FirstModel | SecondModel",
    seconds: float = 4.0,
    batch: int = 8,
) -> dict:
    """Parameters and speed of the networks of a talking head (thesis, Table 5.2).

    generator, encoder, audio2latent   networks trained for one generator, on one device
    seconds   duration of the timed speech, after a second of warm-up
    batch     frames synthesized together
    returns   dict: "networks", True; "parameters", of each and in all; "frames_per_second", from a face and a sound in
              memory to frames in memory; "frames"; "size", [height, width]; "batch"; "device"; "threads" of the CPU
    """
    import time

    import torch

    from talkhead import synthesis
    from talkhead.mfcc import SAMPLE_RATE

    face = next(synthesis.synthesize(generator, generator.w_avg.expand(generator.num_ws, -1)[None].cpu()))
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32)
    for sound in (noise[:SAMPLE_RATE], noise):
        began, frames = time.perf_counter(), 0
        for _ in synthesis.generate(generator, encoder, audio2latent, face, sound, batch):
            frames += 1
    speed = frames / (time.perf_counter() - began)
    device = next(generator.parameters()).device
    counts = {
        name: sum(value.numel() for value in network.parameters())
        for name, network in (("generator", generator), ("encoder", encoder), ("audio2latent", audio2latent))
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "networks": True,
        "parameters": counts | {"all": sum(counts.values())},
        "frames_per_second": speed,
        "frames": frames,
        "size": [generator.resolution, generator.resolution],
        "batch": batch,
        "device": name,
        "threads": torch.get_num_threads(),
    }
