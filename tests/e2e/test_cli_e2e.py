"""Commands with the built-in models: an evaluation and Ctrl-C. test_wheel.py runs `demo`, test_rl_train.py `ask`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.parquet import write_parquet
from typer.testing import CliRunner

from dreamr.cli.main import app
from dreamr.tasks.ledger import make_problem

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.mark.usefixtures("ray_cluster")
def test_eval_answers_the_rows_of_a_benchmark(tmp_path: Path) -> None:
    problems = [make_problem("test", 11, index) for index in range(2)]
    data = write_parquet(
        tmp_path / "rows.parquet",
        [{"image": one.image, "question": one.question, "answer": str(one.answer)} for one in problems],
    )
    arguments = ["--benchmark", "realworldqa", "--data", str(data), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["eval", *arguments])
    assert result.exit_code == 0, result.output
    total = json.loads((tmp_path / "out/results.json").read_text())["total"]
    assert (total["num_rows"], total["unparsed"], total["truncated"], total["refused"]) == (2, 0, 0, 0)
    assert total["correct"] >= 1
    assert total["acceptance_rate"] > 0
    assert (tmp_path / "out/results.md").read_text().startswith("# realworldqa")


def test_ctrl_c_ends_the_command_and_its_actors() -> None:
    config = Path(__file__).parents[2] / "configs" / "shared-verifier.yaml"
    command = [sys.executable, "-m", "dreamr", "demo", "--problems", "10000", "--methods", "fpsr"]
    command += ["--config", str(config)]
    heeding = [
        "-c",
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])",
    ]
    # A shell that runs the tests in the background makes them ignore Ctrl-C, and so all that they start.
    process = subprocess.Popen(
        [command[0], *heeding, *command], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        assert any(line.startswith("fpsr: ") for line in process.stdout), "the first problem was never answered"
        actors = actor_processes(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the command and all that it started
        assert process.wait(timeout=60) == 130
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert len(actors) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in actors)


def actor_processes(root: int) -> list[int]:
    """Ray's actor processes among the descendants of a process."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listing.splitlines()]
    family = {root}
    for _ in range(4):  # command, raylet, worker
        family |= {int(pid) for pid, parent, *_ in rows if int(parent) in family}
    return [int(row[0]) for row in rows if int(row[0]) in family and row[-1].startswith("ray::") and "Actor" in row[-1]]
