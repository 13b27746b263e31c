"""What a client may send to `/v1/chat/completions`. Nothing that is accepted is ignored: the rest is refused by name.

Fields of OpenAI's that say nothing in their neutral value (`tools: []`, `logprobs: false`) are accepted in that value.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pipelines import SCHEDULES

INT64 = 2**63


def _known_method(name: str) -> str:
    if name not in SCHEDULES:
        raise ValueError(f"choose one of {', '.join(SCHEDULES)}")
    return name


MethodName = Annotated[str, AfterValidator(_known_method), Field(json_schema_extra={"enum": list(SCHEDULES)})]


_ONE_ERROR = Field(fail_fast=True)
"""Of a list of junk, report the first error only: reporting all of them takes seconds."""


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TextPart(_Input):
    type: Literal["text"]
    text: str


class ImageUrl(_Input):
    url: str
    """A data URL, or an http(s) URL of a host that the server allows."""
    detail: Literal["auto"] | None = None


class ImagePart(_Input):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class SystemMessage(_Input):
    role: Literal["system", "developer"]
    content: str | Annotated[list[TextPart], _ONE_ERROR]


class UserMessage(_Input):
    role: Literal["user"]
    content: str | Annotated[list[Part], _ONE_ERROR]
    """In each message the model sees the images first, then the text."""


class AssistantMessage(_Input):
    """An answer of before. Its chain of thought is dropped, as the models' own chat templates do."""

    role: Literal["assistant"]
    content: str | Annotated[list[TextPart], _ONE_ERROR] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    # What clients send back of a message that they were sent.
    refusal: None = None
    annotations: Annotated[list[None], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[None], Field(max_length=0)] | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(_Input):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class PlainText(_Input):
    type: Literal["text"]


Nothing = Annotated[list[None], Field(max_length=0)]
Zero = Annotated[float, Field(ge=0, le=0)]


StopText = Annotated[str, Field(min_length=1)]

_AS_LIST = BeforeValidator(
    lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=StopText | list[StopText]
)


class _NeutralOnly(_Input):
    """Fields of OpenAI's that are understood in the value that changes nothing, and in no other."""

    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, None], Field(max_length=0)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Zero | None = None
    response_format: PlainText | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Nothing | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    store: Literal[False] | None = None
    metadata: Annotated[dict[str, None], Field(max_length=0)] | None = None
    service_tier: Literal["auto", "default"] | None = None


NEUTRAL_ONLY = frozenset(_NeutralOnly.model_fields)


class ChatRequest(_NeutralOnly):
    model: str
    messages: Annotated[list[Message], Field(min_length=1), _ONE_ERROR]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    """Older name of `max_completion_tokens`. The answer is cut there, or where the model's context ends."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-INT64, lt=INT64)
    stop: Annotated[list[StopText], Field(max_length=4), _AS_LIST] | None = None
    """Ends the answer; not looked for in the chain of thought."""
    n: int | None = Field(default=None, ge=1)
    user: str | None = Field(default=None, max_length=256)
    """Written to the log beside the request id."""

    method: MethodName | None = None
    alpha: float | None = Field(default=None, ge=0, lt=1)
    """A drafted step is accepted when rho > alpha."""
    window: int | None = Field(default=None, ge=1)
    """How many steps the draft may be ahead."""
    timeline: bool = False
    """With `stream`: also tell what the actors do, as it happens; without: the whole timeline with the answer."""
    cold: bool = False
    """Answer from cold prefix caches, so that two methods can be compared on the same images."""
