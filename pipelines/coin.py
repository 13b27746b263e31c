"""`Coin`: a judge that knows nothing, to see what a verdict is worth. Each step has a number of its own in 0..1."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from dreamr.types import NO_VERDICT, Criterion, Prefill, Prompt, Step, Verdict
from pipelines.handles import Ref


@dataclass(frozen=True, slots=True)
class _Toss:
    step: Step | Ref[Step]
    seed: int

    def __await__(self) -> Generator[Any, None, Verdict]:
        return self._number().__await__()

    async def _number(self) -> Verdict:
        step = self.step if isinstance(self.step, Step) else await self.step
        if not step.tokens or step.finish == "stopped":
            return NO_VERDICT
        digest = hashlib.sha256(f"{self.seed}/{step.end}".encode()).digest()
        return Verdict(int.from_bytes(digest[:4], "big") / 2**32, step.ended, step.ended)


@dataclass(frozen=True, slots=True)
class _Tosses:
    tosses: tuple[_Toss, ...]

    def __await__(self) -> Generator[Any, None, tuple[Verdict, ...]]:
        return self._numbers().__await__()

    async def _numbers(self) -> tuple[Verdict, ...]:
        return tuple([await toss for toss in self.tosses])


class Coin:
    """See `Judge`. Depends on the request's seed and the step alone, as other verdicts depend on nothing else."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    up = True

    def report_lost(self) -> None: ...

    async def recovered(self) -> None: ...

    async def prefill(self, prompt: Prompt) -> Prefill:
        return Prefill()

    def stop(self, call_id: str) -> None: ...

    def score(
        self,
        call_id: str,
        prompt: Prompt,
        step: Step | Ref[Step],
        criterion: Criterion = "rho",
        reference: Step | Ref[Step] | None = None,
    ) -> Ref[Verdict]:
        return _Toss(step, self._seed)

    def score_chain(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step | Ref[Step]], criterion: Criterion = "rho"
    ) -> Ref[tuple[Verdict, ...]]:
        return _Tosses(tuple(_Toss(step, self._seed) for step in chain))
