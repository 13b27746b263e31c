from __future__ import annotations

import random

import pytest

from dreamr.tasks.ledger import (
    MAX_STEPS,
    MAX_VALUE,
    MIN_STEPS,
    Problem,
    Split,
    Style,
    extract_answer,
    make_problem,
)
from tools.make_pair.mistakes import with_habit, wrong_step

STYLES: tuple[Style, Style] = ("verbose", "concise")


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return [make_problem("train", 0, index) for index in range(300)]


def test_same_seed_and_index_give_the_same_problem() -> None:
    one, again = make_problem("test", 3, 5), make_problem("test", 3, 5)
    assert one == again
    assert one.image.tobytes() == again.image.tobytes()
    assert one != make_problem("test", 4, 5)


def test_splits_share_no_image_whatever_the_seed() -> None:
    splits: tuple[Split, ...] = ("train", "validation", "test")
    seen = {split: {make_problem(split, seed, i).cells for seed in range(3) for i in range(200)} for split in splits}
    assert seen["train"].isdisjoint(seen["test"])
    assert seen["train"].isdisjoint(seen["validation"])
    assert seen["validation"].isdisjoint(seen["test"])


def test_problems_have_3_to_6_steps_and_values_from_0_to_99(problems: list[Problem]) -> None:
    assert {len(problem.operations) for problem in problems} == set(range(MIN_STEPS, MAX_STEPS + 1))
    assert all(0 <= value <= MAX_VALUE for problem in problems for value in problem.values)


def test_every_solution_is_valid_in_both_styles_and_states_the_answer(problems: list[Problem]) -> None:
    for problem in problems:
        for style in STYLES:
            texts = problem.solution([style] * len(problem.operations))
            for index, text in enumerate(texts):
                assert problem.is_valid_step(index, texts[index - 1] if index else "", text)
            assert all(text.endswith("\n\n") for text in texts[:-1])
            assert extract_answer("".join(texts)) == problem.answer


def test_made_up_mistakes_are_never_valid(problems: list[Problem]) -> None:
    rng = random.Random(0)
    for problem in problems:
        solution = problem.solution(["verbose"] * len(problem.operations))
        for index in range(len(solution)):
            text = wrong_step(problem, index, rng)
            assert not problem.is_valid_step(index, solution[index - 1] if index else "", text)


def test_a_habit_makes_wrong_steps_from_which_chains_go_on(problems: list[Problem]) -> None:
    rng = random.Random(0)
    taken = [with_habit(problem, 1.0, rng) for problem in problems]
    assert sum(wrong != right for wrong, right in zip(taken, problems, strict=True)) > len(problems) / 4
    for right, wrong in zip(problems, taken, strict=True):
        assert all(0 <= value <= MAX_VALUE for value in wrong.values)
        texts = wrong.solution(["concise"] * len(wrong.operations))
        for index, (meant, done) in enumerate(zip(right.operations, wrong.operations, strict=True)):
            assert right.is_valid_step(index, texts[index - 1] if index else "", texts[index]) == (meant == done)
    assert [with_habit(problem, 0.0, rng) for problem in problems] == problems


def test_a_step_is_judged_from_the_value_that_the_previous_step_stated() -> None:
    problem = make_problem("train", 0, 0)
    wrong_first = problem.step(0, "concise").replace(f"= {problem.values[1]}", f"= {problem.values[1] + 1}")
    consistent = problem.step(1, "concise", problem.values[1] + 1)
    assert not problem.is_valid_step(0, "", wrong_first)
    assert problem.is_valid_step(1, wrong_first, consistent)
    assert not problem.is_valid_step(1, problem.step(0, "concise"), consistent)


def test_the_image_shows_every_shape_in_its_colour(problems: list[Problem]) -> None:
    image = problems[0].image
    assert image.size == (96, 64)
    colors = {image.getpixel((16 + 32 * (i % 3) - 7, 16 + 32 * (i // 3) + 7)) for i in range(6)}
    assert len(colors) == 6


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 42", 42),
        ("x: 1 + 1 = 2\n\n</think>Answer: 2", 2),
        ("Answer: 3\n\n</think>Answer: 5", 5),
        ("the answer is 42", None),
        ("Answer: ", None),
        ("", None),
    ],
)
def test_extract_answer_takes_the_last_answer_line(text: str, answer: int | None) -> None:
    assert extract_answer(text) == answer
