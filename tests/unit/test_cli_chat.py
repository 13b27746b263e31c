"""`dreamr chat` against an endpoint in this process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.serving import Endpoint, free_port, png, running
from typer.testing import CliRunner, Result

from dreamr.cli.main import app

STOPPED = "stopped: this message is not part of the conversation"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with running(token_s=0.001, thought_steps=(3, 3), max_text_chars=100) as endpoint:
        yield endpoint


def chat(url: str, *lines: str) -> Result:
    return CliRunner().invoke(app, ["chat", "--url", url], input="".join(f"{line}\n" for line in lines))


def test_a_conversation_has_its_earlier_messages_and_images(endpoint: Endpoint, tmp_path: Path) -> None:
    sent: list[dict] = []
    read = endpoint.service.read

    async def reading(request):
        sent.append([(message.role, message.content) for message in request.messages])
        return await read(request)

    endpoint.service.read = reading
    image = tmp_path / "a drawing.png"
    image.write_bytes(png())
    result = chat(endpoint.url, f"/image '{image}'", "how many?", "", "and then?", "/reset", "again?", "/exit")
    assert result.exit_code == 0, result.output
    roles = [[role for role, _ in messages] for messages in sent]
    assert roles == [["user"], ["user", "assistant", "user"], ["user"]]
    assert [part.type for part in sent[0][0][1]] == ["image_url", "text"]
    assert [part.type for part in sent[1][2][1]] == ["text"]
    first = result.stdout.split("> ")[2]
    reasoning, found, after = first.partition(sent[1][1][1])
    assert (bool(reasoning.strip()), bool(found), after.strip()) == (True, True, "")
    assert "</think>" not in result.stdout


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/image none.png", "none.png: there is no such file"),
        ("/imgae x", "/imgae is no command: /image PATH adds"),
        ("how many? " * 12, "at most 100"),
    ],
)
def test_a_line_that_is_refused_does_not_end_the_conversation(endpoint: Endpoint, line: str, sentence: str) -> None:
    result = chat(endpoint.url, line, "how many?")
    assert result.exit_code == 0
    refused, answered = result.stdout.split("> ")[1:3]
    assert sentence in " ".join(refused.split())
    assert len(answered.split()) > 10


def test_an_endpoint_that_is_away_is_named_in_one_sentence() -> None:
    result = chat(f"http://127.0.0.1:{free_port()}", "how many?")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "check the address" in result.stderr
    assert result.stderr.count("\n") == 1


def test_ctrl_c_ends_the_answer_and_its_work_but_not_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with running(token_s=0.05) as endpoint:

        def interrupt() -> None:
            while not endpoint.group.num_open_calls:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        result = chat(endpoint.url, "how many?", "/help")
        thread.join()
        while endpoint.group.num_open_calls:  # bounded by the test's own time
            time.sleep(0.01)
    assert result.exit_code == 0, result.output
    assert STOPPED in result.stdout
    assert result.stdout.index(STOPPED) < result.stdout.rindex("/image PATH")
