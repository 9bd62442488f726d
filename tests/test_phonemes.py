"""Timing files written by hand, as Praat, HTK and GRID write them."""

import json

import pytest

from puppets import articulation
from talkhead import phonemes
from talkhead.errors import TalkheadError

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.9
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.9
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 0.9
            text = "say ""bam"" 3 times"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 0.9
        points: size = 1
        points [1]:
            number = 0.5
            mark = "x"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 0.9
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.2
            text = ""
        intervals [2]:
            xmin = 0.2
            xmax = 0.3
            text = "B"
        intervals [3]:
            xmin = 0.3
            xmax = 0.5
            text = "AE1"
        intervals [4]:
            xmin = 0.5
            xmax = 9e-1
            text = "M"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
0.9
<exists>
1
"IntervalTier"
"speaker"
0
0.9
3
0
0.2
"by"
0.2
0.4
"sil"
0.4
0.9
"one"
"""
MLF = """#!MLF!#
"/data/volunteers/01M/Clips/straightcam/sa1.rec"
0 1000000 sil
1000000 1500000 pcl
1500000 1600000 p
1600000 3000000 iy
.
"*/02M/straightcam/sa1.rec"
0 1000000 m
.
"""


def write(folder, name, text, encoding="utf-8"):
    path = folder / name
    path.write_text(text, encoding=encoding)
    return path


def times(closures):
    return [pytest.approx(pair) for pair in closures]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_a_textgrid_gives_its_phones(tmp_path, encoding):
    path = write(tmp_path, "a.TextGrid", LONG, encoding)
    tiers = phonemes.read_textgrid(path)
    assert list(tiers) == ["words", "phones"] and tiers["words"] == [(0, 0.9, 'say "bam" 3 times')]
    found = phonemes.read_closures(path)
    assert found.source == "phonemes" and found.times == [(0.2, 0.3), (0.5, 0.9)]


def test_a_short_textgrid_of_words_goes_through_the_dictionary(tmp_path):
    found = phonemes.read_closures(write(tmp_path, "a.TextGrid", SHORT))
    assert found.source == "words" and found.times == times(
        [(0, 0.2 / 3.2)]
    )  # of B AY, the long vowel is 2.2 times as long


def test_a_textgrid_whose_tiers_say_nothing_is_refused(tmp_path):
    text = LONG.replace('"words"', '"one"').replace('"phones"', '"two"')
    with pytest.raises(TalkheadError, match="no tier called phones or words, only one, two"):
        phonemes.read_closures(write(tmp_path, "a.TextGrid", text))


def test_an_htk_label_file_of_either_kind(tmp_path):
    found = phonemes.read_closures(
        write(tmp_path, "a.lab", "0 1000000 sil\n1000000 2500000 B\n2500000 4000000 IH0 -12.3 bin\n")
    )
    assert found.source == "phonemes" and found.times == times([(0.1, 0.25)])
    found = phonemes.read_closures(write(tmp_path, "b.lab", "0 1000000 sil\n1000000 4000000 bin\n"))
    assert found.source == "words" and found.times == times([(0.1, 0.1 + 0.3 / 3.7)])


def test_a_master_label_file_gives_the_clips_own_entry(tmp_path):
    path = write(tmp_path, "all.mlf", MLF)
    found = phonemes.read_closures(path, "corpus/01M/Clips/straightcam/sa1.mp4")
    assert found.source == "phonemes" and found.times == times([(0.1, 0.16)])  # closure and release are one
    assert phonemes.read_closures(path, "corpus/02M/straightcam/sa1.mp4").times == times([(0, 0.1)])
    with pytest.raises(TalkheadError, match="both match straightcam/sa1.mp4; keep their folders"):
        phonemes.read_closures(path, "straightcam/sa1.mp4")
    with pytest.raises(TalkheadError, match="no entry for x/sa2.mp4; an entry should be called sa2"):
        phonemes.read_closures(path, "x/sa2.mp4")


def test_a_grid_align_file(tmp_path):
    found = phonemes.read_closures(
        write(tmp_path, "bbaf2n.align", "0 23750 sil\n23750 29500 bin\n29500 34000 blue\n34000 36000 at\n")
    )
    assert found.source == "words"
    # By hand: a vowel is 1.7 times as long as a consonant, a long one 2.2 times, and /l/ 0.8 times: B IH N, B L UW.
    assert found.times == times([(0.95, 0.95 + 0.23 / 3.7), (1.18, 1.18 + 0.18 / 4)])


def test_metrics_and_puppets_read_the_same_times_in_grid(tmp_path):
    path = write(tmp_path, "bbaf2n.align", "0 23750 sil\n23750 29500 bin\n29500 34000 blue\n34000 36000 at\n")
    spoken, text = articulation.transcript(tmp_path / "bbaf2n.mpg")
    assert text == "bin blue at"
    assert phonemes.read(path) == [(start, end, phonemes.arpabet(label)) for start, end, label in spoken]
    assert phonemes.read_closures(path).times == phonemes.closures(spoken)


def test_grid_has_51_words_and_they_say_what_is_heard():
    words = articulation.GRID_WORDS
    assert len(words) == 51 and sum(len(word) == 1 for word in words) == 25 and "w" not in words
    assert {sound.rstrip("012") for sounds in words.values() for sound in sounds} <= phonemes._ARPABET
    shut = sorted(word for word, sounds in words.items() if {"P", "B", "M"} & set(sounds))
    assert shut == ["b", "bin", "blue", "by", "m", "p", "place", "please"]


def test_real_grid_alignments(shared_data):
    paths = sorted((shared_data / "grid_s1" / "align").glob("*.align"))
    found = [phonemes.read_closures(path) for path in paths]
    assert len(found) >= 100 and all(closures.source == "words" for closures in found)
    assert all(0 <= start < end < 3 for closures in found for start, end in closures.times)
    assert [closures.times for closures in found] == [
        phonemes.closures(articulation.transcript(path)[0]) for path in paths
    ]


def test_a_puppets_sidecar(tmp_path):
    path = write(
        tmp_path,
        "000000.json",
        json.dumps({"fps": 25, "phonemes": [[0, 0.1, "P"], [0.1, 0.3, "AY1"], [0.3, 0.4, "SIL"]]}),
    )
    assert phonemes.read_closures(path) == ([(0, 0.1)], "phonemes")


def test_a_folder_is_searched_by_the_clips_name(tmp_path):
    write(tmp_path, "one.lab", "0 1000000 m\n")
    write(tmp_path, "two.textgrid", LONG)
    assert phonemes.read_closures(tmp_path, "somewhere/one.mpg").times == times([(0, 0.1)])
    assert len(phonemes.read_closures(tmp_path, "two.mp4").times) == 2
    with pytest.raises(TalkheadError, match="no timing file of three"):
        phonemes.read_closures(tmp_path, "three.mp4")


@pytest.mark.parametrize(
    "label, wanted",
    [
        ("AH0", "AH"),
        ("bcl", "B"),
        ("pʰ", "P"),
        ("mʲ", "M"),
        ("m̩", "M"),
        ("b", "B"),
        ("", "SIL"),
        ("h#", "SIL"),
        ("spn", "SIL"),
        ("em", "M"),
        ("bh", "BH"),
        ("ix", "IH"),
    ],
)
def test_labels_of_other_alphabets(label, wanted):
    assert phonemes.arpabet(label) == wanted


def test_a_dictionary_in_cmudicts_format(tmp_path):
    path = write(tmp_path, "dict", ";;; remark\nMAP  M AE1 P\nMAP(2)  M AA1 P\nabout AH0 B AW1 T # noun\n")
    words = phonemes.read_dictionary(path)
    assert words == {"map": ("M", "AE", "P"), "about": ("AH", "B", "AW", "T")}
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text("MAP  M AE1 P\nabout AH0 B AW1 T\n", encoding=encoding)
        assert phonemes.read_dictionary(path) == words
    align = write(tmp_path, "a.align", "0 25000 Map\n")
    assert phonemes.read_closures(align, dictionary=words).times == times([(0, 1 / 3.7), (2.7 / 3.7, 1)])
    with pytest.raises(TalkheadError, match="a.align: not in the dictionary: Map; pass a --dictionary"):
        phonemes.read_closures(align)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.TextGrid", "nonsense", "not a TextGrid of Praat, or cut short"),
        ("a.TextGrid", LONG.replace('"phones"', "7"), "not a TextGrid of Praat, or cut short"),
        ("a.TextGrid", LONG[:600], "not a TextGrid of Praat, or cut short"),
        ("a.lab", "0 x sil", "a.lab, line 1: wanted start, end and label"),
        ("a.align", "\n0 5", "a.align, line 2: wanted"),
        ("a.mlf", "0 1 sil", "its first line should be #!MLF!#"),
        ("a.mlf", "#!MLF!#\n0 1 sil", "line 2: outside of an entry"),
        ("a.json", "[]x", "holds no phonemes"),
        ("a.json", '[[0, 1e400, "b"]]', "holds no phonemes"),
        ("a.json", "[" * 100_000, "holds no phonemes"),
        ("a.json", f'[[0, {"9" * 400}, "b"]]', "holds no phonemes"),
        ("a.lab", "0 nan b", "a.lab, line 1: wanted"),
        ("a.align", "0 1e400 bin", "a.align, line 1: wanted"),
        ("a.txt", "", "unknown format; the suffix"),
    ],
)
def test_what_is_no_timing_file_is_said_in_one_line(tmp_path, name, text, message):
    with pytest.raises(TalkheadError, match=message) as caught:
        phonemes.read_closures(write(tmp_path, name, text), "clip.mp4")
    assert "\n" not in str(caught.value)


def test_missing_files_and_bad_dictionaries(tmp_path):
    with pytest.raises(TalkheadError, match="none.lab: no such file"):
        phonemes.read_closures(tmp_path / "none.lab")
    with pytest.raises(TalkheadError, match="line 1: wanted a word and its ARPABET phonemes"):
        phonemes.read_dictionary(write(tmp_path, "d", "MAP m-a-p\n"))
    with pytest.raises(TalkheadError, match="holds no words"):
        phonemes.read_dictionary(write(tmp_path, "e", "\n"))
    (tmp_path / "b.lab").write_bytes(b"\xff\x00\x81")
    with pytest.raises(TalkheadError, match="not a text file"):
        phonemes.read_closures(tmp_path / "b.lab")
