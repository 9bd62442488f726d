"""How well a character model spells: python examples/evaluate_speech.py MODEL FOLDER…

MODEL is a file that train_speech.py wrote, or "bundled"; a FOLDER holds recordings with transcripts. Prints a JSON
object for each folder: the character error rate of the likeliest labels, with no language model; where phonemes and
their times are known, how long after the middle of a consonant its letter is spelled (median, ms); and how many seconds
of sound are heard in a second. The first recordings are printed as they were read, on stderr.
"""

import json
import sys
import time

import numpy as np

import train_speech
from talkhead import audio_features, audio_files, mfcc, speech_models

LETTERS = {letter.upper(): letter for letter in "bdfklmnprstvwz"}  # consonants that are spelled as they are heard


def lags(lesson, logits):
    """How late each consonant's letter is spelled, ms, where it is spelled within 300 ms."""
    best = logits.argmax(1)
    starts = np.flatnonzero(np.concatenate([[True], best[1:] != best[:-1]]))
    found = []
    for start, end, name in lesson.phonemes:
        middle = (start + end) / 2
        times = [
            (step + 0.5) / speech_models.RATE - middle
            for step in starts
            if best[step] == speech_models.LABELS.find(LETTERS.get(name, "?"))
        ]
        found += [1000 * lag for lag in sorted(times, key=abs)[:1] if abs(lag) < 0.3]
    return found


def measure(model, folder):
    wrong = letters = seconds = spent = 0
    late = []
    for number, lesson in enumerate(train_speech.recordings([folder])):
        audio = audio_files.read_audio(lesson.path)
        began = time.process_time()
        logits = np.concatenate(list(model.logits([audio])))
        spent += time.process_time() - began
        heard = speech_models.greedy_decode(logits)
        wrong, letters, seconds = (
            wrong + train_speech.edits(lesson.text, heard),
            letters + len(lesson.text),
            seconds + len(audio) / mfcc.SAMPLE_RATE,
        )
        late += lags(lesson, logits)
        if number < 3:
            print(f"{lesson.path}: {lesson.text}\n    read: {heard}", file=sys.stderr)
    return {
        "folder": str(folder),
        "recordings": number + 1,
        "cer": round(wrong / letters, 4),
        "lag_ms": round(float(np.median(late))) if late else None,
        "consonants": len(late),
        "seconds_per_cpu_second": round(seconds / spent, 1),
    }


if __name__ == "__main__":
    path = audio_features.BUNDLED if sys.argv[1] == "bundled" else sys.argv[1]
    network = speech_models.load(path)
    for place in sys.argv[2:]:
        print(json.dumps(measure(network, place)))
