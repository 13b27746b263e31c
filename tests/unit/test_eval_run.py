"""Running an evaluation: scores, the journal that a killed run goes on from, results; no model, no Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dreamr.errors import TooLong, Unable
from dreamr.eval.answerers import Reply
from dreamr.eval.benchmarks import Item
from dreamr.eval.evaluation import evaluate, judge
from dreamr.eval.journal import Journal, JournalMismatch
from dreamr.eval.results import Results, by_category, score
from dreamr.tasks.answers import AnswerKey
from dreamr.types import Prompt

RUN = {"benchmark": "mmbench", "data": "m.parquet", "settings": {"method": "fpsr"}}


def item(name: str, category: str = "object", circle: str = "") -> Item:
    key = AnswerKey("letter", ("B",), "AB", ("a cat", "a dog"))
    return Item(name, f"question {name}?", (), key, category, circle)


class Oracle:
    """Answers by the question; raises for one of them, by default as a model that was lost does."""

    asks_for_text = False

    def __init__(self, replies: dict[str, str], fails_at: str = "", failure: Exception | None = None) -> None:
        self.replies, self.fails_at, self.asked = replies, fails_at, list[str]()
        self.failure = failure or RuntimeError("lost")

    async def answer(self, prompt: Prompt) -> Reply:
        name = prompt.question.split()[1].rstrip("?")
        self.asked.append(name)
        await asyncio.sleep(0)
        if name == self.fails_at:
            raise self.failure
        text = self.replies.get(name, "The answer is B.")
        return Reply(text, text.endswith("..."), 2.0, num_judged=4, num_accepted=3, num_steps=5, num_draft_steps=3)


async def run(folder: Path, items: Sequence[Item], oracle: Oracle, concurrency: int = 1) -> Journal:
    with Journal(folder / "rows.jsonl", RUN) as journal:
        await evaluate(items, oracle, journal, concurrency)
    return journal


async def test_scores_count_wrong_unparsed_and_truncated_answers(tmp_path: Path) -> None:
    replies = {"1": "A", "2": "I cannot tell.", "3": "<think>the answer is B and so on ..."}
    items = [item("0"), item("1"), item("2", "scene"), item("3", "scene")]
    outcomes = list((await run(tmp_path, items, Oracle(replies), concurrency=3)).outcomes.values())
    total = score(outcomes)
    assert (total.num_rows, total.correct, total.unparsed, total.truncated) == (4, 1, 2, 1)
    assert (total.accuracy, total.acceptance_rate, total.coverage, total.mean_wall_s) == (0.25, 0.75, 0.6, 2.0)
    assert {name: one.accuracy for name, one in by_category(outcomes).items()} == {"object": 0.5, "scene": 0.0}


async def test_a_circle_is_correct_when_all_its_rows_are(tmp_path: Path) -> None:
    items = [item("0", circle="7"), item("1", circle="7"), item("2", circle="8"), item("3", circle="9")]
    outcomes = list((await run(tmp_path, items, Oracle({"1": "A"}))).outcomes.values())
    total = score(outcomes)
    assert (total.correct, total.num_circles, total.correct_circles) == (3, 3, 2)
    assert total.accuracy == 2 / 3
    assert "| **all** | 4 | 3 | 2 of 3 | 66.7 % | 0.0 % | 0.0 % |" in Results(RUN, "dreamr eval", outcomes).markdown()


async def test_a_run_that_failed_goes_on_where_it_was_and_asks_nothing_twice(tmp_path: Path) -> None:
    items = [item(str(number)) for number in range(5)]
    with pytest.raises(RuntimeError, match="lost"):
        await run(tmp_path, items, Oracle({}, fails_at="3"))
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"id": "3", "categ')  # what a killed process may leave
    oracle = Oracle({})
    journal = await run(tmp_path, items, oracle)
    assert oracle.asked == ["3", "4"]
    assert list(journal.outcomes) == ["0", "1", "2", "3", "4"]
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line).get("id") for line in lines] == [None, "0", "1", "2", "3", "4"]
    assert Journal(tmp_path / "rows.jsonl", RUN).outcomes == journal.outcomes


@pytest.mark.parametrize("failure", [TooLong("the prompt has\n9 tokens"), ValueError("image 1 cannot be read")])
async def test_a_row_that_cannot_be_asked_is_kept_with_the_reason_and_the_run_goes_on(
    tmp_path: Path, failure: ValueError
) -> None:
    items = [item(str(number)) for number in range(3)]
    journal = await run(tmp_path, items, Oracle({}, fails_at="1", failure=failure))
    refused = journal.outcomes["1"]
    assert (refused.given, refused.correct, refused.reply.text) == (None, False, "")
    assert refused.reply.truncated == isinstance(failure, TooLong)
    assert refused.reply.refusal == " ".join(str(failure).split())
    results = Results(RUN, "dreamr eval", list(journal.outcomes.values()))
    assert (results.total.num_rows, results.total.correct, results.total.refused) == (3, 2, 1)
    assert f"1 of the rows were refused, row 1 because {refused.reply.refusal}." in results.markdown()


async def test_what_no_row_can_be_asked_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(Unable):
        await run(tmp_path, [item("0")], Oracle({}, fails_at="0", failure=Unable("no such verdict")))


@pytest.mark.parametrize("sign", ["\u2028", "\x85", "\x1e", "\r"])
async def test_a_reply_may_hold_any_line_separator(tmp_path: Path, sign: str) -> None:
    journal = await run(tmp_path, [item("0"), item("1")], Oracle({"0": f"So{sign}B"}))
    assert Journal(tmp_path / "rows.jsonl", RUN).outcomes == journal.outcomes


async def test_rows_of_another_run_are_refused(tmp_path: Path) -> None:
    await run(tmp_path, [item("0")], Oracle({}))
    with pytest.raises(JournalMismatch, match=r"another 'settings' .*sequential"):
        Journal(tmp_path / "rows.jsonl", RUN | {"settings": {"method": "sequential"}})
    for other in (b"[1]\n", b"\xff\xfe\n", b'{"run": 3}\n', b"\n"):
        (tmp_path / "else.jsonl").write_bytes(other)
        with pytest.raises(JournalMismatch, match="not a journal"):
            Journal(tmp_path / "else.jsonl", RUN)


async def test_the_first_failure_stops_all_workers(tmp_path: Path) -> None:
    oracle = Oracle({}, fails_at="0")
    with pytest.raises(RuntimeError):
        await run(tmp_path, [item(str(number)) for number in range(50)], oracle, concurrency=2)
    assert len(oracle.asked) < 10


def test_text_answers_are_compared_as_numbers_and_texts() -> None:
    question = Item("0", "how long?", (), AnswerKey("value", ("1/2", "half")), "all")
    said = {"\\boxed{0.5 cm}": True, "Half": True, "\\boxed{5}": False, "It goes on and on, for ever and ever.": False}
    for text, correct in said.items():
        assert judge(question, Reply(text, False, 0.1)).correct == correct
