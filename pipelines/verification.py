"""Which verdicts accept a drafted step: the kinds of verdict, and the rule of one request.

How a kind is asked and read is in the engines (`dreamr.engines.verdicts`). Acceptance is decided only here, for
schedules, rewards and controls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from dreamr.types import NO_VERDICT, Criterion, Prompt, Step, Verdict
from pipelines.handles import Ref, Transport, WrappedTransport


@dataclass(frozen=True, slots=True)
class VerdictKind:
    """How the scores of one kind of verdict are read."""

    threshold: float | None
    """Default threshold; None: the request's `alpha`."""
    inclusive: bool = False
    """A score equal to the threshold accepts."""
    compares: bool = False
    """Needs the target's step at the same place, to compare the drafted one with."""


VERDICTS: dict[str, VerdictKind] = {
    "rho": VerdictKind(threshold=None),
    "digit": VerdictKind(threshold=7.0, inclusive=True),
    "mean_digit": VerdictKind(threshold=7.0, inclusive=True),
    "same": VerdictKind(threshold=0.5, compares=True),
    "embedding": VerdictKind(threshold=0.95, compares=True),
    "random": VerdictKind(threshold=0.5),
}
"""Kinds of verdict by name:

- rho: the target is asked whether the step is correct (CPN, paper section on TBVM); 0..1
- digit, mean_digit: the target gives a grade (SpecReason): its likeliest digit, or the mean over the digits; 0..9
- same: the target is asked whether the step means the same as its own (Lookahead Reasoning); 0..1
- embedding: cosine similarity of the step and the target's own; -1..1
- random: a seeded random number, a control for the others; 0..1
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """The kind of verdict of a request, and the score from which a step is accepted."""

    kind: str
    threshold: float

    @property
    def compares(self) -> bool:
        return VERDICTS[self.kind].compares

    @property
    def criterion(self) -> Criterion:
        """The criterion that the verifier is asked for."""
        return "rho" if self.kind == "random" else self.kind

    def accepts(self, verdict: Verdict) -> bool:
        """True when the score exceeds the threshold, or equals it for inclusive kinds, and for a skipped verdict; False
        when not judged for another reason."""
        if not verdict.judged:
            return verdict.skipped
        inclusive = VERDICTS[self.kind].inclusive
        return verdict.score >= self.threshold if inclusive else verdict.score > self.threshold


class RandomVerdicts(WrappedTransport):
    """A verifier with random scores, which depend on the seed and the step alone; no model runs."""

    def __init__(self, inner: Transport, seed: int) -> None:
        super().__init__(inner)
        self._seed = seed

    @property
    def up(self) -> bool:
        return True

    def submit(self, method: str, call_id: str, prompt: Prompt, *arguments: Any) -> Ref[Any]:
        match method, arguments:
            case "score", (step, *_):
                return _Drawn(self._seed, step)
            case "score_chain", (chain, *_):
                return _Drawn(self._seed, chain)
        return _Drawn(self._seed, ())  # there is no prompt to read

    def stop(self, call_id: str) -> None:
        """There is nothing to stop."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    seed: int
    judged: Step | tuple[Step, ...] | Ref[Step] | Ref[tuple[Step, ...]]

    def __await__(self) -> Generator[Any, None, Verdict | tuple[Verdict, ...]]:
        return self._verdicts().__await__()

    async def _verdicts(self) -> Verdict | tuple[Verdict, ...]:
        judged = self.judged if isinstance(self.judged, Step | tuple) else await self.judged
        if isinstance(judged, Step):
            return _drawn_verdict(self.seed, judged, judged.ended)
        ended = max((step.ended for step in judged), default=0.0)
        return tuple(_drawn_verdict(self.seed, step, ended) for step in judged)


def _drawn_verdict(seed: int, step: Step, ended: float) -> Verdict:
    if step.is_blank:
        return NO_VERDICT
    digest = hashlib.sha256(f"{seed}/{step.end}".encode()).digest()
    return Verdict(int.from_bytes(digest[:4], "big") / 2**32, ended, ended)
