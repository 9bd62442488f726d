"""Sets of clips: what a record holds, what is resumed, what is replayed, and networks of the real files' layout but toy
size."""

import json
import os
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import talkhead
import toys
from puppets import puppet
from talkhead import evaluation, fid, files, metrics, video_files
from talkhead.encoders import FaceRecognition
from talkhead.errors import TalkheadError
from talkhead.protocol import Enlarged, Protocol, check, read_protocol, replay

ROOT = Path(__file__).parents[1]


class Pointing:
    """A detector that reads how far the mouth is open from the top left pixel, and sees no face if that is black."""

    name, weights = "pointing", ()

    def __call__(self, image):
        if not image[0, 0].any():
            return []
        points = np.zeros((68, 2), np.float32)
        points[36:42, 0], points[42:48, 0], points[65:68, 1] = 5, 15, image[0, 0, 0] / 10
        points[48:54, 0] = 12
        return [points]


@pytest.fixture
def pointing(monkeypatch):
    monkeypatch.setattr(talkhead.landmarks, "detector", lambda *arguments: Pointing())


def write(path, frames, sound=None, **options):
    path.parent.mkdir(exist_ok=True)
    return str(toys.write_frames(path, frames, sound=sound, **options))


def frames(count=10, seed=0, size=32):
    return (
        np.random.default_rng(seed)
        .integers(1, 256, (count, size // 8, size // 8, 3))
        .astype(np.uint8)
        .repeat(8, 1)
        .repeat(8, 2)
    )


def noisy(clip, seed=0):
    return np.clip(clip + np.random.default_rng(seed).normal(0, 9, clip.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def sets(tmp_path):
    """real/ and fake/ with three clips of one name each, and one of them that cannot be read."""
    for index, name in enumerate(("a", "b", "c")):
        clip = frames(6 + index, index)
        write(tmp_path / "real" / f"{name}.mp4", clip)
        write(tmp_path / "fake" / f"{name}.mkv", noisy(clip))
    (tmp_path / "real" / "torn.mp4").write_text("no film")
    (tmp_path / "fake" / "torn.mp4").write_text("no film")
    return tmp_path


def paired(sets):
    return evaluation.match([sets / "real", sets / "fake"])[0]


# One pair -------------------------------------------------------------------------------------------------------------


def test_a_record_is_what_compare_says_and_how_it_came(tmp_path):
    clip = frames()
    real, fake = write(tmp_path / "r.mp4", clip), write(tmp_path / "f.mp4", noisy(clip))
    record = Protocol(lmd=False)(real, fake)
    json.dumps(record, allow_nan=False)
    report = metrics.compare(clip, noisy(clip))
    assert {name: record[name] for name in report} == {name: pytest.approx(value) for name, value in report.items()}
    assert (record["real"], record["fake"]) == (real, fake)
    assert record["clips"]["fake"] == {"codec": "h264", "fps": 25.0, "size": [32, 32], "aligned": False}
    protocol = record["protocol"]
    assert protocol["settings"]["fps"] == 25 and protocol["settings"]["lmd"] is False and protocol["weights"] == {}
    assert protocol["versions"]["talkhead"] == talkhead.__version__ and protocol["versions"]["numpy"] == np.__version__
    assert {"rate", "length", "size", "crop", "ssim"} <= set(protocol["rules"])


def test_lengths_rates_and_sizes(tmp_path):
    clip = frames(12)
    real, fast = write(tmp_path / "r.mp4", clip), write(tmp_path / "f.mp4", clip.repeat(2, 0), fps=50)
    record = Protocol(lmd=False)(real, fast)
    assert (
        record["frames"] == 12
        and record["identical"] == 12
        and record["psnr"] is None
        and record["clips"]["fake"]["fps"] == 50
    )
    small = write(tmp_path / "s.mp4", clip[:9, ::2, ::2])
    with pytest.raises(TalkheadError, match="32x32, the fake one 16x16"):
        Protocol(lmd=False)(real, small)
    record = Protocol(lmd=False, size=16)(real, small)
    assert record["size"] == [16, 16] and (record["frames"], record["real_frames"], record["fake_frames"]) == (9, 12, 9)
    wide = write(tmp_path / "w.mp4", np.zeros((2, 16, 32, 3), np.uint8))
    with pytest.raises(TalkheadError, match="w.mp4: 32x16, and only square frames are resized"):
        Protocol(lmd=False, size=16)(wide, wide)


def test_one_frame_is_enough(tmp_path, pointing):
    real, fake = (write(tmp_path / f"{name}.png", frames(1, seed)) for seed, name in enumerate("rf"))
    record = Protocol()(real, fake)
    assert record["frames"] == 1 and record["opening_lag"] is None and record["velocity_error"] is None
    json.dumps(record, allow_nan=False)


def test_known_landmarks_are_found_by_name_and_follow_the_size(tmp_path, pointing):
    clip = np.full((3, 32, 32, 3), 40, np.uint8)
    path = write(tmp_path / "000001.mp4", clip)
    points = np.stack([Pointing()(frame)[0] for frame in clip])
    points[..., 0] += 6
    files.write_array(tmp_path / "000001.landmarks.npy", points)
    record = Protocol(landmarks=tmp_path)(path, path)
    assert record["lmd"] == pytest.approx(6) and record["protocol"]["settings"]["known_landmarks"]
    files.write_array(tmp_path / "half.npy", (np.stack([Pointing()(clip[0])[0]] * 3) + 0.5) * 2 - 0.5)
    assert Protocol(landmarks=tmp_path / "half.npy", size=16)(path, path)["lmd"] == pytest.approx(0, abs=1e-5)
    files.write_array(tmp_path / "bad.npy", points[:, :20])
    with pytest.raises(TalkheadError, match="landmarks of both clips by one detector; leave landmarks out"):
        Protocol(landmarks=tmp_path, phonemes=tmp_path)
    with pytest.raises(TalkheadError, match=r"bad.npy: holds .*wanted landmarks \(frames, 68, 2\)"):
        Protocol(landmarks=tmp_path / "bad.npy")(path, path)
    known = np.load(tmp_path / "half.npy").astype(np.float32)
    for value, message in (
        (np.nan, "frame 1: landmarks are NaN"),
        (np.inf, "frame 1: landmarks outside of any image"),
        (1e30, "frame 1: landmarks outside"),
    ):
        known[1, 5] = value
        np.save(tmp_path / "wrong.npy", known)
        with pytest.raises(TalkheadError, match=message):
            Protocol(landmarks=tmp_path / "wrong.npy", size=16)(path, path)


def test_an_enlarged_detector_gives_points_of_the_frame():
    class Corner:
        name, weights = "corner", ()

        def __call__(self, image):
            return [np.argwhere(image[..., 0] > 200)[[0, -1], ::-1].astype(np.float32)]

    image = np.zeros((16, 16, 3), np.uint8)
    image[4:8, 6:12] = 255
    assert np.allclose(Enlarged(Corner(), 4)(image)[0].mean(0), Corner()(image)[0].mean(0), atol=0.2)


class Knowing:
    """A detector that has been told where the face is in each frame."""

    name, weights = "knowing", ()

    def __init__(self):
        self.known = {}

    def __call__(self, image):
        return [self.known[image.tobytes()]]

    def perform(self, opening):
        """A puppet whose mouth opens so: its frames."""
        track = np.stack([opening, 0 * opening, 0.6 * opening], 1).astype(np.float32)
        performance = list(puppet.perform(puppet.drawn(seed=3, size=64), track, size=64, seed=0))
        self.known |= {frame.tobytes(): points for frame, points in performance}
        return np.stack([frame for frame, _ in performance])


@pytest.fixture(scope="module")
def speaking():
    """A puppet's clip, one of the same whose lips are held open, when they should be shut, and a detector that knows
    both."""
    detector, time = Knowing(), np.arange(60)
    opening, shut = 0.13 + 0.04 * np.sin(time / 2.5) + 0.02 * np.sin(time / 1.1), (12, 28, 44)
    for frame in shut:
        opening[frame - 1 : frame + 2] = 0
    return detector.perform(opening), detector.perform(np.maximum(opening, 0.09)), shut, detector


@pytest.mark.parametrize("shift", [0, 2, 4])
def test_injected_errors_are_found_in_puppets(tmp_path, speaking, monkeypatch, shift):
    clip, open_lips, shut, detector = speaking
    monkeypatch.setattr(talkhead.landmarks, "detector", lambda *arguments: detector)
    real, held = write(tmp_path / "000000.mp4", clip), write(tmp_path / "held.mp4", open_lips)
    late = write(tmp_path / "late.mp4", np.concatenate([clip[:1]] * shift + [clip[: len(clip) - shift]]))
    files.write_json(tmp_path / "000000.json", {"phonemes": [[frame / 25, (frame + 1) / 25, "M"] for frame in shut]})
    protocol = Protocol(phonemes=tmp_path, closure_tolerance=0)
    record = protocol(real, late)
    assert record["opening_lag"] == shift and record["opening_best"] > 0.97
    assert (
        record["closures"] == 3
        and record["closure_rate"] == (1 if shift == 0 else 0)
        and record["real_closure_rate"] == 1
    )
    assert record["closures_from"] == "phonemes"
    record = protocol(real, held)
    assert record["closure_rate"] == 0 and record["real_closure_rate"] == 1 and record["opening_lag"] == 0


# Networks -------------------------------------------------------------------------------------------------------------


def test_lpips_is_that_of_the_lpips_package(tmp_path, random_vgg):
    import lpips

    from talkhead.images import to_images

    clip = frames(18)
    real, fake = write(tmp_path / "r.mp4", clip), write(tmp_path / "f.mp4", noisy(clip))
    record = Protocol(lmd=False, lpips=True, device="cpu")(real, fake)
    with pytest.warns(UserWarning), torch.no_grad():
        wanted = lpips.LPIPS(net="vgg", verbose=False).eval()(to_images(noisy(clip)), to_images(clip)).mean()
    assert record["lpips"] == pytest.approx(float(wanted), rel=1e-4) and record["lpips"] > 0.001
    assert (
        record["protocol"]["weights"]["lpips"][0]["file"] == "vgg16-397923af.pth"
        and record["protocol"]["versions"]["lpips"]
    )


def test_missing_weights_are_said_with_url_size_and_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for options, parts in (
        ({"lpips": True}, ("vgg16-397923af.pth", "download.pytorch.org", "553 MB")),
        ({"fid": True}, ("pt_inception-2015-12-05", "github.com", "96 MB", "talkhead weights fetch inception-fid")),
        ({"identity_network": tmp_path / "no.pth"}, ("no.pth: file not found", "175 MB", "fetch ir-se50")),
        ({"syncnet": tmp_path / "no.model"}, ("no.model: file not found", "robots.ox.ac.uk", "55 MB", "fetch syncnet")),
    ):
        with pytest.raises(TalkheadError) as caught:
            Protocol(lmd=False, **options)
        assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


@pytest.fixture
def recognition(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "model_ir_se50.pth"
    torch.save(FaceRecognition(width=4, size=16).state_dict(), path)
    return path


def test_identity_is_the_cosine_of_whole_aligned_frames(tmp_path, recognition):
    from talkhead.encoders import load_face_recognition
    from talkhead.images import to_images

    clip, other = frames(18, size=64), frames(18, 5, size=64)
    real, fake = (
        write(tmp_path / f"{name}.mp4", each, metadata={"talkhead_aligned": "64"})
        for name, each in (("r", clip), ("f", other))
    )
    record = Protocol(lmd=False, identity_network=recognition, device="cpu")(real, fake)
    network = load_face_recognition(recognition)
    with torch.no_grad():
        wanted = (network(to_images(clip)) * network(to_images(other))).sum(1).mean()
    assert record["identity"] == pytest.approx(float(wanted), abs=1e-5) and record["identity_frames"] == 18
    assert len(record["protocol"]["weights"]["identity"][0]["sha256"]) == 64 and record["protocol"]["versions"]["torch"]
    plain = write(tmp_path / "p.mp4", clip)
    with pytest.raises(TalkheadError, match="p.mp4: not marked as aligned"):
        Protocol(lmd=False, identity_network=recognition, device="cpu")(real, plain)
    assert Protocol(lmd=False, identity_network=recognition, aligned=True, device="cpu")(real, plain)[
        "identity"
    ] == pytest.approx(1, abs=1e-4)


def test_identity_of_other_clips_is_cut_by_landmarks(tmp_path, recognition, pointing):
    clip = np.full((5, 64, 64, 3), 40, np.uint8)
    clip[3] = 0
    path = write(tmp_path / "r.mp4", clip)
    record = Protocol(identity_network=recognition, device="cpu")(path, path)
    assert (
        record["identity"] == pytest.approx(1, abs=1e-5)
        and record["identity_frames"] == 4
        and record["real_no_face"] == 1
    )


def test_syncnet_looks_at_either_clip_with_its_sound(tmp_path):
    peer = runpy.run_path(str(ROOT / "examples" / "benchmarks" / "peer_syncnet.py"))
    weights = tmp_path / "syncnet_v2.model"
    torch.save(peer["weights"](16), weights)
    sound = peer["sound"]().astype(np.float32), 16000
    real, mute = write(tmp_path / "r.mkv", peer["frames"](), sound), write(tmp_path / "m.mkv", peer["frames"]())
    record = Protocol(lmd=False, syncnet=weights, device="cpu")(real, mute)
    assert record["lse_d"] == record["real_lse_d"] > 0 and record["lse_c"] >= 0 and isinstance(record["av_offset"], int)
    json.dumps(record, allow_nan=False)
    with pytest.raises(TalkheadError, match="neither has a sound track"):
        Protocol(lmd=False, syncnet=weights, device="cpu")(mute, mute)
    small = write(tmp_path / "s.mkv", frames(3), (np.zeros(2000, np.float32), 16000))
    with pytest.raises(TalkheadError, match="SyncNet needs crops of 224x224"):
        Protocol(lmd=False, syncnet=weights, device="cpu")(small, small)
    with pytest.raises(TalkheadError, match="SyncNet needs 25 frames per second, not 30"):
        Protocol(lmd=False, syncnet=weights, fps=30)


# Sets -----------------------------------------------------------------------------------------------------------------


def test_folders_are_matched_by_name(sets):
    write(sets / "real" / "lonely.mp4", frames(1))
    pairs, alone = evaluation.match([sets / "real", sets / "fake"])
    assert [(Path(real).name, Path(fake).name) for real, fake in pairs] == [
        ("a.mp4", "a.mkv"),
        ("b.mp4", "b.mkv"),
        ("c.mp4", "c.mkv"),
        ("torn.mp4", "torn.mp4"),
    ]
    assert [Path(path).name for path in alone] == ["lonely.mp4"]
    for number in range(2):  # a folder of pictures is a clip
        write(sets / "still" / f"{number}.png", frames(1))
    assert evaluation.match([sets / "still", sets / "real" / "a.mp4"])[0] == [
        (str(sets / "still"), str(sets / "real" / "a.mp4"))
    ]
    with pytest.raises(TalkheadError, match="one is a folder of clips, the other a single clip"):
        evaluation.match([sets / "real", sets / "still"])
    with pytest.raises(TalkheadError, match="no clips of one name"):
        evaluation.match([sets / "real", write(sets / "else" / "x.mp4", frames(1)).rpartition("/")[0]])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_set_is_measured_though_a_pair_fails(sets, workers):
    *records, summary = evaluation.evaluate(paired(sets), Protocol(lmd=False), workers=workers)
    assert ["error" in record for record in records] == [False, False, False, True]
    assert "torn.mp4" in records[3]["error"] and "traceback" not in records[3] and records[3]["protocol"]
    assert (summary["pairs"], summary["failed"], summary["frames"]) == (4, 1, 6 + 7 + 8)
    good = records[:3]
    assert summary["ssim"] == pytest.approx(np.average([record["ssim"] for record in good], weights=[6, 7, 8]))
    assert summary["psnr"] == pytest.approx(np.average([record["psnr"] for record in good], weights=[6, 7, 8]))
    json.dumps(summary, allow_nan=False)


def test_a_file_of_records_is_resumed(sets, monkeypatch):
    output, pairs, seen = sets / "out.jsonl", paired(sets), []
    first = list(evaluation.evaluate(pairs[:2], Protocol(lmd=False), output))
    with open(output, "a", encoding="utf-8") as stream:
        stream.write('{"real": "cut sho')  # a killed process
    measure = Protocol.__call__
    monkeypatch.setattr(
        Protocol,
        "__call__",
        lambda self, real, *rest, **more: seen.append(Path(real).stem) or measure(self, real, *rest, **more),
    )
    records = list(evaluation.evaluate(pairs, Protocol(lmd=False), output))
    assert seen == ["c", "torn"] and records[:2] == first[:2]
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [Path(line["real"]).stem for line in lines if "real" in line] == ["a", "b", "c", "torn"] and lines[-1][
        "pairs"
    ] == 4
    list(evaluation.evaluate(pairs, Protocol(lmd=False), output))
    assert seen[2:] == ["torn"]  # what failed is tried again
    with pytest.raises(TalkheadError, match="out.jsonl, line 1: measured with other settings; pass --protocol"):
        list(evaluation.evaluate(pairs, Protocol(lmd=False, fps=5), output))
    list(evaluation.evaluate(pairs, Protocol(lmd=False, fps=5), output, overwrite=True))
    assert seen[3:] == ["a", "b", "c", "torn"]
    for change in ({"frames": None}, {"psnr": "high"}, {"psnr": float("inf")}, {"real": []}):
        output.write_text(json.dumps(first[0] | change) + "\n")
        with pytest.raises(TalkheadError, match="line 1: not a record of talkhead metrics"):
            list(evaluation.evaluate(pairs, Protocol(lmd=False), output))
    output.write_text("something else\n")
    with pytest.raises(TalkheadError, match="line 1: not a record of talkhead metrics"):
        list(evaluation.evaluate(pairs, Protocol(lmd=False), output))


def test_shards_share_a_list_and_are_joined(sets, monkeypatch):
    from talkhead.jobs import Shard

    output, pairs = sets / "out.jsonl", paired(sets)[:3]
    for index in range(2):
        list(evaluation.evaluate(pairs, Protocol(lmd=False), output, shard=Shard(index, 2)))
    assert sorted(path.name for path in sets.glob("*.jsonl")) == ["out-0-of-2.jsonl", "out-1-of-2.jsonl"]
    monkeypatch.setattr(Protocol, "__call__", None)  # nothing is left to measure
    *records, summary = evaluation.evaluate(pairs, Protocol(lmd=False), output)
    assert len(records) == 3 and summary["failed"] == 0 and summary["frames"] == 21


def test_distances_of_a_set_are_those_of_all_its_frames(sets, monkeypatch):
    class Colours:
        name, width = "colours", 3

        def __call__(self, clip):
            return clip.mean((1, 2), dtype=np.float32)

    monkeypatch.setattr("talkhead.protocol.features", lambda name, device: Colours())
    monkeypatch.setattr("talkhead.protocol._weights_path", lambda name, purpose, path=None: __file__)
    pairs = paired(sets)[:3]
    protocol = Protocol(lmd=False, fid=True, device="cpu")
    clouds = [np.concatenate([files_of(pair[side]).mean((1, 2)) for pair in pairs]) for side in (0, 1)]
    *records, summary = evaluation.evaluate(pairs, protocol, sets / "out.jsonl")
    assert summary["fid"] == pytest.approx(fid.frechet_distance(*clouds), rel=1e-4)
    assert summary["kid"] == pytest.approx(fid.kernel_distance(*clouds), rel=1e-3)
    assert summary["fid_pictures"] == [21, 21] and "fid" not in records[0] and summary["fid_features"] == "colours"
    *_, again = evaluation.evaluate(pairs, protocol, sets / "out.jsonl")  # from what is kept
    assert again == summary
    shutil.rmtree(sets / "out.jsonl.features")
    *_, again = evaluation.evaluate(pairs, protocol, sets / "out.jsonl")
    assert again["fid"] == summary["fid"]
    monkeypatch.setattr(fid, "KERNEL_MOST", 10)
    kept = [np.load(path) for path in sorted((sets / "out.jsonl.features").iterdir())]
    sample = evaluation._sample(kept, sum(map(len, kept)))
    assert len(sample) == 10 and all((sample[i] == np.concatenate(kept)).all(1).any() for i in range(10))


def files_of(path):
    with video_files.read_frames(path) as reader:
        return np.stack(list(reader))


# Protocols ------------------------------------------------------------------------------------------------------------


def test_a_protocol_is_replayed_from_what_was_printed(tmp_path):
    path = write(tmp_path / "r.mp4", frames(3))
    record = Protocol(lmd=False, fps=12.5, max_lag=3)(path, path)
    (tmp_path / "record.json").write_text(json.dumps(record, indent=1))
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(record) + "\n")
    (tmp_path / "bare.json").write_text(json.dumps(record["protocol"]), encoding="utf-16")
    options = Protocol(lmd=False).options
    for name in ("record.json", "records.jsonl", "bare.json"):
        told = read_protocol(tmp_path / name)
        again = Protocol(**replay(told, options, {"lmd"}))
        check(told, again)
        assert again.describe() == record["protocol"]
    with pytest.raises(TalkheadError, match="the protocol says 12.5, not --fps 30"):
        replay(told, options | {"fps": 30.0}, {"fps"})
    with pytest.raises(TalkheadError, match="the protocol measures without --syncnet; leave it out"):
        replay(told, options | {"syncnet": "x"}, set())
    told["settings"]["identity"] = True
    with pytest.raises(TalkheadError, match="the protocol measures with a file of --identity-network; pass it"):
        replay(told, options, set())
    for text in ("nonsense", "{}", "[1]", '{"settings": 3}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(TalkheadError, match="bad.json: no protocol of talkhead metrics"):
            read_protocol(tmp_path / "bad.json")
    (tmp_path / "new.json").write_text(json.dumps({"settings": {"smell": 1}}))
    with pytest.raises(TalkheadError, match="its protocol sets smell"):
        read_protocol(tmp_path / "new.json")


def test_the_thesis_protocol_asks_for_its_networks(tmp_path, monkeypatch):
    told = read_protocol("thesis")
    options = replay(told, Protocol(lmd=False).options, set())
    assert (
        options["lmd"]
        and options["fid"]
        and options["fid_features"] == "inception"
        and options["detector"] == "face-alignment"
    )
    assert (options["fps"], options["size"], options["lpips"]) == (25.0, None, False)


def test_other_weights_are_refused_and_other_versions_said(tmp_path, recognition):
    protocol = Protocol(lmd=False, identity_network=recognition, device="cpu")
    told = json.loads(json.dumps(protocol.describe()))
    told["versions"]["numpy"] = "0.1"
    with pytest.warns(UserWarning, match="measured with numpy 0.1, here"):
        check(told, protocol)
    told["weights"]["identity"][0]["sha256"] = "0" * 64
    with pytest.raises(TalkheadError, match="measured with the identity model_ir_se50.pth 000000000000…, and here is"):
        check(told, protocol)


# For people, and of networks ------------------------------------------------------------------------------------------


def test_a_table_has_a_line_for_each_pair_and_one_for_all(sets):
    text = evaluation.table(list(evaluation.evaluate(paired(sets), Protocol(lmd=False))))
    lines = text.splitlines()
    assert lines[0].split() == ["frames", "PSNR", "SSIM"] and [line.split()[1] for line in lines[1:4]] == [
        "6",
        "7",
        "8",
    ]
    assert lines[4].startswith("all 3") and lines[5].startswith("failed: ") and lines[-1].startswith("25 fps, talkhead")
    assert len({len(line) for line in lines[:5]}) == 1
    same = [
        {
            "fake": "a.mp4",
            "frames": 3,
            "identical": 3,
            "psnr": None,
            "ssim": 1.0,
            "protocol": Protocol(lmd=False).describe(),
        }
    ]
    assert evaluation.table(same).splitlines()[1].split() == ["a.mp4", "3", "∞", "1.000"]


def _die(pair):
    os._exit(9)


def test_a_worker_that_dies_is_said_in_one_line(sets, monkeypatch):
    monkeypatch.setattr(evaluation, "_measured", _die)
    with pytest.raises(TalkheadError, match="a process was killed.*lower workers") as caught:
        list(evaluation.evaluate(paired(sets), Protocol(lmd=False), workers=2))
    assert "\n" not in str(caught.value)


def test_size_and_speed_of_three_networks(toy_weights):
    from talkhead import checkpoints

    generator = checkpoints.load_generator(toy_weights / "generator.pt")
    encoder = checkpoints.load_encoder(toy_weights / "encoder.pt", generator)
    speech = checkpoints.load_audio2latent(toy_weights / "audio2latent.pt", generator)
    record = evaluation.network_speed(generator, encoder, speech, seconds=0.4)
    assert (
        record["frames"] == 10
        and record["size"] == [16, 16]
        and record["frames_per_second"] > 0
        and record["device"] == "cpu"
    )
    counts = record["parameters"]
    assert counts["encoder"] == sum(p.numel() for p in encoder.parameters()) and counts["all"] == sum(
        counts[name] for name in counts if name != "all"
    )
    assert "16x16 on cpu" in evaluation.table([record])
