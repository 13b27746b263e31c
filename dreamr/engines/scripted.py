"""`ScriptedEngine`: an engine without a model, for tests and simulation under a virtual clock.

What it writes depends on its seed and on every token of the prefix, so one wrong prefix changes all that follows.
Calls share one clock-time resource, the forward, in the order in which they ask for it, as they share a real model.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence

from dreamr.actors.types import Finish, Prompt, Sampling, Step, Tokens, Verdict
from dreamr.config import ScriptedEngineConfig
from dreamr.engines.base import DELIMITER

END_OF_STEP = 0
END_OF_ANSWER = 1
_WORDS = range(2, 1000)


class ScriptedEngine:
    """Draft, target or verifier: two engines with the same seed are the same model, whatever their latencies.

    `clock` stamps steps and verdicts; under a virtual clock, give it the event loop's.
    """

    def __init__(self, config: ScriptedEngineConfig, clock: Callable[[], float] = time.time) -> None:
        self._config, self._now = config, clock
        self._latency = random.Random(f"latency/{config.seed}")
        self._forward = asyncio.Lock()
        self._stopped: set[str] = set()

    async def next_step(self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling) -> Step:
        """See `Engine`."""
        if after.closed:
            return Step(prefix=after.end, finish="eos", started=self._now(), ended=self._now())
        script = self.script(prompt, after.end, sampling)
        tokens: list[int] = []
        started = self._now()
        while len(tokens) < len(script):
            if call_id in self._stopped:
                break
            async with self._forward:
                started = started if tokens else self._now()
                await self._pass(self._config.token_s + (0.0 if tokens else self._config.first_token_s))
            tokens.append(script[len(tokens)])
        return Step(after.end, tuple(tokens), _text(tokens), _finish(tokens, script), started, self._now())

    async def score(self, call_id: str, prompt: Prompt, chain: Sequence[Step]) -> list[Verdict]:
        """See `Engine`."""
        async with self._forward:
            started = self._now()
            await self._pass(self._config.verdict_s)
            return [Verdict(self.rho(prompt, step), started, self._now()) for step in chain]

    async def prefill(self, prompt: Prompt) -> None:
        """See `Engine`."""
        async with self._forward:
            await self._pass(self._config.first_token_s)

    async def count_tokens(self, prompt: Prompt) -> int:
        """See `Engine`. A scripted model reads words, and images not at all."""
        return len(prompt.question.split())

    def stop(self, call_id: str) -> None:
        """See `Engine`."""
        self._stopped.add(call_id)

    def script(self, prompt: Prompt, prefix: Tokens, sampling: Sampling) -> Tokens:
        """The whole step behind `prefix`. At temperature 0 the sampling seed changes nothing."""
        seed = sampling.seed if sampling.temperature > 0 else 0
        rng = random.Random(f"step/{self._config.seed}/{prompt.key}/{prefix}/{seed}")
        num_steps = random.Random(f"length/{prompt.key}").randint(*self._config.num_steps)
        last = prefix.count(END_OF_STEP) + 1 >= num_steps
        length = rng.randint(*self._config.step_tokens)
        words = rng.choices(_WORDS, k=length - 1)
        return (*words, END_OF_ANSWER if last else END_OF_STEP)[: sampling.max_tokens]

    def rho(self, prompt: Prompt, step: Step) -> float:
        """The verdict on a step behind its own prefix."""
        rng = random.Random(f"rho/{self._config.seed}/{prompt.key}/{step.end}")
        return 0.95 if rng.random() < self._config.acceptance else 0.05

    async def _pass(self, seconds: float) -> None:
        jitter = self._config.jitter
        await asyncio.sleep(seconds * self._latency.uniform(1 - jitter, 1 + jitter))


def _text(tokens: Sequence[int]) -> str:
    words = " ".join(str(token) for token in tokens if token in _WORDS)
    return words + (DELIMITER if tokens and tokens[-1] == END_OF_STEP else "")


def _finish(tokens: Sequence[int], script: Tokens) -> Finish:
    if len(tokens) < len(script):
        return "stopped"
    return {END_OF_STEP: "delimiter", END_OF_ANSWER: "eos"}.get(tokens[-1], "length")  # type: ignore[return-value]
