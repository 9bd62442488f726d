"""Run commands on damaged files, and report whatever is neither success nor an error of one line.

    python examples/fuzz.py --count 10000

Small whole files are made first: video and sound of every container and codec that FFmpeg here can write, pictures,
arrays, latents, weights in several layouts, lists, timing files, logs, answers and the JSON that lies beside such
files. A mutant is one of them that is cut, has bytes flipped, blocks swapped, ranges zeroed, taken out or put in,
lengths changed, or another file joined on. A command that takes it runs in a process of its own, forked from one that
has loaded everything, with limits of time (60 s) and memory (2 GB), in an empty folder. Found is

    traceback   a traceback on stderr, or in a manifest or a record of metrics
    says        a line on stderr that is not talkhead's own, none where the exit status is 1, or a warning of numpy's
    status      an exit status that is not 0, 1 or 2
    SIGSEGV, …  a signal that ended the process: a fault of a C library
    hang        more than 60 s
    memory      more than 2 GB, or 6 GB of addresses asked for
    left        a file left behind by a command that failed, a hidden file, an input that was changed
    broken      a result of a command that did well and that cannot be read back

A JSON line on stdout for each kind of file tells how many mutants there were, of how many the command did well, was
refused, or found a fault; a last line tells of all. Faults are told on stderr, and what repeats them lies in a folder
that is named there. The same --seed and number give the same mutant: --first N --count 1 runs it alone. Exit status 1
if anything was found.
"""

import argparse
import importlib
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import types
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

os.environ["SVT_LOG"] = "0"  # read when it is loaded: an AV1 encoder would tell about itself

import av
import numpy as np
import torch
from PIL import Image

import kill_and_resume
import study
import talkhead
from talkhead import (
    audio2latent,
    audio_files,
    cli,
    conversion,
    datasets,
    encoders,
    files,
    fingerprints,
    image_files,
    inversion,
    landmarks,
    latents,
    losses,
    speech_models,
    stylegan,
    video_files,
    video_gan,
)

SECONDS, MEMORY = 60, 2 << 30  # limits of a process
SIDE = 64  # pixels of the clips and pictures; of smaller ones x265 overwrites memory
FRAMES = 6  # of each clip
RATE = 48000  # samples per second of the sounds
TOY = 16  # pixels: the generator's pictures


class Seed(NamedTuple):
    """A whole file, what lies beside it, and the commands that take it.

    In a command, {} is its name; one that begins with < has it on stdin.
    """

    name: str
    data: bytes
    jobs: tuple
    beside: dict = {}


# Whole files ----------------------------------------------------------------------------------------------------------

NETS = "--generator ../kit/generator.pt --encoder ../kit/encoder.pt"
DRIVEN = f"{NETS} --audio2latent ../kit/audio2latent.pt"
VIDEO = (
    "align {} -o out.mp4 --size 32 --quads out.npy",
    f"invert {{}} -o out.npy {NETS}",
    f"<invert -o out.npy {NETS}",
    "pack {} -o out.npy --size 16",
    f"generate --identity {{}} --audio ../kit/speech.wav -o out.mp4 --size 32 {DRIVEN}",
    "<align -o out.mp4 --size 32",
    "align {} -o out.mp4 --on-missing skip",
    f"generate --latents ../kit/latents.npy --audio {{}} -o out.mp4 {NETS[:31]}",
    "paste ../kit/clip.mp4 --into {} --quads ../kit/quads.npy -o out.mp4",
    "plot strip {} -o out.png --columns 2",
    "metrics ../kit/clip.mp4 {} --no-lmd --size 16 -o out.jsonl",
    "align --list ../kit/one.txt -o out --size 32",
)
SOUND = (
    f"generate --latents ../kit/latents.npy --audio {{}} -o out.mp4 {NETS[:31]}",
    "plot mouth ../kit/landmarks.npy --audio {} -o out.png",
    f"generate --identity ../kit/latents.npy --audio {{}} -o out.mp4 {DRIVEN}",
    f"<generate --identity ../kit/latents.npy --audio - -o out.mp4 {DRIVEN}",
)
PICTURE = (
    "align {} -o out.mp4 --size 32",
    "<align -o out.mp4 --size 32",
    "align {} -o out --size 32",
    f"invert {{}} -o out.npy {NETS}",
    f"<invert -o out.npy {NETS}",
    "pack {} -o out.npy --size 16",
    f"generate --identity {{}} --audio ../kit/speech.wav -o out.mp4 --whole {DRIVEN}",
    "paste ../kit/clip.mp4 --into {} --quads ../kit/quads.npy -o out.mp4",
    f"generate --identity {{}} --noise-seed 1 --seconds 0.1 -o out.mp4 --size 32 {NETS} --video-gan "
    "../kit/video_gan.pt",
)
LATENTS = (
    f"generate --latents {{}} -o out.mp4 {NETS[:31]}",
    f"generate --identity {{}} --audio ../kit/speech.wav -o out.mp4 {DRIVEN}",
)
WEIGHTS = ("weights show {}", "weights export {} -o out.pt")
GENERATOR = (
    *WEIGHTS,
    "generate --latents ../kit/latents.npy -o out.mp4 --generator {}",
    "weights convert {} -o out.pt --to rosinality",
    "weights convert {} -o out.pkl --to nvidia",
)
FOREIGN = (*WEIGHTS, "weights convert {} -o out.pt", "generate --latents ../kit/latents.npy -o out.mp4 --generator {}")
LISTED = "metrics --list {} --no-lmd --size 16 -o out.jsonl"
TIMES = (
    "plot strip ../kit/clip.mp4 --phonemes {} -o out.png --columns 2",
    "plot mouth ../kit/landmarks.npy --phonemes {} -o out.png",
    "metrics ../kit/clip.mp4 ../kit/clip.mp4 --phonemes {} -o out.jsonl",
)
TRAIN = (
    f"train-stylegan {{}} -o out.pt --resolution {TOY} --channels 4,4,4 --mapping-layers 1 --steps 1 --batch 2 "
    "--perceptual pyramid"
)

CLIPS = {  # name: video codec, sound codec, options
    "h264.mp4": ("libx264", "aac", {}),
    "bframes.avi": ("libx264", "libmp3lame", {"bf": "2"}),
    "hevc.mkv": ("libx265", "flac", {"x265-params": "log-level=none"}),
    "vp8.webm": ("libvpx", "vorbis", {}),
    "vp9.webm": ("libvpx-vp9", "libopus", {}),
    "av1.mp4": ("libsvtav1", "libopus", {"preset": "12"}),
    "mpeg1.mpg": ("mpeg1video", "mp2", {}),
    "mpeg2.ts": ("mpeg2video", "mp2", {}),
    "h264.ts": ("libx264", "aac", {}),
    "mpeg4.avi": ("mpeg4", "mp2", {}),
    "mjpeg.mov": ("mjpeg", "pcm_s16le", {}),
    "flv1.flv": ("flv", "libmp3lame", {}),
    "h264.flv": ("libx264", "aac", {}),
    "wmv.wmv": ("wmv2", "wmav2", {}),
    "prores.mov": ("prores_ks", "alac", {}),
    "ffv1.mkv": ("ffv1", "ac3", {}),
    "h264.3gp": ("libx264", "aac", {}),
    "raw.avi": ("rawvideo", "pcm_u8", {}),
    "mpeg4.ogv": ("vp8", "vorbis", {}),
    "fragments.mp4": ("libx264", "aac", {}),
    "h264.m4v": ("libx264", None, {}),
    "mjpeg.mjpeg": ("mjpeg", None, {}),
    "interlaced.mkv": ("mpeg2video", None, {"flags": "+ildct+ilme", "top": "1"}),
}
SOUNDS = {
    "s16.wav": "pcm_s16le",
    "float.wav": "pcm_f32le",
    "adpcm.wav": "adpcm_ms",
    "flac.flac": "flac",
    "vorbis.ogg": "vorbis",
    "opus.opus": "libopus",
    "flac.oga": "flac",
    "mp3.mp3": "libmp3lame",
    "aac.m4a": "aac",
    "aac.aac": "aac",
    "alac.m4a": "alac",
    "aiff.aiff": "pcm_s16be",
    "au.au": "pcm_s16be",
    "wma.wma": "wmav2",
    "ac3.ac3": "ac3",
    "tta.tta": "tta",
    "wavpack.wv": "wavpack",
    "mka.mka": "flac",
}
PICTURES = {  # name: Pillow's format and options; "move" for three pictures
    "jpeg.jpg": ("JPEG", {}),
    "exif.jpg": (
        "JPEG",
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0", "progressive": True},
    ),
    "rgb.png": ("PNG", {}),
    "gif.gif": ("GIF", {"move": True}),
    "apng.png": ("PNG", {"move": True}),
    "webp.webp": ("WEBP", {}),
    "moving.webp": ("WEBP", {"move": True, "lossless": True}),
    "avif.avif": ("AVIF", {}),
    "moving.avif": ("AVIF", {"move": True}),
    "bmp.bmp": ("BMP", {}),
    "raw.tiff": ("TIFF", {}),
    "lzw.tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "jpeg.tif": ("TIFF", {"compression": "jpeg"}),
    "ppm.ppm": ("PPM", {}),
    "rle.tga": ("TGA", {"compression": "tga_rle"}),
    "jp2.jp2": ("JPEG2000", {}),
    "ico.ico": ("ICO", {"sizes": [(32, 32)]}),
}


def pictures(count=FRAMES):
    """Frames of something that moves, uint8 (64, 64, 3)."""
    row, column = np.mgrid[:SIDE, :SIDE]
    return [
        np.stack([5 * column + 9 * index, 7 * row, column * row // 8 + 20 * index], -1).astype(np.uint8)
        for index in range(count)
    ]


def tone(rate, channels):
    """A tone as long as a clip, int16 (N, channels)."""
    time_ = np.arange(rate * FRAMES // 25) / rate
    return np.repeat((12000 * np.sin(2 * np.pi * 440 * time_)).astype(np.int16)[:, None], channels, axis=1)


def encoded(name, video=None, audio=None, options=None):
    """The bytes of a clip or a sound, made without the code under test; None where FFmpeg here cannot write such."""
    suffix = Path(name).suffix[1:]
    format = {
        "ts": "mpegts",
        "mkv": "matroska",
        "mka": "matroska",
        "m4a": "ipod",
        "m4v": "mp4",
        "wmv": "asf",
        "wma": "asf",
        "ogv": "ogg",
        "oga": "ogg",
        "aac": "adts",
        "mpg": "mpeg",
    }.get(suffix, suffix)
    # One that is read in order has its index first.
    muxing = (
        {"movflags": "frag_every_frame+empty_moov" if name.startswith("fragments") else "faststart"}
        if format in ("mp4", "mov", "3gp")
        else {}
    )
    with tempfile.NamedTemporaryFile(suffix=f".{suffix}") as place:
        try:
            with av.open(place.name, "w", format=format, options=muxing) as container:
                packets = []
                if video:
                    shown = container.add_stream(video, rate=25, options=options)
                    shown.width, shown.height, shown.pix_fmt = (
                        SIDE,
                        SIDE,
                        {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}.get(video, "yuv420p"),
                    )
                if audio:
                    heard = container.add_stream(audio, rate=RATE)
                    heard.codec_context.layout = "stereo"
                    heard.codec_context.options = {"strict": "experimental"}
                    heard.codec_context.bit_rate = 64000
                for index, picture in enumerate(pictures() if video else ()):
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    frame.pts, frame.time_base = index, Fraction(1, 25)
                    packets += shown.encode(frame)
                packets += shown.encode(None) if video else []
                for index, piece in enumerate(np.split(tone(RATE, 2), FRAMES) if audio else ()):
                    block = av.AudioFrame.from_ndarray(piece.reshape(1, -1), format="s16", layout="stereo")
                    block.sample_rate, block.time_base, block.pts = RATE, Fraction(1, RATE), index * len(piece)
                    packets += heard.encode(block)
                packets += heard.encode(None) if audio else []
                for packet in sorted(
                    (packet for packet in packets if packet.size), key=lambda packet: packet.dts * packet.time_base
                ):
                    container.mux(packet)
        except (av.error.FFmpegError, ValueError) as error:
            print(f"{name}: not made ({error})", file=sys.stderr)
            return None
        return Path(place.name).read_bytes()


def drawn(format, options):
    """The bytes of a picture, or of one that moves."""
    options = dict(options)
    first, *others = map(Image.fromarray, pictures(3))
    moving = {"save_all": True, "append_images": others, "duration": 40} if options.pop("move", False) else {}
    stream = io.BytesIO()
    first.save(stream, format, **options, **moving)
    return stream.getvalue()


def saved(save, value, **options):
    """The bytes that a function writes of a value."""
    stream = io.BytesIO()
    save(*((stream, value) if save is np.save else (value, stream)), **options)
    return stream.getvalue()


def safetensors(state):
    """A state dict as a .safetensors file."""
    header, data = {}, b""
    for name, value in state.items():
        part = value.numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def kit(folder):
    """Write what commands need beside the mutant to a folder: networks, sound, clips, latents.

    Returns the networks by kind.
    """
    torch.manual_seed(0)
    generator = stylegan.Generator(TOY, channels=[4, 4, 4], mapping_layers=1)
    count = generator.num_ws
    basis = latents.Basis(
        torch.zeros(count * 512), torch.linalg.qr(torch.randn(count * 512, 4))[0].T.contiguous(), torch.ones(4)
    )
    networks = {
        "generator": generator,
        "encoder": encoders.ResNetEncoder(count, width=2, input_size=TOY, stem_stride=1),
        "audio2latent": audio2latent.SecondModel(
            count, 4, channels=(2,) * 5, hidden=4, embedding=4, lstm=4, decoder=4, basis=basis
        ),
        "video_gan": video_gan.LatentGenerator(count, 4, 3, basis=basis),
        "speech": speech_models.CharacterModel(4, 4, 1),
    }
    owner = fingerprints.fingerprint(generator.state_dict())
    for kind, network in networks.items():
        config = network.config if kind == "generator" else network.config | {"generator": owner}
        if kind in ("video_gan", "speech"):
            config = {
                "network": network.config,
                "generator": owner,
                "encoder": fingerprints.fingerprint(networks["encoder"].state_dict()),
            }
        files.save_weights(
            folder / f"{kind}.pt", {"kind": kind, "config": config, "step": 0, "model": network.state_dict()}
        )
    path = np.random.default_rng(0).normal(size=(3, count, 512)).astype(np.float32)
    files.write_latents(folder / "latents.npy", path)
    files.write_array(folder / "quads.npy", np.tile(np.float32([[8, 4], [8, 28], [32, 28], [32, 4]]), (FRAMES, 1, 1)))
    files.write_array(folder / "landmarks.npy", np.tile(face_points(), (FRAMES, 1, 1)))
    audio_files.write_audio(folder / "speech.wav", tone(16000, 1)[:, 0] / 32768)
    (folder / "face.png").write_bytes(drawn("PNG", {}))
    sound = tone(16000, 1)[:, 0] / np.float32(32768), 16000
    for name in ("clip.mp4", "clips/0.mp4", "clips/1.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        with video_files.FrameWriter(
            folder / name, sound=sound, metadata={files.ALIGNED_TAG: "32"}, lossless=True
        ) as writer:
            for picture in pictures():
                writer.write(picture[:32, :32])
    return networks


def face_points():
    """68 points, float32 (68, 2): a face in the middle of the pictures."""
    angle = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    points = np.stack([20 + 9 * np.cos(angle), 16 + 9 * np.sin(angle)], 1)
    points[36:48] = [[14 + 12 * (index >= 6), 12] for index in range(12)]
    points[48:] = [[14 + 12 * index / 19, 22 + index % 2] for index in range(20)]
    return points.astype(np.float32)


def partial(folder, generator):
    """What invert keeps of a run that was stopped after the first of two frames."""
    place = folder / "out.npy.part"
    frames = [picture[:TOY, :TOY] for picture in pictures(2)]
    found = inversion.invert(
        iter(frames),
        generator.eval().requires_grad_(False),
        "optimise",
        steps=2,
        batch=1,
        perceptual=losses.Perceptual("pyramid"),
        partial=place,
    )
    next(found)
    found.close()
    return place.read_bytes()


def nvidia(state):
    """A network as NVIDIA's code pickles it: a call of a function of theirs with the module's parts."""
    module = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError

    _reconstruct_persistent_obj.__module__, _reconstruct_persistent_obj.__qualname__ = (
        module.__name__,
        "_reconstruct_persistent_obj",
    )
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj

    class Module:
        def __init__(self, name, state):
            self.name, self.state = name, state

        def __reduce__(self):
            parts = defaultdict(dict)
            for key, value in self.state.items():
                part, _, rest = key.partition(".")
                parts[part if rest else None][rest or part] = value
            own = parts.pop(None, {})
            meta = {
                "type": "class",
                "version": 6,
                "module_src": "",
                "class_name": self.name,
                "state": {
                    "activation": "linear" if self.name == "affine" else "lrelu",
                    "_parameters": own,
                    "_buffers": {},
                    "_modules": {name: Module(name, part) for name, part in parts.items()},
                    "_init_args": (),
                    "_init_kwargs": {"z_dim": 512, "w_dim": 512, "c_dim": 0, "img_resolution": TOY, "img_channels": 3},
                },
            }
            return _reconstruct_persistent_obj, (meta,), None

    before = {name: sys.modules.get(name) for name in ("torch_utils", module.__name__)}
    sys.modules |= {"torch_utils": types.ModuleType("torch_utils"), module.__name__: module}
    try:
        network = Module("Generator", state)
        return pickle.dumps({"G": network, "G_ema": network, "training_set_kwargs": {"resolution": TOY}})
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def seeds(folder, also=()):
    """The whole files of which mutants are made; `folder` is for the kit."""
    networks = kit(folder)
    mute = tuple(job for job in VIDEO if "--audio {}" not in job)
    made = [Seed(name, encoded(name, *how), VIDEO if how[1] else mute) for name, how in CLIPS.items()]
    made += [Seed(name, encoded(name, audio=codec), SOUND) for name, codec in SOUNDS.items()]
    folders = ("align . -o out.mp4 --size 32",)
    made += [
        Seed(name, drawn(*how), PICTURE + (folders if Path(name).suffix in image_files.PICTURES else ()))
        for name, how in PICTURES.items()
    ]
    made += [
        Seed(f"also{number}{Path(path).suffix}", Path(path).read_bytes(), VIDEO) for number, path in enumerate(also)
    ]
    made += _arrays(folder, networks) + _weights(folder, networks) + _texts(folder)
    (folder / "one.txt").write_text(
        "../desk/one.bin\tfirst.mp4\n../kit/clip.mp4\tsecond.mp4\n"
    )  # of whatever is the mutant, by that name
    return [seed for seed in made if seed.data is not None]


def _arrays(folder, networks):
    codes = np.load(folder / "latents.npy")
    owner = json.dumps(
        {"generator": fingerprints.fingerprint(networks["generator"].state_dict()), "fps": 25.0}
    ).encode()
    frames = np.stack([picture[:TOY, :TOY] for picture in pictures()])
    origin = asdict(datasets.Origin("a.mp4", FRAMES, TOY, "unknown"))
    packed = json.dumps({"frames": FRAMES, "size": TOY, "sources": [origin], "left_out": []}).encode()
    quads = json.dumps({"size": 32, "frame": [SIDE, SIDE], "fps": 25.0, "smoothing": 2.0}).encode()
    paste = "paste ../kit/clip.mp4 --into ../kit/face.png --quads quads.npy -o out.mp4"
    pieces = io.BytesIO()
    np.savez(pieces, w=codes[:1])
    resumed = (
        "invert ../kit/two -o out.npy --method optimise --steps 2 --batch 1 --perceptual pyramid --generator "
        "../kit/generator.pt"
    )
    (folder / "two").mkdir()
    for index, picture in enumerate(pictures(2)):
        image_files.write_image(folder / f"two/{index}.png", picture[:TOY, :TOY])
    return [
        Seed(
            "code.npy",
            saved(np.save, codes),
            (
                *LATENTS,
                "<generate --latents - -o out.mp4 --generator ../kit/generator.pt",
                "plot trajectory {} -o out.png",
                "plot components {} -o out.png --columns 2 --components 2 --generator ../kit/generator.pt",
            ),
        ),
        Seed("code.npz", pieces.getvalue(), LATENTS),
        Seed("code.pt", saved(torch.save, torch.from_numpy(codes)), LATENTS),
        Seed("old.pt", saved(torch.save, torch.from_numpy(codes), _use_new_zipfile_serialization=False), LATENTS),
        Seed(
            "code.json",
            owner,
            (
                "generate --latents code.npy -o out.mp4 --generator ../kit/generator.pt",
                "plot components code.npy -o out.png --columns 2 --components 2 --generator ../kit/generator.pt",
            ),
            {"code.npy": saved(np.save, codes)},
        ),
        Seed("quads.npy", (folder / "quads.npy").read_bytes(), (paste,)),
        Seed("quads.json", quads, (paste,), {"quads.npy": (folder / "quads.npy").read_bytes()}),
        Seed(
            "points.npy",
            (folder / "landmarks.npy").read_bytes(),
            ("plot mouth {} -o out.png", "metrics ../kit/clip.mp4 ../kit/clip.mp4 --landmarks {} -o out.jsonl"),
        ),
        Seed("packed.npy", saved(np.save, frames), (TRAIN, "pack {} -o out.npy --size 16")),
        Seed(
            "packed.json",
            packed,
            (TRAIN.format("packed.npy"), "pack packed.npy -o out.npy --size 16"),
            {"packed.npy": saved(np.save, frames)},
        ),
        Seed("out.npy.part", partial(folder, networks["generator"]), (resumed,)),
    ]


def _weights(folder, networks):
    old = {"_use_new_zipfile_serialization": False}
    ours = {kind: torch.load(folder / f"{kind}.pt") for kind in networks}
    found = [
        Seed(f"{age}{kind}.pt", saved(torch.save, ours[kind], **how), (*jobs, "weights show {}"))
        for age, how in (("", {}), ("old-", old))
        for kind, jobs in {
            "generator": GENERATOR,
            "encoder": (*WEIGHTS, "invert ../kit/face.png -o out.npy --generator ../kit/generator.pt --encoder {}"),
            "audio2latent": (
                f"generate --identity ../kit/latents.npy --audio ../kit/speech.wav -o out.mp4 {NETS} --audio2latent "
                f"{{}}",
            ),
            "video_gan": (
                f"generate --identity ../kit/latents.npy --noise-seed 1 --seconds 0.1 -o out.mp4 {NETS} --video-gan "
                f"{{}}",
            ),
            "speech": (
                f"generate --identity ../kit/latents.npy --audio ../kit/speech.wav -o out.mp4 {DRIVEN} --features "
                f"bundled --features-model {{}}",
            ),
        }.items()
    ]
    for name, to in (("rosinality.pt", "rosinality"), ("nvidia.pkl", "nvidia")):
        with warnings.catch_warnings():  # of channels that their code does not make
            warnings.simplefilter("ignore")
            conversion.convert(folder / "generator.pt", folder / "converted", to)
        theirs = torch.load(folder / "converted")
        (folder / "converted").unlink()
        if to == "rosinality":
            found += [
                Seed(name, saved(torch.save, theirs, **old), FOREIGN),
                Seed(
                    "hub.safetensors",
                    safetensors({key: value.contiguous() for key, value in theirs["g_ema"].items()}),
                    FOREIGN,
                ),
            ]
        else:
            found.append(
                Seed(
                    name,
                    nvidia(next(value for value in theirs.values() if isinstance(value, dict) and len(value) > 9)),
                    FOREIGN,
                )
            )
    trained = (
        f"train-stylegan ../kit/clips -o {{}} --resolution {TOY} --channels 4,4,4 --mapping-layers 1 --batch 2 "
        "--perceptual pyramid --steps"
    )
    found.append(Seed("out.pt", made_by(f"{trained} 1".format("out.pt"), folder, "out.pt"), (f"{trained} 2",)))
    return found


def _texts(folder):
    clips = "../kit/clip.mp4\n../kit/clips/0.mp4\tmine.mp4\n# a remark\n../kit/clips/1.mp4\n"
    pairs = "../kit/clip.mp4\t../kit/clips/0.mp4\n../kit/clips/1.mp4\t../kit/clip.mp4\n"
    phones = [(0.0, 0.05, "sil"), (0.05, 0.1, "b"), (0.1, 0.15, "AH1"), (0.15, 0.24, "m")]
    grid = "".join(
        f"{int(start * 25000)} {int(end * 25000)} {word}\n"
        for (start, end, _), word in zip(phones, ("sil", "bin", "blue", "now"))
    )
    lab = "".join(f"{int(start * 1e7)} {int(end * 1e7)} {label}\n" for start, end, label in phones)
    praat = (
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 0.24\ntiers? <exists>\nsize = 1\nitem '
        '[]:\n    item [1]:\n        class = "IntervalTier"\n        name = "phones"\n        xmin = 0\n        xmax = '
        "0.24\n        intervals: size = 4\n"
        + "".join(
            f"        intervals [{number}]:\n            xmin = {start}\n            xmax = {end}\n            text = "
            f'"{label}"\n'
            for number, (start, end, label) in enumerate(phones, 1)
        )
    )
    log = "".join(
        json.dumps({"step": step, "loss": 1 / (step + 1), "images_per_second": 9.5}) + "\n" for step in range(0, 50, 10)
    )
    key = {
        "study": "0123456789ab",
        "ours": "ours",
        "videos": {"a": {"method": "ours", "path": "o/x.mp4"}, "b": {"method": "w", "path": "w/x.mp4"}},
        "pairs": {"p0": ["a", "b"]},
    }
    columns = ",".join(study.COLUMNS)
    row = {
        "study": "0123456789ab",
        "participant": "me",
        "pair": "p0",
        "question": "realism",
        "left": "a",
        "right": "b",
        "choice": "left",
        "expected": "",
    }
    answers = columns + "\n" + ",".join(row.get(name, "1") for name in study.COLUMNS) + "\n"
    measured = made_by("metrics ../kit/clip.mp4 ../kit/clip.mp4 --no-lmd --size 16 -o out.jsonl", folder, "out.jsonl")
    manifest = "".join(
        json.dumps(
            {
                "source": f"../kit/{name}.mp4",
                "output": f"{Path(name).name}.mp4",
                "status": "done",
                "seconds": 1.0,
                "frames": 6,
            }
        )
        + "\n"
        for name in ("clip", "clips/0")
    )
    tally = "study tally answers.csv --key key.json --plot out.png"
    texts = {
        "clips.txt": (clips, ("align --list {} -o out --size 32", "<align --list - -o out --size 32")),
        "aligned.txt": (clips.replace("mine.mp4", "mine.npy"), (f"invert --list {{}} -o out {NETS}",)),
        "pairs.txt": (pairs, (LISTED, "<metrics --list - --no-lmd --size 16 -o out.jsonl")),
        "speakers.txt": (
            "../kit/clip.mp4\t../kit/speech.wav\n../kit/latents.npy\t../kit/clip.mp4\ttwo.mp4\n",
            (f"generate --list {{}} -o out --size 32 {DRIVEN}",),
        ),
        "times.TextGrid": (praat, TIMES),
        "times.align": (grid, TIMES),
        "times.lab": (lab, TIMES),
        "times.mlf": (f'#!MLF!#\n"*/clip.lab"\n{lab}.\n"*/landmarks.lab"\n{lab}.\n', TIMES),
        "times.json": (json.dumps({"phonemes": phones}), TIMES),
        "words.dict": (
            ";;; remark\nPLEASE  P L IY1 Z\nBIN(2)  B IH1 N # x\n",
            ("metrics ../kit/clip.mp4 ../kit/clip.mp4 --phonemes ../kit/times.align --dictionary {} -o out.jsonl",),
        ),
        "log.jsonl": (
            log,
            ("plot losses {} -o out.png", "plot dashboard {} -o out.png", "<plot dashboard - -o out.png"),
        ),
        "protocol.jsonl": (measured, ("metrics ../kit/clip.mp4 ../kit/clip.mp4 --protocol {} -o out.jsonl",)),
        "out.jsonl": (
            measured,
            (
                "metrics ../kit/clip.mp4 ../kit/clip.mp4 ../kit/clip.mp4 ../kit/clips/0.mp4 --no-lmd --size 16 -o "
                "out.jsonl",
            ),
        ),
        "out/manifest.jsonl": (manifest, ("align --list ../kit/clips.txt -o out --size 32",)),
    }
    (folder / "times.align").write_text(grid)
    (folder / "clips.txt").write_text(clips)
    return [
        Seed(name, text if isinstance(text, bytes) else text.encode(), jobs) for name, (text, jobs) in texts.items()
    ] + [
        Seed("answers.csv", answers.encode(), (tally,), {"key.json": json.dumps(key).encode()}),
        Seed("key.json", json.dumps(key).encode(), (tally,), {"answers.csv": answers.encode()}),
    ]


def made_by(command, folder, name):
    """The file of a name that a command writes."""
    place = folder.parent / "desk"
    place.mkdir(exist_ok=True)
    told = run(command, place, None)
    if told.status:
        sys.exit(f"talkhead {command}: exit status {told.status}\n{told.said}")
    return (place / name).read_bytes()


# Mutants --------------------------------------------------------------------------------------------------------------


def mutant(random, data, others):
    """A damaged copy of a file, and what was done to it."""
    if data.startswith(b"PK") and random.random() < 0.6:
        with suppress(zipfile.BadZipFile, NotImplementedError):
            return _repacked(random, data, others)
    whole, done = data, []
    while data == whole:
        kinds = random.choice(list(_MUTATIONS), random.choice([1, 1, 1, 2, 4]))
        for kind in kinds:
            data = _MUTATIONS[kind](random, data, others) if len(data) > 8 else data + b"talkhead!"
        done = list(kinds)
    if data.startswith(b"\x89PNG") and random.random() < 0.7:
        data = _checked(data)
    return data, done


def _place(random, size):
    """A position, as likely as not near an end, where what tells of the rest stands."""
    share = random.random()
    reach = min(size, 600)
    return int(
        random.integers(reach)
        if share < 0.4
        else size - 1 - random.integers(reach)
        if share < 0.5
        else random.integers(size)
    )


def _span(random, size):
    start = _place(random, size)
    return start, min(size, start + 1 + int(random.integers(min(size, random.choice([8, 64, 2000])))))


def _cut(random, data, others):
    return data[: _place(random, len(data))]


def _flip(random, data, others):
    data = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 8, 40])):
        data[_place(random, len(data))] ^= (
            1 << int(random.integers(8)) if random.random() < 0.5 else int(random.integers(1, 256))
        )
    return bytes(data)


def _swap(random, data, others):
    (start, end), other = _span(random, len(data)), _place(random, len(data))
    first, second = sorted([start, other])
    size = min(end - start, second - first, len(data) - second)
    return (
        data[:first]
        + data[second : second + size]
        + data[first + size : second]
        + data[first : first + size]
        + data[second + size :]
    )


def _zero(random, data, others):
    start, end = _span(random, len(data))
    return data[:start] + bytes([random.choice([0, 0, 255])]) * (end - start) + data[end:]


def _insert(random, data, others):
    at, (start, end) = _place(random, len(data)), _span(random, len(data))
    return data[:at] + (data[start:end] if random.random() < 0.5 else random.bytes(end - start)) + data[at:]


def _remove(random, data, others):
    start, end = _span(random, len(data))
    return data[:start] + data[end:]


def _length(random, data, others):
    """A number of two, four or eight bytes becomes another, as lengths and counts would."""
    size, order = int(random.choice([2, 4, 4, 4, 8])), random.choice(["big", "little"])
    at = min(_place(random, len(data)), len(data) - size)
    value, most = int.from_bytes(data[at : at + size], order), (1 << 8 * size) - 1
    value = [
        0,
        1,
        most,
        most >> 1,
        value + 1,
        value - 1,
        value * 2,
        value // 2,
        len(data),
        -len(data),
        1 << 8 * size - 8,
    ][random.integers(11)]
    return data[:at] + (value & most).to_bytes(size, order) + data[at + size :]


def _digits(random, data, others):
    """A number that is written out becomes another."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[:100_000]))
    if not found:
        return _flip(random, data, others)
    start, end = found[random.integers(len(found))].span()
    return (
        data[:start]
        + [b"0", b"-1", b"1e400", b"NaN", b"99999999999999999999", b"null", b'"x"', b"[]", b"{}", b"1000000"][
            random.integers(10)
        ]
        + data[end:]
    )


def _join(random, data, others):
    other = data if random.random() < 0.3 else others[random.integers(len(others))].data
    return (
        data + other
        if random.random() < 0.7
        else data[: _place(random, len(data))] + other[_place(random, len(other)) :]
    )


_MUTATIONS = {
    "cut": _cut,
    "flip": _flip,
    "swap": _swap,
    "zero": _zero,
    "insert": _insert,
    "remove": _remove,
    "length": _length,
    "digits": _digits,
    "join": _join,
}


def _repacked(random, data, others):
    """A zip archive of which one entry is damaged, and the checksums are right: else nobody would look into it."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(made, "w") as copy:
        names = archive.namelist()
        hit, done = (
            names[random.integers(len(names))]
            if random.random() < 0.5
            else max(names, key=lambda name: name.endswith((".pkl", ".npy"))),
            None,
        )
        for name in names:
            content = archive.read(name)
            if name == hit:
                content, done = mutant(random, content or b"x", others)
            copy.writestr(name, content)
    return made.getvalue(), [f"{kind} in {hit}" for kind in done]


def _checked(data):
    """A PNG whose chunks have their right checksums."""
    made, at = data[:8], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunk = data[at + 4 : at + 8 + size]
        if len(chunk) < 4 + size:
            break
        made += data[at : at + 4] + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        at += 12 + size
    return made + data[at:]


# Runs -----------------------------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """How a process ended."""

    status: int  # exit status; of one that a signal ended, less than 0
    said: str  # on stderr
    memory: int  # bytes
    seconds: float


def run(command, folder, stdin):
    """Fork a process that runs a command in a folder, and wait for it."""
    errors = folder.parent / "stderr"
    began = time.monotonic()
    process = os.fork()
    if not process:
        _child(command, folder, errors, stdin)
    _, status, usage = os.wait4(process, 0)
    return Told(
        os.waitstatus_to_exitcode(status),
        errors.read_bytes().decode(errors="replace"),
        usage.ru_maxrss * 1024,
        time.monotonic() - began,
    )


def _child(command, folder, errors, stdin):
    status = 1
    try:
        signal.alarm(SECONDS)
        room = (
            int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
            if os.path.exists("/proc/self/statm")
            else 8 << 30
        )
        resource.setrlimit(resource.RLIMIT_AS, (room + 3 * MEMORY,) * 2)  # threads reserve much that they never use
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 20,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        os.dup2(os.open(stdin or os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        script, words = (
            (study.main, command.split()[1:]) if command.startswith("study ") else (cli.cli, command.split())
        )
        script.main(words, prog_name="talkhead")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(status)


def verdict(told, command, folder, before):
    """What is wrong with a run: (kind, what), or None; `before` holds the files of the folder as they were."""
    if told.status == -signal.SIGALRM:
        return "hang", command
    if told.status < 0:
        return signal.Signals(-told.status).name, command
    traces = [
        json.loads(line)
        for path in folder.rglob("*.jsonl")
        if path.name not in before
        for line in path.read_text(errors="replace").splitlines()
        if '"traceback"' in line
    ]
    if "Traceback" in told.said or traces:
        return "traceback", _origin(traces[0]["traceback"] if traces else told.said)
    if told.memory > MEMORY or "out of memory" in told.said:
        return "memory", f"{command.split()[0]} {next(iter(before))}"
    if told.status not in (0, 1, 2):
        return "status", str(told.status)
    lines = told.said.split("\n")[:-1]
    batch = "--list" in command or command.startswith("metrics")
    own = [line for line in lines if line.startswith("talkhead: ")]
    if told.status < 2 and len(own) < len(lines) or "encountered in" in told.said or told.status == 1 and not own:
        return "says", next(
            (line for line in lines if not line.startswith("talkhead: ") or "encountered in" in line), "nothing"
        )
    if told.status == 2:
        return "says", lines[-1]  # these commands are right
    after = {str(path.relative_to(folder)): path for path in folder.rglob("*") if not path.is_dir()}
    kept = [name for name in after if name not in before and (files.is_hidden(name) or told.status and not batch)]
    # A command that does well writes to what it resumes, or takes it away; lists and metrics do so with their records
    # in any case.
    still = [name for name in before if not (name.startswith("out") and (batch or told.status == 0))]
    changed = [name for name in still if name not in after or after[name].read_bytes() != before[name]]
    if kept or changed:
        return "left", " ".join(re.sub(r"[0-9a-f]{8}", "X", name) for name in kept + changed)
    made = {
        name: path
        for name, path in after.items()
        if name.startswith("out") and (name not in before or told.status == 0)
    }
    if told.status == 0 and not made and not command.startswith("weights show"):
        return "broken", "no result"
    broken = [name for name, path in made.items() if not _is_whole(path)]
    return ("broken", " ".join(broken)) if broken else None


def _origin(trace):
    """The error of a traceback, and where in talkhead it came up."""
    frames = re.findall(r'File "[^"]*/talkhead/(\w+\.py)", line (\d+), in (\w+)', trace)
    error = trace.strip().splitlines()[-1]
    return f"{re.sub('[0-9]+', 'N', error[:100])} @ " + " < ".join(":".join(frame[:2]) for frame in frames[:-4:-1])


def _is_whole(path):
    """Whether a result can be read back."""
    try:
        if (
            path.suffix == ".npy" or path.read_bytes()[:6] == np.lib.format.MAGIC_PREFIX
        ):  # whatever a damaged list calls it
            np.load(path)
        elif path.suffix == ".mp4":
            with av.open(str(path)) as container:
                return sum(1 for _ in container.decode(video=0)) > 0
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix in (".json", ".jsonl"):
            for text in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
                json.loads(text)
    except Exception as error:  # of a library, whichever it has
        print(f"{path}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    return True


def trial(seed, command, data, root):
    """Run a command on a file that holds this: Told, and the verdict."""
    work = root / "desk"
    shutil.rmtree(work, ignore_errors=True)
    before = {"one.bin" if "one.txt" in command else seed.name: data} | seed.beside
    for name, content in before.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    told = run(plain(command, seed), work, work / seed.name if command.startswith("<") else None)
    return told, verdict(told, plain(command, seed), work, before)


def plain(command, seed):
    """A command as it is given, without where its stdin comes from."""
    return command.removeprefix("<").format(seed.name)


def drawn_by_lot(number, seed_of_all, made):
    """Which file becomes the mutant of a number, for which command, what the mutant holds and what was done to it."""
    random = np.random.default_rng([seed_of_all, number])
    seed = made[random.integers(len(made))]
    return seed, seed.jobs[random.integers(len(seed.jobs))], *mutant(random, seed.data, made)


def keep(place, root, command, seed, told, number, kind, what):
    """Put aside what repeats a fault."""
    shutil.copytree(root / "desk", place)
    (place / "HOW").write_text(
        f"mutant {number}: {kind}: {what}\ntalkhead {plain(command, seed)}"
        f"{f' < {seed.name}' if command.startswith('<') else ''}\nexit status {told.status}, {told.seconds:.1f} s\n"
        f"{told.said}"
    )


def refused(seed, command, root):
    """Whether a command has a fault on the whole file; if it refuses it, that is told, too."""
    told, wrong = trial(seed, command, seed.data, root)
    if told.status or wrong:  # some formats are not read in order, and the speech model was taught with other features
        print(
            f"{seed.name}: talkhead {plain(command, seed)}: exit status {told.status}, {wrong}: {told.said}",
            file=sys.stderr,
        )
    return bool(wrong)


# ----------------------------------------------------------------------------------------------------------------------


def load():
    """Import everything, so that a forked process does not; no detector is asked, for not everybody has its files."""
    for room in talkhead.MODULES:
        importlib.import_module(f"talkhead.{room}")
    with suppress(ImportError):
        importlib.import_module("matplotlib.pyplot")
    import torch._dynamo  # noqa: F401

    torch.set_num_threads(1)
    av.logging.set_level(av.logging.PANIC)
    stub = kill_and_resume.Stub(face_points())
    landmarks.detector = lambda *_, **__: stub


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="mutants")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so many, whatever the count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="TEXT", default="", help="files with this in their name")
    parser.add_argument(
        "--also",
        metavar="FILE",
        action="append",
        default=[],
        help="one more whole clip or picture, such as Theora or HEIC, which FFmpeg cannot write",
    )
    parser.add_argument("--keep", metavar="FOLDER", help="where to put what repeats faults")
    parser.add_argument("--whole", action="store_true", help="instead, run every command on the whole files")
    options = parser.parse_args()

    load()
    root = Path(tempfile.mkdtemp(prefix="fuzz."))
    (root / "kit").mkdir()
    made = [seed for seed in seeds(root / "kit", options.also) if options.only in seed.name]
    if options.whole:
        sys.exit(int(any([refused(seed, command, root) for seed in made for command in seed.jobs])))
    found, counts, began = Path(options.keep or root / "found"), defaultdict(Counter), time.monotonic()
    mutations, faults, slowest, largest, last = Counter(), {}, 0.0, 0, options.first
    for number in range(options.first, options.first + options.count):
        if time.monotonic() - began > options.minutes * 60:
            break
        seed, command, data, done = drawn_by_lot(number, options.seed, made)
        told, wrong = trial(seed, command, data, root)
        mutations.update(done)
        slowest, largest, last = max(slowest, told.seconds), max(largest, told.memory), number + 1
        counts[seed.name]["faults" if wrong else "done" if told.status == 0 else "refused"] += 1
        if wrong:
            faults.setdefault(wrong, []).append(number)
            if len(faults[wrong]) == 1:
                place = found / f"{number}-{wrong[0]}"
                keep(place, root, command, seed, told, number, *wrong)
                print(f"{place}: {wrong[0]}: {wrong[1]}", file=sys.stderr, flush=True)
    for name, count in sorted(counts.items()):
        print(json.dumps({"file": name, "mutants": count.total(), **count}))
    kinds = Counter()
    for (kind, _), numbers in faults.items():
        kinds[kind] += len(numbers)
    print(
        json.dumps(
            {
                "seed": options.seed,
                "first": options.first,
                "mutants": last - options.first,
                "done": sum(count["done"] for count in counts.values()),
                "refused": sum(count["refused"] for count in counts.values()),
                "faults": kinds,
                "slowest_seconds": round(slowest, 1),
                "largest_mb": largest >> 20,
                "mutations": dict(mutations.most_common()),
            }
        )
    )
    if not faults or options.keep:
        shutil.rmtree(root)
    sys.exit(int(bool(faults)))


if __name__ == "__main__":
    main()
