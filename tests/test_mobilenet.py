"""MobileNetV2's features against torchvision's own normalisation and network."""

import numpy as np
import pytest
import torch

from talkhead import fid, mobilenet
from talkhead.errors import TalkheadError

pytest.importorskip("torchvision")


def normalised(images, side):
    from torchvision.models import MobileNet_V2_Weights

    return MobileNet_V2_Weights.IMAGENET1K_V1.transforms(crop_size=side, resize_size=side)(images)


def test_maps_and_features_are_those_of_torchvision(random_mobilenet):
    from torchvision.models.feature_extraction import create_feature_extractor

    images = torch.rand(2, 3, 64, 64)
    extract = create_feature_extractor(random_mobilenet, [f"features.{depth}" for depth in (1, 3, 6, 13, 17)])
    network = mobilenet.MobileNet().train()
    with torch.no_grad():
        wanted = list(extract(normalised(images, 64)).values())
        pooled = random_mobilenet.features(normalised(images, 64)).mean((2, 3))
        seen = network.maps(2 * images - 1)
        assert [x.shape[1:] for x in seen] == [(16, 32, 32), (24, 16, 16), (32, 8, 8), (96, 4, 4), (320, 2, 2)]
        for ours, theirs in zip(seen, wanted):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(2 * images - 1), pooled, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_fid_looks_at_pictures_as_large_as_imagenets(random_mobilenet, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    network = fid.named("mobilenet")
    features = network(frames)
    with torch.no_grad():
        wanted = random_mobilenet.features(normalised(torch.from_numpy(frames).permute(0, 3, 1, 2), 224)).mean((2, 3))
    assert features.shape == (3, network.width) and features.dtype == np.float32 and network.name == "mobilenet"
    np.testing.assert_allclose(features, wanted.numpy(), rtol=1e-3, atol=1e-4)
    shapes = []
    monkeypatch.setattr(
        network.network,
        "forward",
        lambda images, forward=network.network.forward: shapes.append(images.shape) or forward(images),
    )
    network(frames[:, ::2, ::2])
    assert shapes == [(3, 3, 224, 224)]
    with pytest.warns(UserWarning, match="FID of 3 images"):
        fid.warn_of_few(3, network)


def test_missing_and_unreadable_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        TalkheadError,
        match="mobilenet_v2-b0353104.pth: not found; "
        "download https://download.pytorch.org/models/mobilenet_v2-b0353104.pth into",
    ):
        mobilenet.MobileNet()
    mobilenet.weights_path().parent.mkdir(parents=True)
    for content in ({"features.0.0.weight": torch.zeros(32, 3, 3, 3)}, [1], b"half a download"):
        mobilenet.weights_path().write_bytes(content) if isinstance(content, bytes) else torch.save(
            content, mobilenet.weights_path()
        )
        with pytest.raises(TalkheadError, match="not MobileNetV2's weights") as error:
            mobilenet.MobileNet()
        assert "\n" not in str(error.value)
