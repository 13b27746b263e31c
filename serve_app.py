"""The application that Ray Serve runs: `serve run serve_app:app`, or `serve_app:build` with a configuration file."""

from typing import Any

from dreamr.serve.deployment import build

__all__ = ["build"]


def __getattr__(name: str) -> Any:
    """`app`, built only for those who ask for it."""
    if name == "app":
        return build()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
