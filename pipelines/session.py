"""`Session`: one request in flight. It makes every call, commits steps, and ends only when all its calls have ended.

schedule: draft, judge, target_step, ...     begin a call and return at once
          verdict, unless_lost, required     wait for a call
          commit_if_accepted, commit_target  decide
                 │
                 ▼ on exit, also after an error: stop every open call ──▶ await them all
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self

from dreamr.config import PipelineSettings
from dreamr.errors import ActorLost
from dreamr.types import Checked, Priority, Proposal, Role, Sampling, Step, ThoughtEnd, Verdict
from pipelines.handles import Handle, Handles, Ref, Verifier
from pipelines.phases import Reasoning
from pipelines.recorder import Call, Recorder, Steps, T, Verdicts
from pipelines.trace import OnCommit, Request, Trace
from pipelines.verification import RandomVerdicts, Rule

log = logging.getLogger(__name__)

MAX_TARGET_LOSSES = 5
"""In a row, for one step: then the request fails, since something kills the target each time."""


@dataclass(frozen=True, slots=True, eq=False)
class Drafted:
    """A drafted step and its verdict, both perhaps still in flight."""

    draft: Call[Step]
    verdict: Call[Any]
    """Of one `Verdict`, or of the verdicts on a whole chain."""
    target: Call[Step] | None = None
    """The target's step that the drafted one is compared with."""

    @property
    def calls(self) -> tuple[Call[Any], Call[Any]]:
        return self.draft, self.verdict

    def stop(self) -> None:
        for call in self.calls:
            call.stop()


class Session:
    """What a schedule works with: the state of one request, and its calls."""

    def __init__(
        self,
        handles: Handles,
        request: Request,
        rule: Rule,
        *,
        first_target_steps: int = 0,
        on_commit: OnCommit | None = None,
        clock: Callable[[], float],
    ) -> None:
        """`first_target_steps`: so many steps at the beginning are the target's, whatever the draft could do."""
        if rule.kind == "random":
            verifier = Verifier(RandomVerdicts(handles.verifier.transport, request.settings.seed))
            handles = replace(handles, verifier=verifier)
        self.rule = rule
        self.request = request
        self._handles, self._prompt = handles, request.prompt
        self._first_target_steps = first_target_steps
        self._recorder = Recorder(request, clock, on_commit)
        self._numbers = itertools.count()
        self._prefill: Call[Any] | None = None

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> PipelineSettings:
        return self.request.settings

    @property
    def ended(self) -> bool:
        """Whether the request, or its phase of reasoning, has ended."""
        reasoning = self._recorder.reasoning
        return self._recorder.end is not None or (reasoning is not None and reasoning.ended)

    @property
    def frontier(self) -> Step:
        """The last committed step."""
        return self._recorder.frontier

    @property
    def next_index(self) -> int:
        """Number of the step that will be committed next."""
        return self._recorder.num_committed

    @property
    def has_draft(self) -> bool:
        """Whether the draft's actor is up."""
        return self._handles.draft.up

    @property
    def can_speculate(self) -> bool:
        """Whether draft and verifier are up, and the next step may be the draft's."""
        return self.next_index >= self._first_target_steps and self.has_draft and self._handles.verifier.up

    # -- calls that begin ------------------------------------------------------------------------------------------

    def draft_step(self, index: int, after: Step | Call[Step]) -> Call[Step]:
        """Begin to draft step number `index`, perhaps after one that is still being drafted."""
        draft, sampling = self._handles.draft, self._sampling(index, "draft")
        return self._begin(
            "draft", index, lambda call_id: draft.next_step(call_id, self._prompt, _argument(after), sampling)
        )

    def draft_chain(self, window: int) -> list[Call[Step]]:
        """Begin to draft `window` steps after the frontier, each passed on unawaited to the next."""
        calls: list[Call[Step]] = []
        for place in range(window):
            calls.append(self.draft_step(self.next_index + place, calls[-1] if calls else self.frontier))
        return calls

    def draft_and_judge(self, index: int, after: Step | Call[Step], target: Call[Step] | None = None) -> Drafted:
        """Begin to draft step number `index` and, as soon as it is there, to judge it.

        `target` is the target's step at the same place: verdicts that compare need it.
        """
        draft = self.draft_step(index, after)
        target = target if self.rule.compares else None
        return Drafted(draft, self.judge(index, draft, target), target)

    def judge(self, index: int, step: Step | Call[Step], target: Step | Call[Step] | None = None) -> Call[Verdict]:
        """Begin to judge drafted step number `index`; `target` is the target's step at the same place."""
        verifier, criterion = self._handles.verifier, self.rule.criterion
        reference = _argument(target) if target is not None and self.rule.compares else None
        return self._begin(
            "verifier",
            index,
            lambda call_id: verifier.score(call_id, self._prompt, _argument(step), criterion, reference),
        )

    def judge_chain(self, index: int, chain: Sequence[Step]) -> Call[Verdicts]:
        """Begin to judge drafted steps from number `index` on, none of them blank, in one forward."""
        verifier, criterion = self._handles.verifier, self.rule.criterion
        return self._begin(
            "verifier", index, lambda call_id: verifier.score_chain(call_id, self._prompt, chain, criterion)
        )

    def prefill_verifier(self) -> None:
        """Have the verifier read the prompt while the draft writes its first step. The first verdict waits for it."""
        verifier = self._handles.verifier
        if verifier.up:
            self._prefill = self._begin("verifier", 0, lambda call_id: verifier.prefill(call_id, self._prompt))

    def target_step(
        self, index: int | None = None, after: Step | Call[Step] | None = None, *, priority: Priority = "needed"
    ) -> Call[Step]:
        """Begin the target's step number `index` after `after`: by default the one at the frontier."""
        index = self.next_index if index is None else index
        prefix = _argument(self.frontier if after is None else after)
        target, sampling = self._handles.target, self._sampling(index, "target")
        return self._begin(
            "target", index, lambda call_id: target.next_step(call_id, self._prompt, prefix, sampling, priority)
        )

    def target_steps(self, index: int, chain: Sequence[Step]) -> Call[Steps]:
        """Begin the target's step after each step of a chain, the first of them number `index`, in one batch."""
        target = self._handles.target
        sampling = [self._sampling(index + place, "target") for place in range(len(chain))]
        return self._begin("target", index, lambda call_id: target.next_steps(call_id, self._prompt, chain, sampling))

    def propose_tokens(self, after: Step, num_tokens: int) -> Call[Proposal]:
        """Begin to draft tokens after an open step; their place in the answer seeds them."""
        draft, sampling = self._handles.draft, self._sampling(len(after.end), "draft")
        return self._begin(
            "draft",
            self.next_index,
            lambda call_id: draft.propose_tokens(call_id, self._prompt, after, num_tokens, sampling),
        )

    def check_tokens(self, after: Step, proposal: Proposal | Call[Proposal]) -> Call[Checked]:
        """Have the target check tokens proposed after an open step."""
        target, sampling = self._handles.target, self._sampling(len(after.end), "target")
        proposed = proposal.ref if isinstance(proposal, Call) else proposal
        return self._begin(
            "target",
            self.next_index,
            lambda call_id: target.check_tokens(call_id, self._prompt, after, proposed, sampling),
        )

    def answer_step(self) -> Call[Step]:
        """Begin the whole answer of the target, under the request's schema."""
        sampling = replace(
            self._sampling(self.next_index, "target"),
            max_tokens=self.settings.max_tokens,
            grammar=self.request.schema,
        )
        target, after = self._handles.target, self.frontier
        return self._begin(
            "target", self.next_index, lambda call_id: target.next_step(call_id, self._prompt, after, sampling)
        )

    def _sampling(self, step: int, role: Role) -> Sampling:
        sampling, reasoning = self.request.sampling(step, role), self._recorder.reasoning
        if reasoning is None or reasoning.budget is None:
            return sampling
        return replace(sampling, budget=min(reasoning.budget, self.settings.max_tokens))

    def _begin(self, role: Role, index: int, submit: Callable[[str], Ref[Any]]) -> Call[Any]:
        handle: Handle = getattr(self._handles, role)
        call_id = f"{self.request.id}/{role}/{next(self._numbers)}"
        call: Call[Any] = Call(call_id, role, index, handle.transport, submit(call_id), self._recorder.now())
        self._recorder.calls.append(call)
        return call

    # -- waiting ---------------------------------------------------------------------------------------------------

    async def verdict(self, drafted: Drafted) -> Verdict | None:
        """The verdict at the frontier; None when draft or verifier were lost, which only costs the speculation."""
        if await self.unless_lost(drafted.draft) is None:
            return None
        if drafted.target:
            await self.settled(drafted.target)
        return await self.unless_lost(drafted.verdict)

    async def drafted_steps(self, calls: list[Call[Step]], *, whole: bool = False) -> list[Step]:
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
            return await call.result(self._deadline_s(call.role))
        except Exception as error:
            # Whatever is wrong with the draft or the verifier, the target can still answer. What it cannot take
            # either (a broken image, say) it will raise itself.
            self._recorder.num_losses += isinstance(error, ActorLost)
            log.warning("request %s, step %d: the %s failed: %s", self.request.id, call.step, call.role, error)
            return None

    async def settled(self, call: Call[Any]) -> None:
        """Wait until a call has ended, well or not."""
        with contextlib.suppress(Exception):
            await call.result(self._deadline_s(call.role))

    async def required(self, call: Call[T], again: Callable[[], Call[T]]) -> tuple[T, Call[T]]:
        """The answer of the target, and the call that gave it: a lost target is awaited and asked `again`."""
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
                log.warning("request %s, step %d: %s; asking again", self.request.id, self.next_index, error)
                await self._handles.target.transport.recovered()
                call = again()

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

        `again` begins the call anew when the target was lost; by default as the target's step at the frontier.
        """
        step, call = await self.required(call, again or self.target_step)
        call.outcome = "committed"
        if drafted:
            drafted.stop()
        call.num_kept = self._commit(step, "target", verdict, [call, *(drafted.calls if drafted else ())])

    def commit_from_batch(
        self, batch: Call[Steps], step: Step, verdict: Verdict | None, waited_for: Sequence[Call[Any]]
    ) -> None:
        """Commit one of the steps that `target_steps` gave."""
        batch.outcome = "committed"
        batch.num_kept = self._commit(step, "target", verdict, waited_for)

    def commit_checked(self, step: Step, rounds: Sequence[Call[Any]]) -> int:
        """Commit a step made of proposed and checked tokens; how many of its tokens were kept."""
        return self._commit(step, "target", None, rounds)

    def _commit(
        self, step: Step, source: Literal["draft", "target"], verdict: Verdict | None, waited_for: Sequence[Call[Any]]
    ) -> int:
        """How many of its tokens were kept."""
        waits = list(waited_for)
        if self._prefill and any(call.role == "verifier" for call in waits):
            waits.append(self._prefill)
        committed = self._recorder.commit(step, source, verdict.score if verdict and verdict.judged else None, waits)
        return len(committed.tokens)

    def restore(self) -> None:
        """Begin with what an earlier run of the request has committed."""
        self._recorder.restore()

    # -- phases ----------------------------------------------------------------------------------------------------

    async def thought_end(self) -> ThoughtEnd:
        """How the target's chain of thought ends. Raises Unable."""
        target, call_id = self._handles.target, f"{self.request.id}/thought_end"
        while True:
            try:
                return await target.thought_end(call_id, self._prompt)
            except ActorLost:
                await target.transport.recovered()

    def begin_reasoning(self, thought: ThoughtEnd) -> Reasoning:
        """Enter the phase of reasoning: the session also ends when that does."""
        return self._recorder.begin_reasoning(thought)

    def is_complete(self, step: Step) -> bool:
        """Whether a step of checked tokens has reached its end, or the end of the reasoning."""
        reasoning = self._recorder.reasoning
        return step.finish != "stopped" or (reasoning is not None and reasoning.thought.token in step.tokens)

    def begin_answer(self) -> None:
        """Leave the phase of reasoning. Calls that are still open are stopped, and awaited in the end."""
        for call in self._recorder.calls:
            call.stop()
        self._prefill = None
        self._recorder.begin_answer()

    def trace(self) -> Trace:
        return self._recorder.trace()

    # -- the end ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running = [call for call in self._recorder.calls if call.value is None and call.outcome != "lost"]
        for call in running:
            call.stop()
        await asyncio.gather(*(self._drained(call) for call in running))

    async def _drained(self, call: Call[Any]) -> None:
        try:
            await call.result(self.settings.stop_deadline_s)
        except Exception as error:
            log.debug("request %s: %s ended with %s", self.request.id, call.id, error)


def _argument(step: Step | Call[Step]) -> Step | Ref[Step]:
    """A step as the argument of a call: one that is still being drafted is passed on unawaited."""
    return step.ref if isinstance(step, Call) else step
