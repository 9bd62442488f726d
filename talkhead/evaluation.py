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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from talkhead import fid, files, image_files, jobs
from talkhead.errors import TalkheadError
from talkhead.protocol import Protocol, feature_path

if TYPE_CHECKING:
    from talkhead.audio2latent import FirstModel, SecondModel
    from talkhead.encoders import Encoder
    from talkhead.stylegan import Generator

VIDEO_SUFFIXES = {".mp4", ".mpg", ".mpeg", ".avi", ".mov", ".mkv", ".webm"}


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
        ledger, known = None, {}
        if output:
            ledger, known = stack.enter_context(_ledger(output, protocol.describe(), shard, overwrite))
        if store:  # a record counts only if the features of its clips are there
            known = {pair: known[pair] for pair in known if all(feature_path(store, clip).exists() for clip in pair)}
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
                "metrics: a process was killed, perhaps for lack of memory; lower workers; "
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


@contextmanager
def _ledger(output, protocol, shard, overwrite):
    """The file of a shard's records, a jobs.Ledger, and {(real, fake): record} in it and in those of other shards."""
    base = Path(output)
    path = base if shard.of == 1 else base.with_name(f"{base.stem}-{shard.index}-of-{shard.of}{base.suffix}")
    others = sorted({base, *base.parent.glob(f"{base.stem}-*-of-*{base.suffix}")} - {path})
    if not path.parent.is_dir():
        raise TalkheadError(f"{path}: its folder does not exist; make it first")
    with jobs.Ledger(path, f"{path}: another process writes it; name another file") as ledger:
        own, found = [], []
        if not overwrite:
            for other in filter(Path.exists, others):
                found += _checked_records(other, jobs.read_ledger(other), protocol)
            own = _checked_records(path, ledger.records, protocol)
        ledger.keep(own)
        yield ledger, {(record["real"], record["fake"]): record for record in found + own}


def _checked_records(path, records, protocol):
    """Those of the records in a file that did not fail.

    raises  TalkheadError if one is no record, or of another protocol
    """
    good = []
    for number, record in enumerate(records, 1):
        try:
            other = {name for name in ("settings", "weights") if record["protocol"][name] != protocol[name]}
            if "real" in record and "error" not in record:
                hash((record["real"], record["fake"]))
                json.dumps([record, summarise([record])], allow_nan=False)
                good.append(record)
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
            raise TalkheadError(f"{path}, line {number}: not a record of talkhead metrics; name another file") from None
        if other:
            raise TalkheadError(
                f"{path}, line {number}: measured with other {' and '.join(sorted(other))}; pass --protocol {path} to "
                "repeat them, --set overwrite=true to measure all again, or name another file"
            )
    return good


def _set_distance(store, records, network):
    """FID and KID of all frames of a set, from the saved features of its clips, in constant memory."""
    sides = [
        [
            np.load(feature_path(store, place), mmap_mode="r")
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


def measure_networks(
    generator: str | os.PathLike | None = None,
    encoder: str | os.PathLike | None = None,
    audio2latent: str | os.PathLike | None = None,
    device: str = "auto",
) -> dict:
    """`network_speed` of networks in files, None for the bundled ones."""
    from talkhead import checkpoints
    from talkhead.distributed import pick_device

    networks = {"generator": generator, "encoder": encoder, "audio2latent": audio2latent}
    return network_speed(**checkpoints.load_networks(pick_device(device), **networks))


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
    returns   dict: "networks", True; "parameters", of each and in all; "frames_per_second" without detail, from a face
              and sound in memory to frames in memory; "frames"; "size", [height, width]; "batch"; "device"; "threads"
              of the CPU
    """
    import time

    import torch

    from talkhead import synthesis
    from talkhead.mfcc import SAMPLE_RATE

    face = next(synthesis.synthesize(generator, generator.w_avg.expand(generator.num_ws, -1)[None].cpu()))
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32)
    for sound in (noise[:SAMPLE_RATE], noise):
        began, frames = time.perf_counter(), 0
        for _ in synthesis.generate(generator, encoder, audio2latent, face, sound, batch, detail=False):
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
