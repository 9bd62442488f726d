"""Train the keypoint network that `generate` moves photos with (talkhead/weights/keypoints.pt).

    python examples/train_keypoints.py label photos.npz --detector-model face_landmarker.task --photos portraits/
    python examples/train_keypoints.py label clips.npz --detector-model face_landmarker.task --clips clips/ --every 6
    python examples/train_keypoints.py label renders.npz --detector-model face_landmarker.task --renders puppets/
    python examples/train_keypoints.py train photos.npz clips.npz renders.npz -o keypoints.pt --minutes 25
    python examples/train_keypoints.py neutral photos.npz keypoints.pt

`label` cuts out aligned faces, a little off their place, and lets MediaPipe mark them. --renders takes aligned clips of
talking faces: frames of them, and the bundled generator's renders of those frames' codes, which carry the frames' own
marks, since MediaPipe reads soft lips too narrow. `train` learns both parts of the network side by side, in alternate
steps, from pictures that are shifted, turned, blurred, made small and recoloured. `test FILE.npz keypoints.pt` prints
the mean error of lips and of all points in thousandths of the side.
"""

import time
from pathlib import Path

import click
import cv2
import numpy as np
import torch
from tqdm import tqdm

import talkhead
from talkhead import faces, files, image_files, inversion, keypoints, landmarks, synthesis
from talkhead.images import resize

VERTICES = np.array(keypoints.VERTICES)
STABLE = keypoints.NOT_MOVED_BY_SPEECH
INNER = [
    [keypoints.LIPS.index(vertex) for vertex in line[1:-1]] for line in (keypoints.UPPER_INNER, keypoints.LOWER_INNER)
]


@click.group()
def main():
    """Label pictures, train the network, test it."""


class Labels:
    """Aligned pictures and their keypoints, as they are found."""

    def __init__(self, detector, seed):
        self.detector, self.rng, self.images, self.points, self.names = (
            detector,
            np.random.default_rng(seed),
            [],
            [],
            [],
        )

    def crops(self, picture, count, name):
        """Mark the largest face of a picture, and keep crops of it.

        The first crop is FFHQ's, the others are off their place.
        """
        meshes = self.detector.meshes(picture)
        if not meshes:
            return
        mesh = max(meshes, key=lambda points: np.prod(np.ptp(points, 0)))
        square = faces.quad(landmarks.from_mesh(mesh))
        for number in range(count):
            corners = self._moved(square) if number or count == 1 else square
            try:
                crop = faces.crop(picture, corners, 256)
            except talkhead.TalkheadError:  # outside the picture
                continue
            inverse = np.linalg.inv(np.stack([corners[3] - corners[0], corners[1] - corners[0]]))
            self._keep(crop, (mesh - corners[0]) @ inverse, name)

    def aligned(self, picture, name):
        """Mark a picture that is aligned already; whether a face was found."""
        meshes = self.detector.meshes(picture)
        if meshes:
            self._keep(resize(picture, 256), (meshes[0] + 0.5) / len(picture), name)
        return bool(meshes)

    def same(self, picture):
        """Another picture in which everything lies where it does in the last one."""
        self.images.append(resize(picture, 256))
        self.points.append(self.points[-1])
        self.names.append(self.names[-1])

    def _keep(self, image, points, name):
        self.images.append(image)
        self.points.append(points[VERTICES].astype(np.float32))
        self.names.append(Path(name).stem)

    def _moved(self, corners):
        angle, scale, side = (
            self.rng.normal() * 0.08,
            np.exp(self.rng.normal() * 0.08),
            np.linalg.norm(corners[3] - corners[0]),
        )
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return (corners - corners.mean(0)) @ turn.T + corners.mean(0) + self.rng.normal(size=2) * 0.04 * side


@main.command()
@click.argument("output")
@click.option("--detector-model", required=True, help="MediaPipe's face landmarker.")
@click.option("--photos", multiple=True, help="Folders of portraits: three crops of each.")
@click.option("--clips", multiple=True, help="Folders of films of a face.")
@click.option("--every", default=6, help="Take one frame of a film in so many.")
@click.option("--renders", multiple=True, help="Folders of aligned clips: 12 frames of each, and renders of them.")
@click.option("--seed", default=0)
def label(output, detector_model, photos, clips, every, renders, seed):
    """Cut out and mark faces, into one .npz of images and points."""
    labels = Labels(landmarks.detector("mediapipe", detector_model), seed)
    for path in tqdm(_files(photos, image_files.PICTURES)):
        labels.crops(talkhead.read_image(path), 3, path)
    for path in tqdm(_files(clips, (".mp4", ".mpg"))):
        for index, frame in enumerate(talkhead.read_frames(path)):
            if index % every == 0:
                labels.crops(frame, 1, path)
    _render(labels, _files(renders, (".mp4",)))
    np.savez(output, images=np.stack(labels.images), points=np.stack(labels.points), names=np.array(labels.names))
    click.echo(f"{output}: {len(labels.images)} faces")


def _files(folders, endings):
    return sorted(str(path) for folder in folders for path in Path(folder).iterdir() if path.suffix.lower() in endings)


def _render(labels, paths):
    generator = talkhead.load_generator(talkhead.bundled("generator"))
    encoder = talkhead.load_encoder(talkhead.bundled("encoder"), generator)
    for path in tqdm(paths):
        frames = np.stack(list(talkhead.read_frames(path)))
        for frame in frames[np.sort(labels.rng.choice(len(frames), min(12, len(frames)), replace=False))]:
            if labels.aligned(frame, path):
                code = next(iter(inversion.encode(encoder, [resize(frame, generator.resolution)])))
                labels.same(next(iter(synthesis.synthesize(generator, code[None]))))


class Pictures:
    """Labelled pictures of several files; every file counts the same."""

    def __init__(self, paths):
        self.files = [dict(np.load(path)) for path in paths]
        mean = np.mean([file["points"].mean(0) for file in self.files], 0)
        mirrored = mean * (-1, 1) + (2 * mean[:, 0].mean(), 0)
        self.mirror = ((mirrored[:, None] - mean) ** 2).sum(-1).argmin(1)  # the keypoint on the other side of the face

    def draw(self, count, rng):
        images, points = [], []
        for file in rng.integers(len(self.files), size=count):
            index = rng.integers(len(self.files[file]["images"]))
            image, place = self.files[file]["images"][index], self.files[file]["points"][index]
            if rng.random() < 0.5:
                image, place = np.ascontiguousarray(image[:, ::-1]), place[self.mirror] * (-1, 1) + (1, 0)
            images.append(image)
            points.append(place)
        return images, np.float32(points)


def cut(images, points, centres, sides, size, turn, shift, zoom, rng):
    """Windows around `centres`, off their place by chance.

    Returns float32 (N, size, size, 3), and the points in fractions of each.
    """
    windows, places = [], []
    for image, place, centre, side in zip(images, points, centres, sides):
        angle, side = rng.normal() * turn, side * np.exp(rng.normal() * zoom)
        centre = centre + rng.normal(size=2) * shift * side
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        if side * len(image) / size > 1.5:
            small = round(size / side)
            image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        linear = side * rotation * len(image) / size
        offset = centre * len(image) - 0.5 + side * len(image) * rotation @ np.full(2, 0.5 / size - 0.5)
        windows.append(
            cv2.warpAffine(
                image,
                np.column_stack([linear, offset]),
                (size, size),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REFLECT,
            )
        )
        places.append((place - centre) @ rotation / side + 0.5)
    return np.float32(windows), np.float32(places)


def recolour(images, rng):
    """Blur, shrink, discolour and add noise by chance: (N, S, S, 3), 0 to 255."""
    side = images.shape[1]
    for index, image in enumerate(images):
        if rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.6))
        if rng.random() < 0.3:
            small = int(side * rng.uniform(0.4, 0.8))
            image = cv2.resize(
                cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA),
                (side, side),
                interpolation=cv2.INTER_CUBIC,
            )
        images[index] = image.mean(-1, keepdims=True) if rng.random() < 0.2 else image
    count = len(images)
    gain = np.exp(rng.normal(size=(count, 1, 1, 3)) * 0.12 + rng.normal(size=(count, 1, 1, 1)) * 0.2)
    contrast, mean = np.exp(rng.normal(size=(count, 1, 1, 1)) * 0.15), images.mean((1, 2), keepdims=True)
    noise = rng.standard_normal(images.shape, dtype=np.float32) * rng.uniform(0, 4)
    return np.clip(
        ((images - mean) * contrast + mean) * gain + rng.normal(size=(count, 1, 1, 1)) * 15 + noise, 0, 255
    ).astype(np.float32)


def batch(part, pictures, network, count, rng):
    """Images (N, 3, S, S) for one part of the network, and their keypoints, in fractions of the window."""
    images, points = pictures.draw(count, rng)
    if part == "face":
        windows, places = cut(
            images, points, np.full((count, 2), 0.5), np.ones(count), network.size, 0.05, 0.02, 0.05, rng
        )
    else:
        windows, places = cut(
            images, points, *keypoints.mouth_windows(points), network.mouth_size, 0.08, 0.04, 0.07, rng
        )
        places = places[:, : len(keypoints.LIPS)]
    return torch.from_numpy(recolour(windows, rng)).permute(0, 3, 1, 2) / 127.5 - 1, torch.from_numpy(places)


def loss_of(part, found, wanted):
    """Mean distance of the keypoints; for the mouth the gap between the inner lips counts four times more."""
    distance = (found - wanted).square().sum(-1).add(1e-6).sqrt().mean()
    if part == "face":
        return distance
    gaps = [points[:, INNER[1]] - points[:, INNER[0]] for points in (found, wanted)]
    return distance + 4 * (gaps[0] - gaps[1]).abs().mean()


@main.command()
@click.argument("labelled", nargs=-1, required=True)
@click.option("-o", "--output", required=True)
@click.option("--init", help="Weights to go on from.")
@click.option("--minutes", default=40.0, help="How long to train.")
@click.option("--lr", default=2e-3)
@click.option("--seed", default=0)
def train(labelled, output, init, minutes, lr, seed):
    """Train both parts of the network; the learning rate falls to zero over the time given."""
    torch.manual_seed(seed)
    rng, pictures = np.random.default_rng(seed), Pictures(labelled)
    network = talkhead.load_keypoints(init).train().requires_grad_(True) if init else keypoints.KeypointNetwork()
    parts = {"face": network.face, "mouth": network.mouth}
    for name, part in () if init else parts.items():
        part[-1].bias.data = torch.cat([batch(name, pictures, network, 64, rng)[1] for _ in range(4)]).mean(0).flatten()
        part[-1].weight.data *= 0.1  # or the first steps, far off, silence the layer before
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=1e-4)
    start, step, seen = time.time(), 0, {name: [] for name in parts}
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        optimizer.param_groups[0]["lr"] = lr * (0.5 + 0.5 * np.cos(np.pi * done)) * min(1, (step + 1) / 100)
        optimizer.zero_grad()
        for name, part in (*parts.items(), ("mouth", network.mouth)):  # the mouth twice: it is what matters
            images, wanted = batch(name, pictures, network, 32, rng)
            loss = loss_of(name, part(images).view(len(images), -1, 2), wanted)
            loss.backward()
            seen[name].append(float(loss.detach()))
        optimizer.step()
        step += 1
        if step % 200 == 0:
            click.echo(
                f"{step} steps, {done:.2f}: "
                + ", ".join(f"{name} {np.mean(values[-200:]):.5f}" for name, values in seen.items()),
                err=True,
            )
    files.save_weights(
        output,
        {
            "kind": "keypoints",
            "config": network.config,
            "step": step,
            "model": {
                name: value.half() if value.is_floating_point() else value
                for name, value in network.state_dict().items()
            },
        },
    )


@main.command()
@click.argument("labelled")
@click.argument("weights")
def neutral(labelled, weights):
    """Learn how a smile came from rest, from pairs NAME_smiling and NAME_neutral, and add it to the weights."""
    file, moved = dict(np.load(labelled)), keypoints.MOVED_BY_SPEECH
    first = {name: index for index, name in reversed(list(enumerate(file["names"])))}
    pairs = [
        (file["points"][index], file["points"][first[rest]])
        for name, index in first.items()
        if name.endswith("_smiling") and (rest := name.replace("_smiling", "_neutral")) in first
    ]
    smiles, rests = np.stack([smile for smile, _ in pairs]), np.stack([brought(rest, smile) for smile, rest in pairs])
    mean = smiles[:, moved].reshape(len(pairs), -1).mean(0)
    centred = smiles[:, moved].reshape(len(pairs), -1) - mean
    basis = np.linalg.svd(centred, full_matrices=False)[2][: keypoints.NEUTRAL_SCORES]
    scores = np.column_stack([np.ones(len(pairs)), centred @ basis.T])
    ridge = 1e-3 * np.diag([0, *np.ones(len(basis))])
    fit = np.linalg.solve(scores.T @ scores + ridge, scores.T @ (rests - smiles)[:, moved].reshape(len(pairs), -1))
    contents = files.load_weights(weights, kind="keypoints")
    contents["model"] |= {
        f"neutral_{name}": torch.from_numpy(value).half()
        for name, value in (("mean", mean), ("basis", basis), ("weights", fit))
    }
    files.save_weights(weights, contents)
    click.echo(f"{weights}: how {len(pairs)} smiles came from rest")


def brought(points, target):
    """Points turned, scaled and shifted so that what speech does not move lies as in `target`."""
    a, b = (face[STABLE] - face[STABLE].mean(0) for face in (points, target))
    turn = np.array(
        [
            [(a * b).sum(), (a[:, 1] * b[:, 0] - a[:, 0] * b[:, 1]).sum()],
            [(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum(), (a * b).sum()],
        ]
    )
    return (points - points[STABLE].mean(0)) @ turn.T / (a * a).sum() + target[STABLE].mean(0)


@main.command()
@click.argument("labelled")
@click.argument("weights")
def test(labelled, weights):
    """Print how far keypoints lie from the labels."""
    file, network = dict(np.load(labelled)), talkhead.load_keypoints(weights)
    found = np.concatenate(
        [network.read(file["images"][start : start + 64]) for start in range(0, len(file["images"]), 64)]
    )
    distance = np.linalg.norm(found - file["points"], axis=-1) * 1000
    gaps = [
        np.linalg.norm(points[:, INNER[1]] - points[:, INNER[0]], axis=-1).mean(-1)
        for points in (found, file["points"])
    ]
    click.echo(
        f"{len(found)} faces, thousandths of the side: lips {distance[:, : len(keypoints.LIPS)].mean():.2f}, all "
        f"{distance.mean():.2f}; gap of the lips: correlation {np.corrcoef(*gaps)[0, 1]:.3f}, bias "
        f"{(gaps[0] - gaps[1]).mean() * 1000:.2f}"
    )


if __name__ == "__main__":
    main()
