"""Retries that repeat no work: a request sent again with its `Idempotency-Key` finds its running or finished answer.

    replica 1 ── commits ──▶ AnswerStore (a Ray actor) ◀───────── claim: steps so far, or the whole answer ── replica 2
       dies, or its client goes                                               continues after the last of these steps

A claim makes its caller the owner of the key. An older owner that still runs gives up at its next step, so that nothing
is written twice. Steps depend on their prefix and their seed alone: the answer is the one that the first request would
have given.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from cachetools import TTLCache

from dreamr.serve.errors import ApiError, refused
from dreamr.serve.questions import Question
from pipelines import Trace
from pipelines.trace import CommittedStep

log = logging.getLogger(__name__)

MAX_TOKENS = 2_000_000
"""Bound of all stored answers together; the oldest are dropped first."""
MAX_KEY_CHARS = 255


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one choice."""

    trace: Trace
    queued_s: float


@dataclass(slots=True)
class Kept:
    """One choice, as far as it has been written."""

    steps: list[CommittedStep] = field(default_factory=list)
    finished: Finished | None = None


@dataclass(slots=True)
class Claim:
    """The answers stored under a key. Only the owner may add to them."""

    id: str
    """Id of the first request: replies to a retry have it too."""
    seed: int
    """Seed of the first request, which may have been drawn."""
    digest: str
    owner: int
    choices: list[Kept]


class AnswerStore:
    """Answers by key, for a while. Plain Python: replicas share one as a Ray actor."""

    def __init__(self, keep_s: float) -> None:
        self._kept: TTLCache[str, Claim] = TTLCache(MAX_TOKENS, keep_s, getsizeof=_num_tokens)
        self._owners = itertools.count(1)  # over all keys: an owner whose claim was evicted must not equal a later one

    def claim(self, key: str, digest: str, question_id: str, seed: int, num_choices: int) -> Claim:
        """Become the owner of a new or stored key. Nothing is claimed when the stored digest differs."""
        kept = self._kept.get(key)
        if kept is None:
            kept = Claim(question_id, seed, digest, 0, [Kept() for _ in range(num_choices)])
        if kept.digest == digest:
            kept.owner = next(self._owners)
            self._keep(key, kept)
        return replace(kept, choices=[replace(choice, steps=list(choice.steps)) for choice in kept.choices])

    def append(self, key: str, owner: int, choice: int, step: CommittedStep) -> bool:
        """Store a step. False when another request has claimed the key."""
        return self._change(key, owner, lambda claim: claim.choices[choice].steps.append(step))

    def finish(self, key: str, owner: int, choice: int, finished: Finished) -> bool:
        """Store the end of a choice. False when another request has claimed the key."""

        def end(claim: Claim) -> None:
            claim.choices[choice].finished = finished

        return self._change(key, owner, end)

    def _change(self, key: str, owner: int, change: Any) -> bool:
        claim = self._kept.get(key)
        if claim is None:
            return True  # no longer stored, so no other request has claimed it
        if claim.owner != owner:
            return False
        change(claim)
        self._keep(key, claim)
        return True

    def _keep(self, key: str, claim: Claim) -> None:
        """Insert a claim again, so that its size and age are counted anew."""
        self._kept.pop(key, None)
        if _num_tokens(claim) <= MAX_TOKENS:
            self._kept[key] = claim


def _num_tokens(claim: Claim) -> int:
    return 1 + sum(len(step.tokens) for choice in claim.choices for step in choice.steps)


# -- the replica's side ------------------------------------------------------------------------------------------------


class Answers(Protocol):
    """Access to an `AnswerStore`, in this process or in an actor."""

    def submit(self, method: str, *arguments: Any) -> Awaitable[Any]:
        """Call a method of the store, in the order of the calls."""
        ...


class AnswerKeeper:
    """Stores the answers to one question under its key. Without the store, or a key, it does nothing: a request never
    fails because of it."""

    def __init__(self, answers: Answers | None, key: str | None) -> None:
        self._answers, self._key = answers, key
        self._claim: Claim | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_superseded = False
        """True when a later request has claimed the key."""

    async def claim(self, question: Question) -> Claim | None:
        """Claim the key; the answers stored so far. Raises ApiError (400) for the key of another question."""
        if self._answers is None or self._key is None:
            return None
        digest = digest_of(question)
        arguments = (self._key, digest, question.id, question.settings.seed, question.num_choices)
        try:
            claim: Claim = await self._answers.submit("claim", *arguments)
        except Exception as error:
            log.warning("the answer store is unavailable, so a retry will start from the beginning: %s", error)
            return None
        if claim.digest != digest:
            message = "this Idempotency-Key was used for another request: choose a new key for each request."
            raise refused("Idempotency-Key", message, "idempotency_key_reused")
        self._claim = claim
        return claim

    def append(self, choice: int, step: CommittedStep) -> None:
        """Store a step; returns at once."""
        self._send("append", choice, step)

    async def finish(self, choice: int, finished: Finished) -> None:
        """Store the end of a choice. Raises ApiError (409) when a later request has claimed the key."""
        self._send("finish", choice, finished)
        await asyncio.gather(*self._tasks)
        if self.is_superseded:
            raise ApiError(
                409, "a later request with this Idempotency-Key has taken over.", "Idempotency-Key", "superseded"
            )

    def _send(self, method: str, *arguments: Any) -> None:
        if self._answers is None or self._claim is None:
            return
        result = self._answers.submit(method, self._key, self._claim.owner, *arguments)
        task = asyncio.create_task(self._note(result), name=f"{method} {self._key}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _note(self, result: Awaitable[bool]) -> None:
        try:
            self.is_superseded |= not await result
        except Exception as error:
            log.warning("the answer store is unavailable, so a retry will start from the beginning: %s", error)
            self._claim = None


def key_of(headers: Any) -> str | None:
    """The key of a request, private to its API key. Raises ApiError (400)."""
    given = headers.get("idempotency-key")
    if given is None:
        return None
    if not given.strip() or len(given) > MAX_KEY_CHARS or not given.isprintable():
        raise refused("Idempotency-Key", f"Idempotency-Key must be 1 to {MAX_KEY_CHARS} printable characters.")
    return hashlib.sha256(f"{headers.get('authorization', '')}\n{given}".encode()).hexdigest()


def digest_of(question: Question) -> str:
    """Equal for equal questions; the seed does not count, since it may have been drawn."""
    settings = question.settings.model_dump_json(exclude={"seed"})
    same = (question.content_key, settings, question.num_choices, question.stop, question.schema, question.logprobs)
    return hashlib.sha256(repr(same).encode()).hexdigest()
