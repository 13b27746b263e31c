"""`make gpu-check` on a CPU: smaller models, the same parts and report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tools import gpu_check
from tools.gpu_check import app

PARTS = ["--leave-out", "contract", "--leave-out", "call"]


@pytest.fixture(autouse=True)
def only_hf(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(gpu_check, "ENGINES", ["hf"])


def test_it_measures_two_models_and_predicts_speedups_from_them(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["--out", str(tmp_path / "report.json"), *PARTS])
    assert run.exit_code == 0, run.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failures"] == {}
    assert [(one["model"], one["engine"]) for one in report["latencies"]] == [("tiny", "hf"), ("tiny-6", "hf")]
    for one in report["latencies"]:
        assert one["first_token_s"] + 32 * one["token_s"] > 0
        assert min(one["prompt_s"], one["first_token_s"], one["verdict_s"], one["batch_tokens_per_s"]) > 0
        assert one["prompt_tokens"] > 6  # a picture of 96 x 64 has 6 tokens
    assert set(report["predicted"]) == {"sequential", "fpsr", "lookahead"}
    assert "| tiny-6 | hf |" in run.stdout
    assert "predicted, at the acceptance rates of q32b-q2b: sequential" in run.stdout


def test_a_part_that_fails_is_named_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(engine: object, model: str, image_size: tuple[int, int]) -> None:
        raise RuntimeError(f"out of memory for\n{model}")

    monkeypatch.setattr(gpu_check, "measure", measure)
    monkeypatch.setattr(gpu_check, "contract", lambda device, folder: {"passed": 2, "failed": 0, "skipped": 1})
    run = CliRunner().invoke(app, ["--out", str(tmp_path / "report.json"), "--leave-out", "call"])
    assert run.exit_code == 1
    assert "FAILED tiny, hf: RuntimeError: out of memory for tiny" in run.stdout
    assert "FAILED tiny-6, hf:" in run.stdout
    assert "contract: 2 passed, 0 failed, 1 skipped" in run.stdout
    assert json.loads((tmp_path / "report.json").read_text())["predicted"] is None
