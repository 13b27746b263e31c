"""How a verdict is asked and read: one row per kind in `QUESTIONS`, the same for every engine.

A question is a turn after the judged step; the verdict is read from the model's next token. An engine computes the
float32 log-probabilities of a few words there, and the likeliest token of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dreamr.engines.sampling import NumericalError
from dreamr.tasks.chat import ChatEncoder
from dreamr.types import Criterion, Step, Tokens


@dataclass(frozen=True, slots=True)
class Question:
    """One criterion that asks about the last step."""

    turn: Tokens
    """Tokens after the end of the step's chain of thought, up to where the verdict is read."""
    words: Tokens
    """Tokens whose log-probabilities are read."""
    read: Callable[[int, Sequence[float]], float]
    """The score, from the likeliest token and the log-probabilities of `words`."""
    closing: Callable[[Step], Tokens]
    """What closes a step's chain of thought, where one is open."""

    def after(self, step: Step) -> Tokens:
        """All tokens between `step` and its verdict; a step that has ended its turn itself does not end it twice."""
        turn = self.turn[1:] if step.tokens[-1] == self.turn[0] else self.turn
        return self.closing(step) + turn


def _rho(chat: ChatEncoder) -> Question:
    return Question(chat.verdict_turn, chat.verdict_words, lambda _, logprobs: rho(logprobs), chat.closing)


def _digit(chat: ChatEncoder) -> Question:
    return Question(chat.score_turn, chat.digits, lambda token, _: digit(token, chat.digits), chat.closing)


def _mean_digit(chat: ChatEncoder) -> Question:
    return Question(chat.score_turn, chat.digits, lambda _, logprobs: mean_digit(logprobs), chat.closing)


QUESTIONS: Mapping[Criterion, Callable[[ChatEncoder], Question]] = {
    "rho": _rho,
    "digit": _digit,
    "mean_digit": _mean_digit,
}
"""The question of each criterion for one checkpoint (`pipelines.verification.VERDICTS`: which scores accept)."""


def question(criterion: Criterion, chat: ChatEncoder) -> Question:
    """Raises ValueError for a criterion that does not exist, or whose words are not tokens of the checkpoint."""
    if criterion not in QUESTIONS:
        raise ValueError(f"criterion = '{criterion}': there is no such verdict; choose one of {', '.join(QUESTIONS)}")
    return QUESTIONS[criterion](chat)


def rho(logprobs: Sequence[float]) -> float:
    """`p(positive) / (p(positive) + p(negative))` (CPN, paper section on TBVM), from two log-probabilities."""
    positive, negative = _finite(logprobs)
    return 1 / (1 + math.exp(min(negative - positive, 700.0)))


def digit(token: int, digits: Tokens) -> float:
    """The likeliest token as a digit; 0 when it is none (SpecReason)."""
    return float(digits.index(token)) if token in digits else 0.0


def mean_digit(logprobs: Sequence[float]) -> float:
    """The expected digit, from the log-probabilities of "0" to "9"."""
    largest = max(_finite(logprobs))
    weights = [math.exp(value - largest) for value in logprobs]
    return sum(value * weight for value, weight in enumerate(weights)) / sum(weights)


def mass(logprobs: Sequence[float]) -> float:
    """Probability that the next token is one of the words: a verdict read from a small mass is unreliable."""
    return min(1.0, sum(map(math.exp, logprobs)))


def _finite(logprobs: Sequence[float]) -> Sequence[float]:
    if not all(map(math.isfinite, logprobs)):
        raise NumericalError(f"verdict log-probabilities are not finite: {list(logprobs)}")
    return logprobs
