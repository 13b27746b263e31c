"""What a schedule needs from the actors it drives; the Ray and the in-process handles both satisfy it.

pipeline ── call ──▶ handle ──▶ actor          A call returns a `Ref` at once. A Ref can be awaited for its
    ◀── Ref ───────────┘                       value, or passed on, unawaited, as the argument of another call.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from dreamr.types import Checked, Criterion, Prefill, Prompt, Proposal, Sampling, Step, Verdict

T_co = TypeVar("T_co", covariant=True)


class Ref(Protocol[T_co]):
    """The future result of one call. Awaiting it raises `ActorLost` when the actor died or the call was lost."""

    def __await__(self) -> Generator[Any, None, T_co]: ...


class Handle(Protocol):
    """What all handles share: liveness."""

    @property
    def up(self) -> bool:
        """False from the moment a loss was reported until the actor answers again."""
        ...

    def report_lost(self) -> None:
        """Tell the owner of the actors that this one is dead or hangs; it is killed if needed and restarted."""
        ...

    async def recovered(self) -> None:
        """Return when the actor is up. Raises `ActorLost` when it did not come back within its deadline."""
        ...

    async def prefill(self, prompt: Prompt) -> Prefill: ...


class Writer(Handle, Protocol):
    """Draft or target: writes steps."""

    def next_step(self, call_id: str, prompt: Prompt, after: Step | Ref[Step], sampling: Sampling) -> Ref[Step]: ...

    def propose_tokens(
        self, call_id: str, prompt: Prompt, after: Step, num_tokens: int, sampling: Sampling
    ) -> Ref[Proposal]: ...

    def check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal | Ref[Proposal], sampling: Sampling
    ) -> Ref[Checked]: ...

    def next_steps(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], sampling: Sequence[Sampling]
    ) -> Ref[tuple[Step, ...]]:
        """The step behind each step of a chain, in one batch."""
        ...

    def stop(self, call_id: str) -> None:
        """Ask for the end of a call between two tokens; the call's own Ref then resolves with finish "stopped"."""
        ...


class Judge(Handle, Protocol):
    """The target's verdicts. Calls that wait for each other's turn may be judged in one forward."""

    def score(
        self,
        call_id: str,
        prompt: Prompt,
        step: Step | Ref[Step],
        criterion: Criterion = "rho",
        reference: Step | Ref[Step] | None = None,
    ) -> Ref[Verdict]:
        """Judge one step, by comparison with `reference` where the criterion compares."""
        ...

    def score_chain(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step | Ref[Step]], criterion: Criterion = "rho"
    ) -> Ref[tuple[Verdict, ...]]:
        """Judge steps that follow each other, none of them empty, in one forward."""
        ...

    def stop(self, call_id: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Actors:
    """The three parts that a schedule drives. `judge` may be the target's own actor."""

    draft: Writer
    target: Writer
    judge: Judge
