"""The baselines on scripted engines under a virtual clock: each schedule does what its authors describe."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from support.scripted import PROMPT, World, check_steps

from dreamr.bench.simulation import virtual
from dreamr.config import PipelineSettings
from dreamr.errors import ConfigError, Unable
from dreamr.types import Prompt, Proposal, Step, Verdict
from pipelines import Trace, check, rule_of
from pipelines.handles import Verifier
from pipelines.verification import RandomVerdicts

STEADY = {"first_token_s": 0.0, "token_s": 0.01, "verdict_s": 0.01, "jitter": 0.0, "shared": False}


def outcome(trace: Trace) -> list[tuple[tuple[int, ...], str, float | None]]:
    return [(step.tokens, step.source, step.score) for step in trace.steps]


def test_token_speculation_writes_what_the_target_alone_writes() -> None:
    async def compare(seed: int) -> None:
        world = World.make(seed)
        settings = {"proposed_tokens": 1 + seed % 7, "max_tokens": (30, 8192)[seed % 2]}
        fast = await world.run("token_speculative", PROMPT, **settings)
        plain = await world.run("autoregressive", PROMPT, **settings)
        assert fast.tokens == plain.tokens
        assert [step.tokens for step in fast.steps] == [step.tokens for step in plain.steps]
        assert fast.end == plain.end
        assert fast.drafted_tokens == fast.num_drafted == fast.num_accepted + fast.wasted_draft_tokens
        assert world.num_in_flight == 0

    for seed in range(150):
        virtual(compare(seed))


def test_accepted_tokens_cost_the_target_one_forward_together() -> None:
    async def run() -> None:
        draft = {"token_acceptance": 1.0, "token_s": 0.0}
        world = World.make(3, num_steps=(5, 5), step_tokens=(12, 12), draft=draft, **STEADY)
        trace = await world.run("token_speculative", PROMPT, proposed_tokens=5)
        assert trace.wall_s == pytest.approx(60 / 6 * 0.01)
        assert trace.acceptance_rate == 1.0
        assert trace.coverage == pytest.approx(5 / 6)

    virtual(run())


@pytest.mark.parametrize("verdict", ["rho", "random"])
def test_parallel_prefix_commits_what_the_sequential_schedule_commits(verdict: str) -> None:
    async def compare(seed: int) -> None:
        world = World.make(seed)
        settings = {"window": 1 + seed % 5, "verdict": verdict, "max_tokens": (40, 8192)[seed % 2]}
        chain = await world.run("parallel_prefix", PROMPT, **settings)
        single = await world.run("sequential", PROMPT, **settings)
        assert outcome(chain) == outcome(single)
        assert world.num_in_flight == 0

    for seed in range(100):
        virtual(compare(seed))


def test_parallel_prefix_judges_a_whole_chain_in_one_forward() -> None:
    async def run() -> None:
        world = World.make(1, acceptance=1.0, num_steps=(8, 8), **STEADY)
        forwards: list[int] = []
        score = world.verifier.engine.score

        async def counted(call_id: str, prompt: Prompt, chain: list[Step], *rest: Any) -> list[Verdict]:
            forwards.append(len(chain))
            return await score(call_id, prompt, chain, *rest)

        world.verifier.engine.score = counted  # type: ignore[method-assign]
        trace = await world.run("parallel_prefix", PROMPT, window=4)
        assert forwards == [4, 4]
        assert trace.coverage == 1.0

    virtual(run())


def test_specreason_asks_for_a_digit_and_accepts_from_seven_on() -> None:
    rule = rule_of(PipelineSettings(method="specreason"))
    assert rule.kind == "digit"
    assert [rule.accepts(Verdict(digit)) for digit in (6.0, 7.0)] == [False, True]
    assert not rule.accepts(Verdict(9.0, judged=False))

    async def run() -> None:
        world = World.make(4, acceptance=0.6, num_steps=(9, 9))
        trace = await world.run("specreason", PROMPT, first_target_steps=2)
        assert [step.score for step in trace.steps[:2]] == [None, None]
        assert {step.score for step in trace.steps[2:]} <= {9 * 0.99, 9 * 0.01}

    virtual(run())


def test_a_marker_ends_the_answer_only_where_the_published_rule_is_wanted() -> None:
    async def lengths() -> list[int]:
        counts = []
        for published in (False, True):
            world = World.make(4, acceptance=0.0, num_steps=(9, 9))
            write = world.target.engine.next_step

            async def marked(*arguments: Any, write: Any = write) -> Step:
                step = await write(*arguments)
                return Step(step.prefix, step.tokens, "so \\boxed{7}\n\n", step.finish, step.started, step.ended)

            world.target.engine.next_step = marked  # type: ignore[method-assign]
            counts.append(len((await world.run("specreason", PROMPT, stop_at_marker=published)).steps))
        return counts

    assert virtual(lengths()) == [9, 1]


def test_lookahead_begins_with_the_target_and_keeps_five_of_its_steps_in_flight() -> None:
    async def run() -> None:
        world = World.make(
            2, acceptance=1.0, num_steps=(12, 12), step_tokens=(10, 10), draft={"token_s": 0.0001}, **STEADY
        )
        trace = await world.run("lookahead", PROMPT, window=4)
        check_steps(world, trace, method="lookahead")
        assert trace.steps[0].source == "target"
        assert trace.steps[0].score is None
        assert {step.source for step in trace.steps[1:]} == {"draft"}
        assert world.target.watch.most == 5
        assert world.draft.watch.most <= 4
        assert world.num_in_flight == 0

    virtual(run())


def test_the_target_never_waits_for_a_slow_draft_in_lookahead() -> None:
    async def run() -> None:
        world = World.make(2, acceptance=1.0, num_steps=(6, 6), step_tokens=(10, 10), draft={"token_s": 0.1}, **STEADY)
        trace = await world.run("lookahead", PROMPT)
        plain = await world.run("autoregressive", PROMPT)
        assert trace.coverage == 0.0
        assert trace.tokens == plain.tokens
        assert trace.wall_s == pytest.approx(plain.wall_s)

    virtual(run())


@pytest.mark.parametrize("method", ["lookahead", "lookahead_batch"])
def test_lookahead_commits_what_was_judged_and_leaves_no_work(method: str) -> None:
    async def run(seed: int) -> None:
        world = World.make(seed)
        trace = await world.run(method, PROMPT, window=1 + seed % 5)
        check_steps(world, trace, method=method)
        assert world.num_in_flight == 0
        assert trace.end == "answered"

    for seed in range(40):
        virtual(run(seed))


def test_a_round_of_lookahead_commits_the_chain_and_the_targets_next_step() -> None:
    async def run() -> None:
        world = World.make(2, acceptance=1.0, num_steps=(11, 11), step_tokens=(10, 10), **STEADY)
        trace = await world.run("lookahead_batch", PROMPT, window=4)
        assert [step.source[0] for step in trace.steps] == [*"t", *"ddddt", *"ddddt"]
        # First step; then per round four drafted steps, one batch of the target, four verdicts on equal terms.
        assert trace.wall_s == pytest.approx(0.1 + 2 * (0.4 + 0.1 + 0.04))

    virtual(run())


@pytest.mark.parametrize("method", ["lookahead", "lookahead_batch"])
def test_in_lookahead_the_target_writes_behind_a_step_that_was_cut_off(method: str) -> None:
    async def run(seed: int) -> int:
        world = World.make(seed, acceptance=1.0, num_steps=(8, 8), step_tokens=(2, 12))
        trace = await world.run(method, PROMPT, max_step_tokens=8)
        cut = [after for step, after in pairwise(trace.steps) if step.source == "draft" and step.tokens[-1] > 1]
        assert {step.source for step in cut} <= {"target"}
        return len(cut)

    assert sum(virtual(run(seed)) for seed in range(20)) > 0


def test_a_coin_needs_no_verifier() -> None:
    async def run(method: str) -> None:
        world = World.make(5, acceptance=0.6, num_steps=(9, 9))
        trace = await world.run(method, PROMPT, verdict="random")
        assert trace.num_judged > 0
        assert {span.lane for span in trace.spans} == {"draft", "target"}
        assert all(0 <= span.start <= span.end for span in trace.spans)

    for method in ("fpsr", "parallel_prefix", "sequential"):
        virtual(run(method))


@pytest.mark.parametrize("kind", [ValueError, Unable])
def test_token_speculation_goes_on_without_a_draft_that_refuses_but_not_without_one_that_cannot(
    kind: type[ValueError],
) -> None:
    async def run() -> None:
        world = World.make(3, num_steps=(3, 3))
        plain = await world.run("autoregressive", PROMPT)

        async def refuse(*_: Any) -> Proposal:
            raise kind("not this one")

        world.draft.engine.propose_tokens = refuse  # type: ignore[method-assign]
        trace = await world.run("token_speculative", PROMPT)
        assert trace.tokens == plain.tokens
        assert trace.num_drafted == 0

    if kind is Unable:
        with pytest.raises(Unable, match="not this one"):
            virtual(run())
    else:
        virtual(run())


@pytest.mark.parametrize("method", ["sequential", "specreason", "lookahead", "lookahead_batch"])
def test_a_drafted_step_may_be_compared_with_the_targets_own(method: str) -> None:
    async def run() -> None:
        world = World.make(5, acceptance=0.6, num_steps=(9, 9))
        trace = await world.run(method, PROMPT, verdict="same", first_target_steps=0)
        check_steps(world, trace, method=method, verdict="same")
        assert 0 < trace.coverage < 1

    virtual(run())


@pytest.mark.parametrize("method", ["fpsr", "parallel_prefix"])
def test_comparing_is_refused_where_the_target_has_no_step_to_compare_with(method: str) -> None:
    with pytest.raises(ConfigError, match="compares with the target's own step"):
        check(PipelineSettings(method=method, verdict="same"))


def test_a_coin_accepts_its_share_and_decides_the_same_way_again() -> None:
    async def toss(seed: int) -> list[float]:
        verifier = Verifier(RandomVerdicts(World.make(0).verifier, seed))
        return [(await verifier.score("", PROMPT, Step((), (token,), "so"))).score for token in range(2000)]

    numbers = asyncio.run(toss(1))
    assert numbers == asyncio.run(toss(1)) != asyncio.run(toss(2))
    assert sum(number > 0.7 for number in numbers) / 2000 == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("method", ["parallel_prefix", "lookahead", "lookahead_batch", "auto"])
def test_work_that_a_commit_waits_for_is_no_orchestration(method: str) -> None:
    """Calls take no time here. Chains end in steps that are not judged; steps of a batch end at different times."""
    latencies = {"first_token_s": 0.01, "token_s": 0.01, "verdict_s": 0.05, "jitter": 0.0}
    world = World.make(1, shared=False, acceptance=1.0, num_steps=(3, 3), draft={"token_s": 0.002}, **latencies)
    trace = virtual(world.run(method, PROMPT, window=8))
    assert trace.orchestration_s == pytest.approx(0.0, abs=1e-6)
