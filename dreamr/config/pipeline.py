"""How one request is answered."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dreamr.config.base import Strict

Method = Literal[
    "autoregressive",
    "sequential",
    "fpsr",
    "specreason",
    "lookahead",
    "lookahead_batch",
    "parallel_prefix",
    "token_speculative",
]
"""The schedules, by name."""

VerdictKind = Literal["rho", "digit", "mean_digit", "same", "embedding", "random"]
"""How drafted steps are judged: see `dreamr.types.Criterion`; random is a coin, for comparison."""

NEEDS_OWN_STEPS: frozenset[str] = frozenset({"same", "embedding"})
"""These compare a drafted step with the target's own, which only some methods have for every drafted step."""


class PipelineSettings(Strict):
    """How one request is answered; the command line may change each of them."""

    method: Method = "fpsr"
    alpha: float = Field(default=0.7, ge=0, lt=1)
    """A drafted step is accepted when rho > alpha."""
    window: PositiveInt = 4
    """How many steps the draft may be ahead of the frontier."""
    verdict: VerdictKind | None = None
    """How drafted steps are judged; None: digit for specreason, same for lookahead(_batch), else rho."""
    threshold: float | None = None
    """Of verdicts other than rho, which has alpha; None: 7 for digits, 0.5 for same and random, 0.95 for embedding."""
    first_target_steps: int | None = Field(default=None, ge=0)
    """So many steps at the beginning are the target's; None: 1 for lookahead(_batch), as published, else 0."""
    stop_at_marker: bool = False
    """End at the first step that says `boxed` or `Answer:`, even within the reasoning: published SpecReason does."""
    proposed_tokens: PositiveInt = 5
    """Tokens that the draft proposes at a time in token_speculative."""
    max_tokens: PositiveInt = 8192
    """Budget of one request: the step that reaches it is the last one, and is kept whole."""
    max_step_tokens: PositiveInt = 512
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0
    draft_deadline_s: PositiveFloat = 60.0
    """A drafted step that takes longer counts as lost."""
    verifier_deadline_s: PositiveFloat = 60.0
    target_deadline_s: PositiveFloat = 600.0
    stop_deadline_s: PositiveFloat = 30.0
    """A stopped call that takes longer to end counts as lost."""

    @model_validator(mode="after")
    def _verdict_fits_the_method(self) -> Self:
        if self.verdict in NEEDS_OWN_STEPS and self.method in ("fpsr", "parallel_prefix"):
            raise ValueError(
                f"verdict '{self.verdict}' compares with the target's own step, which method '{self.method}' does not "
                "have for every drafted step: use it with lookahead, sequential or specreason."
            )
        return self
