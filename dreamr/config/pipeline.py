"""How one request is answered."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, PositiveFloat, PositiveInt

from dreamr.config.base import Strict


class PipelineSettings(Strict):
    """How one request is answered; the command line may change each of them."""

    method: str = "fpsr"
    """A schedule: a key of `pipelines.SCHEDULES`."""
    alpha: float = Field(default=0.7, ge=0, lt=1)
    """A drafted step is accepted when rho > alpha."""
    window: PositiveInt | None = None
    """How many steps the draft may be ahead of the frontier; None: the method's default."""
    verdict: str | None = None
    """How drafted steps are judged, a key of `pipelines.verification.VERDICTS`; None: the method's default."""
    threshold: float | None = None
    """Of verdicts other than rho, which has alpha; None: 7 for digits, 0.5 for same and random, 0.95 for embedding."""
    skip_above: float | None = Field(default=None, le=0)
    """A drafted step is accepted without a verdict when the log-probability of its least likely token is above this;
    `dreamr calibrate` finds a value for a given risk. None: every step is judged."""
    first_target_steps: int | None = Field(default=None, ge=0)
    """Number of first steps that the target always writes; None: 1 for lookahead(_batch), as published, else 0."""
    stop_at_marker: bool = False
    """End at the first step that says `boxed` or `Answer:`, even within the reasoning: published SpecReason does."""
    proposed_tokens: PositiveInt = 5
    """Tokens that the draft proposes at a time in token_speculative."""
    assisted: bool = True
    """Whether an assistant, where the target has one, proposes the tokens of its steps. Changes no greedy token."""
    max_tokens: PositiveInt = 8192
    """Budget of one answer: the step that reaches it is cut there and is the last one."""
    max_step_tokens: PositiveInt = 512
    thinking_budget: int | None = Field(default=None, ge=0)
    """Most tokens of the chain of thought: then it is closed and the answer is written; None: no limit but max_tokens.
    For models that think, with `</think>` as one token."""
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """Only so many of the most likely tokens; 0: all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Only tokens at least so likely, relative to the most likely one."""
    recommended_sampling: bool = True
    """`ask`, `Reasoner` and the endpoint: where temperature, top_p, top_k or min_p is not set here, use the value that
    the target's checkpoint recommends in its generation_config.json. Bench and evaluation are greedy unless set."""
    seed: int = 0
    draft_deadline_s: PositiveFloat = 60.0
    """A drafted step is lost when its actor makes no progress for so long; the others likewise."""
    verifier_deadline_s: PositiveFloat = 60.0
    target_deadline_s: PositiveFloat = 600.0
    stop_deadline_s: PositiveFloat = 30.0
    """The same for stopped calls, at the end of a request."""

    def with_recommended(self, recommended: Mapping[str, float]) -> PipelineSettings:
        """These settings, with the checkpoint's recommended sampling where none was set."""
        if not self.recommended_sampling:
            return self
        return self.model_copy(update={k: v for k, v in recommended.items() if k not in self.model_fields_set})

    @property
    def warm_up_tokens(self) -> int:
        """Budget of an answer that only warms up: enough for every kind of call to be made once."""
        return min(self.max_tokens, 256)
