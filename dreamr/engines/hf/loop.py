"""The engine's loop: one thread that runs every job, one batched forward at a time.

    event loop     submit(job) ─────▶ scheduler            stop(call_id), promote(call_id)
                       awaits ◀── future ──┐ ▲                     │ flags, read between two forwards
                                           │ │                     ▼
    loop thread    step(): schedule ▶ propose ▶ forward of all rows ▶ each job takes its output ▶ ended jobs answer

With `background`, a second thread runs the forwards that hold only speculative jobs. The operating system gives it
only the core time that other threads and processes leave (Linux); the two never run at the same time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from dreamr.engines.hf.assistant import Assistant
from dreamr.engines.hf.cache import PrefixCache
from dreamr.engines.hf.jobs import DecodeJob, Job, Output, WriteJob
from dreamr.engines.hf.model import Model, Row
from dreamr.engines.hf.scheduler import Scheduler
from dreamr.engines.sampling import greedy, sampled
from dreamr.types import Priority, Tokens

log = logging.getLogger(__name__)

MAX_ROWS = 64
"""Sequences in one forward; more jobs take turns."""


LAST_FORWARD_S = 1.0
"""A call that was stopped or cancelled leaves a forward that still runs."""


class EngineLoop:
    """Runs jobs until `close`."""

    def __init__(
        self, model: Model, cache: PrefixCache, assistant: Assistant | None = None, *, background: bool = False
    ) -> None:
        self._model, self.cache, self.assistant = model, cache, assistant
        self._scheduler = Scheduler(MAX_ROWS)
        self._changed = threading.Condition()
        self._is_busy = False
        self._is_closed = False
        self.last_forward = time.monotonic()
        """Time at which the last forward ended."""
        self._image_tokens = [model.module.config.image_token_id, model.module.config.video_token_id]
        kinds: list[Priority | None] = ["needed", "speculative"] if background else [None]
        self._threads = [threading.Thread(target=self._serve, args=(kind,), name=f"engine {kind}") for kind in kinds]
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    # -- called from the event loop --------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Begin a job; its future gets the result or the error. Raises RuntimeError after `close`."""
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the engine is closed")
            job.future.set_running_or_notify_cancel()  # no cancellation from now on
            self._scheduler.add(job)
            self._changed.notify_all()

    def stop(self, call_id: str) -> bool:
        """End the jobs of a call between two forwards; False when there is none."""
        with self._changed:
            return self._scheduler.stop(call_id)

    def promote(self, call_id: str, hint: Tokens) -> None:
        """A speculative step is needed now; `hint` are tokens that it may begin with."""
        with self._changed:
            self._scheduler.promote(call_id, hint)
            self._changed.notify_all()

    def exclusively(self, work: Any) -> None:
        """Run `work()` while no job runs. Raises RuntimeError when jobs do not end within `LAST_FORWARD_S`."""
        with self._changed:
            if not self._changed.wait_for(lambda: not (len(self._scheduler) or self._is_busy), LAST_FORWARD_S):
                raise RuntimeError(f"{len(self._scheduler)} requests are running: await or stop them first")
            work()

    def close(self) -> None:
        """Stop all jobs and end the threads; returns when they have ended."""
        with self._changed:
            self._is_closed = True
            for job in self._scheduler.all():
                job.is_stopped = True
                if not job.can_stop:
                    job.future.set_exception(RuntimeError("the engine was closed"))
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    # -- the loop --------------------------------------------------------------------------------------------------

    def _serve(self, kind: Priority | None) -> None:
        if kind == "speculative":
            _yield_cores()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._can_run(kind) or (self._is_closed and not len(self._scheduler)))
                if not len(self._scheduler):
                    return
                self._is_busy = True
                batch = self._scheduler.next_batch()
            ended: list[Job] = []
            try:
                with torch.inference_mode():
                    ended = self.step(batch)
            finally:
                self.last_forward = time.monotonic()
                with self._changed:  # a caller that gets the last answer may replace the weights at once
                    self._answer(ended)
                    self._is_busy = False
                    self._changed.notify_all()

    def _can_run(self, kind: Priority | None) -> bool:
        if self._is_busy or not len(self._scheduler):
            return False
        return kind is None or self._is_closed or self._scheduler.has(kind)

    def step(self, batch: Sequence[Job]) -> list[Job]:
        """Run one forward for the jobs of a batch; return the jobs that have ended."""
        running = [job for job in batch if not job.is_stopped and self._begun(job)]
        rows = self._rows(running)
        try:
            if rows:
                self._forward(rows)
        except Exception as error:
            for job, _ in rows:
                self._failed(job, error)
        return [job for job in batch if job.done or job.is_stopped]

    def _begun(self, job: Job) -> bool:
        """Claim the job's sequence, if it has none; False when that fails, which ends only this job."""
        try:
            if job.sequence is None:
                job.start(self.cache)
                if self.assistant and isinstance(job, WriteJob) and job.assistant_prompt is not None:
                    self.assistant.accept(job, job.assistant_prompt)
        except Exception as error:
            self._failed(job, error)
            return False
        return True

    def _rows(self, jobs: Sequence[Job]) -> list[tuple[Job, Row]]:
        if self.assistant:
            self._propose([job for job in jobs if isinstance(job, WriteJob)])
        rows = []
        for job in jobs:
            try:
                row = job.row()
            except Exception as error:
                self._failed(job, error)
                continue
            if row is None:
                job.done = True
            else:
                rows.append((job, row))
        return rows

    def _propose(self, jobs: Sequence[WriteJob]) -> None:
        assert self.assistant is not None
        try:
            self.assistant.propose(jobs)
        except Exception:
            log.exception("the assistant failed; the steps of this batch are written without it")
            for job in jobs:
                self.assistant.forget(job)

    def _forward(self, rows: Sequence[tuple[Job, Row]]) -> None:
        began = time.perf_counter()
        states = self._model.run([row for _, row in rows])
        outputs = self._outputs([job for job, _ in rows], states)
        if self.assistant:
            self.assistant.controller.target.measured(
                sum(len(row.tokens) for _, row in rows), time.perf_counter() - began
            )
        for (job, _), output in zip(rows, outputs, strict=True):
            num_rounds = len(job.rounds) if isinstance(job, WriteJob) else 0
            try:
                job.take(output)
            except Exception as error:
                self._failed(job, error)
            if self.assistant and isinstance(job, WriteJob):
                for proposed, accepted in job.rounds[num_rounds:]:
                    self.assistant.controller.observe(proposed, accepted)

    def _outputs(self, jobs: Sequence[Job], states: Sequence[torch.Tensor]) -> list[Output]:
        """Hidden states with logits and chosen tokens where jobs read them; one multiplication for all of them."""
        reading = [index for index, job in enumerate(jobs) if job.reads_logits]
        outputs = [Output(hidden, None, ()) for hidden in states]
        if not reading:
            return outputs
        logits = self._model.logits(torch.cat([states[index] for index in reading]))
        start = 0
        drawing: list[tuple[int, int]] = []
        barred: list[int] = []
        constrained: list[tuple[int, torch.Tensor]] = []
        for index in reading:
            stop = start + len(states[index])
            job = jobs[index]
            if isinstance(job, DecodeJob):
                if job.sampling.logprobs:
                    barred += range(start, stop)
                if job.allowed is not None:
                    constrained.append((start, job.allowed))
                if job.is_sampled and stop - start == 1:
                    drawing.append((index, start))
            outputs[index] = Output(states[index], logits[start:stop], range(start, stop))
            start = stop
        if barred or constrained:  # a copy: log-probabilities are those of the whole vocabulary
            logits = logits.clone()
        for place, allowed in constrained:
            logits[place].masked_fill_(~allowed.to(logits.device), -torch.inf)
        if barred:
            logits[torch.tensor(barred)[:, None], self._image_tokens] = -torch.inf
        tokens = greedy(logits)
        if drawing:
            settings = [jobs[index].sampling for index, _ in drawing]  # type: ignore[attr-defined]
            numbers = [jobs[index].number() for index, _ in drawing]  # type: ignore[attr-defined]
            drawn = sampled(logits[[place for _, place in drawing]], settings, numbers)
            for (_, place), token in zip(drawing, drawn, strict=True):
                tokens[place] = token
        return [Output(output.hidden, output.logits, [tokens[place] for place in output.tokens]) for output in outputs]

    def _failed(self, job: Job, error: Exception) -> None:
        """End the job with an error. Its sequence may hold half a forward, so no other job may continue it."""
        if job.sequence is not None:
            self.cache.drop(job.sequence)
            job.sequence = None
        job.error, job.done = error, True

    def _answer(self, ended: Sequence[Job]) -> None:
        for job in ended:
            self._scheduler.remove(job)
            if self.assistant and isinstance(job, WriteJob):
                self.assistant.release(job)
            if job.sequence is not None:
                (self.cache.release if job.keeps_sequence else self.cache.drop)(job.sequence)
            job.end()
            if job.future.done():  # `close` has set it
                continue
            if job.error:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job)

    def check_integrity(self) -> None:
        """Raises AssertionError when an idle engine holds anything it should not; for tests."""
        with self._changed:
            assert not len(self._scheduler), f"{len(self._scheduler)} jobs are left"
            self.cache.check_integrity()
            if self.assistant:
                self.assistant.cache.check_integrity()


def _yield_cores() -> None:
    """Leave the cores to other threads. A low priority is not enough: such a thread is preempted too late."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # 0 is the calling thread
