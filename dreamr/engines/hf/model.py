"""Forward passes of one Qwen3-VL model over many sequences at once.

    row 1   t t t t t          each row: new tokens of one sequence, however many
    row 2   t                  all rows are packed into one sequence of tokens for the linear layers;
    row 3   t t                attention runs row by row over that row's own keys and values

Rows of any lengths share one forward, and a row gives the same result as alone. Rope positions are always passed:
the outer model keeps the rope delta of the last prompt on itself, so two prompts would overwrite each other's.

Shapes: n new tokens of a row, t tokens of all rows, h hidden size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import AttentionInterface

from dreamr.engines.hf.cache import CachedSequence, KVShape
from dreamr.engines.weights import check_shapes
from dreamr.tasks.processor import EncodedPrompt
from dreamr.types import Tokens

ATTENTION = "dreamr_rows"
LOGIT_ROWS = 256
"""Rows of logits that are computed at a time where there may be thousands."""


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """The language model's inputs at the image tokens of one prompt."""

    embeddings: Tensor
    """(num_image_tokens, h)"""
    deepstack: list[Tensor]
    """Per early layer (num_image_tokens, h), added to the output of that layer."""
    weights_version: int
    """Version of the weights that computed them (`Model.weights_version`)."""


@dataclass(slots=True, eq=False)
class PlacedPrompt:
    """An encoded prompt with its rope positions; the image features are computed once, when first needed."""

    encoded: EncodedPrompt
    positions: Tensor
    """(3, n) rope positions: time, row, column."""
    rope_delta: int
    """Offset from index to position of every token after the images."""
    features: ImageFeatures | None = None

    @property
    def tokens(self) -> Tokens:
        return self.encoded.tokens


@dataclass(slots=True, eq=False)
class Row:
    """New tokens of one sequence in a forward; their keys and values are written after the cached ones."""

    sequence: CachedSequence
    tokens: Tokens
    prompt: PlacedPrompt | None
    """Source of the rope positions; its tokens come first when the sequence is empty. None: bare text."""
    reads: Sequence[int] = (-1,)
    """Places among `tokens` whose hidden states are returned."""
    places: Sequence[int] | None = None
    """Index of each token in its own sequence; None: they follow each other after the cached ones."""
    mask: Tensor | None = None
    """Boolean (n, cached + n), True where a token may attend; None: causal."""


@dataclass(slots=True)
class _Packed:
    """Attention's inputs for each row, shared by all layers."""

    sequence: CachedSequence
    num_cached: int
    num_new: int
    mask: Tensor | None
    is_causal: bool


@dataclass(slots=True)
class _Inputs:
    ids: list[int] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    images: list[tuple[int, PlacedPrompt]] = field(default_factory=list)
    """Prompts with images, and the place where each begins."""


class Model:
    """One loaded checkpoint. Only the engine's loop calls `run`; the caller holds inference mode."""

    def __init__(self, model: Any) -> None:
        AttentionInterface.register(ATTENTION, _attend)
        self.module = model
        self.weights_version = 0
        """Increased when the weights change, so that image features are computed again."""
        self._inner = model.model
        self._language = model.model.language_model
        self._language.config._attn_implementation = ATTENTION
        self._head = model.lm_head
        self._image_token: int = model.config.image_token_id
        config = model.config.text_config
        self.max_positions: int = config.max_position_embeddings
        self.num_logits: int = self._head.weight.shape[0]
        self.kv_shape = KVShape(
            config.num_hidden_layers,
            config.num_key_value_heads,
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            self._language.embed_tokens.weight.dtype,
            self.device,
        )

    @property
    def device(self) -> torch.device:
        device: torch.device = self._head.weight.device
        return device

    def place(self, encoded: EncodedPrompt) -> PlacedPrompt:
        """Rope positions of a prompt, on the device. May be called from any thread."""
        ids = torch.tensor([encoded.tokens])
        if encoded.image_grid is None:
            return PlacedPrompt(encoded, torch.arange(ids.shape[1], device=self.device).expand(3, -1), 0)
        positions, deltas = self._inner.get_rope_index(
            ids, mm_token_type_ids=encoded.token_types, image_grid_thw=encoded.image_grid
        )
        return PlacedPrompt(encoded, positions[:, 0].to(self.device), int(deltas.item()))

    def run(self, rows: Sequence[Row]) -> list[Tensor]:
        """Hidden states (len(row.reads), h) of every row; writes the rows' keys and values, whose space is reserved."""
        inputs, packed = _Inputs(), []
        for row in rows:
            self._add(inputs, row)
            cached = len(row.sequence.tokens)
            packed.append(_packed(row, cached, self.device))
        hidden = self._forward(inputs, packed)
        results, start = [], 0
        for row in rows:
            states = hidden[start : start + len(row.tokens)]
            results.append(states[list(row.reads)])
            start += len(row.tokens)
        return results

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits (n, v) of hidden states (n, h)."""
        logits: Tensor = self._head(hidden).float()
        return logits

    def word_logprobs(self, hidden: Tensor, logits: Tensor, words: Tokens) -> list[float]:
        """Log-probabilities of some words after one hidden state (h), whose logits (v) are given.

        The words' logits are computed in float32 for every type of model: in bfloat16 a logit near 20 is rounded to
        1/8, which would move rho by several hundredths.
        """
        exact = linear(hidden[None].float(), self._head.weight[list(words)].float())[0]
        values: list[float] = (exact - torch.logsumexp(logits, -1)).tolist()
        return values

    def logprobs(self, hidden: Tensor, tokens: Tokens, temperature: float) -> list[float]:
        """Log-probabilities of `tokens` (n) from the hidden states (n, h) before each.

        A few rows at a time: all logits of a long chain would take gigabytes at a vocabulary of 150,000.
        """
        wanted = torch.tensor(tokens, device=hidden.device)
        parts = []
        for rows, ids in zip(hidden.split(LOGIT_ROWS), wanted.split(LOGIT_ROWS), strict=True):
            distributions = (self.logits(rows) / temperature).log_softmax(-1)
            parts.append(distributions.gather(-1, ids[:, None])[:, 0])
        values: list[float] = torch.cat(parts).tolist()
        return values

    def replace_weights(self, state_dict: Any) -> None:
        """Load weights in place. Raises RuntimeError for weights that do not fit, before anything is changed."""
        own = {name: tuple(weight.shape) for name, weight in self.module.state_dict().items()}
        check_shapes(own, state_dict)
        if unknown := sorted(state_dict.keys() - own.keys()):
            raise RuntimeError(f"the new weights do not fit: this model has no {unknown[0]}")
        self.weights_version += 1
        self.module.load_state_dict(state_dict)

    def _add(self, inputs: _Inputs, row: Row) -> None:
        cached, prompt = len(row.sequence.tokens), row.prompt
        start, count = len(inputs.ids), len(row.tokens)
        inputs.ids.extend(row.tokens)
        if row.places is not None:
            places = torch.tensor(row.places, device=self.device)
        else:
            places = torch.arange(cached, cached + count, device=self.device)
        if prompt is None:
            inputs.positions.append(places.expand(3, -1))
            return
        text = (places + prompt.rope_delta).expand(3, -1)
        if cached == 0:
            length = len(prompt.tokens)
            text = torch.cat([prompt.positions, text[:, length:]], -1) if count > length else prompt.positions
            if prompt.encoded.pixel_values is not None:
                inputs.images.append((start, prompt))
        inputs.positions.append(text)

    def _forward(self, inputs: _Inputs, packed: list[_Packed]) -> Tensor:
        """Hidden states (t, h)."""
        ids = torch.tensor([inputs.ids], device=self.device)
        positions = inputs.positions[0] if len(inputs.positions) == 1 else torch.cat(inputs.positions, -1)
        output = self._language(
            position_ids=positions[:, None],
            use_cache=False,
            rows=packed,
            **(self._with_images(ids, inputs.images) if inputs.images else {"input_ids": ids}),
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _with_images(self, ids: Tensor, images: list[tuple[int, PlacedPrompt]]) -> dict[str, Any]:
        features = [self._features(prompt) for _, prompt in images]
        embeddings = self._language.embed_tokens(ids)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for start, prompt in images:
            own = slice(start, start + len(prompt.tokens))
            mask[:, own] = ids[:, own] == self._image_token
        embeddings[mask] = torch.cat([one.embeddings for one in features]).to(embeddings.dtype)
        deepstack = [torch.cat(layer) for layer in zip(*(one.deepstack for one in features), strict=True)]
        return {"inputs_embeds": embeddings, "visual_pos_masks": mask, "deepstack_visual_embeds": deepstack}

    def _features(self, prompt: PlacedPrompt) -> ImageFeatures:
        if prompt.features is None or prompt.features.weights_version != self.weights_version:
            patches: Any = prompt.encoded.pixel_values
            grid: Any = prompt.encoded.image_grid
            output = self._inner.get_image_features(patches.to(self.device), grid.to(self.device), return_dict=True)
            deepstack = [torch.cat(layer) for layer in output.deepstack_features]
            prompt.features = ImageFeatures(torch.cat(output.pooler_output), deepstack, self.weights_version)
        return prompt.features


def _packed(row: Row, cached: int, device: torch.device) -> _Packed:
    count, mask, is_causal = len(row.tokens), row.mask, False
    if mask is not None:
        mask = mask.to(device)
    elif count > 1 and cached == 0:
        is_causal = True
    elif count > 1:
        mask = torch.ones(count, cached + count, dtype=torch.bool, device=device).tril(cached)
    return _Packed(row.sequence, cached, count, mask, is_causal)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    rows: list[_Packed],
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of packed rows, as transformers calls it: query, key and value (1, heads, t, d) -> (1, t, heads, d)."""
    outputs, start = [], 0
    grouped = query.shape[1] != key.shape[1]
    for row in rows:
        keys, values = row.sequence.layers[module.layer_idx]
        first, end, stop = row.num_cached, row.num_cached + row.num_new, start + row.num_new
        keys[:, :, first:end] = key[:, :, start:stop]
        values[:, :, first:end] = value[:, :, start:stop]
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, start:stop],
                keys[:, :, :end],
                values[:, :, :end],
                attn_mask=row.mask,
                is_causal=row.is_causal,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
        start = stop
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
    return output.transpose(1, 2), None
