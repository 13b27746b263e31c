"""A running endpoint as commands use it, and `dreamr ask --url`: no Ray is started and no model loaded."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dreamr.cli.inputs import read_prompt
from dreamr.cli.terminal import percent, print_step, printable
from dreamr.errors import BadInput
from dreamr.tasks.images import data_url
from dreamr.types import Prompt
from pipelines.trace import CommittedStep

if TYPE_CHECKING:
    import openai
    from openai import Stream
    from openai.types.chat import ChatCompletionChunk

RETRIES = 3
"""The request has an Idempotency-Key, so a retry continues the answer."""
CONNECT_DEADLINE_S, ANSWER_DEADLINE_S = 10.0, 600.0
INCOMPLETE = "incomplete: the answer reached its budget, or began to repeat itself"


@contextmanager
def client_of(url: str) -> Iterator[openai.OpenAI]:
    """A client of the endpoint. Raises BadInput without the package openai."""
    try:
        import openai
    except ImportError as error:
        raise BadInput('--url needs the package openai: pip install "dreamr[eval]"') from error
    with openai.OpenAI(
        base_url=f"{url.rstrip('/').removesuffix('/v1')}/v1",
        api_key=os.environ.get("OPENAI_API_KEY") or "none",
        timeout=openai.Timeout(ANSWER_DEADLINE_S, connect=CONNECT_DEADLINE_S),
        max_retries=RETRIES,
    ) as client:
        yield client


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn errors of the client into sentences: BadInput for what the endpoint refuses, else ConnectionError."""
    import openai

    try:
        yield
    except openai.AuthenticationError as error:
        raise BadInput(f"--url {url}: the API key is refused; set OPENAI_API_KEY.") from error
    except openai.APIStatusError as error:
        said = error.body.get("message") if isinstance(error.body, dict) else None
        raise BadInput(f"--url {url}: {said or error.message}") from error
    except openai.OpenAIError as error:
        raise ConnectionError(f"--url {url}: {error}; check the address, and whether the endpoint runs.") from error


def stream_of(
    client: openai.OpenAI,
    model: str,
    messages: Sequence[Any],
    settings: Mapping[str, object],
    headers: Mapping[str, str] | None = None,
) -> Stream[ChatCompletionChunk]:
    """Ask for one answer. Settings that are None are left to the endpoint."""
    return client.chat.completions.create(
        model=model,
        messages=messages,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"Idempotency-Key": uuid.uuid4().hex} | dict(headers or {}),
        extra_body={name: value for name, value in settings.items() if value is not None},
    )


def user_message(prompt: Prompt) -> dict[str, Any]:
    """Images and question as a message."""
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in prompt.images]
    parts.append({"type": "text", "text": prompt.question})
    return {"role": "user", "content": parts}


@dataclass(slots=True)
class _Reply:
    model: str
    reasoning: str = ""
    content: str = ""
    finish_reason: str | None = None
    run: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)


def ask_endpoint(
    url: str, question: str, images: Sequence[Path], settings: Mapping[str, object], *, as_json: bool
) -> None:
    """Run the command. Raises BadInput for what the endpoint refuses, ConnectionError when none answers."""
    prompt, screen = read_prompt(question, images), Console(stderr=as_json)
    with client_of(url) as client, explained(url):
        reply = _Reply(client.models.list().data[0].id)
        for chunk in stream_of(client, reply.model, [user_message(prompt)], settings):
            _read(chunk, reply, screen)
    if as_json:
        document = {
            "question": question,
            "images": [str(path) for path in images],
            "url": url,
            "model": reply.model,
            "answer": reply.content.strip() or None,
            "reasoning": reply.reasoning.strip(),
            "finish_reason": reply.finish_reason,
            "usage": reply.usage,
            "run": reply.run,
        }
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        _print_answer(screen, reply)


def _read(chunk: ChatCompletionChunk, reply: _Reply, screen: Console) -> None:
    if chunk.usage:
        reply.usage = chunk.usage.model_dump(exclude_none=True)
    for choice in chunk.choices:
        said = getattr(choice.delta, "reasoning", None) or ""
        reply.reasoning += said
        reply.content += choice.delta.content or ""
        reply.finish_reason = choice.finish_reason or reply.finish_reason
        origin = getattr(choice, "dreamr", None) or {}
        if "source" in origin:
            text = said + (choice.delta.content or "")
            print_step(
                screen, CommittedStep(origin["index"], origin["source"], (), text, origin.get("rho"), origin["at"])
            )
        elif "steps" in origin:
            reply.run = origin


def _print_answer(console: Console, reply: _Reply) -> None:
    console.print()
    if reply.finish_reason == "length":
        console.print(Text(INCOMPLETE, "yellow"))
    console.print(Text("answer  ", "bold").append(printable(reply.content.strip() or "none"), "bold green"))
    console.print()
    counts = Table.grid(padding=(0, 2))
    counts.add_column(style="dim")
    counts.add_column()
    counts.add_row("model", reply.model)
    if reply.run:
        counts.add_row("wall time", f"{reply.run['wall_s']:.3f} s by {reply.run['method']}")
    if speculation := reply.usage.get("speculation"):
        accepted = f"{speculation['num_accepted']} of {speculation['num_judged']} judged drafted steps"
        counts.add_row("acceptance", f"{percent(speculation.get('acceptance_rate'))}, {accepted}")
    console.print(counts)
