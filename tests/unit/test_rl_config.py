"""What is wrong with a run is said in one sentence, before anything heavy is loaded."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from dreamr.cli.main import app as dreamr_app
from dreamr.config import ClusterSettings, load_config, with_draft
from dreamr.errors import ConfigError
from rl import checkpoints
from rl.checkpoints import JOB_VARIABLE, RUNS_VARIABLE, run_folder
from rl.config import CONFIG_VARIABLE, SapoConfig, load_sapo_config
from rl.launch import cluster_of
from rl.learner import Learner
from rl.train import app, check

ROOT = Path(__file__).parents[2]
BASE: dict[str, Any] = {
    "run": "run",
    "draft": {"engine": {"kind": "hf", "model": "embedded:draft"}},
    "target": {"engine": {"kind": "hf", "model": "embedded:target"}},
}
VLLM = {"kind": "vllm", "model": "embedded:draft"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rolout": {}}, "unknown key 'rolout': did you mean 'rollout'?"),
        ({"rollout": {"group_size": 1}}, "rollout.group_size = 1: input should be greater than or equal to 2"),
        ({"learner": {"micro_batch": 48}}, "learner.micro_batch = 48 has to divide the 64 chains of each learner"),
        ({"learner": {"world_size": 3}}, "rollout.prompts_per_step = 8 has to be a multiple of learner.world_size = 3"),
        ({"checkpoints": {"keep": 1}}, "checkpoints.keep = 1: input should be greater than or equal to 2"),
        ({"learner": {"iterations": 2}}, "checkpoints.every = 25 has to be a multiple of learner.iterations = 2"),
        ({"target": {"engine": {"kind": "scripted"}}}, "training needs kind 'hf' or 'vllm'"),
        (
            {"draft": {"engine": VLLM}, "rollout": {"top_p": 0.9}},
            "rollout.top_p = 0.9: the draft's engine 'vllm' gives the log-probabilities of tokens that are sampled",
        ),
        (
            {"target": {"engine": VLLM}, "rollout": {"temperature": 0.7}, "learner": {"distill_beta": 0.1}},
            "rollout.temperature = 0.7: for learner.distill_beta the target's engine 'vllm' gives log-probabilities at",
        ),
        (
            {"target": {"engine": VLLM | {"speculative": {"method": "ngram"}}}},
            "target.engine.speculative: vLLM gives no log-probabilities while it decodes speculatively",
        ),
        ({"draft": {"engine": {"kind": "hf", "model": "./no"}}}, "draft.engine.model = './no': there is no checkpoint"),
        ({"data": {"name": "scienceqa", "source": "./no"}}, "data.source = './no': there is no such file"),
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
    assert "there is a run in this folder; add --resume to continue, or choose another." in run.stderr


def job(working_dir: bool) -> str:
    """What Ray tells the command of a submitted job about it."""
    runtime_env = {"working_dir": "gcs://_ray_pkg_1.zip"} if working_dir else {}
    return json.dumps({"runtime_env": runtime_env, "metadata": {"job_submission_id": "raysubmit_1"}})


def test_no_second_run_begins_in_a_folder_while_one_trains_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(BASE))
    Path("run").mkdir()
    Path("run/history.jsonl").write_text('{"step": 1}\n')
    with checkpoints.locked(tmp_path / "run"):
        run = CliRunner().invoke(app, ["--config", "run.yaml"])
    assert run.exit_code == 2
    assert "another process is training in this folder; wait for it, or choose another folder." in run.stderr
    assert sorted(path.name for path in Path("run").iterdir()) == ["history.jsonl", "lock"]
    assert Path("run/history.jsonl").read_text() == '{"step": 1}\n'


def test_a_relative_folder_is_refused_in_the_temporary_copy_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    assert JOB_VARIABLE == RAY_JOB_CONFIG_JSON_ENV_VAR
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(JOB_VARIABLE, job(working_dir=True))
    Path("run.yaml").write_text(yaml.safe_dump(BASE))
    run = CliRunner().invoke(app, ["--config", "run.yaml"])
    assert run.exit_code == 2
    assert "run = run: in a job with a working directory this is a folder of its temporary copy" in run.stderr
    assert "--run /shared/run" in run.stderr
    assert run_folder(tmp_path, "x") == tmp_path
    monkeypatch.setenv(JOB_VARIABLE, job(working_dir=False))  # then it runs where `ray start` was called
    assert run_folder(Path("run"), "x") == tmp_path / "run"


def test_without_arguments_the_built_in_draft_is_trained_in_a_folder_that_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (CONFIG_VARIABLE, RUNS_VARIABLE, JOB_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    trained: list[SapoConfig] = []

    async def launch(config: SapoConfig, checkpoint: Path | None, report: object) -> Path:
        trained.append(config)
        return config.folder / "draft"

    monkeypatch.setattr("rl.launch.launch", launch)
    monkeypatch.setattr("actors.cluster.connected", lambda settings: nullcontext())
    run = CliRunner().invoke(app, [])
    assert run.exit_code == 0, run.output
    first, second, *_, last = run.stdout.splitlines()
    assert first.startswith("configuration: ")
    assert first.endswith("dreamr/configs/embedded-sapo.yaml (another one: --config FILE, or DREAMR_SAPO_CONFIG=FILE)")
    folder = trained[0].folder
    assert folder.parent == tmp_path / "dreamr-runs"
    assert re.fullmatch(r"embedded-sapo-\d{8}-\d{6}", folder.name)
    assert second == f"run: {folder} (another folder: --run FOLDER, or DREAMR_RUNS=FOLDER for all runs)"
    assert last == f"trained draft: {folder}/draft"
    assert trained[0].draft.engine.model == "embedded:draft-untrained"  # type: ignore[union-attr]

    Path(tmp_path / "mine.yaml").write_text(yaml.safe_dump({name: BASE[name] for name in ("draft", "target")}))
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "mine.yaml"))
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "shared"))
    monkeypatch.setenv(JOB_VARIABLE, job(working_dir=True))
    run = CliRunner().invoke(dreamr_app, ["train"])
    assert run.exit_code == 0, run.output
    assert run.stdout.startswith(f"configuration: {tmp_path}/mine.yaml (")
    assert trained[1].folder == tmp_path / "shared" / "mine-raysubmit_1"
    assert json.loads((trained[1].folder / "config.json").read_text())["run"] == str(trained[1].folder)

    monkeypatch.delenv(JOB_VARIABLE)
    run = CliRunner().invoke(app, ["--resume"])  # the newest run of that name
    assert run.exit_code == 0, run.output
    assert trained[2].folder == trained[1].folder
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "empty"))
    run = CliRunner().invoke(app, ["--resume"])
    assert run.exit_code == 2
    assert f"--resume: there is no run mine-* in {tmp_path}/empty; name its folder: --run FOLDER" in run.stderr


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"learner": {"learning_rate": 1e-3}}, "--resume: learner.learning_rate = 0.001, but the run in"),
        ({"data": {"seed": 3}}, "was begun with 0; set it back, or choose another --run."),
        ({"draft": {"engine": {"kind": "hf", "model": "embedded:target"}}}, "--resume: draft.engine.model ="),
        ({"learner": {"steps": 7, "micro_batch": 32}, "rollout": {"workers": 1}, "log": {"wandb": "off"}}, None),
        ({"draft": BASE["draft"] | {"num_cpus": 0.5, "env": {"A": "B"}}, "cluster": {"num_cpus": 3}}, None),
    ],
)
def test_a_run_goes_on_with_the_settings_that_it_was_begun_with(
    changes: dict[str, Any], sentence: str | None, tmp_path: Path
) -> None:
    begun = SapoConfig.model_validate(BASE | {"run": tmp_path})
    (tmp_path / "config.json").write_text(json.dumps(begun.public()))
    now = SapoConfig.model_validate(BASE | {"run": tmp_path} | changes)
    if sentence is None:
        check(now, resume=True)
    else:
        with pytest.raises(ConfigError) as refused:
            check(now, resume=True)
        assert sentence in str(refused.value)


def test_environment_variables_of_actors_are_not_published() -> None:
    secret = {
        "draft": BASE["draft"] | {"env": {"KEY": "secret"}},
        "target": BASE["target"] | {"env": {"KEY": "secret"}},
    }
    assert "secret" not in json.dumps(SapoConfig.model_validate(BASE | secret).public())


async def test_a_node_that_does_not_share_the_folder_of_the_run_ends_it(tmp_path: Path) -> None:
    learner = Learner(SapoConfig.model_validate(BASE | {"run": tmp_path}), 0, None)
    (tmp_path / "config.json").write_text("another run's")
    with pytest.raises(ConfigError, match=r"does not share this folder .* give one that all nodes mount: --run FOLDER"):
        await learner.check_folder("written by the command")
    (tmp_path / "config.json").write_text("written by the command")
    await learner.check_folder("written by the command")


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_a_run_without_a_whole_checkpoint_starts_over_and_keeps_what_was_there(
    with_checkpoint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from rl import train

    config = SapoConfig.model_validate(BASE | {"run": tmp_path})
    (tmp_path / "config.json").write_text(json.dumps(config.public()))
    (tmp_path / "history.jsonl").write_text('{"step": 1}\n')
    checkpoint = checkpoints.folder(tmp_path) / "checkpoint-25"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(bytes(10))
    if with_checkpoint:
        checkpoints.seal(checkpoint)
    launched: list[Path | None] = []

    async def launch(config: SapoConfig, checkpoint: Path | None, report: object) -> Path:
        launched.append(checkpoint)
        return tmp_path

    monkeypatch.setattr("rl.launch.launch", launch)
    monkeypatch.setattr("actors.cluster.connected", lambda settings: nullcontext())
    train.start(config, resume=True)
    assert launched == [checkpoint if with_checkpoint else None]
    assert checkpoint.exists() == with_checkpoint
    assert ("no complete checkpoint" in caplog.text) != with_checkpoint
    kept = tmp_path / ("history.jsonl" if with_checkpoint else "history-before-1.jsonl")
    assert kept.read_text() == '{"step": 1}\n'
    assert (tmp_path / "checkpoints-before-1" / "checkpoint-25").exists() != with_checkpoint


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("trl", "wandb") else find(name))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(BASE | {"run": str(tmp_path / "run")}))
    run = CliRunner().invoke(app, ["--config", str(tmp_path / "run.yaml")])
    assert run.exit_code == 2
    assert "training needs trl, wandb: pip install -e '.[train]'" in run.stderr


def test_what_can_be_wrong_is_found_without_importing_anything_heavy() -> None:
    import subprocess

    code = """
import sys
import rl.train
from dreamr.errors import ConfigError
from rl.config import DataSettings
from rl.data import load_data
try:
    load_data(DataSettings(name="scienceqa", source="./no"), "train", 1)
except ConfigError:
    print({"torch", "ray", "trl", "datasets"} & set(sys.modules))
import rl.launch
print({"torch", "transformers", "trl", "datasets"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", "set()"]


def test_the_object_store_of_a_local_cluster_holds_the_weights_twice(tmp_path: Path) -> None:
    for part in range(2):
        with (tmp_path / f"model-{part}.safetensors").open("wb") as file:
            file.truncate(2**30)  # no bytes on disk
    sizes = {
        model: cluster_of(
            SapoConfig.model_validate(BASE | {"draft": {"engine": {"kind": "hf", "model": model}}})
        ).object_store_mb
        for model in ("embedded:draft", str(tmp_path), "example/not-downloaded")
    }
    usual = ClusterSettings().object_store_mb
    assert sizes == {"embedded:draft": usual + 3, str(tmp_path): usual + 4 * 2048, "example/not-downloaded": usual}


def test_a_vllm_pair_may_be_trained(tmp_path: Path) -> None:
    actors = {role: {"engine": VLLM | {"model": f"embedded:{role}"}} for role in ("draft", "target")}
    check(SapoConfig.model_validate(BASE | actors | {"run": tmp_path / "run"}), resume=False)


@pytest.mark.parametrize("name", ["smoke-sapo", "qwen3-vl-sapo"])
def test_a_job_trains_a_shipped_recipe_in_a_folder_that_outlives_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path))
    monkeypatch.setenv(JOB_VARIABLE, job(working_dir=True))
    config = load_sapo_config(ROOT / "configs" / f"{name}.yaml")
    assert run_folder(config.run, name) == tmp_path / f"{name}-raysubmit_1"


def test_another_draft_replaces_the_configured_one() -> None:
    config = load_config()
    replaced = with_draft(config, "embedded:draft-untrained")
    assert replaced.group.draft.engine.model == "embedded:draft-untrained"  # type: ignore[union-attr]
    assert replaced.group.target == config.group.target
    assert with_draft(config, None) is config
    with pytest.raises(ConfigError, match="--draft embedded:drift: the built-in models are"):
        with_draft(config, "embedded:drift")


def test_the_bench_and_the_endpoint_take_another_draft(tmp_path: Path) -> None:
    from serve_app import build

    run = CliRunner().invoke(dreamr_app, ["bench", "--draft", "embedded:drift", "--out", str(tmp_path / "out")])
    assert run.exit_code == 2
    assert "--draft embedded:drift: the built-in models are" in run.stderr
    [config] = build({"draft": "embedded:draft-untrained"})._bound_deployment.init_args
    assert config == with_draft(load_config(), "embedded:draft-untrained")
    with pytest.raises(ValueError, match=r"unknown arguments \['drift'\]: there are 'config', a file, and 'draft'"):
        build({"drift": "x"})
