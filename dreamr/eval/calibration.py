"""Which drafted steps need no verdict: a threshold on the draft's confidence, by the verdicts of held-out problems.

    problems, sequential, every step judged ──▶ (confidence, accepted) per drafted step
                                                    ├─ first half  ─▶ lowest threshold whose error is surely <= risk
                                                    └─ second half ─▶ share of steps and error above that threshold

The error of a threshold is the share of the steps above it that the target rejects. Choice and measurement use
different problems, since an error measured on the problems that chose the threshold would be too low.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from dreamr.config import PipelineSettings
from dreamr.types import Prompt, Step, Verdict
from pipelines import Request, rule_of, run
from pipelines.handles import Handles, Ref, Transport, Verifier, WrappedTransport

CERTAINTY = 0.95
"""Of the bounds, one-sided."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A drafted step at the frontier, and the target's decision."""

    confidence: float
    accepted: bool


@dataclass(frozen=True, slots=True)
class Skipped:
    """The steps above a threshold."""

    num_steps: int
    """All drafted steps, above the threshold or not."""
    num_skipped: int
    num_errors: int
    """Steps above the threshold that the target rejects."""

    @property
    def share(self) -> float:
        return self.num_skipped / self.num_steps if self.num_steps else 0.0

    @property
    def error(self) -> float:
        return self.num_errors / self.num_skipped if self.num_skipped else 0.0

    @property
    def error_bound(self) -> float:
        return upper_bound(self.num_errors, self.num_skipped)

    @classmethod
    def above(cls, threshold: float, steps: Sequence[Judged]) -> Skipped:
        above = [step for step in steps if step.confidence > threshold]
        return cls(len(steps), len(above), sum(not step.accepted for step in above))


@dataclass(frozen=True, slots=True)
class Calibration:
    """A chosen threshold, and what it costs and gives."""

    risk: float
    skip_above: float | None
    """None when no threshold keeps the risk."""
    chosen: Skipped
    """On the problems by which it was chosen."""
    measured: Skipped
    """On the other problems."""


def calibrate(problems: Sequence[Sequence[Judged]], risk: float) -> Calibration:
    """Choose a threshold on the first half of the problems, and measure it on the second."""
    half = len(problems) // 2
    first, second = ([step for problem in part for step in problem] for part in (problems[:half], problems[half:]))
    threshold = lowest_threshold(first, risk)
    above = math.inf if threshold is None else threshold
    return Calibration(risk, threshold, Skipped.above(above, first), Skipped.above(above, second))


def lowest_threshold(steps: Sequence[Judged], risk: float) -> float | None:
    """The lowest confidence above which the error is at most `risk` with the `CERTAINTY`; None without one."""
    upwards = sorted(steps, key=lambda step: step.confidence)
    num_above, num_errors = len(steps), sum(not step.accepted for step in steps)
    for step, following in pairwise(upwards):
        num_above, num_errors = num_above - 1, num_errors - (not step.accepted)
        if step.confidence == following.confidence or math.isinf(step.confidence) or num_errors > risk * num_above:
            continue
        if _at_most(num_errors, num_above, risk) <= 1 - CERTAINTY:
            return step.confidence
    return None


def upper_bound(num_errors: int, num_trials: int) -> float:
    """Clopper-Pearson: the rate at which so few errors have the probability 1 - `CERTAINTY`."""
    low, high = 0.0, 1.0
    if num_errors >= num_trials:
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(num_errors, num_trials, middle) > 1 - CERTAINTY else (low, middle)
    return high


def _at_most(num_errors: int, num_trials: int, rate: float) -> float:
    """Probability of at most so many errors at a rate, binomially distributed."""
    log, log_other = math.log(rate), math.log1p(-rate)

    def probability(count: int) -> float:
        ways = math.lgamma(num_trials + 1) - math.lgamma(count + 1) - math.lgamma(num_trials - count + 1)
        return math.exp(ways + count * log + (num_trials - count) * log_other)

    return math.fsum(map(probability, range(num_errors + 1)))


async def judged_steps(handles: Handles, settings: PipelineSettings, prompts: Iterable[Prompt]) -> list[list[Judged]]:
    """Answer each prompt by `sequential`, all drafted steps judged; per prompt, its steps and decisions."""
    # With the highest threshold the draft measures its confidence, and is never sure.
    settings = settings.model_copy(update={"method": "sequential", "skip_above": 0.0})
    rule = rule_of(settings)
    problems = []
    for prompt in prompts:
        observer = _Observer(handles.verifier.transport)
        await run(Request(prompt, settings), replace(handles, verifier=Verifier(observer)))
        steps = []
        for step, verdict in observer.calls:
            written, given = step if isinstance(step, Step) else await step, await verdict
            if given.judged:
                steps.append(Judged(written.confidence, rule.accepts(given)))
        problems.append(steps)
    return problems


class _Observer(WrappedTransport):
    """A verifier whose calls are remembered."""

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.calls: list[tuple[Step | Ref[Step], Ref[Verdict]]] = []

    def submit(self, method: str, call_id: str, prompt: Prompt, *arguments: Any) -> Ref[Any]:
        ref = super().submit(method, call_id, prompt, *arguments)
        if method == "score":
            self.calls.append((arguments[0], ref))
        return ref
