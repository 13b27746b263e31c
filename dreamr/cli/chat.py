"""`dreamr chat`: a conversation with a running endpoint in the terminal.

line ─▶ /image, /reset, /exit
     └▶ message ─▶ endpoint ─▶ reasoning (dimmed), answer ─▶ both messages join the conversation
                                 └ Ctrl-C, or an error: the message does not join; its images wait for the next one
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from dreamr.cli.endpoint import INCOMPLETE, client_of, explained, stream_of, user_message
from dreamr.cli.terminal import printable
from dreamr.tasks.images import read_image
from dreamr.types import Prompt

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletionChunk

HELP = (
    "/image PATH adds an image to the next message, /reset begins a new conversation, /exit ends; Ctrl-C ends an answer"
)
PROMPT = "> "


class Conversation:
    """The messages so far, and the images of the next one."""

    def __init__(
        self, client: openai.OpenAI, url: str, model: str, settings: Mapping[str, object], screen: Console
    ) -> None:
        self._client, self._url, self._model, self._settings = client, url, model, settings
        self._screen = screen
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.messages: list[dict[str, Any]] = []
        self.images: list[bytes] = []
        # Requests with one id go to the group of actors that has read the earlier messages.
        self._headers = {"X-Session-ID": uuid.uuid4().hex}

    def add_image(self, path: Path) -> None:
        """Raises ValueError when it cannot be read."""
        self.images.append(read_image(path))

    def ask(self, question: str) -> None:
        """Print the answer, then add question and answer. Raises BadInput, ConnectionError, KeyboardInterrupt."""
        asked = user_message(Prompt(question, tuple(self.images)))
        messages = [*self.messages, asked]
        with (
            explained(self._url),
            stream_of(self._client, self._model, messages, self._settings, self._headers) as chunks,
        ):
            answer = self._print_answer(chunks)
        self.messages += [asked, {"role": "assistant", "content": answer}]
        self.images = []

    def _print_answer(self, chunks: Iterable[ChatCompletionChunk]) -> str:
        answer, finish_reason, has_reasoned = "", None, False
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            if reasoning := getattr(choice.delta, "reasoning", None):
                has_reasoned = True
                self._print(reasoning, "dim")
            piece = choice.delta.content or ""
            if not answer and (piece := piece.lstrip()) and has_reasoned:
                self._screen.print()
            self._print(piece)
            answer += piece
            finish_reason = choice.finish_reason or finish_reason
        self._screen.print()
        if finish_reason is None:
            raise ConnectionError(f"--url {self._url}: the connection ended before the answer did; ask again.")
        if finish_reason == "length":
            self._screen.print(Text(INCOMPLETE, "yellow"))
        return answer.rstrip()

    def _print(self, text: str, style: str = "") -> None:
        self._screen.print(Text(printable(text), style), end="", soft_wrap=True)


def chat(url: str, settings: Mapping[str, object]) -> None:
    """Run the command. Raises BadInput for what the endpoint refuses, ConnectionError when none answers."""
    screen = Console()
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # `input` has history and editing then
    with client_of(url) as client:
        with explained(url):
            model = client.models.list().data[0].id
        screen.print(Text(f"{model} on {url}. {HELP}.", "dim"))
        conversation = Conversation(client, url, model, settings, screen)
        while (line := _line()) is not None:
            try:
                _handle(line, conversation, screen)
            except (ValueError, ConnectionError) as error:
                screen.print(Text(str(error), "yellow"))
            except KeyboardInterrupt:
                screen.print(Text("\nstopped: this message is not part of the conversation", "yellow"))


def _line() -> str | None:
    """The next line that is not empty; None at the end of the conversation."""
    while True:
        try:
            line = input(PROMPT).strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            continue
        if line == "/exit":
            return None
        if line:
            return line


def _handle(line: str, conversation: Conversation, screen: Console) -> None:
    command, _, argument = line.partition(" ")
    match command:
        case "/image":
            conversation.add_image(Path(argument.strip().strip("'\"")).expanduser())
            screen.print(Text(f"{len(conversation.images)} in the next message", "dim"))
        case "/reset":
            conversation.reset()
            screen.print(Text("a new conversation", "dim"))
        case "/help":
            screen.print(Text(HELP, "dim"))
        case _ if command.startswith("/") and "/" not in command[1:]:
            raise ValueError(f"{command} is no command: {HELP}.")
        case _:
            conversation.ask(line)
