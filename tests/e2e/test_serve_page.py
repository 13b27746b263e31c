"""The page in a real browser (headless Chromium) over the built-in pair: desktop, phone, keyboard."""

from __future__ import annotations

import re
import shutil
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, async_playwright, expect
from support.serving import LocalGroup, listening

from dreamr.config import load_config
from dreamr.config.serve import ServeSettings
from dreamr.serve.app import make_app
from dreamr.serve.service import Service
from dreamr.tasks.ledger import make_problem

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]

TRANSFER = """([kind, name, base64]) => {
    const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, { type: "image/png" }));
    const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
    const event = kind === "drop" ? new DragEvent(kind, options) : new ClipboardEvent(kind, options);
    document.getElementById("question").dispatchEvent(event);
}"""
"""Drops or pastes a file, as a browser reports it."""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    # All engines share one process here: what the target writes ahead would only take the draft's time.
    config = load_config()
    config = config.model_copy(update={"serve": ServeSettings(write_ahead_up_to=0)})
    with listening(make_app(Service(LocalGroup(config), config))) as it:
        yield it


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


async def open_page(browser: Browser, url: str, width: int) -> tuple[Page, list[str]]:
    page = await browser.new_page(viewport={"width": width, "height": 860}, reduced_motion="reduce")
    page.set_default_timeout(30_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    await page.goto(url)
    await expect(page.locator("#health")).to_have_text("all actors up")
    await expect(page.locator("#method option").first).to_have_text("fpsr")
    return page, problems


async def test_a_sample_is_answered_by_keyboard_alone_and_compared(browser: Browser, url: str) -> None:
    page, problems = await open_page(browser, url, 1280)
    asked: list[dict[str, Any]] = []
    page.on("request", lambda request: asked.append(request.post_data_json) if request.method == "POST" else None)
    await page.locator("#sample").focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("#previews img")).to_be_visible()
    await page.locator("#question").focus()
    await page.keyboard.press("Control+Enter")
    await expect(page.locator("#counts")).to_be_visible(timeout=30_000)
    steps = page.locator("#steps > li")
    authors = await steps.locator(".author").all_inner_texts()
    assert len(authors) >= 4
    assert set(authors) <= {"draft", "target"}
    for index, author in enumerate(authors):
        await expect(steps.nth(index)).to_have_class(f"step {author}")
    await expect(page.locator("#answer-check")).to_have_text(re.compile(r"^(✓ right|✗ it is \d+)$"))
    label = await page.locator("#timeline").get_attribute("aria-label")
    assert label is not None
    assert f"{len(authors)} steps, {authors.count('draft')} written by the draft" in label
    assert await page.locator("#timeline rect.draft, #timeline rect.target").count() == len(authors)
    await page.locator("#question").fill("something else by now")
    await page.locator("#compare-go").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status").filter(has_text="as fast")).to_be_visible(timeout=30_000)
    assert await page.locator("[aria-live] #plain-time").count() == 0
    assert asked[1] == asked[0] | {"method": "autoregressive"}
    assert not problems
    await page.close()


async def test_verdicts_have_the_colour_of_what_they_decide(browser: Browser, url: str) -> None:
    page, problems = await open_page(browser, url, 1280)
    looks = await page.evaluate("""async () => {
        const { Timeline } = await import("/page/timeline.js");
        const svg = document.getElementById("timeline"), timeline = new Timeline(svg);
        const looks = () => [...svg.querySelectorAll("rect:not(.lane)")].map((bar) => bar.className.baseVal);
        const at = { lane: "verifier", at: 0, start: 0, end: 1 };
        const verdicts = [{ rho: 0.6, accepted: false }, { rho: 0.4, accepted: true }, { accepted: true }];
        verdicts.forEach((one, call) => timeline.tell({ ...at, call, judged: true, ...one }));
        timeline.tell({ ...at, call: 3, judged: false });
        timeline.tell({ ...at, call: 4, prefill: true });
        timeline.tell({ lane: "verifier", at: 0, call: 5 });
        timeline.render();
        const live = looks();
        const span = { lane: "verifier", outcome: "verdict", step: 0, start: 0, end: 1, num_tokens: 0 };
        timeline.finish({ wall_s: 1, steps: [], timeline: [...verdicts, {}].map((one) => ({ ...span, ...one })) });
        return [live, looks()];
    }""")
    assert looks == [["no", "yes", "yes", "dropped", "prefill", "pending"], ["no", "yes", "yes", "dropped"]]
    assert not problems
    await page.close()


async def test_a_phone_shows_everything_without_scrolling_sideways(browser: Browser, url: str, tmp_path: Path) -> None:
    page, problems = await open_page(browser, url, 390)
    image = tmp_path / "drawing.png"
    problem = make_problem("test", 3, 0)
    image.write_bytes(problem.prompt.images[0])
    await page.set_input_files("#image", image)
    await page.fill("#question", problem.question)
    await page.click("#go")
    await expect(page.locator("#counts")).to_be_visible(timeout=30_000)
    assert await page.evaluate("document.documentElement.scrollWidth") == 390
    assert not problems
    await page.close()


async def test_everything_can_be_found_by_a_screen_reader(browser: Browser, url: str) -> None:
    page, _ = await open_page(browser, url, 1280)
    await page.locator("summary").click()
    controls = page.locator("button:visible, textarea, select, input")
    for index in range(await controls.count()):
        assert await controls.nth(index).evaluate(
            "control => Boolean(control.labels?.length || control.ariaLabel || control.textContent.trim())"
        ), await controls.nth(index).evaluate("control => control.outerHTML")
    await expect(page.locator("#steps")).to_have_attribute("aria-live", "polite")
    await expect(page.get_by_role("status").first).to_have_text("all actors up")
    await page.close()


async def test_health_is_said_only_when_it_changes(browser: Browser, url: str) -> None:
    page = await browser.new_page()
    await page.clock.install()
    await page.goto(url)
    await expect(page.locator("#health")).to_have_text("all actors up")
    await page.evaluate("""() => {
        window.said = 0;
        const watch = new MutationObserver(() => { window.said += 1; });
        watch.observe(document.getElementById("health"), { childList: true });
    }""")
    for status, said in (("ok", 0), ("degraded", 1), ("degraded", 1)):
        await page.route("**/health", partial(answer_health, status))
        async with page.expect_response("**/health"):
            await page.clock.run_for(10_000)
        await expect(page.locator(f"#health.{status}")).to_be_visible()
        assert await page.evaluate("window.said") == said
    await page.close()


async def answer_health(status: str, route: Route) -> None:
    await route.fulfill(json={"status": status})


async def test_several_images_are_added_removed_and_sent_and_a_broken_one_is_refused_at_once(
    browser: Browser, url: str, tmp_path: Path
) -> None:
    page, problems = await open_page(browser, url, 1280)
    images = [make_problem("test", seed, 0).prompt.images[0] for seed in range(4)]
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, content in zip(files, (*images[:2], b"no image"), strict=True):
        file.write_bytes(content)
    shown = page.locator("#previews img")
    await page.set_input_files("#image", files)  # the whole ones are taken
    await expect(shown).to_have_count(2)
    await expect(page.get_by_role("alert")).to_have_text("2.png cannot be shown: it is broken, or no image.")
    for event, number in (("drop", 2), ("paste", 3)):
        await page.evaluate(TRANSFER, [event, f"{event}.png", b64encode(images[number]).decode()])
        await expect(shown).to_have_count(number + 1)
        await expect(page.get_by_role("alert")).to_be_hidden()
    await page.get_by_role("button", name="Remove 1.png").click()
    await expect(page.get_by_role("button", name="Remove drop.png")).to_be_focused()
    assert await shown.evaluate_all("all => all.map((one) => one.alt)") == ["0.png", "drop.png", "paste.png"]
    await page.set_input_files("#image", files[1])
    await expect(shown).to_have_count(4)
    await page.fill("#question", "which?")
    await page.locator("summary").click()
    await page.fill("#max-tokens", "7")
    await page.locator("#temperature").fill("0.5")
    async with page.expect_request("**/v1/chat/completions") as asked:
        await page.click("#go")
    body = (await asked.value).post_data_json
    *sent, text = body["messages"][0]["content"]
    expected = [images[number] for number in (0, 2, 3, 1)]
    assert [b64decode(part["image_url"]["url"].partition(",")[2]) for part in sent] == expected
    assert (text["type"], body["max_tokens"], body["temperature"]) == ("text", 7, 0.5)
    assert not problems
    await page.close()


async def test_a_missing_key_and_a_missing_server_are_named(browser: Browser, url: str) -> None:
    page, _ = await open_page(browser, url, 1280)
    await page.fill("#question", "what?")
    refused = {"error": {"message": "a valid API key is needed"}}
    await page.route("**/v1/chat/completions", lambda route: route.fulfill(status=401, json=refused))
    await page.click("#go")
    await expect(page.locator("#key")).to_be_focused()
    await page.unroute("**/v1/chat/completions")
    await page.route("**/v1/chat/completions", lambda route: route.abort())
    await page.click("#go")
    await expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    await page.close()


async def test_an_error_is_said_where_it_is_heard(browser: Browser, url: str) -> None:
    page, _ = await open_page(browser, url, 1280)
    await page.fill("#question", "what is <|im_end|> ?")
    await page.click("#go")
    await expect(page.get_by_role("alert")).to_contain_text("a control token of the model")
    await expect(page.locator("#go")).to_be_enabled()
    await page.close()
