"""Paths, pipes, and plain files: .npy arrays, latents, JSON and weights. "-" is standard input or standard output.

Every file is written beside its place and renamed when whole. Images, sound and video: `image_files`, `audio_files`, `video_files`.
"""

import codecs
import errno
import json
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
import zipfile
import zlib
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import av
import numpy as np

from talkhead import legacy, safetensors
from talkhead.errors import TalkheadError

FPS = 25.0  # frames per second: the thesis's (§3.3.1.1), and that of every clip made here

ALIGNED_TAG = "talkhead_aligned"  # its value is the side of the square crop, in pixels
SYNTHETIC_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
STREAM_TAG = (
    "talkhead_stream"  # on a pipe only: such a stream is whole if, and only if, it ends as MP4's writer ends it
)


TAIL = 16  # bytes of an "mfro" box, the last of a fragmented MP4 that was closed in order
PATIENCE = 5.0  # seconds without a byte from a pipe, after which one may want to know that it is waited for
PIPE = (
    1 << 20
)  # bytes that a pipe of sound may hold, where the system lets us say: speech that comes while networks load


# Errors and names -----------------------------------------------------------------------------------------------------

_HINTS = {
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
def os_errors_in_one_line(name):
    """Turn the operating system's errors into one line about `name`. A reader that left stays BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, av.error.FFmpegError) as error:
        if not isinstance(error, OSError) and error.errno not in _HINTS:
            raise  # FFmpeg's own kind of error: we asked it for something wrong
        reason = _HINTS.get(error.errno) or f"{os.strerror(error.errno) if error.errno else error}; name another file"
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


def is_path(place):
    return isinstance(place, (str, os.PathLike)) and str(place) != "-"


def name_of(place):
    return str(place) if isinstance(place, (str, os.PathLike)) else getattr(place, "name", None) or "-"


class Source:
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


class Sink:
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
    with os_errors_in_one_line(path), placed(path) as temporary:
        yield temporary


@contextmanager
def placed(path, folder=False):
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
        with os_errors_in_one_line(name):
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
    if is_path(source):
        with os_errors_in_one_line(source), open(source, "rb") as stream:
            yield stream
    else:
        yield Source(source)


@contextmanager
def writing(destination):
    """A binary stream to `destination`, which appears only when the block ends well."""
    with os_errors_in_one_line(name_of(destination)), ExitStack() as stack:
        if is_path(destination):
            destination = stack.enter_context(open(stack.enter_context(placed(destination)), "wb"))
        sink = Sink(destination)  # numpy writes to a file itself through C, and then has no reason to give
        yield sink
        sink.check()


def read_array(source):
    """Read one .npy.

    source   path, "-" or binary stream
    returns  the array; never pickled objects
    raises   TalkheadError if it is missing, empty, cut short, or not a .npy of numbers
    """
    name = name_of(source)
    with reading(source) as stream, _whole_array(name):
        return np.lib.format.read_array(PushBack(_array_start(name, stream), stream), allow_pickle=False)


def map_array(path):
    """A .npy as it lies on the disk: what is looked at is read then, and only that.

    returns  numpy.memmap, read-only
    raises   as read_array
    """
    with reading(path) as stream:
        _array_start(path, stream)
    with os_errors_in_one_line(path), _whole_array(path):
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


class PushBack:
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
    with writing(destination) as stream:
        np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)


@contextmanager
def array_writer(path, shape, dtype=np.uint8):
    """Write one .npy entry by entry, in flat memory; it appears only when the block ends well.

    path    file to be
    shape   of an entry; the array's is (count, *shape)
    yields  an object with `write(entry)`, `count`, and `cut(count)`, which takes back all entries but so many
    raises  TalkheadError if it cannot be written
    """
    with os_errors_in_one_line(path), placed(path) as temporary, open(temporary, "wb") as stream:
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
    name = name_of(source)
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
    return Path(source).suffix.lower() if is_path(source) else ""


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
    if about is not None and is_path(destination):
        write_json(Path(destination).with_suffix(".json"), about)
    return len(latents)


@contextmanager
def tee_latents(destination, latents, about=None):
    """Hand latents on as they come, and write them as write_latents does when the block ends well; a named file in flat memory.

    destination, about   as in write_latents
    latents              iterable of float32 (L, 512)
    yields               an iterator of the same latents
    """
    if not is_path(destination) or os.path.exists(destination) and not os.path.isfile(destination):
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
    path = Path(source).with_suffix(".json") if is_path(source) else None
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
            raise TalkheadError(f"{name_of(source)}: not JSON ({error}); write it again") from error


def write_json(destination, value):
    """Write one JSON value to a path, "-" or a binary stream."""
    with writing(destination) as stream:
        stream.write(json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")


# Weights --------------------------------------------------------------------------------------------------------------


def save_weights(path, weights):
    """Write a dict of plain values and tensors as .pt: whole or not at all, also if the machine stops half-way.

    raises  TalkheadError if it cannot be written
    """
    import torch

    with atomic(path) as temporary, open(temporary, "wb") as stream:
        sink = Sink(stream)
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
        if is_path(path):
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
    return legacy.renamed(weights) if found is not None else weights


def option(kind):
    """The option by which commands take weights of a kind."""
    return {"speech": "--features-model"}.get(kind, f"--{kind.replace('_', '-')}")


def a(noun):
    """A noun, or a kind of weights, with its article."""
    noun = {"speech": "character model"}.get(noun, noun)
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def is_prepared(path):
    """True if a file name is of latents or of a tuned generator, not of images."""
    return str(path).lower().endswith((".pt", ".npy", ".npz"))
