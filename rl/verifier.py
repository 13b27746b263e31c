"""`RolloutVerifier`: the target as the judge of whole groups of chains, and as the writer of what it rejects."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from actors.roles import TargetActor
from dreamr.engines.hf.engine import HFEngine
from dreamr.types import Prompt, Step, Tokens
from rl.chains import GroupRequest
from rl.writing import ChainBatch, ChainLimits


@dataclass(frozen=True, slots=True)
class Frontier:
    """Where a chain stands: what the target needs to write its next step."""

    step: Step
    num_steps: int
    seed: int


class RolloutVerifier(TargetActor):
    """One call serves a group: the steps of a chain in one forward, a step that several chains share only once."""

    async def judge(self, prompt: Prompt, chains: Sequence[Sequence[Step]]) -> list[list[float | None]]:
        """rho per step of every chain of one prompt; None for a step without tokens.

        Chains are judged one after the other: a forward of a whole chain fills a processor already, and the prefix
        cache hands what two chains share from one to the next.
        """
        known: dict[Tokens, float] = {}
        for chain in chains:
            unknown = _unjudged(chain, known)
            verdicts = await self._engine.score("rollout", prompt, unknown)
            known.update((step.end, verdict.score) for step, verdict in zip(unknown, verdicts, strict=True))
        return [[known.get(step.end) if step.tokens else None for step in chain] for chain in chains]

    async def write(
        self, prompt: Prompt, frontiers: Sequence[Frontier], temperature: float, limits: ChainLimits
    ) -> list[Step]:
        """The target's own step behind each frontier of one prompt."""
        return await asyncio.to_thread(self._write, prompt, frontiers, temperature, limits)

    def _write(
        self, prompt: Prompt, frontiers: Sequence[Frontier], temperature: float, limits: ChainLimits
    ) -> list[Step]:
        request = GroupRequest(prompt, tuple(frontier.seed for frontier in frontiers), temperature)
        batch = ChainBatch(cast(HFEngine, self._engine), [request], limits, role="target")
        for row, frontier in zip(batch.rows, frontiers, strict=True):
            row.start_after(frontier.step, frontier.num_steps)
        return [written.step for written in batch.write_steps() if written is not None]


def _unjudged(chain: Sequence[Step], known: dict[Tokens, float]) -> list[Step]:
    """The steps from the first that has no verdict yet; a step without tokens can only be the last one."""
    steps = [step for step in chain if step.tokens]
    first = next((index for index, step in enumerate(steps) if step.end not in known), len(steps))
    return steps[first:]
