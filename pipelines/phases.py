"""Reasoning, then the answer: for requests that bound the reasoning, or whose answer has to follow a JSON schema.

    reasoning  [ schedule ]──┬─ </think> ───────────────────▶ answer  [ schedule ]                 without a schema
                             └─ budget ──▶ closing step ────▶         [ one step of the target's ]   under a schema

The reasoning ends exactly at `</think>`: text of a step after it is dropped, so that the answer follows its own rules
from its first token on. The schedule ends between the phases: none of its calls continues into the answer, so
speculation cannot change text under a schema. Both phases depend on committed steps alone, so FPSR commits what
the sequential schedule commits here too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from dreamr.types import END_OF_THOUGHT, Step, ThoughtEnd, Tokens

if TYPE_CHECKING:
    from pipelines.session import Session
    from pipelines.trace import End


class Reasoning:
    """Splits the chain of thought of one request from its answer, and decides when it has ended."""

    def __init__(self, thought: ThoughtEnd, budget: int | None, *, answers_always: bool) -> None:
        """`budget`: most tokens; None: no limit. `answers_always`: the answer follows even if the model has ended its
        turn within its thought, or repeats itself."""
        self.thought, self.budget = thought, budget
        self._answers_always = answers_always
        self.is_closed = False
        """True when the text has ended its chain of thought."""
        self.ended = False

    def resume(self, committed: Tokens) -> None:
        """Continue after the tokens that an earlier run has committed."""
        self.is_closed = self.thought.token in committed
        out_of_budget = self.budget is not None and len(committed) >= self.budget
        self.ended = self.is_closed or out_of_budget

    def part_of(self, step: Step) -> Step:
        """The part of the step that belongs to the chain of thought."""
        if self.thought.token in step.tokens:
            text = step.text.partition(END_OF_THOUGHT)[0] + END_OF_THOUGHT
            return replace(_first_tokens(step, step.tokens.index(self.thought.token) + 1), text=text)
        if step.closed and self._answers_always:
            return _first_tokens(step, len(step.tokens) - 1)
        return step

    def end_after(self, step: Step, end: End | None) -> End | None:
        """Decide whether the reasoning ends with a step; return the end of the request, `end` by its other rules."""
        self.is_closed = self.thought.token in step.tokens
        in_time = end != "budget"
        out_of_budget = self.budget is not None and len(step.end) >= self.budget
        self.ended = in_time and (self.is_closed or out_of_budget or (self._answers_always and end is not None))
        return None if self.ended else end


def _first_tokens(step: Step, number: int) -> Step:
    parts = {name: getattr(step, name)[:number] for name in ("tokens", "logprobs", "token_texts")}
    return replace(step, **parts, finish="delimiter")


async def run_in_phases(session: Session, schedule: Callable[[Session], Awaitable[None]]) -> None:
    """Run the schedule for the reasoning; then write the answer, under the schema if the request has one.

    Raises Unable when the target's engine does not support it.
    """
    request = session.request
    if request.thinks:
        reasoning = session.recorder.begin_reasoning(await session.thought_end())
        if not reasoning.ended:
            await schedule(session)
        session.begin_answer()
    if session.ended:
        return
    if request.schema is None:
        await schedule(session)
    else:
        await session.commit_target(session.answer_step(), again=session.answer_step)
