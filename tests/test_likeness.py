"""The measures of examples/evaluate_bundled.py and nearest_donors.py that need no trained weights."""

import numpy as np
import pytest

from conftest import example


@pytest.fixture(scope="module")
def scripts():
    return example("evaluate_bundled"), example("likeness")


def clip(frames=12, size=96):
    """A still picture with structure, many times."""
    ramp = np.linspace(30, 220, size)
    return [np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], 128.0), -1).astype(np.uint8)] * frames


def test_a_still_clip_does_not_flicker_and_a_moving_mouth_is_no_flicker(scripts):
    frames = clip()
    still = scripts[0].flicker(frames)
    assert all(part["variance"] == pytest.approx(part["still"]) and part["ratio"] < 0.1 for part in still.values())
    mouthed = [frame.copy() for frame in frames]
    for index, frame in enumerate(mouthed):
        frame[70:80, 40:56] = 20 * (index % 2)
    assert all(part["variance"] < 0.5 for part in scripts[0].flicker(mouthed).values())


@pytest.mark.parametrize(
    "part, rows, columns", [("forehead", slice(22, 34), slice(34, 62)), ("backdrop", slice(0, 32), slice(0, 12))]
)
def test_flicker_is_seen_where_it_is(scripts, part, rows, columns):
    frames = [frame.copy() for frame in clip()]
    for index, frame in enumerate(frames):
        frame[rows, columns] = np.clip(frame[rows, columns].astype(int) + 12 * (index % 2), 0, 255)
    figures = scripts[0].flicker(frames)
    other = next(name for name in figures if name != part)
    assert figures[part]["variance"] > 5 and figures[other]["variance"] < 0.2 * figures[part]["variance"]
    # A square wave of height 12 has a variance of 36; half of the backdrop, one side of two, does so.
    assert figures[part]["variance"] == pytest.approx(36 if part == "forehead" else 18, rel=0.35)


def test_distances_are_one_less_the_cosine(scripts):
    vectors = np.array([(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)])
    np.testing.assert_allclose(scripts[1].distances(vectors[:1], vectors), [[0, 1, 2]])


def test_the_stand_in_says_that_it_is_one_and_forgets_what_all_share(scripts, toy_weights):
    from talkhead import checkpoints

    generator = checkpoints.load_generator(toy_weights / "generator.pt")
    encoder = checkpoints.load_encoder(toy_weights / "encoder.pt", generator)
    faces = [np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8) for seed in range(6)]
    judge = scripts[1].Likeness(faces, encoder=encoder)
    seen = judge.embed(faces)
    assert judge.name.startswith("stand-in encoder-") and "no face recognition" in judge.name
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 1, rtol=1e-5)
    between = scripts[1].distances(seen, seen)
    np.testing.assert_allclose(np.diag(between), 0, atol=1e-5)
    assert between[~np.eye(6, dtype=bool)].mean() > 0.8  # about the mean, people lie in all directions
    persons = scripts[0].Persons(faces[1:], None, "cpu", encoder)
    figures = persons(faces[0], faces[0])
    assert figures["distance"] < 1e-5 < figures["nearest_other"] <= figures["others"]


def test_no_tone_of_skin_is_hidden_in_the_mean(scripts):
    def record(tone, met, correlation):
        return {
            "tone": tone,
            "closures": {"asked": 4, "fake": met, "projection": 1},
            "opening": {"fake": {"correlation": correlation}},
        }

    groups = scripts[0].by_tone([record("light", 4, 0.9), record("dark", 0, 0.5), record("dark", 1, None)])
    assert groups == {
        "dark": {"clips": 2, "correlation": 0.5, "asked": 8, "fake": 1, "projection": 2},
        "light": {"clips": 1, "correlation": 0.9, "asked": 4, "fake": 4, "projection": 1},
    }
