"""`ray_up.sh` as a test. Not collected by default, since it takes minutes and needs root: `make test-cluster`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = ("curl", "ip", "rsync", "sshd", "unshare")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make network namespaces")
@pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}")
def test_a_cluster_over_ssh_from_ray_up_to_ray_down() -> None:
    script = Path(__file__).with_name("ray_up.sh")
    done = subprocess.run([str(script)], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert done.stdout.endswith("== done\n")
