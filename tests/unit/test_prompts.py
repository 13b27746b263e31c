"""Prompts as text, and the prompt settings of a checkpoint folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dreamr.tasks.prompts import PROMPT_FILE, PromptConfig, chat_messages, load_prompt_config, verdict_turn
from dreamr.types import Prompt


def test_images_come_before_the_question_and_the_instruction_after_it() -> None:
    [message] = chat_messages(Prompt("How many?", (b"1", b"2")), PromptConfig(instruction=" Think."))
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image", "image", "text"]
    assert message["content"][-1]["text"] == "How many? Think."


def test_a_system_text_becomes_the_first_message() -> None:
    system, user = chat_messages(Prompt("?"), PromptConfig(system="Be brief."))
    assert system == {"role": "system", "content": "Be brief."}
    assert user["role"] == "user"


def test_the_default_instruction_asks_for_blank_lines_and_a_boxed_answer() -> None:
    assert "blank line" in PromptConfig().instruction
    assert "\\boxed{}" in PromptConfig().instruction


def test_the_verdict_turn_ends_the_answer_and_opens_the_next() -> None:
    assert verdict_turn(PromptConfig(verdict_question="Right?")) == (
        "<|im_end|>\n<|im_start|>user\nRight?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_folder_without_prompt_settings_gets_the_defaults(tmp_path: Path) -> None:
    assert load_prompt_config(tmp_path) == PromptConfig()


def test_the_folders_settings_replace_only_what_they_name(tmp_path: Path) -> None:
    (tmp_path / PROMPT_FILE).write_text(json.dumps({"instruction": "", "positive": "good"}))
    assert load_prompt_config(tmp_path) == PromptConfig(instruction="", positive="good")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "must hold one JSON object"),
        ('{"instructions": ""}', r"unknown keys \['instructions'\]; known keys are \['system', 'instruction'"),
        ('{"system": 3}', r"must be texts, but these are not: {'system': 3}"),
        ('{"verdict_question": ""}', "verdict_question must not be empty"),
        ('{"positive": "negative"}', "positive and negative must differ"),
    ],
)
def test_bad_prompt_settings_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / PROMPT_FILE).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_prompt_config(tmp_path)


def test_prompts_need_no_model_libraries() -> None:
    code = "import sys, dreamr.tasks.prompts; print({'torch', 'transformers', 'ray'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
