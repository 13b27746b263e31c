"""Ends the processes that an engine has started with their parent, also after `kill -9`, which allows no clean-up.

    parent ── marks its environment, starts ──▶ guardian      waits for the end of the parent, kills all with the mark
       └──── starts ──▶ child ── starts ──▶ child             have the mark; would live on, with their GPU memory

The guardian is there before the first child, so that a parent killed while its engine starts leaves nothing either. In
the other direction `until_one_ends` returns when a child has ended, also while no call is open.

Linux only (pidfd, /proc), like the engines that need it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_MARK = "DREAMR_ENDS_WITH"


def guard() -> None:
    """Have all processes that are started from now on killed when this one ends; costs one small process.

    Processes that are forked without an exec do not inherit the mark.
    """
    mark = str(os.getpid())
    if os.environ.get(_MARK) == mark:
        return
    command = [sys.executable, "-S", __file__, mark]
    subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # before the mark is set
    os.environ[_MARK] = mark


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


def watch(parent: int) -> None:
    """Wait for the end of the parent, then kill every process with its mark."""
    with contextlib.suppress(ProcessLookupError):  # it ended before this process was up
        select.select([os.pidfd_open(parent)], [], [])
    while marked := list(_marked(parent)):  # again: one of them may have started another
        for pid in marked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _marked(parent: int) -> Iterator[int]:
    mark = f"{_MARK}={parent}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)


if __name__ == "__main__":
    watch(int(sys.argv[1]))
