"""Whether lips and sound belong together, as SyncNet hears and sees it: the measures LSE-C and LSE-D.

Two networks, one that hears 200 ms of sound and one that sees the five frames of that time, put both into one space. Where lips follow
the sound, the two are near; LSE-D is how near, LSE-C how much nearer than at other shifts.

Source: Chung and Zisserman 2016 (SyncNet); Prajwal et al. 2020 (LSE-C and LSE-D). Layout of the weights, and what is done with frames and
sound, as the public code of SyncNet has it.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from talkhead import files
from talkhead.errors import TalkheadError
from talkhead.mfcc import SAMPLE_RATE, mfcc

FPS = 25  # frames a second: of no other rate does it know
SIDE = 224  # pixels of a crop
FRAMES = 5  # that it looks at at once
STEPS = 20  # of sound, 10 ms each, that it hears at once
STEPS_PER_FRAME = 4
SHIFTS = 15  # frames by which the sound is moved, either way
TOGETHER = 8  # frames worked on together

MARGIN = 0.4  # of the face's size: what is left around it, at the sides and below
FOREHEAD = 0.25  # of the landmarks' height: what a face detector's box has above the brows
STEADY = 6  # frames on either side, over whose median the box is held still
OUTSIDE = 110  # grey, where a crop leaves the picture

# Channels, kernel and padding of each convolution, and the pooling after it: kernel, stride and padding.
_HEARING = (
    (64, (3, 3), 1, 1, ((1, 1), (1, 1), 0)),
    (192, (3, 3), 1, 1, ((3, 3), (1, 2), 0)),
    (384, (3, 3), 1, 1, None),
    (256, (3, 3), 1, 1, None),
    (256, (3, 3), 1, 1, ((3, 3), (2, 2), 0)),
    (512, (5, 4), 1, 0, None),
)
_SEEING = (
    (96, (5, 7, 7), (1, 2, 2), 0, ((1, 3, 3), (1, 2, 2), 0)),
    (256, (1, 5, 5), (1, 2, 2), (0, 1, 1), ((1, 3, 3), (1, 2, 2), (0, 1, 1))),
    (256, (1, 3, 3), 1, (0, 1, 1), None),
    (256, (1, 3, 3), 1, (0, 1, 1), None),
    (256, (1, 3, 3), 1, (0, 1, 1), ((1, 3, 3), (1, 2, 2), 0)),
    (512, (1, 6, 6), 1, 0, None),
)


class SyncNet(nn.Module):
    """The two networks.

    narrow   what the widths are divided by: 1 is SyncNet, more is a toy
    """

    def __init__(self, narrow=1):
        super().__init__()
        self.netcnnaud = _chain(1, _HEARING, narrow, nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)
        self.netfcaud = _head(narrow)
        self.netcnnlip = _chain(3, _SEEING, narrow, nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d)
        self.netfclip = _head(narrow)

    def hear(self, features):
        """float (N, 1, 13, 20), MFCC of 200 ms, to float (N, 1024)."""
        return self.netfcaud(self.netcnnaud(features).flatten(1))

    def see(self, frames):
        """float (T, 3, 224, 224), BGR in [0, 255], to float (T − 4, 1024): what each five frames in a row are like."""
        maps = self.netcnnlip(
            frames.transpose(0, 1)[None]
        )  # (1, 512, T − 4, 1, 1): only its first layer looks along time
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


def load(path, device="cpu"):
    """SyncNet from a file of weights, syncnet_v2.model: a flat state dict.

    raises   TalkheadError if it cannot be read or holds another network
    """
    state = files.load_weights(path)
    try:
        network = SyncNet(64 // len(state["netcnnaud.0.weight"]))
        network.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError, ZeroDivisionError, AttributeError) as problem:
        raise TalkheadError(
            f"{path}: not SyncNet's weights; give syncnet_v2.model, as talkhead weights fetch syncnet brings it"
        ) from problem
    return network.eval().requires_grad_(False).to(device)


class Sync(NamedTuple):
    """How well lips and sound agree."""

    distance: float  # LSE-D: the mean distance at the best shift; smaller is better
    confidence: float  # LSE-C: how far that is below the median over shifts; larger is better
    offset: int  # frames, as the public code gives it: positive where the sound must be delayed to fit the lips


def sync_scores(seen, heard, shifts=SHIFTS):
    """LSE-D, LSE-C and the offset of what was seen and heard.

    seen, heard  float (N, 1024) each, of the same moments
    shifts       frames that the sound is moved at most; beyond its ends there are zeros, as in the public code
    returns      Sync
    """
    seen = torch.as_tensor(np.asarray(seen))
    padded = F.pad(torch.as_tensor(np.asarray(heard)), (0, 0, shifts, shifts))
    means = torch.stack(
        [F.pairwise_distance(seen, padded[shift : shift + len(seen)]).mean() for shift in range(2 * shifts + 1)]
    )
    best = int(means.argmin())
    return Sync(float(means[best]), float(means.median() - means[best]), shifts - best)


def sound_features(audio):
    """The 13 MFCC of python_speech_features, with its defaults, of sound in 16 bits: float (N,) in [-1, 1] at 16 kHz to float32 (M, 13)."""
    samples = np.rint(np.clip(np.asarray(audio, np.float64) * 32768, -32768, 32767))
    others = mfcc(samples, floor=None)  # (M, 12): all but the first, for which the energy stands
    emphasised = np.append(samples[0], samples[1:] - 0.97 * samples[:-1])
    padded = np.pad(emphasised, (0, max(0, (len(others) - 1) * 160 + 400 - len(emphasised))))
    energy = np.array(
        [
            np.square(np.abs(np.fft.rfft(padded[start : start + 400], 512))).sum() / 512
            for start in range(0, 160 * len(others), 160)
        ]
    )
    loudness = np.log(np.where(energy == 0, np.finfo(float).eps, energy))
    return np.column_stack([loudness, others]).astype(np.float32)


def face_box(landmarks):
    """Where a face detector would see a face with these landmarks: (x, y, half a side), pixels.

    Departure: the public code crops around the boxes of S3FD, a network; here they are guessed from the landmarks, so that LSE by the one
    and by the other may not be compared.
    """
    points = np.asarray(landmarks, np.float64)
    (left, top), (right, bottom) = points.min(0), points.max(0)
    top -= FOREHEAD * (bottom - top)
    return (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top) / 2


def crop(frame, box):
    """What SyncNet sees of a frame: uint8 (H, W, 3) RGB to uint8 (224, 224, 3).

    box   (x, y, half a side) of the face; None takes the whole frame
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
    """Sees the frames of one clip as they come, and says at the end how well they fit its sound.

    network  SyncNet
    """

    def __init__(self, network):
        self.network, self.device = network, next(network.parameters()).device
        self._waiting, self._boxes, self._crops, self._seen, self._cropped = [], [], [], [], 0

    def add(self, frame, landmarks=None):
        """Take a frame, uint8 (H, W, 3), and the face's 68 landmarks: of a frame of 224 x 224 they are not wanted, it is taken for a crop."""
        whole = frame.shape[:2] == (SIDE, SIDE)
        self._boxes.append((np.nan,) * 3 if landmarks is None or whole else face_box(landmarks))
        self._waiting.append(frame)
        if len(self._waiting) > STEADY:
            self._crop()

    def _crop(self):
        """Cut the oldest frame that waits by the median box of its neighbours; where no face is near, it keeps the whole frame."""
        near = np.array(self._boxes[max(0, self._cropped - STEADY) : self._cropped + STEADY + 1])
        near = near[np.isfinite(near).all(1)]
        self._crops.append(crop(self._waiting.pop(0), np.median(near, 0) if len(near) else None))
        self._cropped += 1
        if len(self._crops) == TOGETHER + FRAMES - 1:
            self._look()

    @torch.no_grad()
    def _look(self):
        if len(self._crops) >= FRAMES:
            frames = torch.from_numpy(np.stack(self._crops)[..., ::-1].copy()).permute(0, 3, 1, 2).float()
            self._seen.append(self.network.see(frames.to(self.device)).cpu().numpy())
            self._crops = self._crops[1 - FRAMES :]

    @torch.no_grad()
    def score(self, audio):
        """Compare all frames so far with their sound, float (N,) at 16 kHz: Sync, or None of a clip shorter than six frames."""
        while self._waiting:
            self._crop()
        self._look()
        count = min(self._cropped, len(audio) * FPS // SAMPLE_RATE) - FRAMES
        features = sound_features(audio) if count > 0 else np.zeros((0, 13))
        count = min(count, (len(features) - STEPS) // STEPS_PER_FRAME + 1)
        if count < 1:
            return None
        windows = np.stack(
            [features[start : start + STEPS].T for start in range(0, count * STEPS_PER_FRAME, STEPS_PER_FRAME)]
        )[:, None]
        heard = [
            self.network.hear(torch.from_numpy(windows[start : start + 64]).to(self.device)).cpu().numpy()
            for start in range(0, count, 64)
        ]
        return sync_scores(np.concatenate(self._seen)[:count], np.concatenate(heard))
