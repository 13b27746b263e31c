"""What the documents say exists: configurations load, keys are documented, links lead somewhere."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dreamr.config import (
    ActorConfig,
    ClusterSettings,
    Config,
    GroupConfig,
    HFEngineConfig,
    PipelineSettings,
    ScriptedEngineConfig,
    Strict,
    VLLMEngineConfig,
    load_config,
)
from dreamr.tasks.ledger import make_problem
from rl.config import SapoConfig, load_sapo_config
from tools.make_pair import markdown as pair
from tools.make_pair.digest import weights_sha256

ROOT = Path(__file__).parents[2]
PAIR_RESULTS = sorted(path.name for path in (ROOT / "docs/results").glob("embedded_pair*.json"))
SAME_AS_ELSEWHERE = ("draft", "target", "cluster")
"""Parts of a training run that docs/configuration.md documents."""


def result(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((ROOT / "docs/results" / name).read_text())
    return report


@pytest.mark.parametrize("name", PAIR_RESULTS)
def test_the_pair_that_was_evaluated_is_the_committed_one(name: str) -> None:
    report = result(name)
    for role, digest in report["weights_sha256"].items():
        folder = "target" if role == "target" else report["draft"]
        assert digest == weights_sha256(ROOT / "dreamr/embedded" / folder), f"evaluate the {role} again"


def test_evaluations_of_several_drafts_stand_side_by_side() -> None:
    first = result(PAIR_RESULTS[0]) | {"draft": "draft"}
    other = first | {"draft": "draft-untrained", "verdicts_greedy": first["verdicts_greedy"] | {"accepted": None}}
    alone, verdicts, _ = pair.tables(first, other).split("\n\n")
    assert alone.splitlines()[0] == "| alone, greedy | target | draft | draft-untrained |"
    assert "| draft, temperature 1 | draft-untrained, greedy |" in verdicts
    assert {line.count("|") for line in verdicts.splitlines()} == {6}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_ready_configurations_load(path: Path) -> None:
    if path.stem.endswith("-sapo"):
        assert load_sapo_config(path).target.engine.kind == "hf"
    else:
        assert load_config(path).group.target.engine.kind in ("hf", "vllm", "scripted")


@pytest.mark.parametrize("document", ["README.md", "docs/configuration.md", "docs/models.md"])
def test_configurations_in_documents_load(document: str) -> None:
    for text in re.findall(r"```yaml\n(.*?)```", (ROOT / document).read_text(), re.DOTALL):
        Config.parse(text, document)


@pytest.mark.parametrize(
    "part",
    [
        GroupConfig,
        ActorConfig,
        HFEngineConfig,
        VLLMEngineConfig,
        ScriptedEngineConfig,
        PipelineSettings,
        ClusterSettings,
    ],
)
def test_every_key_is_documented(part: type[Config]) -> None:
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs/configuration.md").read_text()))
    assert set(part.model_fields) <= documented


@pytest.mark.parametrize("name", [name for name in SapoConfig.model_fields if name not in SAME_AS_ELSEWHERE])
def test_every_key_of_a_training_run_is_documented_in_its_row(name: str) -> None:
    lines = (ROOT / "docs/training.md").read_text().splitlines()
    [row] = [line for line in lines if line.startswith("|") and f"`{name}`" in line.split("|")[1]]
    part = SapoConfig.model_fields[name].annotation
    if isinstance(part, type) and issubclass(part, Strict):
        assert set(part.model_fields) <= set(re.findall(r"`(\w+)`", row))


def test_files_that_documents_name_exist() -> None:
    named = re.compile(r"`((?:configs|deploy|dreamr|rl|tests)/[\w./-]+\.(?:py|yaml))`")
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for path in named.findall(document.read_text()):
            assert (ROOT / path).exists(), f"{document.name}: {path}"


def test_places_in_the_code_that_documents_name_exist() -> None:
    named = re.compile(r"`([\w/]+\.py):(\w+)`")
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for path, name in named.findall(document.read_text()):
            defined = re.compile(rf"^\s*(?:async def|def|class) {name}\b|^{name}\b.*=", re.MULTILINE)
            assert defined.search((ROOT / path).read_text()), f"{document.name}: {path} has no {name}"


def test_the_first_question_fits_the_drawing_that_is_made_for_it() -> None:
    question = make_problem("test", 0, 0).question
    assert f'dreamr ask --image drawing.png "{question}"' in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("document", ["README.md", "docs/actors.md"])
def test_python_in_documents_names_what_exists(document: str) -> None:
    for text in re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL):
        found = subprocess.run(
            [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", "-"],
            input=text, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert found.returncode == 0, found.stdout
        imports = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), document, "exec"), {})


def test_links_between_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
