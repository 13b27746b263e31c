"""`evaluate`: every item that is not in the journal yet, several at a time.

items ──▶ iterator ──┬▶ worker 1 ──▶ answerer ──▶ judge ──▶ journal      a worker takes the next item when it is done
                     └▶ worker n ──▶ ...                                 the first loss cancels the others

A row that the model cannot take (too long, an unreadable image) is recorded as refused: asked again, it would end the
run again. A lost model ends the run, and the next run asks the row again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator

from dreamr.errors import TooLong, Unable
from dreamr.eval.answerers import Answerer, Reply
from dreamr.eval.benchmarks import Item
from dreamr.eval.journal import Journal, Outcome
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
        ActorLost, openai.OpenAIError, ...: the first loss; finished rows are kept.
        Unable: the models cannot do what the method needs, in any row.
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
        reply = await _reply(answerer, item.prompt(ask_for_text=answerer.asks_for_text))
        outcome = await asyncio.to_thread(judge, item, reply)
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


def judge(item: Item, reply: Reply) -> Outcome:
    """Find the answer and compare it; may take seconds for expressions."""
    given = item.key.given(reply.text, truncated=reply.truncated)
    correct = item.key.accepts(given)
    return Outcome(item.id, item.category, item.circle, item.key.answers, given, correct, reply)
