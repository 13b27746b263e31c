"""Groups of actors around `ToyEngine`, and what tests want to know about them."""

from __future__ import annotations

import os
import select
from typing import Any

from dreamr.config import GroupConfig
from dreamr.types import Prompt, Sampling

QUESTION = Prompt("how many?")
HANG = Prompt("hang")
DIE = Prompt("die")
THREE = Sampling(max_tokens=3)


def toy_actor(factory: str = "ToyEngine", *, num_cpus: float = 0.1, **settings: object) -> dict[str, Any]:
    engine = {"kind": "import", "factory": f"support.toy_engine:{factory}", "settings": settings}
    return {"engine": engine, "num_cpus": num_cpus}


def toy_group(**changes: object) -> GroupConfig:
    """Three actors that answer at once; a hang is noticed and repaired within test time."""
    defaults = {"draft": toy_actor(), "target": toy_actor(), "verifier": toy_actor(), "ready_deadline_s": 30}
    return GroupConfig.model_validate(defaults | {"health_deadline_s": 1} | changes)


def process_ended(pid: int, deadline_s: float = 30.0) -> bool:
    """Wait for the end of a process that is not our child."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], deadline_s)[0])
    finally:
        os.close(process)
