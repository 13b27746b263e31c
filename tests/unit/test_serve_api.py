"""The HTTP interface, with the `openai` client against a real server in this process; the models are scripted."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from support.serving import QUESTION, Endpoint, data_url, free_port, png, running, settled, with_image
from typer.testing import CliRunner

from dreamr.cli.main import app as dreamr_app
from dreamr.errors import ActorLost
from dreamr.serve.service import Service


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with running(thinks=False, images={"max_pixels": 10_000, "max_bytes": 20_000}, max_body_bytes=100_000) as it:
        yield it


@pytest.fixture(scope="module")
def slow() -> Iterator[Endpoint]:
    with running(token_s=0.05, max_running=1, max_queued=1) as it:
        yield it


def test_a_stream_says_what_a_whole_answer_says(endpoint: Endpoint) -> None:
    ask = endpoint.client.chat.completions.create
    whole = ask(model="dreamr", messages=QUESTION)
    chunks = list(ask(model="dreamr", messages=QUESTION, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == whole.choices[0].message.content
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]
    assert chunks[-1].usage is not None
    assert not chunks[-1].choices
    assert chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks[:-1])
    steps = whole.choices[0].model_extra["dreamr"]["steps"]
    streamed = [
        origin for chunk in chunks for c in chunk.choices if "source" in (origin := c.model_extra.get("dreamr", {}))
    ]
    assert [step["source"] for step in streamed] == [step["source"] for step in steps]
    assert {step["source"] for step in steps} == {"draft", "target"}


def test_usage_adds_up(endpoint: Endpoint) -> None:
    answer = endpoint.client.chat.completions.create(model="dreamr", messages=QUESTION)
    usage, counts = answer.usage, answer.usage.model_extra["speculation"]
    steps = answer.choices[0].model_extra["dreamr"]["steps"]
    assert usage.prompt_tokens == 2
    assert usage.completion_tokens == sum(step["num_tokens"] for step in steps)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert counts["num_accepted"] == sum(step["source"] == "draft" for step in steps)
    assert counts["acceptance_rate"] == counts["num_accepted"] / counts["num_judged"]
    assert counts["num_draft_tokens"] == counts["num_accepted_tokens"] + counts["wasted_draft_tokens"]


def test_methods_and_their_parameters_change_the_answer_as_they_should(endpoint: Endpoint) -> None:
    def ask(**extra: object) -> Any:
        return endpoint.client.chat.completions.create(model="dreamr", messages=QUESTION, extra_body=extra)

    plain, fpsr, sequential = (ask(method=method) for method in ("autoregressive", "fpsr", "sequential"))
    assert fpsr.choices[0].message.content == sequential.choices[0].message.content
    assert plain.usage.model_extra["speculation"]["coverage"] == 0
    strict = ask(alpha=0.99)
    assert strict.choices[0].message.content == plain.choices[0].message.content
    assert (
        ask(window=1).usage.model_extra["speculation"]["num_drafts"]
        < fpsr.usage.model_extra["speculation"]["num_drafts"]
    )


def test_choices_differ_by_seed_and_repeat_with_it(endpoint: Endpoint) -> None:
    ask = endpoint.client.chat.completions.create
    several = [ask(model="dreamr", messages=QUESTION, n=3, temperature=1, seed=7) for _ in range(2)]
    texts = [[choice.message.content for choice in one.choices] for one in several]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3
    assert [choice.index for choice in several[0].choices] == [0, 1, 2]
    free = [ask(model="dreamr", messages=QUESTION, temperature=1).choices[0].message.content for _ in range(2)]
    assert free[0] != free[1]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_answer_and_work(endpoint: Endpoint, stream: bool) -> None:
    ask = endpoint.client.chat.completions.create
    text = ask(model="dreamr", messages=QUESTION).choices[0].message.content
    second = text.split("\n\n")[1]
    stop = second[3:8]
    answer = ask(model="dreamr", messages=QUESTION, stop=[stop, "never"], stream=stream)
    if stream:
        content = "".join(choice.delta.content or "" for chunk in answer for choice in chunk.choices)
    else:
        content = answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop"
        assert len(answer.choices[0].model_extra["dreamr"]["steps"]) == 2
    assert content == text[: text.index(stop)]


def test_a_budget_ends_with_length(endpoint: Endpoint) -> None:
    answer = endpoint.client.chat.completions.create(model="dreamr", messages=QUESTION, max_completion_tokens=7)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens < 14


def test_images_and_a_conversation_are_read(endpoint: Endpoint) -> None:
    first = endpoint.client.chat.completions.create(model="dreamr", messages=with_image(data_url(png())))
    history = [
        {"role": "system", "content": "be brief"},
        *with_image(data_url(png())),
        first.choices[0].message.model_dump() | {"reasoning": "dropped"},
        {"role": "user", "content": "and now?"},
    ]
    second = endpoint.client.chat.completions.create(model="dreamr", messages=history)
    assert second.choices[0].message.content != first.choices[0].message.content


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
    ({"temperature": "hot"}, "temperature", "valid number"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"n": 9}, "n", "at most 4"),
    ({"max_tokens": 10_000}, "max_tokens", "at most 200"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "one of them"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "belong to a stream"),
    ({"method": "magic"}, "method", "fpsr"),
    ({"alpha": 1}, "alpha", "less than 1"),
    ({"window": 99}, "window", "at most 16"),
    ({"tools": [{"type": "function"}]}, "tools", "not supported"),
    ({"top_logprobs": 1}, "top_logprobs", "not supported"),
    ({"best_of": 2}, "best_of", "not known here"),
    ({"stop": ["a"] * 5}, "stop", "at most 4"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": [{"role": "assistant", "content": "hm"}]}, "messages", "the user's"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages.0.content", "asks nothing"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0", "must be one of"),
    ({"messages": with_image("http://127.0.0.1/x.png")}, "messages.0.content.0.image_url.url", "host that this server"),
    ({"messages": with_image("data:text/html;base64,eA==")}, "messages.0.content.0.image_url.url", "data:image"),
    ({"messages": with_image(data_url(b"GIF89a" * 9))}, "messages.0.content.0.image_url.url", "cannot be read"),
    ({"messages": with_image(data_url(png(200, 100)))}, "messages.0.content.0.image_url.url", "200 x 100 pixels"),
    ({"messages": with_image(data_url(png()[:60]))}, "messages.0.content.0.image_url.url", "cannot be read"),
    ({"messages": with_image(data_url(b"0" * 30_000))}, "messages.0.content.0.image_url.url", "20000 bytes"),
    ({"messages": with_image(data_url(png())) * 9}, "messages", "9 images"),
]


@pytest.mark.parametrize(("changes", "param", "said"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_refused_by_name(
    endpoint: Endpoint, changes: dict[str, Any], param: str, said: str
) -> None:
    for stream in (False, True) if "stream_options" not in changes else (False,):
        body = {"model": "dreamr", "messages": QUESTION, "stream": stream} | changes
        response = endpoint.http.post("/v1/chat/completions", json=body)
        error = response.json()["error"]
        assert response.status_code == 400
        assert error["type"] == "invalid_request_error"
        assert error["param"].startswith(param)
        assert said in error["message"]


def test_other_errors_have_the_same_form(endpoint: Endpoint) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        endpoint.client.chat.completions.create(model="gpt", messages=QUESTION)
    url, http = "/v1/chat/completions", endpoint.http
    large = http.post(url, json={"model": "x" * 100_001, "messages": QUESTION})
    endless = http.post(url, content=iter([b"x" * 60_000] * 2))
    assert large.status_code == endless.status_code == 413
    for response in (large, endless, http.get(url), http.get("/none"), http.post(url, content=b"{")):
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    deep = http.post(url, content=b"[" * 50_000, headers={"Content-Type": "application/json"})
    surrogate = http.post(url, content=rb'{"model": "dreamr", "messages": [{"role": "user", "content": "\ud800"}]}')
    assert deep.status_code == surrogate.status_code == 400


def test_a_bug_is_500_without_its_details_and_logged_once(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*arguments: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(Service, "read", broken)
    with pytest.raises(openai.InternalServerError) as raised:
        endpoint.client.chat.completions.create(model="dreamr", messages=QUESTION)
    assert "secret" not in str(raised.value)
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]


def test_models_health_and_page(endpoint: Endpoint) -> None:
    [model] = endpoint.client.models.list().data
    assert (model.id, model.model_extra["methods"][0]) == ("dreamr", "autoregressive")
    health = endpoint.http.get("/health", headers={"X-Request-ID": "mine-1"})
    assert health.json()["status"] == "ok"
    assert health.headers["x-request-id"] == "mine-1"
    page = endpoint.http.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
        assert endpoint.http.get(path).status_code == 200, path


def test_health_follows_the_actors(endpoint: Endpoint) -> None:
    for role, expected in (("draft", (200, "degraded")), ("target", (503, "unavailable"))):
        endpoint.group.transports[role].lose()
        response = endpoint.http.get("/health")
        assert (response.status_code, response.json()["status"]) == expected
        endpoint.group.transports[role].restore()


def test_without_a_draft_the_target_answers_alone(endpoint: Endpoint) -> None:
    endpoint.group.transports["draft"].lose()
    answer = endpoint.client.chat.completions.create(model="dreamr", messages=QUESTION)
    endpoint.group.transports["draft"].restore()
    assert answer.usage.model_extra["speculation"]["coverage"] == 0


def test_a_target_that_is_gone_is_503(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone() -> None:
        raise ActorLost("the target did not come back")

    endpoint.group.transports["target"].lose()
    monkeypatch.setattr(endpoint.group.transports["target"], "recovered", gone)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as raised:
            endpoint.client.chat.completions.create(model="dreamr", messages=QUESTION, stream=stream)
        assert raised.value.status_code == 503
        assert raised.value.response.headers["retry-after"]
        assert raised.value.code == "target_unavailable"
    endpoint.group.transports["target"].restore()


def test_an_error_in_the_middle_of_a_stream_is_an_event_and_the_stream_ends(endpoint: Endpoint) -> None:
    writer = endpoint.group.transports["target"]
    original = writer.engine.next_step

    async def breaks_later(call_id: str, prompt: Any, after: Any, *rest: Any) -> Any:
        if len(after.end) > 10:
            raise RuntimeError("secret detail")
        return await original(call_id, prompt, after, *rest)

    writer.engine.next_step = breaks_later  # type: ignore[method-assign]
    body = {"model": "dreamr", "messages": QUESTION, "stream": True, "method": "autoregressive"}
    lines = [line for line in endpoint.http.post("/v1/chat/completions", json=body).text.split("\n\n") if line]
    writer.engine.next_step = original  # type: ignore[method-assign]
    assert lines.count("data: [DONE]") == 1
    assert lines[-1] == "data: [DONE]"
    error = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert "secret" not in str(lines)


async def test_beyond_the_line_is_503_and_a_client_that_goes_frees_its_place(slow: Endpoint) -> None:
    body = {"model": "dreamr", "messages": QUESTION}
    url = f"{slow.url}/v1/chat/completions"
    async with httpx.AsyncClient(timeout=30) as client:
        asked = [asyncio.create_task(client.post(url, json=body | {"stream": stream})) for stream in (False, True)]
        await settled(lambda: slow.service.queue.num_waiting == 1)
        refused = await client.post(url, json=body | {"stream": True})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "2"
        assert refused.json()["error"]["code"] == "overloaded"
        for task in asked:
            task.cancel()
        await settled(lambda: slow.service.queue.num_running + slow.service.queue.num_waiting == 0)
    assert slow.group.num_open_calls == 0
    async with (
        httpx.AsyncClient(timeout=30) as client,
        client.stream("POST", url, json=body | {"stream": True}) as response,
    ):
        lines = response.aiter_lines()  # kept: the response closes with its iterator
        await anext(lines)
        assert slow.service.queue.num_running == 1
    await settled(lambda: slow.service.queue.num_running == 0)
    assert slow.group.num_open_calls == 0


def test_with_a_key_only_health_and_the_page_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMR_API_KEY", "first, second")
    with running() as endpoint:

        def status(path: str, key: str | None, endpoint: Endpoint = endpoint) -> int:
            headers = {"Authorization": f"Bearer {key}".encode()} if key else {}
            return endpoint.http.get(path, headers=headers).status_code

        assert [status(path, None) for path in ("/health", "/", "/page/style.css")] == [200, 200, 200]
        closed = ["/v1/models", "/metrics", "/openapi.json", "/v1/problems/sample", "/page/../v1/models", "//v1/models"]
        assert {status(path, key) for path in closed for key in (None, "wrong", "first,", "é")} == {401}
        assert status("/v1/models", "second") == 200
        assert status("/%2e%2e/v1/models", None) == 401
        with pytest.raises(openai.AuthenticationError, match="valid API key"):
            endpoint.client.chat.completions.create(model="dreamr", messages=QUESTION)


def test_a_question_from_the_command_line_goes_to_the_endpoint(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    given = CliRunner().invoke(dreamr_app, ["ask", "how many?", "--url", endpoint.url, "--seed", "3", "--json"])
    assert given.exit_code == 0, given.output
    document = json.loads(given.stdout)
    asked = endpoint.client.chat.completions.create(model="dreamr", messages=QUESTION, seed=3)
    assert document["answer"] == asked.choices[0].message.content.strip()
    assert len(document["run"]["steps"]) >= 4
    refused = CliRunner().invoke(dreamr_app, ["ask", "how many?", "--url", endpoint.url, "--method", "fprs"])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "method: choose one of autoregressive" in refused.stderr
    gone = CliRunner().invoke(dreamr_app, ["ask", "how many?", "--url", f"http://127.0.0.1:{free_port()}"])
    assert gone.exit_code == 1
    assert "check the address" in gone.stderr
