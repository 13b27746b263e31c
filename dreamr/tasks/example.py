"""Makes a ledger problem to try things with: `python -m dreamr.tasks.example drawing.png`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreamr.tasks.ledger import make_problem


def main(
    image: Annotated[Path, typer.Argument(help="Where the drawing goes, a PNG file.")],
    seed: Annotated[int, typer.Option(help="Another seed makes another problem.")] = 0,
) -> None:
    """Draw a problem that the built-in models have not been trained on, and print its question and answer."""
    problem = make_problem("test", seed, 0)
    problem.image.save(image, format="PNG")
    typer.echo(f'dreamr ask --image {image} "{problem.question}"')
    typer.echo(f"answer: {problem.answer}")


if __name__ == "__main__":
    typer.run(main)
