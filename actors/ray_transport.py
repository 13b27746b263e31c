"""`RayTransport`: carries calls to one supervised Ray actor; `RayRef` is their future result.

    Writer ── submit ──▶ RayTransport ── remote call, references unresolved ──▶ actor
       ◀── RayRef ───────────┘   returns at once; only awaiting a RayRef waits

A large prompt goes into Ray's object store once; calls then carry a reference in place of the images.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import ray
from cachetools import LRUCache
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from actors.engine_actor import NotLoaded
from dreamr.errors import ActorLost
from dreamr.types import Prompt, Tokens
from pipelines.handles import Ref

if TYPE_CHECKING:
    from actors.supervisor import ActorSupervisor

INLINE_BYTES = 64 * 1024
"""Up to this size a copy with each call costs less than the object store."""
MAX_STORED = 64
"""Prompts in the object store, least recently used first out."""

T = TypeVar("T")

_LOSSES = (RayActorError, WorkerCrashedError, ObjectLostError, NodeDiedError, LocalRayletDiedError, ActorLost)


class RayRef(Generic[T]):
    """A call to one supervisor of the group. May be awaited any number of times, or passed on unawaited.

    Awaiting raises `ActorLost` when the actor, or one further up the chain of references, was lost; errors of the
    engine are raised unchanged.
    """

    __slots__ = ("arguments", "generation", "object_ref", "settled", "supervisor")

    def __init__(self, object_ref: ray.ObjectRef[T], supervisor: ActorSupervisor, *arguments: RayRef[Any]) -> None:
        self.object_ref = object_ref
        self.supervisor = supervisor
        self.generation = supervisor.generation
        self.arguments = arguments
        """Other calls whose results this one waits for."""
        self.settled = False
        supervisor.calls.add(self)

    @property
    def has_result(self) -> bool:
        """Whether the call has ended, well or not; does not wait."""
        return self.settled or bool(ray.wait([self.object_ref], timeout=0, fetch_local=False)[0])

    def __await__(self) -> Generator[Any, None, T]:
        try:
            value: T = yield from self.object_ref.__await__()
        except RayError as error:
            self._settle()
            raise self._translated(error) from error
        self._settle()
        return value

    def _settle(self) -> None:
        self.settled = True
        self.supervisor.calls.discard(self)

    def _translated(self, error: RayError) -> BaseException:
        cause = root_cause(error)
        if not isinstance(cause, _LOSSES):
            return cause
        lost = self._find_lost(cause)
        lost.supervisor.notice_death(lost.generation)
        return ActorLost(f"the {lost.supervisor.role} actor was lost during a call")

    def _find_lost(self, cause: BaseException) -> RayRef[Any]:
        """The call among this one and those it waits for whose own actor was lost."""
        calls: list[RayRef[Any]] = [self]
        for call in calls:
            if call.supervisor.is_named_by(cause):
                return call
            calls += call.arguments
        return calls[-1]


def root_cause(error: BaseException) -> BaseException:
    """The original error: a failed call that was an argument of others is wrapped once by each."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException) and error.cause is not error:
        error = error.cause
    return error


def last_line(error: BaseException) -> str:
    """The message of a Ray error, without the traceback above it."""
    return str(error).strip().splitlines()[-1]


def names_role(cause: BaseException, role: str) -> bool:
    """True when the error names an actor of this role as one without a loaded model."""
    return isinstance(cause, NotLoaded) and cause.role == role


class RayTransport:
    """See `Transport`."""

    def __init__(self, supervisor: ActorSupervisor, prompts: StoredPrompts) -> None:
        self._supervisor, self._prompts = supervisor, prompts

    @property
    def up(self) -> bool:
        return self._supervisor.up

    @property
    def gone(self) -> bool:
        """True when the actor will not come back."""
        return self._supervisor.gone

    def submit(self, method: str, call_id: str, prompt: Prompt, *arguments: Any) -> RayRef[Any]:
        remote = getattr(self._supervisor.actor, method).remote
        # Top-level arguments: Ray resolves references among those, not inside a list.
        values = [argument.object_ref if isinstance(argument, RayRef) else argument for argument in arguments]
        ref = remote(call_id, self._prompts.argument(prompt), *values)
        return RayRef(ref, self._supervisor, *(argument for argument in arguments if isinstance(argument, RayRef)))

    def stop(self, call_id: str) -> None:
        # No result to wait for: the stopped call's own reference shows how it ended.
        self._supervisor.actor.stop.remote(call_id)

    def promote(self, call_id: str, hint: Tokens) -> None:
        self._supervisor.actor.promote.remote(call_id, hint)

    async def grace_s(self, ref: Ref[Any], deadline_s: float) -> float:
        return await self._supervisor.grace_s(deadline_s)

    async def recovered(self) -> None:
        await self._supervisor.recovered()


class StoredPrompts:
    """References to prompts in the object store; dropping one frees its memory when its calls are over."""

    def __init__(self) -> None:
        self._stored: LRUCache[str, ray.ObjectRef[Prompt]] = LRUCache(MAX_STORED)

    def argument(self, prompt: Prompt) -> Prompt | ray.ObjectRef[Prompt]:
        """The prompt as an argument of a call; Ray resolves a reference before the actor receives it."""
        key = prompt.key  # computed here once: the digest travels with the prompt
        if sum(map(len, prompt.images)) <= INLINE_BYTES:
            return prompt
        if key not in self._stored:
            self._stored[key] = ray.put(prompt)
        return self._stored[key]
