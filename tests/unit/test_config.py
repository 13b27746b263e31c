"""Reading the configuration: defaults, and one clear sentence for each mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dreamr.config import ActorConfig, Config, GroupConfig, PipelineSettings, load_config
from dreamr.errors import ConfigError

CONFIGS = (Path(__file__).parents[2] / "configs").glob("*.yaml")
EXAMPLES = sorted(path for path in CONFIGS if not path.stem.endswith("-sapo"))  # those are for training
ENGINE = {"kind": "hf", "model": "some/model"}


def with_group(**changes: object) -> str:
    group = {"draft": {"engine": ENGINE}, "target": {"engine": ENGINE}} | changes
    return yaml.safe_dump({"group": group})


def problem(text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        Config.parse(text, "my.yaml")
    message = str(raised.value)
    assert message.startswith("my.yaml: ")
    assert "\n" not in message
    return message


def test_the_default_is_the_embedded_pair_in_three_actors_that_fit_on_two_cores() -> None:
    actors = load_config().group.actors()
    assert [actor.engine.model for actor in actors.values()] == ["embedded:draft", "embedded:target", "embedded:target"]
    assert sum(actor.num_cpus for actor in actors.values()) <= 2
    assert all(actor.num_threads == 1 and actor.engine.device == "cpu" for actor in actors.values())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_file_is_valid(path: Path) -> None:
    assert load_config(path).pipeline.method == "fpsr"


def test_configuration_types_and_schedules_import_no_heavy_library() -> None:
    check = (
        "import sys, dreamr.types, pipelines, dreamr.config as c; c.load_config();"
        "sys.exit(','.join({'torch', 'ray', 'transformers'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"imported: {done.stderr}"


def test_a_misspelt_key_names_itself_its_place_and_the_closest_key() -> None:
    message = problem(with_group(draft={"engine": {"kind": "hf", "modle": "x"}}))
    assert "group.draft.engine" in message
    assert "'modle'" in message
    assert "'model'" in message


def test_an_unknown_key_unlike_any_other_lists_the_keys() -> None:
    assert "the keys are: group, pipeline, cluster" in problem("zzz: 1")


def test_an_unknown_engine_kind_lists_the_kinds() -> None:
    message = problem(with_group(target={"engine": {"kind": "tgi", "model": "x"}}))
    assert "group.target.engine.kind = 'tgi'" in message
    assert "'hf'" in message


def test_a_value_out_of_range_names_key_value_and_bound() -> None:
    text = with_group() + "pipeline: {alpha: 1.5}\n"
    assert "pipeline.alpha = 1.5: input should be less than 1" in problem(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("group: [", "not valid YAML"),
        ("- 1", "expected keys such as 'group'"),
        ("", "expected keys such as 'group'"),
        ("pipeline: {}", "group: this key is missing"),
        (with_group(draft={"engine": {"model": "x"}}), "group.draft.engine: the key 'kind' is missing"),
        (with_group(draft={"engine": ENGINE, "num_cpus": -1}), "group.draft.num_cpus = -1"),
        (
            with_group(draft={"engine": ENGINE, "custom_resources": {"GPU": 1}}),
            "'GPU' is not a custom resource: set num_g",
        ),
        (with_group(draft={"engine": ENGINE, "custom_resources": {"x": 0}}), "group.draft.custom_resources.x = 0"),
        (with_group(verifier="target"), "group.verifier = 'target'"),
        (
            with_group(target={"engine": ENGINE | {"kind": "hf", "background": True}}),
            "group: target.engine.background = true needs a verifier with a separate actor",
        ),
        (
            with_group(draft={"engine": {"kind": "hf", "model": "embedded:small"}}),
            "'embedded:target', 'embedded:draft', 'embedded:draft-untrained'",
        ),
        (with_group(draft={"engine": {"kind": "hf", "model": " "}}), "group.draft.engine.model"),
        (with_group(draft={"engine": {"kind": "import", "factory": "no_colon"}}), "group.draft.engine.factory"),
    ],
)
def test_each_mistake_gets_one_sentence(text: str, said: str) -> None:
    assert said in problem(text)


def test_a_missing_file_says_so_and_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such configuration file"):
        load_config(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_a_shared_verifier_needs_no_actor_of_its_own() -> None:
    assert list(Config.parse(with_group(verifier="shared"), "my.yaml").group.actors()) == ["draft", "target"]
    assert list(Config.parse(with_group(verifier={"engine": ENGINE}), "my.yaml").group.actors()) == [
        "draft",
        "target",
        "verifier",
    ]


def test_resources_carry_rays_names_and_leave_out_what_is_not_asked_for() -> None:
    actor = ActorConfig(engine=ENGINE, num_cpus=2, num_gpus=1, accelerator_type="L40S", memory_mb=3)
    assert actor.resources() == {"CPU": 2, "GPU": 1, "memory": 3 * 2**20, "accelerator_type:L40S": 0.001}
    assert ActorConfig(engine=ENGINE, num_cpus=0).resources() == {}
    assert ActorConfig(engine=ENGINE, num_cpus=0, custom_resources={"target": 1}).resources() == {"target": 1}


def test_a_vllm_actor_needs_a_gpu_for_each_part_of_its_model() -> None:
    engine = {"kind": "vllm", "model": "some/model", "tensor_parallel_size": 4}
    said = problem(with_group(target={"engine": engine, "num_gpus": 2}))
    assert "group.target: num_gpus = 2, but engine.tensor_parallel_size = 4: set num_gpus: 4" in said
    ActorConfig.model_validate({"engine": engine, "num_gpus": 4})
    ActorConfig.model_validate({"engine": engine})  # on CPUs


def test_recommended_sampling_fills_in_for_settings_that_are_not_set() -> None:
    recommended = {"temperature": 0.7, "top_k": 20}
    chosen = PipelineSettings(top_k=3, method="sequential").with_recommended(recommended)
    assert chosen == PipelineSettings(top_k=3, method="sequential", temperature=0.7)
    assert PipelineSettings(temperature=0).with_recommended(recommended).temperature == 0
    off = PipelineSettings(recommended_sampling=False)
    assert off.with_recommended(recommended) == off


def test_a_group_is_immutable() -> None:
    group = GroupConfig(draft={"engine": ENGINE}, target={"engine": ENGINE})
    with pytest.raises(ValueError, match="frozen"):
        group.placement = "SPREAD"  # type: ignore[misc]
