"""What an installed talkhead has: the same files as the tree that the tests run on."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
