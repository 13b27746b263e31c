"""A chain of drafted steps that is looked at when all of it is there."""

from __future__ import annotations

from dreamr.types import Step
from pipelines.call import Call
from pipelines.session import Session


def draft_chain(session: Session, window: int) -> list[Call[Step]]:
    """Begin to draft `window` steps behind the frontier, each passed on unawaited to the next."""
    calls: list[Call[Step]] = []
    for place in range(window):
        calls.append(session.draft_alone(session.next_index + place, calls[-1] if calls else session.frontier))
    return calls


async def drafted_steps(session: Session, calls: list[Call[Step]], *, whole: bool = False) -> list[Step]:
    """The steps up to the end of the answer, or to the first one that is lost.

    `whole`: none behind a step that was cut off by its length.
    """
    chain: list[Step] = []
    for call in calls:
        step = await session.unless_lost(call)
        if step is None or not step.tokens:
            break
        chain.append(step)
        if whole and step.finish != "delimiter":
            break
    for call in calls[len(chain) :]:
        call.stop()
    return chain
