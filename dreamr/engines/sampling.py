"""Tokens from float32 logits: greedy, sampled, and by token-level speculation.

Every step has one stream of random numbers, made from its seed on the CPU. A token is the first whose cumulative
probability exceeds the next number, so the same seed uses the same numbers on every device and in every batch.

Shapes: r rows, v vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dreamr.engines.steps import common_prefix
from dreamr.types import Sampling

Draw = Callable[[], float]
"""The next number of a step's stream, uniform in 0..1."""


class NumericalError(RuntimeError):
    """The model's logits are not finite: broken weights, or an overflow in a narrow number type."""


def stream(sampling: Sampling) -> Draw:
    """The random numbers of one step. Raises ValueError that names the field for settings out of range."""
    check_sampling(sampling)
    return random.Random(sampling.seed).random


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


def greedy(logits: Tensor) -> list[int]:
    """The likeliest token of each row of logits (r, v). Raises NumericalError when the largest is not finite."""
    largest, tokens = logits.max(-1)
    check_finite(largest, logits.shape[-1])
    chosen: list[int] = tokens.tolist()
    return chosen


def check_finite(largest: Tensor, num_logits: int) -> None:
    """Raises NumericalError for a row whose largest logit is not finite."""
    if not bool(torch.isfinite(largest).all()):
        value = float(largest[~torch.isfinite(largest)][0])
        raise NumericalError(f"the largest of {num_logits} logits is {value}: the weights or the dtype are broken")


def sampled(logits: Tensor, sampling: Sequence[Sampling], numbers: Sequence[float]) -> list[int]:
    """A token for each row of logits (r, v), drawn at its own temperature above 0 by its own number."""
    return draw(distribution(logits, sampling), numbers)


def draw(probabilities: Tensor, numbers: Sequence[float]) -> list[int]:
    """The first token of each row (r, v) whose cumulative probability exceeds the row's number."""
    cumulative = probabilities.double().cumsum(-1)
    # Relative to the row's total, which need not be 1: rounding must never draw an excluded last token.
    reached = torch.tensor(numbers, dtype=torch.double, device=probabilities.device)[:, None] * cumulative[:, -1:]
    tokens: list[int] = (cumulative > reached).int().argmax(-1).tolist()
    return tokens


def distribution(logits: Tensor, sampling: Sequence[Sampling]) -> Tensor:
    """The probabilities (r, v) that tokens are sampled from, at temperatures above 0. Raises NumericalError."""
    check_finite(logits.max(-1).values, logits.shape[-1])
    logits = logits / _column(logits, [one.temperature for one in sampling])
    if any(one.top_k for one in sampling):
        logits = top_k(logits, sampling)
    probabilities = torch.softmax(logits, -1)
    if any(one.top_p < 1 for one in sampling):
        probabilities = nucleus(probabilities, torch.tensor([one.top_p for one in sampling], device=logits.device))
        probabilities /= probabilities.sum(-1, keepdim=True)
    if any(one.min_p > 0 for one in sampling):
        least = _column(logits, [one.min_p for one in sampling]) * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
        probabilities /= probabilities.sum(-1, keepdim=True)
    return probabilities


def top_k(logits: Tensor, sampling: Sequence[Sampling]) -> Tensor:
    """Exclude all but the `top_k` largest logits of each row (r, v); 0 excludes none."""
    size = logits.shape[-1]
    counts = [min(one.top_k, size) or size for one in sampling]
    ranked = logits.sort(descending=True).values
    least = ranked.gather(-1, torch.tensor(counts, device=logits.device)[:, None] - 1)
    return logits.masked_fill(logits < least, -torch.inf)


def _column(like: Tensor, values: Sequence[float]) -> Tensor:
    """(r, 1), on the device of `like`."""
    return torch.tensor(values, device=like.device)[:, None]


def nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Zero all but the fewest likeliest tokens of each row (r, v) that together reach `top_p` (r); not normalised."""
    ranked, order = probabilities.sort(descending=True, stable=True)
    ranked[ranked.cumsum(-1) - ranked >= top_p[:, None]] = 0
    return torch.zeros_like(probabilities).scatter(-1, order, ranked)


# -- token-level speculation -------------------------------------------------------------------------------------------


def accept_greedy(own: Sequence[int], proposed: Sequence[int]) -> tuple[int, int]:
    """Accepted tokens of a proposal and the token after them; `own` are the target's, len(proposed) + 1 of them."""
    accepted = common_prefix(own, proposed)
    return accepted, own[accepted]


def accept_sampled(p: Tensor, q: Tensor, proposed: Sequence[int], number: Draw) -> tuple[int, int]:
    """As `accept_greedy`, sampled: p (len(proposed) + 1, v) of the target, q (len(proposed), v) of the draft.

    Accepting with min(1, p/q) and otherwise drawing from max(p - q, 0) gives tokens distributed as p for every q: the
    accepted part contributes min(p, q), and the rest is drawn exactly as often as it is missing
    (Leviathan et al. 2023, arXiv 2211.17192).
    """
    for place, token in enumerate(proposed):
        if number() * float(q[place, token]) >= float(p[place, token]):
            rest = (p[place] - q[place]).clamp(min=0)
            if not rest.any():  # p and q are the same but for rounding
                rest = p[place]
            return place, draw(rest[None], [number()])[0]
    return len(proposed), draw(p[-1:], [number()])[0]
