"""Nodes for ComfyUI: a photo or clip and speech become frames, by way of latents that other nodes may change.

    IMAGE, AUDIO ──▶ talkhead: speak ──▶ IMAGE, TALKHEAD_LATENTS ──▶ talkhead: render ──▶ IMAGE

Of ComfyUI's types, IMAGE is a float32 tensor (T, H, W, 3) in [0, 1], AUDIO {"waveform": float32 tensor (1, C, N),
"sample_rate"}. TALKHEAD_LATENTS is this package's own: a float32 tensor (T, L, 512) in W+, one for each 40 ms.
"""

import functools
import io

import numpy as np
import soundfile
import torch

from talkhead import TalkheadError, bundled, checkpoints, detector, faces, pick_device, read_audio, synthesis
from talkhead.clips import crop
from talkhead.images import to_frames

try:
    from comfy.utils import ProgressBar
except ImportError:  # outside ComfyUI
    ProgressBar = None

MODELS = {"second": "audio2latent", "first": "first"}
BATCH = 8  # frames drawn together


@functools.cache
def networks(model="second"):
    """The bundled networks by kind, with one of the speech models."""
    driver = {"audio2latent": bundled(MODELS[model])}
    return checkpoints.load_networks(pick_device("auto"), generator=None, encoder=None, **driver)


def identity(image, aligned, detail=True, whole=False):
    """The code, float32 (L, 512), of the face in an IMAGE, and its Photo, or Film of several; None without detail.

    aligned, detail, whole   as --aligned, --detail and --whole
    raises                   TalkheadError if no face is found, or options exclude each other
    """
    if whole and (aligned or not detail):
        raise TalkheadError("whole wants a picture that is not aligned, and its detail; switch aligned off, detail on")
    frames = to_frames(image[..., :3].movedim(-1, 1) * 2 - 1)
    tracked = ((frame, None, index) for index, frame in enumerate(frames))
    if not aligned:
        tracked = faces.follow(iter(frames), detector(device=pick_device("auto")))
    generator, encoder = networks()["generator"], networks()["encoder"]
    if detail:
        look = synthesis.identity_of(tracked, generator, whole, name="image")
        return synthesis.code_of(encoder, look, generator), look
    frame, quad, _ = next(tracked)
    return synthesis.encode_identity(encoder, crop(frame, quad, synthesis.aligned_side(generator))), None


def speech(audio):
    """The samples of an AUDIO as talkhead takes them: float32 (N,) at 16 kHz."""
    waveform = audio["waveform"]
    if len(waveform) != 1:
        raise TalkheadError(f"audio: a batch of {len(waveform)}; pass one recording")
    stream = io.BytesIO()
    soundfile.write(stream, waveform[0].T.cpu().numpy(), audio["sample_rate"], "FLOAT", format="WAV")
    stream.seek(0)
    return read_audio(stream)


def draw(latents, code, look, head, label):
    """Latents, float32 (T, L, 512), as an IMAGE. head: as `synthesis.with_detail` takes it."""
    generator, bar = networks()["generator"], ProgressBar and ProgressBar(len(latents))
    if look is None:
        frames = synthesis.synthesize(generator, latents, BATCH)
    else:
        frames = synthesis.with_detail(latents, look, generator, code, head=head, batch=BATCH)
    drawn = []
    for frame in synthesis.label(frames) if label else frames:
        drawn.append(frame)
        if bar:
            bar.update(1)
    return torch.from_numpy(np.stack(drawn)).float() / 255


class Speak:
    """A photo, or a clip at 25 frames a second, says a recording."""

    CATEGORY = "talkhead"
    FUNCTION = "speak"
    RETURN_TYPES = ("IMAGE", "TALKHEAD_LATENTS")
    RETURN_NAMES = ("frames", "latents")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": ("IMAGE",),
                "audio": ("AUDIO",),
                "model": (list(MODELS),),
                "aligned": ("BOOLEAN", {"default": False}),
                "detail": ("BOOLEAN", {"default": True}),
                "whole": ("BOOLEAN", {"default": False}),
                "label": ("BOOLEAN", {"default": False}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**31 - 1}),
            }
        }

    def speak(self, image, audio, model, aligned, detail, whole, label, seed):
        code, look = identity(image, aligned, detail, whole)
        driver, sound = networks(model)["audio2latent"], speech(audio)
        latents = np.stack(list(synthesis.speech_to_latents(None, driver, code, sound, BATCH, seed=seed)))
        return draw(latents, code, look, False, label), torch.from_numpy(latents)


class Render:
    """Latents as frames: the generator's own, or a photo's that moves as they say."""

    CATEGORY = "talkhead"
    FUNCTION = "render"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("frames",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "latents": ("TALKHEAD_LATENTS", {"forceInput": True}),
                "aligned": ("BOOLEAN", {"default": False}),
                "whole": ("BOOLEAN", {"default": False}),
                "label": ("BOOLEAN", {"default": False}),
            },
            "optional": {"image": ("IMAGE",)},
        }

    def render(self, latents, aligned, whole, label, image=None):
        code, look = (None, None) if image is None else identity(image, aligned, whole=whole)
        return (draw(latents.cpu().numpy(), code, look, True, label),)


NODE_CLASS_MAPPINGS = {"TalkheadSpeak": Speak, "TalkheadRender": Render}
NODE_DISPLAY_NAME_MAPPINGS = {"TalkheadSpeak": "talkhead: speak", "TalkheadRender": "talkhead: render"}
