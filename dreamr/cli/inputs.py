"""Checks of everything that a command is given, before anything heavy is imported or started."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from pydantic import ValidationError

from dreamr.actors.types import Prompt
from dreamr.cli.failures import BadInput
from dreamr.config import Config, HFEngineConfig, PipelineSettings, load_config

PICTURES = (".html", ".png")


def read_prompt(question: str, images: Sequence[Path]) -> Prompt:
    """Question and images as a prompt. Raises BadInput."""
    if not question.strip():
        raise BadInput("the question is empty: write it in quotes behind the options.")
    return Prompt(question, tuple(_read_image(path) for path in images))


def _read_image(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"--image {path}: there is no such file; give the path of a PNG, JPEG or WebP file.") from None
    except OSError as error:
        raise BadInput(f"--image {path}: cannot be read ({error.strerror}); give the path of an image file.") from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Image.DecompressionBombError as error:
        raise BadInput(f"--image {path}: has too many pixels; make it smaller.") from error
    except (OSError, SyntaxError, ValueError) as error:  # what PIL's decoders raise for broken files
        raise BadInput(f"--image {path}: is not an image that can be read; give a whole PNG or JPEG file.") from error
    return data


def read_config(path: Path | None, options: Mapping[str, object]) -> Config:
    """The configuration, with the pipeline's settings changed by the options that are not None.

    Raises ConfigError for the file and BadInput for an option.
    """
    config = load_config(path)
    given = {name: value for name, value in options.items() if value is not None}
    try:
        pipeline = PipelineSettings.model_validate(config.pipeline.model_dump() | given)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        option = str(problem["loc"][0]).replace("_", "-")
        reason = problem["msg"].removeprefix("Input ")
        raise BadInput(f"--{option} {problem['input']}: the value {reason}.") from error
    return config.model_copy(update={"pipeline": pipeline})


def with_draft(config: Config, draft: str | None) -> Config:
    """The configuration with another draft model: a folder, hub id or built-in name. Raises BadInput."""
    if draft is None:
        return config
    actor = config.group.draft
    if not isinstance(actor.engine, HFEngineConfig):
        raise BadInput(f"--draft {draft}: the configured draft is of kind '{actor.engine.kind}'; it needs kind 'hf'.")
    try:
        engine = HFEngineConfig.model_validate(actor.engine.model_dump() | {"model": draft})
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise BadInput(f"--draft {draft}: {reason}") from error
    drafter = actor.model_copy(update={"engine": engine})
    return config.model_copy(update={"group": config.group.model_copy(update={"draft": drafter})})


def check_timeline(path: Path | None) -> None:
    """Raises BadInput unless a picture can be written there."""
    if path is not None and path.suffix.lower() not in PICTURES:
        raise BadInput(f"--timeline {path}: the name must end in {' or '.join(PICTURES)}, which chooses the format.")
    check_writable("--timeline", path)


def check_writable(option: str, path: Path | None) -> None:
    """Raises BadInput unless a file can be written there."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise BadInput(f"{option} {path}: there is no folder '{path.parent}'; make it first or choose another.")
    if path.is_dir():
        raise BadInput(f"{option} {path}: this is a folder; give the name of a file in it.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadInput(f"{option} {path}: may not be written; choose another place.")
