"""One round of token-level speculation on a model: the draft's tokens, and the target's decision on them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dreamr.engines.acceptance import accept_greedy, accept_sampled
from dreamr.engines.forward import ForwardPass, PlacedPrompt
from dreamr.engines.prefix_cache import CachedSequence, PrefixCache
from dreamr.engines.reader import Reader
from dreamr.engines.sampling import TokenChooser, distribution
from dreamr.engines.step_end import StepEnd
from dreamr.types import Proposal, Sampling, Tokens


class TokenRounds:
    """Both sides, on a leased sequence; the caller holds the turn."""

    def __init__(self, forward: ForwardPass, reader: Reader, cache: PrefixCache, step_end: StepEnd) -> None:
        self._forward, self._reader, self._cache, self._step_end = forward, reader, cache, step_end

    def propose(
        self, sequence: CachedSequence, placed: PlacedPrompt, whole: Tokens, num_tokens: int, sampling: Sampling
    ) -> tuple[Tokens, bytes]:
        """Tokens written behind `whole`, and what they were sampled from, as `Proposal` has it."""
        chooser = TokenChooser(sampling)
        hidden = self._reader.catch_up(sequence, placed, whole)
        positions = self._forward.text_positions(placed, len(whole), len(whole) + num_tokens)
        tokens: list[int] = []
        rows: list[Tensor] = []
        while True:
            logits = self._forward.logits(hidden)
            tokens.append(chooser.choose(logits))
            if sampling.temperature > 0:
                rows.append(distribution(logits, sampling))
            if len(tokens) >= num_tokens or tokens[-1] in self._step_end.eos_tokens:
                break
            ids = torch.tensor([tokens[-1:]], device=self._forward.device)
            hidden = self._forward.text(sequence.kv, ids, positions[..., len(tokens) - 1 : len(tokens)])[-1]
        # Most of them will be followed by a token of the target's: a crop is cheaper than a fork.
        self._cache.crop(sequence, len(whole))
        return tuple(tokens), torch.stack(rows).numpy().tobytes() if rows else b""

    def check(
        self, sequence: CachedSequence, placed: PlacedPrompt, whole: Tokens, proposal: Proposal, sampling: Sampling
    ) -> tuple[int, int]:
        """Accepted tokens of a proposal behind `whole`, and the model's own next token."""
        logits = self._reader.logits_behind(sequence, placed, whole, proposal.tokens)
        accepted, own = check_round(logits, proposal, sampling)
        self._cache.crop(sequence, len(whole) + accepted)
        return accepted, own


def check_round(logits: Tensor, proposal: Proposal, sampling: Sampling) -> tuple[int, int]:
    """Accepted tokens of a proposal and the target's own next token, from its logits (len(tokens) + 1, v)."""
    if sampling.temperature == 0:
        return accept_greedy(logits, proposal.tokens)
    p = torch.stack([distribution(row, sampling) for row in logits])
    q = torch.from_numpy(np.frombuffer(proposal.probabilities, np.float32).reshape(len(proposal.tokens), -1).copy())
    generator = torch.Generator().manual_seed(sampling.seed % 2**64)
    return accept_sampled(p, q, proposal.tokens, generator)
