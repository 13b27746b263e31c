"""A process that ends others when their parent is gone, however it went: `kill -9` gives nobody time to clean up.

    parent ── starts ──▶ child      would live on, with its GPU memory, when the parent is killed
       └──── starts ──▶ guardian    waits for the end of the parent or of all children; kills who is left

Linux only (pidfd), as the engines that need it are.
"""

from __future__ import annotations

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


def watch(parent: int, children: Sequence[int]) -> None:
    """Return when all children have ended, by themselves or because the parent has."""
    try:
        ended = os.pidfd_open(parent)
    except ProcessLookupError:  # it went before this process was up
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
