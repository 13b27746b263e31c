"""Checks of all options and files of a command, before anything heavy is imported or started."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from dreamr.api import make_prompt
from dreamr.config import (
    NO_FOLDER,
    CheckpointConfig,
    Config,
    PipelineSettings,
    is_missing_folder,
    load_config,
    models_are_here,
)
from dreamr.errors import BadInput, ConfigError
from dreamr.timeline import FORMATS
from dreamr.types import Prompt
from pipelines import check


def read_prompt(question: str, images: Sequence[Path]) -> Prompt:
    """Question and images as a prompt. Raises BadInput."""
    if not question.strip():
        raise BadInput("the question is empty: write it in quotes after the options.")
    try:
        return make_prompt(question, images)
    except ValueError as error:
        raise BadInput(f"--image {error}") from error


def read_config(path: Path | None, options: Mapping[str, object]) -> Config:
    """The configuration, with the pipeline's settings changed by the options that are not None.

    Raises ConfigError for the file and BadInput for an option.
    """
    config = load_config(path)
    given = {name: value for name, value in options.items() if value is not None}
    try:
        pipeline = PipelineSettings.model_validate(config.pipeline.model_dump(exclude_unset=True) | given)
    except ValidationError as error:
        raise BadInput(_refused_option(error)) from error
    try:
        check(pipeline)
    except ConfigError as error:  # an unknown name, or settings that contradict each other
        named = " ".join(f"{_option(name)} {value}" for name, value in given.items())
        raise BadInput(f"{named}: {error}" if named else str(error)) from error
    return config.model_copy(update={"pipeline": pipeline})


def _refused_option(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    reason = problem["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    return f"{_option(str(problem['loc'][0]))} {problem['input']}: the value {reason}."


def _option(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def check_models(config: Config) -> None:
    """Raises BadInput when an actor's checkpoint folder does not exist."""
    for role, actor in config.group.actors().items():
        engine = actor.engine
        if isinstance(engine, CheckpointConfig) and models_are_here(config) and is_missing_folder(engine.model):
            raise BadInput(f"group.{role}.engine.model = '{engine.model}': {NO_FOLDER}")


def check_timeline(path: Path | None) -> None:
    """Raises BadInput unless a timeline can be written there."""
    if path is not None:
        check_picture("--timeline", path)


def check_picture(option: str, path: Path) -> None:
    """Raises BadInput unless a picture can be written there."""
    if path.suffix.lower() not in FORMATS:
        raise BadInput(f"{option} {path}: the name must end in {' or '.join(FORMATS)}, which chooses the format.")
    check_writable(option, path)


def check_writable(option: str, path: Path | None) -> None:
    """Raises BadInput unless a file can be written there."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise BadInput(f"{option} {path}: there is no folder '{path.parent}'; make it first or choose another.")
    if path.is_dir():
        raise BadInput(f"{option} {path}: this is a folder; give the name of a file in it.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadInput(f"{option} {path}: there is no permission to write it; choose another place.")


def make_folder(option: str, folder: Path, file: str) -> None:
    """Make a folder for results unless it exists. Raises BadInput unless `file` can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{option} {folder}: cannot be made ({error.strerror}); choose another folder.") from error
    check_writable(option, folder / file)


def check_at_least_one(option: str, number: int | None) -> None:
    """Raises BadInput for a number below 1."""
    if number is not None and number < 1:
        raise BadInput(f"{option} {number}: at least one is needed.")
