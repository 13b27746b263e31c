"""`Report`: everything that one demo run found out, and how to get it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dreamr.actors.types import EngineInfo, Role
from dreamr.config import Config
from dreamr.demo.duel import Run
from dreamr.demo.machine import Machine
from dreamr.demo.summary import Summary, summarise


@dataclass(frozen=True, slots=True)
class Report:
    """The summaries, and the conditions under which they hold."""

    command: str
    seed: int
    config: Config
    machine: Machine
    models: dict[Role, EngineInfo]
    runs: tuple[Run, ...]

    @property
    def summaries(self) -> list[Summary]:
        return summarise(self.runs, self.config.group, self.seed)

    def document(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return {
            "command": self.command,
            "seed": self.seed,
            "machine": asdict(self.machine),
            "models": model_rows(self.models),
            "settings": self.config.pipeline.model_dump(exclude={"method"}),
            "methods": [asdict(summary) for summary in self.summaries],
            "problems": [_row(run) for run in self.runs],
        }


def model_rows(models: dict[Role, EngineInfo]) -> dict[str, dict[str, Any]]:
    """What is worth knowing about the model in each actor."""
    return {
        role: {"model": info.model, "device": info.device, "num_parameters": info.num_parameters}
        for role, info in models.items()
    }


def pictured(runs: Sequence[Run]) -> Run:
    """The run that a picture is made of: the first problem by the method that speculates, if one did."""
    first = [run for run in runs if run.problem == runs[0].problem]
    return max(first, key=lambda run: run.trace.num_drafted)


def _row(run: Run) -> dict[str, Any]:
    trace = run.trace
    return {
        "problem": run.problem,
        "method": run.method,
        "expected": run.expected,
        "answer": run.answer,
        "right": run.right,
        "end": trace.end,
        "wall_s": trace.wall_s,
        "orchestration_s": trace.orchestration_s,
        "num_steps": len(trace.steps),
        "num_drafted": trace.num_drafted,
        "num_judged": trace.num_judged,
        "num_accepted": trace.num_accepted,
        "coverage": trace.coverage,
        "committed_tokens": len(trace.tokens),
        "wasted_draft_tokens": trace.wasted_draft_tokens,
        "wasted_target_tokens": trace.wasted_target_tokens,
        "num_losses": trace.num_losses,
    }
