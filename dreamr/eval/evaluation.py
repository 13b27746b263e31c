"""`evaluate`: every row that is not in the journal yet, a few at a time.

rows ──▶ iterator ──┬▶ worker 1 ──▶ answerer ──▶ judge ──▶ journal      a worker takes the next row when it is done
                    └▶ worker n ──▶ ...                                 the first loss cancels the others

A row that the model cannot take (too long, an image that cannot be read) is journaled as refused: asked again, it would
end the run again. A lost model ends the run, and the row is asked again by the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator

from dreamr.errors import TooLong, Unable
from dreamr.eval.item import Item
from dreamr.eval.journal import Journal
from dreamr.eval.outcome import Outcome, judge
from dreamr.eval.reply import Answerer, Reply
from dreamr.types import Prompt

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
        ActorLost, openai.OpenAIError, ...: whatever the first loss was; finished rows are kept.
        Unable: the models cannot do what the method asks of them, in any row.
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
        outcome = judge(item, await _reply(answerer, item.prompt(ask_for_text=answerer.asks_for_text)))
        journal.add(outcome)
        if on_outcome:
            on_outcome(outcome)


async def _reply(answerer: Answerer, prompt: Prompt) -> Reply:
    began = time.monotonic()
    try:
        return await answerer.answer(prompt)
    except Unable:
        raise
    except ValueError as error:
        sentence = " ".join(str(error).split())
        return Reply("", isinstance(error, TooLong), time.monotonic() - began, refusal=sentence)
