"""What vLLM is asked for a verdict: tokens behind a prefix, and how the log-probabilities of the next one are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamr.engines.questions import mean_digits
from dreamr.engines.sampling import NumericalError
from dreamr.engines.verdicts import contrast
from dreamr.tasks.chat import ChatEncoder
from dreamr.types import Criterion, Tokens


@dataclass(frozen=True, slots=True)
class Question:
    """One criterion that is read from the next token."""

    turn: Tokens
    words: Tokens
    """Tokens whose log-probabilities are wanted."""
    read: Callable[[int, Sequence[float]], float]
    """The verdict, from the token that the model would write and the words' log-probabilities."""


def questions(chat: ChatEncoder) -> Mapping[Criterion, Callable[[], Question]]:
    """The criteria that vLLM can give; a tokenizer without single digits is only refused when digits are asked for."""
    return {
        "rho": lambda: Question(
            chat.verdict_turn, chat.verdict_words, lambda _, logprobs: contrast(finite(logprobs))[0]
        ),
        "digit": lambda: Question(chat.score_turn, chat.digits, lambda token, _: digit(token, chat.digits)),
        "mean_digit": lambda: Question(
            chat.score_turn, chat.digits, lambda _, logprobs: mean_digits(finite(logprobs))[0]
        ),
    }


def digit(token: int, digits: Tokens) -> float:
    """The likeliest of all tokens as a digit; 0 when it is none (SpecReason)."""
    return float(digits.index(token)) if token in digits else 0.0


def finite(logprobs: Sequence[float]) -> Tensor:
    """One row of logits. Raises NumericalError when one is not a number."""
    if not all(map(math.isfinite, logprobs)):
        raise NumericalError(f"verdict log-probabilities are not finite: {list(logprobs)}")
    return torch.tensor([logprobs])
