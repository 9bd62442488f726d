"""Lists, shards and manifests, with work that takes no time."""

import io
import json
import os
import types

import numpy as np
import pytest

from talkhead import jobs
from talkhead.errors import TalkheadError


def read(text, *fields, **options):
    items = jobs.read_list(io.BytesIO(text.encode()), fields or ("source",), **options)
    return [(*item.sources.values(), item.name) for item in items]


def names(*sources):
    return [name for _, name in read("\n".join(sources))]


# Shards ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [1, 2, 3, 7, 30])
def test_shards_make_up_the_list(of):
    lines = [f"line {number}" for number in range(23)]
    shards = [jobs.shard(f"{index}/{of}")(lines) for index in range(of)]
    assert sorted(sum(shards, [])) == sorted(lines)
    for number, line in enumerate(lines):
        assert line in shards[number % of]


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "3"}
ARRAY = {
    "SLURM_ARRAY_TASK_ID": "14",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_ARRAY_TASK_MIN": "10",
    "SLURM_ARRAY_TASK_MAX": "16",
    "SLURM_ARRAY_TASK_STEP": "2",
}
STEP = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "5", "SLURM_NTASKS": "5"}


@pytest.mark.parametrize(
    "text, environment, expected",
    [
        ("3/4", TORCHRUN | ARRAY | STEP, (3, 4, "--shard")),
        (None, TORCHRUN | ARRAY | STEP, (1, 3, "RANK and WORLD_SIZE")),
        (None, ARRAY, (2, 4, "the Slurm array")),
        (None, STEP, (2, 5, "the Slurm step")),
        (None, ARRAY | STEP, (2 * 5 + 2, 20, "the Slurm array and the Slurm step")),
        (None, {"RANK": "1"}, (0, 1, "")),
        # A batch script that has not called srun runs once, however many tasks it asked for.
        (None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "5"}, (0, 1, "")),
        (None, {}, (0, 1, "")),
    ],
)
def test_who_chooses_the_shard(text, environment, expected):
    assert tuple(jobs.shard(text, environment)) == expected


def test_processes_of_arrays_and_steps_each_have_a_share():
    shares = {
        jobs.shard(None, ARRAY | STEP | {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_PROCID": str(process)})[:2]
        for task in (10, 12, 14, 16)
        for process in range(5)
    }
    assert shares == {(index, 20) for index in range(20)}


@pytest.mark.parametrize(
    "text, environment, message",
    [
        ("4/4", {}, "--shard 4/4: not a valid shard; shards count from 0"),
        ("-1/4", {}, "--shard -1/4: not a valid shard"),
        ("0/0", {}, "--shard 0/0: not a valid shard"),
        ("1", {}, "--shard 1: not a valid shard"),
        ("1/2/3", {}, "--shard 1/2/3: not a valid shard"),
        (None, {"RANK": "3", "WORLD_SIZE": "3"}, "RANK=3, WORLD_SIZE=3: not a valid shard"),
        (
            None,
            ARRAY | {"SLURM_ARRAY_TASK_ID": "13"},
            "SLURM_ARRAY_TASK_ID=13: the numbers of this array are not evenly spaced; pass --shard",
        ),
        # --array=10,12,16
        (None, ARRAY | {"SLURM_ARRAY_TASK_ID": "10", "SLURM_ARRAY_TASK_COUNT": "3"}, "not evenly spaced"),
        (None, ARRAY | {"SLURM_ARRAY_TASK_MIN": "ten"}, "not evenly spaced"),
        (None, {"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_ID=3: without SLURM_ARRAY_TASK_COUNT, _MIN, _MAX and"),
    ],
)
def test_bad_shards_are_refused(text, environment, message):
    with pytest.raises(TalkheadError, match=message):
        jobs.shard(text, environment)


@pytest.mark.parametrize(
    "name, environment, expected",
    [
        ("cuda", {"LOCAL_RANK": "5"}, "cuda:1"),
        ("cuda", {"SLURM_LOCALID": "2"}, "cuda:2"),
        ("cuda", {}, "cuda"),
        ("cuda:3", {"LOCAL_RANK": "1"}, "cuda:3"),
        ("cpu", {"LOCAL_RANK": "1"}, "cpu"),
    ],
)
def test_each_process_of_a_machine_takes_a_device_in_turn(monkeypatch, name, environment, expected):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert jobs.own_device(torch.device(name), environment) == torch.device(expected)


# Lists ----------------------------------------------------------------------------------------------------------------


def test_lines_that_do_not_count():
    assert read("# clips\n\n  \na.mpg\r\nb c.mpg\na.mpg\n#x.mpg") == [("a.mpg", "a.mp4"), ("b c.mpg", "b c.mp4")]


def test_a_list_that_comes_in_pieces_is_read_to_its_end():
    class Pipe:
        pieces = [b"a.mpg\nb", b".mpg\nc.mpg\n"]

        def read1(self, size):
            return self.pieces.pop(0) if self.pieces else b""

        read = read1

    assert [item.name for item in jobs.read_list(Pipe())] == ["a.mp4", "b.mp4", "c.mp4"]


def test_names_that_are_no_text(tmp_path):
    (tmp_path / "list").write_bytes(b"caf\xe9.mpg\n")
    (item,) = jobs.read_list(tmp_path / "list")
    assert os.fsencode(item.sources["source"]) == b"caf\xe9.mpg" and os.fsencode(item.name) == b"caf\xe9.mp4"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_lists_as_other_systems_write_them(tmp_path, encoding):
    """Notepad writes UTF-8 with a mark, the > of PowerShell UTF-16: the first line is a line like the others."""
    text = "é.png\ta.wav\r\n# remark\r\nb.png\tb.wav\tmy own.mp4\r\n"
    (tmp_path / "list.txt").write_bytes(
        text.encode(encoding) if encoding != "utf-16-be" else b"\xfe\xff" + text.encode(encoding)
    )
    items = jobs.read_list(tmp_path / "list.txt", ("identity", "audio"))
    assert [item.sources["identity"] for item in items] == ["é.png", "b.png"] and [item.name for item in items] == [
        "é-a.mp4",
        "my own.mp4",
    ]


@pytest.mark.parametrize(
    "data, message",
    [
        (
            "a.png\n".encode("utf-16-le"),
            "list.txt, line 1: holds a zero byte, which no file name has; write the list as UTF-8 text",
        ),
        (b"\xff\xfea\0.\0m", "list.txt: not a text file .truncated data.; write it as UTF-8"),
    ],
)
def test_lists_that_are_no_text(tmp_path, data, message):
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(TalkheadError, match=message):
        jobs.read_list(tmp_path / "list.txt")


@pytest.mark.parametrize(
    "sources, expected",
    [
        (["grid/s1/bbaf2n.mpg", "grid/s2/lgaz3s.mpg"], ["bbaf2n.mp4", "lgaz3s.mp4"]),
        (
            ["grid/s1/bbaf2n.mpg", "grid/s2/bbaf2n.mpg", "x/lgaz3s.mpg"],
            ["s1/bbaf2n.mp4", "s2/bbaf2n.mp4", "x/lgaz3s.mp4"],
        ),
        (["/d/s1/video/a.mpg", "/d/s2/video/a.mpg"], ["s1/video/a.mp4", "s2/video/a.mp4"]),
        (["a.mpg", "./s1//a.mpg", "../s2/a.mpg"], ["a.mp4", "s1/a.mp4", "s2/a.mp4"]),
        (["a.1.mpg", "a.2.mpg", "frames/"], ["a.1.mp4", "a.2.mp4", "frames.mp4"]),
        (["s1/a.mpg\tone.mp4", "s2/a.mpg"], ["one.mp4", "a.mp4"]),
        (["s1/a.mpg\t./deep/a.mkv", "s2/a.mpg\t"], ["deep/a.mkv", "a.mp4"]),
        (["s1/a.mpg\tb.mp4", "s2/b.mpg"], ["b.mp4", "s2/b.mp4"]),
        (["a.mpg\ts1/../x.mp4", "b.mpg\tx..mp4"], ["x.mp4", "x..mp4"]),
    ],
)
def test_names_of_results(sources, expected):
    assert names(*sources) == expected
    assert names(*reversed(sources)) == expected[::-1]


def test_names_of_results_of_two_sources():
    lines = ["faces/anna.png\ts1/a.wav", "faces/bob.png\ts1/a.wav", "clips/a.mp4\tsounds/a.wav"]
    assert [item[-1] for item in read("\n".join(lines), "identity", "audio")] == ["anna-a.mp4", "bob-a.mp4", "a.mp4"]
    lines += ["faces/anna.png\ts2/a.wav", "same/a.mp4\tsame/a.wav", "anna.png\ts3/a.wav\tmine.mkv"]
    assert [item[-1] for item in read("\n".join(lines), "identity", "audio")] == [
        "faces-s1/anna-a.mp4",
        "faces-s1/bob-a.mp4",
        "clips-sounds/a.mp4",
        "faces-s2/anna-a.mp4",
        "same/a.mp4",
        "mine.mkv",
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("\n# nothing\n", "holds no items; write SOURCE"),
        (
            "a.mpg\nb.mpg\n\na.avi\n",
            "lines 1 and 4: both would be written to a.mp4; give one another name, after a tab",
        ),
        ("s1/a.mpg\tx.mp4\ns2/b.mpg\t./x.mp4", "lines 1 and 2: both would be written to x.mp4"),
        ("a.mpg\tb.mp4\tc", "line 1: wanted SOURCE .RESULT., separated by tabs"),
        ("a.mpg\n\tb.mp4", "line 2: wanted SOURCE"),
        ("-", "line 1: - has no name for the result"),
        ("x/..", "has no name for the result"),
        ("../..", "has no name for the result"),
        (
            "a.mpg\nb.mpg\t../../x.mp4",
            "line 2: the result ../../x.mp4 would lie outside of the output folder; name a file within it",
        ),
        ("a.mpg\ts1/../../x.mp4", "line 1: the result ../x.mp4 would lie outside"),
        ("a.mpg\t/tmp/x.mp4", "line 1: the result /tmp/x.mp4 would lie outside"),
        ("a.mpg\t..", "line 1: the result .. would lie outside"),
        ("a.mpg\tx/..", "line 1: the result . would lie outside"),
        ("a.mpg\nb.mpg\t.mp4", "line 2: the result .mp4 would be hidden; give a name without the dot, after a tab"),
        ("a.mpg\t.x/b.mp4", "line 1: the result .x/b.mp4 would be hidden"),
        ("a.mpg\t..x.mp4", "line 1: the result ..x.mp4 would be hidden"),
        ("s1/.a.mpg", "line 1: the result .a.mp4 would be hidden"),
        ("s1/.mpg", "line 1: the result .mpg.mp4 would be hidden"),
    ],
)
def test_bad_lists_are_refused(text, message):
    with pytest.raises(TalkheadError, match=message):
        read(text)


# Work -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path):
    """Five sources, and work on them that copies; source 2 cannot be worked on, and 3 shows a bug of ours."""
    items = [jobs.Item({"source": f"{number}.txt"}, f"{number % 2}/{number}.out") for number in range(5)]
    worked = []

    def work(source, place):
        worked.append(source)
        if source in bad:
            raise bad[source]
        with open(place, "w", encoding="utf-8") as stream:
            stream.write(source)
        return {"frames": len(source)}

    bad = {"2.txt": TalkheadError("2.txt: torn; mend it"), "3.txt": ZeroDivisionError("oh")}  # tests may empty it
    return types.SimpleNamespace(
        items=items,
        work=work,
        bad=bad,
        worked=worked,
        folder=tmp_path / "out",
        manifest=tmp_path / "out" / "manifest.jsonl",
    )


def manifest(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def statuses(records):
    return [record["status"] for record in records]


def test_what_fails_is_recorded_and_the_next_is_done(desk):
    records = list(jobs.run(desk.items, desk.work, desk.folder))
    assert statuses(records) == ["done", "done", "failed", "failed", "done"] and manifest(desk.manifest) == records
    seconds = [record.pop("seconds") for record in records]
    assert all(0 <= value < 5 for value in seconds)
    assert records[0] == {"source": "0.txt", "output": "0/0.out", "status": "done", "frames": 5}
    assert records[2] == {"source": "2.txt", "output": "0/2.out", "status": "failed", "reason": "2.txt: torn; mend it"}
    assert records[3]["reason"] == "ZeroDivisionError: oh" and "raise bad[source]" in records[3]["traceback"]
    assert (desk.folder / "0/4.out").read_text() == "4.txt"


def test_a_name_that_is_too_long_fails_alone(desk):
    from talkhead import files

    def work(source, place):
        with files.atomic(place) as temporary:
            return desk.work(source, temporary)

    items = [
        jobs.Item({"source": "0.txt"}, "0.out"),
        jobs.Item({"source": "1.txt"}, "x" * 300 + ".out"),
        jobs.Item({"source": "4.txt"}, "y" * 300 + "/4.out"),
    ]
    records = list(jobs.run(items, work, desk.folder))
    assert statuses(records) == ["done", "failed", "failed"] and all(
        "the name is too long" in record["reason"] for record in records[1:]
    )


def test_what_is_there_is_left_alone_and_keeps_its_record(desk):
    first = list(jobs.run(desk.items, desk.work, desk.folder))
    desk.bad.clear()
    desk.worked.clear()
    assert statuses(jobs.run(desk.items, desk.work, desk.folder)) == ["skipped", "skipped", "done", "done", "skipped"]
    assert desk.worked == ["2.txt", "3.txt"]
    now = {record["output"]: record for record in manifest(desk.manifest)}
    assert len(now) == len(manifest(desk.manifest)) == 5
    assert all(now[record["output"]] == record for record in first if record["status"] == "done")
    assert all(record["status"] == "done" for record in now.values())
    assert statuses(jobs.run(desk.items, desk.work, desk.folder, overwrite=True)) == ["done"] * 5
    assert len(manifest(desk.manifest)) == 5


def test_results_of_unknown_origin_are_recorded_as_skipped(desk):
    (desk.folder / "0").mkdir(parents=True)
    (desk.folder / "0/0.out").touch()
    list(jobs.run(desk.items, desk.work, desk.folder))
    assert manifest(desk.manifest)[0] == {"source": "0.txt", "output": "0/0.out", "status": "skipped"}
    (desk.folder / "0/2.out").touch()  # somebody has mended it by hand
    list(jobs.run(desk.items, desk.work, desk.folder))
    assert {record["output"]: record["status"] for record in manifest(desk.manifest)}["0/2.out"] == "skipped"
    assert len(manifest(desk.manifest)) == 5


def test_a_result_is_not_done_before_what_belongs_beside_it(desk):
    assert statuses(jobs.run(desk.items[:1], desk.work, desk.folder, beside=[".json"])) == ["done"]
    assert statuses(jobs.run(desk.items[:1], desk.work, desk.folder, beside=[".json"])) == ["done"]
    (desk.folder / "0/0.json").touch()
    assert statuses(jobs.run(desk.items[:1], desk.work, desk.folder, beside=[".json"])) == ["skipped"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)], ids=["Ctrl-C", "SIGTERM"])
def test_who_is_stopped_goes_on_where_it_was(desk, stop):
    desk.bad.clear()

    def work(source, place):
        if source == "3.txt":
            raise stop
        return desk.work(source, place)

    with pytest.raises(type(stop)):
        list(jobs.run(desk.items, work, desk.folder))
    assert [record["output"] for record in manifest(desk.manifest)] == ["0/0.out", "1/1.out", "0/2.out"]
    with open(desk.manifest, "a", encoding="utf-8") as stream:
        stream.write('{"source": "3.txt", "outp')  # and killed while it wrote
    desk.worked.clear()
    list(jobs.run(desk.items, desk.work, desk.folder))
    assert desk.worked == ["3.txt", "4.txt"] and [record["source"] for record in manifest(desk.manifest)] == [
        f"{number}.txt" for number in range(5)
    ]


@pytest.mark.parametrize("moment", ["before the record", "before the result", "between results"])
def test_who_is_killed_with_a_result_in_hand_records_it_whole(desk, moment, monkeypatch):
    desk.bad.clear()

    def work(source, place):
        with open(place.replace(".out", ".json"), "w", encoding="utf-8") as stream:
            stream.write("{}")
        return desk.work(source, place)

    def killed(*_):
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        if moment == "before the record":
            patch.setattr(jobs.Ledger, "add", killed)
        elif moment == "before the result":
            patch.setattr(jobs, "_publish", killed)
        else:
            replace = os.replace
            patch.setattr(
                os, "replace", lambda one, other: replace(one, other) if other.suffix == ".json" else killed()
            )
        with pytest.raises(SystemExit):
            list(jobs.run(desk.items[:1], work, desk.folder, beside=[".json"]))
    assert not (desk.folder / "0/0.out").exists() and (desk.folder / "0/0.json").exists() == (
        moment == "between results"
    )
    records = list(jobs.run(desk.items, work, desk.folder, beside=[".json"]))
    assert (
        statuses(records) == ["done"] * 5
        and manifest(desk.manifest) == records
        and [record["frames"] for record in records] == [5] * 5
    )
    assert sorted(path.name for path in desk.folder.rglob("*.*")) == sorted(
        ["manifest.jsonl", *(f"{n}.{end}" for n in range(5) for end in ("out", "json"))]
    )


def test_a_folder_is_made_again_by_who_was_killed_with_one_in_hand(desk, monkeypatch):
    from talkhead import video_files

    def work(source, place):
        with video_files.FrameWriter(place) as writer:
            writer.write(np.zeros((2, 2, 3), np.uint8))
        return {"frames": 1}

    def killed(*_):
        raise SystemExit(137)

    items = [jobs.Item({"source": "0.txt"}, "x/0")]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(jobs, "_publish", killed)
        list(jobs.run(items, work, desk.folder))
    (desk.folder / "x/0").mkdir()  # and an empty folder is no result of another
    assert statuses(jobs.run(items, work, desk.folder, overwrite=True)) == ["done"]
    assert sorted(str(path.relative_to(desk.folder)) for path in desk.folder.rglob("*")) == [
        "manifest.jsonl",
        "x",
        "x/0",
        "x/0/000000.png",
    ]
    (again,) = jobs.run(items, work, desk.folder, overwrite=True)
    assert again["reason"].startswith(f"{desk.folder}/x/0: ") and "not empty" in again["reason"]


def test_what_fails_leaves_nothing_but_what_to_go_on_from(desk):
    def work(source, place):
        if source == "1.txt":
            open(f"{place}.part", "w", encoding="utf-8").close()
            raise TalkheadError(f"{place}.part: was begun otherwise")
        raise TalkheadError(f"{place}: no room")

    records = list(jobs.run(desk.items[:2], work, desk.folder))
    (part,) = (desk.folder / "1").rglob("1.out.part")
    assert [record["reason"] for record in records] == [
        f"{desk.folder}/0/0.out: no room",
        f"{part}: was begun otherwise",
    ]
    assert not list((desk.folder / "0").iterdir())

    def resumed(source, place):
        if source == "1.txt":
            os.remove(f"{place}.part")
        return desk.work(source, place)

    assert statuses(jobs.run(desk.items[:2], resumed, desk.folder)) == ["done", "done"]
    assert [path.name for path in (desk.folder / "1").iterdir()] == ["1.out"]


def test_each_shard_has_a_manifest_of_its_own(desk):
    for index in range(2):
        assert len(list(jobs.run(desk.items, desk.work, desk.folder, jobs.Shard(index, 2)))) == 3 - index
    told = [manifest(desk.folder / f"manifest-{index}-of-2.jsonl") for index in range(2)]
    assert [[record["source"] for record in records] for records in told] == [
        ["0.txt", "2.txt", "4.txt"],
        ["1.txt", "3.txt"],
    ]
    assert not desk.manifest.exists()


def test_a_manifest_keeps_what_it_tells_of_other_lists(desk):
    list(jobs.run(desk.items[:2], desk.work, desk.folder))
    list(jobs.run(desk.items[2:], desk.work, desk.folder))
    assert [record["source"] for record in manifest(desk.manifest)] == [f"{number}.txt" for number in range(5)]


def test_two_processes_do_not_work_on_one_shard(desk):
    pytest.importorskip("fcntl")
    first = jobs.run(desk.items, desk.work, desk.folder)
    next(first)
    with pytest.raises(
        TalkheadError, match=r"manifest.jsonl: another process works on this shard; give each its own --shard i/n"
    ):
        next(jobs.run(desk.items, desk.work, desk.folder))
    assert len(list(first)) == 4
    assert len(list(jobs.run(desk.items, desk.work, desk.folder))) == 5


def test_a_manifest_of_somebody_else_is_left_alone(desk):
    desk.folder.mkdir()
    desk.manifest.write_text('{"audio_filepath": "a.wav", "duration": 2.0}\n')
    with pytest.raises(TalkheadError, match="manifest.jsonl: not a manifest of talkhead; move it away"):
        next(jobs.run(desk.items, desk.work, desk.folder))
    assert desk.manifest.read_text() == '{"audio_filepath": "a.wav", "duration": 2.0}\n'


def test_a_folder_that_is_a_file_is_refused(desk):
    desk.folder.touch()
    with pytest.raises(TalkheadError, match="out: is a file; name a folder"):
        next(jobs.run(desk.items, desk.work, desk.folder))


def test_alone_there_is_nobody_to_wait_for():
    assert jobs.barrier({}) is None and jobs.barrier({"RANK": "0", "WORLD_SIZE": "2"}) is None
