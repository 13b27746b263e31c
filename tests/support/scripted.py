"""Three scripted engines as one pair of models, on a virtual clock, and a watch on what the actors are asked to do."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

from actors.local import LocalHandle, LocalJudge, LocalWriter
from dreamr.config import Method, PipelineSettings, ScriptedEngineConfig
from dreamr.engines.scripted import ScriptedEngine
from dreamr.types import Prompt, Sampling, Step, Verdict
from pipelines.handles import Actors, Ref
from pipelines.registry import build_pipeline
from pipelines.request import Request
from pipelines.trace import Trace
from pipelines.verification import Rule

PROMPT = Prompt("how many?")


def latencies(rng: random.Random) -> dict[str, float]:
    """Random latencies over two orders of magnitude, so that every order of events comes up."""
    return {
        "first_token_s": 10 ** rng.uniform(-3, -1),
        "token_s": 10 ** rng.uniform(-4, -2),
        "verdict_s": 10 ** rng.uniform(-3, 0),
        "jitter": rng.uniform(0, 0.9),
    }


@dataclass
class Watch:
    """What a writer was asked: calls neither stopped nor ended, and the most of them at any time."""

    open: set[str] = field(default_factory=set)
    most: int = 0
    in_background: list[bool] = field(default_factory=list)


class WatchedWriter(LocalWriter):
    """Counts open calls; a stopped one is not counted any more."""

    def __init__(self, engine: ScriptedEngine, role: Any) -> None:
        super().__init__(engine, role)
        self.watch = Watch()

    def next_step(self, call_id: str, prompt: Prompt, after: Step | Ref[Step], sampling: Sampling) -> Any:
        self.watch.open.add(call_id)
        self.watch.most = max(self.watch.most, len(self.watch.open))
        self.watch.in_background.append(sampling.background)
        ref = super().next_step(call_id, prompt, after, sampling)
        ref.task.add_done_callback(lambda _: self.watch.open.discard(call_id))
        return ref

    def stop(self, call_id: str) -> None:
        self.watch.open.discard(call_id)
        super().stop(call_id)


@dataclass
class World:
    """One scripted pair with its handles."""

    draft: WatchedWriter
    target: WatchedWriter
    judge: LocalJudge

    @classmethod
    def make(cls, seed: int, shared: bool | None = None, **target: Any) -> World:
        """`shared`: target and verifier are one engine; None leaves that to chance, as all that is not given."""
        rng = random.Random(f"world/{seed}")
        acceptance = target.pop("acceptance", rng.choice([0.0, 0.3, 0.7, 1.0]))

        def engine(model: int) -> ScriptedEngine:
            settings = {
                "kind": "scripted",
                "seed": model,
                "imitates": 2,
                "acceptance": acceptance,
                "step_tokens": (2, 12),
            }
            config = ScriptedEngineConfig.model_validate(settings | latencies(rng) | target)
            return ScriptedEngine(config, lambda: asyncio.get_running_loop().time())

        own = engine(2)
        judging = own if (rng.random() < 0.3 if shared is None else shared) else engine(2)
        return cls(WatchedWriter(engine(1), "draft"), WatchedWriter(own, "target"), LocalJudge(judging))

    @property
    def actors(self) -> Actors:
        return Actors(self.draft, self.target, self.judge)

    @property
    def handles(self) -> list[LocalHandle]:
        return [self.draft, self.target, self.judge]

    @property
    def num_in_flight(self) -> int:
        return sum(len(handle.tasks) for handle in self.handles)

    async def run(self, method: Method, prompt: Prompt, **settings: Any) -> Trace:
        loop = asyncio.get_running_loop()
        request = Request(prompt, PipelineSettings.model_validate({"method": method} | settings))
        return await build_pipeline(method, self.actors, loop.time).run(request)


def check_steps(world: World, trace: Trace, **settings: Any) -> None:
    """Ask the models again: each committed step is what its writer writes behind exactly the committed prefix, a
    drafted one has rho > alpha there, and one of the target's was rejected there or had no verdict."""
    request = Request(PROMPT, PipelineSettings.model_validate(settings))
    rule = Rule.of(request.settings)
    scale = 9 if rule.kind == "digit" else 1
    prefix: tuple[int, ...] = ()
    for index, step in enumerate(trace.steps):
        assert step.index == index
        writer = world.draft if step.source == "draft" else world.target
        assert step.tokens == writer.engine.script(PROMPT, prefix, request.sampling(index, step.source))
        drafted = world.draft.engine.script(PROMPT, prefix, request.sampling(index, "draft"))
        if step.rho is not None:
            assert step.rho == scale * world.judge.engine.rho(PROMPT, Step(prefix, drafted))
        assert (step.source == "draft") == (step.rho is not None and rule.accepts(Verdict(step.rho)))
        prefix += step.tokens
