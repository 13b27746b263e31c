"""Back-off under load: handles that speculate less while many answers share the actors. Schedules know nothing of it.

    next_step(background) ─▶ few at work ─▶ target begins at once, ahead of the verdict          (latency)
                          └▶ many ────────▶ `Postponed`: begins when somebody awaits it,         (throughput)
                                            which FPSR does when the verdict says no

A postponed step that is not needed never begins, so the target works on nothing that is thrown away. What is committed
is the same: it depends on verdicts, not on when the target's step began. Where even drafting does not pay, the draft
counts as away, and schedules let the target write.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

from dreamr.serve.wrapped import WrappedWriter
from dreamr.types import Prompt, Sampling, Step
from pipelines.handles import Actors, Ref, Writer


@dataclass(frozen=True, slots=True)
class Load:
    """How much is going on, and from when on to step back."""

    num_running: Callable[[], int]
    write_ahead_up_to: int
    draft_up_to: int

    @property
    def allows_writing_ahead(self) -> bool:
        return self.num_running() <= self.write_ahead_up_to

    @property
    def allows_drafting(self) -> bool:
        return self.num_running() <= self.draft_up_to


def shared(actors: Actors, load: Load) -> Actors:
    """The same actors for one answer of several."""
    return Actors(DraftUnderLoad(actors.draft, load), TargetUnderLoad(actors.target, load), actors.judge)


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


class DraftUnderLoad(WrappedWriter):
    """A draft that counts as away while drafting does not pay."""

    def __init__(self, inner: Writer, load: Load) -> None:
        super().__init__(inner)
        self._load = load

    @property
    def up(self) -> bool:
        return self._inner.up and self._load.allows_drafting


class TargetUnderLoad(WrappedWriter):
    """A target whose step ahead of the verdict waits for the verdict, while others need the target. For one request."""

    def __init__(self, inner: Writer, load: Load) -> None:
        super().__init__(inner)
        self._load = load
        self._postponed: dict[str, Postponed] = {}

    def next_step(self, call_id: str, prompt: Prompt, after: Step | Ref[Step], sampling: Sampling) -> Ref[Step]:
        # Never in the background: a step that turns out to be needed would go on waiting for cores that others keep.
        needed = replace(sampling, background=False)
        if not (sampling.background and isinstance(after, Step)) or self._load.allows_writing_ahead:
            return super().next_step(call_id, prompt, after, needed)
        step = Postponed(lambda: self._inner.next_step(call_id, prompt, after, needed), after)
        self._postponed[call_id] = step
        return step

    def stop(self, call_id: str) -> None:
        step = self._postponed.pop(call_id, None)
        if step is None or step.has_begun:
            super().stop(call_id)
        else:
            step.stop()
