"""Ends child processes with their parent, also after `kill -9`, which gives a process no time to clean up.

    parent ── starts ──▶ child      would live on, with its GPU memory, when the parent is killed
       └──── starts ──▶ guardian    waits for the end of the parent or of all children; kills those left

In the other direction `until_one_ends` returns when a child has ended, also while no call is open.

Linux only (pidfd), like the engines that need it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence


def guard(children: Sequence[int]) -> None:
    """Have these processes killed when this one ends; costs one small process."""
    pids = [str(pid) for pid in (os.getpid(), *children)]
    subprocess.Popen([sys.executable, "-S", __file__, *pids], stdin=subprocess.DEVNULL, start_new_session=True)


async def until_one_ends(pids: Sequence[int]) -> None:
    """Return when one of these processes has ended, without polling."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    with contextlib.ExitStack() as stack:
        for pid in pids:
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                return
            stack.callback(os.close, handle)
            loop.add_reader(handle, ended.set)
            stack.callback(loop.remove_reader, handle)
        await ended.wait()


def watch(parent: int, children: Sequence[int]) -> None:
    """Return when all children have ended, by themselves or because the parent has."""
    try:
        ended = os.pidfd_open(parent)
    except ProcessLookupError:  # it ended before this process was up
        ended = None
    alive: list[int] = []
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            alive.append(os.pidfd_open(pid))
    while alive and ended is not None:
        ready = select.select([ended, *alive], [], [])[0]
        alive = [child for child in alive if child not in ready]
        if ended in ready:
            break
    for child in alive:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child, signal.SIGKILL)


if __name__ == "__main__":
    watch(int(sys.argv[1]), [int(pid) for pid in sys.argv[2:]])
