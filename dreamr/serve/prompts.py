"""From a client's messages to a `Prompt`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dreamr.config.serve import ServeSettings
from dreamr.serve.errors import refused
from dreamr.serve.images import ImageReader
from dreamr.serve.schema import ImagePart, Message, UserMessage
from dreamr.types import Prompt, Turn


async def read_prompt(messages: Sequence[Message], settings: ServeSettings, images: ImageReader) -> Prompt:
    """The conversation; its last message, a user's, is the question. Raises ApiError (400)."""
    last = messages[-1]
    if not isinstance(last, UserMessage):
        raise refused("messages", "the last message must be the user's.")
    _check_sizes(messages, settings)
    turns = [Turn(_role(message), _text(message), len(_image_urls(message))) for message in messages]
    if not turns[-1].text.strip():
        raise refused(f"messages.{len(messages) - 1}.content", "the last message asks nothing: put a text into it.")
    files = [
        await images.read(url, f"messages.{number}.content.{part}.image_url.url")
        for number, message in enumerate(messages)
        for part, url in _image_urls(message)
    ]
    return Prompt(turns[-1].text, tuple(files), tuple(turns[:-1]))


def _check_sizes(messages: Sequence[Message], settings: ServeSettings) -> None:
    if len(messages) > settings.max_messages:
        raise refused("messages", f"{len(messages)} messages are too many; at most {settings.max_messages} are taken.")
    texts = sum(len(_text(message)) for message in messages)
    if texts > settings.max_text_chars:
        raise refused("messages", f"{texts} characters are too many; at most {settings.max_text_chars} are taken.")
    num_images = sum(len(_image_urls(message)) for message in messages)
    if num_images > settings.images.max_images:
        raise refused("messages", f"{num_images} images are too many; at most {settings.images.max_images} are taken.")


def _role(message: Message) -> Literal["system", "user", "assistant"]:
    return "system" if message.role == "developer" else message.role


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content or () if not isinstance(part, ImagePart))


def _image_urls(message: Message) -> list[tuple[int, str]]:
    """(number of the part, URL)"""
    if not isinstance(message, UserMessage) or isinstance(message.content, str):
        return []
    return [(number, part.image_url.url) for number, part in enumerate(message.content) if isinstance(part, ImagePart)]
