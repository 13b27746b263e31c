"""What installing relies on: every dependency is locked, and an old Python is refused before anything is made."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def package(requirement: str) -> str:
    """The name in its normal form."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]).lower()


@pytest.mark.parametrize(("lock", "without"), [("requirements.lock", "vllm"), ("requirements-gpu.lock", "dev")])
def test_every_dependency_is_locked(lock: str, without: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = {
        package(one)
        for group in (project["dependencies"], *map(extras.get, extras.keys() - {without}))
        for one in group
    }
    lines = (ROOT / lock).read_text().splitlines()
    locked = {package(line) for line in lines if "==" in line and not line.startswith("#")}
    assert named - {"dreamr"} <= locked


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("made_before", [False, True])
def test_an_old_python_makes_no_environment(tmp_path: Path, made_before: bool) -> None:
    pretend = "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])"
    old = tmp_path / ("venv/bin/python" if made_before else "python3.9")
    old.parent.mkdir(parents=True, exist_ok=True)
    old.write_text(f"#!/bin/sh\nshift\nexec '{sys.executable}' -c '{pretend}' \"$@\"\n")
    old.chmod(0o755)
    venv = tmp_path / "venv"
    done = subprocess.run(
        ["make", f"PYTHON={old}", f"VENV={venv}", f"{venv}/.installed"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(said) == 1
    assert "is Python 3.9, but 3.11 or newer is needed" in said[0]
    assert venv.exists() == made_before
