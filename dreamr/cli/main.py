"""The command `dreamr` and its options. A command's code is imported when it runs, so that `--help` is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import dreamr

app = typer.Typer(
    name="dreamr",
    help="Speculative reasoning over images: a small model drafts steps and a large one verifies them, in parallel.",
    epilog="DREAMR_DEBUG=1 shows the traceback of a failure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file; default: the built-in models.")]
Draft = Annotated[
    str | None, typer.Option(help="Draft model instead of the configured one: folder, hub id, embedded:NAME.")
]
BENCHED = (
    "autoregressive,autoregressive+assistant,autoregressive_all_cores,draft_alone,transformers,transformers_assisted,"
    "token_speculative,specreason,lookahead,lookahead_batch,parallel_prefix,parallel_prefix+assistant,"
    "sequential,sequential+assistant,fpsr,fpsr+assistant,auto,auto+assistant"
)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, other output on stderr.")]


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask, in quotes.")],
    images: Annotated[list[Path] | None, typer.Option("--image", help="Image file; repeat for several.")] = None,
    config: ConfigFile = None,
    method: Annotated[
        str | None, typer.Option(help="fpsr, autoregressive, specreason, ...; see docs/bench.md.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="A drafted step is accepted when rho > alpha.")] = None,
    window: Annotated[int | None, typer.Option(help="Steps that the draft may write ahead.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of the whole answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling at temperatures above 0.")] = None,
    compare: Annotated[bool, typer.Option(help="Answer again by the target alone, to measure the speedup.")] = True,
    draft: Draft = None,
    timeline: Annotated[Path | None, typer.Option(help="Timeline of the actors: .html or .png.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Ask a running endpoint instead, such as http://127.0.0.1:8000; no comparison.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question about images. Settings that are not given come from the configuration, or the endpoint."""
    from dreamr.errors import BadInput, reported

    settings = {
        "method": method,
        "alpha": alpha,
        "window": window,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    with reported():
        if url is not None:
            from dreamr.cli import endpoint

            if config or draft or timeline:
                raise BadInput(f"--url {url}: the endpoint has fixed models: leave out --config, --draft, --timeline.")
            endpoint.ask_endpoint(url, question, images or [], settings, as_json=as_json)
            return
        from dreamr.cli import ask as command

        command.ask(
            question, images or [], config, settings, compare=compare, timeline=timeline, as_json=as_json, draft=draft
        )


@app.command()
def chat(
    url: Annotated[str, typer.Option(help="The running endpoint.")] = "http://127.0.0.1:8000",
    method: Annotated[
        str | None, typer.Option(help="fpsr, autoregressive, specreason, ...; see docs/bench.md.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of each answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
) -> None:
    """Talk with a running endpoint. Settings that are not given come from the endpoint."""
    from dreamr.cli import chat as command
    from dreamr.errors import reported

    with reported():
        command.chat(url, {"method": method, "max_tokens": max_tokens, "temperature": temperature})


@app.command()
def example(
    image: Annotated[Path, typer.Argument(help="PNG file for the drawing.")],
    seed: Annotated[int, typer.Option(help="Seed of the problem.")] = 0,
) -> None:
    """Draw a problem of the built-in models' task; print the command that asks about it, and the answer."""
    from dreamr.cli import demo as command
    from dreamr.errors import reported

    with reported():
        command.example(image, seed)


@app.command()
def demo(
    problems: Annotated[int, typer.Option(help="Number of problems.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the problems.")] = 0,
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")] = "autoregressive,fpsr",
    config: ConfigFile = None,
    draft: Draft = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the report, with a row per problem.")] = None,
    timeline: Annotated[Path | None, typer.Option(help="Timeline of the first problem: .html or .png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer new problems of the built-in models' task by several methods; compare them in one table."""
    from dreamr.cli import demo as command
    from dreamr.errors import reported

    with reported():
        command.demo(problems, seed, methods, config, out=out, timeline=timeline, as_json=as_json, draft=draft)


@app.command()
def curves(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs; several are compared.")],
    out: Annotated[
        Path | None, typer.Option(help="Picture: .png or .html; default: curves.png in the first run.")
    ] = None,
) -> None:
    """Draw the curves of training runs."""
    from dreamr.cli.inputs import check_picture
    from dreamr.errors import BadInput, reported
    from rl.curves import draw_curves, load_runs

    with reported():
        if out is not None:
            check_picture("--out", out)
        path = out or runs[0] / "curves.png"
        try:
            draw_curves(load_runs(runs), path)
        except ValueError as error:
            raise BadInput(str(error)) from error
        typer.echo(f"curves: {path}")


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Option(help="YAML file; without it, DREAMR_SAPO_CONFIG, else the built-in draft's recipe.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run, in place of the file's `run`.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the newest complete checkpoint of the run.")] = False,
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
    data: Annotated[Path | None, typer.Option(help="Parquet file or folder; default: from the hub.")] = None,
    limit: Annotated[int | None, typer.Option(help="Number of rows to use, from the first one.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for rows and results; an interrupted run continues in it.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Schedule; default: the configuration's.")] = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint in place of the actors.")] = None,
    model: Annotated[str | None, typer.Option(help="Model at the endpoint; default: its first one.")] = None,
    concurrency: Annotated[int, typer.Option(help="Rows answered at the same time.")] = 1,
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
    methods: Annotated[
        str, typer.Option(help="Names, separated by commas; fpsr:alpha=0.5 changes a setting.")
    ] = BENCHED,
    problems: Annotated[int, typer.Option(help="Number of problems, or most rows of the benchmark.")] = 40,
    seed: Annotated[int, typer.Option(help="Seed of the problems.")] = 0,
    benchmark: Annotated[
        str | None, typer.Option(help="Rows of mathverse, mmbench, realworldqa or mmmu in place of problems.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Parquet file or folder of the benchmark; default: from the hub.")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="Values of a setting for each schedule: alpha=0.5,0.7 or window=1,2,4.")
    ] = None,
    config: ConfigFile = None,
    draft: Draft = None,
) -> None:
    """Measure methods and the target alone, interleaved on the same questions."""
    from dreamr.cli import bench as command
    from dreamr.errors import reported

    with reported():
        command.bench(
            problems, seed, methods, config, sweep=sweep, out=out, draft=draft, benchmark=benchmark, data=data
        )


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="YAML file for the threshold and what was measured.")],
    risk: Annotated[float, typer.Option(help="Most skipped steps that the target would reject, as a share.")] = 0.02,
    problems: Annotated[int, typer.Option(help="Number of held-out problems.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the problems.")] = 0,
    config: ConfigFile = None,
    draft: Draft = None,
) -> None:
    """Find the confidence of the draft above which its steps are accepted without a verdict: pipeline.skip_above."""
    from dreamr.cli import calibrate as command
    from dreamr.errors import reported

    with reported():
        command.calibrate(config, draft, problems=problems, seed=seed, risk=risk, out=out)


@app.command()
def serve(
    config: ConfigFile = None,
    draft: Draft = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all addresses.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    address: Annotated[
        str, typer.Option(help="Ray cluster: HOST:PORT, auto (the one of this machine), or local (a new one).")
    ] = "local",
) -> None:
    """Serve an OpenAI-compatible endpoint and its page until Ctrl-C."""
    from dreamr.cli import serve as command
    from dreamr.errors import reported

    with reported():
        command.serve(config, draft, host=host, port=port, address=address)


@app.command()
def simulate(
    scenario: Annotated[
        str, typer.Option(help="Preset (q32b-q2b, q32b-q4b, q32b-q2b-fitted) or a YAML file.")
    ] = "q32b-q2b",
    calibrate: Annotated[
        Path | None, typer.Option(help="report.json of a bench: take its latencies, compare with its speedups.")
    ] = None,
    problems: Annotated[int, typer.Option(help="Number of simulated problems.")] = 200,
    window: Annotated[int | None, typer.Option(help="Steps that the draft may write ahead.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for the document that --json prints.")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict speedups from latencies and acceptance rates, by running the schedules under a virtual clock."""
    from dreamr.cli import simulate as command
    from dreamr.errors import reported

    with reported():
        command.simulate(scenario, calibrate, problems, window, out=out, as_json=as_json)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dreamr {dreamr.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""
