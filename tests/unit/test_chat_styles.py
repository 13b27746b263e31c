"""Chats as the released Qwen3-VL models have them: the real vocabulary, Instruct and Thinking templates."""

from __future__ import annotations

import pytest
from support.qwen import HYBRID, INSTRUCT, ROWS, THINKING, qwen_tokenizer

from dreamr.engines.steps import StepEnd
from dreamr.engines.verdicts import question
from dreamr.tasks.chat import ChatEncoder
from dreamr.tasks.prompts import PromptConfig
from dreamr.types import Prompt, Step

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
ASKED = "<|im_end|>\n<|im_start|>user\nRight?<|im_end|>\n<|im_start|>assistant\n"


def chat_of(template: str, **prompts: str) -> ChatEncoder:
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = template
    return ChatEncoder(tokenizer, PromptConfig(**{"verdict_question": "Right?", **prompts}))


def step_of(chat: ChatEncoder, text: str, before: str = "", finish: str = "delimiter") -> Step:
    return Step(chat.ids(before), chat.ids(text), text.removesuffix("<|im_end|>"), finish)  # type: ignore[arg-type]


def asked_after(chat: ChatEncoder, step: Step, criterion: str = "rho") -> str:
    """The text between a step and its verdict."""
    return str(chat.tokenizer.decode(question(criterion, chat).after(step)))


def test_the_vocabulary_is_that_of_the_released_models() -> None:
    tokenizer = qwen_tokenizer()
    assert len(tokenizer) == 151_669 < ROWS
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<think>", "</think>"]
    assert tokenizer.convert_tokens_to_ids(names) == [151643, 151644, 151645, 151655, 151667, 151668]
    # As published for Qwen's tokenizer: "Hello world!" and single digits.
    assert tokenizer("Hello world! 12").input_ids == [9707, 1879, 0, 220, 16, 17]


def test_verdict_words_and_digits_are_single_tokens() -> None:
    chat = chat_of(INSTRUCT)
    assert len(set(chat.verdict_words)) == 2
    assert len(set(chat.digits)) == 10


def test_steps_end_at_every_token_that_holds_the_delimiter() -> None:
    chat = chat_of(INSTRUCT)
    end = StepEnd(chat.decode, frozenset({151645}))
    assert len([token for token in range(len(chat.tokenizer)) if end.finish([token], 9) == "delimiter"]) == 565
    assert end.finish(chat.ids("So x = 5.\n\n"), 99) == "delimiter"
    assert end.finish(chat.ids("x\n") + chat.ids("\n"), 99) == "delimiter"


@pytest.mark.parametrize(
    ("template", "opening", "verdict_prefix"),
    [(INSTRUCT, "", ""), (THINKING, "<think>\n", EMPTY_THOUGHT), (HYBRID, "", EMPTY_THOUGHT)],
    ids=["instruct", "thinking", "hybrid"],
)
def test_a_verdict_is_asked_for_after_an_empty_thought_where_the_model_thinks(
    template: str, opening: str, verdict_prefix: str
) -> None:
    chat = chat_of(template, instruction="")
    assert chat.chat(Prompt("how many?")) == f"<|im_start|>user\nhow many?<|im_end|>\n<|im_start|>assistant\n{opening}"
    assert chat.decode(chat.verdict_turn).endswith(f"assistant\n{verdict_prefix}")
    assert chat.decode(chat.score_turn).endswith(f"{verdict_prefix}My score is: ")
    assert chat.decode(chat.same_chat("a", "b")).endswith(f"assistant\n{verdict_prefix}")


@pytest.mark.parametrize(
    ("template", "before", "text", "closing"),
    [
        (THINKING, "", "One circle.\n\n", "</think>\n\n"),
        (THINKING, "", "One circle, cut", "\n</think>\n\n"),
        (THINKING, "One circle.\n</think>\n\n", "The answer is 1.\n\n", ""),
        (HYBRID, "<think>\nOne.\n\n", "Two.\n\n", "</think>\n\n"),
        (HYBRID, "", "One circle.\n\n", ""),
        (INSTRUCT, "", "One circle.\n\n", ""),
    ],
    ids=["open", "open and cut off", "closed before", "opened by the model", "never opened", "instruct"],
)
def test_the_thought_of_the_judged_step_is_closed_before_the_question(
    template: str, before: str, text: str, closing: str
) -> None:
    chat = chat_of(template)
    prefix = "" if template == INSTRUCT else EMPTY_THOUGHT
    assert asked_after(chat, step_of(chat, text, before)) == closing + ASKED + prefix
    assert asked_after(chat, step_of(chat, text, before), "digit").startswith(f"{closing}<|im_end|>")


def test_a_step_that_ends_the_turn_is_left_as_it_is() -> None:
    chat = chat_of(THINKING)
    step = step_of(chat, "so 1<|im_end|>", finish="eos")
    assert asked_after(chat, step) == ASKED.removeprefix("<|im_end|>") + EMPTY_THOUGHT


def test_a_given_prefix_takes_the_place_of_the_derived_one() -> None:
    chat = chat_of(THINKING, verdict_prefix="Verdict: ")
    assert asked_after(chat, step_of(chat, "One.\n\n")) == f"{ASKED}Verdict: "


def test_an_opening_from_the_settings_is_closed_as_well_where_the_prefix_says_so() -> None:
    chat = chat_of(INSTRUCT, generation_suffix="<think>\n", verdict_prefix=EMPTY_THOUGHT)
    assert asked_after(chat, step_of(chat, "One.\n\n")) == f"</think>\n\n{ASKED}{EMPTY_THOUGHT}"
