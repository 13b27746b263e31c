"""Tables and shares as Markdown shows them."""

from __future__ import annotations


def markdown_table(rows: list[list[str]]) -> str:
    """Rows of cells; the first one is the head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def percent(share: float | None, digits: int = 0) -> str:
    """A share for people; empty where there is none."""
    return "" if share is None else f"{100 * share:.{digits}f} %"
