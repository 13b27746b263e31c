"""One phase of training: resumable, with progress. The n-th batch depends on the phase, n and the stage alone."""

from __future__ import annotations

import math
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from dreamr.tasks.ledger import problem_on
from tools.make_pair.candidates import DraftSteps
from tools.make_pair.corpus import Corpus
from tools.make_pair.language import Images, Loss, Losses, Optimizers
from tools.make_pair.packing import Batch
from tools.make_pair.phases import Phase
from tools.make_pair.tokenizer import token_id

SAVE_EVERY = 100
_SMOOTHING = 0.95


@dataclass(slots=True)
class Progress:
    """The state of a phase apart from weights and optimizer states."""

    batch: int = 0
    stage: int = 0
    digits: float = 0.0
    verdicts: float = 0.0
    scores: float = 0.0
    sameness: float = 0.0
    next_stage: int = 0
    """Stage of the next batch, which is packed before the current one is trained on."""

    def update(self, losses: Losses, phase: Phase) -> None:
        self.batch += 1
        for name in ("digits", "verdicts", "scores", "sameness"):
            new = getattr(losses, name)
            if not math.isnan(new):  # nan: the batch has none of them
                setattr(self, name, _SMOOTHING * getattr(self, name) + (1 - _SMOOTHING) * new)
        if self.digits > phase.stages[self.stage].until:
            self.stage, self.digits = self.stage + 1, 0.0

    def finished(self, phase: Phase) -> bool:
        return self.batch >= phase.num_batches or self.stage >= len(phase.stages)


class Run:
    """Trains `model` through one phase, keeping its state in `folder`."""

    def __init__(
        self,
        phase: Phase,
        model: Qwen3VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        images: Images,
        drafts: DraftSteps | None,
        folder: Path,
    ) -> None:
        self._phase, self._model, self._images, self._drafts = phase, model, images, drafts
        self._corpus = Corpus(tokenizer, phase.recipe)
        self._chains = Corpus(tokenizer, replace(phase.recipe, verdicts=False))
        digits = [token_id(tokenizer, space + digit) for digit in "0123456789" for space in ("", " ")]
        self._loss = Loss(model, digits)
        self._optimizers = Optimizers(model, self._loss, phase.lr)
        self._progress = Progress()
        self._state = folder / f"{phase.name}.state.pt"
        if self._state.exists():
            self._load()

    def train(self) -> Progress:
        phase, progress = self._phase, self._progress
        bar = tqdm(total=phase.num_batches, initial=progress.batch, desc=phase.name, mininterval=10)
        with ThreadPoolExecutor(1, thread_name_prefix="packing") as packing:
            following = packing.submit(self._batch, progress.batch, progress.next_stage)
            while not progress.finished(phase):
                # The next batch is packed while this one is trained on.
                batch, progress.next_stage = following.result(), progress.stage
                following = packing.submit(self._batch, progress.batch + 1, progress.next_stage)
                loss = self._learn(batch)
                bar.update()
                bar.set_postfix(
                    stage=progress.stage,
                    loss=f"{loss:.3f}",
                    digits=f"{progress.digits:.4f}",
                    verdicts=f"{progress.verdicts:.3f}",
                    scores=f"{progress.scores:.3f}",
                    sameness=f"{progress.sameness:.3f}",
                )
                if progress.batch % SAVE_EVERY == 0:
                    self._save()
        bar.close()
        self._save()
        return progress

    def _learn(self, batch: Batch) -> float:
        losses = self._loss(self._model, batch, self._images)
        losses.total.backward()
        self._optimizers.step(self._lr_factor())
        self._progress.update(losses, self._phase)
        return losses.total.item()

    def _batch(self, number: int, stage: int) -> Batch:
        """Make a batch. Runs in a thread, so it reads no state that training changes."""
        phase = self._phase
        rng = random.Random(f"{phase.name}/{number}")
        num_steps = rng.randint(*phase.stages[min(stage, len(phase.stages) - 1)].steps)
        if rng.random() < phase.chains_only:
            return self._fresh(self._chains, num_steps, 2 * phase.batch_size, rng)
        if rng.random() < phase.from_draft:
            if self._drafts is None:
                raise ValueError(f"{phase.name} needs steps sampled from the draft, and there are none")
            return self._corpus.batch(*self._drafts.sample(num_steps, phase.batch_size, rng), rng)
        return self._fresh(self._corpus, num_steps, phase.batch_size, rng)

    def _fresh(self, corpus: Corpus, num_steps: int, size: int, rng: random.Random) -> Batch:
        """New questions about images of the bank."""
        rows = [rng.randrange(len(self._images.cells)) for _ in range(size)]
        problems = [problem_on(self._images.cells[row], rng, num_steps) for row in rows]
        return corpus.batch(problems, rows, None, rng)

    def _lr_factor(self) -> float:
        """Short warm-up, constant, then linear to 5 % over the last 40 %."""
        done, total = self._progress.batch, self._phase.num_batches
        return min(1.0, (done + 1) / 50, max(0.05, (total - done) / (0.4 * total)))

    def _save(self) -> None:
        state = {
            "model": self._model.state_dict(),
            "loss": self._loss.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers.all],
            "progress": self._progress,
        }
        part = self._state.with_suffix(".part")
        torch.save(state, part)
        part.replace(self._state)

    def _load(self) -> None:
        state = torch.load(self._state, weights_only=False)  # our own file: it holds a Progress
        self._model.load_state_dict(state["model"])
        self._loss.load_state_dict(state["loss"])
        for optimizer, saved in zip(self._optimizers.all, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._progress = state["progress"]
