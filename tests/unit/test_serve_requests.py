"""Requests beside each other and every method's counts and lanes, over HTTP; the models are scripted."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.serving import QUESTION, Endpoint, LocalGroup, data_url, png, running, scripted_config, with_image

from dreamr.config import PipelineSettings
from dreamr.errors import TooLong, Unable
from dreamr.serve import service as service_module
from dreamr.serve.app import OPEN_PATHS
from dreamr.serve.errors import ApiError
from dreamr.serve.questions import QuestionReader
from dreamr.serve.schema import ChatRequest
from dreamr.serve.service import Service
from dreamr.types import Prompt, Role
from tools.load import measure

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with running(thinks=False) as it:
        yield it


def body(**changes: object) -> dict[str, Any]:
    return {"model": "dreamr", "messages": QUESTION} | changes


def events(endpoint: Endpoint, **changes: object) -> list[dict[str, Any]]:
    """The chunks of a stream."""
    lines = endpoint.http.post(CHAT, json=body(stream=True, **changes)).text.split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


async def test_requests_with_one_id_do_not_stop_each_others_steps(endpoint: Endpoint) -> None:
    asked = [body(messages=[{"role": "user", "content": f"question {number}"}]) for number in range(6)]
    async with httpx.AsyncClient(base_url=endpoint.url, headers={"X-Request-ID": "mine"}) as same:
        together = await asyncio.gather(*(same.post(CHAT, json=one) for one in asked))
    alone = [endpoint.http.post(CHAT, json=one) for one in asked]
    said = [[response.json()["choices"][0]["message"]["content"] for response in some] for some in (together, alone)]
    assert said[0] == said[1]
    assert {response.headers["x-request-id"] for response in together} == {"mine"}
    assert len({response.json()["id"] for response in together}) == 6


def test_cold_answers_with_one_id_share_no_cache(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []

    async def count_tokens(prompt: Prompt) -> int:
        keys.append(prompt.key)
        return 1

    monkeypatch.setattr(endpoint.group.transports["target"].engine, "count_tokens", count_tokens)
    for cold in (True, True, False, False):
        asked = body(messages=with_image(data_url(png())), cold=cold)
        endpoint.http.post(CHAT, json=asked, headers={"X-Request-ID": "mine"}).raise_for_status()
    assert len(set(keys)) == 3


@pytest.mark.parametrize(("silent", "said"), [("draft", (200, "degraded")), ("target", (503, "unavailable"))])
async def test_health_waits_for_no_actor_that_hangs(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, silent: Role, said: tuple[int, str]
) -> None:
    released = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def check_one(role: Role) -> bool:
        if role == silent:  # on the server's event loop
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(released.wait(), loop))
        return True

    monkeypatch.setattr(endpoint.group, "check_one", check_one)
    monkeypatch.setattr(service_module, "SILENT_AFTER_S", 0.1)
    async with httpx.AsyncClient(base_url=endpoint.url) as client:
        for _ in range(2):
            response = await client.get("/health")
            assert (response.status_code, response.json()["status"]) == said
            assert [role for role, up in response.json()["actors"].items() if not up] == [silent]
        released.set()
        assert (await client.get("/health")).json()["status"] == "ok"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "param"),
    [(ValueError("a bug"), 500, None), (TooLong("too long"), 400, "messages"), (Unable("cannot"), 400, "method")],
)
def test_only_what_a_client_can_mend_is_its_fault(
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    status: int,
    param: str | None,
    stream: bool,
) -> None:
    async def broken(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(endpoint.group.transports["target"].engine, "next_step", broken)
    response = endpoint.http.post(CHAT, json=body(method="autoregressive", stream=stream))
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(logged) == (status == 500)


async def test_a_method_that_does_not_fit_the_servers_verdict_is_refused_with_the_way_out() -> None:
    config = scripted_config().model_copy(update={"pipeline": PipelineSettings(method="sequential", verdict="same")})
    service = Service(LocalGroup(config), config)
    with pytest.raises(ApiError, match=r"method = 'fpsr' .* use it with lookahead") as raised:
        await service.read(ChatRequest.model_validate(body(method="fpsr")))
    assert (raised.value.status, raised.value.param) == (400, "method")
    assert (await service.read(ChatRequest.model_validate(body(method="lookahead")))).settings.verdict == "same"


async def test_sampling_is_the_requests_else_the_configurations_else_the_checkpoints() -> None:
    config = scripted_config()
    pipeline = PipelineSettings.model_validate(config.pipeline.model_dump(exclude_unset=True) | {"top_k": 5})
    config = config.model_copy(update={"pipeline": pipeline})
    service = Service(LocalGroup(config, {"temperature": 0.7, "top_p": 0.8, "top_k": 20}), config)
    settings = (await service.read(ChatRequest.model_validate(body(top_p=0.5)))).settings
    assert (settings.temperature, settings.top_p, settings.top_k) == (0.7, 0.5, 5)
    assert (await service.read(ChatRequest.model_validate(body(temperature=0)))).settings.temperature == 0


async def test_few_prompts_are_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    config = scripted_config({"max_running": 2})
    service, reading, most = Service(LocalGroup(config), config), 0, 0

    async def read_prompt(*arguments: object) -> Prompt:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        await asyncio.sleep(0.01)
        reading -= 1
        return Prompt("?")

    monkeypatch.setattr(QuestionReader, "_conversation", read_prompt)
    await asyncio.gather(*(service.read(ChatRequest.model_validate(body())) for _ in range(6)))
    assert most == 2


def test_token_speculation_is_counted_in_tokens(endpoint: Endpoint) -> None:
    alone, answer = (
        endpoint.client.chat.completions.create(model="dreamr", messages=QUESTION, n=2, extra_body={"method": method})
        for method in ("autoregressive", "token_speculative")
    )
    assert answer.choices[0].message.content == alone.choices[0].message.content
    counts, usage = answer.usage.model_extra["speculation"], answer.usage
    assert 0 < counts["num_accepted_tokens"] == counts["num_draft_tokens"] - counts["wasted_draft_tokens"]
    assert counts["num_accepted"] == counts["num_accepted_tokens"] < counts["num_judged"]
    assert counts["coverage"] == pytest.approx(counts["num_accepted_tokens"] / usage.completion_tokens)
    assert usage.completion_tokens_details.accepted_prediction_tokens == counts["num_accepted_tokens"]


@pytest.mark.parametrize("method", ["fpsr", "specreason"])
def test_rho_is_shown_where_drafts_are_judged_by_it(endpoint: Endpoint, method: str) -> None:
    answer = endpoint.client.chat.completions.create(
        model="dreamr", messages=QUESTION, extra_body={"method": method, "alpha": 0.7, "timeline": True}
    )
    run, by_rho = answer.choices[0].model_extra["dreamr"], method == "fpsr"
    judged = [step for step in run["steps"] if step["accepted"] is not None]
    assert {step["accepted"] for step in judged} == {True, False}
    assert all((step["rho"] is not None) == by_rho for step in judged)
    assert all(step["accepted"] == (step["source"] == "draft") for step in judged)
    assert (answer.usage.model_extra["speculation"]["mean_rho"] is not None) == by_rho
    verdicts = [span for span in run["timeline"] if span["outcome"] == "verdict"]
    assert {span["accepted"] for span in verdicts} == {True, False}
    assert all((span["rho"] is not None) == by_rho for span in verdicts)


def test_verdicts_in_lanes_go_by_alpha(endpoint: Endpoint) -> None:
    chunks = events(endpoint, alpha=0.99, timeline=True)
    shown = [chunk["choices"][0].get("dreamr", {}) for chunk in chunks]
    live = [event["accepted"] for event in shown if event.get("lane") == "verifier" and "rho" in event]
    final = [span["accepted"] for span in shown[-1]["timeline"] if span["outcome"] == "verdict"]
    assert live
    assert not any(live + final)  # no rho is above 0.99


LANES = {
    "fpsr": {"draft", "target", "verifier"},
    "lookahead_batch": {"draft", "target", "verifier"},
    "parallel_prefix": {"draft", "target", "verifier"},
    "token_speculative": {"draft", "target"},
}


@pytest.mark.parametrize("method", list(LANES))
def test_every_kind_of_call_has_its_live_lane(endpoint: Endpoint, method: str) -> None:
    shown = [chunk["choices"][0].get("dreamr", {}) for chunk in events(endpoint, method=method, timeline=True)]
    begun = {event["call"]: event for event in shown if "at" in event and "call" in event}
    ended = {event["call"]: event for event in shown if "end" in event and "call" in event}
    assert {event["lane"] for event in begun.values()} == LANES[method]
    assert set(ended) == set(begun)
    assert not any(event.get("lost") for event in ended.values())
    if method != "token_speculative":
        assert any(event.get("prefill") for event in ended.values()) == (method != "lookahead_batch")
        assert any("accepted" in event for event in ended.values())


def test_every_chunk_has_a_finish_reason(endpoint: Endpoint) -> None:
    choices = [choice for chunk in events(endpoint) for choice in chunk["choices"]]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]


async def test_the_load_test_and_the_document_know_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "secret")
    with running(thinks=False, api_key_env="OTHER_KEY") as endpoint:
        [row] = await measure(endpoint.url, endpoint.service.settings, ["autoregressive"], [1], 2, 1)
        assert row["requests"] == 2
        document = endpoint.http.get("/openapi.json", headers={"Authorization": "Bearer secret"}).json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("401" in operation["responses"]) == (path not in OPEN_PATHS), path
            assert operation.get("security") == (None if path in OPEN_PATHS else [{"key": []}]), path
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
