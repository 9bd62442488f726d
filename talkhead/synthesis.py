"""Latents → frames, and the whole chain from a face and speech, or noise, to a talking head."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice, tee
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from talkhead import blinking, checkpoints, faces, stylegan3, vad
from talkhead.audio2latent import FirstModel, SecondModel, displacements, load_features_for
from talkhead.audio_features import AudioFeatures
from talkhead.detail import MOUTH_BOX, Detail, Photo, native_side
from talkhead.dubbing import Film, dub, own_gain
from talkhead.encoders import Encoder
from talkhead.errors import TalkheadError
from talkhead.images import resize, to_frames
from talkhead.inversion import encode
from talkhead.latents import displace
from talkhead.mfcc import SAMPLE_RATE
from talkhead.stylegan import Generator
from talkhead.video_gan import LatentGenerator, motion

CATCH_UP = 8  # late frames that are drawn together
PROMPT = 0.015  # s; a live latent that takes longer to come was waited for
PRECISIONS = ("float32", "bfloat16", "float16")
SILENCE = np.zeros(2 * SAMPLE_RATE, np.float32)  # seconds after which no earlier speech has an effect


def synthesize(
    generator: Generator,
    latents: np.ndarray | Iterable[np.ndarray],
    batch: int = 8,
    noise: str = "const",
    precision: str = "float32",
    transforms: np.ndarray | None = None,
    window: tuple[float, float, float, float] | None = None,
) -> Iterator[np.ndarray]:
    """Draw one frame per latent, as they arrive.

    generator  stylegan.Generator; frames are made on the device it lies on
    latents    float32 (T, L, 512), or an iterator of (L, 512)
    batch      latents drawn together; it changes the speed and the memory, not the frames. 1 is for live latents: each
               is drawn when it comes, and together only what is late
    noise      "const": the generator's own fixed noise, so that a still latent is a still frame;
               "random": new noise for every frame; "none"
    precision  "float32"; or "bfloat16" or "float16" for the convolutions, which a GPU does faster. bfloat16 is about
               53 dB away from float32 and float16 about 70 dB
    transforms (T, 3, 3), one a latent, as `faces.quad_transforms` makes them, with which a stylegan3.Generator turns
               and moves the face in the image; or None
    window     (top, left, bottom, right), fractions of the side: where alone a stylegan.Generator need draw its finest
               detail, which is faster on a CPU; None is everywhere
    yields     uint8 (R, R, 3) RGB
    raises     TalkheadError if a latent is not (L, 512) of this generator, the precision has another name, there are
               fewer transforms than latents, or the generator is no StyleGAN3 that can follow them

    Source: thesis §3.3, §4.3.1.4.
    """
    if precision not in PRECISIONS:
        raise TalkheadError(f"precision {precision!r}: unknown; take {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    if transforms is not None and not isinstance(generator, stylegan3.Generator):
        raise TalkheadError(
            "quads need a StyleGAN3 generator, and this is none; pass one as --generator, or put the frames back into "
            "the film with talkhead paste --quads"
        )
    device = next(generator.parameters()).device

    def draw(w_plus, options):
        with (
            torch.inference_mode(),
            torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32"),
        ):
            return generator.synthesis(w_plus.to(device), noise=noise, **options)  # (batch, 3, R, R)

    options: dict[str, Any] = {}
    if window is not None and isinstance(generator, Generator):
        options["window"] = tuple(round(edge * generator.resolution) for edge in window)
    latents = iter(latents)
    done, drawn = 0, deque[Future]()
    with ThreadPoolExecutor(1) as thread:
        while chunk := list(islice(latents, batch)) if batch > 1 else _arrived(latents):
            w_plus = torch.stack([_checked(latent, generator, done + i) for i, latent in enumerate(chunk)])
            if transforms is not None:
                options = {"transform": torch.as_tensor(transforms[done : done + len(chunk)])}
                if len(options["transform"]) < len(chunk):
                    raise TalkheadError(f"transforms: {len(transforms)}, but there are more latents; pass one for each")
            done += len(chunk)
            if batch == 1:  # each frame is to be there at once
                yield from to_frames(draw(w_plus, options))
                continue
            drawn.append(thread.submit(draw, w_plus, options))
            if len(drawn) > 1:  # the next batch is drawn while the frames of this one are used
                yield from to_frames(drawn.popleft().result())
        while drawn:
            yield from to_frames(drawn.popleft().result())


def _arrived(latents):
    """The next latent, and those after it that come at once because frames are late: drawn together, they catch up."""
    chunk: list[np.ndarray] = []
    while len(chunk) < CATCH_UP:
        asked = time.monotonic()
        if (latent := next(latents, None)) is None:
            break
        chunk.append(latent)
        if time.monotonic() - asked > PROMPT:
            break
    return chunk


def _checked(latent, generator, index):
    latent = torch.as_tensor(latent, dtype=torch.float32)
    if latent.ndim != 2 or latent.shape[0] != generator.num_ws:
        raise TalkheadError(
            f"latents, frame {index}: shape {tuple(latent.shape)}, but this generator of {generator.resolution} pixels "
            f"takes ({generator.num_ws}, 512); pass the generator they were made with as --generator"
        )
    return latent


def encode_identity(encoder: Encoder, identity: np.ndarray, batch: int = 8) -> np.ndarray:
    """The code of a face.

    encoder   encoders.ResNetEncoder
    identity  uint8 (H, W, 3) RGB, an aligned image; or several of one person, (n, H, W, 3): the mean of their codes
              is taken
    returns   float32 (L, 512)
    """
    images = np.asarray(identity)
    images = images.reshape(-1, *images.shape[-3:])  # (n, H, W, 3)
    device = next(encoder.parameters()).device
    code: Any = np.mean(list(encode(encoder, images, batch=batch, device=device)), 0, np.float32)
    return code


def speech_to_latents(
    encoder: Encoder | None,
    audio2latent: FirstModel | SecondModel,
    identity: np.ndarray,
    audio: np.ndarray | Iterable[np.ndarray],
    batch: int = 8,
    gain: float = 1.0,
    features: AudioFeatures | None = None,
    gate: bool = False,
    layers: tuple[int, int] | None = None,
    blink: float = 0.0,
    blink_latent: np.ndarray | None = None,
    seed: int = 0,
    deterministic: bool = False,
    edit: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """W+ trajectory of a speaking face.

    encoder       encoders.ResNetEncoder; None if the identity is a code
    audio2latent  audio2latent.FirstModel or SecondModel
    identity      uint8 (H, W, 3) RGB, an aligned image; or several of one person, (n, H, W, 3): the mean of their
                  codes is taken; or the code itself, float32 (L, 512)
    audio         float32 (N,) mono at 16 kHz in [-1, 1]; or an iterator of blocks of it, which is read no further than
                  the next latents need, and changes nothing else
    batch         video frames predicted together; the result does not depend on it
    gain          factor on all movement
    features      audio features, as audio2latent.load_features_for loads them; None loads them here
    gate          shut the mouth where nobody speaks: in pauses, in noise and in music
    layers        (first, last), counted from 0: speech moves only these layers of W+; None moves all
    blink         blinks a minute, at moments that `seed` sets; 0 for none
    blink_latent  float32 (L, 512), what shuts the eyes; wanted where it blinks
    seed          of the blinks, and of the first model's noise
    deterministic give the first model no noise
    edit          float32 (L, 512), added to the identity before it speaks, as `directions.edit` makes it; or None
    yields        float32 (L, 512), one for each 40 ms of speech: ceil(N / 640) in all

    Source: thesis §4.2.1, §4.3.1, eq. 4.3: w_t = w_I + d_t, where d_t is always measured from the identity.
    Departure: a mouth that is shut is what the model itself makes of silence, and blinks are added to what speech
    moves.
    """
    start = _start(encoder, identity, batch, edit)
    features = features or load_features_for(audio2latent)
    blocks, again = tee([audio] if isinstance(audio, np.ndarray) else audio)
    moved = displacements(
        audio2latent, features.stream(blocks), start, chunk=batch, seed=None if deterministic else seed
    )
    if gate:
        *_, rest = displacements(audio2latent, features.windows(SILENCE), start, seed=None)
        moved = vad.gate_mouth(moved, vad.VoiceActivityDetector().stream(again), rest)
    else:
        del again  # or all of the sound would be kept for it
    chosen = np.zeros((len(start), 1), np.float32)
    chosen[slice(None) if layers is None else slice(layers[0], layers[1] + 1)] = gain
    lids = blinking.blinks(blink, seed)
    for displacement, lid in zip(moved, lids):
        displacement = chosen * displacement
        if lid:
            displacement = displacement + np.float32(lid) * blink_latent  # type: ignore[operator]
        yield displace(start, displacement)


def noise_to_latents(
    encoder: Encoder | None,
    video_gan: LatentGenerator,
    identity: np.ndarray,
    seed: int | Sequence[tuple[int, int]] = 0,
    frames: int | None = None,
    batch: int = 8,
    gain: float = 1.0,
    edit: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """W+ trajectory of a face from the motion model.

    encoder       encoders.ResNetEncoder; None if the identity is a code
    video_gan     video_gan.LatentGenerator
    identity      as `speech_to_latents` takes it
    seed          of the noise, or segments [(seed, frames), …], as `video_gan.motion` takes it; the same moves every
                  face alike
    frames        how many; None never ends
    batch, gain, edit   as `speech_to_latents` takes them
    yields        float32 (L, 512)

    Source: thesis §3.4.2, eq. 3.5: w_t = w_I + d_t, where d_t is always measured from the identity.
    """
    start = _start(encoder, identity, batch, edit)
    for displacement in motion(video_gan, start, seed, frames, gain, chunk=batch):
        yield displace(start, displacement)


def _start(encoder, identity, batch, edit):
    identity = np.asarray(identity)
    code = identity if identity.dtype.kind == "f" else encode_identity(encoder, identity, batch)
    return code if edit is None else displace(code, edit)


def generate(
    generator: Generator,
    encoder: Encoder | None,
    audio2latent: FirstModel | SecondModel,
    identity: np.ndarray | Photo | Film,
    audio: np.ndarray | Iterable[np.ndarray],
    batch: int = 8,
    noise: str = "const",
    precision: str = "float32",
    detail: bool = True,
    neutral: bool = True,
    **motion: Any,
) -> Iterator[np.ndarray]:
    """Make a face speak: a photo and speech become a talking head.

    generator, encoder, audio2latent  networks that were trained for each other, on one device; encoder None if the
                                      identity is a code
    identity    uint8 (H, W, 3) RGB, an aligned image; or several of one person, (n, H, W, 3): the mean of their codes
                is taken, and the detail of the first; or a detail.Photo or dubbing.Film, as `identity_of` makes them;
                or the code itself, float32 (L, 512)
    audio       float32 (N,) mono at 16 kHz in [-1, 1]; or an iterator of blocks of it
    batch, noise, precision           as `synthesize` takes them; batch=1 where each frame is to be drawn as soon as it
                                      can be
    detail      carry the photo along at its own resolution; False gives the generator's own frames, as the thesis does,
                and so does a code
    neutral     bring a mouth that is open in the photo to rest first
    motion      gain       factor on all movement [1.0]
                features   audio features, as `load_features_for` loads them [loaded here]
                gate       shut the mouth where nobody speaks [False]
                layers     (first, last) layers of W+ that speech moves, counted from 0 [all]
                blink, blink_latent        blinks a minute [0], and float32 (L, 512), what shuts the eyes
                seed, deterministic        of the blinks and the first model's noise [0]; give it none [False]
                edit       float32 (L, 512), added to the code first. A photo shows its movement of mouth, jaw and
                           cheeks; without detail all of it is seen [none]
    yields      uint8 (H, W, 3) RGB of the photo's size, or (R, R, 3) without detail, at 25 fps, ceil(N / 640) in all

    Source: thesis §4.2.1 (first model), §4.3.1 (second model).
    Departure: the photo's detail (see detail.py); detail=False is the thesis's.
    """
    photo = None
    if isinstance(identity, (Photo, Film)):
        photo = identity
    elif detail and np.asarray(identity).dtype.kind != "f":
        identity = np.asarray(identity)
        photo = Photo(identity.reshape(-1, *identity.shape[-3:])[0], checkpoints.load_keypoints(), neutral=neutral)
    code: Any = identity if photo is None else code_of(encoder, photo, generator)  # type: ignore[arg-type]
    if photo is not None and isinstance(identity, np.ndarray) and identity.ndim == 4 and len(identity) > 1:
        device = next(encoder.parameters()).device  # type: ignore[union-attr]
        others = encode(encoder, identity[1:], batch=batch, device=device)  # type: ignore[arg-type]
        code = np.mean([code, *others], 0, np.float32)
    if isinstance(photo, Film):
        match_range(photo, generator, audio2latent, code, motion.get("features"))
    latents = speech_to_latents(encoder, audio2latent, code, audio, batch, **motion)
    return (
        synthesize(generator, latents, batch, noise, precision)
        if photo is None
        else with_detail(
            latents,
            photo,
            generator,
            code,
            noise,
            precision,
            motion.get("blink", 0.0),
            motion.get("seed", 0),
            batch=batch,
        )
    )


def identity_of(
    tracked: Iterable[tuple[np.ndarray, np.ndarray | None, int]],
    generator: Generator,
    whole: bool = False,
    size: int | None = None,
    neutral: bool = True,
    sound: np.ndarray | None = None,
    name: str = "photo",
) -> Photo | Film:
    """The photo, or the clip to be dubbed, that `generate` takes as its identity.

    tracked    iterator of (frame uint8 (H, W, 3), quad float (4, 2), index), as `follow` gives; the quad of an aligned
               frame is None. One frame is a photo, several are a clip
    generator  stylegan.Generator, which will draw the face
    whole      keep the whole frame; False cuts the face out
    size       side of the face that is cut out, pixels; None is its own, even and at most 1024
    neutral    bring a mouth that is open in the photo to rest first
    sound      float32 (N,) mono at 16 kHz, what is said in the clip: `generate` then opens the mouth as far as this
               speaker does
    name       of the source, for errors
    returns    detail.Photo or dubbing.Film
    raises     TalkheadError if there are no frames, or the mouth lies outside the frame
    """
    network, tracked = checkpoints.load_keypoints(), iter(tracked)
    first, second = next(tracked, None), next(tracked, None)
    if first is None:
        raise TalkheadError(f"{name}: no frames; pass a photo or a clip that shows a face")
    frame, quad, _ = first
    side: Any = None if whole else size or native_side(faces.whole_quad(frame) if quad is None else quad)
    if second is not None:
        return Film(chain([first, second], tracked), network, side, sound)
    try:
        photo = Photo(frame, network, quad, neutral)
    except TalkheadError as problem:
        raise TalkheadError(f"{name}: {problem}") from problem
    if whole:
        return photo
    cut = resize(frame, side) if quad is None else faces.crop(frame, quad, side)
    return Photo(
        cut,
        network,
        None,
        neutral,
        photo.points,
        frame if quad is None else faces.crop(frame, quad, aligned_side(generator)),
    )


def aligned_side(generator: Generator) -> int:
    """The side at which a face is cropped for a generator, pixels.

    It is the generator's own, so that nothing is enlarged; for small ones 256, at which encoders look.
    """
    return max(256, generator.resolution)


def match_range(
    film: Film,
    generator: Generator,
    audio2latent: FirstModel | SecondModel,
    code: np.ndarray,
    features: AudioFeatures | None = None,
) -> None:
    """Set the gain of a film by how far its speaker opens the mouth beside the speech model.

    Both are compared on ten seconds of the film's own sound; without a sound the gain stays.

    film                     dubbing.Film
    generator, audio2latent  as `generate` takes them
    code                     float32 (L, 512), the face in the film
    features                 as `speech_to_latents` takes them
    """
    if film.sound is not None:
        path = speech_to_latents(
            None, audio2latent, code, film.sound[: 10 * SAMPLE_RATE], features=features, deterministic=True
        )
        film.gain = own_gain(film, synthesize(generator, path))


def code_of(encoder: Encoder, photo: Photo | Film, generator: Generator) -> np.ndarray:
    """The code of the face in a detail.Photo or dubbing.Film, at rest: float32 (L, 512)."""
    return encode_identity(encoder, photo.face(aligned_side(generator)))


def with_detail(
    latents: np.ndarray | Iterable[np.ndarray],
    photo: Photo | Film,
    generator: Generator,
    code: np.ndarray,
    noise: str = "const",
    precision: str = "float32",
    blink: float = 0.0,
    seed: int = 0,
    head: bool = False,
    batch: int = 1,
) -> Iterator[np.ndarray]:
    """Draw one frame per latent with the detail of a photo, as they arrive.

    latents           as `synthesize` takes them
    photo             detail.Photo, or dubbing.Film, whose frames get new lips
    code              float32 (L, 512), the identity, from which the frames' latents were displaced
    noise, precision  as `synthesize` took them
    blink, seed       as `speech_to_latents` took them; a film keeps its own blinks
    head              whether the photo's head and brows follow the frames', as the motion model moves them; speech does
                      not
    batch             frames drawn together; it changes the speed and the memory, not the frames
    yields            uint8 (H, W, 3), of the photo's size
    """
    window = None if head or isinstance(photo, Film) else MOUTH_BOX
    rest = next(synthesize(generator, [code], 1, noise, precision, window=window))
    frames = synthesize(generator, latents, batch, noise, precision, window=window)
    if isinstance(photo, Film):
        yield from dub(photo, frames, rest, batch)
    else:
        yield from Detail(photo, rest, head=head).stream(frames, blinking.blinks(blink, seed), batch)


def label(frames: Iterable[np.ndarray], text: str = "synthetic") -> Iterator[np.ndarray]:
    """Write a word into the lower left corner of every frame.

    frames  iterator of uint8 (H, W, 3), all of one size
    yields  uint8 (H, W, 3); the word stands on a dark plate two fifths of the frame wide, and at least 48 pixels to be
            read

    Source: thesis §6.2 asks that such videos can be distinguished from real ones.
    """
    plate = None
    for frame in frames:
        if plate is None:
            plate = _plate(text, max(48, frame.shape[1] * 2 // 5))[: frame.shape[0], : frame.shape[1]]
        marked = np.array(frame)
        marked[-plate.shape[0] :, : plate.shape[1]] = plate
        yield marked


def _plate(text, width):
    """The word in white on its plate, uint8 (h, width, 3)."""
    font = ImageFont.load_default(48)
    left, top, right, bottom = font.getbbox(text)
    pad = 6
    plate = Image.new("RGB", (right - left + 2 * pad, bottom - top + 2 * pad), (32, 32, 32))
    ImageDraw.Draw(plate).text((pad - left, pad - top), text, font=font, fill=(255, 255, 255))
    return np.asarray(
        plate.resize((width, max(1, round(plate.height * width / plate.width))), Image.Resampling.LANCZOS)
    )
