"""What a mouth does when it speaks: sentences, voices, phonemes and the movement of lips and jaw.

    text ─ speak ─▶ sound + phonemes ─ track_from_phonemes ─▶ mouth track (T, 3)
    clip of a real talker ─ recorded ─▶ sound + phonemes + measured mouth track

A mouth track has one row per video frame and three columns, `TRACK`, all in units of the face itself, so that one
track moves any face. A phoneme is a tuple (start, end, label) in seconds with ARPABET labels ("B", "AE1", "SIL").
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from talkhead.errors import TalkheadError
from talkhead.phonemes import GRID_WORDS, SILENCE, VOWELS, arpabet, closures, pronounce, read_align

SAMPLE_RATE = 16000  # Hz
FPS = 25.0  # video frames a second
TRACK = ("opening", "width", "jaw")

_SAMPLES = 640  # of sound in one video frame


@dataclass
class Utterance:
    """Something said: how it sounds and how the mouth moved.

    audio     float32 (N,) at 16 kHz in [-1, 1]
    track     float32 (T, 3) at 25 fps, T = ceil(25 · N / 16000); columns as in TRACK:
              opening  gap between the inner lips / distance between the eye centres; 0 = shut, speech mostly <= 0.20
              width    distance between the mouth corners, relative to rest, minus 1; -0.25 rounded, +0.12 spread
              jaw      how far the chin has dropped / distance between the eye centres
    phonemes  list of (start, end, label): seconds, ARPABET, vowels with a stress digit; [] where unknown
    text      the words, "" where unknown
    speaker   who or what spoke
    source    where it comes from: "espeak-ng VOICE" or the name of the recording
    """

    audio: np.ndarray
    track: np.ndarray
    phonemes: list = field(default_factory=list)
    text: str = ""
    speaker: str = ""
    source: str = ""


# ---------------------------------------------------------------------------------------------------------------
# What is said: sentences

_GRID = (
    ("bin", "lay", "place", "set"),
    ("blue", "green", "red", "white"),
    ("at", "by", "in", "with"),
    tuple("abcdefghijklmnopqrstuvxyz"),
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ("again", "now", "please", "soon"),
)

_WORDS = {
    "who": (
        "my mother",
        "the old farmer",
        "our teacher",
        "a young doctor",
        "the baby",
        "your neighbour",
        "the captain",
        "a famous painter",
        "his brother",
        "the whole family",
        "their cousin",
        "every child",
        "the beekeeper",
        "that woman",
        "the piano player",
        "nobody",
        "the postman",
        "a shy visitor",
        "the judge",
        "her best friend",
    ),
    "did": (
        "bought",
        "found",
        "painted",
        "forgot",
        "remembered",
        "wanted",
        "moved",
        "brought",
        "carried",
        "measured",
        "opened",
        "washed",
        "chose",
        "pushed",
        "saved",
        "watched",
        "enjoyed",
        "kept",
        "borrowed",
        "dropped",
    ),
    "how": (
        "big",
        "warm",
        "yellow",
        "heavy",
        "pretty",
        "wooden",
        "cheap",
        "broken",
        "smooth",
        "purple",
        "famous",
        "empty",
        "brown",
        "huge",
        "gentle",
        "thin",
        "shiny",
        "cool",
        "favourite",
        "beautiful",
    ),
    "what": (
        "boat",
        "map",
        "paper lamp",
        "pumpkin",
        "shoe",
        "window",
        "bridge",
        "apple pie",
        "book",
        "television",
        "mirror",
        "blue balloon",
        "jumper",
        "garden chair",
        "bottle of milk",
        "piece of cheese",
        "photograph",
        "umbrella",
        "whistle",
        "toy airplane",
        "violin",
        "bowl of soup",
        "thousand feathers",
        "camera",
    ),
    "where": (
        "by the river",
        "in the kitchen",
        "near the church",
        "behind the house",
        "on the beach",
        "at the museum",
        "under the apple tree",
        "across the bay",
        "in the middle of town",
        "above the shop",
        "on the top shelf",
        "outside the village",
        "with both hands",
        "from the market",
        "in front of the mayor",
    ),
    "when": (
        "yesterday",
        "this morning",
        "before lunch",
        "on Wednesday",
        "every summer",
        "after the storm",
        "at noon",
        "in February",
        "twice a week",
        "long ago",
        "in the evening",
        "for the first time",
        "just now",
    ),
    "number": ("two", "three", "four", "five", "seven", "nine", "twelve", "fifteen", "forty", "a hundred", "zero"),
}

_PATTERNS = (
    "{who} {did} the {how} {what} {where}.",
    "{when}, {who} {did} a {how} {what}.",
    "Please put the {what} {where}.",
    "Why would {who} keep the {what} {where}?",
    "There were {number} or {number} of them {where}, {when}.",
    "{who} never {did} the {what}, but {who} {did} the {how} {what}.",
    "How much is the {how} {what}?",
    "If you move the {what}, {who} may come back {when}.",
    "It was {how}, {how} and very {how}.",
    "Maybe {who} {did} it {where}; maybe not.",
    "Some people {did} {number} {how} things {when}.",
    "{number} plus {number} makes more than {number}.",
    "I hope {who} will be {where} {when}.",
)


def sentence(rng):
    """A sentence to say: one in three after the GRID corpus's grammar, the others free.

    rng      numpy Generator
    returns  str, such as "Bin blue at F two now." or "My mother bought the brown map by the river."
    """
    if rng.random() < 1 / 3:
        words = [str(rng.choice(group)) for group in _GRID]
        words[3] = words[3].upper()  # espeak says "a" as an article, "A" as a letter
        text = " ".join(words) + "."
    else:
        text = re.sub(r"\{(\w+)\}", lambda slot: str(rng.choice(_WORDS[slot[1]])), str(rng.choice(_PATTERNS)))
    return text[0].upper() + text[1:]


# ---------------------------------------------------------------------------------------------------------------
# Phonemes


def write_phonemes(destination, phonemes):
    """Write phonemes as a JSON list of [start, end, label], one a line."""
    rows = ",\n".join(
        json.dumps([round(float(start), 4), round(float(end), 4), label]) for start, end, label in phonemes
    )
    try:
        Path(destination).write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    except OSError as error:
        raise TalkheadError(f"{destination}: {error.strerror}; choose a folder that can be written") from None


# What espeak-ng writes in IPA, all English accents, as ARPABET. A symbol of several sounds becomes several labels.
_IPA = {
    "a": "AE",
    "aː": "AA",
    "aa": "AA",
    "æ": "AE",
    "ɐ": "AH",
    "ɑː": "AA",
    "ɑ": "AA",
    "ɒ": "AA",
    "ɔ": "AO",
    "ɔː": "AO",
    "o": "OW",
    "oː": "OW",
    "oʊ": "OW",
    "əʊ": "OW",
    "əu": "OW",
    "ʌʊ": "OW",
    "ə": "AH",
    "ʌ": "AH",
    "ɜ": "ER",
    "ɜː": "ER",
    "ɚ": "ER",
    "ɝ": "ER",
    "ɛ": "EH",
    "e": "EH",
    "eː": "EY",
    "eɪ": "EY",
    "ei": "EY",
    "əɪ": "AY",
    "ɪ": "IH",
    "ᵻ": "IH",
    "i": "IY",
    "iː": "IY",
    "ʊ": "UH",
    "u": "UW",
    "uː": "UW",
    "ʉ": "UW",
    "ʉː": "UW",
    "ʌʉ": "AW",
    "aɪ": "AY",
    "aʊ": "AW",
    "æʊ": "AW",
    "ɔɪ": "OY",
    "oɪ": "OY",
    "aɪə": "AY AH",
    "aɪɚ": "AY ER",
    "aʊə": "AW AH",
    "iə": "IH AH",
    "ɪə": "IH AH",
    "eə": "EH AH",
    "ɛə": "EH AH",
    "ʊə": "UH AH",
    "oə": "AO AH",
    "ɔə": "AO AH",
    "ɑə": "AA AH",
    "p": "P",
    "b": "B",
    "m": "M",
    "f": "F",
    "v": "V",
    "θ": "TH",
    "ð": "DH",
    "t": "T",
    "t̪": "T",
    "d": "D",
    "d̪": "D",
    "ɾ": "D",
    "ʔ": "T",
    "n": "N",
    "n̩": "N",
    "s": "S",
    "z": "Z",
    "ʃ": "SH",
    "ʒ": "ZH",
    "tʃ": "CH",
    "dʒ": "JH",
    "k": "K",
    "ɡ": "G",
    "g": "G",
    "ŋ": "NG",
    "x": "K",
    "h": "HH",
    "ɦ": "HH",
    "l": "L",
    "ɫ": "L",
    "ɹ": "R",
    "r": "R",
    "ɻ": "R",
    "w": "W",
    "ʍ": "W",
    "j": "Y",
}


def _labels(ipa):
    """One espeak phoneme in IPA -> its ARPABET labels: "ˈɑːɹ" -> ["AA1", "R"], "" (a pause) -> ["SIL"]."""
    stress = "1" if "ˈ" in ipa else "2" if "ˌ" in ipa else "0"
    text = ipa.replace("ˈ", "").replace("ˌ", "")
    labels = []
    while text:
        symbol = next((text[:n] for n in (3, 2, 1) if text[:n] in _IPA), "")
        labels += _IPA[symbol].split() if symbol else []
        text = text[max(len(symbol), 1) :]  # a diacritic without a sound of its own is passed over
    return [label + stress if label in VOWELS else label for label in labels] if ipa else [SILENCE]


# ---------------------------------------------------------------------------------------------------------------
# Voices: espeak-ng

_ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
# Those of espeak-ng's variants that sound like people (no robots, croaks or whispers).
_VARIANTS = (
    "f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8 Alex Alicia Andrea Andy Annie Diogo Gene Gene2 Henrique Hugo "
    "Jacky Lee Marco Mario Michael Mike Nguyen Reed adam anika announcer antonio aunty belinda benjamin "
    "boris caleb david ed edward edward2 gustave ian iven iven2 john kaukovalta klatt klatt2 klatt3 linda "
    "marcelo max michel miguel norbert pablo paul pedro quincy rob robert sandro shelby steph steph2 steph3 "
    "travis victor zac"
).split()


def voices():
    """The voices `speak` is meant for: every English accent in every variant, as "en-us+f3"."""
    return [accent + "+" + variant for variant in _VARIANTS for accent in _ACCENTS]


def speak(text, voice=None, seed=0):
    """Say a text with espeak-ng: the sound, when each phoneme is heard, and how a mouth would move.

    text     what to say, English
    voice    an espeak-ng voice, with a variant after a plus: "en-us", "en-gb+m5"; None picks one of voices()
    seed     decides pitch, speed, intonation, loudness, the pauses around the speech and how lively the mouth is;
             the same text, voice and seed give the same utterance, byte for byte
    returns  Utterance
    raises   TalkheadError if espeakng-loader is not installed, there is no such voice, or there is nothing to say

    The library is run in a process of its own: what it said before changes what it says next (even after its own
    reset), and only a fresh start makes it repeatable.
    """
    if not text.strip():
        raise TalkheadError("speak: the text is empty; give a sentence to say")
    rng = np.random.default_rng([seed, 0x5BEA4])
    pick = str(rng.choice(voices()))
    voice = voice or pick
    settings = {
        "voice": voice,
        "text": text,
        "seed": int(rng.integers(1, 2**30)),
        "rate": int(rng.integers(125, 190)),
        "pitch": int(rng.integers(30, 72)),
        "range": int(rng.integers(35, 75)),
    }
    before, after = rng.uniform(0.15, 0.45, 2)  # seconds of silence
    loudness = rng.uniform(0.35, 0.95)

    sound, events, rate = _espeak(settings)
    phonemes = _phonemes(events, sound, rate)
    peak = max(float(np.abs(sound).max()), 1e-6)
    speech = _resample(sound * (loudness / peak), rate)
    start = round(before * SAMPLE_RATE)
    audio = np.concatenate([np.zeros(start), speech, np.zeros(round(after * SAMPLE_RATE))]).astype(np.float32)
    phonemes = _pad(phonemes, start / SAMPLE_RATE, len(audio) / SAMPLE_RATE)
    frames = -(-len(audio) // _SAMPLES)
    track = track_from_phonemes(phonemes, frames, rng, loudness=_loudness(audio, frames))
    return Utterance(audio, track, phonemes, text, voice, f"espeak-ng {voice}")


def _espeak(settings):
    """Run espeak-ng in a fresh process -> (float64 samples in [-1, 1], [(time, ipa), …, (end, None)], sample rate)."""
    try:
        import espeakng_loader
    except ImportError:
        raise TalkheadError("speak: espeak-ng is not installed; pip install 'talkhead[synth]'") from None
    request = dict(settings, library=espeakng_loader.get_library_path(), data=espeakng_loader.get_data_path())
    request["voice"] = re.sub(r"^en-gb(?=\+|$)", "en", request["voice"])  # espeak's own name for plain British
    places = os.pathsep.join(
        filter(None, [*sys.path, os.environ.get("PYTHONPATH", "")])
    )  # where this process found talkhead and puppets
    done = subprocess.run(
        [sys.executable, "-m", "puppets.articulation"],
        input=json.dumps(request).encode(),
        capture_output=True,
        env=dict(os.environ, PYTHONPATH=places),
    )
    head, _, pcm = done.stdout.partition(b"\n")
    if done.returncode == 3:
        raise TalkheadError(f"voice {settings['voice']!r}: espeak-ng has no such voice; try 'en-us' or 'en-gb+f3'")
    if done.returncode or not pcm:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no sound came"]
        raise TalkheadError(f"speak: espeak-ng failed on {settings['text']!r} ({said[-1]}); try another text or voice")
    answer = json.loads(head)
    return np.frombuffer(pcm, "<i2") / 32768.0, [tuple(event) for event in answer["events"]], answer["rate"]


def _phonemes(events, sound, rate):
    """Espeak's events -> [(start, end, label)]; a voiceless stop begins with the silence before its burst."""
    phonemes = []
    for (start, ipa), (end, _) in zip(events, events[1:]):
        labels = _labels(ipa)
        edges = np.linspace(start, end, len(labels) + 1)
        phonemes += [[float(a), float(b), label] for a, b, label in zip(edges, edges[1:], labels) if b > a]
    loud = np.abs(sound) > 0.02 * np.abs(sound).max()
    for last, this in zip(phonemes, phonemes[1:]):
        if this[2] in ("P", "T", "K", "CH"):
            room = (last[1] - last[0]) / 2
            tail = loud[round((last[1] - room) * rate) : round(last[1] * rate)][::-1]
            quiet = (int(tail.argmax()) if tail.any() else len(tail)) / rate
            last[1] = this[0] = last[1] - min(max(quiet, 0.03), 0.1, room)
    return [tuple(phoneme) for phoneme in phonemes]


def _pad(phonemes, delay, end):
    """Move phonemes by `delay` and fill everything around and between them with silence up to `end`."""
    padded, clock = [], 0.0
    for start, stop, label in [(a + delay, b + delay, c) for a, b, c in phonemes] + [(end, end, SILENCE)]:
        if padded and label == SILENCE == padded[-1][2]:
            start = padded.pop()[0]
        elif start > clock + 1e-6:
            padded.append((clock, start, SILENCE))
        padded.append((start, stop, label))
        clock = stop
    return [phoneme for phoneme in padded if phoneme[1] > phoneme[0]]


def _resample(samples, rate):
    """To 16 kHz, by cutting or extending the spectrum; espeak's sound begins and ends in silence."""
    if rate == SAMPLE_RATE:
        return samples
    block = rate // np.gcd(rate, SAMPLE_RATE)
    padded = np.pad(samples, (0, -len(samples) % block + block))
    length = len(padded) // block * (SAMPLE_RATE * block // rate)
    spectrum = np.fft.rfft(padded)[: length // 2 + 1]
    return np.fft.irfft(spectrum, length)[: round(len(samples) * SAMPLE_RATE / rate)] * (length / len(padded))


def _loudness(audio, frames):
    """How loud each video frame sounds, 0 = 30 dB or more below the loud parts, 1 = loud: float (frames,)."""
    padded = np.pad(audio, (0, frames * _SAMPLES - len(audio))).reshape(frames, _SAMPLES)
    level = 10 * np.log10((padded.astype(np.float64) ** 2).mean(1) + 1e-9)
    return np.clip((level - np.percentile(level, 95)) / 30 + 1, 0, 1)


def _speak_once():
    """The other process: a request (JSON) on stdin -> a line of JSON and 16-bit samples on stdout. Exit 3: no voice.

    The numbers are espeak-ng's speak_lib.h: events are a list ended by type 0; type 7 is a phoneme, whose name in IPA
    sits in the last eight bytes.
    """
    import ctypes

    class Event(ctypes.Structure):
        _fields_ = [
            ("type", ctypes.c_int),
            ("id", ctypes.c_uint),
            ("text", ctypes.c_int),
            ("length", ctypes.c_int),
            ("milliseconds", ctypes.c_int),
            ("sample", ctypes.c_int),
            ("user", ctypes.c_void_p),
            ("name", ctypes.c_char * 8),
        ]

    request = json.load(sys.stdin.buffer)
    library = ctypes.CDLL(request["library"])
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    synchronous, phoneme_events, ipa, no_exit = 2, 1, 2, 0x8000
    rate = library.espeak_Initialize(synchronous, 0, os.fsencode(request["data"]), phoneme_events | ipa | no_exit)
    if rate <= 0:
        sys.exit("espeak-ng could not read its data")
    if library.espeak_SetVoiceByName(request["voice"].encode()):
        sys.exit(3)
    sound, events = [], []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))
    def heard(samples, count, event):
        if samples and count:
            sound.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while event[index].type:
            if event[index].type == 7:
                events.append((event[index].sample / rate, event[index].name.decode("utf-8", "ignore")))
            index += 1
        return 0

    library.espeak_SetSynthCallback(heard)
    for number, name in ((1, "rate"), (3, "pitch"), (4, "range")):
        library.espeak_SetParameter(number, request[name], 0)
    library.espeak_ng_SetRandSeed(request["seed"])
    text = request["text"].encode()
    library.espeak_Synth(text, len(text) + 1, 0, 1, 0, 1, None, None)
    pcm = b"".join(sound)
    events.append((len(pcm) / 2 / rate, None))
    sys.stdout.buffer.write(json.dumps({"rate": rate, "events": events}).encode() + b"\n" + pcm)


# ---------------------------------------------------------------------------------------------------------------
# How the mouth moves

# Where each sound would bring the mouth if it lasted: opening, width, jaw, and how much it insists. Fitted by least
# squares to 96 s of two talkers with known phonemes (public-domain presidential addresses), made consistent within
# each class, then scaled so that the tracks' 95th percentiles and speeds are those of twelve GRID talkers.
_VISEMES = {
    SILENCE: (0.000, 0.00, 0.000, 3.0),
    "AA": (0.205, 0.00, 0.170, 1.0),
    "AE": (0.220, 0.10, 0.175, 1.0),
    "AH": (0.140, 0.01, 0.080, 0.8),
    "AO": (0.160, -0.11, 0.180, 1.0),
    "EH": (0.205, 0.08, 0.145, 1.0),
    "ER": (0.115, -0.07, 0.105, 0.9),
    "IH": (0.150, 0.07, 0.065, 0.8),
    "IY": (0.135, 0.10, 0.065, 1.0),
    "UH": (0.120, -0.07, 0.085, 0.9),
    "UW": (0.070, -0.20, 0.085, 1.2),
    "W": (0.025, -0.24, 0.080, 1.2),
    "R": (0.095, -0.10, 0.085, 0.7),
    "P": (0.025, -0.03, 0.050, 0.9),
    "B": (0.025, -0.03, 0.050, 0.9),
    "M": (0.025, -0.02, 0.040, 0.9),
    "F": (0.040, 0.01, 0.040, 0.9),
    "V": (0.040, 0.01, 0.045, 0.8),
    "TH": (0.110, 0.00, 0.070, 0.7),
    "DH": (0.125, 0.05, 0.080, 0.5),
    "T": (0.120, 0.03, 0.060, 0.5),
    "D": (0.120, 0.04, 0.060, 0.5),
    "N": (0.120, 0.04, 0.065, 0.5),
    "L": (0.145, 0.00, 0.110, 0.6),
    "S": (0.110, 0.08, 0.020, 0.9),
    "Z": (0.100, 0.07, 0.025, 0.9),
    "SH": (0.135, -0.09, 0.025, 1.0),
    "ZH": (0.135, -0.09, 0.035, 1.0),
    "CH": (0.125, -0.06, 0.025, 0.9),
    "JH": (0.135, -0.05, 0.040, 0.9),
    "K": (0.145, -0.01, 0.105, 0.4),
    "G": (0.125, 0.00, 0.090, 0.4),
    "NG": (0.135, 0.00, 0.090, 0.4),
    "HH": (0.145, 0.04, 0.080, 0.3),
    "Y": (0.125, 0.00, 0.080, 0.7),
}
# Diphthongs pass from one shape to another: the first half's, the second half's.
_GLIDES = {
    "AY": ((0.230, 0.09, 0.195, 1.0), "IH"),
    "AW": ((0.230, 0.05, 0.195, 1.0), (0.100, -0.13, 0.105, 1.0)),
    "OY": ("AO", "IH"),
    "EY": ((0.170, 0.07, 0.145, 1.0), (0.135, 0.09, 0.105, 1.0)),
    "OW": ((0.140, -0.13, 0.170, 1.0), (0.085, -0.18, 0.115, 1.1)),
}
# Sounds that the lips themselves make, whatever surrounds them: what is left of the opening, and for how much of the
# sound (a stop ends with its burst, when the lips have parted).
_LIPS = {"P": (0.0, 0.65), "B": (0.0, 0.75), "M": (0.0, 0.80), "F": (0.22, 0.8), "V": (0.30, 0.8), "W": (0.55, 0.6)}
_STRESS = {"0": 0.88, "1": 1.10, "2": 1.0}

_STEP = 0.005  # seconds, at which movement is worked out
_REACH = 0.050  # seconds over which a sound's hold on the mouth falls to 1/e
_PART = 0.075  # seconds from lips shut to lips parted
_SMOOTH = 0.016  # seconds, the width (sigma) of the last smoothing: muscles do not jump
_ANTICIPATE = 0.10  # seconds before a sound at which the mouth leaves its rest, and after it returns
_KNEE, _MOST = 0.18, 0.28  # openings beyond the first are pressed below the second


def track_from_phonemes(phonemes, frames, rng=None, loudness=None):
    """How a mouth moves through the phonemes: every sound pulls towards its own shape, neighbours share the pull.

    phonemes  list of (start, end, label), seconds, ARPABET
    frames    T, video frames at 25 fps; frame t shows the mouth at (t + 0.5) / 25 s
    rng       numpy Generator for a speaker's and each sound's natural variation; None gives the average speaker
    loudness  (T,) in [0, 1], or None: quieter frames open less
    returns   float32 (T, 3), columns as in TRACK. /p b m/ have an opening of exactly 0 in at least one frame each,
              /f v/ are nearly shut, silence is closed
    raises    TalkheadError if a label is not ARPABET

    The shape at a time is the mean of the sounds' shapes weighted by their dominance, which falls off exponentially
    around each sound (Cohen and Massaro 1993). Departure: lip closures are then imposed as gates, because a weighted
    mean never quite shuts the mouth between two open vowels.
    """
    time = np.arange(-1, frames / FPS + 1, _STEP)  # a second of margin, so that smoothing sees no edge
    shape, strength, begin, end = _pulls(phonemes, rng)
    distance = np.maximum(np.maximum(begin - time[:, None], time[:, None] - end), 0)  # (steps, sounds)
    weight = np.exp(-distance / _REACH) * strength
    columns = []
    for column in range(3):
        # Rounding and spreading start earlier and yield less than opening does.
        pull = weight * (1 + np.abs(shape[:, 1]) / 0.1) if column == 1 else weight
        columns.append(pull @ shape[:, column] / np.maximum(pull.sum(1), 1e-12))
    track = _smooth(np.stack(columns, 1), _SMOOTH / _STEP)
    if loudness is not None:
        level = np.interp(time, (np.arange(frames) + 0.5) / FPS, _smooth(np.asarray(loudness, float)[:, None], 1)[:, 0])
        track *= (0.75 + 0.35 * level)[:, None] ** np.array([1, 0, 1])
    if rng is not None:
        track *= _habits(rng, time)
    track[:, 0] *= _gates(phonemes, time)
    over = np.maximum(track[:, 0] - _KNEE, 0) / (_MOST - _KNEE)
    track[:, 0] = np.minimum(track[:, 0], _KNEE) + (_MOST - _KNEE) * np.tanh(over)
    track[:, 1] = np.clip(track[:, 1], -0.28, 0.15)
    centres = (np.arange(frames) + 0.5) / FPS
    return np.stack([np.interp(centres, time, column) for column in track.T], 1).astype(np.float32)


def _pulls(phonemes, rng):
    """-> shapes (P, 3), strengths (P,), begin (P,), end (P,): what pulls at the mouth, when it pulls at full weight."""
    rows = [(0.0, 0.0, 0.0, 3.0, -2.0, phonemes[0][0] if phonemes else 1e6)]  # before anything is said: closed
    for start, end, label in phonemes:
        name, stress = (label[:-1], label[-1]) if label[-1:].isdigit() else (label, "")
        if name not in _VISEMES and name not in _GLIDES:
            raise TalkheadError(f"phoneme {label!r} at {start:.2f} s: not in ARPABET; write it as in 'B AE1 T SIL'")
        parts = [_VISEMES.get(part, part) for part in _GLIDES.get(name, (name,))]
        vivid = _STRESS.get(stress, 1.0) * (np.exp(rng.normal(0, 0.10)) if rng is not None else 1.0)
        if name == SILENCE:
            # The mouth opens before the first sound is heard and closes after the last; a short pause stays open.
            margin = min(_ANTICIPATE, 0.45 * (end - start))
            rows.append((*parts[0][:3], 3.0 * min((end - start) / 0.3, 1.0) ** 2, start + margin, end - margin))
            continue
        edges = np.linspace(start, end, len(parts) + 1)
        for (opening, width, jaw, strength), a, b in zip(parts, edges, edges[1:]):
            quarter = (b - a) / 4  # full weight in the middle half
            rows.append((opening * vivid, width * vivid, jaw * vivid, strength * vivid, a + quarter, b - quarter))
    last = phonemes[-1][1] if phonemes else -2.0
    rows.append((0.0, 0.0, 0.0, 3.0, last, 1e6))
    table = np.array(rows, float)
    return table[:, :3], table[:, 3], table[:, 4], table[:, 5]


def _gates(phonemes, time):
    """(steps,) in [0, 1]: what the lip sounds leave of the opening; exactly 0 for at least a frame in /p b m/."""
    gate = np.ones(len(time))
    for start, end, label in phonemes:
        if label in _LIPS:
            left, portion = _LIPS[label]
            hold = max(portion * (end - start), 1 / FPS + 2 * _STEP)  # no frame can fall beside it
            middle = start + portion * (end - start) / 2
            away = np.clip((np.abs(time - middle) - hold / 2) / _PART, 0, 1)
            gate = np.minimum(gate, left + (1 - left) * away * away * (3 - 2 * away))
    return gate


def _habits(rng, time):
    """(steps, 3): a speaker's own amplitudes, and a slow drift of liveliness."""
    speaker = np.exp(rng.normal(0, (0.15, 0.20, 0.20))).clip(0.7, 1.4)
    knots = np.arange(time[0] - 2, time[-1] + 2, 0.8)
    drift = _smooth(np.interp(time, knots, rng.normal(0, 0.12, len(knots)))[:, None], 0.25 / _STEP)
    return speaker * np.exp(drift) ** np.array([1.0, 0.5, 1.0])


def _smooth(track, sigma):
    """Gaussian low-pass along the first axis; sigma in rows. The ends are held."""
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.pad(track, ((reach, reach), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, kernel / kernel.sum(), "valid") for column in padded.T], 1)


# ---------------------------------------------------------------------------------------------------------------
# Real talkers


def measure(frames, detector):
    """The mouth track of a real talker.

    frames    iterable of uint8 (H, W, 3) RGB, at 25 fps
    detector  callable, image -> list of (68, 2) landmarks, largest face first (landmarks.detector)
    returns   float32 (T, 3), columns as in TRACK; the opening is 0 where the speaker's lips are as close as they get.
              Gaps without a face are bridged
    raises    TalkheadError if fewer than half of the frames show a face
    """
    rows, last = [], None
    for frame in frames:
        faces = [np.asarray(face, np.float64) for face in detector(frame)]
        if faces and last is not None:  # the face nearest to where it was, not whoever is largest now
            faces.sort(key=lambda face: np.linalg.norm(face.mean(0) - last.mean(0)))
        last = faces[0] if faces else last
        rows.append(_proportions(faces[0]) if faces else (np.nan,) * 3)
    raw = np.array(rows, float).reshape(-1, 3)
    seen = np.isfinite(raw[:, 0])
    if not len(raw) or seen.mean() < 0.5:
        raise TalkheadError(f"measure: a face in {seen.sum()} of {len(raw)} frames; give a clip of one frontal talker")
    index = np.arange(len(raw))
    raw = np.stack([np.interp(index, index[seen], column[seen]) for column in raw.T], 1)
    shut = raw[:, 0] <= np.percentile(raw[:, 0], 15)
    width, jaw = np.median(raw[shut, 1:], axis=0)
    light = 0.5  # frames: takes out the detector's tremble and leaves a /p/ its shut frame
    opening, wide, drop = _smooth(raw, light).T
    # Closed lips measure a little more than nothing, by a different amount in every face.
    floor = min(np.percentile(opening, 5), 0.02)
    opening = np.maximum(opening - floor - 0.004, 0)
    return np.stack([opening, wide / width - 1, drop - jaw], 1).astype(np.float32)


def _proportions(points):
    """Landmarks (68, 2) -> inner-lip gap, mouth width, and chin below nose, each over the distance of the eyes."""
    scale = np.linalg.norm(points[42:48].mean(0) - points[36:42].mean(0))
    gap = np.linalg.norm(points[61:64] - points[67:64:-1], axis=1).mean()
    return gap / scale, np.linalg.norm(points[54] - points[48]) / scale, np.linalg.norm(points[8] - points[33]) / scale


def recorded(path, detector=None, cache=None, speaker=None):
    """A recording of a real talker as an Utterance, with the mouth track measured.

    path      a clip with sound, such as GRID's .mpg; a silent one may have NAME.wav beside it or in ../wav
    detector  as for `measure`; None makes landmarks.detector("auto")
    cache     folder for the results, one .npz per clip, named after the clip's content: detection then runs once
    speaker   who talks; None takes the name of the clip's folder
    returns   Utterance. Phonemes come from NAME.align (GRID's words and their times) beside the clip or in ../align,
              or from NAME_seq.json (StyleTalk's phonemes) in ../phoneme. With the latter, which are exact, a track
              that runs ahead of or behind the sound is moved to where the lips shut on /p b m/
    raises    TalkheadError: no sound, no face, unreadable

    Source: GRID, Cooke, Barker, Cunningham and Shao 2006; StyleTalk's published clips.
    """
    path = Path(path)
    speaker = speaker or (path.parent.parent if path.parent.name in ("video", "videos") else path.parent).name
    stored = Path(cache) / f"{path.stem}-{_fingerprint(path)}.npz" if cache else None
    if stored and stored.is_file():
        audio, track = _load(stored)
    else:
        audio, track = _watch(path, detector)
        if stored:
            _save(stored, audio, track)
    phonemes, text = transcript(path)
    if text is None:
        track, text = _synchronise(track, phonemes), ""
    return Utterance(audio, track, phonemes, text, speaker, path.name)


def _watch(path, detector):
    """A clip -> its sound at 16 kHz and its mouth track, equally long."""
    from talkhead import audio_files, video_files  # PyAV, which nothing else here needs

    if detector is None:
        from talkhead import landmarks

        detector = landmarks.detector()
    with video_files.read_frames(path, fps=FPS) as reader:
        silent = reader.sound is None
        track = measure(reader, detector)
    sound = (_beside(path, ".wav", "wav") or path) if silent else path
    audio = np.asarray(audio_files.read_audio(sound, SAMPLE_RATE), np.float32)
    frames = min(len(track), -(-len(audio) // _SAMPLES))
    return audio[: frames * _SAMPLES], track[:frames]


def _fingerprint(path):
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise TalkheadError(f"{path}: {error.strerror}; give a clip of a talker") from None


def _load(stored):
    try:
        with np.load(stored) as values:
            return values["audio"], values["track"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise TalkheadError(f"{stored}: not a measured clip; delete it and it will be made again") from None


def _save(stored, audio, track):
    from talkhead import files

    try:
        stored.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TalkheadError(f"{stored.parent}: {error.strerror}; choose a cache folder that can be written") from None
    with files.atomic(stored) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, audio=audio, track=track)


def _beside(path, ending, folder):
    """The file with the clip's name and this ending, next to it or in the neighbouring folder, or None."""
    places = (path.parent / (path.stem + ending), path.parent.parent / folder / (path.stem + ending))
    return next((place for place in places if place.is_file()), None)


def transcript(path):
    """What is said in a recording of GRID or StyleTalk, by the file with its words beside it.

    path     the recording, NAME.mpg; its words are in NAME.align or NAME_seq.json, as `recorded` finds them
    returns  (phonemes, text); text None where the phonemes are exact and without words; ([], "") where unknown
    raises   TalkheadError if there is such a file and it holds something else
    """
    path = Path(path)
    words = _beside(path, ".align", "align")
    if words:
        return _read_align(words)
    sequence = _beside(path, "_seq.json", "phoneme")
    return (_read_sequence(sequence), None) if sequence else ([], "")


# ARPABET in the order in which StyleTalk numbers it; NSN is a noise that is no speech.
_SEQUENCE = (
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG NSN OW OY P R S SH SIL T TH UH UW V W Y Z ZH"
).split()
_SEQUENCE_FPS = 30.0


def _read_sequence(path):
    """One phoneme number per frame at 30 fps -> [(start, end, label)]."""
    try:
        names = [_SEQUENCE[number] for number in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError, IndexError):
        raise TalkheadError(f"{path}: not a list of phoneme numbers; take the file away to go without") from None
    edges = [0] + [i for i in range(1, len(names)) if names[i] != names[i - 1]] + [len(names)]
    return [
        (a / _SEQUENCE_FPS, b / _SEQUENCE_FPS, SILENCE if names[a] == "NSN" else names[a])
        for a, b in zip(edges, edges[1:])
        if b > a
    ]


def _synchronise(track, phonemes, most=0.4):
    """Shift the track to where its lips are shut on /p b m/; left alone where there are too few to tell."""
    times = np.array([start + 0.36 * (end - start) for start, end in closures(phonemes)])  # the middle of the hold
    clock = (np.arange(len(track)) + 0.5) / FPS
    if len(times) < 8:
        return track
    shifts = np.arange(-most, most + 0.005, 0.01)
    left = [np.interp(times + shift, clock, track[:, 0]).mean() for shift in shifts]
    best = shifts[int(np.argmin(_smooth(np.array(left)[:, None], 2)))]
    return np.stack([np.interp(clock + best, clock, column) for column in track.T], 1).astype(np.float32)


def _read_align(path):
    """GRID's words and times -> ([(start, end, label)], text)"""
    try:
        words = read_align(path)
        phonemes = pronounce(words, GRID_WORDS, path, "give GRID's own")
    except TalkheadError as problem:
        raise TalkheadError(f"{problem}, or take the file away to go without words") from None
    return phonemes, " ".join(word.lower() for *_, word in words if arpabet(word) != SILENCE)


if __name__ == "__main__":  # see `speak`: espeak-ng repeats itself only in a fresh process
    _speak_once()
