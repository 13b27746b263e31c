"""`VerdictBatcher`: steps of one chain that wait for their verdicts at the same time are judged in one forward.

    score(d1) ─▶ forward [d1]
    score(d2) ─▶ waits ┐
    score(d3) ─▶ waits ┴▶ forward [d2, d3]      d3 follows d2, so one tree of branches holds both verdicts

Nobody waits for company: a step is judged alone when it comes alone. One task per prompt drains its line; the last
call that leaves finds it ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from dreamr.actors.types import NO_VERDICT, Prompt, Step, Verdict
from dreamr.engines.base import Engine


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    call_id: str
    step: Step
    verdict: asyncio.Future[Verdict]


class VerdictBatcher:
    """The verdicts of one engine. Use it from one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lines: dict[str, deque[_Waiting]] = {}
        """Waiting steps by prompt; a line exists while its task runs."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def score(self, call_id: str, prompt: Prompt, step: Step) -> Verdict:
        """Judge one step on its own prefix; a step that says nothing, or was stopped half-way, is not judged."""
        if not step.tokens or step.finish == "stopped":
            return NO_VERDICT
        waiting = _Waiting(call_id, step, asyncio.get_running_loop().create_future())
        if prompt.key in self._lines:
            self._lines[prompt.key].append(waiting)
        else:
            self._lines[prompt.key] = deque([waiting])
            task = asyncio.create_task(self._drain(prompt), name=f"verdicts {call_id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await waiting.verdict

    def stop(self, call_id: str) -> None:
        """Take a call out of its line; one that is being judged already, or is unknown, goes on."""
        for line in self._lines.values():
            for waiting in line:
                if waiting.call_id == call_id and not waiting.verdict.done():
                    waiting.verdict.set_result(NO_VERDICT)

    def abandon(self) -> None:
        """Forget all lines, with what is being judged: the engine is lost, and so are the calls."""
        for task in self._tasks:
            task.cancel()

    async def _drain(self, prompt: Prompt) -> None:
        line = self._lines[prompt.key]
        try:
            while line:
                if batch := _next_chain(line):
                    await self._judge(prompt, batch)
        finally:
            del self._lines[prompt.key]

    async def _judge(self, prompt: Prompt, batch: list[_Waiting]) -> None:
        try:
            verdicts = await self._engine.score(batch[0].call_id, prompt, [waiting.step for waiting in batch])
        except Exception as error:
            for waiting in batch:
                if not waiting.verdict.done():
                    waiting.verdict.set_exception(error)
            return
        for waiting, verdict in zip(batch, verdicts, strict=True):
            if not waiting.verdict.done():
                waiting.verdict.set_result(verdict)


def _next_chain(line: deque[_Waiting]) -> list[_Waiting]:
    """Take steps off the line as long as each follows the one before; empty when all in line were stopped."""
    chain: list[_Waiting] = []
    while line and (line[0].verdict.done() or not chain or line[0].step.prefix == chain[-1].step.end):
        waiting = line.popleft()
        if not waiting.verdict.done():
            chain.append(waiting)
    return chain
