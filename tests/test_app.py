"""The page to try: the same files as the command's, in a real browser, and nothing from or to elsewhere."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from conftest import example
from talkhead import TalkheadError, files, video_files
from test_cli import Stub, run

ROOT = Path(__file__).parents[1]
APP = ROOT / "examples" / "app.py"
# Runs the page; addresses that its process asks for are written to the file named first.
WATCHED = """
import runpy, sys
log = open(sys.argv.pop(1), "a", buffering=1)
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        log.write(f"{arguments[1] if event == 'socket.connect' else arguments[0]}\\n")
sys.addaudithook(watch)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def app():
    return example("app")


@pytest.fixture(scope="module")
def gradio():
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the extra app, Gradio, is not installed")


@pytest.fixture(scope="module")
def inputs(puppet, tmp_path_factory):
    """Paths of a face that is aligned and half a second of speech, under names of their own."""
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("face.png", "speech.wav"):
        (folder / f"my {name}").write_bytes((puppet / name).read_bytes())
    return str(folder / "my face.png"), str(folder / "my speech.wav")


@pytest.fixture(scope="module")
def served(gradio, tmp_path_factory):
    """A page in a process of its own: its address, process, temporary folder, and log of addresses asked for."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    temporary, log = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("log") / "addresses"
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, log, APP, "--port", str(port)],
        env=os.environ | {"TMPDIR": str(temporary)},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stderr.readline()
    assert line == f"talkhead: the page is at http://127.0.0.1:{port}/; Ctrl+C ends it\n"
    yield f"http://127.0.0.1:{port}/", process, temporary, log
    process.kill()
    process.wait()


class Page:
    """The page in a browser, and what a user does there."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        self.until("document.querySelectorAll('input[type=file]').length == 2")

    def until(self, code):
        for _ in range(600):
            if found := self.browser.execute_script(f"return {code}"):
                return found
            time.sleep(0.1)
        raise AssertionError(f"it never came that {code}")

    def upload(self, photo, speech):
        for path, kind, filled in ((photo, "image", "Remove Image"), (speech, "audio", "Clear")):
            self.browser.find_element("css selector", f"input[type=file][accept*={kind}]").send_keys(str(path))
            self.until(f"""document.querySelector('button[aria-label="{filled}"]')""")
        return self

    def generate(self):
        next(each for each in self.browser.find_elements("tag name", "button") if each.text == "Generate").click()
        return self

    def error(self):
        return self.until("document.querySelector('[data-testid=toast-text]')?.textContent.trim()")

    def downloads(self):
        """Contents by name."""
        links = self.browser.find_elements("css selector", "a[download]")
        return {link.get_attribute("download"): _read(link.get_attribute("href")) for link in links}


def _upload(address):
    """The path at which the server keeps a small file."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\nsound\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    (path,) = json.loads(_read(urllib.request.Request(f"{address}gradio_api/upload", body, headers)))
    return path


def _read(address):
    with urllib.request.urlopen(address) as answer:
        return answer.read()


# In a browser ---------------------------------------------------------------------------------------------------------


def test_a_photo_and_speech_become_a_video_that_plays(served, browser, inputs, tmp_path):
    page = Page(browser, served[0]).upload(*inputs).generate()
    page.until("document.querySelector('video')?.currentTime > 0")
    found = page.downloads()
    result = run("generate", "--identity", inputs[0], "--audio", inputs[1], *_outputs(tmp_path))
    assert result.exit_code == 0, result.output
    assert sorted(found) == ["talking.json", "talking.mp4", "talking.npy"]
    assert found == {name: (tmp_path / name).read_bytes() for name in found}
    with video_files.read_frames(tmp_path / "talking.mp4") as reader:
        assert files.SYNTHETIC_TYPE in reader.metadata.values()
    text = page.until("document.body.innerText")
    assert "13 frames" in text and "my face.png: its metadata says it is aligned" in text
    assert "Ask before you make a person say what they did not." in text


def _outputs(folder):
    return "-o", folder / "talking.mp4", "--latents-out", folder / "talking.npy"


def test_an_example_is_a_card_to_click(served, browser):
    page = Page(browser, served[0])
    browser.execute_script("document.querySelectorAll('tr.tr-body')[2].click()")  # without detail
    page.until("""document.querySelector('button[aria-label="Clear"]')""")
    assert page.until("!document.querySelector('input[type=checkbox]').checked")
    assert page.generate().until("document.querySelector('video')?.videoWidth") == 256


def test_errors_come_in_plain_words(served, browser, inputs, tmp_path):
    page = Page(browser, served[0]).generate()
    assert page.error() == "no photo: upload or record one, or take an example"
    (tmp_path / "text.png").write_text("no picture")
    page = Page(browser, served[0]).upload(tmp_path / "text.png", inputs[1]).generate()
    with pytest.raises(TalkheadError) as problem, video_files.read_frames(tmp_path / "text.png"):
        pass
    assert page.error() == str(problem.value).replace(f"{tmp_path}{os.sep}", "")


def test_a_file_that_is_too_large_is_refused(served, browser, app, tmp_path):
    with open(tmp_path / "large.png", "wb") as stream:
        stream.truncate(21_000_000)
    page = Page(browser, served[0])
    browser.find_element("css selector", "input[type=file][accept*=image]").send_keys(str(tmp_path / "large.png"))
    assert app.MAX_UPLOAD == "20mb" and "maximum allowed size" in page.error()


def test_nothing_is_asked_of_another_machine(served, browser):
    """Neither here nor in the tests above, whose requests the browser logged too."""
    Page(browser, served[0]).until("document.fonts.status == 'loaded'")
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = [each["params"]["request"]["url"] for each in asked if each["method"] == "Network.requestWillBeSent"]
    assert len(addresses) > 10
    assert not [url for url in addresses if not url.startswith((served[0], "data:", f"blob:{served[0]}"))]
    assert not [line for line in served[3].read_text().splitlines() if "127.0.0.1" not in line]


# Without one ----------------------------------------------------------------------------------------------------------


def test_only_this_machine_is_served_and_only_what_is_shown(served):
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", int(served[0].rsplit(":")[-1].strip("/"))), timeout=2)
    assert _read(f"{served[0]}gradio_api/file={APP.with_name('face.png')}")
    for path in (f"gradio_api/file={APP}", "gradio_api/file=/etc/passwd", "monitoring", "gradio_api/runs"):
        with pytest.raises(urllib.error.HTTPError, match="403|404"):
            _read(served[0] + path)


def test_a_port_in_use_is_one_line(served):
    port = served[0].rsplit(":")[-1].strip("/")
    done = subprocess.run([sys.executable, APP, "--port", port], cwd=ROOT, capture_output=True, text=True)
    line = f"talkhead: 127.0.0.1:{port}: cannot be served; pass another --port or --host\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_nothing_is_left_when_it_ends(served):
    address, process, temporary, _ = served
    assert temporary in Path(_upload(address)).parents
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    assert not [path for path in temporary.rglob("*") if path.is_file()]


def test_uploads_are_deleted_after_a_while(gradio, app, inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = app.page(keep=1 / 60)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, share=False)
    try:
        kept = _upload(address)
        assert Path(kept).read_bytes() == b"sound" and tmp_path in Path(kept).parents
        for _ in range(100):
            if not Path(kept).exists():
                break
            time.sleep(0.1)
        assert not Path(kept).exists()
    finally:
        page.close()
    assert app.page().delete_cache == (60, 1800)
    with pytest.raises(TalkheadError, match="a.wav: deleted by now; upload it again"):
        next(app.generate(inputs[0], kept, "second", app.FACE, True, False, 0, 60, print))


@pytest.mark.parametrize(
    "options, flags",
    [
        (("first", "Face", False, True, 0), ["--model", "first", "--no-detail", "--label"]),
        (("second", "Face", True, False, 2), ["--pti", "--set", "tuning_steps=2"]),
    ],
)
def test_options_are_those_of_the_command(app, inputs, tmp_path, options, flags):
    told = []
    for video, latents, notes in app.generate(*inputs, *options, 60, lambda *now: told.append(now)):
        found = [Path(path).read_bytes() for path in (video, *latents)]
        assert notes.startswith("13 frames")
    result = run("generate", "--identity", inputs[0], "--audio", inputs[1], *flags, *_outputs(tmp_path))
    assert result.exit_code == 0, result.output
    assert found == [(tmp_path / f"talking.{kind}").read_bytes() for kind in ("mp4", "npy", "json")]
    assert told[-1] == (13, 13, "frame") and ((2, 2, "step") in told) == ("--pti" in flags)
    assert not Path(video).exists()


def test_the_whole_picture_speaks(app, inputs, puppet, monkeypatch):
    monkeypatch.setattr(app, "detector", lambda device: Stub(np.load(puppet / "landmarks.npy")))
    photo = str(puppet / "photo.png")
    for video, _, _ in app.generate(photo, inputs[1], "second", app.WHOLE, True, False, 0, 60, print):
        with video_files.read_frames(video) as reader:
            assert reader.size == (120, 160) and sum(1 for _ in reader) == 13


def test_what_is_refused(app, inputs):
    for speech, picture, detail, seconds, message in (
        (None, app.FACE, True, 60, "no speech: upload or record one"),
        (inputs[1], app.WHOLE, False, 60, "Whole picture keeps the photo's detail; switch Detail on"),
        (inputs[1], app.FACE, True, 0.25, "my speech.wav: longer than 0.25 s; cut it"),
        (inputs[1], app.WHOLE, True, 60, "my face.png: aligned already"),
    ):
        with pytest.raises(TalkheadError, match=message):
            next(app.generate(inputs[0], speech, "second", picture, detail, False, 0, seconds, print))


def test_without_gradio_it_says_what_to_install():
    code = f"import sys, runpy; sys.modules['gradio'] = None; runpy.run_path({str(APP)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "talkhead: app: Gradio is not installed; pip install '.[app]'\n")
