"""Parts of the endpoint by themselves: the answer's text, the line, back-off, logs, metrics."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from ray._common.utils import import_attr
from ray.serve import Application
from ray.serve._private import constants
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema
from ray.util.metrics import Counter, Histogram, Metric
from support.serving import LocalGroup, scripted_config

import serve_app
from dreamr.config import Config, load_config
from dreamr.config.serve import GroupLimits, ImageLimits, ServeSettings
from dreamr.serve.errors import ApiError
from dreamr.serve.load import Load, RequestQueue, with_back_off
from dreamr.serve.metrics import Metrics, merge
from dreamr.serve.middleware import JsonFormatter, request_id
from dreamr.serve.service import SILENT_AFTER_S
from dreamr.serve.text import AnswerSplitter
from dreamr.tasks.prompts import PromptConfig, chat_messages
from dreamr.types import Prompt, Turn
from pipelines import Request, rule_of, run
from tools.load_report import Asked, summarise

ROOT = Path(__file__).parents[2]


def read(texts: list[str], thinks: bool = True, stop: tuple[str, ...] = ()) -> tuple[str, str]:
    reader = AnswerSplitter(thinks, stop)
    pieces = [reader.read(text) for text in texts] + [reader.finish()]
    return "".join(piece.reasoning for piece in pieces), "".join(piece.content for piece in pieces)


@given(st.text("<think>/ab\n", max_size=30), st.text("<think>/ab\nXY", max_size=30), st.data())
def test_the_text_is_split_the_same_way_however_it_arrives(thought: str, answer: str, data: Any) -> None:
    whole = f"{thought}</think>{answer}"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    reasoning, content = read(parts, stop=("XY",))
    assert (reasoning, content) == read([whole], stop=("XY",))
    first, _, rest = whole.removeprefix("<think>").partition("</think>")
    assert (reasoning, content) == (first, rest.lstrip().partition("XY")[0] if "XY" in rest else rest.lstrip())


def test_a_thought_without_an_end_is_no_answer() -> None:
    assert read(["a\n\n", "b </thi"]) == ("a\n\nb </thi", "")
    assert read(["a </think> b"], thinks=False) == ("", "a </think> b")


async def test_the_line_is_first_come_first_served_bounded_and_survives_those_who_leave_it() -> None:
    line = RequestQueue(1, 3, 60, lambda running, waiting: None)
    order: list[int] = []
    release = asyncio.Event()

    async def work(number: int) -> None:
        async with line.slot():
            order.append(number)
            await release.wait()

    tasks = [asyncio.create_task(work(number)) for number in range(4)]
    await asyncio.sleep(0)
    assert (line.num_running, line.num_waiting) == (1, 3)
    with pytest.raises(ApiError, match="which is the limit"):
        line.check(1)
    tasks[1].cancel()
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2, 3]
    assert (line.num_running, line.num_waiting) == (0, 0)


async def test_a_place_that_comes_as_its_waiter_leaves_goes_to_the_next() -> None:
    line = RequestQueue(1, 3, 60, lambda running, waiting: None)

    async def wait_for_a_place() -> None:
        async with line.slot():
            pass

    async with line.slot():
        gone, next_one = (asyncio.create_task(wait_for_a_place()) for _ in range(2))
        await asyncio.sleep(0)
    gone.cancel()  # the place is its own now, but it has not run since
    await asyncio.wait({gone, next_one}, timeout=5)
    assert gone.cancelled()
    assert next_one.done()
    assert (line.num_running, line.num_waiting) == (0, 0)


async def test_waiting_ends_at_the_deadline() -> None:
    line = RequestQueue(1, 3, 0.01, lambda running, waiting: None)
    async with line.slot():
        with pytest.raises(ApiError, match=r"waited 0\.01 s"):
            async with line.slot():
                pass
    assert (line.num_running, line.num_waiting) == (0, 0)


@pytest.mark.parametrize("number", range(8))
async def test_backing_off_changes_no_token_and_wastes_nothing_of_the_target(number: int) -> None:
    config = scripted_config(token_s=0.0005, verdict_s=0.0005)
    request = Request(Prompt(f"question {number}"), config.pipeline)
    free = await run(request, LocalGroup(config).handles)
    group = LocalGroup(config)
    crowded = Load(lambda: 5, write_ahead_up_to=4, draft_up_to=8)
    backed_off = await run(request, with_back_off(group.handles, crowded))
    assert backed_off.tokens == free.tokens
    assert backed_off.wasted_target_tokens == 0
    assert group.num_open_calls == 0
    alone = Load(lambda: 9, write_ahead_up_to=4, draft_up_to=8)
    plain = await run(request, with_back_off(LocalGroup(config).handles, alone))
    assert (plain.num_drafted, plain.coverage) == (0, 0)


def test_replicas_share_what_the_actors_bear() -> None:
    whole = ServeSettings(num_replicas=3, max_running=8, write_ahead_up_to=2, draft_up_to=1000)
    share = whole.of_one_replica()
    assert (share.max_running, share.write_ahead_up_to, share.draft_up_to) == (2, 1, 333)
    assert ServeSettings(num_replicas=9, max_running=4).of_one_replica().max_running == 1
    assert ServeSettings().of_one_replica() == ServeSettings()


@pytest.mark.parametrize("method", ["specreason", "token_speculative", "fpsr"])
async def test_metrics_count_what_was_done(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float, dict[str, str]]] = []

    def note(meter: Metric, value: float, tags: dict[str, str] | None = None) -> None:
        seen.append((meter.info["name"], value, tags or {}))

    for kind, name in ((Counter, "inc"), (Histogram, "observe")):
        monkeypatch.setattr(kind, name, note)
    config = scripted_config()
    settings = config.pipeline.model_copy(update={"method": method})
    trace = await run(Request(Prompt("how many?"), settings), LocalGroup(config).handles)
    Metrics().answered(trace, rule_of(settings), queued_s=100.0)
    tokens = {tags["source"]: value for name, value, tags in seen if name == "dreamr_generation_tokens_total"}
    accepted = [value for name, value, _ in seen if name == "dreamr_spec_decode_num_accepted_tokens_total"]
    assert sum(tokens.values()) == len(trace.tokens)
    assert [tokens["draft"]] == accepted
    assert any(name == "dreamr_verifier_rho" for name, _, _ in seen) == (method == "fpsr")
    waited = {name for name, value, _ in seen if value >= 100}
    assert waited == {
        f"dreamr_{name}"
        for name in ("e2e_request_latency_seconds", "time_to_first_step_seconds", "request_queue_time_seconds")
    }


@pytest.mark.parametrize("name", ["app", "build"])
def test_ray_serve_builds_the_application_by_either_name(name: str) -> None:
    application = call_user_app_builder_with_args_if_necessary(import_attr(f"serve_app:{name}"), {})
    assert isinstance(application, Application)


def test_earlier_turns_become_messages_and_part_of_the_key() -> None:
    earlier = (Turn("system", "Be brief."), Turn("user", "first?", 1), Turn("assistant", "one"))
    prompt = Prompt("second?", (b"1", b"2"), earlier)
    messages = chat_messages(prompt, PromptConfig(system="You count.", instruction=" Think."))
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"] == "You count.\n\nBe brief."
    assert [part["type"] for part in messages[1]["content"]] == ["image", "text"]
    assert messages[3]["content"] == [{"type": "image"}, {"type": "text", "text": "second? Think."}]
    assert prompt.key != Prompt("second?", (b"1", b"2")).key


def test_logs_are_json_with_the_request_id_and_the_cause() -> None:
    request_id.set("r-1")
    try:
        raise ValueError("why")
    except ValueError as error:
        record = logging.LogRecord("dreamr.x", logging.ERROR, "", 1, "it %s", ("failed",), (type(error), error, None))
    entry = json.loads(JsonFormatter().format(record))
    assert (entry["message"], entry["request_id"], entry["level"]) == ("it failed", "r-1", "ERROR")
    assert entry["error"].count("ValueError: why") == 1


def test_metrics_are_this_applications_with_each_head_once() -> None:
    text = "# TYPE ray_dreamr_x counter\nray_dreamr_x{a='1'} 1\nray_node_cpu 3\n# TYPE ray_node_cpu gauge\n"
    assert merge([text, text.replace("'1'", "'2'")]).splitlines() == [
        "# TYPE ray_dreamr_x counter",
        "ray_dreamr_x{a='1'} 1",
        "ray_dreamr_x{a='2'} 1",
    ]


def test_a_load_report_counts_only_the_time_in_which_there_was_work() -> None:
    rounds = [[Asked(0, 1, 10, True), Asked(0.5, 2, 10, False)], [Asked(100, 101, 10, True)]]
    row = summarise(rounds)
    assert (row["requests"], row["right"], row["throughput"], row["p50_s"]) == (3, 2, 1.0, 1.0)
    assert row["throughput_per_round"] == [1.0, 1.0]


@pytest.mark.skipif(not (ROOT / "docs/results/load.json").exists(), reason="no load report yet")
def test_speculation_does_not_make_a_loaded_endpoint_slower() -> None:
    rows = json.loads((ROOT / "docs/results/load.json").read_text())["rows"]
    throughput = {(row["concurrency"], row["method"]): row["throughput"] for row in rows}
    for level in {row["concurrency"] for row in rows}:
        assert throughput[level, "fpsr"] >= 0.95 * throughput[level, "autoregressive"], f"{level} clients"


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    source = (ROOT / "dreamr/serve/metrics.py").read_text()
    exported = {f"ray_{name}" for name in re.findall(r'"(dreamr_\w+)"', source)}
    documented = (ROOT / "docs/serving.md").read_text()
    dashboard = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_dreamr_\w+", target["expr"])
    }
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} <= exported
    assert all(name in documented for name in exported)


def test_every_serve_key_is_documented_and_the_ready_configuration_loads() -> None:
    documented = (ROOT / "docs/serving.md").read_text()
    for name in [*ServeSettings.model_fields, *ImageLimits.model_fields]:
        assert f"`{name}`" in documented, name
    assert isinstance(load_config(ROOT / "configs/serve-small.yaml"), Config)
    deployed = yaml.safe_load((ROOT / "deploy/serve.yaml").read_text())
    assert deployed["applications"][0]["import_path"] == "serve_app:build"


def test_a_hung_proxy_is_found_first_and_then_a_hung_replica() -> None:
    given = serve_app.CONTROLLER_OPTIONS["runtime_env"]["env_vars"]
    source = inspect.getsource(constants)
    assert all(f'"{name}"' in source for name in given)  # Ray reads these names
    manifest = yaml.safe_load((ROOT / "deploy/kuberay/rayservice.yaml").read_text())
    for text in ((ROOT / "deploy/serve.yaml").read_text(), manifest["spec"]["serveConfigV2"]):
        deployed = ServeDeploySchema.model_validate(yaml.safe_load(text)).controller_options
        assert deployed.runtime_env == serve_app.CONTROLLER_OPTIONS["runtime_env"]
    replica = serve_app.build()._bound_deployment._deployment_config
    proxy = [float(given[f"RAY_SERVE_PROXY_HEALTH_CHECK_{name}_S"]) for name in ("PERIOD", "TIMEOUT")]
    shutdown_s = float(given["RAY_SERVE_PROXY_GRACEFUL_SHUTDOWN_TIMEOUT_S"])
    proxy_s = constants.PROXY_HEALTH_CHECK_UNHEALTHY_THRESHOLD * sum(proxy) + shutdown_s
    replica_s = constants.REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD * replica.health_check_timeout_s
    assert replica.health_check_timeout_s > SILENT_AFTER_S  # a check waits for the actors
    assert proxy_s + 3 < replica_s  # replicas that stream to a hung proxy seem to hang as well
    assert replica_s + replica.health_check_period_s <= 35  # and seconds to start another


def test_groups_and_replicas_of_a_shared_group_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="exclude each other"):
        ServeSettings(num_replicas=2, groups=GroupLimits(max=2))
    with pytest.raises(ValidationError, match=r"is above serve\.groups\.max"):
        GroupLimits(min=3, max=2)
    assert ServeSettings(groups=GroupLimits(max=4), max_running=6).of_one_replica().max_running == 6
