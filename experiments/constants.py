"""What each constant of the online rule does: the same runs with a smaller, the chosen, and a larger value.

    python -m experiments.constants --out docs/results/constants.json

The online rule, which decides where a run is not planned, over a sweep of tolerances. Prompts are of the tuning
split. Fidelity is of the final latent against the plain run of the same seed, in dB (-20 log10 of the relative error).
Compute is the share of full calls of the model. A frontier is interpolated at fixed compute, so a constant that only
moves along it shows no difference.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import unicp
from experiments.command import harness_of, measuring_parser
from unicp.errors import run_main
from unicp.files import write_text
from unicp.numerics.error_measures import relative_error
from unicp_bench.harness import Harness
from unicp_testbeds.prompts import prompts_of

TOLERANCES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.9, 1.5, 3.0)
# Shares of full calls at which frontiers are compared: 1.67x, 2x and 2.5x less compute.
AT = (0.6, 0.5, 0.4)


@dataclass(frozen=True)
class Constant:
    """A constant: the module that looks it up, and the values to compare, the chosen one in the middle."""

    module: str
    name: str
    values: tuple[Any, Any, Any]


CONSTANTS = (
    Constant("unicp.policies.error_window", "SMOOTHING", (0.25, 0.5, 1.0)),
    Constant("unicp.policies.error_window", "SKIP_POWER", (1.0, 1.5, 2.0)),
    Constant("unicp.policies.error_window", "LAST_STEPS", (0, 2, 4)),
    Constant("unicp.policies.impact", "LATER_WEIGHT", (1.0, 2.0, 3.0)),
    Constant("unicp.policies.impact", "LITTLE", (0.05, 0.1, 0.2)),
    Constant("unicp.policies.impact", "MUCH", (0.2, 0.4, 0.8)),
    Constant("unicp.policies.impact", "LATE", (0.15, 0.3, 1.0)),
    Constant("unicp.policies.impact", "NARROWEST", (0.005, 0.02, 0.08)),
    Constant("unicp.predictors.linear", "SKIP_FLOOR", (0.02, 0.045, 0.1)),
)


@contextmanager
def set_to(constant: Constant, value: Any) -> Iterator[None]:
    """Sets the constant to a value inside the block."""
    module = importlib.import_module(constant.module)
    before = getattr(module, constant.name)
    setattr(module, constant.name, value)
    try:
        yield
    finally:
        setattr(module, constant.name, before)


def run(harness: Harness, prompt: str, seed: int, plain: Tensor, **options: Any) -> tuple[float, float]:
    """Share of the calls that were full, and dB of the final latent."""
    with unicp.enable(harness.pipe, **options) as session:
        latent = harness.latent(prompt, seed)
    actions = [entry.action for entry in session.trace.entries if entry.point == "model"]
    error = float(relative_error(latent, plain).max())
    return actions.count("full") / len(actions), min(100.0, -20 * math.log10(error)) if error > 0 else 100.0


def frontier(points: list[tuple[float, float]], at: float) -> float | None:
    """dB at this share of full calls, linear between the points; `None` outside of them.

    A point counts with the best that a point with fewer full calls has: nobody would choose it otherwise.
    """
    points = sorted(points)
    points = list(zip((full for full, _ in points), itertools.accumulate((level for _, level in points), max)))
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if x0 <= at <= x1:
            return y1 if x0 == x1 else y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return None


def of_rule(harness: Harness, prompts: list[str], plains: list[Tensor]) -> dict[str, Any]:
    """Mean and worst dB at each of `AT`, over the prompts."""
    curves = []
    for seed, (prompt, plain) in enumerate(zip(prompts, plains)):
        settings = [unicp.preset("balanced", policy="error_window", tolerance=tolerance) for tolerance in TOLERANCES]
        curves.append([run(harness, prompt, seed, plain, settings=one) for one in settings])
    found: dict[str, Any] = {}
    for at in AT:
        known = [level for level in (frontier(curve, at) for curve in curves) if level is not None]
        if len(known) == len(curves):
            found[f"{1 / at:.2f}x"] = {"mean": round(statistics.fmean(known), 2), "worst": round(min(known), 2)}
    return found


def main() -> None:
    """The command line; see the module's docstring."""
    parser = measuring_parser(__doc__, 4, "constants.json")
    parser.set_defaults(frames=9)
    options = parser.parse_args()
    harness = harness_of(options)
    prompts = list(prompts_of("tuning", options.model)[: options.prompts])
    plains = [harness.latent(prompt, seed) for seed, prompt in enumerate(prompts)]
    rows = []
    chosen: dict[str, Any] | None = None
    for constant in CONSTANTS:
        for place, value in enumerate(constant.values):
            if place == 1 and chosen is not None:
                result = chosen
            else:
                with set_to(constant, value):
                    result = of_rule(harness, prompts, plains)
            if place == 1:
                chosen = result
            row = {"constant": f"{constant.module}.{constant.name}", "value": value, "chosen": place == 1}
            rows.append(row | {"result": result})
            print(row, result, flush=True)
    record = {
        "model": str(options.model),
        "sampler": options.sampler,
        "steps": harness.steps,
        "frames": options.frames,
        "split": "tuning",
        "prompts": prompts,
        "device": "cpu",
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
