"""`evaluate`: every row that is not in the journal yet, a few at a time.

rows ──▶ iterator ──┬▶ worker 1 ──▶ answerer ──▶ judge ──▶ journal      a worker takes the next row when it is done
                    └▶ worker n ──▶ ...                                 the first failure cancels the others
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

from dreamr.eval.item import Item
from dreamr.eval.journal import Journal
from dreamr.eval.outcome import Outcome, judge
from dreamr.eval.reply import Answerer

OnOutcome = Callable[[Outcome], None]


async def evaluate(
    items: Iterable[Item],
    answerer: Answerer,
    journal: Journal,
    concurrency: int = 1,
    on_outcome: OnOutcome | None = None,
) -> None:
    """Return when all items are in the journal.

    Raises:
        ActorLost, openai.OpenAIError, ...: whatever the first failure was; finished rows are kept.
    """
    open_items = (item for item in items if item.id not in journal.outcomes)
    workers = [
        asyncio.create_task(_work(open_items, answerer, journal, on_outcome), name=f"evaluate {number}")
        for number in range(concurrency)
    ]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _work(items: Iterator[Item], answerer: Answerer, journal: Journal, on_outcome: OnOutcome | None) -> None:
    for item in items:
        outcome = judge(item, await answerer.answer(item.prompt(ask_for_text=answerer.asks_for_text)))
        journal.add(outcome)
        if on_outcome:
            on_outcome(outcome)
