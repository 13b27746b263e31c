"""What a run keeps on disk: history, curves, checkpoints."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from typer.testing import CliRunner

from dreamr.cli.main import app
from dreamr.errors import ConfigError, TrainingFailed
from rl import checkpoints
from rl.config import LogSettings, load_sapo_config
from rl.history import History, read_history
from tools import ablation

QUIET = LogSettings(wandb="off")
ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "smoke-sapo.yaml"


def filled(run: Path, steps: int) -> Path:
    run.mkdir()
    history = History(run, 0, QUIET, {})
    for step in range(steps):
        history.log(step, {"reward": step / 10, "rewards/draft/mean": 0.5, "nan": float("nan"), "text": "no"})
    return run


def test_history_holds_numbers_only_and_a_resumed_run_replaces_what_it_does_again(tmp_path: Path) -> None:
    run = filled(tmp_path / "run", 5)
    assert read_history(run)[2] == {"step": 2, "reward": 0.2, "rewards/draft/mean": 0.5}
    with (run / "history.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')  # killed while it wrote
    resumed = History(run, 2, QUIET, {})
    resumed.log(3, {"reward": 9.0})
    assert [(row["step"], row["reward"]) for row in read_history(run)] == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 9.0)]


def test_curves_of_one_run_and_of_two(tmp_path: Path) -> None:
    first, second = filled(tmp_path / "first", 3), filled(tmp_path / "second", 4)
    run = CliRunner().invoke(app, ["curves", str(first)])
    assert run.exit_code == 0, run.output
    assert (first / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = tmp_path / "both.html"
    assert CliRunner().invoke(app, ["curves", str(first), str(second), "--out", str(page)]).exit_code == 0
    assert "<svg" in page.read_text()
    assert "first, second" in page.read_text()


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """The real errors of the writers, from a device that is always full."""
    run = filled(tmp_path / "run", 1)
    history = History(run, 1, QUIET, {})
    (run / "history.jsonl").unlink()
    (run / "history.jsonl").symlink_to("/dev/full")
    writers: list[Callable[[], object]] = [
        lambda: history.log(1, {"reward": 1.0}),
        lambda: torch.save({"weight": torch.zeros(10**6)}, "/dev/full"),
    ]
    for write in writers:
        sentence = f"no space is left on the disk of {run}: free some"
        with pytest.raises(TrainingFailed, match=sentence), checkpoints.full_disk_named(run):
            write()
    with pytest.raises(ZeroDivisionError), checkpoints.full_disk_named(run):
        raise ZeroDivisionError


def test_a_folder_holds_one_run_at_a_time(tmp_path: Path) -> None:
    run = filled(tmp_path / "run", 3)
    with checkpoints.locked(run):
        sentence = f"run = {run}: another process is training in this folder"
        with pytest.raises(ConfigError, match=sentence), checkpoints.locked(run):
            pass
    with checkpoints.locked(run):
        assert len(read_history(run)) == 3


def test_pictures_of_completions_lie_in_the_folder_of_the_run(tmp_path: Path) -> None:
    home, run = tmp_path / "home", tmp_path / "run"
    for folder in (home, run):
        folder.mkdir()
    code = f"""
from pathlib import Path
from PIL import Image
from rl.config import LogSettings
from rl.history import History
history = History(Path({str(run)!r}), 0, LogSettings(wandb="offline"), {{}})
history.log_table(1, "completions", ["step", "image"], [[1, Image.new("RGB", (8, 8))]])
history.close()
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "XDG"))}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "WANDB_SILENT": "true"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=tmp_path)
    assert list((run / "wandb" / "artifacts").rglob("*"))
    assert not [path for path in home.rglob("artifacts/**/*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere holds no history of a training run: give a folder that rl/train.py has written."),
        (["run", "--out", "curves.gif"], "--out curves.gif: the name must end in .html or .png"),
    ],
)
def test_curves_refuse_in_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, ["curves", *arguments])
    assert run.exit_code == 2
    assert sentence in run.stderr


def checkpoint(run: Path, step: int) -> Path:
    folder = checkpoints.folder(run) / f"checkpoint-{step}"
    (folder / "shards").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(1000))
    (folder / "shards" / "optimizer").write_bytes(bytes([step]) * 500)
    checkpoints.seal(folder)
    return folder


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    assert checkpoints.newest(tmp_path) == newest
    assert checkpoints.step_of(newest) == 10


def test_what_is_no_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 9)
    above = checkpoints.folder(tmp_path)
    for name in ("checkpoint-best", "checkpoint-10-copy", "checkpoint-", "tmp-checkpoint-12"):
        shutil.copytree(whole, above / name)
    (above / "checkpoint-11").write_text("a file")
    assert checkpoints.newest(tmp_path) == whole


@pytest.mark.parametrize("manifest", ["[]", "null", '"text"', "{}", '{"weights": 1}', '{"../../secret": {"size": 1}}'])
def test_a_manifest_that_is_none_is_passed_over(manifest: str, tmp_path: Path) -> None:
    before, newest = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    (newest / checkpoints.MANIFEST).write_text(manifest)
    assert checkpoints.newest(tmp_path) == before


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "unfinished", "garbled"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, newest = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    optimizer = newest / "shards" / "optimizer"
    match damage:
        case "cut":
            optimizer.write_bytes(optimizer.read_bytes()[:100])
        case "changed":
            optimizer.write_bytes(bytes(500))
        case "missing":
            optimizer.unlink()
        case "unfinished":
            (newest / checkpoints.MANIFEST).unlink()
        case "garbled":
            (newest / checkpoints.MANIFEST).write_text(json.dumps({"weights": 1})[:5])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest(tmp_path) == before
    assert "checkpoint-10 is skipped" in caplog.text


def test_the_ablation_tells_how_far_its_runs_went_and_what_they_reached(tmp_path: Path) -> None:
    evaluation = {"eval/accuracy": 0.5, "eval/acceptance_rate": 0.25, "eval/drafted_step_tokens": 12.0}
    (tmp_path / "run").mkdir()
    history = History(tmp_path / "run", 0, QUIET, {})
    history.log(0, evaluation | {"eval/fpsr_speedup": 1.0})
    parts = dict.fromkeys(("rewards/outcome/mean", "rewards/draft/mean", "rewards/length/mean"), 0.5)
    history.log(1, {"loss": 0.1, "reward": 1.5, "rollout/step_tokens": 9.0} | parts)
    history.log(2, {"loss": 0.1} | evaluation | {"eval/fpsr_speedup": 1.875})  # a second update on the same rollouts
    ended = ablation.ended_with(tmp_path / "run")
    assert ended["steps"] == 2
    table = ablation.table({"runs": {"equal": {"weights": [1, 1, 1], **ended}}})
    assert table.splitlines()[-1] == "| equal | 1 : 1 : 1 | 25.0 % | 12.0 | 50.0 % | 1.88 |"


@pytest.mark.parametrize(("step", "age"), [(3, 0.0), (4, 1.0)])
def test_the_age_of_rollouts_is_logged_for_every_step_that_uses_them(step: int, age: float, tmp_path: Path) -> None:
    from rl.evaluation import Bookkeeper

    history = History(tmp_path, 0, QUIET, {})
    nothing: Any = None
    bookkeeper = Bookkeeper(load_sapo_config(SMOKE), nothing, nothing, nothing, history, lambda line: None)
    bookkeeper.trainer = cast(Any, SimpleNamespace(oldest_version=2))
    bookkeeper._metrics = lambda step: {}  # type: ignore[method-assign]
    state = SimpleNamespace(global_step=step, max_steps=100)
    bookkeeper.on_log(None, state, None, logs={"loss": 0.5})
    assert read_history(tmp_path) == [{"step": step, "loss": 0.5, "staleness/max": age}]


def test_the_draft_is_exported_whole_while_transformers_thinks_of_zero_3(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    from dreamr.engines.factory import model_location
    from dreamr.tasks.prompts import load_prompt_config
    from rl.learner import export

    source = model_location("embedded:draft")
    weights = {name: weight + 0.5 for name, weight in load_file(Path(source) / "model.safetensors").items()}
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]  # one tensor, two names
    active = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    assert active.is_zero3()
    assert is_deepspeed_zero3_enabled()
    prompts = load_prompt_config(Path(source), {"instruction": " Be brief."})
    written = load_file(export(weights, source, prompts, tmp_path / "draft") / "model.safetensors")
    assert load_prompt_config(tmp_path / "draft") == prompts
    assert written.keys() == weights.keys() - {"lm_head.weight"}
    assert all(torch.equal(weight, weights[name]) for name, weight in written.items())
