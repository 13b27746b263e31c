"""Running means that forget: of a number, and of seconds as a line over a size."""

from __future__ import annotations

from dataclasses import dataclass, field

FORGETTING = 0.95
"""Weight of older values at each new one."""


@dataclass(slots=True)
class Mean:
    """An exponentially weighted mean. One that begins with a weight has a prior."""

    value: float = 0.0
    weight: float = 0.0
    forgetting: float = FORGETTING

    def add(self, value: float) -> None:
        self.weight = self.weight * self.forgetting + 1
        self.value += (value - self.value) / self.weight


@dataclass(slots=True)
class LinearMean:
    """Seconds as a line over a size, by weighted least squares."""

    size: Mean = field(default_factory=Mean)
    seconds: Mean = field(default_factory=Mean)
    square: Mean = field(default_factory=Mean)
    product: Mean = field(default_factory=Mean)

    def add(self, size: float, seconds: float) -> None:
        self.size.add(size)
        self.seconds.add(seconds)
        self.square.add(size * size)
        self.product.add(size * seconds)

    def at(self, size: float) -> float:
        spread = self.square.value - self.size.value**2
        slope = (self.product.value - self.size.value * self.seconds.value) / spread if spread > 1e-9 else 0.0
        low = self.seconds.value / 2  # a forward over fewer steps costs most of one over many
        return max(low, self.seconds.value + max(0.0, slope) * (size - self.size.value))
