"""The simulator: cores that are shared, predictions that follow from the latencies, scenarios that are refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from dreamr.bench.scenario import PRESETS, Scenario, Writing
from dreamr.bench.simulation import predict, virtual
from dreamr.cli.simulate import simulate
from dreamr.config import PipelineSettings, ScriptedEngineConfig, load_config
from dreamr.engines.cores import Cores
from dreamr.engines.scripted import ScriptedEngine
from dreamr.errors import ConfigError
from dreamr.types import ROOT, Prompt, Role, Sampling, Step
from tools.fit_preset import bisect, speedup_of

WRITES = Writing(token_s=0.01, step_tokens=(10, 10))
SETTINGS = PipelineSettings(max_tokens=10**6)


def scenario(**changes: object) -> Scenario:
    """A target that takes 0.1 s a step, a draft that takes a tenth of that, and verdicts that cost nothing."""
    draft = Writing(token_s=0.001, step_tokens=(10, 10))
    plain = Scenario(target=WRITES, draft=draft, verdict_s=0.0, num_steps=(8, 8), acceptance={"rho": 1.0})
    return plain.model_copy(update=changes)


def predicted(one: Scenario, method: str) -> float:
    (prediction,) = predict(one, SETTINGS, [method], 5)
    assert prediction is not None
    return prediction.speedup.geomean


async def finished_at(cores: Cores, *pieces: tuple[float, float, bool]) -> list[float]:
    """When each piece (start, seconds, background) is done."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def one(start: float, seconds: float, background: bool) -> float:
        await asyncio.sleep(start)
        await cores.work(seconds, background=background)
        return round(loop.time() - began, 6)

    return list(await asyncio.gather(*(one(*piece) for piece in pieces)))


@pytest.mark.parametrize(
    ("pieces", "ends"),
    [
        ([(0, 1, False), (0, 1, False)], [1, 1]),
        ([(0, 1, False), (0, 1, False), (0, 1, False)], [1.5, 1.5, 1.5]),
        ([(0, 1, False), (0, 2, False), (0, 1, True)], [1, 2, 2]),
        ([(0, 2, True), (0.5, 1, False), (0.5, 1, False)], [3, 1.5, 1.5]),
    ],
)
def test_two_cores_are_shared_out(pieces: list[tuple[float, float, bool]], ends: list[float]) -> None:
    assert virtual(finished_at(Cores(2), *pieces)) == ends


def test_cores_that_share_something_are_slower_together() -> None:
    assert virtual(finished_at(Cores(2, together=1.5), (0, 1, False), (1.5, 1, False))) == [1, 2.5]
    assert virtual(finished_at(Cores(2, together=1.5), (0, 1, False), (0, 1, False))) == [1.5, 1.5]


def test_each_actor_has_its_slowdown_beside_each_other_one() -> None:
    async def run() -> tuple[float, float]:
        cores, loop = Cores(2, slowdown={"verifier": {"target": 1.5}}), asyncio.get_running_loop()
        ends: list[float] = []

        async def work(actor: Role) -> None:
            await cores.work(1.0, actor=actor)
            ends.append(round(loop.time(), 6))

        await asyncio.gather(work("verifier"), work("target"))
        return ends[0], ends[1]

    assert virtual(run()) == (1.0, pytest.approx(1 + 1 / 3))  # the last third of the verdict is computed alone


@pytest.mark.parametrize(("row_s", "seconds"), [(None, 0.3), (0.0, 0.1), (0.002, 0.14)])
def test_steps_that_wait_together_share_a_forward(row_s: float | None, seconds: float) -> None:
    async def run() -> float:
        loop = asyncio.get_running_loop()
        config = ScriptedEngineConfig(
            kind="scripted", token_s=0.01, step_tokens=(10, 10), row_s=row_s, max_batch=1 if row_s is None else 8
        )
        engine = ScriptedEngine(config, loop.time)
        prompts = [Prompt(f"question {number}") for number in range(3)]
        await asyncio.gather(*(engine.next_step(one.key, one, ROOT, Sampling(max_tokens=96)) for one in prompts))
        return loop.time()

    assert virtual(run()) == pytest.approx(seconds)


def test_steps_that_another_model_has_written_are_read_once() -> None:
    async def run() -> list[float]:
        loop, sampling = asyncio.get_running_loop(), Sampling(max_tokens=96)
        config = ScriptedEngineConfig(kind="scripted", token_s=0.01, step_tokens=(10, 10), read_step_s=0.3)
        engine, prompt, seconds = ScriptedEngine(config, loop.time), Prompt("question"), []
        first = await engine.next_step("0", prompt, ROOT, sampling)
        drafted = Step(first.end, (5, 0))
        for number, after in enumerate([first, Step(drafted.end, (6, 0)), Step(drafted.end, (7, 0))]):
            began = loop.time()
            await engine.next_step(f"{number + 1}", prompt, after, sampling)
            seconds.append(round(loop.time() - began, 6))
        return seconds

    # Nothing to read after its own step; then two steps; then one, since the first of the two is known.
    assert virtual(run()) == [0.1, 0.7, 0.4]


def test_cancelled_work_leaves_the_core_to_others() -> None:
    async def run() -> float:
        cores, loop = Cores(1), asyncio.get_running_loop()
        first = asyncio.create_task(cores.work(10.0))
        second = asyncio.create_task(cores.work(1.0))
        await asyncio.sleep(1.0)
        first.cancel()
        await second
        return loop.time()

    assert virtual(run()) == pytest.approx(1.5)


def test_the_target_alone_is_its_own_measure() -> None:
    assert predicted(scenario(call_s=0.01), "autoregressive") == 1.0


def test_simulated_requests_of_auto_learn_from_each_other() -> None:
    assert predicted(scenario(), "auto") > 2


def test_predictions_are_what_can_be_worked_out_by_hand() -> None:
    # All accepted: a step costs what the draft takes. None accepted: the draft's time comes on top, or is hidden.
    assert predicted(scenario(), "sequential") == pytest.approx(10)
    assert predicted(scenario(), "fpsr") == pytest.approx(10)
    never = scenario(acceptance={"rho": 0.0})
    assert predicted(never, "sequential") == pytest.approx(1 / 1.1)
    assert predicted(never, "fpsr") == pytest.approx(1)


def test_verdicts_on_several_steps_take_longer() -> None:
    # Four drafted steps of 0.01 s, then one forward over them; the target takes 0.1 s a step.
    assert predicted(scenario(), "parallel_prefix") == pytest.approx(10)
    assert predicted(scenario(verdict_step_s=0.02), "parallel_prefix") == pytest.approx(4)


def test_call_costs_slow_down_what_makes_more_calls() -> None:
    costly = scenario(call_s=0.02, acceptance={"rho": 0.7, "same": 0.7, "digit": 0.7})
    (one,) = predict(costly, SETTINGS, ["sequential"], 10)
    assert one is not None
    assert one.speedup.geomean < one.ideal.geomean


def test_the_ideal_knows_neither_call_costs_nor_shared_cores() -> None:
    (one,) = predict(scenario(call_s=0.02, cores=1, together=1.5), SETTINGS, ["fpsr"], 5)
    assert one is not None
    assert one.speedup.geomean < 9
    assert one.ideal.geomean == pytest.approx(10)


def measured_report(folder: Path, **pipeline: object) -> Path:
    """A report of the scenario above, in which fpsr was measured at a speedup of 8."""
    writes = {"prompt_s": 0, "first_s": 0, "num_steps": 9, "tokens_low": 10, "tokens_mean": 10, "tokens_high": 10}
    fast = {
        "name": "fpsr", "accuracy": 1, "unparsed_rate": 0, "truncated_rate": 0,
        "speedup": {"geomean": 8.0, "low": None, "high": None},
        "wall_s": 1, "acceptance_rate": 1, "coverage": 1, "cores": 2, "latency_s": {"p50": 1, "p95": 1},
        "tokens": {"committed": 1, "drafted": 1, "wasted_draft": 0, "wasted_target": 0}, "num_problems": 1,
        "num_losses": 0, "orchestration_share": 0, "busy_s": {}, "actors": [], "threads": 3, "gpus": 0,
    }  # fmt: skip
    config = load_config().model_dump(mode="json")
    config["pipeline"] |= pipeline
    report = {
        "command": "dreamr bench", "seed": 0, "config": config, "models": {}, "problems": [], "methods": [fast],
        "machine": {"cpu": "", "cores": 2, "load": 0, "system": "", "python": ""},
        "measured": {
            "target": writes | {"token_s": 0.01}, "draft": writes | {"token_s": 0.001}, "verdict_s": 0, "call_s": 0.01,
            "steps_low": 8, "steps_high": 8, "acceptance": {"sequential": 1.0}, "together": 1.2,
        },
    }  # fmt: skip
    path = folder / "report.json"
    path.write_text(json.dumps(report))
    return path


def test_predictions_are_set_against_what_was_measured_and_against_the_ideal(tmp_path: Path) -> None:
    out = tmp_path / "simulation.json"
    simulate("", measured_report(tmp_path), 3, None, out=out, as_json=True)
    document = json.loads(out.read_text())
    rows = {row["method"]: row for row in document["methods"]}
    assert document["references"] == "measured"
    assert rows["fpsr"]["ideal"]["geomean"] == pytest.approx(10)
    assert rows["fpsr"]["reference_over_ideal"] == pytest.approx(0.8)
    assert rows["fpsr"]["predicted_over_reference"] == pytest.approx(rows["fpsr"]["speedup"]["geomean"] / 8)
    assert rows["sequential"]["reference_over_ideal"] is None


def test_a_calibrated_simulation_runs_under_the_settings_of_the_report(tmp_path: Path) -> None:
    def speeds(window: int | None, /, **pipeline: object) -> dict[str, float]:
        out = tmp_path / "simulation.json"
        simulate("", measured_report(tmp_path, **pipeline), 2, window, out=out, as_json=True)
        return {row["method"]: row["speedup"]["geomean"] for row in json.loads(out.read_text())["methods"]}

    assert speeds(None, first_target_steps=4)["fpsr"] < speeds(None)["fpsr"]
    assert speeds(None, window=1) == speeds(1) != speeds(None)
    assert "specreason" not in speeds(None)
    assert "specreason" in speeds(None, verdict="rho"), "then its verdicts are those of the sequential method"


def test_one_core_leaves_nothing_to_win_but_what_the_draft_saves() -> None:
    shared = scenario(acceptance={"rho": 0.6}, cores=1)
    assert predicted(shared, "fpsr") < predicted(scenario(acceptance={"rho": 0.6}), "fpsr")


def test_methods_without_an_acceptance_rate_are_left_out() -> None:
    found = predict(scenario(), SETTINGS, ["specreason", "lookahead", "fpsr"], 2)
    assert [one and one.method for one in found] == [None, None, "fpsr"]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_write_down_their_assumptions(preset: str) -> None:
    assert len(Scenario.read(preset).assumptions) >= 3


def test_the_fitted_preset_reaches_the_speedups_that_it_was_fitted_to_and_predicts_a_third() -> None:
    fitted = Scenario.read("q32b-q2b-fitted")
    found = {method: speedup_of(method, fitted, 12) for method in fitted.paper}
    assert found["specreason"] == pytest.approx(fitted.paper["specreason"], rel=0.03)
    assert found["fpsr"] == pytest.approx(fitted.paper["fpsr"], rel=0.03)
    assert found["lookahead"] == pytest.approx(fitted.paper["lookahead"], rel=0.06)


def test_the_fit_finds_where_a_function_has_a_value() -> None:
    assert bisect(lambda value: value**2, 0.25, 0.0, 1.0) == pytest.approx(0.5, abs=0.01)


def test_a_scenario_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("target: {token_s: -1, step_tokens: [1, 2]}")
    for source, problem in [
        ("none", "no such file, nor one of"),
        (str(tmp_path / "own.yaml"), "greater than or equal"),
    ]:
        with pytest.raises(ConfigError, match=problem):
            Scenario.read(source)


def test_the_table_fits_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    simulate("", measured_report(tmp_path), 1, None, out=None, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    (titles,) = [line.split() for line in lines if "predicted" in line and "measured" in line and "/" not in line]
    assert titles == ["predicted", "measured", "ratio", "ideal", "reached", "accepted", "coverage"]
    assert {"fpsr", "parallel_prefix", "token_speculative"} <= {line.split()[0] for line in lines if line.split()}
