"""Lines on the terminal that `ask` and `demo` share: committed steps, counts."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dreamr import documents
from pipelines.trace import CommittedStep

STYLES = {"draft": "cyan", "target": "magenta"}


def print_step(console: Console, step: CommittedStep) -> None:
    """One committed step: number, who wrote it, the verdict on what was drafted there, seconds since the start."""
    row = Table.grid(padding=(0, 2))
    row.add_column(justify="right", width=3)
    row.add_column(width=6)
    row.add_column(width=8)
    row.add_column(justify="right", width=8)
    row.add_column(ratio=1)
    rho = "" if step.score is None else f"rho {step.score:.2f}"
    style = STYLES[step.source]
    row.add_row(
        str(step.index + 1),
        Text(step.source, style),
        Text(rho, "dim"),
        Text(f"{step.at:.3f} s", "dim"),
        Text(printable(step.text.strip()), style),
    )
    console.print(row)


def printable(text: str) -> str:
    """What a model wrote, without the control characters that could take over a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def percent(share: float | None) -> str:
    """A share for people; a dash where there is none."""
    return documents.percent(share) or "–"
