"""Commands over real Ray actors around scripted engines: what is printed and written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from support.parquet import numbers
from support.tiny import picture
from typer.testing import CliRunner, Result

from dreamr.bench.actors import BenchActors
from dreamr.bench.methods import parse_methods
from dreamr.bench.report import Report
from dreamr.cli.main import app
from dreamr.config import PipelineSettings, load_config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
ENGINE = {"kind": "scripted", "token_s": 0.0005}


def write_config(path: Path, num_cpus: float = 0.1, engine: dict[str, Any] | None = None) -> str:
    actor = {"engine": engine or ENGINE, "num_cpus": num_cpus}
    path.write_text(yaml.safe_dump({"group": dict.fromkeys(("draft", "target", "verifier"), actor)}))
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> str:
    return write_config(tmp_path / "config.yaml")


@pytest.fixture
def image(tmp_path: Path) -> str:
    (tmp_path / "image.png").write_bytes(picture(32, 32))
    return str(tmp_path / "image.png")


@pytest.fixture
def data(tmp_path: Path) -> str:
    return numbers(tmp_path / "rows.parquet")


def dreamr(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result


def test_ask_prints_each_step_then_answer_counts_and_speedup(config: str, image: str) -> None:
    lines = dreamr("ask", "how many?", "--image", image, "--config", config).stdout.splitlines()
    assert lines[0].split()[:3] == ["1", "draft", "score"] or lines[0].split()[:2] == ["1", "target"]
    shown = "\n".join(lines)
    for part in ("answer", "orchestration", "acceptance", "coverage", "wasted tokens", "plain decoding", "speedup"):
        assert part in shown


def test_ask_as_json_is_one_document_on_stdout(config: str, image: str, tmp_path: Path) -> None:
    picture_path = tmp_path / "timeline.html"
    result = dreamr(
        "ask", "how many?", "--image", image, "--config", config, "--json", "--timeline", str(picture_path),
        "--alpha", "0.4", "--window", "2",
    )  # fmt: skip
    document = json.loads(result.stdout)
    assert document["result"]["method"] == "fpsr"
    assert document["settings"] | {"alpha": 0.4, "window": 2} == document["settings"]
    assert document["speedup"] == document["plain_decoding"]["wall_s"] / document["result"]["wall_s"]
    assert len(document["result"]["steps"]) == sum(line[2:3].isdecimal() for line in result.stderr.splitlines())
    assert picture_path.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("arguments", [["--no-compare"], ["--method", "autoregressive"]])
def test_nothing_is_compared_where_that_is_not_wanted(config: str, image: str, arguments: list[str]) -> None:
    result = dreamr("ask", "how many?", "--image", image, "--config", config, "--json", *arguments)
    assert json.loads(result.stdout)["speedup"] is None


def test_a_question_without_an_image_is_answered_without_a_comparison(config: str) -> None:
    document = json.loads(dreamr("ask", "how many?", "--config", config, "--json").stdout)
    assert document["plain_decoding"] is None
    assert document["result"]["steps"]


def test_too_few_resources_are_bad_input(tmp_path: Path) -> None:
    result = dreamr("ask", "how many?", "--config", write_config(tmp_path / "big.yaml", num_cpus=1000), code=2)
    assert "needed 3000 CPU" in result.stderr


def test_a_model_that_cannot_be_loaded_is_a_failure_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    config = write_config(tmp_path / "none.yaml", engine={"kind": "hf", "model": str(tmp_path / "nothing")})
    result = dreamr("ask", "how many?", "--config", config, code=1)
    assert result.stderr.startswith("dreamr: ")
    assert "nothing" in result.stderr
    assert "Traceback" not in result.stderr


def test_demo_prints_one_table_and_writes_its_report(config: str, tmp_path: Path) -> None:
    out, timeline = tmp_path / "report.json", tmp_path / "timeline.png"
    arguments = ["--problems", "3", "--config", config, "--out", str(out), "--timeline", str(timeline)]
    shown = dreamr("demo", *arguments).stdout
    assert shown.count("95 % interval") == 1
    for part in ("autoregressive", "fpsr", "unparsed", "speedup", "orchestration share", "machine", "command"):
        assert part in shown
    report = json.loads(out.read_text())
    assert [(row["problem"], row["method"]) for row in report["problems"]] == [
        (0, "autoregressive"), (0, "fpsr"), (1, "fpsr"), (1, "autoregressive"), (2, "autoregressive"), (2, "fpsr"),
    ]  # fmt: skip
    assert [len(method["actors"]) for method in report["methods"]] == [1, 3]
    assert timeline.read_bytes().startswith(b"\x89PNG")


def test_demo_as_json_is_one_document_on_stdout(config: str) -> None:
    report = json.loads(
        dreamr("demo", "--problems", "1", "--methods", "sequential", "--config", config, "--json").stdout
    )
    assert [method["name"] for method in report["methods"]] == ["sequential"]
    assert report["methods"][0]["speedup"] is None


def test_bench_writes_a_folder_with_a_checked_report(config: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "results"
    methods = "autoregressive,draft_alone,sequential,specreason,lookahead,lookahead_batch,parallel_prefix"
    methods += ",token_speculative,fpsr,transformers"
    arguments = ["--problems", "2", "--config", config, "--out", str(out), "--methods", methods]
    shown = dreamr("bench", *arguments, "--sweep", "window=1,2").stdout
    assert "transformers could not be measured: it runs checkpoints by transformers" in " ".join(shown.split())
    report = Report.read(out / "report.json")
    names = [*methods.split(",")[:-1]]
    assert [one.name for one in report.methods] == [
        *names,
        *(
            f"{name}:window={value}"
            for name in ("lookahead", "lookahead_batch", "parallel_prefix", "fpsr")
            for value in (1, 2)
        ),
        "oracle",
    ]
    alone, oracle = report.method("draft_alone"), report.method("oracle")
    assert alone is not None
    assert alone.actors == ["target"]
    assert oracle is not None
    assert (oracle.computed_from, oracle.busy_s) == ("sequential", {})
    assert {one.num_problems for one in report.methods} == {2}
    assert set(report.self_acceptance) == {"rho", "digit"}
    assert report.measured is not None
    for name in ("report.md", "speedup.png", "accuracy.png", "roles.png", "sweep-window.png"):
        assert (out / name).stat().st_size > 100
    predicted = json.loads(
        dreamr("simulate", "--calibrate", str(out / "report.json"), "--problems", "2", "--json").stdout
    )
    references = {row["method"]: row["reference"] for row in predicted["methods"]}
    assert {method for method, reference in references.items() if reference} == set(names) - {"draft_alone"}


def test_an_evaluation_writes_rows_and_results_and_goes_on(config: str, data: str, tmp_path: Path) -> None:
    common = ["eval", "--benchmark", "realworldqa", "--data", data, "--config", config, "--out", str(tmp_path / "out")]
    dreamr(*common, "--limit", "2")
    first = (tmp_path / "out/rows.jsonl").read_text()
    shown = dreamr(*common, "--concurrency", "2").stdout
    assert (tmp_path / "out/rows.jsonl").read_text().startswith(first)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["total"]["num_rows"] == results["categories"]["text"]["num_rows"] == 4
    assert results["total"]["acceptance_rate"] is not None
    assert "unparsed" in shown
    assert "| **all** | 4 |" in (tmp_path / "out/results.md").read_text()
    assert "another 'settings'" in dreamr(*common, "--method", "sequential", code=2).stderr


def test_a_bench_over_a_benchmark_answers_its_rows_by_every_method(config: str, data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ["bench", "--methods", "autoregressive,fpsr", "--config", config, "--out", str(out)]
    rows = ["--benchmark", "realworldqa", "--data", data]
    dreamr(*common, *rows, "--problems", "9")
    report = Report.read(out / "report.json")
    assert (report.benchmark, report.data) == ("realworldqa", data)
    assert [(row.id, row.expected) for row in report.problems[::2]] == [(str(row), str(row)) for row in range(4)]
    assert [one.num_problems for one in report.methods] == [4, 4, 4], "the oracle is the third"
    assert "4 questions of realworldqa" in (out / "report.md").read_text()
    failed = dreamr(*common, "--data", data, code=2)
    assert "--data" in failed.stderr
    assert "name the --benchmark" in failed.stderr


async def test_a_baseline_without_a_free_gpu_is_refused_at_once_and_the_others_run() -> None:
    """Ray would keep its actor waiting for as long as the group holds the GPUs."""
    config = load_config().group
    on_gpus = config.model_copy(update={"target": config.target.model_copy(update={"num_gpus": 1.0})})
    specs = parse_methods("transformers,transformers_assisted,draft_alone,fpsr+assistant", None, PipelineSettings())
    group: Any = SimpleNamespace(handles=SimpleNamespace(draft=SimpleNamespace(transport=None)))
    async with BenchActors(group, on_gpus, specs, cores=2) as actors:
        assert [method.spec.name for method in actors.methods] == ["draft_alone"]
    assert "the target has no assistant" in actors.failed["fpsr+assistant"]
    for name in ("transformers", "transformers_assisted"):
        assert "it loads separate models in addition to the group's actors: not enough resources" in actors.failed[name]
        assert "needed 1 GPU; the whole cluster has: 0 GPU" in actors.failed[name]
