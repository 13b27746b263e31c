"""Memory that follows from a model's shape: weights, KV cache, and whether both fit on some GPUs."""

from __future__ import annotations

from dreamr.config import VLLMEngineConfig
from tools.sizing.public_models import PublicModel, Vision

GIB = 2**30
GPU_BYTES = {"L40S": 46_068 * 2**20, "H100": 81_559 * 2**20}
"""Memory that the driver reports, by Ray's accelerator type."""
AWQ_BITS = 4 + 20 / 128
"""Per weight of a linear layer: 4, and a scale (16) and zero point (4) for each 128 weights."""
OVERHEAD_BYTES = 2 * GIB
"""Set aside per GPU for activations, image encoding and CUDA graphs. An allowance, not measured."""
UNKNOWN_TOWER_BYTES = GIB
"""Allowed for a vision tower whose shape was not found."""


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
    """How many tokens the KV cache holds beside the weights on the GPUs of one actor; below 0: they do not fit."""
    per_gpu = GPU_BYTES[accelerator] * engine.gpu_memory_utilization - OVERHEAD_BYTES
    left = per_gpu * engine.tensor_parallel_size - weight_bytes(model, awq=uses_awq(engine))
    return int(left / kv_bytes_per_token(model))


def uses_awq(engine: VLLMEngineConfig) -> bool:
    return engine.quantization in ("awq", "awq_marlin")


def can_be_split(model: PublicModel, ways: int) -> bool:
    """Whether heads and keys can be shared between that many GPUs."""
    return model.heads % ways == 0 and (model.kv_heads % ways == 0 or ways % model.kv_heads == 0)
