"""Time stamps of packets and pictures that run forward where those of the file do not, as FFmpeg's program mends them."""

from fractions import Fraction

RESTART = 10  # seconds, FFmpeg's -dts_delta_threshold: a clock that jumps by more has started again
WRONG = 30 * 3600  # seconds, FFmpeg's -dts_error_threshold: no recording pauses longer
ALONE = 60  # seconds: a longer pause of pictures without sound, or of sound without pictures, is a wrong time stamp
LEFT_OUT = "a wrong time stamp is left out"  # what is said of one
BACK = Fraction(1, 10)  # seconds by which packets may lie out of order
HELD = 1000  # packets that wait at most to see whether the other stream pauses too


def lasting(packet):
    """Seconds that a packet lasts, Fraction; 0 where it does not tell.

    Of the last packet of one of several Ogg files in a row FFmpeg tells a negative number, as 32 bits without a sign.
    """
    duration = packet.duration or 0
    return duration * packet.time_base if duration < 1 << 31 else Fraction(0)


class PacketClock:
    """One clock for the packets of all streams, although the file's clock starts again or a stamp is wrong.

    restarts  bool: the format has clocks that start again (MPEG-TS, MPEG-PS); there a jump forward is one, else it is a pause
    starts    dict of stream index to the moment where its first packet is expected, seconds as Fraction, or None
    anchor    index of the stream that goes on without a seam where the clock starts again (the pictures), or None
    say       called with a message and a moment for each thing mended

    A strange packet waits for the next of its stream. If that goes on as if nothing were, the stamp alone was wrong. One that is far ahead waits
    until the other stream is there too, or has gone on by more than 10 s without such a pause: then its stamp is wrong, and so are those after it.
    Source: ts_discontinuity_detect in FFmpeg's fftools/ffmpeg_demux.c. Departure: it does not wait, a clock of other formats that runs
    backward by more than 10 s starts again here, and it believes each pause of up to 30 hours.
    """

    def __init__(self, restarts, starts, anchor, say):
        self._restarts, self._anchor, self._say = restarts, anchor, say
        self._expected = dict(starts)
        self._last = dict.fromkeys(starts)  # moments of decoding
        self._newest = dict.fromkeys(starts)  # moments of decoding, also of those that wait
        self._step = dict.fromkeys(starts, Fraction(0))  # seconds that a packet takes
        self._waiting = {}  # index to a list of packets
        self._offset = Fraction(0)  # seconds to add to every stamp
        self._moved = set()  # indices of streams without a packet since the offset changed

    def mend(self, packet):
        """The packets that can go on now, their stamps mended; the first of a stream after the clock started again is `opaque`."""
        index, moment = packet.stream.index, self._seen(packet)
        if moment is not None and packet.dts is not None and packet.pts is not None and self._is_strange(index, moment):
            shown = moment + (packet.pts - packet.dts) * packet.time_base
            if self._last[index] is not None and not self._is_strange(index, shown):
                packet.dts, moment = None, shown  # FFmpeg made it up, as it does where MPEG-PS comes through a pipe
        strange = moment is not None and self._is_strange(index, moment)
        self._newest[index] = self._newest[index] if moment is None else moment
        held = self._waiting.get(index, [])
        if held and strange and self._is_open(index, self._seen(held[0])) and len(held) < HELD:
            held.append(packet)
        elif held:
            del self._waiting[index]
            alone = moment is not None and not strange
            for earlier in held:
                if alone and self._is_strange(index, self._seen(earlier)):
                    self._strip(index, earlier)
                else:
                    self._jump(index, earlier)
                yield earlier
            yield from self.mend(packet)
        elif strange:
            self._waiting[index] = [packet]
        else:
            if moment is not None:
                self._place(index, packet)
            yield packet

    def _moment(self, packet):
        """Seconds at which a packet is decoded, by the mended clock; None where it does not tell."""
        stamp = packet.pts if packet.dts is None else packet.dts
        return None if stamp is None else stamp * packet.time_base + self._offset

    def _seen(self, packet):
        """The same, of a stream's first packet when it is shown: pictures in another order are decoded before the start."""
        first = self._last[packet.stream.index] is None and packet.pts is not None
        return packet.pts * packet.time_base + self._offset if first else self._moment(packet)

    def _is_strange(self, index, moment):
        expected, last = self._expected[index], self._last[index]
        return (
            expected is not None
            and abs(moment - expected) > RESTART
            or self._restarts
            and last is not None
            and moment + BACK < last
        )

    def is_pause(self, index, moment, since):
        """Whether a stream pauses until a moment, because the other one is there too; without another, because it is soon."""
        others = [newest for other, newest in self._newest.items() if other != index]
        return (
            any(newest is not None and newest > moment - RESTART for newest in others)
            if others
            else moment - since <= ALONE
        )

    def _is_open(self, index, moment):
        """Whether the other stream may still show that there is a pause until a moment."""
        expected = self._expected[index]
        others = [newest for other, newest in self._newest.items() if other != index]
        return (
            not self._restarts
            and RESTART < moment - expected <= WRONG
            and not self.is_pause(index, moment, expected)
            and bool(others)
            and all(newest is None or newest <= expected + RESTART for newest in others)
        )

    def _jump(self, index, packet):
        """Settle what to do about a strange stamp that is not alone."""
        moment, expected = self._seen(packet), self._expected[index]
        if not self._is_strange(index, moment):  # another stream has met the new clock meanwhile
            self._place(index, packet)
        elif self._restarts or moment < expected:
            self._say("its clock starts again; the parts are joined", expected)
            self._move(expected - moment)
            self._place(index, packet)
        elif moment - expected > WRONG or not self.is_pause(index, moment, expected):
            self._strip(index, packet)
        else:
            self._place(index, packet)

    def _move(self, seconds):
        self._offset += seconds
        self._moved = set(self._expected)

    def _strip(self, index, packet):
        """Take away a wrong stamp: what is decoded comes right after what was before."""
        self._say(LEFT_OUT, self._expected[index])
        packet.pts = packet.dts = None
        self._expected[index] += self._step[index]

    def _place(self, index, packet):
        moment, expected, last = self._moment(packet), self._expected[index], self._last[index]
        if index in self._moved:
            self._moved.discard(index)
            packet.opaque = True
            if index == self._anchor and abs(moment - expected) < BACK:
                self._move(expected - moment)
                self._moved.discard(index)
                moment = expected
        shift = round(self._offset / packet.time_base)
        if packet.dts is not None:
            packet.dts += shift
        if packet.pts is not None:
            packet.pts += shift
            if (
                abs(packet.pts * packet.time_base - moment) > RESTART
            ):  # no picture waits so long between decoding and showing
                self._say(LEFT_OUT, moment)
                packet.pts = None
        step = lasting(packet) if lasting(packet) <= RESTART else 0
        if not step and last is not None and 0 < moment - last <= RESTART:
            step = moment - last
        self._step[index] = step or self._step[index]
        self._last[index], self._expected[index] = moment, moment + self._step[index]


class PictureStamps:
    """The time stamp of each decoded picture.

    shown  bool: the container tells when a picture is shown; AVI tells when it is decoded, and FFmpeg makes up the rest

    Source: guess_correct_pts in FFmpeg's libavcodec/decode.c: stamps of decoding count once those of presentation have run backward
    more often.
    """

    def __init__(self, shown=True):
        self.shown = shown
        self._faults = [0, 0]  # of presentation, of decoding: how often they did not run forward
        self._last = [None, None]
        self._first = None  # stamp of decoding of the first packet
        self._delay = None  # from a packet's stamp to the one that the decoder gives with its picture, in AVI

    def sent(self, packet):
        if self._first is None:
            self._first = packet.dts

    def of(self, frame):
        """The stamp, in units of frame.time_base; None: right after the picture before."""
        for kind, stamp in enumerate((frame.pts, frame.dts)):
            if stamp is not None:
                self._faults[kind] += self._last[kind] is not None and stamp <= self._last[kind]
                self._last[kind] = stamp
        if not self.shown:
            if self._delay is None and None not in (frame.dts, self._first):
                self._delay = frame.dts - self._first
            return None if frame.dts is None else frame.dts - (self._delay or 0)
        if frame.pts is not None and (self._faults[0] <= self._faults[1] or frame.dts is None):
            return frame.pts
        return frame.dts
