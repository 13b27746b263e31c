"""Tables and percentages in Markdown."""

from __future__ import annotations


def markdown_table(rows: list[list[str]]) -> str:
    """Rows of cells; the first one is the head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def percent(share: float | None, digits: int = 0) -> str:
    """A share as a percentage; empty for None."""
    return "" if share is None else f"{100 * share:.{digits}f} %"
