"""On-disk cache of encoded clips, and the train/validation split by speaker."""

import json
import os
import sqlite3
from collections.abc import Collection, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from talkhead import audio_files, datasets, files, fingerprints, mfcc, video_files
from talkhead.audio_features import AudioFeatures, Mfcc
from talkhead.encoders import Encoder
from talkhead.errors import TalkheadError
from talkhead.inversion import encode

if TYPE_CHECKING:
    import torch

SAMPLES_PER_FRAME = mfcc.SAMPLE_RATE // mfcc.FPS
WAIT = 60.0  # seconds for which another process may hold the cache
STILLS = {".png", ".jpg", ".jpeg"}


@dataclass
class EncodedClip:
    """Clip in a LatentCache."""

    name: str
    folder: str
    speaker: str
    key: str
    frames: int
    opening: np.ndarray | None  # (frames,), None if not measured
    path: Path | None = None


class LatentCache:
    """Cache of the encoder's latents of clips, with their audio, in one SQLite file beside the weights.

    The key of a clip is its path, size, modification time and the encoder's fingerprint. Latents are stored as their
    mean and float16 differences from it, a step finer than the motion of speech. A killed run keeps the clips it
    finished.

    sound   store the clips' audio; False also accepts clips without it
    """

    def __init__(self, path: Path, encoder: Encoder, sound: bool = True) -> None:
        self.path, self.encoder, self.fingerprint, self.sound = path, encoder, fingerprints.digest(encoder), sound

    def __enter__(self) -> "LatentCache":
        if not self.path.parent.is_dir():
            raise TalkheadError(f"{self.path.parent}: no such folder; make it first")
        with self._errors_in_one_line():
            # A Prefetcher reads from its own thread; another process may be copying the file.
            self.file = sqlite3.connect(self.path, timeout=WAIT, check_same_thread=False)
            self.file.execute(
                "create table if not exists codes (key text primary key, shape text, mean blob, rest blob, sound blob)"
            )
        return self

    def __exit__(self, *_):
        self.file.close()

    @contextmanager
    def _errors_in_one_line(self):
        try:
            yield
        except sqlite3.Error as problem:
            raise TalkheadError(
                f"{self.path}: cannot cache latents ({problem}); free disk space, or delete the file"
            ) from problem

    def encode(self, clip: Path, device: "str | torch.device") -> EncodedClip:
        """Encode a clip unless it is cached; return its EncodedClip."""
        state = clip.stat()
        key = f"{self.fingerprint} {clip.resolve()} {state.st_size} {state.st_mtime_ns}" + (
            "" if self.sound else " silent"
        )
        with self._errors_in_one_line():
            row = self.file.execute("select shape from codes where key = ?", [key]).fetchone()
        if row is None:
            latents, audio = self._encode(clip, device)
            mean = latents.mean(0)
            audio = np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)
            row = [" ".join(map(str, latents.shape))]
            with self._errors_in_one_line(), self.file:  # one transaction
                self.file.execute(
                    "insert or replace into codes values (?, ?, ?, ?, ?)",
                    [key, row[0], mean.tobytes(), (latents - mean).astype(np.float16).tobytes(), audio.tobytes()],
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
            latents = np.stack(list(encode(self.encoder, frames, device=device)))
        if not self.sound:
            return latents, audio
        return latents, np.pad(audio, (0, max(len(latents) * SAMPLES_PER_FRAME - len(audio), 0)))

    def read(self, clip: EncodedClip) -> tuple[np.ndarray, np.ndarray]:
        """Latents float32 (T, L, 512) and audio float32 (N,) of an EncodedClip."""
        with self._errors_in_one_line():
            shape, mean, rest, audio = self.file.execute(
                "select shape, mean, rest, sound from codes where key = ?", [clip.key]
            ).fetchone()
        rest = np.frombuffer(rest, np.float16).reshape([int(side) for side in shape.split()])
        mean = np.frombuffer(mean, np.float32).reshape(rest.shape[1:])
        return mean + rest.astype(np.float32), np.frombuffer(audio, np.int16).astype(np.float32) / 32767


class Windows:
    """Feature windows of encoded clips, one per frame; cached in the same file if a network computes them.

    cache      LatentCache that holds the clips
    features   AudioFeatures
    """

    def __init__(self, cache: LatentCache, features: AudioFeatures) -> None:
        self.cache, self.features, self.cached = cache, features, features.name != Mfcc.name
        self.name = json.dumps(features.identity, sort_keys=True)
        if self.cached:
            with cache._errors_in_one_line():
                cache.file.execute(
                    "create table if not exists windows (key text primary key, shape text, windows blob)"
                )

    def encode(self, clip: EncodedClip) -> None:
        """Compute and cache the windows of an EncodedClip, unless they are cached or cheap to compute."""
        if self.cached and self._row("1", clip) is None:
            windows = self._compute(clip)
            with self.cache._errors_in_one_line(), self.cache.file:  # one transaction
                self.cache.file.execute(
                    "insert or replace into windows values (?, ?, ?)",
                    [self._key(clip), " ".join(map(str, windows.shape)), windows.astype(np.float16).tobytes()],
                )

    def read(self, clip: EncodedClip) -> np.ndarray:
        """Windows float32 (T, C, S) of an EncodedClip."""
        if not self.cached:
            return self._compute(clip)
        shape, windows = self._row("shape, windows", clip)
        return np.frombuffer(windows, np.float16).reshape([int(side) for side in shape.split()]).astype(np.float32)

    def _compute(self, clip):
        return self.features.windows(self.cache.read(clip)[1])[: clip.frames]

    def _key(self, clip):
        return f"{self.name} {clip.key}"

    def _row(self, columns, clip):
        with self.cache._errors_in_one_line():
            return self.cache.file.execute(f"select {columns} from windows where key = ?", [self._key(clip)]).fetchone()


def list_clips(sources: Collection[str | os.PathLike]) -> list[Path]:
    """List the clips among files and in folders, as datasets.clips does, without images.

    raises   TalkheadError if there are none
    """
    found = [path for path in datasets.clips(sources) if path.suffix.lower() not in STILLS]
    if not found:
        raise TalkheadError(f"{', '.join(map(str, sources))}: no clips; pass aligned video clips with sound")
    return found


def _speaker(clip):
    path = clip.with_suffix(".json")
    about = files.read_json(path) if path.exists() else {}
    return str(about["speaker"]) if isinstance(about, dict) and "speaker" in about else clip.resolve().parent.name


def _opening(clip, frames):
    """Measured mouth opening (frames,) of a clip; None if it has no track file."""
    track = clip.with_suffix(".track.npy")
    if not track.exists():
        return None
    track = files.read_array(track)
    if track.ndim != 2 or not len(track) or not np.isfinite(track).all():
        raise TalkheadError(
            f"{clip.with_suffix('.track.npy')}: holds {track.shape}, wanted finite (T, 3); delete or recreate it"
        )
    return np.pad(track[:frames, 0], (0, max(frames - len(track), 0)), "edge")


def split(
    clips: list[EncodedClip], hold_out: int | Sequence[str], seed: int
) -> tuple[list[EncodedClip], list[EncodedClip]]:
    """Split encoded clips into training and validation clips, which share no speaker unless clips or folders are named.

    clips      list of EncodedClip
    hold_out   number of random speakers, or names of speakers, clips or folders
    returns    two lists of EncodedClip: training, validation
    raises     TalkheadError if a name is unknown or no training clips are left
    """
    names = [{x.speaker, x.name, x.folder} for x in clips]
    if isinstance(hold_out, int):
        names = [{x.speaker} for x in clips]
        speakers = sorted(set().union(*names))
        if hold_out >= len(speakers):
            raise TalkheadError(
                f"hold_out: {hold_out} of {len(speakers)} speakers would leave no training clips; hold out fewer"
            )
        hold_out = np.random.default_rng(seed).permutation(speakers)[:hold_out].tolist()
    kept = set(hold_out)  # type: ignore[arg-type]  # by now names
    unknown = kept.difference(*names)
    if unknown:
        raise TalkheadError(
            f"hold_out: no speaker, clip or folder is called {sorted(unknown)[0]}; "
            f"the speakers are {', '.join(sorted({x.speaker for x in clips}))}"
        )
    validation = [x for x, known in zip(clips, names) if kept & known]
    training = [x for x, known in zip(clips, names) if not kept & known]
    if not training:
        raise TalkheadError("hold_out: no training clips are left; hold out fewer")
    return training, validation
