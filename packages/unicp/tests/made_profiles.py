"""A profile of a model that never was, in which every error is known in closed form.

Its noise estimate is a cubic over the log-SNR and its clean estimate is 0, so its output is the noise estimate, and the
parabola through three of them misses the value at place x by CUBE (x - a)(x - b)(x - c) / sqrt(3).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.products import Products
from unicp.planning.profile import Fingerprint, Profile, Seconds, Trial

STEPS = 16
CUBE = 0.02


def flow_levels(steps: int = STEPS, shift: float = 3.0) -> list[NoiseLevel]:
    """Levels of a flow-matching run of Wan's kind, and the one after the last."""
    even = [1 - (step + 0.02) / (steps + 0.02) for step in range(steps)]
    sigmas = [shift * x / (1 + (shift - 1) * x) for x in even] + [0.0]
    return [NoiseLevel(1 - sigma, sigma) for sigma in sigmas]


def noise_at(place: float, cube: float = CUBE) -> tuple[float, float, float]:
    """The noise estimate of the model at a log-SNR, of three positions."""
    return 1.0, 0.1 * place, cube * place**3


def products(levels: list[NoiseLevel], cube: float = CUBE) -> Products:
    """What a plain run of the model records at these levels."""
    rows = np.array([noise_at(level.log_snr, cube) for level in levels])
    matrix = np.zeros((2 * len(levels), 2 * len(levels)))
    matrix[: len(levels), : len(levels)] = rows @ rows.T / 3
    return Products.of(matrix, [level.log_snr for level in levels], digits=17)


def euler_shares(levels: list[NoiseLevel]) -> list[float]:
    """The share of each output in the final sample of an Euler sampler: how far the noise level falls."""
    return [after.noise - before.noise for before, after in zip(levels, levels[1:])]


def made(
    steps: int = STEPS,
    branches: int = 2,
    trials: list[Trial] | None = None,
    seconds: Seconds | None = None,
    **fingerprint: Any,
) -> Profile:
    """A profile of two prompts, whose trials came out 2 dB above and below 20 - 20 log10 of the loss."""
    levels = flow_levels(steps)
    own = {"model": "Made", "config": "0", "dtype": "float32", "prediction": "flow", "scheduler": "MadeScheduler"}
    if trials is None:
        trials = [
            Trial(prompt, 8, loss, 20 - 20 * math.log10(loss) + off)
            for prompt, off in (("a", 2.0), ("b", -2.0))
            for loss in (0.1, 0.01)
        ]
    return Profile(
        Fingerprint(**{**own, "branches": branches, **fingerprint}),
        "cpu",
        [1, 4, 2, 4, 4],
        [level.signal for level in levels],
        [level.noise for level in levels],
        euler_shares(levels),
        products(levels[:-1]),
        trials,
        seconds or Seconds(full=1.0, plain=1.0, skipped=0.05, rest=0.5),
    )
