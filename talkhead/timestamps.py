"""Repair of packet and frame time stamps that jump or run backward, following FFmpeg's program."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av

RESTART = 10  # seconds, FFmpeg's -dts_delta_threshold: a clock that jumps by more has started again
MAX_PAUSE = 30 * 3600  # seconds, FFmpeg's -dts_error_threshold; a longer pause is a wrong time stamp
MAX_PAUSE_ALONE = 60  # seconds; a longer pause in a file with one stream is a wrong time stamp
LEFT_OUT = "a wrong time stamp is left out"  # warning
MAX_BACKWARD = Fraction(1, 10)  # seconds by which packets may be out of order
MAX_WAITING = 1000  # packets held back until the other stream shows whether it pauses too


def lasting(packet: "av.Packet") -> Fraction:
    """Duration of a packet, Fraction in seconds; 0 if unknown.

    For the last packet of each of several concatenated Ogg files, FFmpeg gives a negative duration as unsigned 32 bits.
    """
    duration = packet.duration or 0
    return duration * packet.time_base if duration < 1 << 31 else Fraction(0)


class PacketClock:
    """Common clock for the packets of all streams, with clock restarts joined and wrong time stamps removed.

    restarts  bool: the format allows clock restarts (MPEG-TS, MPEG-PS), so a jump forward is one; else it is a pause
    starts    {stream index: Fraction, expected time of its first packet in seconds, or None}
    anchor    index of the stream that continues without a gap at a clock restart (the video), or None
    warn      called with a message and a time in seconds for each repair

    A packet with an implausible time stamp is held back until the next one of its stream. If that one continues
    regularly, only the held time stamp was wrong. A packet far ahead is held back until the other stream is there too
    (a pause), or has continued by more than 10 s without such a pause: then its time stamp and those after it are
    wrong.

    Source: ts_discontinuity_detect in FFmpeg's fftools/ffmpeg_demux.c.
    Departure: FFmpeg does not hold packets back; here, a clock of any other format that runs backward by more than 10 s
    has started again, and not every pause of up to 30 hours is accepted.
    """

    def __init__(
        self,
        restarts: bool,
        starts: dict[int, Fraction | None],
        anchor: int | None,
        warn: Callable[[str, Fraction], None],
    ) -> None:
        self._restarts, self._anchor, self._warn = restarts, anchor, warn
        self._expected = dict(starts)
        self._last = dict.fromkeys(starts)  # decoding times
        self._newest = dict.fromkeys(starts)  # decoding times, including packets held back
        self._step = dict.fromkeys(starts, Fraction(0))  # duration of a packet in seconds
        self._waiting: dict[int, list] = {}  # {stream index: list of packets held back}
        self._offset = Fraction(0)  # seconds to add to every time stamp
        self._moved: set[int] = set()  # indices of streams without a packet since the offset changed

    def mend(self, packet: "av.Packet") -> Iterator["av.Packet"]:
        """Yield the packets that are ready, with repaired time stamps; the first after a clock restart is `opaque`."""
        index, moment = packet.stream.index, self._start_time(packet)
        if (
            moment is not None
            and packet.dts is not None
            and packet.pts is not None
            and self._is_implausible(index, moment)
        ):
            shown = moment + (packet.pts - packet.dts) * packet.time_base
            if self._last[index] is not None and not self._is_implausible(index, shown):
                packet.dts, moment = None, shown  # FFmpeg invents a dts for MPEG-PS on a pipe
        implausible = moment is not None and self._is_implausible(index, moment)
        self._newest[index] = self._newest[index] if moment is None else moment
        held = self._waiting.get(index, [])
        if held and implausible and self._is_open(index, self._start_time(held[0])) and len(held) < MAX_WAITING:
            held.append(packet)
        elif held:
            del self._waiting[index]
            isolated = moment is not None and not implausible
            for earlier in held:
                if isolated and self._is_implausible(index, self._start_time(earlier)):
                    self._strip(index, earlier)
                else:
                    self._jump(index, earlier)
                yield earlier
            yield from self.mend(packet)
        elif implausible:
            self._waiting[index] = [packet]
        else:
            if moment is not None:
                self._place(index, packet)
            yield packet

    def _moment(self, packet):
        """Decoding time of a packet on the repaired clock, Fraction in seconds; None if unknown."""
        stamp = packet.pts if packet.dts is None else packet.dts
        return None if stamp is None else stamp * packet.time_base + self._offset

    def _start_time(self, packet):
        """`_moment`, but the presentation time of a stream's first packet, whose decoding may precede the start."""
        first = self._last[packet.stream.index] is None and packet.pts is not None
        return packet.pts * packet.time_base + self._offset if first else self._moment(packet)

    def _is_implausible(self, index, moment):
        expected, last = self._expected[index], self._last[index]
        return (
            expected is not None
            and abs(moment - expected) > RESTART
            or self._restarts
            and last is not None
            and moment + MAX_BACKWARD < last
        )

    def is_pause(self, index: int, moment: Fraction, since: Fraction) -> bool:
        """True if a stream pauses until a moment: the other stream is there too or, without one, the pause is short."""
        others = [newest for other, newest in self._newest.items() if other != index]
        return (
            any(newest is not None and newest > moment - RESTART for newest in others)
            if others
            else moment - since <= MAX_PAUSE_ALONE
        )

    def _is_open(self, index, moment):
        """True if the other stream may still show that there is a pause until a moment."""
        expected = self._expected[index]
        others = [newest for other, newest in self._newest.items() if other != index]
        return (
            not self._restarts
            and RESTART < moment - expected <= MAX_PAUSE
            and not self.is_pause(index, moment, expected)
            and bool(others)
            and all(newest is None or newest <= expected + RESTART for newest in others)
        )

    def _jump(self, index, packet):
        """Handle an implausible time stamp that is not isolated: a clock restart, a wrong time stamp or a pause."""
        moment, expected = self._start_time(packet), self._expected[index]
        if not self._is_implausible(index, moment):  # another stream has already set the new clock
            self._place(index, packet)
        elif self._restarts or moment < expected:
            self._warn("its clock starts again; the parts are joined", expected)
            self._move(expected - moment)
            self._place(index, packet)
        elif moment - expected > MAX_PAUSE or not self.is_pause(index, moment, expected):
            self._strip(index, packet)
        else:
            self._place(index, packet)

    def _move(self, seconds):
        self._offset += seconds
        self._moved = set(self._expected)

    def _strip(self, index, packet):
        """Remove a wrong time stamp: the packet then follows the one before without a gap."""
        self._warn(LEFT_OUT, self._expected[index])
        packet.pts = packet.dts = None
        self._expected[index] += self._step[index]

    def _place(self, index, packet):
        moment, expected, last = self._moment(packet), self._expected[index], self._last[index]
        if index in self._moved:
            self._moved.discard(index)
            packet.opaque = True
            if index == self._anchor and abs(moment - expected) < MAX_BACKWARD:
                self._move(expected - moment)
                self._moved.discard(index)
                moment = expected
        shift = round(self._offset / packet.time_base)
        if packet.dts is not None:
            packet.dts += shift
        if packet.pts is not None:
            packet.pts += shift
            if abs(packet.pts * packet.time_base - moment) > RESTART:  # no frame is reordered by that much
                self._warn(LEFT_OUT, moment)
                packet.pts = None
        step = lasting(packet) if lasting(packet) <= RESTART else 0
        if not step and last is not None and 0 < moment - last <= RESTART:
            step = moment - last
        self._step[index] = step or self._step[index]
        self._last[index], self._expected[index] = moment, moment + self._step[index]


class PictureStamps:
    """Time stamps of decoded frames.

    shown  bool: the container records presentation times. AVI records decoding times, and FFmpeg invents the others

    Source: guess_correct_pts in FFmpeg's libavcodec/decode.c: decoding times are used once presentation times have run
    backward more often.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown
        self._last: list = [None, None]
        self._faults = [0, 0]  # number of presentation and of decoding times that did not increase
        self._first: int | None = None  # decoding time of the first packet
        self._delay: int | None = None  # in AVI, from a packet's time stamp to the one of its decoded frame

    def sent(self, packet: "av.Packet") -> None:
        if self._first is None:
            self._first = packet.dts

    def of(self, frame: "av.VideoFrame") -> int | None:
        """Time stamp of a frame in units of frame.time_base; None: directly after the frame before."""
        for kind, stamp in enumerate((frame.pts, frame.dts)):
            if stamp is not None:
                self._faults[kind] += self._last[kind] is not None and stamp <= self._last[kind]
                self._last[kind] = stamp
        if not self.shown:
            if self._delay is None and None not in (frame.dts, self._first):
                self._delay = frame.dts - self._first  # type: ignore[operator]  # neither is None
            return None if frame.dts is None else frame.dts - (self._delay or 0)
        if frame.pts is not None and (self._faults[0] <= self._faults[1] or frame.dts is None):
            return frame.pts
        return frame.dts
