"""Compute hidden states of Whisper's encoder for recordings, reduced to principal components, for train_speech.py.

    pip install faster-whisper
    python examples/whisper_features.py speech/ --model whisper-tiny/ -o features.pt

The components are those of the recordings' standardised states, scaled to variance 1.

Source: Radford et al. 2023.
"""

from pathlib import Path

import click
import numpy as np
import torch
from tqdm import tqdm

import train_speech
from talkhead import audio_files, cli_io, cli_options, files, mfcc
from talkhead.errors import TalkheadError

BLOCK, MARGIN = 28 * mfcc.SAMPLE_RATE, mfcc.SAMPLE_RATE  # samples; the encoder takes 30 s


def load(path):
    """Load a Whisper network: a function of float32 (N,) at 16 kHz, N at most 30 s, that returns float32 (1500, C).

    path     folder of its CTranslate2 weights
    raises   TalkheadError if faster-whisper is not installed or there are no such weights
    """
    try:
        from faster_whisper import WhisperModel
        from faster_whisper.audio import pad_or_trim
    except ImportError:
        raise TalkheadError("faster-whisper is not installed; pip install faster-whisper") from None
    if not (Path(path) / "model.bin").is_file():  # faster-whisper would look for it on the hub
        raise TalkheadError(f"{path}: has no model.bin; pass the folder of Whisper's CTranslate2 weights")
    try:
        network = WhisperModel(str(path), device="cpu", compute_type="float32", local_files_only=True)
    except (RuntimeError, ValueError, OSError) as problem:
        reason = str(problem).splitlines()[0]
        raise TalkheadError(f"{path}: no CTranslate2 weights of Whisper ({reason}); convert them again") from problem
    return lambda audio: np.array(network.encode(pad_or_trim(network.feature_extractor(audio))))[0]


def hidden_states(encode, audio):
    """Hidden states, float16 (K, C), one row per started 20 ms, in blocks of 28 s with 1 s of context on either side.

    encode   function that `load` returns
    audio    float (N,) at 16 kHz
    """
    audio, rows = np.asarray(audio, np.float32), []
    for first in range(0, len(audio), BLOCK):
        begin, end = max(first - MARGIN, 0), min(first + BLOCK, len(audio))
        states = encode(audio[begin : end + MARGIN])
        rows.append(states[(first - begin) // train_speech.STEP : -(-(end - begin) // train_speech.STEP)])
    return np.concatenate(rows).astype(np.float16)


def principal_components(states, count):
    """Principal components of standardised rows.

    states   list of (K, C)
    count    number of components, at most C
    returns  function from (K, C) to float16 (K, count), of variance 1 over all states; float32 (count,), the share of
             each in their variance, in total 1
    """
    total = sum(len(rows) for rows in states)
    mean = sum(rows.sum(0, dtype=float) for rows in states) / total
    covariance = sum((rows - mean).T @ (rows - mean) for rows in states) / total
    std = np.sqrt(covariance.diagonal()) + 1e-3
    values, vectors = np.linalg.eigh(covariance / np.outer(std, std))
    values, vectors = np.maximum(values[::-1][:count], 1e-6), vectors[:, ::-1][:, :count]
    matrix = vectors / std[:, None] / np.sqrt(values)
    return lambda rows: ((rows - mean) @ matrix).astype(np.float16), np.float32(values / values.sum())


@click.command(cls=cli_io.Script)
@cli_options.sources
@cli_options.weights_out("The features")
@click.option("--model", metavar="FOLDER", required=True, help="CTranslate2 weights of Whisper, as of faster-whisper.")
@click.option("--validation", metavar="PATH", multiple=True, help="Recordings that do not count for the components.")
@cli_options.number("--components", 64, "Number of principal components.", least=1)
def main(sources, output, model, validation, components):
    """Compute hidden states of Whisper's encoder for recordings, reduced to principal components.

    \b
      python examples/whisper_features.py speech/ --model whisper-tiny/ -o features.pt
    """
    encode, states = load(model), {}
    fitted, others = (
        [lesson.path for lesson in train_speech.recordings(paths, transcribed=False)] if paths else []
        for paths in (sources, validation)
    )
    for path in tqdm(dict.fromkeys([*fitted, *others]), unit="recording"):
        if path.name in states:
            raise TalkheadError(f"{path}: another recording has the same name; rename one")
        states[path.name] = hidden_states(encode, audio_files.read_audio(path))
    width = states[fitted[0].name].shape[1]
    if components > width:
        raise TalkheadError(f"{model}: has {width} hidden units; lower --components {components}")
    project, share = principal_components([states[path.name] for path in fitted], components)
    reduced = {name: torch.from_numpy(project(rows)) for name, rows in states.items()}
    files.save_weights(output, {"kind": "teacher", "share": torch.from_numpy(share), "states": reduced})


if __name__ == "__main__":
    main()
