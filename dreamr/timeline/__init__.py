"""Timelines of one request: a lane per actor, with each call, its time and its outcome."""

from __future__ import annotations

from pathlib import Path

from pipelines import Trace

FORMATS = (".html", ".png")


def draw(trace: Trace, path: Path) -> None:
    """Write the timeline of a request; the file's ending, one of `FORMATS`, chooses the format."""
    # matplotlib takes half a second to import
    match path.suffix.lower():
        case ".png":
            from dreamr.timeline.figure import draw_png

            draw_png(trace, path)
        case ".html":
            from dreamr.timeline.html import draw_html

            draw_html(trace, path)
        case _:
            raise ValueError(f"timeline {path}: the name must end in {' or '.join(FORMATS)}.")
