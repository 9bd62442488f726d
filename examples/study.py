"""A user study: pairs of videos as a page that people answer in a browser, and what their answers say.

    folders of videos ─ pairs ─▶ ─ make ─▶ a folder with index.html, a key ─ people ─▶ .csv ─ tally ─▶ shares

The page is one static file without anything from elsewhere; only it and the videos go to the web. Who made which video
is in the key alone.
"""

import csv
import hashlib
import html
import io
import json
import random
from collections import Counter
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import click
import numpy as np

from talkhead import cli_io, cli_options, files, video_files
from talkhead.errors import TalkheadError

# The thesis's two questions (§5.4), word for word but for the grammar.
QUESTIONS = {
    "realism": (
        "Based on the visual quality of each video, which video looks better? Which one is more photo-realistic than "
        "the other?"
    ),
    "sync": (
        "Based on the audio-visual synchronisation quality, which video looks better? Which one has more accurate lip "
        "movements, synced with the audio?"
    ),
}
CHOICES = ("left", "right", "both", "none")
COLOURS = {"ours": "#0072B2", "both": "#56B4E9", "none": "0.8", "others": "#E69F00"}  # of the outcomes, in the plot
OUTCOMES = tuple(COLOURS)
COLUMNS = (
    "study",
    "participant",
    "order",
    "pair",
    "question",
    "left",
    "right",
    "choice",
    "expected",
    "seconds",
    "time",
)
WELCOME = "You will compare videos of people who speak. It takes about half a minute a task."
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
LONGEST = 200_000  # bytes of the page


class Pair(NamedTuple):
    """Two videos of the same speech, by two methods; the first is ours."""

    name: str
    ours: Path
    others: Path
    our_method: str
    other_method: str


def pairs(folders, labels=()):
    """The videos of the first folder, each with those of the same name in every other.

    folders  paths of at least two folders of videos: a method's each, ours first
    labels   what the methods are called; none: as the folders are
    returns  list of Pair, by method and name
    raises   TalkheadError if folders have no videos in common with the first, or too few are given
    """
    folders = [Path(folder) for folder in folders]
    labels = list(labels) or [folder.resolve().name for folder in folders]
    if len(folders) < 2 or len(labels) != len(folders) or len(set(labels)) < len(labels):
        raise TalkheadError(
            "study: wanted two or more folders, a method's each, and as many different names; pass --labels"
        )
    found = [_videos(folder) for folder in folders]
    both = []
    for folder, label, videos in zip(folders[1:], labels[1:], found[1:]):
        shared = sorted(found[0].keys() & videos.keys())
        if not shared:
            raise TalkheadError(
                f"{folder}: has no video that is called like one in {folders[0]}; give videos of one speech the same "
                "name"
            )
        both += [Pair(name, found[0][name], videos[name], labels[0], label) for name in shared]
    return both


def _videos(folder):
    if not folder.is_dir():
        raise TalkheadError(f"{folder}: not a folder; pass a folder of videos for each method")
    return {path.stem: path for path in files.find(folder, VIDEOS)}


def make(
    pairs,
    folder,
    seed=0,
    checks=2,
    questions=tuple(QUESTIONS),
    title="Which video is better?",
    welcome=WELCOME,
    post=None,
):
    """Write the page, its videos and, beside the folder, its key.

    pairs      list of Pair
    folder     where index.html and videos/ go: all of it may be shown. Videos that an earlier call left are kept
    seed       of names, order and sides; each participant has an order of their own, which the seed and their name
               decide
    checks     tasks that tell which answer to choose, so that those who do not read can be told
    questions  names in QUESTIONS; each pair is shown once for each
    title      of the page
    welcome    first words on it
    post       address that the answers are posted to as CSV; None: people download them
    yields     {"video", "file"} for each video written, and last {"page", "key", "pairs", "tasks", "bytes"}
    raises     TalkheadError if a video cannot be read, a question has another name, or two pairs are one

    Videos are written anew as H.264 and AAC, which every browser plays, under names that tell nothing.

    Source: thesis §5.4.
    Departure: each answer is asked after both videos were seen to the end, and some tasks check attention.
    """
    unknown = [name for name in questions if name not in QUESTIONS]
    if unknown or not questions:
        raise TalkheadError(f"questions: wanted some of {', '.join(QUESTIONS)}, not {', '.join(unknown) or 'none'}")
    if not pairs:
        raise TalkheadError("study: no pairs of videos; pass two folders that hold some")
    folder = Path(folder)
    with files.os_errors_in_one_line(folder):
        (folder / "videos").mkdir(parents=True, exist_ok=True)
    shown, keys = {}, {}
    for number, pair in enumerate(_shuffled(pairs, seed)):
        sides = [(pair.our_method, pair.ours), (pair.other_method, pair.others)]
        random.Random(f"{seed}/{number}").shuffle(sides)
        names = []
        for method, path in sides:
            name = _opaque(path, f"{seed}/{method}/{pair.name}")
            names.append(name)
            if name not in keys:
                keys[name] = {"method": method, "name": pair.name}
                yield {"video": str(path), "file": str(_copy(path, folder / "videos" / f"{name}.mp4"))}
        shown[f"p{number + 1:03}"] = names
    yield _page(folder, shown, keys, pairs[0].our_method, seed, checks, questions, title, welcome, post)


def _shuffled(pairs, seed):
    return random.Random(seed).sample(pairs, len(pairs))


def _opaque(path, told):
    """A name for a copy of a video that says nothing, but is another one when the video is."""
    digest = hashlib.sha256(told.encode())
    with files.reading(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]


def _copy(source, destination):
    if not destination.exists():
        with video_files.read_frames(source) as reader:
            with video_files.FrameWriter(destination, sound=reader.sound, synthetic=reader.synthetic) as writer:
                for frame in reader:
                    writer.write(frame)
    return destination


def _page(folder, shown, keys, ours, seed, checks, questions, title, welcome, post):
    """Write index.html and the key; a record that tells what they are."""
    asked = {name: QUESTIONS[name] for name in questions}
    # Names of videos are hashed, so the page is the same study as long as it shows the same.
    identity = hashlib.sha256(json.dumps([shown, asked, checks, seed]).encode()).hexdigest()[:12]
    study = {
        "id": identity,
        "seed": seed,
        "pairs": shown,
        "questions": asked,
        "checks": checks,
        "title": title,
        "welcome": welcome,
        "post": post,
    }
    inside = json.dumps(study, ensure_ascii=False).replace("<", "\\u003c")  # no text may end the script that holds it
    template = Path(__file__).with_name("study.html").read_text(encoding="utf-8")
    text = template.replace("<title>Study</title>", f"<title>{html.escape(title)}</title>").replace(
        "/*STUDY*/null", inside
    )
    size = len(text.encode())
    if size > LONGEST:
        raise TalkheadError(
            f"{folder}: the page would be {size} bytes for {len(shown)} pairs, the most is {LONGEST}; make several "
            "studies of them"
        )
    page, key = folder / "index.html", folder.resolve().parent / f"{folder.resolve().name}.key.json"
    with files.atomic(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    files.write_json(key, {"study": identity, "ours": ours, "videos": keys, "pairs": shown})
    return {
        "page": str(page),
        "key": str(key),
        "pairs": len(shown),
        "tasks": len(shown) * len(asked) + checks,
        "bytes": size,
    }


# ---------------------------------------------------------------------------------------------------------------
# Answers


def read_answers(source):
    """The rows of a file that the page gave, or of several put together: list of dicts with COLUMNS.

    raises  TalkheadError if it is something else
    """
    with files.reading(source) as stream:
        text = files.decoded(stream.read(), "replace")
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error:  # a cell longer than the module takes
        rows = []
    if not rows or tuple(rows[0]) != COLUMNS:
        raise TalkheadError(f"{source}: holds no answers of a study; its first line should be {','.join(COLUMNS)}")
    answers = []
    for number, row in enumerate(rows, 1):
        if tuple(row) == COLUMNS:
            continue  # the head of another file
        answer = dict(zip(COLUMNS, row))
        if len(row) != len(COLUMNS) or answer["choice"] not in CHOICES:
            raise TalkheadError(
                f"{source}, row {number}: not an answer; wanted {len(COLUMNS)} cells and one of {', '.join(CHOICES)}"
            )
        answers.append(answer)
    return answers


def tally(answers, key, failures=0, confidence=0.95):
    """What people preferred.

    answers     list of dicts, as `read_answers` gives them, of any number of participants
    key         the dict in the key that `make` wrote
    failures    attention checks that a participant may fail; the answers of one who fails more do not count
    confidence  of the intervals
    returns     a dict for each question and other method: {"question", "ours", "others", "participants", "answers",
                "shares": {outcome: share}, "intervals": {outcome: [low, high]}, "counts", "confidence"}, with the
                OUTCOMES ours, both, none, others; and last a dict that tells how many participants, answers and
                left-out ones there were
    raises      TalkheadError if an answer is of another study

    Each task of a participant counts once, the last answer to it. Intervals are Wilson's, one outcome against all
    others, as if answers did not depend on who gives them: where few people give many answers, they are too narrow.

    Source: thesis §5.4, Fig. 5.6; Wilson 1927.
    """
    if not _is_key(key):
        raise TalkheadError("key: not that of a study; pass the file that make wrote beside the page")
    latest = {}
    for answer in answers:
        _check(answer, key)
        latest[answer["participant"], answer["pair"], answer["question"], answer["expected"]] = answer
    failed = Counter(
        person
        for (person, *_), answer in latest.items()
        if answer["question"] == "check" and answer["choice"] != answer["expected"]
    )
    everybody = {person for person, *_ in latest}
    out = {person for person in everybody if failed[person] > failures}
    groups = {}
    for (person, *_), answer in latest.items():
        if person not in out and answer["question"] != "check":
            outcome, other = _outcome(answer, key)
            groups.setdefault((answer["question"], other), []).append((person, outcome))
    records = [
        _shares(question, other, group, key["ours"], confidence) for (question, other), group in sorted(groups.items())
    ]
    return records + [
        {
            "participants": len(everybody),
            "left_out": sorted(out),
            "answers": sum(record["answers"] for record in records),
        }
    ]


def _is_key(key):
    """Whether this is what `make` writes into the key."""
    try:
        methods = {name: video["method"] for name, video in key["videos"].items()}
        pairs = [(methods[one], methods[other]) for one, other in key["pairs"].values()]
        texts = [key["study"], key["ours"], *methods.values()]
    except (TypeError, KeyError, ValueError, AttributeError):
        return False
    return all(isinstance(text, str) for text in texts) and all(
        (one == key["ours"]) != (other == key["ours"]) for one, other in pairs
    )


def _check(answer, key):
    if answer["study"] != key["study"]:
        raise TalkheadError(
            f"answers of {answer['participant']}: of study {answer['study']}, the key is of {key['study']}; pass the "
            "key of theirs"
        )
    if {answer["left"], answer["right"]} != set(key["pairs"].get(answer["pair"], ())):
        raise TalkheadError(
            f"answers of {answer['participant']}, pair {answer['pair']}: other videos than the key's; pass the key of "
            "this study"
        )


def _outcome(answer, key):
    """What an answer says, one of OUTCOMES, and against which method."""
    methods = {side: key["videos"][answer[side]]["method"] for side in ("left", "right")}
    other = next(method for method in methods.values() if method != key["ours"])
    choice = answer["choice"]
    return (choice if choice not in methods else "ours" if methods[choice] == key["ours"] else "others"), other


def _shares(question, other, group, ours, confidence):
    counts = Counter(outcome for _, outcome in group)
    total = len(group)
    return {
        "question": question,
        "ours": ours,
        "others": other,
        "participants": len({person for person, _ in group}),
        "answers": total,
        "counts": {outcome: counts[outcome] for outcome in OUTCOMES},
        "shares": {outcome: counts[outcome] / total for outcome in OUTCOMES},
        "intervals": {outcome: list(wilson(counts[outcome], total, confidence)) for outcome in OUTCOMES},
        "confidence": confidence,
    }


def wilson(count, total, confidence=0.95):
    """Wilson's interval for the share of which `count` of `total` were seen: (low, high)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = count / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / total + spread / total / 4) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def preferences(records):
    """Plot preferences: a bar for each pair of methods with the interval of our share, a panel for each question.

    records  from `tally`, without its last
    returns  matplotlib Figure

    Source: thesis §5.4, Fig. 5.6.
    """
    from talkhead import plots

    plots.installed()
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if not records:
        raise TalkheadError("study: no answers are left to draw; pass more, or let more --failures count")
    questions = list(dict.fromkeys(record["question"] for record in records))
    names = {"realism": "visual quality", "sync": "audio-visual synchronisation"}
    most = max(sum(record["question"] == question for record in records) for question in questions)
    with plots.style():
        figure, panels = plots.board(8.5, (0.6 + 0.75 * most) * len(questions) + 0.5, len(questions), sharex=True)
        for axes, question in zip(panels[:, 0], questions):
            rows = [record for record in records if record["question"] == question]
            for place, record in enumerate(rows):
                _bar(axes, place, record)
            axes.set(title=names.get(question, question), xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
            labels = [
                f"{plots.wrapped(row['ours'])} against\n{plots.wrapped(row['others'])} (n = {row['answers']})"
                for row in rows
            ]
            axes.set_yticks(range(len(rows)), labels)
            axes.grid(False)
            axes.tick_params(left=False)
        panels[-1, 0].set_xticks(np.linspace(0, 1, 6), [f"{tick:.0%}" for tick in np.linspace(0, 1, 6)])
        whisker = Line2D([], [], color="black", linewidth=1.5, marker="|", markersize=7)
        marks = [*(Patch(color=colour) for colour in COLOURS.values()), whisker]
        plots.legend_above(figure, marks, [*COLOURS, f"{records[0]['confidence']:.0%} interval of ours"])
    return figure


def _bar(axes, place, record):
    start = 0.0
    for outcome, colour in COLOURS.items():
        share = record["shares"][outcome]
        axes.barh(place, share, left=start, color=colour, height=0.5)
        if share >= 0.04:
            axes.text(
                start + share / 2,
                place,
                f"{100 * share:.3g}%",
                ha="center",
                va="center",
                fontsize=10,
                color="white" if outcome == "ours" else "black",
            )
        start += share
    low, high = record["intervals"]["ours"]
    axes.plot([low, high], [place + 0.33] * 2, color="black", linewidth=1.5, marker="|", markersize=7)


# ---------------------------------------------------------------------------------------------------------------
# The commands


@click.group(cls=cli_io.Group)
def main():
    """Ask people which of two videos is better: a page for their browsers, and the count of their answers."""


@main.command("make")
@click.argument("folders", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    required=True,
    help="Where to write index.html and its videos; the key to who made them goes beside it.",
)
@cli_options.labels
@cli_options.names("--questions", "Which to ask: realism, sync.", ("realism", "sync"))
@cli_options.number("--checks", 2, "Tasks that check whether people read them.")
@click.option("--title", default="Which video is better?", show_default=True, help="Title of the page.")
@click.option(
    "--welcome", metavar="TEXT", help="First words on the page.  [default: what is to be done, and how long it takes]"
)
@click.option("--post", metavar="URL", help="Where the page posts the answers.  [default: people download them]")
@cli_options.seed
def make_command(folders, output, labels, welcome, **options):
    """Make a page that shows videos in pairs, ours with each other method's: those of one name in folders of videos,
    ours first.

    \b
      python examples/study.py make ours/ wav2lip/ -o study/ --seed 1
    """
    asked = pairs(folders, labels)
    options |= {"welcome": welcome} if welcome else {}
    records = make(asked, output, **options)
    for record in cli_io.progress(records, len({path for pair in asked for path in (pair.ours, pair.others)}), "video"):
        last = record
    cli_io.print_records([last])


@main.command("tally")
@cli_options.sources
@click.option("--key", metavar="FILE", required=True, help="The key that make wrote beside the page.")
@cli_options.number("--failures", 0, "Attention checks that one may fail; who fails more does not count.")
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Of the intervals.",
)
@click.option("--plot", metavar="FILE", callback=cli_options.drawable, help="Draw the shares here (.png, .svg, .pdf).")
def tally_command(sources, key, failures, confidence, plot):
    """Count the answers (.csv) that a page gave: shares with Wilson intervals, as JSON.

    \b
      python examples/study.py tally answers-*.csv --key study.key.json --plot shares.png
    """
    answers = [answer for source in sources for answer in read_answers(source)]
    records = tally(answers, files.read_json(key), failures, confidence)
    if plot:
        from talkhead import plots

        plots.save(preferences(records[:-1]), plot)
    cli_io.print_records(records)


if __name__ == "__main__":
    main()
