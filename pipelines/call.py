"""`Call`: one piece of work that an actor does for a request, from its start to its end.

start ──▶ in flight ──▶ done      its result was used, or is finished but not needed
             │  └─────▶ lost      the actor died, hangs past the deadline, or the engine failed
             └─ stop ─▶ stopped   between two tokens; still awaited before the request ends
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Generic, TypeVar

from dreamr.errors import ActorLost
from dreamr.types import Checked, Proposal, Role, Step, Verdict
from pipelines.handles import Judge, Ref, Writer
from pipelines.trace import Outcome

Verdicts = tuple[Verdict, ...]
Steps = tuple[Step, ...]
T = TypeVar("T", Step, Verdict, Verdicts, Steps, Proposal, Checked)


@dataclass(slots=True, eq=False)
class Call(Generic[T]):
    """One call of an actor, for step number `step`."""

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
    num_kept: int | None = None
    """Written tokens that became part of the answer; None: all of them when `outcome` is committed, else none."""

    @property
    def num_tokens(self) -> int:
        """Tokens written, as far as they are known."""
        match self.value:
            case Step() | Proposal():
                return len(self.value.tokens)
            case Checked():
                return 1
            case tuple() as several:
                return sum(len(one.tokens) for one in several if isinstance(one, Step))
            case _:
                return 0

    @property
    def num_wasted(self) -> int:
        """Tokens written for nothing."""
        if self.num_kept is not None:
            return self.num_tokens - self.num_kept
        return 0 if self.outcome == "committed" else self.num_tokens

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
