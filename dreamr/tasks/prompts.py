"""Prompts as text: the chat of a question with images, and the questions about a step.

Pure text; the chat template itself belongs to the checkpoint's tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dreamr.types import END_OF_THOUGHT, START_OF_THOUGHT, Prompt

PROMPT_FILE = "dreamr_prompt.json"
"""Optional file of a checkpoint folder: the prompt configuration that the checkpoint was trained with."""

END_OF_TURN = "<|im_end|>"
START_OF_ANSWER = "<|im_start|>assistant\n"

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
    """The beginning of the answer, e.g. "<think>\\n"; part of the prompt."""
    closing: str = "\n</think>\n\n"
    """Closes a chain of thought whose budget is used up."""
    verdict_prefix: str | None = None
    """The beginning of the answer to a question about a step, up to where the verdict is read. None: an empty chain of
    thought where the chat template opens one, else nothing. With `</think>` in it, the chain of thought of the judged
    step is closed before the question."""
    verdict_question: str = (
        "Is the last reasoning step above correct, given the question, the images and the steps before it? "
        "Answer with one word, positive or negative."
    )
    positive: str = "positive"
    """Verdict words: each has to be one token of the checkpoint's tokenizer."""
    negative: str = "negative"
    score_question: str = (
        "How sound is the last reasoning step above? Look only at whether it is true and follows from what stands "
        "before it, not at how it is put or how much it helps. Give a score from 0 (wrong) to 9 (certainly right)."
    )
    """Asks for a digit (SpecReason)."""
    score_prefix: str = "My score is: "
    """The beginning of the answer to `score_question`, up to the digit."""
    same_template: str = (
        "Here are two versions of one step of a solution.\n\nFirst version:\n{first}\n\nSecond version:\n{second}\n\n"
        "Do they state the same, with the same results? Answer with one word, positive or negative."
    )
    """Asks whether two steps mean the same (Lookahead Reasoning), in a separate chat."""

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if values["verdict_prefix"] is None:
            del values["verdict_prefix"]
        if wrong := {name: value for name, value in values.items() if not isinstance(value, str)}:
            raise ValueError(f"prompt settings must be texts, but these are not: {wrong}")
        for name in ("verdict_question", "positive", "negative", "score_question"):
            if not values[name]:
                raise ValueError(f"prompt setting {name} must not be empty")
        if END_OF_THOUGHT not in self.closing:
            raise ValueError(f"prompt setting closing must contain {END_OF_THOUGHT}: {self.closing!r}")
        if self.positive == self.negative:
            raise ValueError(f"prompt settings positive and negative must differ, both are {self.positive!r}")
        if not all(self.same_template.count(place) == 1 for place in ("{first}", "{second}")):
            raise ValueError(
                f"prompt setting same_template must hold {{first}} and {{second}} once: {self.same_template}"
            )


_KEYS = [field.name for field in fields(PromptConfig)]


def load_prompt_config(folder: Path, given: Mapping[str, str] | None = None) -> PromptConfig:
    """The configuration in `folder`/dreamr_prompt.json, or the defaults when there is no such file; texts that are
    `given` (`prompts` of the engine's configuration) replace both.

    Raises ValueError for a file that is no JSON object, and for unknown keys.
    """
    return PromptConfig(**_from_file(folder / PROMPT_FILE) | _known(given or {}, "engine.prompts"))


def save_prompt_config(prompts: PromptConfig, folder: Path) -> None:
    """Write what `load_prompt_config` reads from a checkpoint folder."""
    (folder / PROMPT_FILE).write_text(json.dumps(asdict(prompts), indent=2) + "\n", encoding="utf-8")


def _from_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if type(values) is not dict:
        raise ValueError(f"{path} must hold one JSON object with keys out of {_KEYS}, not {values!r}")
    return _known(values, str(path))


def _known(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    if unknown := sorted(set(values) - set(_KEYS)):
        raise ValueError(f"{source} has unknown keys {unknown}; known keys are {_KEYS}")
    return dict(values)


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
    """The text after a step that asks for its verdict: ends the assistant's turn, asks, and begins the answer.

    The very next token is judged as `positive` against `negative` (paper, section on TBVM).
    """
    return f"{END_OF_TURN}\n{_asked(config.verdict_question, config)}"


def score_turn(config: PromptConfig) -> str:
    """As `verdict_turn`, asking for a digit: the very next token."""
    return f"{END_OF_TURN}\n{_asked(config.score_question, config)}{config.score_prefix}"


def same_chat(config: PromptConfig, first: str, second: str) -> str:
    """A chat that asks whether two steps mean the same; the next token is one of the verdict words."""
    texts = {"first": first.strip(), "second": second.strip()}
    return _asked(re.sub(r"\{(first|second)\}", lambda place: texts[place[1]], config.same_template), config)


def _asked(question: str, config: PromptConfig) -> str:
    return f"<|im_start|>user\n{question}{END_OF_TURN}\n{START_OF_ANSWER}{config.verdict_prefix or ''}"


def empty_thought(opening: str, opening_without: str) -> str:
    """The empty chain of thought after which a model answers at once; empty for models that do not think.

    `opening` is what the chat template's generation prompt puts after the assistant's role, and `opening_without` the
    same with `enable_thinking` false: templates that read this option write the empty chain of thought themselves.
    """
    if END_OF_THOUGHT in opening_without:
        return opening_without
    return f"{opening.rstrip()}\n\n{END_OF_THOUGHT}\n\n" if is_thinking(opening) else ""


def is_thinking(text: str) -> bool:
    """Whether a chain of thought is open at the end of `text`."""
    return text.rfind(START_OF_THOUGHT) > text.rfind(END_OF_THOUGHT)
