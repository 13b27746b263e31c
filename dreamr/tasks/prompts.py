"""Prompts as text: how a question with images becomes a chat, and how the target is asked for its verdict on a step.

Pure text; the chat template itself belongs to the checkpoint's tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dreamr.actors.types import Prompt

PROMPT_FILE = "dreamr_prompt.json"
"""Optional file of a checkpoint folder: the prompt configuration that the checkpoint was trained with."""

END_OF_TURN = "<|im_end|>"

Message = dict[str, Any]
"""One chat message as `apply_chat_template` takes it."""


@dataclass(frozen=True, slots=True)
class PromptConfig:
    """Texts around the question and around the verdict; the defaults are meant for the released Qwen3-VL models.

    Raises ValueError when a field is no text, when a verdict text is empty, or when the two verdict words are equal.
    """

    system: str = ""
    """System message; none is sent when empty."""
    instruction: str = (
        "\n\nSolve the problem step by step. Put a blank line between two steps and none within a step. "
        "End with the final answer in \\boxed{}."
    )
    """Appended to the question."""
    generation_suffix: str = ""
    """What the answer begins with, e.g. "<think>\\n"; it counts as part of the prompt."""
    verdict_question: str = (
        "Is the last reasoning step above correct, given the question, the images and the steps before it? "
        "Answer with one word, positive or negative."
    )
    positive: str = "positive"
    """Verdict words: each has to be one token of the checkpoint's tokenizer."""
    negative: str = "negative"

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if wrong := {name: value for name, value in values.items() if not isinstance(value, str)}:
            raise ValueError(f"prompt settings must be texts, but these are not: {wrong}")
        for name in ("verdict_question", "positive", "negative"):
            if not values[name]:
                raise ValueError(f"prompt setting {name} must not be empty")
        if self.positive == self.negative:
            raise ValueError(f"prompt settings positive and negative must differ, both are {self.positive!r}")


def load_prompt_config(folder: Path) -> PromptConfig:
    """The configuration in `folder`/dreamr_prompt.json, or the defaults when there is no such file.

    Raises ValueError for a file that is no JSON object or that has unknown keys.
    """
    path = folder / PROMPT_FILE
    if not path.is_file():
        return PromptConfig()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    known = [field.name for field in fields(PromptConfig)]
    if type(values) is not dict:
        raise ValueError(f"{path} must hold one JSON object with keys out of {known}, not {values!r}")
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{path} has unknown keys {unknown}; known keys are {known}")
    return PromptConfig(**values)


def chat_messages(prompt: Prompt, config: PromptConfig) -> list[Message]:
    """The chat that ends with the user's turn: in every turn its images, then its text; the instruction comes last."""
    system = "\n\n".join(filter(None, [config.system, *(t.text for t in prompt.earlier if t.role == "system")]))
    turns = [turn for turn in prompt.earlier if turn.role != "system"]
    num_images = len(prompt.images) - sum(turn.num_images for turn in turns)
    return [
        *([{"role": "system", "content": system}] if system else []),
        *(_message(turn.role, turn.text, turn.num_images) for turn in turns),
        _message("user", prompt.question + config.instruction, num_images),
    ]


def _message(role: str, text: str, num_images: int) -> Message:
    return {"role": role, "content": [*({"type": "image"} for _ in range(num_images)), {"type": "text", "text": text}]}


def verdict_turn(config: PromptConfig) -> str:
    """What follows a step when its verdict is asked for: ends the assistant's turn, asks, and opens the answer.

    The very next token is judged as `positive` against `negative` (paper, section on TBVM).
    """
    return f"{END_OF_TURN}\n<|im_start|>user\n{config.verdict_question}{END_OF_TURN}\n<|im_start|>assistant\n"
