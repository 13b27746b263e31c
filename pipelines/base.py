"""What every schedule is: handles in, one request at a time through `run`, a `Trace` out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pipelines.request import Request
from pipelines.trace import CommittedStep, Trace

OnCommit = Callable[[CommittedStep], bool | None]
"""Called with each step the moment it is committed; must not block. True ends the request with this step."""


class Pipeline(Protocol):
    """One schedule over a set of actors. Requests may run at the same time."""

    async def run(self, request: Request, on_commit: OnCommit | None = None) -> Trace:
        """Answer one request. When this returns or is cancelled, nothing of the request is in flight any more.

        Raises:
            ActorLost: the target was lost and did not come back.
            ValueError: the target refuses the prompt, in one sentence.
        """
        ...
