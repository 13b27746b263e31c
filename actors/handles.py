"""Writer and judge over Ray: what a schedule calls, without knowing of actors.

pipeline ── next_step ──▶ RayWriter ── remote call, references as they are ──▶ actor
   ▲                          │
   └──────── RayRef ◀─────────┘   returns at once; only awaiting a RayRef waits
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.member import Member
from actors.prompt_store import PromptStore
from actors.refs import RayRef, resolve
from dreamr.types import Checked, Criterion, Prefill, Prompt, Proposal, Sampling, Step, Verdict
from pipelines.handles import Ref


class RayHandle:
    """Liveness and the calls that all actors have."""

    def __init__(self, member: Member, prompts: PromptStore) -> None:
        self._member = member
        self._prompts = prompts

    @property
    def up(self) -> bool:
        return self._member.up

    @property
    def gone(self) -> bool:
        """True when it will not come back."""
        return self._member.gone

    def report_lost(self) -> None:
        self._member.report_lost()

    async def recovered(self) -> None:
        await self._member.recovered()

    async def prefill(self, prompt: Prompt) -> Prefill:
        return await RayRef[Prefill](
            self._member.actor.prefill.remote(self._prompts.argument(prompt)), self._member, None
        )

    async def count_tokens(self, prompt: Prompt) -> int:
        """Length of the prompt as this actor's model reads it. Raises ValueError when it cannot be read at all."""
        return await RayRef[int](
            self._member.actor.count_tokens.remote(self._prompts.argument(prompt)), self._member, None
        )

    def stop(self, call_id: str) -> None:
        # No result to wait for: the stopped call's own reference tells how it ended.
        self._member.actor.stop.remote(call_id)


class RayWriter(RayHandle):
    """Draft or target."""

    def next_step(self, call_id: str, prompt: Prompt, after: Step | Ref[Step], sampling: Sampling) -> RayRef[Step]:
        step, argument = resolve(after)
        remote = self._member.actor.next_step.remote
        return RayRef(remote(call_id, self._prompts.argument(prompt), step, sampling), self._member, argument)

    def propose_tokens(
        self, call_id: str, prompt: Prompt, after: Step, num_tokens: int, sampling: Sampling
    ) -> RayRef[Proposal]:
        remote = self._member.actor.propose_tokens.remote
        ref = remote(call_id, self._prompts.argument(prompt), after, num_tokens, sampling)
        return RayRef(ref, self._member)

    def check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal | Ref[Proposal], sampling: Sampling
    ) -> RayRef[Checked]:
        proposed, argument = resolve(proposal)
        remote = self._member.actor.check_tokens.remote
        return RayRef(
            remote(call_id, self._prompts.argument(prompt), after, proposed, sampling), self._member, argument
        )

    def next_steps(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], sampling: Sequence[Sampling]
    ) -> RayRef[tuple[Step, ...]]:
        remote = self._member.actor.next_steps.remote
        return RayRef(remote(call_id, self._prompts.argument(prompt), chain, sampling), self._member)


class RayJudge(RayHandle):
    """The verifier's actor, or the target's where they share one."""

    def score(
        self,
        call_id: str,
        prompt: Prompt,
        step: Step | Ref[Step],
        criterion: Criterion = "rho",
        reference: Step | Ref[Step] | None = None,
    ) -> RayRef[Verdict]:
        drafted, argument = resolve(step)
        compared, second = resolve(reference)
        remote = self._member.actor.score.remote
        ref = remote(call_id, self._prompts.argument(prompt), drafted, criterion, compared)
        return RayRef(ref, self._member, argument, second)

    def score_chain(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step | Ref[Step]], criterion: Criterion = "rho"
    ) -> RayRef[tuple[Verdict, ...]]:
        resolved = [resolve(step) for step in chain]
        remote = self._member.actor.score_chain.remote
        # One argument each: Ray resolves references among the arguments, not those inside a list.
        ref = remote(call_id, self._prompts.argument(prompt), criterion, *(step for step, _ in resolved))
        return RayRef(ref, self._member, *(argument for _, argument in resolved))
