"""`Session`: one request in flight. Makes every call, commits steps, and lets go of nothing before it has ended.

async with Session(...) as session:         schedule: draft, judge, write, expand, commit
    ...                                        │ what begins work returns at once; only `verdict`, `unless_lost`,
                                               │ `settled`, `written` and `commit_written` wait
                                               ▼
on exit, however it comes: stop every open call ──▶ await them all
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from dreamr.errors import ActorLost
from dreamr.types import Criterion, Role, Step, Verdict
from pipelines.base import OnCommit
from pipelines.call import Call, Steps, T, Verdicts
from pipelines.coin import Coin
from pipelines.handles import Actors, Judge, Ref
from pipelines.recorder import Recorder
from pipelines.request import Request
from pipelines.trace import Trace
from pipelines.verification import Rule

log = logging.getLogger(__name__)

PUBLISHED_FIRST = ("lookahead", "lookahead_batch")
"""Methods whose first step is the target's, as published."""
MAX_TARGET_LOSSES = 5
"""In a row, for one step: then the request fails, since something kills the target each time."""


@dataclass(frozen=True, slots=True, eq=False)
class Drafted:
    """A drafted step and its verdict, both perhaps still to come."""

    draft: Call[Step]
    verdict: Call[Any]
    """Of `Verdict`, or of the verdicts on a whole chain."""
    own: Call[Step] | None = None
    """The target's step that the drafted one is compared with."""

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
        self.rule = Rule.of(request.settings)
        self._judge: Judge = Coin(request.settings.seed) if self.rule.kind == "random" else actors.judge
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
        """Whether draft and verifier are there, and the next step may be the draft's."""
        settings = self._request.settings
        first = settings.first_target_steps
        num_own = int(settings.method in PUBLISHED_FIRST) if first is None else first
        return self.next_index >= num_own and self._actors.draft.up and self._judge.up

    # -- work that begins ------------------------------------------------------------------------------------------

    def draft(self, index: int, after: Step | Call[Step], own: Call[Step] | None = None) -> Drafted:
        """Begin to draft step `index` and, as soon as it is there, to judge it.

        `own` is the target's step at the same place: verdicts that compare need it.
        """
        draft = self.draft_alone(index, after)
        call_id = self._next_id("verifier")
        own = own if self.rule.compares else None
        verdict = self._judge.score(call_id, self._request.prompt, draft.ref, self._criterion, own.ref if own else None)
        return Drafted(draft, self._begin(call_id, "verifier", index, self._judge, verdict), own)

    def draft_alone(self, index: int, after: Step | Call[Step]) -> Call[Step]:
        """Begin to draft step `index`."""
        request, call_id = self._request, self._next_id("draft")
        sampling = request.sampling(index, "draft")
        step = self._actors.draft.next_step(call_id, request.prompt, _argument(after), sampling)
        return self._begin(call_id, "draft", index, self._actors.draft, step)

    def judge_pair(self, index: int, drafted: Step, own: Step) -> Call[Verdict]:
        """Begin to judge drafted step `index`; `own` is the target's at the same place."""
        call_id, reference = self._next_id("verifier"), own if self.rule.compares else None
        verdict = self._judge.score(call_id, self._request.prompt, drafted, self._criterion, reference)
        return self._begin(call_id, "verifier", index, self._judge, verdict)

    def judge_chain(self, index: int, chain: Sequence[Step]) -> Call[Verdicts]:
        """Begin to judge drafted steps from number `index` on, none of them empty, in one forward."""
        call_id = self._next_id("verifier")
        verdicts = self._judge.score_chain(call_id, self._request.prompt, chain, self._criterion)
        return self._begin(call_id, "verifier", index, self._judge, verdicts)

    @property
    def _criterion(self) -> Criterion:
        return "rho" if self.rule.kind == "random" else self.rule.kind

    def prepare_verifier(self) -> None:
        """Have the verifier read the prompt while the draft writes its first step. A coin has nothing to read."""
        if self.rule.kind == "random":
            return
        self._preparing.append(asyncio.create_task(self._prefill_verifier(), name=f"prefill {self._request.id}"))

    async def _prefill_verifier(self) -> None:
        try:
            async with asyncio.timeout(self._request.settings.verifier_deadline_s):
                self._recorder.prefill = await self._judge.prefill(self._request.prompt)
        except Exception as error:
            # The first verdict will meet the same difficulty, and deal with it.
            log.debug("request %s: the verifier could not read the prompt: %s", self._request.id, error)

    def write(self, *, speculative: bool = False) -> Call[Step]:
        """Begin the target's own step at the frontier; `speculative` when it is only needed if a draft is rejected."""
        return self.write_after(self.next_index, self.frontier, speculative=speculative)

    def write_after(self, index: int, after: Step | Call[Step], *, speculative: bool = False) -> Call[Step]:
        """Begin the target's own step number `index`, perhaps behind a step that is still being drafted."""
        request, call_id = self._request, self._next_id("target")
        sampling = request.sampling(index, "target", background=speculative)
        step = self._actors.target.next_step(call_id, request.prompt, _argument(after), sampling)
        return self._begin(call_id, "target", index, self._actors.target, step)

    def expand(self, index: int, chain: Sequence[Step]) -> Call[Steps]:
        """Begin the target's own step behind each step of a chain, the first of them number `index`, in one batch."""
        call_id = self._next_id("target")
        sampling = [self._request.sampling(index + place, "target") for place in range(len(chain))]
        steps = self._actors.target.next_steps(call_id, self._request.prompt, chain, sampling)
        return self._begin(call_id, "target", index, self._actors.target, steps)

    def _begin(self, call_id: str, role: Role, index: int, handle: Any, ref: Ref[Any]) -> Call[Any]:
        call: Call[Any] = Call(call_id, role, index, handle, ref, self._recorder.now())
        self._calls.append(call)
        return call

    def _next_id(self, role: Role) -> str:
        return f"{self._request.id}/{role}/{next(self._numbers)}"

    # -- work that is waited for -----------------------------------------------------------------------------------

    async def verdict(self, drafted: Drafted) -> Verdict | None:
        """The verdict at the frontier; None when draft or verifier were lost, which only costs the speculation."""
        if await self.unless_lost(drafted.draft) is None:
            return None
        if drafted.own:
            await self.settled(drafted.own)
        return await self.unless_lost(drafted.verdict)

    async def unless_lost(self, call: Call[T]) -> T | None:
        """What the draft or the verifier answers; None when that is lost."""
        try:
            return await call.result(self._deadline_s(call.role))
        except Exception as error:
            # Whatever is wrong with the draft or the verifier, the target can still answer. What it cannot take
            # either (a broken image, say) it will raise itself.
            self._recorder.num_losses += isinstance(error, ActorLost)
            log.warning("request %s, step %d: the %s failed: %s", self._request.id, call.step, call.role, error)
            return None

    async def settled(self, call: Call[Any]) -> None:
        """Wait until a call has ended, well or not."""
        with contextlib.suppress(Exception):
            await call.result(self._deadline_s(call.role))

    def _deadline_s(self, role: Role) -> float:
        settings = self._request.settings
        deadlines: dict[Role, float] = {
            "draft": settings.draft_deadline_s,
            "target": settings.target_deadline_s,
            "verifier": settings.verifier_deadline_s,
        }
        return deadlines[role]

    async def written(self, call: Call[T], again: Callable[[], Call[T]]) -> tuple[T, Call[T]]:
        """What the target wrote, and the call that wrote it: a lost target is awaited and asked `again`."""
        num_losses = 0
        while True:
            try:
                return await call.result(self._deadline_s("target")), call
            except ActorLost as error:
                self._recorder.num_losses += 1
                num_losses += 1
                if num_losses == MAX_TARGET_LOSSES:
                    raise ActorLost(
                        f"the target was lost {num_losses} times while it wrote step {self.next_index}"
                    ) from error
                log.warning("request %s, step %d: %s; asking again", self._request.id, self.next_index, error)
                await self._actors.target.recovered()
                call = again()

    # -- decisions -------------------------------------------------------------------------------------------------

    def commit_if_accepted(self, drafted: Drafted, verdict: Verdict) -> bool:
        """Commit the drafted step when its verdict allows it."""
        step = drafted.draft.value
        assert step is not None, "a verdict comes after its step"
        return self.decide(drafted.draft, step, verdict, [drafted.draft, drafted.verdict])

    def decide(self, draft: Call[Step], step: Step, verdict: Verdict, waited_for: list[Call[Any]]) -> bool:
        """Commit the step that `draft` wrote when the verdict allows it."""
        accepted = self.rule.accepts(verdict)
        draft.outcome = "committed" if accepted else "rejected"
        if accepted:
            self._recorder.commit(step, "draft", verdict.rho, waited_for)
        return accepted

    async def commit_written(
        self, call: Call[Step], drafted: Drafted | None = None, verdict: Verdict | None = None
    ) -> None:
        """Wait for the target's step and commit it, in place of `drafted`, whose verdict was no or is None."""
        step, call = await self.written(call, self.write)
        call.outcome = "committed"
        waited_for: list[Call[Any]] = [call]
        if drafted:
            drafted.stop()
            waited_for += [drafted.draft, drafted.verdict]
        self._recorder.commit(step, "target", _rho(verdict), waited_for)

    def commit_own(
        self, expanding: Call[Steps], step: Step, verdict: Verdict | None, waited_for: list[Call[Any]]
    ) -> None:
        """Commit one of the steps that a batch gave."""
        expanding.outcome, expanding.num_kept = "committed", len(step.tokens)
        self._recorder.commit(step, "target", _rho(verdict), waited_for)

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


def _rho(verdict: Verdict | None) -> float | None:
    """What the verdict says; None when there is none, or nothing was judged."""
    return verdict.rho if verdict and verdict.judged else None


def _argument(step: Step | Call[Step]) -> Step | Ref[Step]:
    """A step as the argument of a call: one that is still being drafted is passed on unawaited."""
    return step.ref if isinstance(step, Call) else step
