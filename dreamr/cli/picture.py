"""Writes the picture of a request where `--timeline` says."""

from __future__ import annotations

from pathlib import Path

import typer

from pipelines import Trace


def draw_timeline(trace: Trace, path: Path) -> None:
    """The ending of `path`, checked before, chooses the format."""
    if path.suffix.lower() == ".png":
        from dreamr.timeline.png import draw_png  # matplotlib takes half a second to import

        draw_png(trace, path)
    else:
        from dreamr.timeline.html import draw_html

        draw_html(trace, path)
    typer.echo(f"timeline: {path}", err=True)
