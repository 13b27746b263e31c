"""`Request` and `Trace`: the input of a schedule, and the record of what it did."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from dreamr.config import PipelineSettings
from dreamr.types import Finish, Prompt, Role, Sampling, Tokens
from pipelines.costs import Decision

Outcome = Literal["committed", "rejected", "stopped", "unused", "lost", "verdict", "prefill"]
"""What became of a piece of work: its step was committed; the draft was rejected by its verdict; it was stopped
early; it was finished but not used (after a rejection or after the end); its actor was lost; it was a verdict; it
read the prompt."""

Phase = Literal["reasoning", "answer"]

End = Literal["answered", "budget", "loop", "enough"]
"""Why a request ended: the model closed its answer; `max_tokens` was reached; two equal steps in a row; `on_commit`
returned True."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, the settings of its schedule, and an id that names its calls."""

    prompt: Prompt
    settings: PipelineSettings = field(default_factory=PipelineSettings)
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    schema: str | None = None
    """A JSON schema, as text, that the answer follows; the chain of thought is free."""
    committed: tuple[CommittedStep, ...] = ()
    """Steps that an earlier run of the request has committed: the answer continues after them, as that run would."""
    thinks: bool = True
    """The text begins inside the chain of thought. Matters for a schema and a thinking budget only."""
    logprobs: bool = False
    """Record the log-probability of every token that is committed."""

    @property
    def has_phases(self) -> bool:
        """Whether reasoning and answer are written one after the other, each under its own rules."""
        return self.schema is not None or (self.thinks and self.settings.thinking_budget is not None)

    def sampling(self, step: int, role: Role) -> Sampling:
        """How step number `step` is sampled by `role`.

        Each has its own seed, so its tokens depend neither on timing nor on other calls. Every step may have
        `max_step_tokens`: when a step is drafted, the lengths of the steps before it may not be known yet.
        """
        settings = self.settings
        sure_above = settings.skip_above if role == "draft" else None
        digest = hashlib.sha256(f"{settings.seed}/{step}/{role}".encode()).digest()
        return Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            min_p=settings.min_p,
            max_tokens=settings.max_step_tokens,
            assisted=settings.assisted,
            seed=int.from_bytes(digest[:4], "big"),
            budget=settings.max_tokens,
            logprobs=self.logprobs or sure_above is not None,
            sure_above=sure_above,
        )


@dataclass(frozen=True, slots=True)
class CommittedStep:
    """One step of the answer, and its author."""

    index: int
    source: Literal["draft", "target"]
    tokens: Tokens
    text: str
    score: float | None
    """Verdict of the drafted step at this position, whether accepted or rejected; None when there was none."""
    at: float
    """Seconds since the request began."""
    finish: Finish = "delimiter"
    phase: Phase | None = None
    """None where reasoning and answer are not written in phases (`Request.has_phases`)."""
    logprobs: tuple[tuple[str, float], ...] = ()
    """Text and log-probability of each token, as its author gave them, where `Request.logprobs` asked for them."""


OnCommit = Callable[[CommittedStep], bool | None]
"""Called with each step the moment it is committed; must not block. True ends the request with this step."""


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of an actor's work on the request's clock (seconds since the request began)."""

    lane: Role
    start: float
    end: float
    outcome: Outcome
    step: int
    """Index of the step that the work was for."""
    num_tokens: int
    score: float | None = None
    num_kept: int = 0
    """Of these tokens, how many became part of the answer."""

    @property
    def number(self) -> str:
        """The step's number from 1 on; empty for work that is for all steps."""
        return "" if self.outcome == "prefill" else str(self.step + 1)


@dataclass(frozen=True, slots=True)
class Trace:
    """One finished request."""

    request_id: str
    method: str
    steps: tuple[CommittedStep, ...]
    end: End
    wall_s: float
    orchestration_s: float
    """Part of `wall_s` in which no model that the pipeline waited for was running."""
    spans: tuple[Span, ...]
    num_drafted: int
    """Drafted steps, whether judged or not. Tokens, like all counts up to `coverage`, in token_speculative."""
    num_judged: int
    """Drafted steps whose verdict decided something: those at the frontier."""
    num_accepted: int
    coverage: float
    """Committed steps that came from the draft / all committed steps."""
    drafted_tokens: int
    wasted_draft_tokens: int
    wasted_target_tokens: int
    num_losses: int = 0
    """How often an actor was lost during the request."""
    num_skipped: int = 0
    """Drafted steps that were committed without a verdict, since the draft was sure of them (`skip_above`)."""
    checks: tuple[tuple[int, int], ...] = ()
    """Per forward of the target that checked proposed tokens, of its assistant or of the draft in token_speculative:
    how many were proposed, and how many of them accepted."""
    salvaged_tokens: int = 0
    """Tokens of rejected drafted steps that the target's own steps begin with: they were not written again."""
    verdict_masses: tuple[float, ...] = ()
    """`Verdict.mass` of the verdicts that have one."""
    decisions: tuple[Decision, ...] = ()
    """Plans that `auto` has chosen, and why."""

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def tokens(self) -> Tokens:
        return tuple(token for step in self.steps for token in step.tokens)

    @property
    def truncated(self) -> bool:
        """Whether the budget of tokens, or a loop, ended the answer."""
        return self.end in ("budget", "loop")

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted drafted steps / drafted steps that got a verdict; None when nothing was judged."""
        return acceptance_rate([self])


def acceptance_rate(traces: Iterable[Trace]) -> float | None:
    """Accepted / judged drafted steps of several requests together; None when nothing was judged."""
    counts = [(trace.num_accepted, trace.num_judged) for trace in traces]
    judged = sum(judged for _, judged in counts)
    return sum(accepted for accepted, _ in counts) / judged if judged else None
