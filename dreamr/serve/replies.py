"""The reply schema: OpenAI's objects, plus the chain of thought and the counts of speculation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length"]


class Speculation(BaseModel):
    """Counts of speculation, summed over the choices. In token_speculative, counts of steps are counts of tokens."""

    num_drafts: int
    """Drafted steps, judged or not."""
    num_judged: int
    num_accepted: int
    num_draft_tokens: int
    num_accepted_tokens: int
    wasted_draft_tokens: int
    wasted_target_tokens: int
    acceptance_rate: float | None
    """Accepted / judged steps; null when nothing was judged."""
    coverage: float
    """Share of the committed steps that the draft wrote."""
    mean_rho: float | None
    """null where drafts are not judged by rho."""
    num_losses: int
    """Losses of actors while the answer was written."""


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int
    """Tokens of the steps that belong to the chain of thought."""
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionTokensDetails
    speculation: Speculation


class SpeculativeDecoding(BaseModel):
    """Acceptance of one answer under vLLM's names, for load tools that read them.

    One `spec step` is one decision on drafted tokens: on a drafted step, which is accepted as a whole or not at all, or
    on the tokens proposed at a time in token_speculative.
    """

    mean_acceptance_length: float
    """1 + accepted tokens per decision, as vLLM computes it."""
    draft_acceptance_rate: float
    """Accepted tokens / drafted tokens, with those that no decision was made on."""
    acceptance_histogram: list[int]
    """Element j: number of decisions that accepted exactly j tokens."""
    num_spec_steps: int
    num_accepted_draft_tokens: int
    num_draft_tokens: int
    num_spec_tokens: int
    """Most tokens of one decision."""
    per_step_accepted: list[int]
    per_step_drafted: list[int]


class RequestMetrics(BaseModel):
    """Times of one answer under vLLM's names. The first token comes with the first step."""

    time_to_first_token_ms: float
    generation_time_ms: float
    queue_time_ms: float
    mean_itl_ms: float | None
    tokens_per_second: float | None
    speculative_decoding: SpeculativeDecoding | None


class StepInfo(BaseModel):
    """Author, verdict and time of a piece of text."""

    index: int
    source: Literal["draft", "target"]
    rho: float | None
    """Verdict of the drafted step at this place; null without one, and where drafts are not judged by rho."""
    accepted: bool | None
    """Whether the drafted step at this place was accepted; null when none was judged."""
    at: float
    """Seconds since work on the answer began."""
    num_tokens: int


class RunInfo(BaseModel):
    """Method, end, times and steps of one answer."""

    method: str
    alpha: float
    window: int
    end: str
    """answered, budget, loop (two equal steps) or enough (a stop string)."""
    wall_s: float
    queued_s: float
    orchestration_s: float
    steps: list[StepInfo]
    timeline: list[dict[str, Any]] | None = None
    """The calls of the actors, where the request asked for them. Verdicts say whether they accepted."""


class Answer(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning: str | None
    reasoning_content: str | None
    refusal: None = None


class TokenLogprob(BaseModel):
    token: str
    """Its text by itself."""
    bytes: list[int] | None
    """UTF-8; null for a part of a character."""
    logprob: float
    top_logprobs: list[None] = []


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob]
    """Every token of the committed steps, those of the chain of thought first."""
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: Answer
    finish_reason: FinishReason
    logprobs: ChoiceLogprobs | None = None
    dreamr: RunInfo


class Completion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    metrics: RequestMetrics | None
    """null for several choices."""


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None
    dreamr: StepInfo | RunInfo | dict[str, Any] | None = None
    """A committed step; a call of an actor; with the last chunk of a choice, its `RunInfo`."""


class Chunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    metrics: RequestMetrics | None = None
    """Sent with the usage; null for several choices."""


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "dreamr"
    methods: list[str]
    actors: dict[str, dict[str, Any]]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    """Most tokens of a prompt and its answer together; 0 when unknown."""
    tokens: list[int]


class Version(BaseModel):
    version: str


class Health(BaseModel):
    status: Literal["ok", "degraded", "unavailable"]
    """degraded: the target answers, but without draft or verifier it writes every step itself."""
    actors: dict[str, bool]
    running: int
    waiting: int


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    error: ErrorBody
