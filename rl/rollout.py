"""`RolloutWorker`: the current draft; writes groups of chains and has them judged.

    free          chains of all groups, side by side ─▶ judge: one call per group ─▶ groups
    in pipeline   next step of every chain ─▶ judge ─▶ accepted: kept; rejected: the target's step takes its place
                      ▲                                    │
                      └──────── until all chains end ──────┘

The worker awaits the verifier, the verifier nobody. Chains are written in a thread, so that health calls are answered.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from actors.roles import DraftActor
from dreamr.config import ActorConfig
from dreamr.engines.hf.engine import HFEngine
from dreamr.types import Step
from rl.chains import Chain, ChainStep, Group, GroupRequest, RolloutTask
from rl.rewards import DraftedStep, is_accepted
from rl.verifier import Frontier
from rl.writing import ChainBatch, ChainLimits, Row, WrittenStep


class RolloutWorker(DraftActor):
    """Holds the draft of the newest optimizer step."""

    def __init__(self, config: ActorConfig, ids_of: str | None = None) -> None:
        super().__init__(config, ids_of)
        self._version = 0

    async def set_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Load what the optimizer step `version` has made; Ray resolves the reference once per node."""
        await cast(HFEngine, self._engine).update_weights(weights)
        self._version = version

    async def roll_out(
        self, requests: Sequence[GroupRequest], verifier: Any, task: RolloutTask, limits: ChainLimits
    ) -> list[Group]:
        """Chains for every request, judged by the actor `verifier` (a handle of `RolloutVerifier`)."""
        engine = cast(HFEngine, self._engine)
        batch = await asyncio.to_thread(ChainBatch, engine, requests, limits)
        write = _write_free if task.mode == "free" else _write_in_pipeline
        chains = await write(batch, requests, verifier, task.alpha, limits)
        by_group: dict[int, list[Chain]] = defaultdict(list)
        for row, chain in zip(batch.rows, chains, strict=True):
            by_group[row.group].append(chain)
        return [
            Group(engine.prompt_tokens(request.prompt), tuple(by_group[index]), self._version)
            for index, request in enumerate(requests)
        ]


async def _write_free(
    batch: ChainBatch, requests: Sequence[GroupRequest], verifier: Any, alpha: float, limits: ChainLimits
) -> list[Chain]:
    written = await asyncio.to_thread(batch.write_chains)
    rhos = await _judged(batch.rows, [[one.step for one in steps] for steps in written], requests, verifier)
    return [
        _chain(row, [_drafted(one, rho, alpha) for one, rho in zip(steps, verdicts, strict=True)])
        for row, steps, verdicts in zip(batch.rows, written, rhos, strict=True)
    ]


async def _write_in_pipeline(
    batch: ChainBatch, requests: Sequence[GroupRequest], verifier: Any, alpha: float, limits: ChainLimits
) -> list[Chain]:
    chains: list[list[ChainStep]] = [[] for _ in batch.rows]
    while any(row.end is None for row in batch.rows):
        before = [row.frontier for row in batch.rows]
        written = await asyncio.to_thread(batch.write_steps)
        drafted = [[one.step] if one else [] for one in written]
        rhos = await _judged(batch.rows, drafted, requests, verifier)
        rejected: dict[int, ChainStep] = {}
        for index, one in enumerate(written):
            if one is None:
                continue
            own = _drafted(one, rhos[index][0], alpha)
            if own.drafted.accepted:
                chains[index].append(own)
            else:
                rejected[index] = own
        replacements = await _replacements(batch.rows, rejected, before, requests, verifier, limits)
        for index, step in replacements.items():
            batch.replace(batch.rows[index], before[index], step)
            chains[index].append(_replaced(rejected[index], step))
    return [_chain(row, steps) for row, steps in zip(batch.rows, chains, strict=True)]


async def _judged(
    rows: Sequence[Row], chains: Sequence[Sequence[Step]], requests: Sequence[GroupRequest], verifier: Any
) -> list[list[float | None]]:
    """rho per step of every row; one call per group that has something to judge, all at once."""
    members = _members(rows, [index for index, chain in enumerate(chains) if chain])
    calls = [
        verifier.judge.remote(requests[group].prompt, [chains[index] for index in own])
        for group, own in members.items()
    ]
    rhos: list[list[float | None]] = [[] for _ in rows]
    for own, answer in zip(members.values(), await asyncio.gather(*calls), strict=True):
        for index, verdicts in zip(own, answer, strict=True):
            rhos[index] = verdicts
    return rhos


async def _replacements(
    rows: Sequence[Row],
    rejected: Mapping[int, ChainStep],
    before: Sequence[Step],
    requests: Sequence[GroupRequest],
    verifier: Any,
    limits: ChainLimits,
) -> dict[int, Step]:
    """The target's step in the place of each rejected one; one call per group, all at once."""
    members = _members(rows, list(rejected))
    calls = []
    for group, own in members.items():
        # The row has counted the rejected step already.
        frontiers = [
            Frontier(before[index], rows[index].num_steps - 1, rows[index].request.settings.seed) for index in own
        ]
        request = requests[group]
        calls.append(verifier.write.remote(request.prompt, frontiers, request.temperature, limits))
    answers = await asyncio.gather(*calls)
    return {
        index: step
        for own, steps in zip(members.values(), answers, strict=True)
        for index, step in zip(own, steps, strict=True)
    }


def _members(rows: Sequence[Row], indices: Sequence[int]) -> dict[int, list[int]]:
    """Indices of rows by the group they belong to."""
    members: dict[int, list[int]] = defaultdict(list)
    for index in indices:
        members[rows[index].group].append(index)
    return dict(members)


def _drafted(written: WrittenStep, rho: float | None, alpha: float) -> ChainStep:
    step = written.step
    drafted = DraftedStep(len(step.tokens), is_accepted(step.text, rho, alpha))
    return ChainStep("draft", step.tokens, step.text, written.logprobs, rho, drafted)


def _replaced(rejected: ChainStep, step: Step) -> ChainStep:
    zeros = (0.0,) * len(step.tokens)
    return ChainStep("target", step.tokens, step.text, zeros, rejected.score, rejected.drafted)


def _chain(row: Row, steps: Sequence[ChainStep]) -> Chain:
    assert row.end is not None
    return Chain(tuple(steps), row.end)
