"""Images from files, pipes and HEIC tiles, and to PNG and JPEG with their tags."""

import io
import logging
import os
import re
import struct
import warnings
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps, UnidentifiedImageError, features
from PIL.PngImagePlugin import PngInfo

from talkhead.errors import TalkheadError
from talkhead.files import STREAM_TAG, SYNTHETIC_TYPE, Source, is_path, name_of, reading, writing

# Else Python prints on stderr what Pillow logs where nobody asked for logs.
logging.getLogger("PIL").addHandler(logging.NullHandler())

MOVING = {
    "PNG",
    "GIF",
    "WEBP",
    "AVIF",
}  # Pillow's names of formats whose pictures follow each other in time; a TIFF's are pages
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
BLOCK = 1 << 16  # bytes looked at together


def is_picture(look):
    """Whether a file or pipe is one picture, or one that moves, for Pillow to read. Several PNGs or JPEGs in a row are a video.

    look  gives the bytes at a position: look(position, count); fewer where there are no more
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


def is_heif(head):
    """Whether a file that begins so is a HEIC or an AVIF."""
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif", b"avis")


def opens_heif(head):
    """Whether Pillow can open it; for HEIC it needs pillow-heif."""
    if b"avif" in head or b"avis" in head:
        return features.check("avif")
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
    """Where a JPEG ends, and whether it has an index of pictures that follow it for other uses (CIPA DC-007: MPF)."""
    at, has_index, scan = 2, False, False
    while True:
        if scan:  # coded data: 0xFF stands before 0 and restart marks only
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


def moving(image):
    """The pictures of a file that Pillow opened: (seconds after the first, seconds it lasts, the image).

    A picture without a time lasts a tenth of a second, as in browsers.
    """
    alone = not (image.format in MOVING and getattr(image, "is_animated", False))
    time = Fraction(0)
    for index in (
        [0] if alone else range(getattr(image, "default_image", False), image.n_frames)
    ):  # that one is for who knows no APNG
        image.seek(index)
        image.load()
        lasts = Fraction(0) if alone else Fraction(image.info.get("duration") or 100).limit_denominator(1000) / 1000
        yield time, lasts, image
        time += lasts


SYNTHETIC_TAG = "digital_source_type"
IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}  # written
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
SCALER = (
    0x4 | 0x2000 | 0x4000 | 0x40000
)  # swscale: bicubic, full chroma both ways, exact rounding. Its default darkens by 1/255


def read_image(source):
    """Read a picture as it is meant to be seen.

    source   path, "-" or binary stream
    returns  uint8 (H, W, 3) RGB: EXIF orientation applied, transparency over white, grey as RGB, 16 bits as 8
    raises   TalkheadError if it is missing or not a picture
    """
    return read_with_tags(source)[0]


def read_with_tags(source):
    """The picture and its text, dict[str, str]."""
    name = name_of(source)
    with reading(source) as stream, image_errors(name):
        image = open_picture(stream, name)
        return to_rgb(image), text_tags(image)


def open_picture(stream, name):
    """A Pillow image of a file, or of all that comes through a pipe; what is wrong with it is for `image_errors` to say."""
    stream = io.BytesIO(stream.rest()) if isinstance(stream, Source) else stream
    head = stream.read(32)
    stream.seek(0)
    if is_heif(head) and not opens_heif(head):
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
def image_errors(name):
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
            return Image.fromarray(rgb_of_frame(next(container.decode(shown)), None, VideoReformatter()))
    except (av.error.FFmpegError, StopIteration, IndexError) as error:
        raise TalkheadError(f"{name}: damaged or cut short; pass a whole picture") from error


def text_tags(image):
    text = {key: value for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}
    comment = image.info.get("comment", b"") if image.format == "JPEG" else b""  # as save_image writes it
    text.update(line.split(": ", 1) for line in comment.decode(errors="replace").splitlines() if ": " in line)
    return text


def to_rgb(image):
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
    format = IMAGE_FORMATS.get(Path(destination).suffix.lower()) if is_path(destination) else "PNG"
    if format is None:
        raise TalkheadError(f"{destination}: cannot write such a picture; end the name in .png or .jpg")
    tags = image_tags(metadata, synthetic)
    with writing(destination) as stream:
        save_image(stream, np.asarray(image), format, tags)


def save_image(stream, image, format, tags):
    picture = Image.fromarray(np.ascontiguousarray(image))
    if format == "JPEG":
        comment = "\n".join(f"{key}: {value}" for key, value in tags.items())
        picture.save(stream, format, quality=95, subsampling=0, **({"comment": comment.encode()} if tags else {}))
        return
    text = PngInfo()
    for key, value in tags.items():
        text.add_itxt(key, value)
    picture.save(stream, format, pnginfo=text, compress_level=3)


def image_tags(metadata, synthetic):
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


def rgb_of_frame(frame, aspect, scaler):
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
