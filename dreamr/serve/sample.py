"""Ledger problems as clients send them."""

from __future__ import annotations

import base64
from typing import Any

from dreamr.tasks.ledger import Problem


def data_url(problem: Problem) -> str:
    """The drawing as a data URL."""
    [image] = problem.prompt.images
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def chat_body(model: str, problem: Problem) -> dict[str, Any]:
    """The body of a request that asks it."""
    content = [
        {"type": "text", "text": problem.question},
        {"type": "image_url", "image_url": {"url": data_url(problem)}},
    ]
    return {"model": model, "messages": [{"role": "user", "content": content}]}
