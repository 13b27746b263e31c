"""Replacing the draft's weights in a running actor, between two calls.

    swap ── read checkpoint, in a thread ──▶ gate closes ──▶ running calls end ──▶ weights replaced ──▶ gate opens
    calls   run                              new ones wait at the gate ........................... they run

A call waits for at most the longest running call and the copy of the weights; none fails. An actor that is restarted
gets the latest weights with `start`. Versions order the swaps, so that several callers of one actor agree in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamr.engines.base import Swappable
from dreamr.engines.factory import model_location
from dreamr.errors import first_line

if TYPE_CHECKING:
    from torch import Tensor

IDLE_DEADLINE_S = 120.0
"""Longest wait for the end of the running calls."""


@dataclass(frozen=True, slots=True)
class DraftWeights:
    """A checkpoint for the draft; of two, the one with the higher version counts."""

    version: int
    model: str
    """Checkpoint folder, hub id or name of a built-in model."""


class Swap:
    """The gate of one actor, and the weights that were loaded last. Use it from one event loop."""

    def __init__(self) -> None:
        self.loaded: DraftWeights | None = None
        """None: the configured checkpoint."""
        self._num_running = 0
        self._is_open, self._is_idle = asyncio.Event(), asyncio.Event()
        self._is_open.set()
        self._is_idle.set()
        self._swapping = asyncio.Lock()

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Around each call of the engine."""
        await self._is_open.wait()
        self._num_running += 1
        self._is_idle.clear()
        try:
            yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._is_idle.set()

    async def load(
        self, weights: DraftWeights, engine: Swappable, update: Callable[[Mapping[str, Tensor]], Awaitable[None]]
    ) -> DraftWeights:
        """Load a checkpoint by `update`, unless it or a later one is loaded; return the loaded one.

        Raises ValueError in one sentence when it cannot be loaded, has another vocabulary or another architecture;
        the old weights stay.
        """
        async with self._swapping:
            if self.loaded is not None and self.loaded.version >= weights.version:
                return self.loaded
            try:
                new = await asyncio.to_thread(_read, weights.model, engine)
                async with self._exclusively():
                    await update(new)
            except (OSError, RuntimeError, TimeoutError) as error:
                raise ValueError(
                    f"{weights.model!r} cannot replace the draft in service: {first_line(error)}"
                ) from error
            self.loaded = weights
            return weights

    @asynccontextmanager
    async def _exclusively(self) -> AsyncIterator[None]:
        self._is_open.clear()
        try:
            async with asyncio.timeout(IDLE_DEADLINE_S):
                await self._is_idle.wait()
            yield
        finally:
            self._is_open.set()


def _read(model: str, engine: Swappable) -> Mapping[str, Tensor]:
    from dreamr.engines.hf.loading import find_config, load_tokenizer
    from dreamr.engines.retokenize import same_ids

    location = model_location(model)
    find_config(location)
    if not same_ids(load_tokenizer(location), engine.tokenizer):
        raise ValueError(f"{model!r} has another vocabulary than the draft in service")
    return engine.read_weights(location)
