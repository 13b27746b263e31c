"""The training command as a user runs it: here, killed and resumed, and as a job on a cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl.history import read_history

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "smoke-sapo.yaml"
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return clean | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "WANDB_SILENT": "true"} | more


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke run with half of its rollouts: still two micro batches of two groups per step."""
    config = yaml.safe_load(SMOKE.read_text())
    config["rollout"] |= {"prompts_per_step": 2, "groups_per_call": 1}
    config["learner"]["micro_batch"] = 4
    config["evaluation"]["problems"] = 2
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def train(config: Path, run: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "rl/train.py"), "--config", str(config), "--run", str(run), *options]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=run.parent
    )


def training_curve(run: Path) -> list[dict[str, Any]]:
    """What depends on nothing but seeds and weights: not on time, and not on who served a rollout."""
    names = ("step", "loss", "grad_norm", "reward", "rewards/draft/mean", "completions/mean_length", "learning_rate")
    return [{name: row[name] for name in names} for row in read_history(run) if "loss" in row]


@contextmanager
def head(**variables: str) -> Iterator[str]:
    """A separate cluster that accepts jobs, with these environment variables; yields the dashboard's address."""
    port, dashboard, agent = free_port(), free_port(), free_port()
    command = [str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"]
    # The agent that takes jobs has a fixed port else, and other clusters of this machine may hold it.
    command += [
        f"--dashboard-agent-listen-port={agent}",
        "--num-cpus=4",
        "--object-store-memory=200000000",
        "--disable-usage-stats",
    ]
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(**quiet, **variables), stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(f"http://127.0.0.1:{agent}/api/local_raylet_healthz")
        wait_for(f"http://127.0.0.1:{dashboard}/api/jobs/")
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def submit(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """`ray job submit` to a cluster that was started in the checkout, as `cluster.yaml` does; returns the job's log."""
    runs = tmp_path_factory.mktemp("runs")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    with head(DREAMR_SAPO_CONFIG=str(small), DREAMR_RUNS=str(runs), PATH=path) as address:

        def job(*options: str, **variables: str) -> str:
            options += ("--runtime-env-json", json.dumps({"env_vars": variables})) if variables else ()
            done = subprocess.run(
                [str(BIN / "ray"), "job", "submit", *options, "--", "python", "rl/train.py"],
                cwd=ROOT,
                env=environment(RAY_AUTH_MODE="disabled", RAY_ADDRESS=address),
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
            return done.stdout

        yield job


def run_of(log: str) -> Path:
    """The folder that the job names in its first lines and in its last ones."""
    first, *_, last = re.findall(r"^run: (\S+)", log, re.MULTILINE)
    assert first == last
    return Path(first)


@pytest.fixture(scope="module")
def job_run(submit: Callable[..., str]) -> Path:
    """A run as a job that runs in the cluster's checkout."""
    return run_of(submit())


def wait_for(url: str) -> None:
    """Return when it answers."""
    for _ in range(120):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"nothing answers at {url}")


def test_a_job_trains_and_leaves_curves_checkpoints_and_a_draft(job_run: Path) -> None:
    curve = training_curve(job_run)
    assert [row["step"] for row in curve] == [1, 2, 3, 4]
    evaluations = [row for row in read_history(job_run) if "eval/accuracy" in row]
    assert [row["step"] for row in evaluations] == [0, 2, 4]
    assert all(row["eval/fpsr_speedup"] > 0 for row in evaluations)
    names = {name for row in read_history(job_run) for name in row}
    assert names >= {"reward", "reward_std", "rewards/outcome/mean", "rewards/draft/mean", "rewards/length/mean"}
    assert names >= {"entropy", "acceptance/rate", "verifier/rho_mean", "rollout/tokens_per_s", "weight_sync/time_s"}
    assert names >= {"rewards/draft_plain/mean", "staleness/max", "eval/unparsed_rate", "eval/truncated_rate"}
    # What is learnt from is what was sampled, with the probabilities it was sampled with.
    assert max(row["rollout/logprob_gap"] for row in read_history(job_run) if "loss" in row) < 1e-4
    assert {path.name for path in (job_run / "checkpoints").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert list(job_run.glob("wandb/offline-run-*"))


def test_a_job_with_an_uploaded_checkout_trains_in_a_folder_that_outlives_it(
    submit: Callable[..., str], job_run: Path, small: Path, tmp_path: Path
) -> None:
    short = yaml.safe_load(small.read_text())
    short["learner"]["steps"] = short["checkpoints"]["every"] = 1
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(short))
    run = run_of(submit("--working-dir", ".", DREAMR_SAPO_CONFIG=str(tmp_path / "short.yaml")))
    assert run != job_run
    assert training_curve(run)[0]["reward"] == training_curve(job_run)[0]["reward"]
    assert (run / "draft" / "model.safetensors").is_file()


def test_the_trained_draft_answers(job_run: Path) -> None:
    image = job_run / "drawing.png"
    question = subprocess.run(
        [sys.executable, "-m", "dreamr", "example", str(image)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    command = [sys.executable, "-m", "dreamr", "ask", "--image", str(image), "--draft", str(job_run / "draft")]
    text = re.search(r"Start with .*\?", question)
    assert text is not None
    done = subprocess.run(
        [*command, "--no-compare", "--json", text[0]], env=environment(), capture_output=True, text=True, check=True
    )
    document = json.loads(done.stdout)
    assert document["models"]["draft"]["model"] == str(job_run / "draft")
    assert document["result"]["end"] == "answered"


def test_a_run_that_is_killed_goes_on_with_the_same_next_step(job_run: Path, small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = train(small, run)
    assert first.stdout is not None
    for line in first.stdout:
        if re.match(r"step\s+3 ", line):
            break
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert len(training_curve(run)) >= 3
    second = train(small, run, "--resume")
    output, _ = second.communicate()
    assert second.returncode == 0, output
    assert "resuming after step 2" in output
    assert training_curve(run) == training_curve(job_run)
