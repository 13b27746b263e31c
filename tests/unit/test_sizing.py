"""The ready configurations fit the GPUs that they ask for, by the published shapes of their models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dreamr.config import VLLMEngineConfig, load_config
from tools.sizing import (
    GIB,
    OVERHEAD_BYTES,
    PublicModel,
    kv_bytes_per_token,
    kv_tokens,
    num_parameters,
    public_model,
    uses_awq,
    weight_bytes,
)

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = sorted((ROOT / "configs").glob("qwen3-vl-[0-9]*.yaml"))


def can_be_split(model: PublicModel, ways: int) -> bool:
    """Whether heads and keys can be shared between that many GPUs."""
    return model.heads % ways == 0 and (model.kv_heads % ways == 0 or ways % model.kv_heads == 0)


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


@pytest.mark.parametrize(
    ("name", "gpus", "gib"),
    [
        ("gpu-24gb", 1, 22.0),  # what L4 and A10G report
        ("gpu-80gb", 1, 79.0),
        ("gpu-2x80gb", 2, 79.0),
        ("gpu-6xl40s", 6, 44.9),
    ],
)
def test_actors_fit_the_gpus_that_they_share(name: str, gpus: int, gib: float) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    actors = config.group.actors().values()
    assert sum(actor.num_gpus for actor in actors) == pytest.approx(gpus)
    shared_gib = shared_utilization = 0.0
    for actor in actors:
        engine = actor.engine
        assert isinstance(engine, VLLMEngineConfig)
        assert engine.kv_cache_mb is not None
        assert engine.max_model_len is not None
        assert actor.accelerator_type is None
        model, shards = public_model(engine.model), engine.tensor_parallel_size
        assert can_be_split(model, shards)
        assert engine.max_model_len > config.pipeline.max_tokens + config.pipeline.max_step_tokens
        tokens = engine.kv_cache_mb * 2**20 * shards / kv_bytes_per_token(model)
        assert tokens > 1.5 * engine.max_model_len
        wanted = (weight_bytes(model, awq=uses_awq(engine)) / shards + OVERHEAD_BYTES) / GIB + engine.kv_cache_mb / 1024
        assert wanted < gib * engine.gpu_memory_utilization + 1e-6 or actor.num_gpus < 1
        if actor.num_gpus < 1:
            shared_gib, shared_utilization = shared_gib + wanted, shared_utilization + engine.gpu_memory_utilization
    assert shared_gib < gib
    assert shared_utilization < 0.96


@pytest.mark.parametrize(("size", "billions"), [("2B", 2), ("4B", 4), ("32B", 32), ("235B-A22B", 235)])
def test_the_shapes_add_up_to_what_the_models_are_called(size: str, billions: int) -> None:
    assert num_parameters(public_model(f"Qwen/Qwen3-VL-{size}-Thinking")) / 1e9 == pytest.approx(billions, rel=0.12)


def test_four_bits_take_a_little_more_than_a_quarter() -> None:
    model = public_model("Qwen/Qwen3-VL-32B-Thinking")
    assert 0.25 < weight_bytes(model, awq=True) / weight_bytes(model) < 0.33


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(KeyError, match="no public shape is known for 'Qwen/Qwen3-VL-3B'"):
        public_model("Qwen/Qwen3-VL-3B")
