"""What the target is asked behind a step, and how its next token is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamr.engines.forward import ForwardPass
from dreamr.engines.verdicts import contrast
from dreamr.tasks.processor import PromptEncoder
from dreamr.types import Criterion, Tokens


@dataclass(frozen=True, slots=True)
class Question:
    """One criterion that is a question about the last step."""

    turn: Tokens
    read: Callable[[Tensor], list[float]]
    """Verdicts of the hidden states (n, h) at the end of n such turns."""


def questions(forward: ForwardPass, encoder: PromptEncoder) -> Mapping[Criterion, Question]:
    """The criteria that need nothing but the step and what stands before it."""
    return {
        "rho": Question(
            encoder.verdict_turn, lambda hidden: contrast(forward.word_logits(hidden, encoder.verdict_words))
        ),
        "digit": Question(encoder.score_turn, lambda hidden: digits(forward.logits(hidden), encoder.digits)),
        "mean_digit": Question(
            encoder.score_turn, lambda hidden: mean_digits(forward.word_logits(hidden, encoder.digits))
        ),
    }


def digits(logits: Tensor, words: Tokens) -> list[float]:
    """The likeliest of all tokens per row of logits (n, v), as a digit; 0 when it is none (SpecReason)."""
    values = {word: float(digit) for digit, word in enumerate(words)}
    return [values.get(token, 0.0) for token in logits.argmax(-1).tolist()]


def mean_digits(logits: Tensor) -> list[float]:
    """The expected digit per row of logits (n, 10) of the digits."""
    means: list[float] = (torch.softmax(logits, -1) @ torch.arange(10.0, device=logits.device)).tolist()
    return means
