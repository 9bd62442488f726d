"""The user study: counts worked by hand, intervals against scipy's, and the page in a real browser."""

import collections
import csv
import http.server
import json
import re
import threading
import time

import numpy as np
import pytest
import scipy.stats

import toys
from conftest import example
from talkhead import TalkheadError, files, video_files
from test_cli import run

study = example("study")


@pytest.fixture(scope="module")
def videos(tmp_path_factory, puppet):
    """Folders of videos: ours (a, b), theirs (a, b, c) and others (b), of one speech where the names agree."""
    folder = tmp_path_factory.mktemp("videos")
    for place, first in (
        ("ours/a", 0),
        ("ours/b", 1),
        ("theirs/a", 2),
        ("theirs/b", 3),
        ("theirs/c", 0),
        ("others/b", 1),
    ):
        path = folder / f"{place}.mp4"
        path.parent.mkdir(exist_ok=True)
        with video_files.read_frames(puppet / f"clips/{first:06}.mp4", limit=5) as reader:
            toys.write_frames(path, reader, lossless=None, sound=reader.sound)
    return folder


@pytest.fixture(scope="module")
def made(videos):
    """A study of three pairs and two checks: (its folder, its key, the record of it)."""
    folder = videos / "study"
    *copies, record = study.make(study.pairs([videos / name for name in ("ours", "theirs", "others")]), folder, seed=7)
    assert len(copies) == 5  # b of ours goes into two pairs
    return folder, files.read_json(videos / "study.key.json"), record


# The page -------------------------------------------------------------------------------------------------------------


def test_the_page_stands_alone_and_tells_nothing(made, videos):
    folder, key, record = made
    page = (folder / "index.html").read_text()
    assert record == {
        "page": str(folder / "index.html"),
        "key": str(videos / "study.key.json"),
        "pairs": 3,
        "tasks": 8,
        "bytes": len(page.encode()),
    }
    assert record["bytes"] < 200_000 and "/*STUDY*/" not in page
    assert not re.search(
        r"https?:|//[a-z]|@import|url\(", page.replace('href="data:,"', "")
    )  # nothing comes from elsewhere
    assert sorted(path.name for path in folder.rglob("*.*")) == sorted(
        ["index.html", *(f"{name}.mp4" for name in key["videos"])]
    )
    for word in ("ours", "theirs", "others"):
        assert word not in json.dumps(_inside(page)["pairs"]) and word not in " ".join(key["videos"])
    by_pair = collections.Counter(
        tuple(sorted(key["videos"][name]["method"] for name in pair)) for pair in key["pairs"].values()
    )
    assert by_pair == {("ours", "theirs"): 2, ("others", "ours"): 1}
    assert all(len({key["videos"][name]["name"] for name in pair}) == 1 for pair in key["pairs"].values())


def _inside(page):
    return json.loads(re.search(r"const study = (.*);\n", page).group(1))


def test_videos_of_the_study_are_what_browsers_play(made, videos):
    import av

    folder, key, _ = made
    name = next(name for name, about in key["videos"].items() if about == {"method": "theirs", "name": "a"})
    with av.open(str(folder / "videos" / f"{name}.mp4")) as container:
        assert [stream.codec_context.name for stream in container.streams] == [
            "h264",
            "aac",
        ] and container.streams.video[0].pix_fmt == "yuv420p"
    before, after = (
        np.stack(list(video_files.read_frames(path))).astype(int)
        for path in (videos / "theirs/a.mp4", folder / "videos" / f"{name}.mp4")
    )
    assert before.shape == after.shape and np.abs(before - after).mean() < 3


def test_the_same_study_again_writes_no_video_twice(made, videos):
    folder, key, record = made
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "videos").iterdir()}
    page = (folder / "index.html").read_bytes()
    assert (
        list(study.make(study.pairs([videos / name for name in ("ours", "theirs", "others")]), folder, seed=7))[-1]
        == record
    )
    assert {path: path.stat().st_mtime_ns for path in (folder / "videos").iterdir()} == stamps
    assert (folder / "index.html").read_bytes() == page


def test_no_text_ends_the_script(tmp_path, videos):
    pairs = study.pairs([videos / "ours", videos / "theirs"])
    title = "</script><script>alert(1)</script> & <!-- more"
    list(study.make(pairs, tmp_path / "s", title=title, questions=("sync",), checks=0))
    page = (tmp_path / "s/index.html").read_text()
    assert page.count("<script>") == page.count("</script>") == 1 and "alert(1)</" not in page.split("<body>")[1]
    assert _inside(page)["title"] == title and list(_inside(page)["questions"]) == ["sync"]


def test_what_cannot_be_asked(tmp_path, videos, monkeypatch):
    (tmp_path / "empty").mkdir()
    for folders, message in (
        ([videos / "ours"], "two or more folders"),
        ([videos / "ours", tmp_path / "empty"], "empty: has no video that is called like"),
        ([videos / "ours", tmp_path / "none"], "none: not a folder"),
        ([videos / "ours", videos / "ours"], "as many different names"),
    ):
        with pytest.raises(TalkheadError, match=message):
            study.pairs(folders)
    pairs = study.pairs([videos / "ours", videos / "theirs"])
    with pytest.raises(TalkheadError, match="wanted some of realism, sync, not taste"):
        list(study.make(pairs, tmp_path / "s", questions=("sync", "taste")))
    monkeypatch.setattr(study, "LONGEST", 1000)
    with pytest.raises(TalkheadError, match="bytes for 2 pairs, the most is 1000"):
        list(study.make(pairs, tmp_path / "s"))
    assert not (tmp_path / "s/index.html").exists()


# Answers --------------------------------------------------------------------------------------------------------------


def answer(key, participant, pair, question, outcome, ours_left=True, expected="", choice=None):
    """A row as the page writes it, of somebody who means `outcome`."""
    ours, others = sorted(key["pairs"][pair], key=lambda name: key["videos"][name]["method"] != "ours")
    left, right = (ours, others) if ours_left else (others, ours)
    said = {"ours": "left" if ours_left else "right", "others": "right" if ours_left else "left"}.get(outcome, outcome)
    return dict(
        zip(
            study.COLUMNS,
            (
                key["study"],
                participant,
                "1",
                pair,
                question,
                left,
                right,
                choice or said,
                expected,
                "9.0",
                "2026-01-01T00:00:00Z",
            ),
        )
    )


def pair_of(key, method):
    return next(
        pair for pair, names in key["pairs"].items() if any(key["videos"][name]["method"] == method for name in names)
    )


def test_a_tally_by_hand(made):
    _, key, _ = made
    theirs, others = pair_of(key, "theirs"), pair_of(key, "others")
    given = [
        answer(key, f"p{person}", theirs, "sync", outcome, ours_left=person % 2 == 0)
        for person, outcome in enumerate(["ours", "ours", "ours", "both", "others", "none", "ours", "others"])
    ]
    given += [
        answer(key, "p0", others, "realism", "none"),
        answer(key, "p0", others, "realism", "others", ours_left=False),
    ]  # another mind: the last counts
    other, sync, told = study.tally(given, key)
    assert (sync["question"], sync["ours"], sync["others"], sync["answers"], sync["participants"]) == (
        "sync",
        "ours",
        "theirs",
        8,
        8,
    )
    assert sync["counts"] == {"ours": 4, "both": 1, "none": 1, "others": 2} and sync["shares"] == {
        "ours": 0.5,
        "both": 0.125,
        "none": 0.125,
        "others": 0.25,
    }
    assert other["counts"] == {"ours": 0, "both": 0, "none": 0, "others": 1} and other["others"] == "others"
    assert told == {"participants": 8, "left_out": [], "answers": 9}


def test_who_fails_the_checks_does_not_count(made):
    _, key, _ = made
    pair = pair_of(key, "theirs")
    given = []
    for person, failed in (("careful", 0), ("hasty", 1), ("absent", 2)):
        given.append(answer(key, person, pair, "sync", "ours"))
        for check, expected in enumerate(("both", "none")):
            given.append(
                answer(key, person, pair, "check", "", expected=expected, choice="left" if check < failed else expected)
            )
    for failures, out in ((0, ["absent", "hasty"]), (1, ["absent"]), (2, [])):
        sync, told = study.tally(given, key, failures)
        assert told["left_out"] == out and told["participants"] == 3 and sync["answers"] == 3 - len(out)


@pytest.mark.parametrize("count, total, confidence", [(0, 5, 0.95), (3, 7, 0.9), (36, 80, 0.95), (80, 80, 0.99)])
def test_wilson_is_scipys(count, total, confidence):
    wanted = scipy.stats.binomtest(count, total).proportion_ci(confidence, method="wilson")
    assert study.wilson(count, total, confidence) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def write_answers(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, study.COLUMNS, lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)


def test_files_put_together_are_read(made, tmp_path):
    _, key, _ = made
    rows = [
        answer(key, 'Ann "A", 2', pair_of(key, "theirs"), "sync", "ours"),
        answer(key, "Bé", pair_of(key, "others"), "sync", "both"),
    ]
    for name, row in zip("ab", rows):
        write_answers(tmp_path / f"{name}.csv", [row])
    (tmp_path / "all.csv").write_bytes((tmp_path / "a.csv").read_bytes() + (tmp_path / "b.csv").read_bytes())
    assert study.read_answers(tmp_path / "all.csv") == rows


def test_tally_on_the_command_line(made, tmp_path, videos):
    _, key, _ = made
    rows = [
        answer(key, f"p{person}", pair, question, outcome)
        for pair in key["pairs"]
        for question in study.QUESTIONS
        for person, outcome in enumerate(["ours", "both", "none", "others", "ours"])
    ]
    write_answers(tmp_path / "a.csv", rows)
    line = ["study", "tally", tmp_path / "a.csv", "--key", videos / "study.key.json"]
    result = run(*line)
    told = [json.loads(text) for text in result.stdout.splitlines()]
    assert result.exit_code == 0 and [
        (record["question"], record["others"], record["answers"]) for record in told[:-1]
    ] == [("realism", "others", 5), ("realism", "theirs", 10), ("sync", "others", 5), ("sync", "theirs", 10)]
    pytest.importorskip("matplotlib", reason="the extra plot, matplotlib, is not installed")
    assert run(*line, "--plot", tmp_path / "shares.svg").exit_code == 0
    drawn = (tmp_path / "shares.svg").read_text()
    for text in (
        "visual quality",
        "audio-visual synchronisation",
        "40%",
        "20%",
        "ours against",
        "theirs (n = 10)",
        "95% interval of ours",
    ):
        assert text in drawn, text


def test_wrong_answers_are_refused_in_one_line(made, tmp_path, videos):
    _, key, _ = made
    row = answer(key, "ann", pair_of(key, "theirs"), "sync", "ours")
    files.write_json(tmp_path / "bad.key.json", {"study": "x"})
    (tmp_path / "text.csv").write_text("hello\n")
    for name, changes in (("study", {"study": "another"}), ("pair", {"pair": "p009"}), ("choice", {"choice": "maybe"})):
        write_answers(tmp_path / f"{name}.csv", [row | changes])
    (tmp_path / "long.csv").write_text(",".join(study.COLUMNS) + "\n" + "x" * 200_000 + "\n")
    for name, change in (
        ("nobody", {"videos": {name: {} for name in key["videos"]}}),
        ("single", {"pairs": {"p001": ["a"]}}),
        ("number", {"pairs": 3}),
    ):
        files.write_json(tmp_path / f"{name}.key.json", key | change)
        with pytest.raises(TalkheadError, match="key: not that of a study"):
            study.tally([row], files.read_json(tmp_path / f"{name}.key.json"))
    for name, key_file, message in (
        ("long", "study", "long.csv: holds no answers of a study"),
        ("study", "study", "of study another, the key is of"),
        ("pair", "study", "pair p009: other videos than the key's"),
        ("choice", "study", "choice.csv, row 2: not an answer"),
        ("text", "study", "text.csv: holds no answers of a study"),
        ("pair", "bad", "key: not that of a study"),
    ):
        folder = tmp_path if key_file == "bad" else videos
        result = run("study", "tally", tmp_path / f"{name}.csv", "--key", folder / f"{key_file}.key.json")
        assert (
            result.exit_code == 1
            and result.stdout == ""
            and len(result.stderr.splitlines()) == 1
            and message in result.stderr
        ), result.output


def test_make_on_the_command_line(tmp_path, videos):
    result = run(
        "study",
        "make",
        videos / "ours",
        videos / "theirs",
        "-o",
        tmp_path / "s",
        "--questions",
        "sync",
        "--checks",
        1,
        "--labels",
        "We,They",
    )
    record = json.loads(result.stdout)
    assert (
        result.exit_code == 0
        and (record["pairs"], record["tasks"]) == (2, 3)
        and files.read_json(record["key"])["ours"] == "We"
    )
    result = run("study", "make", videos / "ours", "-o", tmp_path / "t")
    assert result.exit_code == 1 and "two or more folders" in result.stderr and not (tmp_path / "t").exists()


# In a browser ---------------------------------------------------------------------------------------------------------


class Page:
    """A study in a browser, and what a participant does there."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)

    def __getitem__(self, name):
        return self.browser.find_element("id", name)

    def js(self, code):
        return self.browser.execute_script(code)

    def until(self, code):
        for _ in range(600):
            if found := self.js(f"return {code}"):
                return found
            time.sleep(0.05)
        raise AssertionError(f"it never came that {code}")

    def begin(self, participant):
        self["participant"].send_keys(participant + "\n")
        return self

    def watch(self):
        for side in ("left", "right"):
            self.until(f"document.getElementById('{side}').readyState >= 2")
            self.js(f"document.getElementById('{side}').play()")
            self.until(f"document.getElementById('{side}').ended")
        self.until("!document.querySelector('#choices input').disabled")

    def task(self):
        return self.js("return tasks[state.position]")

    def choose(self, choice):
        """By the keyboard alone."""
        from selenium.webdriver.common.keys import Keys

        if self.task()["question"] != "check":
            self.watch()
        before = self.js("return state.position")
        self.browser.switch_to.active_element.send_keys(str(study.CHOICES.index(choice) + 1))
        self.browser.switch_to.active_element.send_keys(Keys.ENTER)
        self.until(f"state.position === {before + 1}")

    def csv(self):
        return list(csv.DictReader(self.js("return csv()").splitlines()))


@pytest.fixture
def address(made, browser):
    """Where the study is, with nothing kept there from before."""
    place = (made[0] / "index.html").as_uri()
    browser.get(place)
    browser.execute_script("localStorage.clear()")
    return place


@pytest.mark.browser
def test_a_participant_answers_by_keyboard_and_their_answers_are_counted(address, browser, made, tmp_path):
    _, key, _ = made
    page = Page(browser, address).begin("ann")
    assert page["count"].text == "Task 1 of 8" and page.js("return document.activeElement.id") == "question"
    assert not page["next"].is_enabled() and page["hint"].text == "Watch both videos to the end first."
    page.browser.switch_to.active_element.send_keys("1")
    assert page.js("return answer.elements.choice.value") == ""  # not before both were seen
    wanted = []
    for turn in range(8):
        task = page.task()
        choice = task["expected"] or study.CHOICES[turn % 4]
        wanted.append((task["pair"], task["question"], task["left"], task["right"], choice))
        page.choose(choice)
    page.until("!document.getElementById('end').hidden")
    rows = page.csv()
    assert [(row["pair"], row["question"], row["left"], row["right"], row["choice"]) for row in rows] == wanted
    assert (
        tuple(rows[0]) == study.COLUMNS
        and {row["participant"] for row in rows} == {"ann"}
        and [row["order"] for row in rows] == list("12345678")
    )
    assert collections.Counter(row["question"] for row in rows) == {"realism": 3, "sync": 3, "check": 2} and all(
        float(row["seconds"]) > 0 for row in rows
    )
    # What is downloaded is what is counted.
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page["save"].click()
    for _ in range(200):
        if found := list(tmp_path.glob("*.csv")):
            break
        time.sleep(0.05)
    assert found[0].name == f"answers-{key['study']}-ann.csv" and study.read_answers(found[0]) == rows
    assert study.tally(rows, key)[-1] == {"participants": 1, "left_out": [], "answers": 6}


@pytest.mark.browser
def test_answers_are_kept_through_a_reload_and_can_be_changed(address, browser):
    page = Page(browser, address).begin("bob")
    page.choose(page.task()["expected"] or "both")
    first, second = page.csv(), page.task()
    page.browser.refresh()
    assert page["count"].text == "Task 2 of 8" and page.task() == second and page.csv() == first
    page["back"].click()
    assert page["count"].text == "Task 1 of 8" and page.js("return answer.elements.choice.value") == first[0]["choice"]
    page.browser.find_element("css selector", "input[value=none]").click()  # seen before: no need to watch again
    page["next"].click()
    assert [row["choice"] for row in page.csv()] == ["none"]


@pytest.mark.browser
def test_orders_and_sides_hang_on_seed_and_participant(address, browser):
    page = Page(browser, address)
    plan = "return plan('%s').map(task => [task.key, task.left])"
    ann, again, bob = (page.js(plan % name) for name in ("ann", "ann", "bob"))
    assert ann == again != bob and sorted(key for key, _ in ann) == sorted(key for key, _ in bob)
    many = [page.js(f"return plan('p{number}')") for number in range(60)]
    firsts = collections.Counter(tasks[0]["key"] for tasks in many)
    assert len(firsts) == 6 and not any(
        key.startswith("check") for key in firsts
    )  # each task may come first, but a check
    left = [
        task["left"] == page.js("return study.pairs.p001[0]")
        for tasks in many
        for task in tasks
        if task["pair"] == "p001"
    ]
    assert 0.35 < np.mean(left) < 0.65
    assert {task["expected"] for tasks in many for task in tasks} == {"", *study.CHOICES}


@pytest.mark.browser
def test_one_video_plays_at_a_time(address, browser):
    page = Page(browser, address).begin("eve")
    for video in ("left", "right"):
        page.until(f"document.getElementById('{video}').readyState >= 2")
    page.js("left.loop = right.loop = true; left.play()")
    page.until("!left.paused")
    page.js("right.play()")
    page.until("left.paused && !right.paused")


@pytest.mark.browser
def test_a_video_that_cannot_be_played_stops_nobody(tmp_path, videos, browser):
    list(study.make(study.pairs([videos / "ours", videos / "others"]), tmp_path / "s", questions=("sync",), checks=0))
    for video in (tmp_path / "s/videos").iterdir():
        video.write_bytes(b"broken")
    page = Page(browser, (tmp_path / "s/index.html").as_uri()).begin("ann")
    page.until("!document.querySelector('#choices input').disabled")
    assert "cannot be played" in page["hint"].text


@pytest.mark.browser
def test_answers_are_posted(tmp_path, videos, browser):
    received, status = [], [500]

    class Receiver(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "s"))

        def do_POST(self):
            received.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    list(
        study.make(
            study.pairs([videos / "ours", videos / "others"]),
            tmp_path / "s",
            questions=("sync",),
            checks=0,
            post="/answers",
        )
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = Page(browser, f"http://127.0.0.1:{server.server_port}/?participant=zoë")
        assert page["participant"].get_attribute("value") == "zoë"
        page["start"].submit()
        page.choose("both")
        page.until("sent.textContent.includes('could not be sent')")
        status[0] = 204
        page.browser.refresh()
        page.until("sent.textContent.includes('were sent')")
        page.browser.refresh()
        page.until("sent.textContent.includes('were sent')")
        server.shutdown()
    assert len(received) == 2 and received[0] == received[1]  # not sent again once it was
    (row,) = csv.DictReader(received[1].splitlines())
    assert row["participant"] == "zoë" and row["choice"] == "both"


@pytest.mark.parametrize("width, height", [(375, 700), (320, 568), (1280, 720)])
@pytest.mark.browser
def test_the_page_fits_its_window(address, browser, width, height):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    try:
        page = Page(browser, address).begin("ann")
        assert page.js("return document.documentElement.scrollWidth") <= width
        boxes = {
            name: page.js(f"return document.querySelector('{name}').getBoundingClientRect().toJSON()")
            for name in ("#left", "#right", "#choices label", "#next")
        }
        side_by_side = boxes["#left"]["right"] <= boxes["#right"]["left"]
        assert side_by_side == (width > 640) and (side_by_side or boxes["#left"]["bottom"] <= boxes["#right"]["top"])
        assert boxes["#choices label"]["height"] >= 44 and boxes["#next"]["height"] >= 44  # a finger's width
        if width > 640:
            assert boxes["#next"]["bottom"] <= height  # all of a task at once
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
def test_everything_on_the_page_has_a_name_and_enough_contrast(address, browser):
    page = Page(browser, address).begin("ann")
    roles = accessible(browser)
    deadline = time.monotonic() + 20
    while (
        sum(role == "Video" and name in ("Left video", "Right video") for role, name in roles) < 2
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)  # a video that is still loading is named "Unable to play media."
        roles = accessible(browser)
    for role, names in {"radio": ["Left 1", "Right 2", "Both 3", "None 4"], "button": ["Back", "Next"]}.items():
        assert [name.strip() for found, name in roles if found == role and name.strip() in names] == names
    assert ("Video", "Left video") in roles and ("Video", "Right video") in roles
    assert any(role == "group" and name == "Your answer" for role, name in roles) and any(
        role == "progressbar" and name for role, name in roles
    )
    assert page.js("return document.documentElement.lang") == "en"
    style = re.search(r":root \{(.*?)\}", page.browser.page_source).group(1)
    colours = dict(re.findall(r"--(\w+): (#\w+)", style))
    assert (
        contrast(colours["ink"], colours["paper"]) > 7
        and contrast(colours["accent"], colours["paper"]) > 4.5
        and contrast("#595959", "#f4f4f4") > 4.5
    )
    assert contrast(colours["line"], colours["paper"]) >= 3


def accessible(browser):
    """The (role, name) of everything on the page that a screen reader meets."""
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")]


def contrast(a, b):
    """The contrast of two colours, as WCAG 2 has it."""

    def light(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        values = np.array([int(digits[k : k + 2], 16) for k in (0, 2, 4)]) / 255
        return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)

    lights = sorted((light(a), light(b)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)
