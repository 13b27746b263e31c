"""`VerdictBatcher`: steps of one chain that wait for their verdicts at the same time are judged in one forward.

    score(d1) ─▶ forward [d1]
    score(d2) ─▶ waits ┐
    score(d3) ─▶ waits ┴▶ forward [d2, d3]      d3 follows d2, so one tree of branches holds both verdicts

A step never waits for others to join it: one that arrives alone is judged alone. One task per prompt drains its queue
and ends with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from dreamr.engines.base import COMPARISONS, Engine
from dreamr.types import NO_VERDICT, Criterion, Prompt, Step, Verdict


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    call_id: str
    step: Step
    verdict: asyncio.Future[Verdict]


_QueueKey = tuple[str, Criterion]


class VerdictBatcher:
    """The verdicts of one engine. Use it from one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queues: dict[_QueueKey, deque[_Waiting]] = {}
        """Waiting steps by prompt and criterion; a queue exists while its task runs."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def score(
        self, call_id: str, prompt: Prompt, step: Step, criterion: Criterion = "rho", reference: Step | None = None
    ) -> Verdict:
        """Judge one step on its own prefix; a blank step is not judged."""
        if step.is_blank:
            return NO_VERDICT
        if criterion in COMPARISONS:
            return await self._compare(call_id, prompt, step, criterion, reference)
        waiting = _Waiting(call_id, step, asyncio.get_running_loop().create_future())
        queue = (prompt.key, criterion)
        if queue in self._queues:
            self._queues[queue].append(waiting)
        else:
            self._queues[queue] = deque([waiting])
            task = asyncio.create_task(self._drain(prompt, criterion), name=f"verdicts {call_id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await waiting.verdict

    def stop(self, call_id: str) -> None:
        """Take a call out of its queue; one that is being judged already, or is unknown, goes on."""
        for queue in self._queues.values():
            for waiting in queue:
                if waiting.call_id == call_id and not waiting.verdict.done():
                    waiting.verdict.set_result(NO_VERDICT)

    async def _compare(
        self, call_id: str, prompt: Prompt, step: Step, criterion: Criterion, reference: Step | None
    ) -> Verdict:
        if reference is None or reference.is_blank:
            return NO_VERDICT
        if same_text(step.text, reference.text):
            now = max(step.ended, reference.ended)
            return Verdict(score=1.0, started=now, ended=now)
        return (await self._engine.score(call_id, prompt, [step], criterion, [reference]))[0]

    async def _drain(self, prompt: Prompt, criterion: Criterion) -> None:
        queue = self._queues[prompt.key, criterion]
        try:
            while queue:
                if batch := _next_chain(queue):
                    await self._judge(prompt, batch, criterion)
        finally:
            del self._queues[prompt.key, criterion]

    async def _judge(self, prompt: Prompt, batch: list[_Waiting], criterion: Criterion) -> None:
        try:
            chain = [waiting.step for waiting in batch]
            verdicts = await self._engine.score(batch[0].call_id, prompt, chain, criterion)
        except Exception as error:
            for waiting in batch:
                if not waiting.verdict.done():
                    waiting.verdict.set_exception(error)
            return
        for waiting, verdict in zip(batch, verdicts, strict=True):
            if not waiting.verdict.done():
                waiting.verdict.set_result(verdict)


def same_text(first: str, second: str) -> bool:
    """Equal but for spaces and case: no model has to be asked whether they mean the same (Lookahead Reasoning)."""
    return "".join(first.split()).lower() == "".join(second.split()).lower()


def _next_chain(queue: deque[_Waiting]) -> list[_Waiting]:
    """Take steps off the queue as long as each follows the one before; empty when all of them were stopped."""
    chain: list[_Waiting] = []
    while queue and (queue[0].verdict.done() or not chain or queue[0].step.prefix == chain[-1].step.end):
        waiting = queue.popleft()
        if not waiting.verdict.done():
            chain.append(waiting)
    return chain
