"""Video, sound and pictures as people bring them: damaged, joined, cut, and of kinds that few programs write."""

import io
import os
import struct
import subprocess
import sys
import warnings
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, features

import toys
from talkhead import audio_files, containers, files, image_files, video_files
from talkhead.errors import TalkheadError

RATE = 16000  # samples per second
CASES = Path(__file__).parents[2] / "shared" / "cases"


@pytest.fixture
def case():
    """The path of a small input that once failed; the test skips where there is none."""

    def path(name):
        if not (CASES / name).is_file():
            pytest.skip(f"there is no {CASES / name}")
        return CASES / name

    return path


def tone(seconds, rate=RATE, hertz=440.0):
    return 0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


def encode(
    path,
    seconds=4.0,
    video="mpeg4",
    audio="aac",
    flash=(25, 50, 75),
    rate=48000,
    format=None,
    options=None,
    clicks=False,
    pause=0,
):
    """A clip made without the code under test: 25 black pictures a second, white ones at `flash`; a tone of 440 Hz.
    Returns its path.

    clicks   instead, the tone is heard with the white pictures only
    pause    seconds without pictures and sound in the middle
    """

    def late(moment):
        return pause if moment >= seconds / 2 else 0

    with av.open(path if hasattr(path, "write") else str(path), "w", format=format) as container:
        if video:
            pictures = container.add_stream(video, rate=25, options=options or {})
            pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuvj420p" if video == "mjpeg" else "yuv420p"
        if audio:
            sound = container.add_stream(audio, rate=rate)
            sound.codec_context.layout = "stereo" if audio == "vorbis" else "mono"
            sound.codec_context.options = {"strict": "experimental"}
        packets = []
        for index in range(round(seconds * 25) if video else 0):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 255 * (index in flash), np.uint8), format="rgb24")
            frame.pts, frame.time_base = index + 25 * late(index / 25), Fraction(1, 25)
            packets += pictures.encode(frame)
        if video:
            packets += pictures.encode(None)
        if audio:
            samples = tone(seconds, rate) * (
                np.isin(np.arange(round(seconds * rate)) * 25 // rate, flash) if clicks else 1
            )
            channels = sound.codec_context.channels
            for start in range(0, len(samples), rate // 50):
                piece = np.repeat((samples[start : start + rate // 50] * 32767).astype(np.int16), channels)
                block = av.AudioFrame.from_ndarray(piece[None], format="s16", layout=sound.codec_context.layout.name)
                block.sample_rate, block.time_base, block.pts = (
                    rate,
                    Fraction(1, rate),
                    start + round(rate * late(start / rate)),
                )
                packets += sound.encode(block)
            packets += sound.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def flashes(source, **options):
    """How many frames there are, and which of them are white."""
    with video_files.read_frames(source, **options) as reader:
        light = [frame.mean() for frame in reader]
    return len(light), [index for index, value in enumerate(light) if value > 128]


def packets(path, kind):
    """(position in the file, size, moment in seconds) of each packet, as FFmpeg's demuxer tells."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [
            (packet.pos, packet.size, float(packet.pts * packet.time_base))
            for packet in container.demux(stream)
            if packet.size
        ]


def heard(block):
    """Loudness of 440 Hz in it: 0.4 where the tone of `encode` is whole."""
    time = np.arange(len(block)) / RATE
    return 2 * abs((block * np.exp(-2j * np.pi * 440 * time)).mean())


class OneWay:
    """What a pipe offers: bytes in order, and no position."""

    def __init__(self, data):
        self._stream = io.BytesIO(data)

    def read(self, size):
        return self._stream.read(min(size, 5000))


# Damage ---------------------------------------------------------------------------------------------------------------


def test_damaged_sound_is_silence_of_the_same_length(tmp_path):
    """FFmpeg's AAC decoder fails with several kinds of errors, in some versions with "operation not permitted"."""
    whole = encode(tmp_path / "whole.mp4")
    data, kinds = bytearray(whole.read_bytes()), set()
    random = np.random.default_rng(8)
    damaged = [packet for packet in packets(whole, "audio") if 1 < packet[2] < 1.5 or packet[2] > 3.9]
    for position, size, _ in damaged:
        data[position : position + size] = random.integers(0, 256, size, np.uint8).tobytes()
    (tmp_path / "damaged.mp4").write_bytes(data)
    with av.open(str(tmp_path / "damaged.mp4")) as container:
        for packet in container.demux(audio=0):
            try:
                packet.decode()
            except av.error.FFmpegError as error:
                kinds.add(type(error))
    assert kinds
    with pytest.warns(UserWarning, match=r"damaged.mp4, [\d.]+ s: damaged; silence is put there") as said:
        samples = audio_files.read_audio(tmp_path / "damaged.mp4")
    assert len(said) == 1 and len(samples) == 4 * RATE
    assert heard(samples[RATE // 10 : RATE * 9 // 10]) == pytest.approx(0.4, abs=0.01)
    # What follows has not moved by a sample: 440 Hz rise by 0.07 in one.
    np.testing.assert_allclose(
        samples[RATE * 2 : RATE * 3], audio_files.read_audio(whole)[RATE * 2 : RATE * 3], atol=0.07
    )
    with pytest.warns(UserWarning, match="damaged"), video_files.read_frames(tmp_path / "damaged.mp4") as reader:
        toys.write_frames(tmp_path / "out.mp4", reader, lossless=None, sound=reader.sound)
    assert len(audio_files.read_audio(tmp_path / "out.mp4")) == 4 * RATE


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg", "libx264"])
def test_damaged_pictures_are_held(tmp_path, codec):
    whole = encode(tmp_path / "whole.mov", video=codec, audio=None, options={"g": "5", "bf": "0"})
    data, random = bytearray(whole.read_bytes()), np.random.default_rng(0)
    for position, size, moment in packets(whole, "video"):
        if moment > 3.7 or 1.2 < moment < 1.4:
            data[position : position + size] = random.integers(0, 256, size, np.uint8).tobytes()
    (tmp_path / "damaged.mov").write_bytes(data)
    with pytest.warns(UserWarning, match=r"damaged.mov, 1.\d\d s: damaged; the "):
        assert flashes(tmp_path / "damaged.mov") == (100, [25, 50, 75])


def test_damaged_case(case):
    with pytest.warns(UserWarning, match="corrupt.mp4, .* s: damaged"):
        assert len(audio_files.read_audio(case("damaged_packet_errors/corrupt.mp4"))) == 4 * RATE
        assert flashes(case("damaged_packet_errors/corrupt.mp4")) == (100, [50, 75])  # as FFmpeg's own program


def ogg_page(serial, sequence, flags, granule, lacing, body=b""):
    """A page of Ogg (RFC 3533)."""
    page = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, serial, sequence, 0, len(lacing)) + lacing + body
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 1 << 31 else crc << 1) & 0xFFFFFFFF
    return page[:22] + struct.pack("<I", crc) + page[26:]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("codec, lacing", [("vorbis", b"\0"), ("vorbis", b""), ("libopus", b"")])
def test_empty_last_page_of_ogg(tmp_path, codec, lacing):
    """Who writes a stream does not know at the last packet that it is the last: a page without sound follows."""
    path = encode(tmp_path / "a.ogg", video=None, audio=codec)
    data = bytearray(path.read_bytes())
    last = data.rindex(b"OggS")
    _, _, flags, granule, serial, sequence = struct.unpack_from("<4sBBqII", data, last)
    assert flags & 4
    whole = audio_files.read_audio(path)
    body = last + 27 + data[last + 26]
    page = ogg_page(serial, sequence, 0, granule, data[last + 27 : body], data[body:])
    (tmp_path / "b.ogg").write_bytes(data[:last] + page + ogg_page(serial, sequence + 1, 4, granule, lacing))
    samples = audio_files.read_audio(tmp_path / "b.ogg")
    assert len(whole) == 4 * RATE and len(samples) == pytest.approx(
        4 * RATE, abs=0.02 * RATE
    )  # FFmpeg keeps what Opus fills up with
    np.testing.assert_array_equal(samples[: RATE * 3], whole[: RATE * 3])


@pytest.mark.filterwarnings("error")
def test_empty_packets_repeat_the_picture_before(tmp_path, case):
    path = tmp_path / "dropped.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 255 * (index == 4), np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            for packet in stream.encode(frame):
                if index in (5, 6):
                    empty = av.Packet(0)
                    empty.stream, empty.pts, empty.dts, empty.time_base = (
                        stream,
                        packet.pts,
                        packet.dts,
                        packet.time_base,
                    )
                    packet = empty
                container.mux(packet)
    assert flashes(path) == (10, [4, 5, 6])
    assert flashes(case("ogg_empty_packet/sync.ogv")) == (100, [25, 50, 75])
    assert len(audio_files.read_audio(case("ogg_empty_packet/sync.ogv"))) == pytest.approx(4 * RATE, abs=8)


# Time -----------------------------------------------------------------------------------------------------------------


def flv_tags(data):
    """(kind, position) of each tag of an FLV: 8 is sound, 9 is pictures."""
    at = 13
    while at < len(data):
        yield data[at], at
        at += 15 + int.from_bytes(data[at + 1 : at + 4], "big")


@pytest.mark.parametrize("kind", [8, 9])
@pytest.mark.parametrize("which, byte, value", [(12, 7, 16), (-1, 7, 16), (12, 4, 40), (1, 4, 40)])
def test_one_wrong_time_stamp(tmp_path, kind, which, byte, value):
    """A byte of one tag's time stamp is changed: it says 74 hours later, or 44 minutes."""
    path = encode(tmp_path / "a.flv", 1.0, video="flv", audio="libmp3lame", flash=(5, 20), rate=44100)
    data = bytearray(path.read_bytes())
    data[[at for found, at in flv_tags(data) if found == kind][which] + byte] = value
    (tmp_path / "b.flv").write_bytes(data)
    with pytest.warns(UserWarning, match=r"b.flv, [\d.]+ s: a wrong time stamp is left out"):
        assert flashes(tmp_path / "b.flv") == (25, [5, 20])
        np.testing.assert_array_equal(audio_files.read_audio(tmp_path / "b.flv"), audio_files.read_audio(path))


def test_a_pause_stays(tmp_path):
    path = encode(tmp_path / "a.mkv", 1.0, audio="pcm_s16le", pause=60, flash=(5, 20))
    assert flashes(path) == (25 * 61, [5, 20 + 60 * 25])
    samples = audio_files.read_audio(path)
    assert len(samples) == pytest.approx(61 * RATE, abs=9) and np.abs(samples[RATE : 60 * RATE]).max() == 0


def test_a_long_pause_needs_no_memory(tmp_path):
    path = encode(tmp_path / "a.mkv", 1.0, audio="pcm_s16le", pause=5 * 3600)
    with audio_files.read_sound(path) as sound:
        sizes = [len(block) for block in sound]
    assert sum(sizes) == pytest.approx((5 * 3600 + 1) * RATE, abs=9) and max(sizes) <= RATE
    with video_files.read_frames(path) as reader:
        sound = reader.sound
        for _ in range(20):
            next(reader)
            assert len(sound.take(1920)) == 1920 and sound._decoded.size <= 48000


@pytest.mark.parametrize(
    "suffix, video, audio", [(".ts", "libx264", "mp2"), (".ts", "mpeg2video", "aac"), (".mpg", "mpeg1video", "mp2")]
)
def test_clock_that_starts_again(tmp_path, suffix, video, audio):
    """`cat a.ts b.ts c.ts`: the pictures of all, and each click with its white picture."""
    parts = [encode(tmp_path / f"{index}{suffix}", 2.0, video, audio, flash=(25,), clicks=True) for index in range(3)]
    path = tmp_path / f"joined{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.warns(UserWarning, match=r"joined.*, [\d.]+ s: its clock starts again; the parts are joined") as said:
        assert flashes(path) == (150, [25, 75, 125])
    assert len(said) == 1
    with pytest.warns(UserWarning, match="its clock starts again"):
        samples = audio_files.read_audio(path)
    alone = np.flatnonzero(np.abs(audio_files.read_audio(parts[0])) > 0.2)[0]
    loud = np.flatnonzero(np.abs(samples) > 0.2)
    starts = loud[np.diff(loud, prepend=-RATE) > RATE // 2]
    np.testing.assert_allclose(starts, alone + np.arange(3) * 2 * RATE, atol=0.05 * RATE)
    assert len(samples) == pytest.approx(6 * RATE, abs=0.1 * RATE)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("video, audio", [("mpeg1video", "mp2"), ("mpeg2video", "mp2"), ("mpeg2video", "ac3")])
def test_one_clock_through_a_pipe(tmp_path, video, audio):
    """FFmpeg makes up other stamps of decoding where it cannot look ahead, and of pictures some that are one too
    early."""
    path = encode(tmp_path / "a.mpg", 4.0, video, audio)
    assert flashes(path) == (100, [25, 50, 75])
    count, white = flashes(OneWay(path.read_bytes()))
    assert count == 100 and {25, 50, 75} <= set(white) <= {24, 25, 49, 50, 74, 75}
    np.testing.assert_array_equal(audio_files.read_audio(OneWay(path.read_bytes())), audio_files.read_audio(path))


def test_joined_case(case):
    with pytest.warns(UserWarning, match="its clock starts again"):
        assert flashes(case("ts_restart/joined.ts")) == (100, [25, 50, 75])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_avi_tells_the_order_of_decoding(tmp_path, codec):
    path = encode(tmp_path / "a.avi", video=codec, audio=None, options={"bf": "3"})
    with av.open(str(path)) as container:
        order = [frame.pts for frame in container.decode(video=0)]
    assert codec == "mpeg4" or order != sorted(order)
    assert flashes(path) == (100, [25, 50, 75])


@pytest.mark.parametrize("scale", [(12289, 25), (9633793, 25)])
def test_avi_whose_frame_rate_is_wrong(tmp_path, scale):
    """Its header is damaged: 8 minutes from each picture to the next, or 4 days."""
    data = bytearray(encode(tmp_path / "a.avi", 1.0, video="mjpeg", audio=None, flash=(5, 20)).read_bytes())
    at = data.index(b"vids") + 20  # type, handler, flags, priority and language, initial frames; then scale and rate
    assert struct.unpack_from("<II", data, at) == (1, 25)
    struct.pack_into("<II", data, at, *scale)
    (tmp_path / "b.avi").write_bytes(data)
    with pytest.warns(UserWarning, match="b.avi, 0.00 s: a wrong time stamp is left out") as said:
        assert flashes(tmp_path / "b.avi") == (25, [5, 20])
    assert len(said) == 1


def test_avi_case(case):
    assert flashes(case("avi_h264_bframes/h264b.avi")) == (100, [25, 50, 75])


@pytest.mark.parametrize("bframes", ["0", "2"])
@pytest.mark.parametrize("audio", ["aac", None])
def test_mp4_that_claims_to_be_hours_long(tmp_path, audio, bframes):
    """The number of ticks to a second in the head of its pictures is 1, so that each seems to last for minutes or
    hours."""
    with (
        av.open(
            str(encode(tmp_path / "a.mov", 1.0, "libx264", audio, flash=(5, 20), options={"bf": bframes}))
        ) as source,
        av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "frag_every_frame+empty_moov"}) as target,
    ):
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    at = data.index(b"mdhd") + 16
    assert struct.unpack_from(">I", data, at)[0] > 10000
    struct.pack_into(">I", data, at, 1)
    (tmp_path / "b.mp4").write_bytes(data)
    with pytest.warns(UserWarning, match=r"b.mp4, \d+\.\d\d s: a wrong time stamp is left out"):
        assert flashes(tmp_path / "b.mp4") == (25, [5, 20])


@pytest.mark.filterwarnings("error")
def test_pictures_that_stand_for_long_are_believed_where_the_sound_goes_on(tmp_path):
    """A show of three pictures, 15 s each, with music; and one picture with 40 s of it."""
    for name, times, total in (("show.mp4", (0, 15, 30), 45), ("one.mkv", (0,), 40), ("one.mp4", (0,), 40)):
        with av.open(str(tmp_path / name), "w") as container:
            shown, heard = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=16000)
            shown.width, shown.height, shown.pix_fmt, heard.codec_context.layout = 64, 48, "yuv420p", "mono"
            shown.codec_context.max_b_frames = 0
            shown.codec_context.time_base = Fraction(1, 25)
            packets = []
            for time in times:
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 255 * (time == 15), np.uint8), format="rgb24")
                frame.pts, frame.time_base = 25 * time, Fraction(1, 25)
                packets += shown.encode(frame)
            packets += shown.encode(None)
            for packet in packets:
                packet.duration = round(total / len(times) / packet.time_base)
            for start in range(0, total * 16000, 1024):
                block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
                block.sample_rate, block.time_base, block.pts = 16000, Fraction(1, 16000), start
                packets += heard.encode(block)
            for packet in sorted(packets + heard.encode(None), key=lambda packet: packet.dts * packet.time_base):
                container.mux(packet)
        count, white = flashes(tmp_path / name)
        assert count == pytest.approx(25 * total, abs=1) and white == list(range(375, 750))[: len(times[1:]) * 375]


# Cut short ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, video, audio",
    [
        ("a.mkv", "ffv1", "pcm_s16le"),
        ("a.mkv", "libx264", "aac"),
        ("a.webm", "libvpx", "libopus"),
        ("a.avi", "mpeg4", "mp2"),
        ("a.avi", "mjpeg", None),
        ("a.ts", "libx264", "aac"),
        ("a.mp3", None, "libmp3lame"),
        ("a.mka", None, "flac"),
        ("a.flv", "flv", "libmp3lame"),
        ("a.m4a", None, "aac"),
        ("a.mov", "mjpeg", "pcm_s16le"),
        ("a.ogg", None, "vorbis"),
        ("a.opus", None, "libopus"),
        ("a.oga", None, "flac"),
        ("a.ogv", "vp8", "vorbis"),
        ("a.mpg", "mpeg1video", "mp2"),
        ("a.vob", "mpeg2video", "ac3"),
        ("a.asf", "mpeg4", "libmp3lame"),
        ("a.wmv", "wmv2", None),
    ],
)
def test_broken_download(tmp_path, name, video, audio):
    """Where the file tells how long it is, no part of it passes for the whole.

    A whole one does, by name and through a pipe.
    """
    path = encode(tmp_path / name, 2.0, video, audio, rate=44100 if audio == "libmp3lame" else 48000, flash=(25,))
    whole = path.read_bytes()
    read = (lambda source: flashes(source)) if video else (lambda source: len(audio_files.read_audio(source)) / RATE)
    piped = name not in ("a.m4a", "a.mov")  # their tables lie at the end
    for source in [path, *([OneWay(whole)] if piped else [])]:
        if video:
            count, white = read(source)
            assert count in (49, 50) and white == [
                25
            ]  # through a pipe FFmpeg does not know how long FLV's last picture lasts
        else:
            assert read(source) == pytest.approx(2, abs=0.06)
    for part in (0.6, 0.9):
        cut = whole[: int(part * len(whole)) // 188 * 188 + 100]  # bytes of a packet of MPEG-TS
        (tmp_path / f"cut{name}").write_bytes(cut)
        for function in [read, *([audio_files.read_audio] if audio else [])]:
            for source in [tmp_path / f"cut{name}", *([OneWay(cut)] if piped else [])]:
                with warnings.catch_warnings(), pytest.raises(TalkheadError, match="cut short|damaged") as error:
                    warnings.simplefilter("ignore")
                    function(source)
                assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seconds", [2.0, 30.0])
@pytest.mark.parametrize(
    "name, video, audio",
    [
        ("a.ogg", None, "vorbis"),
        ("a.opus", None, "libopus"),
        ("a.ogv", "vp8", "vorbis"),
        ("a.mpg", "mpeg1video", "mp2"),
        ("a.vob", "mpeg2video", "ac3"),
    ],
)
def test_each_byte_that_is_missing_at_the_end(tmp_path, name, video, audio, seconds):
    """Where a page or packet has begun that is not there to its end; also in a file longer than what is looked at."""
    whole = encode(tmp_path / name, seconds, video, audio, options={"b": "500000"} if video else None).read_bytes()
    mark, size = containers.PARTED["ogg" if whole[:4] == b"OggS" else "mpeg"]
    ends = [0]
    while ends[-1] < len(whole):
        ends.append(ends[-1] + size(whole, ends[-1]))
    assert ends[-1] == len(whole) and len(ends) > 3
    for gone in [0, *range(1, 40), *range(40, 5000, 97)]:
        data = whole[: len(whole) - gone][-containers.PARTS :]
        _, end = containers._last_part(data, mark, size)
        assert (end > len(data)) == (len(whole) - gone not in ends), gone


def test_an_ogg_without_a_last_page(tmp_path):
    """Who records from the air, or was stopped, marks none: what is there is read, and it is said."""
    data = encode(tmp_path / "a.opus", 2.0, None, "libopus").read_bytes()
    (tmp_path / "b.opus").write_bytes(data[: data.rindex(b"OggS")])
    for source in (tmp_path / "b.opus", OneWay((tmp_path / "b.opus").read_bytes())):
        with pytest.warns(
            UserWarning, match="its last page is not marked as the last; later parts, if any, are missing"
        ):
            assert 0.5 < len(audio_files.read_audio(source)) / RATE < 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "more", [b"", bytes(3000), b"\0\0\1\xb9", b"\0\0\1\xb9" + bytes(1000), b"\xff" * 700, b"TAG" + bytes(125)]
)
def test_mpeg_ps_may_end_in_several_ways(tmp_path, more):
    data = encode(tmp_path / "a.mpg", 2.0, "mpeg1video", "mp2", flash=(25,)).read_bytes()
    (tmp_path / "b.mpg").write_bytes(data + more)
    assert flashes(tmp_path / "b.mpg") == (50, [25])


@pytest.mark.parametrize(
    "name, video, audio, at, size",
    [
        ("a.asf", "mpeg4", "libmp3lame", 16, b"\xff" * 8),
        ("a.asf", "mpeg4", "libmp3lame", 16, b"\0" * 7 + b"\x70"),
        ("a.mkv", "mpeg4", "libmp3lame", 4, b"\x01\xff\xff\xff\xff\xff\xff\xfe"),
    ],
)
def test_a_head_that_claims_to_end_where_no_file_does(tmp_path, name, video, audio, at, size):
    """What comes after it then tells no length; FFmpeg finds the packets all the same."""
    data = bytearray(encode(tmp_path / name, 1.0, video, audio, flash=(5, 20)).read_bytes())
    data[at : at + len(size)] = size
    (tmp_path / name).write_bytes(data)
    for source in (tmp_path / name, OneWay(bytes(data))):
        assert flashes(source) == (25, [5, 20])


def test_live_matroska_tells_no_length(tmp_path):
    """Who writes to a pipe cannot know it: what was written until then is whole."""

    class Pipe(io.RawIOBase):
        data = b""

        def writable(self):
            return True

        def write(self, data):
            Pipe.data += bytes(data)
            return len(data)

    encode(Pipe(), 2.0, "mpeg4", "aac", flash=(25,), format="matroska")
    (tmp_path / "live.mkv").write_bytes(Pipe.data)
    assert flashes(tmp_path / "live.mkv") == flashes(OneWay(Pipe.data)) == (50, [25])


def test_music_with_a_tag_and_broken_off(tmp_path):
    """A picture in front of the sound is no part of the bytes that the sound's head tells."""
    path = encode(tmp_path / "a.mp3", 2.0, None, "libmp3lame", rate=44100)
    data = path.read_bytes()
    sound = data[10 + int.from_bytes(data[8:10], "big") :]
    assert data[:3] == b"ID3" and sound[0] == 0xFF
    tagged = b"ID3\x04\0\0" + bytes((0, 2, 0, 0)) + bytes(2 << 14) + sound
    (tmp_path / "whole.mp3").write_bytes(tagged)
    (tmp_path / "cut.mp3").write_bytes(tagged[:-3000])
    assert len(audio_files.read_audio(tmp_path / "whole.mp3")) == len(audio_files.read_audio(path))
    with pytest.raises(TalkheadError, match="cut short"):
        audio_files.read_audio(tmp_path / "cut.mp3")


def test_cut_case(case):
    for read in (flashes, audio_files.read_audio):
        with pytest.raises(TalkheadError, match="cut short"):
            read(case("broken_download_silent/trunc.mkv"))


# Pictures -------------------------------------------------------------------------------------------------------------


def ways(tmp_path, data, *names):
    """A picture's bytes as one may be given them: files of these names, a stream with a position and one without."""
    for name in names:
        (tmp_path / name).write_bytes(data)
        yield tmp_path / name
    yield io.BytesIO(data)
    yield OneWay(data)


def only_frame(source):
    with video_files.read_frames(source) as reader:
        frames = list(reader)
        assert len(frames) == 1 and reader.size == frames[0].shape[:2]
    return frames[0]


def oriented(orientation):
    """(the bytes of a JPEG whose EXIF tells how it lies, the picture as it is to be seen), by the table of the EXIF
    standard."""
    seen = np.full((48, 32, 3), 90, np.uint8)
    seen[:16, :16], seen[:16, 16:] = [250, 20, 20], [20, 250, 20]  # top left, top right
    stored = toys.stored_by_exif(seen, orientation)
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(stream, "JPEG", exif=exif, quality=95, subsampling=0)
    return stream.getvalue(), seen.astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photo_is_upright_whatever_its_name(tmp_path, orientation):
    data, seen = oriented(orientation)
    for source in ways(tmp_path, data, "a.jpg", "a.jfif", "a.jpe", "photo", "a.dat"):
        assert np.abs(only_frame(source) - seen).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".avi", ".mov", ".mkv"])
def test_motion_jpeg_is_upright(tmp_path, suffix, orientation):
    """A camera writes EXIF into each picture of a video, too."""
    data, seen = oriented(orientation)
    with av.open(str(tmp_path / f"a{suffix}"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width = Image.open(io.BytesIO(data)).size[::-1]
        stream.pix_fmt = "yuvj444p"
        for index in range(3):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.time_base, packet.duration = (
                stream,
                index,
                index,
                Fraction(1, 25),
                1,
            )
            packet.is_keyframe = True
            container.mux(packet)
    with video_files.read_frames(tmp_path / f"a{suffix}") as reader:
        frames = list(reader)
    assert len(frames) == 3 and np.abs(frames[1] - seen).mean() < 4


def test_photo_case(case):
    path = case("exif_sidedata_crash/exif6.jfif")
    expected = image_files.read_image(path)
    assert expected.shape == (800, 640, 3)
    np.testing.assert_array_equal(only_frame(path), expected)
    np.testing.assert_array_equal(only_frame(OneWay(path.read_bytes())), expected)


def test_picture_keeps_its_mark_and_its_paper_whatever_its_name(tmp_path):
    clear = np.full((32, 32, 4), [0, 100, 200, 128], np.uint8)
    stream = io.BytesIO()
    Image.fromarray(clear).save(stream, "PNG")
    for source in ways(tmp_path, stream.getvalue(), "a.png", "a"):
        assert np.abs(only_frame(source).astype(int) - [127, 177, 227]).max() <= 1
    for suffix in (".png", ".jpg"):
        image_files.write_image(tmp_path / f"aligned{suffix}", clear[..., :3], {"talkhead_aligned": "32"})
        for source in ways(tmp_path, (tmp_path / f"aligned{suffix}").read_bytes(), "aligned"):
            with video_files.read_frames(source) as reader:
                assert reader.aligned and reader.count == 1 and reader.codec == {".png": "png", ".jpg": "jpeg"}[suffix]


def test_large_picture_through_a_real_pipe(tmp_path):
    import os
    import threading

    image = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)  # 1.5 MB: many times what a pipe holds
    image_files.write_image(tmp_path / "a.png", image)
    for function in (only_frame, image_files.read_image):
        reader, writer = os.pipe()

        def feed(writer=writer):
            with open(writer, "wb") as stream:
                stream.write((tmp_path / "a.png").read_bytes())

        thread = threading.Thread(target=feed)
        thread.start()
        with open(reader, "rb") as stream:
            np.testing.assert_array_equal(function(stream), image)
        thread.join()


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_pictures_in_a_row_are_a_video(tmp_path, format):
    """As `ffmpeg -f image2pipe` and `-f mjpeg` write them."""
    data = b""
    for index in range(5):
        stream = io.BytesIO()
        Image.fromarray(np.full((64, 64, 3), 255 * (index == 3), np.uint8)).save(stream, format)
        data += stream.getvalue()
    for source in ways(tmp_path, data, "a.mjpeg" if format == "JPEG" else "a.dat"):
        assert flashes(source) == (5, [3])


def test_picture_with_others_behind_it_is_one(tmp_path):
    """A camera's JPEG may hold a preview and a second view."""
    views = [Image.fromarray(np.full((64, 64, 3), level, np.uint8)) for level in (200, 10)]
    stream = io.BytesIO()
    views[0].save(stream, "MPO", save_all=True, append_images=views[1:])
    for source in ways(tmp_path, stream.getvalue(), "a.jpg", "a"):
        assert np.abs(only_frame(source).astype(int) - 200).max() <= 2


def animation(format, **options):
    """Red, clear, blue for 80, 120 and 40 ms: two, three and one frame of 25 a second.

    In a GIF white, for Pillow writes no clear picture.
    """
    colours = [(255, 0, 0, 255), (255, 255, 255, 255) if format == "GIF" else (0, 255, 0, 0), (0, 0, 255, 255)]
    pictures = [Image.new("RGBA", (32, 32), colour) for colour in colours]
    stream = io.BytesIO()
    pictures[0].save(
        stream, format, save_all=True, append_images=pictures[1:], duration=[80, 120, 40], loop=0, **options
    )
    return stream.getvalue(), [(255, 0, 0)] * 2 + [(255, 255, 255)] * 3 + [(0, 0, 255)]


@pytest.mark.parametrize(
    "format, options, names",
    [
        ("GIF", {}, ("a.gif", "a")),
        ("WEBP", {"lossless": True}, ("a.webp", "a")),
        ("PNG", {"disposal": 1, "blend": 0}, ("a.png", "a.apng", "a")),
        ("AVIF", {"quality": 100}, ("a.avif", "a")),
    ],
)
def test_pictures_that_move(tmp_path, format, options, names):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    data, expected = animation(format, **options)
    for source in ways(tmp_path, data, *names):
        with video_files.read_frames(source) as reader:
            frames = list(reader)
            assert reader.codec == format.lower() and reader.source_fps == 12.5
        assert len(frames) == 6
        for frame, colour in zip(frames, expected):
            assert np.abs(frame.astype(int) - colour).max() <= 3
    assert np.abs(image_files.read_image(tmp_path / names[0]).astype(int) - expected[0]).max() <= 3
    for cut in (len(data) // 2, len(data) - 40):
        with pytest.raises(TalkheadError, match="cut short|not a readable image"):
            list(video_files.read_frames(OneWay(data[:cut])))


@pytest.mark.parametrize(
    "format, suffix",
    [("GIF", ".gif"), ("AVIF", ".avif"), ("WEBP", ".webp"), ("TIFF", ".tif"), ("BMP", ".bmp"), ("PPM", ".ppm")],
)
def test_still_pictures_of_any_kind_are_one_frame(tmp_path, format, suffix):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    stream = io.BytesIO()
    Image.fromarray(np.full((32, 48, 3), [200, 100, 50], np.uint8)).save(stream, format)
    for source in ways(tmp_path, stream.getvalue(), f"a{suffix}", "a"):
        frame = only_frame(source)
        assert frame.shape == (32, 48, 3) and np.abs(frame.astype(int) - [200, 100, 50]).max() <= 4
    toys.write_frames(tmp_path / "face.png", video_files.read_frames(tmp_path / "a"), lossless=None)


def test_avif_without_pillow(tmp_path, monkeypatch):
    """FFmpeg decodes what Pillow cannot: one frame all the same."""
    if not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    stream = io.BytesIO()
    Image.fromarray(np.full((32, 48, 3), [200, 100, 50], np.uint8)).save(stream, "AVIF")
    monkeypatch.setattr(features, "check", lambda name: False)
    for source in ways(tmp_path, stream.getvalue(), "a.avif", "a"):
        assert np.abs(only_frame(source).astype(int) - [200, 100, 50]).max() <= 4
    with pytest.raises(TalkheadError, match="damaged or cut short"):
        image_files.read_image(io.BytesIO(stream.getvalue()[:200]))


def test_photo_in_tiles(tmp_path, case, monkeypatch):
    """Without pillow-heif one line says what to do, whatever the name."""
    data = case("heic_grid_tile/grid.heic").read_bytes()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for source in ways(tmp_path, data, "a.heic", "a"):
        with pytest.raises(TalkheadError, match="a HEIC in tiles; pip install pillow-heif, or convert it to JPEG"):
            video_files.read_frames(source)


def test_photo_in_tiles_is_put_together(tmp_path, case):
    pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    path = case("heic_grid_tile/grid.heic")
    with av.open(str(path)) as container:
        tile = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    for source in ways(tmp_path, path.read_bytes(), "a.heic", "a"):
        frame = only_frame(source)
        assert frame.shape == (1600, 1280, 3) and np.abs(frame[:512, :512] - tile).mean() < 4


# Two channels ---------------------------------------------------------------------------------------------------------


def write_stereo(path, left, right, rate=RATE):
    with wave.open(str(path), "wb") as stream:
        stream.setparams((2, 2, rate, 0, "NONE", ""))
        stream.writeframes((np.stack([left, right], axis=1) * 32767).astype("<i2").tobytes())
    return path


@pytest.mark.parametrize("rate", [RATE, 44100])
@pytest.mark.parametrize("loud", [0, 1])
def test_channels_that_cancel_each_other(tmp_path, rate, loud):
    """One wire of a microphone is crossed: the mean is silence, so the louder channel is heard."""
    speech = np.concatenate([np.zeros(rate // 2), tone(1, rate), np.zeros(rate // 4), tone(0.5, rate)])
    channels = [-0.95 * speech, -0.95 * speech]
    channels[loud] = speech
    side = ("left", "right")[loud]
    with pytest.warns(UserWarning, match=f"left and right cancel each other; the {side} channel is taken") as said:
        samples = audio_files.read_audio(write_stereo(tmp_path / "a.wav", *channels, rate))
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = audio_files.read_audio(write_stereo(tmp_path / "b.wav", speech, speech, rate))
    np.testing.assert_allclose(samples, alone, atol=1e-4)
    assert heard(samples[RATE // 2 : RATE * 3 // 2]) == pytest.approx(0.4, abs=0.01)


@pytest.mark.filterwarnings("error")
def test_channels_that_differ_are_mixed(tmp_path):
    random = np.random.default_rng(0)
    for left, right in [
        (tone(1), 0 * tone(1)),
        (0 * tone(1), tone(1)),
        (tone(1), random.normal(size=RATE) / 20),
        (tone(1), -0.5 * tone(1)),
        (0 * tone(1), 0 * tone(1)),
        (np.where(np.arange(RATE) < 9, 1e-3, tone(1)), np.where(np.arange(RATE) < 9, -1e-3, 0)),
        tuple(random.normal(size=(2, RATE)) / 20),
    ]:
        path = write_stereo(tmp_path / "a.wav", left, right)
        with wave.open(str(path)) as stream:
            expected = np.frombuffer(stream.readframes(RATE), "<i2").reshape(-1, 2).mean(axis=1) / 32768
        np.testing.assert_array_equal(audio_files.read_audio(path), expected.astype(np.float32))


# Kinds of video -------------------------------------------------------------------------------------------------------


def bar(moment):
    """A white bar that moves to the right by 4 pixels in half a frame."""
    picture = np.full((48, 96, 3), 40, np.uint8)
    picture[:, 4 + 4 * moment : 20 + 4 * moment] = 200
    return picture


def write_fields(path, count, interlaced=True, options=None):
    """H.264 whose even rows are half a frame later than its odd rows, and flagged so."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264",
            rate=25,
            options={"crf": "4", **({"x264-params": "bff=1"} if interlaced else {}), **(options or {})},
        )
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv444p"
        for index in range(count):
            picture = bar(2 * index)
            if interlaced:
                picture[::2] = bar(2 * index + 1)[::2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_interlaced_video_is_made_whole(tmp_path, suffix):
    """Each frame is the picture at the time of its first field; the rows between are drawn anew."""
    with pytest.warns(UserWarning, match=f"a{suffix}.*: interlaced; deinterlaced by yadif") as said:
        with video_files.read_frames(write_fields(tmp_path / f"a{suffix}", 8)) as reader:
            frames = list(reader)
    assert len(said) == 1 and len(frames) == 8
    for index, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - bar(2 * index)).mean() < 3
        assert (
            np.abs(bar(2 * index).astype(int) - bar(2 * index + 1)).mean() > 12
        )  # what half of the rows were away from it


@pytest.mark.filterwarnings("error")
def test_other_video_is_left_alone(tmp_path):
    path = write_fields(tmp_path / "a.mp4", 8, interlaced=False)
    with video_files.read_frames(path) as reader, av.open(str(path)) as container:
        for index, (frame, raw) in enumerate(zip(reader, container.decode(video=0))):
            assert np.abs(frame.astype(int) - bar(2 * index)).mean() < 2
            assert np.abs(frame.astype(int) - raw.to_ndarray(format="rgb24")).max() <= 2


@pytest.mark.parametrize("curve, name", [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_hdr_is_said(tmp_path, curve, name):
    path = write_fields(tmp_path / "a.mp4", 5, interlaced=False, options={"color_trc": curve})
    with pytest.warns(
        UserWarning, match=rf"a.mp4: HDR \({name}\) is read as SDR, and looks flat; convert it first"
    ) as said:
        with video_files.read_frames(path) as reader:
            assert len(list(reader)) == 5
    assert len(said) == 1


def test_ogg_files_in_a_row(tmp_path):
    """FFmpeg gives the last packet of the first a negative length, which read as it comes is of a day."""
    (tmp_path / "two.ogg").write_bytes(
        encode(tmp_path / "one.ogg", seconds=1.01, video=None, audio="vorbis").read_bytes() * 2
    )
    one, two = audio_files.read_audio(tmp_path / "one.ogg"), audio_files.read_audio(tmp_path / "two.ogg")
    assert len(two) == pytest.approx(2 * len(one), abs=0.03 * RATE)
    assert heard(two[RATE // 10 : RATE * 9 // 10]) == heard(one[RATE // 10 : RATE * 9 // 10])
    assert heard(two[RATE * 12 // 10 : RATE * 18 // 10]) == pytest.approx(0.4, abs=0.02)


def test_a_rate_of_sound_that_nobody_records(tmp_path):
    data = bytearray(encode(tmp_path / "whole.mkv", seconds=0.4, audio="vorbis").read_bytes())
    head = data.index(b"\x01vorbis")
    data[head + 12 : head + 16] = (1_500_000_000).to_bytes(4, "little")
    (tmp_path / "a.mkv").write_bytes(data)
    for read in (audio_files.read_audio, video_files.read_frames):
        with pytest.raises(TalkheadError, match="a.mkv: damaged, its sound has a rate of 1500000000 Hz"):
            read(tmp_path / "a.mkv")


def test_a_png_from_a_pipe_asks_for_no_more_than_there_is(tmp_path):
    """The length of a chunk may say four gigabytes."""

    class Pipe(OneWay):
        def read(self, size):
            assert size <= 1 << 20
            return super().read(size)

    stream = io.BytesIO()
    Image.new("RGB", (9, 9)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    at = data.index(b"IDAT") - 4
    data[at : at + 4] = b"\xff" * 4
    (tmp_path / "a.png").write_bytes(data)
    with video_files.read_frames(Pipe(bytes(data))) as reader:
        np.testing.assert_array_equal(list(reader), [image_files.read_image(tmp_path / "a.png")])


@pytest.mark.parametrize("damage", ["tables", "strip"])
def test_libtiff_keeps_silent(tmp_path, capfd, damage):
    """Its C code would tell of damage on stderr, beside our line."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(
        tmp_path / "a.tif", compression="tiff_lzw"
    )
    data = bytearray((tmp_path / "a.tif").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200) if damage == "tables" else b"\xff" * 200
    (tmp_path / "a.tif").write_bytes(data)
    with warnings.catch_warnings(), pytest.raises(TalkheadError, match="a.tif: damaged or cut short"):
        warnings.simplefilter("error")
        image_files.read_image(tmp_path / "a.tif")
    assert capfd.readouterr().err == ""
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_pillow_logs_nothing_unasked(tmp_path):
    """A TIFF of 1027 samples to a pixel: in a process of its own, for pytest listens to loggers."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tif")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = data.index(struct.pack("<HHI", 277, 3, 1)) + 8
    data[at : at + 2] = struct.pack("<H", 1027)
    (tmp_path / "a.tif").write_bytes(data)
    code = (
        f"from talkhead import errors, image_files\ntry: image_files.read_image({str(tmp_path / 'a.tif')!r})\n"
        "except errors.TalkheadError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[1])},
    )
    assert done.stdout.endswith("a.tif: not a readable image; pass a PNG or JPEG\n") and done.stderr == ""


def test_sound_of_channels_that_nobody_has(tmp_path):
    (tmp_path / "a.au").write_bytes(struct.pack(">4s5I", b".snd", 24, 258 * 200, 3, 48000, 258) + bytes(258 * 200))
    with pytest.raises(TalkheadError, match="a.au: damaged, its sound of 48000 Hz, 258 channels, cannot be converted"):
        audio_files.read_audio(tmp_path / "a.au")


def test_a_clip_whose_sound_lost_its_head_is_silent(tmp_path):
    """FFmpeg then knows no number of channels, and would make any."""
    data = bytearray(encode(tmp_path / "whole.mkv", seconds=0.4, audio="vorbis", flash=(3,)).read_bytes())
    head = data.index(b"\x01vorbis")
    data[head + 11] = 0
    (tmp_path / "a.mkv").write_bytes(data)
    with video_files.read_frames(tmp_path / "a.mkv") as reader:
        assert reader.sound is None
    assert flashes(tmp_path / "a.mkv") == (10, [3])
    with pytest.raises(TalkheadError, match="a.mkv: has no sound track"):
        audio_files.read_audio(tmp_path / "a.mkv")
