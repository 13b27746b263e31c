"""`Call`: one piece of work that an actor does for a request, from its start to its end.

start ──▶ in flight ──▶ done      its result was used, or is finished but not needed
             │  └─────▶ lost      the actor died, hangs past the deadline, or the engine failed
             └─ stop ─▶ stopped   between two tokens; still awaited before the request ends
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Generic, TypeVar

from dreamr.actors.types import ActorLost, Role, Step, Verdict
from dreamr.pipelines.handles import Judge, Ref, Writer
from dreamr.pipelines.trace import Outcome

T = TypeVar("T", Step, Verdict)


@dataclass(slots=True, eq=False)
class Call(Generic[T]):
    """One `next_step` or `score` call for step number `step`."""

    id: str
    role: Role
    step: int
    handle: Writer | Judge
    ref: Ref[T]
    submitted: float
    outcome: Outcome = "unused"
    """What became of it, as far as is known yet."""
    value: T | None = None
    is_stopped: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens written, as far as they are known."""
        return len(self.value.tokens) if isinstance(self.value, Step) else 0

    async def result(self, deadline_s: float) -> T:
        """Wait for the value.

        Raises ActorLost when the actor dies, or when the deadline passes, which is then reported to its owner.
        """
        if self.value is not None:
            return self.value
        try:
            async with asyncio.timeout(deadline_s):
                self.value = await self.ref
        except TimeoutError:
            self.outcome = "lost"
            self.handle.report_lost()
            raise ActorLost(f"the {self.role} did not answer within {deadline_s:g} s") from None
        except Exception:
            self.outcome = "lost"
            raise
        return self.value

    def stop(self) -> None:
        """Not needed any more. May be called again, and when the work is done."""
        if self.value is None and not self.is_stopped:
            self.is_stopped = True
            self.handle.stop(self.id)
