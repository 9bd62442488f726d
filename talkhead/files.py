"""Arrays and streams to and from .npy, .pt, .png, .jpg, .mp4, any sound file, and pipes.

The only room that imports av. What it gives is arrays and iterators of arrays; what it takes apart is told from its
name (the suffix) or its first bytes, and "-" is standard input or standard output. Every file is written beside its place and renamed when whole.

A pipe carries frames as fragmented MP4: lossless RGB H.264, the sound as FLAC, so both arrive bit for bit.
"""

import codecs
import errno
import io
import json
import logging
import math
import os
import pickle
import secrets
import select
import shutil
import stat
import struct
import sys
import tokenize
import warnings
import wave
import zipfile
import zlib
from collections import deque
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from talkhead import pictures, safetensors
from talkhead.errors import TalkheadError
from talkhead.timestamps import LEFT_OUT, RESTART, PacketClock, PictureStamps, lasting

FPS = 25.0  # frames per second: the thesis's (§3.3.1.1), and that of every clip made here

ALIGNED_TAG = "talkhead_aligned"  # its value is the side of the square crop, in pixels
SYNTHETIC_TAG = "digital_source_type"
SYNTHETIC_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
STREAM_TAG = (
    "talkhead_stream"  # on a pipe only: such a stream is whole if, and only if, it ends as MP4's writer ends it
)

IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}  # written
VIDEO_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # written
# Taken for pictures by their names, and read by Pillow; so is everything else that begins as one. The rest FFmpeg reads.
PICTURES = {
    *IMAGE_FORMATS,
    ".jpe",
    ".jfif",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".avif",
    ".heic",
    ".heif",
}
TEXT_ART = {"tty", "bin", "xbin", "adf", "idf"}  # FFmpeg would play a text file as a video of a terminal

AAC_RATES = (
    7350,
    8000,
    11025,
    12000,
    16000,
    22050,
    24000,
    32000,
    44100,
    48000,
    64000,
    88200,
    96000,
)  # samples per second
LONGEST = 16384  # pixels: x264 refuses a longer side
FASTEST = 1_000_000  # samples per second that anybody records
KEYFRAMES = 10  # frames from one key frame to the next on a pipe
HDR = {16: "PQ", 18: "HLG"}  # FFmpeg's numbers of these curves (ITU-T H.273)
SCALER = (
    0x4 | 0x2000 | 0x4000 | 0x40000
)  # swscale: bicubic, full chroma both ways, exact rounding. Its default darkens by 1/255
GAP = (
    0.1  # seconds by which sound may drift from its time stamps before silence fills the hole (FFmpeg's own threshold)
)
CANCELLED = 0.1  # of the louder channel's amplitude: a mix of two voices, or of one and silence, is louder
AUDIBLE = 0.1  # sum of squares of samples: what speech has after a hundredth of a second, and hiss after hours
SHORT = 0.5  # seconds that may be missing at the end of a clip before it counts as cut short
UNKNOWN_SIZE = 0x7FFF0000  # bytes: who writes a WAV to a pipe puts such a length, or a greater one, in its head
TAIL = 16  # bytes of an "mfro" box, the last of a fragmented MP4 that was closed in order
PARTS = (
    3 << 16
)  # bytes: of Ogg's pages and MPEG-PS's packets, which are shorter than a third, whole ones lie in the last so many
ASF = (
    bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c"),
)  # names of its head and its data
SOON = 0.02  # seconds of a WAV on a pipe that are read at a time; FFmpeg's own choice is up to a tenth
PATIENCE = 5.0  # seconds without a byte from a pipe, after which one may want to know that it is waited for
PIPE = (
    1 << 20
)  # bytes that a pipe of sound may hold, where the system lets us say: speech that comes while networks load

logging.getLogger("PIL").addHandler(
    logging.NullHandler()
)  # else Python prints on stderr what Pillow logs where nobody asked for logs


# Errors and names -----------------------------------------------------------------------------------------------------

_CURES = {
    errno.ENOENT: "no such file or folder; check the name",
    errno.ENOTDIR: "part of its path is a file; name another folder",
    errno.EISDIR: "is a folder; name a file",
    errno.EACCES: "permission denied; name a place that you may use",
    errno.EPERM: "permission denied; name a place that you may use",
    errno.EROFS: "the file system is read-only; name another folder",
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "larger than a file may be here; write it elsewhere",
    errno.ENAMETOOLONG: "the name is too long; shorten it",
}


@contextmanager
def mendable(name):
    """Turn the operating system's errors into one line about `name`. A reader that left stays BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, av.error.FFmpegError) as error:
        if not isinstance(error, OSError) and error.errno not in _CURES:
            raise  # FFmpeg's own kind of error: we asked it for something wrong
        reason = _CURES.get(error.errno) or f"{os.strerror(error.errno) if error.errno else error}; name another file"
        raise TalkheadError(f"{name}: {reason}") from error


def hub_folder():
    """Where torch keeps what it downloads, by torch's own rules but without the seconds of importing it."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_HOME") or f"{cache}/torch").expanduser() / "hub" / "checkpoints"


def cache_folder():
    """Where talkhead keeps what it downloads: $TALKHEAD_CACHE, $XDG_CACHE_HOME/talkhead or ~/.cache/talkhead."""
    own = os.environ.get("TALKHEAD_CACHE")
    return Path(own or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/talkhead").expanduser()


def find(folder, suffixes, deep=False):
    """The files of some kinds in a folder, sorted; hidden ones, and all in hidden folders, are passed over.

    A name that begins with a dot is not a person's file: macOS puts ._x.jpg beside x.jpg, and what we were writing when we were
    killed is left under such a name.

    suffixes   in small letters, with their dots
    deep       look into the folders within, too
    returns    list of Path
    """
    folder = Path(folder)
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in suffixes and not is_hidden(path.relative_to(folder)))


def is_hidden(path):
    """Whether a file, or a folder that it is in, has a name that begins with a dot."""
    return any(part.startswith(".") for part in Path(path).parts if part not in (os.curdir, os.pardir))


def _named(place):
    return isinstance(place, (str, os.PathLike)) and str(place) != "-"


def _name(place):
    return str(place) if isinstance(place, (str, os.PathLike)) else getattr(place, "name", None) or "-"


class _Source:
    """Standard input, or any binary stream, with only `read`: a pipe has no position, and libraries would ask for one.

    on_wait   called when nothing has come for PATIENCE seconds, once for each time that happens
    """

    def __init__(self, stream, on_wait=None):
        stream = sys.stdin.buffer if stream == "-" else stream
        self._descriptor = _descriptor_of_pipe(stream)
        self._on_wait = on_wait if self.live else None
        if self._on_wait is not None:
            stream = getattr(stream, "raw", stream)  # what lies in a buffer above it would not be seen by select
        # A BufferedReader's read waits until all is there; its read1 gives what has come.
        self._read = getattr(stream, "read1", stream.read)
        self._start = bytearray()
        self.count, self.tail = 0, b""  # bytes given, and the last of them
        self.kept = TAIL  # how many those are

    @property
    def live(self):
        """Whether a pipe, a terminal or a socket is behind it, whose writer may be slow."""
        return self._descriptor is not None

    def read(self, size=-1):
        if self._start:
            end = len(self._start) if size < 0 else size
            data = bytes(self._start[:end])
            del self._start[:end]
        else:
            self._wait()
            data = self._read(size)
        self.count, self.tail = self.count + len(data), (self.tail + data[-self.kept :])[-self.kept :]
        return data

    def _wait(self):
        if self._on_wait is not None and not select.select([self._descriptor], [], [], PATIENCE)[0]:
            self._on_wait()

    def look(self, position, count):
        """The bytes at a position, which stay there to be read; fewer if there are no more."""
        while len(self._start) < position + count:
            self._wait()
            # A little at a time: a damaged file may send us gigabytes ahead.
            data = self._read(1 << 16 if position else count - len(self._start))
            if not data:
                break
            self._start += data
        return bytes(self._start[position : position + count])

    def rest(self):
        """Everything to the end."""
        return b"".join(iter(lambda: self.read(1 << 16), b""))

    def widen(self):
        """Let a pipe hold more, so that a recorder need not wait, and lose sound, before we listen."""
        with suppress(ImportError, AttributeError, OSError):  # Linux alone can do that
            import fcntl

            fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, PIPE)

    def drain(self):
        """Read to the end, so that the command before can finish writing."""
        while self.read(1 << 16):
            pass


def _descriptor_of_pipe(stream):
    """The file descriptor of a stream that is neither in memory nor a file on a disk, else None."""
    try:
        descriptor = stream.fileno()
        return None if stat.S_ISREG(os.fstat(descriptor).st_mode) else descriptor
    except (AttributeError, OSError, ValueError):
        return None


class _Sink:
    """Standard output, or any binary stream, with only `write`.

    After an error, or `cut`, it swallows what is written: a container can then be closed in order, in memory, and the error raised
    by us (`check`) instead of out of a C callback.
    """

    def __init__(self, stream):
        if stream == "-":
            sys.stdout.flush()
            stream = getattr(
                sys.stdout.buffer, "raw", sys.stdout.buffer
            )  # unbuffered: nothing is left to flush at exit
        self._stream = stream
        self.cut = False
        self.error = None

    def write(self, data):
        view = memoryview(data).cast("B")
        size = len(view)
        while view and not self.cut:
            try:
                view = view[self._stream.write(view) :]
            except OSError as error:
                self.error, self.cut = error, True
        return size

    def flush(self):
        """Nothing is held back here; torch asks."""

    def check(self):
        if self.error is not None:
            error, self.error = self.error, None
            raise error


@contextmanager
def atomic(path):
    """A name beside `path` to write to; renamed to `path` when the block ends, removed if it raises.

    path    file to be; its folder must exist. What is there and is no file (a device, a FIFO) is written in place
    yields  Path with the same suffix, of a file that does not exist yet
    raises  TalkheadError if the folder is missing or cannot be written to, or the disk is full
    """
    with mendable(path), _placed(path) as temporary:
        yield temporary


@contextmanager
def _placed(path, folder=False):
    """`atomic`, for a file or for a folder, that leaves errors raised in the block as they are."""
    name, path = (
        str(path),
        Path(os.path.realpath(path)),
    )  # through a symbolic link: its target is replaced, not the link
    if not path.parent.is_dir():
        raise TalkheadError(f"{name}: its folder does not exist; make it first")
    if folder and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise TalkheadError(f"{name}: exists and is not an empty folder; name a new one")
    if not folder and path.is_dir():
        raise TalkheadError(f"{name}: is a folder; name a file")
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    temporary = path.with_name(f".{path.stem[:32]}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        with mendable(name):
            os.replace(temporary, path)
    finally:
        if folder:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


# Arrays, latents, JSON ------------------------------------------------------------------------------------------------


@contextmanager
def reading(source):
    """A binary stream from a path (a file, with a position), from "-" or from a stream (with only `read`); errors in one line."""
    if _named(source):
        with mendable(source), open(source, "rb") as stream:
            yield stream
    else:
        yield _Source(source)


@contextmanager
def _writing(destination):
    """A binary stream to `destination`, which appears only when the block ends well."""
    with mendable(_name(destination)), ExitStack() as stack:
        if _named(destination):
            destination = stack.enter_context(open(stack.enter_context(_placed(destination)), "wb"))
        sink = _Sink(destination)  # numpy writes to a file itself through C, and then has no reason to give
        yield sink
        sink.check()


def read_array(source):
    """Read one .npy.

    source   path, "-" or binary stream
    returns  the array; never pickled objects
    raises   TalkheadError if it is missing, empty, cut short, or not a .npy of numbers
    """
    name = _name(source)
    with reading(source) as stream, _whole_array(name):
        return np.lib.format.read_array(_After(_array_start(name, stream), stream), allow_pickle=False)


def map_array(path):
    """A .npy as it lies on the disk: what is looked at is read then, and only that.

    returns  numpy.memmap, read-only
    raises   as read_array
    """
    with reading(path) as stream:
        _array_start(path, stream)
    with mendable(path), _whole_array(path):
        return np.lib.format.open_memmap(path, mode="r")


def _array_start(name, stream):
    start = stream.read(6)
    if not start:
        raise TalkheadError(f"{name}: empty; the command that should have written it failed")
    if start != np.lib.format.MAGIC_PREFIX:
        raise TalkheadError(f"{name}: not a .npy array; pass a file written by numpy.save")
    return start


@contextmanager
def _whole_array(name):
    try:
        yield
    except (
        ValueError,
        SyntaxError,
        tokenize.TokenError,
        OverflowError,
        MemoryError,
    ) as error:  # numpy's words for a short file, one that holds objects, a bad head
        what = "holds objects, not numbers" if "object" in str(error).lower() else "damaged or cut short"
        what = "damaged, or larger than the memory" if isinstance(error, MemoryError) else what
        raise TalkheadError(f"{name}: {what}; write it again") from error


class _After:
    """A stream whose first bytes were looked at already."""

    def __init__(self, start, stream):
        self._start, self._stream = start, stream

    def read(self, size):
        head, self._start = self._start[:size], self._start[size:]
        return head or self._stream.read(size)


def write_array(destination, array):
    """Write one .npy; no pickles.

    destination  path, "-" or binary stream
    array        array of numbers
    raises       TalkheadError if it cannot be written; BrokenPipeError if the reader of a pipe has left
    """
    with _writing(destination) as stream:
        np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)


@contextmanager
def array_writer(path, shape, dtype=np.uint8):
    """Write one .npy entry by entry, in flat memory; it appears only when the block ends well.

    path    file to be
    shape   of an entry; the array's is (count, *shape)
    yields  an object with `write(entry)`, `count`, and `cut(count)`, which takes back all entries but so many
    raises  TalkheadError if it cannot be written
    """
    with mendable(path), _placed(path) as temporary, open(temporary, "wb") as stream:
        if not stream.seekable():
            raise TalkheadError(
                f"{path}: is a pipe, but how much there is, is written last and comes first; name a file"
            )
        rows = _Rows(stream, shape, np.dtype(dtype))
        yield rows
        rows.finish()


class _Rows:
    """The entries of a .npy whose head, always of the same length, tells at the end how many they are."""

    HEAD = 128  # bytes

    def __init__(self, stream, shape, dtype):
        self._stream, self._shape, self._dtype = stream, tuple(shape), dtype
        self.count = 0
        stream.write(bytes(self.HEAD))

    def write(self, entry):
        assert entry.shape == self._shape and entry.dtype == self._dtype, (entry.shape, entry.dtype)
        self._stream.write(np.ascontiguousarray(entry).data)
        self.count += 1

    def cut(self, count):
        self._stream.seek(self.HEAD + count * self._dtype.itemsize * math.prod(self._shape))
        self._stream.truncate()
        self.count = count

    def finish(self):
        about = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.count, *self._shape)}
        text = repr(about).encode().ljust(self.HEAD - 11) + b"\n"
        self._stream.seek(0)
        self._stream.write(np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text)


def read_latents(source):
    """Read latents in W+, ours or another project's.

    source   path of a .npy; of a .npz, as NVIDIA's projectors write (projected_w.npz); or of a .pt that holds one tensor, as e4e (latents.pt)
             and PTI (its pivots) write. "-" or a binary stream of a .npy
    returns  float32 (T, L, 512), finite; one latent (L, 512) becomes (1, L, 512)
    raises   TalkheadError if it holds anything else
    warns    that (L, 512) was taken as one latent, for it might be meant as so many frames
    """
    name = _name(source)
    array = _LATENTS_OF_OTHERS.get(_suffix(source), read_array)(source)
    latents = array[None] if array.ndim == 2 else array
    if latents.ndim != 3 or latents.shape[-1] != 512 or latents.size == 0 or latents.dtype.kind != "f":
        raise TalkheadError(
            f"{name}: holds {array.dtype} {array.shape}, wanted float32 (frames, layers, 512); pass latents"
        )
    if array.ndim == 2:
        warnings.warn(
            f"{name}: {array.shape} is read as one latent of {len(array)} layers; frames are (frames, layers, 512)",
            stacklevel=2,
        )
    latents = latents.astype(np.float32)
    finite = np.isfinite(latents).all(axis=(1, 2))
    if not finite.all():
        raise TalkheadError(f"{name}, frame {int(np.argmin(finite))}: holds NaN or infinity; make the latents again")
    return latents


def is_latents(path):
    """Whether a file is one of latents, as `read_latents` takes them, and not one of pictures or of a network."""
    if _suffix(path) != ".pt":
        return _suffix(path) in (".npy", ".npz")
    import torch

    with suppress(TalkheadError):  # which who opens it as a network will tell
        return isinstance(load_weights(path, mapped=zipfile.is_zipfile(path)), torch.Tensor)
    return False


def _suffix(source):
    return Path(source).suffix.lower() if _named(source) else ""


def _npz(path):
    """The array "w" of a .npz, or the only one in it."""
    with reading(path) as stream:
        try:
            arrays = np.load(stream, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise TalkheadError(
                    f"{path}: not an archive of arrays, which .npz should be; pass a file written by numpy.savez"
                )
            key = "w" if "w" in arrays else arrays.files[0] if len(arrays.files) == 1 else None
            if key is None:
                raise TalkheadError(
                    f"{path}: holds {len(arrays.files)} arrays ({', '.join(arrays.files[:5])}), none called w; save the latents alone"
                )
            if not isinstance(arrays[key], np.ndarray):  # bytes of another kind
                raise ValueError
            return arrays[key]
        except (
            ValueError,
            EOFError,
            KeyError,
            NotImplementedError,
            zipfile.BadZipFile,
            zlib.error,
            pickle.UnpicklingError,
            SyntaxError,
            tokenize.TokenError,
            OverflowError,
            MemoryError,
        ) as error:
            raise TalkheadError(f"{path}: damaged or cut short, or no numbers; write it again") from error


def _tensor(path):
    """The one tensor in a .pt."""
    import torch

    value = load_weights(path)
    if not isinstance(value, torch.Tensor):
        raise TalkheadError(
            f"{path}: holds {a(type(value).__name__)}, wanted one tensor of latents (frames, layers, 512); save that alone"
        )
    return (value.float() if value.is_floating_point() else value).detach().numpy()


_LATENTS_OF_OTHERS = {".npz": _npz, ".pt": _tensor}


def write_latents(destination, latents, about=None):
    """Write latents in W+ as one .npy; beside a named file, what they alone cannot say, as JSON of the same name.

    destination  path, "-" or binary stream
    latents      float32 (T, L, 512), or an iterable of (L, 512)
    about        plain dict: fingerprint of the generator, fps, …
    returns      T, how many there are
    raises       as write_array
    """
    if not isinstance(latents, np.ndarray):
        latents = np.stack([np.asarray(latent) for latent in latents])
    write_array(destination, latents.astype(np.float32, copy=False))
    if about is not None and _named(destination):
        write_json(Path(destination).with_suffix(".json"), about)
    return len(latents)


@contextmanager
def latents_along(destination, latents, about=None):
    """Hand latents on as they come, and write them as write_latents does when the block ends well; a named file in flat memory.

    destination, about   as in write_latents
    latents              iterable of float32 (L, 512)
    yields               an iterator of the same latents
    """
    if not _named(destination) or os.path.exists(destination) and not os.path.isfile(destination):
        kept = []
        yield (kept.append(latent) or latent for latent in latents)
        write_latents(destination, kept, about)
        return
    with ExitStack() as stack:
        rows = None

        def written():
            nonlocal rows
            for latent in latents:
                rows = rows or stack.enter_context(array_writer(destination, latent.shape, np.float32))
                rows.write(np.asarray(latent, np.float32))
                yield latent

        yield written()
    if about is not None:
        write_json(Path(destination).with_suffix(".json"), about)


def read_about(source):
    """What was written beside latents: the dict given to write_latents, empty for a pipe or where there is none."""
    path = Path(source).with_suffix(".json") if _named(source) else None
    about = read_json(path) if path is not None and path.is_file() else {}
    if not isinstance(about, dict):
        raise TalkheadError(f"{path}: holds no JSON object; write it again, or take it away")
    return about


def decoded(data, errors="strict"):
    """Text out of the bytes of a file, as editors and shells of any system write it: UTF-8, with a mark before it or without, or
    UTF-16 with its mark.

    errors   what is done with bytes that are none of it, as of bytes.decode
    raises   UnicodeDecodeError, if that is "strict"
    """
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if marked else "utf-8-sig", errors)


def read_json(source):
    """Read one JSON value from a path, "-" or a binary stream; TalkheadError if it is missing or not JSON."""
    with reading(source) as stream:
        try:
            return json.loads(stream.read())
        except (ValueError, RecursionError) as error:
            raise TalkheadError(f"{_name(source)}: not JSON ({error}); write it again") from error


def write_json(destination, value):
    """Write one JSON value to a path, "-" or a binary stream."""
    with _writing(destination) as stream:
        stream.write(json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")


# Weights --------------------------------------------------------------------------------------------------------------


def save_weights(path, weights):
    """Write a dict of plain values and tensors as .pt: whole or not at all, also if the machine stops half-way.

    raises  TalkheadError if it cannot be written
    """
    import torch

    with atomic(path) as temporary, open(temporary, "wb") as stream:
        sink = _Sink(stream)
        torch.save(weights, sink)
        sink.check()
        stream.flush()
        os.fsync(stream.fileno())


class NotPlainWeights(TalkheadError):
    """The file holds more than tensors and plain values."""


def load_weights(path, kind=None, mapped=False):
    """Read a .pt, or a .safetensors, without running anything that it carries.

    path     file of save_weights, or another project's plain one
    kind     "generator", "encoder", "audio2latent", "speech": what the caller needs; None takes any
    mapped   leave each tensor on the disk until it is used; for a named file in torch's archive format
    returns  the dict, tensors on the CPU; an argparse.Namespace stays one
    raises   TalkheadError if it is missing, damaged, unsafe (NotPlainWeights), or of another kind
    """
    import argparse

    import torch

    with reading(path) as stream:
        if _named(path):
            start = stream.read(9)
            stream.seek(0)
            if safetensors.is_safetensors(start):
                return _of_kind(safetensors.read(stream, path), kind, path)
            if start.startswith(b"PK"):
                _refuse_zipped_again(path)
        try:
            with torch.serialization.safe_globals([argparse.Namespace]):
                weights = torch.load(
                    os.fspath(path) if mapped else stream, map_location="cpu", weights_only=True, mmap=mapped
                )
        except pickle.UnpicklingError as error:
            raise NotPlainWeights(f"{path}: not a file of plain weights; pass one that talkhead wrote") from error
        except (
            RuntimeError,
            EOFError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            AssertionError,
            ArithmeticError,
            struct.error,
            OSError,
        ) as error:  # torch's words for a damaged archive
            raise TalkheadError(f"{path}: damaged or not weights; copy or train it again") from error
    return _of_kind(weights, kind, path)


def _refuse_zipped_again(path):
    """Say why a whole archive is not one that torch.save wrote. Of compressed parts torch would give numbers that are none, where it maps them."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return  # damaged: torch says so
    names = {entry.filename for entry in entries}
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        raise TalkheadError(
            f"{path}: a zip archive that torch.save did not write; unpack it and pass the weights inside"
        )
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or len({name.partition("/")[0] for name in names}) > 1:
        raise TalkheadError(
            f"{path}: was unpacked and zipped again, {'with compression' if packed else 'not as one folder'}, which torch does not read; "
            "take the original file, or pack its folder as it was: zip -0 -r NAME.pt FOLDER"
        )


def _of_kind(weights, kind, path):
    """Weights, if they are of this kind."""
    found = weights.get("kind") if isinstance(weights, dict) else None
    if kind is not None and found != kind:
        if found is None:
            raise TalkheadError(f"{path}: not talkhead weights; convert it first")
        raise TalkheadError(f"{path}: holds {a(found)}, wanted {a(kind)}; pass it as {option(found)}")
    return weights


def option(kind):
    """The option by which commands take weights of a kind."""
    return {"speech": "--features-model"}.get(kind, f"--{kind.replace('_', '-')}")


def a(noun):
    """A noun, or a kind of weights, with its article."""
    noun = {"speech": "character model"}.get(noun, noun)
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


# Pictures -------------------------------------------------------------------------------------------------------------


def read_image(source):
    """Read a picture as it is meant to be seen.

    source   path, "-" or binary stream
    returns  uint8 (H, W, 3) RGB: EXIF orientation applied, transparency over white, grey as RGB, 16 bits as 8
    raises   TalkheadError if it is missing or not a picture
    """
    return _read_picture(source)[0]


def _read_picture(source):
    """The picture and its text, dict[str, str]."""
    name = _name(source)
    with reading(source) as stream, _whole_picture(name):
        image = _open_picture(stream, name)
        return _to_rgb(image), _text(image)


def _open_picture(stream, name):
    """A Pillow image of a file, or of all that comes through a pipe; what is wrong with it is for `_whole_picture` to say."""
    stream = io.BytesIO(stream.rest()) if isinstance(stream, _Source) else stream
    head = stream.read(32)
    stream.seek(0)
    if pictures.is_heif(head) and not pictures.opens_heif(head):
        return _decode_heif(stream, name)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of large pictures, and of damage, which tell no name: what stops us comes as an error
        image = Image.open(stream)
        with _silence() if image.format == "TIFF" else nullcontext():  # so does libtiff, on stderr
            image.load()
    return image


@contextmanager
def _silence():
    """Nothing comes out on stderr, whoever writes there."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@contextmanager
def _whole_picture(name):
    try:
        yield
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise TalkheadError(f"{name}: not a picture that can be read; pass a PNG or JPEG") from error
    except (
        ArithmeticError,
        EOFError,
        LookupError,
        RuntimeError,
        struct.error,
        OSError,
    ) as error:  # Pillow has one for each way of being short
        if getattr(error, "errno", None):
            raise
        raise TalkheadError(f"{name}: damaged or cut short; pass a whole picture") from error


def _decode_heif(stream, name):
    """A HEIC as FFmpeg decodes it, which puts no tiles together."""
    try:
        with av.open(stream, metadata_errors="replace") as container:
            streams = container.streams.video
            if any(stream.disposition & av.stream.Disposition.dependent for stream in streams):
                raise TalkheadError(f"{name}: a HEIC in tiles; pip install pillow-heif, or convert it to JPEG")
            shown = next(
                (stream for stream in streams if stream.disposition & av.stream.Disposition.default), streams[0]
            )
            return Image.fromarray(_picture(next(container.decode(shown)), None, VideoReformatter()))
    except (av.error.FFmpegError, StopIteration, IndexError) as error:
        raise TalkheadError(f"{name}: damaged or cut short; pass a whole picture") from error


def _text(image):
    text = {key: value for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}
    comment = image.info.get("comment", b"") if image.format == "JPEG" else b""  # as _save_picture writes it
    text.update(line.split(": ", 1) for line in comment.decode(errors="replace").splitlines() if ": " in line)
    return text


def _to_rgb(image):
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255
        image = Image.fromarray((np.asarray(image, np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def write_image(destination, image, metadata=None, synthetic=False):
    """Write one picture.

    destination  path ending .png, .jpg or .jpeg; or a binary stream or "-", which get PNG
    image        uint8 (H, W, 3) RGB
    metadata     dict[str, str]: PNG text; JPEG keeps it in its comment
    synthetic    mark it as made by a trained model, as IPTC asks
    """
    format = IMAGE_FORMATS.get(Path(destination).suffix.lower()) if _named(destination) else "PNG"
    if format is None:
        raise TalkheadError(f"{destination}: cannot write such a picture; end the name in .png or .jpg")
    tags = _tags(metadata, synthetic)
    with _writing(destination) as stream:
        _save_picture(stream, np.asarray(image), format, tags)


def _save_picture(stream, image, format, tags):
    picture = Image.fromarray(np.ascontiguousarray(image))
    if format == "JPEG":
        comment = "\n".join(f"{key}: {value}" for key, value in tags.items())
        picture.save(stream, format, quality=95, subsampling=0, **({"comment": comment.encode()} if tags else {}))
        return
    text = PngInfo()
    for key, value in tags.items():
        text.add_itxt(key, value)
    picture.save(stream, format, pnginfo=text, compress_level=3)


def _tags(metadata, synthetic):
    """Metadata to write: the caller's, less what belongs to the container it came from, and the synthetic mark."""
    foreign = {"major_brand", "minor_version", "compatible_brands", "encoder", "creation_time", STREAM_TAG}
    tags = {key: str(value) for key, value in (metadata or {}).items() if key.lower() not in foreign}
    return tags | (synthetic_tags() if synthetic else {})


def synthetic_tags():
    """Metadata that mark what a trained model made, as IPTC asks."""
    from talkhead import __version__

    return {
        SYNTHETIC_TAG: SYNTHETIC_TYPE,
        "software": f"talkhead {__version__}",
        "comment": f"Synthetic media, made by talkhead {__version__}",
    }


# Sound ----------------------------------------------------------------------------------------------------------------


class _Decoder:
    """Decodes one sound stream into blocks whose first sample is at the moment `start`, holes filled with silence.

    media    the _Media that the packets are of
    start    Fraction, seconds on the container's clock; None: where the sound starts
    end      Fraction, the same where it ends; None: with the last packet, which codecs fill up
    rate, layout, format  of the blocks: samples per second, "mono" or "stereo", "s16p" or "s32p"
    """

    def __init__(self, media, start, end, rate, layout, format):
        self._media, self._start, self._end, self._rate, self._layout, self._format = (
            media,
            start,
            end,
            rate,
            layout,
            format,
        )
        self._resampler = None
        self._setup = None
        self._fed = Fraction(0)  # seconds given to the resampler, from `start`
        self._skip = 0  # samples still to drop: those before `start`
        self._left = None  # samples still to give; None if there is no knowing
        self._exact = False  # whether the next frame is to be put at its time stamp even where it is off by little
        self._lost = None  # seconds on the container's clock where the last damaged packet ends

    def decode(self, packet):
        """A packet, or the one that ends the stream, to (channels, n) blocks, one after the other."""
        for block in self._blocks(packet):
            block = self._trim(block)
            if block.shape[1]:
                yield block

    def _blocks(self, packet):
        frames = _decoded(packet)
        if frames is None and packet.size:
            self._media.conceal(packet, "silence")
            self._lost = _end(packet) or self._lost
        self._exact |= packet.opaque is not None or frames is None
        for frame in frames or ():
            if frame.samples:
                yield from self._frame(frame)
        if _is_end(packet):
            if self._lost is not None and self._setup is not None:
                yield from self._fill(self._lost - self._start - self._fed)
            yield from self._resample(None)

    def _frame(self, frame):
        setup = (frame.format.name, frame.layout.name, frame.sample_rate)
        if setup != self._setup:  # the first frame, or a stream that changes its mind
            yield from self._resample(None)
            if self._setup is None:
                yield from self._begin(frame)
            self._setup = setup
            self._restart()
        if frame.pts is not None:
            hole = frame.pts * frame.time_base - self._start - self._fed
            if hole > GAP or self._exact:
                yield from self._fill(hole)
                self._drop(-hole)
        self._exact, self._lost = False, None
        frame.pts = None  # the resampler would stretch the sound to meet time stamps; samples are counted here
        self._fed += Fraction(frame.samples, frame.sample_rate)
        yield from self._resample(frame)

    def _fill(self, hole):
        """Put silence for so many seconds, none where it is negative, after what the resampler still has."""
        if hole > 0:
            yield from self._resample(None)
            yield from self._silence(hole)
            self._restart()

    def _drop(self, overlap):
        """Leave out so many seconds, none where it is negative, of what comes next."""
        if overlap > 0:
            self._skip += round(overlap * self._rate)
            self._fed -= overlap

    def _restart(self):
        self._resampler = av.AudioResampler(self._format, self._layout, self._rate)

    def _begin(self, frame):
        """Put the first frame at its time: silence before it, or the part before `start` dropped."""
        time = (self._start or Fraction(0)) if frame.pts is None else frame.pts * frame.time_base
        self._start = time if self._start is None else self._start
        if self._end is not None:
            self._left = max(round((self._end - self._start) * self._rate), 0)
        early = self._start - time
        if early <= 0:
            yield from self._silence(-early)
        else:
            self._skip = round(early * self._rate)
            self._fed = -early

    def _silence(self, seconds):
        """Silence in blocks of at most a second: a recording may have paused for a day."""
        self._fed += seconds
        dtype = np.int16 if self._format == "s16p" else np.int32
        count = round(seconds * self._rate)
        for start in range(0, count, self._rate):
            yield np.zeros((1 if self._layout == "mono" else 2, min(self._rate, count - start)), dtype)

    def _resample(self, frame):
        if self._resampler is None:
            return []
        try:
            return [out.to_ndarray() for out in self._resampler.resample(frame)]
        except av.error.ArgumentError as error:
            rate, layout = self._setup[2], self._setup[1]
            raise TalkheadError(
                f"{self._media.name}: damaged, its sound of {rate} samples a second, {layout}, cannot be converted; make it again"
            ) from error

    def _trim(self, block):
        skipped = min(self._skip, block.shape[1])
        self._skip -= skipped
        block = block[:, skipped:]
        if self._left is not None:
            block = block[:, : self._left]
            self._left -= block.shape[1]
        return block


class _Mix:
    """One channel out of blocks of one or two: their mean, or the louder one where they cancel each other (one cable was crossed).

    tell  called with a message when the first such block comes
    """

    def __init__(self, tell):
        self._tell, self._taken, self._energy = tell, None, np.zeros(3)  # of left, right and their mean, up to now

    def __call__(self, block):
        mean = block.mean(axis=0)
        if len(block) == 1 or self._taken is not None:
            return mean if len(block) == 1 else block[self._taken]
        self._energy += (np.vstack([block, mean]) ** 2).sum(axis=1)
        if self._energy[2] < CANCELLED**2 * self._energy[:2].max() > AUDIBLE:
            self._taken = int(self._energy[1] > self._energy[0])
            self._tell(f"left and right cancel each other; the {('left', 'right')[self._taken]} channel is taken")
            return block[self._taken]
        return mean


class SoundReader:
    """The sound of a file or a pipe, block after block as it comes: iterate once, and close it (or use `with`). Memory stays flat.

    name      what the source is called in messages
    rate      int, samples per second of the blocks
    live      bool: it comes through a pipe, whose writer may be slow
    count     how many samples there are to be, by what the source says of itself; None where it does not
    yields    float32 (n,) in [-1, 1]: all channels mixed to one

    A FrameWriter may take it as its sound: then pass keep=True, and it gets what was read.
    """

    channels = 1

    def __init__(self, source, sample_rate=16000, keep=False, on_wait=None):
        self.name, self.rate, self.count = _name(source), int(sample_rate), None
        self._kept = _Queue(1) if keep else None
        self._stack = ExitStack()
        self._media = self._decoder = None
        self._input = self._stack.enter_context(_open_source(source, on_wait))
        self.live = isinstance(self._input, _Source) and self._input.live
        if self.live:
            self._input.widen()  # and it is opened when it is first read: until its head has come, there is other work to do
        else:
            with ExitStack() as undo:
                undo.push(self._stack)
                self._open()
                undo.pop_all()
        self._blocks = self._decoded()

    def _open(self):
        media = self._media = self._stack.enter_context(_Media(self._input, self.name))
        if media.audio is None:
            raise TalkheadError(f"{self.name}: has no sound track; pass a recording")
        start, end = media.origin if media.video else None, media.end(media.audio)
        # As 32-bit integers: for them FFmpeg scales a mix so that it cannot clip, for floats it does not.
        layout = "stereo" if media.audio.codec_context.channels == 2 else "mono"
        self._decoder = _Decoder(media, start, end, self.rate, layout, "s32p")
        self._mix = _Mix(media.tell)
        if end is not None:
            self.count = max(round((end - (media.origin if start is None else start)) * self.rate), 0)

    def _decoded(self):
        if self._media is None:
            self._open()
        heard = False
        for packet in self._media.packets(pictures=False):
            for block in self._decoder.decode(packet):
                heard = True
                yield self._mix(block / np.float64(2**31)).astype(np.float32)
        if not heard:
            raise TalkheadError(f"{self.name}: its sound track is empty; pass a recording")

    def __iter__(self):
        return self

    def __next__(self):
        block = next(self._blocks)
        if self._kept is not None:
            self._kept.push(_to_int16(block)[None])
        return block

    def take(self, count, wait=False):
        """The next samples, int16 (n, 1): `count`, or fewer if it ends before. What has not been read by then is read."""
        assert self._kept is not None, "pass keep=True"
        while self._kept.size < count and next(self, None) is not None:
            pass
        return self._kept.take(count)

    def close(self):
        self._stack.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_sound(source, sample_rate=16000, keep=False, on_wait=None):
    """Open a sound for reading as it comes.

    source       path, "-" or binary stream: any sound or video file. A path may be that of a pipe or a device
    sample_rate  samples per second of the blocks
    keep         keep what was read, for a FrameWriter to take
    on_wait      called without arguments when a pipe has brought nothing for 5 seconds
    returns      SoundReader
    raises       TalkheadError if it is missing, has no sound track or an empty one, or is cut short: at once for a file,
                 else while reading
    """
    return SoundReader(source, sample_rate, keep, on_wait)


def read_audio(source, sample_rate=16000):
    """Read speech from any sound or video file, all of it.

    source       path, "-" or binary stream
    sample_rate  samples per second of the result
    returns      float32 (N,) in [-1, 1]: all channels mixed to one. In a file with pictures, sample 0 is heard when the
                 first picture is shown
    warns        where it was mended: damaged parts become silence, a clock that starts again goes on, of two channels that cancel
                 each other one is taken
    raises       TalkheadError if it is missing, has no sound track or an empty one, or is cut short
    """
    with read_sound(source, sample_rate) as sound:
        return np.concatenate(list(sound))


class _Queue:
    """Blocks of samples (channels, n) that wait to be taken, in order."""

    def __init__(self, channels):
        self._channels, self._blocks, self.size = channels, deque(), 0

    def push(self, block):
        self._blocks.append(block)
        self.size += block.shape[1]

    def take(self, count):
        """The next samples, int16 (n, channels): `count`, or fewer if there are no more."""
        taken = []
        while count > 0 and self._blocks:
            block = self._blocks.popleft()
            taken.append(block[:, :count])
            if block.shape[1] > count:
                self._blocks.appendleft(block[:, count:])
            count -= taken[-1].shape[1]
            self.size -= taken[-1].shape[1]
        return np.concatenate(taken, axis=1).T if taken else np.zeros((0, self._channels), np.int16)


def _to_int16(samples):
    return np.rint(samples * 32768.0).clip(-32768, 32767).astype(np.int16)


def write_audio(path, audio, sample_rate=16000):
    """Write speech as a .wav of 16-bit samples.

    audio    float (N,) in [-1, 1]; louder samples are clipped
    raises   TalkheadError if the file cannot be written
    """
    samples = np.rint(np.asarray(audio) * 32768.0).clip(-32768, 32767).astype("<i2")
    with atomic(path) as temporary, wave.open(str(temporary), "wb") as stream:
        stream.setparams((1, 2, sample_rate, len(samples), "NONE", ""))
        stream.writeframes(samples.tobytes())


class Sound:
    """The sound of a clip whose frames are being read, for a FrameWriter to pass on. Memory stays flat.

    It comes with the frames: it holds what has been read along with them and not been taken yet. Sample 0 is heard when the
    first frame is shown.
    """

    def __init__(self, media):
        self._media = media
        self._packets = deque()
        self.rate = media.audio.codec_context.sample_rate
        self.channels = min(media.audio.codec_context.channels, 2)
        layout = "mono" if self.channels == 1 else "stereo"
        self._decoder = _Decoder(media, media.origin, media.end(media.audio), self.rate, layout, "s16p")
        self._coming = iter(())  # blocks of the packet being decoded
        self._decoded = _Queue(self.channels)

    def _push(self, packet):
        self._packets.append(packet)

    def take(self, count, wait=False):
        """The next samples, int16 (n, channels): at most `count`, and fewer if they have not come yet.

        wait  read on (past frames) until there are `count`, or the clip ends
        """
        while self._decoded.size < count:
            block = next(self._coming, None)
            if block is not None:
                self._decoded.push(block)
            elif self._packets:
                self._coming = self._decoder.decode(self._packets.popleft())
            elif not (wait and self._media.read_on()):
                break
        return self._decoded.take(count)


class _Samples:
    """Samples in memory, taken as a Sound's are."""

    def __init__(self, samples, rate):
        samples = np.asarray(samples)
        samples = samples[:, None] if samples.ndim == 1 else samples  # (N, channels)
        assert samples.shape[1] in (1, 2), samples.shape
        if samples.dtype != np.int16:
            samples = _to_int16(samples)
        self._samples, self._position = samples, 0
        self.rate, self.channels = int(rate), samples.shape[1]

    def take(self, count, wait=False):
        start, self._position = self._position, self._position + count
        return self._samples[start : start + count]


# Frames in ------------------------------------------------------------------------------------------------------------


def _hurry(head):
    """Options with which FFmpeg hands on what comes through a pipe soon."""
    # A pipe's frames come as they are made: do not wait for twenty of them to guess a rate that each one tells.
    options = {"fpsprobesize": "1"}
    if _is_wave(head):
        rate, block = _number(head[28:32]), _number(head[32:34])  # bytes a second, bytes of a moment
        options |= {
            "probesize": "2048",
            "max_size": str(max(int(rate * SOON), block, 1)),
        }  # its head tells all: look no further
    return options


def _promised(read):
    """How many bytes a file says that it has; None where it does not know, or is of a kind that does not tell.

    read  gives the bytes at a position: read(position, count); fewer, or none, where there are no more or one cannot look so far
    """
    head = read(0, 44)
    if _is_wave(head):
        return 44 + _number(head[40:44]) if head[36:40] == b"data" and 0 < _number(head[40:44]) < UNKNOWN_SIZE else None
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        end = 0
        while read(end, 4) == b"RIFF":  # one for each gigabyte
            size = _number(read(end + 4, 4))
            if not 0 < size < UNKNOWN_SIZE:
                return None
            end += 8 + size + size % 2
        return end
    if head[:4] == b"\x1a\x45\xdf\xa3":  # Matroska and WebM, RFC 8794: a head, then one segment
        segment = _ebml_end(read, 0)
        return _ebml_end(read, segment) if segment is not None and read(segment, 4) == b"\x18\x53\x80\x67" else None
    if head[:16] == ASF[0]:
        start = _number(head[16:24])
        name_and_size = read(start, 24)
        return start + _number(name_and_size[16:]) if name_and_size[:16] == ASF[1] else None
    if head[:3] == b"FLV":
        found = read(0, 2048).partition(b"\x00\x08filesize\x00")[2]
        return int(struct.unpack(">d", found[:8])[0]) or None if len(found) >= 8 else None
    start = (
        10 + sum((byte & 127) << 7 * (3 - index) for index, byte in enumerate(head[6:10])) if head[:3] == b"ID3" else 0
    )
    frame = read(start, 60)
    if frame[:1] == b"\xff" and frame[1:2] >= b"\xe0":  # MP3, whose first frame may hold no sound but Xing's numbers
        found = max(frame.find(b"Xing"), frame.find(b"Info"))
        flags = int.from_bytes(frame[found + 4 : found + 8], "big")
        if found > 0 and flags & 2:
            numbers = found + 8 + 4 * (flags & 1)
            return start + int.from_bytes(frame[numbers : numbers + 4], "big")
    return None


def _ebml_end(read, start):
    """Where the element that starts there ends, of Matroska's with four bytes of name; None if that was not known when it was written."""
    field = read(start + 4, 8)
    length = 9 - field[0].bit_length() if field and field[0] else 9
    size = int.from_bytes(field[:length], "big") & (1 << 7 * length) - 1
    return None if length > len(field) or size == (1 << 7 * length) - 1 else start + 4 + length + size


def _last_part(data, mark, size):
    """The last of the pages or packets with which a file ends: where it begins and ends in `data`; past its end, if it was cut.

    data     the last bytes of the file
    mark     with which each of them begins
    size     gives the length of one that begins at a position of `data`, or 0 if none does
    returns  None where they do not follow each other to the end
    """
    start = data.find(mark)
    while start >= 0:
        last, end = start, start + size(data, start)
        while last < end < len(data):
            last, end = end, end + size(data, end)
        if last < end:
            return last, end
        start = data.find(mark, start + 1)
    return None


def _ogg_page(data, at):
    """Its length, RFC 3533; of one cut in its head at least so much."""
    head = data[at : at + 27 + 255]
    if head[:4] != b"OggS"[: len(head)]:
        return 0
    return 27 if len(head) < 27 else 27 + head[26] + sum(head[27 : 27 + head[26]])


def _ps_packet(data, at):
    """Its length, ISO/IEC 13818-1 and 11172-1; of one cut in its head at least so much. A zero between them counts as one."""
    head = data[at : at + 14]
    if head[:3] == bytes(len(head[:3])):
        return 1
    if head[:3] != b"\0\0\1" or len(head) > 3 and head[3] < 0xB9:
        return 0
    if head[3:4] == b"\xb9":  # the end
        return 4
    if head[3:4] == b"\xba":
        return 12 if len(head) > 4 and head[4] >> 6 == 0 else 14 + (head[13] & 7 if len(head) == 14 else 0)
    length = int.from_bytes(head[4:6], "big")
    return 6 + length if length or len(head) < 6 else 0  # of unknown length


PARTED = {"ogg": (b"OggS", _ogg_page), "mpeg": (b"\0\0\1", _ps_packet)}  # by FFmpeg's name of the format


def _is_wave(head):
    return len(head) >= 44 and head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt "


def _number(data):
    return int.from_bytes(data, "little")


@contextmanager
def _open_source(source, on_wait=None):
    """What FFmpeg is to open: the path of a file, or a _Source around anything that has no position."""
    if not _named(source):
        yield _Source(source, on_wait)
        return
    with mendable(source):
        stream = open(source, "rb", buffering=0)  # Python's error for a folder or a missing file
    with stream:
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            if not stream.read(1):
                raise TalkheadError(f"{source}: empty; pass a whole file")
            yield Path(source)
        else:
            yield _Source(stream, on_wait)


def _decoded(packet):
    """The frames of a packet; None where it holds none, because it is empty ("nothing new here") or damaged.

    FFmpeg's decoders fail with errors of every kind, "permission denied" among them; its own program goes on after each.
    """
    if packet.size == 0 and not _is_end(packet):
        return None
    try:
        return packet.decode()
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError:
        return None


def _is_end(packet):
    return packet.size == 0 and not packet.buffer_ptr  # an empty packet has a place in memory


def _end(packet, shown=True):
    """Fraction, seconds on the container's clock where a packet ends, as it is shown or decoded; None where it does not tell."""
    stamp = packet.pts if shown else packet.dts
    return None if stamp is None else stamp * packet.time_base + lasting(packet)


def _is_picture(opened):
    """Whether what `_open_source` gives is a picture for Pillow."""
    if isinstance(opened, _Source):
        return pictures.is_picture(opened.look)
    with open(opened, "rb") as stream:

        def look(position, count):
            stream.seek(position)
            return stream.read(count)

        return pictures.is_picture(look)


class _Media:
    """A container that FFmpeg opened, and its packets in the order in which they come.

    source   as _open_source gives it
    """

    def __init__(self, source, name):
        self.name = name
        self._stack = ExitStack()
        self._source = source if isinstance(source, _Source) else None
        place = self._source or f"file:{source}"  # a name may hold a colon
        head = b"" if self._source is None else self._source.look(0, 44)
        hurry = {} if self._source is None else _hurry(head)
        if self._source is not None and head[:4] in (b"OggS", b"\0\0\1\xba"):
            self._source.kept = PARTS
        self._promised = _promised(self._peek)  # of this, FFmpeg tells nothing
        start = self._peek(0, 400)
        self._unit = next(
            (size for size in (188, 192) if start[size - 188 :: size][:2] == b"GG"), None
        )  # bytes of a packet of MPEG-TS
        try:
            # Files only: a playlist must not make us fetch things.
            options = {"protocol_whitelist": "file"} | hurry
            self._container = av.open(place, metadata_errors="replace", options=options)
        except (av.error.FFmpegError, ValueError) as error:
            self._refuse(error)
        self._stack.callback(self._container.close)
        if self._container.format.name in TEXT_ART:
            self.close()
            raise TalkheadError(f"{self.name}: not a video or a sound file; pass one that FFmpeg can read")
        self.metadata = dict(self._container.metadata)
        self._is_stream = self.metadata.pop(STREAM_TAG, None) is not None
        streams = self._container.streams
        # A music file's cover picture is no video; a phone may add a sound track in a format of its own that nobody decodes.
        shown = (s for s in streams.video if s.codec_context and not s.disposition & av.stream.Disposition.attached_pic)
        heard = (
            s for s in streams.audio if s.codec_context and s.codec_context.sample_rate and s.codec_context.channels
        )
        self.video, self.audio = next(shown, None), next(heard, None)
        if self.audio is not None and self.audio.codec_context.sample_rate > FASTEST:
            self.close()
            raise TalkheadError(
                f"{self.name}: damaged, its sound has {self.audio.codec_context.sample_rate} samples a second; make it again"
            )
        self.sound = None
        self._packets = None
        self._told = set()
        self._reached = {}  # by index of stream: Fraction, seconds on the container's clock where its packets end so far

    def _peek(self, position, count):
        """The bytes at a position, of a pipe only near its start."""
        if self._source is not None:
            return self._source.look(position, count) if position < PIPE else b""
        if position >= os.path.getsize(self.name):  # beyond what a file may have, there is no looking
            return b""
        with open(self.name, "rb") as stream:
            stream.seek(position)
            return stream.read(count)

    def _refuse(self, error):
        if self._source is not None and not self._source.tail:
            raise TalkheadError(f"{self.name}: empty; the command before it failed") from error
        cure = (
            "pass one that FFmpeg can read" if self._source is None else "pass a file by its name"
        )  # some cannot be read in order
        raise TalkheadError(f"{self.name}: not a video or a sound file, or damaged; {cure}") from error

    @property
    def origin(self):
        """Fraction, seconds on the container's clock: when the first picture is shown."""
        stream = self.video or self.audio
        return Fraction(0) if stream.start_time is None else stream.start_time * stream.time_base

    def packets(self, pictures=True):
        """Packets of sound and pictures, and at the end an empty one of each; then checks that the end was the end."""
        restarts = bool(self._container.format.flags & av.format.Flags.ts_discont.value)
        # Where the clock starts again, or pauses, the sound keeps step with the pictures also when they are not wanted.
        streams = [stream for stream in (self.video, self.audio) if stream is not None]
        reached = self._reached = dict.fromkeys((stream.index for stream in streams), Fraction(0))
        starts = {
            stream.index: None if stream.start_time is None else stream.start_time * stream.time_base
            for stream in streams
        }
        if not restarts and None not in starts.values():  # a stream that begins late does so as after a pause
            starts = dict.fromkeys(starts, min(starts.values(), default=None))
        clock = self._clock = PacketClock(
            restarts, starts, self.video.index if self.video in streams else None, self.tell
        )
        try:
            for packet in chain.from_iterable(map(clock.mend, self._container.demux(streams))):
                end = _end(packet)
                if end is not None:
                    reached[packet.stream.index] = max(reached[packet.stream.index], end)
                if pictures or packet.stream.index != getattr(self.video, "index", None):
                    yield packet
        except (
            av.error.FFmpegError,
            ValueError,
            OSError,
            LookupError,
        ) as error:  # the last: PyAV's, of a stream that shows up late
            raise TalkheadError(f"{self.name}: damaged or cut short; make it again") from error
        if self._source is not None:
            self._source.drain()
        if self._is_stream:
            if self._tail(TAIL)[4:8] != b"mfro":
                raise TalkheadError(f"{self.name}: cut short; the command that wrote it failed")
        elif self._falls_short(streams, reached):
            keep = "" if self._source is not None else ", or keep what is there with ffmpeg -i IN -c copy OUT"
            raise TalkheadError(f"{self.name}: cut short; copy it again{keep}")

    def conceal(self, packet, by):
        """Say that what a packet or frame holds is damaged, and by what it is replaced."""
        stamp = packet.dts if packet.pts is None else packet.pts
        if (
            not self._is_stream
        ):  # a stream of our own is not damaged but cut short, and that is an error, said at its end
            self.tell(f"damaged; {by} is put there", None if stamp is None else stamp * packet.time_base)

    def tell(self, what, moment=None):
        """Warn of something found while reading, once; moment: seconds on the container's clock where it begins."""
        if what not in self._told:
            self._told.add(what)
            place = "" if moment is None else f", {max(float(moment - self.origin), 0):.2f} s"
            warnings.warn(f"{self.name}{place}: {what}", stacklevel=2)

    def _falls_short(self, streams, reached):
        """Whether packets ended long before the end that the file's own head promises. FFmpeg would take it for the end."""
        kind = self._container.format.name
        if (
            kind == "wav" and self._source is None
        ):  # FFmpeg knows the file's size, and believes that instead of the head
            with open(self.name, "rb") as stream:
                promised = int.from_bytes(stream.read(8)[4:], "little")
            return promised < UNKNOWN_SIZE and promised + 8 > os.path.getsize(self.name) + 1
        size = os.path.getsize(self.name) if self._source is None else self._source.count
        if (
            self._promised is not None
            and size + 1 < self._promised
            or kind == "mpegts"
            and self._unit
            and size % self._unit
        ):
            return True
        data = self._tail(PARTS) if kind in PARTED else b""
        last = _last_part(data, *PARTED[kind]) if data and len(data) == min(size, PARTS) else None
        if last is not None and last[1] > len(data):
            return True
        if kind == "ogg" and last is not None and not data[last[0] + 5] & 4:
            self.tell("its last page is not marked as the last; what comes after it, if anything, is missing")
        promised = {stream.index: self.end(stream) for stream in streams}
        return LEFT_OUT not in self._told and any(
            end is not None and end - reached[index] > SHORT for index, end in promised.items()
        )

    def end(self, stream):
        """Fraction, seconds on the container's clock where the file's own head says that a stream ends; None where it does not."""
        kind = self._container.format.name.split(",")[0]
        # Of other kinds the duration is a guess, and so it is where MP4 has no table of its samples because it comes in fragments.
        if not stream.duration or not (kind in ("flac", "wav") or kind == "mov" and stream.frames):
            return None
        seconds = stream.duration * stream.time_base
        if kind == "wav" and seconds * stream.codec_context.bit_rate / 8 > UNKNOWN_SIZE:
            return None
        return (stream.start_time or 0) * stream.time_base + seconds

    def _tail(self, count):
        """The last bytes, of a pipe at most as many as are kept."""
        if self._source is not None:
            return self._source.tail
        with open(self.name, "rb") as stream:
            stream.seek(-min(count, os.path.getsize(self.name)), os.SEEK_END)
            return stream.read()

    def begin(self):
        """Start reading frames, and the sound with them."""
        self.sound = None if self.audio is None else Sound(self)
        self._packets = self.packets()

    def read_on(self):
        """Read one packet past the frames wanted, keeping sound; False at the end."""
        packet = next(self._packets, None)
        if packet is not None and packet.stream.index == self.audio.index:
            self.sound._push(packet)
        return packet is not None

    def pictures(self):
        """Decoded frames as (seconds after the first picture: Fraction, seconds it lasts: Fraction, av.VideoFrame)."""
        rate = self.video.average_rate or self.video.guessed_rate or Fraction(25)
        rate = rate if rate * RESTART > 1 else Fraction(FPS)  # of pictures whose stamps are wrong
        end, origin = Fraction(0), self.origin
        stamps = PictureStamps(shown=self._container.format.name != "avi")

        def likely(time):
            """A moment, or the end of what was shown so far where that far ahead nothing is heard."""
            if time - end <= RESTART or self._clock.is_pause(self.video.index, time + origin, end + origin):
                return time
            self.tell(LEFT_OUT, end + origin)
            return end

        damaged = []  # packets of which that is still to be said
        # Where the packets end, also those that hold no picture, with the stamp of the one that tells it; time and frame of the last picture.
        until, last = (Fraction(0), Fraction(0)), None
        for packet in self._packets:
            if packet.stream.index != self.video.index:
                if self.sound is not None:
                    self.sound._push(packet)
                continue
            frames = _decoded(packet)
            if frames is None and packet.size:  # the picture before it stays a little longer
                damaged.append(packet)
            if last is not None or frames:  # where no picture ever comes, the reader says that alone
                while damaged:
                    self.conceal(damaged.pop(0), "the picture before")
            stamps.sent(packet)
            stop = _end(packet, stamps.shown) if not packet.is_discard else None
            if stop is not None:
                until = max(until, (stop - lasting(packet) - origin, stop - origin))
            for frame in frames or ():
                if frame.is_corrupt:
                    self.conceal(frame, "the decoder's guess")
                stamp = stamps.of(frame)
                time = end if stamp is None else likely(stamp * frame.time_base - origin)
                lasts = (frame.duration or 0) * frame.time_base
                lasts = lasts if 0 < lasts <= RESTART else 1 / rate
                end = time + lasts
                last = time, frame
                if frame.color_trc in HDR:
                    self.tell(
                        f"HDR ({HDR[frame.color_trc]}) is read as if it were not, and looks flat; convert it first"
                    )
                yield time, lasts, frame
        until = end if last is None else likely(until[1])
        if self._container.format.name == "ogg":
            # Theora's encoders leave out repeats, those at the end too: the last picture is there as long as the sound.
            until = max(until, min(max(self._reached.values()) - origin, end + Fraction(SHORT)))
        if last is not None and until > end:
            time, frame = last
            yield time, until - time, frame

    def close(self):
        self._stack.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _deinterlaced(timed, tell):
    """Frames flagged as interlaced made whole by FFmpeg's filter yadif; others as they are.

    timed   iterable of (time, duration, frame)
    tell    called with a message when the first such frame comes
    """
    graph, setup, waiting = None, None, deque()

    def filtered(frame):
        graph.push(frame)
        with suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                whole = graph.pull()
                yield *waiting.popleft(), whole

    for time, lasts, frame in timed:
        found = frame.width, frame.height, frame.format.name
        if graph is not None and found != setup:
            yield from filtered(None)
            graph = None
        if graph is None and (not frame.interlaced_frame or min(found[:2]) < 3):  # yadif needs three rows
            yield time, lasts, frame
            continue
        if graph is None:
            tell("interlaced; deinterlaced by yadif")
            graph, setup = av.filter.Graph(), found
            graph.link_nodes(
                graph.add_buffer(template=frame, time_base=frame.time_base),
                graph.add("yadif", "deint=interlaced"),
                graph.add("buffersink"),
            ).configure()
        waiting.append((time, lasts))
        yield from filtered(frame)
    if graph is not None:
        yield from filtered(None)


def _resample(timed, fps):
    """Drop and repeat frames so that they come `fps` to the second, as FFmpeg's filter "fps" does.

    timed   iterable of (time, duration, frame), seconds as Fraction, from the first frame
    fps     Fraction
    yields  frames: the n-th is the last whose time, rounded to whole output frames, is not after n
    """
    held, count, end = None, 0, Fraction(0)
    for time, duration, frame in timed:
        due = _round(time * fps)
        while held is not None and count < due:
            yield held
            count += 1
        held, end = frame, time + duration
    while held is not None and count < max(_round(end * fps), 1):
        yield held
        count += 1


def _round(value):
    return int(value + Fraction(1, 2)) if value >= 0 else -int(Fraction(1, 2) - value)  # half away from zero, as FFmpeg


def _picture(frame, aspect, scaler):
    """A decoded frame as uint8 (H, W, 3) RGB as it is meant to be seen: pixels made square, upright.

    aspect  width / height of a pixel, Fraction or None
    scaler  VideoReformatter of the clip: one for all its frames, for each keeps threads of its own
    """
    stretched = aspect is not None and aspect > 0 and abs(aspect - 1) > 0.01  # less is rounding in the file's header
    width = round(frame.width * aspect) if stretched else frame.width
    array = scaler.reformat(frame, width=width, format="rgb24", interpolation=SCALER, threads=1).to_ndarray()
    try:
        beside = frame.side_data
    except ValueError:  # PyAV has no name for a kind of it, as for EXIF
        beside = _without_unnamed(frame).side_data
    matrix = next((bytes(data) for data in beside if data.type.name == "DISPLAYMATRIX"), None)
    return array if matrix is None else _upright(array, np.frombuffer(matrix, np.int32))


def _without_unnamed(frame):
    """A frame without the side data that PyAV cannot tell."""
    graph = av.filter.Graph()
    unnamed = sorted(set(range(64)) - {kind.value for kind in av.sidedata.sidedata.Type})
    graph.link_nodes(
        graph.add_buffer(template=frame, time_base=Fraction(1, 25)),
        *(graph.add("sidedata", f"mode=delete:type={kind}") for kind in unnamed),
        graph.add("buffersink"),
    ).configure()
    graph.push(frame)
    return graph.pull()


def _upright(array, matrix):
    """Apply MP4's display matrix (a b u c d v x y w), for the eight ways in which a rectangle can lie: x' = ax + cy, y' = bx + dy."""
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        array, a, d = array.swapaxes(0, 1), c, b
    array = array[:, ::-1] if a < 0 else array
    array = array[::-1] if d < 0 else array
    return np.ascontiguousarray(array)


class FrameReader:
    """The frames of a clip, one after the other: iterate once, and close it (or use `with`).

    name        what the source is called in messages
    fps         float, frames per second as given here
    source_fps  float, as found
    codec       how the pictures are coded: "h264", "mpeg1video", "png"
    size        (H, W) of every frame
    count       how many frames there are to be, by what the source says of itself; None where it does not
    metadata    dict[str, str]: the container's tags, or a PNG's text
    aligned     bool: talkhead cropped these frames, so that they need not be aligned again
    sound       Sound or None; ask before the first frame is read, else the sound is not kept
    yields      uint8 (H, W, 3) RGB
    """

    def __init__(self, source, fps=FPS, limit=None):
        self.fps = float(fps)
        self.name = _name(source)
        self._left = limit
        self._media = None
        self._stack = ExitStack()
        self._wants_sound = self._begun = False
        path = Path(source) if _named(source) else None
        if path is not None and path.is_dir():
            names = sorted(find(path, PICTURES), key=_order)
            if not names:
                raise TalkheadError(f"{path}: a folder without pictures; pass one with PNG or JPEG files")
            self._open_folder(names)
        else:
            with ExitStack() as undo:
                undo.push(self._stack)
                opened = self._stack.enter_context(_open_source(source))
                if path is not None and path.suffix.lower() in PICTURES or _is_picture(opened):
                    self._open_picture(opened)
                else:
                    self._open_media(opened)
                undo.pop_all()
        self.aligned = ALIGNED_TAG in self.metadata
        if limit is not None and self.count is not None:
            self.count = min(self.count, limit)

    def _open_folder(self, names):
        self.source_fps, self.count, self.codec = self.fps, len(names), names[0].suffix.lower()[1:]
        first, self.metadata = _read_picture(names[0])
        self.size = first.shape[:2]
        self._frames = self._pictures(names, first)

    def _open_picture(self, opened):
        with _whole_picture(self.name):
            image = _open_picture(
                self._stack.enter_context(reading(opened)) if isinstance(opened, Path) else opened, self.name
            )
            timed = pictures.moving(image)
            first = next(timed)
            self.metadata, self.size = _text(image), _to_rgb(image).shape[:2]
        self.codec = (image.format or "heic").lower()
        lasts = first[1]
        self.count, self.source_fps = (None, float(1 / lasts)) if lasts else (1, self.fps)
        self._frames = self._moving(_to_rgb(image), timed, lasts)

    def _moving(self, first, timed, lasts):
        def seen():
            yield Fraction(0), lasts, first
            for time, stays, image in timed:
                yield time, stays, _to_rgb(image)

        with _whole_picture(self.name):
            for frame in _resample(seen(), Fraction(self.fps).limit_denominator(1001)):
                yield frame.copy()  # it may be repeated, and the caller may draw on it

    def _pictures(self, names, first):
        yield first
        for name in names[1:]:
            image = read_image(name)
            if image.shape[:2] != self.size:
                raise TalkheadError(f"{name}: is {_size(image)}, the first picture is {_size(first)}; make them equal")
            yield image

    def _open_media(self, opened):
        media = self._media = self._stack.enter_context(_Media(opened, self.name))
        if media.video is None:
            raise TalkheadError(f"{self.name}: has no pictures; pass a video")
        media.begin()
        timed = _deinterlaced(media.pictures(), media.tell)
        first = next(timed, None)
        if first is None:
            raise TalkheadError(f"{self.name}: holds no picture that can be read; pass a whole video")
        self.metadata, self.codec = media.metadata, media.video.codec_context.name
        self.source_fps = float(media.video.average_rate or media.video.guessed_rate or self.fps)
        seconds = media.video.duration and media.video.duration * media.video.time_base
        self.count = round(seconds * self.fps) if seconds else None
        self._aspect = media.video.sample_aspect_ratio
        self._scaler = VideoReformatter()
        self.size = _picture(first[2], self._aspect, self._scaler).shape[:2]
        self._frames = self._decoded(first, timed)

    def _decoded(self, first, timed):
        for frame in _resample(chain([first], timed), Fraction(self.fps).limit_denominator(1001)):
            image = _picture(
                frame, self._aspect, self._scaler
            )  # of a repeated frame too: the caller may draw on what it gets
            if image.shape[:2] != self.size:
                raise TalkheadError(f"{self.name}: its pictures change size; cut it where they do")
            yield image

    @property
    def sound(self):
        if self._media is None:
            return None
        assert self._wants_sound or not self._begun, "ask for the sound before the first frame"
        self._wants_sound = True
        return self._media.sound

    def __iter__(self):
        return self

    def __next__(self):
        self._begun = True
        if self._media is not None and not self._wants_sound:
            self._media.sound = None  # nobody asked: do not keep it
        if self._left is not None:
            if self._left <= 0:
                raise StopIteration
            self._left -= 1
        return next(self._frames)

    def close(self):
        self._stack.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _order(path):
    """Frames by number, so that 10.png follows 9.png; others by name."""
    return (0, int(path.stem), "") if path.stem.isdecimal() else (1, 0, path.name)


def _size(image):
    return f"{image.shape[1]}x{image.shape[0]}"


def read_frames(source, fps=FPS, limit=None):
    """Open a clip for reading.

    source   video file of any kind, folder of pictures in the order of their names, one picture or one that moves, "-" or a
             binary stream
    fps      frames per second wanted: frames are dropped or repeated by the time at which they are shown
    limit    number of frames after which to stop
    returns  FrameReader
    warns    where it was mended (the picture before a damaged one stays, a clock that starts again goes on, interlaced pictures are
             deinterlaced), and of HDR
    raises   TalkheadError if it is missing, empty, has no pictures or cannot be read; while reading, if it was cut short

    Source: thesis §3.3.1.1 (25 fps by dropping frames).
    """
    return FrameReader(source, fps, limit)


# Frames out -----------------------------------------------------------------------------------------------------------


class FrameWriter:
    """Writes frames, and a sound track with them; use `with`. Whole when the block ends, gone if it raises.

    destination  "-" (or a binary stream): fragmented MP4, lossless RGB H.264 and FLAC. x.mp4 .mov .mkv: H.264 yuv420p and AAC, odd
                 sizes padded by a row or column. x.png .jpg: one frame. Other names: a new folder of PNGs, 000000.png, …
    fps          frames per second
    sound        None, (samples float32 (N,), (N, 1) or (N, 2) in [-1, 1], rate), the Sound of a FrameReader, or a SoundReader that
                 keeps what it read. Cut, or filled up with silence, to end with the frames
    metadata     dict[str, str], tags of the container or text of the PNGs
    synthetic    mark it as made by a trained model, as IPTC asks
    lossless     None: on a pipe only
    raises       TalkheadError if it cannot be written, gets no frame, or frames of different size; BrokenPipeError if the
                 reader of a pipe has left
    """

    def __init__(self, destination, fps=FPS, sound=None, metadata=None, synthetic=False, lossless=None):
        self.name = _name(destination)
        self._destination = destination
        tags = _tags(metadata, synthetic)
        suffix = Path(destination).suffix.lower() if _named(destination) else None
        if not _named(destination):
            self._output = _VideoOutput(
                self.name, "mp4", fps, sound, {**tags, STREAM_TAG: "1"}, lossless is not False, piped=True
            )
        elif suffix in VIDEO_FORMATS:
            self._output = _VideoOutput(self.name, VIDEO_FORMATS[suffix], fps, sound, tags, bool(lossless))
        elif suffix in IMAGE_FORMATS:
            self._output = _ImageOutput(self.name, IMAGE_FORMATS[suffix], tags)
        elif suffix == "" or str(destination).endswith(os.sep) or Path(destination).is_dir():
            self._output = _FolderOutput(tags)
        else:
            raise TalkheadError(
                f"{self.name}: cannot write {suffix}; end the name in .mp4, .png or .jpg, or name a folder"
            )
        self.count = 0
        self._size = None
        self._stack = ExitStack()

    def __enter__(self):
        with ExitStack() as stack, mendable(self.name):
            if _named(self._destination):
                place = stack.enter_context(_placed(self._destination, self._output.folder))
            else:
                place = _Sink(self._destination)
            self._output.open(place)
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def write(self, frame):
        """Add one frame, uint8 (H, W, 3) RGB, of the first frame's size."""
        frame = np.asarray(frame)
        assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3, (frame.dtype, frame.shape)
        self._size = self._size or frame.shape
        if frame.shape != self._size:
            raise TalkheadError(
                f"{self.name}, frame {self.count}: the size changes to {_size(frame)}; make all frames equal"
            )
        with mendable(self.name):
            self._output.write(frame)
        self.count += 1

    def _finish(self, kind, error, trace):
        whole = kind is None and self.count > 0
        with mendable(self.name):
            self._output.close(whole)
        if kind is None and not whole:
            raise TalkheadError(f"{self.name}: no frames to write; check the input")

    def __exit__(self, *error):
        return self._stack.__exit__(*error)


class _ImageOutput:
    """One picture."""

    folder = False

    def __init__(self, name, format, tags):
        self._name, self._format, self._tags = name, format, tags
        self._place, self._count = None, 0

    def open(self, place):
        self._place = place
        place.touch()  # so that a bad place is known before the work is done

    def write(self, frame):
        if self._count:
            raise TalkheadError(f"{self._name}: more than one frame for one picture; name an .mp4 or a folder")
        with open(self._place, "wb") as stream:
            _save_picture(stream, frame, self._format, self._tags)
        self._count += 1

    def close(self, whole):
        pass


class _FolderOutput:
    """A folder of numbered PNGs."""

    folder = True

    def __init__(self, tags):
        self._tags = tags
        self._place, self._count = None, 0

    def open(self, place):
        self._place = place
        place.mkdir()

    def write(self, frame):
        with open(self._place / f"{self._count:06}.png", "wb") as stream:
            _save_picture(stream, frame, "PNG", self._tags)
        self._count += 1

    def close(self, whole):
        pass


class _VideoOutput:
    """A container with H.264 pictures, and sound that keeps step with them."""

    folder = False

    def __init__(self, name, format, fps, sound, tags, lossless, piped=False):
        self._name = name
        self._format, self._tags, self._lossless, self._piped = format, tags, lossless, piped
        self._fps = Fraction(fps).limit_denominator(1001)
        self._sound = _Samples(*sound) if isinstance(sound, tuple) else sound
        self._count = self._heard = 0  # frames and samples written
        self._video = self._audio = None
        self._scaler = VideoReformatter()

    def open(self, place):
        # The key use_metadata_tags keeps names that MP4 has no box for. A stream's boxes are whole without going back, and short:
        # one for each frame, which is written as soon as the frame's sound is there.
        flags = "empty_moov+default_base_moof" if self._piped else "faststart"
        options = {"movflags": f"{flags}+use_metadata_tags"} if self._format != "matroska" else {}
        options |= {"frag_duration": "1", "flush_packets": "1", "max_interleave_delta": "1"} if self._piped else {}
        self._sink = place if isinstance(place, _Sink) else None
        self._container = av.open(self._sink or f"file:{place}", "w", format=self._format, options=options)
        self._container.metadata.update(self._tags)

    def _start(self, height, width):
        if max(height, width) > LONGEST:
            raise TalkheadError(
                f"{self._name}: frames of {width}x{height} are too large for a video, which has at most {LONGEST} pixels a side; make them smaller"
            )
        if self._lossless:
            # For a pipe no frame may wait for the next; two identical settings would not be worth two code paths.
            options = {"qp": "0", "preset": "ultrafast", "tune": "zerolatency"}
            video = self._container.add_stream("libx264rgb", rate=self._fps, options=options)
            video.pix_fmt = "rgb24"
            video.codec_context.gop_size = KEYFRAMES
        else:
            width, height = width + width % 2, height + height % 2
            video = self._container.add_stream("libx264", rate=self._fps, options={"crf": "16"})
            video.pix_fmt = "yuv420p"
            context = video.codec_context
            context.colorspace = context.color_primaries = context.color_trc = (
                1  # BT.709, said aloud: players guess by size
            )
            context.color_range = 1  # 16-235
        video.width, video.height = width, height
        video.codec_context.time_base = 1 / self._fps
        self._video = video
        if self._sound is not None:
            self._audio = self._add_sound(self._sound.rate, "mono" if self._sound.channels == 1 else "stereo")

    def _add_sound(self, rate, layout):
        codec = "flac" if self._lossless else "aac"
        if not self._lossless and rate not in AAC_RATES:
            rate = min((r for r in AAC_RATES if r > rate), default=max(AAC_RATES))
        # Level 0 packs few samples at a time: a frame's sound can go with it.
        audio = self._container.add_stream(
            codec, rate=rate, options={"compression_level": "0"} if self._lossless else {}
        )
        audio.codec_context.layout = layout
        audio.codec_context.time_base = Fraction(1, rate)
        if self._lossless:
            audio.codec_context.format = "s16"
        else:
            audio.codec_context.bit_rate = (64_000 if rate <= 24_000 else 96_000) * self._sound.channels
        return audio

    def write(self, frame):
        if self._video is None:
            self._start(*frame.shape[:2])
        if self._lossless:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        else:
            odd = [(0, self._video.height - frame.shape[0]), (0, self._video.width - frame.shape[1]), (0, 0)]
            picture = av.VideoFrame.from_ndarray(np.pad(frame, odd, mode="edge"), format="rgb24")
            picture = self._scaler.reformat(
                picture, format="yuv420p", dst_colorspace="itu709", dst_color_range=1, interpolation=SCALER, threads=1
            )
        picture.pts, picture.time_base = self._count, 1 / self._fps
        picture.duration = 1
        self._mux(self._video.encode(picture))
        self._count += 1
        self._hear(wait=False)

    def _hear(self, wait):
        """Write the sound that belongs to the frames written so far; with `wait`, to the last sample."""
        if self._audio is None:
            return
        rate = self._sound.rate
        wanted = round(self._count / self._fps * rate) - self._heard
        samples = self._sound.take(wanted, wait)
        if wait and len(samples) < wanted:
            silence = np.zeros((wanted - len(samples), self._sound.channels), np.int16)
            samples = np.concatenate([samples, silence])
        if len(samples) == 0:
            return
        packed = np.ascontiguousarray(samples).reshape(1, -1)
        block = av.AudioFrame.from_ndarray(
            packed, format="s16", layout="mono" if self._sound.channels == 1 else "stereo"
        )
        block.sample_rate, block.time_base, block.pts = rate, Fraction(1, rate), self._heard
        self._heard += len(samples)
        self._mux(self._audio.encode(block))

    def _mux(self, packets):
        for packet in packets:
            self._container.mux(packet)
        if self._sink is not None:
            self._sink.check()

    def close(self, whole):
        if not whole:
            if self._sink is not None:
                self._sink.cut = True  # the reader is to see that the end is missing
            with suppress(av.error.FFmpegError, OSError):
                self._container.close()
            return
        self._hear(wait=True)
        self._mux(self._video.encode(None))
        if self._audio is not None:
            self._mux(self._audio.encode(None))
        self._container.close()
        if self._sink is not None:
            self._sink.check()
