"""Learn to tell speech from silence, noise and music: how talkhead/weights/voice.npy was made, and how often it errs.

    synth.py -o puppets/ --count 1000 --size 64 …
    python examples/learn_voice.py puppets/ --recordings grid/s1/ --aligns grid/align/ --speeches speeches/ -o voice.npy

Speech to learn from: puppets that espeak-ng speaks, whose phonemes are known; recordings, with GRID's .align of each;
and a few speeches. It is mixed with drawn noise (white to brown, hum, gusts, knocks) and with drawn music of two kinds
(chords with drums; leads, pads and arpeggios), and heard through drawn microphones. The test mixes other recordings
with the same noise, and with music of those two kinds and of a third that was never learnt (plucked strings and bells).
Prints a JSON object for each condition: "hit", the share of frames within words in which the mouth is more free than
shut, and "false", the share of those without.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from talkhead import audio_files, files, metrics, mfcc, vad

RATE = mfcc.SAMPLE_RATE
TWICE = 4  # speeches are few: so often each is taken, in other mixtures
EDGE = 2  # frames beside the start and the end of words that the test leaves out


# What is no speech ----------------------------------------------------------------------------------------------------


def scaled(samples):
    return samples / np.sqrt(np.mean(samples**2) + 1e-12)


def noise(rng, length):
    time, hertz = np.arange(length) / RATE, np.maximum(np.fft.rfftfreq(length, 1 / RATE), 30)
    hiss = scaled(np.fft.irfft(np.fft.rfft(rng.normal(size=length)) * hertz ** -rng.uniform(0, 1), length))
    kind = rng.integers(4)
    if kind == 1:  # the mains
        hiss = hiss + 3 * sum(np.sin(2 * np.pi * 50 * k * time + rng.uniform(0, 6)) / k for k in range(1, 8))
    if kind == 2:  # gusts
        hiss = hiss * (1 + 0.9 * np.sin(2 * np.pi * rng.uniform(0.1, 8) * time))
    if kind == 3:  # knocks
        hiss = 0.05 * hiss
        for start in rng.integers(0, length - 800, rng.integers(3, 30)):
            hiss[start : start + 800] += (
                rng.uniform(0.3, 3) * rng.normal(size=800) * np.exp(-np.arange(800) / rng.uniform(40, 300))
            )
    return scaled(hiss)


def band(rng, length):
    """Chords of decaying overtones, with drums."""
    time, out = np.arange(length) / RATE, np.zeros(length)
    beat, root = 60 / rng.uniform(70, 150), rng.uniform(110, 330)
    scale = [0, 2, 4, 5, 7, 9, 11] if rng.random() < 0.5 else [0, 2, 3, 5, 7, 8, 10]
    for start in np.arange(0, length / RATE, beat * rng.choice([1, 2, 4])):
        for note in rng.choice(7, 3, replace=False):
            hertz = root * 2 ** ((scale[note] + 12 * rng.integers(-1, 2)) / 12)
            late = time >= start
            since = time[late] - start
            swell = np.exp(-since * rng.uniform(0.3, 4)) * np.minimum(since / rng.uniform(0.005, 0.1), 1)
            for overtone in range(1, rng.integers(2, 10)):
                if hertz * overtone < 7500:
                    out[late] += swell * np.sin(2 * np.pi * hertz * overtone * since) / overtone ** rng.uniform(0.7, 2)
    if rng.random() < 0.7:
        for start in np.arange(0, length / RATE, beat / rng.choice([1, 2])):
            part = out[int(start * RATE) :][: int(0.15 * RATE)]
            since = np.arange(len(part)) / RATE
            drum = (
                rng.normal(size=len(part))
                if rng.random() < 0.6
                else np.sin(2 * np.pi * 60 * since * np.exp(-5 * since))
            )
            part += rng.uniform(0.5, 3) * np.exp(-since * rng.uniform(20, 60)) * drum
    return scaled(out)


def synthesizer(rng, length):
    """A gliding voice of many overtones, with a drone and hats."""
    time, step, root = np.arange(length) / RATE, rng.uniform(0.1, 0.6), rng.uniform(80, 400)
    hertz = np.zeros(length)
    for start in np.arange(0, length / RATE, step):
        hertz[int(start * RATE) :] = root * 2 ** (rng.choice([0, 2, 3, 5, 7, 9, 12, -5]) / 12)
    glide = int(rng.uniform(0.005, 0.08) * RATE)
    phase = (
        2
        * np.pi
        * np.cumsum(np.convolve(hertz, np.ones(glide) / glide, "same") * (1 + 0.004 * np.sin(2 * np.pi * 5 * time)))
        / RATE
    )
    out = sum(np.sin(k * phase) / k ** rng.uniform(0.5, 1.5) for k in range(1, rng.integers(3, 14)))
    out = out * np.exp(-(time % step) / step * rng.uniform(0, 4)) * np.minimum((time % step) / 0.01, 1)
    if rng.random() < 0.5:
        out += rng.uniform(0.2, 1) * np.exp(-(time % (2 * step)) * 30) * rng.normal(size=length)
    if rng.random() < 0.5:
        out += 0.5 * sum(np.sin(2 * np.pi * root * ratio * time) for ratio in (1, 1.26, 1.5))
    return scaled(out)


def strings(rng, length):
    """Plucked strings (Karplus and Strong) and bells (frequency modulation): for the test alone."""
    out, at = np.zeros(length), 0
    while at < length:
        period, count = int(RATE / rng.uniform(120, 900)), min(length - at, int(rng.uniform(0.3, 1.5) * RATE))
        loop, tone = rng.uniform(-1, 1, period), np.empty(count)
        for start in range(0, count, period):
            part = min(period, count - start)
            tone[start : start + part] = loop[:part]
            loop = 0.497 * (loop + np.roll(loop, 1))
        if rng.random() < 0.4:
            since, hertz = np.arange(count) / RATE, rng.uniform(200, 1200)
            tone += np.exp(-3 * since) * np.sin(
                2 * np.pi * hertz * since
                + rng.uniform(1, 5) * np.sin(2 * np.pi * hertz * rng.choice([1.4, 2, 3.5]) * since)
            )
        out[at : at + count] += tone
        at += int(rng.uniform(0.1, 0.4) * RATE)
    return scaled(out)


# Speech ---------------------------------------------------------------------------------------------------------------


def puppets(folder):
    """(sound, spoken) of each clip that espeak-ng speaks."""
    for path in files.find(folder, {".json"}):
        about = files.read_json(path)
        if about["source"].startswith("espeak"):
            audio = audio_files.read_audio(path.with_suffix(".mp4"))
            yield (
                audio,
                within(
                    [(start, end) for start, end, name in about["phonemes"] if name != "SIL"], mfcc.num_frames(audio)
                ),
            )


def recordings(folder, aligns):
    """(sound, spoken) of each recording that has an .align: start and end in 1/25000 s, and the word."""
    for path in files.find(folder, {".mpg"}):
        align = Path(aligns) / f"{path.stem}.align"
        if align.exists():
            rows = [line.split() for line in align.read_text().splitlines() if line.strip()]
            audio = audio_files.read_audio(path)
            yield (
                audio,
                within(
                    [(int(row[0]) / 25000, int(row[1]) / 25000) for row in rows if row[2] not in ("sil", "sp")],
                    mfcc.num_frames(audio),
                ),
            )


def speeches(folder, seconds=4):
    """(sound, spoken) of pieces of recordings whose words nobody wrote down.

    Their own loudness tells where they pause.
    """
    for path in sorted(path for path in Path(folder).iterdir() if not files.is_hidden(path.name)):
        audio = audio_files.read_audio(path)
        for start in range(0, len(audio) - seconds * RATE + 1, seconds * RATE):
            piece = audio[start : start + seconds * RATE]
            yield (
                piece,
                (~metrics.pauses(metrics.envelope(piece, mfcc.num_frames(piece)), margin=0)).astype(np.float32),
            )


def within(spans, frames):
    spoken = np.zeros(frames, np.float32)
    for start, end in spans:
        spoken[int(start * mfcc.FPS) : int(np.ceil(end * mfcc.FPS))] = 1
    return spoken


def loudness(audio, spoken):
    chosen = np.repeat(spoken > 0, RATE // mfcc.FPS)[: len(audio)]
    return np.sqrt(np.mean(audio[: len(chosen)][chosen] ** 2) + 1e-9) if chosen.any() else 0.1


def room(audio, rng):
    """The echo of a room: noise that dies away."""
    seconds = rng.uniform(0.1, 0.6)
    answer = (
        rng.normal(size=int(seconds * RATE))
        * np.exp(-6.9 * np.arange(int(seconds * RATE)) / seconds / RATE)
        * rng.uniform(0.02, 0.15)
    )
    answer[0] = 1
    size = 1 << (len(audio) + len(answer)).bit_length()
    return np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(answer, size), size)[: len(audio)]


# Learning -------------------------------------------------------------------------------------------------------------


def lessons(pairs, rng):
    """(features, spoken) of each pair in two mixtures, and of what is no speech."""
    features, spoken = [], []

    def hear(audio, truth):
        audio = mfcc.augment_audio(audio, rng) if rng.random() < 0.7 else audio
        found = vad.vad_features(audio)
        features.append(found[: len(truth)].astype(np.float16))
        spoken.append(truth[: len(found)])

    for index, (audio, truth) in enumerate(pairs):
        length, level = len(audio), loudness(audio, truth)
        music = (band, synthesizer)[rng.integers(2)]
        if rng.random() < 0.4:
            audio = room(audio, rng)
        for kind in (index % 3, (index + 1) % 3):
            bed = (
                0,
                noise(rng, length) * level * 10 ** (-rng.uniform(0, 40) / 20),
                music(rng, length) * level * 10 ** (-rng.uniform(3, 30) / 20),
            )[kind]
            there = np.ones(length)
            if rng.random() < 0.5:  # somebody begins in the middle
                there[: rng.integers(0, length)] = 0
            middles = np.minimum((np.arange(len(truth)) + 0.5) * RATE / mfcc.FPS, length - 1).astype(int)
            hear(audio * there + bed, truth * there[middles].astype(np.float32))
        if index % 2:
            hear(10 ** rng.uniform(-3, -0.7) * noise(rng, length), 0 * truth)
        hear(10 ** rng.uniform(-2, -0.7) * music(rng, length), 0 * truth)
    return torch.from_numpy(np.concatenate(features)), torch.from_numpy(np.concatenate(spoken))


def learn(features, spoken, steps, hidden=24):
    """The network's numbers, as expression.Voice takes them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(features.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, 1))
    adam = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 2e-3 * (1 - step / steps) + 1e-5
        chosen = torch.randint(len(features), (512,))
        heard = features[chosen].float()
        heard = heard + 0.3 * torch.randn_like(heard) + 0.3 * torch.randn(512, 1) * (heard > 0)
        loss = F.binary_cross_entropy_with_logits(network(heard)[:, 0], spoken[chosen])
        adam.zero_grad()
        loss.backward()
        adam.step()
    first, _, last = network
    rows = [first.weight.T, first.bias[None], last.weight, last.bias.expand(1, hidden)]
    return torch.cat(rows).detach().numpy().astype(np.float16)


# Measuring ------------------------------------------------------------------------------------------------------------


def conditions(rng):
    """name -> (what becomes of speech, whether it is still there)."""
    for decibels in (None, 20, 10, 5, 0):
        yield (
            "clean" if decibels is None else f"noise at {decibels} dB",
            lambda audio, level, db=decibels: (
                audio if db is None else audio + level * 10 ** (-db / 20) * noise(rng, len(audio))
            ),
            True,
        )
    for kind in (band, strings):
        yield (
            f"{kind.__name__} at 10 dB",
            lambda audio, level, kind=kind: audio + level * 10**-0.5 * kind(rng, len(audio)),
            True,
        )
    yield "silence alone", lambda audio, level: 0 * audio, False
    for kind in (noise, band, synthesizer, strings):
        yield f"{kind.__name__} alone", lambda audio, level, kind=kind: level * kind(rng, len(audio)), False


def measure(voice, pairs):
    half = 1 / (1 + vad.TRUST)  # the chance of speech at which a mouth is half free
    for name, change, speaks in conditions(np.random.default_rng(5)):
        hits, falses = [], []
        for audio, truth in pairs:
            heard = np.array(list(voice.stream([change(audio, loudness(audio, truth))])))[: len(truth)]
            near = np.convolve(truth * speaks, np.ones(2 * EDGE + 1), "same")[: len(heard)]
            hits += list(heard[near == 2 * EDGE + 1] > half)
            falses += list(heard[near == 0] > half)
        yield {
            "condition": name,
            "hit": round(float(np.mean(hits)), 3) if hits else None,
            "false": round(float(np.mean(falses)), 3),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("puppets", help="folder that synth.py wrote")
    parser.add_argument("--recordings", required=True, help="folder of GRID's clips")
    parser.add_argument("--aligns", required=True, help="folder of their .align files")
    parser.add_argument("--speeches", help="folder of speeches in rooms and from old tapes, with pauses")
    parser.add_argument("--first", type=int, default=40, help="the first so many are for the test")
    parser.add_argument("--limit", type=int, default=300, help="puppets to learn from")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument(
        "-o", "--output", default="voice.npy", help="where to write the numbers; if it is there, only measure"
    )
    options = parser.parse_args()
    filmed = list(recordings(options.recordings, options.aligns))
    if not Path(options.output).exists():
        pairs = [pair for _, pair in zip(range(options.limit), puppets(options.puppets))] + filmed[options.first :]
        pairs += TWICE * list(speeches(options.speeches)) if options.speeches else []
        files.write_array(options.output, learn(*lessons(pairs, np.random.default_rng(1)), options.steps))
    for record in measure(vad.VoiceActivityDetector(files.read_array(options.output)), filmed[: options.first]):
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
