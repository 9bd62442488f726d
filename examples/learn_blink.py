"""Learn which way in W+ shuts a generator's eyes: how talkhead/weights/blink.npy was made.

    synth.py -o puppets/ --count 300 --size 128 --portraits photos/
    python examples/learn_blink.py puppets/ -o talkhead/weights/blink.npy

Puppets tell when their lids are shut. The bundled encoder tells it too softly (regression of its codes on the lids
gives a direction that moves nothing to be seen), so the direction is found through the generator: one latent b, the
same for all faces, with which G(E(open) + b) - G(E(open)) comes nearest, around the eyes, to what the puppet's own
frames of shut and open eyes differ by, and to nothing elsewhere. Prints a JSON object now and then, with the share of
that difference which is missed on faces left out, and draws those: open, shut, and G(E(open)) with 0, 1/2 and 1 b.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from contact_sheet import sheet
from talkhead import checkpoints, files, image_files, inversion, synthesis, video_files
from talkhead.images import resize, to_images

SHUT, AWAKE = 0.9, 0.1  # closures between which a pair is taken
NEAR = 6  # frames between its two
MARGIN = 5  # pixels of 128 around the eyes' landmarks that count
OUTSIDE = 10.0  # weight of what moves elsewhere
SHRINK = 1e-4  # weight of the latent's own square
HELD_OUT = 8


def pairs(folder, size):
    """(open frame, shut frame, mask) of each puppet that blinks."""
    for path in files.find(folder, {".json"}):
        lids = np.array(files.read_json(path)["blink"])
        shut = [at for at in np.flatnonzero(lids > SHUT) if at > NEAR]
        awake = (
            [at for at in range(shut[0] - NEAR, shut[0] + NEAR + 1) if at < len(lids) and lids[at] < AWAKE]
            if shut
            else []
        )
        if not awake:
            continue
        other = min(awake, key=lambda at: abs(at - shut[0]))
        with video_files.read_frames(path.with_suffix(".mp4")) as reader:
            frames = list(reader)
        points = files.read_array(path.with_suffix(".landmarks.npy"))[other] * size / frames[0].shape[0]
        mask = np.zeros((size, size), np.float32)
        for eye in (points[36:42], points[42:48]):
            (left, top), (right, bottom) = (
                (eye.min(0) - MARGIN * size / 128).astype(int),
                (eye.max(0) + MARGIN * size / 128).astype(int),
            )
            mask[max(top, 0) : bottom, max(left, 0) : right] = 1
        yield frames[other], frames[shut[0]], mask


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("puppets", help="folder that synth.py wrote")
    parser.add_argument("--generator", help="weights; the bundled ones if left out")
    parser.add_argument("--encoder", help="weights; the bundled ones if left out")
    parser.add_argument("--count", type=int, default=60, help="pairs of frames, of which the last eight are left out")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("-o", "--output", type=Path, default=Path("blink.npy"))
    options = parser.parse_args()
    generator = checkpoints.load_generator(options.generator or checkpoints.bundled("generator"))
    encoder = checkpoints.load_encoder(options.encoder or checkpoints.bundled("encoder"), generator)
    awake, shut, masks = zip(
        *(pair for _, pair in zip(range(options.count), pairs(options.puppets, generator.resolution)))
    )
    codes = torch.from_numpy(np.stack(list(inversion.encode(encoder, awake))))
    change = difference(shut, generator.resolution) - difference(awake, generator.resolution)
    masks = torch.from_numpy(np.stack(masks))[:, None]
    with torch.no_grad():
        before = torch.cat([generator.synthesis(part, noise="const") for part in codes.split(options.batch)])
    latent = torch.zeros(1, *codes.shape[1:], requires_grad=True)
    adam = torch.optim.Adam([latent], options.lr)
    learnt, left = np.arange(len(codes) - HELD_OUT), np.arange(len(codes) - HELD_OUT, len(codes))

    def missed(chosen, latent):
        moved = generator.synthesis(codes[chosen] + latent, noise="const") - before[chosen]
        eyes = ((moved - change[chosen]) * masks[chosen]).square().sum() / (
            change[chosen] * masks[chosen]
        ).square().sum()
        return eyes, (moved * (1 - masks[chosen])).square().mean()

    for step in range(options.steps):
        chosen = np.random.default_rng(step).choice(learnt, options.batch, replace=False)
        eyes, elsewhere = missed(chosen, latent)
        adam.zero_grad()
        (eyes + OUTSIDE * elsewhere + SHRINK * latent.square().sum()).backward()
        adam.step()
        if (step + 1) % 50 == 0:
            with torch.no_grad():
                eyes, elsewhere = missed(left, latent)
            print(
                json.dumps(
                    {
                        "step": step + 1,
                        "missed": round(float(eyes), 3),
                        "elsewhere_rms": round(float(elsewhere.sqrt()), 4),
                    }
                ),
                flush=True,
            )
            files.write_latents(options.output, latent.detach().numpy(), {"generator": generator.fingerprint})
    found = latent.detach()[0]
    rows = [
        [
            resize(awake[k], generator.resolution),
            resize(shut[k], generator.resolution),
            *synthesis.synthesize(generator, [codes[k] + part * found for part in (0, 0.5, 1)]),
        ]
        for k in left
    ]
    image_files.write_image(options.output.with_suffix(".png"), sheet(rows, 5, generator.resolution), synthetic=True)


def difference(frames, size):
    return to_images(np.stack([resize(frame, size) for frame in frames]))


if __name__ == "__main__":
    main()
