"""Actors on several nodes: each where its resource is, and what the loss of a node costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


@pytest.mark.ray
@pytest.mark.slow
def test_actors_land_where_their_resources_are_and_survive_the_loss_of_a_node() -> None:
    with tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp") as folder:  # Ray's sockets need a short path
        environment = os.environ | {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        environment.pop("RAY_ADDRESS", None)
        script = Path(__file__).parents[1] / "support" / "several_nodes.py"
        done = subprocess.run(
            [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False, timeout=200
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    target = found["placed"]["target"]
    assert found["placed"] == {"draft": "left", "verifier": "left", "target": target}
    assert target in {"right", "spare"}
    assert found["killed"] == target
    assert found["placed_after"] == found["placed"] | {"target": {"right": "spare", "spare": "right"}[target]}
    assert found["same_text"]
    assert all(found["healthy"].values())
