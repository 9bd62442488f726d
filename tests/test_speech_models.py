"""Acoustic models: against slow loops of the same equations, and what streams, versions and files do to them."""

import json

import numpy as np
import pytest
import torch

import toys
from conftest import example
from talkhead import audio_files, checkpoints, conversion, mfcc, speech_models
from talkhead.audio_features import LogitWindows, features
from talkhead.errors import TalkheadError

train_speech = example("train_speech")

WIDTHS = {"h1": (494, 7), "h2": (7, 6), "h3": (6, 9), "h5": (10, 8), "h6": (8, 29)}  # five cells a way


def voice(seconds, seed=0):
    """Buzzing and hissing in syllables: float32 (N,)"""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * mfcc.SAMPLE_RATE)) / mfcc.SAMPLE_RATE
    buzz = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 30))
    return (0.2 * np.maximum(np.sin(2 * np.pi * 3.1 * time), 0) * (buzz + 0.3 * rng.standard_normal(len(time)))).astype(
        np.float32
    )


def in_blocks(audio, size):
    return (audio[first : first + size] for first in range(0, len(audio), size))


def whole(model, audio, size=10**9):
    return np.concatenate(list(model.steps(in_blocks(audio, size))))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return speech_models.CharacterModel(channels=8, hidden=12).eval()


# DeepSpeech -----------------------------------------------------------------------------------------------------------


def numbers(seed=0):
    """The constants of a small DeepSpeech 0.1.0, large enough for the activations to be clipped."""
    rng = np.random.default_rng(seed)
    made = {name: rng.standard_normal(shape) * 3 / shape[0] ** 0.5 for name, shape in WIDTHS.items()}
    made |= {f"b{name[1]}": rng.standard_normal(shape[1]) for name, shape in WIDTHS.items()}
    for way in ("fw", "bw"):
        made[f"bidirectional_rnn/{way}/basic_lstm_cell/kernel"] = rng.standard_normal((14, 20)) * 0.2
        made[f"bidirectional_rnn/{way}/basic_lstm_cell/bias"] = rng.standard_normal(20)
    return {name: value.astype(np.float32) for name, value in made.items()}


def write_graph(path, constants, inputs=(-1, -1, 494)):
    """A frozen TensorFlow graph: its constants, what reads them, and the placeholder for the input."""
    graph = speech_models.graph_messages()["GraphDef"]()
    node = graph.node.add(name="input_node", op="Placeholder")
    node.attr["dtype"].type = 1
    for size in inputs:
        node.attr["shape"].shape.dim.add(size=size)
    graph.node.add(name="steps", op="Const").attr["dtype"].type = 3  # an integer, which is nobody's weight
    for name, value in constants.items():
        node = graph.node.add(name=name, op="Const")
        node.attr["dtype"].type = node.attr["value"].tensor.dtype = 1
        for size in value.shape:
            node.attr["value"].tensor.tensor_shape.dim.add(size=size)
        node.attr["value"].tensor.tensor_content = value.tobytes()
        graph.node.add(name=f"{name}/read", op="Identity")
    path.write_bytes(graph.SerializeToString())
    return path


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def basic_lstm(rows, kernel, bias):
    """TensorFlow's BasicLSTMCell with a forget bias of 1, step by step."""
    c = h = np.zeros(len(bias) // 4)
    for row in rows:
        i, j, f, o = np.split(np.concatenate([row, h]) @ kernel + bias, 4)
        c = c * sigmoid(f + 1) + sigmoid(i) * np.tanh(j)
        h = np.tanh(c) * sigmoid(o)
        yield h


def mozilla(constants, audio):
    """What DeepSpeech 0.1.0 makes of a recording: its own equations in NumPy, for 16-bit samples."""
    reference = pytest.importorskip("python_speech_features")
    cepstra = reference.mfcc(np.round(audio * 32768).astype(np.int16), 16000, numcep=26)[::2]
    padded = np.concatenate([np.zeros((9, 26)), cepstra, np.zeros((9, 26))])
    inputs = np.stack([padded[k : k + 19].ravel() for k in range(len(cepstra))])
    rows = (inputs - inputs.mean()) / inputs.std()
    clip = lambda x: np.minimum(np.maximum(x, 0), 20)  # noqa: E731
    for layer in "123":
        rows = clip(rows @ constants[f"h{layer}"] + constants[f"b{layer}"])
    cells = [
        [constants[f"bidirectional_rnn/{way}/basic_lstm_cell/{part}"].astype(float) for part in ("kernel", "bias")]
        for way in ("fw", "bw")
    ]
    both = np.column_stack([list(basic_lstm(rows, *cells[0])), list(basic_lstm(rows[::-1], *cells[1]))[::-1]])
    return clip(both @ constants["h5"] + constants["b5"]) @ constants["h6"] + constants["b6"]


@pytest.mark.parametrize("seconds, block", [(0.02, 2000), (0.1, 2000), (1.0, 2000), (1.0, 11), (0.7, 1)])
def test_deepspeech_equals_its_equations_in_numpy(tmp_path, monkeypatch, seconds, block):
    constants = numbers()
    model = speech_models.read_deepspeech(write_graph(tmp_path / "output_graph.pb", constants))
    monkeypatch.setattr(model, "block", block)
    audio = np.round(voice(seconds, 3) * 32768).clip(-32768, 32767) / 32768
    expected = mozilla(constants, audio)
    logits = whole(model, audio.astype(np.float32), 333)
    assert logits.dtype == np.float32 and logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, atol=2e-3)


def test_widths_of_deepspeech_come_from_the_file(tmp_path):
    model = speech_models.read_deepspeech(write_graph(tmp_path / "output_graph.pb", numbers()))
    assert model.config == {"widths": [7, 6, 9, 5, 8], "labels": 29}


def without(constants, *parts):
    return {name: value for name, value in constants.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize(
    "change, inputs, words",
    [
        (lambda c: c, (1, 16, 19, 26), "0.2 or later, by its input 1x16x19x26"),
        (lambda c: without(c, "/bw/"), (-1, -1, 494), "one-way LSTM"),
        (
            lambda c: without(c, "rnn") | {"lstm_fused_cell/kernel": c["h1"], "lstm_fused_cell/bias": c["b1"]},
            (),
            "one-way LSTM",
        ),
        (lambda c: without(c, "h5"), (-1, -1, 494), "not of DeepSpeech"),
        (lambda c: c | {"h1": c["h1"][:-1]}, (-1, -1, 493), "493 inputs"),
        (lambda c: c | {"h6": c["h6"][:, :-1], "b6": c["b6"][:-1]}, (-1, -1, 494), "28 labels"),
        (lambda c: c | {"h3": c["h3"][:-1]}, (-1, -1, 494), "inconsistent sizes"),
    ],
)
def test_other_graphs_are_refused_by_name(tmp_path, change, inputs, words):
    path = write_graph(tmp_path / "other.pb", change(numbers()), inputs)
    with pytest.raises(TalkheadError, match=words) as problem:
        speech_models.read_deepspeech(path)
    assert str(problem.value).startswith(f"{path}: ") and "\n" not in str(problem.value)


def test_what_is_no_graph_is_refused(tmp_path):
    path = tmp_path / "output_graph.pb"
    with pytest.raises(TalkheadError, match="output_graph.pb"):
        speech_models.read_deepspeech(path)
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(100))
    with pytest.raises(TalkheadError, match="no TensorFlow graph"):
        speech_models.read_deepspeech(path)
    path.write_bytes(write_graph(tmp_path / "whole.pb", numbers()).read_bytes()[:-100])
    with pytest.raises(TalkheadError, match="no TensorFlow graph"):
        speech_models.read_deepspeech(path)


# The character model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 400, 401, 720, 16_001, 30_000])
@pytest.mark.parametrize("block", [640, 777, 16_000])
def test_the_character_model_streams_what_it_says_of_the_whole(small, length, block):
    audio = voice(2)[:length]
    expected = whole(small, audio)
    heard = whole(small, audio, block)
    assert heard.shape == expected.shape == (-(-len(mfcc.mfcc(audio)) // 2), 29)
    np.testing.assert_allclose(heard, expected, atol=1e-5)


def live(audio, given, size=80):
    """Blocks as a microphone gives them; `given` holds the number of samples that were."""
    for first in range(0, len(audio), size):
        given.append(first + size)
        yield audio[first : first + size]


def test_two_steps_are_told_155_ms_after_them_and_each_hears_that_much(small):
    audio, given, told = voice(1), [0], []
    for piece in small.steps(live(audio, given)):
        told += [given[-1] / 16] * len(piece)  # ms
    assert told[:40] == [pytest.approx(40 * (step // 2 + 1) + 155, abs=5) for step in range(40)]
    before, end = whole(small, audio), 16 * (20 * 31 + 155)  # of what step 30 hears
    later, now = audio.copy(), audio.copy()
    later[end:] = now[end - 200 :] = 0
    np.testing.assert_array_equal(whole(small, later)[:31], before[:31])
    assert np.abs(whole(small, now)[30] - before[30]).max() > 1e-6


def test_an_embedding_is_streamed_in_the_place_of_logits(tmp_path):
    torch.manual_seed(3)
    model, audio = speech_models.CharacterModel(8, 12, embedding=5).eval(), voice(1)
    toys.save_network(tmp_path / "speech.pt", "speech", model, step=3, nested=True)
    loaded = features("bundled", tmp_path / "speech.pt")
    assert loaded.shape == (5, 16) and loaded.identity == LogitWindows(model).identity
    rows = np.concatenate(list(mfcc.log_mel([audio])))
    rows = np.pad(rows, ((0, len(rows) % 2 + 2 * model.delay), (0, 0)))
    with torch.no_grad():
        hidden, _ = model.encode(torch.from_numpy(rows[None]))
        expected = model.embed(hidden)[0, model.delay :].numpy()
        spelled = model(torch.from_numpy(rows[None]))[0][0, model.delay :]
    np.testing.assert_allclose(whole(loaded.model, audio, 777), expected, atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate(list(loaded.model.logits(in_blocks(audio, 777)))), spelled.numpy(), atol=1e-5
    )
    assert speech_models.transcribe(loaded.model, audio) == speech_models.greedy_decode(spelled)


def test_the_character_model_equals_a_slow_loop(small):
    """Every step by itself, out of all that lies before it: nothing but dot products."""
    audio, layers = voice(0.4), {name: value.double().numpy() for name, value in small.state_dict().items()}
    heard = np.concatenate(list(mfcc.log_mel([audio]))).astype(float) / 4
    rows = np.pad(heard, ((0, len(heard) % 2 + 2 * small.delay), (0, 0)))
    for k, (size, stride) in enumerate([(6, 2), (5, 1), (5, 1)]):
        padded = np.pad(rows, ((size - stride, 0), (0, 0)))
        new = np.array(
            [
                np.einsum("kc,ock->o", padded[first : first + size], layers[f"convolutions.{k}.weight"])
                + layers[f"convolutions.{k}.bias"]
                for first in range(0, len(rows), stride)
            ]
        )
        new = (new - new.mean(1, keepdims=True)) / np.sqrt(new.var(1, keepdims=True) + 1e-5)
        new = np.maximum(new * layers[f"norms.{k}.weight"] + layers[f"norms.{k}.bias"], 0)
        rows = rows + new if k else new
    for k in "01":
        weights = [layers[f"lstm.{name}_l{k}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        order = [0, 2, 1, 3]  # torch's i, f, g, o as TensorFlow's i, j, f, o
        kernel, bias = (
            np.concatenate([np.split(part, 4)[gate] for gate in order])
            for part in (np.hstack(weights[:2]), weights[2] + weights[3])
        )
        bias[2 * 12 : 3 * 12] -= 1  # which the other cell puts back
        rows = np.array(list(basic_lstm(rows, kernel.T, bias)))
    np.testing.assert_allclose(
        whole(small, audio), (rows @ layers["spell.weight"].T + layers["spell.bias"])[small.delay :], atol=1e-5
    )


# Windows --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bundled", "deepspeech", "wav2vec2"])
def heard(request, small, tmp_path_factory):
    """Each kind of acoustic model, small, as features."""
    folder = tmp_path_factory.mktemp("models")
    if request.param == "bundled":
        return LogitWindows(small)
    if request.param == "deepspeech":
        return features("deepspeech", write_graph(folder / "output_graph.pb", numbers()))
    return features("wav2vec2", hidden_network(folder / "network", "wav2vec2"))


def hidden_network(folder, kind):
    """A network of random numbers, saved as transformers saves its own."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "conv_dim": [4] * 7,
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "vocab_size": 5,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
    }
    classes = {
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
        "hubert": (transformers.HubertConfig, transformers.HubertModel),
    }
    torch.manual_seed(0)
    config, model = classes[kind]
    model(config(**sizes)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("length", [300, 16_000, 21_111])
def test_windows_are_eight_frames_of_which_the_frame_is_the_fourth(heard, length):
    audio = voice(2)[:length]
    windows = heard.windows(audio)
    assert windows.dtype == np.float32 and windows.shape == (mfcc.num_frames(audio), *heard.shape)
    steps = whole(heard.model, audio) - heard.silence
    for frame in range(len(windows)):
        for column in range(16):
            step = 2 * (frame - 3) + column
            expected = steps[step] if 0 <= step < len(steps) else np.zeros(heard.shape[0])
            np.testing.assert_array_equal(windows[frame, :, column], expected)


@pytest.mark.parametrize("length", [1, 640, 641, 21_111])
@pytest.mark.parametrize("block", [500, 8000])
def test_windows_of_a_stream_are_those_of_the_whole(heard, length, block):
    audio = voice(2)[:length]
    streamed = list(heard.stream(in_blocks(audio, block)))
    assert len(streamed) == mfcc.num_frames(audio) and streamed[0].dtype == np.float32
    np.testing.assert_allclose(streamed, heard.windows(audio), atol=1e-5)


def test_windows_come_315_ms_after_their_frame(small):
    given = [0]
    told = [given[-1] / 16 for _ in LogitWindows(small).stream(live(voice(1), given))]
    assert told[:15] == [pytest.approx(40 * (frame + 1) + 315, abs=5) for frame in range(15)]


def test_silence_is_zero_when_it_has_lasted(small):
    heard = LogitWindows(small)
    windows = heard.windows(np.zeros(4 * mfcc.SAMPLE_RATE, np.float32))
    assert np.abs(windows[60:90]).max() < 1e-3 < np.abs(heard.silence).max()


def test_an_identity_tells_weights_apart_and_survives_export(small, tmp_path):
    toys.save_network(tmp_path / "run.pt", "speech", small, step=3, nested=True)
    conversion.export(tmp_path / "run.pt", tmp_path / "half.pt")
    run, half = (features("bundled", tmp_path / name) for name in ("run.pt", "half.pt"))
    assert run.identity == half.identity == LogitWindows(small).identity and json.dumps(run.identity)
    other = LogitWindows(speech_models.CharacterModel(8, 12))
    assert other.identity["name"] == "bundled" and other.identity != run.identity
    assert (
        checkpoints.describe(tmp_path / "half.pt")["kind"] == "speech"
        and checkpoints.describe(tmp_path / "half.pt")["precision"] == "float16"
    )


def test_features_by_name():
    assert features("mfcc").identity == {"name": "mfcc"}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["mel"], "unknown; take mfcc, bundled, deepspeech"),
        (["mfcc", "x.pt"], "take no weights"),
        (["deepspeech"], "pass output_graph.pb of DeepSpeech 0.1.0 as --features-model"),
        (["hubert"], "a network of transformers"),
        (["bundled", "absent.pt"], "absent.pt"),
        (["wav2vec2", "absent/folder"], "no network of transformers"),
    ],
)
def test_features_that_are_not_to_be_had(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    if "no network" in words:
        pytest.importorskip("transformers", reason="transformers is not installed")
    with pytest.raises(TalkheadError, match=words):
        features(*arguments)


def test_weights_of_another_kind_are_no_character_model(toy_weights):
    with pytest.raises(TalkheadError, match="encoder"):
        features("bundled", toy_weights / "encoder.pt")


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_hidden_states_are_those_of_the_network(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    folder, audio = hidden_network(tmp_path, kind), voice(1.01)
    hidden = speech_models.TransformersFeatures(kind, str(folder))
    network = transformers.AutoModel.from_pretrained(folder).eval()
    normal = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
    with torch.no_grad():
        expected = network(torch.from_numpy(normal)[None]).last_hidden_state[0].numpy()
    np.testing.assert_allclose(whole(hidden, audio, 1000), expected, atol=1e-4)
    hidden.BLOCK, hidden.MARGIN = 0.4, 0.2
    assert whole(hidden, audio).shape == expected.shape
    other = {"wav2vec2": "hubert", "hubert": "wav2vec2"}[kind]
    with pytest.raises(TalkheadError, match=f"of type {kind}; pass one of type {other}"):
        speech_models.TransformersFeatures(other, folder)


def test_states_of_whisper_are_those_of_its_encoder(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"d_model": 16, "vocab_size": 60, "pad_token_id": 50, "bos_token_id": 50, "eos_token_id": 50}
    sizes |= {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    network = transformers.WhisperModel(transformers.WhisperConfig(**sizes, decoder_start_token_id=50)).eval()
    network.save_pretrained(tmp_path)
    prepare = transformers.WhisperFeatureExtractor()
    prepare.save_pretrained(tmp_path)
    model, audio = speech_models.WhisperFeatures("whisper", str(tmp_path)), voice(1.01)

    def expected(audio):
        inputs = prepare(audio, sampling_rate=16_000, return_tensors="pt")["input_features"]
        with torch.no_grad():
            return network.encoder(inputs).last_hidden_state[0].numpy()

    np.testing.assert_allclose(whole(model, audio, 1000), expected(audio)[:51], atol=1e-5)
    long = np.resize(audio, 16_000 * 31)
    states = whole(model, long)
    assert states.shape == (31 * 50, 16)
    np.testing.assert_allclose(states[: 28 * 50], expected(long[: 16_000 * 29])[: 28 * 50], atol=1e-5)
    np.testing.assert_allclose(states[28 * 50 :], expected(long[16_000 * 27 :])[50 : 4 * 50], atol=1e-5)
    assert features("whisper", str(tmp_path)).shape == (16, 16)
    with pytest.raises(TalkheadError, match="of type whisper; pass one of type hubert"):
        speech_models.TransformersFeatures("hubert", str(tmp_path))


def test_rows_between_rows():
    rows = np.array([[0.0], [2.0], [6.0]], np.float32)
    np.testing.assert_allclose(speech_models.interpolated(rows, np.array([0, 0.5, 1.25, 2, 5]))[:, 0], [0, 1, 3, 6, 6])


# Words ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Bin BLUE at F, two now.", "bin blue at f two now"),
        ("It’s 'fine'—don't!", "it's fine don't"),
        ("  ...  ", None),
        ("In 1984", None),
        ("the dogs' bowl\n", "the dogs bowl"),
    ],
)
def test_spelled(text, expected):
    assert train_speech.spelled(text) == expected


def test_read_out_drops_repeats_and_blanks():
    labels = [28, 8, 8, 28, 5, 12, 12, 28, 12, 15, 0, 0, 27, 28]
    assert speech_models.greedy_decode(np.eye(29)[labels]) == "hello '"


def levenshtein(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(levenshtein(a[1:], b) + 1, levenshtein(a, b[1:]) + 1, levenshtein(a[1:], b[1:]) + (a[0] != b[0]))


def test_edits_are_the_fewest():
    rng = np.random.default_rng(0)
    for _ in range(100):
        one, other = ("".join(rng.choice(list("ab c"), rng.integers(0, 6))) for _ in range(2))
        assert train_speech.edits(one, other) == levenshtein(one, other), (one, other)


def test_recordings_are_found_with_their_words(tmp_path):
    deep = tmp_path / "book" / "chapter"
    deep.mkdir(parents=True)
    for name in (
        "a.wav",
        "b.wav",
        "c.WAV",
        "d.wav",
        "e.wav",
        "f.wav",
        ".g.wav",
        "book/chapter/1-2-3.wav",
        "book/chapter/1-2-4.wav",
    ):
        audio_files.write_audio(tmp_path / name, np.zeros(100))
    (tmp_path / "a.json").write_text(json.dumps({"text": "Ah!", "phonemes": [[0, 0.05, "SIL"], [0.05, 0.1, "AA1"]]}))
    (tmp_path / "b.align").write_text("0 2500 sil\n2500 5000 blue\n")
    (tmp_path / "c.txt").write_text("See you\n")
    (tmp_path / "d.lab").write_text("Dee", encoding="utf-16")
    (tmp_path / "e.txt").write_text("Room 101")
    (tmp_path / ".g.txt").write_text("hidden")
    (deep / "1-2.trans.txt").write_text("1-2-3 IN THE DEEP\n1-2-9 ELSEWHERE\n", encoding="utf-8-sig")
    found = {lesson.path.name: lesson for lesson in train_speech.recordings([tmp_path])}
    assert {name: lesson.text for name, lesson in found.items()} == {
        "a.wav": "ah",
        "b.wav": "blue",
        "c.WAV": "see you",
        "d.wav": "dee",
        "1-2-3.wav": "in the deep",
    }
    assert found["a.wav"].phonemes == [(0, 0.05, "SIL"), (0.05, 0.1, "AA1")] and found["b.wav"].phonemes[1][2] == "B"
    assert [lesson.text for lesson in train_speech.recordings([tmp_path / "d.wav", tmp_path / "d.wav"])] == [
        "dee",
        "dee",
    ]
    with pytest.raises(TalkheadError, match="NAME.txt"):
        train_speech.recordings([tmp_path / "f.wav"])
    with pytest.raises(TalkheadError, match="not found"):
        train_speech.recordings([tmp_path / "absent"])


# Training -------------------------------------------------------------------------------------------------------------

TONES = {"a": (300, "AA"), "b": (900, "B"), "o": (2700, "OW")}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Eight recordings in a language whose letters are tones of 120 ms."""
    folder = tmp_path_factory.mktemp("spoken")
    rng = np.random.default_rng(0)
    for n in range(8):
        word = "".join(rng.permutation(list("abo")))
        pieces, phonemes = [np.zeros(1600)], [[0, 0.1, "SIL"]]
        for place, letter in enumerate(word):
            time = np.arange(1920) / 16000
            pieces.append(0.3 * np.sin(2 * np.pi * TONES[letter][0] * time) * np.sin(np.pi * time / 0.12))
            phonemes.append([0.1 + 0.12 * place, 0.22 + 0.12 * place, TONES[letter][1]])
        audio_files.write_audio(folder / f"{n}.wav", np.concatenate([*pieces, np.zeros(1600)]))
        (folder / f"{n}.json").write_text(json.dumps({"text": word, "phonemes": phonemes}))
    return folder


def learn(spoken, out, steps, **options):
    torch.manual_seed(0)
    model = speech_models.CharacterModel(channels=16, hidden=32, delay=2)
    options = {"batch": 8, "lr": 0.005, "log_every": 1, "ema_decay": 0.9} | options
    return list(train_speech.train([spoken], out, model, steps=steps, **options))


def test_letters_and_phonemes_are_learnt(spoken, tmp_path):
    records = learn(
        spoken, tmp_path / "speech.pt", 40, augment=False, phoneme_weight=20.0, validation=[spoken], validate_every=20
    )
    first, last = records[0], records[-1]
    assert last["ctc"] < first["ctc"] / 5 and last["phonemes"] < first["phonemes"] / 2
    heard = features("bundled", tmp_path / "speech.pt")
    assert train_speech.error_rate(heard.model, train_speech.recordings([spoken])) == min(
        record["val_cer"] for record in records if "val_cer" in record
    )


def test_resumed_training_equals_uninterrupted(spoken, tmp_path):
    learn(spoken, tmp_path / "whole.pt", 4)
    learn(spoken, tmp_path / "parts.pt", 2)
    learn(spoken, tmp_path / "parts.pt", 4)
    one, other = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "parts.pt"))
    assert one["kind"] == "speech" and one["step"] == 4
    for name, value in one["model"].items():
        torch.testing.assert_close(value, other["model"][name], atol=0, rtol=0)
    torch.testing.assert_close(one["training"]["live"], other["training"]["live"], atol=0, rtol=0)


def test_turns_make_the_same_step(spoken, tmp_path):
    learn(spoken, tmp_path / "one.pt", 2)
    learn(spoken, tmp_path / "turns.pt", 2, accumulate=2)
    one, turns = (torch.load(tmp_path / name, weights_only=True)["training"]["live"] for name in ("one.pt", "turns.pt"))
    torch.testing.assert_close(one, turns, atol=1e-3, rtol=1e-3)


def test_phonemes_lie_where_they_are_heard_at_any_speed(spoken):
    lesson = train_speech.recordings([spoken])[0]
    for speed in (1.0, 0.5):
        example = train_speech._Example(np.zeros((101, 26), np.float32), lesson, speed)
        first = round(5 / speed)
        assert example.features.shape == (102, 26) and example.phonemes.shape == (51,)
        assert (example.phonemes[:first] == train_speech.PHONEMES.index("SIL")).all()
        assert example.phonemes[first] == train_speech.PHONEMES.index(TONES[lesson.text[0]][1])
    assert (example.phonemes[round(23 / 0.5) :] == -1).all()


@pytest.fixture(scope="module")
def taught(spoken, tmp_path_factory):
    """Features of a larger network for these recordings: if a step has a tone, 1 or -1; 1; noise that counts less."""
    states, rng = {}, np.random.default_rng(0)
    for lesson in train_speech.recordings([spoken]):
        rows = np.ones((28, 3))
        rows[:5, 0] = rows[23:, 0] = -1
        rows[:, 2] = rng.standard_normal(28)
        states[lesson.path.name] = torch.from_numpy(rows).half()
    path = tmp_path_factory.mktemp("taught") / "features.pt"
    torch.save({"kind": "teacher", "share": torch.tensor([0.6, 0.3, 0.1]), "states": states}, path)
    return path


def distil(spoken, taught, out, steps, window=6.0, **options):
    torch.manual_seed(0)
    model = speech_models.CharacterModel(channels=16, hidden=32, delay=2, embedding=3)
    options = {"batch": 8, "lr": 0.005, "log_every": 1, "ema_decay": 0.9} | options
    teacher = train_speech.Teacher(taught)
    return list(train_speech.train([spoken], out, model, steps=steps, teacher=teacher, window=window, **options))


def test_an_embedding_is_distilled(spoken, taught, tmp_path):
    options = {"augment": False, "ctc_weight": 0.2, "phoneme_weight": 0.0, "lr": 0.02}
    options |= {"validation": [spoken], "validate_every": 20}
    records = distil(spoken, taught, tmp_path / "speech.pt", 40, **options)
    assert records[-1]["error"] < records[0]["error"] / 2 and records[-1]["ctc"] < records[0]["ctc"]
    model, error, variance = speech_models.load(tmp_path / "speech.pt"), 0.0, 0.0
    for name, states in torch.load(taught, weights_only=True)["states"].items():
        found = whole(model, audio_files.read_audio(spoken / name))
        for row, wanted in zip(found, states.double().numpy()):
            for share, one, other in zip((0.6, 0.3, 0.1), row, wanted):
                error, variance = error + share * (one - other) ** 2, variance + share * other**2
    best = min((record for record in records if "val_error" in record), key=lambda record: record["val_error"])
    assert error / variance == pytest.approx(best["val_error"], rel=1e-4) and best["val_error"] < 0.6
    assert train_speech.error_rate(model, train_speech.recordings([spoken])) == best["val_cer"]


def test_distillation_resumes_exactly(spoken, taught, tmp_path):
    options = {"window": 1.0, "dropout": 0.3, "lr_warmup": 2, "lr_decay": 1.0, "save_minutes": 0, "keep": 9}
    distil(spoken, taught, tmp_path / "whole.pt", 4, **options)
    (tmp_path / "parts.pt").write_bytes((tmp_path / "whole-00000002.pt").read_bytes())
    distil(spoken, taught, tmp_path / "parts.pt", 4, **options)
    one, other = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "parts.pt"))
    torch.testing.assert_close(one["model"], other["model"], atol=0, rtol=0)
    torch.testing.assert_close(one["training"]["live"], other["training"]["live"], atol=0, rtol=0)
    rates = []
    for step in (1, 2, 3, 4):
        state = torch.load(tmp_path / f"whole-{step:08}.pt", weights_only=True)["training"]["optimizer"]
        rates.append(state["param_groups"][0]["lr"] / 0.005)
    assert rates == pytest.approx([0.5, 0.5 + 0.5 * 0.5**0.5, 0.5, 0.5 - 0.5 * 0.5**0.5])


def test_turns_distil_the_same_step(spoken, taught, tmp_path):
    distil(spoken, taught, tmp_path / "one.pt", 2)
    distil(spoken, taught, tmp_path / "turns.pt", 2, accumulate=2)
    one, turns = (torch.load(tmp_path / name, weights_only=True)["training"]["live"] for name in ("one.pt", "turns.pt"))
    torch.testing.assert_close(one, turns, atol=1e-3, rtol=1e-3)


def test_a_window_has_the_states_and_phonemes_of_its_time(spoken):
    lesson = train_speech.recordings([spoken])[0]
    lesson.states = np.arange(28, dtype=np.float16)[:, None]
    for speed in (1.0, 0.8, 1.25):
        example = train_speech._Example(np.zeros((20, 26), np.float32), lesson, speed, first=8, whole=False)
        assert example.labels == [] and example.states.shape == (10, 1)
        for step, state in enumerate(example.states[:, 0]):  # a step is at its middle
            assert state + 0.5 == pytest.approx(8 + (step + 0.5) * speed)
        assert example.phonemes[0] == train_speech.PHONEMES.index(TONES[lesson.text[0]][1])
        assert example.phonemes[round(3 / speed) :][0] == train_speech.PHONEMES.index(TONES[lesson.text[1]][1])


def test_windows_lie_anywhere_in_a_recording(tmp_path):
    audio_files.write_audio(tmp_path / "long.wav", voice(4))
    audio_files.write_audio(tmp_path / "short.wav", voice(0.5))
    (tmp_path / "long.txt").write_text("ah")
    states = {"long.wav": torch.arange(200)[:, None].half(), "short.wav": torch.zeros(25, 1).half()}
    torch.save({"kind": "teacher", "share": torch.ones(1), "states": states}, tmp_path / "features.pt")
    teacher = train_speech.Teacher(tmp_path / "features.pt")
    lessons = train_speech.recordings([tmp_path], transcribed=False)
    assert [(lesson.path.name, lesson.text) for lesson in lessons] == [("long.wav", "ah"), ("short.wav", "")]
    teacher.teach(lessons)
    model = speech_models.CharacterModel(4, 6, embedding=1)
    settings = {"batch": 40, "ctc_weight": 1.0, "phoneme_weight": 0.0, "dropout": 0.0, "augment": False, "window": 1.0}
    trainer = train_speech._Trainer(model, lessons, [], settings, teacher, 0.001, 0, train_speech.Distributed(40))
    examples = trainer.feed(0)[0]
    long = [example for example in examples if len(example.states) == 50]
    assert 25 < len(long) < 40 and not any(example.labels for example in examples)  # 4 in 5: 2 s to 0.5 s
    teaching = trainer._loss([example for example in examples if not example.labels])[1]
    assert teaching["ctc"] == 0 and teaching["error"] > 0
    begins = [example.states[0, 0] for example in long]
    assert min(begins) < 30 and 120 < max(begins) <= 150
    features = np.concatenate(list(mfcc.log_mel([audio_files.read_audio(tmp_path / "long.wav")])))
    middle = np.argsort(begins)[len(begins) // 2]
    rows = features[2 * int(begins[middle]) :][4:98]  # the same but for the level of the sound before, and the edges
    assert np.corrcoef(long[middle].features[4:98].ravel(), rows.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    "damage, options, message",
    [
        (lambda weights: weights.update(kind="speech"), {}, "features.pt: holds a character model, wanted a teacher"),
        (lambda weights: weights["states"].pop("3.wav"), {}, "features.pt: has no features of .*3.wav; write it again"),
        (lambda weights: weights.update(share=torch.ones(2) / 2), {}, "has 2 features, the embedding 3; make it as"),
        (
            lambda weights: weights.update(states={name: rows[:9] for name, rows in weights["states"].items()}),
            {},
            r"wav: 0.56 s long, and its features 0.18 s; write them again",
        ),
        (lambda weights: None, {"window": 0.5}, "window=0.5: too short"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(spoken, taught, tmp_path, damage, options, message):
    weights = torch.load(taught, weights_only=True)
    damage(weights)
    torch.save(weights, tmp_path / "features.pt")
    with pytest.raises(TalkheadError, match=message):
        distil(spoken, tmp_path / "features.pt", tmp_path / "out.pt", 1, **options)
    assert not (tmp_path / "out.pt").exists()
