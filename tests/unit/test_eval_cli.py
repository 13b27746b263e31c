"""`dreamr eval` from the command line: refusals before anything heavy, a run over real actors, a run over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from support.tiny import picture
from typer.testing import CliRunner, Result

from dreamr.bench.report import Report
from dreamr.cli.main import app


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    full = [{"image": {"bytes": picture(32, 32), "path": None}} | row for row in rows]
    datasets.Dataset.from_list(full).cast_column("image", datasets.Image()).to_parquet(path)
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = [{"question": f"How many are {number}?", "answer": str(number)} for number in range(4)]
    return write_rows(tmp_path / "rows.parquet", rows)


def scripted_config(folder: Path) -> str:
    engine = {"kind": "scripted", "num_steps": [2, 3], "step_tokens": [2, 3]}
    group = {role: {"engine": engine, "num_cpus": 0.1} for role in ("draft", "target", "verifier")}
    (folder / "config.yaml").write_text(yaml.safe_dump({"group": group}))
    return str(folder / "config.yaml")


def dreamr(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["eval", *arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--benchmark", "mmlu"], "--benchmark mmlu: there is no such benchmark; choose one of mathverse, mmbench"),
        (["--benchmark", "mmmu", "--limit", "0"], "--limit 0"),
        (["--benchmark", "mmmu", "--concurrency", "0"], "--concurrency 0"),
        (["--benchmark", "mmmu", "--model", "gpt"], "--base-url"),
        (["--benchmark", "mmmu", "--config", "none.yaml"], "no such configuration file"),
        (["--benchmark", "mmmu", "--data", "none.parquet"], "--data none.parquet: there is no such file"),
        (["--benchmark", "mmmu", "--data", "{data}"], "needs a column 'options', which is missing"),
        (["--benchmark", "mmmu", "--data", "{data}", "--out", "rows.parquet"], "--out rows.parquet: cannot be made"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = dreamr(*(argument.format(data=data) for argument in arguments), code=2)
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_hub_that_is_out_of_reach_is_one_sentence_and_loads_no_model(tmp_path: Path) -> None:
    check = (
        "import sys; from dreamr.cli.main import app\n"
        "try: app(['eval', '--benchmark', 'realworldqa'])\n"
        "except SystemExit as end: print('code', end.code)\n"
        "print('heavy', *({'ray', 'torch', 'transformers'} & sys.modules.keys()))"
    )
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", check], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "code 2\nheavy\n"
    assert "xai-org/RealworldQA: cannot be read from the hub" in done.stderr
    assert "--data" in done.stderr


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_over_actors_writes_rows_and_results_and_goes_on(data: str, tmp_path: Path) -> None:
    config = scripted_config(tmp_path)
    common = ["--benchmark", "realworldqa", "--data", data, "--config", config, "--out", str(tmp_path / "out")]
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


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_bench_over_a_benchmark_answers_its_rows_by_every_method(data: str, tmp_path: Path) -> None:
    config, out = scripted_config(tmp_path), tmp_path / "out"
    common = ["bench", "--methods", "autoregressive,fpsr", "--config", config, "--out", str(out)]
    rows = ["--benchmark", "realworldqa", "--data", data]
    result = CliRunner().invoke(app, [*common, *rows, "--problems", "9"])
    assert result.exit_code == 0, result.output
    report = Report.read(out / "report.json")
    assert (report.benchmark, report.data) == ("realworldqa", data)
    assert [(row.id, row.expected) for row in report.problems[::2]] == [(str(row), str(row)) for row in range(4)]
    assert [one.num_problems for one in report.methods] == [4, 4, 4], "the oracle is the third"
    assert "4 questions of realworldqa" in (out / "report.md").read_text()
    failed = CliRunner().invoke(app, [*common, "--data", data])
    assert "--data" in failed.stderr
    assert "name the --benchmark" in failed.stderr


class Endpoint(BaseHTTPRequestHandler):
    """As much of an OpenAI server as a client sees: one model, which reads the number off the question."""

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": "reader", "object": "model", "created": 0, "owned_by": "us"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        image, text = asked["messages"][0]["content"]
        assert image["image_url"]["url"].startswith("data:image/png;base64,")
        number = text["text"].split()[3].rstrip("?")
        if number == "2":
            self.reply({"error": {"message": "no such number", "type": "invalid_request_error"}}, status=400)
            return
        message = {"role": "assistant", "content": f"It is \\boxed{{{number}}}." if number != "3" else "It is"}
        finish = "stop" if number != "3" else "length"
        choice = {"index": 0, "message": message, "finish_reason": finish}
        usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
        self.reply(
            {"id": "1", "object": "chat.completion", "created": 0, "model": "reader", "choices": [choice]}
            | {"usage": usage}
        )

    def reply(self, document: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Quiet."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_run_over_an_endpoint(data: str, tmp_path: Path, endpoint: str) -> None:
    common = ["--benchmark", "realworldqa", "--data", data, "--base-url", endpoint]
    dreamr(*common, "--out", str(tmp_path / "out"), "--concurrency", "3")
    total = json.loads((tmp_path / "out/results.json").read_text())["total"]
    assert (total["num_rows"], total["correct"], total["truncated"], total["unparsed"]) == (4, 2, 1, 2)
    assert "row 2 because the endpoint refuses the row: " in (tmp_path / "out/results.md").read_text()
    refused = dreamr(*common, "--out", str(tmp_path / "other"), "--model", "writer", code=1)
    assert "--model writer: the endpoint offers reader." in refused.stderr


def test_an_endpoint_that_does_not_answer_is_one_sentence(data: str, tmp_path: Path) -> None:
    arguments = ["--benchmark", "realworldqa", "--data", data, "--out", str(tmp_path / "out")]
    result = dreamr(*arguments, "--base-url", "http://127.0.0.1:9/v1", code=1)
    assert "--base-url http://127.0.0.1:9/v1: no server answers there" in result.stderr
