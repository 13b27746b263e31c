"""The end of `dreamr ask`: answer, counts and the comparison with plain decoding, for people and for programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dreamr.bench.report import model_reports
from dreamr.cli.lines import percent, printable
from dreamr.config import PipelineSettings
from dreamr.types import EngineInfo, Role
from pipelines import Trace

_LABEL = re.compile(r"^(final )?answer:\s*", re.IGNORECASE)
_ENDINGS = {
    "budget": "no answer within max_tokens = {}: raise --max-tokens",
    "loop": "stopped, because the model began to repeat itself",
}


@dataclass(frozen=True, slots=True)
class Answered:
    """A question, its answer, and the same question answered by the target alone."""

    question: str
    images: Sequence[Path]
    settings: PipelineSettings
    models: dict[Role, EngineInfo]
    trace: Trace
    plain: Trace | None
    """None when nothing was compared."""

    @property
    def answer(self) -> str:
        return final_answer(self.trace)

    @property
    def speedup(self) -> float | None:
        return self.plain.wall_s / self.trace.wall_s if self.plain else None

    def document(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {
            "question": self.question,
            "images": [str(path) for path in self.images],
            "answer": self.answer,
            "speedup": self.speedup,
            "settings": self.settings.model_dump(),
            "models": {role: model.model_dump() for role, model in model_reports(self.models).items()},
            "result": trace_document(self.trace),
            "plain_decoding": trace_document(self.plain) if self.plain else None,
        }


def final_answer(trace: Trace) -> str:
    """What follows the reasoning, or the last step where the reasoning has no end; without the label."""
    _, _, behind = trace.text.rpartition("</think>")
    last_step = trace.steps[-1].text if trace.steps else ""
    text = (behind if "</think>" in trace.text else last_step).strip()
    return _LABEL.sub("", text)


def trace_document(trace: Trace) -> dict[str, Any]:
    """A finished request as JSON takes it: what the Trace holds and what follows from it."""
    return {
        **asdict(trace),
        "text": trace.text,
        "answer": final_answer(trace),
        "acceptance_rate": trace.acceptance_rate,
        "coverage": trace.coverage,
        "orchestration_share": _orchestration_share(trace),
    }


def print_answer(console: Console, answered: Answered) -> None:
    """The answer and one line per count."""
    trace = answered.trace
    console.print()
    if ending := _ENDINGS.get(trace.end):
        console.print(Text(ending.format(answered.settings.max_tokens), "yellow"))
    console.print(Text("answer  ", "bold").append(printable(answered.answer), "bold green"))
    console.print()
    counts = Table.grid(padding=(0, 2))
    counts.add_column(style="dim")
    counts.add_column()
    for name, value in _counts(answered):
        counts.add_row(name, value)
    console.print(counts)


def _counts(answered: Answered) -> list[tuple[str, str]]:
    trace, plain = answered.trace, answered.plain
    drafted = sum(step.source == "draft" for step in trace.steps)
    rows = [
        ("wall time", f"{trace.wall_s:.3f} s by {trace.method}, {len(trace.steps)} steps, {len(trace.tokens)} tokens"),
        ("orchestration", f"{percent(_orchestration_share(trace))} of it was spent waiting while no model ran"),
    ]
    if trace.num_judged:
        accepted = f"{trace.num_accepted} of {trace.num_judged} drafted steps that were decided on"
        rows += [
            ("acceptance", f"{percent(trace.acceptance_rate)}, {accepted}"),
            ("coverage", f"{percent(trace.coverage)}, {drafted} of {len(trace.steps)} steps come from the draft"),
        ]
    wasted = f"draft {trace.wasted_draft_tokens}, target {trace.wasted_target_tokens}"
    rows.append(("wasted tokens", wasted))
    if trace.num_losses:
        rows.append(("actors lost", str(trace.num_losses)))
    if plain and answered.speedup:
        same = "the same answer" if final_answer(plain) == answered.answer else f"its answer: {final_answer(plain)}"
        rows.append(("plain decoding", f"{plain.wall_s:.3f} s by the target alone, {same}"))
        rows.append(("speedup", f"{answered.speedup:.2f} x, one run each, both from cold prefix caches"))
    return rows


def _orchestration_share(trace: Trace) -> float | None:
    return trace.orchestration_s / trace.wall_s if trace.wall_s else None
