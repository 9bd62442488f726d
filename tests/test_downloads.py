"""Downloads, against a local server that does what servers do: stall, cut short, change, lie, send a web page."""

import errno
import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from talkhead import downloads, files, landmarks
from talkhead.cli import cli
from talkhead.errors import TalkheadError

BODY = bytes(range(256)) * 400  # 102 400 bytes
HALF = len(BODY) // 2
CHANGED = BODY[::-1]
HASH = hashlib.sha256(BODY).hexdigest()
PAGE = b"<!DOCTYPE html><html><title>Virus scan warning</title></html>"


class Server(ThreadingHTTPServer):
    """Answers each request by the next plan, the last one for ever; keeps the requests' headers in `asked`.

    A plan is a dict: status, body (BODY), etag, date, ranges (True), send (bytes to send of what it promised), stall
    (seconds to wait after them), length (what to promise; None for nothing, "chunked"), location, kind (content type),
    weak (ignore If-Range).
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plans, self.asked, self.over = [{}], [], threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/weights.pt"

    def handle_error(self, *_):
        """The client hung up: that is what the test is about."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""

    def do_GET(self):
        server = self.server
        server.asked.append(self.headers)
        plan = server.plans.pop(0) if len(server.plans) > 1 else server.plans[0]
        body, status, tag = plan.get("body", BODY), plan.get("status", 200), plan.get("etag", '"one"')
        named = {tag, plan.get("date")}
        start = 0
        wanted = self.headers["Range"] if plan.get("ranges", True) and status == 200 else None
        if wanted and (plan.get("weak") or self.headers["If-Range"] in {None, *named}):
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            status = 206 if start < len(body) else 416
        self.send_response(status)
        if status in (206, 416):
            span = f"{start}-{len(body) - 1}" if status == 206 else "*"
            self.send_header("Content-Range", f"bytes {span}/{len(body)}")
        for header, value in {
            "ETag": tag,
            "Last-Modified": plan.get("date"),
            "Location": plan.get("location"),
            "Content-Type": plan.get("kind", "application/octet-stream"),
        }.items():
            if value:
                self.send_header(header, value)
        rest = body[start:] if status in (200, 206) else b""
        length = plan.get("length", len(rest))
        if length == "chunked":
            rest = (
                b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (rest[:HALF], rest[HALF:]) if part)
                + b"0\r\n\r\n"
            )
            self.protocol_version = "HTTP/1.1"
            self.send_header("Transfer-Encoding", "chunked")
        elif length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(rest[: plan.get("send")])
        self.wfile.flush()
        server.over.wait(plan.get("stall", 0))


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Every cache of the user is elsewhere, and no proxy stands before the local server."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("TORCH_HOME", "TALKHEAD_CACHE", "TALKHEAD_MEDIAPIPE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache"


@pytest.fixture
def toy(server, monkeypatch):
    """Public weights of known size and hash at the local server, and some of which nothing is known."""
    known = downloads.Weights("a toy", "weights.pt", (server.url,), "Apache-2.0", True, len(BODY), HASH)
    vague = downloads.Weights("a toy", "vague.pt", (server.url,), "Apache-2.0", True)
    monkeypatch.setattr(
        downloads, "REGISTRY", downloads.REGISTRY | {"toy": known, "vague": vague}
    )  # others' addresses are looked up in it
    return known


def fetch(name="toy", **options):
    return downloads.fetch(name, **({"timeout": 0.3, "retries": 2, "pause": 0.01} | options))


def left(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def ranges(server):
    return [headers["Range"] for headers in server.asked]


# The registry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", downloads.REGISTRY)
def test_the_registry_is_well_formed(name, caches):
    weights = downloads.REGISTRY[name]
    assert re.fullmatch(r"[a-z0-9.-]+", name) and not Path(name).suffix == ".pt"
    assert weights.purpose and weights.licence and weights.commercial in (True, False, None)
    assert weights.size is None or weights.size > 1e6
    assert weights.sha256 is None or re.fullmatch("[0-9a-f]{8,64}", weights.sha256)
    assert all(url.startswith("https://") or weights.sha256 for url in weights.urls), "plain HTTP needs a hash"
    assert weights.path.is_relative_to(caches)
    named = re.search(r"-([0-9a-f]{8,10})\.(pth|pth\.tar|zip)$", weights.file)  # as torch hub names files
    assert named is None or weights.sha256.startswith(named[1])


def test_files_lie_where_their_library_looks(caches, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(caches / "t"))
    hub = caches / "t" / "hub" / "checkpoints"
    from talkhead import losses, mobilenet

    assert downloads.REGISTRY["mobilenet-v2"].path == mobilenet.weights_path() == hub / Path(mobilenet.URL).name
    assert downloads.REGISTRY["vgg16"].path == losses.vgg_weights() == hub / Path(losses.VGG16_URL).name
    assert downloads.REGISTRY["resnet18"].path == hub / "resnet18-f37072fd.pth"
    monkeypatch.setenv("TALKHEAD_CACHE", str(caches / "own"))
    assert downloads.REGISTRY["e4e-ffhq"].path == caches / "own" / "e4e_ffhq_encode.pt"


def test_every_address_of_a_file_stands_in_the_registry_alone():
    package = Path(downloads.__file__).parent
    elsewhere = {
        path.name: re.findall(r"https://\S+\.(?:pth|task|pkl|pt|zip|tar)", path.read_text())
        for path in package.glob("*.py")
    }
    assert elsewhere.pop("downloads.py") and not any(elsewhere.values())
    assert (
        downloads.REGISTRY["face-landmarker"].urls[0] == landmarks.MEDIAPIPE_MODEL_URL
        and "/latest/" not in landmarks.MEDIAPIPE_MODEL_URL
    )


def test_the_registry_has_what_face_alignment_wants():
    pytest.importorskip("face_alignment")
    listed = {url for weights in downloads.REGISTRY.values() for url in weights.urls}
    assert set(landmarks._face_alignment_urls()) <= listed


def test_the_registry_has_what_torchvision_wants():
    import torchvision

    for name, weights in (
        ("vgg16", torchvision.models.VGG16_Weights),
        ("resnet18", torchvision.models.ResNet18_Weights),
        ("mobilenet-v2", torchvision.models.MobileNet_V2_Weights),
    ):
        entry = downloads.REGISTRY[name]
        assert entry.urls == (weights.IMAGENET1K_V1.url,)
        assert entry.size / 2**20 == pytest.approx(weights.IMAGENET1K_V1.meta["_file_size"], abs=0.001)


def test_face_generators_are_not_for_commerce():
    for name, weights in downloads.REGISTRY.items():
        if "ffhq" in name:
            assert weights.commercial is False, name


# A download -----------------------------------------------------------------------------------------------------------


def test_a_whole_file_arrives(server, toy, caches):
    seen = []
    record = fetch(on_progress=lambda *at: seen.append(at))
    assert record == {
        "file": str(caches / "talkhead" / "weights.pt"),
        "size": len(BODY),
        "sha256": HASH,
        "matches": "toy",
        "ok": True,
    }
    assert toy.path.read_bytes() == BODY and left(caches) == ["weights.pt"]
    assert seen[0] == (0, len(BODY)) and seen[-1] == (len(BODY), len(BODY)) and seen == sorted(seen)
    assert ranges(server) == [None] and server.asked[0]["User-Agent"].startswith("talkhead/")


def test_what_is_there_is_not_fetched_again(server, toy):
    fetch()
    fetch()
    assert len(server.asked) == 1
    toy.path.write_bytes(CHANGED)
    fetch()
    assert len(server.asked) == 2 and toy.path.read_bytes() == BODY


def test_of_unknown_weights_size_and_hash_are_computed(server, toy):
    record = fetch("vague")
    assert (record["size"], record["sha256"], record["ok"]) == (len(BODY), HASH, None)


def test_a_place_can_be_named(server, toy, tmp_path):
    assert Path(fetch(destination=tmp_path)["file"]) == tmp_path / "weights.pt"
    assert (tmp_path / "weights.pt").read_bytes() == BODY
    fetch(destination=str(tmp_path / "mine.pt"))
    assert (tmp_path / "mine.pt").read_bytes() == BODY


@pytest.mark.parametrize("length", ["chunked", None])
def test_a_server_that_does_not_say_the_size(server, toy, length):
    server.plans = [{"length": length}]
    assert fetch()["ok"]


def test_a_prefix_of_the_hash_is_enough(server, toy, monkeypatch):
    short = downloads.Weights("a toy", "short.pt", (server.url,), "MIT", True, sha256=HASH[:8])
    monkeypatch.setitem(downloads.REGISTRY, "short", short)
    assert fetch("short")["ok"]
    server.plans = [{"body": CHANGED}]
    short.path.unlink()
    with pytest.raises(TalkheadError, match="damaged in transfer, or another file"):
        fetch("short")


# Broken connections ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"send": HALF},
        {"send": HALF, "stall": 5},
        {"send": 0, "stall": 5},
        {"status": 500},
        {"status": 503},
        {"status": 429},
        {"length": "chunked", "send": HALF + 8},
    ],
)
def test_a_passing_fault_is_got_over(server, toy, caches, fault):
    server.plans = [fault, {}]
    assert fetch()["ok"] and left(caches) == ["weights.pt"]
    began = 0 if fault.get("status") or not fault["send"] else HALF
    assert ranges(server) == [None, f"bytes={began}-" if began else None]


def test_as_long_as_more_comes_it_goes_on(server, toy):
    server.plans = [{"send": 20_000}] * 5 + [{}]
    assert fetch(retries=1)["ok"]
    assert ranges(server) == [None] + [f"bytes={20_000 * times}-" for times in (1, 2, 3, 4, 5)]


def test_it_gives_up_and_the_next_call_goes_on(server, toy, caches):
    server.plans = [{"send": HALF}, {"send": 0, "stall": 5}]
    with pytest.raises(
        TalkheadError, match=f"the server stopped responding; {HALF} bytes are kept, the same command resumes"
    ) as caught:
        fetch()
    assert "\n" not in str(caught.value) and len(server.asked) == 3
    assert left(caches) == ["weights.pt.part", "weights.pt.part.json"]
    server.plans = [{}]
    seen = []
    assert fetch(on_progress=lambda *at: seen.append(at))["ok"] and left(caches) == ["weights.pt"]
    assert ranges(server)[-1] == f"bytes={HALF}-" and seen[0] == (HALF, len(BODY))


def test_pauses_double(server, toy, monkeypatch):
    pauses = []
    monkeypatch.setattr(downloads.time, "sleep", pauses.append)
    server.plans = [{"status": 503}]
    with pytest.raises(TalkheadError, match="HTTP 503 Service Unavailable; try again later"):
        fetch(retries=4, pause=0.5)
    assert pauses == [0.5, 1.0, 2.0, 4.0]


def test_a_part_that_was_whole_needs_no_server(server, toy, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(downloads.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            fetch()
    assert fetch()["ok"] and len(server.asked) == 1


@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_download_goes_on(server, tmp_path, sent, status):
    """The shell in a process of its own, stopped while the server stalls."""
    code = (
        "import sys; from talkhead import downloads; from talkhead.cli import cli; "
        f"downloads.REGISTRY['toy'] = downloads.Weights('a toy', 'weights.pt', ({server.url!r},), 'MIT', True, "
        f"{len(BODY)}, {HASH!r}); cli(['weights', 'fetch', 'toy', '-o', sys.argv[1]], prog_name='talkhead')"
    )
    place, part = tmp_path / "weights.pt", tmp_path / "weights.pt.part"
    shell = [sys.executable, "-c", code, str(place)]
    server.plans = [{"send": HALF, "stall": 60}, {}]
    first = subprocess.Popen(
        shell,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # a job in the background ignores it
    until = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size >= HALF // 2):
        assert time.monotonic() < until
        time.sleep(0.01)
    first.send_signal(sent)
    out, said = first.communicate(timeout=60)
    assert first.returncode == status and out == b"" and b"Traceback" not in said and not place.exists()
    there = part.stat().st_size
    second = subprocess.run(shell, capture_output=True, text=True, check=True)
    assert json.loads(second.stdout)["ok"] and place.read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={there}-"] and left(tmp_path) == ["weights.pt"]


# Servers that cannot go on, or have something else --------------------------------------------------------------------


def test_a_server_without_ranges_starts_again(server, toy):
    server.plans = [{"send": HALF, "ranges": False}, {"ranges": False}]
    assert fetch()["ok"] and toy.path.read_bytes() == BODY


def test_a_server_without_ranges_that_always_breaks_is_given_up(server, toy):
    server.plans = [{"send": HALF, "ranges": False}]
    with pytest.raises(TalkheadError, match=f"ended after {HALF} of {len(BODY)} bytes"):
        fetch()
    assert len(server.asked) == 3  # the first, and two more that got no further


@pytest.mark.parametrize("name", ["toy", "vague"])
@pytest.mark.parametrize(
    "now",
    [
        {"etag": '"two"'},  # If-Range makes the server send all of it
        {"etag": '"two"', "weak": True},  # it ignores If-Range: its ETag tells
        {"etag": None, "date": "Tue, 15 Nov 1994 12:45:26 GMT"},
    ],
)
def test_a_changed_file_is_fetched_from_its_beginning(server, toy, name, now):
    server.plans = [{"send": HALF, "body": CHANGED}, now]
    record = fetch(name)
    assert Path(record["file"]).read_bytes() == BODY
    assert server.asked[1]["If-Range"] == '"one"'


def test_a_changed_size_tells_where_nothing_else_does(server, toy):
    server.plans = [{"send": HALF, "etag": None, "body": CHANGED + b"more"}, {"etag": None}]
    assert Path(fetch("vague")["file"]).read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={HALF}-", None]


def test_a_date_names_a_version_too(server, toy):
    date = "Tue, 15 Nov 1994 12:45:26 GMT"
    server.plans = [{"send": HALF, "etag": 'W/"weak"', "date": date}, {"etag": 'W/"weak"', "date": date}]
    assert fetch()["ok"] and server.asked[1]["If-Range"] == date and ranges(server)[1] == f"bytes={HALF}-"


def test_a_part_of_nothing_known_is_not_continued(server, toy):
    """Neither a version nor a size: the bytes that are there may be anybody's."""
    server.plans = [{"send": HALF + 8, "length": "chunked", "etag": None}, {"etag": None, "length": None}]
    assert fetch()["ok"] and ranges(server) == [None, None]


def test_a_part_of_another_address_is_not_continued(server, toy):
    server.plans = [{"send": HALF}, {"status": 404}]
    with pytest.raises(TalkheadError):
        fetch()
    server.plans = [{}]
    assert fetch(url=server.url + "?mirror")["ok"] and ranges(server)[-1] is None


@pytest.mark.parametrize("notes", ["", "[]", "null", '{"address": 1}'])
def test_a_part_with_damaged_notes_is_not_continued(server, toy, notes):
    part = toy.path.with_name("weights.pt.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(CHANGED[:HALF])
    part.with_name("weights.pt.part.json").write_text(notes)
    assert fetch()["ok"] and ranges(server) == [None]


@pytest.mark.parametrize("name", ["toy", "vague"])
def test_a_size_that_was_promised_too_large(server, toy, name):
    """Nothing comes after the end, and then the server says so itself (416)."""
    server.plans = [{"length": len(BODY) + 5}, {}]
    if name == "toy":
        with pytest.raises(
            TalkheadError, match=f"offers {len(BODY) + 5} bytes, weights.pt has {len(BODY)}; another file"
        ):
            fetch()
    else:
        assert fetch(name)["sha256"] == HASH


@pytest.mark.parametrize("status", [204, 206])
def test_an_answer_that_nobody_asked_for(server, toy, caches, status):
    server.plans = [{"status": status}]
    with pytest.raises(TalkheadError, match=f"answers with HTTP {status}"):
        fetch()
    assert left(caches) == []


def test_a_size_that_was_promised_too_small(server, toy, caches):
    server.plans = [{"length": HALF}]
    with pytest.raises(TalkheadError, match=f"offers {HALF} bytes"):
        fetch()
    assert left(caches) == []


def test_an_empty_file_is_no_weights(server, toy, caches):
    server.plans = [{"body": b""}]
    with pytest.raises(TalkheadError, match="gives an empty file"):
        fetch("vague")
    assert left(caches) == []


def test_a_flipped_byte_is_found(server, toy, caches):
    server.plans = [{"body": BODY[:1000] + b"!" + BODY[1001:]}]
    with pytest.raises(
        TalkheadError, match=f"damaged in transfer, or another file: .*wanted {len(BODY)} of {HASH}"
    ) as caught:
        fetch()
    assert "\n" not in str(caught.value) and left(caches) == []
    server.plans = [{}]
    assert fetch()["ok"]


def test_a_flipped_byte_in_the_part_is_found(server, toy, caches):
    server.plans = [{"send": HALF}, {"status": 403}]
    with pytest.raises(TalkheadError):
        fetch()
    part = toy.path.with_name("weights.pt.part")
    part.write_bytes(b"!" + part.read_bytes()[1:])
    server.plans = [{}]
    with pytest.raises(TalkheadError, match="damaged"):
        fetch()
    assert left(caches) == []


@pytest.mark.parametrize(
    "plan",
    [
        {"body": PAGE, "kind": "text/html; charset=utf-8"},
        {"body": b"\n" + PAGE},
        {"body": PAGE, "kind": None},
        {"body": PAGE.replace(b"<!DOCTYPE html>", b""), "kind": "text/plain"},
    ],
)
@pytest.mark.parametrize("name", ["toy", "vague"])
def test_a_web_page_is_not_weights(server, toy, caches, plan, name):
    server.plans = [plan]
    with pytest.raises(
        TalkheadError, match=f"gives a web page, not the file; download it in a browser and save it as {caches}.*pt$"
    ):
        fetch(name)
    assert left(caches) == []


def test_a_web_page_does_not_cost_what_is_there(server, toy):
    """A host whose quota is used up answers 200 and a page, also to a range."""
    server.plans = [{"send": HALF}, {"body": PAGE, "kind": "text/html", "ranges": False}]
    with pytest.raises(TalkheadError, match="web page"):
        fetch()
    server.plans = [{}]
    assert fetch()["ok"] and ranges(server)[-1] == f"bytes={HALF}-"


# No way there ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status, reason", [(404, "Not Found"), (403, "Forbidden"), (410, "Gone")])
def test_a_lasting_error_is_said_at_once(server, toy, caches, status, reason):
    server.plans = [{"status": status}]
    with pytest.raises(TalkheadError, match=f"^toy: {server.url}: HTTP {status} {reason}; pass --url"):
        fetch()
    assert len(server.asked) == 1 and left(caches) == []


def test_redirects_are_followed(server, toy):
    server.plans = [
        {"status": 302, "location": "/there"},
        {"status": 307, "location": "/on"},
        {"send": HALF},
        {"status": 301, "location": "/x"},
        {},
    ]
    assert fetch()["ok"] and ranges(server)[-2:] == [f"bytes={HALF}-"] * 2


def test_a_redirect_in_a_circle_is_one_line(server, toy):
    server.plans = [{"status": 302, "location": "/weights.pt"}]
    with pytest.raises(TalkheadError, match="HTTP 302") as caught:
        fetch()
    assert "\n" not in str(caught.value)


def test_a_redirect_may_not_take_the_encryption_away():
    request = downloads.urllib.request.Request("https://a.example/x")
    with pytest.raises(TalkheadError, match="which is not encrypted"):
        downloads._Redirects().redirect_request(request, None, 302, "Found", {}, "http://a.example/x")
    assert (
        downloads._Redirects().redirect_request(request, None, 302, "Found", {}, "https://b.example/x").full_url
        == "https://b.example/x"
    )


def test_nobody_there_is_said_at_once(toy, caches, monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda _: pytest.fail("waited"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(TalkheadError, match="no connection .*refused"):
            fetch(url=f"http://127.0.0.1:{taken.getsockname()[1]}/x")

    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(TalkheadError, match="no connection .*Name or service not known") as caught:
        fetch(url="http://nobody.invalid/x")
    assert "\n" not in str(caught.value) and left(caches) == []


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "weights.pt", "ftp://a.example/x", "http://", "http://[", "http://a b/"]
)
def test_what_is_no_address(toy, url):
    with pytest.raises(TalkheadError, match="not an address|no host given"):
        fetch(url=url)


def test_the_next_mirror_is_asked(server, toy, monkeypatch):
    pair = downloads.Weights(
        "a toy", "pair.pt", (server.url + "?one", server.url + "?two"), "MIT", True, len(BODY), HASH
    )
    monkeypatch.setitem(downloads.REGISTRY, "pair", pair)
    for fault in ({"status": 404}, {"body": PAGE}, {"body": CHANGED}):
        server.plans = [fault, {}]
        assert fetch("pair")["ok"]
        pair.path.unlink()


@pytest.mark.parametrize(
    "page",
    [
        "https://drive.google.com/file/d/1cUv_reLE6k3604or78EranS7XzuVMWeO/view?usp=sharing",
        "https://drive.google.com/open?id=1cUv_reLE6k3604or78EranS7XzuVMWeO",
        "https://drive.google.com/uc?export=download&id=1cUv_reLE6k3604or78EranS7XzuVMWeO",
    ],
)
def test_a_page_of_google_drive_stands_for_its_file(page):
    direct = (
        "https://drive.usercontent.google.com/download?id=1cUv_reLE6k3604or78EranS7XzuVMWeO&export=download&confirm=t"
    )
    assert downloads._direct(page) == downloads._direct(direct) == direct


# The disk -------------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up(server, toy, caches, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads.os, "fsync", full)
    with pytest.raises(TalkheadError, match="weights.pt: the disk is full"):
        fetch()


def test_a_folder_that_is_not_there(server, toy, tmp_path):
    with pytest.raises(TalkheadError, match="no such file or folder"):
        fetch(destination=tmp_path / "none" / "x.pt")


def test_two_downloads_of_one_file_do_not_mix(server, toy):
    pytest.importorskip("fcntl")
    server.plans = [{"send": HALF, "stall": 0.2}, {}]
    other = threading.Thread(target=fetch, kwargs={"timeout": 5})
    other.start()
    while not server.asked:
        time.sleep(0.005)
    with pytest.raises(TalkheadError, match="another download is writing it"):
        fetch()
    other.join()
    assert toy.path.read_bytes() == BODY


def test_a_file_system_without_locks_will_do(server, toy, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    assert fetch()["ok"]


# Licences -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("commercial", [False, None])
def test_a_licence_must_be_accepted(server, toy, caches, monkeypatch, commercial):
    strict = downloads.Weights("a toy", "strict.pt", (server.url,), "CC BY-NC 4.0", commercial)
    monkeypatch.setitem(downloads.REGISTRY, "strict", strict)
    with pytest.raises(
        TalkheadError, match="^strict: its licence must be accepted first .CC BY-NC 4.0.; read it and pass --accept"
    ):
        fetch("strict")
    assert server.asked == [] and not caches.exists()
    assert fetch("strict", accept_licence=True)["sha256"] == HASH


# The shell ------------------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(cli, ["weights", *map(str, arguments)], prog_name="talkhead")


def outcomes(result):
    return [(record["matches"], record["ok"]) for record in map(json.loads, result.stdout.splitlines())]


def test_the_shell_fetches_and_verifies(server, toy, tmp_path):
    result = run("fetch", "toy")
    assert result.exit_code == 0 and result.stderr == "talkhead: toy: licence: Apache-2.0; commercial use is allowed\n"
    assert json.loads(result.stdout) == json.loads(run("verify", "toy").stdout)
    (tmp_path / "copy.pt").write_bytes(BODY)
    (tmp_path / "weights.pt").write_bytes(CHANGED)
    (tmp_path / "other.pt").write_bytes(CHANGED)
    (tmp_path / "vague.pt").write_bytes(CHANGED)
    result = run("verify", "toy", *(tmp_path / f"{name}.pt" for name in ("copy", "vague")))
    assert result.exit_code == 0 and outcomes(result) == [("toy", True), ("toy", True), ("vague", None)]
    result = run("verify", "toy", *(tmp_path / f"{name}.pt" for name in ("weights", "other")))
    assert result.exit_code == 1 and outcomes(result) == [("toy", True), ("toy", False), (None, False)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["fetch", "nonsense"], "nonsense: unknown weights; take one of stylegan2-ada-ffhq-1024, "),
        (
            ["fetch", "e4e-ffhq"],
            "e4e-ffhq: its licence must be accepted first (MIT code; holds NVIDIA's FFHQ generator",
        ),
        (["fetch", "vgg16", "--accept-licence", "--url", "vgg16.pth"], "vgg16.pth: not an address to download from"),
        (["fetch", "face-landmarker", "-o", "none/x.task"], "none/x.task: its folder does not exist"),
        (["verify", "vgg16"], "vgg16-397923af.pth: not found; run talkhead weights fetch vgg16"),
        (["verify", "none.pt"], "none.pt: no such file"),
    ],
)
def test_what_could_not_be_done_is_said_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    last = result.stderr.splitlines()[-1]
    assert result.exit_code == 1 and result.stdout == "" and last.startswith("talkhead: ") and message in last
    assert left(tmp_path) == []


def test_the_licence_is_said_before_it_is_refused():
    first, _ = run("fetch", "syncnet").stderr.splitlines()
    assert (
        first == "talkhead: syncnet: licence: MIT code; the weights' terms are not stated; commercial use is not stated"
    )


def test_hints_name_weights_that_there_are(caches):
    """Rooms above this one cannot ask it, so their messages repeat its names."""
    source = "".join(path.read_text() for path in Path(downloads.__file__).parent.glob("*.py"))
    named = set(re.findall(r"weights fetch ([a-z0-9.-]+)", source)) - {"name"}
    assert {"face-landmarker", "s3fd"} <= named <= set(downloads.REGISTRY)


def test_the_list_says_what_is_there(server, toy):
    def listed():
        return [record for record in map(json.loads, run("list").stdout.splitlines()) if record.get("name") == "toy"]

    (before,) = listed()
    assert before == {
        "name": "toy",
        "purpose": "a toy",
        "licence": "Apache-2.0",
        "commercial": True,
        "size": len(BODY),
        "sha256": HASH,
        "urls": [server.url],
        "present": False,
        "path": str(toy.path),
    }
    fetch()
    assert listed() == [before | {"present": True}]


def test_a_fetched_detector_is_found(server, shared_data):
    """The real file, from the local server.

    Its size and hash are the registry's, and the room that wants it finds it.
    """
    pytest.importorskip("mediapipe")
    server.plans = [
        {"body": (shared_data / "weights" / "mediapipe" / "face_landmarker_v2_with_blendshapes.task").read_bytes()}
    ]
    assert fetch("face-landmarker", url=server.url)["ok"]
    assert landmarks.detector().name == "mediapipe"
    assert files.cache_folder() == downloads.REGISTRY["face-landmarker"].path.parent
