"""Memory of public models, from their published shapes, and KV cache tokens of the ready configurations.

Every entry of `PUBLIC_MODELS` names the place where its numbers were read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dreamr.config import ActorConfig, VLLMEngineConfig, load_config
from dreamr.markdown import markdown_table

GIB = 2**30
GPU_BYTES = {"L40S": 46_068 * 2**20, "H100": 81_559 * 2**20}
"""Memory that the driver reports, by Ray's accelerator type."""
AWQ_BITS = 4 + 20 / 128
"""Per weight of a linear layer: 4, and a scale (16) and zero point (4) for each 128 weights."""
OVERHEAD_BYTES = 2 * GIB
"""Set aside per GPU for activations, image encoding and CUDA graphs. An allowance, not measured."""
UNKNOWN_TOWER_BYTES = GIB
"""Allowed for a vision tower whose shape was not found."""


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
    """The shape of a hub id such as `QuantTrio/Qwen3-VL-32B-Thinking-AWQ`. Raises KeyError for others."""
    name = checkpoint.rpartition("/")[2]
    matching = [model for model in PUBLIC_MODELS if name == model.name or name.startswith(f"{model.name}-")]
    if not matching:
        raise KeyError(f"no public shape is known for {checkpoint!r}")
    return max(matching, key=lambda model: len(model.name))


def layer_parameters(model: PublicModel) -> int:
    """Parameters of all linear layers of the language model: what AWQ packs."""
    attention = model.hidden * model.head_dim * 2 * (model.heads + model.kv_heads)
    one_mlp = 3 * model.hidden * model.intermediate
    mlp = model.experts * (one_mlp + model.hidden) if model.experts else one_mlp
    return model.layers * (attention + mlp)


def other_parameters(model: PublicModel) -> int:
    """Embedding, output head and vision tower: kept in 16 bits. Norms and biases are too small to count."""
    embeddings = model.vocabulary * model.hidden * (1 if model.is_tied else 2)
    return embeddings + (tower_parameters(model.vision, model.hidden) if model.vision else 0)


def tower_parameters(tower: Vision, out: int) -> int:
    layer = 4 * tower.hidden**2 + tower.mlp_matrices * tower.hidden * tower.intermediate
    merged = 4 * tower.hidden  # 2 x 2 patches
    return tower.layers * layer + tower.mergers * (merged**2 + merged * out)


def num_parameters(model: PublicModel) -> int:
    return layer_parameters(model) + other_parameters(model)


def weight_bytes(model: PublicModel, *, awq: bool = False) -> float:
    unknown = 0 if model.vision else UNKNOWN_TOWER_BYTES
    return layer_parameters(model) * (AWQ_BITS / 8 if awq else 2) + other_parameters(model) * 2 + unknown


def kv_bytes_per_token(model: PublicModel) -> int:
    """Keys and values of one token in 16 bits, over all GPUs together."""
    return 2 * model.layers * model.kv_heads * model.head_dim * 2


def kv_tokens(model: PublicModel, engine: VLLMEngineConfig, accelerator: str) -> int:
    """Tokens that the KV cache holds next to the weights on the GPUs of one actor; negative: the weights do not fit."""
    per_gpu = GPU_BYTES[accelerator] * engine.gpu_memory_utilization - OVERHEAD_BYTES
    left = per_gpu * engine.tensor_parallel_size - weight_bytes(model, awq=uses_awq(engine))
    return int(left / kv_bytes_per_token(model))


def uses_awq(engine: VLLMEngineConfig) -> bool:
    return engine.quantization in ("awq", "awq_marlin")


def models_table() -> str:
    """Memory of each public model, and the source of its shape."""
    rows = [["model", "parameters", "weights, 16 bits", "weights, AWQ", "KV cache per 1,000 tokens", "shape from"]]
    for model in PUBLIC_MODELS:
        unknown = "" if model.vision else " + tower"
        rows.append(
            [
                model.name,
                f"{num_parameters(model) / 1e9:.1f} B{unknown}",
                f"{weight_bytes(model) / GIB:.1f} GiB",
                f"{weight_bytes(model, awq=True) / GIB:.1f} GiB",
                f"{1000 * kv_bytes_per_token(model) / GIB:.2f} GiB",
                model.source,
            ]
        )
    return markdown_table(rows)


def configurations_table(paths: list[Path]) -> str:
    """GPUs of each configuration, and how many tokens the KV caches of its actors hold."""
    rows = [["configuration", "draft", "target", "verifier", "GPUs"]]
    for path in sorted(paths):
        group = load_config(path).group
        actors = group.actors()
        verifier = _cell(actors["verifier"]) if "verifier" in actors else "shared"
        gpus = sum(actor.num_gpus for actor in actors.values())
        kind = actors["target"].accelerator_type
        rows.append([f"`{path.name}`", _cell(group.draft), _cell(group.target), verifier, f"{gpus:g} x {kind}"])
    return markdown_table(rows)


def _cell(actor: ActorConfig) -> str:
    engine = actor.engine
    assert isinstance(engine, VLLMEngineConfig), "these configurations run vLLM"
    assert actor.accelerator_type is not None
    model = public_model(engine.model)
    tokens = kv_tokens(model, engine, actor.accelerator_type)
    return f"{model.name}{' AWQ' if uses_awq(engine) else ''} on {actor.num_gpus:g}: {tokens // 1000} k tokens"
