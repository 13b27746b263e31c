"""Finding the answer in a model's text, and comparing it with the correct one: one line per tricky case."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from dreamr.tasks.answers import AnswerKey, AnswerKind, after_reasoning, given_answer, is_correct, last_boxed
from dreamr.tasks.equality import equal_texts, equal_values

KINDS: tuple[AnswerKind, ...] = ("ledger", "value", "letter", "text")
COLORS = ("red", "green", "blue", "dark blue")


@pytest.mark.parametrize(
    ("text", "truncated", "left"),
    [
        ("<think>so B</think>\nC", False, "C"),
        ("it was opened in the prompt</think>C", False, "C"),
        ("<think>a</think>B<think>c</think>D", False, "D"),
        ("<think>the answer is B", False, ""),
        ("the answer is B, or", True, ""),
        ("thoughts</think>The answer is", True, "The answer is"),
        ("just B", False, "just B"),
        ("<think>a</think>B<think>no, C", True, "B"),
        ("", False, ""),
    ],
)
def test_the_reasoning_is_cut_off(text: str, truncated: bool, left: str) -> None:
    assert after_reasoning(text, truncated=truncated) == left


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("B) green", "B"),
        ("\\boxed{B}", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("\\boxed{(B)}", "B"),
        ("\\boxed{B. green}", "B"),
        ("\\boxed{green}", "B"),
        ("\\boxed{\\textbf{C}}.", "C"),
        ("First \\boxed{A}, no: \\boxed{C}", "C"),
        ("\\boxed{A} is what I thought. The answer is B.", "A"),
        ("The answer is B.", "B"),
        ("The correct answer is: (C) blue", "C"),
        ("Answer: D", "D"),
        ("**Answer:** D", "D"),
        ("answer: **B**", "B"),
        ("The answer is A. On second thought, the answer is D.", "D"),
        ("The correct option is C, because A and B are too small.", "C"),
        ("Option B is right.", "B"),
        ("Not A, not B: so C.", "C"),
        ("I see a cat.\nC", "C"),
        ("green", "B"),
        ("dark blue", "D"),
        ("The answer is A dog that runs", None),
        ("A dog runs.", None),
        ("I cannot see it.", None),
        ("E", None),
        ("\\boxed{E}", None),
        ("\\boxed{}", None),
        ("\\boxed{B", None),
        ("The answer is B. Thus the answer is not A but B.", "B"),
        ("the answer is not visible", None),
        ("The answer is C.\nOption A is too small.", "C"),
        ("The answer is C because option A is wrong.", "C"),
        ("The correct answer is **(C)**. Option B is incorrect, since it is smaller.", "C"),
        ("The answer is D. Choice A: too small", "D"),
        ("The correct answer is option C. Option A is wrong.", "C"),
        ("Option C is right.\nOption A is not.", "C"),
        ("Final Answer: \\(C\\)", "C"),
        ("Final answer: $\\mathbf{C}$", "C"),
        ("The answer is B or C.", None),
        ("The answer is (B) or (C).", None),
        ("The answer is A, C", None),
        ("The answer is A or B. No: the answer is B.", "B"),
        ("The answer is B and C is wrong.", "B"),
        ("\\boxed{A, C}", None),
        ("\\boxed{\\text{A and C}}", None),
        ("It may be B or C", None),
        ("b", None),
        ("\\boxed{b}", "B"),
        ("\\boxed {B}", "B"),
        ("", None),
    ],
)
def test_letters(text: str, letter: str | None) -> None:
    assert AnswerKey("letter", (), "ABCD", COLORS).given(text) == letter


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{42}", "42"),
        ("So \\boxed{1} or rather \\boxed{\\frac{3}{4}}.", "\\frac{3}{4}"),
        ("$\\boxed{5\\text{ cm}}$", "5 cm"),
        ("The answer is 12 meters.", "12 meters"),
        ("Final Answer: \\(12\\)", "12"),
        ("Answer: 33", "33"),
        ("The answer is 3.\nThe final answer is 4.", "4"),
        ("It is 3.5.", "It is 3.5"),
        ("7", "7"),
        ("**7**", "7"),
        ("First I add. Then I look at the sign and at what it says there.", None),
        ("one line\nand another", None),
        ("\\boxed{ }", None),
        ("", None),
    ],
)
def test_texts(text: str, found: str | None) -> None:
    assert given_answer("text", text) == found


def test_nested_and_unfinished_boxes() -> None:
    assert last_boxed("\\boxed{\\frac{1}{\\sqrt{2}}} and \\boxed{3") == "\\frac{1}{\\sqrt{2}}"
    assert last_boxed("no box") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("</think>Answer: 42", "42"),
        ("**Answer:** 42", "42"),
        ("Answer: **42**.", "42"),
        ("So it is \\boxed{42}.", "42"),
        ("Answer: 1,042", "1042"),
        ("Answer: -3", "-3"),
        ("Answer: x = 42", "42"),
        ("Answer: 41\n\nAnswer: 42", "42"),
        ("42", "42"),
        ("Answer: 41 or 42", None),
        ("Answer: 4.5", None),
        ("Answer: ", None),
        ("The orange triangle has 4, so 4 + 2 = 6.\n\nNow", None),
    ],
)
def test_whole_numbers(text: str, number: str | None) -> None:
    assert given_answer("ledger", text) == number


@pytest.mark.parametrize(
    ("kind", "expected", "text"),
    [
        ("ledger", "42", "2 + 40 = 42.\n\n</think>Answer: 42"),
        ("value", "2 \\sqrt { 221 }", "\\boxed{2\\sqrt{221}}"),
        ("value", "2 \\sqrt { 221 }", "\\boxed{\\sqrt{884}}"),
        ("value", "1/3", "The answer is 0.3333."),
        ("value", "5", "\\boxed {x=5}"),
        ("value", "1000", "**Answer:** 1,000"),
        ("letter", "c", "Answer: (C)"),
        ("letter", "(C)", "\\boxed{c}"),
        ("text", "Dark blue", "\\boxed{\\text{dark blue}}"),
    ],
)
def test_correct_answers(kind: AnswerKind, expected: str, text: str) -> None:
    assert is_correct(kind, expected, text)


@pytest.mark.parametrize(
    ("kind", "expected", "text"),
    [
        ("value", "5", "<think>\\boxed{5}"),
        ("value", "5", "\\boxed{5} was one idea</think>I do not know."),
        ("value", "5", "\\boxed{5} or \\boxed{6}"),
        ("letter", "A", "I cannot see it."),
        ("text", "blue", "\\boxed{dark blue}"),
        ("ledger", "42", "<think>Answer: 42"),
        ("ledger", "42", "Answer: 24"),
    ],
)
def test_wrong_and_unparsed_answers(kind: AnswerKind, expected: str, text: str) -> None:
    assert not is_correct(kind, expected, text)


def test_reasoning_that_was_cut_off_is_not_searched() -> None:
    text = "So the answer may be \\boxed{5}, but"
    assert is_correct("value", "5", text)
    assert given_answer("value", text, truncated=True) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("42", "42.0"),
        ("1,234", "1234"),
        ("\\frac{1}{2}", "0.5"),
        ("\\tfrac12", "0.5"),
        ("\\frac1{2}", "1/2"),
        ("-\\frac{1}{2}", "\\frac{-1}{2}"),
        ("2\\frac{1}{2}", "2.5"),
        ("$\\dfrac{3}{4}$", "3/4"),
        ("1/3", "0.3333"),
        ("30°", "30"),
        ("30^\\circ", "30^{\\circ}"),
        ("14 cm", "14"),
        ("14 cm^2", "14\\text{ cm}^2"),
        ("x = 5", "5"),
        ("m\\angle A = 5", "5"),
        ("\\approx 5.2", "5.2"),
        ("25\\%", "25%"),
        ("5\\sqrt{3}", "5 \\sqrt{3}"),
        ("5\\sqrt{3}", "8.66"),
        ("2 \\sqrt { 221 }", "\\sqrt{884}"),
        ("\\frac{\\sqrt{2}}{2}", "1/\\sqrt{2}"),
        ("10\\pi", "31.4"),
        ("y = 2x + 1", "1 + 2x"),
        ("(1, 2)", "(1,2)"),
        ("\\{1,2\\}", "\\{2, 1\\}"),
        ("Dark Blue.", "dark blue"),
        ("-3", "\u22123.0"),
        (".5", "0.5"),
    ],
)
def test_the_same_value_written_in_two_ways(one: str, other: str) -> None:
    assert equal_values(one, other)
    assert equal_values(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("42", "43"),
        ("1000", "1001"),
        ("", ""),
        ("14 cm", "14 m"),
        ("1/0", "5"),
        ("1/3", "0.33"),
        ("0.5", "0.46"),
        ("10\\pi", "31"),
        ("3", "-3"),
        ("12,34", "1234"),
        ("red", "dark red"),
        ("5", "5\\sqrt{3}"),
        ("\\frac{x+1}{2}", "x + \\frac12"),
        ("2\\frac{1}{2}", "10.5"),
        ("(1, 2)", "(2, 1)"),
        ("1" * 5000, "2" * 5000),
    ],
)
def test_different_values(one: str, other: str) -> None:
    assert not equal_values(one, other)
    assert not equal_values(other, one)


def test_texts_are_not_taken_for_expressions() -> None:
    assert not equal_texts("ab", "ba")
    assert not equal_values("dog", "god")


@pytest.mark.parametrize("bomb", ["9^{9^{9^{9}}}", "((10^{9})!)!", "(" * 150, "\\boxed{" * 40, "\\frac" * 50])
def test_what_models_write_cannot_hang_the_comparison(bomb: str) -> None:
    assert not equal_values("5 + x", bomb)
    assert equal_values("2x + 1", "1 + 2x"), "the next comparison works"


@pytest.mark.parametrize(
    "part", ["answer", "answer is ", "\\boxed{", "(A) or ", "option ", " ", "\n \n", "**", "<think>"]
)
def test_long_texts_are_searched_in_a_short_time(part: str) -> None:
    for kind in KINDS:
        given_answer(kind, part * (200_000 // len(part)))


def test_expressions_are_compared_in_any_thread() -> None:
    with ThreadPoolExecutor(4) as pool:
        pairs = [(f"{number}x + 1", f"1 + {number}x") for number in range(2, 10)]
        assert all(pool.map(lambda pair: equal_values(*pair), pairs))


def test_a_forked_process_compares_by_a_process_of_its_own() -> None:
    check = (
        "import os\n"
        "from dreamr.tasks.equality import equal_values\n"
        "assert equal_values('2x + 1', '1 + 2x')\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(not equal_values('3x + 1', '1 + 3x'))\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert equal_values('4x + 1', '1 + 4x')\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", check], check=True, timeout=90)
