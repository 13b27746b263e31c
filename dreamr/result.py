"""`Result`: an answered question, with its steps, counters and timeline."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dreamr.types import END_OF_THOUGHT, START_OF_THOUGHT
from pipelines.trace import CommittedStep, Trace

_LABEL = re.compile(r"^(final )?answer:\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """An answered question."""

    question: str
    trace: Trace
    """Everything that happened, see `pipelines.trace`."""
    plain: Trace | None = None
    """The same question answered by the target alone, where `compare` asked for it."""

    def __repr__(self) -> str:
        counts = f"acceptance_rate={self.acceptance_rate}, coverage={self.coverage}, speedup={self.speedup}"
        return f"Result(answer={self.answer!r}, steps={len(self.steps)}, wall_s={self.wall_s}, {counts})"

    @property
    def answer(self) -> str | None:
        """The text after the reasoning; None when the text ended before it."""
        return split_answer(self.trace)[1]

    @property
    def reasoning(self) -> str:
        return split_answer(self.trace)[0]

    @property
    def steps(self) -> tuple[CommittedStep, ...]:
        """Committed steps, each with its author (`source`), text, verdict (`score`) and time (`at`)."""
        return self.trace.steps

    @property
    def wall_s(self) -> float:
        return self.trace.wall_s

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / judged drafted steps; None when none was judged."""
        return self.trace.acceptance_rate

    @property
    def coverage(self) -> float:
        """Committed steps that the draft wrote / all committed steps."""
        return self.trace.coverage

    @property
    def wasted_draft_tokens(self) -> int:
        return self.trace.wasted_draft_tokens

    @property
    def wasted_target_tokens(self) -> int:
        return self.trace.wasted_target_tokens

    @property
    def speedup(self) -> float | None:
        """Wall time of the target alone / wall time of this answer; None when nothing was compared."""
        return self.plain.wall_s / self.trace.wall_s if self.plain else None

    def timeline(self, path: str | Path) -> None:
        """Draw the calls of the actors over time; `path` ends in .html or .png."""
        from dreamr.timeline import draw

        draw(self.trace, Path(path))


def split_answer(trace: Trace) -> tuple[str, str | None]:
    """Reasoning and answer. There is no answer when the text ended before its reasoning did.

    A model that marks no reasoning ends its text with the answer: that is the last step.
    """
    reasoning, closed, rest = trace.text.rpartition(END_OF_THOUGHT)
    if not closed:
        if START_OF_THOUGHT in trace.text or trace.end != "answered":
            return trace.text.removeprefix(START_OF_THOUGHT).strip(), None
        reasoning, rest = "".join(step.text for step in trace.steps[:-1]), trace.steps[-1].text
    return reasoning.removeprefix(START_OF_THOUGHT).strip(), _LABEL.sub("", rest.strip()) or None
