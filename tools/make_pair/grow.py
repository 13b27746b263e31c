"""Makes a trained model deeper without changing what it computes: inserted layers begin as the identity."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from tools.make_pair.architecture import Size, build_model


def grow(
    model: Qwen3VLForConditionalGeneration, num_layers: int, on_top: bool, tokenizer: PreTrainedTokenizerFast
) -> Qwen3VLForConditionalGeneration:
    """A model of `num_layers` layers with the same output; new layers are spread evenly among the old or put on top.

    A new layer is the identity because what it adds to the residual stream starts at zero.
    """
    old = model.model.language_model
    deeper = build_model(Size(old.config.hidden_size, num_layers), tokenizer)
    new = deeper.model.language_model
    deeper.model.visual.load_state_dict(model.model.visual.state_dict())
    deeper.model.visual.requires_grad_(False)
    new.embed_tokens.load_state_dict(old.embed_tokens.state_dict())
    new.norm.load_state_dict(old.norm.state_dict())
    num_old = len(old.layers)
    kept = {i if on_top else i * num_layers // num_old: layer for i, layer in enumerate(old.layers)}
    for place, layer in enumerate(new.layers):
        if place in kept:
            layer.load_state_dict(kept[place].state_dict())
        else:
            _silence(layer)
    return deeper


@torch.no_grad()
def _silence(layer: nn.Module) -> None:
    layer.self_attn.o_proj.weight.zero_()  # type: ignore[union-attr, operator]
    layer.mlp.down_proj.weight.zero_()  # type: ignore[union-attr, operator]
