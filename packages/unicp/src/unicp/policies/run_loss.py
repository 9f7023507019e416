"""What a run loses by skipping steps: the one measure by which plans choose which steps are full. No tensors.

A skipped step ends with an output interpolated between the full steps around it, where the sampler replays it, and with
one forecast from the two full steps before, where it does not. What that output misses enters the final sample times
the share that the sampler gives it. The loss of a run is the sum of shares times errors over all skipped steps: the
errors of one window have one sign, as a parabola misses a curve on one side, and those of windows are added as if they
had, which predicted the fidelity of random schedules best (docs/method.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from unicp.files import Finite, NotNegative
from unicp.numerics.polynomials import lagrange_weights
from unicp.policies.step_paths import StepPath, best_paths

# An early error also steers what the model says after it: shares count more by (1 - noise level) to this power. On two
# of the test-beds 0.25 is best, on two 0.75; 0.5 is near the best on all (`make schedules`).
EARLY = 0.5
LEAST_SIGNAL = 1e-3
# Most steps that the first window may skip, which has one full step before it.
FIRST_WINDOW = 2
# Windows may skip so many steps, and reach so many times the distance between the two full steps before them; the far
# reach is for plans that no near one has as few full steps as.
MAX_WINDOW, NEAR, FAR = 8, 1.0, 3.0


@dataclass(frozen=True)
class RunLoss:
    """The loss of any choice of full steps in one run.

    Attributes:
        places: Log-SNR of each step.
        table: Lower triangle of mean products of the outputs of the steps.
        shares: Of each output in the final sample, 0 for steps that are over, see `unicp.sampler.response`.
        sigmas: Normalised noise level of each step.
        is_replayed: Whether the sampler replays skipped steps.
    """

    places: list[Finite]
    table: list[list[Finite]]
    shares: list[Finite]
    sigmas: list[NotNegative]
    is_replayed: bool = True

    @property
    def steps(self) -> int:
        """Length of the run."""
        return len(self.places)

    @cached_property
    def _weights(self) -> list[float]:
        return [abs(share) * max(LEAST_SIGNAL, 1.0 - sigma) ** -EARLY for share, sigma in zip(self.shares, self.sigmas)]

    @cached_property
    def _windows(self) -> dict[tuple[int, int, int], float]:
        return {}

    def error(self, points: Sequence[int], step: int) -> float:
        """rms(polynomial over log-SNR through the outputs at `points` - output of `step`), announced."""
        places = [self.places[point] for point in points]
        if len(set(places)) < len(places):
            return math.inf
        parts = [(step, -1.0), *zip(points, lagrange_weights(places, self.places[step]))]
        # Plain floats: a form of four parts is too small for arrays. Each pair twice, for both its orders.
        square = 0.0
        for place, (i, p) in enumerate(parts):
            square += p * p * self.table[i][i]
            for j, q in parts[:place]:
                square += 2.0 * p * q * (self.table[i][j] if i > j else self.table[j][i])
        # Rounding can leave a tiny negative number where nothing is missed.
        return math.sqrt(max(0.0, square))

    def relative(self, before: int, last: int, step: int) -> float:
        """Announced error of the line from two full steps at `step`, over the rms of the output there."""
        power = self.table[step][step]
        return self.error((before, last), step) / math.sqrt(power) if power > 0 else math.inf

    def window(self, before: int, last: int, following: int) -> float:
        """The loss by skipping the steps between two full ones.

        Args:
            before: The full step before `last`; -1 = there is none.
            last: The full step before the window.
            following: The full step after it; the number of steps where there is none.
        """
        key = before, last, following
        if key not in self._windows:
            points = [point for point in key[:2] if point >= 0]
            if self.is_replayed and following < self.steps:
                points.append(following)
            skipped = range(last + 1, following)
            self._windows[key] = math.fsum(self._weights[step] * self.error(points, step) for step in skipped)
        return self._windows[key]

    def loss(self, full: Sequence[int]) -> float:
        """The loss of a run with these full steps, rising."""
        ends = [-1, *full, self.steps]
        return math.fsum(self.window(*three) for three in zip(ends, ends[1:], ends[2:]))

    def best(self, known: Sequence[int]) -> dict[int, StepPath]:
        """The full steps of least loss for each possible number of them, by that number.

        Args:
            known: The full steps so far, rising, at least one; all others before the last of them are skipped.

        Returns:
            Paths that begin with `known`, and the loss of what follows them.
        """
        if len(known) > 1:
            return self._after(known)
        found: dict[int, StepPath] = {self.steps: StepPath(tuple(range(known[0], self.steps)), 0.0)}
        for second in range(known[0] + 1, min(known[0] + FIRST_WINDOW + 2, self.steps)):
            first = self.window(-1, known[0], second)
            for path in self._after([known[0], second]).values():
                count, loss = len(path.computed), first + path.loss
                if count not in found or loss < found[count].loss:
                    found[count] = StepPath(path.computed, loss)
        return found

    def _after(self, known: Sequence[int]) -> dict[int, StepPath]:
        near, far = (
            best_paths(self.steps, self.window, known, max_window=MAX_WINDOW, max_reach=reach) for reach in (NEAR, FAR)
        )
        return far | near
