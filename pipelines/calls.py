"""`Call`: one call of an actor and its outcome.

start ──▶ in flight ──▶ done      its result was used, or is not needed
             │  └─────▶ lost      the actor died, hangs past the deadline, or the engine failed
             └─ stop ─▶ stopped   between two tokens; still awaited before the request ends
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from dataclasses import dataclass, field
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


@dataclass(slots=True, eq=False)
class Chain:
    """Steps that follow each other, drafted by one call: a call per step would cost a hop between processes each."""

    ref: Ref[Steps]
    steps: Steps | None = None
    is_stopped: bool = False


@dataclass(frozen=True, slots=True)
class _StepOf:
    """The future of one step of a chain."""

    chain: Chain
    place: int

    def __await__(self) -> Generator[Any, None, Step]:
        if self.chain.steps is None:
            self.chain.steps = yield from self.chain.ref.__await__()
        return self.chain.steps[self.place]


@dataclass(slots=True, eq=False)
class ChainedCall(Call[Step]):
    """One step of a chain. All its steps arrive at once, and stopping one stops all that are not written yet."""

    chain: Chain = field(kw_only=True)

    @classmethod
    def of(cls, begun: Call[Steps], length: int) -> list[ChainedCall]:
        """The steps that a call of `next_chain` drafts."""
        chain = Chain(begun.ref)
        return [
            cls(begun.id, begun.role, begun.step + place, begun.transport, _StepOf(chain, place), begun.submitted,
                chain=chain)
            for place in range(length)
        ]  # fmt: skip

    def stop(self) -> None:
        self.is_stopped = self.is_stopped or self.value is None
        if self.chain.steps is None and not self.chain.is_stopped:
            self.chain.is_stopped = True
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
    def awaited(self) -> tuple[Call[Any], ...]:
        """The calls that the verdict waits for, and its own."""
        return self.calls if self.target is None else (*self.calls, self.target)

    @property
    def tokens(self) -> Tokens:
        """Tokens of the drafted step, as far as it is known."""
        return self.draft.value.tokens if self.draft.value else ()

    def stop(self) -> None:
        for call in self.calls:
            call.stop()
