"""The acceptance rules of drafted steps."""

from __future__ import annotations

from dataclasses import dataclass

from dreamr.config import NEEDS_OWN_STEPS, Method, PipelineSettings, VerdictKind
from dreamr.types import Verdict

_OF_METHOD: dict[Method, VerdictKind] = {"specreason": "digit", "lookahead": "same", "lookahead_batch": "same"}
_THRESHOLDS: dict[VerdictKind, float] = {
    "digit": 7.0,
    "mean_digit": 7.0,
    "same": 0.5,
    "embedding": 0.95,
    "random": 0.5,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """What kind of verdict is asked for, and which verdicts accept."""

    kind: VerdictKind
    threshold: float

    @classmethod
    def of(cls, settings: PipelineSettings) -> Rule:
        """The rule that the settings name, or the method's own."""
        kind = settings.verdict or _OF_METHOD.get(settings.method, "rho")
        if kind == "rho":
            return cls(kind, settings.alpha)
        return cls(kind, _THRESHOLDS[kind] if settings.threshold is None else settings.threshold)

    @property
    def compares(self) -> bool:
        """True when the verdict needs the target's own step at the same place."""
        return self.kind in NEEDS_OWN_STEPS

    def accepts(self, verdict: Verdict) -> bool:
        """rho > alpha (paper, section on TBVM), and so for all others; a digit score >= its threshold (SpecReason)."""
        if not verdict.judged:
            return False
        if self.kind in ("digit", "mean_digit"):
            return verdict.rho >= self.threshold
        return verdict.rho > self.threshold
