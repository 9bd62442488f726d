"""Pictures: what is drawn, read back from the figures' own lines and texts, against numbers worked by hand."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import toys

pytest.importorskip("matplotlib", reason="the extra plot, matplotlib, is not installed")

from conftest import example  # noqa: E402
from talkhead import TalkheadError, checkpoints, directions, files, image_files, landmarks, latents, plots, video_files
from talkhead.images import to_frames  # noqa: E402
from test_cli import run  # noqa: E402


def walk(frames=6, layers=4, seed=0, at=0.0):
    """A path through W+ that goes on and on."""
    return (at + np.random.default_rng(seed).normal(size=(frames, layers, 512)).cumsum(0)).astype(np.float32)


def drawn(figure, path):
    """Write a figure and read it back, uint8 (H, W, 3).

    Nothing that it shows touches its edge, where it would be cut.
    """
    plots.save(figure, path)
    picture = image_files.read_image(path)
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge == 255).all()
    return picture


def texts(figure):
    from matplotlib.text import Text

    return {text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()}


# Paths ----------------------------------------------------------------------------------------------------------------


def test_a_plane_is_what_the_singular_values_say():
    a, b = np.random.default_rng(1).normal(size=(2, 5, 3, 512)).astype(np.float32)
    (seen_a, seen_b), share = plots.in_plane(a, b)
    points = np.concatenate([a, b]).reshape(10, -1).astype(np.float64)
    left, values, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    assert share == pytest.approx((values**2 / (values**2).sum())[:2], rel=1e-4)
    assert np.abs(np.concatenate([seen_a, seen_b])) == pytest.approx(np.abs(left * values)[:, :2], abs=1e-3)


@pytest.mark.parametrize("plane", plots.PLANES)
def test_trajectories(tmp_path, plane):
    paths = {"near": walk(), "far": walk(9, seed=1, at=3.0), "third": walk(4, seed=2), "fourth": walk(5, seed=3)}
    figure = plots.trajectories(paths, plane=plane)
    drawn(figure, tmp_path / "paths.png")
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == list(paths)
    assert {"first frame", "last frame", "time in the clip, seconds"} <= texts(figure)
    for axes, path in zip(panels, paths.values()):
        (dots,) = axes.collections
        points, time = np.asarray(dots.get_offsets()), dots.get_array()
        assert np.asarray(time) == pytest.approx(np.arange(len(path)) / 25) and dots.get_clim() == (0, 8 / 25)
        assert (
            len(axes.lines) == (3 if plane == "own" else 7) + (axes is panels[0]) * 2
        )  # the ends, twice where their names are told
        # No distance in a plane is longer than the one it shows.
        true = np.linalg.norm((path[0] - path[-1]).ravel())
        assert np.linalg.norm(points[0] - points[-1]) <= true * 1.001
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        assert (
            (points >= (left, low)).all()
            and (points <= (right, high)).all()
            and right - left == pytest.approx(high - low)
        )
    if plane != "shared":
        assert all(abs(np.asarray(axes.collections[0].get_offsets()).mean(0)).max() < 1e-3 for axes in panels)


def test_paths_that_do_not_fit_together():
    with pytest.raises(TalkheadError, match="latents of 4 and 6 layers"):
        plots.trajectories({"a": walk(), "b": walk(layers=6)})
    with pytest.raises(TalkheadError, match="choose from shared, centred, own"):
        plots.trajectories({"a": walk()}, plane="flat")


# Logs -----------------------------------------------------------------------------------------------------------------


def inversion(frames=((0, 3), (1, 2), (2, 2))):
    """A log in which frame f is off by f from a loss that halves with every step."""
    return [
        {"frame": frame, "step": step, "steps": steps, "loss": 2.0**-step + frame}
        for frame, steps in frames
        for step in range(steps)
    ]


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def test_losses_of_an_inversion_are_means_over_frames_of_as_many_steps(tmp_path):
    figure = plots.losses({"chain": inversion(), "other": [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]})
    drawn(figure, tmp_path / "losses.png")
    (axes,) = figure.axes
    assert lines(axes) == {
        "chain, frame 1 of 3 steps": [[0, 1], [1, 0.5], [2, 0.25]],
        "chain, 2 frames of 2 steps": [[0, 2.5], [1, 2.0]],
        "other": [[1, 1.0], [2, 0.5]],
    }
    (band,) = axes.collections
    assert band.get_paths()[0].get_extents().bounds == pytest.approx(
        (0, 1.5, 1, 1.5)
    )  # from 1.5 at the lowest to 3 at the highest
    assert set(lines(axes)) <= texts(figure)


def test_curves_that_go_far_have_a_logarithmic_axis_with_plain_numbers(tmp_path):
    records = [{"step": step, "far": 0.8**step, "near": 1 + 0.1 * step, "signed": step - 5.0} for step in range(20)]
    figure = plots.losses({"run": records}, keys=("far", "near", "signed"))
    drawn(figure, tmp_path / "losses.png")
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear"]
    ticks = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert "0.1" in ticks and not any("10^" in tick for tick in ticks)


def test_a_running_mean_by_hand():
    records = [{"step": step, "loss": value} for step, value in enumerate([3.0, 0.0, 6.0, 9.0])]
    axes = plots.losses({"run": records}, smooth=3).axes[0]
    raw, smooth = (line.get_ydata().tolist() for line in axes.lines)
    assert raw == [3, 0, 6, 9] and smooth == pytest.approx([1.5, 3, 5, 7.5])


def test_no_such_number():
    with pytest.raises(TalkheadError, match="nonsense: no log has this key; choose from loss"):
        plots.losses({"run": inversion()}, keys=("nonsense",))


def test_dashboard(tmp_path):
    records = [{"step": 0, "clips": 3}] + [
        {"step": step, "seconds": 900.0 * step, "images_per_second": 20, "loss": 1 / step, "name": "x", "done": True}
        | ({"val_loss": 2 / step, "val_error": 1.0} if step % 2 == 0 else {})
        for step in range(1, 9)
    ]
    figure = plots.dashboard(records, "my run")
    drawn(figure, tmp_path / "dashboard.png")
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == [
        "loss",
        "val_error",
        "images_per_second",
    ]
    assert {line.get_label(): len(line.get_xdata()) for line in figure.axes[0].lines} == {"training": 8, "held out": 4}
    assert "my run: step 8, 2.0 h" in texts(figure)
    with pytest.raises(TalkheadError, match="hold nothing but steps"):
        plots.dashboard([{"step": 1}])


def test_logs_are_read(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2}\r\n', encoding="utf-16")  # as the > of PowerShell writes
    assert plots.read_log(path) == [{"step": 1, "loss": 2}]
    path.write_text('{"step": 1, "loss": 2}\n\n{"step": 2, "lo')  # a run that was killed as it wrote
    assert plots.read_log(path) == [{"step": 1, "loss": 2}]
    for text, message in (
        ("", "holds no records"),
        ('{"loss": 1}\n', "line 1: not a JSON object with a step"),
        ("x\n{}\n", "line 1: not a JSON object"),
        ('{"step": 1}\n{"step": {}}\n', "line 2: not a JSON object"),
        ('{"step": 1e400}\n', "line 1: not a JSON object"),
        ('{"step": 1, "steps": []}\n', "line 1: not a JSON object"),
        (f'{{"step": 1, "loss": {10**20}}}\n', "line 1: not a JSON object"),
    ):
        path.write_text(text)
        with pytest.raises(TalkheadError, match=message):
            plots.read_log(path)


# Sheets of frames -----------------------------------------------------------------------------------------------------


def test_a_sheet_has_each_picture_in_its_place(tmp_path):
    greys = np.arange(40, 100, 10, dtype=np.uint8).reshape(2, 3)
    rows = {
        label: [np.full((20, 20, 3), grey, np.uint8) for grey in line]
        for label, line in zip(("real", "a very long name indeed of a clip"), greys)
    }
    figure = plots.sheet(rows, ["p", "b", "m"])
    picture = drawn(figure, tmp_path / "sheet.png")
    assert {"p", "b", "m", "real", "a very long name indeed of a\nclip"} <= texts(figure)
    places = {grey: np.argwhere((picture == grey).all(-1)).mean(0) for grey in greys.ravel()}
    assert all(sum((picture == grey).all(-1).ravel()) > 100**2 for grey in greys.ravel())
    for row in greys:
        assert [places[grey][1] for grey in row] == sorted(places[grey][1] for grey in row) and np.ptp(
            [places[grey][0] for grey in row]
        ) < 1
    assert places[70][0] > places[40][0] + 100


def test_strips_name_the_sound_of_the_moment():
    phonemes = [(0.0, 0.1, "SIL"), (0.1, 0.2, "B"), (0.2, 0.4, "AA1")]
    black = [np.zeros((8, 8, 3), np.uint8)] * 4
    heads = [axes.get_title() for axes in plots.strip({"clip": black}, [0.02, 0.1, 0.3, 0.5], phonemes).axes]
    assert heads == ["–\n0.02 s", "B\n0.10 s", "AA1\n0.30 s", "–\n0.50 s"]
    assert plots.strip({"clip": black}, [0.02, 0.1, 0.3, 0.5]).axes[0].get_title() == "0.02 s"


def test_moments_are_the_middles_of_frames():
    assert plots.moments(25, 3) == pytest.approx([0.02, 0.5, 0.98])
    assert plots.moments(100, 3, start=1.0, seconds=0.08) == pytest.approx([1.02, 1.06])  # no frame twice
    with pytest.raises(TalkheadError, match="the clip ends at 1 s"):
        plots.moments(25, 3, start=2.0)


def test_frames_at_moments(puppet):
    every = list(video_files.read_frames(puppet / "clip.mp4"))  # 8 frames
    seen = plots.frames_at(video_files.read_frames(puppet / "clip.mp4"), [0.02, 0.1, 0.22, 0.38])
    assert all(
        np.array_equal(frame, every[index]) for frame, index in zip(seen, (0, 2, 5, 7))
    )  # the last stays for two frames
    with pytest.raises(TalkheadError, match="clip.mp4: ends before 0.50 s"):
        plots.frames_at(video_files.read_frames(puppet / "clip.mp4"), [0.5])


@pytest.fixture(scope="module")
def generator(toy_weights):
    return checkpoints.load_generator(toy_weights / "generator.pt")


def test_ways_end_at_their_ends(generator):
    ends = walk(2, generator.num_ws)
    rows = plots.interpolation(generator, ends, columns=5)
    assert list(rows) == ["W+, lerp", "W+, slerp"]
    with torch.no_grad():
        wanted = to_frames(generator.synthesis(torch.from_numpy(np.stack([ends[0], ends.mean(0), ends[1]]))))
    for pictures in rows.values():
        assert np.abs(pictures[[0, 4]].astype(int) - wanted[[0, 2]]).max() <= 1
    assert np.abs(rows["W+, lerp"][2].astype(int) - wanted[1]).max() <= 1
    with pytest.raises(
        TalkheadError, match="its mapping network has hardly been trained .*; pass latents of two faces"
    ):
        plots.interpolation(generator, columns=3)
    trained = copy.deepcopy(generator)
    trained.w_avg.copy_(latents.mean_latent(trained))
    random = plots.interpolation(trained, columns=3, seed=4)
    assert list(random) == ["Z, lerp", "Z, slerp", "W, lerp", "W, slerp"]
    assert all(np.abs(row[[0, 2]].astype(int) - random["Z, lerp"][[0, 2]]).max() <= 1 for row in random.values())


def test_random_faces_are_not_of_the_networks_weights(generator, z_among_weights):
    generator.w_avg.copy_(latents.mean_latent(generator))
    plots.interpolation(generator, columns=3, seed=0)
    assert z_among_weights(generator) == 0


def test_components_move_the_mean_along_singular_vectors(generator):
    codes = walk(7, generator.num_ws)
    rows, heads = plots.directions(generator, codes.mean(0), directions.find(generator, codes, 2), 5, reach=2.0)
    assert heads == ["−2.0 σ", "−1.0 σ", "mean", "+1.0 σ", "+2.0 σ"]
    flat = codes.reshape(7, -1).astype(np.float64)
    mean = flat.mean(0)
    _, values, vectors = np.linalg.svd(flat - mean, full_matrices=False)
    assert list(rows) == [f"component {k + 1}, {values[k] ** 2 / (values**2).sum():.1%}" for k in range(2)]
    for k, pictures in enumerate(rows.values()):
        moved = np.stack([mean + move * values[k] / 6**0.5 * vectors[k] for move in (-2, 0, 2)]).reshape(3, -1, 512)
        with torch.no_grad():
            wanted = to_frames(generator.synthesis(torch.from_numpy(moved).float())).astype(int)
        found = pictures[[0, 2, 4]].astype(int)  # the sign of a component is free
        assert min(np.abs(found - wanted).max(), np.abs(found[::-1] - wanted).max()) <= 1


# Mouths ---------------------------------------------------------------------------------------------------------------


def test_mouths(tmp_path):
    opening = np.array([0.1, 0.2, np.nan, 0.0, 0.1])
    phonemes = [(0.0, 0.04, "SIL"), (0.04, 0.08, "B"), (0.08, 0.2, "AA1")]
    figure = plots.mouths(
        {"real": opening, "made": opening / 2}, np.sin(np.arange(3200) / 9).astype(np.float32), phonemes
    )
    drawn(figure, tmp_path / "mouths.png")
    curves, sound = figure.axes
    assert [line.get_label() for line in curves.lines] == ["real", "made"]
    np.testing.assert_array_equal(curves.lines[0].get_ydata(), opening)
    assert curves.lines[0].get_xdata() == pytest.approx([0.02, 0.06, 0.1, 0.14, 0.18])
    (shade,) = curves.patches
    assert shade.get_extents().transformed(curves.transData.inverted()).intervalx == pytest.approx([0.04, 0.08])
    assert {"B", "AA1", "/p b m/"} <= texts(figure) and "SIL" not in texts(figure)
    assert sound.get_xlim() == curves.get_xlim() == (0, 0.2)
    assert len(plots.mouths({"real": opening}).axes) == 1


# The user study -------------------------------------------------------------------------------------------------------


def test_preferences(tmp_path):
    def record(question, others, counts):
        shares = {outcome: count / sum(counts) for outcome, count in zip(example("study").OUTCOMES, counts)}
        return {
            "question": question,
            "ours": "ours",
            "others": others,
            "answers": sum(counts),
            "shares": shares,
            "confidence": 0.9,
            "intervals": {outcome: [max(share - 0.1, 0), share + 0.1] for outcome, share in shares.items()},
        }

    figure = example("study").preferences(
        [
            record("realism", "theirs", (5, 2, 1, 2)),
            record("realism", "others", (9, 0, 0, 1)),
            record("sync", "theirs", (0, 99, 1, 0)),
        ]
    )
    drawn(figure, tmp_path / "shares.png")
    bars = [(round(bar.get_x(), 6), round(bar.get_width(), 6)) for bar in figure.axes[0].patches]
    assert bars == [(0, 0.5), (0.5, 0.2), (0.7, 0.1), (0.8, 0.2), (0, 0.9), (0.9, 0), (0.9, 0), (0.9, 0.1)]
    assert [line.get_xdata() for line in figure.axes[0].lines] == [pytest.approx([0.4, 0.6]), pytest.approx([0.8, 1.0])]
    assert {"50%", "20%", "99%", "90% interval of ours", "ours against\nothers (n = 10)"} <= texts(
        figure
    ) and "1%" not in texts(figure)  # no room for it
    with pytest.raises(TalkheadError, match="no answers are left to draw"):
        example("study").preferences([])


# Files and commands ---------------------------------------------------------------------------------------------------


def test_the_same_figure_is_the_same_file(tmp_path):
    for kind, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        for name in "ab":
            plots.save(plots.losses({"run": inversion()}), tmp_path / (name + kind))
        data = (tmp_path / ("a" + kind)).read_bytes()
        assert data.startswith(start) and data == (tmp_path / ("b" + kind)).read_bytes()
    with pytest.raises(TalkheadError, match="end the name in .png, .svg, .pdf"):
        plots.save(plots.losses({"run": inversion()}), tmp_path / "a.gif")
    assert not (tmp_path / "a.gif").exists()


def test_files_are_called_by_their_names():
    assert plots.names(["a/one.npy", "b/two.npy"]) == ["one", "two"]
    assert plots.names(["a/one.npy", "b/one.mp4"]) == ["a/one", "b/one"]


@pytest.fixture
def material(tmp_path, puppet, toy_weights, monkeypatch):
    monkeypatch.setattr(checkpoints, "WEIGHTS", toy_weights)
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        files.write_latents(f"{name}.npy", walk(layers=6, seed=ord(name)))
    files.write_latents("tall.npy", walk(layers=10))
    weights = files.load_weights(toy_weights / "generator.pt")
    weights["model"]["w_avg"] = latents.mean_latent(checkpoints.load_generator(toy_weights / "generator.pt"))
    files.save_weights("trained.pt", weights)
    files.write_latents("two.npy", walk(2, layers=6))
    files.write_latents("foreign.npy", walk(layers=6), {"generator": "somebody"})
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, inversion())))
    (tmp_path / "clip.align").write_text("0 2500 bin\n2500 5000 blue\n")
    (tmp_path / "said.json").write_text('{"phonemes": [[0, 0.1, "SIL"], [0.1, 0.2, "B"]]}')
    np.save("points.npy", np.load(puppet / "landmarks.npy")[None].repeat(5, 0))
    (tmp_path / "clip.mp4").write_bytes((puppet / "clip.mp4").read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "trajectory a.npy b.npy -o x.png --plane own",
        "losses log.jsonl -o x.svg --smooth 2 --labels mine",
        "dashboard log.jsonl -o x.pdf",
        "strip clip.mp4 clip.mp4 --labels real,made --phonemes said.json --columns 3 -o x.png",
        "interpolate a.npy b.npy -o x.png --columns 3",
        "interpolate -o x.png --columns 3 --generator trained.pt",
        "components a.npy b.npy -o x.png --components 2 --columns 3",
        "components a.npy --method sefa --layers 1-2 --directions-out found -o x.png --components 2 --columns 3",
        "mouth points.npy --audio clip.mp4 --phonemes said.json -o x.svg",
        "mouth points.npy --audio clip.mp4 --phonemes clip.align -o x.svg",
        "strip clip.mp4 --phonemes . -o x.png --columns 3",
    ],
)
def test_each_command_draws(material, line):
    result = run("plot", *line.split())
    assert result.exit_code == 0 and result.stdout == "" and result.stderr == "", result.output
    (made,) = material.glob("x.*")
    if made.suffix == ".png":
        with Image.open(made) as picture:
            assert min(picture.size) > 100 and picture.convert("L").getextrema()[0] < 100
    else:
        assert made.stat().st_size > 3000


@pytest.mark.parametrize(
    "line, marked",
    [
        ("interpolate a.npy b.npy --columns 2", True),
        ("components a.npy --components 1 --columns 2", True),
        ("strip clip.mp4 made.mkv --columns 2", True),
        ("strip clip.mp4 --columns 2", False),
    ],
)
@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_pictures_of_generated_faces_are_marked(material, line, marked, kind):
    toys.write_frames("made.mkv", video_files.read_frames("clip.mp4"), lossless=None, synthetic=True)
    result = run("plot", *line.split(), "-o", f"x.{kind}")
    assert result.exit_code == 0, result.output
    assert (files.SYNTHETIC_TYPE.encode() in (material / f"x.{kind}").read_bytes()) == marked
    if kind == "png":
        with Image.open("x.png") as picture:
            assert (picture.text.get("digital_source_type") == files.SYNTHETIC_TYPE) == marked


def test_mouths_of_clips_are_detected(material, puppet, monkeypatch):
    class Detector(landmarks.Detector):
        name = "stub"

        def _find(self, image):
            return [np.load(puppet / "landmarks.npy")]

    monkeypatch.setattr(landmarks, "detector", lambda *_: Detector())
    assert run("plot", "mouth", "clip.mp4", "-o", "x.svg").exit_code == 0
    assert re.search(r"<text[^>]*>clip</text>", (material / "x.svg").read_text())


@pytest.mark.parametrize(
    "line, status, message",
    [
        ("trajectory a.npy -o x.gif", 2, "end the name in .png, .svg or .pdf"),
        ("trajectory a.npy -o nowhere/x.png", 1, "nowhere/x.png: its folder does not exist"),
        ("trajectory a.npy b.npy --labels one -o x.png", 1, "labels: 2 files need as many different ones"),
        ("trajectory a.npy tall.npy -o x.png", 1, "latents of 6 and 10 layers"),
        ("losses a.npy -o x.png", 1, "a.npy, line 1: not a JSON object with a step"),
        ("losses log.jsonl --keys nonsense -o x.png", 1, "nonsense: no log has this key"),
        ("strip clip.mp4 --start 9 -o x.png", 1, "the clip ends at 0.32 s"),
        ("strip clip.mp4 none.mp4 -o x.png", 1, "none.mp4: no such file"),
        ("mouth a.npy -o x.png", 1, "a.npy: holds float32 (6, 6, 512), wanted landmarks"),
        ("interpolate -o x.png", 1, "random z give no faces; pass latents of two faces to interpolate"),
        ("interpolate a.npy -o x.png", 2, "pass two files of latents"),
        ("interpolate a.npy tall.npy -o x.png", 1, "tall.npy: latents of 10 layers, this generator has 6"),
        ("components foreign.npy -o x.png", 1, "foreign.npy: latents of generator somebody"),
        (
            "components a.npy --components 6 -o x.png",
            1,
            "6 latents allow 1 to 5; lower --components, or give more clips or frames",
        ),
        ("components a.npy --layers 2-7 -o x.png", 1, "layers 2-7: this generator has 0-5"),
        ("trajectory two.npy -o x.png", 1, "latents of 2 frames: a plane takes three; draw longer paths"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(material, line, status, message):
    result = run("plot", *line.split())
    assert result.exit_code == status and message in result.stderr.splitlines()[-1] and result.stdout == "", (
        result.output
    )
    assert not list(material.glob("x.*"))


def test_without_matplotlib(material, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    result = run("plot", "losses", "log.jsonl", "-o", "x.png")
    assert (
        result.exit_code == 1
        and result.stderr == "talkhead: matplotlib is not installed; pip install 'talkhead[plot]'\n"
    )
    assert run("plot", "losses", "--help").exit_code == 0
    with pytest.raises(TalkheadError, match="matplotlib is not installed"):
        plots.losses({"run": inversion()})
