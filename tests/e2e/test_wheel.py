"""The wheel: what is in it, and that it works without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP_LEVEL = {"actors", "dreamr", "pipelines", "rl", "serve_app.py"}

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git tracks: a build folder or an untracked file must not reach it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(
        ["tar", "--null", "--files-from=-", "--ignore-failed-read", "-cf", source / "all.tar"],
        input=tracked, cwd=ROOT, check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    subprocess.run(["tar", "-xf", "all.tar"], cwd=source, check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), "."]
    subprocess.run(command, cwd=source, check=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_packages_and_what_they_read(wheel: Path) -> None:
    files = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    assert {file.parts[0] for file in files if ".dist-info" not in file.parts[0]} == TOP_LEVEL
    tracked = subprocess.run(
        ["git", "ls-files", *TOP_LEVEL], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout.splitlines()
    assert {Path(name) for name in tracked if (ROOT / name).exists()} <= set(files)


def test_an_installed_wheel_asks_serves_and_trains_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run(command, check=True)
    environment = os.environ | {"PYTHONPATH": str(installed)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    origins = run("-c", "import actors, dreamr, pipelines, rl, serve_app as s; print(actors.__file__, s.__file__)")
    assert all(Path(origin).is_relative_to(installed) for origin in origins.split())
    assert run("-m", "dreamr", "--version").strip()
    assert "--config" in run("-m", "rl.train", "--help")
    report = json.loads(run("-m", "dreamr", "demo", "--problems", "2", "--json"))
    plain, fast = report["methods"]
    assert (plain["name"], fast["name"]) == ("autoregressive", "fpsr")
    assert plain["accuracy"] + fast["accuracy"] >= 1
    assert fast["acceptance_rate"] > 0
    assert fast["speedup"]["low"] <= fast["speedup"]["geomean"] <= fast["speedup"]["high"]
    assert 0 <= fast["orchestration_share"] < 1
    assert set(report["models"]) == {"draft", "target", "verifier"}
