"""`Call`: one call of an actor and its outcome.

start ──▶ in flight ──▶ done      its result was used, or is not needed
             │  └─────▶ lost      the actor died, hangs past the deadline, or the engine failed
             └─ stop ─▶ stopped   between two tokens; still awaited before the request ends
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dreamr.errors import ActorLost
from dreamr.types import Checked, Prefill, Priority, Proposal, Role, Step, Tokens, Verdict
from pipelines.handles import Ref, Transport
from pipelines.trace import Outcome

Verdicts = tuple[Verdict, ...]
Steps = tuple[Step, ...]
T = TypeVar("T", Step, Verdict, Verdicts, Steps, Proposal, Checked, Prefill)


@dataclass(slots=True, eq=False)
class Call(Generic[T]):
    """One call of an actor, for step number `step`."""

    id: str
    role: Role
    step: int
    transport: Transport
    ref: Ref[T]
    submitted: float
    priority: Priority = "needed"
    received: float | None = None
    """When its result arrived, if it was awaited."""
    outcome: Outcome = "unused"
    """Its outcome so far."""
    value: T | None = None
    is_stopped: bool = False
    num_kept: int | None = None
    """Written tokens that became part of the answer; None: all of them when `outcome` is committed, else none."""

    @property
    def num_tokens(self) -> int:
        """Tokens written so far."""
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
        """Tokens written and not committed."""
        if self.num_kept is not None:
            return self.num_tokens - self.num_kept
        return 0 if self.outcome == "committed" else self.num_tokens

    async def result(self, deadline_s: float) -> T:
        """Wait for the value.

        Raises ActorLost when the actor dies, or makes no progress for `deadline_s`.
        """
        patience = deadline_s
        while self.value is None:
            try:
                async with asyncio.timeout(patience):
                    self.value = await self.ref
            except TimeoutError:
                patience = await self.transport.grace_s(self.ref, deadline_s)
                if patience > 0:
                    continue
                self.outcome = "lost"
                raise ActorLost(f"the {self.role} made no progress for {deadline_s:g} s") from None
            except Exception:
                self.outcome = "lost"
                raise
        return self.value

    def promote(self, hint: Tokens = ()) -> None:
        """A speculative step is needed now; `hint` are tokens that it may begin with."""
        if self.priority == "speculative" and self.value is None and not self.is_stopped:
            self.transport.promote(self.id, hint)

    def stop(self) -> None:
        """Stop the call, whose result is not needed. May be called again, and after its end."""
        if self.value is None and not self.is_stopped:
            self.is_stopped = True
            self.transport.stop(self.id)


@dataclass(frozen=True, slots=True, eq=False)
class Drafted:
    """A drafted step and its verdict, both perhaps still in flight."""

    draft: Call[Step]
    verdict: Call[Any]
    """Call of one `Verdict`, or of the verdicts on a whole chain."""
    target: Call[Step] | None = None
    """The target's step that the drafted one is compared with."""

    @property
    def calls(self) -> tuple[Call[Any], Call[Any]]:
        return self.draft, self.verdict

    @property
    def tokens(self) -> Tokens:
        """Tokens of the drafted step, as far as it is known."""
        return self.draft.value.tokens if self.draft.value else ()

    def stop(self) -> None:
        for call in self.calls:
            call.stop()
