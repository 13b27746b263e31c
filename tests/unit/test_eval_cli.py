"""`dreamr eval` from the command line: refusals before anything heavy, and a run over HTTP."""

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

import pytest
from support.parquet import numbers
from typer.testing import CliRunner, Result

from dreamr.cli.main import app


@pytest.fixture
def data(tmp_path: Path) -> str:
    return numbers(tmp_path / "rows.parquet")


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
