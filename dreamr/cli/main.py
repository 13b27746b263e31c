"""The command `dreamr`: its options. What they do is imported when a command runs, so that `--help` is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="dreamr",
    help="Speculative reasoning over images: a small model drafts the steps, a large one checks them, both at once.",
    epilog="DREAMR_DEBUG=1 shows the traceback of a failure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file; without it, the built-in models.")]
Draft = Annotated[
    str | None, typer.Option(help="Draft model instead of the configured one: folder, hub id, embedded:NAME.")
]
BENCHED = (
    "autoregressive,autoregressive_all_cores,transformers,transformers_assisted,token_speculative,specreason,lookahead,"
    "lookahead_batch,parallel_prefix,sequential,fpsr"
)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, all else on stderr.")]


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask, in quotes.")],
    images: Annotated[list[Path] | None, typer.Option("--image", help="Image file; may be given again.")] = None,
    config: ConfigFile = None,
    method: Annotated[
        str | None, typer.Option(help="fpsr, autoregressive, specreason, ...; see docs/bench.md.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="A drafted step is accepted when rho > alpha.")] = None,
    window: Annotated[int | None, typer.Option(help="How many steps the draft may be ahead.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Budget of the whole answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling at temperatures above 0.")] = None,
    compare: Annotated[bool, typer.Option(help="Answer again by the target alone, for the speedup.")] = True,
    draft: Draft = None,
    timeline: Annotated[Path | None, typer.Option(help="Picture of who did what when: .html or .png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question about one or more images. Settings that are not given come from the configuration."""
    from dreamr.cli import ask as command
    from dreamr.errors import reported

    settings = {
        "method": method,
        "alpha": alpha,
        "window": window,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    with reported():
        command.ask(
            question, images or [], config, settings, compare=compare, timeline=timeline, as_json=as_json, draft=draft
        )


@app.command()
def demo(
    problems: Annotated[int, typer.Option(help="How many problems.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the problems; another one makes others.")] = 0,
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")] = "autoregressive,fpsr",
    config: ConfigFile = None,
    draft: Draft = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the report, with a row per problem.")] = None,
    timeline: Annotated[Path | None, typer.Option(help="Picture of the first problem: .html or .png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer problems that the models have never seen, by several methods, and compare them in one table."""
    from dreamr.cli import demo as command
    from dreamr.errors import reported

    with reported():
        command.demo(problems, seed, methods, config, out=out, timeline=timeline, as_json=as_json, draft=draft)


@app.command()
def curves(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs; several are compared.")],
    out: Annotated[Path | None, typer.Option(help="Picture: .png or .html; without it, curves.png in the run.")] = None,
) -> None:
    """Draw the reward curves of training runs."""
    from dreamr.cli import curves as command
    from dreamr.errors import reported

    with reported():
        command.curves(runs, out)


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Option(help="YAML file; without it, DREAMR_SAPO_CONFIG, else the built-in draft's recipe.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run, in place of the file's `run`.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest whole checkpoint of the run.")] = False,
) -> None:
    """Train a draft by SAPO: steps that the target accepts, correct answers, few tokens."""
    from dreamr.errors import reported
    from rl.train import train_draft

    with reported():
        train_draft(config, run, resume=resume)


@app.command("eval")
def evaluate(
    benchmark: Annotated[str, typer.Option(help="mathverse, mmbench, realworldqa or mmmu.")],
    config: ConfigFile = None,
    data: Annotated[Path | None, typer.Option(help="Parquet file or folder; without it, the hub's.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first rows, so many.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for rows and results; the same again goes on.")] = None,
    method: Annotated[str | None, typer.Option(help="Schedule; without it, the configuration's.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Ask an OpenAI-compatible endpoint instead.")] = None,
    model: Annotated[str | None, typer.Option(help="Model at the endpoint; without it, its first one.")] = None,
    concurrency: Annotated[int, typer.Option(help="Rows that are answered at the same time.")] = 1,
) -> None:
    """Answer a public benchmark and score it: accuracy per category, unparsed and truncated answers."""
    from dreamr.cli import evaluate as command
    from dreamr.errors import reported

    with reported():
        command.evaluate_benchmark(
            benchmark, config, data=data, limit=limit, out=out, method=method, base_url=base_url, model=model,
            concurrency=concurrency,
        )  # fmt: skip


@app.command()
def bench(
    out: Annotated[Path, typer.Option(help="Folder for report.json, report.md and the pictures.")],
    methods: Annotated[str, typer.Option(help="Names, separated by commas; fpsr:alpha=0.5 has a setting.")] = BENCHED,
    problems: Annotated[int, typer.Option(help="How many problems.")] = 40,
    seed: Annotated[int, typer.Option(help="Seed of the problems; another one makes others.")] = 0,
    sweep: Annotated[str | None, typer.Option(help="Each schedule also with alpha=0.5,0.7 or window=1,2,4.")] = None,
    config: ConfigFile = None,
    draft: Draft = None,
) -> None:
    """Measure methods against each other, and against the target alone, on the same problems."""
    from dreamr.cli import bench as command
    from dreamr.errors import reported

    with reported():
        command.bench(problems, seed, methods, config, sweep=sweep, out=out, draft=draft)


@app.command()
def simulate(
    scenario: Annotated[str, typer.Option(help="q32b-q2b, q32b-q4b, or a YAML file of your own.")] = "q32b-q2b",
    calibrate: Annotated[Path | None, typer.Option(help="report.json: predict what it measured.")] = None,
    problems: Annotated[int, typer.Option(help="How many simulated problems.")] = 40,
    window: Annotated[int | None, typer.Option(help="How many steps the draft may be ahead.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write what --json prints to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict speedups from latencies and acceptance rates: the schedules themselves, under a virtual clock."""
    from dreamr.cli import simulate as command
    from dreamr.errors import reported

    with reported():
        command.simulate(scenario, calibrate, problems, window, out=out, as_json=as_json)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"dreamr {version('dreamr')}")
        except PackageNotFoundError:
            typer.echo("dreamr, not installed as a package")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options that stand before the command."""
