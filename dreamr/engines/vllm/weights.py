"""Weights of a checkpoint that vLLM runs: replacing them in place, and their number."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from dreamr.engines.weights import check_shapes

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_PACKED = (".qweight", ".weight_packed")
"""Names of 4-bit weights, eight to an int32."""

RESET_ATTEMPTS = 50
RESET_PAUSE_S = 0.1


async def replace_weights(
    llm: AsyncLLM, shapes: Mapping[str, tuple[int, ...]], state_dict: Mapping[str, Tensor]
) -> None:
    """Load the weights and drop all cached results of the old ones. No request may run meanwhile.

    Raises RuntimeError for weights that do not have the checkpoint's `shapes`, before anything is loaded, and when
    vLLM keeps cached results of the old ones.
    """
    check_shapes(shapes, state_dict)
    with tempfile.TemporaryDirectory(prefix="dreamr-weights-") as folder:
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
        await asyncio.to_thread(save_file, tensors, Path(folder) / "model.safetensors", {"format": "pt"})
        await llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
    await llm.reset_encoder_cache()
    await _forget_prefixes(llm)


async def _forget_prefixes(llm: AsyncLLM) -> None:
    """Reset the prefix cache; vLLM refuses while a request that was just aborted holds blocks."""
    for _ in range(RESET_ATTEMPTS):
        if await llm.reset_prefix_cache():
            return
        await asyncio.sleep(RESET_PAUSE_S)
    raise RuntimeError("vLLM keeps the prefix cache of the old weights: load the engine again")


def num_parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Number of parameters; packed weights count unpacked."""
    return sum(prod(shape) * (8 if name.endswith(_PACKED) else 1) for name, shape in shapes.items())
