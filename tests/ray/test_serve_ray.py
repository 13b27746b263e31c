"""The application on Ray Serve under faults: kill -9 of every process while it works, clients that go, deletion."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import ray
from ray import serve
from support.serving import QUESTION, LocalGroup, data_url, free_port, png, scripted_config, with_image
from support.toy_group import process_ended, toy_actor, toy_group

from dreamr.config import Config
from dreamr.config.serve import ServeSettings
from dreamr.engines.script import END_OF_ANSWER, Script
from dreamr.serve.replica import named
from dreamr.types import Prompt, Sampling, Step
from pipelines import Request, run
from serve_app import build

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

BACK_WITHIN_S = 60.0
"""Far above what it takes on an idle machine, which `tools.chaos` measures."""
APP = "pair"


@dataclass(frozen=True)
class Endpoint:
    url: str
    config: Config

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def allows(self, asked: Asked) -> bool:
        """Whether every step is the target's on its prefix, or a draft's that the verifier accepts there."""
        prompt, prefix, rest = Prompt(asked.question), (), asked.text
        draft, target = (Script(self.config.group.actors()[role].engine) for role in ("draft", "target"))
        sampling = Sampling(max_tokens=self.config.pipeline.max_step_tokens)
        while rest:
            drafted = Step(prefix, draft.step(prompt, prefix, sampling))
            own = Step(prefix, target.step(prompt, prefix, sampling))
            choices = [own, drafted] if target.rho(prompt, drafted) > self.config.pipeline.alpha else [own]
            step = next((step for step in choices if rest.startswith(text(step))), None)
            if step is None:
                return False
            prefix, rest = step.end, rest.removeprefix(text(step))
        return prefix[-1] == END_OF_ANSWER

    async def right_answer(self, question: str) -> str:
        """What any schedule that verifies has to commit: it depends on verdicts alone."""
        group = LocalGroup(scripted_config())
        settings = self.config.pipeline.model_copy(update={"method": "sequential"})
        trace = await run(Request(Prompt(question), settings), group.handles)
        return trace.text

    def process(self, role: str) -> int:
        group = named(self.config.group, APP)
        return next(actor["Pid"] for actor in alive() if actor["Name"] == f"{group.name}-{role}")

    def replica(self, tag: str) -> int:
        return next(actor["Pid"] for actor in alive() if actor["Name"].endswith(f"#{tag}"))


def text(step: Step) -> str:
    words = " ".join(str(token) for token in step.tokens if token > END_OF_ANSWER)
    return words + "\n\n" * (step.tokens[-1] != END_OF_ANSWER)


def alive() -> list[dict[str, Any]]:
    return [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]


@pytest.fixture(scope="module")
def endpoint(ray_cluster: None) -> Iterator[Endpoint]:
    """Two replicas over three actors whose models take some time."""
    config = scripted_config({"num_replicas": 2, "max_running": 16}, token_s=0.01, verdict_s=0.01)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build({"config": config}), name=APP, route_prefix="/")
    yield Endpoint(f"http://127.0.0.1:{port}", config)
    serve.shutdown()


@dataclass
class Asked:
    """One streamed request."""

    question: str
    replica: str = ""
    text: str = ""
    error: Exception | None = None


async def ask(client: openai.AsyncOpenAI, asked: Asked, started: asyncio.Event | None = None) -> Asked:
    try:
        raw = await client.chat.completions.with_raw_response.create(
            model="dreamr", messages=[{"role": "user", "content": asked.question}], stream=True
        )
        asked.replica = raw.headers["x-replica-id"]
        async for chunk in raw.parse():
            for choice in chunk.choices:
                asked.text += getattr(choice.delta, "reasoning", None) or ""
                if started and asked.text:
                    started.set()
    except (openai.APIError, httpx.HTTPError) as error:
        asked.error = error
    return asked


async def ask_many(client: openai.AsyncOpenAI, name: str, number: int) -> tuple[list[Asked], list[asyncio.Task[Asked]]]:
    """That many streams, all of which have begun to answer."""
    streams = [Asked(f"{name} {i}") for i in range(number)]
    started = [asyncio.Event() for _ in streams]
    tasks = [asyncio.create_task(ask(client, *one)) for one in zip(streams, started, strict=True)]
    await asyncio.gather(*(event.wait() for event in started))
    return streams, tasks


async def health(url: str) -> tuple[int, dict[str, Any]]:
    async with httpx.AsyncClient() as client:
        response = await client.get(f"{url}/health", timeout=30)
    return response.status_code, response.json()


async def until(url: str, is_so: Callable[[dict[str, Any]], bool]) -> tuple[float, int, dict[str, Any]]:
    """Ask for the health until it is so: seconds, HTTP status, body. Bounded by the test's own time."""
    began = time.monotonic()
    while True:
        status, body = await health(url)
        if is_so(body):
            return time.monotonic() - began, status, body
        await asyncio.sleep(0.05)


def is_ok(body: dict[str, Any]) -> bool:
    return bool(body["status"] == "ok")


@pytest.mark.parametrize(
    ("role", "said"), [("target", (503, "unavailable")), ("draft", (200, "degraded")), ("verifier", (200, "degraded"))]
)
async def test_a_killed_actor_costs_no_request_and_no_step(
    endpoint: Endpoint, role: str, said: tuple[int, str]
) -> None:
    before = {other: endpoint.process(other) for other in ("target", "draft", "verifier")}
    async with endpoint.client() as client:
        _, tasks = await ask_many(client, f"kill {role}", 6)
        os.kill(before[role], signal.SIGKILL)
        _, status, body = await until(endpoint.url, lambda body: not is_ok(body))
        assert (status, body["status"]) == said
        for asked in await asyncio.gather(*tasks):
            assert asked.error is None
            assert endpoint.allows(asked)
        assert (await until(endpoint.url, is_ok))[0] < BACK_WITHIN_S
        # The other replica may notice a moment later that the actor is back: until then its drafts are lost.
        right, deadline = await endpoint.right_answer("and now?"), time.monotonic() + BACK_WITHIN_S
        while (fresh := await ask(client, Asked("and now?"))).text != right:
            assert endpoint.allows(fresh)
            assert time.monotonic() < deadline
    after = {other: endpoint.process(other) for other in before}
    assert {other for other in before if after[other] != before[other]} == {role}


async def test_a_killed_replica_fails_its_own_requests_only_and_the_next_one_finds_the_actors(
    endpoint: Endpoint,
) -> None:
    actors = {role: endpoint.process(role) for role in ("target", "draft", "verifier")}
    async with endpoint.client() as client:
        streams, tasks = await ask_many(client, "kill replica", 8)
        victim = streams[0].replica
        os.kill(endpoint.replica(victim), signal.SIGKILL)
        for asked in await asyncio.gather(*tasks):
            right = await endpoint.right_answer(asked.question)
            if asked.replica == victim:
                assert right.startswith(asked.text)
            else:
                assert (asked.error, asked.text) == (None, right)
        replicas: set[str] = set()
        async with asyncio.timeout(BACK_WITHIN_S):
            while len(replicas - {victim}) < 2:
                asked = await ask(client, Asked("again"))
                replicas |= {asked.replica} if asked.error is None else set()
    assert {role: endpoint.process(role) for role in actors} == actors


async def test_with_a_key_and_its_own_retries_a_client_does_not_see_a_replica_die(endpoint: Endpoint) -> None:
    async with endpoint.client() as client:
        patient = client.with_options(max_retries=8)

        async def ask_whole(number: int) -> tuple[str, str]:
            question = f"retry {number}"
            answer = await patient.chat.completions.create(
                model="dreamr",
                messages=[{"role": "user", "content": question}],
                extra_headers={"Idempotency-Key": question},
            )
            return question, answer.choices[0].message.model_extra["reasoning"]

        streams, streaming = await ask_many(client, "seen", 2)
        whole = [asyncio.create_task(ask_whole(number)) for number in range(8)]
        os.kill(endpoint.replica(streams[0].replica), signal.SIGKILL)
        for question, text in await asyncio.gather(*whole):
            assert text == await endpoint.right_answer(question)
        await asyncio.gather(*streaming)


async def test_an_update_lets_running_answers_end(endpoint: Endpoint) -> None:
    """Other models take the place of these; a step of theirs takes a second."""
    url = f"{endpoint.url}/drain"

    def deploy(token_s: float) -> None:
        config = scripted_config({"max_running": 8}, token_s=token_s)
        serve.run(build({"config": config}), name="drain", route_prefix="/drain")

    await asyncio.to_thread(deploy, 0.05)
    async with httpx.AsyncClient(timeout=60) as client:
        body = {"model": "dreamr", "messages": QUESTION, "method": "autoregressive"}
        asked = [asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=body)) for _ in range(4)]
        await until(url, lambda health: health["running"] == 4)
        update = asyncio.create_task(asyncio.to_thread(deploy, 0.04))
        while not update.done():
            asked.append(asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=body | {"max_tokens": 8})))
            await asyncio.wait([asked[-1]])
        answers = await asyncio.gather(*asked)
        await update
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["x-replica-id"] for answer in answers}) == 2
    await asyncio.to_thread(serve.delete, "drain")


async def test_clients_get_through_ray_serve_what_they_know(endpoint: Endpoint) -> None:
    async with endpoint.client() as client:
        answer = await client.chat.completions.create(model="dreamr", messages=with_image(data_url(png())))
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].message.model_extra["reasoning"]
        with pytest.raises(openai.BadRequestError, match="host that this server allows"):
            await client.chat.completions.create(model="dreamr", messages=with_image("http://localhost/x.png"))
        with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
            await client.chat.completions.create(model="gpt", messages=QUESTION)


SLOW = {"model": "dreamr", "messages": QUESTION}


async def test_a_client_that_goes_frees_the_work_and_an_update_and_deletion_take_the_actors_along(
    endpoint: Endpoint,
) -> None:
    """Each step of these models takes ten seconds, unless it is stopped."""
    url = f"{endpoint.url}/slow"
    first = run_slow(token_s=0.02)
    async with httpx.AsyncClient() as client:
        asking = asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=SLOW, timeout=60))
        await until(url, lambda body: body["running"] == 1)
        asking.cancel()
        assert (await until(url, lambda body: body["running"] == 0))[0] < 5
        stream = client.stream("POST", f"{url}/v1/chat/completions", json=SLOW | {"stream": True, "timeline": True})
        async with stream as response:
            lines = response.aiter_lines()  # kept: the response closes with its iterator
            await anext(lines)
            await until(url, lambda body: body["running"] == 1)
            busy = await client.post(f"{url}/v1/chat/completions", json=SLOW)
            assert (busy.status_code, busy.headers["retry-after"]) == (503, "2")
        assert (await until(url, lambda body: body["running"] == 0))[0] < 5
        unable = await client.post(f"{url}/v1/chat/completions", json=SLOW | {"method": "token_speculative"})
        assert (unable.status_code, unable.json()["error"]["param"]) == (400, "method")
        assert "does not support token-level speculation" in unable.json()["error"]["message"]
    for token_s, num_replicas in ((0.03, 2), (0.04, 1)):
        second = run_slow(token_s, num_replicas) - first
        assert len(second) == 3
        assert all([await asyncio.to_thread(process_ended, process) for process in first])
        first = second
    await asyncio.to_thread(serve.delete, "slow")
    assert all([await asyncio.to_thread(process_ended, process) for process in second])
    assert not [actor for actor in alive() if actor["Name"].startswith("slow-")]


def run_slow(token_s: float, num_replicas: int = 1) -> set[int]:
    """Run (or update) an application without a line; the processes of its models' actors, old ones included."""
    group = toy_group(**{role: toy_actor(token_s=token_s) for role in ("draft", "target", "verifier")})
    limits = ServeSettings(max_running=num_replicas, max_queued=0, num_replicas=num_replicas)
    serve.run(build({"config": Config(group=group, serve=limits)}), name="slow", route_prefix="/slow")
    return {actor["Pid"] for actor in alive() if re.fullmatch(r"slow-\w+-(draft|target|verifier)", actor["Name"])}


async def test_the_documented_metrics_come_through_ray(endpoint: Endpoint) -> None:
    """All but the count of losses, which only kills bring, and of skipped verdicts, which are off.

    Ray writes them every ten seconds.
    """
    documented = set(re.findall(r"ray_dreamr_\w+", (Path(__file__).parents[2] / "docs/serving.md").read_text()))
    expected = {name for name in documented if "actor_losses" not in name and "num_skipped" not in name}
    given: set[str] = set()
    async with endpoint.client() as client:
        await asyncio.gather(*(ask(client, Asked(f"metrics {number}")) for number in range(4)))
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt")
    deadline = time.monotonic() + 40
    async with httpx.AsyncClient(base_url=endpoint.url) as http:
        while not expected <= given and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            given = set(re.findall(r"ray_dreamr_\w+", (await http.get("/metrics")).raise_for_status().text))
    assert len(expected) > 15
    assert not expected - given
