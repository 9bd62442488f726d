"""Image files: reading with Pillow (HEIC with FFmpeg), writing PNG and JPEG with metadata."""

import io
import logging
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps, UnidentifiedImageError, features
from PIL.PngImagePlugin import PngInfo

from talkhead.errors import TalkheadError
from talkhead.files import STREAM_TAG, SYNTHETIC_TYPE, Sink, Source, is_path, name_of, reading, writing

# PyAV before 19 refuses a file whose metadata is not UTF-8, unless told to replace what it cannot read.
OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

# Without a handler, Python prints Pillow's log messages on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# Pillow's names of animated formats; the images of a TIFF are pages.
MOVING = {"PNG", "GIF", "WEBP", "AVIF"}
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
BLOCK = 1 << 16  # bytes read at once


def is_picture(look: Callable[[int, int], bytes]) -> bool:
    """True if a file or pipe is one image, still or animated, for Pillow. Several PNGs or JPEGs in a row are a video.

    look  function look(position, count) that returns the bytes at a position; fewer at the end
    """
    head = look(0, 32)
    if head.startswith(PNG):
        end = _png_end(look)
        return look(end, len(PNG)) != PNG
    if head.startswith(JPEG):
        end, has_index = _jpeg_end(look)
        return has_index or look(end, len(JPEG)) != JPEG
    return (
        head[:4] == b"GIF8"
        or head[:4] == b"RIFF"
        and head[8:12] == b"WEBP"
        or head[:4] in (b"II*\0", b"MM\0*")
        or is_heif(head)
    )


def is_heif(head: bytes) -> bool:
    """True if the first bytes of a file are those of a HEIC or an AVIF."""
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif", b"avis")


def opens_heif(head: bytes) -> bool:
    """True if Pillow can open a HEIC or AVIF with these first bytes; for HEIC it needs pillow-heif."""
    if b"avif" in head or b"avis" in head:
        return bool(features.check("avif"))
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _png_end(look):
    at, kind = len(PNG), None
    while kind not in (b"IEND", b""):
        head = look(at, 8)
        at, kind = at + 12 + int.from_bytes(head[:4], "big"), head[4:]
    return at


def _jpeg_end(look):
    """End of a JPEG in bytes, and True if it has an index of further images (MPF, CIPA DC-007)."""
    at, has_index, scan = 2, False, False
    while True:
        if scan:  # entropy-coded data, in which only 0 and restart markers follow 0xFF
            block = look(at, BLOCK)
            found = re.search(rb"\xff[^\x00\xd0-\xd7\xff]", block)
            if found is None and len(block) < BLOCK:
                return at + len(block), has_index
            at += len(block) - 1 if found is None else found.start()
            scan = found is None
            continue
        mark = look(at, 8)
        if len(mark) < 4 or mark[0] != 0xFF:
            return at, has_index
        if mark[1] == 0xD9:
            return at + 2, has_index
        has_index |= mark[1] == 0xE2 and mark[4:8] == b"MPF\0"
        scan = mark[1] == 0xDA
        at += 2 + int.from_bytes(mark[2:4], "big")


def moving(image: Image.Image) -> Iterator[tuple[Fraction, Fraction, Image.Image]]:
    """Iterate over the frames of an image that Pillow opened: (time in seconds, duration in seconds, image).

    A frame without a duration lasts 0.1 s, as in browsers.
    """
    alone = not (image.format in MOVING and getattr(image, "is_animated", False))
    time = Fraction(0)
    # An APNG's default image is only for readers without APNG support.
    for index in [0] if alone else range(getattr(image, "default_image", False), image.n_frames):  # type: ignore[attr-defined]  # a moving one has it
        image.seek(index)
        image.load()
        lasts = Fraction(0) if alone else Fraction(image.info.get("duration") or 100).limit_denominator(1000) / 1000
        yield time, lasts, image
        time += lasts


SYNTHETIC_TAG = "digital_source_type"
# The same mark where other programs look for it: an XMP packet, IPTC Photo Metadata Standard 2023.2, section 11.
XMP = f"""\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
<Iptc4xmpExt:DigitalSourceType>{SYNTHETIC_TYPE}</Iptc4xmpExt:DigitalSourceType>
</rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""
XMP_CHUNK = "XML:com.adobe.xmp"  # its name in a PNG
IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}  # written
# Suffixes of files that Pillow reads, and every file with the first bytes of an image; FFmpeg reads the rest.
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
# swscale flags: bicubic, full chroma both ways, exact rounding. swscale's default darkens by 1/255.
SCALER = 0x4 | 0x2000 | 0x4000 | 0x40000


def read_image(source: str | os.PathLike | BinaryIO) -> np.ndarray:
    """Read an image as RGB.

    source   path, "-" or binary stream
    returns  uint8 (H, W, 3): EXIF orientation applied, transparency over white, grey as RGB, 16 bits as 8
    raises   TalkheadError if it is missing or not an image
    """
    return read_with_tags(source)[0]


def read_with_tags(source: str | os.PathLike | BinaryIO) -> tuple[np.ndarray, dict[str, str]]:
    """Read an image, as `read_image`, and its text metadata, dict[str, str]."""
    name = name_of(source)
    with reading(source) as stream, image_errors(name):
        image = open_picture(stream, name)
        return to_rgb(image), text_tags(image)


def open_picture(stream: BinaryIO | Source, name: str) -> Image.Image:
    """Open a file or a whole pipe as a Pillow image; `image_errors` translates the errors."""
    stream = io.BytesIO(stream.rest()) if isinstance(stream, Source) else stream
    head = stream.read(32)
    stream.seek(0)
    if is_heif(head) and not opens_heif(head):
        return _decode_heif(stream, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on large or damaged images, without the file's name; real damage is an error
        image = Image.open(stream)
        with _silence() if image.format == "TIFF" else nullcontext():  # libtiff warns on stderr
            image.load()
    return image


@contextmanager
def _silence():
    """Discard everything written to stderr, by C code too."""
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
def image_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise TalkheadError(f"{name}: not a readable image; pass a PNG or JPEG") from error
    # Pillow's errors for a file that is cut short
    except (ArithmeticError, EOFError, LookupError, RuntimeError, struct.error, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise TalkheadError(f"{name}: damaged or cut short; pass a complete image") from error


def _decode_heif(stream, name):
    """Decode a HEIC with FFmpeg, which does not assemble tiles."""
    try:
        with av.open(stream, **OPEN_OPTIONS) as container:
            streams = container.streams.video
            if any(stream.disposition & av.stream.Disposition.dependent for stream in streams):
                raise TalkheadError(f"{name}: a HEIC in tiles; pip install pillow-heif, or convert it to JPEG")
            shown = next(
                (stream for stream in streams if stream.disposition & av.stream.Disposition.default), streams[0]
            )
            return Image.fromarray(rgb_of_frame(next(container.decode(shown)), None, VideoReformatter()))
    except (av.error.FFmpegError, StopIteration, IndexError) as error:
        raise TalkheadError(f"{name}: damaged or cut short; pass a complete image") from error


def text_tags(image: Image.Image) -> dict[str, str]:
    """Text of an image's metadata. Of its XMP, only the mark of synthetic media is taken."""
    text = {key: value for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}
    comment = image.info.get("comment", b"") if image.format == "JPEG" else b""  # as save_image writes it
    text.update(
        line.split(": ", 1)  # type: ignore[misc]  # two parts, as ": " is in the line
        for line in comment.decode(errors="replace").splitlines()
        if ": " in line
    )
    xmp = text.pop(XMP_CHUNK, "") + image.info.get("xmp", b"").decode(errors="replace")
    return text | ({SYNTHETIC_TAG: SYNTHETIC_TYPE} if SYNTHETIC_TYPE in xmp else {})


def to_rgb(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255
        image = Image.fromarray((np.asarray(image, np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def write_image(
    destination: str | os.PathLike | BinaryIO,
    image: np.ndarray,
    metadata: dict[str, str] | None = None,
    synthetic: bool = False,
) -> None:
    """Write one image.

    destination  path ending in .png, .jpg or .jpeg; or a binary stream or "-", which get PNG
    image        uint8 (H, W, 3) RGB
    metadata     dict[str, str]: PNG text chunks, or the JPEG comment
    synthetic    add the IPTC mark of images made by a trained model
    """
    format = IMAGE_FORMATS.get(Path(destination).suffix.lower()) if is_path(destination) else "PNG"
    if format is None:
        raise TalkheadError(f"{destination}: cannot write such an image; end the name in .png or .jpg")
    tags = image_tags(metadata, synthetic)
    with writing(destination) as stream:
        save_image(stream, np.asarray(image), format, tags)


def save_image(stream: BinaryIO | Sink, image: np.ndarray, format: str, tags: dict[str, str]) -> None:
    marked = tags.get(SYNTHETIC_TAG) == SYNTHETIC_TYPE
    pil_image = Image.fromarray(np.ascontiguousarray(image))
    if format == "JPEG":
        comment = "\n".join(f"{key}: {value}" for key, value in tags.items())
        pil_image.save(
            stream,  # type: ignore[arg-type]  # a Sink has `write` and `flush`, which is enough
            format,
            quality=95,
            subsampling=0,
            **({"comment": comment.encode()} if tags else {}),
            **({"xmp": XMP.encode()} if marked else {}),
        )
        return
    text = PngInfo()
    for key, value in tags.items():
        text.add_itxt(key, value)
    if marked:
        text.add_itxt(XMP_CHUNK, XMP)
    pil_image.save(stream, format, pnginfo=text, compress_level=3)  # type: ignore[arg-type]  # likewise


def image_tags(metadata: dict[str, str] | None, synthetic: bool) -> dict[str, str]:
    """Metadata to write: the caller's, without tags of the container it came from, and the synthetic mark."""
    foreign = {"major_brand", "minor_version", "compatible_brands", "encoder", "creation_time", STREAM_TAG}
    tags = {key: str(value) for key, value in (metadata or {}).items() if key.lower() not in foreign}
    return tags | (synthetic_tags() if synthetic else {})


def synthetic_tags() -> dict[str, str]:
    """IPTC metadata of media made by a trained model."""
    from talkhead import __version__

    return {
        SYNTHETIC_TAG: SYNTHETIC_TYPE,
        "software": f"talkhead {__version__}",
        "comment": f"Synthetic media, made by talkhead {__version__}",
    }


def rgb_of_frame(frame: av.VideoFrame, aspect: Fraction | None, scaler: VideoReformatter) -> np.ndarray:
    """A decoded frame as uint8 (H, W, 3) RGB, with square pixels and upright.

    aspect  width / height of a pixel, Fraction or None
    scaler  VideoReformatter, one for all frames of a clip: each has threads of its own
    """
    stretched = aspect is not None and aspect > 0 and abs(aspect - 1) > 0.01  # less is a rounding error in the header
    width = round(frame.width * aspect) if aspect is not None and stretched else frame.width
    array = scaler.reformat(frame, width=width, format="rgb24", interpolation=SCALER, threads=1).to_ndarray()
    try:
        side_data: Any = frame.side_data
    except ValueError:  # a kind that PyAV does not know, such as EXIF
        side_data = _without_unknown_side_data(frame).side_data
    entries = (side_data[index] for index in range(len(side_data)))  # iterating gives entries before PyAV 19, then keys
    matrix = next((bytes(data) for data in entries if data.type.name == "DISPLAYMATRIX"), None)
    return array if matrix is None else _upright(array, np.frombuffer(matrix, np.int32))


def _without_unknown_side_data(frame):
    """A frame without the kinds of side data that PyAV does not know."""
    graph = av.filter.Graph()
    unknown = sorted(set(range(64)) - {kind.value for kind in av.sidedata.sidedata.Type})
    graph.link_nodes(
        graph.add_buffer(template=frame, time_base=Fraction(1, 25)),
        *(graph.add("sidedata", f"mode=delete:type={kind}") for kind in unknown),
        graph.add("buffersink"),
    ).configure()
    graph.push(frame)
    return graph.pull()


def _upright(array, matrix):
    """Apply MP4's display matrix (a b u c d v x y w) of a flip or quarter turn: x' = ax + cy, y' = bx + dy."""
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        array, a, d = array.swapaxes(0, 1), c, b
    array = array[:, ::-1] if a < 0 else array
    array = array[::-1] if d < 0 else array
    return np.ascontiguousarray(array)
