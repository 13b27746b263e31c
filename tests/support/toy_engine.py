"""A deterministic engine without a model, for actor tests: real asyncio waiting, real stopping, faults on request."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence

from dreamr.types import Prefill, Prompt, Sampling, Step, Verdict


class ToyEngine:
    """Writes `max_tokens` tokens that follow from the prefix; one token takes `token_s`.

    The question may ask for a fault: "hang" never answers, "die" kills the process, "refuse" raises ValueError.
    """

    def __init__(self, token_s: float = 0.0) -> None:
        self._token_s = token_s
        self._stopped: set[str] = set()
        self._last_token = time.monotonic()

    async def next_step(
        self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling, priority: str = "needed"
    ) -> Step:
        started = time.time()
        await self._fault(prompt)
        tokens: list[int] = []
        while len(tokens) < sampling.max_tokens and call_id not in self._stopped:
            tokens.append(len(after.end) + len(tokens))
            await asyncio.sleep(self._token_s)
            self._last_token = time.monotonic()
        finish = "stopped" if call_id in self._stopped else "delimiter"
        return Step(after.end, tuple(tokens), f"{prompt.question}\n\n", finish, started, time.time())

    async def score(self, call_id: str, prompt: Prompt, chain: Sequence[Step], *criterion: object) -> list[Verdict]:
        await self._fault(prompt)
        return [Verdict(score=1.0 / (1 + len(step.prefix))) for step in chain]

    async def prefill(self, prompt: Prompt) -> Prefill:
        await self._fault(prompt)
        return Prefill()

    async def count_tokens(self, prompt: Prompt) -> int:
        return len(prompt.question.split())

    def promote(self, call_id: str, hint: tuple[int, ...] = ()) -> None: ...

    def idle_s(self) -> float:
        return time.monotonic() - self._last_token

    def stop(self, call_id: str) -> None:
        self._stopped.add(call_id)

    async def _fault(self, prompt: Prompt) -> None:
        match prompt.question:
            case "hang":
                await asyncio.Event().wait()
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "refuse":
                raise ValueError("this question is refused")


def broken(reason: str) -> ToyEngine:
    """A factory whose model cannot be loaded."""
    raise ValueError(reason)


def never() -> ToyEngine:
    """A factory that does not come to an end within any test."""
    time.sleep(3600)
    return ToyEngine()
