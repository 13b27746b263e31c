"""`Session`: one request in flight. Makes every call, commits steps, and lets go of nothing before it has ended.

async with Session(...) as session:         schedule: draft, judge, write, commit, discard
    ...                                        │ each returns at once; only `verdict` and `written` wait
                                               ▼
on exit, however it comes: stop every open call ──▶ await them all
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from dreamr.actors.types import ActorLost, Role, Step, Verdict
from dreamr.pipelines.base import OnCommit
from dreamr.pipelines.call import Call
from dreamr.pipelines.handles import Actors, Ref
from dreamr.pipelines.recorder import Recorder
from dreamr.pipelines.request import Request
from dreamr.pipelines.trace import Trace
from dreamr.pipelines.verification import accepts

log = logging.getLogger(__name__)

MAX_TARGET_LOSSES = 5
"""In a row, for one step: then the request fails, since something kills the target each time."""


@dataclass(frozen=True, slots=True, eq=False)
class Drafted:
    """A drafted step and its verdict, both perhaps still to come."""

    draft: Call[Step]
    verdict: Call[Verdict]

    def stop(self) -> None:
        """Let go of both."""
        self.draft.stop()
        self.verdict.stop()


class Session:
    """The calls of one request to its actors."""

    def __init__(
        self, actors: Actors, request: Request, on_commit: OnCommit | None, clock: Callable[[], float]
    ) -> None:
        self._actors, self._request = actors, request
        self._recorder = Recorder(request, clock, on_commit)
        self._calls: list[Call[Any]] = []
        self._numbers = itertools.count()
        self._preparing: list[asyncio.Task[None]] = []

    @property
    def ended(self) -> bool:
        return self._recorder.end is not None

    @property
    def frontier(self) -> Step:
        return self._recorder.frontier

    @property
    def next_index(self) -> int:
        """Number of the step that will be committed next."""
        return self._recorder.num_committed

    @property
    def can_speculate(self) -> bool:
        return self._actors.draft.up and self._actors.judge.up

    # -- work that begins ------------------------------------------------------------------------------------------

    def draft(self, index: int, after: Step | Call[Step]) -> Drafted:
        """Begin to draft step `index` and, as soon as it is there, to judge it."""
        request, call_id = self._request, self._next_id("draft")
        prefix = after.ref if isinstance(after, Call) else after
        step = self._actors.draft.next_step(call_id, request.prompt, prefix, request.sampling(index, "draft"))
        drafted = self._open(call_id, "draft", index, self._actors.draft, step)
        call_id = self._next_id("verifier")
        verdict = self._actors.judge.score(call_id, request.prompt, step)
        return Drafted(drafted, self._open(call_id, "verifier", index, self._actors.judge, verdict))

    def prepare_verifier(self) -> None:
        """Have the verifier read the prompt while the draft writes its first step."""
        self._preparing.append(asyncio.create_task(self._prefill_verifier(), name=f"prefill {self._request.id}"))

    async def _prefill_verifier(self) -> None:
        try:
            async with asyncio.timeout(self._request.settings.verifier_deadline_s):
                self._recorder.prefill = await self._actors.judge.prefill(self._request.prompt)
        except Exception as error:
            # The first verdict will meet the same difficulty, and deal with it.
            log.debug("request %s: the verifier could not read the prompt: %s", self._request.id, error)

    def write(self, *, speculative: bool = False) -> Call[Step]:
        """Begin the target's own step at the frontier; `speculative` when it is only needed if a draft is rejected."""
        request, call_id, index = self._request, self._next_id("target"), self.next_index
        sampling = request.sampling(index, "target", background=speculative)
        step = self._actors.target.next_step(call_id, request.prompt, self.frontier, sampling)
        return self._open(call_id, "target", index, self._actors.target, step)

    def _open(self, call_id: str, role: Role, index: int, handle: Any, ref: Ref[Any]) -> Call[Any]:
        call: Call[Any] = Call(call_id, role, index, handle, ref, self._recorder.now())
        self._calls.append(call)
        return call

    def _next_id(self, role: Role) -> str:
        return f"{self._request.id}/{role}/{next(self._numbers)}"

    # -- work that is waited for -----------------------------------------------------------------------------------

    async def verdict(self, drafted: Drafted) -> Verdict | None:
        """The verdict at the frontier; None when draft or verifier were lost, which only costs the speculation."""
        settings = self._request.settings
        try:
            await drafted.draft.result(settings.draft_deadline_s)
            return await drafted.verdict.result(settings.verifier_deadline_s)
        except Exception as error:
            # Whatever is wrong with the draft or the verifier, the target can still answer. What it cannot take
            # either (a broken image, say) it will raise itself.
            self._recorder.num_losses += 1
            log.warning("request %s, step %d: no verdict: %s", self._request.id, self.next_index, error)
            return None

    async def written(self, call: Call[Step]) -> tuple[Step, Call[Step]]:
        """The target's step, and the call that wrote it: a lost target is awaited and asked again."""
        for _ in range(MAX_TARGET_LOSSES):
            try:
                return await call.result(self._request.settings.target_deadline_s), call
            except ActorLost as error:
                self._recorder.num_losses += 1
                log.warning("request %s, step %d: %s; asking again", self._request.id, self.next_index, error)
                await self._actors.target.recovered()
                call = self.write()
        raise ActorLost(f"the target was lost {MAX_TARGET_LOSSES} times while it wrote step {self.next_index}")

    # -- decisions -------------------------------------------------------------------------------------------------

    def commit_if_accepted(self, drafted: Drafted, verdict: Verdict) -> bool:
        """Commit the drafted step when its verdict allows it."""
        step = drafted.draft.value
        assert step is not None, "a verdict comes after its step"
        accepted = accepts(verdict, self._request.settings.alpha)
        drafted.draft.outcome = "committed" if accepted else "rejected"
        if accepted:
            self._recorder.commit(step, "draft", verdict.rho, [drafted.draft, drafted.verdict])
        return accepted

    async def commit_written(
        self, call: Call[Step], drafted: Drafted | None = None, verdict: Verdict | None = None
    ) -> None:
        """Wait for the target's step and commit it, in place of `drafted`, whose verdict was no or is None."""
        step, call = await self.written(call)
        call.outcome = "committed"
        waited_for: list[Call[Any]] = [call]
        if drafted:
            drafted.stop()
            waited_for += [drafted.draft, drafted.verdict]
        self._recorder.commit(step, "target", verdict.rho if verdict else None, waited_for)

    def trace(self) -> Trace:
        return self._recorder.trace(self._calls)

    # -- the end ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running = [call for call in self._calls if call.value is None and call.outcome != "lost"]
        for call in running:
            call.stop()
        await asyncio.gather(*self._preparing, *(self._drained(call) for call in running))

    async def _drained(self, call: Call[Any]) -> None:
        try:
            await call.result(self._request.settings.stop_deadline_s)
        except Exception as error:
            log.debug("request %s: %s ended with %s", self._request.id, call.id, error)
