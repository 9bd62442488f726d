"""A talking head is a path through the latent space of a face generator.

    frames ───────▶ latents ─────────▶ displaced latents ───────▶ frames
           inversion         audio2latent               synthesis

Public names are imported on first use: torch takes seconds to import, and
`talkhead --help` should not.
"""

from importlib import import_module

__version__ = "0.2.0"

# The files of the library and their public names, in import order: each imports only from those before it.
MODULES = {
    "errors": ("TalkheadError",),
    "images": ("to_frames", "to_images"),
    "fingerprints": (),
    "legacy": (),
    "safetensors": (),
    "timestamps": (),
    "files": ("read_array", "read_latents", "write_array", "write_latents"),
    "image_files": ("read_image", "write_image"),
    "containers": (),
    "audio_files": ("read_audio", "read_sound"),
    "video_files": ("FrameWriter", "describe", "read_frames"),
    "downloads": ("fetch", "verify"),
    "pickle_vm": (),
    "safe_pickle": (),
    "landmarks": ("detector", "mouth_opening"),
    "faces": ("align", "align_frames", "crop", "follow", "paste", "quad", "quad_transforms", "upright_rotation"),
    "mfcc": ("mfcc_windows",),
    "vad": ("VoiceActivityDetector",),
    "blinking": ("blinks",),
    "phonemes": ("read_closures",),
    "latents": ("Basis", "displace", "displacement", "lerp", "slerp"),
    "distributed": ("pick_device",),
    "training": (),
    "speech_models": ("CharacterModel",),
    "audio_features": ("AudioFeatures", "Mfcc"),
    "datasets": ("Images", "pack"),
    "keypoints": ("KeypointNetwork",),
    "encoders": ("FaceRecognition", "PSPEncoder", "ReStyle", "ResNetEncoder"),
    "mobilenet": ("MobileNet",),
    "fid": ("FaceFeatures", "Inception"),
    "metrics": ("lmd", "psnr", "ssim"),
    "losses": ("Perceptual",),
    "ada": (),
    "syncnet": ("SyncNet",),
    "stylegan_ops": (),
    "stylegan": ("Discriminator", "Generator"),
    "stylegan3": (),
    "generators": (),
    "inversion": ("encode", "invert"),
    "latent_cache": (),
    "audio2latent": ("FirstModel", "SecondModel", "displacements", "load_features_for"),
    "video_gan": ("LatentGenerator", "VideoDiscriminator", "motion"),
    "state_dicts": (),
    "checkpoints": (
        "bundled",
        "load_audio2latent",
        "load_encoder",
        "load_generator",
        "load_keypoints",
        "load_video_gan",
    ),
    "directions": ("factorise", "load_direction"),
    "conversion": (),
    "train_autoencoder": (),
    "train_stylegan": (),
    "train_encoder": (),
    "train_audio2latent": (),
    "train_video_gan": (),
    "pti": ("tune",),
    "detail": ("Detail", "Photo"),
    "dubbing": ("Film", "dub"),
    "synthesis": ("generate", "identity_of", "synthesize"),
    "clips": ("align_clip", "invert_clip", "paste_clip"),
    "identities": ("load_identity",),
    "talking_head": ("TalkingHead",),
    "plots": (),
    "jobs": (),
    "protocol": ("Protocol",),
    "evaluation": ("evaluate",),
}

_MODULE_OF = {name: module for module, names in MODULES.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name):
    if name in _MODULE_OF:
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value
    if name in MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_MODULE_OF, *MODULES})
