"""`dreamr curves`: the curves of training runs as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from dreamr.cli.inputs import PICTURES, check_writable
from dreamr.errors import BadInput
from rl.curves import draw_curves, load_runs


def curves(runs: Sequence[Path], out: Path | None) -> None:
    """Run the command. Raises BadInput for folders without a history and places that cannot be written."""
    path = out or runs[0] / "curves.png"
    if path.suffix.lower() not in PICTURES:
        raise BadInput(f"--out {path}: the name must end in {' or '.join(PICTURES)}, which chooses the format.")
    try:
        histories = load_runs(runs)
        check_writable("--out", path)
        draw_curves(histories, path)
    except ValueError as error:
        raise BadInput(str(error)) from error
    typer.echo(f"curves: {path}")
