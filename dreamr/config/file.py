"""A whole configuration file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Self

from dreamr.config.base import ConfigError, Strict, parse_strict
from dreamr.config.cluster import ClusterSettings
from dreamr.config.group import GroupConfig
from dreamr.config.pipeline import PipelineSettings
from dreamr.serve.settings import ServeSettings


class Config(Strict):
    """Everything that a run needs."""

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
