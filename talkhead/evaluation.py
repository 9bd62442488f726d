"""Sets of clips measured against the truth, by a protocol that is written down with every number.

    pairs ─ Protocol ─▶ records ─ summarise ─▶ a record of the set ─ table ─▶ what people read

A record is a dict that JSON can hold, a line of a file. Its "protocol" says how it was made, and can be replayed.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import traceback
import warnings
from collections import deque
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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

AHEAD = 4  # frames decoded while those before are measured
FACE_SIDE = 256  # pixels: of the crops that tell people apart
MOVING = {".mp4", ".mpg", ".mpeg", ".avi", ".mov", ".mkv", ".webm"}

# What a protocol sets, and what the thesis sets (SPEC §8: thesis §5.2.1, landmarks by FAN as in §3.3.1.1).
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
    "shut_below": metrics.SHUT,
    "closure_tolerance": metrics.TOLERANCE,
}
THESIS = DEFAULTS | {"fid": True, "detector": "face-alignment"}
# Settings that hang on a file, by the name of the option that names it.
FILES = {"identity": "identity_network", "syncnet": "syncnet", "closures": "phonemes", "known_landmarks": "landmarks"}

RULES = {
    "rate": "frames are dropped or repeated by the time at which they are shown, to fps",
    "length": "the longer clip is cut to the shorter",
    "size": "equal, or refused; resized (bilinear, antialiased) where size is set",
    "crop": "none: whole frames as they come; for the identity, FFHQ's crop by the landmarks unless the clip is marked as aligned; "
    "for SyncNet, the face's box by the landmarks",
    "psnr": "RGB, peak 255, mean of decibels over frames; identical frames are left out and counted",
    "ssim": "RGB, 11x11 Gaussian of sigma 1.5, K1 0.01, K2 0.03, no borders, mean over patches, channels and frames",
    "lmd": "points 48-67 where they are in the frame, mean over points and over frames with a face in both, pixels of the compared frames",
    "means": "of a set: over the frames of all pairs; of correlations and SyncNet's, over pairs; of lags, the median",
}


# A protocol -------------------------------------------------------------------------------------------------------------


class Protocol:
    """How clips are compared, and the networks for it. Called with two clips, gives their record.

    fps                frames a second at which clips are compared
    size               side to which square frames are resized; None compares frames of one size as they are
    lmd                measure what needs landmarks: `metrics.LandmarkMeasures`
    fid                compare the distributions of all frames: FID and KID
    fid_features       whose features: "inception", "mobilenet", or "encoder", the bundled one
    lpips              measure LPIPS (VGG)
    identity_network   path of a face recognition network, as `losses.identity_network` takes: cosine of what it says of each pair of frames
    syncnet            path of SyncNet's weights: LSE-C and LSE-D of either clip with its own sound; of one without, with the other's
    phonemes           timing file, or a folder of them by the real clips' names, for `metrics.BilabialClosure`
    dictionary         pronouncing dictionary in the format of CMUdict, for words that GRID does not have
    landmarks          .npy (T, 68, 2) of the true clip, or a folder with NAME.landmarks.npy: then only the fake clip is searched
    aligned            take all clips as aligned
    detector, detector_model   as `landmarks.detector` takes them
    enlarge            factor by which frames are enlarged for the detector, which overlooks small faces
    max_lag            frames by which the mouth may be early or late
    shut_below         lips count as shut below this share of the true mouth's way
    closure_tolerance  frames by which lips may shut too early or too late
    device             where networks compute
    raises             TalkheadError if weights are missing: it names them, where they are to be had, and where they should lie

    `describe()` tells all this, versions and the hashes of weights, as a dict that JSON can hold.
    """

    def __init__(
        self,
        fps=25.0,
        size=None,
        lmd=True,
        fid=False,
        fid_features="inception",
        lpips=False,
        identity_network=None,
        syncnet=None,
        phonemes=None,
        dictionary=None,
        landmarks=None,
        aligned=False,
        detector="auto",
        detector_model=None,
        enlarge=1,
        max_lag=metrics.MAX_LAG,
        shut_below=metrics.SHUT,
        closure_tolerance=metrics.TOLERANCE,
        device="auto",
    ):
        self.options = {name: value for name, value in locals().items() if name != "self" and not name.startswith("__")}
        self.fps, self.size, self.max_lag, self.lips = fps, size, max_lag, (shut_below, fps, closure_tolerance)
        self.phonemes, self.landmarks, self.aligned = phonemes, landmarks, aligned
        if not lmd and (phonemes or landmarks):
            raise TalkheadError("metrics: closures and true landmarks need a detector; leave --no-lmd out")
        if phonemes and landmarks:
            raise TalkheadError(
                "metrics: lips are shut by what one detector sees of both mouths; leave --landmarks out, or --phonemes"
            )
        if syncnet and fps != 25:
            raise TalkheadError(f"metrics: SyncNet knows 25 frames a second, not {fps:g}; leave --fps or --syncnet out")
        self.weights, self.packages = {}, ["numpy", "av"]
        self.dictionary = None if dictionary is None else read_dictionary(dictionary)
        if dictionary:
            self.weights["dictionary"] = [dictionary]
        self.detector = self._find(detector, detector_model, enlarge, device) if lmd else None
        self.features = self._look(fid_features, device) if fid else None
        self.perceptual = self._perceive(device) if lpips else None
        self.identity = self._recognise(identity_network, device) if identity_network else None
        self.syncnet = self._synchronise(syncnet, device) if syncnet else None
        self._described = None

    def _find(self, name, model, enlarge, device):
        detector = landmarks.detector(name, model, "cpu" if name == "mediapipe" else self._device(device))
        self.weights["detector"] = detector.weights
        self.packages.append(detector.name)
        return Enlarged(detector, enlarge)

    def _look(self, name, device):
        from talkhead import checkpoints

        if name == "inception":
            self.weights["fid"] = [_wanted("inception-fid", "FID")]
        else:
            self.weights["fid"] = [checkpoints.bundled("encoder")]
        return features(name, self._device(device))

    def _perceive(self, device):
        self.weights["lpips"] = [_wanted("vgg16", "LPIPS")]
        from talkhead import losses

        self.packages.append("lpips")
        network = losses.Perceptual("lpips").to(self._device(device))
        return lambda real, fake: network(fake, real)

    def _recognise(self, path, device):
        self.weights["identity"] = [_wanted("ir-se50", "identity", path)]
        from torch.nn import functional as F

        from talkhead import losses

        network = losses.identity_network(path, self._device(device))
        return lambda real, fake: F.cosine_similarity(network(real), network(fake), dim=1)

    def _synchronise(self, path, device):
        self.weights["syncnet"] = [_wanted("syncnet", "LSE-C and LSE-D", path)]
        from talkhead import syncnet

        return syncnet.load(path, self._device(device))

    def _device(self, name):
        """Where to compute. torch takes seconds to load, so that nobody asks who does without."""
        from talkhead.distributed import pick_device

        self.packages += [] if "torch" in self.packages else ["torch"]
        return pick_device(name)

    def settings(self):
        """What can be set, as `--protocol` replays it."""
        own = {name: self.options[name] for name in DEFAULTS if name in self.options}
        own |= {name: self.options[option] is not None for name, option in FILES.items()}
        return own | {"detector": self.detector.name if self.detector else self.options["detector"]}

    def describe(self):
        """A dict that JSON can hold: settings, rules, the weights' files and sha256, versions."""
        if self._described is None:
            weights = {
                role: [{"file": Path(path).name, "sha256": downloads.verify(path)["sha256"]} for path in paths]
                for role, paths in self.weights.items()
            }
            self._described = {
                "settings": self.settings(),
                "rules": RULES,
                "weights": weights,
                "versions": {"talkhead": __version__} | {name: _version(name) for name in self.packages},
            }
        return self._described

    def __call__(self, real, fake, store=None, watch=iter):
        """Measure one pair.

        real, fake  paths of clips, or "-"
        store       folder for what the feature network sees, so that a set can be compared as a whole; None compares the pair alone
        watch       wraps the iterator of the true clip's frames, to show progress
        returns     dict: "real", "fake", what `metrics.compare` reports and the measures chosen here, "clips", what either was found to be,
                    and "protocol". Measures that need a network: "lpips"; "identity" and "identity_frames", cosine; "lse_d", "lse_c" and
                    "av_offset", and with real_ those of the true clip
        raises      TalkheadError if one cannot be read or the two cannot be compared
        """
        sounds = self._sounds(real, fake) if self.syncnet else None
        known = _landmarks(self.landmarks, real)
        closures = read_closures(self.phonemes, real, self.dictionary) if self.phonemes else None
        with ExitStack() as stack:
            readers = [stack.enter_context(video_files.read_frames(place, self.fps)) for place in (real, fake)]
            measures = [
                *([metrics.BilabialClosure(*closures, *self.lips)] if closures else []),
                *self._measures(readers, sounds),
            ]
            if known is not None and self.size:
                known = (known + 0.5) * (self.size / readers[0].size[1]) - 0.5
            seen = [fid.FeatureAccumulator(self.features) for _ in readers] if store else self.features
            clips = {
                name: {
                    "codec": reader.codec,
                    "fps": round(reader.source_fps, 3),
                    "size": list(reader.size),
                    "aligned": reader.aligned,
                }
                for name, reader in zip(("real", "fake"), readers)
            }
            frames = [stack.enter_context(_Ahead(_sized(reader, self.size))) for reader in readers]
            report = metrics.compare(watch(frames[0]), frames[1], self.detector, known, seen, measures, self.max_lag)
        if store:
            for place, cloud in zip((real, fake), seen):
                files.write_array(_kept(store, place), cloud.features())
        return {"real": str(real), "fake": str(fake)} | report | {"clips": clips, "protocol": self.describe()}

    def _measures(self, readers, sounds):
        if self.perceptual:
            yield _Pictures("lpips", self.perceptual, self._device(self.options["device"]))
        if self.identity:
            whole = self.aligned or all(reader.aligned for reader in readers)
            if not whole and self.detector is None:
                raise TalkheadError(
                    f"{readers[1].name}: not marked as aligned, and who is seen is told from aligned faces; pass --aligned if it "
                    "is, or leave --no-lmd out"
                )
            yield _Pictures(
                "identity",
                self.identity,
                self._device(self.options["device"]),
                None if whole else FACE_SIDE,
                counted=True,
            )
        if self.syncnet:
            from talkhead import syncnet

            if self.detector is None and any(reader.size != (syncnet.SIDE, syncnet.SIDE) for reader in readers):
                raise TalkheadError(
                    f"{readers[1].name}: SyncNet looks at crops of {syncnet.SIDE}x{syncnet.SIDE}, which are cut by landmarks; "
                    "leave --no-lmd out"
                )
            yield _Synchrony(self.syncnet, sounds)

    def _sounds(self, real, fake):
        """The sound of each clip; of one without, the other's."""
        for place in (real, fake):
            if str(place) == "-":
                raise TalkheadError("-: SyncNet needs frames and sound, and a pipe can be read only once; name a file")
        sounds = [_sound(place) for place in (real, fake)]
        if all(sound is None for sound in sounds):
            raise TalkheadError(
                f"{real}, {fake}: neither has a sound track, and SyncNet compares lips with sound; leave --syncnet out"
            )
        return [own if own is not None else other for own, other in zip(sounds, reversed(sounds))]


class Enlarged:
    """A detector that sees frames enlarged, because it was made for faces larger than these.

    detector   landmarks.Detector
    factor     whole number; 1 changes nothing
    """

    def __init__(self, detector, factor=1):
        self.detector, self.factor, self.name, self.weights = detector, factor, detector.name, detector.weights

    def __call__(self, image):
        if self.factor == 1:
            return self.detector(image)
        from PIL import Image

        large = Image.fromarray(image).resize(
            [side * self.factor for side in image.shape[1::-1]], Image.Resampling.BICUBIC
        )
        # The centre of pixel 0 is at 0: enlarged four times, it comes to lie at 1.5.
        return [(face + 0.5) / self.factor - 0.5 for face in self.detector(np.asarray(large))]


def features(name, device="cpu"):
    """A feature network for FID by name: "inception", "mobilenet", or "encoder", the bundled one's trunk."""
    from talkhead import checkpoints, fid

    if name == "encoder":
        return fid.FaceFeatures(checkpoints.load_encoder(checkpoints.bundled("encoder"), device=device))
    return fid.named(name, device)


class _Pictures:
    """A network's number for each pair of pictures, worked out some at a time.

    function   of two batches, float (N, 3, H, W) in [-1, 1], to (N,)
    side       of crops by the landmarks that it wants, and pairs with a face missing are left out; None gives it whole frames
    counted    whether the report says how many there were
    """

    def __init__(self, name, function, device, side=None, counted=False):
        self.name, self.function, self.device, self.side, self.counted = name, function, device, side, counted
        self.waiting, self.values = [], []

    def add(self, pair):
        if self.side is None:
            self.waiting.append(pair[:2])
        elif pair.real_points is not None and pair.fake_points is not None:
            self.waiting.append(
                (
                    faces.align(pair.real, pair.real_points, self.side),
                    faces.align(pair.fake, pair.fake_points, self.side),
                )
            )
        if len(self.waiting) == fid.TOGETHER:
            self._look()

    def _look(self):
        import torch

        from talkhead.images import to_images

        if self.waiting:
            with torch.no_grad():
                real, fake = (to_images(np.stack(frames)).to(self.device) for frames in zip(*self.waiting))
                self.values += self.function(real, fake).flatten().tolist()
            self.waiting = []

    def report(self):
        self._look()
        mean = float(np.mean(self.values)) if self.values else None
        return {self.name: mean} | ({f"{self.name}_frames": len(self.values)} if self.counted else {})


class _Synchrony:
    """SyncNet's view of either clip."""

    def __init__(self, network, sounds):
        from talkhead import syncnet

        self.watchers, self.sounds = [syncnet.SyncNetEvaluator(network), syncnet.SyncNetEvaluator(network)], sounds

    def add(self, pair):
        for evaluator, frame, points in zip(self.watchers, pair[:2], pair[2:]):
            evaluator.add(frame, points)

    def report(self):
        found = {}
        for prefix, evaluator, sound in zip(("real_", ""), self.watchers, self.sounds):
            sync = evaluator.score(sound)
            found |= {
                prefix + name: value for name, value in zip(("lse_d", "lse_c", "av_offset"), sync or (None, None, None))
            }
        return found


class _Ahead:
    """An iterator's items, made by a thread while those before are in use; a context, at whose end the thread is gone."""

    def __init__(self, items):
        self._items, self._thread, self._coming = iter(items), ThreadPoolExecutor(1), deque()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self):
        for _ in range(AHEAD):
            self._ask()
        while (item := self._coming.popleft().result()) is not None:
            self._ask()
            yield item

    def _ask(self):
        self._coming.append(self._thread.submit(next, self._items, None))


def _sized(reader, size):
    """The frames of a clip, resized if asked."""
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
    """The known landmarks of a clip, (T, 68, 2), or None."""
    if place is None:
        return None
    place = Path(place)
    if place.is_dir():
        place = place / f"{Path(clip).stem}.landmarks.npy"
    points = faces.read_landmarks(place)
    unseen = np.isnan(points).any(axis=(1, 2))
    if unseen.any():
        raise TalkheadError(
            f"{place}, frame {int(np.argmax(unseen))}: holds NaN, and true landmarks are those of every frame; leave --landmarks out"
        )
    return points


def _wanted(name, purpose, path=None):
    """The path of public weights, at `path` or where they are looked for; TalkheadError that says where to get them if they are not there."""
    weights = downloads.find(name)
    path = weights.path if path is None else Path(path)
    if not path.is_file():
        size = f"{weights.size / 1e6:.0f} MB" if weights.size else "size unknown"
        raise TalkheadError(
            f"{path}: not there, and {purpose} looks through it; it is at {weights.urls[0]} ({size}); "
            f"run talkhead weights fetch {name}, or put it there"
        )
    return path


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# Replaying a protocol ---------------------------------------------------------------------------------------------------


def read_protocol(place):
    """A protocol that was written down: "thesis", or the path of a record, a file of records, or what `describe` gives.

    returns  dict with "settings", and "weights" and "versions" where they are known
    raises   TalkheadError if it holds none
    """
    if str(place) == "thesis":
        return {"settings": dict(THESIS)}
    with files.os_errors_in_one_line(place):
        text = files.decoded(Path(place).read_bytes(), "replace")
    try:
        try:
            told = json.loads(text)
        except ValueError:
            told = json.loads(text.partition("\n")[0])  # a file of records
        told = told.get("protocol", told)
        unknown = set(told["settings"]) - set(DEFAULTS)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TalkheadError(
            f"{place}: no protocol of talkhead metrics; give thesis, or a file of what metrics printed"
        ) from None
    if unknown:
        raise TalkheadError(
            f"{place}: its protocol sets {', '.join(sorted(unknown))}, which this version does not know; use the version it names"
        )
    return told


def replay(told, options, explicit, place="--protocol"):
    """The options for a `Protocol` that measures as another did.

    told      from `read_protocol`
    options   of `Protocol`, as they would be without it; files are taken from here
    explicit  names of those that somebody chose: they may not contradict
    place     what the protocol is called in messages
    raises    TalkheadError if they do, or a file is missing that the protocol needs, or given that it does not
    """
    options = dict(options)
    for name, value in (DEFAULTS | told["settings"]).items():
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


def check(told, protocol, place="--protocol"):
    """Compare the weights and versions of a protocol that is replayed with those at hand.

    raises   TalkheadError if weights are others
    warns    of other versions
    """
    mine = protocol.describe()
    for role, wanted in told.get("weights", {}).items():
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
        for name, then in told.get("versions", {}).items()
        if mine["versions"].get(name) != then
    ]
    if other:
        warnings.warn(f"{place}: measured with {'; '.join(other)}", stacklevel=2)


# Sets of pairs ----------------------------------------------------------------------------------------------------------


def match(places):
    """Pairs of clips: files as they come, folders of clips matched by name.

    places   real, fake, real, fake, …: clips, folders of pictures (a clip each), or two folders of clips, searched at any depth
    returns  list of (real, fake), and a list of the clips in folders that have no partner
    raises   TalkheadError if a place is not there, a folder faces a file, or no names agree
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
    """Whether a place is a folder of clips. One that holds pictures is a clip itself."""
    if str(place) == "-" or not Path(place).is_dir():
        return False
    suffixes = {
        path.suffix.lower() for path in Path(place).iterdir() if path.is_file() and not files.is_hidden(path.name)
    }
    return bool(suffixes & MOVING) or not suffixes & image_files.PICTURES


def _clips(folder):
    """The clips in a folder, by name: {path within it, without ending: path}."""
    folder, found = Path(folder), {}
    for path in sorted(folder.rglob("*")):
        is_clip = path.suffix.lower() in MOVING if path.is_file() else not _is_set(path)
        if is_clip and not files.is_hidden(path.relative_to(folder)):
            name = path.relative_to(folder).with_suffix("") if path.is_file() else path.relative_to(folder)
            if str(name) in found:
                raise TalkheadError(f"{path}: {found[str(name)].name} has the same name; keep one of them there")
            found[str(name)] = path
    return found


def evaluate(pairs, protocol, output=None, overwrite=False, workers=1, shard=jobs.Shard(), watch=iter):
    """Measure pairs one after the other, or several at a time; whatever fails is recorded, and the next is done.

    pairs      list of (real, fake) paths, the whole of it
    protocol   Protocol
    output     file of records (JSON, a line each), which grows as they are made: those that are in it are not made again, but those that
               failed are. A shard writes its own, NAME-I-of-N, and reads all of them. None keeps no file
    overwrite  make again what is in the file
    workers    processes
    shard      which of the pairs are this process's
    watch      as `Protocol` takes it, for a single pair of which no file is kept
    yields     the record of each pair, in order; of one that failed {"real", "fake", "error", "protocol"}, and "traceback" if it is our bug.
               Of more than one, the last is what `summarise` gives, with FID and KID of all their frames
    raises     TalkheadError if the file was made by another protocol, or cannot be written. A single pair of which no file is kept raises
               its own error
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
        known = {pair: record for pair, record in (ledger.known if ledger else {}).items() if _is_kept(store, pair)}
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


def measured(protocol, real, fake, store=None):
    """The record of a pair, also if it fails."""
    try:
        return protocol(real, fake, store)
    except TalkheadError as problem:
        told = {"error": str(problem)}
    except Exception as problem:  # a bug of ours must not keep the other pairs waiting
        told = {"error": f"{type(problem).__name__}: {problem}", "traceback": traceback.format_exc()}
    return {"real": str(real), "fake": str(fake)} | told | {"protocol": protocol.describe()}


class _Workers:
    """Records of pairs, in their order, by this process or several; a context, at whose end they are gone."""

    def __init__(self, protocol, count, store):
        self.protocol, self.store = protocol, store
        context = multiprocessing.get_context("spawn")
        self.pool = (
            ProcessPoolExecutor(count, context, _begin, (protocol.options, protocol.describe(), store, count))
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
                "metrics: a process was killed, for want of memory perhaps; lower --workers; with -o, what is done is kept"
            ) from problem


_worker = None  # in a worker process: what it measures with


def _begin(options, described, store, count):
    global _worker
    protocol = Protocol(**options)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(max(1, os.cpu_count() // count))
    protocol._described = described  # the hashes of its weights are known
    _worker = protocol, store


def _measured(pair):
    protocol, store = _worker
    return measured(protocol, *pair, store)


class _Ledger:
    """A file of records that grows; a context.

    known   {(real, fake): record} of those that it, or those of other shards, hold; not those that failed
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
        """The records of a file that need not be made again."""
        if not path.exists():
            return []
        with files.os_errors_in_one_line(path):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        records = []
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):  # a killed process may not have ended its last
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
                    f"{path}, line {number}: measured with other {' and '.join(sorted(other))}; pass --protocol {path} to measure "
                    "as then, --overwrite to measure all again, or name another file"
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


def _kept(store, place):
    """Where it is kept what the feature network saw in a clip."""
    return Path(store) / f"{sha256(str(place).encode()).hexdigest()[:24]}.npy"


def _is_kept(store, pair):
    return store is None or all(_kept(store, place).exists() for place in pair)


def _set_distance(store, records, network):
    """FID and KID of all frames of a set, from what is kept of its clips; memory does not grow with it."""
    sides = [
        [np.load(_kept(store, place), mmap_mode="r") for place in dict.fromkeys(record[side] for record in records)]
        for side in ("real", "fake")
    ]
    counts = [sum(map(len, side)) for side in sides]
    if min(counts) < 2:
        return {"fid": None, "kid": None, "fid_features": network.name, "fid_pictures": counts}
    spreads = [_spread(side, network.width) for side in sides]
    some = [_sample(side, count) for side, count in zip(sides, counts)]
    fid.warn_of_few(min(counts), network)
    return {
        "fid": fid.statistics_distance(*spreads),
        "kid": fid.kernel_distance(*some),
        "fid_features": network.name,
        "fid_pictures": counts,
    }


def _spread(clouds, width):
    spread, waiting = fid.FeatureStatistics(width), []
    for number, cloud in enumerate(clouds, 1):
        waiting.append(cloud)
        # Many at a time: each triangle costs as much as some thousand pictures.
        if sum(map(len, waiting)) > 2 * width or number == len(clouds):
            spread.add(np.concatenate(waiting))
            waiting = []
    return spread


def _sample(clouds, count):
    """All features, or as many as the kernel distance takes, by lot."""
    if count <= fid.KERNEL_MOST:
        return np.concatenate(clouds)
    chosen = np.sort(np.random.default_rng(0).choice(count, fid.KERNEL_MOST, replace=False))
    starts = np.cumsum([0, *map(len, clouds)])
    parts = np.split(chosen, np.searchsorted(chosen, starts[1:-1]))
    return np.concatenate([cloud[part - start] for cloud, part, start in zip(clouds, parts, starts)])


# Many records as one ----------------------------------------------------------------------------------------------------

# By what a pair's number is weighed in the mean of a set: the field that counts its frames, or 1.
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


def summarise(records):
    """One record of a set: {"summary": True, "pairs", "failed", …}, the fields of its records summed, averaged or their median.

    records  as `Protocol` gives them; those that failed are counted
    """
    good = [
        record | {"psnr_frames": record["frames"] - record["identical"]} for record in records if "error" not in record
    ]
    summary = {"summary": True, "pairs": len(records), "failed": len(records) - len(good)}
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


def table(records):
    """Records as people read them: a line for each pair and for the set, then how it was measured; text."""
    shown = [record for record in records if "error" not in record and "networks" not in record]
    columns = [column for column in _COLUMNS if any(column[0] in record for record in shown)]
    lines = [["", "frames", *(heading for _, heading, _ in columns)]]
    for record in shown:
        name = f"all {record['pairs'] - record['failed']}" if record.get("summary") else _short(record["fake"])
        endless = record.get("psnr") is None and record.get("identical")
        lines.append(
            [
                name,
                str(record.get("frames", "–")),
                *(
                    "∞" if field == "psnr" and endless else _number(record.get(field), digits)
                    for field, _, digits in columns
                ),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = (
        [
            "  ".join(
                cell.ljust(width) if not place else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths))
            ).rstrip()
            for line in lines
        ]
        if shown
        else []
    )
    text += [f"failed: {' '.join(record['error'].split())}" for record in records if "error" in record]
    text += [_table_of_networks(record) for record in records if "networks" in record]
    return "\n".join([*text, *(["", _told(shown[-1])] if shown else [])])


def _short(path, most=40):
    path = str(path)
    return path if len(path) <= most else "…" + path[1 - most :]


def _number(value, digits):
    return "–" if value is None else f"{value:.{digits}f}"


def _told(record):
    """The protocol in a line."""
    protocol, size = record["protocol"], record.get("size")
    settings = protocol["settings"]
    parts = [f"{settings['fps']:g} fps"] + ([f"{size[1]}x{size[0]} pixels"] if size else [])
    parts += [f"landmarks by {settings['detector']}"] if settings["lmd"] else []
    parts += [f"FID by {record['fid_features']}"] if record.get("fid_features") else []
    parts += [f"closures ±{settings['closure_tolerance']} frames"] if settings["closures"] else []
    return ", ".join([*parts, *(f"{name} {found}" for name, found in protocol["versions"].items())])


def _table_of_networks(record):
    millions = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in record["parameters"].items())
    return f"{record['frames_per_second']:.1f} frames/s at {record['size'][0]}x{record['size'][1]} on {record['device']}; parameters: {millions}"


# The generator's own size and speed -------------------------------------------------------------------------------------


def network_speed(generator, encoder, audio2latent, seconds=4.0, batch=8):
    """How large and how fast a generator of talking heads is (thesis, Table 5.2).

    generator, encoder, audio2latent   networks made for each other, on one device
    seconds   of speech that is spoken, after a second to warm up
    batch     frames made together
    returns   dict: "networks", True; "parameters", of each and in all; "frames_per_second", from a face and a sound in memory to frames in
              memory; "frames"; "size", [height, width]; "batch"; "device"; "threads" of a CPU
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
