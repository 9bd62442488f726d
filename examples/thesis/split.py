"""Split the clips of a corpus into training and test sets.

Reads a path a line on stdin, and writes lines of speaker, path and set on stdout, with tabs between.

    find grid -name '*.mpg' | sort | python split.py grid FOLDER_OF_LISTS

The sets: "unseen", clips of the speakers listed in CORPUS-held-out-speakers.txt; "unheard", each twentieth clip of any
other speaker, or what CORPUS-held-out-clips.txt lists by name; "taught", all others.
"""

import sys
from pathlib import Path

EVERY = 20


def listed(path):
    """The words of a file's lines, without what follows a #."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {line.partition("#")[0].strip() for line in lines} - {""}


def speaker(corpus, path):
    """Whose clip it is: GRID's sN, TCD-TIMIT's 01M."""
    if corpus == "grid-s1":
        return "s1"
    parts = Path(path).parts
    return (
        next(part for part in reversed(parts[:-1]) if part[0] == "s" and part[1:].isdigit())
        if corpus == "grid"
        else parts[parts.index("Clips") - 1]
    )


def main(corpus, folder):
    held = listed(Path(folder) / f"{corpus}-held-out-speakers.txt")
    named = listed(Path(folder) / f"{corpus}-held-out-clips.txt")
    said = {}
    for path in map(str.strip, sys.stdin):
        who = speaker(corpus, path)
        said[who] = said.get(who, 0) + 1
        unheard = Path(path).stem in named if named else said[who] % EVERY == 0
        print(who, path, "unseen" if who in held else "unheard" if unheard else "taught", sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:])
