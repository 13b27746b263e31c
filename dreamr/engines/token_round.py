"""One round of token-level speculation on a model: the draft's tokens, and the target's decision on them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from dreamr.actors.types import Proposal, Sampling, Tokens
from dreamr.engines.acceptance import accept_greedy, accept_sampled
from dreamr.engines.forward import ForwardPass, PlacedPrompt
from dreamr.engines.sampling import TokenChooser, distribution


def propose_round(
    forward: ForwardPass,
    placed: PlacedPrompt,
    kv: DynamicCache,
    hidden: Tensor,
    start: int,
    num_tokens: int,
    sampling: Sampling,
    eos_tokens: frozenset[int],
) -> tuple[Tokens, bytes]:
    """Tokens written behind `start` cached ones, and what they were sampled from, as `Proposal` has it.

    `hidden` (h) is the state there; `kv` grows by all tokens but the last.
    """
    chooser, sampled = TokenChooser(sampling), sampling.temperature > 0
    positions = forward.text_positions(placed, start, start + num_tokens)
    tokens: list[int] = []
    rows: list[Tensor] = []
    while True:
        logits = forward.logits(hidden)
        tokens.append(chooser.choose(logits))
        if sampled:
            rows.append(distribution(logits, sampling))
        if len(tokens) >= num_tokens or tokens[-1] in eos_tokens:
            return tuple(tokens), torch.stack(rows).numpy().tobytes() if rows else b""
        ids = torch.tensor([tokens[-1:]], device=forward.device)
        hidden = forward.text(kv, ids, positions[..., len(tokens) - 1 : len(tokens)])[-1]


def check_round(logits: Tensor, proposal: Proposal, sampling: Sampling) -> tuple[int, int]:
    """Accepted tokens of a proposal and the target's own next token, from its logits (len(tokens) + 1, v)."""
    if sampling.temperature == 0:
        return accept_greedy(logits, proposal.tokens)
    p = torch.stack([distribution(row, sampling) for row in logits])
    q = torch.from_numpy(np.frombuffer(proposal.probabilities, np.float32).reshape(len(proposal.tokens), -1).copy())
    generator = torch.Generator().manual_seed(sampling.seed % 2**64)
    return accept_sampled(p, q, proposal.tokens, generator)
