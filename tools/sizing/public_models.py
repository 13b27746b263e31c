"""Shapes of public models, as others publish them. Every entry names where its numbers were read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vision:
    """The vision tower and its merger into the language model."""

    layers: int
    hidden: int
    intermediate: int
    mlp_matrices: int = 2
    """Three where the MLP is gated."""
    mergers: int = 4
    """One, and one for each deepstack level."""


@dataclass(frozen=True, slots=True)
class PublicModel:
    """One architecture; `intermediate` is one expert's where there are experts."""

    name: str
    source: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    is_tied: bool
    """Whether the embedding is the output head as well."""
    vision: Vision | None
    """None: not found; see `source`."""
    experts: int = 0
    head_dim: int = 128


SMALL_TOWER = Vision(layers=24, hidden=1024, intermediate=4096)
LARGE_TOWER = Vision(layers=27, hidden=1152, intermediate=4304)

PUBLIC_MODELS = (
    PublicModel(
        name="Qwen3-VL-2B",
        source="pytorch/torchtitan, torchtitan/experiments/qwen3_vl/__init__.py",
        hidden=2048,
        layers=28,
        heads=16,
        kv_heads=8,
        intermediate=6144,
        vocabulary=151936,
        is_tied=True,
        vision=SMALL_TOWER,
    ),
    PublicModel(
        name="Qwen3-VL-4B",
        source="config.json of chamber111/PVM-4B, made from it; vision: InternLM/xtuner, qwen3_vl_config.py",
        hidden=2560,
        layers=36,
        heads=32,
        kv_heads=8,
        intermediate=9728,
        vocabulary=151936,
        is_tied=True,
        vision=SMALL_TOWER,
    ),
    PublicModel(
        name="Qwen3-VL-32B",
        source="config.json of quanliang/F1, made from it",
        hidden=5120,
        layers=64,
        heads=64,
        kv_heads=8,
        intermediate=25600,
        vocabulary=151936,
        is_tied=False,
        vision=LARGE_TOWER,
    ),
    PublicModel(
        name="Qwen3-VL-235B-A22B",
        source="pytorch/torchtitan, torchtitan/experiments/qwen3_vl/__init__.py",
        hidden=4096,
        layers=94,
        heads=64,
        kv_heads=4,
        intermediate=1536,
        experts=128,
        vocabulary=151936,
        is_tied=False,
        vision=LARGE_TOWER,
    ),
    PublicModel(
        name="R-4B",
        source="language model: Qwen3-4B by its model card, with the shape of Qwen3-VL-4B's; vision tower: not found",
        hidden=2560,
        layers=36,
        heads=32,
        kv_heads=8,
        intermediate=9728,
        vocabulary=151936,
        is_tied=True,
        vision=None,
    ),
    PublicModel(
        name="MiMo-VL-7B-RL",
        source="language model: MiMo-7B in Megatron-Bridge's test_mimo_bridge.py; vision: defaults of "
        "transformers' Qwen2_5_VLVisionConfig",
        hidden=4096,
        layers=36,
        heads=32,
        kv_heads=8,
        intermediate=11008,
        vocabulary=151680,
        is_tied=False,
        vision=Vision(layers=32, hidden=1280, intermediate=3420, mlp_matrices=3, mergers=1),
    ),
)


def public_model(checkpoint: str) -> PublicModel:
    """The shape behind a hub id such as `QuantTrio/Qwen3-VL-32B-Thinking-AWQ`. Raises KeyError for others."""
    name = checkpoint.rpartition("/")[2]
    matching = [model for model in PUBLIC_MODELS if name == model.name or name.startswith(f"{model.name}-")]
    if not matching:
        raise KeyError(f"no public shape is known for {checkpoint!r}")
    return max(matching, key=lambda model: len(model.name))
