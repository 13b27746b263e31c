"""Weights of checkpoints on disk, and whether weights fit a loaded model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


def checkpoint_shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of a folder, or of a hub id that has been downloaded."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _files(model):
        with safe_open(path, "pt") as weights:
            shapes.update({name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()})  # noqa: SIM118
    return shapes


def checkpoint_weights(model: str) -> dict[str, Tensor]:
    """Every weight of a folder, or of a hub id that has been downloaded. Raises ValueError when none can be read."""
    tensors: dict[str, Tensor] = {}
    for path in _files(model):
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
    if not tensors:
        raise ValueError(f"{model!r} has no weights: give a folder with *.safetensors files")
    return tensors


def check_shapes(shapes: Shapes, given: Mapping[str, Tensor]) -> None:
    """Raises RuntimeError when a weight is missing or has another shape."""
    for name, shape in shapes.items():
        found = tuple(given[name].shape) if name in given else None
        if found != shape:
            raise RuntimeError(f"the new weights do not fit: {name} is {found}, but must be {shape}")


def _files(model: str) -> Iterator[Path]:
    folder = Path(model)
    if not folder.is_dir():
        folder = Path(snapshot_download(model, local_files_only=True, allow_patterns=["*.safetensors"]))
    return iter(sorted(folder.glob("*.safetensors")))
