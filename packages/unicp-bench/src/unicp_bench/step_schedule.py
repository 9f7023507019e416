"""A baseline: an offline, globally weighted step schedule, after LeMiCa and GCache. Published idea, our code.

The full steps are fixed before the run and the same for every prompt. One recorded plain run of a calibration prompt
gives the error of skipping any step, filled from any earlier ones. A few perturbed runs give what an error at each step
does to the final latent. A shortest path over steps then finds the schedule of a given length with the least weighted
error. (LeMiCa, arXiv 2511.00090, minimises the worst cache segment by the error of the final output; GCache bounds the
sum. Here the sum is minimised.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy
from torch import Tensor

from unicp.numerics.error_measures import relative_error, strided_sample
from unicp.numerics.forecasting import extrapolate
from unicp.policies.step_paths import best_paths
from unicp.settings import preset
from unicp_bench.injection import injected
from unicp_bench.methods import Bench, Method, unicp_method

FAMILY = "global schedule"
PROBES = 8
POSITIONS = 4096
Errors = Callable[[Sequence[int], int], float]  # (full steps so far, oldest first; skipped step) -> error


def best_schedule(steps: int, computed: int, order: int, weights: Sequence[float], error: Errors) -> tuple[int, ...]:
    """The schedule of `computed` full steps with the smallest sum of weight * error over the skipped ones.

    It is a shortest path over pairs of full steps. The first order + 2 steps are full, for a forecast and one
    measurement.

    Args:
        steps: Of the run.
        computed: Full steps.
        order: Of the forecast, 0 or 1.
        weights: Of each step.
        error: Of a skipped step, from the last order + 1 full ones.
    """
    begin = tuple(range(order + 2))
    if not len(begin) <= computed <= steps:
        raise ValueError(f"{computed} of {steps} steps cannot be computed with a forecast of order {order}")

    def change(before: int, last: int, following: int) -> float:
        points = (before, last)[-(order + 1) :]
        return math.fsum(weights[step] * error(points, step) for step in range(last + 1, following))

    # As published: nothing limits the reach of a forecast.
    return best_paths(steps, change, begin, max_window=steps, max_reach=math.inf)[computed].computed


def schedule_methods() -> list[Method]:
    """Reuse (as published) and forecast, each at five lengths."""
    return [
        Method(FAMILY, f"{kind} {round(100 * share)} %", _attach(order, share), prepare=_calibrate)
        for order, kind in ((0, "reuse"), (1, "forecast"))
        for share in (0.57, 0.5, 0.4, 1 / 3, 0.27)
    ]


def _attach(order: int, share: float) -> Callable[[Bench], Any]:
    @contextmanager
    def attach(bench: Bench) -> Iterator[None]:
        computed = max(order + 2, round(share * bench.steps))
        key = f"{FAMILY} {order} {computed}"
        if key not in bench.notes:
            weights, error = bench.notes[f"{FAMILY} weights"], _errors(bench, order)
            bench.notes[key] = best_schedule(bench.steps, computed, order, weights, error)
        settings = preset(
            "balanced",
            full_steps=bench.notes[key],
            predictor="line" if order else "reuse",
            damping=False,
            quantity="output",
            axis="sigma",
            max_window=bench.steps,
            text_keys_values=False,
        )
        with unicp_method("", settings).attach(bench):
            yield

    return attach


def _errors(bench: Bench, order: int) -> Errors:
    table = bench.notes[f"{FAMILY} errors {order}"]

    def error(tail: Sequence[int], skipped: int) -> float:
        return table[",".join(map(str, (*tail[-(order + 1) :], skipped)))]

    return error


def _calibrate(bench: Bench) -> None:
    """One recorded run and `PROBES` perturbed ones on the first calibration prompt, once per model and sampler."""
    if f"{FAMILY} weights" in bench.notes:
        return
    prompt = bench.calibration[0]
    with injected(bench.pipe, None, bench.steps) as recorded:
        final = bench.latent(prompt, 0)
    samples = [[strided_sample(output, POSITIONS) for output in step] for step in recorded.history]
    for order in (0, 1):
        table = _error_table(samples, recorded.sigmas, order)
        bench.notes[f"{FAMILY} errors {order}"] = {",".join(map(str, key)): value for key, value in table.items()}
    bench.notes[f"{FAMILY} weights"] = _weights(bench, prompt, final)


def _error_table(
    samples: Sequence[Sequence[Tensor]], sigmas: Sequence[float], order: int
) -> dict[tuple[int, ...], float]:
    """Relative error of skipping step k, by the order + 1 earlier steps that fill it; mean over branches."""
    steps, table = len(samples), {}
    for tail in itertools.combinations(range(steps), order + 1):
        for skipped in range(tail[-1] + 1, steps):
            errors = []
            for branch, true in enumerate(samples[skipped]):
                points = [(sigmas[i], samples[i][branch]) for i in tail]
                errors.append(float(relative_error(extrapolate(points, sigmas[skipped]), true).mean()))
            table[(*tail, skipped)] = sum(errors) / len(errors)
    return table


def _weights(bench: Bench, prompt: str, final: Tensor) -> list[float]:
    """Displacement of the final latent per error of the outputs at each step, linear between the probed ones."""
    last = bench.steps - 1
    probed = sorted({2 + round(i * (last - 2) / (PROBES - 1)) for i in range(PROBES)})
    values = []
    for step in probed:
        with injected(bench.pipe, step, bench.steps) as injection:
            moved = bench.latent(prompt, 0)
        made = sum(injection.errors) / len(injection.errors)
        values.append(float(relative_error(moved, final).mean()) / made if made else 0.0)
    return numpy.interp(range(bench.steps), probed, values).tolist()
