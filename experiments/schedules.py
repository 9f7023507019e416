"""Which steps of a run should be full, and how well the predicted loss tells what comes out.

    python -m experiments.schedules --out docs/results/schedules.json      # half an hour on one core

All clips of a cell follow one schedule, and nothing is adaptive. "Least loss" is what UniCP plans
(`unicp.policies.run_loss`), from products of all other test-beds or of the model's own plain runs on other prompts,
with several weights of early errors. "Widening" places full steps at (steps - 2) * u ** power, u evenly spread.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import unicp
from unicp.calibration.plain_run import SamplerRecorder
from unicp.errors import InputError, run_main
from unicp.files import write_text
from unicp.models.noise import read_schedule
from unicp.numerics.fidelity import psnr
from unicp.planning.prior import load_products
from unicp.planning.products import Products
from unicp.planning.solver import loss_of_run
from unicp.policies import run_loss
from unicp.policies.run_loss import RunLoss
from unicp_bench.harness import Case, Harness
from unicp_bench.left_out import FOLDER, prior_without
from unicp_bench.suites import models
from unicp_testbeds.prompts import prompts_of

BEDS = ("letters", "stickers", "glyphs", "ripples")
FRAMES = {"glyphs": 9}
STEPS = 30
COUNTS = (16, 13, 10, 8)
EARLY = (0.25, 0.5, 0.75)
POWERS = (1.3, 1.6)


def widening(count: int, steps: int, power: float) -> tuple[int, ...]:
    """Full steps at (steps - 2) * u ** power, u evenly spread; those that fall together take the next free ones."""
    places = {round((steps - 2) * (one / (count - 1)) ** power) for one in range(count)}
    free = (step for step in range(steps) if step not in places)
    while len(places) < count:
        places.add(next(free))
    return tuple(sorted(places))


class Bed:
    """A test-bed with some clips of its tuning prompts.

    Args:
        name: Of the test-bed.
        clips: How many.
    """

    def __init__(self, name: str, clips: int):
        self.harness = Harness(models()[name], "default", STEPS, frames=FRAMES.get(name))
        self.cases = [Case(prompt, seed) for seed, prompt in enumerate(prompts_of("tuning", name)[:clips])]
        recorder = SamplerRecorder(self.harness.pipe.scheduler)
        with recorder.recording():
            first = self.harness.run(self.cases[0], STEPS).frames
        schedule = read_schedule(self.harness.pipe.scheduler)
        levels = None if schedule is None else schedule.levels()
        if schedule is None or levels is None or recorder.shares is None:
            raise InputError(f"schedules of {name}", "a sampler that does not tell its noise levels", "name another")
        self._told = schedule.sampler_prediction, levels[:-1], recorder.shares
        self.plain = [first, *(self.harness.run(case, STEPS).frames for case in self.cases[1:])]

    def loss(self, products: Products) -> RunLoss:
        """The loss of its runs by these products."""
        return loss_of_run(products, *self._told)

    def fidelity(self, full: Sequence[int] | None, steps: int = STEPS) -> list[float]:
        """PSNR of each clip where these steps are full; `None` = in a plain run of so many steps."""
        found = []
        for case, plain in zip(self.cases, self.plain):
            if full is None:
                made = self.harness.run(case, steps).frames
            else:
                with unicp.enable(self.harness.pipe, unicp.preset("balanced", full_steps=tuple(full))):
                    made = self.harness.run(case, STEPS).frames
            found.append(psnr(made, plain).total)
        return found


def rows_of(name: str, clips: int, told: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows of one test-bed."""
    bed, others = Bed(name, clips), prior_without(name)
    assert others is not None
    own = load_products(FOLDER / f"{name}.json")
    found: list[dict[str, Any]] = []
    known: dict[tuple[int, ...], list[float]] = {}
    for count in COUNTS:
        schedules: dict[str, tuple[int, ...] | None] = {"fewer steps": None}
        losses: dict[str, float] = {}
        for power in POWERS:
            schedules[f"widening, power {power}"] = widening(count, STEPS, power)
        for kind, products in (("others", others), ("own", own)):
            for early in EARLY:
                with patch.object(run_loss, "EARLY", early):
                    loss = bed.loss(products)
                    path = loss.best([0])[count]
                schedules[f"least loss, {kind}, {early}"] = path.computed
                losses[f"least loss, {kind}, {early}"] = path.loss
        for kind, full in schedules.items():
            if full is None:
                values = bed.fidelity(None, count)
            else:
                values = known[full] = known.get(full) or bed.fidelity(full)
            row = {"model": name, "schedule": kind, "full steps": count, "clips": clips, "loss": losses.get(kind, 0.0)}
            row |= {"mean": statistics.fmean(values), "worst": min(values), "psnr": [round(one, 2) for one in values]}
            found.append(row | {"steps": " ".join(map(str, full or ()))})
            told(f"{name} {count} {kind}: {row['mean']:.1f} / {row['worst']:.1f} dB")
    return found


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each test-bed and number of full steps: mean / worst dB of each schedule."""
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        start = {"model": row["model"], "full steps": row["full steps"]}
        line = lines.setdefault((row["model"], row["full steps"]), start)
        line[row["schedule"]] = f"{row['mean']:.1f} / {row['worst']:.1f}"
    return list(lines.values())


def line_table(rows: Sequence[dict[str, Any]], early: float = run_loss.EARLY) -> list[dict[str, Any]]:
    """PSNR + 20 log10 of the predicted loss, by other models' products: its mean, and the deviation over clips.

    `unicp.planning.fidelity` has what this says of a model that nobody tried.
    """
    found = []
    for name in dict.fromkeys(row["model"] for row in rows):
        kind = f"least loss, others, {early}"
        own = [row for row in rows if (row["model"], row["schedule"]) == (name, kind)]
        offsets = [[value + 20 * math.log10(row["loss"]) for value in row["psnr"]] for row in own]
        every = [one for values in offsets for one in values]
        clips = statistics.fmean(statistics.stdev(values) for values in offsets)
        found.append({"model": name, "offset, dB": statistics.fmean(every), "deviation of clips, dB": clips})
    return found


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beds", default=",".join(BEDS))
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("build/bench/schedules.json"))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.beds.split(","):
        rows += rows_of(name, options.clips, lambda line: print(line, flush=True))
        made = {"early": EARLY, "table": table(rows), "line": line_table(rows), "rows": rows}
        write_text(options.out, json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
