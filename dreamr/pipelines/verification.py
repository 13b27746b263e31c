"""The acceptance rule of drafted steps."""

from __future__ import annotations

from dreamr.actors.types import Verdict


def accepts(verdict: Verdict, alpha: float) -> bool:
    """Contrastive probability against a threshold: rho > alpha (paper, section on TBVM)."""
    return verdict.judged and verdict.rho > alpha
