"""Training sequences for the language part: chains of thought, and judged candidate steps around them.

prompt ─ step 1 ─ step 2 ─ ... ─ answer line        the chain (next-token loss)
           │        └─ verdict turn                 "positive": the chain's steps are correct
           └─ candidate for step 2 ─ verdict turn   a correct or wrong alternative (verdict loss)
                                   └ score turn     a digit: 9 for a correct step, 0 to 5 for a wrong one
two steps ─ sameness turn                           text alone: do they mean the same?
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from dreamr.tasks.ledger import Problem, Style
from dreamr.tasks.ledger_image import COLUMNS, ROWS
from tools.make_pair.mistakes import with_habit, wrong_step
from tools.make_pair.packing import IMAGE_START, SAMENESS, SCORE, VERDICT, Batch, Tree, pad

VERDICT_QUESTION = "Right?"
SCORE_QUESTION = "Score?"
SAME_TEMPLATE = "{first}\n\n{second}\n\nSame?"
_TEXT_ROOT = IMAGE_START + ROWS * COLUMNS
"""Place of a sequence without an image: after the places of the image, where positions grow by one."""
_WORST_SCORE, _RIGHT_SCORE = 6, 9
_ANSWER = "<|im_end|>\n<|im_start|>assistant\n"
_WRONG = 0.65
"""Share of made-up candidates that are wrong; the chain's own steps, all correct, balance the two verdicts."""
_STYLES: tuple[Style, Style] = ("verbose", "concise")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Shares and weights of the sequences of one training phase."""

    concise: float
    """Share of concise steps."""
    style_weight: float
    """Loss weight of a concise step's first token: a small one leaves the choice of style to the verbose steps."""
    verdicts: bool
    scores: float = 0.0
    """Share of judged candidates that also get a score."""
    sameness: float = 0.0
    """Share of steps for which two versions are compared."""
    habit: float = 0.0
    """Share of careless operations (`with_habit`) where there is occasion: what reinforcement learning can unlearn.
    Not with `verdicts`, which assume that the steps of a chain are correct."""


class Corpus:
    """Makes batches of packed problems."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
        self._tokenizer, self._recipe = tokenizer, recipe
        self._cache: dict[str, list[int]] = {}

    def batch(
        self, problems: list[Problem], image_rows: list[int], drafted: list[tuple[str, ...]] | None, rng: random.Random
    ) -> Batch:
        """`drafted` has, for each problem, one text per step to be judged; None: candidates are made up."""
        trees = [self._pack(problem, drafted[row] if drafted else None, rng) for row, problem in enumerate(problems)]
        return pad(trees, image_rows)

    def _pack(self, problem: Problem, drafted: tuple[str, ...] | None, rng: random.Random) -> Tree:
        tree = Tree()
        styles = self._styles(len(problem.operations), rng)
        chain = tree.add(None, self._prompt(problem), labelled=False)
        chain_end, previous = tree.last, ""
        habit = self._recipe.habit
        written = with_habit(problem, habit, rng) if habit else problem  # without a habit, no random number is drawn
        for index, text in enumerate(written.solution(styles)):
            concise = index < len(styles) and styles[index] == "concise"
            if self._recipe.verdicts:
                candidate = drafted[index] if drafted else _candidate(problem, index, rng)
                self._add_candidate(tree, chain, problem, index, previous, candidate, rng)
            ids = self._step(text)
            tree.labels[chain_end] = ids[0]
            tree.weights[chain_end] = self._recipe.style_weight if concise else 1.0
            chain = tree.add(chain, ids, labelled=True, mistake_from=len(ids) if self._recipe.verdicts else None)
            chain_end, previous = tree.last, text
            if self._recipe.verdicts and rng.random() < 0.5:
                self._ask(tree, chain, ids, VERDICT, VERDICT_QUESTION, "positive")
        return tree

    def _styles(self, num_steps: int, rng: random.Random) -> list[Style]:
        """Half of the problems mix the styles within a chain, as speculation does; the others keep to one."""
        draws: list[Style] = ["concise" if rng.random() < self._recipe.concise else "verbose" for _ in range(num_steps)]
        return draws if rng.random() < 0.5 else [draws[0]] * num_steps

    def _add_candidate(
        self, tree: Tree, parent: int, problem: Problem, index: int, previous: str, text: str, rng: random.Random
    ) -> None:
        right = problem.is_valid_step(index, previous, text)
        ids = self._step(text)
        versions = [self._step(problem.step(index, style)) for style in _STYLES]
        mistake_from = len(ids) if right else max(_num_shared(ids, version) for version in versions)
        branch = tree.add(parent, ids, labelled=right, mistake_from=mistake_from)
        word = "positive" if right else "negative"
        self._ask(tree, branch, ids, VERDICT, VERDICT_QUESTION, word)
        if rng.random() < self._recipe.scores:
            score = _RIGHT_SCORE if right else _WORST_SCORE * mistake_from // len(ids)
            self._ask(tree, branch, ids, SCORE, SCORE_QUESTION, str(score))
        if rng.random() < self._recipe.sameness:
            # The first is correct, and written as the target writes: the same as any correct candidate.
            first = problem.step(index, "verbose").strip()
            chat = f"<|im_start|>user\n{SAME_TEMPLATE.format(first=first, second=text.strip())}{_ANSWER}"
            tree.add(None, list(self._tokenizer(chat)["input_ids"]), labelled=False, root_place=_TEXT_ROOT)
            tree.answer(SAMENESS, self._encode(word)[0])

    def _ask(self, tree: Tree, parent: int, step: list[int], task: int, question: str, answer: str) -> None:
        turn = self._encode(f"<|im_end|>\n<|im_start|>user\n{question}{_ANSWER}")
        closed = step[-1] == self._tokenizer.eos_token_id
        tree.add(parent, turn[1:] if closed else turn, labelled=False)
        tree.answer(task, self._encode(answer)[0])

    def _prompt(self, problem: Problem) -> list[int]:
        image = f"<|vision_start|>{'<|image_pad|>' * (ROWS * COLUMNS)}<|vision_end|>"
        chat = f"<|im_start|>user\n{image}{problem.question}<|im_end|>\n<|im_start|>assistant\n<think>"
        return list(self._tokenizer(chat)["input_ids"])

    def _step(self, text: str) -> list[int]:
        return self._encode(text + "<|im_end|>" if text.startswith("</think>") else text)

    def _encode(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = list(self._tokenizer(text)["input_ids"])
        return self._cache[text]


def _candidate(problem: Problem, index: int, rng: random.Random) -> str:
    if rng.random() < _WRONG:
        return wrong_step(problem, index, rng)
    return problem.step(index, rng.choice(_STYLES))


def _num_shared(left: list[int], right: list[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
