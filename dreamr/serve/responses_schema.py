"""The request schema of `/v1/responses`, and its conversion to a chat request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from dreamr.serve.errors import refused
from dreamr.serve.schema import (
    INT64,
    ONE_ERROR,
    ChatRequest,
    Effort,
    Hints,
    Input,
    JsonObject,
    MethodName,
    Nothing,
    PlainText,
    Zero,
)


class InputText(Input):
    type: Literal["input_text"]
    text: str


class InputImage(Input):
    type: Literal["input_image"]
    image_url: str
    """A data URL, or an http(s) URL of a host that the server allows."""
    detail: Literal["auto"] | None = None


class OutputText(Input):
    type: Literal["output_text"]
    text: str
    annotations: Nothing | None = None
    logprobs: Nothing | None = None


Part = Annotated[InputText | InputImage | OutputText, Field(discriminator="type")]


class MessageItem(Input):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[Part], ONE_ERROR]
    id: str | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    phase: str | None = None


class ReasoningItem(Input):
    """The chain of thought of an earlier answer, which is dropped."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


def _kind_of(item: object) -> str:
    return str(item.get("type", "message")) if isinstance(item, dict) else "message"


Item = Annotated[
    Annotated[MessageItem, Tag("message")] | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind_of, "item_type", "type must be one of 'message', 'reasoning'"),
]


class SchemaFormat(Input):
    type: Literal["json_schema"]
    name: str = Field(max_length=64)
    document: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextOptions(Input):
    format: Annotated[PlainText | JsonObject | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(Input):
    effort: Effort | None = None
    summary: None = None
    generate_summary: None = None


class StreamOptions(Input):
    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(Hints):
    model: str
    input: str | Annotated[list[Item], Field(min_length=1), ONE_ERROR]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    user: str | None = Field(default=None, max_length=256)

    # Accepted in the value that changes nothing: nothing is stored, and there are no tools.
    store: Literal[False] | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    include: Nothing | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    previous_response_id: None = None
    conversation: None = None
    max_tool_calls: None = None
    top_logprobs: Zero | None = None
    service_tier: Literal["auto", "default"] | None = None

    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-INT64, lt=INT64)
    thinking_token_budget: int | None = Field(default=None, ge=0)
    method: MethodName | None = None
    alpha: float | None = Field(default=None, ge=0, lt=1)
    window: int | None = Field(default=None, ge=1)

    def as_chat(self) -> ChatRequest:
        """Convert to a request of `/v1/chat/completions`. Raises ApiError (400)."""
        same = ("model", "temperature", "top_p", "top_k", "min_p", "seed", "thinking_token_budget", "user")
        fields = {name: getattr(self, name) for name in (*same, "method", "alpha", "window")}
        return ChatRequest.model_validate(
            fields
            | {
                "messages": self._messages(),
                "max_completion_tokens": self.max_output_tokens,
                "response_format": _format(self.text),
                "reasoning_effort": self.reasoning and self.reasoning.effort,
            }
        )

    def _messages(self) -> list[dict[str, Any]]:
        first = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            return [*first, {"role": "user", "content": self.input}]
        items = [_message(item, number) for number, item in enumerate(self.input) if isinstance(item, MessageItem)]
        if not items:
            raise refused("input", "the input holds no message: put a user message at its end.")
        return [*first, *items]


def _message(item: MessageItem, number: int) -> dict[str, Any]:
    if isinstance(item.content, str):
        return {"role": item.role, "content": item.content}
    parts: list[dict[str, Any]] = []
    for place, part in enumerate(item.content):
        if isinstance(part, InputImage):
            if item.role != "user":
                raise refused(f"input.{number}.content.{place}", "only messages of the user may show images.")
            parts.append({"type": "image_url", "image_url": {"url": part.image_url}})
        else:
            parts.append({"type": "text", "text": part.text})
    return {"role": item.role, "content": parts}


def _format(text: TextOptions | None) -> dict[str, Any] | None:
    match text and text.format:
        case SchemaFormat() as asked:
            return {"type": "json_schema", "json_schema": {"name": asked.name, "schema": asked.document}}
        case JsonObject():
            return {"type": "json_object"}
        case _:
            return None
