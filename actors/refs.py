"""`RayRef`: the future result of one actor call, and the translation of Ray's errors into ours."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from actors.base import NotLoaded
from dreamr.errors import ActorLost

if TYPE_CHECKING:
    from actors.member import Member

T = TypeVar("T")

_LOSSES = (RayActorError, WorkerCrashedError, ObjectLostError, NodeDiedError, LocalRayletDiedError, ActorLost)


class RayRef(Generic[T]):
    """A call to one member of the group. May be awaited any number of times, or passed on unawaited.

    Awaiting raises `ActorLost` when the actor, or one further up the chain of references, was lost; whatever the
    engine raised is raised as it is.
    """

    __slots__ = ("arguments", "generation", "member", "object_ref", "settled")

    def __init__(self, object_ref: ray.ObjectRef[T], member: Member, *arguments: RayRef[Any] | None) -> None:
        self.object_ref = object_ref
        self.member = member
        self.generation = member.generation
        self.arguments = tuple(argument for argument in arguments if argument is not None)
        """Other calls whose results this one waits for."""
        self.settled = False
        member.calls.add(self)

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
        self.member.calls.discard(self)

    def _translated(self, error: RayError) -> BaseException:
        cause = root_cause(error)
        if not isinstance(cause, _LOSSES):
            return cause
        lost = self._find_lost(cause)
        lost.member.notice_death(lost.generation)
        return ActorLost(f"the {lost.member.role} actor was lost during a call")

    def _find_lost(self, cause: BaseException) -> RayRef[Any]:
        """The call among this one and those it waits for whose own actor was lost."""
        calls: list[RayRef[Any]] = [self]
        for call in calls:
            if call.member.is_named_by(cause):
                return call
            calls += call.arguments
        return calls[-1]


def root_cause(error: BaseException) -> BaseException:
    """What was raised in the first place: a failed call that was an argument of others is wrapped once by each."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException) and error.cause is not error:
        error = error.cause
    return error


def resolve(value: T | RayRef[T]) -> tuple[T | ray.ObjectRef[T], RayRef[T] | None]:
    """Split an argument into what Ray gets and the call that it comes from, if it is one."""
    if isinstance(value, RayRef):
        return value.object_ref, value
    return value, None


def names_role(cause: BaseException, role: str) -> bool:
    """True when the error says by itself that an actor of this role has no model loaded."""
    return isinstance(cause, NotLoaded) and cause.role == role
