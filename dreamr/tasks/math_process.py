"""Comparing mathematical expressions by math-verify, in a separate process.

    compare_expressions ── one JSON line ──▶ process: parse both, compare          the first comparison starts it
                        ◀── one JSON line ── or it is ended by its limits           and so does the next after an end

The expressions come from models, and sympy may compute on one of them for ever, in C code that no signal handler of
Python interrupts. So the limits on time and memory are the kernel's, on a process. math-verify's own, by SIGALRM, work
in main threads only; these work in any thread and in Ray actors. The process is started as a file and does not import
this package.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

CPU_SECONDS = 3
"""Most computing for one comparison."""
MEMORY_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two expressions compare; if that is too hard to compute, they are not equal and have no values."""

    equal: bool = False
    values: tuple[float | None, float | None] = (None, None)
    """Their numeric values."""


@lru_cache(maxsize=4096)
def compare_expressions(expected: str, given: str) -> Comparison:
    """Compare two expressions in LaTeX or plain notation. Raises nothing: one that is too hard is not equal."""
    return _process.compare(expected, given)


class _MathProcess:
    """Started when needed; calls from several threads take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def compare(self, expected: str, given: str) -> Comparison:
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps([expected, given]) + "\n")
                process.stdin.flush()
                reply = process.stdout.readline()
            except BrokenPipeError:
                reply = ""
            if not reply:  # the kernel has ended it
                process.wait()
                self._process = None
                return Comparison()
        found = json.loads(reply)
        return Comparison(found["equal"], (found["values"][0], found["values"][1]))

    def _running(self) -> subprocess.Popen[str]:
        # A forked process must not share the pipes of its parent.
        if self._process is None or self._process.poll() is not None or self._owner != os.getpid():
            if importlib.util.find_spec("math_verify") is None:
                raise RuntimeError("the package 'math-verify' is not installed: pip install math-verify")
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
            )  # fmt: skip
        return self._process


_process = _MathProcess()
os.register_at_fork(after_in_child=lambda: globals().update(_process=_MathProcess()))


def _serve(lines: IO[str], replies: IO[str]) -> None:
    """The other process: one comparison per line, until the input ends."""
    import resource

    import math_verify  # noqa: F401  # not within the limit of the first comparison

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    for line in lines:
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + CPU_SECONDS, most))
        replies.write(json.dumps(_compare(*json.loads(line))) + "\n")
        replies.flush()


def _compare(expected: str, given: str) -> dict[str, Any]:
    import logging

    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    logging.disable()
    # Boxed: then the whole text is the expression, and none is searched for in it.
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    try:
        first, second = (
            parse(f"\\boxed{{{text}}}", extraction_config=config, parsing_timeout=None) for text in (expected, given)
        )
        equal = bool(first and second) and verify(first, second, timeout_seconds=None)
        return {"equal": equal, "values": [_value(first), _value(second)]}
    except Exception:  # sympy raises many kinds for what it cannot compute, and MemoryError at the limit
        return {"equal": False, "values": [None, None]}


def _value(parsed: list[Any]) -> float | None:
    expression = next((one for one in parsed if not isinstance(one, str)), None)
    if expression is None or not getattr(expression, "is_number", False):
        return None
    try:
        return float(expression.evalf(17))
    except (TypeError, ValueError, OverflowError):  # complex, or no finite number
        return None


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
