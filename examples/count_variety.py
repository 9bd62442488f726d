"""Count what was varied in folders of clips that talkhead synth --vary made: tone of skin, hair, light, backdrop, and donors.

    python examples/count_variety.py clips/ stills/

Prints a Markdown table. A choice belongs to a face: where faces take turns (--people), each clip of theirs is counted. Ages are not in it: no public-domain
portrait at hand tells one, and none is guessed.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from talkhead import files, variety
from talkhead.errors import TalkheadError


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    told = [json.loads(path.read_text()) for folder in parser.parse_args().folders for path in files.find(folder, {".json"})]
    told = [about for about in told if "varied" in about]
    counted = variety.tally([about["varied"] for about in told])
    lines = ["| what | kind | clips | share |", "|---|---|---|---|"]
    lines += [f"| {what} | {kind} | {count} | {count / len(told):.0%} |"
              for what, kinds in counted.items() for kind, count in sorted(kinds.items(), key=lambda pair: -pair[1])]
    donors = Counter(donor for about in told for donor in about["donors"])
    print("\n".join(lines) + f"\n\n{len(told)} clips, {len(donors)} donors; the one used most is in {max(donors.values())} clips.")


if __name__ == "__main__":
    try:
        main()
    except TalkheadError as problem:
        sys.exit(f"count_variety.py: {problem}")
