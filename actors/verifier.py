"""The verifier: the target model in an actor of its own, giving verdicts while the target writes."""

from __future__ import annotations

from typing import ClassVar

from actors.base import EngineActor
from actors.batching import VerdictBatcher
from dreamr.config import ActorConfig
from dreamr.types import Criterion, Prompt, Role, Step, Verdict


class VerifierActor(EngineActor):
    """Judges drafted steps; those that wait together are judged together."""

    role: ClassVar[Role] = "verifier"

    def __init__(self, config: ActorConfig, ids_of: str | None = None) -> None:
        super().__init__(config, ids_of)
        self._batcher: VerdictBatcher | None = None

    async def score(
        self, call_id: str, prompt: Prompt, step: Step, criterion: Criterion = "rho", reference: Step | None = None
    ) -> Verdict:
        """Judge one step on its own prefix; without a verdict when there is nothing to judge, or after `stop`."""
        engine = self._engine  # raises NotLoaded
        if self._batcher is None:
            self._batcher = VerdictBatcher(engine)
        return await self._alive(self._batcher.score(call_id, prompt, step, criterion, reference))

    async def score_chain(
        self, call_id: str, prompt: Prompt, criterion: Criterion, *chain: Step
    ) -> tuple[Verdict, ...]:
        """Judge steps that follow each other in one forward."""
        return tuple(await self._alive(self._engine.score(call_id, prompt, chain, criterion)))

    def _stop(self, call_id: str) -> None:
        super()._stop(call_id)
        if self._batcher is not None:
            self._batcher.stop(call_id)
