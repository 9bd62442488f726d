"""The distances: the pyramid by hand and by a slow loop, LPIPS against the lpips package itself."""

import numpy as np
import pytest
import torch

import talkhead
from talkhead import metrics
from talkhead.encoders import FaceRecognition
from talkhead.errors import TalkheadError
from talkhead.images import resize, to_frames, to_images
from talkhead.keypoints import places
from talkhead.losses import (
    LipDistance,
    Perceptual,
    identity_loss,
    identity_network,
    pixel_loss,
    pyramid_distance,
    vgg_weights,
)


@pytest.fixture
def no_vgg(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def slow_pyramid(difference):
    """One channel's Laplacian pyramid, pixel by pixel."""
    taps = np.array([1, 4, 6, 4, 1]) / 16
    total, level = 0.0, difference
    while min(level.shape) >= 8:
        height, width = level.shape
        mirror = lambda k, size: abs(k) if k < size else 2 * (size - 1) - k
        blurred = np.array(
            [
                [
                    sum(
                        taps[i] * taps[j] * level[mirror(y + i - 2, height), mirror(x + j - 2, width)]
                        for i in range(5)
                        for j in range(5)
                    )
                    for x in range(width)
                ]
                for y in range(height)
            ]
        )
        total += np.abs(level - blurred).mean()
        level = blurred[::2, ::2]
    return total + np.abs(level).mean()


def test_ssim_is_what_the_measure_says(no_vgg):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 24, 17, 3), np.uint8)
    others = np.clip(frames + rng.normal(0, 40, frames.shape), 0, 255).astype(np.uint8)
    distance = Perceptual("ssim")(to_images(frames), to_images(others))
    assert distance.tolist() == pytest.approx([1 - metrics.ssim(a, b) for a, b in zip(frames, others)], abs=1e-5)
    assert Perceptual("ssim")(to_images(frames), to_images(frames)).abs().max() < 1e-5


def test_ssim_has_gradients_and_wants_pictures_as_large_as_its_window():
    images, targets = (
        torch.rand(1, 3, 12, 12, dtype=torch.float64) * 2 - 1,
        torch.rand(1, 3, 12, 12, dtype=torch.float64) * 2 - 1,
    )
    loss = Perceptual("ssim").toward(targets)
    moved = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(moved).sum(), moved)
    step = 1e-2 * gradient / gradient.norm()
    assert (loss(images + step) - loss(images - step)).item() == pytest.approx(2e-2 * gradient.norm().item(), rel=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(images.bfloat16()).item() == pytest.approx(loss(images).item(), abs=0.01)
    with pytest.raises(TalkheadError, match="8x8: ssim needs 11 or more; take the pyramid"):
        Perceptual("ssim").toward(torch.zeros(1, 3, 8, 8))


def test_pyramid_of_a_constant_difference_is_that_constant():
    # A blur keeps a constant, so all levels but the last are empty.
    images = torch.rand(2, 3, 32, 32)
    distance = pyramid_distance(images + torch.tensor([0.25, -0.5]).view(2, 1, 1, 1), images)
    assert torch.allclose(distance, torch.tensor([0.25, 0.5]), atol=1e-6)


def test_pyramid_of_one_pixel_by_hand():
    # 8×8, one channel differs by 1 at an inner pixel with even coordinates. The blur there is (6/16)² = 9/64 and sums
    # to 1. First level: 1 − 9/64 at the pixel and 1 − 9/64 spread around it. Last: the taps 1/16, 6/16, 1/16 of each
    # axis remain.
    a, b = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    a[0, 1, 4, 4] = 1
    first = 2 * (1 - 9 / 64) / (3 * 64)
    last = (8 / 16) ** 2 / (3 * 16)
    assert pyramid_distance(a, b).item() == pytest.approx(first + last, rel=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (9, 21), (4, 4)])
def test_pyramid_equals_a_slow_loop(shape):
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 1, 3, *shape))
    wanted = np.mean([slow_pyramid(a[0, k] - b[0, k]) for k in range(3)])
    assert pyramid_distance(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(wanted, rel=1e-9)


def test_pyramid_is_a_distance_for_each_pair():
    a, b = torch.rand(2, 3, 3, 16, 16)
    distances = Perceptual("pyramid")(a, b)
    assert distances.shape == (3,)
    for k in range(3):
        assert torch.allclose(pyramid_distance(a[k : k + 1], b[k : k + 1]), distances[k : k + 1])
    assert torch.equal(pyramid_distance(a, a), torch.zeros(3))
    assert torch.equal(pyramid_distance(a, b), pyramid_distance(b, a))


def test_pyramid_gives_a_gradient_at_every_pixel():
    torch.manual_seed(0)
    a = torch.rand(1, 3, 16, 16, requires_grad=True)
    pyramid_distance(a, torch.rand(1, 3, 16, 16)).sum().backward()
    assert a.grad.abs().min() > 0


def test_auto_takes_the_pyramid_without_vgg(no_vgg):
    assert Perceptual().name == "pyramid"


def test_missing_vgg_is_named_with_its_place(no_vgg, tmp_path):
    with pytest.raises(TalkheadError) as error:
        Perceptual("lpips")
    message = str(error.value)
    assert (
        str(tmp_path) in message
        and "https://download.pytorch.org/models/vgg16-397923af.pth" in message
        and "\n" not in message
    )


def test_unreadable_vgg_is_refused(no_vgg):
    vgg_weights().parent.mkdir(parents=True)
    vgg_weights().write_bytes(b"half a download")
    with pytest.raises(TalkheadError, match="not VGG-16's weights"):
        Perceptual("lpips")


def test_unknown_name_is_refused():
    with pytest.raises(TalkheadError, match="take auto, lpips, mobilenet, ssim or pyramid"):
        Perceptual("l1")


def test_lpips_equals_the_lpips_package(random_vgg, capsys):
    import lpips

    ours = Perceptual()
    assert ours.name == "lpips"
    assert capsys.readouterr() == ("", "")  # lpips introduces itself on stdout unless told not to
    ours.train()  # must not wake LPIPS's dropout
    a, b = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    with pytest.warns(UserWarning):
        theirs = lpips.LPIPS(net="vgg", verbose=False)
    wanted = theirs(a, b).flatten()
    assert torch.allclose(ours(a, b), wanted, rtol=1e-6, atol=0)
    toward = ours.toward(b)  # what b looks like is kept
    assert torch.allclose(toward(a), wanted, rtol=1e-6, atol=0) and torch.equal(toward(b), torch.zeros(2))
    a.requires_grad_(True)
    ours_slope, theirs_slope = (torch.autograd.grad(distance.sum(), a)[0] for distance in (toward(a), theirs(a, b)))
    assert torch.allclose(ours_slope, theirs_slope, rtol=1e-4, atol=1e-6 * theirs_slope.abs().max().item())
    ours(a, b).sum().backward()
    assert a.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_mobilenet_is_lpips_with_every_channel_alike(random_mobilenet):
    """Against torchvision's own normalisation and feature extraction, and sums of squares by numpy."""
    from torchvision.models import MobileNet_V2_Weights
    from torchvision.models.feature_extraction import create_feature_extractor

    a, b = torch.rand(2, 2, 3, 64, 64)
    extract = create_feature_extractor(random_mobilenet, [f"features.{depth}" for depth in (1, 3, 6, 13, 17)])
    with torch.no_grad():
        seen = [
            extract(MobileNet_V2_Weights.IMAGENET1K_V1.transforms(crop_size=64, resize_size=64)(images))
            for images in (a, b)
        ]
    wanted = 0.0
    for one, other in zip(*(found.values() for found in seen)):
        one, other = (x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (one, other))
        wanted = wanted + ((one - other) ** 2).sum(1).mean((1, 2))
    ours = Perceptual("mobilenet").train()
    distance = ours(2 * a - 1, 2 * b - 1)
    assert distance.tolist() == pytest.approx(wanted.tolist(), rel=1e-4) and min(wanted) > 1e-3
    toward = ours.toward(2 * b - 1)
    assert torch.equal(toward(2 * a - 1), distance) and toward(2 * b - 1).abs().max() == 0
    images = (2 * a - 1).requires_grad_(True)
    toward(images).sum().backward()
    assert images.grad.abs().sum() > 0 and not any(parameter.requires_grad for parameter in ours.parameters())


def test_pixel_loss_by_hand():
    a, b = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    a[1, 0, 0, 0] = 3.0
    assert torch.allclose(pixel_loss(a, b), torch.tensor([0.0, 9 / 12]))


def test_identity_loss_is_one_minus_the_cosine():
    network = torch.nn.Flatten()
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]]).view(3, 2, 1, 1)
    b = torch.tensor([[4.0, 3.0], [0.0, 2.0], [-2.0, -2.0]]).view(3, 2, 1, 1)
    assert torch.allclose(identity_loss(network, a, b), torch.tensor([1 - 24 / 25, 1.0, 2.0]), atol=1e-6)


def test_identity_loss_holds_its_targets_still():
    a, b = (torch.rand(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    identity_loss(torch.nn.Flatten(), a, b).sum().backward()
    assert a.grad is not None and b.grad is None


def test_identity_network_comes_from_a_file(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.LazyLinear(5)).eval()
    example = torch.rand(2, 3, 8, 8)
    network(example)
    torch.export.save(
        torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("count")},)),
        tmp_path / "faces.pt2",
    )
    loaded = identity_network(tmp_path / "faces.pt2")
    a, b = torch.rand(2, 3, 3, 8, 8)
    a.requires_grad_(True)
    distance = identity_loss(loaded, a, b)
    assert torch.allclose(distance, identity_loss(network, a, b), atol=1e-6)
    distance.sum().backward()
    assert a.grad.abs().sum() > 0 and not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("legacy", [False, True])
def test_identity_network_of_psp_is_known_by_its_content(tmp_path, legacy):
    torch.manual_seed(0)
    network = FaceRecognition(width=4, size=6).eval()
    torch.save(network.state_dict(), tmp_path / "anything", _use_new_zipfile_serialization=not legacy)
    loaded = identity_network(tmp_path / "anything")
    a, b = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    a.requires_grad_(True)
    distance = identity_loss(loaded, a, b)
    assert torch.equal(distance, identity_loss(network, a, b))
    distance.sum().backward()
    assert a.grad.abs().sum() > 0 and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training


def test_weights_that_are_no_face_recognition_are_refused(tmp_path):
    network = FaceRecognition(width=4, size=6)
    for weights in (
        {"a": torch.zeros(1)},
        [1, 2],
        network,
        {**network.state_dict(), "input_layer.0.weight": torch.zeros(8, 3, 3, 3)},
    ):
        torch.save(weights, tmp_path / "faces.pth")  # the third is a pickled module, which would run code
        with pytest.raises(TalkheadError, match="not a face recognition network") as error:
            identity_network(tmp_path / "faces.pth")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"not weights"])
def test_unreadable_identity_network_is_refused(tmp_path, content):
    path = tmp_path / "faces.pt2"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TalkheadError, match="torch.export.save"):
        identity_network(path)


@pytest.fixture(scope="module")
def lips():
    return LipDistance(talkhead.load_keypoints())


@pytest.fixture(scope="module")
def face():
    return to_images(resize(talkhead.read_image("examples/face.png"), 256)[None])


def test_lips_that_moved_are_as_far_away_as_they_moved(lips, face):
    """By three pixels across, in widths of the mouth, as the keypoint network itself reads it."""
    points = lips.keypoints.read(to_frames(face))[0]
    width = np.linalg.norm(points[places(61)] - points[places(291)])
    assert lips(face, face).item() == 0
    assert lips(face.roll(3, 3), face).item() == pytest.approx(3 / 256 / width, rel=0.25)


def test_lips_pull_at_the_mouth_alone(lips, face):
    moved = face.roll(4, 2).requires_grad_(True)
    lips(moved, face.requires_grad_(True)).sum().backward()
    assert face.grad is None
    strength = moved.grad.abs().sum(1)[0]
    assert strength[100:].sum() > 0 and strength[:100].sum() == 0  # no eye, no brow
    assert all(parameter.grad is None for parameter in lips.parameters())
