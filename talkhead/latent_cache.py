"""What an encoder makes of clips, kept on disk so that it is made once, and who is trained on and who is not."""

import json
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from talkhead import audio_files, datasets, files, fingerprints, mfcc, video_files
from talkhead.audio_features import Mfcc
from talkhead.errors import TalkheadError
from talkhead.inversion import encode

SAMPLES_PER_FRAME = mfcc.SAMPLE_RATE // mfcc.FPS
STILLS = {".png", ".jpg", ".jpeg"}


@dataclass
class EncodedClip:
    """A clip whose codes are known."""

    name: str
    folder: str
    speaker: str
    key: str
    frames: int
    opening: np.ndarray | None  # (frames,), if somebody measured it
    path: Path | None = None


class LatentCache:
    """What the encoder makes of clips, with their sound, in one file beside the weights, so that it is made once.

    A clip is known by its path, size and time of change, and by the encoder. Codes are kept as their mean and the
    float16 differences from it, which is finer than speech moves them. A killed run keeps what it had finished.

    sound   whether the clips' sound is wanted; without it, clips need have none
    """

    def __init__(self, path, encoder, sound=True):
        self.path, self.encoder, self.fingerprint, self.sound = path, encoder, fingerprints.digest(encoder), sound

    def __enter__(self):
        if not self.path.parent.is_dir():
            raise TalkheadError(f"{self.path.parent}: no such folder; make it first")
        with self._mendable():
            self.file = sqlite3.connect(self.path, check_same_thread=False)  # chunks are read by a Feed
            self.file.execute(
                "create table if not exists codes (key text primary key, shape text, mean blob, rest blob, sound blob)"
            )
        return self

    def __exit__(self, *_):
        self.file.close()

    @contextmanager
    def _mendable(self):
        try:
            yield
        except sqlite3.Error as problem:
            raise TalkheadError(
                f"{self.path}: cannot keep codes there ({problem}); free the disk, or delete the file"
            ) from problem

    def encode(self, clip, device):
        """Encode a clip unless that was done before: a Lesson."""
        state = clip.stat()
        key = f"{self.fingerprint} {clip.resolve()} {state.st_size} {state.st_mtime_ns}" + (
            "" if self.sound else " silent"
        )
        with self._mendable():
            row = self.file.execute("select shape from codes where key = ?", [key]).fetchone()
        if row is None:
            codes, audio = self._encode(clip, device)
            mean = codes.mean(0)
            sound = np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)
            row = [" ".join(map(str, codes.shape))]
            with self._mendable(), self.file:  # one transaction
                self.file.execute(
                    "insert or replace into codes values (?, ?, ?, ?, ?)",
                    [key, row[0], mean.tobytes(), (codes - mean).astype(np.float16).tobytes(), sound.tobytes()],
                )
        frames = int(row[0].split()[0])
        return EncodedClip(
            clip.stem, clip.resolve().parent.name, _speaker(clip), key, frames, _opening(clip, frames), clip
        )

    def _encode(self, clip, device):
        audio = audio_files.read_audio(clip) if self.sound else np.zeros(0, np.float32)
        with video_files.read_frames(clip) as frames:
            if frames.size[0] != frames.size[1]:
                raise TalkheadError(
                    f"{clip}: {frames.size[1]}x{frames.size[0]} is not a square face; align it first (talkhead align)"
                )
            codes = np.stack(list(encode(self.encoder, frames, device=device)))
        if not self.sound:
            return codes, audio
        return codes, np.pad(audio, (0, max(len(codes) * SAMPLES_PER_FRAME - len(audio), 0)))

    def read(self, lesson):
        """Codes float32 (T, L, 512) and sound float32 (N,) of a clip."""
        with self._mendable():
            shape, mean, rest, sound = self.file.execute(
                "select shape, mean, rest, sound from codes where key = ?", [lesson.key]
            ).fetchone()
        rest = np.frombuffer(rest, np.float16).reshape([int(side) for side in shape.split()])
        mean = np.frombuffer(mean, np.float32).reshape(rest.shape[1:])
        return mean + rest.astype(np.float32), np.frombuffer(sound, np.int16).astype(np.float32) / 32767


class Windows:
    """Windows of the same clips' sound, one for each frame: kept in the same file if a network makes them, else made when asked for.

    codes      Codes that know the clips
    features   AudioFeatures
    """

    def __init__(self, codes, features):
        self.codes, self.features, self.kept = codes, features, features.name != Mfcc.name
        self.name = json.dumps(features.identity, sort_keys=True)
        if self.kept:
            with codes._mendable():
                codes.file.execute(
                    "create table if not exists windows (key text primary key, shape text, windows blob)"
                )

    def encode(self, lesson):
        """Keep the windows of a clip, unless that was done before."""
        if self.kept and self._row("1", lesson) is None:
            made = self._make(lesson)
            with self.codes._mendable(), self.codes.file:  # one transaction
                self.codes.file.execute(
                    "insert or replace into windows values (?, ?, ?)",
                    [self._key(lesson), " ".join(map(str, made.shape)), made.astype(np.float16).tobytes()],
                )

    def read(self, lesson):
        """Windows float32 (T, C, S) of a clip."""
        if not self.kept:
            return self._make(lesson)
        shape, windows = self._row("shape, windows", lesson)
        return np.frombuffer(windows, np.float16).reshape([int(side) for side in shape.split()]).astype(np.float32)

    def _make(self, lesson):
        return self.features.windows(self.codes.read(lesson)[1])[: lesson.frames]

    def _key(self, lesson):
        return f"{self.name} {lesson.key}"

    def _row(self, columns, lesson):
        with self.codes._mendable():
            return self.codes.file.execute(
                f"select {columns} from windows where key = ?", [self._key(lesson)]
            ).fetchone()


def list_clips(sources):
    """The clips among files and in folders, as datasets.clips finds them. raises TalkheadError if there are none."""
    found = [path for path in datasets.clips(sources) if path.suffix.lower() not in STILLS]
    if not found:
        raise TalkheadError(f"{', '.join(map(str, sources))}: no clips; pass aligned video clips with sound")
    return found


def _speaker(clip):
    about = clip.with_suffix(".json")
    told = files.read_json(about) if about.exists() else {}
    return str(told["speaker"]) if isinstance(told, dict) and "speaker" in told else clip.resolve().parent.name


def _opening(clip, frames):
    """The measured opening of a clip's mouth, one number a frame; None if there is none."""
    track = clip.with_suffix(".track.npy")
    if not track.exists():
        return None
    track = files.read_array(track)
    if track.ndim != 2 or not len(track) or not np.isfinite(track).all():
        raise TalkheadError(
            f"{clip.with_suffix('.track.npy')}: holds {track.shape}, wanted finite (T, 3); delete it or make it again"
        )
    return np.pad(track[:frames, 0], (0, max(frames - len(track), 0)), "edge")


def split(lessons, hold_out, seed):
    """Lessons to train on and lessons to validate on, which share no speaker unless clips or folders were named."""
    names = [{x.speaker, x.name, x.folder} for x in lessons]
    if isinstance(hold_out, int):
        names = [{x.speaker} for x in lessons]
        speakers = sorted(set().union(*names))
        if hold_out >= len(speakers):
            raise TalkheadError(
                f"hold_out: {hold_out} of {len(speakers)} speakers would leave nobody to train on; hold out fewer"
            )
        hold_out = np.random.default_rng(seed).permutation(speakers)[:hold_out].tolist()
    kept = set(hold_out)
    unknown = kept.difference(*names)
    if unknown:
        raise TalkheadError(
            f"hold_out: no speaker, clip or folder is called {sorted(unknown)[0]}; "
            f"the speakers are {', '.join(sorted({x.speaker for x in lessons}))}"
        )
    held = [x for x, known in zip(lessons, names) if kept & known]
    rest = [x for x, known in zip(lessons, names) if not kept & known]
    if not rest:
        raise TalkheadError("hold_out: nothing is left to train on; hold out fewer")
    return rest, held
