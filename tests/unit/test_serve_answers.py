"""What shapes an answer, over HTTP: schemas, thinking budgets, sampling, and the counts that load tools read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pydantic
import pytest
from support.serving import QUESTION, Endpoint, running

CHAT = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with running(thought_steps=(3, 3)) as it:
        yield it


def ask(endpoint: Endpoint, **changes: Any) -> dict[str, Any]:
    response = endpoint.http.post(CHAT, json={"model": "dreamr", "messages": QUESTION} | changes)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def json_format(schema: dict[str, Any] = SCHEMA) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}}


@pytest.mark.parametrize("method", ["fpsr", "token_speculative", "autoregressive"])
@pytest.mark.parametrize("asked", [json_format(), {"response_format": {"type": "json_object"}}])
def test_the_answer_follows_the_schema_and_the_reasoning_is_free(
    endpoint: Endpoint, method: str, asked: dict[str, Any]
) -> None:
    [free] = ask(endpoint, method=method)["choices"]
    [bound] = ask(endpoint, method=method, **asked)["choices"]
    assert json.loads(bound["message"]["content"]) == {}
    assert bound["message"]["reasoning"] == free["message"]["reasoning"]
    assert bound["finish_reason"] == "stop"
    assert bound["dreamr"]["steps"][-1]["source"] == "target"


def test_the_official_client_parses_into_a_type(endpoint: Endpoint) -> None:
    class Nothing(pydantic.BaseModel):
        n: int | None = None

    answer = endpoint.client.chat.completions.parse(model="dreamr", messages=QUESTION, response_format=Nothing)  # type: ignore[arg-type]
    assert answer.choices[0].message.parsed == Nothing()


def test_a_stream_has_the_answer_after_the_reasoning(endpoint: Endpoint) -> None:
    stream = endpoint.client.chat.completions.create(
        model="dreamr",
        messages=QUESTION,  # type: ignore[arg-type]
        stream=True,
        response_format={"type": "json_object"},
        extra_body={"thinking_token_budget": 12},
    )
    kinds = [
        kind
        for chunk in stream
        for choice in chunk.choices
        for kind, text in (("reasoning", getattr(choice.delta, "reasoning", None)), ("content", choice.delta.content))
        if text
    ]
    assert kinds == ["reasoning"] * (len(kinds) - 1) + ["content"]
    assert len(kinds) > 2


@pytest.mark.parametrize(
    "schema", [{"type": "text"}, {"$ref": "#/no"}, {"not": {}}, {"type": "object", "description": "x" * 70_000}]
)
def test_a_schema_that_cannot_be_followed_is_refused_before_any_work(endpoint: Endpoint, schema: Any) -> None:
    response = endpoint.http.post(CHAT, json={"model": "dreamr", "messages": QUESTION} | json_format(schema))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "response_format")
    assert len(error["message"]) < 400


BUDGETS: list[tuple[dict[str, Any], int]] = [
    ({"thinking_token_budget": 0}, 0),
    ({"enable_thinking": False}, 0),
    ({"chat_template_kwargs": {"enable_thinking": False}}, 0),
    ({"reasoning_effort": "none"}, 0),
    ({"reasoning_effort": "low", "max_tokens": 40}, 10),
    ({"reasoning_effort": "medium", "thinking_token_budget": 7}, 7),
]


@pytest.mark.parametrize(("asked", "budget"), BUDGETS)
def test_a_thinking_budget_closes_the_reasoning_and_the_answer_is_still_given(
    endpoint: Endpoint, asked: dict[str, Any], budget: int
) -> None:
    answer = ask(endpoint, **asked)
    [choice] = answer["choices"]
    reasoning_tokens = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert reasoning_tokens == budget + 1  # with the token that closes it
    assert choice["message"]["content"]
    assert "</think>" not in str(choice["message"])


def test_without_a_budget_the_reasoning_is_as_long_as_the_model_likes(endpoint: Endpoint) -> None:
    [free] = ask(endpoint)["choices"]
    for asked in ({"reasoning_effort": "high"}, {"enable_thinking": True}):
        assert ask(endpoint, **asked)["choices"][0]["message"] == free["message"]
    [bounded] = ask(endpoint, thinking_token_budget=150)["choices"]
    assert bounded["message"]["reasoning"] == free["message"]["reasoning"]


def test_models_that_do_not_think_have_nothing_to_close() -> None:
    with running(thinks=False) as endpoint:
        free, bounded = ask(endpoint), ask(endpoint, enable_thinking=False, thinking_token_budget=5)
        assert bounded["choices"][0]["message"] == free["choices"][0]["message"]
        [choice] = ask(endpoint, **json_format())["choices"]
        assert (choice["message"]["content"], choice["message"]["reasoning"]) == ("{}", None)


HARMLESS = {
    "parallel_tool_calls": False,
    "prompt_cache_key": "mine",
    "safety_identifier": "user-1",
    "verbosity": "low",
    "metadata": {"run": "1"},
    "store": False,
    "repetition_penalty": 1,
    "top_k": -1,
    "min_p": 0,
}


def test_harmless_fields_change_nothing(endpoint: Endpoint) -> None:
    assert ask(endpoint, **HARMLESS)["choices"][0]["message"] == ask(endpoint)["choices"][0]["message"]


@pytest.mark.parametrize("changes", [{}, {"method": "autoregressive"}, {"thinking_token_budget": 5}, json_format()])
def test_every_written_token_has_its_log_probability(endpoint: Endpoint, changes: dict[str, Any]) -> None:
    answer = ask(endpoint, logprobs=True, **changes)
    [choice] = answer["choices"]
    assert choice["message"] == ask(endpoint, **changes)["choices"][0]["message"]
    tokens = choice["logprobs"]["content"]
    num_inserted = 1 if "thinking_token_budget" in changes else 0  # </think>
    assert len(tokens) == answer["usage"]["completion_tokens"] - num_inserted
    assert all(token["logprob"] < 0 and bytes(token["bytes"]).decode() == token["token"] for token in tokens)
    assert all(token["token"] in choice["message"]["reasoning"] for token in tokens[:5])
    body = {"model": "dreamr", "messages": QUESTION, "logprobs": True, "stream": True} | changes
    lines = endpoint.http.post(CHAT, json=body).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    parts = [one["logprobs"]["content"] for chunk in chunks for one in chunk["choices"] if "logprobs" in one]
    assert [token for part in parts for token in part] == tokens
    assert ask(endpoint, **changes)["choices"][0]["logprobs"] is None


def test_a_method_without_log_probabilities_says_so(endpoint: Endpoint) -> None:
    body = {"model": "dreamr", "messages": QUESTION, "logprobs": True, "method": "token_speculative"}
    response = endpoint.http.post(CHAT, json=body)
    assert response.status_code == 400
    assert "method 'token_speculative': leave logprobs out" in response.json()["error"]["message"]
    assert not endpoint.group.num_open_calls


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"repetition_penalty": 1.1}, "repetition_penalty"),
    ({"store": True}, "store"),
    ({"logprobs": True, "top_logprobs": 2}, "top_logprobs"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"thinking_token_budget": -1}, "thinking_token_budget"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format"),
]


@pytest.mark.parametrize(("changes", "param"), REFUSED)
def test_what_would_matter_and_is_not_done_is_refused(endpoint: Endpoint, changes: dict[str, Any], param: str) -> None:
    response = endpoint.http.post(CHAT, json={"model": "dreamr", "messages": QUESTION} | changes)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("method", ["fpsr", "sequential", "token_speculative"])
@pytest.mark.parametrize("stream", [False, True])
def test_load_tools_find_the_acceptance_under_vllms_names(
    endpoint: Endpoint, method: Literal["fpsr"], stream: bool
) -> None:
    body = {"model": "dreamr", "messages": QUESTION, "method": method, "stream": stream}
    if stream:
        lines = endpoint.http.post(CHAT, json=body | {"stream_options": {"include_usage": True}}).text.split("\n\n")
        answer = [json.loads(line[6:]) for line in lines if line.startswith("data: {")][-1]
    else:
        answer = ask(endpoint, method=method)
    metrics, usage = answer["metrics"], answer["usage"]
    found = metrics["speculative_decoding"]
    histogram = found["acceptance_histogram"]
    assert sum(histogram) == found["num_spec_steps"] == len(found["per_step_accepted"])
    assert sum(place * number for place, number in enumerate(histogram)) == found["num_accepted_draft_tokens"]
    assert found["num_accepted_draft_tokens"] == usage["completion_tokens_details"]["accepted_prediction_tokens"]
    assert found["num_draft_tokens"] == usage["speculation"]["num_draft_tokens"]
    assert found["mean_acceptance_length"] == 1 + found["num_accepted_draft_tokens"] / found["num_spec_steps"]
    assert all(map(lambda kept, drafted: kept <= drafted, found["per_step_accepted"], found["per_step_drafted"]))
    assert metrics["queue_time_ms"] >= 0
    assert metrics["time_to_first_token_ms"] >= 0


def test_without_drafts_or_with_several_choices_there_is_no_acceptance(endpoint: Endpoint) -> None:
    assert ask(endpoint, method="autoregressive")["metrics"]["speculative_decoding"] is None
    assert ask(endpoint, n=2)["metrics"] is None
