"""The one loop that every trainer shares: seed, step, average, log, save, resume.

A trainer builds its networks and one function that takes one optimiser step; `fit` does the rest. Randomness inside a
step is drawn from a generator that is reseeded from (seed, step index), so a resumed run needs no saved random state to
repeat the uninterrupted one bit for bit.
"""

import copy
import math
import signal
import threading
import time
from pathlib import Path

import numpy as np
import torch

from talkhead import files
from talkhead.errors import TalkheadError


def pick_device(name="auto"):
    """The torch device that `name` stands for.

    name     "auto" (cuda, then mps, then cpu), "cpu", "cuda", "cuda:1", "mps"
    raises   TalkheadError if the device is not there
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        raise TalkheadError(f"--device {name}: not usable here ({reason}); pass --device cpu") from problem
    return device


def to_images(frames):
    """uint8 frames (N, H, W, 3), numpy or torch -> float32 images (N, 3, H, W) in [-1, 1]."""
    frames = torch.from_numpy(np.require(frames, requirements=["C", "W"])) if isinstance(frames, np.ndarray) else frames
    return frames.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_frames(images):
    """float images (N, 3, H, W) in [-1, 1] -> uint8 numpy frames (N, H, W, 3), rounded and clipped."""
    frames = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return frames.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def resize(frame, size):
    """A square uint8 frame (H, H, 3) at another size; area-averaged when it shrinks."""
    if frame.shape[:2] == (size, size):
        return frame
    image = to_images(frame[None])
    image = torch.nn.functional.interpolate(image, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return to_frames(image)[0]


class Images:
    """Training images: every frame of some clips, folders and pictures, held as uint8.

    sources  paths of clips, pictures, or folders that hold them at any depth
    size     the side that frames are resized to; frames must be square
    every    keep one frame in `every`
    limit    stop after this many frames
    raises   TalkheadError if nothing can be read or a frame is not square

    `names[i]` is the file that frame i came from; `skipped` names files that could not be read.
    """

    def __init__(self, sources, size, every=1, limit=None):
        self.size, self.names, self.skipped = size, [], []
        frames = []
        for path in clips(sources):
            try:
                found = [resize(frame, size) for frame in self._square(path, every)]
            except TalkheadError as problem:
                self.skipped.append(str(problem))
                continue
            frames += found
            self.names += [str(path)] * len(found)
            if limit is not None and len(frames) >= limit:
                break
        if not frames:
            first = f" ({self.skipped[0]})" if self.skipped else ""
            raise TalkheadError(f"{', '.join(map(str, sources))}: no frames to train on{first}; pass aligned clips or pictures")
        self.frames = np.stack(frames[:limit])
        self.names = self.names[:limit]

    @staticmethod
    def _square(path, every):
        with files.read_frames(path) as reader:
            for index, frame in enumerate(reader):
                if frame.shape[0] != frame.shape[1]:
                    raise TalkheadError(f"{path}: frames are {frame.shape[1]}x{frame.shape[0]}, wanted square; run talkhead align first")
                if index % every == 0:
                    yield frame

    def __len__(self):
        return len(self.frames)

    def batch(self, step, count, seed=0, flip=False):
        """The images of one step: every frame once an epoch, in an order set by the seed alone.

        returns  float32 (count, 3, size, size) in [-1, 1]
        """
        picks = [self._pick(step * count + k, seed) for k in range(count)]
        images = to_images(self.frames[picks])
        if flip:
            mirrored = np.random.default_rng([seed, step, 1]).random(count) < 0.5
            images[mirrored] = images[mirrored].flip(-1)
        return images

    def _pick(self, position, seed):
        epoch, index = divmod(position, len(self))
        if getattr(self, "_order_of", None) != (epoch, seed):
            self._order = np.random.default_rng([seed, epoch]).permutation(len(self))
            self._order_of = (epoch, seed)
        return self._order[index]


def clips(sources):
    """The video and picture files that some paths stand for, folders searched at any depth, sorted."""
    suffixes = {".mp4", ".mpg", ".mpeg", ".avi", ".mov", ".mkv", ".webm", ".png", ".jpg", ".jpeg"}
    found = []
    for source in map(Path, sources):
        if source.is_dir():
            found += sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes)
        elif source.exists():
            found.append(source)
        else:
            raise TalkheadError(f"{source}: not found; pass clips or a folder of clips")
    return found


def fit(step, state, *, steps, out, header, seed=0, save_minutes=5.0, log_every=10, validate=None, validate_every=None,
        keep_best=None, on_save=None):
    """Run a trainer to `steps`, resuming from `out` if it is there; yield its log records.

    step            function of the step index that takes one optimiser step and returns a dict of floats
    state           {"model": ..., name: ...} objects with state_dict and load_state_dict; "model" is what inference
                    loads, the others are kept in the file under "training"
    out             path of the .pt to write, and to resume
    header          {"kind": str, "config": dict}; a resumed file must have the same config
    save_minutes    time between checkpoints; one is always written at the end, and on SIGTERM
    validate        function without arguments that returns a dict of floats, run every `validate_every` steps
    keep_best       name of the validation figure that is to be small; the file's "model" is then the best one seen
    on_save         called after each checkpoint
    yields          {"step": int, "seconds": float, ...}: one record every `log_every` steps and at each validation
    raises          TalkheadError on another config, on a loss that is not finite, and when stopped by SIGTERM
    """
    out = Path(out)
    done, best = _resume(out, header, state)
    stop = _StopSignal()
    started = saved = time.monotonic()

    def save(count):
        _save(out, header, state, count, best)
        if on_save is not None:
            on_save()

    with stop:
        for index in range(done, steps):
            record = _seeded(step, index, seed)
            bad = [name for name, value in record.items() if not math.isfinite(value)]
            if bad:
                raise TalkheadError(f"{out}, step {index}: {bad[0]} is not finite; lower --lr and resume: the file holds the last good checkpoint")
            count = index + 1
            checked = validate is not None and (count % validate_every == 0 or count == steps)
            if checked:
                record |= _seeded(lambda _: validate(), index, seed)
                if keep_best is not None and (best is None or record[keep_best] < best["value"]):
                    best = {"value": record[keep_best], "step": count, "model": _cpu(state["model"].state_dict())}
            if checked or count % log_every == 0 or count == steps:
                yield {"step": count, "seconds": round(time.monotonic() - started, 3), **record}
            if stop.raised or count == steps or time.monotonic() - saved > 60 * save_minutes:
                save(count)
                saved = time.monotonic()
            if stop.raised:
                raise TalkheadError(f"{out}: stopped at step {count} of {steps}, checkpoint written; run the same command to go on")
    if done >= steps and on_save is not None:
        on_save()


def _seeded(function, index, seed):
    with torch.random.fork_rng():
        torch.manual_seed((seed * 1_000_003 + index) % 2**63)
        return function(index)


def _cpu(tree):
    """A copy of a state dict whose tensors no later step can change."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().cpu().clone()
    if isinstance(tree, dict):
        return {key: _cpu(value) for key, value in tree.items()}
    return copy.deepcopy(tree)


def _save(out, header, state, count, best):
    weights = {**header, "step": count, "model": state["model"].state_dict()}
    training = {name: part.state_dict() for name, part in state.items() if name != "model"}
    if best is not None:
        training |= {"last": weights["model"], "best_value": best["value"], "best_step": best["step"]}
        weights["model"] = best["model"]
    files.save_weights(out, weights | {"training": training})


def _resume(out, header, state):
    """Load `out` into `state` if it exists; returns the steps done and the best model so far."""
    if not out.exists():
        return 0, None
    weights = files.load_weights(out, kind=header["kind"])
    if "training" not in weights:
        raise TalkheadError(f"{out}: holds finished weights, not a training run; pass another --output")
    changed = [key for key in sorted(set(weights["config"]) | set(header["config"]))
               if weights["config"].get(key) != header["config"].get(key)]
    if changed:
        key = changed[0]
        raise TalkheadError(f"{out}: was trained with {key}={weights['config'].get(key)}, now {header['config'].get(key)}; "
                            "resume with the same options or pass another --output")
    training = weights["training"]
    best = None
    if "last" in training:
        best = {"value": training["best_value"], "step": training["best_step"], "model": weights["model"]}
    state["model"].load_state_dict(training.get("last", weights["model"]))
    for name, part in state.items():
        if name != "model":
            part.load_state_dict(training[name])
    return weights["step"], best


class _StopSignal:
    """Remembers a SIGTERM so that the loop can write a checkpoint before it ends."""

    raised = False

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, *_):
        self.raised = True

    def __exit__(self, *_):
        if hasattr(self, "_before"):
            signal.signal(signal.SIGTERM, self._before)
