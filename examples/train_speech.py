"""Train the character model on recordings with transcripts, or distil it from a larger network's features.

`python examples/train_speech.py --help` lists the options.

Source: Graves et al. 2006 (CTC); Hinton et al. 2015 (distillation).
"""

import copy
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from puppets import articulation
from talkhead import audio_files, cli_io, cli_options, files, mfcc, speech_models, training
from talkhead.distributed import Distributed
from talkhead.errors import TalkheadError
from talkhead.phonemes import read_phonemes

PHONEMES = (
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH SIL T TH UH UW V W Y Z ZH"
).split()
SPEEDS = 0.82, 1.22  # of augmented speech
STEP = mfcc.SAMPLE_RATE // speech_models.RATE  # samples
SOUNDS = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".mpg", ".mpeg", ".avi", ".mov", ".mkv", ".webm"}


def reverberate(audio, rng):
    """Add random room reverberation of 0.1 to 0.7 s to a recording.

    audio    float (N,) at 16 kHz
    rng      numpy random Generator
    returns  float64 (N,); the direct sound keeps its time

    The impulse response is noise that decays by 60 dB, at most as loud as the direct sound (Polack's room model).
    """
    seconds = rng.uniform(0.1, 0.7)
    count = int(seconds * mfcc.SAMPLE_RATE)
    tail = rng.standard_normal(count) * 10 ** (-3 * np.arange(count) / count)
    tail[: int(rng.uniform(0.002, 0.012) * mfcc.SAMPLE_RATE)] = 0  # initial gap before the first reflection
    tail *= 10 ** (rng.uniform(-15, 0) / 20) / np.linalg.norm(tail)
    tail[0] = 1
    length = -(-(len(audio) + count) // 1024) * 1024
    return np.fft.irfft(np.fft.rfft(audio, length) * np.fft.rfft(tail, length), length)[: len(audio)]


def spelled(text):
    """A text in the 28 characters that have labels: lower case, without punctuation.

    None if it holds digits, or no letter.
    """
    text = text.lower().replace("’", "'")
    if re.search(r"\d", text):
        return None
    text = " ".join(re.sub(r"[^a-z' ]+", " ", re.sub(r"(?<![a-z])'|'(?![a-z])", " ", text)).split())
    return text or None


def edits(said, heard):
    """The least number of characters to put in, take out or change that make one text of another (Levenshtein)."""
    row = np.arange(len(heard) + 1)
    letters = np.array(list(heard))
    for count, letter in enumerate(said, 1):
        changed = np.concatenate([[count], np.minimum(row[1:] + 1, row[:-1] + (letters != letter))])
        row = np.minimum.accumulate(changed - np.arange(len(row))) + np.arange(len(row))  # and what is put in
    return int(row[-1])


# Training -------------------------------------------------------------------------------------------------------------


class Teacher:
    """Features of a larger network for recordings, as whisper_features.py writes them.

    states   {file name: float16 (K, C)}, one row per started 20 ms of the recording
    share    float32 (C,), weights of the columns, in total 1
    raises   TalkheadError if the file is missing, damaged, or holds something else
    """

    def __init__(self, path):
        self.path, weights = path, files.load_weights(path, kind="teacher")
        self.states = {name: states.numpy() for name, states in weights["states"].items()}
        self.share = weights["share"].numpy()

    def teach(self, lessons):
        """Set the states of some `recordings`; raise TalkheadError if those of one are missing."""
        for lesson in lessons:
            if lesson.path.name not in self.states:
                raise TalkheadError(
                    f"{self.path}: has no features of {lesson.path}; write it again with whisper_features.py"
                )
            lesson.states = self.states[lesson.path.name]


def train(
    sources,
    out,
    model,
    *,
    steps,
    batch=16,
    lr=1e-3,
    lr_warmup=0,
    lr_decay=0.0,
    ctc_weight=1.0,
    phoneme_weight=0.5,
    dropout=0.0,
    augment=True,
    teacher=None,
    window=6.0,
    validation=(),
    validate_every=500,
    ema_decay=0.995,
    accumulate=1,
    precision="float32",
    seed=0,
    device="cpu",
    **run,
):
    """Train a CharacterModel; yield log records. The file's "model" is the best one by validation.

    sources      recordings with transcripts, and folders of them: see `recordings`
    out          path of the .pt; resumed if it exists, also with other recordings or another rate
    model        CharacterModel
    steps        optimiser steps of `batch` recordings
    lr           Adam's learning rate
    lr_warmup    steps at the beginning in which the learning rate rises from 0
    lr_decay     fraction of the steps, the last ones, over which the learning rate decays to 0 along a cosine
    ctc_weight   weight of the CTC loss; recordings without a transcript, or cut by a window, have none
    phoneme_weight   weight of the phoneme classification of each step, where the transcript has the phonemes' times:
                 it is learnt faster than the characters
    dropout      dropout between the two layers of the LSTM
    augment      vary the sound: microphone, loudness, noise, room and speed
    teacher      Teacher, to be distilled into the model's embedding from windows of recordings, picked in proportion
                 to their duration, up to two windows. Its error counts 1 in the loss, 1 being its variance
    window       duration of these windows in seconds
    validation   more recordings with transcripts, to measure on
    ema_decay    share that the running average of the weights keeps each step; the average is what is validated
    accumulate   turns in which a batch is worked on, to fit into memory: the result is the same
    precision    "float32", or "bfloat16" or "float16" for the network's passes under autocast
    run          how training.fit logs and saves
    yields       {"step", "seconds", "loss", "ctc", "phonemes", with a teacher "error"…}, and where measured "val_cer",
                 edits a character, and with a teacher "val_error", the fraction of its variance left unexplained, by
                 which the best model is then chosen
    raises       TalkheadError if there is nothing to learn from, or the teacher does not fit the model or recordings

    Source: Graves et al. 2006 for the CTC loss; the other terms are ours.
    """
    lessons = recordings(sources, transcribed=teacher is None)
    held_out = recordings(validation) if validation else []
    settings = {
        "batch": batch,
        "ctc_weight": ctc_weight,
        "phoneme_weight": phoneme_weight,
        "dropout": dropout,
        "augment": augment,
        "ema_decay": ema_decay,
    }
    if lr_warmup:
        settings["lr_warmup"] = lr_warmup
    if lr_decay:
        settings |= {"lr_decay": lr_decay, "steps": steps}
    if teacher is not None:
        settings["window"] = window
        width, embedding = len(teacher.share), model.config.get("embedding", 0)
        if embedding != width:
            raise TalkheadError(f"{teacher.path}: has {width} features, the embedding {embedding}; make it as wide")
        if not window >= 1:
            raise TalkheadError(f"window={window}: too short; wanted at least 1 second")
        teacher.teach([*lessons, *held_out])
    team = Distributed(batch, accumulate, precision, device)
    trainer = _Trainer(model.to(device), lessons, held_out, settings, teacher, lr, seed, team)
    header = {"kind": "speech", "config": {"network": model.config, "training": settings}}
    state = {"model": trainer.ema, "live": model, "sounds": trainer.sounds, "optimizer": trainer.adam}
    yield from training.fit(
        trainer.step,
        state,
        steps=steps,
        out=out,
        header=header,
        seed=seed,
        team=team,
        unit="recordings",
        feed=trainer.feed,
        validate=trainer.validate if held_out else None,
        validate_every=validate_every,
        keep_best="val_cer" if teacher is None else "val_error",
        **run,
    )


class _Trainer:
    """One optimiser step of the character model, and its validation."""

    def __init__(self, model, lessons, held_out, settings, teacher, lr, seed, team):
        self.model, self.settings, self.lr, self.seed, self.team = model, settings, lr, seed, team
        self.lessons, self.held_out, self.teacher = lessons, held_out, teacher
        if teacher is not None:
            self.share = torch.from_numpy(teacher.share).to(team.device)
            longest = 2 * settings["window"] * speech_models.RATE
            durations = np.array([min(len(lesson.states), longest) for lesson in lessons])
            self.chances = durations / durations.sum()
        model.lstm.dropout = settings["dropout"]
        self.ema = copy.deepcopy(model).requires_grad_(False)
        self.sounds = nn.Linear(model.config["hidden"], len(PHONEMES)).to(team.device)
        self.adam = torch.optim.Adam([*model.parameters(), *self.sounds.parameters()], lr=lr)
        self.feed = training.Prefetcher(self._batch)

    def step(self, index):
        self.adam.param_groups[0]["lr"] = self._learning_rate(index)
        examples = self.feed(index)  # for each turn
        record = self.team.optimizer_step(lambda share: self._loss(examples[share.turn]), self.adam, longest=1.0)
        training.update_ema(self.ema, self.model, self.settings["ema_decay"], index)
        return record

    def _learning_rate(self, index):
        rate = self.lr
        if "lr_warmup" in self.settings:
            rate *= min((index + 1) / self.settings["lr_warmup"], 1)
        if "lr_decay" in self.settings:
            total = self.settings["steps"]
            left = min((total - index) / (self.settings["lr_decay"] * total), 1)
            rate *= 0.5 - 0.5 * math.cos(math.pi * left)
        return rate

    def _loss(self, examples):
        """Mean loss of some examples: CTC over characters; over steps, that of the phonemes and the teacher's error."""
        delay, device = self.model.delay, self.team.device
        lengths = torch.tensor([len(example.features) // 2 for example in examples])
        features = nn.utils.rnn.pad_sequence(
            [torch.from_numpy(example.features) for example in examples], batch_first=True
        )
        with self.team.autocast():
            heard, _ = self.model.encode(F.pad(features, (0, 0, 0, 2 * delay)).to(device))
            heard = heard[:, delay:]
            logits, sounds = self.model.spell(heard).float(), self.sounds(heard).float()
            embedding = None if self.teacher is None else self.model.embed(heard).float()
        targets = nn.utils.rnn.pad_sequence(
            [torch.tensor(example.labels, dtype=torch.long) for example in examples], batch_first=True
        )
        counts = torch.tensor([len(example.labels) for example in examples])
        ctc = F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            targets,
            lengths,
            counts,
            speech_models.BLANK,
            reduction="none",
            zero_infinity=True,
        )
        ctc = (ctc * (counts > 0).to(device) / counts.clamp(min=1).to(device)).mean()
        phonemes = nn.utils.rnn.pad_sequence([torch.from_numpy(example.phonemes) for example in examples], True, -1)
        told = F.cross_entropy(sounds.transpose(1, 2), phonemes.to(device), ignore_index=-1, reduction="none")
        lengths = lengths.to(device)
        told = (told.sum(1) / lengths).mean()
        loss = self.settings["ctc_weight"] * ctc + self.settings["phoneme_weight"] * told
        record = {"ctc": ctc.detach(), "phonemes": told.detach()}
        if embedding is not None:
            states = nn.utils.rnn.pad_sequence([torch.from_numpy(example.states) for example in examples], True)
            error = (embedding - states.to(device)).square() @ self.share
            inside = torch.arange(error.shape[1], device=device) < lengths[:, None]
            error = ((error * inside).sum(1) / lengths).mean()
            loss = loss + error
            record["error"] = error.detach()
        return loss, {"loss": loss.detach()} | record

    def _batch(self, index):
        """The examples of a step, for each turn: recordings about as long as each other, so that little is padding."""
        size = self.settings["batch"]
        picks = [self._pick(index * size + k) for k in range(size)]
        # Each has its own randomness, so that no process need make another's.
        return [
            [
                self._example(self.lessons[pick], np.random.default_rng([self.seed, index, k]))
                for k, pick in share(list(enumerate(picks)))
            ]
            for share in self.team.shares
        ]

    def _pick(self, position):
        if self.teacher is not None:
            return np.random.default_rng([self.seed, position, 2]).choice(len(self.lessons), p=self.chances)
        epoch, place = divmod(position, len(self.lessons))
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._order = epoch, self._shuffled(np.random.default_rng([self.seed, epoch, 1]))
        return self._order[place]

    def _shuffled(self, rng):
        """Every lesson once, in batches of like length, in any order."""
        size, order = self.settings["batch"], rng.permutation(len(self.lessons))
        lengths = np.array([len(lesson.text) for lesson in self.lessons])
        pools = [order[first : first + 32 * size] for first in range(0, len(order), 32 * size)]
        order = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        return np.concatenate([batches[k] for k in rng.permutation(len(batches))])

    def _example(self, lesson, rng):
        audio, augment = audio_files.read_audio(lesson.path), self.settings["augment"]
        speed = rng.uniform(*SPEEDS) if augment and rng.random() < 0.7 else 1.0
        first, whole = 0, True
        if self.teacher is not None:
            if abs(len(lesson.states) * STEP - len(audio)) > 2 * STEP:
                raise TalkheadError(
                    f"{lesson.path}: {len(audio) / mfcc.SAMPLE_RATE:.2f} s long, and its features "
                    f"{len(lesson.states) / speech_models.RATE:.2f} s; write them again with whisper_features.py"
                )
            length = int(self.settings["window"] * speed * mfcc.SAMPLE_RATE)
            whole = len(audio) <= length
            first = int(rng.integers(max(len(audio) - length, 0) // STEP + 1))
            audio = audio[first * STEP :][:length]
        if speed != 1:
            audio = mfcc.change_speed(audio, speed)
        if augment:
            audio = reverberate(audio, rng) if rng.random() < 0.5 else audio
            audio = mfcc.augment_audio(audio, rng)
        return _Example(np.concatenate(list(mfcc.log_mel([audio]))), lesson, speed, first, whole)

    @torch.no_grad()
    def validate(self):
        """Measures of the averaged model on the held-out recordings."""
        model = self.ema.eval()
        measures = {"val_cer": error_rate(model, self.held_out)}
        if self.teacher is not None:
            measures["val_error"] = unexplained(model, self.held_out, self.teacher.share)
        return measures


class _Example:
    """Features (2 K, 26) and labels of a recording or a window of it, and the phoneme of each step (K,), -1 if unknown.

    states   float32 (K, C), the teacher's
    speed    at which the features were made
    first    step of the recording at which the window begins
    whole    False if the window cuts the recording, whose text is then not known
    """

    def __init__(self, features, lesson, speed, first=0, whole=True):
        features = np.pad(features, ((0, len(features) % 2), (0, 0)))
        self.features, count = features, len(features) // 2
        self.labels = [speech_models.LABELS.index(letter) for letter in lesson.text] if whole else []
        self.phonemes = np.full(count, -1)
        for start, end, name in lesson.phonemes:
            begin, stop = (max(round((speech_models.RATE * time - first) / speed), 0) for time in (start, end))
            self.phonemes[begin:stop] = PHONEMES.index(name.rstrip("012"))
        if lesson.states is not None:
            middles = first + (np.arange(count) + 0.5) * speed - 0.5
            self.states = speech_models.interpolated(lesson.states, middles)


def error_rate(model, lessons):
    """Edits a character that make of what a model reads what was said, over all of some `recordings`."""
    wrong = sum(
        edits(lesson.text, speech_models.transcribe(model, audio_files.read_audio(lesson.path))) for lesson in lessons
    )
    return wrong / sum(len(lesson.text) for lesson in lessons)


def unexplained(model, lessons, share):
    """Fraction of the teacher's variance that a model's embedding leaves unexplained, over all of some `recordings`."""
    error = variance = 0.0
    for lesson in lessons:
        found = np.concatenate(list(model.steps([audio_files.read_audio(lesson.path)])))
        wanted = lesson.states[: len(found)].astype(np.float32)
        error += ((found[: len(wanted)] - wanted) ** 2 @ share).sum()
        variance += (wanted**2 @ share).sum()
    return float(error / variance)


# Recordings -----------------------------------------------------------------------------------------------------------


@dataclass
class Lesson:
    """A recording and what is said in it, spelled; phonemes are (start, end, label) in seconds, [] where unknown.

    states   float16 (K, C), a teacher's features; None without one
    """

    path: Path
    text: str
    phonemes: list = field(default_factory=list)
    states: np.ndarray | None = None


def recordings(sources, transcribed=True):
    """The recordings among some files and folders whose words are known.

    sources      paths; folders are searched at any depth
    transcribed  leave out recordings whose words are not known; else their text is ""
    returns      list of Lesson, sorted by path within each source
    raises       TalkheadError if a source is not there, a transcript cannot be read, or there are no recordings

    The words of NAME.wav are taken from NAME.json ("text", and "phonemes" if it has them; as synth.py writes it),
    NAME.align (GRID's words and times) beside it or in ../align, NAME.txt or NAME.lab, or the line of NAME in a
    LibriSpeech *.trans.txt beside it. A transcript with digits in it does not count.
    """
    found, books = [], {}
    for source in map(Path, sources):
        if not source.exists():
            raise TalkheadError(f"{source}: not found; pass recordings or a folder of recordings")
        paths = files.find(source, SOUNDS, deep=True) if source.is_dir() else [source]
        for path in paths:
            text, phonemes = _words(path, books)
            text = spelled(text or "") or ""
            if text or not transcribed:
                found.append(Lesson(path, text, phonemes))
    if not found:
        wanted = " with transcripts; put the words of NAME.wav into NAME.txt beside it" if transcribed else ""
        raise TalkheadError(f"{', '.join(map(str, sources))}: no recordings{wanted}")
    return found


def _words(path, books):
    """-> text, phonemes; the text is "" where it is unknown."""
    about = path.with_suffix(".json")
    if about.is_file():
        told = files.read_json(about)
        if isinstance(told, dict) and told.get("text"):
            return str(told["text"]), read_phonemes(about) if "phonemes" in told else []
    phonemes, text = articulation.transcript(path)
    if text:
        return text, phonemes
    for suffix in (".txt", ".lab"):
        if path.with_suffix(suffix).is_file():
            return _text(path.with_suffix(suffix)), []
    folder = path.parent
    if folder not in books:
        lines = [
            line
            for book in files.find(folder, {".txt"})
            if book.name.endswith(".trans.txt")
            for line in _text(book).splitlines()
        ]
        books[folder] = dict(line.split(" ", 1) for line in lines if " " in line)
    return books[folder].get(path.stem, ""), []


def _text(path):
    try:
        return files.decoded(path.read_bytes())
    except (OSError, UnicodeDecodeError) as problem:
        raise TalkheadError(
            f"{path}: cannot be read as text ({problem}); it should hold the words of the recording"
        ) from problem


# The command -------------------------------------------------------------------------------------------------------


@click.command(cls=cli_io.Script)
@cli_options.sources
@cli_options.trained("the character model")
@cli_options.training_steps
@cli_options.batch(16)
@cli_options.lr(1e-3)
@click.option(
    "--augment/--no-augment",
    default=True,
    show_default=True,
    help="Vary loudness, speed, noise, room and microphone of the speech.",
)
@click.option("--teacher", metavar="FILE", help="Features to distil, of whisper_features.py, for all recordings.")
@cli_options.validation
@cli_options.device
@cli_options.settings(train, speech_models.CharacterModel, training.fit, cli_io.follow_training)
def main(sources, output, device, teacher, **options):
    """Train the character model on recordings with transcripts, or distil it from a larger network's features.

    \b
      python examples/synth.py --sound-only -o spoken/ --count 6000
      python examples/train_speech.py spoken/ -o speech.pt --steps 5000
      python examples/whisper_features.py speech/ --model whisper-tiny/ -o features.pt
      python examples/train_speech.py speech/ -o speech.pt --steps 5000 --teacher features.pt
    """
    device, curves = cli_io.init_process_group(device), cli_options.curves(options)
    torch.manual_seed(options.setdefault("seed", 0))
    if teacher is not None:
        teacher = Teacher(teacher)
        options.setdefault("embedding", len(teacher.share))
    model = speech_models.CharacterModel(**cli_options.taken(options, speech_models.CharacterModel))
    records = train(sources, output, model, teacher=teacher, device=device, **options)
    cli_io.follow_training(records, options["steps"], **curves)


if __name__ == "__main__":
    main()
