"""How soon, how fast and how evenly `talkhead generate` speaks what comes through a pipe, and what a long speech costs.

    python examples/benchmarks/live_speed.py                  # a minute live, five minutes as fast as it goes
    python examples/benchmarks/live_speed.py --long 3600      # an hour

Runs the command itself, on two cores. Three runs, a JSON object each, then one that sets the figures against their
limits:

  live   sound is written to the pipe every 10 ms as a microphone brings it, and the video is taken from a pipe. Latency
         is from the moment when a frame's first sample was written, to the moment when the last byte of the frame was
         read. It is told from --settle seconds on, when what came while networks were loaded has been caught up with
  piped  the same sound as fast as the pipe takes it: frames a second, frames drawn one by one
  long   from a file to a file: frames a second, peak memory against a run of a tenth, and whether sound and pictures
         are equally long

The identity is encoded once and given as latents; with --frame it is the photo, which moves at so many pixels. Linux
and macOS (memory comes from wait4).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import av
import numpy as np
from generate_speed import EXAMPLES, measure, spoken

from talkhead import audio_files

RATE, FPS = 16000, 25
STEP = RATE // 100  # samples that a microphone brings at a time
LEAST_RATE = 25  # frames a second
MOST_LATENCY = 400  # ms
MOST_MEMORY = 1500  # MB
MOST_GROWTH = 1.10  # of the peak, from a tenth of the long speech to the whole: tables of the MP4, an allocator's moods
MOST_DRIFT = 1.0  # frames between the ends of sound and pictures


def command(options, identity, audio, video):
    line = [
        sys.executable,
        "-m",
        "talkhead",
        "generate",
        "--identity",
        str(identity),
        "--audio",
        str(audio),
        "-o",
        str(video),
        "--device",
        "cpu",
    ]
    line += ["--size", str(options.frame)] if options.frame else []
    for kind in ("generator", "audio2latent"):
        line += [f"--{kind}", getattr(options, kind)] if getattr(options, kind) else []
    return line


def head():
    """As arecord writes it: a WAV whose length is not known."""

    def number(value, size):
        return value.to_bytes(size, "little")

    form = number(1, 2) + number(1, 2) + number(RATE, 4) + number(2 * RATE, 4) + number(2, 2) + number(16, 2)
    return b"RIFF" + number(0xFFFFFFFF, 4) + b"WAVEfmt " + number(16, 4) + form + b"data" + number(0xFFFFFFFF, 4)


def feed(pipe, samples, live, written):
    """Write the sound; note when each step was, in seconds of the monotonic clock."""
    pipe.write(head())
    started = time.monotonic()
    for count, first in enumerate(range(0, len(samples), STEP)):
        if live:
            time.sleep(max(started + (count + 1) * STEP / RATE - time.monotonic(), 0))
        written.append(time.monotonic())
        pipe.write(samples[first : first + STEP].tobytes())
    pipe.close()


def frames_of(pipe):
    """The moments at which each frame of a fragmented MP4 had been read. The pictures are its track 1."""
    came, pending = [], 0
    while len(top := pipe.read(8)) == 8:
        size, kind = int.from_bytes(top[:4], "big"), top[4:]
        body = pipe.read(size - 8)
        if kind == b"moof":
            pending = pictures_in(body)
        if kind == b"mdat":
            came += [time.monotonic()] * pending
            pending = 0
    return came


def pictures_in(boxes):
    """How many samples of track 1 a moof tells of."""
    count, at = 0, 0
    while at < len(boxes):
        size, kind = int.from_bytes(boxes[at : at + 4], "big"), boxes[at + 4 : at + 8]
        if kind == b"traf":
            inner, track, samples = at + 8, None, 0
            while inner < at + size:
                length, name = int.from_bytes(boxes[inner : inner + 4], "big"), boxes[inner + 4 : inner + 8]
                if name == b"tfhd":
                    track = int.from_bytes(boxes[inner + 12 : inner + 16], "big")
                if name == b"trun":
                    samples += int.from_bytes(boxes[inner + 12 : inner + 16], "big")
                inner += length
            count += samples if track == 1 else 0
        at += size
    return count


def through_pipes(options, identity, seconds, live):
    """Feed speech through a pipe, and take frames from one.

    Returns when samples were written, when frames had come, and the peak memory in MB.
    """
    samples = (np.resize(audio_files.read_audio(options.audio), round(seconds * RATE)) * 32767).astype("<i2")
    written = []
    process = subprocess.Popen(
        command(options, identity, "-", "-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    feeder = threading.Thread(target=feed, args=(process.stdin, samples, live, written))
    feeder.start()
    with os.fdopen(os.dup(process.stdout.fileno()), "rb") as pipe:
        came = frames_of(pipe)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    feeder.join()
    if process.returncode:
        sys.exit(f"live_speed.py: exit status {process.returncode}")
    return np.array(written), np.array(came), usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


def live(options, identity):
    written, came, peak = through_pipes(options, identity, options.live, True)
    first = written[np.arange(len(came)) * (RATE // FPS) // STEP]
    latency = 1000 * (came - first)
    settled = latency[round(options.settle * FPS) :]
    behind = np.flatnonzero(latency > MOST_LATENCY)
    return {
        "run": "live",
        "speech_s": options.live,
        "frames": len(came),
        "first_frame_s": round(float(came[0] - written[0]), 2),
        "caught_up_s": round((int(behind[-1]) + 1) / FPS, 2) if len(behind) else 0.0,
        "latency_ms": {
            "median": round(float(np.median(settled))),
            "p95": round(float(np.percentile(settled, 95))),
            "max": round(float(settled.max())),
        },
        "peak_mb": round(peak),
    }


def piped(options, identity):
    written, came, peak = through_pipes(options, identity, options.piped, False)
    later = came[len(came) // 10 :]  # without the start
    return {
        "run": "piped",
        "speech_s": options.piped,
        "frames": len(came),
        "frames_per_s": round((len(later) - 1) / (later[-1] - later[0]), 1),
        "peak_mb": round(peak),
    }


def long(options, identity, folder):
    runs = []
    for seconds in (options.long / 10, options.long):
        audio, video = spoken(options.audio, seconds, folder / "long.wav"), folder / "long.mp4"
        wall, peak = measure(command(options, identity, audio, video))
        runs.append((wall, peak, ends(video), round(seconds * FPS)))
    (short_wall, short_peak, _, short_frames), (wall, peak, (frames, sound), wanted) = runs
    return {
        "run": "long",
        "speech_s": options.long,
        "frames": frames,
        "frames_wanted": wanted,
        "wall_s": round(wall, 1),
        "frames_per_s": round((wanted - short_frames) / (wall - short_wall), 1),
        "peak_mb": round(peak),
        "peak_growth": round(peak / short_peak, 3),
        "drift_frames": round(sound * FPS - frames, 3),
    }


def ends(video):
    """How many frames a video holds, and how many seconds of sound."""
    with av.open(str(video)) as container:
        pictures, sound = container.streams.video[0], container.streams.audio[0]
        return pictures.frames, float(sound.duration * sound.time_base)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identity", type=Path, default=EXAMPLES / "face.png", help="an aligned face")
    parser.add_argument("--audio", type=Path, default=EXAMPLES / "speech.wav", help="repeated to the lengths below")
    parser.add_argument("--live", type=float, default=60.0, help="seconds of speech, in real time")
    parser.add_argument(
        "--settle", type=float, default=20.0, help="seconds at the beginning that latency is not told of"
    )
    parser.add_argument("--piped", type=float, default=60.0, help="seconds of speech")
    parser.add_argument(
        "--long", type=float, default=300.0, help="seconds of speech; 3600 takes some 25 minutes of two cores"
    )
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument(
        "--frame", type=int, default=0, help="side of the frames, with detail; 0 for the generator's own"
    )
    parser.add_argument("--only", choices=("live", "piped", "long"), help="do this run alone")
    for kind in ("generator", "audio2latent"):
        parser.add_argument(f"--{kind}", help="weights; the bundled ones if left out")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    os.environ["OMP_NUM_THREADS"] = str(options.cores)
    with tempfile.TemporaryDirectory() as folder:
        identity = options.identity if options.frame else Path(folder) / "face.npy"
        line = [
            sys.executable,
            "-m",
            "talkhead",
            "invert",
            str(options.identity),
            "-o",
            str(identity),
            "--device",
            "cpu",
        ]
        if not options.frame:
            subprocess.run(line + (["--generator", options.generator] if options.generator else []), check=True)
        records = []
        runs = {
            "live": lambda: live(options, identity),
            "piped": lambda: piped(options, identity),
            "long": lambda: long(options, identity, Path(folder)),
        }
        for run in [runs[options.only]] if options.only else runs.values():
            records.append(run())
            print(json.dumps(records[-1]), flush=True)
    if options.only:
        return
    soon, fast, much = records
    print(
        json.dumps(
            {
                "latency_ms": soon["latency_ms"]["p95"],
                "most_ms": MOST_LATENCY,
                "frames_per_s": fast["frames_per_s"],
                "least": LEAST_RATE,
                "peak_mb": much["peak_mb"],
                "most_mb": MOST_MEMORY,
                "peak_growth": much["peak_growth"],
                "most_growth": MOST_GROWTH,
                "drift_frames": much["drift_frames"],
                "most_drift": MOST_DRIFT,
                "met": soon["latency_ms"]["p95"] <= MOST_LATENCY
                and fast["frames_per_s"] >= LEAST_RATE
                and much["peak_mb"] <= MOST_MEMORY
                and much["peak_growth"] <= MOST_GROWTH
                and abs(much["drift_frames"]) <= MOST_DRIFT,
            }
        )
    )


if __name__ == "__main__":
    main()
