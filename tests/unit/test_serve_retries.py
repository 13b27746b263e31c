"""Retries under an Idempotency-Key, at another replica: nothing is written twice and nothing is lost."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from support.serving import QUESTION, LocalGroup, listening, replicas, scripted_config, settled

from dreamr.serve.app import make_app
from dreamr.serve.retries import AnswerStore, Finished
from dreamr.serve.service import Service
from pipelines.trace import CommittedStep

CHAT = "/v1/chat/completions"
KEY = {"Idempotency-Key": "mine-1"}


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "dreamr", "messages": QUESTION, "method": "sequential"} | changes


async def begin(client: httpx.AsyncClient, url: str, num_steps: int, **changes: Any) -> str:
    """Read so many steps of a stream, then hang up; their text."""
    said = ""
    async with client.stream("POST", url + CHAT, json=body(stream=True, **changes), headers=KEY) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                [choice] = json.loads(line[6:])["choices"]
                said += choice["delta"].get("reasoning", "")
                num_steps -= "source" in choice.get("dreamr", {})
            if num_steps == 0:
                return said
    raise AssertionError("the answer was shorter")


@pytest.mark.parametrize("temperature", [0, 1])
async def test_a_retry_at_another_replica_goes_on_where_the_first_was_cut_off(temperature: float) -> None:
    with replicas(scripted_config(token_s=0.002), 2) as (group, urls):
        async with httpx.AsyncClient(timeout=30) as client:
            said = await begin(client, urls[0], 2, temperature=temperature)
            await settled(lambda: not group.num_open_calls)
            prefixes: list[int] = []
            submit = group.transports["target"].submit

            def noting(method: str, call_id: str, prompt: Any, *rest: Any) -> Any:
                if method == "next_step":
                    prefixes.append(len(rest[0].end))
                return submit(method, call_id, prompt, *rest)

            group.transports["target"].submit = noting  # type: ignore[method-assign]
            again, once_more = [
                (await client.post(urls[1] + CHAT, json=body(temperature=temperature), headers=KEY)).json()
                for _ in range(2)
            ]
            num_calls = len(prefixes)
            [choice] = again["choices"]
            assert choice["message"]["reasoning"].startswith(said)
            assert choice["finish_reason"] == "stop"
            assert len(choice["dreamr"]["steps"]) >= 4
            assert all(prefix > 0 for prefix in prefixes)
            assert once_more["choices"][0]["message"] == choice["message"]
            assert once_more["id"] == again["id"]
            assert once_more["usage"]["completion_tokens"] == again["usage"]["completion_tokens"]
            assert len(prefixes) == num_calls  # the finished answer was found
            if not temperature:
                fresh = (await client.post(urls[0] + CHAT, json=body())).json()
                assert fresh["choices"][0]["message"] == choice["message"]
                assert fresh["id"] != again["id"]


async def test_a_later_request_takes_over_from_one_that_still_runs() -> None:
    with replicas(scripted_config(token_s=0.01), 2) as (group, urls):
        async with httpx.AsyncClient(timeout=30) as client:
            first = asyncio.create_task(client.post(urls[0] + CHAT, json=body(), headers=KEY))
            await settled(lambda: group.num_open_calls > 0)
            second = await client.post(urls[1] + CHAT, json=body(), headers=KEY)
            assert second.status_code == 200
            superseded = await first
            assert (superseded.status_code, superseded.json()["error"]["code"]) == (409, "superseded")
    assert group.num_open_calls == 0


async def test_streams_and_responses_find_finished_answers_too() -> None:
    with replicas(scripted_config(), 2) as (_, urls):
        async with httpx.AsyncClient(timeout=30) as client:
            whole = (await client.post(urls[0] + CHAT, json=body(n=2, temperature=1), headers=KEY)).json()
            stream = await client.post(urls[1] + CHAT, json=body(n=2, temperature=1, stream=True), headers=KEY)
            texts = {0: "", 1: ""}
            for line in stream.text.split("\n\n"):
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        texts[choice["index"]] += choice["delta"].get("reasoning", "")
            assert list(texts.values()) == [choice["message"]["reasoning"] for choice in whole["choices"]]
            other = {"Idempotency-Key": "mine-2"}
            asked = {"model": "dreamr", "input": "how many?"}
            one, two = [(await client.post(f"{url}/v1/responses", json=asked, headers=other)).json() for url in urls]
            assert (one["id"], one["output"]) == (two["id"], two["output"])


async def test_a_key_belongs_to_one_request_and_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMR_API_KEY", "a,b")
    with replicas(scripted_config(), 1) as (_, [url]):
        async with httpx.AsyncClient(timeout=30, base_url=url) as client:

            async def ask(api_key: str, **changes: Any) -> httpx.Response:
                return await client.post(
                    CHAT, json=body(**changes), headers=KEY | {"Authorization": f"Bearer {api_key}"}
                )

            first = await ask("a")
            reused = await ask("a", messages=[{"role": "user", "content": "something else"}])
            assert (reused.status_code, reused.json()["error"]["code"]) == (400, "idempotency_key_reused")
            assert (await ask("b")).json()["id"] != first.json()["id"]
            bad = {"Authorization": "Bearer a", "Idempotency-Key": "x" * 256}
            assert (await client.post(CHAT, json=body(), headers=bad)).status_code == 400


def test_a_store_forgets_what_is_old_and_fences_earlier_owners() -> None:
    store = AnswerStore(keep_s=60)
    step = CommittedStep(0, "target", (1, 2), "a", None, 0.1)
    first = store.claim("key", "digest", "id-1", 7, 1)
    assert store.append("key", first.owner, 0, step)
    second = store.claim("key", "digest", "id-2", 8, 1)
    assert (second.id, second.seed, second.choices[0].steps) == ("id-1", 7, [step])
    assert not store.append("key", first.owner, 0, step)
    assert store.claim("key", "another", "id-3", 9, 1).owner == second.owner
    assert store.finish("key", second.owner, 0, Finished(trace=None, queued_s=0.0))  # type: ignore[arg-type]
    forgetful = AnswerStore(keep_s=0.0)
    claim = forgetful.claim("key", "digest", "id-1", 7, 1)
    assert forgetful.append("key", claim.owner, 0, step)
    assert not forgetful.claim("key", "digest", "id-2", 7, 1).choices[0].steps


def test_an_owner_whose_claim_was_evicted_cannot_add_to_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamr.serve.retries.MAX_TOKENS", 1)
    store = AnswerStore(keep_s=60)
    evicted = store.claim("key", "digest", "id-1", 7, 1)
    store.claim("other", "digest", "id-2", 8, 1)
    later = store.claim("key", "digest", "id-3", 9, 1)
    assert later.id == "id-3"
    assert not store.append("key", evicted.owner, 0, CommittedStep(0, "target", (1, 2), "a", None, 0.1))


async def test_without_the_store_requests_are_answered_all_the_same() -> None:
    class Away:
        async def submit(self, method: str, *arguments: Any) -> Any:
            raise ConnectionError("gone")

    config = scripted_config()
    with listening(make_app(Service(LocalGroup(config), config, answers=Away()))) as url:
        async with httpx.AsyncClient() as client:
            assert (await client.post(url + CHAT, json=body(), headers=KEY)).status_code == 200
