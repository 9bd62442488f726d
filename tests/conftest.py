"""Fixtures that several test files share: real data, toy weights in the place of the bundled ones, the puppet."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers with a thread for every core would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in child processes

import toys
from toys import EXAMPLES

sys.path.append(str(EXAMPLES))  # where its scripts find each other


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real clips, photos and recordings; tests that need it skip where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder}")
    return folder


@pytest.fixture(scope="session")
def toy_weights(tmp_path_factory):
    """A folder with generator.pt, encoder.pt, audio2latent.pt and video_gan.pt, untrained, tiny and made for each
    other, and the bundled keypoints.pt."""
    import torch

    from talkhead import checkpoints, fingerprints
    from talkhead.encoders import ResNetEncoder
    from talkhead.stylegan import Generator

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    generator = Generator(toys.RESOLUTION, channels=[8, 8, 8], mapping_layers=2)
    encoder = ResNetEncoder(generator.num_ws, width=8, input_size=toys.RESOLUTION)
    audio2latent, video_gan = toys.second_model(generator.num_ws), toys.motion_model(generator.num_ws)
    shutil.copy(checkpoints.bundled("keypoints"), folder)
    owner = fingerprints.fingerprint(generator.state_dict())
    toys.save_network(folder / "generator.pt", "generator", generator)
    toys.save_network(folder / "encoder.pt", "encoder", encoder, generator=owner)
    toys.save_network(folder / "audio2latent.pt", "audio2latent", audio2latent, generator=owner)
    owners = {"generator": owner, "encoder": fingerprints.fingerprint(encoder.state_dict())}
    toys.save_network(folder / "video_gan.pt", "video_gan", video_gan, nested=True, **owners)
    return folder


@pytest.fixture
def generator():
    """An 8×8 generator, with a mean latent of its own."""
    import torch

    from talkhead.stylegan import Generator

    torch.manual_seed(0)
    generator = Generator(8, [8, 8])
    generator.w_avg.copy_(0.1 * torch.randn(512))
    generator.fingerprint = "0123456789abcdef"
    return generator.eval().requires_grad_(False)


@pytest.fixture
def z_among_weights(monkeypatch):
    """A function of a generator.

    How many of all z that any generator's mapping was given since are rows of this one's first weights.
    """
    import torch

    from talkhead.stylegan import Generator

    seen, mapping = [], Generator.mapping
    monkeypatch.setattr(
        Generator,
        "mapping",
        lambda self, z, *more, **how: seen.append(z.detach().clone()) or mapping(self, z, *more, **how),
    )

    def count(generator):
        assert seen
        linear = next(layer for layer in generator.mapping_net if hasattr(layer, "weight"))
        return int((torch.cdist(torch.cat(seen), linear.weight * linear.lr_multiplier).min(1).values < 0.01).sum())

    return count


@pytest.fixture
def encoder(generator):
    import torch

    from talkhead.encoders import ResNetEncoder

    torch.manual_seed(1)
    encoder = ResNetEncoder(generator.num_ws, width=4, input_size=32, w_avg=generator.w_avg)
    torch.nn.init.normal_(encoder.fc.weight, std=0.3)  # a head with something to say
    return encoder.eval()


def example(name):
    """A script of examples/, imported."""
    return importlib.import_module(name)


@pytest.fixture(scope="session")
def puppet(tmp_path_factory):
    """A folder of material that needs no data: a drawn face, clips and photos of it, and something like speech.

    face.png, clip.mp4 (8 frames with sound)   aligned, 64 x 64, and they say so
    clips/                                     four such clips of two speakers, for training
    photo.png, in.mp4 (5 frames with sound)    not aligned: the face is a part of a larger picture
    leaves.mp4                                 as in.mp4, but 2 of 6 frames show nobody
    landmarks.npy                              the 68 points of the face in them
    wide.png                                   80 x 64
    speech.wav                                 half a second, not a whole number of frames
    """
    import wave

    import numpy as np

    from puppets import puppet as room
    from talkhead import files

    folder = tmp_path_factory.mktemp("puppet")
    still = room.drawn(seed=3, size=64)
    track = np.tile(np.float32([[0.0, 0.0, 0.0], [0.15, 0.0, 0.1]]), (6, 1))
    moving = [(frame, points) for frame, points in room.perform(still, track, size=64, seed=0)]
    face, landmarks = moving[0]
    aligned = {"talkhead_aligned": "64"}

    def write(name, frames, seconds=None, seed=0, metadata=None):
        sound = None if seconds is None else (toys.speech(seconds, seed), 16000)
        toys.write_frames(folder / name, frames, sound=sound, metadata=metadata)

    def photo(frame):
        wide = np.full((120, 160, 3), 110, np.uint8)
        wide[30:94, 40:104] = frame
        return wide

    blank = np.full((120, 160, 3), 110, np.uint8)
    frames = [frame for frame, _ in moving]
    write("face.png", [face], metadata=aligned)
    write("clip.mp4", frames[:8], 8 / 25, metadata=aligned)
    (folder / "clips").mkdir()
    for index in range(4):
        name = f"clips/{index:06d}"
        write(name + ".mp4", frames, len(frames) / 25, index, aligned)
        files.write_json(folder / f"{name}.json", {"speaker": f"s{index % 2}", "phonemes": []})
        files.write_array(folder / f"{name}.track.npy", track)
    write("photo.png", [photo(face)])
    write("in.mp4", [photo(frame) for frame in frames[:5]], 5 / 25)
    write("leaves.mp4", [photo(face)] * 2 + [blank] * 2 + [photo(face)] * 2)
    files.write_array(folder / "landmarks.npy", landmarks + np.float32((40, 30)))
    write("wide.png", [np.full((64, 80, 3), 99, np.uint8)])
    with wave.open(str(folder / "speech.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16000)
        sound.writeframes((toys.speech(0.5 + 1 / 16000) * 32767).astype("<i2").tobytes())
    return folder


@pytest.fixture
def toy_inception(tmp_path, monkeypatch):
    """Torch's cache with nothing in it but Inception's weights: random ones of the real file's names, 128 features.

    Its path.
    """
    import json
    import runpy

    import torch

    from talkhead import fid

    root = Path(__file__).parents[1]
    shapes = json.loads((root / "tests" / "data" / "inception.jsonl").read_text().splitlines()[0])["shapes"]
    path = tmp_path / "torch" / "hub" / "checkpoints" / fid.WEIGHTS
    path.parent.mkdir(parents=True)
    torch.save(runpy.run_path(root / "examples" / "benchmarks" / "peer_fid.py")["weights"](shapes), path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return path


@pytest.fixture(scope="session")
def random_vgg_home(tmp_path_factory):
    """A torch cache whose VGG-16 is random.

    The features are full size, the unused classifier is one number repeated.
    """
    import torch

    from talkhead.losses import vgg_weights

    torchvision = pytest.importorskip("torchvision")
    home = tmp_path_factory.mktemp("torch")
    with torch.device("meta"):
        shapes = torchvision.models.vgg16().state_dict()
    torch.manual_seed(0)
    weights = {
        name: torch.randn(value.shape) * 0.05 if name.startswith("features") else torch.zeros(1).expand(value.shape)
        for name, value in shapes.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        vgg_weights().parent.mkdir(parents=True)
        torch.save(weights, vgg_weights())
    return home


@pytest.fixture
def random_vgg(random_vgg_home, monkeypatch):
    """That is where torch's weights are looked for."""
    monkeypatch.setenv("TORCH_HOME", str(random_vgg_home))
    return random_vgg_home


@pytest.fixture
def random_mobilenet(tmp_path, monkeypatch):
    """Torchvision's MobileNetV2 with weights by chance, and a torch cache that holds them.

    Not as torchvision initialises them, so that every layer counts.
    """
    import torch

    from talkhead import mobilenet

    torchvision = pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2(weights=None).eval()
    for name, value in network.state_dict().items():
        if name.startswith("features") and value.ndim < 2 and value.is_floating_point():
            value.uniform_(0.5, 1.5)
    mobilenet.weights_path().parent.mkdir(parents=True)
    torch.save(
        network.state_dict(), mobilenet.weights_path(), _use_new_zipfile_serialization=False
    )  # as the public file is
    return network


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, driven by Selenium; its log "performance" has what was asked of the network."""
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("selenium, which drives a browser, is not installed")
    program, driver = (
        next(filter(None, map(shutil.which, names)), None)
        for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
    )
    if program is None or driver is None:
        pytest.skip("no Chromium with its chromedriver is installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "disable-gpu",
        "mute-audio",
        "autoplay-policy=no-user-gesture-required",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()
