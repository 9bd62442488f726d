"""Video, sound and pictures as people bring them: damaged, joined, cut, and of kinds that few programs write."""

import io
import struct
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from talkhead import files
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


def encode(path, seconds=4.0, video="mpeg4", audio="aac", flash=(25, 50, 75), rate=48000, format=None, options=None):
    """A clip made without the code under test: 25 black pictures a second, white ones at `flash`; a tone of 440 Hz. Returns its path."""
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
            frame.pts, frame.time_base = index, Fraction(1, 25)
            packets += pictures.encode(frame)
        if video:
            packets += pictures.encode(None)
        if audio:
            samples = np.repeat((tone(seconds, rate) * 32767).astype(np.int16), sound.codec_context.channels)
            block = av.AudioFrame.from_ndarray(samples[None], format="s16", layout=sound.codec_context.layout.name)
            block.sample_rate, block.time_base, block.pts = rate, Fraction(1, rate), 0
            packets += sound.encode(block) + sound.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def flashes(source, **options):
    """How many frames there are, and which of them are white."""
    with files.read_frames(source, **options) as reader:
        light = [frame.mean() for frame in reader]
    return len(light), [index for index, value in enumerate(light) if value > 128]


def packets(path, kind):
    """(position in the file, size, moment in seconds) of each packet, as FFmpeg's demuxer tells."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [(packet.pos, packet.size, float(packet.pts * packet.time_base)) for packet in container.demux(stream) if packet.size]


def heard(block):
    """Loudness of 440 Hz in it: 0.4 where the tone of `encode` is whole."""
    time = np.arange(len(block)) / RATE
    return 2 * abs((block * np.exp(-2j * np.pi * 440 * time)).mean())


# Damage ---------------------------------------------------------------------------------------------------------------

def test_damaged_sound_is_silence_of_the_same_length(tmp_path):
    """FFmpeg's AAC decoder fails with several kinds of errors, "operation not permitted" among them."""
    whole = encode(tmp_path / "whole.mp4")
    data, kinds = bytearray(whole.read_bytes()), set()
    random = np.random.default_rng(8)
    damaged = [packet for packet in packets(whole, "audio") if 1 < packet[2] < 1.5 or packet[2] > 3.9]
    for position, size, _ in damaged:
        data[position:position + size] = random.integers(0, 256, size, np.uint8).tobytes()
    (tmp_path / "damaged.mp4").write_bytes(data)
    with av.open(str(tmp_path / "damaged.mp4")) as container:
        for packet in container.demux(audio=0):
            try:
                packet.decode()
            except av.error.FFmpegError as error:
                kinds.add(type(error))
    assert av.error.PermissionError in kinds
    with pytest.warns(UserWarning, match=r"damaged.mp4: damaged at [\d.]+ s; silence is put there") as said:
        samples = files.read_audio(tmp_path / "damaged.mp4")
    assert len(said) == 1 and len(samples) == 4 * RATE
    assert heard(samples[RATE // 10:RATE * 9 // 10]) == pytest.approx(0.4, abs=0.01)
    # What follows has not moved by a sample: 440 Hz rise by 0.07 in one.
    np.testing.assert_allclose(samples[RATE * 2:RATE * 3], files.read_audio(whole)[RATE * 2:RATE * 3], atol=0.07)
    with pytest.warns(UserWarning, match="damaged"), files.read_frames(tmp_path / "damaged.mp4") as reader:
        with files.FrameWriter(tmp_path / "out.mp4", sound=reader.sound) as writer:
            for frame in reader:
                writer.write(frame)
    assert len(files.read_audio(tmp_path / "out.mp4")) == 4 * RATE


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg", "libx264"])
def test_damaged_pictures_are_held(tmp_path, codec):
    whole = encode(tmp_path / "whole.mov", video=codec, audio=None, options={"g": "5", "bf": "0"})
    data, random = bytearray(whole.read_bytes()), np.random.default_rng(0)
    for position, size, moment in packets(whole, "video"):
        if moment > 3.7 or 1.2 < moment < 1.4:
            data[position:position + size] = random.integers(0, 256, size, np.uint8).tobytes()
    (tmp_path / "damaged.mov").write_bytes(data)
    with pytest.warns(UserWarning, match=r"damaged.mov: damaged at 1.\d\d s; the "):
        assert flashes(tmp_path / "damaged.mov") == (100, [25, 50, 75])


def test_damaged_case(case):
    with pytest.warns(UserWarning, match="corrupt.mp4: damaged at"):
        assert len(files.read_audio(case("damaged_packet_errors/corrupt.mp4"))) == 4 * RATE
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
    whole = files.read_audio(path)
    body = last + 27 + data[last + 26]
    page = ogg_page(serial, sequence, 0, granule, data[last + 27:body], data[body:])
    (tmp_path / "b.ogg").write_bytes(data[:last] + page + ogg_page(serial, sequence + 1, 4, granule, lacing))
    samples = files.read_audio(tmp_path / "b.ogg")
    assert len(whole) == 4 * RATE and len(samples) == pytest.approx(4 * RATE, abs=0.02 * RATE)  # FFmpeg keeps what Opus fills up with
    np.testing.assert_array_equal(samples[:RATE * 3], whole[:RATE * 3])


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
                    empty.stream, empty.pts, empty.dts, empty.time_base = stream, packet.pts, packet.dts, packet.time_base
                    packet = empty
                container.mux(packet)
    assert flashes(path) == (10, [4, 5, 6])
    assert flashes(case("ogg_empty_packet/sync.ogv")) == (100, [25, 50, 75])
    assert len(files.read_audio(case("ogg_empty_packet/sync.ogv"))) == pytest.approx(4 * RATE, abs=8)
