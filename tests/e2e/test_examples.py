"""The programs in examples/ run as their docstrings say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from support.serving import running

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def output(name: str, folder: Path, *arguments: str, **environment: str) -> str:
    """What an example prints, run in another folder as a user would run it."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": path} | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_small_and_name_their_command(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 80
    assert f"`python examples/{path.name}" in text.splitlines()[0]


def test_quickstart(tmp_path: Path) -> None:
    *steps, answer, counts = output("quickstart.py", tmp_path).splitlines()
    assert all(step.startswith(("draft ", "target ")) for step in steps)
    assert re.fullmatch(r"answer: (\d+) \(correct: \1\)", answer)
    assert re.fullmatch(r"acceptance rate \d+%, coverage \d+%, [\d.]+ x as fast as the target alone", counts)
    assert (tmp_path / "timeline.html").stat().st_size > 1000


def test_fpsr_minimal(tmp_path: Path) -> None:
    steps, times = output("fpsr_minimal.py", tmp_path).splitlines()
    assert steps == ("draft 0, draft 1, draft 4, target 9, draft 16, draft 25, draft 36, target 49, draft 64, draft 81")
    assert re.fullmatch(r"FPSR [\d.]+ s, the target alone [\d.]+ s", times)


@pytest.fixture
def cluster_address(ray_cluster: None) -> str:
    """Of the tests' cluster, for programs that need not start one."""
    address: str = ray.get_runtime_context().gcs_address
    return address


def test_own_schedule(tmp_path: Path, cluster_address: str) -> None:
    lines = output("own_schedule.py", tmp_path, RAY_ADDRESS=cluster_address).splitlines()
    found = [re.fullmatch(r"(\w+) +\w+, (\d+) of \d+ steps from the draft, acceptance rate \d+%", one) for one in lines]
    sequential, cautious = (match.groups() for match in found if match)
    assert (sequential[0], cautious[0]) == ("sequential", "cautious")


def test_own_engine(tmp_path: Path, cluster_address: str) -> None:
    line = output("own_engine.py", tmp_path, RAY_ADDRESS=cluster_address)
    assert line == "draft 1, draft 2, target 3, draft 4, draft 5, target 6, draft 7\n"


def test_sapo_loop(tmp_path: Path) -> None:
    lines = output("sapo_loop.py", tmp_path, "2").splitlines()
    assert all(re.fullmatch(r"step \d: correct [\d.]+ \+ accepted [\d.]+ \+ short [\d.]+", line) for line in lines)
    assert len(lines) == 2


def test_openai_client(tmp_path: Path) -> None:
    with running() as endpoint:
        printed = output("openai_client.py", tmp_path, DREAMR_URL=f"{endpoint.url}/v1")
    *_, answer, speculation = printed.splitlines()
    assert re.fullmatch(r"answer: .*\(correct: \d+\)", answer)
    assert "'acceptance_rate': " in speculation
