"""Media containers through PyAV: packets, decoders, and whether a stream is whole."""

import os
import stat
import struct
import warnings
from collections import deque
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np

from talkhead.errors import TalkheadError
from talkhead.files import FPS, PIPE, STREAM_TAG, TAIL, Source, is_path, os_errors_in_one_line
from talkhead.timestamps import LEFT_OUT, RESTART, PacketClock, PictureStamps, lasting

TEXT_ART = {"tty", "bin", "xbin", "adf", "idf"}  # FFmpeg would play a text file as a video of a terminal
FASTEST = 1_000_000  # samples per second that anybody records
HDR = {16: "PQ", 18: "HLG"}  # FFmpeg's numbers of these curves (ITU-T H.273)
GAP = (
    0.1  # seconds by which sound may drift from its time stamps before silence fills the hole (FFmpeg's own threshold)
)
SHORT = 0.5  # seconds that may be missing at the end of a clip before it counts as cut short
UNKNOWN_SIZE = 0x7FFF0000  # bytes: who writes a WAV to a pipe puts such a length, or a greater one, in its head
PARTS = (
    3 << 16
)  # bytes: of Ogg's pages and MPEG-PS's packets, which are shorter than a third, whole ones lie in the last so many
ASF = (
    bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c"),
)  # names of its head and its data
SOON = 0.02  # seconds of a WAV on a pipe that are read at a time; FFmpeg's own choice is up to a tenth


class Decoder:
    """Decodes one sound stream into blocks whose first sample is at the moment `start`, holes filled with silence.

    media    the Media that the packets are of
    start    Fraction, seconds on the container's clock; None: where the sound starts
    end      Fraction, the same where it ends; None: with the last packet, which codecs fill up
    rate, layout, format  of the blocks: samples per second, "mono" or "stereo", "s16p" or "s32p"
    """

    def __init__(self, media, start, end, rate, layout, format):
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
        self._fed = Fraction(0)  # seconds given to the resampler, from `start`
        self._skip = 0  # samples still to drop: those before `start`
        self._left = None  # samples still to give; None if there is no knowing
        self._exact = False  # whether the next frame is to be put at its time stamp even where it is off by little
        self._lost = None  # seconds on the container's clock where the last damaged packet ends

    def decode(self, packet):
        """A packet, or the one that ends the stream, to (channels, n) blocks, one after the other."""
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
        if setup != self._setup:  # the first frame, or a stream that changes its mind
            yield from self._resample(None)
            if self._setup is None:
                yield from self._begin(frame)
            self._setup = setup
            self._restart()
        if frame.pts is not None:
            hole = frame.pts * frame.time_base - self._start - self._fed
            if hole > GAP or self._exact:
                yield from self._fill(hole)
                self._drop(-hole)
        self._exact, self._lost = False, None
        frame.pts = None  # the resampler would stretch the sound to meet time stamps; samples are counted here
        self._fed += Fraction(frame.samples, frame.sample_rate)
        yield from self._resample(frame)

    def _fill(self, hole):
        """Put silence for so many seconds, none where it is negative, after what the resampler still has."""
        if hole > 0:
            yield from self._resample(None)
            yield from self._silence(hole)
            self._restart()

    def _drop(self, overlap):
        """Leave out so many seconds, none where it is negative, of what comes next."""
        if overlap > 0:
            self._skip += round(overlap * self._rate)
            self._fed -= overlap

    def _restart(self):
        self._resampler = av.AudioResampler(self._format, self._layout, self._rate)

    def _begin(self, frame):
        """Put the first frame at its time: silence before it, or the part before `start` dropped."""
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
        """Silence in blocks of at most a second: a recording may have paused for a day."""
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
                f"{self._media.name}: damaged, its sound of {rate} samples a second, {layout}, cannot be converted; make it again"
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
    """Blocks of samples (channels, n) that wait to be taken, in order."""

    def __init__(self, channels):
        self._channels, self._blocks, self.size = channels, deque(), 0

    def push(self, block):
        self._blocks.append(block)
        self.size += block.shape[1]

    def take(self, count):
        """The next samples, int16 (n, channels): `count`, or fewer if there are no more."""
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
    """The sound of a clip whose frames are being read, for a FrameWriter to pass on. Memory stays flat.

    It comes with the frames: it holds what has been read along with them and not been taken yet. Sample 0 is heard when the
    first frame is shown.
    """

    def __init__(self, media):
        self._media = media
        self._packets = deque()
        self.rate = media.audio.codec_context.sample_rate
        self.channels = min(media.audio.codec_context.channels, 2)
        layout = "mono" if self.channels == 1 else "stereo"
        self._decoder = Decoder(media, media.origin, media.end(media.audio), self.rate, layout, "s16p")
        self._coming = iter(())  # blocks of the packet being decoded
        self._decoded = PushQueue(self.channels)

    def _push(self, packet):
        self._packets.append(packet)

    def take(self, count, wait=False):
        """The next samples, int16 (n, channels): at most `count`, and fewer if they have not come yet.

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
    """Options with which FFmpeg hands on what comes through a pipe soon."""
    # A pipe's frames come as they are made: do not wait for twenty of them to guess a rate that each one tells.
    options = {"fpsprobesize": "1"}
    if _is_wave(head):
        rate, block = _number(head[28:32]), _number(head[32:34])  # bytes a second, bytes of a moment
        options |= {
            "probesize": "2048",
            "max_size": str(max(int(rate * SOON), block, 1)),
        }  # its head tells all: look no further
    return options


def _declared_length(read):
    """How many bytes a file says that it has; None where it does not know, or is of a kind that does not tell.

    read  gives the bytes at a position: read(position, count); fewer, or none, where there are no more or one cannot look so far
    """
    head = read(0, 44)
    if _is_wave(head):
        return 44 + _number(head[40:44]) if head[36:40] == b"data" and 0 < _number(head[40:44]) < UNKNOWN_SIZE else None
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        end = 0
        while read(end, 4) == b"RIFF":  # one for each gigabyte
            size = _number(read(end + 4, 4))
            if not 0 < size < UNKNOWN_SIZE:
                return None
            end += 8 + size + size % 2
        return end
    if head[:4] == b"\x1a\x45\xdf\xa3":  # Matroska and WebM, RFC 8794: a head, then one segment
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
    if frame[:1] == b"\xff" and frame[1:2] >= b"\xe0":  # MP3, whose first frame may hold no sound but Xing's numbers
        found = max(frame.find(b"Xing"), frame.find(b"Info"))
        flags = int.from_bytes(frame[found + 4 : found + 8], "big")
        if found > 0 and flags & 2:
            numbers = found + 8 + 4 * (flags & 1)
            return start + int.from_bytes(frame[numbers : numbers + 4], "big")
    return None


def _ebml_end(read, start):
    """Where the element that starts there ends, of Matroska's with four bytes of name; None if that was not known when it was written."""
    field = read(start + 4, 8)
    length = 9 - field[0].bit_length() if field and field[0] else 9
    size = int.from_bytes(field[:length], "big") & (1 << 7 * length) - 1
    return None if length > len(field) or size == (1 << 7 * length) - 1 else start + 4 + length + size


def _last_part(data, mark, size):
    """The last of the pages or packets with which a file ends: where it begins and ends in `data`; past its end, if it was cut.

    data     the last bytes of the file
    mark     with which each of them begins
    size     gives the length of one that begins at a position of `data`, or 0 if none does
    returns  None where they do not follow each other to the end
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
    """Its length, RFC 3533; of one cut in its head at least so much."""
    head = data[at : at + 27 + 255]
    if head[:4] != b"OggS"[: len(head)]:
        return 0
    return 27 if len(head) < 27 else 27 + head[26] + sum(head[27 : 27 + head[26]])


def _ps_packet(data, at):
    """Its length, ISO/IEC 13818-1 and 11172-1; of one cut in its head at least so much. A zero between them counts as one."""
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
    return 6 + length if length or len(head) < 6 else 0  # of unknown length


PARTED = {"ogg": (b"OggS", _ogg_page), "mpeg": (b"\0\0\1", _ps_packet)}  # by FFmpeg's name of the format


def _is_wave(head):
    return len(head) >= 44 and head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt "


def _number(data):
    return int.from_bytes(data, "little")


@contextmanager
def open_source(source, on_wait=None):
    """What FFmpeg is to open: the path of a file, or a Source around anything that has no position."""
    if not is_path(source):
        yield Source(source, on_wait)
        return
    with os_errors_in_one_line(source):
        stream = open(source, "rb", buffering=0)  # Python's error for a folder or a missing file
    with stream:
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            if not stream.read(1):
                raise TalkheadError(f"{source}: empty; pass a whole file")
            yield Path(source)
        else:
            yield Source(stream, on_wait)


def _decoded(packet):
    """The frames of a packet; None where it holds none, because it is empty ("nothing new here") or damaged.

    FFmpeg's decoders fail with errors of every kind, "permission denied" among them; its own program goes on after each.
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
    return packet.size == 0 and not packet.buffer_ptr  # an empty packet has a place in memory


def _end(packet, shown=True):
    """Fraction, seconds on the container's clock where a packet ends, as it is shown or decoded; None where it does not tell."""
    stamp = packet.pts if shown else packet.dts
    return None if stamp is None else stamp * packet.time_base + lasting(packet)


class Media:
    """A container that FFmpeg opened, and its packets in the order in which they come.

    source   as open_source gives it
    """

    def __init__(self, source, name):
        self.name = name
        self._stack = ExitStack()
        self._source = source if isinstance(source, Source) else None
        place = self._source or f"file:{source}"  # a name may hold a colon
        head = b"" if self._source is None else self._source.look(0, 44)
        hurry = {} if self._source is None else _low_latency_options(head)
        if self._source is not None and head[:4] in (b"OggS", b"\0\0\1\xba"):
            self._source.kept = PARTS
        self._promised = _declared_length(self._peek)  # of this, FFmpeg tells nothing
        start = self._peek(0, 400)
        self._unit = next(
            (size for size in (188, 192) if start[size - 188 :: size][:2] == b"GG"), None
        )  # bytes of a packet of MPEG-TS
        try:
            # Files only: a playlist must not make us fetch things.
            options = {"protocol_whitelist": "file"} | hurry
            self._container = av.open(place, metadata_errors="replace", options=options)
        except (av.error.FFmpegError, ValueError) as error:
            self._refuse(error)
        self._stack.callback(self._container.close)
        if self._container.format.name in TEXT_ART:
            self.close()
            raise TalkheadError(f"{self.name}: not a video or a sound file; pass one that FFmpeg can read")
        self.metadata = dict(self._container.metadata)
        self._is_stream = self.metadata.pop(STREAM_TAG, None) is not None
        streams = self._container.streams
        # A music file's cover picture is no video; a phone may add a sound track in a format of its own that nobody decodes.
        shown = (s for s in streams.video if s.codec_context and not s.disposition & av.stream.Disposition.attached_pic)
        heard = (
            s for s in streams.audio if s.codec_context and s.codec_context.sample_rate and s.codec_context.channels
        )
        self.video, self.audio = next(shown, None), next(heard, None)
        if self.audio is not None and self.audio.codec_context.sample_rate > FASTEST:
            self.close()
            raise TalkheadError(
                f"{self.name}: damaged, its sound has {self.audio.codec_context.sample_rate} samples a second; make it again"
            )
        self.sound = None
        self._packets = None
        self._told = set()
        self._reached = {}  # by index of stream: Fraction, seconds on the container's clock where its packets end so far

    def _peek(self, position, count):
        """The bytes at a position, of a pipe only near its start."""
        if self._source is not None:
            return self._source.look(position, count) if position < PIPE else b""
        if position >= os.path.getsize(self.name):  # beyond what a file may have, there is no looking
            return b""
        with open(self.name, "rb") as stream:
            stream.seek(position)
            return stream.read(count)

    def _refuse(self, error):
        if self._source is not None and not self._source.tail:
            raise TalkheadError(f"{self.name}: empty; the command before it failed") from error
        cure = (
            "pass one that FFmpeg can read" if self._source is None else "pass a file by its name"
        )  # some cannot be read in order
        raise TalkheadError(f"{self.name}: not a video or a sound file, or damaged; {cure}") from error

    @property
    def origin(self):
        """Fraction, seconds on the container's clock: when the first picture is shown."""
        stream = self.video or self.audio
        return Fraction(0) if stream.start_time is None else stream.start_time * stream.time_base

    def packets(self, pictures=True):
        """Packets of sound and pictures, and at the end an empty one of each; then checks that the end was the end."""
        restarts = bool(self._container.format.flags & av.format.Flags.ts_discont.value)
        # Where the clock starts again, or pauses, the sound keeps step with the pictures also when they are not wanted.
        streams = [stream for stream in (self.video, self.audio) if stream is not None]
        reached = self._reached = dict.fromkeys((stream.index for stream in streams), Fraction(0))
        starts = {
            stream.index: None if stream.start_time is None else stream.start_time * stream.time_base
            for stream in streams
        }
        if not restarts and None not in starts.values():  # a stream that begins late does so as after a pause
            starts = dict.fromkeys(starts, min(starts.values(), default=None))
        clock = self._clock = PacketClock(
            restarts, starts, self.video.index if self.video in streams else None, self.tell
        )
        try:
            for packet in chain.from_iterable(map(clock.mend, self._container.demux(streams))):
                end = _end(packet)
                if end is not None:
                    reached[packet.stream.index] = max(reached[packet.stream.index], end)
                if pictures or packet.stream.index != getattr(self.video, "index", None):
                    yield packet
        except (
            av.error.FFmpegError,
            ValueError,
            OSError,
            LookupError,
        ) as error:  # the last: PyAV's, of a stream that shows up late
            raise TalkheadError(f"{self.name}: damaged or cut short; make it again") from error
        if self._source is not None:
            self._source.drain()
        if self._is_stream:
            if self._tail(TAIL)[4:8] != b"mfro":
                raise TalkheadError(f"{self.name}: cut short; the command that wrote it failed")
        elif self._falls_short(streams, reached):
            keep = "" if self._source is not None else ", or keep what is there with ffmpeg -i IN -c copy OUT"
            raise TalkheadError(f"{self.name}: cut short; copy it again{keep}")

    def conceal(self, packet, by):
        """Say that what a packet or frame holds is damaged, and by what it is replaced."""
        stamp = packet.dts if packet.pts is None else packet.pts
        if (
            not self._is_stream
        ):  # a stream of our own is not damaged but cut short, and that is an error, said at its end
            self.tell(f"damaged; {by} is put there", None if stamp is None else stamp * packet.time_base)

    def tell(self, what, moment=None):
        """Warn of something found while reading, once; moment: seconds on the container's clock where it begins."""
        if what not in self._told:
            self._told.add(what)
            place = "" if moment is None else f", {max(float(moment - self.origin), 0):.2f} s"
            warnings.warn(f"{self.name}{place}: {what}", stacklevel=2)

    def _falls_short(self, streams, reached):
        """Whether packets ended long before the end that the file's own head promises. FFmpeg would take it for the end."""
        kind = self._container.format.name
        if (
            kind == "wav" and self._source is None
        ):  # FFmpeg knows the file's size, and believes that instead of the head
            with open(self.name, "rb") as stream:
                promised = int.from_bytes(stream.read(8)[4:], "little")
            return promised < UNKNOWN_SIZE and promised + 8 > os.path.getsize(self.name) + 1
        size = os.path.getsize(self.name) if self._source is None else self._source.count
        if (
            self._promised is not None
            and size + 1 < self._promised
            or kind == "mpegts"
            and self._unit
            and size % self._unit
        ):
            return True
        data = self._tail(PARTS) if kind in PARTED else b""
        last = _last_part(data, *PARTED[kind]) if data and len(data) == min(size, PARTS) else None
        if last is not None and last[1] > len(data):
            return True
        if kind == "ogg" and last is not None and not data[last[0] + 5] & 4:
            self.tell("its last page is not marked as the last; what comes after it, if anything, is missing")
        promised = {stream.index: self.end(stream) for stream in streams}
        return LEFT_OUT not in self._told and any(
            end is not None and end - reached[index] > SHORT for index, end in promised.items()
        )

    def end(self, stream):
        """Fraction, seconds on the container's clock where the file's own head says that a stream ends; None where it does not."""
        kind = self._container.format.name.split(",")[0]
        # Of other kinds the duration is a guess, and so it is where MP4 has no table of its samples because it comes in fragments.
        if not stream.duration or not (kind in ("flac", "wav") or kind == "mov" and stream.frames):
            return None
        seconds = stream.duration * stream.time_base
        if kind == "wav" and seconds * stream.codec_context.bit_rate / 8 > UNKNOWN_SIZE:
            return None
        return (stream.start_time or 0) * stream.time_base + seconds

    def _tail(self, count):
        """The last bytes, of a pipe at most as many as are kept."""
        if self._source is not None:
            return self._source.tail
        with open(self.name, "rb") as stream:
            stream.seek(-min(count, os.path.getsize(self.name)), os.SEEK_END)
            return stream.read()

    def begin(self):
        """Start reading frames, and the sound with them."""
        self.sound = None if self.audio is None else Sound(self)
        self._packets = self.packets()

    def read_on(self):
        """Read one packet past the frames wanted, keeping sound; False at the end."""
        packet = next(self._packets, None)
        if packet is not None and packet.stream.index == self.audio.index:
            self.sound._push(packet)
        return packet is not None

    def pictures(self):
        """Decoded frames as (seconds after the first picture: Fraction, seconds it lasts: Fraction, av.VideoFrame)."""
        rate = self.video.average_rate or self.video.guessed_rate or Fraction(25)
        rate = rate if rate * RESTART > 1 else Fraction(FPS)  # of pictures whose stamps are wrong
        end, origin = Fraction(0), self.origin
        stamps = PictureStamps(shown=self._container.format.name != "avi")

        def likely(time):
            """A moment, or the end of what was shown so far where that far ahead nothing is heard."""
            if time - end <= RESTART or self._clock.is_pause(self.video.index, time + origin, end + origin):
                return time
            self.tell(LEFT_OUT, end + origin)
            return end

        damaged = []  # packets of which that is still to be said
        # Where the packets end, also those that hold no picture, with the stamp of the one that tells it; time and frame of the last picture.
        until, last = (Fraction(0), Fraction(0)), None
        for packet in self._packets:
            if packet.stream.index != self.video.index:
                if self.sound is not None:
                    self.sound._push(packet)
                continue
            frames = _decoded(packet)
            if frames is None and packet.size:  # the picture before it stays a little longer
                damaged.append(packet)
            if last is not None or frames:  # where no picture ever comes, the reader says that alone
                while damaged:
                    self.conceal(damaged.pop(0), "the picture before")
            stamps.sent(packet)
            stop = _end(packet, stamps.shown) if not packet.is_discard else None
            if stop is not None:
                until = max(until, (stop - lasting(packet) - origin, stop - origin))
            for frame in frames or ():
                if frame.is_corrupt:
                    self.conceal(frame, "the decoder's guess")
                stamp = stamps.of(frame)
                time = end if stamp is None else likely(stamp * frame.time_base - origin)
                lasts = (frame.duration or 0) * frame.time_base
                lasts = lasts if 0 < lasts <= RESTART else 1 / rate
                end = time + lasts
                last = time, frame
                if frame.color_trc in HDR:
                    self.tell(
                        f"HDR ({HDR[frame.color_trc]}) is read as if it were not, and looks flat; convert it first"
                    )
                yield time, lasts, frame
        until = end if last is None else likely(until[1])
        if self._container.format.name == "ogg":
            # Theora's encoders leave out repeats, those at the end too: the last picture is there as long as the sound.
            until = max(until, min(max(self._reached.values()) - origin, end + Fraction(SHORT)))
        if last is not None and until > end:
            time, frame = last
            yield time, until - time, frame

    def close(self):
        self._stack.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
