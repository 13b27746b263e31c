"""The schedules by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import get_args

from dreamr.config import Method
from pipelines.autoregressive import Autoregressive
from pipelines.base import Pipeline
from pipelines.fpsr import FPSR
from pipelines.handles import Actors
from pipelines.lookahead import Lookahead
from pipelines.lookahead_batch import LookaheadBatch
from pipelines.parallel_prefix import ParallelPrefix
from pipelines.sequential import Sequential
from pipelines.token_speculative import TokenSpeculative

METHODS: tuple[Method, ...] = get_args(Method)

_CLASSES: dict[Method, Callable[[Actors, Callable[[], float]], Pipeline]] = {
    "autoregressive": Autoregressive,
    "sequential": Sequential,
    "fpsr": FPSR,
    "specreason": Sequential,
    "lookahead": Lookahead,
    "lookahead_batch": LookaheadBatch,
    "parallel_prefix": ParallelPrefix,
    "token_speculative": TokenSpeculative,
}


def build_pipeline(method: Method, actors: Actors, clock: Callable[[], float] = time.time) -> Pipeline:
    """The schedule `method` over `actors`; `clock` is the one that their engines use."""
    return _CLASSES[method](actors, clock)
