"""`Caller`: begins the calls of one request, each with its sampling and its own id, and returns at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dreamr.config import PipelineSettings
from dreamr.types import Checked, Priority, Proposal, Role, Sampling, Step, Tokens, Verdict
from pipelines.calls import Call, ChainedCall, Drafted, Steps, Verdicts
from pipelines.handles import Handle, Handles, Ref
from pipelines.recorder import Recorder
from pipelines.trace import Request
from pipelines.verification import Rule


class Caller:
    """Begins the calls of one request from its current state."""

    def __init__(
        self, handles: Handles, request: Request, rule: Rule, recorder: Recorder, first_target_steps: int
    ) -> None:
        """`first_target_steps`: the target writes this many steps at the beginning."""
        self.request, self.rule, self.recorder = request, rule, recorder
        self._handles, self._prompt = handles, request.prompt
        self._first_target_steps = first_target_steps
        self._numbers = itertools.count()
        self._prefill: Call[Any] | None = None

    @property
    def settings(self) -> PipelineSettings:
        return self.request.settings

    @property
    def ended(self) -> bool:
        """Whether the request, or its phase of reasoning, has ended."""
        reasoning = self.recorder.reasoning
        return self.recorder.end is not None or (reasoning is not None and reasoning.ended)

    @property
    def frontier(self) -> Step:
        """The last committed step."""
        return self.recorder.frontier

    @property
    def next_index(self) -> int:
        """Number of the step that will be committed next."""
        return self.recorder.num_committed

    @property
    def has_draft(self) -> bool:
        """Whether the draft's actor is up."""
        return self._handles.draft.up

    @property
    def can_speculate(self) -> bool:
        """Whether draft and verifier are up, and the next step may be the draft's."""
        return self.next_index >= self._first_target_steps and self.has_draft and self._handles.verifier.up

    def draft_step(self, index: int, after: Step | Call[Step]) -> Call[Step]:
        """Begin to draft step number `index`, perhaps after one that is still being drafted."""
        draft, sampling = self._handles.draft, self._sampling(index, "draft")
        return self._begin(
            "draft", index, lambda call_id: draft.next_step(call_id, self._prompt, _argument(after), sampling)
        )

    def draft_chain(self, length: int, ahead: Sequence[ChainedCall] = ()) -> list[ChainedCall]:
        """Begin to draft `length` steps in one call.

        They follow `ahead`, the drafted chains after the frontier so far, or the frontier itself.
        """
        draft, index = self._handles.draft, self.next_index + len(ahead)
        after = ahead[-1].chain.ref if ahead else self.frontier
        sampling = [self._sampling(index + place, "draft") for place in range(length)]
        begun = self._call("draft", index, lambda call_id: draft.next_chain(call_id, self._prompt, after, sampling))
        calls = ChainedCall.of(begun, length)
        self.recorder.calls += calls
        return calls

    def draft_and_judge(self, index: int, after: Step | Call[Step], target: Call[Step] | None = None) -> Drafted:
        """Begin to draft step number `index` and, as soon as it is written, to judge it.

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

    def judge_chain(self, drafts: Sequence[ChainedCall]) -> Call[Verdicts]:
        """Begin to judge the steps of a chain in one forward, when all of them are written.

        Steps from the first blank one on get no verdict.
        """
        verifier, criterion, chain = self._handles.verifier, self.rule.criterion, drafts[0].chain.ref
        return self._begin(
            "verifier", drafts[0].step, lambda call_id: verifier.score_chain(call_id, self._prompt, chain, criterion)
        )

    def prefill_verifier(self) -> None:
        """Have the verifier read the prompt while the draft writes its first step. The first verdict waits for it."""
        verifier = self._handles.verifier
        if verifier.up:
            self._prefill = self._begin("verifier", 0, lambda call_id: verifier.prefill(call_id, self._prompt))

    def target_step(
        self,
        index: int | None = None,
        after: Step | Call[Step] | None = None,
        *,
        priority: Priority = "needed",
        hint: Tokens = (),
    ) -> Call[Step]:
        """Begin the target's step number `index` after `after`: by default the one at the frontier.

        `hint` are tokens that it may begin with, such as those of a rejected drafted step.
        """
        index = self.next_index if index is None else index
        prefix = _argument(self.frontier if after is None else after)
        target, sampling = self._handles.target, replace(self._sampling(index, "target"), hint=hint)
        call = self._begin(
            "target", index, lambda call_id: target.next_step(call_id, self._prompt, prefix, sampling, priority)
        )
        call.priority = priority
        return call

    def target_steps(self, index: int, chain: Sequence[Step]) -> Call[Steps]:
        """Begin the target's step after each step of a chain, the first of them number `index`, in one batch."""
        target = self._handles.target
        sampling = [self._sampling(index + place, "target") for place in range(len(chain))]
        return self._begin("target", index, lambda call_id: target.next_steps(call_id, self._prompt, chain, sampling))

    def propose_tokens(self, after: Step, num_tokens: int) -> Call[Proposal]:
        """Begin to draft tokens after an unfinished step; their place in the answer determines their seed."""
        draft, sampling = self._handles.draft, self._sampling(len(after.end), "draft")
        return self._begin(
            "draft",
            self.next_index,
            lambda call_id: draft.propose_tokens(call_id, self._prompt, after, num_tokens, sampling),
        )

    def check_tokens(self, after: Step, proposal: Proposal | Call[Proposal]) -> Call[Checked]:
        """Have the target check tokens proposed after an unfinished step."""
        target, sampling = self._handles.target, self._sampling(len(after.end), "target")
        proposed = proposal.ref if isinstance(proposal, Call) else proposal
        return self._begin(
            "target",
            self.next_index,
            lambda call_id: target.check_tokens(call_id, self._prompt, after, proposed, sampling),
        )

    def answer_step(self) -> Call[Step]:
        """Begin the target's answer under the request's schema, as one step."""
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
        sampling, reasoning = self.request.sampling(step, role), self.recorder.reasoning
        if reasoning is None or reasoning.budget is None:
            return sampling
        return replace(sampling, budget=min(reasoning.budget, self.settings.max_tokens))

    def _begin(self, role: Role, index: int, submit: Callable[[str], Ref[Any]]) -> Call[Any]:
        call = self._call(role, index, submit)
        self.recorder.calls.append(call)
        return call

    def _call(self, role: Role, index: int, submit: Callable[[str], Ref[Any]]) -> Call[Any]:
        handle: Handle = getattr(self._handles, role)
        call_id = f"{self.request.id}/{role}/{next(self._numbers)}"
        return Call(call_id, role, index, handle.transport, submit(call_id), self.recorder.now())


def _argument(step: Step | Call[Step]) -> Step | Ref[Step]:
    """A step as the argument of a call: one that is still being drafted is passed on unawaited."""
    return step.ref if isinstance(step, Call) else step
