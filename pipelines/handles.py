"""The calls of a schedule: typed handles over a `Transport`, which carries them to one actor.

    schedule ── draft.next_step(...) ──▶ Writer ── submit("next_step", ...) ──▶ Transport ──▶ actor
        ◀────────────── Ref[Step] ──────────┘

A call returns a `Ref` at once. A Ref can be awaited for its value, or passed on, unawaited, as an argument of another
call. `actors.ray_transport` carries calls over Ray, `actors.local` inside this process, also under a virtual clock.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from dreamr.types import (
    Checked,
    Criterion,
    Prefill,
    Priority,
    Prompt,
    Proposal,
    Sampling,
    Step,
    ThoughtEnd,
    Tokens,
    Verdict,
)
from pipelines.costs import Costs

T_co = TypeVar("T_co", covariant=True)


class Ref(Protocol[T_co]):
    """The future result of one call. Awaiting it raises `ActorLost` when the actor died or the call was lost."""

    def __await__(self) -> Generator[Any, None, T_co]: ...


class Transport(Protocol):
    """Carries calls to one actor."""

    @property
    def up(self) -> bool:
        """False from the moment a loss was reported until the actor answers again."""
        ...

    def submit(self, method: str, call_id: str, prompt: Prompt, *arguments: Any) -> Ref[Any]:
        """Begin a call. An argument that is a Ref of this kind of transport is resolved before the actor sees it."""
        ...

    def stop(self, call_id: str) -> None:
        """Ask for the end of a call between two tokens; its Ref then resolves to a step with finish "stopped"."""
        ...

    def promote(self, call_id: str, hint: Tokens) -> None:
        """A speculative step is needed now; `hint` are tokens that it may begin with."""
        ...

    async def grace_s(self, ref: Ref[Any], deadline_s: float) -> float:
        """Seconds that a call which has reached its deadline may still take; 0 when it is lost.

        While the actor that it waits for makes progress, the call only waits for its turn. An actor without progress
        for `deadline_s` is reported to its supervisor, which kills and restarts it.
        """
        ...

    async def recovered(self) -> None:
        """Return when the actor is up. Raises `ActorLost` when it does not come back within its deadline."""
        ...


class WrappedTransport:
    """Passes everything on to another transport; subclasses that observe or delay calls override `submit`."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner

    @property
    def up(self) -> bool:
        return self._inner.up

    def submit(self, method: str, call_id: str, prompt: Prompt, *arguments: Any) -> Ref[Any]:
        return self._inner.submit(method, call_id, prompt, *arguments)

    def stop(self, call_id: str) -> None:
        self._inner.stop(call_id)

    def promote(self, call_id: str, hint: Tokens) -> None:
        self._inner.promote(call_id, hint)

    async def grace_s(self, ref: Ref[Any], deadline_s: float) -> float:
        return await self._inner.grace_s(ref, deadline_s)

    async def recovered(self) -> None:
        await self._inner.recovered()


class Handle:
    """The calls that every actor answers."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    @property
    def up(self) -> bool:
        return self.transport.up

    def prefill(self, call_id: str, prompt: Prompt) -> Ref[Prefill]:
        """Have the model read the prompt ahead of the first step."""
        return self.transport.submit("prefill", call_id, prompt)

    def count_tokens(self, call_id: str, prompt: Prompt) -> Ref[int]:
        """Length of the prompt as this actor's model reads it. Raises ValueError when it cannot be read at all."""
        return self.transport.submit("count_tokens", call_id, prompt)

    def tokenize(self, call_id: str, prompt: Prompt, text: str | None = None) -> Ref[Tokens]:
        """Token ids of the prompt as this actor's model reads it; of `text`, when given, as it is."""
        return self.transport.submit("tokenize", call_id, prompt, text)

    def thought_end(self, call_id: str, prompt: Prompt) -> Ref[ThoughtEnd]:
        """How the model's chain of thought ends. Raises Unable."""
        return self.transport.submit("thought_end", call_id, prompt)


class Writer(Handle):
    """A draft or a target: writes steps."""

    def next_step(
        self,
        call_id: str,
        prompt: Prompt,
        after: Step | Ref[Step],
        sampling: Sampling,
        priority: Priority = "needed",
    ) -> Ref[Step]:
        """Write the step that follows `after`."""
        return self.transport.submit("next_step", call_id, prompt, after, sampling, priority)

    def next_chain(
        self, call_id: str, prompt: Prompt, after: Step | Ref[tuple[Step, ...]], sampling: Sequence[Sampling]
    ) -> Ref[tuple[Step, ...]]:
        """Write steps that follow each other, one per sampling, after a step or after a chain that is being written."""
        return self.transport.submit("next_chain", call_id, prompt, after, tuple(sampling))

    def next_steps(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], sampling: Sequence[Sampling]
    ) -> Ref[tuple[Step, ...]]:
        """Write the step that follows each step of a chain, in one batch."""
        return self.transport.submit("next_steps", call_id, prompt, tuple(chain), tuple(sampling))

    def propose_tokens(
        self, call_id: str, prompt: Prompt, after: Step, num_tokens: int, sampling: Sampling
    ) -> Ref[Proposal]:
        """Propose tokens after an open step, for token-level speculation."""
        return self.transport.submit("propose_tokens", call_id, prompt, after, num_tokens, sampling)

    def check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal | Ref[Proposal], sampling: Sampling
    ) -> Ref[Checked]:
        """Check proposed tokens in one forward."""
        return self.transport.submit("check_tokens", call_id, prompt, after, proposal, sampling)


class Verifier(Handle):
    """The target's verdicts. Calls that wait at the same time may be judged in one forward."""

    def score(
        self,
        call_id: str,
        prompt: Prompt,
        step: Step | Ref[Step],
        criterion: Criterion = "rho",
        reference: Step | Ref[Step] | None = None,
    ) -> Ref[Verdict]:
        """Judge one step, by comparison with `reference` where the criterion compares."""
        return self.transport.submit("score", call_id, prompt, step, criterion, reference)

    def score_chain(
        self,
        call_id: str,
        prompt: Prompt,
        chain: tuple[Step, ...] | Ref[tuple[Step, ...]],
        criterion: Criterion = "rho",
    ) -> Ref[tuple[Verdict, ...]]:
        """Judge steps that follow each other in one forward; those from the first blank one on get `NO_VERDICT`."""
        return self.transport.submit("score_chain", call_id, prompt, chain, criterion)


@dataclass(frozen=True, slots=True)
class Handles:
    """The three parts that a schedule drives. `verifier` may be the target's own actor."""

    draft: Writer
    target: Writer
    verifier: Verifier
    costs: Costs = field(default_factory=Costs)
    """Measured costs of these actors, for `auto`; requests that share it learn from each other."""
    thought_end: ThoughtEnd | None = None
    """How the target's chain of thought ends, if known: else a request that needs it asks the target."""
