"""Measure how well a StyleGAN3's head follows a film: path of the eyes under `generate --quads` beside the film's.

    python examples/benchmarks/head_path.py CLIP... --detector-model face_landmarker.task

Distances are in pixels at 256². Prints a JSON object for R and one for T, with random weights and narrow layers:

    moved, turned, scaled   root mean square and largest distance of 25 patches from where the transform puts them:
                            a translation by 10.3 and 5.7 px, a rotation by 5 degrees, a scale of 1.02
    unscaled                the same for 1.02 if the image stayed as it was

and one for each clip:

    moves, turns, sides     range of the film's eyes in px, of the quads' angle in degrees, of their side over its mean
    eyes, each_eye          root mean square and largest distance of the point between the eyes, and of each eye, from
                            the film's, if the latents draw the aligned frames exactly
    found                   `eyes` as found in images: aligned frames warped by the transforms, registered to the film
    held_S                  `eyes` if the latents hold the eyes still, where they are on average in the aligned frames;
                            S is the smoothing of the quads, in frames: 2 is the default, also of all other figures
    jitter_S, film_jitter   root mean square of the second difference of the path of `held_S`, and of the film's
    drawn_R, drawn_T        root mean square and largest distance of the patches at the eyes, in images of the random
                            networks under the clip's transforms, from where they put the patches of the image at rest

Patches are registered by Gauss-Newton steps to warped images (splines of order 5). The limit for `eyes`, `found` and
`drawn_R` is 0.5, root mean square.
"""

import argparse
import json
import sys

import numpy as np
import scipy.ndimage
import torch

from talkhead import faces, landmarks, stylegan3, video_files

SIDE, LIMIT = 256, 0.5
FRAMES = 5  # of a clip that are drawn


def network(kind, side=SIDE, seed=0):
    """A generator R or T with random weights and narrow layers."""
    torch.manual_seed(seed)
    widths = stylegan3.channel_widths(stylegan3.Layers(side), 32 * side, side // 2)
    generator = stylegan3.Generator(side, widths, kernel=1 if kind == "R" else 3, radial=kind == "R")
    return generator.eval().requires_grad_(False)


def drawing(generator, seed=0):
    """A function that draws one latent under a transform (3, 3): float64 (3, R, R)."""
    w_plus = generator.mapping(torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(seed)))
    return lambda transform: (
        generator.synthesis(w_plus, transform=torch.from_numpy(np.float32(transform)))[0].double().numpy()
    )


def similarity(scale=1.0, degrees=0.0, right=0.0, down=0.0):
    cosine, sine = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.array([[cosine, -sine, right], [sine, cosine, down], [0, 0, 1]])


def mapped(transforms, points):
    """Points (..., 2) under transforms (..., 3, 3)."""
    return (transforms[..., :2, :2] @ points[..., None] + transforms[..., :2, 2:])[..., 0]


def warp(image, transform):
    """The image (C, S, S) as a transform of places, in sides from the centre, draws it."""
    side = image.shape[-1]
    axis = (np.arange(side) + 0.5) / side - 0.5
    places = mapped(transform, np.stack(np.meshgrid(axis, axis), -1))
    rows = np.moveaxis(places[..., ::-1] + 0.5, -1, 0) * side - 0.5
    return np.stack([scipy.ndimage.map_coordinates(channel, rows, order=5, mode="mirror") for channel in image])


def register(image, other, place, radius=20):
    """Displacement (right, down) in px at 256² of a patch of the image (C, S, S) in the other image.

    place   of the patch, in sides from the centre; its window is a Gaussian, and its brightness may differ
    """
    right, down = (np.asarray(place) + 0.5) * image.shape[-1] - 0.5
    axis = np.arange(-radius, radius + 1)
    window = np.sqrt(np.outer(*[np.exp(-2 * (axis / radius) ** 2)] * 2)).ravel()

    def patch(picture, move):
        rows = np.meshgrid(down + move[1] + axis, right + move[0] + axis, indexing="ij")
        values = [scipy.ndimage.map_coordinates(channel, rows, order=3, mode="mirror") for channel in picture]
        values = np.reshape(values, (len(picture), -1))
        return ((values - values.mean(1, keepdims=True)) * window).ravel()

    wanted, move = patch(image, (0, 0)), np.zeros(2)
    for _ in range(10):
        slopes = np.stack([patch(other, move + half) - patch(other, move - half) for half in np.eye(2) / 2], 1)
        step = np.linalg.lstsq(slopes, wanted - patch(other, move), rcond=None)[0]
        move += step
        if np.abs(step).max() < 1e-3:
            break
    return move * SIDE / image.shape[-1]


def summary(errors):
    """Root mean square and largest length of vectors (..., 2)."""
    lengths = np.linalg.norm(errors, axis=-1)
    return [float(f"{value:.2g}") for value in (np.sqrt(np.mean(lengths**2)), lengths.max())]


def equivariance(kind):
    draw = drawing(network(kind))
    still, record = draw(np.eye(3)), {"kind": kind}
    grid = np.stack(np.meshgrid(*[np.linspace(-0.3, 0.3, 5)] * 2), -1).reshape(-1, 2)
    scaled = similarity(scale=1 / 1.02)
    for name, transform in (
        ("moved", similarity(right=10.3 / SIDE, down=5.7 / SIDE)),
        ("turned", similarity(degrees=5)),
        ("scaled", scaled),
    ):
        image, wanted = draw(transform), warp(still, transform)
        record[name] = summary([register(wanted, image, place) for place in grid])
    return record | {"unscaled": summary(SIDE * (mapped(np.linalg.inv(scaled), grid) - grid))}


def detected(path, detector, limit=None):
    """Frames of a clip, and the landmarks of its largest face, float (T, 68, 2)."""
    with video_files.read_frames(path, limit=limit) as reader:
        frames = list(reader)
    return frames, np.stack([detector(frame)[0] for frame in frames]).astype(float)


def quads_of(frames, points, smoothing, side_smoothing=None):
    """Quads (T, 4, 2) as `talkhead align` makes them of landmarks (T, 68, 2)."""
    replayed = iter(points)
    tracked = faces.follow(frames, lambda _: [next(replayed)], smoothing, side_smoothing=side_smoothing)
    return np.stack([corners for _, corners, _ in tracked])


def within(quads, points):
    """Points of the film (T, n, 2) in squares (T, 4, 2), in their sides from their centres."""
    axes = np.stack([quads[:, 3] - quads[:, 0], quads[:, 1] - quads[:, 0]], -1)
    return (np.linalg.inv(axes)[:, None] @ (points - quads.mean(1)[:, None])[..., None])[..., 0]


def paths(quads, points):
    """Paths (T, 2, 2) of two eyes in px: the film's, ours if latents draw the aligned frames, and if they hold them."""
    eyes = points[:, 36:48].reshape(-1, 2, 6, 2).mean(2)
    inverse = np.linalg.inv(faces.quad_transforms(quads))[:, None]
    film, aligned = within(faces.mean_square(quads)[None], eyes), within(quads, eyes)
    return [path * SIDE for path in (film, mapped(inverse, aligned), mapped(inverse, aligned.mean(0)))]


def rounded(values):
    return [float(f"{value:.3g}") for value in values]


def measure(path, frames, points, draws, side_smoothing=None):
    """The record of a clip; `draws` are functions, as `drawing` returns them, by kind."""
    quads = quads_of(frames, points, 2.0, side_smoothing)
    square, transforms = faces.mean_square(quads), faces.quad_transforms(quads)
    film, ours, held = paths(quads, points)
    right, down = (quads[:, 3] - quads[:, 0]).T
    sides = np.hypot(right, down)
    record = {
        "clip": str(path),
        "frames": len(frames),
        "moves": rounded(np.ptp(film.mean(1), 0)),
        "turns": rounded([np.degrees(np.ptp(np.arctan2(down, right)))])[0],
        "sides": rounded([sides.min() / sides.mean(), sides.max() / sides.mean()]),
        "eyes": summary((ours - film).mean(1)),
        "each_eye": summary(ours - film),
    }
    found, drawn = [], {kind: [] for kind in draws}
    still = {kind: draw(np.eye(3)) for kind, draw in draws.items()}
    for index in np.linspace(0, len(frames) - 1, FRAMES).astype(int):
        transform = transforms[index]
        shown, crop = (
            faces.crop(frames[index], corners, SIDE).transpose(2, 0, 1).astype(float)
            for corners in (square, quads[index])
        )
        drawn_crop = warp(crop, transform)
        found.append(np.mean([register(shown, drawn_crop, eye / SIDE) for eye in film[index]], 0))
        for kind, draw in draws.items():
            image, wanted = draw(transform), warp(still[kind], transform)
            drawn[kind] += [register(wanted, image, eye / SIDE) for eye in held[index]]
    record["found"] = summary(found)
    for smoothing in (0, 1, 2):
        film, _, held = paths(quads_of(frames, points, smoothing, side_smoothing), points)
        record[f"held_{smoothing}"] = summary((held - film).mean(1))
        record[f"jitter_{smoothing}"] = summary(np.diff(held.mean(1), 2, 0))[0]
    record["film_jitter"] = summary(np.diff(film.mean(1), 2, 0))[0]
    return record | {f"drawn_{kind}": summary(errors) for kind, errors in drawn.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--detector-model", help="MediaPipe's face landmarker (.task)")
    parser.add_argument("--side-smoothing", type=float, help="as talkhead align --set side_smoothing")
    parser.add_argument("--frames", type=int, help="most frames of a clip")
    parser.add_argument("--no-networks", action="store_true", help="measure the films alone")
    options = parser.parse_args()
    detector = landmarks.detector("mediapipe", options.detector_model)
    missed = []
    kinds = "" if options.no_networks else "RT"
    for kind in kinds:
        print(json.dumps(equivariance(kind)), flush=True)
    draws = {kind: drawing(network(kind)) for kind in kinds}
    for path in options.clips:
        record = measure(path, *detected(path, detector, options.frames), draws, options.side_smoothing)
        print(json.dumps(record), flush=True)
        if max(record.get(name, [0])[0] for name in ("eyes", "found", "drawn_R")) > LIMIT:
            missed.append(path)
    if missed:
        sys.exit(f"head_path.py: missed at {', '.join(missed)}")


if __name__ == "__main__":
    main()
