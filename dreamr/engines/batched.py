"""`BatchedSequences`: many token sequences of one model that grow together, each seeing itself alone.

    column      0 1 2 3 4 5 6 7 8 9
    row a       P P P P . a a a a .       P prompt, padded on the right; a, b tokens; . hidden columns
    row b       P P P P P b . b b b       a hidden column is nobody's: padding, or a token that was dropped

Keys are rotated by their position before they are cached, so the columns they lie in do not matter: rows of different
lengths share one forward, and dropping tokens hides columns.

Shapes: b rows, n new columns, s columns so far, h hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from dreamr.engines.forward import ForwardPass, PlacedPrompt
from dreamr.types import Tokens


class BatchedSequences:
    """Rows behind their prompts. Not thread-safe: the caller holds the engine's turn and inference mode."""

    def __init__(
        self,
        forward: ForwardPass,
        prompts: Sequence[PlacedPrompt],
        rows: Sequence[int],
        new_kv: Callable[[], DynamicCache],
    ) -> None:
        """Run each of `prompts` once; row i continues prompt number `rows[i]`."""
        self._forward = forward
        device = forward.device
        lengths = torch.tensor([len(prompts[prompt].tokens) for prompt in rows], device=device)
        self._next = lengths + torch.tensor([prompts[prompt].rope_delta for prompt in rows], device=device)
        """(b): rope position of each row's next token."""
        self._visible = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
        """(b, s)"""
        self._kv, self.hidden = self._fill(prompts, rows, new_kv)
        """`hidden` (b, h): at the last token of each row."""

    def append(self, tokens: Sequence[Tokens]) -> None:
        """Add tokens to each row; rows may get different numbers of them, or none."""
        device = self._forward.device
        counts = torch.tensor([len(new) for new in tokens], device=device)
        width = int(counts.max())
        if width == 0:
            return
        ids = torch.tensor([[*new, *[0] * (width - len(new))] for new in tokens], device=device)
        valid = torch.arange(width, device=device) < counts[:, None]
        positions = (self._next[:, None] + torch.arange(width, device=device)).expand(3, -1, -1)
        old = self._visible[:, None, None, :].expand(-1, 1, width, -1)
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        mask = torch.cat([old, (causal & valid[:, None, :])[:, None]], dim=-1)
        hidden = self._forward.rows(self._kv, ids, positions, mask)
        self._visible = torch.cat([self._visible, valid], dim=-1)
        self._next = self._next + counts
        last = hidden[torch.arange(len(tokens), device=device), (counts - 1).clamp(min=0)]
        self.hidden = torch.where(counts[:, None] > 0, last, self.hidden)

    def drop(self, row: int, num_tokens: int) -> None:
        """Take back the last tokens of one row, whose `hidden` is stale until something is appended to it."""
        if num_tokens == 0:
            return
        columns = self._visible[row].nonzero()[-num_tokens:, 0]
        self._visible[row, columns] = False
        self._next[row] -= num_tokens

    def _fill(
        self, prompts: Sequence[PlacedPrompt], rows: Sequence[int], new_kv: Callable[[], DynamicCache]
    ) -> tuple[DynamicCache, Tensor]:
        """Run the prompts one by one and give each row a copy of its own; cache and last hidden states (b, h)."""
        width = max(len(prompt.tokens) for prompt in prompts)
        caches, hidden = [], []
        for prompt in prompts:
            cache = new_kv()
            hidden.append(self._forward.prompt(prompt, cache)[-1])
            caches.append([(_padded(keys, width), _padded(values, width)) for keys, values, _ in cache])
        index = torch.tensor(list(rows), device=self._forward.device)
        shared = new_kv()
        for layer in range(len(caches[0])):
            keys = torch.cat([cache[layer][0] for cache in caches])[index]
            values = torch.cat([cache[layer][1] for cache in caches])[index]
            shared.update(keys, values, layer)
        return shared, torch.stack(hidden)[index]


def _padded(states: Tensor, width: int) -> Tensor:
    """(1, heads, n, d) with columns of zeros up to `width`."""
    return torch.nn.functional.pad(states, (0, 0, 0, width - states.shape[2]))
