"""The learner's weights as one state dict on one rank, whatever ZeRO has done with them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def gather_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor] | None:
    """Copies of all parameters on the CPU where `keep` is true, else None.

    Collective: every rank has to call it. Under ZeRO-3 each parameter is gathered by itself, so no rank ever holds
    the whole model twice.
    """
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        with _whole(parameter), torch.no_grad():
            if keep:
                weights[name] = parameter.detach().to("cpu", copy=True)
    return weights if keep else None


def _whole(parameter: Any) -> Any:
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])
