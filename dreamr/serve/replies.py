"""What the endpoint sends: OpenAI's objects, plus the chain of thought and the counts of speculation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length"]


class Speculation(BaseModel):
    """What speculation did; sums over the choices. In token_speculative, counts of steps are counts of tokens."""

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
    """How often an actor was lost meanwhile."""


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


class StepInfo(BaseModel):
    """Where a piece of text comes from."""

    index: int
    source: Literal["draft", "target"]
    rho: float | None
    """Verdict of the drafted step at this place; null without one, and where drafts are not judged by rho."""
    accepted: bool | None
    """Whether the drafted step at this place was; null when none was judged."""
    at: float
    """Seconds since work on the answer began."""
    num_tokens: int


class RunInfo(BaseModel):
    """How an answer came about."""

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
    """What each actor did when, where the request asked for it. Verdicts say whether they accepted."""


class Answer(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning: str | None
    reasoning_content: str | None
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: Answer
    finish_reason: FinishReason
    logprobs: None = None
    dreamr: RunInfo


class Completion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    dreamr: StepInfo | RunInfo | dict[str, Any] | None = None
    """A step's origin; a piece of an actor's work; with the last chunk of a choice, how it came about."""


class Chunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


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
