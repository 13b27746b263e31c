"""dreamr: speculative reasoning on Ray (DREAM-R, arXiv 2605.28678).

    import dreamr

    with dreamr.Reasoner() as reasoner:
        print(reasoner.ask("What is the result?", images="drawing.png").answer)

The public names are imported when they are used, so that `import dreamr` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamr.api import Reasoner
    from dreamr.config import Config, PipelineSettings, load_config
    from dreamr.errors import ActorLost, ConfigError, NotEnoughResources, TooLong
    from dreamr.result import Result
    from dreamr.types import Prompt
    from pipelines.trace import CommittedStep, Trace

    __version__: str

_MODULES = {
    "ActorLost": "dreamr.errors",
    "CommittedStep": "pipelines.trace",
    "Config": "dreamr.config",
    "ConfigError": "dreamr.errors",
    "NotEnoughResources": "dreamr.errors",
    "PipelineSettings": "dreamr.config",
    "Prompt": "dreamr.types",
    "Reasoner": "dreamr.api",
    "Result": "dreamr.result",
    "TooLong": "dreamr.errors",
    "Trace": "pipelines.trace",
    "load_config": "dreamr.config",
}

__all__ = [
    "ActorLost",
    "CommittedStep",
    "Config",
    "ConfigError",
    "NotEnoughResources",
    "PipelineSettings",
    "Prompt",
    "Reasoner",
    "Result",
    "TooLong",
    "Trace",
    "load_config",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _installed_version()
    if name not in _MODULES:
        raise AttributeError(f"module 'dreamr' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dreamr")
    except PackageNotFoundError:
        return "0+not.installed"


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
