"""Evaluation during a run: what is counted, and timing that survives a loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dreamr.errors import ActorLost
from dreamr.types import Prompt
from rl import pool as pools
from rl.chains import Chain, ChainEnd, ChainStep, DraftedStep
from rl.config import SapoConfig
from rl.data import Example
from rl.evaluation import speedup, summary
from rl.pool import MAX_TRIES, RolloutPool

CONFIG = SapoConfig.model_validate(
    {
        "run": "nowhere",
        "draft": {"engine": {"kind": "hf", "model": "embedded:draft"}},
        "target": {"engine": {"kind": "hf", "model": "embedded:target"}},
    }
)


def chain(text: str, end: ChainEnd) -> Chain:
    return Chain((ChainStep("draft", (7, 7), text, (0.0, 0.0), 0.9, DraftedStep(2, True)),), end)


def test_answers_that_were_not_found_and_those_that_were_cut_off_are_counted() -> None:
    examples = [Example(Prompt("what?"), "12", "ledger")] * 4
    chains = [
        chain("Answer: 12", "answered"),
        chain("Answer: 13", "answered"),
        chain("so", "loop"),
        chain("", "budget"),
    ]
    metrics = summary(examples, chains)
    assert metrics["eval/accuracy"] == 0.25
    assert metrics["eval/unparsed_rate"] == 0.5
    assert metrics["eval/truncated_rate"] == 0.25


def test_the_speedup_has_an_interval_over_its_problems() -> None:
    metrics = speedup([(2.0, 1.0), (4.0, 1.0), (3.0, 1.5)])
    assert metrics["eval/fpsr_speedup"] == pytest.approx((2 * 4 * 2) ** (1 / 3))
    assert metrics["eval/fpsr_speedup_problems"] == 3
    assert 2.0 <= metrics["eval/fpsr_speedup_low"] < metrics["eval/fpsr_speedup"] < metrics["eval/fpsr_speedup_high"]
    assert metrics["eval/fpsr_speedup_high"] <= 4.0
    assert speedup([(2.0, 1.0)]) == {"eval/fpsr_speedup": pytest.approx(2.0), "eval/fpsr_speedup_problems": 1}


class AliveActor:
    def __init__(self) -> None:
        self.recoveries = 0

    async def recovered(self) -> None:
        self.recoveries += 1


@pytest.mark.parametrize("num_lost", [1, 2 * MAX_TRIES])
async def test_a_problem_is_timed_again_when_an_actor_was_lost_meanwhile(
    num_lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1] * num_lost + [0] * 100)

    async def answered(*_: object) -> Any:
        num_losses = next(losses)
        return SimpleNamespace(num_losses=num_losses, wall_s=9.0 if num_losses else 2.0)

    monkeypatch.setattr(pools, "_answered", answered)
    pool: Any = RolloutPool(CONFIG, None, 0)  # type: ignore[arg-type]
    pool.workers, pool.verifiers = [AliveActor()], [AliveActor()]
    if num_lost == 1:
        assert await pool.time_pipelines([Prompt("one?"), Prompt("two?")]) == [(2.0, 2.0), (2.0, 2.0)]
        assert pool.workers[0].recoveries == 3
    else:
        with pytest.raises(ActorLost, match=f"actors were lost {MAX_TRIES} times while one problem was timed"):
            await pool.time_pipelines([Prompt("one?")])
