"""The actor classes without Ray: plain objects around an engine."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from typing import Any

import pytest
from support import toy_engine
from support.toy_engine import ToyEngine
from support.toy_group import QUESTION, THREE, toy_actor

from actors.engine_actor import NotLoaded
from actors.ray_transport import root_cause
from actors.roles import DraftActor, TargetActor, VerifierActor
from dreamr.config import ActorConfig
from dreamr.engines.base import EngineDied
from dreamr.errors import ActorLost
from dreamr.types import NO_VERDICT, ROOT, Prompt, Step


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def config(**changes: object) -> ActorConfig:
    return ActorConfig.model_validate(toy_actor() | changes)


async def test_every_call_is_refused_until_the_model_is_loaded() -> None:
    actor = DraftActor(config())
    for call in (
        actor.check_health(),
        actor.info(),
        actor.prefill("0", QUESTION),
        actor.next_step("1", QUESTION, ROOT, THREE),
    ):
        with pytest.raises(NotLoaded, match="the draft actor has not loaded its model yet"):
            await call
    await actor.stop("1")
    await actor.start()
    assert (await actor.next_step("1", QUESTION, ROOT, THREE)).tokens == (0, 1, 2)


async def test_starting_again_keeps_the_loaded_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[ToyEngine] = []

    def load() -> ToyEngine:
        loaded.append(ToyEngine())
        return loaded[-1]

    monkeypatch.setattr(toy_engine, "ToyEngine", load)
    actor = TargetActor(config())
    for _ in range(2):
        assert (await actor.start()).role == "target"
    assert len(loaded) == 1


async def test_the_target_writes_and_judges_and_the_verifier_only_judges() -> None:
    target, verifier = TargetActor(config()), VerifierActor(config())
    await target.start()
    await verifier.start()
    step = await target.next_step("1", QUESTION, ROOT, THREE)
    assert await target.score("2", QUESTION, step) == await verifier.score("2", QUESTION, step)
    assert not hasattr(verifier, "next_step")


async def test_a_blank_step_has_no_verdict_and_never_reaches_the_engine() -> None:
    verifier = VerifierActor(config())
    await verifier.start()
    for blank in (ROOT, Step(tokens=(1,), text=" \n\n"), Step(tokens=(1,), text="so", finish="stopped")):
        assert await verifier.score("1", Prompt("refuse"), blank) == NO_VERDICT
    with pytest.raises(ValueError, match="refused"):
        await verifier.score("2", Prompt("refuse"), Step(tokens=(1,), text="so"))


async def test_a_model_that_cannot_be_loaded_is_tried_again_by_the_next_start() -> None:
    actor = DraftActor(config(engine={"kind": "import", "factory": "support.toy_engine:nowhere"}))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'support\.toy_engine:nowhere' cannot be imported"):
            await actor.start()


def test_not_loaded_is_a_loss_that_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(NotLoaded("target")))
    assert isinstance(error, ActorLost)
    assert (error.role, str(error)) == ("target", "the target actor has not loaded its model yet")
    assert root_cause(error) is error


async def test_the_process_ends_when_one_behind_its_engine_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    async def died() -> None:
        raise EngineDied("gone")

    def leave(code: int) -> None:
        raise SystemExit(code)

    actor = TargetActor(config())
    await actor.start()
    assert actor._loaded is not None
    actor._loaded = replace(actor._loaded, died=died)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit):
        await actor.lifeline()


async def test_a_chain_holds_the_steps_that_single_calls_write() -> None:
    draft = DraftActor(config())
    await draft.start()
    first = await draft.next_step("1", QUESTION, ROOT, THREE)
    second = await draft.next_step("2", QUESTION, first, THREE)
    chain = await draft.next_chain("3", QUESTION, ROOT, (THREE, THREE))
    assert [step.tokens for step in chain] == [first.tokens, second.tokens]
    (third,) = await draft.next_chain("4", QUESTION, chain, (THREE,))
    assert third.prefix == second.end


async def test_the_steps_of_a_stopped_chain_are_empty() -> None:
    draft = DraftActor(config())
    await draft.start()
    engine, written = draft._engine, []
    write = engine.next_step

    async def stopped_after_the_first(call_id: str, *arguments: Any, **options: Any) -> Step:
        step = await write(call_id, *arguments, **options)
        draft.stop_now(call_id)
        written.append(step)
        return step

    engine.next_step = stopped_after_the_first  # type: ignore[method-assign]
    chain = await draft.next_chain("1", QUESTION, ROOT, (THREE, THREE, THREE))
    assert len(written) == 1
    assert [len(step.tokens) for step in chain] == [3, 0, 0]
    assert all(step.is_blank for step in chain[1:])
    assert await draft.next_chain("2", QUESTION, chain, (THREE,)) == chain[2:]
