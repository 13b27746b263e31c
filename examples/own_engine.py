"""An engine of your own under the same actors and schedules: `python examples/own_engine.py`.

`CountingEngine` has no neural network: it counts to the number in the question, a number per step. The draft (`errs`)
miscounts the multiples of three, which the verifier rejects. Prints

    draft 1, draft 2, target 3, draft 4, draft 5, target 6, draft 7

The interface is `dreamr.engines.base.Engine`. A configuration file names the class by `kind: import` and `factory`.
"""

import asyncio
import time
from collections.abc import Sequence

import dreamr
from dreamr.types import Criterion, Prefill, Priority, Prompt, Sampling, Step, Tokens, Verdict


class CountingEngine:
    """Token n stands for the line "n"."""

    def __init__(self, step_s: float, errs: bool = False) -> None:
        self.step_s, self.errs = step_s, errs
        self.stopped: set[str] = set()

    async def next_step(
        self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling, priority: Priority = "needed"
    ) -> Step:
        started, number = time.time(), len(after.end) + 1
        await asyncio.sleep(self.step_s)
        if call_id in self.stopped:
            return Step(after.end, (), "", "stopped", started, time.time())
        said = number + 1 if self.errs and number % 3 == 0 else number
        last = number == int(prompt.question.split()[-1])
        return Step(after.end, (said,), f"{said}\n\n", "eos" if last else "delimiter", started, time.time())

    async def score(
        self,
        call_id: str,
        prompt: Prompt,
        chain: Sequence[Step],
        criterion: Criterion = "rho",
        references: Sequence[Step] = (),
    ) -> list[Verdict]:
        now = time.time()
        return [Verdict(float(step.tokens[0] == len(step.end)), now, now) for step in chain]

    async def prefill(self, prompt: Prompt) -> Prefill:
        return Prefill()

    async def count_tokens(self, prompt: Prompt) -> int:
        return len(prompt.question.split())

    def promote(self, call_id: str, hint: Tokens = ()) -> None:
        """Every step is written at once already."""

    def idle_s(self) -> float:
        return 0.0  # never lost

    def stop(self, call_id: str) -> None:
        self.stopped.add(call_id)


def actor(**settings: object) -> dict[str, object]:
    return {"engine": {"kind": "import", "factory": "own_engine:CountingEngine", "settings": settings}, "num_cpus": 0.1}


def main() -> None:
    group = {"draft": actor(step_s=0.01, errs=True), "target": actor(step_s=0.1), "verifier": "shared"}
    with dreamr.Reasoner(dreamr.Config.model_validate({"group": group})) as reasoner:
        result = reasoner.ask("Count to 7")
    print(", ".join(f"{step.source} {step.text.strip()}" for step in result.steps))


if __name__ == "__main__":
    main()
