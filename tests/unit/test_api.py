"""The public names of `dreamr` and their signatures; a change here is a change for users."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image
from support.tiny import picture

import dreamr
from dreamr.api import make_prompt
from dreamr.tasks.images import read_image

NAMES = [
    "ActorLost",
    "CommittedStep",
    "Config",
    "ConfigError",
    "NotEnoughResources",
    "PipelineSettings",
    "Prompt",
    "Reasoner",
    "Result",
    "TooLong",
    "Trace",
    "load_config",
]

SIGNATURES = {
    "Reasoner": (
        "(config: 'str | Path | Config | None' = None, *, draft: 'str | None' = None, **settings: 'Any') -> 'None'"
    ),
    "Reasoner.start": "(self) -> 'None'",
    "Reasoner.close": "(self) -> 'None'",
    "Reasoner.ask": (
        "(self, question: 'str', images: 'ImageSource | Sequence[ImageSource]' = (), *, "
        "on_step: 'OnCommit | None' = None, compare: 'bool' = False, **settings: 'Any') -> 'Result'"
    ),
    "Reasoner.ask_async": (
        "(self, question: 'str', images: 'ImageSource | Sequence[ImageSource]' = (), *, "
        "on_step: 'OnCommit | None' = None, compare: 'bool' = False, **settings: 'Any') -> 'Result'"
    ),
    "Result.timeline": "(self, path: 'str | Path') -> 'None'",
    "load_config": "(path: 'str | Path | None' = None) -> 'Config'",
}

RESULT = {
    "question", "trace", "plain", "answer", "reasoning", "steps", "wall_s", "acceptance_rate", "coverage",
    "wasted_draft_tokens", "wasted_target_tokens", "speedup", "timeline",
}  # fmt: skip
STEP = {"index", "source", "tokens", "text", "score", "at", "finish", "phase", "logprobs"}


def test_the_public_names_exist() -> None:
    assert sorted(dreamr.__all__) == NAMES
    assert all(getattr(dreamr, name).__name__ == name for name in NAMES)
    assert set(NAMES) <= set(dir(dreamr))
    with pytest.raises(AttributeError, match="'dreamr' has no attribute 'Reasonr'"):
        _ = dreamr.Reasonr


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_signatures_are_as_documented(name: str) -> None:
    owner, _, method = name.partition(".")
    found = getattr(dreamr, owner)
    assert str(inspect.signature(getattr(found, method) if method else found)) == SIGNATURES[name]


def test_results_and_steps_have_the_documented_fields() -> None:
    assert {name for name in dir(dreamr.Result) if not name.startswith("_")} == RESULT
    assert {field.name for field in fields(dreamr.CommittedStep)} == STEP


def test_importing_dreamr_imports_nothing_heavy() -> None:
    check = (
        "import sys, dreamr\n"
        "assert 'pydantic' not in sys.modules\n"
        "dreamr.Reasoner(method='sequential')\n"
        "print(*({'ray', 'torch', 'transformers', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_what_cannot_be_done_is_refused_before_anything_starts(tmp_path: Path) -> None:
    for arguments, settings, said in [
        (["none.yaml"], {}, "no such configuration file"),
        ([], {"methd": "fpsr"}, "did you mean 'method'"),
        ([], {"method": "fprs"}, "did you mean 'fpsr'"),
        ([], {"draft": "/no/such"}, "no such folder"),
    ]:
        with pytest.raises(dreamr.ConfigError, match=said):
            dreamr.Reasoner(*arguments, **settings)
    reasoner = dreamr.Reasoner()
    for question, images, said in [
        (" ", (), "the question is empty"),
        ("how many?", "none.png", "none.png: there is no such file"),
        ("how many?", [picture(32, 32), b"no image"], "an image of 8 bytes: is not an image"),
    ]:
        with pytest.raises(ValueError, match=said):
            reasoner.ask(question, images)
    with pytest.raises(dreamr.ConfigError, match="alpha = 2"):
        reasoner.ask("how many?", alpha=2)


def test_images_may_be_paths_bytes_or_pil_images(tmp_path: Path) -> None:
    data = picture(40, 30)
    path = tmp_path / "image.png"
    path.write_bytes(data)
    with Image.open(path) as image:
        image.load()
    prompt = make_prompt("how many?", [path, str(path), data, image])
    assert prompt.images[:3] == (data,) * 3
    assert read_image(image) == prompt.images[3]
