"""Forward passes of one loaded Qwen3-VL model over keys and values that the caller owns.

The outer model keeps the rope delta of the last prompt on itself, so two prompts would overwrite each other's. Here
every prompt has its own, positions are always passed, and text goes straight to the language model.

Shapes: n tokens, h hidden size, v vocabulary, c tokens in the cache before the pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import DynamicCache

from dreamr.tasks.processor import EncodedPrompt
from dreamr.types import Tokens


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What the language model reads at the image tokens of one prompt."""

    embeddings: Tensor
    """(num_image_tokens, h)"""
    deepstack: list[Tensor]
    """For each of the first layers (num_image_tokens, h), added to its output."""
    weights: int
    """Which weights computed them (`ForwardPass.weights`)."""


@dataclass(slots=True, eq=False)
class PlacedPrompt:
    """An encoded prompt with its rope positions; the image features are computed once, when first needed."""

    encoded: EncodedPrompt
    positions: Tensor
    """(3, 1, n) rope positions: time, row, column."""
    rope_delta: int
    """Position minus index of every token behind the images."""
    features: ImageFeatures | None = None

    @property
    def tokens(self) -> Tokens:
        return self.encoded.tokens


class ForwardPass:
    """Calls the parts of one model. Not thread-safe but for `place`: the caller holds the turn and inference mode."""

    def __init__(self, model: Any) -> None:
        self.weights = 0
        """To be counted up when the weights change: image features of older ones are computed again."""
        self._inner = model.model
        self._language = model.model.language_model
        self._head = model.lm_head
        self._image_token: int = model.config.image_token_id

    @property
    def device(self) -> torch.device:
        device: torch.device = self._head.weight.device
        return device

    def place(self, encoded: EncodedPrompt) -> PlacedPrompt:
        """Rope positions of a prompt, on the device."""
        ids = torch.tensor([encoded.tokens])
        if encoded.image_grid is None:
            positions, delta = torch.arange(ids.shape[1]).expand(3, 1, -1), 0
        else:
            positions, deltas = self._inner.get_rope_index(
                ids, mm_token_type_ids=encoded.token_types, image_grid_thw=encoded.image_grid
            )
            delta = int(deltas.item())
        return PlacedPrompt(encoded, positions.to(self.device), delta)

    def prompt(self, prompt: PlacedPrompt, kv: DynamicCache) -> Tensor:
        """Fill an empty `kv` with the whole prompt; hidden states (n, h)."""
        ids = torch.tensor([prompt.tokens], device=self.device)
        embeddings = self._language.embed_tokens(ids)
        if prompt.encoded.pixel_values is None:
            return self._run(kv, prompt.positions, inputs_embeds=embeddings)
        features = self._features(prompt)
        image_mask = ids == self._image_token
        embeddings[image_mask] = features.embeddings.to(embeddings.dtype)
        return self._run(
            kv,
            prompt.positions,
            inputs_embeds=embeddings,
            visual_pos_masks=image_mask,
            deepstack_visual_embeds=features.deepstack,
        )

    def text(self, kv: DynamicCache, ids: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Append text tokens to `kv`; hidden states (n, h).

        `ids` (1, n); `positions` (3, 1, n); `mask` boolean (1, 1, n, c + n), True where a row may look, else causal.
        """
        return self._run(kv, positions, input_ids=ids, attention_mask=mask)

    def rows(self, kv: DynamicCache, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Append text tokens to every row of `kv`; hidden states (b, n, h).

        `ids` (b, n); `positions` (3, b, n); `mask` boolean (b, 1, n, c + n), True where a token may look.
        """
        output = self._language(
            position_ids=positions, past_key_values=kv, use_cache=True, input_ids=ids, attention_mask=mask
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def text_positions(self, prompt: PlacedPrompt, start: int, stop: int) -> Tensor:
        """(3, 1, stop - start): positions of text at indices start..stop-1, counted from the prompt's first token.

        Holds for the tokens behind the prompt and for the prompt's own text behind its last image.
        """
        indices = torch.arange(start + prompt.rope_delta, stop + prompt.rope_delta, device=self.device)
        return indices.expand(3, 1, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits (v) of one hidden state (h)."""
        logits: Tensor = self._head(hidden).float()
        return logits

    def word_logits(self, hidden: Tensor, words: tuple[int, ...]) -> Tensor:
        """float32 logits (n, number of words) of hidden states (n, h), multiplied in float32 whatever the model's type.

        In bfloat16 a logit near 20 is rounded to 1/8, which would move rho by several hundredths.
        """
        return linear(hidden.float(), self._head.weight[list(words)].float())

    def _features(self, prompt: PlacedPrompt) -> ImageFeatures:
        if prompt.features is None or prompt.features.weights != self.weights:
            patches: Any = prompt.encoded.pixel_values
            grid: Any = prompt.encoded.image_grid
            output = self._inner.get_image_features(patches.to(self.device), grid.to(self.device), return_dict=True)
            deepstack = [torch.cat(layer) for layer in output.deepstack_features]
            prompt.features = ImageFeatures(torch.cat(output.pooler_output), deepstack, self.weights)
        return prompt.features

    def _run(self, kv: DynamicCache, positions: Tensor, **inputs: Any) -> Tensor:
        output = self._language(position_ids=positions, past_key_values=kv, use_cache=True, **inputs)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden
