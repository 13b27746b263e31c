"""What `dreamr bench` and `dreamr demo` compute: speedups, sums, answers, the oracle; methods share no caches."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.scripted import PROMPT, World
from support.tiny import PROMPTS, picture, save_checkpoint

from dreamr.bench.interleaved import InterleavedRun, LedgerQuestions, Measurement, Question
from dreamr.bench.methods import Method, MethodSpec, ScheduleMethod
from dreamr.bench.report import Machine, MethodReport, Report, Speedup
from dreamr.bench.simulation import virtual
from dreamr.bench.summary import make_report, speedup, summarise, token_acceptance, with_oracle
from dreamr.cli.demo import pictured
from dreamr.cli.terminal import printable
from dreamr.config import ActorConfig, GroupConfig, PipelineSettings, load_config
from dreamr.engines.hf.engine import HFEngine
from dreamr.result import split_answer
from dreamr.tasks.answers import AnswerKey
from dreamr.tasks.images import cold_copy, open_image
from dreamr.tasks.ledger import make_problem
from dreamr.types import ROOT, Prompt, Sampling, Step
from pipelines import Trace
from pipelines.trace import CommittedStep

GROUP = load_config().group


def traced(method: str, seed: int) -> Trace:
    return virtual(World.make(seed, acceptance=0.6).run(method, PROMPT))


def measured(index: int, method: str, trace: Trace, expected: str = "0") -> Measurement:
    return Measurement.of(index, Question(PROMPT, AnswerKey("ledger", (expected,))), method, trace)


def methods(*names: str, group: GroupConfig = GROUP) -> list[Method]:
    actors: dict[str, ActorConfig] = {**group.actors()}
    handles: Any = None
    return [
        ScheduleMethod(MethodSpec(name, PipelineSettings(method=name.removesuffix("+assistant"))), handles, actors)
        for name in names
    ]


def summaries(measurements: list[Measurement], group: GroupConfig = GROUP) -> list[MethodReport]:
    names = list(dict.fromkeys(one.method for one in measurements))
    return summarise(measurements, methods(*names, group=group), cores=2)


def saying(text: str, trace: Trace) -> Trace:
    return replace(trace, steps=(*trace.steps, CommittedStep(len(trace.steps), "target", (1,), text, None, 9.0)))


def bounds(result: Speedup) -> tuple[float, float]:
    assert result.low is not None
    assert result.high is not None
    return result.low, result.high


def test_speedup_is_the_geometric_mean_of_paired_ratios() -> None:
    result = speedup([2.0, 8.0], [1.0, 1.0])
    assert result.geomean == pytest.approx(4.0)


def test_the_interval_holds_the_mean_narrows_with_more_problems_and_repeats_with_its_seed() -> None:
    few = speedup([1.5, 2.0, 2.5, 3.0], [1.0] * 4, seed=1)
    many = speedup([1.5, 2.0, 2.5, 3.0] * 25, [1.0] * 100, seed=1)
    (few_low, few_high), (many_low, many_high) = bounds(few), bounds(many)
    assert few_low < few.geomean < few_high
    assert many_high - many_low < (few_high - few_low) / 3
    assert speedup([1.5, 2.0, 2.5, 3.0], [1.0] * 4, seed=1) == few


def test_equal_ratios_leave_no_doubt_and_one_problem_no_interval() -> None:
    sure = speedup([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (sure.low, sure.high) == (pytest.approx(2.0), pytest.approx(2.0))
    assert speedup([3.0], [2.0]).low is None


def test_times_that_are_not_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        speedup([1.0, 2.0], [1.0])


def test_rates_are_sums_over_sums() -> None:
    traces = [traced("fpsr", seed) for seed in range(8)]
    (summary,) = summaries([measured(index, "fpsr", trace) for index, trace in enumerate(traces)])
    judged, steps = sum(trace.num_judged for trace in traces), [step for trace in traces for step in trace.steps]
    assert summary.acceptance_rate == sum(trace.num_accepted for trace in traces) / judged
    assert summary.coverage == sum(step.source == "draft" for step in steps) / len(steps)
    assert summary.tokens.wasted_draft == sum(trace.wasted_draft_tokens for trace in traces)
    assert summary.wall_s == pytest.approx(sum(trace.wall_s for trace in traces))
    assert summary.speedup is None, "nothing to compare with"


def test_speedups_pair_the_runs_of_the_same_problem_whatever_the_order() -> None:
    walls: dict[str, list[float]] = {"autoregressive": [1.0, 10.0], "fpsr": [0.5, 5.0]}
    runs = [
        measured(problem, method, replace(traced(method, problem), wall_s=wall))
        for method, times in walls.items()
        for problem, wall in enumerate(times)
    ]
    plain, fast = summaries([runs[0], runs[3], runs[1], runs[2]])
    assert (plain.name, plain.speedup) == ("autoregressive", Speedup(geomean=1.0, low=1.0, high=1.0))
    assert fast.speedup is not None
    assert (fast.speedup.geomean, fast.speedup.low) == (pytest.approx(2.0), pytest.approx(2.0))


def test_actors_are_those_that_worked() -> None:
    runs = [measured(0, "autoregressive", traced("autoregressive", 1)), measured(0, "fpsr", traced("fpsr", 1))]
    plain, fast = summaries(runs)
    assert (plain.actors, plain.threads, plain.cores) == (["target"], 1, 1)
    assert (fast.actors, fast.threads, fast.cores) == (["draft", "target", "verifier"], 3, 2)
    shared = GROUP.model_copy(update={"verifier": "shared"})
    assert summaries(runs, shared)[1].actors == ["draft", "target"]


def test_unparsed_and_truncated_answers_are_wrong_and_counted() -> None:
    trace = traced("autoregressive", 0)
    texts = ("</think>Answer: 42", "\\boxed{42}", "</think>Answer: 24", "and so on")
    runs = [measured(index, "fpsr", saying(text, trace), "42") for index, text in enumerate(texts)]
    runs.append(measured(4, "fpsr", replace(saying("Answer: 42", trace), end="budget"), "42"))
    assert [one.correct for one in runs] == [True, True, False, False, False]
    assert [one.answer for one in runs] == ["42", "42", "24", None, None]
    (summary,) = summaries(runs)
    assert (summary.accuracy, summary.unparsed_rate, summary.truncated_rate) == (2 / 5, 2 / 5, 1 / 5)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("</think>Answer: 42", "before", "42"),
        ("<think>so</think>\n\nIt is blue.", "before\n\n<think>so", "It is blue."),
        ("so \\boxed{7}", "before", "so \\boxed{7}"),
        ("</think>", "before", None),
        ("<think>so", "before\n\n<think>so", None),
    ],
)
def test_the_answer_is_what_follows_the_reasoning(text: str, reasoning: str, answer: str | None) -> None:
    trace = traced("autoregressive", 0)
    assert trace.end == "answered"
    before = CommittedStep(0, "target", (1,), "before\n\n", None, 1.0)
    assert split_answer(saying(text, replace(trace, steps=(before,)))) == (reasoning, answer)


def test_reasoning_that_was_cut_off_is_no_answer() -> None:
    trace = traced("autoregressive", 0)
    for end in ("budget", "loop", "enough"):
        assert split_answer(saying("the last step", replace(trace, end=end)))[1] is None
        assert split_answer(saying("</think>42", replace(trace, end=end)))[1] == "42"


def test_the_oracle_takes_the_time_of_the_committed_steps_alone() -> None:
    names = ("autoregressive", "fpsr", "sequential")
    runs = [measured(index, name, traced(name, index)) for index in range(3) for name in names]
    infos: dict[Any, Any] = {}
    config = load_config()
    report = make_report(config, 0, Machine.this(), infos, methods(*names), runs, failed={})
    *measured_ones, oracle = with_oracle(report, runs).methods
    assert measured_ones == report.methods
    assert (oracle.name, oracle.computed_from) == ("oracle", "sequential")
    committed = [
        span.end - span.start
        for one in runs
        if one.method == "sequential"
        for span in one.trace.spans
        if span.outcome == "committed"
    ]
    assert oracle.wall_s == pytest.approx(sum(committed))
    assert oracle.tokens.wasted_draft == oracle.tokens.wasted_target == 0
    sequential = measured_ones[-1]
    assert oracle.speedup is not None
    assert sequential.speedup is not None
    assert oracle.speedup.geomean > sequential.speedup.geomean
    alone = make_report(config, 0, Machine.this(), infos, methods("autoregressive"), runs, failed={})
    assert with_oracle(alone, runs) == alone


def test_the_oracle_with_an_assistant_has_a_row_of_its_own() -> None:
    names = ("autoregressive", "fpsr", "fpsr+assistant")
    runs = [
        measured(index, name, traced(name.removesuffix("+assistant"), index)) for index in range(2) for name in names
    ]
    made = make_report(load_config(), 0, Machine.this(), {}, methods(*names), runs, failed={})
    oracles = [(one.name, one.computed_from) for one in with_oracle(made, runs).methods[3:]]
    assert oracles == [("oracle", "fpsr"), ("oracle+assistant", "fpsr+assistant")]


def test_acceptance_by_position_counts_the_proposals_that_are_so_long() -> None:
    assert token_acceptance([(3, 3), (3, 1), (2, 0), (1, 1)]) == [3 / 4, 1 / 3, 1 / 2]
    assert token_acceptance([]) == []


def test_checks_are_the_proposals_and_what_was_accepted_of_them() -> None:
    trace = traced("token_speculative", 3)
    assert sum(proposed for proposed, _ in trace.checks) == trace.num_drafted
    assert sum(accepted for _, accepted in trace.checks) >= trace.num_accepted > 0
    assert not traced("fpsr", 3).checks


def test_methods_take_turns_and_each_answer_has_its_own_copy_of_the_prompt() -> None:
    async def both() -> tuple[list[Measurement], set[str]]:
        world = World.make(1, num_steps=(2, 3))
        keys: set[str] = set()
        write = world.target.engine.next_step

        async def watched(call_id: str, prompt: Prompt, *rest: Any) -> Step:
            keys.add(prompt.key)
            return await write(call_id, prompt, *rest)

        world.target.engine.next_step = watched  # type: ignore[method-assign]
        specs = [MethodSpec(name, PipelineSettings(method=name)) for name in ("autoregressive", "fpsr")]
        run = InterleavedRun([ScheduleMethod(spec, world.handles, {}) for spec in specs], LedgerQuestions(seed=0))
        await run.warm_up()
        return [*await run.answer(0), *await run.answer(1)], keys

    measurements, keys = asyncio.run(both())
    assert [one.method for one in measurements] == ["autoregressive", "fpsr", "fpsr", "autoregressive"]
    assert len(keys) == 6
    assert pictured(measurements).method == "fpsr"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_cold_copies_differ_in_their_key_and_in_no_pixel(kind: str) -> None:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(picture(70, 41))) as image:
        image.save(buffer, kind)
    original = Prompt("how many?", (buffer.getvalue(),))
    copies = [cold_copy(original, "a"), cold_copy(original, "b")]
    assert len({prompt.key for prompt in (original, *copies)}) == 3
    shown = [open_image(prompt.images[0], 1) for prompt in (original, *copies)]
    assert shown[0].tobytes() == shown[1].tobytes() == shown[2].tobytes()


def test_cold_copies_are_turned_upright_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held sideways
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(picture(70, 41))) as image:
        image.save(buffer, "JPEG", exif=exif)
    original = Prompt("how many?", (buffer.getvalue(),))
    copy = cold_copy(cold_copy(original, "a"), "b")
    assert open_image(copy.images[0], 1).tobytes() == open_image(original.images[0], 1).tobytes()


@pytest.mark.parametrize("name", ["one wide image", "two images"])
def test_a_cold_copy_gives_the_same_tokens_from_an_empty_cache(name: str, tmp_path: Path) -> None:
    engine = HFEngine.load(str(save_checkpoint(tmp_path / "model")))

    async def two_steps(prompt: Prompt) -> tuple[int, ...]:
        first = await engine.next_step("a", prompt, ROOT, Sampling(max_tokens=24))
        return (await engine.next_step("b", prompt, first, Sampling(max_tokens=24))).end

    async def both() -> list[tuple[int, ...]]:
        original = await two_steps(PROMPTS[name])
        num_cached = engine.cache.capacity
        copy = await two_steps(cold_copy(PROMPTS[name], "again"))
        assert engine.cache.capacity == 2 * num_cached, "the copy was computed anew"
        await engine.close()
        return [original, copy]

    original, copy = asyncio.run(both())
    assert original == copy


def test_a_ledger_prompt_shows_the_problem() -> None:
    problem = make_problem("test", 0, 0)
    prompt = problem.prompt
    assert prompt.question == problem.question
    assert open_image(prompt.images[0], 1).tobytes() == problem.image.tobytes()


def test_terminals_are_safe_from_what_models_write() -> None:
    assert printable("a\x1b[2Jb\n\tc\x07") == "a\N{REPLACEMENT CHARACTER}[2Jb\n\tc\N{REPLACEMENT CHARACTER}"


def test_the_machine_is_named() -> None:
    machine = Machine.this()
    assert machine.cores >= 1
    assert machine.cpu


def test_a_file_that_is_not_a_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"version": 1}')
    for name, problem in [("none.json", "there is no such report"), ("other.json", "not a report of this version")]:
        with pytest.raises(ValueError, match=problem):
            Report.read(tmp_path / name)
