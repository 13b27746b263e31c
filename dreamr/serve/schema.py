"""The request schema of `/v1/chat/completions`. Accepted fields are used; all others are refused by name.

OpenAI's fields that change nothing in their neutral value (`tools: []`, `logprobs: false`) are accepted in that
value only. Those that never change an answer here (`Hints`) are accepted in every value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pipelines import SCHEDULES

INT64 = 2**63


def _known_method(name: str) -> str:
    if name not in SCHEDULES:
        raise ValueError(f"choose one of {', '.join(SCHEDULES)}")
    return name


MethodName = Annotated[str, AfterValidator(_known_method), Field(json_schema_extra={"enum": list(SCHEDULES)})]


ONE_ERROR = Field(fail_fast=True)
"""Reports only the first error of a list: reporting all errors of a long one takes seconds."""


class Input(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TextPart(Input):
    type: Literal["text"]
    text: str


class ImageUrl(Input):
    url: str
    """A data URL, or an http(s) URL of a host that the server allows."""
    detail: Literal["auto"] | None = None


class ImagePart(Input):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class SystemMessage(Input):
    role: Literal["system", "developer"]
    content: str | Annotated[list[TextPart], ONE_ERROR]


class UserMessage(Input):
    role: Literal["user"]
    content: str | Annotated[list[Part], ONE_ERROR]
    """In each message the model sees the images first, then the text."""


class AssistantMessage(Input):
    """An earlier answer. Its chain of thought is dropped, as the models' own chat templates do."""

    role: Literal["assistant"]
    content: str | Annotated[list[TextPart], ONE_ERROR] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    # Fields of replies, which clients send back.
    refusal: None = None
    annotations: Annotated[list[None], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[None], Field(max_length=0)] | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(Input):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class PlainText(Input):
    type: Literal["text"]


class JsonObject(Input):
    type: Literal["json_object"]


class JsonSchema(Input):
    name: str = Field(max_length=64)
    document: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None
    """Without effect: the answer always follows the schema."""


class JsonSchemaFormat(Input):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchemaFormat, Field(discriminator="type")]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class ChatTemplateOptions(Input):
    enable_thinking: bool | None = None


Nothing = Annotated[list[None], Field(max_length=0)]
Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[float, Field(ge=1, le=1)]


StopText = Annotated[str, Field(min_length=1)]

_AS_LIST = BeforeValidator(
    lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=StopText | list[StopText]
)


class _NeutralOnly(Input):
    """Fields that are accepted in the value that changes nothing, and in no other."""

    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    repetition_penalty: One | None = None
    logit_bias: Annotated[dict[str, None], Field(max_length=0)] | None = None
    top_logprobs: Zero | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Nothing | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None


NEUTRAL_ONLY = frozenset(_NeutralOnly.model_fields)


class Hints(Input):
    """Fields that change no answer here: hints for caches, bookkeeping and tools."""

    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = Field(default=None, max_length=256)
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    safety_identifier: str | None = Field(default=None, max_length=256)
    verbosity: Literal["low", "medium", "high"] | None = None
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = None


class ChatRequest(_NeutralOnly, Hints):
    model: str
    messages: Annotated[list[Message], Field(min_length=1), ONE_ERROR]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    """Older name of `max_completion_tokens`. The answer is cut there, or where the model's context ends."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    """0 and -1: all tokens."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-INT64, lt=INT64)
    stop: Annotated[list[StopText], Field(max_length=4), _AS_LIST] | None = None
    """Ends the answer; not looked for in the chain of thought."""
    n: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    """The log-probability of every token, of the chain of thought as well, by the model that wrote the token."""
    response_format: ResponseFormat | None = None
    """The answer, not the chain of thought, follows the schema."""
    reasoning_effort: Effort | None = None
    thinking_token_budget: int | None = Field(default=None, ge=0)
    """Most tokens of the chain of thought: then it is closed and the answer is written."""
    enable_thinking: bool | None = None
    """False: a thinking budget of 0."""
    chat_template_kwargs: ChatTemplateOptions | None = None
    user: str | None = Field(default=None, max_length=256)
    """Written to the log with the request id."""

    method: MethodName | None = None
    alpha: float | None = Field(default=None, ge=0, lt=1)
    """A drafted step is accepted when rho > alpha."""
    window: int | None = Field(default=None, ge=1)
    """How many steps the draft may be ahead."""
    timeline: bool = False
    """With `stream`: send the actors' calls as they happen; without: the whole timeline with the answer."""
    cold: bool = False
    """Answer from cold prefix caches, so that two methods can be compared on the same images."""


class TokenizeRequest(Input):
    """A conversation or a text, to be split into tokens; field names as in vLLM."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1), ONE_ERROR] | None = None
    prompt: str | None = None
    add_special_tokens: Literal[False] | None = None
    add_generation_prompt: Literal[True] | None = None
    return_token_strs: Literal[False] | None = None
