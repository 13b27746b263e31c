"""Every error that a user may see, and how a command reports one: a sentence on stderr and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

DEBUG_VARIABLE = "DREAMR_DEBUG"
"""Set it to 1 to see the traceback of a failed command."""


class BadInput(ValueError):
    """A command cannot be carried out; the sentence names the option, its value and the way out."""


class ConfigError(ValueError):
    """A configuration is wrong; the sentence names the file, the key, the value and the way out."""


class TooLong(ValueError):
    """Prompt and answer together are longer than the model takes; one sentence with the way out."""


class Unable(ValueError):
    """An engine lacks what a method or a request asks of it; one sentence with the way out."""


class ActorLost(Exception):
    """The actor died, is restarting, or missed its deadline; its unfinished work is lost."""


class NotEnoughResources(RuntimeError):
    """The cluster cannot hold the actors; the sentence says what is needed and what it has."""


class TrainingFailed(RuntimeError):
    """A training run cannot continue; the sentence says why, and how to continue."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, to be quoted in a sentence; its type when it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def reported() -> Iterator[None]:
    """Turn a failure of the block into one sentence on stderr and an exit code.

    The code is 2 for what the user can correct and 1 for the rest. Ctrl-C and a closed pipe pass through.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE) == "1":
            traceback.print_exc()
        print(f"dreamr: {_sentence(error)}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, BadInput | ConfigError | NotEnoughResources) else 1) from error


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | ActorLost | ConnectionError | NotEnoughResources | TrainingFailed):
        return text
    return f"{type(error).__name__}: {text} (set {DEBUG_VARIABLE}=1 to see where)"
