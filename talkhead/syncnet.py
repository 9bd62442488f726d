"""Lip sync metrics LSE-C and LSE-D by SyncNet.

Two networks embed 200 ms of audio and the five frames of that time in one space. LSE-D is the distance between lips and
audio at the best shift, LSE-C its margin to other shifts.

Source: Chung and Zisserman 2016 (SyncNet); Prajwal et al. 2020 (LSE-C and LSE-D). The layout of the weights and the
preprocessing of frames and audio are those of SyncNet's public code.
"""

import os
from typing import NamedTuple

import numpy as np
import python_speech_features
import torch
from torch import nn
from torch.nn import functional as F

from talkhead import files
from talkhead.errors import TalkheadError
from talkhead.mfcc import SAMPLE_RATE

FPS = 25  # frames per second, the only rate of SyncNet
SIDE = 224  # pixels of a crop
FRAMES = 5  # frames per embedding
STEPS = 20  # MFCC steps of 10 ms per embedding
STEPS_PER_FRAME = 4
SHIFTS = 15  # frames, largest shift of the audio in either direction
BATCH = 8  # video embeddings computed together

MARGIN = 0.4  # of the face's size, at its sides and below
FOREHEAD = 0.25  # of the landmarks' height, that a face detector's box has above the brows
MEDIAN_RADIUS = 6  # frames on either side of the running median of the boxes
OUTSIDE = 110  # grey level of a crop outside the image

# Channels, kernel, stride and padding of each convolution, and of the pooling after it: kernel, stride and padding.
_AUDIO_LAYERS = (
    (64, (3, 3), 1, 1, ((1, 1), (1, 1), 0)),
    (192, (3, 3), 1, 1, ((3, 3), (1, 2), 0)),
    (384, (3, 3), 1, 1, None),
    (256, (3, 3), 1, 1, None),
    (256, (3, 3), 1, 1, ((3, 3), (2, 2), 0)),
    (512, (5, 4), 1, 0, None),
)
_LIP_LAYERS = (
    (96, (5, 7, 7), (1, 2, 2), 0, ((1, 3, 3), (1, 2, 2), 0)),
    (256, (1, 5, 5), (1, 2, 2), (0, 1, 1), ((1, 3, 3), (1, 2, 2), (0, 1, 1))),
    (256, (1, 3, 3), 1, (0, 1, 1), None),
    (256, (1, 3, 3), 1, (0, 1, 1), None),
    (256, (1, 3, 3), 1, (0, 1, 1), ((1, 3, 3), (1, 2, 2), 0)),
    (512, (1, 6, 6), 1, 0, None),
)


class SyncNet(nn.Module):
    """SyncNet: the audio and the lip network.

    narrow   divisor of the widths: 1 is SyncNet, larger values are for tests
    """

    def __init__(self, narrow: int = 1) -> None:
        super().__init__()
        self.netcnnaud = _chain(1, _AUDIO_LAYERS, narrow, nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)
        self.netfcaud = _head(narrow)
        self.netcnnlip = _chain(3, _LIP_LAYERS, narrow, nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d)
        self.netfclip = _head(narrow)

    def hear(self, features: torch.Tensor) -> torch.Tensor:
        """Audio embeddings, float (N, 1024), of MFCC of 200 ms, float (N, 1, 13, 20)."""
        return self.netfcaud(self.netcnnaud(features).flatten(1))

    def see(self, frames: torch.Tensor) -> torch.Tensor:
        """Lip embeddings, float (T − 4, 1024), of 5 successive frames, float (T, 3, 224, 224), BGR in [0, 255]."""
        maps = self.netcnnlip(frames.transpose(0, 1)[None])  # (1, 512, T − 4, 1, 1)
        return self.netfclip(maps[0, :, :, 0, 0].T)


def _chain(channels, layers, narrow, convolution, normalisation, pool):
    parts = []
    for width, kernel, stride, padding, pooling in layers:
        parts += [
            convolution(channels, width // narrow, kernel, stride, padding),
            normalisation(width // narrow),
            nn.ReLU(),
        ]
        parts += [pool(*pooling)] if pooling else []
        channels = width // narrow
    return nn.Sequential(*parts)


def _head(narrow):
    return nn.Sequential(
        nn.Linear(512 // narrow, 512 // narrow),
        nn.BatchNorm1d(512 // narrow),
        nn.ReLU(),
        nn.Linear(512 // narrow, 1024 // narrow),
    )


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> SyncNet:
    """Load SyncNet from syncnet_v2.model, a flat state dict.

    raises   TalkheadError if it cannot be read or holds another network
    """
    state = files.load_weights(path)
    try:
        network = SyncNet(64 // len(state["netcnnaud.0.weight"]))
        network.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError, ZeroDivisionError, AttributeError) as problem:
        raise TalkheadError(
            f"{path}: not SyncNet's weights; give syncnet_v2.model, from talkhead weights fetch syncnet"
        ) from problem
    return network.eval().requires_grad_(False).to(device)


class Sync(NamedTuple):
    """Lip sync scores of a clip."""

    distance: float  # LSE-D: mean distance at the best shift; smaller is better
    confidence: float  # LSE-C: median over shifts minus LSE-D; larger is better
    offset: int  # frames, with the sign of the public code: positive if the audio must be delayed to match the lips


def sync_scores(lips: np.ndarray | torch.Tensor, audio: np.ndarray | torch.Tensor, shifts: int = SHIFTS) -> Sync:
    """LSE-D, LSE-C and offset of lip and audio embeddings.

    lips, audio  float (N, 1024) each, embeddings of the same times
    shifts       largest shift of the audio, frames; padded with zeros, as in the public code
    returns      Sync
    """
    lips = torch.as_tensor(np.asarray(lips))
    padded = F.pad(torch.as_tensor(np.asarray(audio)), (0, 0, shifts, shifts))
    means = torch.stack(
        [F.pairwise_distance(lips, padded[shift : shift + len(lips)]).mean() for shift in range(2 * shifts + 1)]
    )
    best = int(means.argmin())
    return Sync(float(means[best]), float(means.median() - means[best]), shifts - best)


def sound_features(audio: np.ndarray) -> np.ndarray:
    """MFCC, float32 (M, 13), of audio, float (N,) in [-1, 1] at 16 kHz: those of python_speech_features for 16 bits."""
    samples = np.rint(np.clip(np.asarray(audio, np.float64) * 32768, -32768, 32767))
    return python_speech_features.mfcc(samples, SAMPLE_RATE, appendEnergy=True).astype(np.float32)


def face_box(landmarks: np.ndarray) -> tuple[float, float, float]:
    """Estimate a face detector's box from landmarks: (x, y, half a side), pixels.

    Departure: the public code crops around the boxes of the detector S3FD; here they are estimated from the landmarks,
    so LSE values of the two are not comparable.
    """
    points = np.asarray(landmarks, np.float64)
    (left, top), (right, bottom) = points.min(0), points.max(0)
    top -= FOREHEAD * (bottom - top)
    return (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top) / 2


def crop(frame: np.ndarray, box: tuple[float, float, float] | np.ndarray | None) -> np.ndarray:
    """Crop SyncNet's input, uint8 (224, 224, 3), from a frame, uint8 (H, W, 3) RGB.

    box   (x, y, half a side) of the face; None: the whole frame
    """
    image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).float()
    if box is not None:
        x, y, half = box
        pad = int(half * (1 + 2 * MARGIN))
        top, bottom = (int(value + pad) for value in (y - half, y + half * (1 + 2 * MARGIN)))
        left, right = (int(value + pad) for value in (x - half * (1 + MARGIN), x + half * (1 + MARGIN)))
        image = F.pad(image, (pad, pad, pad, pad), value=OUTSIDE)[
            :, max(top, 0) : max(bottom, 1), max(left, 0) : max(right, 1)
        ]
    small = F.interpolate(image[None], (SIDE, SIDE), mode="bilinear", align_corners=False)[0]
    return small.round().byte().permute(1, 2, 0).numpy()


class SyncNetEvaluator:
    """Streaming lip sync evaluation of one clip: `add` every frame, then `score` against the audio.

    network  SyncNet
    """

    def __init__(self, network: SyncNet) -> None:
        self.network, self.device = network, next(network.parameters()).device
        self._pending: list[np.ndarray] = []
        self._boxes: list[tuple[float, ...]] = []
        self._crops: list[np.ndarray] = []
        self._embeddings: list[np.ndarray] = []
        self._cropped = 0

    def add(self, frame: np.ndarray, landmarks: np.ndarray | None = None) -> None:
        """Add a frame, uint8 (H, W, 3), and the face's 68 landmarks; a frame of 224 x 224 is a crop and needs none."""
        whole = frame.shape[:2] == (SIDE, SIDE)
        self._boxes.append((np.nan,) * 3 if landmarks is None or whole else face_box(landmarks))
        self._pending.append(frame)
        if len(self._pending) > MEDIAN_RADIUS:
            self._crop()

    def _crop(self):
        """Crop the oldest pending frame by the median box of its neighbours, or keep it whole if they have no face."""
        near = np.array(self._boxes[max(0, self._cropped - MEDIAN_RADIUS) : self._cropped + MEDIAN_RADIUS + 1])
        near = near[np.isfinite(near).all(1)]
        self._crops.append(crop(self._pending.pop(0), np.median(near, 0) if len(near) else None))
        self._cropped += 1
        if len(self._crops) == BATCH + FRAMES - 1:
            self._embed()

    @torch.no_grad()
    def _embed(self):
        if len(self._crops) >= FRAMES:
            frames = torch.from_numpy(np.stack(self._crops)[..., ::-1].copy()).permute(0, 3, 1, 2).float()
            self._embeddings.append(self.network.see(frames.to(self.device)).cpu().numpy())
            self._crops = self._crops[1 - FRAMES :]

    @torch.no_grad()
    def score(self, audio: np.ndarray) -> Sync | None:
        """Sync of all frames so far with their audio, float (N,) at 16 kHz; None if there are fewer than six frames."""
        while self._pending:
            self._crop()
        self._embed()
        count = min(self._cropped, len(audio) * FPS // SAMPLE_RATE) - FRAMES
        features = sound_features(audio) if count > 0 else np.zeros((0, 13))
        count = min(count, (len(features) - STEPS) // STEPS_PER_FRAME + 1)
        if count < 1:
            return None
        starts = range(0, count * STEPS_PER_FRAME, STEPS_PER_FRAME)
        windows = np.stack([features[start : start + STEPS].T for start in starts])[:, None]
        audio_embeddings = [
            self.network.hear(torch.from_numpy(windows[start : start + 64]).to(self.device)).cpu().numpy()
            for start in range(0, count, 64)
        ]
        return sync_scores(np.concatenate(self._embeddings)[:count], np.concatenate(audio_embeddings))
