"""`VerdictBatcher`: steps of one chain that wait for their verdicts at the same time are judged in one forward.

    score(d1) ─▶ forward [d1]
    score(d2) ─▶ waits ┐
    score(d3) ─▶ waits ┴▶ forward [d2, d3]      d3 follows d2, so one tree of branches holds both verdicts

A step never waits for others to join it: one that arrives alone is judged alone. A call that is stopped while it waits
is never judged. Steps that the draft is sure of get no verdict of the model, alone or within a chain, so batching
decides nothing. One task per prompt drains its queue and ends when it is empty.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from dreamr.engines.base import COMPARISONS, Engine
from dreamr.types import NO_VERDICT, Criterion, Prompt, Step, Verdict


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    call_id: str
    chain: tuple[Step, ...]
    """Steps that follow each other."""
    verdicts: asyncio.Future[tuple[Verdict, ...]]


_QueueKey = tuple[str, Criterion]


class VerdictBatcher:
    """The verdicts of one engine. Use it from one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queues: dict[_QueueKey, deque[_Waiting]] = {}
        """Waiting calls by prompt and criterion; a queue exists while its task runs."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def score(
        self, call_id: str, prompt: Prompt, step: Step, criterion: Criterion = "rho", reference: Step | None = None
    ) -> Verdict:
        """Judge one step on its own prefix; a blank step is not judged."""
        if criterion not in COMPARISONS or (step.is_sure and not step.is_blank):
            return (await self.score_chain(call_id, prompt, (step,), criterion))[0]
        if reference is None or step.is_blank or reference.is_blank:
            return NO_VERDICT
        if same_text(step.text, reference.text):
            now = max(step.ended, reference.ended)
            return Verdict(score=1.0, started=now, ended=now)
        return (await self._engine.score(call_id, prompt, [step], criterion, [reference]))[0]

    async def score_chain(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], criterion: Criterion = "rho"
    ) -> tuple[Verdict, ...]:
        """Judge steps that follow each other; those from the first blank one on are not judged."""
        whole = next((place for place, step in enumerate(chain) if step.is_blank), len(chain))
        unsure = [place for place in range(whole) if not chain[place].is_sure]
        first, last = (unsure[0], unsure[-1]) if unsure else (0, -1)
        given = await self._judged(call_id, prompt, chain[first : last + 1], criterion) if unsure else ()
        ended = given[-1].ended if given else max((step.ended for step in chain), default=0.0)
        skipped = Verdict(0.0, given[0].started if given else ended, ended, judged=False, skipped=True)

        def verdict(place: int) -> Verdict:
            if place < whole and chain[place].is_sure:
                return skipped
            return given[place - first] if first <= place < first + len(given) else NO_VERDICT

        return tuple(map(verdict, range(len(chain))))

    async def _judged(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], criterion: Criterion
    ) -> tuple[Verdict, ...]:
        """The model's verdicts; none after `stop`."""
        waiting = _Waiting(call_id, tuple(chain), asyncio.get_running_loop().create_future())
        key = (prompt.key, criterion)
        if key in self._queues:
            self._queues[key].append(waiting)
        else:
            self._queues[key] = deque([waiting])
            task = asyncio.create_task(self._drain(prompt, criterion), name=f"verdicts {call_id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await waiting.verdicts

    def stop(self, call_id: str) -> None:
        """Take a call out of its queue; one that is being judged already, or is unknown, is not stopped."""
        for queue in self._queues.values():
            for waiting in queue:
                if waiting.call_id == call_id and not waiting.verdicts.done():
                    waiting.verdicts.set_result(())

    async def _drain(self, prompt: Prompt, criterion: Criterion) -> None:
        queue = self._queues[prompt.key, criterion]
        try:
            while queue:
                if batch := _next_batch(queue):
                    await self._judge(prompt, batch, criterion)
        finally:
            del self._queues[prompt.key, criterion]

    async def _judge(self, prompt: Prompt, batch: list[_Waiting], criterion: Criterion) -> None:
        try:
            chain = [step for waiting in batch for step in waiting.chain]
            verdicts = await self._engine.score(batch[0].call_id, prompt, chain, criterion)
        except Exception as error:
            for waiting in batch:
                if not waiting.verdicts.done():
                    waiting.verdicts.set_exception(error)
            return
        start = 0
        for waiting in batch:
            own = tuple(verdicts[start : start + len(waiting.chain)])
            start += len(waiting.chain)
            if not waiting.verdicts.done():
                waiting.verdicts.set_result(own)


def same_text(first: str, second: str) -> bool:
    """Equal but for spaces and case: no model has to be asked whether they mean the same (Lookahead Reasoning)."""
    return "".join(first.split()).lower() == "".join(second.split()).lower()


def _next_batch(queue: deque[_Waiting]) -> list[_Waiting]:
    """Take calls off the queue as long as each follows the one before; empty when all of them were stopped."""
    batch: list[_Waiting] = []
    while queue and (queue[0].verdicts.done() or not batch or queue[0].chain[0].prefix == batch[-1].chain[-1].end):
        waiting = queue.popleft()
        if not waiting.verdicts.done():
            batch.append(waiting)
    return batch
