"""Writes the timeline of a request where `--timeline` says."""

from __future__ import annotations

from pathlib import Path

import typer

from dreamr.timeline import draw
from pipelines import Trace


def draw_timeline(trace: Trace, path: Path) -> None:
    """The ending of `path`, checked before, chooses the format."""
    draw(trace, path)
    typer.echo(f"timeline: {path}", err=True)
