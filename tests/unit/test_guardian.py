"""Children of a process that is killed are killed as well; those of one that lives are left alone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from support.toy_group import process_ended

from dreamr.engines.vllm.guardian import until_one_ends

PARENT = """
import subprocess, sys, time
from dreamr.engines.vllm.guardian import guard
guard()
guard()
shell = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
print(shell.pid, shell.stdout.readline(), flush=True)
time.sleep(60)
"""


def start_parent() -> tuple[subprocess.Popen[str], list[int]]:
    """A process, its child, and the child's child."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=env)
    assert parent.stdout is not None
    return parent, [int(pid) for pid in parent.stdout.readline().split()]


def test_a_killed_process_takes_its_children_and_theirs_along() -> None:
    parent, children = start_parent()
    other, spared = start_parent()
    with parent, other:
        assert not any(process_ended(child, 0.1) for child in children)
        parent.kill()
        assert all(process_ended(child) for child in children)
        assert not any(process_ended(child, 0.1) for child in spared)
        other.kill()


def test_a_child_that_has_ended_does_not_end_its_parent() -> None:
    parent, children = start_parent()
    with parent:
        os.kill(children[0], signal.SIGKILL)
        assert not process_ended(parent.pid, 0.2)
        parent.kill()


async def test_the_end_of_a_child_is_noticed_while_nothing_else_happens() -> None:
    children = [await asyncio.create_subprocess_exec("sleep", "60") for _ in range(2)]
    ended = asyncio.create_task(until_one_ends([child.pid for child in children]))
    assert await asyncio.wait([ended], timeout=0.05) == (set(), {ended})
    children[1].kill()
    await ended
    await children[1].wait()
    await until_one_ends([children[1].pid, children[0].pid])  # one is gone already
    children[0].kill()
    await children[0].wait()
