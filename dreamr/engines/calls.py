"""Calls: blocking work in threads, which can be stopped by id and never outlives the task that awaits it.

    event loop                                   thread pool
    run(id, work) ── submit ──────────────────▶  work(stop)  ── checks `stop` between tokens
      awaits the thread  ◀── result ───────────      ▲
    stop(id) ── sets that call's event ──────────────┘
    task cancelled ── sets the event, awaits the thread, then raises CancelledError

A stop may overtake its call (early_stops.py).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dreamr.engines.early_stops import EarlyStops

T = TypeVar("T")


class Calls:
    """Runs calls in at most `max_calls` threads; more calls wait for a thread. All methods belong to the event loop."""

    def __init__(self, max_calls: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(max_calls, thread_name_prefix=name)
        # Threads of their own: without privileges, a thread that has stepped back cannot return.
        self._background = ThreadPoolExecutor(max_calls, f"{name}-background", initializer=_step_back)
        self._running: dict[threading.Event, str] = {}
        self._early_stops = EarlyStops()

    async def run(self, call_id: str, work: Callable[[threading.Event], T], *, background: bool = False) -> T:
        """The result of `work(stop)`, which has to return soon after `stop` is set.

        In the `background` it gets only the core time that other threads and processes leave.

        When this coroutine is cancelled, `stop` is set and the thread is awaited before CancelledError goes on.
        """
        stop = threading.Event()
        if self._early_stops.begin(call_id):
            stop.set()
        future = asyncio.get_running_loop().run_in_executor(
            self._background if background else self._threads, work, stop
        )
        self._running[stop] = call_id
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError as cancelled:
            stop.set()
            await _finished(future)
            raise cancelled from future.exception()
        finally:
            del self._running[stop]
            self._early_stops.end(call_id)

    def stop(self, call_id: str) -> None:
        """Stop every running call with this id, or the next one when none has run yet."""
        running = [stop for stop, running_id in self._running.items() if running_id == call_id]
        for stop in running:
            stop.set()
        if not running:
            self._early_stops.stop(call_id)

    async def close(self) -> None:
        """Stop all calls and end the threads."""
        for stop in self._running:
            stop.set()
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._background.shutdown)


def _step_back() -> None:
    """Leave the cores to whoever else wants them. A low priority is not enough: it is preempted too late."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # 0 is the calling thread


async def _finished(future: asyncio.Future[T]) -> None:
    """Wait for the thread however often the waiting task is cancelled: it ends within one token."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
