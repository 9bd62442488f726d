"""Picture files told from their first bytes, and the pictures of one that moves."""

import re
from fractions import Fraction

from PIL import features

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
