"""Ray actors for the tests of training: a verifier that answers after `go_on`, and a rank of a process group."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from rl.config import LearnerSettings
from rl.learner import join


class Judge:
    """Answers with its number once `go_on` is called."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._open = asyncio.Event()

    async def judge(self) -> int:
        await self._open.wait()
        return self._number

    async def go_on(self) -> None:
        self._open.set()

    async def die(self) -> None:
        os._exit(1)

    async def fail(self) -> None:
        raise ValueError("no chain")


class Rank:
    """One rank of a process group with a short timeout."""

    def __init__(self, rank: int, pool: Any) -> None:
        self._rank, self._pool = rank, pool

    def join(self, port: int) -> None:
        settings = LearnerSettings(world_size=2, collective_timeout_s=4.0)
        join(settings, self._rank, "127.0.0.1", port)

    def evaluate(self) -> float:
        """Rank 0 is busy for longer than the timeout; then both meet in a collective."""
        import torch

        from rl.pool_client import PoolClient

        if self._rank == 0:
            time.sleep(6)
        PoolClient(self._pool, self._rank).wait_for_rank_0("evaluation", 3)
        return self._summed(torch)

    def wait_in_a_collective(self) -> float:
        import torch

        if self._rank == 0:
            time.sleep(6)
        return self._summed(torch)

    def _summed(self, torch: Any) -> float:
        value = torch.tensor([1.0])
        torch.distributed.all_reduce(value)
        return float(value)
