"""Pictures of requests that scripted engines have answered: every span is there, and none covers another."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from support.scripted import PROMPT, World

from dreamr.bench.simulation import virtual
from dreamr.timeline import draw
from dreamr.timeline.figure import svg
from dreamr.timeline.layout import LOOKS, lanes, numbered_commits, time_range
from pipelines import SCHEDULES, Trace
from pipelines.trace import CommittedStep, Span

SVG = "{http://www.w3.org/2000/svg}"


def traced(method: str = "fpsr", seed: int = 3) -> Trace:
    return virtual(World.make(seed, acceptance=0.6, num_steps=(6, 9)).run(method, PROMPT))


def span(start: float, end: float) -> Span:
    return Span("verifier", start, end, "verdict", 0, 0, 0.5)


def hover_texts(trace: Trace) -> list[str]:
    root = ElementTree.fromstring(ElementTree.tostring(svg(trace)))
    return [title.text or "" for title in root.iter(f"{SVG}title")]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("method", SCHEDULES)
def test_lanes_hold_every_span_once_and_no_two_at_the_same_place(method: str, seed: int) -> None:
    trace = traced(method, seed)
    drawn = lanes(trace)
    shown = [one for lane in drawn for row in lane.rows for one in row]
    assert sorted(map(repr, shown)) == sorted(map(repr, trace.spans))
    for lane in drawn:
        for row in lane.rows:
            assert all(one.lane == lane.role for one in row)
            assert all(before.end <= after.start for before, after in pairwise(row))


def test_work_at_the_same_time_takes_as_many_rows_as_needed() -> None:
    trace = replace(traced(), spans=(span(0, 2), span(0, 2), span(1, 3), span(2, 3)))
    (lane,) = lanes(trace)
    assert [len(row) for row in lane.rows] == [2, 1, 1]


def test_the_picture_begins_with_the_request_and_ends_with_the_last_work() -> None:
    trace = replace(traced(), wall_s=2.0, spans=(span(0.5, 1.0), span(1.5, 2.5)))
    assert time_range(trace) == (0.0, 2.5)


def test_every_span_and_every_commit_has_a_hover_text() -> None:
    trace = traced()
    texts = hover_texts(trace)
    assert len(texts) == len(trace.spans) + len(trace.steps)
    assert sum("committed at" in text for text in texts) == len(trace.steps)
    assert sum(text.startswith("verifier: verdict on step") and "score 0." in text for text in texts) == sum(
        one.outcome == "verdict" for one in trace.spans
    )


def test_the_verifier_is_seen_to_read_the_prompt_once_and_it_has_no_number() -> None:
    trace = traced("fpsr")
    (prefill,) = [one for one in trace.spans if one.outcome == "prefill"]
    assert (prefill.lane, prefill.number) == ("verifier", "")
    assert sum(text.startswith("verifier: prompt\nreads the prompt") for text in hover_texts(trace)) == 1


def test_lost_work_is_drawn() -> None:
    trace = traced()
    trace = replace(trace, spans=(*trace.spans, Span("draft", 0.1, 0.4, "lost", 2, 0)))
    assert any("lost with its actor" in text for text in hover_texts(trace))


def test_every_outcome_has_its_own_colour() -> None:
    assert len({look.fill for look in LOOKS.values()}) == len(LOOKS)


def test_numbers_of_commits_keep_their_distance() -> None:
    steps = [CommittedStep(index, "draft", (1,), "", None, at) for index, at in enumerate([0.0, 0.1, 0.25, 0.3, 1.0])]
    assert numbered_commits(steps, 0.2) == {0, 2, 4}


@pytest.mark.parametrize("method", SCHEDULES)
def test_png_is_a_picture_with_the_colours_of_what_happened(method: str, tmp_path: Path) -> None:
    trace, path = traced(method), tmp_path / "timeline.png"
    draw(trace, path)
    with Image.open(path) as image:
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 24) or []}
        assert image.width > 1000
    solid = {one.outcome for one in trace.spans} & {"committed", "rejected", "unused", "verdict", "prefill"}
    for outcome in solid:
        assert tuple(bytes.fromhex(LOOKS[outcome].fill[1:])) in colors


def test_html_needs_nothing_else_and_escapes_what_models_write(tmp_path: Path) -> None:
    trace, path = traced(), tmp_path / "timeline.html"
    evil = replace(trace.steps[0], text="<script>alert(1)</script> & more")
    draw(replace(trace, steps=(evil, *trace.steps[1:])), path)
    page = path.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    assert "<script" not in page
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?https?:""", page)
    assert page.count("<tr>") == len(trace.steps) + 1


def test_a_request_without_spans_still_has_a_picture(tmp_path: Path) -> None:
    trace = replace(traced("autoregressive"), spans=())
    draw(trace, tmp_path / "empty.html")
    draw(trace, tmp_path / "empty.png")
    assert lanes(trace) == []


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.html or \.png"):
        draw(traced(), tmp_path / "timeline.svg")
