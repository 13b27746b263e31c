"""A whole configuration file."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from dreamr.config.base import Strict, parse_strict
from dreamr.config.cluster import ClusterSettings
from dreamr.config.engines import CheckpointConfig, is_missing_folder
from dreamr.config.group import GroupConfig
from dreamr.config.pipeline import PipelineSettings
from dreamr.config.serve import ServeSettings
from dreamr.errors import ConfigError


class Config(Strict):
    """All settings of a command or an endpoint."""

    group: GroupConfig
    pipeline: PipelineSettings = PipelineSettings()
    cluster: ClusterSettings = ClusterSettings()
    serve: ServeSettings = ServeSettings()

    @classmethod
    def parse(cls, text: str, source: str) -> Self:
        """Read YAML text; `source` names it in errors. Raises ConfigError."""
        return parse_strict(cls, text, source)


def load_config(path: str | Path | None = None) -> Config:
    """Read a configuration file; without a path, the built-in pair on this machine's CPU.

    Raises:
        ConfigError: no such file, not YAML, or a value or key that does not fit, in one sentence.
    """
    if path is None:
        text = resources.files("dreamr").joinpath("configs", "embedded.yaml").read_text(encoding="utf-8")
        return Config.parse(text, "embedded.yaml")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; leave it out to use the built-in models.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a configuration file: {error}") from error
    return Config.parse(text, str(path))


NO_FOLDER = "there is no such folder; give a checkpoint folder or a hub id like org/name."


def with_draft(config: Config, draft: str | None) -> Config:
    """The configuration with another draft model: a folder, hub id or built-in name. Raises ConfigError."""
    if draft is None:
        return config
    actor = config.group.draft
    if not isinstance(actor.engine, CheckpointConfig):
        raise ConfigError(
            f"--draft {draft}: the configured draft is of kind '{actor.engine.kind}'; it needs kind 'hf' or 'vllm'."
        )
    try:
        engine = type(actor.engine).model_validate(actor.engine.model_dump() | {"model": draft})
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--draft {draft}: {reason}") from error
    if models_are_here(config) and is_missing_folder(draft):
        raise ConfigError(f"--draft {draft}: {NO_FOLDER}")
    drafter = actor.model_copy(update={"engine": engine})
    return config.model_copy(update={"group": config.group.model_copy(update={"draft": drafter})})


def models_are_here(config: Config) -> bool:
    """Whether the actors run on this machine: the nodes of a cluster may have other folders."""
    return not (config.cluster.address or os.environ.get("RAY_ADDRESS"))
