"""Handles that pass everything on to another one: what watches or holds back a call overrides that call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from dreamr.types import Checked, Criterion, Prefill, Prompt, Proposal, Sampling, Step, Verdict
from pipelines.handles import Judge, Ref, Writer

H = TypeVar("H", Writer, Judge)


class _Wrapped(Generic[H]):
    def __init__(self, inner: H) -> None:
        self._inner: H = inner

    @property
    def up(self) -> bool:
        return self._inner.up

    def report_lost(self) -> None:
        self._inner.report_lost()

    async def recovered(self) -> None:
        await self._inner.recovered()

    async def prefill(self, prompt: Prompt) -> Prefill:
        return await self._inner.prefill(prompt)

    def stop(self, call_id: str) -> None:
        self._inner.stop(call_id)


class WrappedWriter(_Wrapped[Writer]):
    """A draft or a target."""

    def next_step(self, call_id: str, prompt: Prompt, after: Step | Ref[Step], sampling: Sampling) -> Ref[Step]:
        return self._inner.next_step(call_id, prompt, after, sampling)

    def next_steps(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], sampling: Sequence[Sampling]
    ) -> Ref[tuple[Step, ...]]:
        return self._inner.next_steps(call_id, prompt, chain, sampling)

    def propose_tokens(
        self, call_id: str, prompt: Prompt, after: Step, num_tokens: int, sampling: Sampling
    ) -> Ref[Proposal]:
        return self._inner.propose_tokens(call_id, prompt, after, num_tokens, sampling)

    def check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal | Ref[Proposal], sampling: Sampling
    ) -> Ref[Checked]:
        return self._inner.check_tokens(call_id, prompt, after, proposal, sampling)


class WrappedJudge(_Wrapped[Judge]):
    """A verifier."""

    def score(
        self,
        call_id: str,
        prompt: Prompt,
        step: Step | Ref[Step],
        criterion: Criterion = "rho",
        reference: Step | Ref[Step] | None = None,
    ) -> Ref[Verdict]:
        return self._inner.score(call_id, prompt, step, criterion, reference)

    def score_chain(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step | Ref[Step]], criterion: Criterion = "rho"
    ) -> Ref[tuple[Verdict, ...]]:
        return self._inner.score_chain(call_id, prompt, chain, criterion)
