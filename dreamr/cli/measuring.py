"""What `dreamr demo` and `dreamr bench` share: methods by name, and problem after problem under a progress bar."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from rich.console import Console

from dreamr.bench.contender import Entry, parse_entries
from dreamr.bench.duel import Duel, Run
from dreamr.cli.progress import progress_bar
from dreamr.config import PipelineSettings
from dreamr.errors import BadInput


def read_entries(problems: int, methods: str, sweep: str | None, settings: PipelineSettings) -> list[Entry]:
    """What is to be measured. Raises BadInput."""
    if problems < 1:
        raise BadInput(f"--problems {problems}: at least one is needed.")
    try:
        entries = parse_entries(methods, sweep, settings)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if not entries:
        raise BadInput(f"--methods '{methods}': name at least one.")
    return entries


async def run_problems(
    duel: Duel,
    num_problems: int,
    notices: Console,
    failed: Mapping[str, str],
    first: Callable[[], Awaitable[list[Run]]] | None = None,
) -> list[Run]:
    """Warm up, then answer every problem by every method; `first` answers the first one, where it is to be shown.

    `failed` are the methods that cannot take part, and why. Raises BadInput when these are all.
    """
    if not duel.contenders:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise BadInput(f"--methods: none of them can be measured with this configuration; name another. {reasons}.")
    with notices.status("Warming up ..."):
        await duel.warm_up()
    runs = await first() if first else []
    done = int(first is not None)
    with progress_bar(notices) as progress:
        bar = progress.add_task("problems", total=num_problems, completed=done)
        for index in range(done, num_problems):
            runs += await duel.run(index)
            progress.update(bar, advance=1, refresh=True)
    return runs
