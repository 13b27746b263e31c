"""The methods that `dreamr bench` measures: names, settings and sweeps, and methods that fail."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from support.scripted import PROMPT, World

from dreamr.bench.actors import BenchActors
from dreamr.bench.controls import self_acceptance, step_time
from dreamr.bench.interleaved import InterleavedRun, LedgerQuestions, Measurement, Question
from dreamr.bench.methods import MethodSpec, ScheduleMethod, parse_methods, with_assistant
from dreamr.bench.side_by_side import slowdown
from dreamr.bench.simulation import virtual
from dreamr.bench.summary import summarise
from dreamr.cli.bench import answer_all
from dreamr.config import Config, PipelineSettings, load_config
from dreamr.errors import BadInput
from dreamr.tasks.answers import AnswerKey
from pipelines import Trace
from pipelines.trace import Span

GROUP = load_config().group


def test_methods_may_have_settings_and_sweeps_make_more_of_them() -> None:
    settings = PipelineSettings(alpha=0.6)
    specs = parse_methods("autoregressive,fpsr,fpsr:verdict=digit+threshold=5", "window=1,8", settings)
    digits = "fpsr:verdict=digit+threshold=5"
    swept = ["fpsr:window=1", "fpsr:window=8", f"{digits}+window=1", f"{digits}+window=8"]
    assert [spec.name for spec in specs] == ["autoregressive", "fpsr", digits, *swept]
    chosen = {spec.name: spec.settings for spec in specs}
    assert (chosen["fpsr"].alpha, chosen["fpsr:window=8"].window) == (0.6, 8)
    assert chosen[digits].threshold == 5


def test_a_method_uses_an_assistant_only_where_its_name_says_so() -> None:
    specs = parse_methods("fpsr,fpsr+assistant,fpsr+assistant:alpha=0.5", "window=2", PipelineSettings())
    assert [(spec.base, spec.settings.method, spec.settings.assisted) for spec in specs[:3]] == [
        ("fpsr", "fpsr", False),
        ("fpsr", "fpsr", True),
        ("fpsr", "fpsr", True),
    ]
    assert [spec.name for spec in specs[3:]] == [
        "fpsr:window=2",
        "fpsr+assistant:window=2",
        "fpsr+assistant:alpha=0.5+window=2",
    ]


def test_the_draft_becomes_the_assistant_of_a_target_that_has_none() -> None:
    config = load_config()
    plain, assisted = (parse_methods(name, None, config.pipeline) for name in ("fpsr", "auto+assistant"))
    assert with_assistant(config, plain) is config
    chosen = with_assistant(config, assisted)
    assert chosen.group.target.engine == config.group.target.engine.model_copy(update={"assistant": "embedded:draft"})
    assert with_assistant(chosen, assisted) is chosen
    assert Config.model_validate(chosen.model_dump()) == chosen


@pytest.mark.parametrize(
    ("sweep", "swept"),
    [
        ("window=1", ["fpsr", "fpsr:verdict=digit"]),
        ("alpha=0.5", ["sequential", "fpsr"]),
        ("threshold=0.3", ["fpsr:verdict=digit", "specreason"]),
        ("proposed_tokens=3", ["token_speculative"]),
        ("first_target_steps=1", ["sequential", "fpsr", "fpsr:verdict=digit", "specreason"]),
    ],
)
def test_settings_are_swept_where_they_change_something(sweep: str, swept: list[str]) -> None:
    methods = ["autoregressive", "sequential", "fpsr", "fpsr:verdict=digit", "specreason", "token_speculative"]
    specs = parse_methods(",".join(methods), sweep, PipelineSettings())
    expected = [f"{name}{'+' if ':' in name else ':'}{sweep}" for name in swept]
    assert [spec.name for spec in specs] == [*methods, *expected]


@pytest.mark.parametrize(
    ("methods", "sweep", "problem"),
    [
        ("fast", None, "there is no method 'fast'; choose one of autoregressive,"),
        ("fpsr:speed=2", None, "there is no setting 'speed'"),
        ("fpsr:alpha=2", None, "should be less than 1"),
        ("fpsr:assisted=true", None, "there is no setting 'assisted'"),
        ("draft_alone+assistant", None, "only a schedule whose target writes steps"),
        ("token_speculative+assistant", None, "only a schedule whose target writes steps"),
        ("fpsr:verdict=same", None, "compares with the target's own step"),
        ("fpsr", "speed=1,2", "write setting=value,value"),
        ("autoregressive", "alpha=0.5", "for methods that are schedules"),
        ("token_speculative", "window=1,2", "and read the setting"),
    ],
)
def test_methods_that_cannot_be_had_are_refused(methods: str, sweep: str | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_methods(methods, sweep, PipelineSettings())


class Refusing(ScheduleMethod):
    """Answers two prompts, then no more."""

    num_left = 2

    async def run(self, *arguments: Any, **options: Any) -> Trace:
        self.num_left -= 1
        if self.num_left < 0:
            raise ValueError("no more of these")
        return await super().run(*arguments, **options)


def test_a_method_that_fails_late_is_named_and_the_others_go_on() -> None:
    async def both() -> tuple[InterleavedRun, list[Measurement]]:
        world = World.make(1, num_steps=(2, 3))
        specs = [MethodSpec(name, PipelineSettings(method=name)) for name in ("autoregressive", "fpsr")]
        plain, fast = ScheduleMethod(specs[0], world.handles, {}), Refusing(specs[1], world.handles, {})
        run = InterleavedRun([plain, fast], LedgerQuestions(seed=0))
        return run, await answer_all(run, 3, Console(quiet=True), {})

    run, measurements = asyncio.run(both())
    assert run.failed == {"fpsr": "ValueError: no more of these"}
    assert [one.method for one in measurements] == ["autoregressive", "fpsr", "autoregressive", "autoregressive"]
    assert [one.name for one in summarise(measurements, run.methods, cores=2)] == ["autoregressive"]


def test_a_run_without_any_method_says_why() -> None:
    run = InterleavedRun([], LedgerQuestions(seed=0))
    with pytest.raises(BadInput, match="transformers: it runs checkpoints"):
        asyncio.run(answer_all(run, 1, Console(quiet=True), {"transformers": "it runs checkpoints"}))


def test_controls_survive_the_loss_of_an_actor() -> None:
    async def measure() -> tuple[dict[str, float], float | None]:
        world = World.make(1, num_steps=(2, 3))
        trace = await world.run("autoregressive", PROMPT)
        world.verifier.lose()
        world.draft.lose()
        measurement = Measurement.of(0, Question(PROMPT, AnswerKey("ledger", ("0",))), "autoregressive", trace)
        accepted = await self_acceptance(world.handles, PipelineSettings(), [measurement])
        return accepted, await slowdown(world.handles, PipelineSettings(), PROMPT)

    assert virtual(measure()) == ({}, None)


@pytest.mark.parametrize(
    ("lengths", "seconds"),
    [((10, 12, 14), (1.0, 1.0, 0.7)), ((10, 10, 10), (0.9, 1.0, 1.1))],
    ids=["noise", "one length"],
)
def test_a_long_step_never_takes_less_than_a_short_one(lengths: tuple[int, ...], seconds: tuple[float, ...]) -> None:
    trace = virtual(World.make(1).run("autoregressive", PROMPT))
    spans = tuple(
        Span("target", 0.0, took, "committed", step, length)
        for step, (length, took) in enumerate(zip(lengths, seconds, strict=True), 1)
    )
    time = step_time([replace(trace, spans=spans)], "target")
    assert (time.token_s, time.first_s) == (0.0, pytest.approx(sum(seconds) / 3))


def test_all_cores_are_those_that_the_other_methods_can_use() -> None:
    group: Any = None
    threads = GROUP.target.model_copy(update={"num_threads": 2})
    assert BenchActors(group, GROUP, [], 64).num_threads == 3
    assert BenchActors(group, GROUP.model_copy(update={"target": threads}), [], 64).num_threads == 4
    assert BenchActors(group, GROUP, [], 2).num_threads == 2
