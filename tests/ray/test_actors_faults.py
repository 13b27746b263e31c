"""Processes that die (kill -9) or hang (SIGSTOP): who notices, who is restarted, what open calls get."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from support.toy_group import DIE, HANG, QUESTION, THREE, process_ended, toy_actor, toy_group

from actors.group import ActorGroup
from dreamr.errors import ActorLost
from dreamr.types import ROOT, Role

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(90),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def group(ray_cluster: None) -> AsyncIterator[ActorGroup]:
    async with ActorGroup(toy_group()) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def all_up(group: ActorGroup) -> None:
    """The group outlives each test: whatever a test did to it, the next one finds every actor well."""
    assert await group.check() == {"draft": True, "target": True, "verifier": True}


def pid(group: ActorGroup, role: Role) -> int:
    return group.infos[role].pid


def supervisors() -> set[asyncio.Task[object]]:
    return {task for task in asyncio.all_tasks() if task.get_name().startswith("supervise")}


async def works(group: ActorGroup) -> bool:
    step = group.handles.draft.next_step("again", QUESTION, ROOT, THREE)
    verdict = await group.handles.verifier.score("again", QUESTION, step)
    return (await group.handles.target.next_step("again", QUESTION, step, THREE)).tokens == (
        3,
        4,
        5,
    ) and verdict.score == 1.0


@pytest.mark.parametrize("role", ["draft", "target"])
async def test_a_killed_writer_loses_its_open_call_and_comes_back(group: ActorGroup, role: Role) -> None:
    writer = group.handles.draft if role == "draft" else group.handles.target
    others = {other: pid(group, other) for other in group.infos if other != role}
    before = pid(group, role)
    open_call = writer.next_step("1", HANG, ROOT, THREE)
    await group.check()
    os.kill(before, signal.SIGKILL)
    with pytest.raises(ActorLost, match=f"the {role} actor was lost"):
        await open_call
    assert not writer.up
    group.supervisor(role).report_lost()
    await group.transport(role).recovered()
    assert writer.up
    assert pid(group, role) != before
    assert await works(group)
    assert {other: pid(group, other) for other in others} == others


async def test_a_killed_verifier_comes_back_and_its_drafts_survive(group: ActorGroup) -> None:
    step = group.handles.draft.next_step("1", QUESTION, ROOT, THREE)
    verdict = group.handles.verifier.score("2", HANG, step)
    await group.check()
    os.kill(pid(group, "verifier"), signal.SIGKILL)
    with pytest.raises(ActorLost, match="the verifier actor was lost"):
        await verdict
    await group.transport("verifier").recovered()
    assert (await group.handles.verifier.score("3", QUESTION, step)).score == 1.0


async def test_an_actor_that_kills_itself_again_is_restarted_again(group: ActorGroup) -> None:
    pids = {pid(group, "target")}
    for _ in range(2):
        with pytest.raises(ActorLost):
            await group.handles.target.next_step("1", DIE, ROOT, THREE)
        await group.transport("target").recovered()
        pids.add(pid(group, "target"))
    assert len(pids) == 3
    assert await works(group)


async def test_the_death_of_an_idle_actor_is_noticed_without_a_call(group: ActorGroup) -> None:
    before = pid(group, "draft")
    os.kill(before, signal.SIGKILL)
    assert await asyncio.to_thread(process_ended, before)
    async with asyncio.timeout(30):
        while group.transport("draft").up:  # noqa: ASYNC110 - the group has no event for a loss
            await asyncio.sleep(0.01)
    await group.transport("draft").recovered()
    assert pid(group, "draft") != before
    assert await works(group)


async def test_a_loss_upstream_is_blamed_on_the_draft_and_not_on_the_judge(group: ActorGroup) -> None:
    verifier = pid(group, "verifier")
    drafted = group.handles.draft.next_step("1", HANG, ROOT, THREE)
    chained = group.handles.draft.next_step("2", QUESTION, drafted, THREE)
    verdict = group.handles.verifier.score("3", QUESTION, chained)
    await group.check()
    os.kill(pid(group, "draft"), signal.SIGKILL)
    with pytest.raises(ActorLost, match="the draft actor was lost"):
        await verdict
    assert not group.transport("draft").up
    group.supervisor("verifier").report_lost()
    assert group.transport("verifier").up
    await group.transport("draft").recovered()
    assert pid(group, "verifier") == verifier
    assert await works(group)


async def test_a_reported_hang_is_killed_and_restarted_once(group: ActorGroup) -> None:
    before, generation = pid(group, "draft"), group.supervisor("draft").generation
    open_call = group.handles.draft.next_step("1", QUESTION, ROOT, THREE)
    await open_call
    os.kill(before, signal.SIGSTOP)
    open_call = group.handles.draft.next_step("2", QUESTION, ROOT, THREE)
    for _ in range(3):
        group.supervisor("draft").report_lost()
    assert not group.transport("draft").up
    with pytest.raises(ActorLost):
        await open_call
    await asyncio.gather(*(group.transport("draft").recovered() for _ in range(3)))
    assert process_ended(before)
    assert group.supervisor("draft").generation == generation + 1
    assert await works(group)


async def test_a_hang_of_the_engine_alone_is_repaired_although_the_process_answers(group: ActorGroup) -> None:
    before = pid(group, "target")
    open_call = group.handles.target.next_step("1", HANG, ROOT, THREE)
    assert (await group.check())["target"]
    group.supervisor("target").report_lost()
    with pytest.raises(ActorLost):
        await open_call
    await group.transport("target").recovered()
    assert pid(group, "target") != before


async def test_a_verdict_that_waits_for_a_hanging_draft_does_not_cost_the_verifier(group: ActorGroup) -> None:
    draft, verifier = pid(group, "draft"), pid(group, "verifier")
    verdict = group.handles.verifier.score("2", QUESTION, group.handles.draft.next_step("1", HANG, ROOT, THREE))
    group.supervisor("verifier").report_lost()
    with pytest.raises(ActorLost, match="the draft actor"):
        await verdict
    await group.transport("draft").recovered()
    assert pid(group, "draft") != draft
    assert pid(group, "verifier") == verifier


async def test_a_late_report_leaves_the_fresh_actor_alone(group: ActorGroup) -> None:
    lost = group.handles.draft.next_step("1", DIE, ROOT, THREE)
    with pytest.raises(ActorLost):
        await lost
    await group.transport("draft").recovered()
    fresh = pid(group, "draft")
    group.supervisor("draft").report_lost()
    with pytest.raises(ActorLost):
        await lost  # told once more of the old loss
    assert group.transport("draft").up
    assert (await group.check())["draft"]
    assert pid(group, "draft") == fresh


async def test_check_finds_a_hanging_actor(group: ActorGroup) -> None:
    os.kill(pid(group, "verifier"), signal.SIGSTOP)
    assert await group.check() == {"draft": True, "target": True, "verifier": False}
    await group.transport("verifier").recovered()
    assert (await group.check())["verifier"]


async def test_without_restarts_left_the_loss_is_final_and_said() -> None:
    async with ActorGroup(toy_group(draft=toy_actor() | {"max_restarts": 0})) as group:
        with pytest.raises(ActorLost):
            await group.handles.draft.next_step("1", DIE, ROOT, THREE)
        with pytest.raises(ActorLost, match="the draft actor did not come back"):
            await group.transport("draft").recovered()
        assert not group.transport("draft").up
        with pytest.raises(ActorLost):
            await group.handles.draft.next_step("2", QUESTION, ROOT, THREE)
        assert (await group.handles.target.next_step("3", QUESTION, ROOT, THREE)).tokens == (0, 1, 2)


async def test_stopping_in_the_middle_of_a_recovery_leaves_nothing_behind() -> None:
    running = supervisors()
    group = ActorGroup(toy_group())
    await group.start()
    assert len(supervisors() - running) == 3
    old = {info.pid for info in group.infos.values()}
    transports = [group.transport(role) for role in ("draft", "target", "verifier")]
    os.kill(pid(group, "draft"), signal.SIGSTOP)
    open_call = group.handles.draft.next_step("1", QUESTION, ROOT, THREE)
    group.supervisor("draft").report_lost()
    waiting = asyncio.create_task(group.transport("draft").recovered())
    await asyncio.sleep(0)
    await group.stop()
    with pytest.raises(ActorLost, match="was stopped"):
        await waiting
    with pytest.raises(ActorLost):
        await open_call
    assert not any(transport.up for transport in transports)
    assert all(process_ended(process) for process in old)
    assert supervisors() == running
