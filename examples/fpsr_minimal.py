"""The FPSR schedule over bare Ray actors, without dreamr: `python examples/fpsr_minimal.py`.

The "models" count squares: the target takes 0.4 s a step and is always correct, the draft takes 0.05 s and errs at
steps 3 and 7. Prints the committed steps and both times:

    draft 0, draft 1, draft 4, target 9, draft 16, draft 25, draft 36, target 49, draft 64, draft 81
    FPSR 1.4 s, the target alone 4.0 s

Each drafted step is a reference that goes straight to the next draft call and to the verifier: nothing waits to pass
data on. The same with lost actors, stop rules and counters: pipelines/fpsr.py.
"""

import asyncio
import logging
import time
from collections import deque
from typing import Any

import ray

STEPS, WINDOW = 10, 4


class Model:
    def __init__(self, step_s: float, errors: tuple[int, ...] = ()) -> None:
        self.step_s, self.errors = step_s, errors

    async def next_step(self, prefix: tuple[int, ...]) -> tuple[int, ...]:
        """The prefix and one more step."""
        await asyncio.sleep(self.step_s)
        number = len(prefix)
        return (*prefix, number**2 + (number in self.errors))

    async def accepts(self, prefix: tuple[int, ...]) -> bool:
        """The verdict on the last step."""
        await asyncio.sleep(0.05)
        return prefix[-1] == (len(prefix) - 1) ** 2


async def fpsr(draft: Any, target: Any, verifier: Any) -> list[str]:
    """The committed steps with their authors."""
    committed: tuple[int, ...] = ()
    authors: list[str] = []
    chain: deque[tuple[Any, Any]] = deque()  # (drafted step, its verdict), both in flight
    while len(committed) < STEPS:
        while len(chain) < WINDOW:
            step = draft.next_step.remote(chain[-1][0] if chain else committed)
            chain.append((step, verifier.accepts.remote(step)))
        own = target.next_step.remote(committed)
        step, verdict = chain.popleft()
        if await verdict:
            committed = await step
            authors.append("draft")
            ray.cancel(own)  # early stop
        else:
            for calls in chain:  # rollback: steps after a rejected one have a wrong prefix
                for call in calls:
                    ray.cancel(call)
            chain.clear()
            committed = await own
            authors.append("target")
    return [f"{author} {step}" for author, step in zip(authors, committed, strict=True)]


async def main() -> None:
    actor: Any = ray.remote(num_cpus=0)(Model)
    draft, target, verifier = actor.remote(0.05, (3, 7)), actor.remote(0.4), actor.remote(0.4)
    await asyncio.gather(*(model.next_step.remote(()) for model in (draft, target, verifier)))  # started
    began = time.time()
    print(", ".join(await fpsr(draft, target, verifier)))
    fast, began = time.time() - began, time.time()
    prefix: tuple[int, ...] = ()
    for _ in range(STEPS):
        prefix = await target.next_step.remote(prefix)
    print(f"FPSR {fast:.1f} s, the target alone {time.time() - began:.1f} s")


if __name__ == "__main__":
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    asyncio.run(main())
