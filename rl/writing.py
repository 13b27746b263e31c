"""`ChainBatch`: chains of several groups, all of whose steps one engine writes at once.

    free          every row continues from step to step until its chain ends
    in_pipeline   all rows write one step; a rejected one is replaced; then all rows write the next one

A row equals what the schedules would draft for a request with its seed: the same prompt, seed per step and stop rules.
The other rows of a batch only change rounding.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dreamr.config import PipelineSettings
from dreamr.engines.base import Engine
from dreamr.errors import Unable
from dreamr.types import ROOT, Role, Sampling, Step
from pipelines import Request
from pipelines.recorder import end_after
from rl.chains import ChainEnd, GroupRequest


@dataclass(frozen=True, slots=True)
class ChainLimits:
    """Limits of chains and steps, and `top_p`."""

    max_tokens: int
    max_step_tokens: int
    top_p: float = 1.0


@dataclass(slots=True, eq=False)
class Row:
    """One chain while it is written."""

    group: int
    request: Request
    role: Role
    frontier: Step = ROOT
    num_steps: int = 0
    end: ChainEnd | None = None

    def next_sampling(self) -> Sampling:
        """How the next step is sampled, with log-probabilities for the learner."""
        return replace(self.request.sampling(self.num_steps, self.role), logprobs=True)

    def start_after(self, frontier: Step, num_steps: int) -> None:
        """Continue after steps that were written elsewhere."""
        self.frontier, self.num_steps = frontier, num_steps


class ChainBatch:
    """Rows of one call, over one engine."""

    def __init__(
        self, engine: Engine, requests: Sequence[GroupRequest], limits: ChainLimits, role: Role = "draft"
    ) -> None:
        self._engine, self._limits = engine, limits
        self.rows = [
            Row(group, _request(request, seed, limits, f"rollout-{group}-{seed}"), role)
            for group, request in enumerate(requests)
            for seed in request.seeds
        ]

    @property
    def num_tokens(self) -> int:
        """Tokens in the rows so far; may be read while rows are written."""
        return sum(len(row.frontier.end) for row in self.rows)

    async def write_chains(self) -> list[list[Step]]:
        """Per row, all steps to the end of its chain. Raises Unable when the engine gives no log-probabilities."""
        return await asyncio.gather(*(self._write_chain(row) for row in self.rows))

    async def write_steps(self) -> list[Step | None]:
        """Per row its next step, None where the chain has ended. Raises Unable as `write_chains` does."""
        return await asyncio.gather(*(self._write_step(row) for row in self.rows))

    def replace(self, row: Row, before: Step, by: Step) -> None:
        """Put `by` in place of the step that the row wrote last, after the frontier `before`."""
        row.frontier = by
        row.end = end_after(by, before, self._limits.max_tokens)

    async def _write_chain(self, row: Row) -> list[Step]:
        steps: list[Step] = []
        while (step := await self._write_step(row)) is not None:
            steps.append(step)
        return steps

    async def _write_step(self, row: Row) -> Step | None:
        if row.end is not None:
            return None
        call_id = f"{row.request.id}/{row.role}/{row.num_steps}"
        step = await self._engine.next_step(call_id, row.request.prompt, row.frontier, row.next_sampling())
        if len(step.logprobs) != len(step.tokens):
            raise Unable(
                f"the {row.role}'s engine gives no log-probabilities of the tokens that it writes: train with engine "
                "'hf' or 'vllm'"
            )
        row.end = end_after(step, row.frontier, self._limits.max_tokens)
        row.frontier, row.num_steps = step, row.num_steps + 1
        return step


def _request(group: GroupRequest, seed: int, limits: ChainLimits, name: str) -> Request:
    settings = PipelineSettings(
        temperature=group.temperature,
        top_p=limits.top_p,
        seed=seed,
        max_tokens=limits.max_tokens,
        max_step_tokens=limits.max_step_tokens,
    )
    return Request(group.prompt, settings, id=name)
