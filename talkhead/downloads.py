"""Registry of public weights with their licences, and resumable, verified downloads.

A download grows as FILE.part beside its final place, with the state of the remote file in FILE.part.json, and resumes
after any interruption. It is renamed only when size and hash are right. Nothing is downloaded unless requested by name.
"""

import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from talkhead import __version__, files
from talkhead.errors import TalkheadError

BLOCK = 1 << 18  # bytes read at a time
MAX_PAUSE = 30.0  # seconds between two tries
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that are retried


# The registry ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """A public file of weights.

    purpose     use of the weights, one line
    file        file name on disk, as the library that uses it expects
    urls        addresses, the best first; a Google Drive page stands for its file
    licence     of the weights, as far as stated
    commercial  bool: commercial use is allowed; None if not stated
    size        bytes; None if unknown
    sha256      hexadecimal, complete or only the first digits; None if unknown
    hub         bool: stored in torch's hub cache, else in talkhead's cache
    """

    purpose: str
    file: str
    urls: tuple
    licence: str
    commercial: bool | None
    size: int | None = None
    sha256: str | None = None
    hub: bool = False

    @property
    def path(self) -> Path:
        return (files.hub_folder() if self.hub else files.cache_folder()) / self.file


_ADA = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/"
_NGC = "https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan2/versions/1/files/"
_FAN = "https://www.adrianbulat.com/downloads/python-fan/"
_DRIVE = "https://drive.google.com/file/d/{}/view"

_NVIDIA = "NVIDIA Source Code License, non-commercial; trained on FFHQ (CC BY-NC-SA 4.0)"
_ROSINALITY = "MIT code; trained on FFHQ (CC BY-NC-SA 4.0)"
_PSP = "MIT code; holds NVIDIA's FFHQ generator (non-commercial)"
_BULAT = "BSD-3-Clause by its author, who does not own the training photos"
_TORCHVISION = "BSD-3-Clause code; for the weights, torchvision states only that ImageNet's terms may apply"

# Sizes and hashes are those that several public projects pin, or that the file name contains; None if none was found.
REGISTRY = {
    "stylegan2-ada-ffhq-1024": Weights(
        "face generator, 1024 pixels (NVIDIA, the one that PTI tunes)",
        "ffhq.pkl",
        (_ADA + "ffhq.pkl",),
        _NVIDIA,
        False,
        381_624_121,
        "a205a346e86a9ddaae702e118097d014b7b8bd719491396a162cca438f2f524c",
    ),
    "stylegan2-ada-ffhq-256": Weights(
        "face generator, 256 pixels, half the channels (NVIDIA)",
        "ffhq-res256-mirror-paper256-noaug.pkl",
        (_ADA + "transfer-learning-source-nets/ffhq-res256-mirror-paper256-noaug.pkl",),
        _NVIDIA,
        False,
    ),
    "stylegan2-ffhq-256": Weights(
        "face generator, 256 pixels (NVIDIA)",
        "stylegan2-ffhq-256x256.pkl",
        (_NGC + "stylegan2-ffhq-256x256.pkl",),
        _NVIDIA,
        False,
    ),
    "stylegan2-ffhq-512": Weights(
        "face generator, 512 pixels (NVIDIA)",
        "stylegan2-ffhq-512x512.pkl",
        (_NGC + "stylegan2-ffhq-512x512.pkl",),
        _NVIDIA,
        False,
    ),
    "stylegan2-ffhq-1024": Weights(
        "face generator, 1024 pixels (NVIDIA)",
        "stylegan2-ffhq-1024x1024.pkl",
        (_NGC + "stylegan2-ffhq-1024x1024.pkl",),
        _NVIDIA,
        False,
    ),
    "rosinality-ffhq-256": Weights(
        "face generator, 256 pixels (rosinality)",
        "550000.pt",
        (_DRIVE.format("1PQutd-JboOCOZqmd95XWxWrO8gGEvRcO"),),
        _ROSINALITY,
        False,
    ),
    "rosinality-ffhq-1024": Weights(
        "face generator, 1024 pixels (NVIDIA's, converted by rosinality's script)",
        "stylegan2-ffhq-config-f.pt",
        (_DRIVE.format("1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT"),),
        _NVIDIA,
        False,
    ),
    "psp-ffhq": Weights(
        "image encoder to W+ (pSp), with its generator",
        "psp_ffhq_encode.pt",
        (_DRIVE.format("1bMTNWkh5LArlaWSc_wa8VKyq2V42T2z0"),),
        _PSP,
        False,
        1_201_489_451,
        "f786ac5cf18fcdbc5c57c9f3f12cbedca69381fbdf5694dd132294e3133749d7",
    ),
    "e4e-ffhq": Weights(
        "image encoder to W+ near W (e4e), with its generator",
        "e4e_ffhq_encode.pt",
        (_DRIVE.format("1cUv_reLE6k3604or78EranS7XzuVMWeO"),),
        _PSP,
        False,
        1_201_649_680,
        "2ace1d9a8c05c10a399bcd500b8dda118f759ff1aac89dbdab7435f2136a0999",
    ),
    "restyle-psp-ffhq": Weights(
        "iterative image encoder (ReStyle over pSp), with its generator",
        "restyle_psp_ffhq_encode.pt",
        (_DRIVE.format("1sw6I2lRIB0MpuJkpc8F5BJiSZrc0hjfE"),),
        _PSP,
        False,
    ),
    "restyle-e4e-ffhq": Weights(
        "iterative image encoder (ReStyle over e4e), with its generator",
        "restyle_e4e_ffhq_encode.pt",
        (_DRIVE.format("1e2oXVeBPXMQoUoC_4TNwAWpOPpSEhE_e"),),
        _PSP,
        False,
    ),
    "ir-se50": Weights(
        "face recognition: the identity loss, and pSp's initial trunk",
        "model_ir_se50.pth",
        (
            "https://github.com/xinntao/facexlib/releases/download/v0.1.0/recognition_arcface_ir_se50.pth",
            _DRIVE.format("1KW7bjndL3QG3sxBbZxreGHigcCCpsDgn"),
        ),
        "MIT code; trained on InsightFace's data, for non-commercial research only",
        False,
        175_367_323,
        "a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28",
    ),
    "face-landmarker": Weights(
        "face landmarks, by MediaPipe",
        "face_landmarker.task",
        (
            "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
        ),
        "Apache-2.0",
        True,
        3_758_596,
        "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
    ),
    "s3fd": Weights(
        "face detector, by face-alignment",
        "s3fd-619a316812.pth",
        (_FAN + "s3fd-619a316812.pth",),
        _BULAT,
        None,
        89_843_225,
        "619a31681264d3f7f7fc7a16a42cbbe8b23f31a256f75a366e5a1bcd59b33543",
        hub=True,
    ),
    "fan": Weights(
        "68 landmarks, by face-alignment 1.5 or later",
        "2DFAN4-11f355bf06.pth.tar",
        (_FAN + "2DFAN4-11f355bf06.pth.tar",),
        _BULAT,
        None,
        95_641_761,
        "11f355bf0693120222f5955ce3f9dc8fb5763ebb30a47d7906e509490d32e4aa",
        hub=True,
    ),
    "fan-1.4": Weights(
        "68 landmarks, by face-alignment before 1.5",
        "2DFAN4-cd938726ad.zip",
        (_FAN + "2DFAN4-cd938726ad.zip",),
        _BULAT,
        None,
        96_316_515,
        "cd938726adb1f15f361263cce2db9cb820c42585fa8796ec72ce19107f369a46",
        hub=True,
    ),
    "vgg16": Weights(
        "perceptual loss (LPIPS)",
        "vgg16-397923af.pth",
        ("https://download.pytorch.org/models/vgg16-397923af.pth",),
        _TORCHVISION,
        None,
        553_433_881,
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        hub=True,
    ),
    "mobilenet-v2": Weights(
        "small perceptual loss (--perceptual mobilenet), and features for FID",
        "mobilenet_v2-b0353104.pth",
        ("https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",),
        _TORCHVISION,
        None,
        14_212_972,
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        hub=True,
    ),
    "resnet18": Weights(
        "first blocks of the ResNet encoder (train-encoder --set imagenet=FILE)",
        "resnet18-f37072fd.pth",
        ("https://download.pytorch.org/models/resnet18-f37072fd.pth",),
        _TORCHVISION,
        None,
        46_830_571,
        "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
        hub=True,
    ),
    "inception-fid": Weights(
        "features for FID",
        "pt_inception-2015-12-05-6726825d.pth",
        (
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        ),
        "Apache-2.0",
        True,
        95_628_359,
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        hub=True,
    ),
    "deepspeech": Weights(
        "speech recogniser DeepSpeech 0.1.0, with its language model (an archive, not unpacked)",
        "deepspeech-0.1.0-models.tar.gz",
        ("https://github.com/mozilla/DeepSpeech/releases/download/v0.1.0/deepspeech-0.1.0-models.tar.gz",),
        "MPL-2.0",
        True,
    ),
    "deepspeech-graph": Weights(
        "speech recogniser DeepSpeech 0.1.0, the network alone (an archive, not unpacked)",
        "deepspeech-0_1_0-b90017e8.pb.zip",
        ("https://github.com/osmr/deepspeech_features/releases/download/v0.0.1/deepspeech-0_1_0-b90017e8.pb.zip",),
        "MPL-2.0 (Mozilla's network, copied by another project)",
        True,
    ),
    "syncnet": Weights(
        "lip-sync metrics LSE-C and LSE-D",
        "syncnet_v2.model",
        ("http://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model",),
        "MIT code; the weights' terms are not stated",
        None,
        54_573_114,
        "961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
    ),
}


def find(name: str) -> Weights:
    """Look up Weights by name; an unknown name is a TalkheadError that lists the names."""
    if name not in REGISTRY:
        raise TalkheadError(f"{name}: unknown weights; take one of {', '.join(REGISTRY)}")
    return REGISTRY[name]


def describe(name: str) -> dict:
    """Registry entry of a name, with the local path and `present`, as a plain dict."""
    weights = find(name)
    entry = {key: getattr(weights, key) for key in ("purpose", "licence", "commercial", "size", "sha256")}
    place = {"urls": list(weights.urls), "present": weights.path.is_file(), "path": str(weights.path)}
    return {"name": name} | entry | place


def terms(name: str) -> str:
    """Licence terms in one line, to be read before a download."""
    weights = find(name)
    use = {True: "allowed", False: "not allowed", None: "not stated"}[weights.commercial]
    return f"{name}: licence: {weights.licence}; commercial use is {use}"


# Verification ---------------------------------------------------------------------------------------------------------


def verify(place: str | os.PathLike) -> dict:
    """Verify size and hash of a file against the registry.

    place    name in the registry, or path
    returns  dict: file, size, sha256, matches (name in the registry, or None) and ok: True if size and hash are right
             as far as they are known, False if not or if the file is unknown, None if neither size nor hash is known
    raises   TalkheadError if the file cannot be read
    """
    name = str(place) if str(place) in REGISTRY else None
    path = Path(place) if name is None else REGISTRY[name].path
    if name and not path.is_file():
        raise TalkheadError(f"{path}: not found; run talkhead weights fetch {name}")
    size, sha256 = _measure(path)
    if name is None:
        name = _recognise(path.name, size, sha256)
    return _verified(path, name, size, sha256)


def _verified(path, name, size, sha256):
    ok = _agrees(REGISTRY[name], size, sha256) if name else False
    return {"file": str(path), "size": size, "sha256": sha256, "matches": name, "ok": ok}


def _recognise(file, size, sha256):
    """Name in the registry of a file by its hash, or else by its file name."""
    by_hash = [name for name, weights in REGISTRY.items() if weights.sha256 and _agrees(weights, size, sha256)]
    by_name = [name for name, weights in REGISTRY.items() if weights.file == file]
    return next(iter(by_hash + by_name), None)


def _agrees(weights, size, sha256):
    if weights.size is None and weights.sha256 is None:
        return None
    return weights.size in (None, size) and sha256.startswith(weights.sha256 or "")


def _measure(path):
    """Size and sha256 of a file."""
    digest, size = hashlib.sha256(), 0
    with files.os_errors_in_one_line(path), open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


# Downloading ----------------------------------------------------------------------------------------------------------


class _Broken(Exception):
    """Transient failure of a connection, worth a retry; `offline` if the server cannot be reached at all."""

    def __init__(self, reason, offline=False):
        super().__init__(reason)
        self.offline = offline


def fetch(
    name: str,
    destination: str | os.PathLike | None = None,
    accept_licence: bool = False,
    url: str | None = None,
    on_progress: Callable[[int, int | None], None] = lambda have, total: None,
    timeout: float = 30.0,
    retries: int = 5,
    pause: float = 1.0,
) -> dict:
    """Download public weights, completely or not at all.

    name            name in the registry
    destination     file or folder; default: the place where the library that uses the file expects it
    accept_licence  the licence was read and accepted; required unless it allows commercial use
    url             download from this address instead; size and hash remain the registry's
    on_progress     called with the bytes downloaded so far, and the total or None
    timeout         seconds without data after which a connection counts as broken
    retries         number of consecutive retries without progress
    pause           seconds before the first retry; doubled for each further one
    returns         dict of `verify`; an existing, correct file is left alone
    raises          TalkheadError if the download fails. FILE.part then remains, and the next call resumes it, unless
                    the remote file has changed or the hash was wrong
    """
    weights = find(name)
    if not weights.commercial and not accept_licence:
        raise TalkheadError(
            f"{name}: its licence must be accepted first ({weights.licence}); read it and pass --accept-licence"
        )
    if url is not None and not url.startswith(("http://", "https://")):
        raise TalkheadError(f"{url}: not an address to download from; pass one that begins with https://")
    if destination is None:
        destination = weights.path
        with files.os_errors_in_one_line(destination.parent):
            destination.parent.mkdir(parents=True, exist_ok=True)
    destination = Path(destination)
    if destination.is_dir():
        destination = destination / weights.file
    measured = _measure(destination) if destination.is_file() else None
    if measured is None or _agrees(weights, *measured) is False:
        part = destination.with_name(destination.name + ".part")
        addresses = (url,) if url else weights.urls
        with files.os_errors_in_one_line(destination):
            for address in addresses:
                try:
                    measured = _download(weights, address, part, on_progress, timeout, retries, pause)
                    break
                except TalkheadError as refused:
                    if address == addresses[-1]:
                        raise TalkheadError(f"{name}: {refused}") from refused
            os.replace(part, destination)
            _forget(part)
    return _verified(destination, name, *measured)  # type: ignore[misc]  # every address failing is an error


def _download(weights, address, part, on_progress, timeout, retries, pause):
    """Download `part` to the end, with retries, and verify it; returns its size and sha256."""
    began = furthest = _had(part, address)
    tries = 0
    while True:
        try:
            _pull(weights, address, part, on_progress, timeout)
            break
        except _Broken as broken:
            have = _had(part, address)
            if have > furthest:
                furthest, tries = have, 0
            if tries == retries or broken.offline and furthest == began:
                kept = f"{have} bytes are kept, the same command resumes" if have else "try again later, or pass --url"
                raise TalkheadError(f"{address}: {broken}; {kept}") from broken
            time.sleep(min(pause * 2**tries, MAX_PAUSE))
            tries += 1
    size, sha256 = _measure(part)
    if _agrees(weights, size, sha256) is False:
        _forget(part)
        raise TalkheadError(
            f"{address}: damaged in transfer, or another file: {size} bytes of sha256 {sha256}, wanted {weights.size} "
            f"of {weights.sha256}; try again, or pass --url"
        )
    return size, sha256


def _pull(weights, address, part, on_progress, timeout):
    """Append the bytes that the server sends over one connection to `part`.

    raises  _Broken if the file is still incomplete; TalkheadError if it is another file, or the address does not exist
    """
    have, notes = _had(part, address), _recall(part, address)
    if have and have == notes["total"]:
        return
    with _ask(address, have, notes, timeout) as response:
        start, total = _span(response, have, notes, part)
        if start == total and start:
            return
        block = _read(response, total, start)
        is_page = start == 0 and re.match(rb"\s*<(!doctype\s+)?html", block, re.I)
        if is_page or response.headers.get_content_type() == "text/html":
            raise TalkheadError(
                f"{address}: gives a web page, not the file; download it in a browser and save it as "
                f"{part.with_suffix('')}"
            )
        if None not in (total, weights.size) and total != weights.size:
            raise TalkheadError(
                f"{address}: offers {total} bytes, {weights.file} has {weights.size}; another file: pass --url"
            )
        if not start and not block:
            raise TalkheadError(f"{address}: gives an empty file; pass --url with another source")
        on_progress(start, total)
        with open(part, "ab") as stream:
            files.lock(stream, f"{part}: another download is writing it; wait for that one")
            if start == 0:
                stream.truncate(0)
                about = {"address": address, "total": total, "validator": _validator(response)}
                _notes(part).write_text(json.dumps(about), encoding="utf-8")
            while block:
                stream.write(block)
                start += len(block)
                on_progress(start, total)
                block = _read(response, total, start)
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and start < total:
        raise _Broken(f"ended after {start} of {total} bytes")


def _direct(address):
    """Direct address of a file; for a Google Drive page, its download address without the virus-scan page."""
    drive = re.match(r"https://(?:drive|docs)\.google\.com/.*?(?:/d/|[?&]id=)([\w-]+)", address)
    if drive:
        return f"https://drive.usercontent.google.com/download?id={drive[1]}&export=download&confirm=t"
    return address


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, response, code, message, headers, url):
        if request.type == "https" and not url.startswith("https:"):
            raise TalkheadError(f"{request.full_url}: redirects to {url}, which is not encrypted; pass --url")
        return super().redirect_request(request, response, code, message, headers, url)


def _ask(address, have, notes, timeout):
    """Request the file from byte `have` on, and return the server's response."""
    headers = {"User-Agent": f"talkhead/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if notes["validator"]:
            headers["If-Range"] = notes["validator"]
    try:
        request = urllib.request.Request(_direct(address), headers=headers)
        return urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            return error
        reason = f"HTTP {error.code} {str(error.reason).splitlines()[0] if error.reason else ''}".strip()
        error.close()
        if error.code in TRANSIENT:
            raise _Broken(reason) from error
        raise TalkheadError(f"{address}: {reason}; pass --url with another source") from error
    except urllib.error.URLError as error:
        cause = error.reason
        offline = isinstance(cause, (socket.gaierror, ConnectionRefusedError, ssl.SSLCertVerificationError))
        raise _Broken(f"no connection ({getattr(cause, 'strerror', None) or cause})", offline) from error
    except (http.client.InvalidURL, ValueError) as error:
        raise TalkheadError(f"{address}: not an address ({error})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_why(error)) from error


def _span(response, have, notes, part):
    """Offset in the file at which a response begins, and the file's size, None if unknown.

    raises  _Broken, and drops `part`, if the remote file is no longer the one that `part` began
    """
    if response.status == 200:
        return 0, response.length
    if not have or response.status not in (206, 416):
        raise _Broken(f"answers with HTTP {response.status} instead of a file")
    given = re.match(r"bytes (\d+|\*)[-\d]*/(\d+|\*)$", response.headers.get("Content-Range", ""))
    start, total = (int(number) if number.isdecimal() else None for number in given.groups()) if given else (None, None)
    if response.status == 416 and total == have:
        return have, have
    if start == have and _compatible(total, notes["total"]) and _compatible(_validator(response), notes["validator"]):
        return start, total or notes["total"]
    _forget(part)
    raise _Broken("the remote file has changed")


def _compatible(one, other):
    return None in (one, other) or one == other


def _validator(response):
    """Validator of a remote file's version for If-Range: a strong ETag, else Last-Modified; None if neither is sent."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _read(response, total, start):
    """Read the next available bytes; empty at the end."""
    try:
        return response.read1(BLOCK if total is None else min(BLOCK, total - start))
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_why(error)) from error


def _why(error):
    return "the server stopped responding" if isinstance(error, TimeoutError) else str(error) or type(error).__name__


# Notes on the remote file, in PART.json; without them a part cannot be matched to a remote file.


def _notes(part):
    return part.with_name(part.name + ".json")


def _recall(part, address):
    """Notes of a part that this address can resume, else None."""
    try:
        notes = json.loads(_notes(part).read_text(encoding="utf-8"))
        fits = part.exists() and notes["address"] == address and (notes["validator"] or notes["total"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return notes if fits else None


def _had(part, address):
    """Size in bytes of a part that this address can resume, else 0."""
    return part.stat().st_size if _recall(part, address) else 0


def _forget(part):
    for path in (part, _notes(part)):
        path.unlink(missing_ok=True)
