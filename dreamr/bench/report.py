"""Makes the `Report` of a run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from dreamr.bench.contender import Contender
from dreamr.bench.duel import Run
from dreamr.bench.machine import Machine
from dreamr.bench.schema import MachineReport, Model, Report
from dreamr.bench.summary import row, summarise
from dreamr.config import Config
from dreamr.types import EngineInfo, Role


def make_report(
    config: Config,
    seed: int,
    machine: Machine,
    models: Mapping[Role, EngineInfo],
    contenders: Sequence[Contender],
    runs: Sequence[Run],
    *,
    failed: Mapping[str, str],
) -> Report:
    """The report of `runs` in the order in which they ran, without the controls."""
    return Report(
        command=shlex.join(["dreamr", *sys.argv[1:]]),
        seed=seed,
        config=config.model_dump(mode="json"),
        machine=MachineReport(**asdict(machine)),
        models=model_reports(models),
        problems=[row(run) for run in runs],
        methods=summarise(runs, contenders, machine.cores, seed),
        failed=dict(failed),
    )


def model_reports(models: Mapping[Role, EngineInfo]) -> dict[str, Model]:
    """What is worth knowing about the model in each actor."""
    return {
        role: Model(model=info.model, device=info.device, num_parameters=info.num_parameters)
        for role, info in models.items()
    }
