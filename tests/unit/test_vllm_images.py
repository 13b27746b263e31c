"""Images that vLLM has rendered and whose request never came: its sender believes that the engine has them.

Each case uses images that no request has shown before, since one that has been sent once is known for good.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from support.engine_kinds import VLLM
from support.engine_walks import EMBEDDED, GREEDY

from dreamr.errors import TooLong
from dreamr.tasks.images import cold_copy
from dreamr.tasks.ledger import make_problem
from dreamr.types import ROOT, Prompt, Step

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]

_numbers = itertools.count()


def new_prompt() -> Prompt:
    return cold_copy(make_problem("test", 1, 0).prompt, f"copy {next(_numbers)}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[Any]:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here")
    engine = await VLLM().load(EMBEDDED / "draft")
    await engine.warm_up()
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def expected(engine: Any) -> Step:
    """The first step, which is the same for all copies."""
    step: Step = await engine.next_step("expected", new_prompt(), ROOT, GREEDY)
    assert step.finish == "delimiter"
    return step


async def test_a_prompt_that_was_counted_can_be_answered(engine: Any, expected: Step) -> None:
    prompt = new_prompt()
    num_tokens = await engine.count_tokens(prompt)
    assert (await engine.next_step("a", prompt, ROOT, GREEDY)).tokens == expected.tokens
    assert await engine.count_tokens(prompt) == num_tokens


async def test_a_prompt_that_was_counted_can_be_judged_and_prefilled(engine: Any, expected: Step) -> None:
    for begin in (engine.prefill, lambda prompt: engine.score("v", prompt, [Step((), expected.tokens, expected.text)])):
        prompt = new_prompt()
        await engine.count_tokens(prompt)
        await begin(prompt)
        assert (await engine.next_step("a", prompt, ROOT, GREEDY)).tokens == expected.tokens


async def test_many_calls_on_a_counted_prompt_are_all_answered(engine: Any, expected: Step) -> None:
    prompt = new_prompt()
    await engine.count_tokens(prompt)
    steps = await asyncio.gather(*(engine.next_step(f"{n}", prompt, ROOT, GREEDY) for n in range(12)))
    assert {step.tokens for step in steps} == {expected.tokens}


@pytest.mark.parametrize("end", ["stop", "cancel"])
async def test_a_call_that_ends_while_it_is_rendered_spoils_no_other(engine: Any, expected: Step, end: str) -> None:
    for turns in range(16):
        prompt = new_prompt()
        call = asyncio.create_task(engine.next_step("ended", prompt, ROOT, GREEDY))
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        if end == "stop":
            engine.stop("ended")
        else:
            call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert (await engine.next_step("a", prompt, ROOT, GREEDY)).tokens == expected.tokens


async def test_a_prompt_that_is_too_long_only_with_its_images_spoils_no_other(engine: Any, expected: Step) -> None:
    prompt = new_prompt()
    num_tokens = await engine.count_tokens(cold_copy(prompt, "counted"))
    prefix = Step(tokens=(9,) * (2048 - num_tokens + 1))
    with pytest.raises(TooLong, match="but the model takes fewer than"):
        await engine.next_step("long", prompt, prefix, GREEDY)
    assert (await engine.next_step("a", prompt, ROOT, GREEDY)).tokens == expected.tokens
