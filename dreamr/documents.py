"""Measured tables in documents: no number in them is ever written by hand."""

from __future__ import annotations

from pathlib import Path


def marks(name: str) -> tuple[str, str]:
    """The two comments between which the table `name` stands in a Markdown file."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def shown(document: Path, name: str) -> str:
    """What stands between the marks. Raises ValueError when the document lacks them."""
    begin, end = marks(name)
    _, found, rest = document.read_text(encoding="utf-8").partition(begin)
    body, closed, _ = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{document} has no place for the table: put {begin} and {end} into it.")
    return body.strip()


def fill(document: Path, name: str, body: str) -> None:
    """Put `body` between the marks, in place of what stands there."""
    shown(document, name)  # refuses a document without marks
    begin, end = marks(name)
    text = document.read_text(encoding="utf-8")
    before, after = text.partition(begin)[0], text.partition(end)[2]
    document.write_text(f"{before}{begin}\n{body}\n{end}{after}", encoding="utf-8")


def markdown_table(rows: list[list[str]]) -> str:
    """Rows of cells, the first one being the head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def percent(share: float | None, digits: int = 0) -> str:
    """A share for people; empty where there is none."""
    return "" if share is None else f"{100 * share:.{digits}f} %"
