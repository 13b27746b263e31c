"""A copy of a built-in checkpoint that is the same model in every word, with every token id changed."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def permuted_copy(folder: Path, copy: Path) -> Path:
    """Shuffle the vocabulary: the same words, other ids, and the rows of the (tied) embedding in the new order."""
    shutil.copytree(folder, copy)
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    new = list(range(len(vocabulary)))
    random.Random(0).shuffle(new)
    tokenizer["model"]["vocab"] = {word: new[old] for word, old in vocabulary.items()}
    for token in tokenizer["added_tokens"]:
        token["id"] = new[token["id"]]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in ("config.json", "generation_config.json"):
        (copy / name).write_text(json.dumps(_with_new_ids(json.loads((copy / name).read_text()), new)))
    weights = load_file(copy / "model.safetensors")
    name = "model.language_model.embed_tokens.weight"
    weights[name] = weights[name][torch.tensor(new).argsort()].contiguous()
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


def _with_new_ids(value: Any, new: list[int]) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: new[entry] if key.endswith("token_id") and isinstance(entry, int) else _with_new_ids(entry, new)
        for key, entry in value.items()
    }
