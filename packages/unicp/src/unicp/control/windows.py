"""EDCW: the error-aware dynamic cache window of one span or unit in one branch (DESIGN 3.1).

The error of serving a stored output is measured whenever the true output is computed anyway, and predicted in
between. The paper's rule (eq. 1, known second-hand) compares attention outputs of two steps with one threshold; how
the error is predicted where nothing was computed is our reading:

* growth: the error of reusing an output grows with the distance h to it, that of a first-order forecast from
  points a gap g apart with h * (h + g) (the remainder of linear extrapolation); the factor is learnt at
  each measurement;
* drift: the change of the span's own input since the last computation, seen at once at every step. Where it exceeds
  what its last measured rate announced, the prediction is raised in the same proportion, so a spike closes the window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unicp.settings import Abscissa, Quantity

Position = Mapping[Abscissa, float]
SMOOTHING = 0.5  # weight of the newest measurement in the learnt factor


@dataclass(frozen=True, order=True)
class Candidate:
    """One way to serve: which quantity is forecast, over which variable."""

    quantity: Quantity = "output"
    abscissa: Abscissa = "step"

    def __str__(self) -> str:
        return f"{self.quantity} over {self.abscissa}"


@dataclass
class ErrorWindow:
    """Learns from measurements, predicts errors per sample. Holds floats only.

    candidates: ways to serve. order: 0 reuse, 1 forecast from two points. errors: predicted for the steps served since
    the last computation (worst sample).
    """

    candidates: tuple[Candidate, ...]
    order: int
    points: list[Position] = field(default_factory=list)
    factors: dict[Candidate, list[float]] = field(default_factory=dict)
    drift_rate: list[float] | None = None
    errors: list[float] = field(default_factory=list)

    @property
    def served(self) -> int:
        """How many steps in a row stored outputs have served."""
        return len(self.errors)

    def total(self, error: float, later: float = 1.0) -> float:
        """Predicted errors of the open window with one more step of this error; from its second step on they count
        `later` times."""
        first, *rest = *self.errors, error
        return first + later * math.fsum(rest)

    @property
    def ready(self) -> bool:
        """True once enough outputs are stored and an error has been measured."""
        return len(self.points) >= self.order + 1 and bool(self.factors)

    def growth(self, position: Position) -> float:
        """How far serving at `position` reaches, in steps: h, or h * (h + g) for a forecast. Never negative.

        Steps measure it for every abscissa: the first log-SNR is nearly infinite, and would make any reach look short.
        """
        reach = abs(position["step"] - self.points[-1]["step"])
        if self.order == 0 or len(self.points) < 2:
            return reach
        gap = abs(self.points[-1]["step"] - self.points[-2]["step"])
        return reach * (reach + gap)

    def reach(self, position: Position) -> float:
        """How far `position` lies beyond the newest point, in gaps between the last two (of steps); 0 for reuse."""
        if self.order == 0 or len(self.points) < 2:
            return 0.0
        gap = abs(self.points[-1]["step"] - self.points[-2]["step"])
        return abs(position["step"] - self.points[-1]["step"]) / gap if gap else math.inf

    def predict(self, position: Position, drift: Sequence[float] | None = None) -> tuple[Candidate, list[float]]:
        """The candidate with the smallest predicted error (worst sample), and that error for each sample.

        drift: relative change of the span's input since the last computation, per sample; None = not known.
        """
        if not self.factors:
            raise RuntimeError("predict() before any measurement")
        best: tuple[Candidate, list[float]] | None = None
        growth = self.growth(position)
        for candidate, factors in self.factors.items():
            errors = [factor * growth for factor in factors]
            if best is None or _worst(errors) < _worst(best[1]):
                best = candidate, errors
        assert best is not None
        if drift is None:
            return best
        # Not error * inf: that is not a number where the learnt error is 0.
        return best[0], [
            error * spike if math.isfinite(spike) else math.inf
            for error, spike in zip(best[1], self._spikes(position, drift))
        ]

    def _spikes(self, position: Position, drift: Sequence[float]) -> list[float]:
        if self.drift_rate is None or len(self.drift_rate) != len(drift):
            return [1.0] * len(drift)
        distance = abs(position["step"] - self.points[-1]["step"])
        return [_spike(seen, rate * distance) for seen, rate in zip(drift, self.drift_rate)]

    def observe(
        self,
        position: Position,
        errors: Mapping[Candidate, Sequence[float]] | None,
        drift: Sequence[float] | None = None,
    ) -> None:
        """Takes in a computation at `position`: the error each candidate would have had, and the input's drift.

        errors is None where nothing could have been served yet. Closes the window.
        """
        if errors:
            growth = self.growth(position)
            for candidate, values in errors.items():
                self._learn(candidate, growth, values)
        if drift is not None and self.points:
            distance = abs(position["step"] - self.points[-1]["step"])
            if distance > 0:
                self.drift_rate = [value / distance for value in drift]
        self.points = [*self.points, position][-(self.order + 1) :]
        self.errors = []

    def _learn(self, candidate: Candidate, growth: float, values: Sequence[float]) -> None:
        if not all(math.isfinite(value) for value in values) or growth <= 0:
            self.factors.pop(candidate, None)
            return
        new = [value / growth for value in values]
        if not all(math.isfinite(factor) for factor in new):
            self.factors.pop(candidate, None)
            return
        old = self.factors.get(candidate)
        if old is not None and len(old) == len(new):
            # Follow a rise at once, forget it slowly: a spike must not be averaged away.
            new = [max(n, SMOOTHING * n + (1 - SMOOTHING) * o) for n, o in zip(new, old)]
        self.factors[candidate] = new

    def serve(self, error: float) -> None:
        """Notes that stored outputs served one more step, at this predicted error (worst sample)."""
        self.errors.append(error)


def _spike(seen: float, announced: float) -> float:
    """How many times more drift was seen than announced, at least 1; what is not finite is an infinite spike."""
    if not math.isfinite(seen):
        return math.inf
    if announced > 0:
        return max(1.0, seen / announced)
    return math.inf if seen > 0 else 1.0


def _worst(errors: Sequence[float]) -> float:
    return max(errors, default=0.0)
