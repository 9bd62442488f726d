"""What an installed talkhead has: the same files as the tree that the tests run on."""

import ast
import configparser
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import talkhead

ROOT = Path(__file__).parents[1]
# The files of the command line, after all that Python users import.
COMMAND = ("cli_options", "cli_io", "cli_plot", "cli_train", "cli_weights", "cli", "__main__")


def imported(path):
    """The files of the package that a file imports, anywhere in it but for type checkers."""
    names, tree = set(), ast.parse(path.read_text())
    tree.body = [
        part for part in tree.body if not (isinstance(part, ast.If) and "TYPE_CHECKING" in ast.dump(part.test))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(["talkhead"] * (node.level > 0) + [node.module] * bool(node.module))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    parts = {tuple(name.split(".")[:2]) for name in names}
    return {
        talkhead._MODULE_OF.get(name, name)
        for package, name in (part for part in parts if part[0] == "talkhead" and len(part) == 2)
    }


def test_each_file_imports_only_from_those_before_it():
    order = [*talkhead.MODULES, *COMMAND]
    files = {path.stem: path for path in (ROOT / "talkhead").glob("*.py") if path.stem != "__init__"}
    assert sorted(order) == sorted(files)
    needs = {name: imported(path) - {"__version__"} for name, path in files.items()}
    assert "latents" in needs["synthesis"]
    late = {(name, other) for name in order for other in needs[name] if order.index(other) >= order.index(name)}
    assert not late


def test_each_requirement_has_an_oldest_version():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    needed = setup["options"]["install_requires"].split()
    assert len(needed) > 9 and [name for name in needed if ">=" not in name] == []


def build(kind, tmp_path):
    """A copy of the tree without what git ignores, and the wheel or sdist that setuptools makes of it."""
    pytest.importorskip("setuptools", minversion="70.1")  # which builds wheels by itself
    tree = tmp_path / "tree"
    for folder in ("talkhead", "tests", "examples"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tree)
    wanted = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    script = f"from setuptools import build_meta; build_meta.build_{kind}({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", script], cwd=tree, check=True, capture_output=True)
    return wanted, next(path for path in tmp_path.iterdir() if path.is_file())


def test_a_wheel_holds_every_file_of_the_package(tmp_path):
    wanted, wheel = build("wheel", tmp_path)
    wanted = {name for name in wanted if name.startswith("talkhead/")}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == wanted and {"talkhead/weights/blink.json", "talkhead/weights/MODEL_CARD.md"} < wanted


def test_an_sdist_holds_the_whole_tree(tmp_path):
    wanted, sdist = build("sdist", tmp_path)
    with tarfile.open(sdist) as archive:
        packed = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {name for name in packed if name == "PKG-INFO" or name.startswith("talkhead.egg-info/")}
    assert packed - made == wanted and {"tests/conftest.py", "examples/face.png"} < wanted
