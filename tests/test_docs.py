"""Markdown files: their links, and the commands in their prose. Blocks of commands are run in test_pipeline.py."""

import re
import shlex
from pathlib import Path

import click
import pytest

from talkhead.cli import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "examples").rglob("*.md")), *sorted((ROOT / "talkhead").rglob("*.md"))]
GUIDES = sorted((ROOT / "examples" / "guides").glob("*.md"))


def prose(path):
    """The text of a Markdown file without its blocks of code."""
    return re.sub(r"^(```.*?^```|    .*?)$", "", path.read_text(), flags=re.M | re.S)


def links(path):
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(path)))


def anchors(path):
    """The anchors that GitHub gives the headings of a Markdown file."""
    found = []
    for heading in re.findall(r"^#+ +(.*?) *$", prose(path), re.M):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        times = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
        found.append(f"{slug}-{times}" if times else slug)
    return found


def broken(path):
    """The relative links of a Markdown file that lead nowhere."""
    for link in links(path):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_and_anchors_resolve(path):
    assert list(broken(path)) == []


def test_broken_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# A `b`, c\n\n# Again\n\n# Again\n\n```sh\n# no heading\n```\n")
    good = "[a](other.md#a-b-c) [b](other.md#again-1) [c](#here) [d](https://example.org/none) `[e](none)`"
    bad = ["none.md", "other.md#no-heading", "#there", "none.png"]
    text = "# Here\n\n" + good + "".join(f"\n[x]({link})" for link in bad[:3]) + f"\n![y]({bad[3]})\n"
    (tmp_path / "page.md").write_text(text)
    assert list(broken(tmp_path / "page.md")) == bad


@pytest.mark.parametrize("index", ["README.md", "examples/README.md"])
def test_every_guide_is_linked(index):
    path = ROOT / index
    targets = {(path.parent / link.partition("#")[0]).resolve() for link in links(path)}
    assert GUIDES and set(GUIDES) <= targets


@pytest.mark.parametrize("path", [ROOT / "README.md", *GUIDES], ids=lambda path: path.stem)
def test_commands_in_prose_can_be_parsed(path):
    for command in re.findall(r"`talkhead ([^`…]+)`", prose(path)):
        group, words = cli, shlex.split(command)
        while isinstance(group, click.Group) and words and words[0] != "COMMAND":
            group, words = group.commands[words[0]], words[1:]
        if group is not cli and words:
            group.make_context("talkhead", list(words))
