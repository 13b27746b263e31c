"""Finding the answer in what a model wrote, and comparing it: one line per trap."""

from __future__ import annotations

import pytest

from dreamr.eval.equality import same_text
from dreamr.eval.extraction import after_reasoning, extract_letter, extract_text, last_boxed

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
        ("", None),
    ],
)
def test_letters(text: str, letter: str | None) -> None:
    assert extract_letter(text, "ABCD", COLORS) == letter


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
    assert extract_text(text) == found


def test_nested_and_unfinished_boxes() -> None:
    assert last_boxed("\\boxed{\\frac{1}{\\sqrt{2}}} and \\boxed{3") == "\\frac{1}{\\sqrt{2}}"
    assert last_boxed("no box") is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("42", "42.0"),
        ("1,234", "1234"),
        ("\\frac{1}{2}", "0.5"),
        ("$\\dfrac{3}{4}$", "3/4"),
        ("30°", "30"),
        ("30^\\circ", "30^{\\circ}"),
        ("14 cm", "14"),
        ("x = 5", "5"),
        ("25\\%", "25%"),
        ("5\\sqrt{3}", "5 \\sqrt{3}"),
        ("Dark Blue.", "dark blue"),
        ("-3", "-3.0"),
        (".5", "0.5"),
    ],
)
def test_the_same_answer_written_in_two_ways(one: str, other: str) -> None:
    assert same_text(one, other)
    assert same_text(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("42", "43"),
        ("", ""),
        ("14 cm", "14 m"),
        ("1/0", "5"),
        ("3", "-3"),
        ("12,34", "1234"),
        ("red", "dark red"),
        ("5", "5\\sqrt{3}"),
    ],
)
def test_different_answers(one: str, other: str) -> None:
    assert not same_text(one, other)
