"""Requests that could stop the endpoint from serving others: too long, too large, too deep, too slow."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.serving import (
    QUESTION,
    Endpoint,
    LocalGroup,
    data_url,
    listening,
    png,
    running,
    scripted_config,
    with_image,
)

from dreamr.serve import bodies
from dreamr.serve.app import make_app
from dreamr.serve.bodies import MAX_DEPTH, MAX_VALUES, parse
from dreamr.serve.errors import BodyError
from dreamr.serve.service import Service

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with running(thinks=False, max_text_chars=1000, max_body_bytes=2_000_000) as it:
        yield it


def refusal(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


# -- prompts that are too long -----------------------------------------------------------------------------------------


async def test_a_prompt_that_is_too_long_takes_no_slot_and_no_actors_time() -> None:
    config = scripted_config({"max_running": 1, "max_queued": 0}, max_positions=50)
    group = LocalGroup(config)
    calls: list[str] = []
    for transport in group.transports.values():
        submit = transport.submit
        transport.submit = lambda method, *rest, submit=submit: (calls.append(method), submit(method, *rest))[1]  # type: ignore[method-assign]
    with listening(make_app(Service(group, config))) as url:
        http = httpx.AsyncClient(base_url=url)
        for stream in (False, True):
            body = {"model": "dreamr", "messages": [{"role": "user", "content": "word " * 50}], "stream": stream}
            error = refusal(await http.post(CHAT, json=body))
            assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
            assert "50 tokens" in error["message"]
        assert set(calls) == {"count_tokens"}
        assert (await http.post(CHAT, json=body | {"messages": QUESTION, "stream": False})).status_code == 200
        await http.aclose()


def test_an_answer_ends_where_the_models_context_ends() -> None:
    with running(thinks=False, max_positions=20) as endpoint:
        for method in ("fpsr", "token_speculative"):
            answer = endpoint.http.post(CHAT, json={"model": "dreamr", "messages": QUESTION, "method": method}).json()
            assert answer["choices"][0]["finish_reason"] == "length"
            assert answer["usage"]["total_tokens"] == 20


# -- bodies ------------------------------------------------------------------------------------------------------------

JUNK: dict[str, bytes] = {
    "empty parts": b'{"model": "dreamr", "messages": [{"role": "user", "content": [' + b"{}," * 400_000 + b"{}]}]}",
    "empty messages": b'{"model": "dreamr", "messages": [' + b"{}," * 9_000 + b"{}]}",
    "numbers": b"[" + b"1," * 500_000 + b"1]",
    "keys": json.dumps({f"key{number}": 0 for number in range(60_000)}).encode(),
    "deep lists": b"[" * 50_000 + b"]" * 50_000,
    "deep objects": b'{"a":' * 900 + b"1" + b"}" * 900,
}


@pytest.mark.parametrize("kind", list(JUNK))
def test_junk_is_one_short_error(endpoint: Endpoint, kind: str) -> None:
    response = endpoint.http.post(CHAT, content=JUNK[kind], headers={"Content-Type": "application/json"})
    refusal(response)
    assert len(response.content) < 1000


def test_what_is_too_dense_is_never_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies.json, "loads", lambda body: pytest.fail("parsed"))
    for kind in ("empty parts", "numbers", "deep lists"):
        with pytest.raises(BodyError, match="too many values"):
            parse(JUNK[kind], 1000)


def test_values_and_levels_are_counted_exactly() -> None:
    for text in (b"1", b'{"a": [1, {"b": "x, y, [z]"}]}', b"[" * MAX_DEPTH + b"]" * MAX_DEPTH):
        assert parse(text, 0) == json.loads(text)
    most = json.dumps([0] * (MAX_VALUES - 1)).encode()
    assert len(parse(most, 0)) == MAX_VALUES - 1
    with pytest.raises(BodyError, match="too many values"):
        parse(json.dumps([0] * MAX_VALUES).encode(), 0)
    with pytest.raises(BodyError, match="too deeply"):
        parse(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), 0)
    with pytest.raises(json.JSONDecodeError):
        parse(b'{"a": "\xff"}', 0)


def test_bodies_are_parsed_and_images_decoded_outside_of_the_event_loop(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, str] = {}
    for module, name in ((bodies.json, "loads"), (__import__("base64"), "b64decode")):
        real = getattr(module, name)

        def noting(*arguments: Any, real: Any = real, name: str = name, **options: Any) -> Any:
            threads[name] = threading.current_thread().name
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, noting)
    body = {"model": "dreamr", "messages": with_image(data_url(png()))}
    endpoint.http.post(CHAT, content=json.dumps(body), headers={"Content-Type": "application/json"}).raise_for_status()
    assert set(threads) == {"loads", "b64decode"}
    assert "server" not in threads.values()  # the thread of the event loop


async def test_many_large_bodies_at_once_are_refused_and_the_memory_is_free_again() -> None:
    with running(max_body_bytes=60_000, max_buffered_bytes=100_000) as endpoint:
        arrived, release = asyncio.Event(), asyncio.Event()
        body = json.dumps({"model": "dreamr", "messages": QUESTION, "user": "x" * 200}).encode()

        async def held() -> Any:
            yield body[:-1] + b" " * 50_000
            arrived.set()
            await release.wait()
            yield b"}"

        async with httpx.AsyncClient(base_url=endpoint.url, headers={"Content-Type": "application/json"}) as client:
            first = asyncio.create_task(client.post(CHAT, content=held()))
            await arrived.wait()
            assert refusal(await client.post(CHAT, content=body + b" " * 59_000), 503)["code"] == "overloaded"
            release.set()
            assert (await first).status_code == 200
            assert (await client.post(CHAT, content=body + b" " * 59_000)).status_code == 200


async def test_a_body_that_does_not_arrive_is_given_up() -> None:
    with running(body_deadline_s=0.1) as endpoint:

        async def never_ends() -> Any:
            yield b'{"model": '
            await asyncio.sleep(5)

        async with httpx.AsyncClient(base_url=endpoint.url, headers={"Content-Type": "application/json"}) as client:
            error = refusal(await client.post(CHAT, content=never_ends()), 408)
    assert "within 0.1 s" in error["message"]


# -- what is said of requests ------------------------------------------------------------------------------------------

LONG = "x" * 5000
ECHOES: dict[str, dict[str, Any]] = {
    "model": {"model": LONG},
    "field": {LONG: 1},
    "role": {"messages": [{"role": LONG, "content": "?"}]},
    "method": {"method": LONG},
    "part": {"messages": [{"role": "user", "content": [{"type": LONG}]}]},
}
INTERNAL = ("Value error", "tag", "discriminator", "dictionary", "extract", "pydantic", "Traceback", "Input should")


@pytest.mark.parametrize("kind", list(ECHOES))
def test_errors_neither_echo_without_bound_nor_speak_of_the_inside(endpoint: Endpoint, kind: str) -> None:
    response = endpoint.http.post(CHAT, json={"model": "dreamr", "messages": QUESTION} | ECHOES[kind])
    error = refusal(response, 404 if kind == "model" else 400)
    assert len(response.content) < 1000
    assert not [word for word in INTERNAL if word in error["message"]]


def test_a_missing_role_is_named(endpoint: Endpoint) -> None:
    for messages, said in (([{}], "'role' is missing"), (["hi"], "must be a JSON object")):
        error = refusal(endpoint.http.post(CHAT, json={"model": "dreamr", "messages": messages}))
        assert (error["param"], said in error["message"]) == ("messages.0", True)


def test_a_wrong_method_is_told_the_correct_one(endpoint: Endpoint) -> None:
    response = endpoint.http.get(CHAT)
    refusal(response, 405)
    assert response.headers["allow"] == "POST"


def test_a_model_can_be_retrieved_by_name(endpoint: Endpoint) -> None:
    assert endpoint.client.models.retrieve("dreamr") == endpoint.client.models.list().data[0]
    assert refusal(endpoint.http.get("/v1/models/a/b"), 404)["code"] == "model_not_found"


def test_browsers_of_allowed_origins_may_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMR_API_KEY", "secret")
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with running(cors_origins=["https://app.example.org"]) as endpoint:
        for origin, status in (("https://app.example.org", 200), ("https://evil.example.org", 400)):
            preflight = endpoint.http.options(CHAT, headers={"Origin": origin} | asks)
            assert preflight.status_code == status
            assert preflight.headers.get("access-control-allow-origin") == (origin if status == 200 else None)
        headers = {"Origin": "https://app.example.org", "Authorization": "Bearer secret"}
        response = endpoint.http.get("/v1/models", headers=headers)
        assert response.headers["access-control-allow-origin"] == "https://app.example.org"
    with running() as endpoint:
        assert (
            "access-control-allow-origin" not in endpoint.http.get("/health", headers={"Origin": "https://a.b"}).headers
        )


@pytest.mark.parametrize(
    "head", ["data:image/png;charset=utf-8;base64,", "DATA:IMAGE/PNG;BASE64,", "data:image/png;name=a.png;base64,"]
)
def test_data_urls_in_every_spelling_are_read(endpoint: Endpoint, head: str) -> None:
    payload = data_url(png()).partition(",")[2]
    lines = "\n".join(payload[at : at + 76] for at in range(0, len(payload), 76))
    for url in (head + payload, head + lines, head + lines.replace("\n", "\r\n")):
        body = {"model": "dreamr", "messages": with_image(url), "max_tokens": 3}
        assert endpoint.http.post(CHAT, json=body).status_code == 200
