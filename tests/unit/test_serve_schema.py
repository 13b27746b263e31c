"""The OpenAPI document against the server that it describes: whatever is sent, the answer is one that is described."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from support.serving import LocalGroup, listening, scripted_config

from dreamr.serve.app import make_app
from dreamr.serve.service import Service

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]


MODES = {"valid": GenerationMode.POSITIVE, "invalid": GenerationMode.NEGATIVE}


@pytest.mark.parametrize("mode", list(MODES))
def test_every_answer_is_one_that_is_described(mode: str) -> None:
    """Not by schemathesis' own parametrisation, which needs another pytest."""
    config = scripted_config()
    with listening(make_app(Service(LocalGroup(config), config))) as url:
        # Without Ray there are no metrics to be had.
        document = schemathesis.openapi.from_url(f"{url}/openapi.json").exclude(path="/metrics")
        operations = [result.ok() for result in document.get_all_operations()]
        assert {operation.path for operation in operations} >= {"/v1/chat/completions", "/v1/models", "/health"}
        for operation in operations:
            if mode == "valid" or operation.body or operation.query:
                fuzz(
                    operation.as_strategy(generation_mode=MODES[mode]),
                    CHECKS if mode == "valid" else [*CHECKS, negative_data_rejection],
                )


def fuzz(cases: SearchStrategy[Case], checks: list[Any]) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def send(case: Case) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "dreamr"  # else nearly every request would end there
        case.call_and_validate(checks=checks)

    send()
