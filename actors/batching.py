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

from dreamr.engines.base import Engine
from dreamr.types import COMPARING, NO_VERDICT, Criterion, Prompt, Step, Verdict


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    call_id: str
    step: Step
    verdict: asyncio.Future[Verdict]


_Line = tuple[str, Criterion]


class VerdictBatcher:
    """The verdicts of one engine. Use it from one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lines: dict[_Line, deque[_Waiting]] = {}
        """Waiting steps by prompt and criterion; a line exists while its task runs."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def score(
        self, call_id: str, prompt: Prompt, step: Step, criterion: Criterion = "rho", reference: Step | None = None
    ) -> Verdict:
        """Judge one step on its own prefix; a step that says nothing, or was stopped half-way, is not judged."""
        if not _says_something(step):
            return NO_VERDICT
        if criterion in COMPARING:
            return await self._compare(call_id, prompt, step, criterion, reference)
        waiting = _Waiting(call_id, step, asyncio.get_running_loop().create_future())
        line = (prompt.key, criterion)
        if line in self._lines:
            self._lines[line].append(waiting)
        else:
            self._lines[line] = deque([waiting])
            task = asyncio.create_task(self._drain(prompt, criterion), name=f"verdicts {call_id}")
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

    async def _compare(
        self, call_id: str, prompt: Prompt, step: Step, criterion: Criterion, reference: Step | None
    ) -> Verdict:
        if reference is None or not _says_something(reference):
            return NO_VERDICT
        if same_text(step.text, reference.text):
            now = max(step.ended, reference.ended)
            return Verdict(rho=1.0, started=now, ended=now)
        return (await self._engine.score(call_id, prompt, [step], criterion, [reference]))[0]

    async def _drain(self, prompt: Prompt, criterion: Criterion) -> None:
        line = self._lines[prompt.key, criterion]
        try:
            while line:
                if batch := _next_chain(line):
                    await self._judge(prompt, batch, criterion)
        finally:
            del self._lines[prompt.key, criterion]

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


def _says_something(step: Step) -> bool:
    return bool(step.tokens) and step.finish != "stopped"


def _next_chain(line: deque[_Waiting]) -> list[_Waiting]:
    """Take steps off the line as long as each follows the one before; empty when all in line were stopped."""
    chain: list[_Waiting] = []
    while line and (line[0].verdict.done() or not chain or line[0].step.prefix == chain[-1].step.end):
        waiting = line.popleft()
        if not waiting.verdict.done():
            chain.append(waiting)
    return chain
