"""Training images: frames of clips, image folders and packed files, and packing."""

import math
import os
import re
import warnings
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from talkhead import files, image_files, video_files
from talkhead.distributed import MicroBatch
from talkhead.errors import TalkheadError
from talkhead.images import resize, to_images

if TYPE_CHECKING:
    import torch

# Mean difference of two images, out of 255, below which they may be consecutive frames of a film. Consecutive frames
# differ by 1 to 2 (median), frames a second apart by 3 to 11; portraits of different people by 52, the most similar of
# 200 by 26.
MAX_FRAME_DIFFERENCE = 20


class Images:
    """Training images: frames of clips and images, held in memory as uint8, and of packed files, read on demand.

    sources  paths of clips, images, folders of them (searched recursively), and files that `pack` wrote (.npy)
    size     side to which the frames, which must be square, are resized
    every    keep one frame in `every` of each clip
    limit    maximum number of frames
    raises   TalkheadError if nothing can be read, a packed file is damaged, or the frames of the clips do not fit into
             memory
    warns    if the frames have several sizes

    `frames` are uint8 (N, size, size, 3), indexed like an array. `names[i]` is the file of frame i; `skipped` holds an
    error message for each file that could not be read, `origins` an Origin for each of the others.
    """

    def __init__(
        self, sources: Sequence[str | os.PathLike], size: int, every: int = 1, limit: int | None = None
    ) -> None:
        self.size, self.frames = size, _Frames(size)
        reading, paths = _Reader(size, every, limit), clips(sources)
        held = _FrameBuffer(size, _max_frames(paths, reading, sources), sources)
        for path in paths:
            if reading.left == 0:
                break
            if _is_packed(path):
                array, origins = unpack(path)
                self.frames.add(array, reading.rows(array, origins))
            else:
                before = held.count
                reading.read(path, held)
                self.frames.add(held, range(before, held.count))
        reading.finish(sources)
        self.origins, self.skipped = reading.origins, reading.skipped
        self.names = [origin.file for origin in self.origins for _ in range(origin.frames)]

    def __len__(self) -> int:
        return len(self.frames)

    def warn_of_mixture(self) -> None:
        """Warn if films and still images are mixed, because a generator then learns neither well.

        Unconnected frames ("moments") may be mixed with both. Source: thesis §3.5.
        """
        count: Counter[str] = Counter()
        for origin in self.origins:
            count[origin.kind] += origin.frames
        if count["film"] and count["still"]:
            warnings.warn(
                f"films ({count['film']} frames) and still images ({count['still']}) are mixed: a generator learns "
                "neither well (thesis §3.5); train on the images alone, and then on the films with --init",
                stacklevel=2,
            )

    def batch(
        self, step: int, count: int, seed: int = 0, flip: bool = False, share: MicroBatch = MicroBatch()
    ) -> "torch.Tensor":
        """Batch of images of one step: every frame once per epoch, in an order that depends on the seed alone.

        share    MicroBatch: the part of the `count` images to return
        returns  float32 (count, 3, size, size) in [-1, 1], or that part of them
        """
        picks = [self._pick(step * count + k, seed) for k in share(range(count))]
        images = to_images(self.frames[picks])
        if flip:
            mirrored = share(np.random.default_rng([seed, step, 1]).random(count) < 0.5)
            images[mirrored] = images[mirrored].flip(-1)
        return images

    def _pick(self, position, seed):
        epoch, index = divmod(position, len(self))
        if getattr(self, "_order_of", None) != (epoch, seed):
            self._order = np.random.default_rng([seed, epoch]).permutation(len(self))
            self._order_of = (epoch, seed)
        return self._order[index]


class _FrameBuffer:
    """Growing buffer of frames in memory, in blocks that are never copied, with the interface of files.array_writer."""

    BLOCK = 1024  # frames; unwritten memory is not allocated by the system

    def __init__(self, size, limit, sources):
        self._shape, self._limit, self._sources = (self.BLOCK, size, size, 3), limit, sources
        self._blocks, self.count = [], 0

    def write(self, frame):
        if self.count == self._limit:
            raise _too_many(f"more than {self._limit}", self._limit, frame.shape[0], self._sources)
        if self.count == len(self._blocks) * self.BLOCK:
            self._blocks.append(np.empty(self._shape, np.uint8))
        self[self.count][...] = frame
        self.count += 1

    def cut(self, count):
        self.count = count

    def __getitem__(self, index):
        return self._blocks[index // self.BLOCK][index % self.BLOCK]


class _Frames:
    """Concatenation of rows of frame arrays, in memory or memory-mapped, indexed as one array (N, size, size, 3)."""

    def __init__(self, size):
        self._size, self._parts, self._starts, self._count = size, [], [], 0

    def add(self, part, rows):
        if len(rows):
            self._parts.append((part, rows))
            self._starts.append(self._count)
            self._count += len(rows)

    def __len__(self):
        return self._count

    @property
    def shape(self):
        return self._count, self._size, self._size, 3

    def __getitem__(self, picks):
        """Get one frame, or an array of frames for a slice or a list of indices."""
        if isinstance(picks, slice):
            picks = range(self._count)[picks]
        if np.ndim(picks) == 0:
            return self._frame(picks)
        frames = np.empty((len(picks), *self.shape[1:]), np.uint8)
        for place, pick in zip(frames, picks):
            place[...] = self._frame(pick)
        return frames

    def _frame(self, index):
        index = range(self._count)[index]  # allows negative indices and checks bounds
        number = bisect_right(self._starts, index) - 1
        part, rows = self._parts[number]
        return resize(part[rows[index - self._starts[number]]], self._size)


@dataclass
class Origin:
    """Source file of a range of consecutive frames, and their number."""

    file: str
    frames: int
    side: int  # pixels, before they were resized
    kind: str  # "film", "still", "moments" (unconnected frames), "unknown"


class _Reader:
    """Reader of training files that records an Origin of each, and the errors of skipped ones."""

    def __init__(self, size, every, limit):
        self.size, self.every, self.limit = size, every, limit
        self.origins, self.skipped = [], []
        self.count = 0  # frames so far
        self._before = None, None  # folder and subsampled pixels of the last still image
        self._similar = defaultdict(list)  # {folder: [bool, image is similar to the one before]}

    @property
    def left(self):
        """Number of frames still wanted; None: all."""
        return None if self.limit is None else self.limit - self.count

    def read(self, path, target):
        """Write the resized frames of a clip or image to `target` (`write`, `count`, `cut`); none if damaged."""
        before, errors = target.count, len(self.skipped)
        for frame in self._frames(path):
            target.write(frame)
        if len(self.skipped) > errors:
            target.cut(before)

    def _frames(self, path):
        count = 0
        try:
            with video_files.read_frames(path) as reader:
                height, width = reader.size
                if height != width:
                    raise TalkheadError(f"{path}: frames are {width}x{height}, wanted square; run talkhead align first")
                for frame in islice(reader, 0, None, self.every):
                    if count != self.left:  # the rest is read only to check that the clip is complete
                        image, count = resize(frame, self.size), count + 1
                        yield image
        except TalkheadError as error:
            self.skipped.append(str(error))
            return
        kind = _kind(path)
        if kind == "still":
            self._compare(path.parent, image[::4, ::4].astype(int))
        self._add(Origin(str(path), count, height, kind))

    def rows(self, array, origins):
        """Select rows of a packed file: the same frames as from its source files."""
        rows, first = [], 0
        for origin in origins:
            rows.append(np.arange(first, first + origin.frames, self.every)[: self.left])
            first += origin.frames
            self._add(replace(origin, frames=len(rows[-1]), side=array.shape[1]))
        return np.concatenate(rows)

    def _add(self, origin):
        if origin.frames:
            self.origins.append(origin)
            self.count += origin.frames

    def _compare(self, folder, image):
        if self._before[0] == folder:
            self._similar[str(folder)].append(np.abs(image - self._before[1]).mean() < MAX_FRAME_DIFFERENCE)
        self._before = folder, image

    def finish(self, sources):
        """Check that there are frames, detect films stored as images, and warn of several sizes."""
        if not self.count:
            first = f" ({self.skipped[0]})" if self.skipped else ""
            raise TalkheadError(f"{_shorten(sources)}: no frames to train on{first}; pass aligned clips or images")
        films = {folder for folder, similar in self._similar.items() if 2 * sum(similar) > len(similar)}
        for origin in self.origins:
            if origin.kind == "still" and str(Path(origin.file).parent) in films:
                origin.kind = "film"  # stored as one image per frame
        sizes = Counter()
        for origin in self.origins:
            sizes[origin.side] += origin.frames
        small = sum(frames for side, frames in sizes.items() if side < self.size)
        if len(sizes) > 1:
            blurred = f"; smaller ones ({small} of {self.count}) become blurred" if small else ""
            warnings.warn(
                f"frames of {len(sizes)} sizes, {min(sizes)}x{min(sizes)} to {max(sizes)}x{max(sizes)}, are all "
                f"resized to {self.size}x{self.size}{blurred}",
                stacklevel=3,
            )


def _kind(path):
    if path.suffix.lower() in image_files.PICTURES:
        return "still"
    with suppress(TalkheadError, AttributeError):  # the .json beside it may be another program's
        if files.read_about(path).get("source") == "moments":
            return "moments"
    return "film"


def _is_packed(path):
    return path.suffix.lower() == ".npy"


def _shorten(sources):
    return ", ".join(map(str, sources[:3])) + (f" and {len(sources) - 3} more" if len(sources) > 3 else "")


def _max_frames(paths, reading, sources):
    """Number of frames that fit into memory; TalkheadError if the clips have more, estimated from a sample of them."""
    space = memory_left()
    if space is None:
        return math.inf
    # Each process of torchrun on this machine holds all frames.
    most = space // (3 * reading.size**2 * int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if reading.limit is None or reading.limit > most:
        films = [path for path in paths if path.suffix.lower() not in image_files.PICTURES and not _is_packed(path)]
        sample = films[:: len(films) // 16 + 1]
        total = sum(path.suffix.lower() in image_files.PICTURES for path in paths)
        total += round(sum(map(_frame_count, sample)) / max(len(sample), 1) * len(films) / reading.every)
        if total > most:
            raise _too_many(f"about {total}", most, reading.size, sources)
    return most


def _frame_count(path):
    """Number of frames of a clip by its header, 0 if unknown."""
    try:
        with video_files.read_frames(path) as reader:
            return reader.count or 0
    except TalkheadError:
        return 0


def _too_many(count, most, size, sources):
    return TalkheadError(
        f"{_shorten(sources)}: {count} frames of {size}x{size}, but memory has room for {most}; train on a file made "
        "by talkhead pack, or on less: --set every=N or --set limit=N"
    )


def memory_left() -> int | None:
    """Available memory in bytes, within the limits of the control groups; None if unknown."""
    found = []
    with suppress(OSError):
        found += [
            1024 * int(size)
            for size in re.findall(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"), re.M)
        ]
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, kinds, group = line.split(":", 2)
            root, name = ("memory", "memory.limit_in_bytes") if "memory" in kinds.split(",") else ("", "memory.max")
            place = Path(f"/sys/fs/cgroup/{root}{group}") / name
            limits = [folder / name for folder in place.parents if (folder / name).is_file()]
            found += [
                int(text)
                for text in (limit.read_text(encoding="utf-8") for limit in limits)
                if text.strip().isdecimal()
            ]
    if not found and hasattr(os, "sysconf"):
        with suppress(ValueError, OSError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def pack(
    sources: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    size: int = 256,
    every: int = 1,
    limit: int | None = None,
) -> Iterator[dict]:
    """Pack the frames of clips and images into one .npy, which `Images` reads in any order.

    sources  as in Images
    output   path ending in .npy: uint8 (N, size, size, 3). Beside it, in a .json of the same name, {"frames": N,
             "size", "sources": [an Origin as a dict, …], "left_out": [error message, …]}
    size     side to which frames are resized
    every    keep one frame in `every` of each clip
    limit    maximum number of frames
    yields   {"file", "frames"} for each file when it has been read, or {"file", "left_out": error message}
    raises   TalkheadError if nothing can be read, a packed file among the sources is damaged, or the output cannot be
             written

    Memory is constant. The file appears when the iterator has been read to its end.
    """
    output, reading = Path(output), _Reader(size, every, limit)
    if not _is_packed(output):
        raise TalkheadError(f"{output}: packed frames are a .npy array; end the name in .npy")
    with files.array_writer(output, (size, size, 3)) as writer:
        for path in clips(sources):
            if reading.left == 0:
                break
            before, problems = writer.count, len(reading.skipped)
            if _is_packed(path):
                array, origins = unpack(path)
                for row in reading.rows(array, origins):
                    writer.write(resize(array[row], size))
            else:
                reading.read(path, writer)
            failed = len(reading.skipped) > problems
            yield {"file": str(path)} | (
                {"left_out": reading.skipped[-1]} if failed else {"frames": writer.count - before}
            )
        reading.finish(sources)
    files.write_json(
        output.with_suffix(".json"),
        {
            "frames": reading.count,
            "size": size,
            "sources": [asdict(origin) for origin in reading.origins],
            "left_out": reading.skipped,
        },
    )


def unpack(path: str | os.PathLike) -> tuple[np.memmap, list[Origin]]:
    """Open a packed file: memory-mapped frames, uint8 (N, S, S, 3), and an Origin for each range of them.

    raises  TalkheadError if it is damaged or holds anything else
    """
    array = files.map_array(path)
    if (
        array.dtype != np.uint8
        or array.ndim != 4
        or array.shape[1] != array.shape[2]
        or array.shape[3] != 3
        or not array.size
    ):
        raise TalkheadError(
            f"{path}: holds {array.dtype} {array.shape}, wanted uint8 (frames, size, size, 3); make it by talkhead pack"
        )
    about = files.read_about(path)
    if about == {}:
        return array, [Origin(str(path), len(array), array.shape[1], "unknown")]
    try:
        origins = [Origin(**origin) for origin in about["sources"]]
        recorded = sum(origin.frames for origin in origins)
    except (TypeError, KeyError) as error:
        raise TalkheadError(
            f"{Path(path).with_suffix('.json')}: does not describe packed frames; pack them again, or remove it"
        ) from error
    if recorded != len(array):
        raise TalkheadError(
            f"{path}: holds {len(array)} frames, but the .json beside it records {recorded}; pack them again"
        )
    return array, origins


def clips(sources: Iterable[str | os.PathLike]) -> list[Path]:
    """List the video and image files among some paths, with folders searched recursively by `files.find`."""
    suffixes = {".mp4", ".mpg", ".mpeg", ".avi", ".mov", ".mkv", ".webm", ".png", ".jpg", ".jpeg"}
    found = []
    for source in map(Path, sources):
        if source.is_dir():
            found += files.find(source, suffixes, deep=True)
        elif source.exists():
            found.append(source)
        else:
            raise TalkheadError(f"{source}: not found; pass clips or a folder of clips")
    return found
