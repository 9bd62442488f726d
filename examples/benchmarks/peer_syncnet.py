"""Compare our SyncNet with the public code: embeddings and distances by the same weights, frames and sound.

    python examples/benchmarks/peer_syncnet.py SYNCNET_PYTHON

SYNCNET_PYTHON is a checkout of joonson/syncnet_python. Prints JSON: the largest difference of what is seen and of what
is heard, over the largest number, and the differences of LSE-D, LSE-C and offset, of that short clip and of sixty
moments made up. The weights are made by a formula, so that anyone gets the same. `--numbers` prints what theirs found
instead: that is where tests/data/syncnet.json comes from.
"""

import argparse
import importlib
import json
import sys
import zlib

import numpy as np
import torch

from talkhead import syncnet

FRAMES = 12


def random(name):
    """A stream of numbers that is the same on every machine."""
    return np.random.RandomState(zlib.crc32(name.encode()))


def weights(narrow=1):
    """A state dict of SyncNet's layout whose numbers keep a signal alive through all layers."""
    state = {}
    for name, value in syncnet.SyncNet(narrow).state_dict().items():
        draws, shape = random(name), tuple(value.shape)
        if name.endswith("num_batches_tracked"):
            state[name] = value
        elif len(shape) > 1:
            filters = draws.randn(*shape) * np.sqrt(3 / np.prod(shape[1:]))
            state[name] = filters - filters.mean(tuple(range(1, len(shape))), keepdims=True)
        else:
            state[name] = (
                0.2 * draws.randn(*shape) if name.endswith(("bias", "running_mean")) else 0.5 + draws.rand(*shape)
            )
    return {
        name: torch.as_tensor(value, dtype=value.dtype if torch.is_tensor(value) else torch.float32)
        for name, value in state.items()
    }


def frames(count=FRAMES):
    """Crops of coloured squares that change from frame to frame: uint8 (count, 224, 224, 3) RGB."""
    return random("frames").randint(0, 256, (count, 28, 28, 3)).astype(np.uint8).repeat(8, 1).repeat(8, 2)


def sound(count=FRAMES):
    """Noise in bursts as long as the frames, exact in 16 bits: float64 (N,)."""
    samples = random("sound").randn(count * 640) * (1 + np.sin(np.arange(count * 640) / 900))
    return np.rint(samples * 3000) / 32768


def moments(count=60, width=32, late=3):
    """Embeddings of frames and of sound, two float32 (count, width): alike, but some moments late."""
    draws = random("moments")
    seen = draws.randn(count + late, width)
    return seen[late:].astype(np.float32), (seen[:count] + 0.5 * draws.randn(count, width)).astype(np.float32)


def judged(distances):
    """LSE-D, LSE-C and offset, as the public code takes them from the mean distance at each shift."""
    least, best = distances.min(0)
    return {"lse_d": float(least), "lse_c": float(distances.median() - least), "offset": 15 - int(best)}


def theirs(folder, state):
    """What the public code sees and hears, and what it makes of that."""
    sys.path.insert(0, folder)
    import python_speech_features

    network = importlib.import_module("SyncNetModel").S().eval()
    network.load_state_dict(state)
    images = (
        torch.from_numpy(frames()[..., ::-1].astype(float)).float().permute(3, 0, 1, 2)[None]
    )  # BGR, as cv2 reads it
    features = python_speech_features.mfcc((sound() * 32768).astype(np.int16), 16000).T
    features = torch.from_numpy(features).float()[None, None]
    with torch.no_grad():
        seen = network.forward_lip(torch.cat([images[:, :, t : t + 5] for t in range(FRAMES - 5)]))
        heard = network.forward_aud(torch.cat([features[..., t * 4 : t * 4 + 20] for t in range(FRAMES - 5)]))
    distance = importlib.import_module("SyncNetInstance").calc_pdist
    pairs = {"clip": (seen, heard), "moments": tuple(map(torch.from_numpy, moments()))}
    return {"seen": seen.numpy(), "heard": heard.numpy()} | {
        name: judged(torch.stack(distance(*pair, vshift=15), 1).mean(1)) for name, pair in pairs.items()
    }


def ours(state):
    """The same by talkhead."""
    network, starts = syncnet.SyncNet().eval(), range(FRAMES - 5)
    network.load_state_dict(state)
    evaluator = syncnet.SyncNetEvaluator(network)
    for frame in frames():
        evaluator.add(frame)
    syncs = {"clip": evaluator.score(sound()), "moments": syncnet.sync_scores(*moments())}
    features = syncnet.sound_features(sound())
    images = torch.from_numpy(frames()[..., ::-1].copy()).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        seen = network.see(images)[: len(starts)]
        heard = network.hear(torch.from_numpy(np.stack([features[t * 4 : t * 4 + 20].T for t in starts])[:, None]))
    return {"seen": seen.numpy(), "heard": heard.numpy()} | {
        name: dict(zip(("lse_d", "lse_c", "offset"), sync)) for name, sync in syncs.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", metavar="SYNCNET_PYTHON")
    parser.add_argument("--numbers", action="store_true", help="print what their code found")
    options = parser.parse_args()
    state = weights()
    wanted = theirs(options.checkout, state)
    if options.numbers:
        corner = {
            name: [[round(float(value), 5) for value in row[:8]] for row in wanted[name]] for name in ("seen", "heard")
        }
        print(json.dumps(wanted | corner))
        return
    found = ours(state)
    print(
        json.dumps(
            {
                name: float(np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max())
                for name in ("seen", "heard")
            }
            | {
                f"{name} {field}": abs(found[name][field] - wanted[name][field])
                for name in ("clip", "moments")
                for field in wanted[name]
            }
        )
    )


if __name__ == "__main__":
    main()
