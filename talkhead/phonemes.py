"""Phoneme alignments: readers of timing files and pronouncing dictionaries.

Every reader's result is a list of (start, end, label): seconds, ARPABET without stress, "SIL" for silence. Words of
word-level files are looked up in a dictionary; the phonemes of a word share its time by their typical durations, with
an error of some tens of milliseconds.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from talkhead.errors import TalkheadError

SILENCE = "SIL"
HTK_RATE = 1e7  # time units per second in .lab and .mlf
GRID_RATE = 25000  # time units per second in GRID's .align
MAX_TIME = 1e15  # time units: three years in .lab
KINDS = (".TextGrid", ".mlf", ".lab", ".rec", ".align", ".json")

VOWELS = frozenset("AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split())
_SILENCES = frozenset(
    ["", *"sil sp silence pau epi h# spn nsn _ - <eps> <p:> <sil> <unk> !sent_start !sent_end #".split()]
)
_ARPABET = frozenset(
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH".split()
)
# TIMIT's labels that ARPABET lacks. The closure of a stop gets the label of the stop.
_TIMIT = {
    "pcl": "P", "bcl": "B", "tcl": "T", "dcl": "D", "kcl": "K", "gcl": "G", "em": "M", "en": "N", "eng": "NG",
    "el": "L", "nx": "N", "dx": "D", "q": "T", "hv": "HH", "ix": "IH", "ax": "AH", "axr": "ER", "ax-h": "AH",
    "ux": "UW",
}  # fmt: skip


# The 51 words of the GRID corpus, in the pronunciation of its British speakers.
_GRID_SOUNDS = {
    "bin": "B IH1 N", "lay": "L EY1", "place": "P L EY1 S", "set": "S EH1 T", "blue": "B L UW1",
    "green": "G R IY1 N", "red": "R EH1 D", "white": "W AY1 T", "at": "AE1 T", "by": "B AY1", "in": "IH1 N",
    "with": "W IH1 DH", "a": "EY1", "b": "B IY1", "c": "S IY1", "d": "D IY1", "e": "IY1", "f": "EH1 F",
    "g": "JH IY1", "h": "EY1 CH", "i": "AY1", "j": "JH EY1", "k": "K EY1", "l": "EH1 L", "m": "EH1 M",
    "n": "EH1 N", "o": "OW1", "p": "P IY1", "q": "K Y UW1", "r": "AA1", "s": "EH1 S", "t": "T IY1", "u": "Y UW1",
    "v": "V IY1", "x": "EH1 K S", "y": "W AY1", "z": "Z EH1 D", "zero": "Z IH1 R OW0", "one": "W AH1 N",
    "two": "T UW1", "three": "TH R IY1", "four": "F AO1", "five": "F AY1 V", "six": "S IH1 K S",
    "seven": "S EH1 V AH0 N", "eight": "EY1 T", "nine": "N AY1 N", "again": "AH0 G EH1 N", "now": "N AW1",
    "please": "P L IY1 Z", "soon": "S UW1 N",
}  # fmt: skip
GRID_WORDS = {word: sounds.split() for word, sounds in _GRID_SOUNDS.items()}
# Relative durations of phonemes; all others 1.
_DURATIONS = {
    **dict.fromkeys(VOWELS, 1.7),
    **dict.fromkeys(("AY", "AW", "OY", "EY", "OW", "UW", "IY", "AO", "AA"), 2.2),
    **dict.fromkeys(("S", "SH", "F", "Z", "TH"), 1.4),
    **dict.fromkeys(("L", "R", "W", "Y"), 0.8),
}


class Closures(NamedTuple):
    """Lip closures and their source."""

    times: list  # of (start, end), seconds
    source: str  # "phonemes", or "words" if only the words were timed


def closures(phonemes: Iterable[tuple[float, float, str]]) -> list[tuple[float, float]]:
    """Times of lip closures: those of /p b m/.

    phonemes  list of (start, end, label)
    returns   list of (start, end), seconds
    """
    return [(start, end) for start, end, label in phonemes if label in ("P", "B", "M")]


def read_phonemes(source: str | os.PathLike) -> list[tuple[float, float, str]]:
    """Read phonemes from a JSON file: a list of [start, end, label], or an object that holds one as "phonemes".

    source   path
    returns  list of (start, end, label)
    raises   TalkheadError if there is no such file or it holds something else
    """
    path = Path(source)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        rows = value["phonemes"] if isinstance(value, dict) else value
        return [(_time(start), _time(end), str(label)) for start, end, label in rows]
    except OSError as error:
        raise TalkheadError(f"{path}: {error.strerror}; give the JSON file that was written with the clip") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise TalkheadError(f"{path}: holds no phonemes; wanted a JSON list of [start, end, label]") from None


def read_closures(
    place: str | os.PathLike,
    clip: str | os.PathLike | None = None,
    dictionary: Mapping[str, Sequence[str]] | None = None,
) -> Closures:
    """Read the lip closures of a clip: its /p b m/.

    place       a timing file, of one of KINDS; or a folder with a timing file of the clip's name
    clip        path of the clip: for a folder, and for an .mlf, which holds many
    dictionary  {word: phonemes} of `read_dictionary`, for words that GRID does not have
    returns     Closures
    raises      TalkheadError if there is no such file, it holds no times, or a word is in no dictionary
    """
    rows, words = _aligned(place, clip, dictionary)
    return Closures(closures(rows), "words" if words else "phonemes")


def read(
    place: str | os.PathLike,
    clip: str | os.PathLike | None = None,
    dictionary: Mapping[str, Sequence[str]] | None = None,
) -> list[tuple[float, float, str]]:
    """Read the phonemes of a clip: [(start, end, label)]. Arguments and errors are those of `read_closures`."""
    return _aligned(place, clip, dictionary)[0]


def _aligned(place, clip, dictionary):
    """Phonemes of a clip, and True if only its words were timed."""
    path = find(place, clip)
    rows, words = _read(path, clip)
    if words:
        rows = pronounce(rows, GRID_WORDS | (dictionary or {}), path)
    return _merged((start, end, arpabet(label)) for start, end, label in rows), words


def find(place: str | os.PathLike, clip: str | os.PathLike | None = None) -> Path:
    """Find the timing file of a clip: `place` itself, or the file of the clip's name if `place` is a folder."""
    place = Path(place)
    if not place.is_dir():
        return place
    stem = Path(clip or "").stem
    for kind in KINDS:
        for name in (stem + kind, stem + kind.lower()):
            if (place / name).is_file():
                return place / name
    raise TalkheadError(f"{place}: no timing file of {stem}; add {stem} with one of the suffixes {', '.join(KINDS)}")


def _read(path, clip):
    """Rows of a file with times in seconds and labels unchanged, and True if they are words."""
    kind = path.suffix.lower()
    if kind == ".json":
        return read_phonemes(path), False
    readers = {".textgrid": read_textgrid, ".lab": read_lab, ".rec": read_lab, ".align": read_align}
    if kind == ".mlf":
        rows = _of_clip(read_mlf(path), clip, path)
    elif kind in readers:
        rows = readers[kind](path)
    else:
        raise TalkheadError(f"{path}: unknown format; the suffix should be one of {', '.join(KINDS)}")
    if kind == ".textgrid":
        return _tier(rows, path)
    return rows, kind == ".align" or not _are_phonemes(rows)


def _text(path):
    from talkhead import files  # imports PyAV, not needed otherwise

    with files.os_errors_in_one_line(path):
        data = Path(path).read_bytes()
    try:
        return files.decoded(data)
    except UnicodeDecodeError:
        raise TalkheadError(f"{path}: not a text file; give one with the suffix {', '.join(KINDS)}") from None


# File formats ---------------------------------------------------------------------------------------------------------


def read_textgrid(path: str | os.PathLike) -> dict[str, list[tuple[float, float, str]]]:
    """Read the interval tiers of a Praat TextGrid, long or short: {name: [(start, end, text)]}, in its order."""
    # Like Praat, read only free-standing numbers and quoted strings; other text is comment.
    found = re.findall(r'"((?:[^"]|"")*)"|(?<!\S)(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)%?(?!\S)', _text(path))
    tokens: Iterator[Any] = iter([float(number) if number else text.replace('""', '"') for text, number in found])
    tiers = {}
    try:
        if [next(tokens), next(tokens)] != ["ooTextFile", "TextGrid"]:
            raise ValueError
        _, _, count = (next(tokens) for _ in range(3))
        for _ in range(int(count)):
            kind, name, _, _, entries = (next(tokens) for _ in range(5))
            width = 3 if kind == "IntervalTier" else 2  # a point has one time
            rows = [tuple(next(tokens) for _ in range(width)) for _ in range(int(entries))]
            if width == 3:
                tiers[name.strip()] = [(_time(start), _time(end), text.strip()) for start, end, text in rows]
    except (StopIteration, ValueError, TypeError, AttributeError, RuntimeError, OverflowError):
        raise TalkheadError(f"{path}: not a TextGrid of Praat, or cut short; write it again as a text file") from None
    return tiers


def _tier(tiers, path):
    """Rows of the phoneme tier, else of the word tier, and True if they are words."""
    for pattern, words in ((r"phon|^mau$|segment", False), (r"word|^ort", True)):
        name = next((name for name in tiers if re.search(pattern, name.lower())), None)
        if name is not None:
            return tiers[name], words
    if len(tiers) == 1:
        rows = next(iter(tiers.values()))
        return rows, not _are_phonemes(rows)
    raise TalkheadError(
        f"{path}: no tier called phones or words, only {', '.join(tiers) or 'none'}; rename the tier to use"
    )


def read_lab(path: str | os.PathLike) -> list[tuple[float, float, str]]:
    """Read an HTK label file: [(start, end, label)]."""
    return [
        _row(line.split(), HTK_RATE, f"{path}, line {number}")
        for number, line in enumerate(_text(path).splitlines(), 1)
        if line.strip()
    ]


def read_align(path: str | os.PathLike) -> list[tuple[float, float, str]]:
    """Read the words of a GRID .align file: [(start, end, word)]."""
    return [
        _row(line.split(), GRID_RATE, f"{path}, line {number}")
        for number, line in enumerate(_text(path).splitlines(), 1)
        if line.strip()
    ]


def _time(number):
    """Time as a float, in seconds or a file's time units; ValueError if it is not a number or beyond MAX_TIME."""
    time = float(number)
    if not abs(time) < MAX_TIME:
        raise ValueError
    return time


def _row(fields, rate, where):
    try:
        start, end, label = fields[:3]
        return _time(start) / rate, _time(end) / rate, label
    except ValueError:
        raise TalkheadError(f"{where}: wanted start, end and label, such as 0 1200000 sil") from None


def read_mlf(path: str | os.PathLike) -> dict[str, list[tuple[float, float, str]]]:
    """Read an HTK master label file: {name: [(start, end, label)]}."""
    lines = _text(path).splitlines()
    if not lines or lines[0].strip() != "#!MLF!#":
        raise TalkheadError(f"{path}: not a master label file; its first line should be #!MLF!#")
    entries: dict[str, list[tuple[float, float, str]]] = {}
    rows = None
    for number, line in enumerate(lines[1:], 2):
        line = line.strip()
        if line.startswith('"') and line.endswith('"'):
            rows = entries.setdefault(line.strip('"'), [])
        elif line == ".":
            rows = None
        elif line and rows is None:
            raise TalkheadError(
                f"{path}, line {number}: outside of an entry; "
                'an entry begins with its name, such as "*/s1.lab", and ends with a dot'
            )
        elif line and rows is not None:
            rows.append(_row(line.split(), HTK_RATE, f"{path}, line {number}"))
    return entries


def _of_clip(entries, clip, path):
    """Entry of a clip in a master label file: the one that shares the clip's name and most of its parent folders."""
    parts = _parts(clip or "")
    depth = {name: _shared(_parts(name), parts) for name in entries}
    deepest = max(depth.values(), default=0)
    found = [name for name, shared in depth.items() if shared == deepest]
    if not deepest:
        raise TalkheadError(
            f"{path}: no entry for {clip}; an entry should be called {parts[0] if parts else 'as the clip'}"
        )
    if len(found) > 1:
        raise TalkheadError(
            f"{path}: {' and '.join(found[:2])} both match {clip}; keep their folders in the clip's path"
        )
    return entries[found[0]]


def _parts(name):
    """Stem of a file's name, then its parent folders, innermost first."""
    path = Path(str(name).replace("\\", "/"))
    return [path.stem, *(part for part in reversed(path.parent.parts) if part != "*")] if path.name else []


def _shared(one, other):
    count = 0
    for a, b in zip(one, other):
        if a.lower() != b.lower():
            break
        count += 1
    return count


# Phonemes and words ---------------------------------------------------------------------------------------------------


def _are_phonemes(rows):
    return all(arpabet(label) in _ARPABET | {SILENCE} for _, _, label in rows)


def arpabet(label: str) -> str:
    """Convert a label of ARPABET or TIMIT, or IPA's [p b m], to ARPABET without stress: "AH0" → "AH", "bcl" → "B"."""
    plain = label.strip().lower()
    if plain in _SILENCES:
        return SILENCE
    if plain in _TIMIT:
        return _TIMIT[plain]
    if re.fullmatch(r"[pbm][^a-z0-9]+", plain):  # IPA with diacritics, such as pʰ
        return plain[0].upper()
    return plain.rstrip("0123456789").upper()


def _merged(rows):
    """Merge adjacent phonemes of the same label, such as the closure and the release of a stop."""
    merged = []
    for start, end, label in rows:
        if merged and merged[-1][2] == label and abs(merged[-1][1] - start) < 1e-3:
            start = merged.pop()[0]
        merged.append((start, end, label))
    return merged


def pronounce(
    words: list[tuple[float, float, str]],
    dictionary: Mapping[str, Sequence[str]],
    where: str | os.PathLike = "words",
    mend: str = "pass a --dictionary that has them, in the format of CMUdict",
) -> list[tuple[float, float, str]]:
    """Convert timed words to timed phonemes, which share the time of a word by their typical durations.

    words        list of (start, end, word), seconds; case-insensitive
    dictionary   {word: phonemes}, in lower case
    where, mend  location and remedy in the error message
    returns      list of (start, end, label)
    raises       TalkheadError that names the words that are not in the dictionary
    """
    unknown = sorted(
        {
            word
            for _, _, word in words
            if word.strip().lower() not in _SILENCES and word.strip().lower() not in dictionary
        }
    )
    if unknown:
        named = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        raise TalkheadError(f"{where}: not in the dictionary: {named}; {mend}")
    rows = []
    for start, end, word in words:
        sounds = dictionary.get(word.strip().lower(), (SILENCE,))
        lengths = [0.0, *accumulate(_DURATIONS.get(sound.rstrip("012"), 1.0) for sound in sounds)]
        edges = [start + (end - start) * length / lengths[-1] for length in lengths]
        rows += list(zip(edges, edges[1:], sounds))
    return rows


def read_dictionary(path: str | os.PathLike) -> dict[str, tuple[str, ...]]:
    """Read a pronouncing dictionary in the format of CMUdict.

    path     text file: lines of a word and its phonemes; ";;;" and "#" begin a comment. Of alternatives, such as
             "WORD(2)", the first counts
    returns  {word: phonemes}: lower-case words, ARPABET without stress
    raises   TalkheadError if it cannot be read or a line has another format
    """
    from talkhead import files

    with files.os_errors_in_one_line(path):
        text = files.decoded(Path(path).read_bytes(), "replace")
    words: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        word, *spoken = ("" if line.startswith(";;;") else line.partition(" #")[0]).split() or [""]
        if not word:
            continue
        sounds = tuple(arpabet(sound) for sound in spoken)
        if not sounds or not _ARPABET.issuperset(sounds):
            raise TalkheadError(
                f"{path}, line {number}: wanted a word and its ARPABET phonemes, such as PLEASE  P L IY1 Z"
            )
        words.setdefault(re.sub(r"\(\d+\)$", "", word).lower(), sounds)
    if not words:
        raise TalkheadError(f"{path}: holds no words; give a dictionary in the format of CMUdict")
    return words
