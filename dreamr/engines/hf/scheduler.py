"""Which jobs share the next forward. Handles no tensors.

needed jobs        all that fit, in order of arrival; those that did not fit are first next time
speculative jobs   only when there is no needed job, so that they slow down no step that is needed
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dreamr.engines.hf.jobs import Job, WriteJob
from dreamr.types import Priority, Tokens


class Scheduler:
    """Waiting and running jobs. The engine's loop holds its lock for every call."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._queues: dict[Priority, deque[Job]] = {"needed": deque(), "speculative": deque()}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def has(self, priority: Priority) -> bool:
        """Whether a forward with jobs of that priority could run now."""
        if priority == "needed":
            return bool(self._queues["needed"])
        return bool(self._queues["speculative"]) and not self._queues["needed"]

    def add(self, job: Job) -> None:
        self._queues[job.priority].append(job)

    def next_batch(self) -> list[Job]:
        """The jobs of the next forward, at most `max_rows`; they stay here until `remove`."""
        queue = self._queues["needed"] or self._queues["speculative"]
        batch = [queue[place] for place in range(min(len(queue), self._max_rows))]
        if len(queue) > self._max_rows:
            queue.rotate(-self._max_rows)
        return batch

    def remove(self, job: Job) -> None:
        self._queues[job.priority].remove(job)

    def all(self) -> list[Job]:
        return [job for queue in self._queues.values() for job in queue]

    def stop(self, call_id: str) -> bool:
        """Mark the jobs of a call as stopped, where they can be; False when there is no job of that call."""
        return self._mark(call_id, lambda job: setattr(job, "is_stopped", job.can_stop))

    def promote(self, call_id: str, hint: Tokens) -> None:
        """A speculative step is needed now, and may begin with the tokens `hint`."""

        def promote(job: Job) -> None:
            if isinstance(job, WriteJob) and hint:
                job.hint(hint)
            if job.priority == "speculative":
                self.remove(job)
                job.priority = "needed"
                self.add(job)

        self._mark(call_id, promote)

    def _mark(self, call_id: str, mark: Callable[[Job], None]) -> bool:
        jobs = [job for job in self.all() if job.call_id == call_id]
        for job in jobs:
            mark(job)
        return bool(jobs)
