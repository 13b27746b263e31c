"""Three scripted engines as one pair of models, on a virtual clock, and a watch on what the actors are asked to do."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

from actors.engine_actor import EngineActor
from actors.local import LocalTransport
from actors.roles import DraftActor, TargetActor, VerifierActor
from dreamr.config import PipelineSettings, ScriptedEngineConfig
from dreamr.engines.scripted import ScriptedEngine
from dreamr.types import Priority, Prompt, Step, Verdict
from pipelines import Request, Trace, rule_of, run
from pipelines.costs import Costs
from pipelines.handles import Handles, Verifier, Writer

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
    """Which steps were asked for: calls neither stopped nor ended, and the most of them at any time."""

    open: set[str] = field(default_factory=set)
    most: int = 0
    priorities: list[Priority] = field(default_factory=list)


class WatchedTransport(LocalTransport):
    """Counts open `next_step` calls; a stopped one is not counted any more."""

    engine: ScriptedEngine

    def __init__(self, kind: type[EngineActor], engine: ScriptedEngine) -> None:
        super().__init__(kind, engine)
        self.watch = Watch()

    def submit(self, method: str, call_id: str, prompt: Prompt, *arguments: Any) -> Any:
        ref = super().submit(method, call_id, prompt, *arguments)
        if method == "next_step":
            self.watch.open.add(call_id)
            self.watch.most = max(self.watch.most, len(self.watch.open))
            self.watch.priorities.append(arguments[2])
            ref.task.add_done_callback(lambda _: self.watch.open.discard(call_id))
        return ref

    def stop(self, call_id: str) -> None:
        self.watch.open.discard(call_id)
        super().stop(call_id)


@dataclass
class World:
    """One scripted pair with its transports."""

    draft: WatchedTransport
    target: WatchedTransport
    verifier: WatchedTransport
    costs: Costs = field(default_factory=Costs)

    @classmethod
    def make(cls, seed: int, shared: bool | None = None, draft: dict[str, Any] | None = None, **engines: Any) -> World:
        """`engines`: settings of all three; `draft`: those of the draft that differ.

        `shared`: target and verifier are one engine; None leaves that to chance, as all that is not given.
        """
        rng = random.Random(f"world/{seed}")
        acceptance = engines.pop("acceptance", rng.choice([0.0, 0.3, 0.7, 1.0]))

        def engine(model: int, changes: dict[str, Any]) -> ScriptedEngine:
            settings = {
                "kind": "scripted",
                "seed": model,
                "imitates": 2,
                "acceptance": acceptance,
                "step_tokens": (2, 12),
            }
            config = ScriptedEngineConfig.model_validate(settings | latencies(rng) | engines | changes)
            return ScriptedEngine(config, lambda: asyncio.get_running_loop().time())

        own = engine(2, {})
        judging = own if (rng.random() < 0.3 if shared is None else shared) else engine(2, {})
        return cls(
            WatchedTransport(DraftActor, engine(1, draft or {})),
            WatchedTransport(TargetActor, own),
            WatchedTransport(VerifierActor, judging),
        )

    @property
    def handles(self) -> Handles:
        return Handles(Writer(self.draft), Writer(self.target), Verifier(self.verifier), self.costs)

    @property
    def transports(self) -> list[WatchedTransport]:
        return [self.draft, self.target, self.verifier]

    @property
    def num_in_flight(self) -> int:
        return sum(len(transport.tasks) for transport in self.transports)

    async def run(self, method: str, prompt: Prompt, **settings: Any) -> Trace:
        loop = asyncio.get_running_loop()
        request = Request(prompt, PipelineSettings.model_validate({"method": method} | settings))
        return await run(request, self.handles, clock=loop.time)


def check_steps(world: World, trace: Trace, **settings: Any) -> None:
    """Ask the models again: each committed step is what its writer writes behind exactly the committed prefix, a
    drafted one has rho > alpha there, and one of the target's was rejected there or had no verdict."""
    request = Request(PROMPT, PipelineSettings.model_validate(settings))
    rule = rule_of(request.settings)
    scale = 9 if rule.kind == "digit" else 1
    prefix: tuple[int, ...] = ()
    for index, step in enumerate(trace.steps):
        assert step.index == index
        writer = world.draft if step.source == "draft" else world.target
        own, draft = (request.sampling(index, role).within_budget(len(prefix)) for role in (step.source, "draft"))
        assert step.tokens == writer.engine.script.step(PROMPT, prefix, own)
        drafted = world.draft.engine.script.step(PROMPT, prefix, draft)
        if step.score is not None:
            assert step.score == scale * world.verifier.engine.script.rho(PROMPT, Step(prefix, drafted))
        assert (step.source == "draft") == (step.score is not None and rule.accepts(Verdict(step.score)))
        prefix += step.tokens
