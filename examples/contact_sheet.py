"""Lay clips out as one picture: a row for each clip, columns evenly spread over its time.

python examples/contact_sheet.py sheet.png out.mp4 other.mp4 --columns 12 --size 96
"""

import argparse

import numpy as np
import PIL.Image
import PIL.ImageDraw

from talkhead import image_files, video_files
from talkhead.images import resize

LINE = 14  # pixels of a line of caption


def sheet(rows, columns=10, size=128, gap=2):
    """Arrange clips as rows of evenly spread frames.

    rows     list of clips, each a list or array of uint8 (S, S, 3); a single picture fills its first column
    columns  frames to show of each
    size     pixels of a frame's side on the sheet
    gap      pixels of white between frames
    returns  uint8 (rows · (size + gap) + gap, columns · (size + gap) + gap, 3)
    """
    pitch = size + gap
    page = np.full((len(rows) * pitch + gap, columns * pitch + gap, 3), 255, np.uint8)
    for row, frames in enumerate(rows):
        picks = [0] if len(frames) == 1 else np.linspace(0, len(frames) - 1, columns).round().astype(int)
        for column, pick in enumerate(picks):
            top, left = gap + row * pitch, gap + column * pitch
            page[top : top + size, left : left + size] = resize(frames[pick], size)
    return page


def captioned(picture, *lines):
    """A picture with lines of text under it; what is too long for its width is cut."""
    height, width = picture.shape[:2]
    page = PIL.Image.new("RGB", (width, height + LINE * len(lines) + 4), "white")
    page.paste(PIL.Image.fromarray(picture))
    pen = PIL.ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        pen.text((3, height + 1 + number * LINE), line.replace("–", "-"), "black")  # the font has no dash
    return np.asarray(page)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="the picture to write (.png, .jpg)")
    parser.add_argument("clips", nargs="+", help="square clips, or pictures")
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--size", type=int, default=128, help="pixels of a frame's side")
    parser.add_argument(
        "--caption", action="append", default=[], help="a line of text under the rows; may be given again"
    )
    options = parser.parse_args()
    rows = []
    for clip in options.clips:
        with video_files.read_frames(clip) as frames:
            rows.append([resize(frame, options.size) for frame in frames])
    image_files.write_image(options.output, captioned(sheet(rows, options.columns, options.size), *options.caption))


if __name__ == "__main__":
    main()
