"""`Watched` actors: tell what they are doing while they do it, for the page's lanes.

    next_step / score / ... ──▶ {"call": 3, "lane": "draft", "at": 0.12}                    when it is asked for
                           ──▶ {"call": 3, "lane": "draft", "start": .., "end": .., ...}    when its result is there

One task per call waits for its result; `settled` awaits them all, and they end because a pipeline lets none of its
calls go before it has ended.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dreamr.serve.wrapped import WrappedJudge, WrappedWriter
from dreamr.types import Checked, Criterion, Prefill, Prompt, Proposal, Role, Sampling, Step, Verdict
from pipelines.handles import Actors, Judge, Ref, Writer
from pipelines.verification import Rule

T = TypeVar("T")
Tell = Callable[[dict[str, Any]], None]
Value = Step | Verdict | Proposal | Checked | tuple[Step, ...] | tuple[Verdict, ...]


class Watch:
    """The calls of one answer, on its own clock; its drafted steps are judged by `rule`."""

    def __init__(self, rule: Rule, tell: Tell) -> None:
        self._rule, self._tell = rule, tell
        self._began = time.time()
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    def over(self, actors: Actors) -> Actors:
        """The same actors, watched."""
        return Actors(
            draft=WatchedWriter(actors.draft, "draft", self),
            target=WatchedWriter(actors.target, "target", self),
            judge=WatchedJudge(actors.judge, self),
        )

    def follow(self, lane: Role, ref: Ref[T]) -> Ref[T]:
        """Tell of a call that has just been made, and of its result. Returns the call's reference."""
        event = self._begun({"lane": lane})
        task = asyncio.create_task(self._wait_for(event, ref), name=f"watch {lane} {event['call']}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return ref

    async def reading(self, judge: Judge, prompt: Prompt) -> Prefill:
        """Have the verifier read the prompt, and tell of it."""
        event = self._begun({"lane": "verifier", "prefill": True})
        try:
            read = await judge.prefill(prompt)
        except BaseException:
            self._lost(event)
            raise
        self._ended(event, read.started, read.ended)
        return read

    async def settled(self) -> None:
        """Return when every call has been told of."""
        await asyncio.gather(*self._tasks)

    async def _wait_for(self, event: dict[str, Any], ref: Ref[Any]) -> None:
        try:
            value: Value = await ref
        except Exception:
            self._lost(event)  # its pipeline says why
            return
        parts = value if isinstance(value, tuple) else (value,)
        self._ended(event | self._result(value), parts[0].started, parts[-1].ended)

    def _result(self, value: Value) -> dict[str, Any]:
        match value:
            case Verdict(judged=False):
                return {"judged": False}
            case Verdict():
                rho = {"rho": value.rho} if self._rule.kind == "rho" else {}
                return {"judged": True, "accepted": self._rule.accepts(value), **rho}
            case (Verdict() as first, *_):  # a chain is judged at the frontier: its first verdict decides something
                return {"judged": True, "accepted": self._rule.accepts(first)}
            case Step():
                return {"num_tokens": len(value.tokens), "stopped": value.finish == "stopped"}
            case Proposal():
                return {"num_tokens": len(value.tokens)}
            case _:
                return {}

    def _begun(self, event: dict[str, Any]) -> dict[str, Any]:
        event = {"call": next(self._numbers)} | event
        self._tell(event | {"at": time.time() - self._began})
        return event

    def _ended(self, event: dict[str, Any], started: float, ended: float) -> None:
        self._tell(event | {"start": started - self._began, "end": ended - self._began})

    def _lost(self, event: dict[str, Any]) -> None:
        self._tell(event | {"lost": True, "end": time.time() - self._began})


class WatchedWriter(WrappedWriter):
    def __init__(self, inner: Writer, lane: Role, watch: Watch) -> None:
        super().__init__(inner)
        self._lane, self._watch = lane, watch

    def next_step(self, call_id: str, prompt: Prompt, after: Step | Ref[Step], sampling: Sampling) -> Ref[Step]:
        return self._watch.follow(self._lane, super().next_step(call_id, prompt, after, sampling))

    def next_steps(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], sampling: Sequence[Sampling]
    ) -> Ref[tuple[Step, ...]]:
        return self._watch.follow(self._lane, super().next_steps(call_id, prompt, chain, sampling))

    def propose_tokens(
        self, call_id: str, prompt: Prompt, after: Step, num_tokens: int, sampling: Sampling
    ) -> Ref[Proposal]:
        return self._watch.follow(self._lane, super().propose_tokens(call_id, prompt, after, num_tokens, sampling))

    def check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal | Ref[Proposal], sampling: Sampling
    ) -> Ref[Checked]:
        return self._watch.follow(self._lane, super().check_tokens(call_id, prompt, after, proposal, sampling))


class WatchedJudge(WrappedJudge):
    def __init__(self, inner: Judge, watch: Watch) -> None:
        super().__init__(inner)
        self._watch = watch

    async def prefill(self, prompt: Prompt) -> Prefill:
        return await self._watch.reading(self._inner, prompt)

    def score(
        self,
        call_id: str,
        prompt: Prompt,
        step: Step | Ref[Step],
        criterion: Criterion = "rho",
        reference: Step | Ref[Step] | None = None,
    ) -> Ref[Verdict]:
        return self._watch.follow("verifier", super().score(call_id, prompt, step, criterion, reference))

    def score_chain(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step | Ref[Step]], criterion: Criterion = "rho"
    ) -> Ref[tuple[Verdict, ...]]:
        return self._watch.follow("verifier", super().score_chain(call_id, prompt, chain, criterion))
