"""Back-off under load: transports that speculate less while many answers share the actors.

    next_step, speculative ─▶ few running ─▶ the target begins at once, ahead of the verdict         (latency)
                           └▶ many ────────▶ `Postponed`: begins when it is awaited, which FPSR      (throughput)
                                             does when the verdict rejects

A postponed step that is not needed never begins, so the target writes nothing that is thrown away. What is committed
is the same: it depends on verdicts, not on when the target's step began. Where even drafting does not pay, the draft
counts as down, and schedules let the target write.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from dreamr.types import Prompt, Step
from pipelines.handles import Handles, Ref, Transport, WrappedTransport, Writer


@dataclass(frozen=True, slots=True)
class Load:
    """How many answers are running, and from how many on to speculate less."""

    num_running: Callable[[], int]
    write_ahead_up_to: int
    draft_up_to: int

    @property
    def allows_writing_ahead(self) -> bool:
        return self.num_running() <= self.write_ahead_up_to

    @property
    def allows_drafting(self) -> bool:
        return self.num_running() <= self.draft_up_to


def shared(handles: Handles, load: Load) -> Handles:
    """The same actors for one answer of several."""
    return Handles(
        Writer(DraftUnderLoad(handles.draft.transport, load)),
        Writer(TargetUnderLoad(handles.target.transport, load)),
        handles.verifier,
        handles.costs,
    )


class Postponed:
    """A step that begins when it is awaited; stopped before that, it never begins."""

    def __init__(self, begin: Callable[[], Ref[Step]], after: Step) -> None:
        self._begin, self._after = begin, after
        self._ref: Ref[Step] | None = None
        self._is_stopped = False

    @property
    def has_begun(self) -> bool:
        return self._ref is not None

    def stop(self) -> None:
        self._is_stopped = True

    def __await__(self) -> Generator[Any, None, Step]:
        if self._ref is None:
            if self._is_stopped:
                return Step(prefix=self._after.end, finish="stopped")
            self._ref = self._begin()
        return (yield from self._ref.__await__())


class DraftUnderLoad(WrappedTransport):
    """A draft that counts as down while drafting does not pay."""

    def __init__(self, inner: Transport, load: Load) -> None:
        super().__init__(inner)
        self._load = load

    @property
    def up(self) -> bool:
        return super().up and self._load.allows_drafting


class TargetUnderLoad(WrappedTransport):
    """A target whose step ahead of the verdict waits for the verdict while others need the target. For one request."""

    def __init__(self, inner: Transport, load: Load) -> None:
        super().__init__(inner)
        self._load = load
        self._postponed: dict[str, Postponed] = {}

    def submit(self, method: str, call_id: str, prompt: Prompt, *arguments: Any) -> Ref[Any]:
        match method, arguments:
            case "next_step", (Step() as after, sampling, "speculative") if not self._load.allows_writing_ahead:
                begin = super().submit
                # Needed when it begins: as a speculative one it would wait for others again.
                step = Postponed(lambda: begin(method, call_id, prompt, after, sampling, "needed"), after)
                self._postponed[call_id] = step
                return step
        return super().submit(method, call_id, prompt, *arguments)

    def stop(self, call_id: str) -> None:
        step = self._postponed.pop(call_id, None)
        if step is None or step.has_begun:
            super().stop(call_id)
        else:
            step.stop()
