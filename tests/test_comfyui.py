"""The nodes for ComfyUI, without it: what they declare, and the same frames and latents as the command's."""

import inspect
import wave

import numpy as np
import pytest
import torch

from conftest import example
from talkhead import TalkheadError, files, read_image, video_files
from test_cli import Stub, run

nodes = example("comfyui")
WIDGETS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


def image(*frames):
    """An IMAGE, as ComfyUI loads one: float32 (B, H, W, 3)."""
    return torch.from_numpy(np.stack(frames).astype(np.float32) / 255.0)


@pytest.fixture(scope="module")
def audio(puppet):
    """The AUDIO in the puppet's speech.wav."""
    with wave.open(str(puppet / "speech.wav")) as sound:
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float32) / 32768
        return {"waveform": torch.from_numpy(samples)[None, None], "sample_rate": sound.getframerate()}


def execute(name, **inputs):
    """Run a node as ComfyUI does: inputs by name, widgets at their defaults, no gradients."""
    cls = nodes.NODE_CLASS_MAPPINGS[name]
    widgets = {}
    for key, (kind, *more) in cls.INPUT_TYPES()["required"].items():
        if isinstance(kind, list):
            widgets[key] = kind[0]
        elif kind in WIDGETS:
            widgets[key] = more[0]["default"]
    with torch.inference_mode():
        outputs = getattr(cls(), cls.FUNCTION)(**widgets | inputs)
    assert isinstance(outputs, tuple) and len(outputs) == len(cls.RETURN_TYPES)
    return outputs


def frames_of(output):
    """uint8 (T, H, W, 3) of an IMAGE, cut off as ComfyUI does to save it."""
    assert output.dtype == torch.float32 and output.ndim == 4 and output.shape[-1] == 3
    assert 0 <= output.min() and output.max() <= 1
    return (255.0 * output.cpu().numpy()).astype(np.uint8)


def close(output, frames):
    """True if an IMAGE is these frames but for rounding: the command sums sound in blocks, which rounds otherwise."""
    found = frames_of(output).astype(int)
    return found.shape == frames.shape and np.abs(found - frames).max() <= 1 and np.mean(found != frames) < 0.01


def commanded(folder, *arguments):
    """The frames and latents of `talkhead generate`."""
    result = run("generate", *arguments, "-o", folder / "frames/", "--latents-out", folder / "lat.npy")
    assert result.exit_code == 0, result.output
    return np.stack(list(video_files.read_frames(folder / "frames"))), files.read_latents(folder / "lat.npy")


@pytest.mark.parametrize("name", nodes.NODE_CLASS_MAPPINGS)
def test_nodes_declare_what_comfyui_reads(name):
    cls = nodes.NODE_CLASS_MAPPINGS[name]
    inputs = cls.INPUT_TYPES()
    assert set(inputs) <= {"required", "optional", "hidden"} and "required" in inputs
    for kind, *more in (each for group in inputs.values() for each in group.values()):
        assert isinstance(kind, list) or kind in {*WIDGETS, "IMAGE", "AUDIO", "TALKHEAD_LATENTS"}
        if not isinstance(kind, list) and kind in WIDGETS:
            assert type(more[0]["default"]) is WIDGETS[kind]
    for names in (cls.RETURN_TYPES, cls.RETURN_NAMES):
        assert isinstance(names, tuple) and all(isinstance(each, str) for each in names)
    assert len(cls.RETURN_TYPES) == len(cls.RETURN_NAMES) and cls.CATEGORY == "talkhead"
    parameters = inspect.signature(getattr(cls, cls.FUNCTION)).parameters
    assert list(parameters)[1:] == [key for group in inputs.values() for key in group]
    assert all(parameters[key].default is None for key in inputs.get("optional", ()))
    assert nodes.NODE_DISPLAY_NAME_MAPPINGS.keys() == nodes.NODE_CLASS_MAPPINGS.keys()


@pytest.mark.parametrize(
    "widgets, flags",
    [
        ({}, []),
        ({"model": "first", "seed": 3, "label": True}, ["--model", "first", "--seed", 3, "--label"]),
        ({"detail": False}, ["--no-detail"]),
    ],
)
def test_a_photo_speaks_as_by_the_command(puppet, audio, tmp_path, widgets, flags):
    face = puppet / "face.png"
    drawn, latents = execute("TalkheadSpeak", image=image(read_image(face)), audio=audio, aligned=True, **widgets)
    frames, path = commanded(tmp_path, "--identity", face, "--audio", puppet / "speech.wav", *flags)
    assert close(drawn, frames) and len(frames) == 13
    assert latents.dtype == torch.float32 and np.allclose(latents.numpy(), path, atol=1e-6)


def test_a_batch_of_images_is_dubbed_as_by_the_command(puppet, audio, tmp_path):
    with video_files.read_frames(puppet / "clip.mp4") as reader:
        clip = list(reader)
        with video_files.FrameWriter(tmp_path / "silent.mp4", metadata=reader.metadata, lossless=True) as writer:
            for frame in clip:
                writer.write(frame)
    drawn, _ = execute("TalkheadSpeak", image=image(*clip), audio=audio, aligned=True)
    frames, _ = commanded(tmp_path, "--identity", tmp_path / "silent.mp4", "--audio", puppet / "speech.wav")
    assert close(drawn, frames)


def test_the_face_is_found_and_the_whole_picture_kept(puppet, audio, monkeypatch):
    monkeypatch.setattr(nodes, "detector", lambda device: Stub(np.load(puppet / "landmarks.npy")))
    photo = read_image(puppet / "photo.png")
    drawn, _ = execute("TalkheadSpeak", image=image(photo), audio=audio, whole=True)
    frames = frames_of(drawn)
    assert frames.shape == (13, *photo.shape) and np.array_equal(frames[:, :20], np.stack([photo[:20]] * 13))
    drawn, _ = execute("TalkheadSpeak", image=image(photo), audio=audio)
    assert drawn.shape[1] == drawn.shape[2] < 120


def test_latents_are_rendered_as_by_the_command(puppet, audio, tmp_path):
    face = image(read_image(puppet / "face.png"))
    _, latents = execute("TalkheadSpeak", image=face, audio=audio, aligned=True, detail=False)
    files.write_latents(tmp_path / "in.npy", latents.numpy())
    (tmp_path / "alone").mkdir()
    frames, _ = commanded(tmp_path / "alone", "--latents", tmp_path / "in.npy")
    assert np.array_equal(frames_of(*execute("TalkheadRender", latents=latents)), frames)
    frames, _ = commanded(tmp_path, "--latents", tmp_path / "in.npy", "--identity", puppet / "face.png")
    drawn = execute("TalkheadRender", latents=latents, image=face, aligned=True)
    assert np.array_equal(frames_of(*drawn), frames)


def test_stereo_at_another_rate_is_mixed_and_resampled(audio):
    samples = np.sin(2 * np.pi * 220 * np.arange(22050) / 44100).astype(np.float32) / 2
    found = nodes.speech({"waveform": torch.from_numpy(np.stack([samples, samples]))[None], "sample_rate": 44100})
    exact = np.sin(2 * np.pi * 220 * np.arange(len(found)) / 16000) / 2
    assert abs(len(found) - 8000) <= 1 and np.abs(found - exact)[100:-100].max() < 0.01
    assert np.array_equal(nodes.speech(audio), audio["waveform"][0, 0].numpy())


def test_progress_is_shown_where_comfyui_can(puppet, audio, monkeypatch):
    told = []

    class Bar:
        def __init__(self, total):
            told.append(total)

        def update(self, value):
            told.append(value)

    monkeypatch.setattr(nodes, "ProgressBar", Bar)
    execute("TalkheadSpeak", image=image(read_image(puppet / "face.png")), audio=audio, aligned=True)
    assert told == [13] + [1] * 13


def test_what_is_refused(puppet, audio):
    face = image(read_image(puppet / "face.png"))
    twice = audio | {"waveform": torch.cat([audio["waveform"]] * 2)}
    for widgets, message in (
        ({"audio": twice, "aligned": True}, "audio: a batch of 2; pass one recording"),
        ({"audio": audio, "aligned": True, "whole": True}, "whole wants a picture that is not aligned"),
        ({"audio": audio, "detail": False, "whole": True}, "whole wants a picture that is not aligned, and its detail"),
    ):
        with pytest.raises(TalkheadError, match=message):
            execute("TalkheadSpeak", image=face, **widgets)
