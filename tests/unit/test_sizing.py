"""The ready configurations fit the GPUs that they ask for, by the published shapes of their models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dreamr.config import VLLMEngineConfig, load_config
from tools.sizing import can_be_split, kv_tokens, num_parameters, public_model, uses_awq, weight_bytes

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = sorted((ROOT / "configs").glob("qwen3-vl-[0-9]*.yaml"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_a_configuration_fits_its_gpus_and_says_how_many(path: Path) -> None:
    config = load_config(path)
    actors = config.group.actors()
    for role, actor in actors.items():
        engine = actor.engine
        assert isinstance(engine, VLLMEngineConfig)
        assert actor.accelerator_type is not None
        assert actor.num_gpus == engine.tensor_parallel_size
        model = public_model(engine.model)
        assert can_be_split(model, engine.tensor_parallel_size)
        assert engine.max_model_len is not None
        assert engine.max_model_len >= config.pipeline.max_tokens + config.pipeline.max_step_tokens
        # One request's own calls share a prefix; room for two more that share nothing.
        assert kv_tokens(model, engine, actor.accelerator_type) > 3 * engine.max_model_len, role
        assert ("AWQ" in engine.model) == uses_awq(engine)
    [said] = re.findall(r"GPUs: (\d+) x (\w+)", path.read_text())
    assert said == (f"{sum(actor.num_gpus for actor in actors.values()):g}", actors["target"].accelerator_type)


@pytest.mark.parametrize(("size", "billions"), [("2B", 2), ("4B", 4), ("32B", 32), ("235B-A22B", 235)])
def test_the_shapes_add_up_to_what_the_models_are_called(size: str, billions: int) -> None:
    assert num_parameters(public_model(f"Qwen/Qwen3-VL-{size}-Thinking")) / 1e9 == pytest.approx(billions, rel=0.12)


def test_four_bits_take_a_little_more_than_a_quarter() -> None:
    model = public_model("Qwen/Qwen3-VL-32B-Thinking")
    assert 0.25 < weight_bytes(model, awq=True) / weight_bytes(model) < 0.33


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(KeyError, match="no public shape is known for 'Qwen/Qwen3-VL-3B'"):
        public_model("Qwen/Qwen3-VL-3B")
