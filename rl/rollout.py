"""The actors of a rollout: `RolloutWorker` writes chains with the current draft, `RolloutVerifier` is the target.

    free          chains of all groups in one batch ─▶ verdicts: one call per group ─▶ groups
    in_pipeline   next step of every chain ─▶ verdicts ─▶ accepted: kept; rejected: replaced by the target's step
                      ▲                                    │
                      └──────── until all chains end ──────┘

The worker awaits the verifier; the verifier awaits no other actor. Models compute in the engines' own threads, so that
health calls are answered meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from actors.roles import DraftActor, TargetActor
from dreamr.config import ActorConfig
from dreamr.engines.hf.engine import HFEngine
from dreamr.types import NO_VERDICT, Prompt, Step, Tokens, Verdict
from pipelines.verification import Rule
from rl.chains import Chain, ChainStep, DraftedStep, Group, GroupRequest, RolloutTask
from rl.writing import ChainBatch, ChainLimits, Row


@dataclass(frozen=True, slots=True)
class Frontier:
    """The end of a chain, from which the target writes its step."""

    step: Step
    num_steps: int
    seed: int


class RolloutWorker(DraftActor):
    """Holds the draft of the newest optimizer step."""

    def __init__(self, config: ActorConfig, ids_of: str | None = None) -> None:
        super().__init__(config, ids_of)
        self._version = 0

    async def set_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Load the weights of the optimizer step `version`; Ray resolves their reference once per node."""
        await cast(HFEngine, self._engine).update_weights(weights)
        self._version = version

    async def roll_out(
        self, requests: Sequence[GroupRequest], verifier: Any, task: RolloutTask, limits: ChainLimits
    ) -> list[Group]:
        """Chains for every request, judged by the actor `verifier` (a handle of `RolloutVerifier`)."""
        engine = cast(HFEngine, self._engine)
        batch = ChainBatch(engine, requests, limits)
        rollout = _Rollout(batch, requests, verifier, task.rule, limits)
        chains = await (rollout.write_free() if task.mode == "free" else rollout.write_in_pipeline())
        by_group: dict[int, list[Chain]] = defaultdict(list)
        for row, chain in zip(batch.rows, chains, strict=True):
            by_group[row.group].append(chain)
        return [
            Group(await engine.prompt_tokens(request.prompt), tuple(by_group[index]), self._version)
            for index, request in enumerate(requests)
        ]


class RolloutVerifier(TargetActor):
    """The target: judges the chains of whole groups, and writes the steps that replace rejected ones."""

    async def judge(self, prompt: Prompt, chains: Sequence[Sequence[Step]]) -> list[list[Verdict]]:
        """A verdict per step of every chain of one prompt; a blank step is not judged.

        The steps of a chain are judged in one forward, a step that several chains share only once. Chains are judged
        one after the other: a forward over a whole chain fills a processor already, and chains share the prefix cache.
        """
        known: dict[Tokens, Verdict] = {}
        for chain in chains:
            unknown = _unjudged(chain, known)
            verdicts = await self._engine.score("rollout", prompt, unknown)
            known.update((step.end, verdict) for step, verdict in zip(unknown, verdicts, strict=True))
        return [[NO_VERDICT if step.is_blank else known[step.end] for step in chain] for chain in chains]

    async def write(
        self, prompt: Prompt, frontiers: Sequence[Frontier], temperature: float, limits: ChainLimits
    ) -> list[Step]:
        """The target's step after each frontier of one prompt."""
        request = GroupRequest(prompt, tuple(frontier.seed for frontier in frontiers), temperature)
        batch = ChainBatch(self._engine, [request], limits, role="target")
        for row, frontier in zip(batch.rows, frontiers, strict=True):
            row.start_after(frontier.step, frontier.num_steps)
        return [step for step in await batch.write_steps() if step is not None]


def _unjudged(chain: Sequence[Step], known: dict[Tokens, Verdict]) -> list[Step]:
    """The steps from the first that has no verdict yet; a step without tokens can only be the last one."""
    steps = [step for step in chain if step.tokens]
    first = next((index for index, step in enumerate(steps) if step.end not in known), len(steps))
    return steps[first:]


class _Rollout:
    """One call of a worker: a batch of rows, and the verifier that judges them."""

    def __init__(
        self, batch: ChainBatch, requests: Sequence[GroupRequest], verifier: Any, rule: Rule, limits: ChainLimits
    ) -> None:
        self._batch, self._rows = batch, batch.rows
        self._requests, self._verifier, self._rule, self._limits = requests, verifier, rule, limits

    async def write_free(self) -> list[Chain]:
        written = await self._batch.write_chains()
        verdicts = await self._judged(written)
        return [
            _chain(row, [self._drafted(*pair) for pair in zip(steps, judged, strict=True)])
            for row, steps, judged in zip(self._rows, written, verdicts, strict=True)
        ]

    async def write_in_pipeline(self) -> list[Chain]:
        chains: list[list[ChainStep]] = [[] for _ in self._rows]
        while any(row.end is None for row in self._rows):
            before = [row.frontier for row in self._rows]
            written = await self._batch.write_steps()
            verdicts = await self._judged([[one] if one else [] for one in written])
            rejected: dict[int, ChainStep] = {}
            for index, one in enumerate(written):
                if one is None:
                    continue
                step = self._drafted(one, verdicts[index][0])
                if step.drafted.accepted:
                    chains[index].append(step)
                else:
                    rejected[index] = step
            for index, replacement in (await self._target_steps(list(rejected), before)).items():
                self._batch.replace(self._rows[index], before[index], replacement)
                chains[index].append(_replaced(rejected[index], replacement))
        return [_chain(row, steps) for row, steps in zip(self._rows, chains, strict=True)]

    async def _judged(self, chains: Sequence[Sequence[Step]]) -> list[list[Verdict]]:
        """A verdict per step of every row; one call per group that has steps to judge, all at once."""
        by_group = self._by_group([index for index, chain in enumerate(chains) if chain])
        calls = [
            self._verifier.judge.remote(self._requests[group].prompt, [chains[index] for index in rows])
            for group, rows in by_group.items()
        ]
        verdicts: list[list[Verdict]] = [[] for _ in self._rows]
        for rows, answer in zip(by_group.values(), await asyncio.gather(*calls), strict=True):
            for index, judged in zip(rows, answer, strict=True):
                verdicts[index] = judged
        return verdicts

    async def _target_steps(self, rejected: Sequence[int], before: Sequence[Step]) -> dict[int, Step]:
        """The target's step in place of each rejected one; one call per group, all at once."""
        by_group = self._by_group(rejected)
        calls = []
        for group, rows in by_group.items():
            # The row has counted the rejected step already.
            frontiers = [
                Frontier(before[index], self._rows[index].num_steps - 1, self._rows[index].request.settings.seed)
                for index in rows
            ]
            request = self._requests[group]
            calls.append(self._verifier.write.remote(request.prompt, frontiers, request.temperature, self._limits))
        answers = await asyncio.gather(*calls)
        return {
            index: step
            for rows, steps in zip(by_group.values(), answers, strict=True)
            for index, step in zip(rows, steps, strict=True)
        }

    def _by_group(self, indices: Sequence[int]) -> dict[int, list[int]]:
        """Indices of rows by the group they belong to."""
        groups: dict[int, list[int]] = defaultdict(list)
        for index in indices:
            groups[self._rows[index].group].append(index)
        return groups

    def _drafted(self, step: Step, verdict: Verdict) -> ChainStep:
        drafted = DraftedStep(len(step.tokens), self._rule.accepts(verdict))
        score = verdict.score if verdict.judged else None
        return ChainStep("draft", step.tokens, step.text, step.logprobs, score, drafted)


def _replaced(rejected: ChainStep, step: Step) -> ChainStep:
    zeros = (0.0,) * len(step.tokens)
    return ChainStep("target", step.tokens, step.text, zeros, rejected.score, rejected.drafted)


def _chain(row: Row, steps: Sequence[ChainStep]) -> Chain:
    assert row.end is not None
    return Chain(tuple(steps), row.end)
