"""`Watched` actors: tell what they are doing while they do it, for the page's lanes.

    next_step / score ──▶ {"call": 3, "lane": "draft", "at": 0.12}                       when it is asked for
                     ──▶ {"call": 3, "lane": "draft", "start": .., "end": .., ...}       when its result is there

One task per call waits for its result; `settled` awaits them all, and they end because a pipeline lets none of its
calls go before it has ended.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any

from dreamr.actors.types import Criterion, Prompt, Role, Sampling, Step, Verdict
from dreamr.pipelines.handles import Actors, Judge, Ref, Writer
from dreamr.serve.wrapped import WrappedJudge, WrappedWriter

Tell = Callable[[dict[str, Any]], None]


class Watch:
    """The calls of one answer, on its own clock."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
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

    def follow(self, lane: Role, ref: Ref[Any]) -> None:
        """Tell of a call that has just been made, and of its result."""
        number = next(self._numbers)
        self._tell({"call": number, "lane": lane, "at": time.time() - self._began})
        task = asyncio.create_task(self._wait_for(number, lane, ref), name=f"watch {lane} {number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Return when every call has been told of."""
        await asyncio.gather(*self._tasks)

    async def _wait_for(self, number: int, lane: Role, ref: Ref[Any]) -> None:
        event: dict[str, Any] = {"call": number, "lane": lane}
        try:
            value: Step | Verdict = await ref
        except Exception:
            self._tell(event | {"lost": True, "end": time.time() - self._began})  # its pipeline says why
            return
        event |= {"start": value.started - self._began, "end": value.ended - self._began}
        if isinstance(value, Verdict):
            self._tell(event | {"rho": value.rho, "judged": value.judged})
        else:
            self._tell(event | {"num_tokens": len(value.tokens), "stopped": value.finish == "stopped"})


class WatchedWriter(WrappedWriter):
    def __init__(self, inner: Writer, lane: Role, watch: Watch) -> None:
        super().__init__(inner)
        self._lane, self._watch = lane, watch

    def next_step(self, call_id: str, prompt: Prompt, after: Step | Ref[Step], sampling: Sampling) -> Ref[Step]:
        ref = super().next_step(call_id, prompt, after, sampling)
        self._watch.follow(self._lane, ref)
        return ref


class WatchedJudge(WrappedJudge):
    def __init__(self, inner: Judge, watch: Watch) -> None:
        super().__init__(inner)
        self._watch = watch

    def score(
        self,
        call_id: str,
        prompt: Prompt,
        step: Step | Ref[Step],
        criterion: Criterion = "rho",
        reference: Step | Ref[Step] | None = None,
    ) -> Ref[Verdict]:
        ref = super().score(call_id, prompt, step, criterion, reference)
        self._watch.follow("verifier", ref)
        return ref
