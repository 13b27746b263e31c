"""`Machine`: where something was measured."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    """What a reader has to know to compare the numbers with those of another machine."""

    cpu: str
    cores: int
    """Cores that this process may use."""
    load: float
    """Processes that ran on the machine during the minute before: other work makes every number worse."""
    system: str
    python: str

    @classmethod
    def this(cls) -> Machine:
        """The machine that this process runs on."""
        return cls(
            cpu=_cpu_model() or platform.processor() or platform.machine(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            load=os.getloadavg()[0],
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=platform.python_version(),
        )


def _cpu_model() -> str | None:
    """Linux's name of the CPU, which `platform.processor` does not know."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
