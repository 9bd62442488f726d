"""What the trainers look at: the frames of clips, folders of pictures and packed files, and how they are packed."""

import math
import os
import re
import warnings
from bisect import bisect_right
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from talkhead import files, image_files, video_files
from talkhead.distributed import MicroBatch
from talkhead.errors import TalkheadError
from talkhead.images import resize, to_images

# Mean difference of two pictures, out of 255, below which they may follow each other in a film. Its frames differ by 1 to 2 (median),
# a second apart by 3 to 11; portraits of different people by 52, and the most alike of 200 by 26.
ALIKE = 20


class Images:
    """Training images: every frame of some clips, folders and pictures, held as uint8, and those of packed files, read when wanted.

    sources  paths of clips, pictures, folders that hold them at any depth, and files that `pack` wrote (.npy)
    size     the side that frames are resized to; frames must be square
    every    keep one frame in `every` of each clip
    limit    stop after this many frames
    raises   TalkheadError if nothing can be read, a packed file is damaged, or the frames of the clips do not fit into memory

    `frames` are uint8 (N, size, size, 3), indexed as an array is. `names[i]` is the file that frame i came from; `skipped` says of
    files why they could not be read; `origins` holds an Origin for each of the others. Frames of several sizes are a warning.
    """

    def __init__(self, sources, size, every=1, limit=None):
        self.size, self.frames = size, _Frames(size)
        reading, paths = _Reading(size, every, limit), clips(sources)
        held = _Held(size, _most_frames(paths, reading, sources), sources)
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

    def __len__(self):
        return len(self.frames)

    def warn_of_mixture(self):
        """Warn if films and still pictures are mixed, out of which a generator learns neither.

        Source: thesis §3.5. Puppets' unconnected moments may go with both.
        """
        count = Counter()
        for origin in self.origins:
            count[origin.kind] += origin.frames
        if count["film"] and count["still"]:
            warnings.warn(
                f"films ({count['film']} frames) and still pictures ({count['still']}) are mixed: a generator of both draws neither well "
                "(thesis §3.5); train on the pictures alone, and then go on with the films by --init",
                stacklevel=2,
            )

    def batch(self, step, count, seed=0, flip=False, share=MicroBatch()):
        """The images of one step: every frame once an epoch, in an order set by the seed alone.

        share    team.Share: which of the `count` to make
        returns  float32 (count, 3, size, size) in [-1, 1], or that share of them
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


class _Held:
    """Frames in memory, in blocks that need not move when more come. Takes them as files.array_writer does."""

    BLOCK = 1024  # frames; memory that is not written to costs nothing

    def __init__(self, size, most, sources):
        self._shape, self._most, self._sources = (self.BLOCK, size, size, 3), most, sources
        self._blocks, self.count = [], 0

    def write(self, frame):
        if self.count == self._most:
            raise _too_many(f"more than {self._most}", self._most, frame.shape[0], self._sources)
        if self.count == len(self._blocks) * self.BLOCK:
            self._blocks.append(np.empty(self._shape, np.uint8))
        self[self.count][...] = frame
        self.count += 1

    def cut(self, count):
        self.count = count

    def __getitem__(self, index):
        return self._blocks[index // self.BLOCK][index % self.BLOCK]


class _Frames:
    """Rows of arrays of frames, held and mapped ones, as if they were one array (N, size, size, 3)."""

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
        """One frame, or those of a slice or a list of numbers."""
        if isinstance(picks, slice):
            picks = range(self._count)[picks]
        if np.ndim(picks) == 0:
            return self._frame(picks)
        frames = np.empty((len(picks), *self.shape[1:]), np.uint8)
        for place, pick in zip(frames, picks):
            place[...] = self._frame(pick)
        return frames

    def _frame(self, index):
        index = range(self._count)[index]  # which counts from the end too, and knows where that is
        which = bisect_right(self._starts, index) - 1
        part, rows = self._parts[which]
        return resize(part[rows[index - self._starts[which]]], self._size)


@dataclass
class Origin:
    """A file, and how many frames, one after the other, came from it."""

    file: str
    frames: int
    side: int  # pixels, before they were resized
    kind: str  # "film", "still", "moments" (unconnected ones, of a puppet), "unknown"


class _Reading:
    """Reads files to train on, and keeps account of them: an Origin of each, and why some were left out."""

    def __init__(self, size, every, limit):
        self.size, self.every, self.limit = size, every, limit
        self.origins, self.skipped = [], []
        self.count = 0  # frames so far
        self._before = None, None  # the last still picture's folder, and itself
        self._alike = defaultdict(list)  # of a folder's pictures: whether each is much like the one before

    @property
    def left(self):
        """How many frames are still wanted; None: all."""
        return None if self.limit is None else self.limit - self.count

    def read(self, path, target):
        """Write the frames of a clip or picture, resized, to something with `write`, `count` and `cut`: all, or none if it is damaged."""
        before, told = target.count, len(self.skipped)
        for frame in self._frames(path):
            target.write(frame)
        if len(self.skipped) > told:
            target.cut(before)

    def _frames(self, path):
        count = 0
        try:
            with video_files.read_frames(path) as reader:
                height, width = reader.size
                if height != width:
                    raise TalkheadError(f"{path}: frames are {width}x{height}, wanted square; run talkhead align first")
                for frame in islice(reader, 0, None, self.every):
                    if count != self.left:  # past that, it is only seen whether the clip is whole
                        picture, count = resize(frame, self.size), count + 1
                        yield picture
        except TalkheadError as problem:
            self.skipped.append(str(problem))
            return
        kind = _kind(path)
        if kind == "still":
            self._compare(path.parent, picture[::4, ::4].astype(int))
        self._add(Origin(str(path), count, height, kind))

    def rows(self, array, origins):
        """Which rows of a packed file to take: the same frames as from the files that it was made of."""
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

    def _compare(self, folder, picture):
        if self._before[0] == folder:
            self._alike[str(folder)].append(np.abs(picture - self._before[1]).mean() < ALIKE)
        self._before = folder, picture

    def finish(self, sources):
        """All files have been read: refuse if there was nothing, settle what is a film, and warn of several sizes."""
        if not self.count:
            first = f" ({self.skipped[0]})" if self.skipped else ""
            raise TalkheadError(f"{_few(sources)}: no frames to train on{first}; pass aligned clips or pictures")
        films = {folder for folder, alike in self._alike.items() if 2 * sum(alike) > len(alike)}
        for origin in self.origins:
            if origin.kind == "still" and str(Path(origin.file).parent) in films:
                origin.kind = "film"  # its frames lie there as pictures
        sizes = Counter()
        for origin in self.origins:
            sizes[origin.side] += origin.frames
        small = sum(frames for side, frames in sizes.items() if side < self.size)
        if len(sizes) > 1:
            blurred = f"; smaller ones ({small} of {self.count}) get blurred when enlarged" if small else ""
            warnings.warn(
                f"frames of {len(sizes)} sizes, {min(sizes)}x{min(sizes)} to {max(sizes)}x{max(sizes)}, are all resized to "
                f"{self.size}x{self.size}{blurred}",
                stacklevel=3,
            )


def _kind(path):
    if path.suffix.lower() in image_files.PICTURES:
        return "still"
    with suppress(TalkheadError, AttributeError):  # what lies beside it may be somebody else's
        if files.read_about(path).get("source") == "moments":
            return "moments"
    return "film"


def _is_packed(path):
    return path.suffix.lower() == ".npy"


def _few(sources):
    return ", ".join(map(str, sources[:3])) + (f" and {len(sources) - 3} more" if len(sources) > 3 else "")


def _most_frames(paths, reading, sources):
    """How many frames memory has room for. TalkheadError if the clips seem to have more, from a look into a few of them."""
    space = memory_left()
    if space is None:
        return math.inf
    most = space // (
        3 * reading.size**2 * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    )  # each process of torchrun's holds them
    if reading.limit is None or reading.limit > most:
        films = [path for path in paths if path.suffix.lower() not in image_files.PICTURES and not _is_packed(path)]
        looked = films[:: len(films) // 16 + 1]
        total = sum(path.suffix.lower() in image_files.PICTURES for path in paths)
        total += round(sum(map(_told, looked)) / max(len(looked), 1) * len(films) / reading.every)
        if total > most:
            raise _too_many(f"about {total}", most, reading.size, sources)
    return most


def _told(path):
    """How many frames a clip says that it has."""
    try:
        with video_files.read_frames(path) as reader:
            return reader.count or 0
    except TalkheadError:
        return 0


def _too_many(count, most, size, sources):
    return TalkheadError(
        f"{_few(sources)}: {count} frames of {size}x{size}, and memory has room for {most}; write them into a file by talkhead "
        "pack and train on that, or pass --every or --limit"
    )


def memory_left():
    """Bytes of memory that may still be filled, as far as this machine and its control groups tell; None if they do not."""
    found = []
    with suppress(OSError):
        found += [
            1024 * int(size)
            for size in re.findall(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
        ]
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, group = line.split(":", 2)
            root, name = ("memory", "memory.limit_in_bytes") if "memory" in kinds.split(",") else ("", "memory.max")
            place = Path(f"/sys/fs/cgroup/{root}{group}") / name
            limits = [folder / name for folder in place.parents if (folder / name).is_file()]
            found += [int(text) for text in (limit.read_text() for limit in limits) if text.strip().isdecimal()]
    if not found and hasattr(os, "sysconf"):
        with suppress(ValueError, OSError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def pack(sources, output, size=256, every=1, limit=None):
    """Decode clips and pictures once, into one file that `Images` reads in any order; numpy and others open it as any .npy.

    sources  as of Images
    output   path ending in .npy: uint8 (N, size, size, 3). Beside it, in a .json of its name, {"frames": N, "size", "sources": [an Origin
             as a dict, …], "left_out": [why, …]}
    size     the side that frames are resized to
    every    keep one frame in `every` of each clip
    limit    stop after this many frames
    yields   {"file", "frames"} for each file when it has been read, or {"file", "left_out": why}
    raises   TalkheadError if nothing can be read, a packed file among the sources is damaged, or this one cannot be written

    Memory stays flat, however many frames there are. The file appears when the iterator has been read to its end.
    """
    output, reading = Path(output), _Reading(size, every, limit)
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


def unpack(path):
    """The frames of a packed file, mapped: uint8 (N, S, S, 3), and an Origin for each stretch of them.

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
        told = sum(origin.frames for origin in origins)
    except (TypeError, KeyError) as problem:
        raise TalkheadError(
            f"{Path(path).with_suffix('.json')}: does not tell of packed frames; pack them again, or take it away"
        ) from problem
    if told != len(array):
        raise TalkheadError(
            f"{path}: holds {len(array)} frames, but the .json beside it tells of {told}; pack them again"
        )
    return array, origins


def clips(sources):
    """The video and picture files that some paths stand for, folders searched at any depth, as `files.find` does."""
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
