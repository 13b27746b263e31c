"""How a command fails: one sentence on stderr, exit code 2 for what the user can correct, 1 for the rest."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from dreamr.actors.types import ActorLost
from dreamr.config import ConfigError

DEBUG_VARIABLE = "DREAMR_DEBUG"


class BadInput(ValueError):
    """Something in the command cannot be done; the sentence names the option, its value and the way out."""


@contextmanager
def reported() -> Iterator[None]:
    """Turn any failure of the block into its sentence and exit code. Ctrl-C and a closed pipe are typer's to handle."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE) == "1":
            traceback.print_exc()
        typer.echo(f"dreamr: {_sentence(error)}", err=True)
        raise typer.Exit(2 if isinstance(error, BadInput | ConfigError) else 1) from error


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | ActorLost | ConnectionError):
        return text
    return f"{type(error).__name__}: {text} (set {DEBUG_VARIABLE}=1 to see where)"
