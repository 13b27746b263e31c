"""`RolloutVerifier`: the target as the judge of groups of chains; `Verifiers` assigns calls to several of them.

    worker 1 ─┬─ judge: the chains of a group, or a share of them ──▶ verifier with the fewest open calls
    worker 2 ─┘

A verifier awaits no other actor. When one is lost, its open calls go to another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError, RayError

from actors.engine_actor import NotLoaded
from actors.ray_transport import root_cause
from actors.roles import TargetActor
from dreamr.engines.base import TokenScoring
from dreamr.types import NO_VERDICT, JudgedStep, Prompt, Step, Tokens
from rl.chains import GroupRequest
from rl.writing import ChainBatch, ChainLimits

_LOSSES = (RayActorError, NotLoaded)


@dataclass(frozen=True, slots=True)
class Frontier:
    """The end of a chain, from which the target writes its step."""

    step: Step
    num_steps: int
    seed: int


class RolloutVerifier(TargetActor):
    """The target: judges the chains of whole groups, and writes the steps that replace rejected ones."""

    async def judge(
        self, prompt: Prompt, chains: Sequence[Sequence[Step]], temperature: float | None = None
    ) -> list[list[JudgedStep]]:
        """A verdict per step of every chain of one prompt; log-probabilities as well when a `temperature` is given.

        The steps of a chain are judged in one forward, and a step that several chains share only once.
        Chains are judged one after the other: one forward already uses all cores, and chains share the prefix cache.
        """
        known: dict[Tokens, JudgedStep] = {}
        for chain in chains:
            unknown = _unjudged(chain, known)
            judged = await self._judged(prompt, unknown, temperature)
            known.update((step.end, one) for step, one in zip(unknown, judged, strict=True))
        return [[_of_step(step, known) for step in chain] for chain in chains]

    async def _judged(self, prompt: Prompt, chain: Sequence[Step], temperature: float | None) -> list[JudgedStep]:
        if temperature is not None:
            return await self._able(TokenScoring, "log-probabilities of the tokens that it judges").score_tokens(
                "rollout", prompt, chain, temperature
            )
        return [JudgedStep(verdict) for verdict in await self._engine.score("rollout", prompt, chain)]

    async def write(
        self, prompt: Prompt, frontiers: Sequence[Frontier], temperature: float, limits: ChainLimits
    ) -> list[Step]:
        """The target's step after each frontier of one prompt."""
        request = GroupRequest(prompt, tuple(frontier.seed for frontier in frontiers), temperature)
        batch = ChainBatch(self._engine, [request], limits, role="target")
        for row, frontier in zip(batch.rows, frontiers, strict=True):
            row.start_after(frontier.step, frontier.num_steps)
        return [step for step in await batch.write_steps() if step is not None]

    async def count_steps(self, prompt: Prompt, limits: ChainLimits) -> int | None:
        """Steps of the target's greedy answer; None when the answer is cut off."""
        request = GroupRequest(prompt, (0,), temperature=0.0)
        batch = ChainBatch(self._engine, [request], limits, "target")
        [row] = batch.rows
        await batch.write_chains()
        return row.num_steps if row.end == "answered" else None


def _unjudged(chain: Sequence[Step], known: Mapping[Tokens, JudgedStep]) -> list[Step]:
    """The steps from the first that has no verdict yet; a step without tokens can only be the last one."""
    steps = [step for step in chain if step.tokens]
    first = next((index for index, step in enumerate(steps) if step.end not in known), len(steps))
    return steps[first:]


def _of_step(step: Step, known: Mapping[Tokens, JudgedStep]) -> JudgedStep:
    if not step.tokens:
        return JudgedStep(NO_VERDICT)
    return JudgedStep(NO_VERDICT, known[step.end].logprobs) if step.is_blank else known[step.end]


class Verifiers:
    """The verifiers as one worker uses them: each call goes to the one with the fewest open calls of this worker."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors
        self._open: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._actors)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of one verifier, or of another one when it is lost. Raises the error of the last one."""
        left = set(range(len(self._actors)))
        while True:
            number = min(left, key=lambda number: (self._open[number], number))
            left.remove(number)
            self._open[number] += 1
            try:
                return await getattr(self._actors[number], method).remote(*arguments)
            except RayError as error:
                if not left or not isinstance(root_cause(error), _LOSSES):
                    raise
            finally:
                self._open[number] -= 1
