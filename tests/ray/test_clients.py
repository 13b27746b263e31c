"""`tools.clients`: several clients over real actors around scripted engines, beside the ideal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tools.clients import DEFAULT, app

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def faster(path: Path) -> dict[str, Any]:
    """The committed configuration with shorter answers."""
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    for actor in config["group"].values():
        actor["engine"] |= {"num_steps": [2, 3], "step_tokens": [2, 4]}
    return config


def test_methods_are_measured_by_clients_beside_their_ideal(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(faster(DEFAULT)))
    out = tmp_path / "clients.json"
    arguments = ["--config", str(tmp_path / "config.yaml"), "--clients", "1,3", "--answers", "4", "--out", str(out)]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    rows = json.loads(out.read_text())["rows"]
    names = ("autoregressive", "sequential", "fpsr")
    assert [(row["clients"], row["method"]) for row in rows] == [(count, name) for count in (1, 3) for name in names]
    assert [row["answers"] for row in rows] == [4] * 3 + [6] * 3
    for row in rows:
        assert row["latency_s"] > row["ideal_latency_s"] > 0
        assert row["share_of_ideal"] == pytest.approx(row["speedup"]["geomean"] / row["ideal_speedup"])
    assert [row["speedup"]["geomean"] for row in rows if row["method"] == "autoregressive"] == pytest.approx([1, 1])
    assert shown.count("`fpsr`") == 2


def test_engines_that_are_models_are_refused(tmp_path: Path) -> None:
    model = {"engine": {"kind": "hf", "model": "embedded:draft"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"group": {"draft": model, "target": model}}))
    failed = CliRunner().invoke(app, ["--config", str(tmp_path / "config.yaml")])
    assert failed.exit_code != 0
    assert "group.draft.engine.kind is 'hf'" in failed.output
