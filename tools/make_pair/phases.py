"""The recipe of the embedded pair: start, data and length of each phase of the language part's training."""

from __future__ import annotations

from dataclasses import dataclass

from tools.make_pair.architecture import Size
from tools.make_pair.corpus import Recipe


@dataclass(frozen=True, slots=True)
class Stage:
    """One difficulty of the curriculum."""

    steps: tuple[int, int]
    """Fewest and most arithmetic steps of a problem."""
    until: float
    """Running digit accuracy that ends the stage; the last one's ends the phase. Above 1: never."""


FULL = (Stage((3, 6), 2.0),)
LOOK_UPS_FIRST = (Stage((1, 1), 0.9), Stage((2, 4), 0.93), *FULL)
UNTIL_FAIR = (Stage((1, 1), 0.9), Stage((2, 4), 0.9), Stage((3, 6), 0.93))
"""Ends early on purpose: a draft that is clearly weaker than the target can still be improved by training."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One training run; it starts from the model of the phase before it, grown to this size."""

    name: str
    size: Size
    recipe: Recipe
    num_batches: int
    batch_size: int
    lr: float
    stages: tuple[Stage, ...] = FULL
    grow_on_top: bool = False
    from_draft: float = 0.0
    """Share of problems whose judged candidates are steps sampled from the trained draft."""
    chains_only: float = 0.0
    """Share of batches without verdicts: they are short, so they have twice as many problems."""


DRAFT_PHASES = (
    Phase("draft-chains", Size(96, 2), Recipe(0.5, 1.0, verdicts=False), 1000, 64, 3e-3, UNTIL_FAIR),
    Phase("draft-reads", Size(96, 2), Recipe(0.5, 1.0, verdicts=False), 900, 64, 3e-3),
    Phase("draft-habit", Size(96, 2), Recipe(0.5, 1.0, verdicts=False, habit=0.9), 250, 64, 2e-3),
)
_CHAINS = Recipe(0.3, 0.1, verdicts=False)
_VERDICTS = Recipe(0.3, 0.1, verdicts=True)
_ALL = Recipe(0.3, 0.1, verdicts=True, scores=0.3, sameness=0.15)
TARGET_PHASES = (
    Phase("target-chains", Size(192, 4), _CHAINS, 700, 64, 3e-3, LOOK_UPS_FIRST),
    Phase("target-verdicts", Size(192, 8), _VERDICTS, 1100, 32, 2e-3, grow_on_top=True, from_draft=0.5),
    Phase("target-both", Size(192, 8), _VERDICTS, 550, 32, 1.5e-3, from_draft=0.5, chains_only=0.5),
    Phase("target-look-ups", Size(192, 8), _VERDICTS, 600, 32, 2.5e-3, from_draft=0.5, chains_only=0.85),
    Phase("target-deep", Size(192, 16), _VERDICTS, 100, 32, 8e-4, from_draft=0.5, chains_only=0.35),
    Phase("target-all", Size(192, 16), _ALL, 360, 32, 1.5e-3, from_draft=0.5, chains_only=0.6),
    Phase("target-polish", Size(192, 16), _ALL, 120, 24, 6e-4, from_draft=0.5, chains_only=0.9),
    Phase("target-wary", Size(192, 16), _ALL, 170, 24, 9e-4, from_draft=0.5, chains_only=0.35),
)
