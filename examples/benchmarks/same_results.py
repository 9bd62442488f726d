"""Bitwise comparison of two installed versions: same seeds, same latents, frames and weights.

    python examples/benchmarks/same_results.py OLD/bin/python NEW/bin/python [--only NAME]

runs every command below with both interpreters, on one thread, and compares SHA-256 digests: of latents and sound as
written, of decoded frames, and of a trained file's tensors in their order (keys may have been renamed). Inputs are made
by the first version from the files of this repository. Prints one line per result, `same` or `DIFFERENT`; the exit code
is 1 if one differs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1]
FACE, SPEECH = EXAMPLES / "face.png", EXAMPLES / "speech.wav"
TOY = "--mapping-layers 2 --batch 2 --steps 10"

# Name: (options, results). {in} is the folder of the inputs, {out} of the results.
RESULTS = {
    "generate second": (
        "generate --identity {face} --aligned --audio {speech} --no-detail --latents-out {out}/lat.npy -o "
        "{out}/clip.mp4",
        ("lat.npy", "clip.mp4"),
    ),
    "generate first": (
        "generate --identity {face} --aligned --audio {speech} --no-detail --model first --seed 3 --latents-out "
        "{out}/lat.npy -o {out}/clip.mp4",
        ("lat.npy", "clip.mp4"),
    ),
    "generate detail": (
        "generate --identity {in}/photo.png --aligned --audio {speech} -o {out}/clip.mp4",
        ("clip.mp4",),
    ),
    "generate noise": (
        "generate --identity {face} --aligned --noise-seed 7 --seconds 1 --latents-out {out}/lat.npy -o {out}/clip.mp4",
        ("lat.npy", "clip.mp4"),
    ),
    "dub": ("generate --identity {in}/a/1.mp4 --aligned --audio {speech} -o {out}/clip.mp4", ("clip.mp4",)),
    "invert encoder": ("invert {in}/short.mp4 -o {out}/lat.npy", ("lat.npy",)),
    "invert optimise": (
        "invert {in}/short.mp4 --method optimise --steps 12 --perceptual pyramid -o {out}/lat.npy",
        ("lat.npy",),
    ),
    "invert sequential": (
        "invert {in}/short.mp4 --method sequential --steps 12 --next-steps 4 --perceptual pyramid -o {out}/lat.npy",
        ("lat.npy",),
    ),
    "invert hybrid": (
        "invert {in}/short.mp4 --method hybrid --hybrid-steps 12 --next-steps 4 --perceptual ssim -o {out}/lat.npy",
        ("lat.npy",),
    ),
    "pti": ("pti {in}/short.mp4 --aligned --steps 10 --batch 2 --perceptual pyramid -o {out}/me.pt", ("me.pt",)),
    "train-stylegan": (
        f"train-stylegan {{in}}/short.mp4 {TOY} --resolution 32 --channels 16,16,16,16 --augment ada --r1-every 2 "
        f"--path-every 2 -o {{out}}/g.pt",
        ("g.pt",),
    ),
    "train-stylegan encoder": (
        f"train-stylegan {{in}}/short.mp4 {TOY} --resolution 128 --channels 16,16,16,16,16,16 --encoder-init "
        f"{{encoder}} --encoder-lr 0.0005 --encoder-out {{out}}/e.pt --reconstruct-only 6 "
        "--mouth-weight 4 --perceptual pyramid -o {out}/g.pt",
        ("g.pt", "e.pt"),
    ),
    "train-encoder": (
        "train-encoder {in}/short.mp4 --width 8 --steps 10 --batch 2 --perceptual pyramid --latent-weight 1 -o "
        "{out}/e.pt",
        ("e.pt",),
    ),
    "train-audio2latent second": (
        "train-audio2latent {in}/a {in}/b {in}/c --hold-out 1 --steps 10 --batch 2 --frames 5 --components 8 "
        "--channels 8,8,8,8,8 --lstm 8 --decoder 8 --hidden 16 --embedding 8 --image-frames 2 --mouth-weight 1 "
        "--perceptual pyramid --validate-every 5 -o {out}/m.pt",
        ("m.pt",),
    ),
    "train-audio2latent first": (
        "train-audio2latent {in}/a {in}/b {in}/c --model first --hold-out 1 --steps 10 --batch 2 --frames 5 --channels "
        "8,8,8,8 --lstm 8 --decoder 8 --identity-width 4 --image-frames 2 --latent-weight 1 --perceptual pyramid "
        "--validate-every 5 -o {out}/m.pt",
        ("m.pt",),
    ),
    "train-video-gan": (
        "train-video-gan {in}/a {in}/b {in}/c --steps 10 --batch 2 --frames 4 --warm-up 4 --components 8 --noise 8 "
        "--width 4 --critic-size 32 --shallow --real projected --contrastive --image-critic -o {out}/v.pt",
        ("v.pt",),
    ),
}
INPUTS = [
    (
        f"{name}/{part}.mp4",
        f"generate --identity {{face}} --aligned --audio {{in}}/{part}.wav --no-detail --model first --seed "
        f"{5 * part + place} -o {{in}}/{name}/{part}.mp4",
    )
    for place, name in enumerate("abc")
    for part in (1, 2)
]

DIGEST = """
import hashlib, sys
path = sys.argv[1]
if path.endswith(".npy"):
    data = [open(path, "rb").read()]
elif path.endswith(".mp4"):
    import av
    data = [f.to_ndarray().tobytes() for f in av.open(path).decode(video=0)]
    if av.open(path).streams.audio:
        data += [f.to_ndarray().tobytes() for f in av.open(path).decode(audio=0)]
else:
    import torch
    def tensors(value):
        if isinstance(value, torch.Tensor):
            numbers = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
            yield str(value.dtype).encode() + numbers if value.numel() else b""
        elif isinstance(value, dict):
            for each in value.values():
                yield from tensors(each)
    data = tensors(torch.load(path, map_location="cpu", weights_only=True)["model"])
digest = hashlib.sha256()
for part in data:
    digest.update(part)
print(digest.hexdigest())
"""


def run(python, options, places):
    """The last line of an error, or None."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [python, "-m", "talkhead", *(part.format(**places) for part in options.split())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=places["in"], env=environment)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]


def make_inputs(python, places):
    folder = Path(places["in"])
    Image.open(FACE).resize((256, 256), Image.Resampling.LANCZOS).save(folder / "photo.png")
    with wave.open(str(SPEECH)) as speech:
        second = speech.readframes(speech.getframerate())
        for part in (1, 2):
            with wave.open(str(folder / f"{part}.wav"), "wb") as out:
                out.setparams(speech.getparams())
                out.writeframes(second := speech.readframes(speech.getframerate()) or second)
    short = "generate --identity {face} --aligned --noise-seed 7 --seconds 0.12 --no-detail -o {in}/short.mp4"
    for path, options in [*INPUTS, ("short.mp4", short)]:
        (folder / path).parent.mkdir(exist_ok=True)
        if problem := run(python, options, places):
            sys.exit(f"{path}: {problem}")


def digests(python, options, results, places):
    """{result: SHA-256 of its content, or the error}"""
    with tempfile.TemporaryDirectory() as out:
        if problem := run(python, options, {**places, "out": out}):
            return dict.fromkeys(results, problem)
        return {
            name: subprocess.run(
                [python, "-c", DIGEST, f"{out}/{name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
            for name in results
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", help="Python of an environment with the one version")
    parser.add_argument("new", help="and with the other")
    parser.add_argument("--only", default="", help="the commands whose names contain this")
    arguments = parser.parse_args()
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        encoder = subprocess.run(
            [arguments.old, "-c", "import talkhead; print(talkhead.bundled('encoder'))"],
            capture_output=True,
            text=True,
            check=True,
            cwd=folder,
        )
        places = {"in": folder, "face": FACE, "speech": SPEECH, "encoder": encoder.stdout.strip()}
        make_inputs(arguments.old, places)
        for name, (options, results) in RESULTS.items():
            if arguments.only not in name:
                continue
            old, new = (digests(python, options, results, places) for python in (arguments.old, arguments.new))
            for result in results:
                same = old[result] == new[result] and len(old[result]) == 64
                different += not same
                print(
                    f"{name:28} {result:10} {'same' if same else 'DIFFERENT'} "
                    f"{old[result]:.16}{'' if same else ' ' + new[result]}",
                    flush=True,
                )
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
