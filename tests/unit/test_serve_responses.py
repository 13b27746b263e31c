"""`/v1/responses` with the official client, and the small endpoints that platforms and tools ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from support.serving import QUESTION, Endpoint, data_url, png, running

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with running(thought_steps=(3, 3), max_positions=500) as it:
        yield it


def test_the_readme_of_the_client_runs_unchanged(endpoint: Endpoint) -> None:
    response = endpoint.client.responses.create(
        model="dreamr",
        instructions="You are a coding assistant that talks like a pirate.",
        input="How do I check if a Python object is an instance of a class?",
    )
    assert response.output_text
    assert (response.status, response.object, response.error) == ("completed", "response", None)
    Response.model_validate(response.model_dump(), strict=True)


def test_a_response_says_what_a_chat_completion_says(endpoint: Endpoint) -> None:
    chat = endpoint.client.chat.completions.create(model="dreamr", messages=QUESTION)  # type: ignore[arg-type]
    response = endpoint.client.responses.create(model="dreamr", input=QUESTION[0]["content"])
    reasoning, message = response.output
    assert reasoning.content[0].text == chat.choices[0].message.model_extra["reasoning"]  # type: ignore[union-attr, index]
    assert message.content[0].text == response.output_text == chat.choices[0].message.content  # type: ignore[union-attr, index]
    assert response.usage.output_tokens == chat.usage.completion_tokens  # type: ignore[union-attr]
    assert response.usage.model_extra["speculation"] == chat.usage.model_extra["speculation"]  # type: ignore[union-attr, index]
    assert response.model_extra["dreamr"]["method"] == "fpsr"  # type: ignore[index]


def test_a_stream_is_complete_and_every_event_is_one_of_the_clients_types(endpoint: Endpoint) -> None:
    whole = endpoint.client.responses.create(model="dreamr", input="how many?")
    events = list(endpoint.client.responses.create(model="dreamr", input="how many?", stream=True))
    kinds: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for event in events:
        kinds.validate_python(event.model_dump())
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == whole.output_text
    for kind, index in (("reasoning_text", 0), ("output_text", 1)):
        of_kind = [event for event in events if event.type.startswith(f"response.{kind}")]
        deltas = "".join(event.delta for event in of_kind if event.type.endswith("delta"))
        assert deltas == of_kind[-1].text == last.response.output[index].content[0].text
        assert {event.output_index for event in of_kind} == {index}
    added, done = (
        [event for event in events if event.type == f"response.output_item.{what}"] for what in ("added", "done")
    )
    assert [event.item.type for event in added] == [event.item.type for event in done] == ["reasoning", "message"]


def test_the_clients_stream_helper_and_parser_work(endpoint: Endpoint) -> None:
    class Nothing(pydantic.BaseModel):
        n: int | None = None

    with endpoint.client.responses.stream(model="dreamr", input="how many?") as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(texts) == stream.get_final_response().output_text
    parsed = endpoint.client.responses.parse(model="dreamr", input="how many?", text_format=Nothing)
    assert parsed.output_parsed == Nothing()


def test_a_conversation_goes_on_with_the_items_of_the_answer(endpoint: Endpoint) -> None:
    question = {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": data_url(png())},
            {"type": "input_text", "text": "how many?"},
        ],
    }
    first = endpoint.client.responses.create(model="dreamr", input=[question])  # type: ignore[list-item]
    items = [question, *(item.model_dump() for item in first.output), {"role": "user", "content": "and now?"}]
    second = endpoint.client.responses.create(model="dreamr", input=items)  # type: ignore[arg-type]
    assert second.output_text != first.output_text
    assert second.usage.input_tokens == 2  # type: ignore[union-attr]


def test_a_budget_makes_the_response_incomplete(endpoint: Endpoint) -> None:
    response = endpoint.client.responses.create(model="dreamr", input="how many?", max_output_tokens=7)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")  # type: ignore[union-attr]
    assert response.output[-1].status == "incomplete"  # type: ignore[union-attr]
    events = list(endpoint.client.responses.create(model="dreamr", input="how many?", max_output_tokens=7, stream=True))
    assert events[-1].type == "response.incomplete"


def test_effort_and_schemas_are_the_same_as_in_chats(endpoint: Endpoint) -> None:
    silent = endpoint.client.responses.create(model="dreamr", input="how many?", reasoning={"effort": "none"})
    assert [item.type for item in silent.output] == ["message"]
    text: Any = {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}}
    assert endpoint.client.responses.create(model="dreamr", input="how many?", text=text).output_text == "{}"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"store": True}, "store"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"input": []}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
    ({"input": [{"role": "assistant", "content": "hm"}]}, "input"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input.0.content.0"),
    ({"input": [{"role": "system", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0"),
    ({"max_output_tokens": 10_000}, "max_output_tokens"),
    ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "text"}}}}, "text.format"),
    ({"best_of": 2}, "best_of"),
]


@pytest.mark.parametrize(("changes", "param"), REFUSED)
def test_what_cannot_be_done_is_refused_under_its_own_name(
    endpoint: Endpoint, changes: dict[str, Any], param: str
) -> None:
    response = endpoint.http.post("/v1/responses", json={"model": "dreamr", "input": "how many?"} | changes)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_a_failure_in_the_middle_is_an_event(endpoint: Endpoint) -> None:
    engine: Any = endpoint.group.transports["target"].engine
    original = engine.next_step

    async def breaks_later(call_id: str, prompt: Any, after: Any, *rest: Any) -> Any:
        if len(after.end) > 10:
            raise RuntimeError("secret detail")
        return await original(call_id, prompt, after, *rest)

    engine.next_step = breaks_later
    try:
        stream = endpoint.client.responses.create(
            model="dreamr", input="how many?", stream=True, extra_body={"method": "autoregressive"}
        )
        last = list(stream)[-1]
    finally:
        engine.next_step = original
    assert (last.type, last.response.error.code) == ("response.failed", "server_error")
    assert "secret" not in str(last)
    with pytest.raises(openai.NotFoundError):
        endpoint.client.responses.create(model="gpt", input="hm")


def test_platforms_find_what_they_ask_for(endpoint: Endpoint) -> None:
    assert endpoint.http.get("/ping").json()["status"] == "ok"
    assert set(endpoint.http.get("/version").json()) == {"version"}
    text = endpoint.http.post("/tokenize", json={"prompt": "a b c"}).json()
    assert (text["count"], len(text["tokens"]), text["max_model_len"]) == (3, 3, 500)
    chat = endpoint.http.post("/tokenize", json={"model": "dreamr", "messages": QUESTION}).json()
    assert chat["count"] == 2
    for body, status in (({}, 400), ({"prompt": "a", "messages": QUESTION}, 400), ({"model": "x", "prompt": "a"}, 404)):
        assert endpoint.http.post("/tokenize", json=body).status_code == status
