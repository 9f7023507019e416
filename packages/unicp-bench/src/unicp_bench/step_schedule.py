"""A baseline: an offline, globally weighted step schedule in the spirit of LeMiCa and GCache. Published idea, our code.

Which steps are computed is fixed before the run and the same for every prompt. One recorded plain run of a calibration
prompt gives the error of serving any step from any earlier ones; a few perturbed runs give what an error at each step
does to the final latent; a shortest path over steps finds the schedule of a given length with the least weighted error.
(LeMiCa, arXiv 2511.00090, weighs cache segments by the error of the final output and looks for the path whose worst
segment is smallest; GCache bounds the sum. Here the sum is taken.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from unicp.numerics.error_measures import relative_error, strided_sample
from unicp.numerics.forecasting import extrapolate
from unicp.policies.step_paths import best_paths, one_by_one
from unicp.settings import preset
from unicp_bench.injection import injected
from unicp_bench.methods import Bench, Method, unicp_method

FAMILY = "global schedule"
PROBES = 8
POSITIONS = 4096
Errors = Callable[[Sequence[int], int], float]  # (computed steps so far, oldest first; served step) -> error


def best_schedule(steps: int, computed: int, order: int, weights: Sequence[float], error: Errors) -> tuple[int, ...]:
    """The schedule of `computed` out of `steps` steps with the smallest sum of weight * error over the served ones.

    The first order + 2 steps are computed: a forecast needs them, and one measurement. error is asked with
    the last order + 1 computed steps. Exact: a shortest path over pairs of computed steps.
    """
    begin = tuple(range(order + 2))
    if not len(begin) <= computed <= steps:
        raise ValueError(f"{computed} of {steps} steps cannot be computed with a forecast of order {order}")

    def change(before: int, last: int, served: int) -> float:
        return weights[served] * error((before, last)[-(order + 1) :], served)

    # As published: nothing limits how far a step is served from.
    return best_paths(steps, one_by_one(change), begin, max_window=steps, max_reach=math.inf)[computed].computed


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

    def error(tail: Sequence[int], served: int) -> float:
        return table[",".join(map(str, (*tail[-(order + 1) :], served)))]

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
    """Relative error of serving step k from each order + 1 earlier ones, mean over branches."""
    steps, table = len(samples), {}
    for tail in itertools.combinations(range(steps), order + 1):
        for served in range(tail[-1] + 1, steps):
            found = []
            for branch in range(len(samples[served])):
                points = [(sigmas[i], samples[i][branch]) for i in tail]
                found.append(float(relative_error(extrapolate(points, sigmas[served]), samples[served][branch]).mean()))
            table[(*tail, served)] = sum(found) / len(found)
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
    return [_between(probed, values, step) for step in range(bench.steps)]


def _between(xs: Sequence[int], ys: Sequence[float], x: int) -> float:
    if x <= xs[0]:
        return ys[0]
    for (x0, y0), (x1, y1) in itertools.pairwise(zip(xs, ys)):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return ys[-1] if math.isfinite(ys[-1]) else 0.0
