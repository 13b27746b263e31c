"""Children of a process that is killed are killed as well; those of one that lives are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from support.toy_group import process_ended

PARENT = """
import subprocess, sys, time
from dreamr.engines.vllm.guardian import guard
child = subprocess.Popen(["sleep", "60"])
guard([child.pid])
print(child.pid, flush=True)
time.sleep(60)
"""


def start_parent() -> tuple[subprocess.Popen[str], int]:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=env)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def test_a_killed_process_takes_its_children_along() -> None:
    parent, child = start_parent()
    with parent:
        assert not process_ended(child, 0.2)
        parent.kill()
        assert process_ended(child)


def test_a_child_that_has_ended_is_nobodys_business() -> None:
    parent, child = start_parent()
    with parent:
        os.kill(child, signal.SIGKILL)
        assert not process_ended(parent.pid, 0.2)
        parent.kill()
