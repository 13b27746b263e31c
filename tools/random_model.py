"""Checkpoints with the shapes of public models and random weights: for measurements that need no download."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, Qwen3VLConfig

from dreamr.engines.factory import model_location
from tools.sizing import PublicModel, Vision

TINY = PublicModel(
    name="tiny",
    source="made up, for a CPU",
    hidden=64,
    layers=2,
    heads=4,
    kv_heads=2,
    intermediate=128,
    vocabulary=8192,
    is_tied=True,
    vision=Vision(layers=4, hidden=64, intermediate=128),
    head_dim=32,
)
POSITIONS = 32768
LARGEST_IMAGE = 4096 * 32 * 32
"""Pixels of 4,096 image tokens."""


def save_random(model: PublicModel, folder: Path, device: str) -> Path:
    """Write the checkpoint in bfloat16 into the new folder `folder`; the weights are drawn on `device`.

    Tokenizer and chat template are those of the built-in target, so most tokens of the vocabulary have no text. A model
    with random weights almost never ends a step by itself: steps are as long as `max_tokens` says.
    """
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            module = AutoModelForImageTextToText.from_config(_config(model))
    finally:
        torch.set_default_dtype(default)
    module.save_pretrained(folder)
    built_in = Path(model_location("embedded:target"))
    for path in built_in.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copy(path, folder)
    images = json.loads((built_in / "preprocessor_config.json").read_text(encoding="utf-8"))
    images["size"]["longest_edge"] = LARGEST_IMAGE
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    return folder


def _config(model: PublicModel) -> Qwen3VLConfig:
    """Raises AssertionError for a model with experts, or whose vision tower is not Qwen3-VL's."""
    vision = model.vision
    assert vision is not None
    assert model.experts == 0
    assert vision.mlp_matrices == 2
    special = json.loads((Path(model_location("embedded:target")) / "config.json").read_text(encoding="utf-8"))
    tokens = {name: number for name, number in special.items() if name.endswith("_token_id")}
    levels = vision.mergers - 1
    side = model.head_dim // 2 * 20 // 64
    return Qwen3VLConfig(
        text_config={
            "vocab_size": model.vocabulary,
            "hidden_size": model.hidden,
            "intermediate_size": model.intermediate,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.head_dim,
            "max_position_embeddings": POSITIONS,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [model.head_dim // 2 - 2 * side, side, side],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": model.is_tied,
            **{name: special["text_config"][name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        },
        vision_config={
            "depth": vision.layers,
            "hidden_size": vision.hidden,
            "intermediate_size": vision.intermediate,
            "num_heads": vision.hidden // 64,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": model.hidden,
            "num_position_embeddings": 48 * 48,
            "deepstack_visual_indexes": [(level + 1) * vision.layers // (levels + 1) - 1 for level in range(levels)],
        },
        tie_word_embeddings=model.is_tied,
        **tokens,
    )
