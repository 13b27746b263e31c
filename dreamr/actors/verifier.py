"""The verifier: the target model in an actor of its own, giving verdicts while the target writes."""

from __future__ import annotations

from typing import ClassVar

from dreamr.actors.base import EngineActor
from dreamr.actors.types import Prompt, Role, Step, Verdict


class VerifierActor(EngineActor):
    """Judges drafted steps."""

    role: ClassVar[Role] = "verifier"

    async def score(self, call_id: str, prompt: Prompt, step: Step) -> Verdict:
        """Judge one step on its own prefix.

        The empty step that follows a closed one says nothing that could be judged: its rho is 0, so that a chain
        drafted past the end of an answer does not fail.
        """
        if not step.tokens:
            return Verdict(rho=0.0)
        (verdict,) = await self._engine.score(call_id, prompt, [step])
        return verdict
