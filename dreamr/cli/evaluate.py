"""`dreamr eval`: a public benchmark, answered by actors or by an endpoint, scored, with results in a folder."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markdown import Markdown

from dreamr.cli.inputs import check_at_least_one, make_folder, read_config
from dreamr.cli.running import run_with_actors
from dreamr.cli.terminal import progress_bar
from dreamr.config import Config
from dreamr.errors import BadInput
from dreamr.eval.answerers import Answerer, EndpointAnswerer, PipelineAnswerer
from dreamr.eval.benchmarks import BENCHMARKS, BadRow, Benchmark
from dreamr.eval.evaluation import evaluate
from dreamr.eval.journal import Journal, JournalMismatch, Outcome
from dreamr.eval.results import Results

if TYPE_CHECKING:
    from actors.group import ActorGroup
    from dreamr.eval.rows import Rows

NO_KEY = "none"
"""Sent to a server without keys, since the client needs one."""


def evaluate_benchmark(
    benchmark: str,
    config: Path | None,
    *,
    data: Path | None,
    limit: int | None,
    out: Path | None,
    method: str | None,
    base_url: str | None,
    model: str | None,
    concurrency: int,
) -> None:
    """Run the command. Raises BadInput, ConfigError, and what the answerers raise."""
    chosen, settled = find_benchmark(benchmark), read_config(config, {"method": method})
    check_at_least_one("--limit", limit)
    check_at_least_one("--concurrency", concurrency)
    if model and not base_url:
        raise BadInput(f"--model {model}: is the name of a model at an endpoint; give its --base-url as well.")
    folder = out or Path(f"eval-{benchmark}")
    make_folder("--out", folder, "rows.jsonl")
    _check_installed(["openai"] if base_url else [])
    rows = read_rows(chosen, data, limit)
    run = {"benchmark": benchmark, "data": rows.source, **_answering(settled, base_url, model)}
    try:
        journal = Journal(folder / "rows.jsonl", run)
    except JournalMismatch as error:
        raise BadInput(str(error)) from error
    with journal:
        if base_url:
            asyncio.run(_by_endpoint(rows, journal, concurrency, settled, base_url, model))
        else:
            _by_actors(rows, journal, concurrency, settled)
    _write(folder, Results(run, shlex.join(["dreamr", *sys.argv[1:]]), list(journal.outcomes.values())))


def find_benchmark(name: str) -> Benchmark:
    """Raises BadInput."""
    if name not in BENCHMARKS:
        raise BadInput(f"--benchmark {name}: there is no such benchmark; choose one of {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def _check_installed(modules: list[str]) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise BadInput(f"the package '{module}' is not installed: pip install -e '.[eval]'.")


def read_rows(benchmark: Benchmark, data: Path | None, limit: int | None) -> Rows:
    """The rows of a benchmark, all of them checked. Raises BadInput."""
    _check_installed(["datasets"])
    from dreamr.eval.rows import BadData, Rows

    try:
        return Rows(benchmark, data, limit)
    except (BadData, BadRow) as error:
        raise BadInput(str(error)) from error


def _answering(config: Config, base_url: str | None, model: str | None) -> dict[str, Any]:
    """Models and settings: everything that the answers depend on."""
    settings = {
        name: value
        for name, value in config.pipeline.model_dump(mode="json").items()
        if not name.endswith("_deadline_s")
    }
    if base_url:
        return {"endpoint": base_url, "model": model, "settings": settings}
    engines = {role: actor.engine.model_dump(mode="json") for role, actor in config.group.actors().items()}
    return {"engines": engines, "settings": settings}


def _by_actors(rows: Rows, journal: Journal, concurrency: int, config: Config) -> None:
    async def answer(group: ActorGroup) -> None:
        await _answer(rows, journal, concurrency, PipelineAnswerer(group.handles, config.pipeline))

    if len(journal.outcomes) < len(rows):
        run_with_actors(config, Console(stderr=True), answer)


async def _by_endpoint(
    rows: Rows, journal: Journal, concurrency: int, config: Config, base_url: str, model: str | None
) -> None:
    key = os.environ.get("OPENAI_API_KEY", NO_KEY)
    async with EndpointAnswerer(base_url, key, model, config.pipeline) as answerer:
        await _answer(rows, journal, concurrency, answerer)


async def _answer(rows: Rows, journal: Journal, concurrency: int, answerer: Answerer) -> None:
    notices = Console(stderr=True)
    with progress_bar(notices) as progress:
        bar = progress.add_task("rows", total=len(rows), completed=len(journal.outcomes))

        def advance(_: Outcome) -> None:
            progress.update(bar, advance=1, refresh=True)

        await evaluate(rows.items(), answerer, journal, concurrency, advance)


def _write(folder: Path, results: Results) -> None:
    document = json.dumps(results.document(), indent=2, ensure_ascii=False)
    (folder / "results.json").write_text(document + "\n", encoding="utf-8")
    (folder / "results.md").write_text(results.markdown(), encoding="utf-8")
    Console().print(Markdown(results.markdown()))
    Console(stderr=True).print(f"written to {folder}: results.json, results.md, rows.jsonl", style="dim")
