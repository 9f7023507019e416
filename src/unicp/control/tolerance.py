"""How much error a step may have: an error early in a run grows along the trajectory, a late one hardly matters."""

from __future__ import annotations

from bisect import bisect_right

from unicp.records import Moment
from unicp.settings import Weighting

# Relative impact on the final latent of the same relative error in the model's output, by normalised noise level.
# Measured by injection on the shipped test-bed (`make impact`, docs/results/impact.json), mean over noise levels 1.
IMPACT: tuple[tuple[float, float], ...] = (
    (0.00, 0.30),
    (0.10, 0.25),
    (0.30, 0.25),
    (0.50, 0.40),
    (0.70, 0.70),
    (0.85, 1.30),
    (0.95, 2.40),
    (1.00, 3.00),
)


def impact(sigma: float, curve: tuple[tuple[float, float], ...] = IMPACT) -> float:
    """Impact at a normalised noise level in [0, 1], linear between the points of the curve, flat outside."""
    levels = [level for level, _ in curve]
    right = bisect_right(levels, sigma)
    if right == 0:
        return curve[0][1]
    if right == len(curve):
        return curve[-1][1]
    (x0, y0), (x1, y1) = curve[right - 1], curve[right]
    return y0 + (y1 - y0) * (sigma - x0) / (x1 - x0)


def step_tolerance(tolerance: float, weighting: Weighting, moment: Moment) -> float:
    """Largest relative error allowed at this step (units of `Settings.tolerance`).

    "uniform": the tolerance itself. "impact": divided by the impact of the step's noise level (our reading; the
    paper has one threshold for all steps). With an unknown noise level the timestep stands in for it.
    """
    if weighting == "uniform":
        return tolerance
    return tolerance / impact(1.0 - moment.progress)
