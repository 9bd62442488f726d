"""When each sound is made: the timing files that speech research has, and pronouncing dictionaries.

Whatever a file's kind, what is read is a list of (start, end, label): seconds, ARPABET without stress, "SIL" for silence. Files that time
words alone go through a dictionary; a word's phonemes then share its time by their usual lengths, which is a guess to some tens of milliseconds.
"""

import json
import re
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from talkhead.errors import TalkheadError

SILENCE = "SIL"
HTK_RATE = 1e7  # units of time a second in .lab and .mlf
GRID_RATE = 25000  # the same in GRID's .align
LONGEST = 1e15  # units of time: three years in .lab
KINDS = (".TextGrid", ".mlf", ".lab", ".rec", ".align", ".json")

VOWELS = frozenset("AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split())
_SILENCES = frozenset(
    (
        "",
        "sil",
        "sp",
        "silence",
        "pau",
        "epi",
        "h#",
        "spn",
        "nsn",
        "_",
        "-",
        "<eps>",
        "<p:>",
        "<sil>",
        "<unk>",
        "!sent_start",
        "!sent_end",
        "#",
    )
)
_ARPABET = frozenset(
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH".split()
)
# What TIMIT writes and ARPABET does not have. A stop's closure and its release are one sound.
_TIMIT = {
    "pcl": "P",
    "bcl": "B",
    "tcl": "T",
    "dcl": "D",
    "kcl": "K",
    "gcl": "G",
    "em": "M",
    "en": "N",
    "eng": "NG",
    "el": "L",
    "nx": "N",
    "dx": "D",
    "q": "T",
    "hv": "HH",
    "ix": "IH",
    "ax": "AH",
    "axr": "ER",
    "ax-h": "AH",
    "ux": "UW",
}


# The 51 words of the GRID corpus, and how its British speakers pronounce them.
GRID_WORDS = {
    word: sounds.split()
    for word, sounds in {
        "bin": "B IH1 N",
        "lay": "L EY1",
        "place": "P L EY1 S",
        "set": "S EH1 T",
        "blue": "B L UW1",
        "green": "G R IY1 N",
        "red": "R EH1 D",
        "white": "W AY1 T",
        "at": "AE1 T",
        "by": "B AY1",
        "in": "IH1 N",
        "with": "W IH1 DH",
        "a": "EY1",
        "b": "B IY1",
        "c": "S IY1",
        "d": "D IY1",
        "e": "IY1",
        "f": "EH1 F",
        "g": "JH IY1",
        "h": "EY1 CH",
        "i": "AY1",
        "j": "JH EY1",
        "k": "K EY1",
        "l": "EH1 L",
        "m": "EH1 M",
        "n": "EH1 N",
        "o": "OW1",
        "p": "P IY1",
        "q": "K Y UW1",
        "r": "AA1",
        "s": "EH1 S",
        "t": "T IY1",
        "u": "Y UW1",
        "v": "V IY1",
        "x": "EH1 K S",
        "y": "W AY1",
        "z": "Z EH1 D",
        "zero": "Z IH1 R OW0",
        "one": "W AH1 N",
        "two": "T UW1",
        "three": "TH R IY1",
        "four": "F AO1",
        "five": "F AY1 V",
        "six": "S IH1 K S",
        "seven": "S EH1 V AH0 N",
        "eight": "EY1 T",
        "nine": "N AY1 N",
        "again": "AH0 G EH1 N",
        "now": "N AW1",
        "please": "P L IY1 Z",
        "soon": "S UW1 N",
    }.items()
}
# How long a sound is beside others in its word; those that are not named, 1.
_LENGTH = {
    **dict.fromkeys(VOWELS, 1.7),
    **dict.fromkeys(("AY", "AW", "OY", "EY", "OW", "UW", "IY", "AO", "AA"), 2.2),
    **dict.fromkeys(("S", "SH", "F", "Z", "TH"), 1.4),
    **dict.fromkeys(("L", "R", "W", "Y"), 0.8),
}


class Closures(NamedTuple):
    """When the lips must be shut, and how that is known."""

    times: list  # of (start, end), seconds
    source: str  # "phonemes", or "words": those of which only the word was timed


def closures(phonemes):
    """When the lips must be shut: the times of /p b m/.

    phonemes  list of (start, end, label)
    returns   list of (start, end), seconds
    """
    return [(start, end) for start, end, label in phonemes if label in ("P", "B", "M")]


def read_phonemes(source):
    """Phonemes from a JSON file: a list of [start, end, label], or an object that holds one as "phonemes".

    source   path
    returns  list of (start, end, label)
    raises   TalkheadError if there is no such file or it holds something else
    """
    path = Path(source)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        rows = value["phonemes"] if isinstance(value, dict) else value
        return [(_moment(start), _moment(end), str(label)) for start, end, label in rows]
    except OSError as error:
        raise TalkheadError(f"{path}: {error.strerror}; give the JSON file that was written with the clip") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise TalkheadError(f"{path}: holds no phonemes; wanted a JSON list of [start, end, label]") from None


def read_closures(place, clip=None, dictionary=None):
    """When the lips must be shut in a clip: its /p b m/.

    place       a timing file, of one of KINDS; or a folder of them, where the clip's is called as the clip is
    clip        path of the clip: for a folder, and for an .mlf, which holds many
    dictionary  {word: phonemes} as `read_dictionary` gives, for words that GRID does not have
    returns     Closures
    raises      TalkheadError if there is no such file, or nothing of the kind in it, or a word is in no dictionary
    """
    rows, words = _spoken(place, clip, dictionary)
    return Closures(closures(rows), "words" if words else "phonemes")


def read(place, clip=None, dictionary=None):
    """What is said in a clip, sound by sound: [(start, end, label)]. Arguments and errors are those of `read_closures`."""
    return _spoken(place, clip, dictionary)[0]


def _spoken(place, clip, dictionary):
    """The phonemes of a clip, and whether only their words were timed."""
    path = find(place, clip)
    rows, words = _read(path, clip)
    if words:
        rows = pronounce(rows, GRID_WORDS | (dictionary or {}), path)
    return _joined((start, end, arpabet(label)) for start, end, label in rows), words


def find(place, clip=None):
    """The timing file of a clip: `place` itself, or if that is a folder, the file in it that is called as the clip is."""
    place = Path(place)
    if not place.is_dir():
        return place
    stem = Path(clip or "").stem
    for kind in KINDS:
        for name in (stem + kind, stem + kind.lower()):
            if (place / name).is_file():
                return place / name
    raise TalkheadError(f"{place}: no times for {stem}; put {stem} with one of the endings {', '.join(KINDS)} there")


def _read(path, clip):
    """The rows of a file as they are written, in seconds, and whether they are words."""
    kind = path.suffix.lower()
    if kind == ".json":
        return read_phonemes(path), False
    readers = {".textgrid": read_textgrid, ".lab": read_lab, ".rec": read_lab, ".align": read_align}
    if kind == ".mlf":
        rows = _of_clip(read_mlf(path), clip, path)
    elif kind in readers:
        rows = readers[kind](path)
    else:
        raise TalkheadError(f"{path}: times of an unknown kind; the name should end in {', '.join(KINDS)}")
    if kind == ".textgrid":
        return _tier(rows, path)
    return rows, kind == ".align" or not _are_phonemes(rows)


def _text(path):
    from talkhead import files  # PyAV, which nothing else here needs

    with files.os_errors_in_one_line(path):
        data = Path(path).read_bytes()
    try:
        return files.decoded(data)
    except UnicodeDecodeError:
        raise TalkheadError(f"{path}: not a text file; give one that ends in {', '.join(KINDS)}") from None


# Kinds of files ---------------------------------------------------------------------------------------------------------


def read_textgrid(path):
    """The interval tiers of a Praat TextGrid, long or short: {name: [(start, end, text)]}, in its order."""
    # As Praat reads it: of the text, only what stands free counts, numbers and quoted strings; the rest is for people.
    tokens = re.findall(r'"((?:[^"]|"")*)"|(?<!\S)(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)%?(?!\S)', _text(path))
    tokens = iter([float(number) if number else text.replace('""', '"') for text, number in tokens])
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
                tiers[name.strip()] = [(_moment(start), _moment(end), text.strip()) for start, end, text in rows]
    except (StopIteration, ValueError, TypeError, AttributeError, RuntimeError, OverflowError):
        raise TalkheadError(f"{path}: not a TextGrid of Praat, or cut short; write it again as a text file") from None
    return tiers


def _tier(tiers, path):
    """The rows of the tier that holds phonemes, else of the one that holds words; and whether they are words."""
    for told, words in ((r"phon|^mau$|segment", False), (r"word|^ort", True)):
        name = next((name for name in tiers if re.search(told, name.lower())), None)
        if name is not None:
            return tiers[name], words
    if len(tiers) == 1:
        rows = next(iter(tiers.values()))
        return rows, not _are_phonemes(rows)
    raise TalkheadError(
        f"{path}: no tier is called phones or words, but {', '.join(tiers) or 'nothing'}; rename the one that is meant"
    )


def read_lab(path):
    """The rows of an HTK label file: [(start, end, label)]."""
    return [
        _row(line.split(), HTK_RATE, f"{path}, line {number}")
        for number, line in enumerate(_text(path).splitlines(), 1)
        if line.strip()
    ]


def read_align(path):
    """The words of a GRID .align file: [(start, end, word)]."""
    return [
        _row(line.split(), GRID_RATE, f"{path}, line {number}")
        for number, line in enumerate(_text(path).splitlines(), 1)
        if line.strip()
    ]


def _moment(number):
    """A number of seconds, or of a file's units of time, as a float; ValueError if it is none, or longer than any recording."""
    moment = float(number)
    if not abs(moment) < LONGEST:
        raise ValueError
    return moment


def _row(fields, rate, where):
    try:
        start, end, label = fields[:3]
        return _moment(start) / rate, _moment(end) / rate, label
    except ValueError:
        raise TalkheadError(f"{where}: wanted start, end and label, as 0 1200000 sil") from None


def read_mlf(path):
    """The entries of an HTK master label file: {name: [(start, end, label)]}."""
    lines = _text(path).splitlines()
    if not lines or lines[0].strip() != "#!MLF!#":
        raise TalkheadError(f"{path}: not a master label file; its first line should be #!MLF!#")
    entries, rows = {}, None
    for number, line in enumerate(lines[1:], 2):
        line = line.strip()
        if line.startswith('"') and line.endswith('"'):
            rows = entries.setdefault(line.strip('"'), [])
        elif line == ".":
            rows = None
        elif line and rows is None:
            raise TalkheadError(
                f'{path}, line {number}: belongs to no entry; each begins with its name, as "*/s1.lab", and ends with a dot'
            )
        elif line:
            rows.append(_row(line.split(), HTK_RATE, f"{path}, line {number}"))
    return entries


def _of_clip(entries, clip, path):
    """The entry of a master label file that is a clip's: called as it is, in folders called as its are, as far as need be."""
    parts = _parts(clip or "")
    depth = {name: _shared(_parts(name), parts) for name in entries}
    deepest = max(depth.values(), default=0)
    found = [name for name, shared in depth.items() if shared == deepest]
    if not deepest:
        raise TalkheadError(
            f"{path}: holds nothing for {clip}; an entry should be called {parts[0] if parts else 'as the clip'}"
        )
    if len(found) > 1:
        raise TalkheadError(
            f"{path}: {' and '.join(found[:2])} could both be {clip}; keep their folders in the clip's path"
        )
    return entries[found[0]]


def _parts(name):
    """A file's name without its ending, then its folders from the inside out."""
    path = Path(str(name).replace("\\", "/"))
    return [path.stem, *(part for part in reversed(path.parent.parts) if part != "*")] if path.name else []


def _shared(one, other):
    count = 0
    for a, b in zip(one, other):
        if a.lower() != b.lower():
            break
        count += 1
    return count


# Sounds and words -------------------------------------------------------------------------------------------------------


def _are_phonemes(rows):
    return all(arpabet(label) in _ARPABET | {SILENCE} for _, _, label in rows)


def arpabet(label):
    """A label of ARPABET, TIMIT or IPA as ARPABET without stress, as far as lips are concerned: "AH0" → "AH", "bcl" → "B", "pʰ" → "P"."""
    plain = label.strip().lower()
    if plain in _SILENCES:
        return SILENCE
    if plain in _TIMIT:
        return _TIMIT[plain]
    if re.fullmatch(r"[pbm][^a-z0-9]+", plain):  # IPA: aspirated, palatalised, long
        return plain[0].upper()
    return plain.rstrip("0123456789").upper()


def _joined(rows):
    """Phonemes in their order, neighbours of one label made one: lips that are shut stay so from a closure to its release."""
    joined = []
    for start, end, label in rows:
        if joined and joined[-1][2] == label and abs(joined[-1][1] - start) < 1e-3:
            start = joined.pop()[0]
        joined.append((start, end, label))
    return joined


def pronounce(words, dictionary, where="words", mend="pass a --dictionary that has them, in the format of CMUdict"):
    """Words in time as phonemes in time: those of a word share its time by their usual lengths.

    words       list of (start, end, word), seconds; case does not matter
    dictionary  {word: phonemes}, in small letters
    where       what the words are called in messages, and `mend`, what to do about some that are not there
    returns     list of (start, end, label)
    raises      TalkheadError that names the words that are not in the dictionary
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
        lengths = [0.0, *accumulate(_LENGTH.get(sound.rstrip("012"), 1.0) for sound in sounds)]
        edges = [start + (end - start) * length / lengths[-1] for length in lengths]
        rows += list(zip(edges, edges[1:], sounds))
    return rows


def read_dictionary(path):
    """A pronouncing dictionary in the format of CMUdict.

    path     text: a line each of a word and its phonemes; ";;;" and "#" begin a remark. Of several ways to say a word, as "WORD(2)", the
             first counts
    returns  {word: phonemes}: in small letters, ARPABET without stress
    raises   TalkheadError if it cannot be read or a line is something else
    """
    from talkhead import files

    with files.os_errors_in_one_line(path):
        text = files.decoded(Path(path).read_bytes(), "replace")
    words = {}
    for number, line in enumerate(text.splitlines(), 1):
        word, *sounds = ("" if line.startswith(";;;") else line.partition(" #")[0]).split() or [""]
        if not word:
            continue
        sounds = tuple(arpabet(sound) for sound in sounds)
        if not sounds or not _ARPABET.issuperset(sounds):
            raise TalkheadError(f"{path}, line {number}: wanted a word and its ARPABET phonemes, as PLEASE  P L IY1 Z")
        words.setdefault(re.sub(r"\(\d+\)$", "", word).lower(), sounds)
    if not words:
        raise TalkheadError(f"{path}: holds no words; give a dictionary in the format of CMUdict")
    return words
