"""What an installed talkhead has: the same files as the tree that the tests run on."""

import ast
import shutil
import subprocess
import sys
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


def test_a_wheel_holds_every_file_of_the_package(tmp_path):
    pytest.importorskip("setuptools", minversion="70.1")  # which builds wheels by itself
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "talkhead", tree / "talkhead", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("talkhead/")}
    wanted = {path.relative_to(tree).as_posix() for path in (tree / "talkhead").rglob("*") if path.is_file()}
    assert packed == wanted and "talkhead/weights/blink.json" in wanted
