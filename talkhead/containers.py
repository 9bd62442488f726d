"""Media containers read through PyAV: packets, decoders, and detection of truncated files."""

import os
import stat
import struct
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from talkhead.errors import TalkheadError
from talkhead.files import FPS, MFRO_BYTES, PIPE_BYTES, STREAM_TAG, Source, is_path, os_errors_in_one_line
from talkhead.image_files import OPEN_OPTIONS
from talkhead.timestamps import LEFT_OUT, RESTART, PacketClock, PictureStamps, lasting

TEXT_ART = {"tty", "bin", "xbin", "adf", "idf"}  # formats by which FFmpeg would play text as a video of a terminal
MAX_SAMPLE_RATE = 1_000_000  # Hz; a higher rate is a damaged header
HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics (ITU-T H.273)
MAX_DRIFT = 0.1  # seconds of audio from its time stamps before silence fills the gap (FFmpeg's threshold)
MAX_MISSING = 0.5  # seconds missing at the end of a clip before it counts as cut short
UNKNOWN_SIZE = 0x7FFF0000  # bytes; programs that write a WAV to a pipe put this length, or a greater one, in its header
PARTS = 3 << 16  # bytes at the end of a file that hold a whole Ogg page or MPEG-PS packet
# GUIDs of ASF's header and data objects
ASF = (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c"))
WAV_BLOCK = 0.02  # seconds of a WAV on a pipe that are read at a time; FFmpeg's default is up to 0.1


class Decoder:
    """Decoder of one audio stream into blocks whose first sample is at time `start`, with gaps filled by silence.

    media    Media that the packets come from
    start    Fraction, seconds on the container's clock; None: the start of the audio
    end      Fraction, seconds on the container's clock; None: the end of the last packet, which codecs may pad
    rate, layout, format  of the blocks: samples per second, "mono" or "stereo", "s16p" or "s32p"
    """

    def __init__(
        self, media: "Media", start: Fraction | None, end: Fraction | None, rate: int, layout: str, format: str
    ) -> None:
        self._media, self._start, self._end, self._rate, self._layout, self._format = (
            media,
            start,
            end,
            rate,
            layout,
            format,
        )
        self._resampler = None
        self._setup = None
        self._fed = Fraction(0)  # seconds given to the resampler since `start`
        self._skip = 0  # samples still to drop: those before `start`
        self._left = None  # samples still to return; None if unknown
        self._exact = False  # place the next frame at its time stamp even if the drift is small
        self._lost = None  # end of the last damaged packet, seconds on the container's clock

    def decode(self, packet: av.Packet) -> Iterator[np.ndarray]:
        """Decode a packet, or the empty one that ends the stream, to an iterator of (channels, n) blocks."""
        for block in self._blocks(packet):
            block = self._trim(block)
            if block.shape[1]:
                yield block

    def _blocks(self, packet):
        frames = _decoded(packet)
        if frames is None and packet.size:
            self._media.conceal(packet, "silence")
            self._lost = _end(packet) or self._lost
        self._exact |= packet.opaque is not None or frames is None
        for frame in frames or ():
            if frame.samples:
                yield from self._frame(frame)
        if _is_end(packet):
            if self._lost is not None and self._setup is not None:
                yield from self._fill(self._lost - self._start - self._fed)
            yield from self._resample(None)

    def _frame(self, frame):
        setup = (frame.format.name, frame.layout.name, frame.sample_rate)
        if setup != self._setup:  # the first frame, or the format changes within the stream
            yield from self._resample(None)
            if self._setup is None:
                yield from self._begin(frame)
            self._setup = setup
            self._restart()
        if frame.pts is not None:
            gap = frame.pts * frame.time_base - self._start - self._fed
            if gap > MAX_DRIFT or self._exact:
                yield from self._fill(gap)
                self._drop(-gap)
        self._exact, self._lost = False, None
        frame.pts = None  # or the resampler would stretch the audio to fit its time stamps; samples are counted here
        self._fed += Fraction(frame.samples, frame.sample_rate)
        yield from self._resample(frame)

    def _fill(self, gap):
        """Flush the resampler and insert `gap` seconds of silence; nothing if it is negative."""
        if gap > 0:
            yield from self._resample(None)
            yield from self._silence(gap)
            self._restart()

    def _drop(self, overlap):
        """Drop the next `overlap` seconds; nothing if it is negative."""
        if overlap > 0:
            self._skip += round(overlap * self._rate)
            self._fed -= overlap

    def _restart(self):
        self._resampler = av.AudioResampler(self._format, self._layout, self._rate)

    def _begin(self, frame):
        """Place the first frame at its time: insert silence before it, or drop the part before `start`."""
        time = (self._start or Fraction(0)) if frame.pts is None else frame.pts * frame.time_base
        self._start = time if self._start is None else self._start
        if self._end is not None:
            self._left = max(round((self._end - self._start) * self._rate), 0)
        early = self._start - time
        if early <= 0:
            yield from self._silence(-early)
        else:
            self._skip = round(early * self._rate)
            self._fed = -early

    def _silence(self, seconds):
        """Yield silence in blocks of at most a second, since a recording may have paused for a day."""
        self._fed += seconds
        dtype = np.int16 if self._format == "s16p" else np.int32
        count = round(seconds * self._rate)
        for start in range(0, count, self._rate):
            yield np.zeros((1 if self._layout == "mono" else 2, min(self._rate, count - start)), dtype)

    def _resample(self, frame):
        if self._resampler is None:
            return []
        try:
            return [out.to_ndarray() for out in self._resampler.resample(frame)]
        except av.error.ArgumentError as error:
            rate, layout = self._setup[2], self._setup[1]
            raise TalkheadError(
                f"{self._media.name}: damaged, its sound of {rate} Hz, {layout}, cannot be converted; make it again"
            ) from error

    def _trim(self, block):
        skipped = min(self._skip, block.shape[1])
        self._skip -= skipped
        block = block[:, skipped:]
        if self._left is not None:
            block = block[:, : self._left]
            self._left -= block.shape[1]
        return block


class PushQueue:
    """FIFO queue of samples, pushed in blocks (channels, n)."""

    _blocks: deque[np.ndarray]

    def __init__(self, channels: int) -> None:
        self._channels, self._blocks, self.size = channels, deque(), 0

    def push(self, block: np.ndarray) -> None:
        self._blocks.append(block)
        self.size += block.shape[1]

    def take(self, count: int) -> np.ndarray:
        """Take the next `count` samples, int16 (n, channels); fewer if the queue holds fewer."""
        taken = []
        while count > 0 and self._blocks:
            block = self._blocks.popleft()
            taken.append(block[:, :count])
            if block.shape[1] > count:
                self._blocks.appendleft(block[:, count:])
            count -= taken[-1].shape[1]
            self.size -= taken[-1].shape[1]
        return np.concatenate(taken, axis=1).T if taken else np.zeros((0, self._channels), np.int16)


class Sound:
    """Audio of a clip whose frames are being read, for a FrameWriter, in constant memory.

    It holds the samples that were read along with the frames and not taken yet. Sample 0 is at the time of the first
    frame.
    """

    def __init__(self, media: "Media") -> None:
        self._media = media
        self._packets: deque[av.Packet] = deque()
        self.rate = media.audio.codec_context.sample_rate
        self.channels = min(media.audio.codec_context.channels, 2)
        layout = "mono" if self.channels == 1 else "stereo"
        self._decoder = Decoder(media, media.origin, media.end(media.audio), self.rate, layout, "s16p")
        self._coming: Iterator[np.ndarray] = iter(())  # blocks of the packet being decoded
        self._decoded = PushQueue(self.channels)

    def _push(self, packet):
        self._packets.append(packet)

    def take(self, count: int, wait: bool = False) -> np.ndarray:
        """Take the next samples, int16 (n, channels): at most `count`, fewer if they have not been read yet.

        wait  read on (past frames) until there are `count`, or the clip ends
        """
        while self._decoded.size < count:
            block = next(self._coming, None)
            if block is not None:
                self._decoded.push(block)
            elif self._packets:
                self._coming = self._decoder.decode(self._packets.popleft())
            elif not (wait and self._media.read_on()):
                break
        return self._decoded.take(count)


def _low_latency_options(head):
    """FFmpeg options for low latency on a pipe."""
    options = {"fpsprobesize": "1"}  # or FFmpeg waits for twenty frames to estimate a rate that the header gives
    if _is_wave(head):
        rate, block = _number(head[28:32]), _number(head[32:34])  # bytes per second, bytes per sample of all channels
        # The header suffices: probe no further.
        options |= {"probesize": "2048", "max_size": str(max(int(rate * WAV_BLOCK), block, 1))}
    return options


def _declared_length(read):
    """File size in bytes by the file's own header; None if it is not recorded.

    read  function read(position, count) that returns the bytes at a position; fewer at the end, or far into a pipe
    """
    head = read(0, 44)
    if _is_wave(head):
        return 44 + _number(head[40:44]) if head[36:40] == b"data" and 0 < _number(head[40:44]) < UNKNOWN_SIZE else None
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        end = 0
        while read(end, 4) == b"RIFF":  # one chunk for each gigabyte
            size = _number(read(end + 4, 4))
            if not 0 < size < UNKNOWN_SIZE:
                return None
            end += 8 + size + size % 2
        return end
    if head[:4] == b"\x1a\x45\xdf\xa3":  # Matroska and WebM, RFC 8794: a header, then one segment
        segment = _ebml_end(read, 0)
        return _ebml_end(read, segment) if segment is not None and read(segment, 4) == b"\x18\x53\x80\x67" else None
    if head[:16] == ASF[0]:
        start = _number(head[16:24])
        name_and_size = read(start, 24)
        return start + _number(name_and_size[16:]) if name_and_size[:16] == ASF[1] else None
    if head[:3] == b"FLV":
        found = read(0, 2048).partition(b"\x00\x08filesize\x00")[2]
        return int(struct.unpack(">d", found[:8])[0]) or None if len(found) >= 8 else None
    start = (
        10 + sum((byte & 127) << 7 * (3 - index) for index, byte in enumerate(head[6:10])) if head[:3] == b"ID3" else 0
    )
    frame = read(start, 60)
    if frame[:1] == b"\xff" and frame[1:2] >= b"\xe0":  # MP3, whose first frame may be a Xing header without audio
        found = max(frame.find(b"Xing"), frame.find(b"Info"))
        flags = int.from_bytes(frame[found + 4 : found + 8], "big")
        if found > 0 and flags & 2:
            numbers = found + 8 + 4 * (flags & 1)
            return start + int.from_bytes(frame[numbers : numbers + 4], "big")
    return None


def _ebml_end(read, start):
    """End of the Matroska element, with a four-byte ID, that begins at `start`; None if its size is not recorded."""
    field = read(start + 4, 8)
    length = 9 - field[0].bit_length() if field and field[0] else 9
    size = int.from_bytes(field[:length], "big") & (1 << 7 * length) - 1
    return None if length > len(field) or size == (1 << 7 * length) - 1 else start + 4 + length + size


def _last_part(data, mark, size):
    """Start and end of the last page or packet of a file, as offsets in `data`; the end is past `data` if it was cut.

    data     the last bytes of the file
    mark     first bytes of each page or packet
    size     function of `data` and an offset: length of the page or packet there, or 0 if none begins there
    returns  (start, end), or None if pages do not follow each other to the end
    """
    start = data.find(mark)
    while start >= 0:
        last, end = start, start + size(data, start)
        while last < end < len(data):
            last, end = end, end + size(data, end)
        if last < end:
            return last, end
        start = data.find(mark, start + 1)
    return None


def _ogg_page(data, at):
    """Length of the Ogg page at an offset (RFC 3533), 0 if none; of a page cut in its header, a lower bound."""
    head = data[at : at + 27 + 255]
    if head[:4] != b"OggS"[: len(head)]:
        return 0
    return 27 if len(head) < 27 else 27 + head[26] + sum(head[27 : 27 + head[26]])


def _ps_packet(data, at):
    """Length of the MPEG-PS packet at an offset (ISO/IEC 13818-1, 11172-1), 0 if none; a padding zero counts as one.

    Of a packet cut in its header, a lower bound.
    """
    head = data[at : at + 14]
    if head[:3] == bytes(len(head[:3])):
        return 1
    if head[:3] != b"\0\0\1" or len(head) > 3 and head[3] < 0xB9:
        return 0
    if head[3:4] == b"\xb9":  # the end
        return 4
    if head[3:4] == b"\xba":
        return 12 if len(head) > 4 and head[4] >> 6 == 0 else 14 + (head[13] & 7 if len(head) == 14 else 0)
    length = int.from_bytes(head[4:6], "big")
    return 6 + length if length or len(head) < 6 else 0  # 0: unknown length


PARTED = {"ogg": (b"OggS", _ogg_page), "mpeg": (b"\0\0\1", _ps_packet)}  # by FFmpeg's name of the format


def _is_wave(head):
    return len(head) >= 44 and head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt "


def _number(data):
    return int.from_bytes(data, "little")


@contextmanager
def open_source(
    source: str | os.PathLike | BinaryIO, on_wait: Callable[[], None] | None = None
) -> Iterator[Path | Source]:
    """Open an input for FFmpeg: the Path of a regular file, or a Source around anything that is not seekable."""
    if not is_path(source):
        yield Source(source, on_wait)  # type: ignore[arg-type]  # no path
        return
    with os_errors_in_one_line(source):
        stream = open(source, "rb", buffering=0)  # Python's error for a folder or a missing file
    with stream:
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            if not stream.read(1):
                raise TalkheadError(f"{source}: empty; pass a complete file")
            yield Path(source)
        else:
            yield Source(stream, on_wait)


def _decoded(packet):
    """Decode the frames of a packet; None if it is empty (no new frame) or damaged.

    FFmpeg's decoders fail with errors of every kind, even "permission denied"; FFmpeg's program continues after each.
    """
    if packet.size == 0 and not _is_end(packet):
        return None
    try:
        return packet.decode()
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError:
        return None


def _is_end(packet):
    return packet.size == 0 and not packet.buffer_ptr  # an empty packet within the stream has a buffer


def _end(packet, shown=True):
    """End of a packet in presentation (`shown`) or decoding time, Fraction in seconds; None if unknown."""
    stamp = packet.pts if shown else packet.dts
    return None if stamp is None else stamp * packet.time_base + lasting(packet)


class Media:
    """A media container opened by FFmpeg, with its packets in file order.

    source   Path or Source, from open_source
    name     name of the source in messages
    """

    # Streams or None; PyAV declares most of what they record as optional.
    video: Any
    audio: Any
    sound: Sound | None
    _container: Any
    _packets: Any

    def __init__(self, source: Path | Source, name: str) -> None:
        self.name = name
        self._stack = ExitStack()
        self._source = source if isinstance(source, Source) else None
        url = self._source or f"file:{source}"  # a path may contain a colon
        head = b"" if self._source is None else self._source.look(0, 44)
        low_latency = {} if self._source is None else _low_latency_options(head)
        if self._source is not None and head[:4] in (b"OggS", b"\0\0\1\xba"):
            self._source.kept = PARTS
        self._declared = _declared_length(self._peek)  # bytes; FFmpeg does not report it
        start = self._peek(0, 400)
        # Packet size of MPEG-TS in bytes
        self._ts_packet = next((size for size in (188, 192) if start[size - 188 :: size][:2] == b"GG"), None)
        try:
            # Files only: a playlist must not cause network access.
            options = {"protocol_whitelist": "file"} | low_latency
            self._container = av.open(url, options=options, **OPEN_OPTIONS)
        except (av.error.FFmpegError, ValueError) as error:
            self._refuse(error)
        self._stack.callback(self._container.close)
        if self._container.format.name in TEXT_ART:
            self.close()
            raise TalkheadError(f"{self.name}: not a video or a sound file; pass one that FFmpeg can read")
        self.metadata = dict(self._container.metadata)
        self._is_stream = self.metadata.pop(STREAM_TAG, None) is not None
        streams = self._container.streams
        # A music file's cover image is no video. A phone may add an audio track in a proprietary format.
        videos = (
            s for s in streams.video if s.codec_context and not s.disposition & av.stream.Disposition.attached_pic
        )
        audios = (
            s for s in streams.audio if s.codec_context and s.codec_context.sample_rate and s.codec_context.channels
        )
        self.video, self.audio = next(videos, None), next(audios, None)
        if self.audio is not None and self.audio.codec_context.sample_rate > MAX_SAMPLE_RATE:
            self.close()
            raise TalkheadError(
                f"{self.name}: damaged, its sound has a rate of {self.audio.codec_context.sample_rate} Hz; "
                "make it again"
            )
        self.sound = None
        self._packets = None
        self._warned: set[str] = set()  # messages given so far
        self._reached: dict[
            int, Fraction
        ] = {}  # {stream index: Fraction, end of its packets so far, seconds on the container's clock}

    def _peek(self, position, count):
        """Read the bytes at a position without consuming them; of a pipe only near its start."""
        if self._source is not None:
            return self._source.look(position, count) if position < PIPE_BYTES else b""
        if position >= os.path.getsize(self.name):  # a damaged offset may be too large for seek
            return b""
        with open(self.name, "rb") as stream:
            stream.seek(position)
            return stream.read(count)

    def _refuse(self, error):
        if self._source is not None and not self._source.tail:
            raise TalkheadError(f"{self.name}: empty; the command before it failed") from error
        # Some formats need a seekable file.
        fix = "pass one that FFmpeg can read" if self._source is None else "pass a file by its name"
        raise TalkheadError(f"{self.name}: not a video or a sound file, or damaged; {fix}") from error

    @property
    def origin(self) -> Fraction:
        """Time of the first frame, Fraction in seconds on the container's clock; without video, of the first audio."""
        stream = self.video or self.audio
        return Fraction(0) if stream.start_time is None else stream.start_time * stream.time_base

    def packets(self, video: bool = True) -> Iterator[av.Packet]:
        """Yield audio and video packets, and at the end an empty one of each stream; raise if the file is cut short.

        video   False yields no video packets, but still reads them: they keep the audio's clock in step
        """
        restarts = bool(self._container.format.flags & av.format.Flags.ts_discont.value)
        streams = [stream for stream in (self.video, self.audio) if stream is not None]
        reached = self._reached = dict.fromkeys((stream.index for stream in streams), Fraction(0))
        starts: dict = {
            stream.index: None if stream.start_time is None else stream.start_time * stream.time_base
            for stream in streams
        }
        if not restarts and None not in starts.values():  # a stream that begins late counts as paused until then
            starts = dict.fromkeys(starts, min(starts.values(), default=None))
        clock = self._clock = PacketClock(
            restarts, starts, self.video.index if self.video in streams else None, self.warn
        )
        try:
            for packet in chain.from_iterable(map(clock.mend, self._container.demux(streams))):
                end = _end(packet)
                if end is not None:
                    reached[packet.stream.index] = max(reached[packet.stream.index], end)
                if video or packet.stream.index != getattr(self.video, "index", None):
                    yield packet
        # LookupError is PyAV's, for a stream that appears late.
        except (av.error.FFmpegError, ValueError, OSError, LookupError) as error:
            raise TalkheadError(f"{self.name}: damaged or cut short; make it again") from error
        if self._source is not None:
            self._source.drain()
        if self._is_stream:
            if self._tail(MFRO_BYTES)[4:8] != b"mfro":
                raise TalkheadError(f"{self.name}: cut short; the command that wrote it failed")
        elif self._falls_short(streams, reached):
            keep = "" if self._source is not None else ", or keep the readable part with ffmpeg -i IN -c copy OUT"
            raise TalkheadError(f"{self.name}: cut short; copy it again{keep}")

    def conceal(self, packet: av.Packet | av.frame.Frame, replacement: str) -> None:
        """Warn that a packet or frame is damaged and replaced."""
        stamp = packet.dts if packet.pts is None else packet.pts
        # Our own stream on a pipe is cut short rather than damaged: an error, raised at its end.
        if not self._is_stream:
            moment: Any = None if stamp is None else stamp * packet.time_base  # type: ignore[operator]
            self.warn(f"damaged; {replacement} is put there", moment)

    def warn(self, message: str, moment: Fraction | None = None) -> None:
        """Issue a warning, once for each message; moment: seconds on the container's clock where the problem begins."""
        if message not in self._warned:
            self._warned.add(message)
            place = "" if moment is None else f", {max(float(moment - self.origin), 0):.2f} s"
            warnings.warn(f"{self.name}{place}: {message}", stacklevel=2)

    def _falls_short(self, streams, reached):
        """True if packets end long before the end that the file's header declares, which FFmpeg does not report."""
        kind = self._container.format.name
        # FFmpeg trusts the file's size rather than a WAV's header.
        if kind == "wav" and self._source is None:
            with open(self.name, "rb") as stream:
                declared = int.from_bytes(stream.read(8)[4:], "little")
            return declared < UNKNOWN_SIZE and declared + 8 > os.path.getsize(self.name) + 1
        size = os.path.getsize(self.name) if self._source is None else self._source.count
        if (
            self._declared is not None
            and size + 1 < self._declared
            or kind == "mpegts"
            and self._ts_packet
            and size % self._ts_packet
        ):
            return True
        data = self._tail(PARTS) if kind in PARTED else b""
        last = _last_part(data, *PARTED[kind]) if data and len(data) == min(size, PARTS) else None
        if last is not None and last[1] > len(data):
            return True
        if kind == "ogg" and last is not None and not data[last[0] + 5] & 4:
            self.warn("its last page is not marked as the last; later parts, if any, are missing")
        ends = {stream.index: self.end(stream) for stream in streams}
        return LEFT_OUT not in self._warned and any(
            end is not None and end - reached[index] > MAX_MISSING for index, end in ends.items()
        )

    def end(self, stream: av.stream.Stream) -> Fraction | None:
        """End of a stream by the file's header, Fraction in seconds on the container's clock; None if not recorded."""
        kind = self._container.format.name.split(",")[0]
        # In other formats, and in a fragmented MP4 (without a sample table), the duration is an estimate.
        if not stream.duration or not (kind in ("flac", "wav") or kind == "mov" and stream.frames):
            return None
        seconds: Any = stream.duration * stream.time_base  # type: ignore[operator]  # every stream has one
        if kind == "wav" and seconds * stream.codec_context.bit_rate / 8 > UNKNOWN_SIZE:
            return None
        return (stream.start_time or 0) * stream.time_base + seconds  # type: ignore[operator]

    def _tail(self, count):
        """Last `count` bytes of a file; of a pipe, the last ones kept."""
        if self._source is not None:
            return self._source.tail
        with open(self.name, "rb") as stream:
            stream.seek(-min(count, os.path.getsize(self.name)), os.SEEK_END)
            return stream.read()

    def begin(self) -> None:
        """Start reading frames, and the audio with them."""
        self.sound = None if self.audio is None else Sound(self)
        self._packets = self.packets()

    def read_on(self) -> bool:
        """Read one more packet, keeping its audio and skipping its frames; False at the end."""
        packet = next(self._packets, None)
        if packet is not None and packet.stream.index == self.audio.index:
            self.sound._push(packet)  # type: ignore[union-attr]  # set by `begin`
        return packet is not None

    def frames(self) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        """Decode frames: (Fraction seconds after the first frame, Fraction duration in seconds, av.VideoFrame)."""
        rate = self.video.average_rate or self.video.guessed_rate or Fraction(25)
        rate = rate if rate * RESTART > 1 else Fraction(FPS)  # a lower rate comes from wrong time stamps
        end, origin = Fraction(0), self.origin
        stamps = PictureStamps(shown=self._container.format.name != "avi")

        def plausible(time):
            """The time itself, or the end of the frames so far if it is a jump ahead without audio there."""
            if time - end <= RESTART or self._clock.is_pause(self.video.index, time + origin, end + origin):
                return time
            self.warn(LEFT_OUT, end + origin)
            return end

        damaged = []  # packets still to be warned of
        # Start and end of the packet that ends last, with or without a frame; time and frame of the last decoded frame.
        until: Any = (Fraction(0), Fraction(0))
        last: tuple[Fraction, av.VideoFrame] | None = None
        for packet in self._packets:
            if packet.stream.index != self.video.index:
                if self.sound is not None:
                    self.sound._push(packet)
                continue
            frames = _decoded(packet)
            if frames is None and packet.size:  # the frame before it is repeated
                damaged.append(packet)
            if last is not None or frames:  # without any frame, the reader raises an error instead
                while damaged:
                    self.conceal(damaged.pop(0), "the frame before")
            stamps.sent(packet)
            stop = _end(packet, stamps.shown) if not packet.is_discard else None
            if stop is not None:
                until = max(until, (stop - lasting(packet) - origin, stop - origin))
            for frame in frames or ():
                if frame.is_corrupt:
                    self.conceal(frame, "the decoder's guess")
                stamp = stamps.of(frame)
                time = end if stamp is None else plausible(stamp * frame.time_base - origin)
                lasts = (frame.duration or 0) * frame.time_base
                lasts = lasts if 0 < lasts <= RESTART else 1 / rate
                end = time + lasts
                last = time, frame
                if frame.color_trc in HDR:
                    self.warn(f"HDR ({HDR[frame.color_trc]}) is read as SDR, and looks flat; convert it first")
                yield time, lasts, frame
        until = end if last is None else plausible(until[1])
        if self._container.format.name == "ogg":
            # Theora's encoders omit repeated frames, also at the end: the last frame lasts as long as the audio.
            until = max(until, min(max(self._reached.values()) - origin, end + Fraction(MAX_MISSING)))
        if last is not None and until > end:
            time, frame = last
            yield time, until - time, frame

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> "Media":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
