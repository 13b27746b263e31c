"""Token-level speculation: how many proposed tokens the target keeps, and which token it adds.

p: the target's distribution at a place; q: the draft's, from which the token there was sampled. Accepting with
min(1, p/q) and otherwise drawing from max(p - q, 0) gives tokens distributed as p, whatever q is: the accepted part
contributes min(p, q), and the rest is drawn exactly as often as something is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def accept_greedy(logits: Tensor, tokens: Sequence[int]) -> tuple[int, int]:
    """Accepted tokens and the token behind them, from the target's logits (len(tokens) + 1, v)."""
    own = logits.argmax(-1).tolist()
    accepted = next((place for place, token in enumerate(tokens) if own[place] != token), len(tokens))
    return accepted, own[accepted]


def accept_sampled(p: Tensor, q: Tensor, tokens: Sequence[int], generator: torch.Generator) -> tuple[int, int]:
    """As `accept_greedy`, from probabilities: p (len(tokens) + 1, v) of the target, q (len(tokens), v) of the draft."""
    for place, token in enumerate(tokens):
        if float(torch.rand((), generator=generator)) * float(q[place, token]) >= float(p[place, token]):
            rest = (p[place] - q[place]).clamp(min=0)
            if not rest.any():  # p and q are the same but for rounding
                rest = p[place]
            return place, int(torch.multinomial(rest, 1, generator=generator))
    return len(tokens), int(torch.multinomial(p[len(tokens)], 1, generator=generator))
