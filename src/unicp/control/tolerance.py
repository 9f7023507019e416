"""How much error a step may have: an error early in a run grows along the trajectory, a late one hardly matters."""

from __future__ import annotations

from bisect import bisect_right

from unicp.records import Moment
from unicp.settings import Weighting

# Relative impact on the final latent of the same relative error in the model's output, by normalised noise level; mean
# over the probed steps 1. Rounded from an injection run of one prompt on earlier weights of the test-bed;
# `make impact` renews it.
# Early errors steer the run; those of the middle are mended by the steps after them; those of the last steps stay.
IMPACT: tuple[tuple[float, float], ...] = (
    (0.00, 0.7),
    (0.10, 0.7),
    (0.18, 0.6),
    (0.32, 0.2),
    (0.48, 0.35),
    (0.60, 0.3),
    (0.70, 0.3),
    (0.78, 0.4),
    (0.84, 0.6),
    (0.89, 1.3),
    (0.94, 1.5),
    (0.96, 2.0),
    (0.98, 3.6),
    (1.00, 4.0),
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
