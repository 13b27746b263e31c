"""Reports the calls of one answer as events while they run, for the lanes of the page.

    next_step / score / ... ──▶ {"call": 3, "lane": "draft", "at": 0.12}                    when it is submitted
                           ──▶ {"call": 3, "lane": "draft", "start": .., "end": .., ...}    when its result arrives

One task per call waits for the result; `settled` awaits them all. They end because a pipeline awaits all its calls.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dreamr.types import Checked, Prefill, Prompt, Proposal, Role, Step, Verdict
from pipelines.handles import Handles, Ref, Transport, Verifier, WrappedTransport, Writer
from pipelines.verification import Rule

OnEvent = Callable[[dict[str, Any]], None]
Value = Prefill | Step | Verdict | Proposal | Checked | tuple[Step, ...] | tuple[Verdict, ...]


class CallReporter:
    """Reports the calls of one answer, in seconds since it began; its drafted steps are judged by `rule`."""

    def __init__(self, rule: Rule, on_event: OnEvent) -> None:
        self._rule, self._on_event = rule, on_event
        self._began = time.time()
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    def wrap(self, handles: Handles) -> Handles:
        """Wrap the actors so that every call is reported."""
        return replace(
            handles,
            draft=Writer(ReportingTransport(handles.draft.transport, "draft", self)),
            target=Writer(ReportingTransport(handles.target.transport, "target", self)),
            verifier=Verifier(ReportingTransport(handles.verifier.transport, "verifier", self)),
        )

    def follow(self, lane: Role, method: str, ref: Ref[Any]) -> None:
        """Report a call that was just submitted, and its result."""
        event = self._begun({"lane": lane} | ({"prefill": True} if method == "prefill" else {}))
        task = asyncio.create_task(self._wait_for(event, ref), name=f"report {lane} {event['call']}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Return when every call has been reported."""
        await asyncio.gather(*self._tasks)

    async def _wait_for(self, event: dict[str, Any], ref: Ref[Any]) -> None:
        try:
            value: Value = await ref
        except Exception:
            self._lost(event)  # the pipeline logs the reason
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
            case (Verdict() as first, *_):  # only the first verdict of a chain, at the frontier, is sure to decide
                return {"judged": True, "accepted": self._rule.accepts(first)}
            case Step() | (Step(), *_):
                steps = value if isinstance(value, tuple) else (value,)
                written = [step for step in steps if isinstance(step, Step)]
                return {
                    "num_tokens": sum(len(step.tokens) for step in written),
                    "stopped": any(step.finish == "stopped" for step in written),
                }
            case Proposal():
                return {"num_tokens": len(value.tokens)}
            case _:
                return {}

    def _begun(self, event: dict[str, Any]) -> dict[str, Any]:
        event = {"call": next(self._numbers)} | event
        self._on_event(event | {"at": time.time() - self._began})
        return event

    def _ended(self, event: dict[str, Any], started: float, ended: float) -> None:
        self._on_event(event | {"start": started - self._began, "end": ended - self._began})

    def _lost(self, event: dict[str, Any]) -> None:
        self._on_event(event | {"lost": True, "end": time.time() - self._began})


class ReportingTransport(WrappedTransport):
    """Reports every call that it carries."""

    def __init__(self, inner: Transport, lane: Role, reporter: CallReporter) -> None:
        super().__init__(inner)
        self._lane, self._reporter = lane, reporter

    def submit(self, method: str, call_id: str, prompt: Prompt, *arguments: Any) -> Ref[Any]:
        ref = super().submit(method, call_id, prompt, *arguments)
        self._reporter.follow(self._lane, method, ref)
        return ref
