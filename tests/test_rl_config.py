"""What is wrong with a run is said in one sentence, before anything heavy is loaded."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from dreamr.actors.resources import NotEnoughResources
from dreamr.cli.failures import BadInput
from dreamr.cli.inputs import with_draft
from dreamr.config import load_config
from dreamr.rl import checkpoints
from dreamr.rl.config import SapoConfig
from dreamr.rl.launch import launch
from dreamr.rl.train import app

BASE: dict[str, Any] = {
    "run": "run",
    "draft": {"engine": {"kind": "hf", "model": "embedded:draft"}},
    "target": {"engine": {"kind": "hf", "model": "embedded:target"}},
}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rolout": {}}, "unknown key 'rolout': did you mean 'rollout'?"),
        ({"rollout": {"group_size": 1}}, "rollout.group_size = 1: input should be greater than or equal to 2"),
        ({"learner": {"micro_batch": 48}}, "learner.micro_batch = 48 has to divide the 64 chains of each learner"),
        ({"learner": {"world_size": 3}}, "rollout.prompts_per_step = 8 has to be a multiple of learner.world_size = 3"),
        ({"learner": {"iterations": 2}}, "checkpoints.every = 25 has to be a multiple of learner.iterations = 2"),
        ({"target": {"engine": {"kind": "scripted"}}}, "training needs an engine of kind 'hf'"),
        ({"draft": {"engine": {"kind": "hf", "model": "./no"}}}, "draft.engine.model = './no': there is no checkpoint"),
        ({"data": {"name": "scienceqa", "source": "./no"}}, "data.source = './no': there is nothing"),
        ({"data": {"eval_split": "dev"}}, "the ledger task has no split 'dev'"),
    ],
)
def test_each_mistake_gets_one_sentence(
    changes: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(BASE | changes))
    run = CliRunner().invoke(app, ["--config", "run.yaml"])
    assert run.exit_code == 2, run.output
    assert sentence in run.stderr
    assert run.stderr.count("\n") == 1
    assert not Path("run").exists()


def test_a_folder_is_neither_overwritten_nor_resumed_by_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(BASE))
    run = CliRunner().invoke(app, ["--config", "run.yaml", "--resume"])
    assert run.exit_code == 2
    assert "there is no run in" in run.stderr
    checkpoints.folder(Path("run")).mkdir(parents=True)
    Path("run/config.json").write_text("{}")
    run = CliRunner().invoke(app, ["--config", "run.yaml"])
    assert run.exit_code == 2
    assert "there is a run in this folder; add --resume to go on, or choose another." in run.stderr


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("trl", "wandb") else find(name))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(BASE | {"run": str(tmp_path / "run")}))
    run = CliRunner().invoke(app, ["--config", str(tmp_path / "run.yaml")])
    assert run.exit_code == 2
    assert "training needs trl, wandb: pip install 'dreamr[train]'." in run.stderr


def test_the_command_and_its_checks_import_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys, dreamr.rl.train, dreamr.rl.checks; print({'torch', 'ray', 'trl', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
async def test_a_cluster_that_is_too_small_is_refused_before_anything_starts() -> None:
    config = SapoConfig.model_validate(BASE | {"learner": {"num_gpus": 2}, "rollout": {"workers": 50}})
    with pytest.raises(NotEnoughResources, match=r"needed 53 CPU, 2 GPU; the whole cluster has: 4 CPU, 0 GPU"):
        await launch(config, None, print)


def test_another_draft_replaces_the_configured_one() -> None:
    config = load_config()
    replaced = with_draft(config, "embedded:draft-untrained")
    assert replaced.group.draft.engine.model == "embedded:draft-untrained"  # type: ignore[union-attr]
    assert replaced.group.target == config.group.target
    assert with_draft(config, None) is config
    with pytest.raises(BadInput, match="--draft embedded:drift: the built-in models are"):
        with_draft(config, "embedded:drift")
