"""`Reasoner` over real Ray actors around scripted engines: from threads, from event loops, and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.tiny import picture

import dreamr

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
IMAGE = picture(32, 32)


def config(token_s: float = 0.0005) -> dreamr.Config:
    actor = {"engine": {"kind": "scripted", "token_s": token_s}, "num_cpus": 0.1}
    return dreamr.Config.model_validate({"group": dict.fromkeys(("draft", "target", "verifier"), actor)})


@pytest.fixture(scope="module")
def reasoner(ray_cluster: None) -> Iterator[dreamr.Reasoner]:
    with dreamr.Reasoner(config()) as one:
        yield one


def test_a_question_is_answered_step_by_step(reasoner: dreamr.Reasoner, tmp_path: Path) -> None:
    seen: list[dreamr.CommittedStep] = []
    result = reasoner.ask("how many?", IMAGE, on_step=seen.append, compare=True)
    assert result.steps == tuple(seen)
    assert result.trace.method == "fpsr"
    assert result.speedup is not None
    assert result.plain is not None
    assert result.plain.method == "autoregressive"
    assert result.answer == result.steps[-1].text
    assert "".join(step.text for step in result.steps[:-1]).strip() == result.reasoning
    result.timeline(tmp_path / "timeline.html")
    assert "<svg" in (tmp_path / "timeline.html").read_text()


def test_settings_of_a_question_and_an_early_end(reasoner: dreamr.Reasoner) -> None:
    result = reasoner.ask("how many?", on_step=lambda step: step.index == 1, method="sequential", compare=True)
    assert (len(result.steps), result.trace.end, result.trace.method) == (2, "enough", "sequential")
    assert (result.answer, result.speedup) == (None, None), (
        "the text was ended early; there is no image to compare with"
    )
    with pytest.raises(ZeroDivisionError):
        reasoner.ask("how many?", on_step=lambda step: bool(1 / 0))


def test_greedy_answers_do_not_depend_on_who_asks_how(reasoner: dreamr.Reasoner) -> None:
    expected = reasoner.ask("how many?").trace.tokens
    with ThreadPoolExecutor(3) as pool:
        threads = [pool.submit(reasoner.ask, "how many?") for _ in range(3)]
        assert all(thread.result().trace.tokens == expected for thread in threads)

    async def several() -> list[dreamr.Result]:
        return list(await asyncio.gather(*(reasoner.ask_async("how many?") for _ in range(3))))

    assert all(result.trace.tokens == expected for result in asyncio.run(several()))


async def test_a_cancelled_question_ends_and_others_can_be_asked() -> None:
    async with dreamr.Reasoner(config(token_s=0.05)) as reasoner:
        asked = asyncio.create_task(reasoner.ask_async("how many?"))
        await asyncio.sleep(0.2)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        result = await reasoner.ask_async("how many?", on_step=lambda step: True)
        assert len(result.steps) == 1


def test_close_cancels_open_questions_and_a_closed_reasoner_starts_again() -> None:
    reasoner = dreamr.Reasoner(config(token_s=0.05))
    begun: Any = []
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(reasoner.ask, "how many?", on_step=begun.append)
        while not begun:
            assert not asked.done()
            time.sleep(0.01)
        reasoner.close()
        with pytest.raises(CancelledError):
            asked.result()
    reasoner.close()
    assert reasoner.ask("how many?", on_step=lambda step: True).steps
    reasoner.close()


def test_too_few_resources_are_refused_and_leave_nothing_behind() -> None:
    large = config().model_dump()
    large["group"]["target"]["num_cpus"] = 1000
    reasoner = dreamr.Reasoner(dreamr.Config.model_validate(large))
    for _ in range(2):
        with pytest.raises(dreamr.NotEnoughResources, match="needed 1000"):
            reasoner.ask("how many?")
