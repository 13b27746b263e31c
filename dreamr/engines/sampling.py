"""Choosing the next token from float32 logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dreamr.engines.grammar import TokenMask
from dreamr.types import Sampling


class NumericalError(RuntimeError):
    """The model's logits are not numbers: broken weights, or an overflow in a narrow type."""


class TokenChooser:
    """Chooses the tokens of one step. Owns its random stream, so a step depends on its seed and its logits alone.

    Raises ValueError that names the field for settings out of range.
    """

    def __init__(self, sampling: Sampling, mask: TokenMask | None = None) -> None:
        """`mask`: of a step that follows a grammar."""
        check_sampling(sampling)
        self._sampling, self._mask = sampling, mask
        self._chosen: list[int] = []
        # On the CPU whatever the model's device: the same seed gives the same stream everywhere.
        self._generator = torch.Generator().manual_seed(sampling.seed % 2**64) if sampling.temperature > 0 else None

    def choose(self, logits: Tensor) -> int:
        """One token id from logits (v). Raises NumericalError when the largest is not finite."""
        if self._mask is not None:
            allowed = self._mask.allowed(self._chosen, len(logits)).to(logits.device)
            logits = logits.masked_fill(~allowed, -torch.inf)
        token = self._next(logits)
        self._chosen.append(token)
        return token

    def _next(self, logits: Tensor) -> int:
        largest, index = logits.max(-1)
        if not math.isfinite(value := float(largest)):
            raise NumericalError(f"the largest of {len(logits)} logits is {value}: the weights or the dtype are broken")
        if self._generator is None:
            return int(index)
        return int(torch.multinomial(distribution(logits, self._sampling), 1, generator=self._generator))


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """What one token is sampled from: probabilities (v), on the CPU, at a temperature above 0."""
    logits = logits.cpu() / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    probabilities = torch.softmax(logits, -1)
    if sampling.top_p < 1:
        probabilities = nucleus(probabilities, sampling.top_p)
    if sampling.min_p > 0:
        probabilities[probabilities < sampling.min_p * probabilities.max()] = 0
    return probabilities / probabilities.sum() if sampling.top_p < 1 or sampling.min_p > 0 else probabilities


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero all but the fewest most likely tokens whose probabilities (v) reach `top_p`; not normalised."""
    ranked, order = probabilities.sort(descending=True, stable=True)
    ranked[ranked.cumsum(-1) - ranked >= top_p] = 0
    return torch.zeros_like(probabilities).scatter(-1, order, ranked)


def check_sampling(sampling: Sampling) -> None:
    """Raises ValueError in one sentence for a field out of range."""
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise ValueError(f"temperature must be 0 (greedy) or more, not {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {sampling.top_p}")
    if sampling.top_k < 0:
        raise ValueError(f"top_k must be 0 (all tokens) or more, not {sampling.top_k}")
    if not 0 <= sampling.min_p <= 1:
        raise ValueError(f"min_p must be at least 0 and at most 1, not {sampling.min_p}")
    if sampling.max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {sampling.max_tokens}")
