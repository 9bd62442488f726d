"""Measure a model: does the mouth follow the speech, do the lips shut, does the face stay the face?

    synth.py -o held-out …                                    # faces and sentences never trained on
    python examples/evaluate_bundled.py --clips held-out --speech recordings/ --portraits photos/ -o evaluation/

Prints one JSON object a line: every clip, recording and portrait, then the summary of each of the three parts. Writes
into the output folder the same lines (evaluation.jsonl), the table of the model card (evaluation.md), a contact sheet
of each part and one, captioned with its figures, of each of its first clips (PNG). A part whose material is not given
is left out.

Mouths are found by MediaPipe on frames enlarged four times (bicubic), in true frames exactly as in generated ones. What
the truth is known for without a detector, the puppet's own mouth track, correlations are taken with.
"""

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

import talkhead
from contact_sheet import captioned, sheet
from likeness import Likeness, distances
from puppets import articulation, variety
from talkhead import (
    audio_files,
    checkpoints,
    distributed,
    faces,
    files,
    image_files,
    inversion,
    landmarks,
    metrics,
    mfcc,
    protocol,
    pti,
    synthesis,
    video_files,
)
from talkhead.errors import TalkheadError
from talkhead.images import resize, to_images

ENLARGE = 4
LOUDNESS = 0.6  # exponent from sound amplitude to how loud it is heard (Stevens)
SOUNDS = {".wav", ".flac", ".mp3", ".ogg", ".mpg", ".mp4"}
FILMED = {".mpg", ".mp4"}
# Left, top, right and bottom of boxes in an aligned face, in sides.
STILL = {"forehead": [(0.38, 0.24, 0.62, 0.34)], "backdrop": [(0.0, 0.0, 0.1, 0.3), (0.9, 0.0, 1.0, 0.3)]}
ON_SHEET = 12  # rows of a contact sheet come from the first so many


class Eye(protocol.Enlarged):
    """A detector that enlarges what it sees and remembers it, because several measures look at each frame."""

    def __init__(self, detector):
        super().__init__(detector, ENLARGE)
        self.seen = {}

    def __call__(self, image):
        key = hash(image.tobytes())
        if key not in self.seen:
            self.seen[key] = super().__call__(image)
        return self.seen[key]


def openings(frames, detector):
    """(T,): mouth opening of each frame, NaN where no face is found."""
    found = map(detector, frames)
    return np.array([landmarks.mouth_opening(face[0]) if face else np.nan for face in found])


def spread(opening):
    """How a mouth was used: its rest, its widest, and the share of frames in which it was seen."""
    known = opening[np.isfinite(opening)]
    low, high = np.percentile(known, [5, 95]) if len(known) else (0.0, 0.0)
    return {"p5": float(low), "p95": float(high), "seen": len(known) / len(opening)}


def mean(records, *path):
    """Mean of a figure over records, those left out that lack it."""
    values = []
    for value in records:
        for key in path:
            value = value[key]
        values += [] if value is None else [value]
    return float(np.mean(values)) if values else None


def show(value):
    return "–" if value is None else f"{value:.2f}"


def at_least(value, limit):
    return f"≥ {limit}", value is not None and value >= limit


def at_most(value, limit):
    return f"≤ {limit}", value is not None and value <= limit


class Model:
    """The three networks, and what is asked of them here."""

    def __init__(self, device, generator=None, encoder=None, audio2latent=None, gate=False):
        self.device, self.gate = distributed.pick_device(device), gate
        self.generator = checkpoints.load_generator(generator or checkpoints.bundled("generator"), self.device)
        self.encoder = checkpoints.load_encoder(encoder or checkpoints.bundled("encoder"), self.generator, self.device)
        self.audio2latent = checkpoints.load_audio2latent(
            audio2latent or checkpoints.bundled("audio2latent"), self.generator, self.device
        )
        self.size = self.generator.resolution

    def speak(self, face, audio, generator=None):
        networks = generator or self.generator, self.encoder, self.audio2latent
        return list(synthesis.generate(*networks, face, audio, gate=self.gate, detail=False))

    def project(self, frames):
        return list(synthesis.synthesize(self.generator, inversion.encode(self.encoder, frames, device=self.device)))

    def tune(self, face, steps):
        pivots = np.stack(list(inversion.encode(self.encoder, [face], device=self.device)))
        return pti.tune(self.generator, to_images(resize(face, self.size)[None]), pivots, steps=steps)


# ---------------------------------------------------------------------------------------------------------------
# Puppets never trained on: everything about them is known


def puppet(path, model, eye):
    """One held-out clip, spoken again from its first frame and its sound: (record, rows for the sheet)."""
    about = json.loads(path.with_suffix(".json").read_text())
    track = files.read_array(path.with_suffix(".track.npy"))[:, articulation.TRACK.index("opening")]
    with video_files.read_frames(path) as reader:
        large = list(reader)
    clips = {
        "truth": [resize(frame, model.size) for frame in large],
        "projection": model.project(large),
        "fake": model.speak(large[0], audio_files.read_audio(path)),
    }
    seen = {name: openings(frames, eye) for name, frames in clips.items()}
    record = {
        "part": "puppets",
        "clip": path.name,
        "source": about["source"],
        "frames": len(clips["fake"]),
        "tone": variety.group(variety.tone_angle(large[0]), variety.TONES),
        "opening": {
            name: metrics.correlation_and_lag(track, opening)._asdict() | spread(opening)
            for name, opening in seen.items()
        },
        "closures": shut_lips(seen, articulation.closures(about["phonemes"])),
        "to_truth": metrics.compare(clips["truth"], clips["fake"], eye),
        "to_projection": metrics.compare(clips["projection"], clips["fake"], eye),
        "projection": metrics.compare(clips["truth"], clips["projection"], eye),
    }
    return record, list(clips.values())


def shut_lips(seen, closures):
    """Count the /p b m/: for how many each mouth shut, how many there were, and how many are met by luck.

    The true mouth says what is shut.
    """
    shut = metrics.closed_threshold(seen["truth"])
    counts = {name: int(metrics.met_closures(opening, closures, shut).sum()) for name, opening in seen.items()}
    luck = metrics.chance_closures(seen["fake"], closures, shut)
    return counts | {"asked": len(metrics.met_closures(seen["fake"], closures, shut)), "luck": luck}


def summarise_puppets(records):
    lags = [record["opening"]["fake"]["lag"] for record in records]
    asked = sum(record["closures"]["asked"] for record in records)
    return {
        "clips": len(records),
        "lag": float(np.median(lags)),
        "lag_within_1": float(np.mean(np.abs(lags) <= 1)),
        "asked": asked,
        "by_tone": by_tone(records),
        "opening": {
            clip: {name: mean(records, "opening", clip, name) for name in ("correlation", "p5", "p95", "seen")}
            for clip in ("truth", "projection", "fake")
        },
        "closures": {
            clip: sum(record["closures"][clip] for record in records) / asked if asked else None
            for clip in ("truth", "projection", "fake", "luck")
        },
        **{
            pair: {name: mean(records, pair, name) for name in ("psnr", "ssim", "lmd")}
            for pair in ("to_truth", "to_projection", "projection")
        },
        **{
            f"correlation_{kind}": mean(
                [r for r in records if r["source"].startswith("espeak") == (kind == "synthetic")],
                "opening",
                "fake",
                "correlation",
            )
            for kind in ("synthetic", "recorded")
        },
    }


def by_tone(records):
    """{tone of skin: clips, correlation of the opening, and the closures asked and met}, so that no group is worse off
    unnoticed."""
    groups = {tone: [record for record in records if record["tone"] == tone] for tone in variety.TONES}
    return {
        tone: {
            "clips": len(group),
            "correlation": mean(group, "opening", "fake", "correlation"),
            **{name: sum(record["closures"][name] for record in group) for name in ("asked", "fake", "projection")},
        }
        for tone, group in groups.items()
        if group
    }


def puppet_rows(s, size, least):
    """Rows of the table: (figure, value, (what is asked, whether it is met) or None, what to hold it against)."""

    def beside(what, name=None):
        truth, projection = (
            show(s[what][clip] if name is None else s[what][clip][name]) for clip in ("truth", "projection")
        )
        return f"the true frames {truth}, their projection {projection}"

    correlation, shut, luck = s["opening"]["fake"]["correlation"], s["closures"]["fake"], s["closures"]["luck"]
    yield (
        "mouth opening, correlation with the truth",
        correlation,
        at_least(correlation, least),
        f"{beside('opening', 'correlation')}; synthetic voices {show(s['correlation_synthetic'])}, recorded "
        f"{show(s['correlation_recorded'])}",
    )
    yield (
        "mouth opening, best lag in frames, median",
        s["lag"],
        ("within ±1", abs(s["lag"]) <= 1),
        f"within ±1 in {s['lag_within_1']:.0%} of the clips",
    )
    asked, reached = at_least(shut, 0.9)
    yield (
        "/p b m/ made with shut lips",
        shut,
        (asked, reached and shut > luck),
        f"{s['asked']} in all; {beside('closures')}; out of step {show(luck)}",
    )
    for tone, group in s["by_tone"].items():
        yield (
            f"skin that looks {tone}: mouth opening, correlation with the truth",
            group["correlation"],
            None,
            f"{group['clips']} clips; shut for {group['fake']} of {group['asked']} /p b m/, in the true frames' "
            f"projection {group['projection']}",
        )
    for name, label in (("psnr", "PSNR, dB"), ("ssim", "SSIM"), ("lmd", f"LMD, pixels of {size}")):
        yield f"{label}, against the truth", s["to_truth"][name], None, f"its projection {show(s['projection'][name])}"
        yield f"{label}, against its projection G(E(x))", s["to_projection"][name], None, ""


# ---------------------------------------------------------------------------------------------------------------
# Recorded speech: the mouth should follow its loudness and rest in its pauses


def recording(path, face, model, eye):
    """One recording spoken by a held-out face; where it was filmed, the speaker's own mouth is measured too."""
    audio = audio_files.read_audio(path)
    fake = model.speak(face, audio)
    mouths = {"fake": openings(fake, eye)}
    if path.suffix in FILMED:
        with video_files.read_frames(path) as reader:
            mouths["own"] = openings(reader, eye.detector)
    envelope = metrics.envelope(audio, mfcc.num_frames(audio))
    quiet = metrics.pauses(envelope)
    record = {"part": "recordings", "recording": path.name, "frames": len(fake), "pause_frames": int(quiet.sum())}
    for name, opening in mouths.items():
        frames = min(len(opening), len(quiet))
        record[name] = (
            metrics.correlation_and_lag(envelope, opening)._asdict()
            | spread(opening)
            | {
                "loudness": metrics.correlation_and_lag(envelope**LOUDNESS, opening).correlation,
                "pause": metrics.pause_opening(opening[:frames], quiet[:frames]),
            }
        )
    times = articulation.closures(articulation.transcript(path)[0])
    record["closures"] = (
        {name: shut_lips({"truth": opening, "fake": opening}, times) for name, opening in mouths.items()}
        if times
        else {}
    )
    if "own" in mouths:
        record["to_own"] = metrics.correlation_and_lag(mouths["own"], mouths["fake"])._asdict()
    return record, [fake]


def summarise_speech(records):
    def means(chosen, mouth):
        return {name: mean(chosen, mouth, name) for name in ("correlation", "loudness", "pause", "p95")}

    filmed = [record for record in records if "own" in record]
    pauses = [record["fake"]["pause"] for record in records if record["fake"]["pause"] is not None]
    summary = {
        "recordings": len(records),
        "pauses": len(pauses),
        "worst_pause": max(pauses, default=None),
        "fake": means(records, "fake"),
        "filmed": len(filmed),
        "closures": {},
    }
    for mouth in ("fake", "own"):
        counted = [record["closures"][mouth] for record in records if mouth in record["closures"]]
        if counted:
            asked = sum(count["asked"] for count in counted)
            summary["closures"][mouth] = {"asked": asked} | {
                name: sum(count[name] for count in counted) / asked for name in ("fake", "luck")
            }
    if filmed:
        summary |= {
            "own": means(filmed, "own"),
            "to_own": mean(filmed, "to_own", "correlation"),
            "to_own_lag": float(np.median([record["to_own"]["lag"] for record in filmed])),
        }
    return summary


def speech_rows(s, size):
    def beside(name):
        return f"the own mouths of the {s['filmed']} who were filmed {show(s['own'][name])}" if s["filmed"] else ""

    yield (
        "recordings: opening with the sound's envelope, correlation",
        s["fake"]["correlation"],
        at_least(s["fake"]["correlation"], 0.4),
        beside("correlation"),
    )
    yield (
        f"recordings: opening with loudness (envelope to the power {LOUDNESS}), correlation",
        s["fake"]["loudness"],
        None,
        beside("loudness"),
    )
    yield (
        "recordings: opening in pauses / 95th percentile, mean",
        s["fake"]["pause"],
        at_most(s["fake"]["pause"], 0.15),
        f"worst of {s['pauses']} {show(s['worst_pause'])}" + (f"; {beside('pause')}" if s["filmed"] else ""),
    )
    if s["closures"]:
        shut, own = s["closures"]["fake"], s["closures"].get("own")
        asked, reached = at_least(shut["fake"], 0.75)
        yield (
            "recordings: /p b m/ by their words' times, made with shut lips",
            shut["fake"],
            (asked, reached and shut["fake"] > shut["luck"]),
            f"{shut['asked']} in all; out of step {show(shut['luck'])}"
            + (f"; the own mouths {show(own['fake'])}" if own else ""),
        )
    if s["filmed"]:
        yield (
            "recordings: opening with the speaker's own, correlation",
            s["to_own"],
            None,
            f"best lag {show(s['to_own_lag'])} frames, median",
        )


# ---------------------------------------------------------------------------------------------------------------
# Portraits of real people, never used as donors: pivotal tuning must bring the person and keep the motion


def coded(frames):
    """Frames as a file for people gives them back: float32 (T, H, W, 3)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with video_files.FrameWriter(path) as writer:
            for frame in frames:
                writer.write(frame)
        with video_files.read_frames(path) as reader:
            return np.stack(list(reader)).astype(np.float32)


def flicker(frames):
    """What moves that should not, in grey levels squared: the variance over time of the parts that are STILL, mean over
    pixels.

    Held against `noise`, what the codec changes in a still video of the first frame (mean square), and not against the
    variance of that video, `still`: H.264 codes a still picture once and then repeats it, so that this is nearly 0.
    """
    clip, still = coded(frames), coded([frames[0]] * len(frames))
    size = len(frames[0])
    figures = {}
    for part, boxes in STILL.items():

        def inside(pictures, boxes=boxes):
            cut = [
                pictures[..., round(top * size) : round(bottom * size), round(left * size) : round(right * size), :]
                for left, top, right, bottom in boxes
            ]
            return np.concatenate([box.reshape(*box.shape[:-3], -1) for box in cut], -1)

        moving, steady = (float(inside(pictures).var(0).mean()) for pictures in (clip, still))
        noise = float(np.square(inside(still) - inside(frames[0].astype(np.float32))).mean())
        figures[part] = {"variance": moving, "still": steady, "noise": noise, "ratio": moving / max(noise, 1e-6)}
    return figures


class Persons:
    """How far a generated face is, as a person, from its own photo and from those of others."""

    def __init__(self, others, model, device, encoder=None):
        self.likeness = Likeness(others, model, device, encoder)
        self.known = self.likeness.embed(others)

    def __call__(self, photo, face):
        own, made = self.likeness.embed([photo, face])
        near = distances(made[None], self.known)[0]
        others = near[distances(own[None], self.known)[0] > 1e-4]
        return {"distance": float(1 - own @ made), "others": float(others.mean()), "nearest_other": float(others.min())}


def portrait(path, audio, model, eye, steps, persons):
    """One photo, tuned on and made to speak: (record, rows for the sheet); a photo without a face is only counted."""
    image = image_files.read_image(path)
    found = eye.detector(image)
    if not found:
        return {"part": "portraits", "portrait": path.name, "faces": 0}, []
    face = faces.align(image, found[0], 256)
    small = resize(face, model.size)
    clips = {"untuned": model.speak(face, audio), "tuned": model.speak(face, audio, model.tune(face, steps))}
    record = {"part": "portraits", "portrait": path.name, "faces": len(found), "identity_by": persons.likeness.name}
    for name, frames in clips.items():
        opening = spread(openings(frames, eye))
        record[name] = opening | {
            "range": opening["p95"] - opening["p5"],
            "psnr": metrics.psnr(small, frames[0]),
            "ssim": metrics.ssim(small, frames[0]),
            "identity": persons(small, frames[0]),
            "flicker": flicker(frames),
        }
    record["range_ratio"] = (
        record["tuned"]["range"] / record["untuned"]["range"] if record["untuned"]["range"] else None
    )
    return record, [[small], *clips.values()]


def summarise_portraits(records):
    seen = [record for record in records if record["faces"]]
    psnr, ratios = [record["tuned"]["psnr"] for record in seen], [record["range_ratio"] or 0.0 for record in seen]
    return {
        "portraits": len(records),
        "measured": len(seen),
        "range_ratio": mean(seen, "range_ratio"),
        "tuned": {name: mean(seen, "tuned", name) for name in ("psnr", "ssim", "range")},
        "untuned": {name: mean(seen, "untuned", name) for name in ("psnr", "ssim", "range")},
        "identity_by": seen[0]["identity_by"] if seen else None,
        "identity": {clip: mean(seen, clip, "identity", "distance") for clip in ("tuned", "untuned")},
        "identity_others": mean(seen, "tuned", "identity", "others"),
        "recognised": sum(
            who["distance"] < who["nearest_other"] for who in (record["tuned"]["identity"] for record in seen)
        ),
        "flicker": {
            part: {name: mean(seen, "tuned", "flicker", part, name) for name in ("variance", "still", "noise", "ratio")}
            for part in STILL
        },
        "worst_flicker": {
            part: max((r["tuned"]["flicker"][part]["ratio"] for r in seen), default=None) for part in STILL
        },
        "worst_psnr": min(psnr, default=None),
        "worst_range_ratio": min(ratios, default=None),
        "psnr_reached": sum(value >= 22 for value in psnr),
        "range_reached": sum(value >= 0.5 for value in ratios),
    }


def portrait_rows(s, size):
    yield (
        "portraits, tuned: PSNR of the first frame, dB",
        s["tuned"]["psnr"],
        at_least(s["tuned"]["psnr"], 22),
        f"{s['psnr_reached']} of {s['measured']} reach it, worst {show(s['worst_psnr'])}; untuned "
        f"{show(s['untuned']['psnr'])}",
    )
    yield "portraits, tuned: SSIM of the first frame", s["tuned"]["ssim"], None, f"untuned {show(s['untuned']['ssim'])}"
    yield (
        "portraits: range of opening, tuned / untuned",
        s["range_ratio"],
        at_least(s["range_ratio"], 0.5),
        f"{s['range_reached']} of {s['measured']} reach it, worst {show(s['worst_range_ratio'])}",
    )
    if not s["measured"]:
        return
    yield (
        "portraits, tuned: distance as a person, first frame to photo",
        s["identity"]["tuned"],
        None,
        f"untuned {show(s['identity']['untuned'])}, to other people's photos {show(s['identity_others'])}; nearer its "
        f"own photo than any other's in {s['recognised']} of {s['measured']}; by {s['identity_by']}",
    )
    for part, figures in s["flicker"].items():
        yield (
            f"portraits, tuned: variance over time of the {part} / codec noise of a still video",
            figures["ratio"],
            at_most(figures["ratio"], 2),
            f"worst {show(s['worst_flicker'][part])}; variance {figures['variance']:.3f} grey levels², codec noise "
            f"{figures['noise']:.3f}; variance of the still video {figures['still']:.3f}",
        )


# ---------------------------------------------------------------------------------------------------------------


def table(rows, note):
    """The model card's table, Markdown."""
    lines = ["| figure | measured | asked | met | beside it |", "|---|---|---|---|---|"]
    for figure, value, asked, beside in rows:
        wanted, met = asked or ("", None)
        lines.append(
            f"| {figure} | {show(value)} | {wanted} | {'' if met is None else 'yes' if met else '**no**'} | {beside} |"
        )
    return "\n".join([*lines, "", note, ""])


def caption(record):
    """The lines under a clip's own sheet: what was measured of it, good or bad."""
    if record["part"] == "puppets":
        fake, shut = record["opening"]["fake"], record["closures"]
        return (
            f"{record['clip']}: truth, its projection, generated from the first frame and the sound "
            f"({record['source']})",
            f"opening correlation {show(fake['correlation'])} at lag {fake['lag']}; /p b m/ shut {shut['fake']} of "
            f"{shut['asked']} (truth {shut['truth']}); PSNR {show(record['to_truth']['psnr'])} dB",
        )
    if record["part"] == "recordings":
        return (
            f"{record['recording']}: spoken by a face made of others",
            f"opening with loudness {show(record['fake']['loudness'])}, open in pauses "
            f"{show(record['fake']['pause'])} of its range",
        )
    tuned, untuned = record["tuned"], record["untuned"]
    return (
        f"{record['portrait']}: photo, generated untuned, generated after tuning",
        f"first frame PSNR {untuned['psnr']:.1f} / {tuned['psnr']:.1f} dB; person "
        f"{untuned['identity']['distance']:.2f} / {tuned['identity']['distance']:.2f} "
        f"({record['identity_by'].split(',')[0]})",
        f"opening range {untuned['range']:.3f} / {tuned['range']:.3f}; flicker / codec noise: "
        + ", ".join(f"{part} {show(figures['ratio'])}" for part, figures in tuned["flicker"].items()),
    )


def run(part, jobs, summarise, log, pictures):
    """Do each job, print its record, draw the first few; return the summary."""
    records, rows = [], []
    for job in jobs:
        record, clips = job()
        records.append(record)
        if clips and len(records) <= ON_SHEET:
            rows += clips
            image_files.write_image(
                pictures / f"{part}-{len(records):02d}.png", captioned(sheet(clips, 8, 128), *caption(record))
            )
        say(record, log)
    summary = {"summary": part, **summarise(records)}
    say(summary, log)
    if rows:
        image_files.write_image(pictures / f"{part}.png", sheet(rows, 12, 128))
    return summary


def say(record, log):
    line = json.dumps(record, allow_nan=False)
    print(line, flush=True)
    log.write(line + "\n")
    log.flush()


def sounds(paths):
    """Files that hold sound; a folder stands for those in it."""
    found = []
    for path in map(Path, paths):
        found += files.find(path, SOUNDS) if path.is_dir() else [path]
    return found


def photos(paths, eye, size):
    """The faces of portraits, aligned as `portrait` does; those without a face are left out."""
    images = map(image_files.read_image, paths)
    return [resize(faces.align(image, found[0], 256), size) for image in images if (found := eye.detector(image))]


def first_frame(clip):
    with video_files.read_frames(clip, limit=1) as reader:
        return next(iter(reader))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--clips", type=Path, required=True, help="folder that synth.py wrote, of faces and sentences never trained on"
    )
    parser.add_argument(
        "--speech", nargs="*", default=[], metavar="FILE", help="recordings, filmed ones too, or folders of them"
    )
    parser.add_argument("--portraits", type=Path, help="folder of portraits; every 53rd is taken, ten in all")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("evaluation"), help="folder for the table and the pictures"
    )
    parser.add_argument("--limit", type=int, help="stop after this many of each")
    for kind in ("generator", "encoder", "audio2latent"):
        parser.add_argument(f"--{kind}", help="weights; the bundled ones if left out")
    parser.add_argument("--gate", action="store_true", help="shut the mouth where nobody speaks")
    parser.add_argument("--detector", default="mediapipe", choices=landmarks.DETECTORS)
    parser.add_argument("--detector-model", help="the detector's model file")
    parser.add_argument(
        "--identity-model",
        help="a face recognition network (see losses.identity_network); without it a stand-in, said in the record",
    )
    parser.add_argument(
        "--least", type=float, default=0.9, help="what is asked of the mouth's correlation with the truth"
    )
    parser.add_argument("--pti-steps", type=int, default=350)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main():
    options = parse()
    model = Model(options.device, options.generator, options.encoder, options.audio2latent, options.gate)
    eye = Eye(landmarks.detector(options.detector, options.detector_model))
    clips = files.find(options.clips, {".mp4"})[: options.limit]
    if not clips:
        raise TalkheadError(f"{options.clips}: holds no clips; write some with synth.py")
    recordings = sounds(options.speech)[: options.limit]
    portraits = files.find(options.portraits, {".jpg"})[::53][:10][: options.limit] if options.portraits else []
    speakers = [first_frame(clip) for clip in clips[:10]]
    sentence = audio_files.read_audio(recordings[0] if recordings else clips[0])[: 5 * mfcc.SAMPLE_RATE]
    persons = (
        Persons(
            photos(files.find(options.portraits, {".jpg"})[::11], eye, model.size), options.identity_model, model.device
        )
        if portraits
        else None
    )
    parts = {
        "puppets": (
            [partial(puppet, path, model, eye) for path in clips],
            summarise_puppets,
            partial(puppet_rows, least=options.least),
        ),
        "recordings": (
            [partial(recording, path, speakers[k % len(speakers)], model, eye) for k, path in enumerate(recordings)],
            summarise_speech,
            speech_rows,
        ),
        "portraits": (
            [partial(portrait, path, sentence, model, eye, options.pti_steps, persons) for path in portraits],
            summarise_portraits,
            portrait_rows,
        ),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    with open(options.output / "evaluation.jsonl", "w", encoding="utf-8") as log:
        for part, (jobs, summarise, rows_of) in parts.items():
            if jobs:
                rows += rows_of(run(part, jobs, summarise, log, options.output), model.size)
    note = (
        f"{len(clips)} puppet clips, {len(recordings)} recordings, {len(portraits)} portraits; talkhead "
        f"{talkhead.__version__}, generator `{model.generator.fingerprint}` of {model.size} pixels, mouths by "
        f"{eye.name}."
    )
    (options.output / "evaluation.md").write_text(table(rows, note))


if __name__ == "__main__":
    try:
        main()
    except TalkheadError as problem:
        sys.exit(f"evaluate_bundled.py: {problem}")
