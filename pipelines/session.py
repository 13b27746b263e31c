"""`Session`: one request in flight. It makes every call, commits steps, and ends only when all its calls have ended.

schedule: draft, judge, target_step, ...     begin a call and return at once (`Caller`)
          verdict, unless_lost, required     wait for a call
          commit_if_accepted, commit_target  decide
                 │
                 ▼ on exit, also after an error: stop every open call ──▶ await them all
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

from dreamr.errors import ActorLost
from dreamr.types import Role, Step, ThoughtEnd, Verdict
from pipelines.caller import Caller
from pipelines.calls import Call, ChainedCall, Drafted, Steps, T
from pipelines.costs import Costs
from pipelines.handles import Handles, Verifier
from pipelines.recorder import Recorder
from pipelines.trace import OnCommit, Request
from pipelines.verification import RandomVerdicts, Rule

log = logging.getLogger(__name__)

MAX_TARGET_LOSSES = 5
"""Losses of the target in a row at one step after which the request fails: it may cause them itself."""


class Session(Caller):
    """The state and the calls of one request; the interface for schedules."""

    def __init__(
        self,
        handles: Handles,
        request: Request,
        rule: Rule,
        *,
        first_target_steps: int = 0,
        window: int = 4,
        on_commit: OnCommit | None = None,
        clock: Callable[[], float],
    ) -> None:
        """`first_target_steps`: the target writes this many steps at the beginning.

        `window`: most steps that the draft may be ahead of the frontier.
        """
        if rule.kind == "random":
            verifier = Verifier(RandomVerdicts(handles.verifier.transport, request.settings.seed))
            handles = replace(handles, verifier=verifier)
        super().__init__(handles, request, rule, Recorder(request, clock, on_commit), first_target_steps)
        self.window = window

    @property
    def costs(self) -> Costs:
        """The costs that were measured on these actors."""
        return self._handles.costs

    # -- waiting ---------------------------------------------------------------------------------------------------

    async def verdict(self, drafted: Drafted) -> Verdict | None:
        """The verdict at the frontier; None when draft or verifier were lost, which only costs the speculation."""
        if await self.unless_lost(drafted.draft) is None:
            return None
        if drafted.target:
            await self.settled(drafted.target)
        return await self.unless_lost(drafted.verdict)

    async def drafted_steps(self, calls: Sequence[ChainedCall], *, whole: bool = False) -> list[Step]:
        """The steps of a drafted chain up to the end of the answer, or to the first one that is lost or blank.

        `whole`: none after a step that was cut off by its length.
        """
        chain: list[Step] = []
        for call in calls:
            step = await self.unless_lost(call)
            if step is None or step.is_blank:
                break
            chain.append(step)
            if whole and step.finish != "delimiter":
                break
        for call in calls[len(chain) :]:
            call.stop()
        return chain

    async def unless_lost(self, call: Call[T]) -> T | None:
        """The answer of the draft or the verifier; None when that is lost."""
        try:
            return await self._received(call)
        except Exception as error:
            # When the draft or the verifier fails, the target can still answer. An input that it cannot read
            # either, such as a broken image, raises in its own call.
            self.recorder.num_losses += isinstance(error, ActorLost)
            log.warning("request %s, step %d: the %s failed: %s", self.request.id, call.step, call.role, error)
            return None

    async def settled(self, call: Call[Any]) -> None:
        """Wait until a call has ended, with a result or an error."""
        with contextlib.suppress(Exception):
            await self._received(call)

    async def required(self, call: Call[T], again: Callable[[], Call[T]]) -> tuple[T, Call[T]]:
        """The answer of the target, and the call that gave it: after a loss, wait for the target and call `again`."""
        num_losses = 0
        while True:
            try:
                return await self._received(call), call
            except ActorLost as error:
                self.recorder.num_losses += 1
                num_losses += 1
                if num_losses == MAX_TARGET_LOSSES:
                    raise ActorLost(
                        f"the target was lost {num_losses} times while it wrote step {self.next_index}"
                    ) from error
                log.warning("request %s, step %d: %s; asking again", self.request.id, self.next_index, error)
                await self._handles.target.transport.recovered()
                call = again()

    async def _received(self, call: Call[T]) -> T:
        value = await call.result(self._deadline_s(call.role))
        if call.received is None:
            call.received = self.recorder.now()
        return value

    def _deadline_s(self, role: Role) -> float:
        settings = self.settings
        match role:
            case "draft":
                return settings.draft_deadline_s
            case "target":
                return settings.target_deadline_s
            case "verifier":
                return settings.verifier_deadline_s

    # -- decisions -------------------------------------------------------------------------------------------------

    def commit_if_accepted(self, draft: Call[Step], verdict: Verdict, waited_for: Sequence[Call[Any]]) -> bool:
        """Commit the step that `draft` wrote when its verdict accepts it; `waited_for` are the calls awaited."""
        step = draft.value
        assert step is not None, "a verdict comes after its step"
        accepted = self.rule.accepts(verdict)
        self.costs.decided(accepted)
        draft.outcome = "committed" if accepted else "rejected"
        if accepted:
            draft.num_kept = self._commit(step, "draft", verdict, waited_for)
        return accepted

    async def commit_target(
        self,
        call: Call[Step],
        drafted: Drafted | None = None,
        verdict: Verdict | None = None,
        again: Callable[[], Call[Step]] | None = None,
    ) -> None:
        """Wait for the target's step and commit it, in place of `drafted`, whose verdict rejected it or is None.

        `again` repeats the call after a loss of the target; default: the target's step at the frontier.
        """
        call.promote(drafted.tokens if drafted else ())
        step, call = await self.required(call, again or self.target_step)
        call.outcome = "committed"
        if drafted:
            drafted.stop()
        call.num_kept = self._commit(step, "target", verdict, [call, *(drafted.calls if drafted else ())])

    def commit_from_batch(
        self, batch: Call[Steps], step: Step, verdict: Verdict | None, waited_for: Sequence[Call[Any]]
    ) -> None:
        """Commit one of the steps that `target_steps` returned."""
        batch.outcome = "committed"
        batch.num_kept = self._commit(step, "target", verdict, waited_for)

    def commit_checked(self, step: Step, rounds: Sequence[Call[Any]]) -> int:
        """Commit a step made of proposed and checked tokens; return how many of its tokens were kept."""
        return self._commit(step, "target", None, rounds)

    def _commit(
        self, step: Step, source: Literal["draft", "target"], verdict: Verdict | None, waited_for: Sequence[Call[Any]]
    ) -> int:
        """Commit a step; return how many of its tokens were kept."""
        waits = list(waited_for)
        if self._prefill and any(call.role == "verifier" for call in waits):
            waits.append(self._prefill)
        committed = self.recorder.commit(step, source, verdict.score if verdict and verdict.judged else None, waits)
        return len(committed.tokens)

    # -- phases ----------------------------------------------------------------------------------------------------

    async def thought_end(self) -> ThoughtEnd:
        """The end mark of the target's chain of thought. Raises Unable, and ActorLost for a target lost twice."""
        if self._handles.thought_end is not None:
            return self._handles.thought_end
        target, call_id = self._handles.target, f"{self.request.id}/thought_end"
        try:
            return await target.thought_end(call_id, self._prompt)
        except ActorLost:
            await target.transport.recovered()
            return await target.thought_end(call_id, self._prompt)

    def is_complete(self, step: Step) -> bool:
        """Whether a step of checked tokens has reached its end, or the end of the reasoning."""
        reasoning = self.recorder.reasoning
        return step.finish != "stopped" or (reasoning is not None and reasoning.thought.token in step.tokens)

    def begin_answer(self) -> None:
        """Leave the phase of reasoning. Open calls are stopped; they are awaited when the session ends."""
        for call in self.recorder.calls:
            call.stop()
        self._prefill = None
        self.recorder.begin_answer()

    # -- the end ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running = [call for call in self.recorder.calls if call.value is None and call.outcome != "lost"]
        for call in running:
            call.stop()
        await asyncio.gather(*(self._drained(call) for call in running))

    async def _drained(self, call: Call[Any]) -> None:
        try:
            await call.result(self.settings.stop_deadline_s)
        except Exception as error:
            log.debug("request %s: %s ended with %s", self.request.id, call.id, error)
