"""How much error a step may have: an error early in a run grows along the trajectory, a late one hardly matters."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from unicp.context import StepContext
from unicp.settings import Weighting

# Relative impact on the final latent of the same relative error in the model's output, by normalised noise level; mean
# over the probed steps 1. Rounded from injection runs of three prompts with UniPC and with Euler (`make impact`).
# Early errors steer the run; those of the middle are corrected by the steps after them; those of the last steps stay,
# and do the more the wider the step is: these are impacts of steps as wide as `usual_width` says.
IMPACT: tuple[tuple[float, float], ...] = (
    (0.00, 0.9),
    (0.10, 0.95),
    (0.18, 0.9),
    (0.27, 0.55),
    (0.45, 0.35),
    (0.58, 0.38),
    (0.69, 0.45),
    (0.77, 0.53),
    (0.835, 0.7),
    (0.89, 0.87),
    (0.936, 1.35),
    (0.963, 2.1),
    (0.976, 3.25),
    (1.00, 4.0),
)
# The constants below were chosen on tuning prompts of two test-beds; `python -m experiments.constants` shows each
# beside a smaller and a larger value.
# The impact counts to this power where steps are skipped. 1 would do if errors were small and clips moved in
# proportion; an early error also spoils the forecasts after it, most of all on hard prompts.
SKIP_POWER = 1.5
# No step counts as narrower: where the noise level hardly falls at all, anything would be allowed.
NARROWEST = 0.02
# Noise level from which on the width of a step counts. Before it later steps decide what becomes of an error.
LATE = 0.3
# Replay corrects skipped steps less well the more of them there are in a row, and at the end of a run no full step
# follows. Up to a tolerance of LITTLE, errors from the second step of a window on count so many times, those of the
# last steps as well; from MUCH on they count once.
LATER_WEIGHT = 2.0
LITTLE, MUCH = 0.1, 0.4
# How many steps at the end of a run are followed by too few full ones to undo anything.
LAST_STEPS = 2


def later_weight(tolerance: float) -> float:
    """How many times errors count that replay corrects less well (ours); straight in log(tolerance) between."""
    if tolerance <= LITTLE:
        return LATER_WEIGHT
    return between([(math.log(LITTLE), LATER_WEIGHT), (math.log(MUCH), 1.0)], math.log(tolerance))


def impact(sigma: float, curve: Sequence[tuple[float, float]] = IMPACT) -> float:
    """Impact at a normalised noise level in [0, 1], linear between the points of the curve, flat outside."""
    return between(curve, sigma)


def between(curve: Sequence[tuple[float, float]], at: float) -> float:
    """The value at `at`, straight between the points (x, y) of a curve, x rising, and flat outside."""
    right = bisect_right([x for x, _ in curve], at)
    if right == 0:
        return curve[0][1]
    if right == len(curve):
        return curve[-1][1]
    (x0, y0), (x1, y1) = curve[right - 1], curve[right]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


def usual_width(sigma: float) -> float:
    """Width (as that of a `StepContext`) of a step at this noise level in the runs that the impact was measured in.

    Those are of flow matching with a shift of 3: with u falling evenly from 1 to 0 the noise level is
    3 u / (1 + 2 u), so that it falls by (3 - 2 sigma)^2 / 3 per unit of u, and the angle between clean and noise by
    2 / pi / (sigma^2 + (1 - sigma)^2) times that.
    """
    return 2.0 / math.pi * (3.0 - 2.0 * sigma) ** 2 / 3.0 / (sigma**2 + (1.0 - sigma) ** 2)


def step_tolerance(tolerance: float, weighting: Weighting, step: StepContext, power: float = 1.0) -> float:
    """Largest relative error allowed at this step (units of `Settings.tolerance`).

    "uniform": the tolerance itself. "impact": divided by the impact of the step's noise level, to the given power (our
    reading; the paper has one threshold for all steps), late in a run of a step as wide as this one. With an unknown
    noise level the timestep stands in for it, with an unknown width the usual one.
    """
    if weighting == "uniform":
        return tolerance
    sigma = 1.0 - step.progress
    weight = impact(sigma)
    if step.width is not None and sigma <= LATE:
        weight *= max(step.width, NARROWEST) / usual_width(sigma)
    return tolerance / weight**power
