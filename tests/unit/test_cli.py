"""The command `dreamr` without any model: refusals in one sentence, help, version; none of it imports Ray or torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny import picture
from typer.testing import CliRunner

from dreamr.cli.main import app

QUESTION = "how many?"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with one image, and some files that are none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    image = picture(32, 32)
    (tmp_path / "good.png").write_bytes(image)
    (tmp_path / "cut.png").write_bytes(image[:-30])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "typo.yaml").write_text("grup: {}\n")
    draft, target = (f"{{engine: {{kind: hf, model: '{name}'}}}}" for name in ("embedded:draft", "./gone"))
    (tmp_path / "none-there.yaml").write_text(f"group: {{draft: {draft}, target: {target}}}\n")
    together = f"group: {{draft: {draft}, target: {draft}}}\n"
    (tmp_path / "same.yaml").write_text(together + "pipeline: {method: sequential, verdict: same}\n")
    return tmp_path


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("dreamr: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([QUESTION, "--image", "none.png"], ["--image none.png", "no such file"]),
        ([QUESTION, "--image", "."], ["--image .", "cannot be read"]),
        ([QUESTION, "--image", "text.png"], ["--image text.png", "not an image"]),
        ([QUESTION, "--image", "good.png", "--image", "cut.png"], ["--image cut.png", "not an image"]),
        ([" \n"], ["question is empty"]),
        ([QUESTION, "--method", "fprs"], ["--method fprs", "did you mean 'fpsr'?", "sequential, auto, fpsr"]),
        ([QUESTION, "--alpha", "1"], ["--alpha 1.0", "less than 1"]),
        ([QUESTION, "--alpha", "nan"], ["--alpha nan"]),
        ([QUESTION, "--window", "0"], ["--window 0", "greater than 0"]),
        ([QUESTION, "--max-tokens", "-5"], ["--max-tokens -5"]),
        ([QUESTION, "--temperature", "-1"], ["--temperature -1"]),
        ([QUESTION, "--config", "none.yaml"], ["none.yaml", "no such configuration file"]),
        ([QUESTION, "--config", "typo.yaml"], ["typo.yaml", "did you mean 'group'"]),
        (
            [QUESTION, "--config", "same.yaml", "--method", "fpsr"],
            ["--method fpsr: verdict 'same' compares", "use it with lookahead"],
        ),
        ([QUESTION, "--draft", "/no/such"], ["--draft /no/such", "no such folder"]),
        ([QUESTION, "--config", "none-there.yaml"], ["group.target.engine.model = './gone'", "no such folder"]),
        ([QUESTION, "--timeline", "t.svg"], ["--timeline t.svg", ".html or .png"]),
        ([QUESTION, "--timeline", "no/t.png"], ["--timeline no/t.png", "no folder 'no'"]),
    ],
)
def test_ask_refuses_in_one_sentence(folder: Path, arguments: list[str], parts: list[str]) -> None:
    message = refusal("ask", *arguments)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--problems", "0"], ["--problems 0", "at least one"]),
        (["--methods", "fpsr,fast"], ["'fast'", "sequential, auto, fpsr"]),
        (["--methods", ""], ["name at least one"]),
        (["--methods", "fpsr:alpha=["], ["'fpsr:alpha=['", "alpha = '['", "cannot be read"]),
        (["--methods", "fpsr:alpha=2"], ["'fpsr:alpha=2': alpha = 2: input should be less than 1."]),
        (["--methods", "fpsr:verdict=same"], ["'fpsr:verdict=same': verdict 'same' compares"]),
        (["--draft", "a/b/c"], ["--draft a/b/c", "no such folder"]),
        (["--out", "no/report.json"], ["--out no/report.json", "no folder 'no'"]),
        (["--out", "."], ["--out .", "folder"]),
        (["--timeline", "t"], ["--timeline t", ".html or .png"]),
        (["--config", "typo.yaml"], ["did you mean 'group'"]),
    ],
)
def test_demo_refuses_in_one_sentence(folder: Path, arguments: list[str], parts: list[str]) -> None:
    message = refusal("demo", *arguments)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("arguments", [["ask"], ["ask", QUESTION, "--alpha", "much"], ["ask", QUESTION, "--imag", "a"]])
def test_a_malformed_command_line_is_bad_input(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_the_debug_variable_shows_the_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMR_DEBUG", "1")
    result = CliRunner().invoke(app, ["ask", QUESTION, "--image", "none.png"])
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("dreamr: --image none.png")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["ask", "--help"], ["ask", "why?", "--image", "none.png"], ["ask", "?", "--draft", "/no"]]
)
def test_help_and_refusals_import_nothing_heavy(arguments: list[str]) -> None:
    check = (
        "import sys; from dreamr.cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'ray', 'torch', 'transformers', 'matplotlib'} & sys.modules.keys()\n"
        "print('heavy:', *heavy); print('code:', code)"
    )
    done = subprocess.run([sys.executable, "-c", check, *arguments], capture_output=True, text=True, check=True)
    *_, heavy, code = done.stdout.splitlines()
    assert heavy == "heavy:"
    assert code == ("code: 0" if "--help" in arguments else "code: 2")


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "dreamr", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dreamr")
