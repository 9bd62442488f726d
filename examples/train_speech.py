"""Train the character model, which spells speech, on recordings with transcripts.

`python examples/train_speech.py --help` lists the options.

Source: Graves et al. 2006 (CTC).
"""

import copy
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


def train(
    sources,
    out,
    model,
    *,
    steps,
    batch=16,
    lr=1e-3,
    phoneme_weight=0.5,
    augment=True,
    validation=(),
    validate_every=500,
    ema_decay=0.995,
    accumulate=1,
    precision="float32",
    seed=0,
    device="cpu",
    **run,
):
    """Teach a CharacterModel to spell; yield log records. The file's "model" is the best one by validation.

    sources      recordings with transcripts, and folders of them: see `recordings`
    out          path of the .pt; resumed if it exists, also with other recordings or another rate
    model        CharacterModel
    steps        optimiser steps of `batch` recordings
    lr           Adam's learning rate
    phoneme_weight   weight of the wish that the phoneme of each step can be told, where the transcript has the
                     phonemes'
                 times: it is learnt faster, and letters are then not put off until more has been heard
    augment      vary the sound: microphone, loudness, noise, room and speed
    validation   more recordings, to measure on
    ema_decay    share that the running average of the weights keeps each step; the average is what is validated
    accumulate   turns in which a batch is worked on, to fit into memory: the result is the same
    precision    "float32", or "bfloat16" or "float16" for the network's passes under autocast
    run          how training.fit logs and saves
    yields       {"step", "seconds", "loss", "ctc", "phonemes"…}, and where measured "val_cer", edits a character
    raises       TalkheadError if there is nothing to learn from

    Source: Graves et al. 2006 for the loss; the phonemes' term is ours.
    """
    lessons, held_out = recordings(sources), recordings(validation) if validation else []
    team = Distributed(batch, accumulate, precision, device)
    settings = {"batch": batch, "phoneme_weight": phoneme_weight, "augment": augment, "ema_decay": ema_decay}
    trainer = _Trainer(model.to(device), lessons, held_out, settings, lr, seed, team)
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
        keep_best="val_cer",
        **run,
    )


class _Trainer:
    """One optimiser step of the character model, and its validation."""

    def __init__(self, model, lessons, held_out, settings, lr, seed, team):
        self.model, self.settings, self.seed, self.team = model, settings, seed, team
        self.lessons, self.held_out = lessons, held_out
        self.ema = copy.deepcopy(model).requires_grad_(False)
        self.sounds = nn.Linear(model.config["hidden"], len(PHONEMES)).to(team.device)
        self.adam = torch.optim.Adam([*model.parameters(), *self.sounds.parameters()], lr=lr)
        self.feed = training.Prefetcher(self._batch)

    def step(self, index):
        examples = self.feed(index)  # for each turn
        record = self.team.optimizer_step(lambda share: self._loss(examples[share.turn]), self.adam, longest=1.0)
        training.update_ema(self.ema, self.model, self.settings["ema_decay"], index)
        return record

    def _loss(self, examples):
        """The mean loss of some examples: of CTC, over characters; of the phonemes, over steps."""
        delay, device = self.model.delay, self.team.device
        lengths = [len(example.features) // 2 for example in examples]
        features = nn.utils.rnn.pad_sequence(
            [torch.from_numpy(example.features) for example in examples], batch_first=True
        )
        with self.team.autocast():
            heard, _ = self.model.encode(F.pad(features, (0, 0, 0, 2 * delay)).to(device))
            heard = heard[:, delay:]
            logits, sounds = self.model.spell(heard).float(), self.sounds(heard).float()
        targets = nn.utils.rnn.pad_sequence([torch.tensor(example.labels) for example in examples], batch_first=True)
        counts = [len(example.labels) for example in examples]
        ctc = F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1), targets, lengths, counts, speech_models.BLANK, zero_infinity=True
        )
        phonemes = nn.utils.rnn.pad_sequence([torch.from_numpy(example.phonemes) for example in examples], True, -1)
        told = F.cross_entropy(sounds.transpose(1, 2), phonemes.to(device), ignore_index=-1, reduction="none")
        told = (told.sum(1) / torch.tensor(lengths, device=device)).mean()
        loss = ctc + self.settings["phoneme_weight"] * told
        return loss, {"loss": loss.detach(), "ctc": ctc.detach(), "phonemes": told.detach()}

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
        audio, speed = audio_files.read_audio(lesson.path), 1.0
        if self.settings["augment"]:
            speed = rng.uniform(7 / 8, 9 / 8)
            audio = mfcc.change_speed(audio, speed)
            audio = reverberate(audio, rng) if rng.random() < 0.5 else audio
            audio = mfcc.augment_audio(audio, rng)
        return _Example(np.concatenate(list(mfcc.log_mel([audio]))), lesson, speed)

    @torch.no_grad()
    def validate(self):
        """The character error rate of the averaged model on the held-out recordings."""
        return {"val_cer": error_rate(self.ema.eval(), self.held_out)}


class _Example:
    """Features (2 K, 26) and labels of a recording, and the phoneme of each step (K,), -1 if unknown."""

    def __init__(self, features, lesson, speed):
        features = np.pad(features, ((0, len(features) % 2), (0, 0)))
        self.features, self.labels = features, [speech_models.LABELS.index(letter) for letter in lesson.text]
        self.phonemes = np.full(len(features) // 2, -1)
        for start, end, name in lesson.phonemes:
            first, last = (round(speech_models.RATE * time / speed) for time in (start, end))
            self.phonemes[first:last] = PHONEMES.index(name.rstrip("012"))


def error_rate(model, lessons):
    """Edits a character that make of what a model reads what was said, over all of some `recordings`."""
    wrong = sum(
        edits(lesson.text, speech_models.transcribe(model, audio_files.read_audio(lesson.path))) for lesson in lessons
    )
    return wrong / sum(len(lesson.text) for lesson in lessons)


# Recordings -----------------------------------------------------------------------------------------------------------


@dataclass
class Lesson:
    """A recording and what is said in it, spelled; phonemes are (start, end, label) in seconds, [] where unknown."""

    path: Path
    text: str
    phonemes: list = field(default_factory=list)


def recordings(sources):
    """The recordings among some files and folders whose words are known.

    sources  paths; folders are searched at any depth
    returns  list of Lesson, sorted by path within each source
    raises   TalkheadError if a source is not there, a transcript cannot be read, or no recording has one

    The words of NAME.wav are taken from NAME.json ("text", and "phonemes" if it has them; as synth.py writes it),
    NAME.align (GRID's words and times) beside it or in ../align, NAME.txt or NAME.lab, or the line of NAME in a
    LibriSpeech *.trans.txt beside it. What has none, or one with digits in it, is left out.
    """
    found, books = [], {}
    for source in map(Path, sources):
        if not source.exists():
            raise TalkheadError(f"{source}: not found; pass recordings or a folder of recordings")
        paths = files.find(source, SOUNDS, deep=True) if source.is_dir() else [source]
        for path in paths:
            text, phonemes = _words(path, books)
            text = spelled(text or "")
            if text:
                found.append(Lesson(path, text, phonemes))
    if not found:
        raise TalkheadError(
            f"{', '.join(map(str, sources))}: no recordings with transcripts; put the words of NAME.wav into NAME.txt "
            "beside it"
        )
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
@cli_options.validation
@cli_options.device
@cli_options.settings(train, speech_models.CharacterModel, training.fit, cli_io.follow_training)
def main(sources, output, device, **options):
    """Train the character model, which spells speech, on recordings with transcripts.

    \b
      python examples/synth.py --sound-only -o spoken/ --count 6000
      python examples/train_speech.py spoken/ -o speech.pt --steps 5000
    """
    device, curves = cli_io.init_process_group(device), cli_options.curves(options)
    torch.manual_seed(options.setdefault("seed", 0))
    model = speech_models.CharacterModel(**cli_options.taken(options, speech_models.CharacterModel))
    cli_io.follow_training(train(sources, output, model, device=device, **options), options["steps"], **curves)


if __name__ == "__main__":
    main()
