"""The endpoint over `configs/embedded-vllm.yaml`: questions with images, and the end of an idle vLLM."""

from __future__ import annotations

import base64
import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve
from support.serving import free_port, with_image

from dreamr.config import load_config
from dreamr.tasks.images import cold_copy
from dreamr.tasks.ledger import make_problem
from serve_app import build
from tools.chaos_faults import vllm_cores

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(3600)]

CONFIG = Path(__file__).parents[2] / "configs" / "embedded-vllm.yaml"
READY_S = 1800.0


@pytest.fixture(scope="module")
def client(ray_cluster: None) -> Iterator[httpx.Client]:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here")
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build({"config": load_config(CONFIG)}), name="vllm", route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
        yield client
    serve.shutdown()


def asked(client: httpx.Client, method: str, number: int) -> httpx.Response:
    """A question about an image that this endpoint has not seen."""
    problem = make_problem("test", 1, number)
    image = cold_copy(problem.prompt, f"{method} {number}").images[0]
    messages = with_image(f"data:image/png;base64,{base64.b64encode(image).decode()}")
    messages[0]["content"][1]["text"] = problem.prompt.question
    # A first draft that is rejected leaves the target with an image that was rendered, and perhaps never sent.
    body = {"model": "dreamr", "messages": messages, "method": method, "alpha": 0.999 if number % 2 else 0.7}
    return client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("method", ["autoregressive", "sequential", "fpsr", "lookahead"])
def test_questions_with_new_images_are_answered(client: httpx.Client, method: str) -> None:
    answers = [asked(client, method, number) for number in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert all(answer.json()["choices"][0]["message"]["content"] for answer in answers)


def test_a_target_whose_idle_vllm_is_killed_comes_back_by_itself(client: httpx.Client) -> None:
    assert client.get("/health").status_code == 200
    actors = [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]
    [target] = [actor["Pid"] for actor in actors if actor["Name"].endswith("-target")]
    cores = vllm_cores(target)
    assert cores
    for pid in cores:
        os.kill(pid, signal.SIGKILL)
    seen = statuses_until_well_again(client)
    assert 503 in seen  # noticed although nobody asked a question
    assert asked(client, "fpsr", 9).status_code == 200


def statuses_until_well_again(client: httpx.Client) -> list[int]:
    seen: list[int] = []
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and not (503 in seen and seen[-1] == 200):
        time.sleep(0.5)
        seen.append(client.get("/health").status_code)
    return seen
