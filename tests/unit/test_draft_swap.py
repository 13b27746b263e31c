"""Replacing the draft's weights between two calls: in an actor, and by the endpoint for administrators."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from support.permuted import permuted_copy
from support.serving import LocalAnswers, LocalGroup, listening, scripted_config, settled

from actors.roles import DraftActor, TargetActor
from actors.swap import DraftWeights
from dreamr.config import HFEngineConfig
from dreamr.engines.factory import build_engine, model_location
from dreamr.errors import ActorLost
from dreamr.serve.app import make_app
from dreamr.serve.drafts import DraftRecord, DraftSwitch, ReplicaDraft
from dreamr.serve.service import Service
from dreamr.tasks.ledger import make_problem
from dreamr.types import EngineInfo, Role, Sampling, Step

PROMPT = make_problem("test", 2, 5).prompt
GREEDY = Sampling(max_tokens=60)
OLD, NEW = "embedded:draft-untrained", "embedded:draft"


def engine(model: str, assistant: str | None = None) -> object:
    return build_engine(HFEngineConfig(model=model, assistant=assistant)).engine


async def chain(actor: DraftActor, name: str) -> list[tuple[int, ...]]:
    steps = [Step()]
    while not steps[-1].closed and len(steps) < 8:
        steps.append(await actor.next_step(f"{name} {len(steps)}", PROMPT, steps[-1], GREEDY))
    return [step.tokens for step in steps]


async def test_a_swapped_draft_writes_what_the_new_checkpoint_writes() -> None:
    actor, new = DraftActor.around(engine(OLD)), DraftActor.around(engine(NEW))
    before = await chain(actor, "before")
    running = asyncio.create_task(actor.next_step("running", PROMPT, Step(), GREEDY))
    await asyncio.sleep(0)
    info = await actor.swap_draft(DraftWeights(2, NEW))
    assert info.model == NEW
    assert (await running).tokens == before[1]
    assert await chain(actor, "after") == await chain(new, "new") != before
    await actor.swap_draft(DraftWeights(1, OLD))
    assert (await actor.info()).model == NEW  # version 2 came later


@pytest.mark.parametrize("wrong", ["missing", "another architecture", "another vocabulary", "no weights"])
async def test_a_checkpoint_that_does_not_fit_leaves_the_old_one(wrong: str, tmp_path: Path) -> None:
    folder = Path(model_location(NEW))
    match wrong:
        case "missing":
            model, message = str(tmp_path / "none"), "does not exist"
        case "another architecture":
            model, message = "embedded:target", "do not fit"
        case "another vocabulary":
            model, message = str(permuted_copy(folder, tmp_path / "copy")), "another vocabulary"
        case _:
            model, message = str(permuted_copy(folder, tmp_path / "copy")), "cannot be loaded"
            for name in ("tokenizer.json", "config.json", "generation_config.json"):
                (Path(model) / name).write_bytes((folder / name).read_bytes())
            (Path(model) / "model.safetensors").write_bytes(b"half a file")
    actor = DraftActor.around(engine(OLD))
    before = await chain(actor, "before")
    with pytest.raises(ValueError, match=message):
        await actor.swap_draft(DraftWeights(1, model))
    assert await chain(actor, "after") == before
    assert (await actor.start(DraftWeights(2, model))).model != model  # a restart does not fail either


async def test_the_assistant_of_a_target_is_swapped_and_changes_no_token() -> None:
    actor = TargetActor.around(engine("embedded:target", assistant=OLD))
    before = await chain(actor, "before")
    await actor.swap_draft(DraftWeights(1, NEW))
    assert await chain(actor, "after") == before


async def test_calls_wait_while_weights_are_replaced() -> None:
    inner, actor = engine(OLD), DraftActor.around(engine(OLD))
    closed, opened = asyncio.Event(), asyncio.Event()

    async def update(_: object) -> None:
        closed.set()
        await opened.wait()

    swapping = asyncio.create_task(actor._swap.load(DraftWeights(1, NEW), inner, update))
    await closed.wait()
    call = asyncio.create_task(actor.next_step("waits", PROMPT, Step(), GREEDY))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not call.done()
    opened.set()
    await swapping
    assert (await call).tokens


# -- the endpoint ------------------------------------------------------------------------------------------------------


class Group(LocalGroup):
    """A scripted group that takes any checkpoint but two."""

    model = "configured"
    is_broken = False
    """Whether it can load nothing."""
    num_tries = 0

    @property
    def infos(self) -> dict[Role, EngineInfo]:
        return {role: replace(info, model=self.model) for role, info in super().infos.items()}

    async def swap_draft(self, weights: DraftWeights) -> None:
        self.num_tries += 1
        if self.is_broken or weights.model == "broken":
            raise ValueError(f"'{weights.model}' cannot be loaded")
        if weights.model == "lost":
            raise ActorLost("the draft actor was lost")
        self.model = weights.model


async def test_all_replicas_follow_one_of_them() -> None:
    record = LocalAnswers(DraftRecord())
    groups = [Group(scripted_config()) for _ in range(3)]
    switches = [DraftSwitch(group, record, "digest", str(number)) for number, group in enumerate(groups)]
    unrelated = Group(scripted_config())
    other = DraftSwitch(unrelated, record, "other models", "unrelated")
    for switch in (*switches[:2], other):
        await switch.start()
    assert await switches[0].serve("trained") == "trained"
    await switches[2].start()  # a new replica
    await settled(lambda: {group.model for group in groups} == {"trained"})
    assert unrelated.model == "configured"
    for switch in (*switches, other):
        await switch.stop()


async def test_a_replica_gives_up_says_so_once_and_takes_the_next_draft(caplog: pytest.LogCaptureFixture) -> None:
    record, groups = LocalAnswers(DraftRecord()), [Group(scripted_config()) for _ in range(2)]
    good, poor = (
        DraftSwitch(group, record, "digest", name, pauses_s=(0.0, 0.01, 0.02))
        for group, name in zip(groups, ("good", "poor"), strict=True)
    )
    for switch in (good, poor):
        await switch.start()
    groups[1].is_broken = True
    await good.serve("trained")
    reason = "'trained' cannot be loaded"
    while (reports := await good.replicas()) != [
        ReplicaDraft("good", "trained", None),
        ReplicaDraft("poor", "configured", reason),
    ]:
        assert reports[1].error is None
        await asyncio.sleep(0.01)
    assert groups[1].num_tries == 4
    errors = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert errors == [f"this replica keeps the draft configured: {reason}"]
    await poor.stop()
    await poor.start()  # nothing is tried again
    assert groups[1].num_tries == 4
    groups[1].is_broken = False
    await good.serve("better")
    await settled(lambda: groups[1].model == "better")
    await settled(lambda: poor._failed is None)
    for switch in (good, poor):
        await switch.stop()


def test_the_endpoint_needs_the_administrators_key(monkeypatch: pytest.MonkeyPatch) -> None:
    config = scripted_config()
    path, body = "/v1/admin/draft", {"checkpoint": "trained"}

    def app():
        group = Group(config)
        drafts = DraftSwitch(group, LocalAnswers(DraftRecord()), "digest", "replica")
        return make_app(Service(group, config), drafts=drafts)

    def post(key: str | None, body: dict[str, str] = body) -> tuple[int, dict]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        reply = http.post(path, json=body, headers=headers)
        return reply.status_code, reply.json()

    monkeypatch.setenv("DREAMR_API_KEY", "user")
    with listening(app()) as url, httpx.Client(base_url=url) as http:
        status, reply = post("user")
        assert (status, "DREAMR_ADMIN_KEY" in reply["error"]["message"]) == (403, True)
    monkeypatch.setenv("DREAMR_ADMIN_KEY", "admin")
    with listening(app()) as url, httpx.Client(base_url=url) as http:
        assert [post(key)[0] for key in (None, "user", "")] == [401, 401, 401]
        assert post("admin") == (200, {"draft": "trained"})
        status, reply = post("admin", {"checkpoint": "broken"})
        assert status == 400
        assert reply["error"]["message"] == "'broken' cannot be loaded; the draft in service stays."
        assert post("admin", {"checkpoint": "lost"})[0] == 503
        assert post("admin", {"model": "x"})[0] == 400
        replicas = http.get(path, headers={"Authorization": "Bearer admin"}).json()["replicas"]
        assert replicas == []  # none follows the record here
        models = http.get("/v1/models", headers={"Authorization": "Bearer user"}).json()
        assert models["data"][0]["actors"]["draft"]["model"] == "trained"
