"""What faces differ in.

Measured on colours of known angle, drawn evenly, repainted on pictures whose parts are known.
"""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from puppets import puppet, variety
from talkhead import TalkheadError

SIZE = 96


@pytest.fixture(scope="module")
def face():
    """A drawn face before a wall that grows brighter to one side, its landmarks, and where the wall is."""
    still = puppet.drawn(3, SIZE)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    head = np.hypot((x - 0.5) / 0.33, (y - 0.52) / 0.42) < 1
    person = head | (y > 0.85)
    wall = np.stack([60 + 40 * x, 90 + 20 * y, 190 - 30 * x], -1)
    return np.where(person[..., None], still.image, wall).astype(np.uint8), still.landmarks, ~person


def test_the_angle_of_skin_is_that_of_scikit_image():
    color = pytest.importorskip("skimage.color")
    for colour in ((240, 210, 190), (200, 150, 120), (150, 105, 80), (90, 60, 45)):
        picture = np.full((32, 32, 3), colour, np.uint8)
        lightness, _, b = color.rgb2lab(picture)[0, 0]
        assert variety.tone_angle(picture) == pytest.approx(np.degrees(np.arctan2(lightness - 50, b)), abs=0.3)


def test_skin_in_blue_light_has_a_tone_too():
    """Where b* is not above 0 the angle's arctangent has no meaning; darkness alone tells the tone."""
    angles = [variety.tone_angle(np.full((32, 32, 3), colour, np.uint8)) for colour in ((50, 60, 90), (190, 200, 230))]
    assert angles == pytest.approx([-90, 90], abs=0.01)
    assert [variety.group(angle, variety.TONES) for angle in angles] == ["dark", "light"]


def test_angles_fall_into_chardons_groups():
    assert [variety.group(angle, variety.TONES) for angle in (-40, 9.9, 10, 30, 41, 80)] == [
        "dark",
        "dark",
        "tan",
        "intermediate",
        "light",
        "light",
    ]


def test_hair_is_as_bright_as_it_is_painted(face):
    picture, landmarks, _ = face
    picture = picture.copy()
    picture[: int(landmarks[17:27, 1].min()) - 4] = 200
    assert variety.hair_shade(picture, landmarks) == pytest.approx(200, abs=1)


def test_every_light_and_backdrop_is_drawn_about_as_often():
    rng = np.random.default_rng(0)
    drawn = [variety.draw(rng) for _ in range(600)]
    for kinds, found in (
        (variety.LIGHTS, [one["light"]["from"] for one in drawn]),
        (variety.BACKDROPS, [one["backdrop"]["kind"] for one in drawn]),
    ):
        for kind in kinds:
            assert abs(found.count(kind) - 600 / len(kinds)) < 5 * np.sqrt(600 / len(kinds))
    assert json.loads(json.dumps(drawn)) == drawn


def test_a_smooth_wall_is_found(face):
    picture, landmarks, wall = face
    colour, share = variety.backdrop(picture, landmarks)
    assert share[wall].mean() > 0.95 and share[~wall].mean() < 0.08
    assert np.abs(colour[wall] - picture[wall]).mean() < 3


def test_a_crowded_wall_is_left_alone(face):
    picture, landmarks, wall = face
    picture = picture.copy()
    picture[wall] = np.random.default_rng(0).integers(0, 256, (wall.sum(), 3))
    assert variety.backdrop(picture, landmarks) is None
    rng = np.random.default_rng(1)
    assert all(
        variety.varied(picture, landmarks, rng)[1]["backdrop"] == {"kind": "own", "colours": []} for _ in range(6)
    )


def drawing(monkeypatch, light, backdrop):
    monkeypatch.setattr(variety, "draw", lambda rng: {"light": light, "backdrop": backdrop})


def test_a_plain_wall_takes_its_colour_and_leaves_the_person(face, monkeypatch):
    picture, landmarks, wall = face
    drawing(monkeypatch, {"from": "own"}, {"kind": "plain", "colours": [[200, 40, 10]]})
    painted, chosen = variety.varied(picture, landmarks, None)
    sure = np.abs(painted.astype(int) - picture).max(-1) > 0
    assert np.abs(np.median(painted[wall], 0) - (200, 40, 10)).max() <= 3
    assert sure[~wall].mean() < 0.15 and chosen["backdrop"]["kind"] == "plain"


def test_a_gradient_runs_from_one_colour_to_the_other(face, monkeypatch):
    picture, landmarks, _ = face
    drawing(monkeypatch, {"from": "own"}, {"kind": "gradient", "colours": [[0, 0, 0], [200, 200, 200]], "angle": 0.0})
    painted, _ = variety.varied(picture, landmarks, None)
    assert painted[20:30, 2:5].mean() < 40 and painted[20:30, -5:-2].mean() > 160


@pytest.mark.parametrize(
    "kind, brighter, darker", [("left", slice(0, 16), slice(26, 42)), ("right", slice(26, 42), slice(0, 16))]
)
def test_a_lamp_brightens_the_side_that_it_stands_on(face, monkeypatch, kind, brighter, darker):
    picture, landmarks, _ = face
    drawing(
        monkeypatch, {"from": kind, "strength": 0.8, "warmth": 0.0, "exposure": 1.0}, {"kind": "own", "colours": []}
    )
    lit, _ = variety.varied(picture, landmarks, None)
    cheeks = slice(50, 62), slice(27, 69)
    change = (lit.astype(int) - picture).mean(-1)[cheeks]
    assert change[:, brighter].mean() > 5 > -5 > change[:, darker].mean()


def test_warm_light_is_redder_than_cool(face, monkeypatch):
    picture, landmarks, _ = face
    redness = []
    for warmth in (-1, 1):
        drawing(
            monkeypatch,
            {"from": "front", "strength": 0.3, "warmth": warmth, "exposure": 1.0},
            {"kind": "own", "colours": []},
        )
        lit = variety.varied(picture, landmarks, None)[0][50:62, 35:60].astype(float)
        redness.append((lit[..., 0] / lit[..., 2]).mean())
    assert redness[0] < 0.95 * redness[1]


def test_choices_are_counted():
    def one(tone, **light):
        return {"tone": tone, "hair": "long", "hair_shade": "dark", "light": light, "backdrop": {"kind": "plain"}}

    counted = variety.tally(
        [
            one("dark", **{"from": "own"}),
            one("tan", **{"from": "left", "warmth": 0.5}),
            one("dark", **{"from": "left", "warmth": 0.0}),
        ]
    )
    assert counted["tone"] == {"dark": 2, "tan": 1} and counted["light"] == {"own": 1, "left": 2}
    assert counted["warmth"] == {"own": 1, "warm": 1, "neutral": 1} and counted["backdrop"] == {"plain": 3}
    with pytest.raises(TalkheadError, match="--vary"):
        variety.tally([])


def test_sex_and_age_of_donors_are_counted_where_they_are_told(tmp_path, monkeypatch, capsys):
    script = runpy.run_path(Path(__file__).parents[1] / "examples" / "count_variety.py")
    (tmp_path / "SOURCES.tsv").write_text(
        "file\tperson_id\tnote\na/1.jpg\tx:1\tneutral age=24 female white\na/2.jpg\tx:2\tyoung adult male\n"
        "a/3.jpg\tx:3\t\n"
    )
    told = {"tone": "dark", "hair": "long", "hair_shade": "dark", "light": {"from": "own"}, "backdrop": {"kind": "own"}}
    for number, donors in enumerate((["1", "2"], ["1", "3", "4"])):
        (tmp_path / f"{number}.json").write_text(
            json.dumps({"donors": donors, "people": [f"x:{donor}" for donor in donors], "varied": told})
        )
    monkeypatch.setattr(sys, "argv", ["count_variety.py", str(tmp_path), "--sources", str(tmp_path / "SOURCES.tsv")])
    script["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert {
        "| sex of donors | female | 2 | 40% |",
        "| sex of donors | male | 1 | 20% |",
        "| sex of donors | not told | 2 | 40% |",
        "| age of donors | 20 to 29 | 2 | 40% |",
        "| age of donors | not told | 3 | 60% |",
    } < set(lines)
    assert lines[-1] == "2 clips, 4 donors, 4 people; the donor used most is in 2 clips."
