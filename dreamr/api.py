"""`Reasoner`: questions about images, answered from Python.

    with dreamr.Reasoner() as reasoner:                                # the built-in pair, or a configuration file
        result = reasoner.ask("What is the result?", images="drawing.png", on_step=lambda step: print(step.text))
    print(result.answer, result.acceptance_rate)

    caller's thread ── ask ──▶ event loop in a thread of the Reasoner ──▶ pipelines.run ──▶ Ray actors
                    ◀─ Result ─┘

The actors belong to that event loop, so that one Reasoner can be used from any thread and from any event loop.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import ValidationError

from dreamr.config import Config, PipelineSettings, first_problem, load_config, with_draft
from dreamr.errors import ConfigError
from dreamr.result import Result
from dreamr.tasks.images import ImageSource, cold_copy, read_image
from dreamr.types import Prompt
from pipelines import BASELINE, OnCommit, Request, check, run
from pipelines.handles import Handles

if TYPE_CHECKING:
    from actors.group import ActorGroup

T = TypeVar("T")
Phase = Literal["warm up", "answer", "compare"]


class Reasoner:
    """A pair of models, ready to answer. Starts at the first question, or with its `with` or `async with` block."""

    def __init__(self, config: str | Path | Config | None = None, *, draft: str | None = None, **settings: Any) -> None:
        """`config`: a file; None loads the built-in pair on this machine's CPU. `draft`: another draft model.
        `settings` replace those in the `pipeline` part, such as `method="sequential"`.

        Raises ConfigError in one sentence.
        """
        self.config = with_draft(config if isinstance(config, Config) else load_config(config), draft)
        self.settings = changed_settings(self.config.pipeline, settings)
        self._lock = threading.Lock()
        self._stack: ExitStack | None = None
        self._open_loop: asyncio.AbstractEventLoop | None = None
        self._group: ActorGroup | None = None
        self._running: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Start Ray, unless it runs, and the actors. Returns when the models are loaded; a second call does nothing.

        Raises:
            NotEnoughResources: the cluster cannot hold the actors.
            ValueError: a model cannot be loaded.
            ConnectionError: no Ray cluster at the configured address.
        """
        with self._lock:
            if self._stack is not None:
                return
            from actors.cluster import connected

            with ExitStack() as stack:
                stack.enter_context(connected(self.config.cluster))
                self._open_loop = loop = asyncio.new_event_loop()
                thread = threading.Thread(target=loop.run_forever, name="dreamr.Reasoner", daemon=True)
                thread.start()
                stack.callback(loop.close)
                stack.callback(thread.join)
                stack.callback(loop.call_soon_threadsafe, loop.stop)
                self._wait(self._start_group())
                stack.callback(lambda: self._wait(self._stop_group()))
                self._stack = stack.pop_all()

    def close(self) -> None:
        """Cancel open questions, stop the actors, and Ray if it was started here. May be called again."""
        with self._lock:
            if self._stack is not None:
                self._stack.close()
                self._stack = None

    def ask(
        self,
        question: str,
        images: ImageSource | Sequence[ImageSource] = (),
        *,
        on_step: OnCommit | None = None,
        compare: bool = False,
        **settings: Any,
    ) -> Result:
        """Answer a question about images: paths, encoded files, or PIL images.

        `on_step` is called with each step when it is committed, in the Reasoner's thread; True ends the answer.
        `compare` answers again by the target alone, for `Result.speedup`. It needs an image: without one, the second
        answer would reuse the prefix caches of the first. `settings` are for this question.

        Raises:
            ValueError: an image that cannot be read, a prompt that is too long, a setting that does not exist.
            ActorLost: the target was lost and did not come back.
        """
        return self._wait(self._ask(*self._prepared(question, images, settings), on_step, compare))

    async def ask_async(
        self,
        question: str,
        images: ImageSource | Sequence[ImageSource] = (),
        *,
        on_step: OnCommit | None = None,
        compare: bool = False,
        **settings: Any,
    ) -> Result:
        """As `ask`, for use in any event loop; several questions may be open at once."""
        prompt, chosen = await asyncio.to_thread(self._prepared, question, images, settings)
        work = self._ask(prompt, chosen, on_step, compare)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _prepared(
        self, question: str, images: ImageSource | Sequence[ImageSource], settings: dict[str, Any]
    ) -> tuple[Prompt, PipelineSettings]:
        chosen = changed_settings(self.settings, settings)
        prompt = make_prompt(question, [images] if isinstance(images, ImageSource) else images)
        self.start()
        return prompt, chosen

    async def _ask(self, prompt: Prompt, settings: PipelineSettings, on_step: OnCommit | None, compare: bool) -> Result:
        assert self._group is not None, "started by `start`"
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            settings = settings.with_recommended(self._group.infos["target"].recommended)
            return await answer(self._group.handles, prompt, settings, on_step, compare=compare)
        finally:
            self._running.discard(task)

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        assert self._open_loop is not None, "made by `start`"
        return self._open_loop

    async def _start_group(self) -> None:
        from actors.group import ActorGroup

        self._group = ActorGroup(self.config.group)
        await self._group.start()

    async def _stop_group(self) -> None:
        assert self._group is not None
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._group.stop()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C as well
            future.cancel()
            raise


async def answer(
    handles: Handles,
    prompt: Prompt,
    settings: PipelineSettings,
    on_step: OnCommit | None = None,
    *,
    compare: bool = False,
    on_phase: Callable[[Phase], None] = lambda _: None,
) -> Result:
    """Answer one prompt over actors; `compare` answers it once more by the target alone, both from cold caches."""
    plain_settings = settings.model_copy(update={"method": BASELINE})
    compare = compare and bool(prompt.images) and settings.method != BASELINE
    if not compare:
        on_phase("answer")
        return Result(prompt.question, await run(Request(prompt, settings), handles, on_step))
    on_phase("warm up")
    for one in (settings, plain_settings):
        short = one.model_copy(update={"max_tokens": one.warm_up_tokens})
        await run(Request(_cold(prompt), short), handles)
    on_phase("answer")
    trace = await run(Request(_cold(prompt), settings), handles, on_step)
    on_phase("compare")
    return Result(prompt.question, trace, await run(Request(_cold(prompt), plain_settings), handles))


def _cold(prompt: Prompt) -> Prompt:
    return cold_copy(prompt, uuid.uuid4().hex)


def changed_settings(settings: PipelineSettings, changes: dict[str, Any]) -> PipelineSettings:
    """Settings with some of them replaced. Raises ConfigError."""
    try:
        changed = PipelineSettings.model_validate(settings.model_dump(exclude_unset=True) | changes)
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from error
    check(changed)
    return changed


def make_prompt(question: str, images: Sequence[ImageSource]) -> Prompt:
    """Question and images as a prompt. Raises ValueError."""
    if not question.strip():
        raise ValueError("the question is empty.")
    return Prompt(question, tuple(read_image(image) for image in images))
