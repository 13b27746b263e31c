"""Where steps end, and how tokens are drawn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.tiny import make_tokenizer

from dreamr.engines.sampling import NumericalError, draw, greedy, nucleus, sampled, stream
from dreamr.engines.steps import StepEnd
from dreamr.types import Sampling, Tokens

EOS = 2


@pytest.fixture(scope="module")
def tokenize() -> Callable[[str], list[int]]:
    return lambda text: list(make_tokenizer()(text)["input_ids"])


@pytest.fixture(scope="module")
def step_end() -> StepEnd:
    tokenizer = make_tokenizer()

    def decode(tokens: Tokens) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True))

    return StepEnd(decode, frozenset([EOS]))


def test_a_delimiter_merged_into_a_token_ends_the_step_there(
    step_end: StepEnd, tokenize: Callable[[str], list[int]]
) -> None:
    tokens = tokenize("right.\n\n")
    assert len(tokens) == 2
    assert step_end.finish(tokens[:1], 9) is None
    assert step_end.finish(tokens, 9) == "delimiter"


def test_a_delimiter_split_over_two_tokens_ends_the_step_at_the_second(
    step_end: StepEnd, tokenize: Callable[[str], list[int]]
) -> None:
    tokens = [*tokenize("right.\n"), *tokenize("\n")]
    assert step_end.finish(tokens[:-1], 9) is None
    assert step_end.finish(tokens, 9) == "delimiter"


def test_single_line_breaks_do_not_end_a_step(step_end: StepEnd, tokenize: Callable[[str], list[int]]) -> None:
    tokens = [*tokenize("right.\n"), *tokenize("red.\n")]
    assert step_end.finish(tokens, 9) is None


def test_eos_ends_the_step_and_has_no_text(step_end: StepEnd, tokenize: Callable[[str], list[int]]) -> None:
    tokens = [*tokenize("right"), EOS]
    assert step_end.finish(tokens, len(tokens)) == "eos"
    assert step_end.text(tokens) == "right"


def test_a_delimiter_wins_over_the_length_bound(step_end: StepEnd, tokenize: Callable[[str], list[int]]) -> None:
    assert step_end.finish(tokenize("right.\n\n"), 2) == "delimiter"
    assert step_end.finish(tokenize("right."), 2) == "length"


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p() -> None:
    probabilities = torch.tensor([[0.1, 0.5, 0.25, 0.15]] * 3)
    kept = nucleus(probabilities, torch.tensor([0.5, 0.6, 1.0]))
    assert [row.nonzero().flatten().tolist() for row in kept] == [[1], [1, 2], [0, 1, 2, 3]]
    assert kept[2].equal(probabilities[2])


def test_draws_follow_the_probabilities_each_at_its_temperature() -> None:
    logits, settings = torch.tensor([0.0, 1.0, -1.0]), [Sampling(temperature=2.0, seed=3), Sampling(temperature=0.5)]
    numbers = [stream(one) for one in settings]
    counts = torch.zeros(2, 3)
    for _ in range(4000):
        for row, token in enumerate(sampled(logits.expand(2, -1), settings, [number() for number in numbers])):
            counts[row, token] += 1
    expected = torch.stack([torch.softmax(logits / 2, -1), torch.softmax(logits / 0.5, -1)])
    torch.testing.assert_close(counts / 4000, expected, atol=0.03, rtol=0)


def test_a_nucleus_of_one_token_is_greedy() -> None:
    settings = Sampling(temperature=5.0, top_p=1e-6, seed=1)
    number = stream(settings)
    assert {sampled(torch.tensor([[0.0, 0.1, 0.2]]), [settings], [number()])[0] for _ in range(50)} == {2}


def test_a_token_without_probability_is_never_drawn() -> None:
    assert {draw(torch.tensor([[0.0, 1.0, 0.0]]), [number])[0] for number in (0.0, 0.5, 1 - 1e-16)} == {1}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_an_error(value: float) -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, value]])
    with pytest.raises(NumericalError, match="the largest of 2 logits"):
        greedy(logits)
    with pytest.raises(NumericalError, match="the largest of 2 logits"):
        sampled(logits, [Sampling(temperature=1.0)] * 2, [0.5] * 2)
