"""Calls to the actors over Ray: values, chains, stopping, errors, large prompts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from support.toy_group import QUESTION, THREE, toy_actor, toy_group

from actors.group import ActorGroup
from actors.ray_transport import INLINE_BYTES, MAX_STORED, StoredPrompts
from dreamr.types import ROOT, Prompt, Sampling

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(90),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def group(ray_cluster: None) -> AsyncIterator[ActorGroup]:
    async with ActorGroup(toy_group(target=toy_actor(token_s=0.02))) as running:
        yield running


async def test_each_role_is_ready_in_a_process_of_its_own(group: ActorGroup) -> None:
    infos = group.infos
    assert {role: info.role for role, info in infos.items()} == {role: role for role in ("draft", "target", "verifier")}
    assert len({info.pid for info in infos.values()}) == 3
    assert os.getpid() not in {info.pid for info in infos.values()}
    assert await group.check() == {"draft": True, "target": True, "verifier": True}


async def test_a_reference_chains_steps_without_being_awaited(group: ActorGroup) -> None:
    first = group.handles.draft.next_step("1", QUESTION, ROOT, THREE)
    second = group.handles.draft.next_step("2", QUESTION, first, THREE)
    verdict = group.handles.verifier.score("3", QUESTION, second)
    assert (await second).prefix == (await first).end == (0, 1, 2)
    assert (await second).tokens == (3, 4, 5)
    assert (await verdict).score == 1 / 4


async def test_a_reference_may_be_awaited_many_times_also_at_once(group: ActorGroup) -> None:
    step = group.handles.draft.next_step("1", QUESTION, ROOT, THREE)

    async def wait() -> object:
        return await step

    one, two = await asyncio.gather(wait(), wait())
    assert one == two == await step


async def test_stop_overtakes_the_running_step_which_returns_what_it_has(group: ActorGroup) -> None:
    endless = Sampling(max_tokens=1_000_000)
    steps = [group.handles.target.next_step(f"long-{n}", QUESTION, ROOT, endless) for n in range(8)]
    group.transport("target").stop("long-3")
    stopped = await steps[3]
    assert stopped.finish == "stopped"
    assert len(stopped.tokens) < endless.max_tokens
    for n in range(8):
        group.transport("target").stop(f"long-{n}")
    assert {(await step).finish for step in steps} == {"stopped"}


async def test_stop_does_not_wait_behind_a_call_whose_argument_is_not_there(group: ActorGroup) -> None:
    endless = Sampling(max_tokens=1_000_000)
    first = group.handles.target.next_step("first", QUESTION, ROOT, endless)
    behind = group.handles.target.next_step("behind", QUESTION, first, THREE)
    group.transport("target").stop("first")
    assert (await first).finish == "stopped"
    assert (await behind).prefix == (await first).tokens


async def test_an_engines_error_arrives_as_itself_along_the_whole_chain(group: ActorGroup) -> None:
    refused = group.handles.draft.next_step("1", Prompt("refuse"), ROOT, THREE)
    chained = group.handles.draft.next_step("2", QUESTION, refused, THREE)
    verdict = group.handles.verifier.score("3", QUESTION, chained)
    for ref in (refused, chained, verdict):
        with pytest.raises(ValueError, match="this question is refused") as raised:
            await ref
        assert type(raised.value) is ValueError
    assert group.transport("draft").up
    assert group.transport("verifier").up


async def test_prefill_reaches_every_role(group: ActorGroup) -> None:
    for handle in (group.handles.draft, group.handles.target, group.handles.verifier):
        await handle.prefill("a", QUESTION)
        with pytest.raises(ValueError, match="refused"):
            await handle.prefill("b", Prompt("refuse"))


async def test_a_large_image_is_stored_once_and_arrives_whole(group: ActorGroup) -> None:
    photo = Prompt("large", (os.urandom(INLINE_BYTES + 1),))
    store = StoredPrompts()
    reference = store.argument(photo)
    assert store.argument(Prompt("large", photo.images)) is reference
    assert reference is not photo
    assert (await group.handles.draft.next_step("1", photo, ROOT, THREE)).text == "large\n\n"


async def test_small_prompts_travel_inline_and_old_large_ones_are_dropped() -> None:
    store = StoredPrompts()
    small = Prompt("small", (b"x" * INLINE_BYTES,))
    assert store.argument(small) is small
    photos = [Prompt(str(n), (b"x" * (INLINE_BYTES + 1),)) for n in range(MAX_STORED + 1)]
    references = [store.argument(photo) for photo in photos]
    assert store.argument(photos[-1]) is references[-1]
    assert store.argument(photos[0]) is not references[0]


async def test_a_shared_verifier_is_the_targets_actor() -> None:
    async with ActorGroup(toy_group(verifier="shared")) as group:
        assert set(group.infos) == {"draft", "target"}
        step = group.handles.target.next_step("1", QUESTION, ROOT, THREE)
        assert (await group.handles.verifier.score("2", QUESTION, step)).score == 1.0
        group.supervisor("verifier").report_lost()
        assert group.transport("verifier").up  # nothing was open: the report is late
