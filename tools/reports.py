"""Reports of the tools: how each was made, and its JSON file."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from dreamr.bench.report import Machine


def made_by(tool: str) -> dict[str, Any]:
    """The command that runs and the machine, with its load now: call it before anything is measured."""
    command = shlex.join(["python", "-m", tool, *sys.argv[1:]])
    return {"command": command, "machine": Machine.this().model_dump()}


def conditions(report: dict[str, Any]) -> str:
    """The command and the machine of a report, as they stand below its table."""
    return f"`{report['command']}` on {report['machine']['cpu']}, {report['machine']['cores']} cores."


def write(report: dict[str, Any], out: Path | None) -> None:
    """Write the JSON file, where one was asked for."""
    if out:
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
