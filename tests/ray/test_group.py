"""Starting and stopping a group: room, models that cannot be loaded, deadlines, nothing left behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group_table
from support.toy_group import QUESTION, THREE, process_ended, toy_actor, toy_group

from actors import cluster
from actors.group import ActorGroup
from actors.placement import missing, refusal, total
from dreamr.config import ClusterSettings
from dreamr.errors import ActorLost, NotEnoughResources
from dreamr.types import ROOT


def reserved() -> list[str]:
    return [entry["placement_group_id"] for entry in placement_group_table().values() if entry["state"] != "REMOVED"]


def environment(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


def actors_alive() -> int:
    return sum(actor["State"] not in {"DEAD"} for actor in ray._private.state.actors().values())


def test_needs_are_summed_by_name() -> None:
    assert total([{"CPU": 0.5, "GPU": 1}, {"CPU": 0.5}, {"memory": 5}]) == {"CPU": 1.0, "GPU": 1, "memory": 5}


def test_only_what_is_short_is_missing() -> None:
    assert missing({"CPU": 1.0, "GPU": 2}, {"CPU": 1.0, "GPU": 1}) == ["GPU"]
    assert missing({"accelerator_type:H100": 0.001}, {"CPU": 8}) == ["accelerator_type:H100"]
    assert missing({"CPU": 0.1 + 0.2}, {"CPU": 0.3}) == []


def test_a_refusal_names_each_short_resource_with_both_amounts() -> None:
    needed = {"CPU": 1.0, "GPU": 4, "memory": 64 * 2**20}
    sentence = refusal(["GPU", "memory"], needed, {"CPU": 8, "GPU": 1, "memory": 2**20}, "free now")
    assert "needed 4 GPU, 64 MiB of memory; free now: 1 GPU, 1 MiB of memory" in sentence
    assert "CPU" not in sentence.split(". ")[0]


def test_a_group_without_ray_says_how_to_get_it() -> None:
    start = (
        "import asyncio, support.toy_group as t, actors.group as g; asyncio.run(g.ActorGroup(t.toy_group()).start())"
    )
    done = subprocess.run(
        [sys.executable, "-c", start], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.stderr.endswith("Ray is not running: call actors.cluster.connect() first.\n")


def test_an_address_where_nobody_listens_is_refused_in_one_sentence() -> None:
    settings = ClusterSettings(address="127.0.0.1:1")
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at '127\.0\.0\.1:1'") as raised:
        cluster._join(settings.address or "")
    assert "cluster.address" in str(raised.value)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_connection_that_was_there_before_stays() -> None:
    with cluster.connected(ClusterSettings(address="127.0.0.1:1")):
        assert ray.is_initialized()
    assert ray.is_initialized()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"num_gpus": 8}, "needed 8 GPU; the whole cluster has: 0 GPU"),
        ({"num_cpus": 100}, "needed 100.2 CPU; the whole cluster has: 4 CPU"),
        ({"num_gpus": 1, "accelerator_type": "H100"}, "0.001 accelerator_type:H100"),
        ({"memory_mb": 1e9}, "needed 1000000000 MiB of memory"),
    ],
)
async def test_a_group_that_cannot_fit_is_refused_before_any_actor_is_made(asked: dict[str, object], said: str) -> None:
    before = actors_alive(), reserved()
    # However long one may wait: this Ray is the session's own, and no node will join it.
    group = toy_group(target=toy_actor() | asked, wait_for_resources_s=600)
    with pytest.raises(NotEnoughResources) as raised:
        await asyncio.wait_for(ActorGroup(group).start(), 5)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (actors_alive(), reserved()) == before


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
async def test_a_busy_cluster_refuses_and_fits_again_after_a_stop() -> None:
    wide = toy_group(draft=toy_actor(num_cpus=3))
    async with ActorGroup(wide):
        with pytest.raises(NotEnoughResources, match=r"needed 3\.2 CPU; free now: 0\.8 CPU"):
            await ActorGroup(wide).start()
    async with ActorGroup(wide) as group:
        assert all((await group.check()).values())


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
async def test_an_actor_that_asks_for_nothing_still_gets_a_place() -> None:
    async with ActorGroup(toy_group(draft=toy_actor(num_cpus=0))) as group:
        assert (await group.handles.draft.next_step("1", QUESTION, ROOT, THREE)).tokens == (0, 1, 2)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
async def test_a_model_that_cannot_be_loaded_is_one_sentence_and_leaves_nothing_behind() -> None:
    before = actors_alive(), reserved()
    bad = {"engine": {"kind": "hf", "model": "/no/such/model"}, "num_cpus": 0.1}
    with pytest.raises(ValueError, match="/no/such/model") as raised:
        await ActorGroup(toy_group(target=bad)).start()
    assert "\n" not in str(raised.value)
    assert type(raised.value) is ValueError
    assert (actors_alive(), reserved()) == before


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("factory", "said"),
    [("nowhere", "engine.factory 'support.toy_engine:nowhere' cannot be imported"), ("broken", "out of paper")],
)
async def test_an_engine_factory_that_fails_says_why(factory: str, said: str) -> None:
    settings = {"reason": "out of paper"} if factory == "broken" else {}
    with pytest.raises(ValueError, match=said):
        await ActorGroup(toy_group(draft=toy_actor(factory, **settings))).start()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
async def test_an_actor_that_is_not_ready_in_time_is_killed_and_named() -> None:
    before = actors_alive(), reserved()
    with pytest.raises(ActorLost, match=r"the verifier actor was not ready within 10 s; raise group\.ready_deadline_s"):
        await ActorGroup(toy_group(verifier=toy_actor("never"), ready_deadline_s=10)).start()
    assert (actors_alive(), reserved()) == before


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
async def test_stop_leaves_no_process_and_no_reservation_and_may_be_called_again() -> None:
    before = actors_alive(), reserved()
    group = ActorGroup(toy_group())
    await group.start()
    assert (actors_alive(), len(reserved())) == (before[0] + 3, len(before[1]) + 1)
    processes = [info.pid for info in group.infos.values()]
    await group.stop()
    await group.stop()
    assert all(process_ended(process) for process in processes)
    assert (actors_alive(), reserved()) == before


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
async def test_a_group_starts_only_once() -> None:
    async with ActorGroup(toy_group()) as group:
        with pytest.raises(RuntimeError, match="started already"):
            await group.start()
        assert all((await group.check()).values())


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
async def test_named_actors_can_be_found_by_name() -> None:
    async with ActorGroup(toy_group(name="pair", namespace="tests")) as group:
        found = ray.get_actor("pair-draft", namespace="tests")
        assert (await found.info.remote()).pid == group.infos["draft"].pid


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
async def test_an_actors_process_gets_its_own_environment() -> None:
    async with ActorGroup(toy_group(draft=toy_actor() | {"env": {"SAY": "hello"}})) as group:
        assert "SAY=hello" in environment(group.infos["draft"].pid)
        assert "SAY=hello" not in environment(group.infos["target"].pid)
