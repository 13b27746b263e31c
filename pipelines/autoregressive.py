"""The target alone, step by step: what every other schedule is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipelines.base import OnCommit
from pipelines.handles import Actors
from pipelines.request import Request
from pipelines.session import Session
from pipelines.trace import Trace


class Autoregressive:
    """See `Pipeline`."""

    def __init__(self, actors: Actors, clock: Callable[[], float] = time.time) -> None:
        self._actors, self._clock = actors, clock

    async def run(self, request: Request, on_commit: OnCommit | None = None) -> Trace:
        async with Session(self._actors, request, on_commit, self._clock) as session:
            while not session.ended:
                await session.commit_written(session.write())
        return session.trace()
