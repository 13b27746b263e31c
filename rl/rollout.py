"""`RolloutWorker`: writes groups of chains with the current draft and has them judged.

    free          chains of all groups in one batch ─▶ verdicts ─▶ groups
    in_pipeline   next step of every chain ─▶ verdicts ─▶ accepted: kept; rejected: replaced by the target's step
                      ▲                                    │
                      └──────── until all chains end ──────┘

The worker awaits verifiers; a verifier awaits no other actor. Models compute in the engines' own threads, so that
health calls are answered meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from actors.roles import DraftActor
from dreamr.config import ActorConfig
from dreamr.engines.base import Engine, Trainable
from dreamr.tasks.prompts import is_thinking
from dreamr.types import START_OF_THOUGHT, JudgedStep, Step, Tokens
from rl.chains import Chain, ChainStep, DraftedStep, Group, GroupRequest, RolloutTask
from rl.verifier import Frontier, Verifiers
from rl.writing import ChainBatch, ChainLimits

_TRAINING = "training"
_TAIL = 64
"""Number of last tokens of a prompt that are searched for the opening of the reasoning."""


class RolloutWorker(DraftActor):
    """Writes with the draft of the newest optimizer step."""

    def __init__(self, config: ActorConfig, ids_of: str | None = None) -> None:
        super().__init__(config, ids_of)
        self._version = 0
        self._rollouts: set[_Rollout] = set()
        self._num_done = 0

    async def set_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Load the weights of the optimizer step `version`; Ray resolves their reference once per node."""
        await self._able(Trainable, _TRAINING).update_weights(weights)
        self._version = version

    async def num_done(self) -> int:
        """Progress counter: tokens written and answers of verifiers."""
        return self._num_done + sum(rollout.num_done for rollout in self._rollouts)

    async def roll_out(
        self, requests: Sequence[GroupRequest], verifiers: Sequence[Any], task: RolloutTask, limits: ChainLimits
    ) -> list[Group]:
        """Chains for every request, judged by the actors `verifiers` (handles of `RolloutVerifier`)."""
        prompts = [await self._able(Trainable, _TRAINING).tokenize(request.prompt) for request in requests]
        openings = [self._opening(prompt) for prompt in prompts]
        rollout = _Rollout(self._engine, requests, Verifiers(verifiers), task, limits)
        self._rollouts.add(rollout)
        try:
            target_steps = asyncio.ensure_future(rollout.count_target_steps())
            try:
                chains = await (rollout.write_free() if task.mode == "free" else rollout.write_in_pipeline())
                counts = await target_steps
            finally:
                target_steps.cancel()
                await asyncio.gather(target_steps, return_exceptions=True)
        finally:
            self._rollouts.discard(rollout)
            self._num_done += rollout.num_done
        return [
            Group(prompt, tuple(replace(chain, opening=opening) for chain in of_request), self._version, count)
            for prompt, opening, of_request, count in zip(prompts, openings, chains, counts, strict=True)
        ]

    def _opening(self, prompt: Tokens) -> str:
        """`<think>` when the prompt ends inside the reasoning, else nothing."""
        text = str(self._able(Trainable, _TRAINING).tokenizer.decode(list(prompt[-_TAIL:]), skip_special_tokens=False))
        return START_OF_THOUGHT if is_thinking(text.rpartition("<|im_start|>")[2]) else ""


class _Rollout:
    """One call of a worker: a batch of rows, and the verifiers that judge them."""

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[GroupRequest],
        verifiers: Verifiers,
        task: RolloutTask,
        limits: ChainLimits,
    ) -> None:
        self._requests, self._verifiers, self._task, self._limits = requests, verifiers, task, limits
        self._batch = ChainBatch(engine, requests, limits)
        self._num_answers = 0

    @property
    def num_done(self) -> int:
        """Tokens written and answers of verifiers so far."""
        return self._num_answers + self._batch.num_tokens

    async def count_target_steps(self) -> list[int | None]:
        """Per request the number of steps of the target's answer; None where it is not requested."""
        return await asyncio.gather(
            *(
                self._ask("count_steps", request.prompt, self._limits) if request.count_target_steps else _nothing()
                for request in self._requests
            )
        )

    async def write_free(self) -> list[list[Chain]]:
        """The chains of each request: written whole, then judged."""
        batch = self._batch
        written = await batch.write_chains()
        judged = await self._judged(written)
        return self._by_request(
            [
                [self._drafted(*pair) for pair in zip(steps, of_chain, strict=True)]
                for steps, of_chain in zip(written, judged, strict=True)
            ]
        )

    async def write_in_pipeline(self) -> list[list[Chain]]:
        """The chains of each request: judged step by step, rejected steps replaced by the target's."""
        batch = self._batch
        chains: list[list[ChainStep]] = [[] for _ in batch.rows]
        while any(row.end is None for row in batch.rows):
            before = [row.frontier for row in batch.rows]
            written = await batch.write_steps()
            judged = await self._judged([[one] if one else [] for one in written])
            rejected: dict[int, ChainStep] = {}
            for index, one in enumerate(written):
                if one is None:
                    continue
                step = self._drafted(one, judged[index][0])
                if step.drafted.accepted:
                    chains[index].append(step)
                else:
                    rejected[index] = step
            for index, replacement in (await self._target_steps(list(rejected), before)).items():
                batch.replace(batch.rows[index], before[index], replacement)
                chains[index].append(self._replaced(rejected[index], replacement))
        return self._by_request(chains)

    async def _judged(self, chains: Sequence[Sequence[Step]]) -> list[list[JudgedStep]]:
        """Verdicts on each step of every row; the calls of all groups run at once."""
        shares = self._shares([index for index, chain in enumerate(chains) if chain])
        temperature = self._requests[0].temperature if self._task.target_logprobs else None
        answers = await asyncio.gather(
            *(
                self._ask("judge", self._requests[group].prompt, [chains[index] for index in rows], temperature)
                for group, rows in shares
            )
        )
        judged: list[list[JudgedStep]] = [[] for _ in chains]
        for (_, rows), answer in zip(shares, answers, strict=True):
            for index, of_chain in zip(rows, answer, strict=True):
                judged[index] = of_chain
        return judged

    async def _target_steps(self, rejected: Sequence[int], before: Sequence[Step]) -> dict[int, Step]:
        """The target's step in place of each rejected one; the calls of all groups run at once."""
        rows_of_batch = self._batch.rows
        shares, calls = self._shares(rejected), []
        for group, rows in shares:
            # The row has counted the rejected step already.
            frontiers = [
                Frontier(before[index], rows_of_batch[index].num_steps - 1, rows_of_batch[index].request.settings.seed)
                for index in rows
            ]
            request = self._requests[group]
            calls.append(self._ask("write", request.prompt, frontiers, request.temperature, self._limits))
        return {
            index: step
            for (_, rows), steps in zip(shares, await asyncio.gather(*calls), strict=True)
            for index, step in zip(rows, steps, strict=True)
        }

    def _shares(self, indices: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Groups and rows of calls: a call per group, or several where there are more verifiers than groups."""
        groups: dict[int, list[int]] = defaultdict(list)
        for index in indices:
            groups[self._batch.rows[index].group].append(index)
        shares = []
        for group, rows in groups.items():
            size = -(-len(rows) // max(1, len(self._verifiers) // len(groups)))
            shares += [(group, rows[start : start + size]) for start in range(0, len(rows), size)]
        return shares

    async def _ask(self, method: str, *arguments: Any) -> Any:
        answer = await self._verifiers.call(method, *arguments)
        self._num_answers += 1
        return answer

    def _drafted(self, step: Step, judged: JudgedStep) -> ChainStep:
        verdict = judged.verdict
        drafted = DraftedStep(len(step.tokens), self._task.rule.accepts(verdict))
        score = verdict.score if verdict.judged else None
        return ChainStep("draft", step.tokens, step.text, step.logprobs, score, drafted, judged.logprobs)

    def _replaced(self, rejected: ChainStep, step: Step) -> ChainStep:
        zeros = (0.0,) * len(step.tokens)
        of_target = zeros if self._task.target_logprobs else ()
        return ChainStep("target", step.tokens, step.text, zeros, rejected.score, rejected.drafted, of_target)

    def _by_request(self, steps: Sequence[Sequence[ChainStep]]) -> list[list[Chain]]:
        chains: list[list[Chain]] = [[] for _ in self._requests]
        for row, of_chain in zip(self._batch.rows, steps, strict=True):
            assert row.end is not None
            chains[row.group].append(Chain(tuple(of_chain), row.end))
        return chains


async def _nothing() -> None:
    return None
