"""From a prompt to text and token ids: chat template and tokenizer of one checkpoint of any architecture."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from dreamr.errors import Unable
from dreamr.tasks.prompts import (
    END_OF_TURN,
    START_OF_ANSWER,
    PromptConfig,
    chat_messages,
    empty_thought,
    is_thinking,
    same_chat,
    score_turn,
    verdict_turn,
)
from dreamr.types import END_OF_THOUGHT, START_OF_THOUGHT, Prompt, Step, ThoughtEnd, Tokens


class ChatEncoder:
    """Applies one checkpoint's chat template and tokenizer under one `PromptConfig`.

    Raises ValueError at construction when a verdict word is not exactly one token, or chats are not ChatML.
    """

    def __init__(self, processor: Any, config: PromptConfig) -> None:
        """`processor` may be a bare tokenizer, if the chat template is the tokenizer's."""
        self.tokenizer = cast(PreTrainedTokenizerBase, getattr(processor, "tokenizer", processor))
        self.processor = processor
        self._control_tokens = [str(t) for t in self.tokenizer.added_tokens_decoder.values() if t.special]
        if END_OF_TURN not in self.tokenizer.get_vocab():
            raise ValueError(f"the tokenizer has no {END_OF_TURN}: only models whose chats are ChatML can be used")
        opening = self._opening()
        if config.verdict_prefix is None:
            prefix = empty_thought(opening, self._opening(enable_thinking=False))
            config = replace(config, verdict_prefix=prefix)
        self.config = config
        """As given, with the `verdict_prefix` that fits the chat template."""
        self._begins_thinking = is_thinking(opening + config.generation_suffix)
        self.verdict_turn: Tokens = self.ids(verdict_turn(config))
        self.score_turn: Tokens = self.ids(score_turn(config))
        self.verdict_words = (
            self._word_id("positive verdict", config.positive),
            self._word_id("negative verdict", config.negative),
        )
        """Token ids of the words for a good and a bad step."""

    def chat(self, prompt: Prompt) -> str:
        """The chat up to where the answer begins. Raises ValueError for control tokens in the question."""
        for text in (prompt.question, *(turn.text for turn in prompt.earlier)):
            for token in self._control_tokens:
                if token in text:
                    raise ValueError(f"the question contains {token!r}, a control token of the model: remove it")
        return self._applied(prompt, self.config) + self.config.generation_suffix

    @cached_property
    def digits(self) -> Tokens:
        """Token ids of "0" to "9". Raises ValueError when one is not exactly one token."""
        return tuple(self._word_id("score", str(digit)) for digit in range(10))

    @cached_property
    def thought_end(self) -> ThoughtEnd:
        """How a chain of thought ends. Raises Unable when `</think>` is not exactly one token."""
        ids = self.ids(END_OF_THOUGHT)
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            raise Unable(f"bounded reasoning and answers by a schema need {END_OF_THOUGHT!r} as one token of the model")
        text = self.config.closing
        return ThoughtEnd(ids[0], Step(tokens=self.ids(text), text=text))

    def same_chat(self, first: str, second: str) -> Tokens:
        """The chat, text alone, that asks whether two steps mean the same."""
        return self.ids(same_chat(self.config, first, second))

    def closing(self, step: Step) -> Tokens:
        """Tokens after `step` that close its chain of thought before a question about it; empty where none is open.

        Models are trained on turns whose chain of thought is closed: an open one would continue into the question.
        """
        if END_OF_THOUGHT not in (self.config.verdict_prefix or "") or step.closed or not self.is_thinking(step.end):
            return ()
        return self.ids(f"{END_OF_THOUGHT}\n\n" if step.text.endswith("\n") else f"\n{END_OF_THOUGHT}\n\n")

    def is_thinking(self, tokens: Tokens) -> bool:
        """Whether the chain of thought is open after these tokens of an answer."""
        marks = [self.ids(mark) for mark in (START_OF_THOUGHT, END_OF_THOUGHT)]
        if all(len(mark) == 1 for mark in marks):
            opened, closed = (mark[0] in tokens for mark in marks)
        else:
            text = self.decode(tokens)
            opened, closed = START_OF_THOUGHT in text, END_OF_THOUGHT in text
        return (opened or self._begins_thinking) and not closed

    def ids(self, text: str) -> Tokens:
        """Token ids of `text` alone, without special tokens around it."""
        return tuple(cast(list[int], self.tokenizer.encode(text, add_special_tokens=False)))

    def decode(self, tokens: Tokens) -> str:
        """Text of generated tokens, without control tokens."""
        return cast(
            str, self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def _opening(self, **options: bool) -> str:
        """What the template's generation prompt puts after the assistant's role."""
        _, role, opening = self._applied(Prompt("?"), PromptConfig(), **options).rpartition(START_OF_ANSWER)
        return opening if role else ""

    def _applied(self, prompt: Prompt, config: PromptConfig, **options: bool) -> str:
        messages = chat_messages(prompt, config)
        chat = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        return cast(str, chat)

    def _word_id(self, field: str, word: str) -> int:
        ids = self.ids(word)
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            raise ValueError(
                f"the {field} word {word!r} is {len(ids)} tokens {list(ids)} of this tokenizer, not one known "
                f"token: choose another word in the prompt settings"
            )
        return ids[0]
