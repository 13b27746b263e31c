"""A spare actor takes the place of one that is lost, and the lost one becomes the next spare."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from support.toy_group import QUESTION, process_ended, toy_actor, toy_group

from actors.group import ActorGroup
from actors.supervisor import ActorSupervisor
from dreamr.config import PipelineSettings
from pipelines import Request, run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]


def process(supervisor: ActorSupervisor) -> int:
    assert supervisor.info is not None
    return supervisor.info.pid


async def spare_is_loaded(supervisor: ActorSupervisor) -> None:
    """Bounded by the test's own time."""
    while True:
        if supervisor.has_spare:
            return
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_spare_takes_over_and_the_lost_actor_is_the_next_spare(
    ray_cluster: None, fault: signal.Signals
) -> None:
    async with ActorGroup(toy_group(target=toy_actor(token_s=0.01) | {"standby": 1})) as group:
        target = group.supervisor("target")
        seen: list[int] = []
        for _ in range(2):
            await spare_is_loaded(target)
            lost = process(target)
            seen.append(lost)
            settings = PipelineSettings(method="autoregressive", max_step_tokens=20, max_tokens=100)
            running = asyncio.create_task(run(Request(QUESTION, settings), group.handles))
            await asyncio.sleep(0)
            os.kill(lost, fault)
            if fault == signal.SIGSTOP:
                await group.check()
            trace = await running
            assert trace.tokens == tuple(range(100))
            assert process(target) not in seen
            assert await asyncio.to_thread(process_ended, lost)
        await spare_is_loaded(target)
        last = process(target)
    assert await asyncio.to_thread(process_ended, last)


async def test_only_roles_with_a_spare_have_one(ray_cluster: None) -> None:
    async with ActorGroup(toy_group(draft=toy_actor() | {"standby": 1})) as group:
        await spare_is_loaded(group.supervisor("draft"))
        assert not group.supervisor("target").has_spare
