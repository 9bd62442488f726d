"""Toy networks, weight files, clips and shells, which several test files need."""

import os
import sys
from pathlib import Path

import numpy as np
import torch

from talkhead import files, video_files
from talkhead.audio2latent import SecondModel
from talkhead.encoders import ResNetEncoder
from talkhead.latents import Basis
from talkhead.stylegan import Generator
from talkhead.video_gan import LatentGenerator

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
RESOLUTION = 16  # pixels, of the toy generator
SIZES = {"hidden": 8, "embedding": 8, "lstm": 8, "decoder": 8}  # of a second model


# Networks -------------------------------------------------------------------------------------------------------------


def pair(seed=0, encoder_seed=None, std=0.1):
    """A generator of 16 pixels and an encoder whose head, drawn with this std, tells faces apart."""
    torch.manual_seed(seed)
    generator = Generator(RESOLUTION, channels=[8, 8, 8], mapping_layers=1)
    if encoder_seed is not None:
        torch.manual_seed(encoder_seed)
    encoder = ResNetEncoder(generator.num_ws, width=4, input_size=RESOLUTION)
    torch.nn.init.normal_(encoder.fc.weight, std=std)
    return generator, encoder


def _random_basis(num_ws):
    components, _ = torch.linalg.qr(torch.randn(num_ws * 512, 4))
    return Basis(torch.zeros(num_ws * 512), components.T.contiguous(), torch.ones(4))


def second_model(num_ws):
    """An untrained speech model that does move: its basis is random, where a new model's is zero."""
    return SecondModel(num_ws, 4, channels=(4, 4, 4, 4, 4), **SIZES, basis=_random_basis(num_ws))


def motion_model(num_ws):
    """An untrained motion model; it moves."""
    return LatentGenerator(num_ws, 4, 3, basis=_random_basis(num_ws))


# Files ----------------------------------------------------------------------------------------------------------------


def save_network(path, kind, network, step=0, nested=False, **config):
    """Write a network as trainers do: its own config, for some kinds `nested` under "network", and more."""
    config = ({"network": network.config} if nested else network.config) | config
    files.save_weights(path, {"kind": kind, "config": config, "step": step, "model": network.state_dict()})


def write_frames(place, frames, lossless=True, **options):
    """Write frames to a video, an image, a folder of images or a stream; `options` are those of FrameWriter."""
    with video_files.FrameWriter(place, lossless=lossless, **options) as writer:
        for frame in frames:
            writer.write(frame)
    return place


def speech(seconds, seed=0, rate=16000):
    """Noise in syllables, four a second: float32 (N,)."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(size=len(time))
    return (0.1 * noise * np.sin(2 * np.pi * 2 * time) ** 2).astype(np.float32)


def stored_by_exif(seen, orientation):
    """The pixels of a file with this EXIF orientation that is to be seen like that, by the table of the standard."""
    return {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.swapaxes(0, 1),
        6: np.rot90(seen, 1),
        7: seen[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(seen, -1),
    }[orientation]


# Shells ---------------------------------------------------------------------------------------------------------------


def environment(folder=None, **more):
    """Environment variables with which Python finds this tree, on one thread.

    folder  takes the commands `talkhead` and `python`, which are this tree's and this interpreter's; made if missing
    """
    path = os.environ["PATH"]
    if folder is not None:
        folder.mkdir(exist_ok=True)
        for name, module in (("talkhead", "-m talkhead"), ("python", "")):
            (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
            (folder / name).chmod(0o755)
        path = f"{folder}{os.pathsep}{path}"
    more = {name: str(value) for name, value in more.items()}
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more
