"""Paths, pipes, and plain files: .npy arrays, latents, JSON and weights. "-" is standard input or standard output.

Every file is written beside its final place and renamed when complete. Images, audio and video: `image_files`,
`audio_files`, `video_files`.
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
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeGuard

import av
import numpy as np

from talkhead import legacy, safetensors
from talkhead.errors import TalkheadError

FPS = 25.0  # frames per second, as in the thesis (§3.3.1.1), of every clip made here

ALIGNED_TAG = "talkhead_aligned"  # its value is the side of the square crop, in pixels
SYNTHETIC_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
# Marks an MP4 on a pipe; such a stream is complete if and only if it ends with an "mfro" box.
STREAM_TAG = "talkhead_stream"
MFRO_BYTES = 16  # size of an "mfro" box, the last one of a fragmented MP4 that was closed properly

PATIENCE = 5.0  # seconds without data from a pipe before `on_wait` is called
PIPE_BYTES = 1 << 20  # capacity asked of an audio pipe, for speech that arrives while networks load


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
def os_errors_in_one_line(name: str | os.PathLike) -> Iterator[None]:
    """Turn the operating system's errors into a TalkheadError about `name`. BrokenPipeError stays as it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, av.error.FFmpegError) as error:
        if not isinstance(error, OSError) and error.errno not in _HINTS:
            raise  # an error of FFmpeg's own kind is a bug of ours
        reason = (
            _HINTS.get(error.errno or 0) or f"{os.strerror(error.errno) if error.errno else error}; name another file"
        )
        raise TalkheadError(f"{name}: {reason}") from error


def lock(stream: BinaryIO | TextIO, message: str) -> None:
    """Lock an open file until it is closed, or raise TalkheadError with `message` if another process has it locked."""
    try:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TalkheadError(message) from error
    except (ImportError, OSError):
        pass  # Windows, or a file system without locks


def hub_folder() -> Path:
    """Path of torch's download cache, by torch's rules, without the seconds that importing torch takes."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _without_tilde(os.environ.get("TORCH_HOME") or f"{cache}/torch") / "hub" / "checkpoints"


def cache_folder() -> Path:
    """Path of talkhead's download cache: $TALKHEAD_CACHE, $XDG_CACHE_HOME/talkhead or ~/.cache/talkhead."""
    own = os.environ.get("TALKHEAD_CACHE")
    return _without_tilde(own or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/talkhead")


def _without_tilde(path):
    return Path(os.path.expanduser(path))  # Path.expanduser raises for a user without a home


def find(folder: str | os.PathLike, suffixes: Collection[str], deep: bool = False) -> list[Path]:
    """List the files with some suffixes in a folder, sorted, without hidden files and folders.

    Hidden files are not the user's: macOS puts ._x.jpg beside x.jpg, and a killed process leaves its partial files
    under hidden names.

    suffixes   in lower case, with their dots
    deep       search subfolders too
    returns    list of Path
    """
    folder = Path(folder)
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in suffixes and not is_hidden(path.relative_to(folder)))


def is_hidden(path: str | os.PathLike) -> bool:
    """True if the name of a file, or of a folder in its path, begins with a dot."""
    return any(part.startswith(".") for part in Path(path).parts if part not in (os.curdir, os.pardir))


def is_path(place: str | os.PathLike | BinaryIO) -> TypeGuard[str | os.PathLike]:
    return isinstance(place, (str, os.PathLike)) and str(place) != "-"


def name_of(place: str | os.PathLike | BinaryIO) -> str:
    return str(place) if isinstance(place, (str, os.PathLike)) else getattr(place, "name", None) or "-"


class Source:
    """Standard input or any binary stream, reduced to `read`: libraries would ask a pipe for its position.

    on_wait   called each time that no data arrive for PATIENCE seconds
    """

    def __init__(self, stream: str | BinaryIO, on_wait: Callable[[], None] | None = None) -> None:
        stream = sys.stdin.buffer if isinstance(stream, str) else stream
        self._descriptor = _descriptor_of_pipe(stream)
        waits = self.live and sys.platform != "win32"  # where select takes only sockets
        self._on_wait = on_wait if waits else None
        if self._on_wait is not None:
            stream = getattr(stream, "raw", stream)  # select does not see data in Python's buffer
        # A BufferedReader's `read` blocks until it has all bytes; its `read1` returns the available ones.
        self._read = getattr(stream, "read1", stream.read)
        self._start = bytearray()
        self.count, self.tail = 0, b""  # number of bytes read, and the last `kept` of them
        self.kept = MFRO_BYTES

    @property
    def live(self) -> bool:
        """True for a pipe, a terminal or a socket, whose writer may be slow."""
        return self._descriptor is not None

    def read(self, size: int = -1) -> bytes:
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

    def look(self, position: int, count: int) -> bytes:
        """Peek at `count` bytes from a position on, without consuming them; fewer at the end of the stream."""
        while len(self._start) < position + count:
            self._wait()
            # In small steps: a damaged file may point gigabytes ahead.
            data = self._read(1 << 16 if position else count - len(self._start))
            if not data:
                break
            self._start += data
        return bytes(self._start[position : position + count])

    def rest(self) -> bytes:
        """Read all bytes to the end."""
        return b"".join(iter(lambda: self.read(1 << 16), b""))

    def widen(self) -> None:
        """Enlarge the pipe's buffer, so that a live recorder loses no audio before reading starts."""
        with suppress(ImportError, AttributeError, OSError):  # Linux only
            import fcntl

            fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def drain(self) -> None:
        """Read and discard the rest, so that the command before can finish writing."""
        while self.read(1 << 16):
            pass


def _descriptor_of_pipe(stream):
    """File descriptor of a stream that is neither in memory nor a regular file, else None."""
    try:
        descriptor = stream.fileno()
        return None if stat.S_ISREG(os.fstat(descriptor).st_mode) else descriptor
    except (AttributeError, OSError, ValueError):
        return None


class Sink:
    """Standard output or any binary stream, reduced to `write`.

    After an error, or when `cut` is set, written data are discarded: a container can then be closed normally, and
    `check` raises the error outside of the C callback.
    """

    def __init__(self, stream: str | BinaryIO) -> None:
        if isinstance(stream, str):
            sys.stdout.flush()
            stream = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)  # unbuffered: nothing to flush at exit
        self._stream = stream
        self.cut = False
        self.error: OSError | None = None

    def write(self, data: bytes | bytearray | memoryview) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        while view and not self.cut:
            try:
                view = view[self._stream.write(view) :]
            except OSError as error:
                closed = sys.platform == "win32" and error.errno == errno.EINVAL  # as Windows calls it
                self.error, self.cut = BrokenPipeError(errno.EPIPE, error.strerror) if closed else error, True
        return size

    def flush(self) -> None:
        """Do nothing: there is no buffer, but torch calls it."""

    def check(self) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Temporary path beside `path`, renamed to it when the block ends and removed if it raises.

    path    file to write, in an existing folder. An existing device or FIFO is written in place
    yields  Path with the same suffix, of a file that does not exist yet
    raises  TalkheadError if the folder is missing or not writable, or the disk is full
    """
    with os_errors_in_one_line(path), placed(path) as temporary:
        yield temporary


@contextmanager
def placed(path: str | os.PathLike, folder: bool = False) -> Iterator[Path]:
    """`atomic` for a file or a folder, without translating the errors raised in the block."""
    name, path = str(path), Path(os.path.realpath(path))  # of a symbolic link, the target is replaced
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
def reading(source: str | os.PathLike | BinaryIO) -> Iterator[BinaryIO | Source]:
    """Open a path (seekable), "-" or a stream (only `read`) as binary input, with OS errors in one line."""
    if is_path(source):
        with os_errors_in_one_line(source), open(source, "rb") as stream:
            yield stream
    else:
        yield Source(source)  # type: ignore[arg-type]  # no path


@contextmanager
def writing(destination: str | os.PathLike | BinaryIO) -> Iterator[Sink]:
    """Open a binary stream to `destination`, which appears only if the block succeeds."""
    with os_errors_in_one_line(name_of(destination)), ExitStack() as stack:
        if is_path(destination):
            destination = stack.enter_context(open(stack.enter_context(placed(destination)), "wb"))
        # Given a real file, numpy writes through C and loses the reason of an error.
        sink = Sink(destination)  # type: ignore[arg-type]  # no path any more
        yield sink
        sink.check()


def read_array(source: str | os.PathLike | BinaryIO) -> np.ndarray:
    """Read one .npy array; pickled objects are refused.

    source   path, "-" or binary stream
    returns  numpy array
    raises   TalkheadError if it is missing, empty, cut short, or not a .npy of numbers
    """
    name = name_of(source)
    with reading(source) as stream, _whole_array(name):
        whole = PushBack(_array_start(name, stream), stream)
        return np.lib.format.read_array(whole, allow_pickle=False)  # type: ignore[arg-type]  # it always gives a size


def map_array(path: str | os.PathLike) -> np.memmap:
    """Memory-map one .npy array.

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
    # numpy's errors for a short file, one that holds objects, and a bad header
    except (ValueError, SyntaxError, tokenize.TokenError, OverflowError, MemoryError) as error:
        reason = "holds objects, not numbers" if "object" in str(error).lower() else "damaged or cut short"
        reason = "damaged, or larger than the memory" if isinstance(error, MemoryError) else reason
        raise TalkheadError(f"{name}: {reason}; write it again") from error


class PushBack:
    """A stream whose first bytes, already read, are returned first."""

    def __init__(self, start: bytes, stream: BinaryIO | Source) -> None:
        self._start, self._stream = start, stream

    def read(self, size: int) -> bytes:
        head, self._start = self._start[:size], self._start[size:]
        return head or self._stream.read(size)


def write_array(destination: str | os.PathLike | BinaryIO, array: np.ndarray) -> None:
    """Write one .npy array of numbers.

    destination  path, "-" or binary stream
    array        array of numbers
    raises       TalkheadError if it cannot be written; BrokenPipeError if the reader of a pipe has closed it
    """
    with writing(destination) as stream:
        np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)


@contextmanager
def array_writer(
    path: str | os.PathLike, shape: tuple[int, ...], dtype: type[np.generic] | np.dtype = np.uint8
) -> Iterator["_Rows"]:
    """Write one .npy array row by row in constant memory; the file appears only if the block succeeds.

    path    .npy to write
    shape   shape of a row; the array's is (count, *shape)
    yields  an object with `write(row)`, `count`, and `cut(count)`, which truncates to `count` rows
    raises  TalkheadError if it cannot be written
    """
    with os_errors_in_one_line(path), placed(path) as temporary, open(temporary, "wb") as stream:
        if not stream.seekable():
            raise TalkheadError(f"{path}: is a pipe, but the number of rows is known only at the end; name a file")
        rows = _Rows(stream, shape, np.dtype(dtype))
        yield rows
        rows.finish()


class _Rows:
    """Rows of a .npy whose header, of fixed length, is filled in at the end."""

    HEADER = 128  # bytes

    def __init__(self, stream, shape, dtype):
        self._stream, self._shape, self._dtype = stream, tuple(shape), dtype
        self.count = 0
        stream.write(bytes(self.HEADER))

    def write(self, row):
        assert row.shape == self._shape and row.dtype == self._dtype, (row.shape, row.dtype)
        self._stream.write(np.ascontiguousarray(row).data)
        self.count += 1

    def cut(self, count):
        self._stream.seek(self.HEADER + count * self._dtype.itemsize * math.prod(self._shape))
        self._stream.truncate()
        self.count = count

    def finish(self):
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.count, *self._shape)}
        text = repr(header).encode().ljust(self.HEADER - 11) + b"\n"
        self._stream.seek(0)
        self._stream.write(np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text)


def read_latents(source: str | os.PathLike | BinaryIO) -> np.ndarray:
    """Read W+ latents, ours or another project's.

    source   path of a .npy; of a .npz, as NVIDIA's projectors write (projected_w.npz); or of a .pt that holds one
             tensor, as e4e (latents.pt) and PTI (its pivots) write. "-" or a binary stream of a .npy
    returns  float32 (T, L, 512), finite; one latent (L, 512) becomes (1, L, 512)
    raises   TalkheadError if it holds anything else
    warns    if the array is (L, 512), which is read as one latent of L layers and not as L frames
    """
    name = name_of(source)
    array = _LATENT_READERS.get(_suffix(source), read_array)(source)
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


def is_latents(path: str | os.PathLike) -> bool:
    """True for a file of latents that `read_latents` reads, False for one of images or of a network."""
    if _suffix(path) != ".pt":
        return _suffix(path) in (".npy", ".npz")
    import torch

    with suppress(TalkheadError):  # loading it as a network will report the error
        return isinstance(load_weights(path, mapped=zipfile.is_zipfile(path)), torch.Tensor)
    return False


def _suffix(source):
    return Path(source).suffix.lower() if is_path(source) else ""


def _npz(path):
    """Array "w" of a .npz, or its only array."""
    with reading(path) as stream:
        try:
            arrays = np.load(stream, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise TalkheadError(f"{path}: not an archive of arrays; pass a file written by numpy.savez")
            key = "w" if "w" in arrays else arrays.files[0] if len(arrays.files) == 1 else None
            if key is None:
                raise TalkheadError(
                    f"{path}: holds {len(arrays.files)} arrays ({', '.join(arrays.files[:5])}), none called w; save "
                    "the latents alone"
                )
            if not isinstance(arrays[key], np.ndarray):  # an archive member that is no .npy
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
    """The only tensor in a .pt."""
    import torch

    value = load_weights(path)
    if not isinstance(value, torch.Tensor):
        raise TalkheadError(
            f"{path}: holds {a(type(value).__name__)}, wanted one tensor of latents (frames, layers, 512); save that "
            "alone"
        )
    return (value.float() if value.is_floating_point() else value).detach().numpy()


_LATENT_READERS = {".npz": _npz, ".pt": _tensor}


def write_latents(
    destination: str | os.PathLike | BinaryIO, latents: np.ndarray | Iterable[np.ndarray], about: dict | None = None
) -> int:
    """Write W+ latents as one .npy; beside a named file, their metadata as JSON of the same name.

    destination  path, "-" or binary stream
    latents      float32 (T, L, 512), or an iterable of (L, 512)
    about        plain dict: fingerprint of the generator, fps, …
    returns      T, the number of latents
    raises       as write_array
    """
    if not isinstance(latents, np.ndarray):
        latents = np.stack([np.asarray(latent) for latent in latents])
    write_array(destination, latents.astype(np.float32, copy=False))
    if about is not None and is_path(destination):
        write_json(Path(destination).with_suffix(".json"), about)
    return len(latents)


@contextmanager
def tee_latents(
    destination: str | os.PathLike | BinaryIO, latents: Iterable[np.ndarray], about: dict | None = None
) -> Iterator[Iterator[np.ndarray]]:
    """Pass latents through, and write them like `write_latents` if the block succeeds; a named file in constant memory.

    destination, about   as in write_latents
    latents              iterable of float32 (L, 512)
    yields               an iterator of the same latents
    """
    if not is_path(destination) or os.path.exists(destination) and not os.path.isfile(destination):
        kept: list[np.ndarray] = []
        yield (kept.append(latent) or latent for latent in latents)  # type: ignore[func-returns-value]
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


def read_about(source: str | os.PathLike | BinaryIO) -> dict:
    """Read the metadata beside latents: the dict given to write_latents, empty for a pipe or if there is none."""
    path = Path(source).with_suffix(".json") if is_path(source) else None
    about = read_json(path) if path is not None and path.is_file() else {}
    if not isinstance(about, dict):
        raise TalkheadError(f"{path}: holds no JSON object; write it again, or remove it")
    return about


def decoded(data: bytes, errors: str = "strict") -> str:
    """Decode the bytes of a text file: UTF-8 with or without a byte-order mark, or UTF-16 with one.

    errors   as of bytes.decode
    raises   UnicodeDecodeError, if `errors` is "strict"
    """
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if marked else "utf-8-sig", errors)


def read_json(source: str | os.PathLike | BinaryIO) -> Any:
    """Read one JSON value from a path, "-" or a binary stream; TalkheadError if it is missing or not JSON."""
    with reading(source) as stream:
        try:
            return json.loads(stream.read())
        except (ValueError, RecursionError) as error:
            raise TalkheadError(f"{name_of(source)}: not JSON ({error}); write it again") from error


def write_json(destination: str | os.PathLike | BinaryIO, value: dict | list | str | float | bool | None) -> None:
    """Write one JSON value to a path, "-" or a binary stream."""
    with writing(destination) as stream:
        stream.write(json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")


# Weights --------------------------------------------------------------------------------------------------------------


def save_weights(path: str | os.PathLike, weights: dict) -> None:
    """Write a dict of plain values and tensors as .pt, atomically and synced to the disk.

    raises  TalkheadError if it cannot be written
    """
    import torch

    with atomic(path) as temporary, open(temporary, "wb") as stream:
        sink = Sink(stream)
        torch.save(weights, sink)  # type: ignore[arg-type]  # it needs only `write` and `flush`
        sink.check()
        stream.flush()
        os.fsync(stream.fileno())


class NotPlainWeights(TalkheadError):
    """The file holds more than tensors and plain values."""


def load_weights(path: str | os.PathLike | BinaryIO, kind: str | None = None, mapped: bool = False) -> dict:
    """Read the weights in a .pt or .safetensors, without running any code from the file.

    path     file of save_weights, or another project's plain one
    kind     required kind: "generator", "encoder", "audio2latent", "speech"; None takes any
    mapped   memory-map the tensors; for a named file in torch's archive format. Not on Windows, which does not replace
             a file that is mapped
    returns  the dict, tensors on the CPU; an argparse.Namespace stays one
    raises   TalkheadError if it is missing, damaged, unsafe (NotPlainWeights), or of another kind
    """
    import argparse

    import torch

    mapped = mapped and sys.platform != "win32"
    with reading(path) as stream:
        if is_path(path):
            start = stream.read(9)
            stream.seek(0)  # type: ignore[union-attr]  # a path is seekable
            if safetensors.is_safetensors(start):
                return _of_kind(safetensors.read(stream, path), kind, path)  # type: ignore[arg-type]
            if start.startswith(b"PK"):
                _refuse_zipped_again(path)
        try:
            with torch.serialization.safe_globals([argparse.Namespace]):
                weights = torch.load(
                    # torch takes what has `read` and `seek`
                    os.fspath(path) if mapped else stream,  # type: ignore[arg-type]
                    map_location="cpu",
                    weights_only=True,
                    mmap=mapped,
                )
        except pickle.UnpicklingError as error:
            raise NotPlainWeights(f"{path}: not a file of plain weights; pass one that talkhead wrote") from error
        # torch's errors for a damaged archive
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
        ) as error:
            raise TalkheadError(f"{path}: damaged or not weights; copy or train it again") from error
    return _of_kind(weights, kind, path)


def _refuse_zipped_again(path):
    """Refuse a zip archive that torch.save did not write. Mapping compressed members, torch would return garbage."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return  # damaged: torch reports it
    names = {entry.filename for entry in entries}
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        raise TalkheadError(
            f"{path}: a zip archive that torch.save did not write; unpack it and pass the weights inside"
        )
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or len({name.partition("/")[0] for name in names}) > 1:
        raise TalkheadError(
            f"{path}: was unpacked and zipped again, {'with compression' if packed else 'not as one folder'}, which "
            "torch cannot read; use the original file, or zip its folder again: zip -0 -r NAME.pt FOLDER"
        )


def _of_kind(weights, kind, path):
    """Check that weights are of a kind, and return them with current key names."""
    found = weights.get("kind") if isinstance(weights, dict) else None
    if kind is not None and found != kind:
        if found is None:
            raise TalkheadError(f"{path}: not talkhead weights; convert it first")
        raise TalkheadError(f"{path}: holds {a(found)}, wanted {a(kind)}; pass it as {option(found)}")
    return legacy.renamed(weights) if found is not None else weights


def option(kind: str) -> str:
    """Command-line option that takes weights of a kind."""
    return {"speech": "--features-model"}.get(kind, f"--{kind.replace('_', '-')}")


def a(noun: str) -> str:
    """A noun, or the name of a kind of weights, with its article."""
    noun = {"speech": "character model"}.get(noun, noun)
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def is_prepared(path: str | os.PathLike) -> bool:
    """True if a file name is of latents or of a tuned generator, not of images."""
    return str(path).lower().endswith((".pt", ".npy", ".npz"))
