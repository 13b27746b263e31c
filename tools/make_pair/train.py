"""Trains the embedded pair from scratch: `python -m tools.make_pair.train`.

    vision tower ─▶ draft ─▶ steps sampled from the draft ─┐
              └──▶ target's chains of thought ─────────────┴─▶ target's verdicts ─▶ deeper target

Every part keeps its state in the work folder; the same command continues where it was stopped. Training that starts
from other trained weights has a separate sub-folder per digest of these weights.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from tools.make_pair.architecture import build_model
from tools.make_pair.candidates import DraftSteps, load_or_sample
from tools.make_pair.checkpoint import export, load
from tools.make_pair.digest import weights_sha256
from tools.make_pair.grow import grow
from tools.make_pair.language import Images
from tools.make_pair.phases import DRAFT_PHASES, TARGET_PHASES, Phase
from tools.make_pair.run import Run
from tools.make_pair.tokenizer import build_tokenizer
from tools.make_pair.vision import ImageBank, features, load_tower, render_bank, train_vision

NUM_IMAGES = 30_000
VISION_BATCHES = 1_500
SEED = 0


def main(
    work: Annotated[Path, typer.Option(help="Folder for unfinished state; give it again to resume.")] = Path(
        ".work/models"
    ),
    out: Annotated[Path, typer.Option(help="Where the checkpoint folders 'target' and 'draft' go.")] = Path(
        ".work/models/out"
    ),
    go_on_from: Annotated[
        Path | None,
        typer.Option(help="Folder with a trained 'target' and its drafts, 'draft*': run the target's last phase only."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 2,
) -> None:
    """Train the embedded target and draft; about two hours on two cores."""
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer()
    bank = render_bank("train", SEED, NUM_IMAGES)
    if go_on_from:
        folders = sorted(go_on_from.glob("draft*"))
        own = _work_from([go_on_from / "target", *folders], work)
        drafts = load_or_sample(folders, bank.cells, own)
        _train(TARGET_PHASES[-1:], load(go_on_from / "target"), tokenizer, bank, drafts, own, out / "target")
        return
    models = {
        role: build_model(phases[0].size, tokenizer)
        for role, phases in (("target", TARGET_PHASES), ("draft", DRAFT_PHASES))
    }
    _read_shapes(models, bank, work)
    _train(DRAFT_PHASES, models["draft"], tokenizer, bank, None, work, out / "draft")
    drafts = load_or_sample([out / "draft"], bank.cells, work)
    _train(TARGET_PHASES, models["target"], tokenizer, bank, drafts, work, out / "target")


def _work_from(checkpoints: list[Path], work: Path) -> Path:
    """Folder for the state of training from these weights; other weights get another folder."""
    names = "\n".join(f"{folder.name} {weights_sha256(folder)}" for folder in checkpoints)
    own = work / f"from-{hashlib.sha256(names.encode()).hexdigest()[:12]}"
    own.mkdir(exist_ok=True)
    return own


def _read_shapes(models: dict[str, Qwen3VLForConditionalGeneration], bank: ImageBank, work: Path) -> None:
    saved = work / "vision.pt"
    if not saved.exists():
        held_out = render_bank("validation", SEED, 300)
        accuracy = train_vision(list(models.values()), bank, held_out, VISION_BATCHES, SEED)
        typer.echo(f"vision: {accuracy:.2%} of held-out shapes read correctly")
        torch.save({role: model.model.visual.state_dict() for role, model in models.items()}, saved)
    for role, tower in torch.load(saved).items():
        load_tower(models[role], tower)


def _train(
    phases: tuple[Phase, ...],
    model: Qwen3VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    bank: ImageBank,
    drafts: DraftSteps | None,
    work: Path,
    out: Path,
) -> None:
    with torch.no_grad():
        images = Images(bank.cells, torch.cat([features(model, part) for part in bank.patches.split(500)]))
    for phase in phases:
        if phase.size.layers > model.config.get_text_config().num_hidden_layers:
            model = grow(model, phase.size.layers, phase.grow_on_top, tokenizer)
        progress = Run(phase, model, tokenizer, images, drafts, work).train()
        typer.echo(f"{phase.name}: digits {progress.digits:.4f}, verdicts {progress.verdicts:.3f}")
        export(model, tokenizer, out)


if __name__ == "__main__":
    typer.run(main)
