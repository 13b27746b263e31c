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
from collections.abc import Callable
from typing import Any

from dreamr.types import Checked, Prefill, Prompt, Proposal, Role, Step, Verdict
from pipelines.handles import Handles, Ref, Transport, Verifier, WrappedTransport, Writer
from pipelines.verification import Rule

Tell = Callable[[dict[str, Any]], None]
Value = Prefill | Step | Verdict | Proposal | Checked | tuple[Step, ...] | tuple[Verdict, ...]


class Watch:
    """The calls of one answer, on its own clock; its drafted steps are judged by `rule`."""

    def __init__(self, rule: Rule, tell: Tell) -> None:
        self._rule, self._tell = rule, tell
        self._began = time.time()
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    def over(self, handles: Handles) -> Handles:
        """The same actors, watched."""
        return Handles(
            draft=Writer(WatchedTransport(handles.draft.transport, "draft", self)),
            target=Writer(WatchedTransport(handles.target.transport, "target", self)),
            verifier=Verifier(WatchedTransport(handles.verifier.transport, "verifier", self)),
            costs=handles.costs,
        )

    def follow(self, lane: Role, method: str, ref: Ref[Any]) -> None:
        """Report a call that has just been made, and its result."""
        event = self._begun({"lane": lane} | ({"prefill": True} if method == "prefill" else {}))
        task = asyncio.create_task(self._wait_for(event, ref), name=f"watch {lane} {event['call']}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
                rho = {"rho": value.score} if self._rule.kind == "rho" else {}
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


class WatchedTransport(WrappedTransport):
    """Reports every call that it carries."""

    def __init__(self, inner: Transport, lane: Role, watch: Watch) -> None:
        super().__init__(inner)
        self._lane, self._watch = lane, watch

    def submit(self, method: str, call_id: str, prompt: Prompt, *arguments: Any) -> Ref[Any]:
        ref = super().submit(method, call_id, prompt, *arguments)
        self._watch.follow(self._lane, method, ref)
        return ref
