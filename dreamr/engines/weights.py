"""Weights of a checkpoint as they lie on disk: names and shapes, without loading them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import safe_open

_PACKED = (".qweight", ".weight_packed")
"""Names of 4-bit weights, eight to an int32."""


def checkpoint_shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of a folder, or of a hub id that has been downloaded."""
    folder = Path(model)
    if not folder.is_dir():
        folder = Path(snapshot_download(model, local_files_only=True, allow_patterns=["*.safetensors"]))
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            shapes.update({name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()})  # noqa: SIM118
    return shapes


def num_parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Parameters in these weights; packed ones count as what they stand for."""
    return sum(prod(shape) * (8 if name.endswith(_PACKED) else 1) for name, shape in shapes.items())
