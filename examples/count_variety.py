"""Count what was varied in folders of clips that synth.py --vary made: tone of skin, hair, light, backdrop, and donors.

    python examples/count_variety.py clips/ stills/ --sources photos/SOURCES.tsv

Prints a Markdown table. A choice belongs to a face: where faces take turns (--people), each clip of theirs is counted.
Sex and age of donors are counted where the table of sources tells them in its column "note" ("age=24 female"); none is
guessed.
"""

import argparse
import csv
import json
import re
import sys
from collections import Counter
from pathlib import Path

from puppets import variety
from talkhead import files
from talkhead.errors import TalkheadError


def told_of_donors(sources):
    """Sex and decade of age of donors, by file stem: {stem: [(what, kind), …]}.

    They are read from the notes in tables of sources.
    """
    told = {}
    for table in sources:
        with open(table, encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
                sex, age = re.search(r"\b(female|male)\b", row["note"]), re.search(r"\bage=(\d+)", row["note"])
                told[Path(row["file"]).stem] = [
                    ("sex", sex[1] if sex else "not told"),
                    ("age", f"{int(age[1]) // 10 * 10} to {int(age[1]) // 10 * 10 + 9}" if age else "not told"),
                ]
    return told


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--sources", nargs="+", default=[], type=Path, help="tables of sources of the portraits")
    options = parser.parse_args()
    told = [json.loads(path.read_text()) for folder in options.folders for path in files.find(folder, {".json"})]
    told = [about for about in told if "varied" in about]
    counted = variety.tally([about["varied"] for about in told])
    lines = ["| what | kind | clips | share |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {kind} | {count} | {count / len(told):.0%} |"
        for what, kinds in counted.items()
        for kind, count in sorted(kinds.items(), key=lambda pair: -pair[1])
    ]
    donors = Counter(donor for about in told for donor in about["donors"])
    known, of_donors = told_of_donors(options.sources), {}
    for donor, count in donors.items():
        for what, kind in known.get(donor, [("sex", "not told"), ("age", "not told")]):
            kinds = of_donors.setdefault(what, Counter())
            kinds[kind] += count
    if options.sources:
        lines += [
            f"| {what} of donors | {kind} | {count} | {count / kinds.total():.0%} |"
            for what, kinds in of_donors.items()
            for kind, count in kinds.most_common()
        ]
    people = {person for about in told for person in about.get("people", ())}
    print(
        "\n".join(lines)
        + f"\n\n{len(told)} clips, {len(donors)} donors, {len(people)} people; "
        + f"the donor used most is in {max(donors.values())} clips."
    )


if __name__ == "__main__":
    try:
        main()
    except TalkheadError as problem:
        sys.exit(f"count_variety.py: {problem}")
