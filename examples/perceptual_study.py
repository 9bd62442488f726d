"""Which perceptual loss is best where LPIPS has no weights? Invert the same frames under each, and let others judge.

    python examples/perceptual_study.py aligned/*.mp4 --detector-model face_landmarker.task -o study/

A few frames of each aligned clip are inverted by the hybrid method, every loss with the same start, steps and λ = 1 for
the squared error beside it. No judge but SSIM was minimised by any: SSIM, the distance of the landmarks that MediaPipe
finds (all, and the mouth's), and how much fine detail there is beside the frame's (1: as much; below: blurred). PSNR is
shown, and favours whoever minimises squares. Prints a JSON object for each loss; OUT/sheet.png holds the frames over
what each loss drew. `mobilenet` and `lpips` are among them where their weights are; with random weights (`random-vgg`)
it needs none.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import talkhead
from talkhead import checkpoints, image_files, losses, metrics, mobilenet, synthesis, video_files
from talkhead.images import resize, to_images
from talkhead.landmarks import detector


class Nothing:
    """No perceptual term: the squared error alone."""

    name = "none"

    def to(self, device):
        return self

    def toward(self, targets):
        return lambda images: images.new_zeros(len(images)) + 0 * images.flatten(1).sum(1)


class Mean(Nothing):
    """The mean absolute difference of pixels."""

    name = "L1"

    def toward(self, targets):
        return lambda images: (images - targets).abs().mean((1, 2, 3))


class Features(Nothing):
    """LPIPS without its learnt weights.

    Compares a network's features at several depths, each place's of length one.
    """

    def __init__(self, name, layers):
        self.name, self.layers = name, layers

    def _seen(self, images):
        return [F.normalize(seen, dim=1) for seen in self.layers(images)]

    def toward(self, targets):
        with torch.no_grad():
            wanted = self._seen(targets)
        return lambda images: sum((a - b).square().sum(1).mean((1, 2)) for a, b in zip(self._seen(images), wanted))


class Sum(Nothing):
    """Several losses, weighed."""

    def __init__(self, name, *parts):
        self.name, self.parts = name, parts

    def toward(self, targets):
        distances = [(weight, part.toward(targets)) for weight, part in self.parts]
        return lambda images: sum(weight * distance(images) for weight, distance in distances)


def encoder_layers(encoder):
    """What the encoder sees after its stem and each of its four stages."""

    def layers(images):
        images = F.interpolate(images, encoder.input_size) if images.shape[-1] != encoder.input_size else images
        x = F.relu(encoder.bn1(encoder.conv1(images)))
        seen = [x]
        for stage in (encoder.maxpool, encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
            x = stage(x)
            seen.append(x)
        return [seen[0], *seen[2:]]

    return layers


def vgg_layers():
    """VGG-16 as it is before it learns anything, tapped where LPIPS taps it."""
    import torchvision

    torch.manual_seed(0)
    convolutions = torchvision.models.vgg16(weights=None).features.eval().requires_grad_(False)

    def layers(images):
        seen, x = [], images
        for index, layer in enumerate(convolutions[:30]):
            x = layer(x)
            if index in (3, 8, 15, 22, 29):
                seen.append(x)
        return seen

    return layers


def candidates(encoder):
    pyramid, ssim, faces_seen = (
        losses.Perceptual("pyramid"),
        losses.Perceptual("ssim"),
        Features("encoder", encoder_layers(encoder)),
    )
    yield from (
        Nothing(),
        Mean(),
        ssim,
        pyramid,
        Features("random-vgg", vgg_layers()),
        faces_seen,
        Sum("pyramid + ssim", (1.0, pyramid), (0.5, ssim)),
        Sum("pyramid + encoder", (1.0, pyramid), (0.5, faces_seen)),
    )
    if mobilenet.weights_path().is_file():
        seen = losses.Perceptual("mobilenet")
        yield from (
            seen,
            Sum("pyramid + mobilenet", (1.0, pyramid), (0.5, seen)),
            Sum("ssim + mobilenet", (1.0, ssim), (0.5, seen)),
        )
    if losses.vgg_weights().is_file():
        yield losses.Perceptual("lpips")


def detail(frames):
    """How much lies in the finest octave: the standard deviation of what a 3x3 mean takes away."""
    images = to_images(frames)
    return (images - F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)).std().item()


def landmarks(find, frames):
    """(T, 68, 2), pixels; NaN where no face is seen. Frames are enlarged first, or small faces are missed."""
    found = [find(np.kron(frame, np.ones((2, 2, 1), np.uint8))) for frame in frames]
    return np.stack([points[0] / 2 if points else np.full((68, 2), np.nan) for points in found])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+", help="aligned clips or pictures")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the sheet")
    parser.add_argument("--detector-model", help="MediaPipe's face landmarker")
    parser.add_argument("--frames", type=int, default=2, help="of each clip")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--only", nargs="+", help="these losses, by name, such as ssim")
    options = parser.parse_args()
    generator = checkpoints.load_generator(checkpoints.bundled("generator"))
    encoder = checkpoints.load_encoder(checkpoints.bundled("encoder"), generator)
    find = detector("mediapipe", options.detector_model)
    frames = []
    for clip in options.clips:
        with video_files.read_frames(clip) as reader:
            seen = [resize(frame, generator.resolution) for frame in reader]
        frames += seen[:: max(1, len(seen) // options.frames)][: options.frames]
    frames = np.stack(frames)
    true, rows = landmarks(find, frames), [frames]
    for loss in candidates(encoder):
        if options.only and loss.name not in options.only:
            continue
        began = time.perf_counter()
        # Each as a photo: every frame starts at its own code.
        codes = np.concatenate(
            [
                list(
                    talkhead.invert(
                        frame[None],
                        generator,
                        "hybrid",
                        encoder=encoder,
                        hybrid_steps=options.steps,
                        lr=options.lr,
                        perceptual=loss,
                    )
                )
                for frame in frames
            ]
        )
        seconds = time.perf_counter() - began
        drawn = np.stack(list(synthesis.synthesize(generator, codes)))
        away = np.linalg.norm(landmarks(find, drawn) - true, axis=-1)  # NaN if a face was lost: then so is the loss
        rows.append(drawn)
        print(
            json.dumps(
                {
                    "loss": loss.name,
                    "frames": len(frames),
                    "seconds_per_step": round(seconds / options.steps, 3),
                    "ssim": round(metrics.ssim(frames, drawn), 4),
                    "landmarks": round(float(away.mean()), 3),
                    "mouth": round(float(away[:, metrics.MOUTH].mean()), 3),
                    "detail": round(detail(drawn) / detail(frames), 3),
                    "psnr": round(metrics.psnr(frames, drawn), 2),
                }
            ),
            flush=True,
        )
    options.out.mkdir(parents=True, exist_ok=True)
    image_files.write_image(
        options.out / "sheet.png", np.concatenate([np.concatenate(list(row), 1) for row in rows]), synthetic=True
    )


if __name__ == "__main__":
    main()
