"""Time stamps that run forward."""

from fractions import Fraction
from types import SimpleNamespace

import pytest

from talkhead.timestamps import PacketClock, PictureStamps

TICK = Fraction(1, 1000)  # seconds


def packet(moment, index=0, lasts=40, shown=None):
    """A packet that is decoded, and shown, at a moment in ticks; None ends the stream."""
    return SimpleNamespace(
        stream=SimpleNamespace(index=index),
        dts=moment,
        pts=moment if shown is None else shown,
        duration=lasts,
        time_base=TICK,
        opaque=None,
    )


def mended(packets, restarts, anchor=None):
    """(index, pts) of the packets as they come out, and what was said."""
    said = []
    indices = {item.stream.index for item in packets}
    clock = PacketClock(
        restarts,
        dict.fromkeys(indices, Fraction(0)),
        anchor,
        lambda what, moment: said.append((what.split(";")[0], float(moment))),
    )
    return [(item.stream.index, item.pts) for given in packets for item in clock.mend(given)], said


def frames(count, start=0):
    return [packet(start + 40 * index) for index in range(count)]


@pytest.mark.parametrize("restarts", [False, True])
def test_nothing_to_mend(restarts):
    packets = [*frames(5), packet(None, lasts=None)]
    assert mended(packets, restarts) == ([(0, 0), (0, 40), (0, 80), (0, 120), (0, 160), (0, None)], [])


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("wrong", [50_000, 10**9, -50_000])
def test_a_stamp_alone_is_wrong(restarts, wrong):
    packets = [*frames(3), packet(wrong), *frames(2, 160), packet(None, lasts=None)]
    got, said = mended(packets, restarts)
    assert got == [(0, 0), (0, 40), (0, 80), (0, None), (0, 160), (0, 200), (0, None)]
    assert said == [("a wrong time stamp is left out", 0.12)]


def test_a_pause_is_one_where_clocks_do_not_start_again():
    packets = [*frames(3), *frames(3, 60_000), packet(None, lasts=None)]
    times = [0, 40, 80, 60_000, 60_040, 60_080, None]
    assert mended(packets, False) == ([(0, time) for time in times], [])
    got, said = mended(packets, True)  # as FFmpeg's program: a television recorder that was switched on again
    assert got == [(0, time) for time in (0, 40, 80, 120, 160, 200, None)] and said == [
        ("its clock starts again", 0.12)
    ]


def together(first, second):
    """Two streams as they lie in a file, by the moment; and their ends."""
    ends = [packet(None, 0, None), packet(None, 1, None)]
    return sorted([*first, *second], key=lambda item: item.dts) + ends


@pytest.mark.parametrize("lead", [0, 5_000])  # ticks by which the sound comes late
def test_a_long_pause_is_one_where_both_streams_make_it(lead):
    times = [*range(0, 8_000, 40), *range(3_600_000, 3_608_000, 40)]
    shown, sound = ([packet(time, index) for time in times] for index in (0, 1))
    given = [
        item
        for _, _, item in sorted(
            [(item.dts + lead * item.stream.index, item.stream.index, item) for item in shown + sound],
            key=lambda key: key[:2],
        )
    ]
    got, said = mended([*given, packet(None, 0, None), packet(None, 1, None)], False)
    assert (
        said == [] and [[time for stream, time in got if stream == index] for index in (0, 1)] == [[*times, None]] * 2
    )


def test_pictures_may_stand_still_while_the_sound_goes_on():
    got, said = mended(
        together([packet(0), packet(15_000), packet(50_000)], [packet(40 * index, 1) for index in range(1, 1500)]),
        False,
    )
    assert said == [] and [time for index, time in got if index == 0][:3] == [0, 15_000, 50_000]


@pytest.mark.parametrize("strange", [0, 1])
def test_a_leap_that_the_other_stream_does_not_make_is_wrong(strange):
    """Twenty seconds of each stream; of one, all stamps after the first second are an hour too late."""
    packets = together(
        [packet(40 * index, strange) for index in range(500)], [packet(40 * index, 1 - strange) for index in range(500)]
    )
    for item in packets:
        if item.stream.index == strange and item.dts is not None and item.dts >= 1000:
            item.dts = item.pts = item.dts + 3_600_000
    got, said = mended(packets, False)
    assert [time for index, time in got if index != strange] == [*range(0, 20_000, 40), None]
    assert [time for index, time in got if index == strange] == [*range(0, 1000, 40)] + [None] * 476
    assert {what for what, _ in said} == {"a wrong time stamp is left out"} and said[0][1] == 1


def test_packets_that_last_for_minutes_do_not():
    """As a damaged head says: 512 s each, alone or beside a second of sound."""
    shown = [packet(512_000 * index, lasts=512_000) for index in range(4)]
    for sound in ([], frames(25)):
        for item in sound:
            item.stream.index = 1
        got, said = mended(together(shown, sound), False)
        assert [time for index, time in got if index == 0][:4] == [0, None, None, None] and said
        shown = [packet(512_000 * index, lasts=512_000) for index in range(4)]


def test_no_recording_pauses_for_thirty_hours():
    packets = [*frames(2), *frames(3, 10**9), packet(None, lasts=None)]
    got, said = mended(packets, False)
    assert got == [(0, 0), (0, 40)] + [(0, None)] * 4 and set(said) == {
        ("a wrong time stamp is left out", at) for at in (0.08, 0.12, 0.16)
    }


def test_both_streams_go_on_from_where_the_pictures_ended():
    """Sound of 30 ms a packet ended at 0.15, pictures at 0.16; both start again at 0, and the sound comes first."""
    first = [
        packet(0, 1, 30),
        packet(0),
        packet(30, 1, 30),
        packet(40),
        packet(60, 1, 30),
        packet(80),
        packet(90, 1, 30),
        packet(120),
        packet(120, 1, 30),
    ]
    again = [packet(item.dts - 100_000, item.stream.index, item.duration) for item in first]
    got, said = mended([*first, *again, packet(None, 0, None), packet(None, 1, None)], True, anchor=0)
    pictures = [time for index, time in got if index == 0]
    sound = [time for index, time in got if index == 1]
    assert pictures == [0, 40, 80, 120, 160, 200, 240, 280, None]
    assert sound[:5] == [0, 30, 60, 90, 120] and sound[-4:-1] == [220, 250, 280]  # 160 more than at first
    assert said == [("its clock starts again", pytest.approx(0.15))]


def test_no_picture_is_shown_long_after_it_is_decoded():
    got, said = mended([packet(0, shown=80), packet(40, shown=10**6), packet(80, shown=120)], False)
    assert got == [(0, 80), (0, None), (0, 120)] and said == [("a wrong time stamp is left out", 0.04)]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_stamp_of_decoding_alone_is_wrong(restarts):
    got, said = mended(
        [
            packet(0, shown=80),
            *(packet(time, shown=time + 80) for time in range(40, 12_000, 40)),
            packet(0, shown=12_040),
            packet(12_040, shown=12_120),
        ],
        restarts,
    )
    assert said == [] and [time for _, time in got][-3:] == [12_040, 12_040, 12_120]


def stamps(frames, shown):
    times = PictureStamps(shown)
    times.sent(SimpleNamespace(dts=0))
    return [times.of(SimpleNamespace(pts=pts, dts=dts)) for pts, dts in frames]


def test_stamps_of_pictures():
    """The numbers are those that FFmpeg gives of an AVI with B-frames: (of presentation, of decoding)."""
    assert stamps([(1, 2), (4, 3), (3, 4), (5, 5), (2, 6), (100, None)], shown=False) == [0, 1, 2, 3, 4, None]
    assert stamps([(0, 0), (2, 1), (1, 2), (4, 3)], shown=True) == [0, 2, 2, 3]  # guess_correct_pts, by hand
    assert stamps([(0, None), (1, None), (None, 7)], shown=True) == [0, 1, 7]
