"""Which steps of a run should be full, told by the sampler and by what plain runs recorded, on the small test-beds.

    python -m experiments.schedules --out docs/results/schedules.json       # a quarter of an hour on one core

Nothing is adaptive here: all clips of a cell follow one schedule, in a loop of this module's own. Skipped steps are
forecast along a damped line, and replayed at the next full step (docs/method.md, 3.4), whose output is kept as it was.

A deterministic sampler is linear in the outputs it is given, so the share of each in the final sample is exact: it is
what comes out if one output is 1 and all else is 0 (`response`). What a schedule does is predicted as the sum, over its
skipped steps, of that share times the error of the parabola through the full steps around. Plain runs of other clips
tell the error ("own"), or plain runs of the other test-beds do, at the same noise levels ("others"). The schedule of
least loss is a shortest path. Early errors count more, by (1 - sigma) ** -EARLY.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import unicp_testbeds
from unicp.errors import InputError, run_main
from unicp.files import write_text
from unicp.models.noise import read_schedule
from unicp.numerics.forecasting import Rise, extrapolate, from_quantity, interpolate, share_of_rise, to_quantity
from unicp.numerics.noise_levels import NoiseLevel, Prediction, coefficients
from unicp.numerics.polynomials import lagrange_weights
from unicp.policies.step_paths import MAX_WINDOW, best_paths
from unicp_testbeds.beds.bed import Noisy
from unicp_testbeds.beds.definitions import bed
from unicp_testbeds.beds.training import PROMPTS_FILE

BEDS = ("stickers", "letters", "ripples")
COUNTS = (15, 12, 10, 8)
EARLY = 0.25
# Windows may be at most twice as wide as the one before them.
REACH = 1.0
LEAST_PART = 0.02  # of the output in the noise estimate, below which the estimate is not forecast
FARTHEST = 20.0  # log-SNR of noise alone


def response(scheduler: Any) -> list[float]:
    """The share of each step's output in the final sample. scheduler: set to its timesteps; it is left as it is."""
    found = []
    for one in range(len(scheduler.timesteps)):
        own, sample = copy.deepcopy(scheduler), torch.zeros(1, 1, 1, 1)
        for step, time in enumerate(scheduler.timesteps):
            output = torch.full_like(sample, float(step == one))
            sample = own.step(output, time, sample, return_dict=False)[0]
        found.append(float(sample))
    return found


@dataclass(frozen=True)
class Products:
    """Mean products of noise estimates of different steps, (N, N), over plain runs, and the log-SNR of the steps."""

    matrix: NDArray[np.float64]
    places: Sequence[float]

    def error(self, points: Sequence[int], step: int) -> float:
        """rms of (polynomial through the noise estimates of these steps - that of `step`)."""
        shares = lagrange_weights([self.places[point] for point in points], self.places[step])
        at, weights = [step, *points], np.array([-1.0, *shares])
        return math.sqrt(max(0.0, float(weights @ self.matrix[np.ix_(at, at)] @ weights)))

    def read_at(self, places: Sequence[float]) -> NDArray[np.float64]:
        """The products among other places, each by a cubic through the four nearest; those beyond are the nearest."""
        inner = [step for step, place in enumerate(self.places) if place > -FARTHEST]
        rows = np.zeros((len(places), len(self.places)))
        for row, place in enumerate(places):
            if place <= -FARTHEST and self.places[0] <= -FARTHEST:
                rows[row, 0] = 1.0
                continue
            place = min(max(place, self.places[inner[0]]), self.places[inner[-1]])
            near = sorted(inner, key=lambda step: abs(self.places[step] - place))[:4]
            rows[row, near] = lagrange_weights([self.places[step] for step in near], place)
        return rows @ self.matrix @ rows.T


class Loop:
    """A small test-bed with some clips, run step by step.

    Args:
        name: Of the test-bed.
        clips: How many.
        first: Number of the first prompt of the file of prompts, and of the first seed.
    """

    def __init__(self, name: str, clips: int, first: int = 0):
        self.bed = bed(name)
        folder = unicp_testbeds.folder(name)
        kind = getattr(diffusers, self.bed.kind)
        self.pipe = kind.from_pretrained(folder, torch_dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        prompts = (folder / PROMPTS_FILE).read_text(encoding="utf-8").splitlines()[first : first + clips]
        self._text, self._none = self.bed.encode(self.pipe, prompts), self.bed.encode(self.pipe, [""] * clips)
        self.scheduler = self._scheduler(prompts[0])
        schedule = read_schedule(self.scheduler)
        levels = None if schedule is None else schedule.levels()
        if schedule is None or levels is None:
            raise InputError(f"schedules of {name}", "a sampler whose noise levels are not known", "name another")
        self.prediction: Prediction = schedule.prediction
        self.levels = levels[:-1]
        self.steps, self.places = len(self.levels), [level.log_snr for level in self.levels]
        # Forecasts of noise estimates stand for outputs where those have a part in them.
        self.parts = [max(LEAST_PART, abs(coefficients("noise", self.prediction, one)[1])) for one in self.levels]
        shape = self.pipe.vae.encode(torch.zeros(1, 3, *self._size())).shape[1:]
        seeds = (torch.Generator().manual_seed(1000 + first + clip) for clip in range(clips))
        self.noise = torch.stack([torch.randn(shape, generator=seed) for seed in seeds])

    def _size(self) -> tuple[int, ...]:
        given = self.bed.defaults
        frames = (given["num_frames"],) if "num_frames" in given else ()
        return (*frames, given["height"], given["width"])

    def _scheduler(self, prompt: str, **changes: Any) -> Any:
        """A scheduler that is set as the pipeline sets its own. changes: of the pipeline's arguments."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        fresh, own = copy.deepcopy(self.pipe.scheduler), self.pipe.scheduler.set_timesteps
        given = self.bed.defaults | changes

        @functools.wraps(own)
        def noted(*args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            raise _Noted

        self.pipe.scheduler.set_timesteps = noted
        try:
            self.pipe(prompt, **{name: value for name, value in given.items() if name != "fps"})
        except _Noted:
            fresh.set_timesteps(*calls[0][0], **calls[0][1])
        finally:
            del self.pipe.scheduler.set_timesteps
        return fresh

    def output(self, sample: Tensor, time: Tensor) -> Tensor:
        """The model's output at a timestep of the scheduler, guided as the pipeline guides it."""
        time, weight = time.expand(len(sample)), self.bed.defaults["guidance_scale"]
        if self.bed.is_guided_inside:
            told = torch.full((len(sample),), float(weight))
            return self.bed.call(self.pipe.transformer, Noisy(sample, time, sample), self._text, told)
        text = {key: torch.cat([self._none[key], self._text[key]]) for key in self._text}
        both = Noisy(torch.cat([sample] * 2), torch.cat([time] * 2), sample)
        none, said = self.bed.call(self.pipe.transformer, both, text, None).chunk(2)
        return none + weight * (said - none)

    def estimate(self, sample: Tensor, output: Tensor, step: int) -> Tensor:
        """The noise estimate of an output."""
        return to_quantity("noise", self.prediction, sample, output, self.levels[step])

    def plain(self) -> tuple[Tensor, Products]:
        """The final samples of the plain run, and products of its noise estimates, over all clips."""
        scheduler, sample, estimates = copy.deepcopy(self.scheduler), self.noise, []
        for step, time in enumerate(scheduler.timesteps):
            output = self.output(sample, time)
            estimates.append(self.estimate(sample, output, step).double().flatten())
            sample = scheduler.step(output, time, sample, return_dict=False)[0]
        rows = torch.stack(estimates)
        return sample, Products((rows @ rows.T / rows.shape[1]).numpy(), self.places)

    def run(self, computed: Sequence[int], is_damped: bool = True) -> Tensor:
        """The final samples if these steps are full."""
        scheduler, sample, full = copy.deepcopy(self.scheduler), self.noise, frozenset(computed)
        known: list[tuple[int, Tensor]] = []
        share: Tensor | None = None
        measured_over = 1.0
        before: tuple[Any, Tensor] | None = None
        skipped: list[int] = []
        for step, time in enumerate(scheduler.timesteps):
            if step not in full:
                estimate = self._forecast(known, step, share, measured_over)
                output = self._said(sample, estimate, step)
                sample, skipped = scheduler.step(output, time, sample, return_dict=False)[0], [*skipped, step]
                continue
            output = self.output(sample, time)
            estimate = self.estimate(sample, output, step)
            if is_damped and len(known) >= 2:
                line, last = self._forecast(known, step, None, 1.0), known[-1][1]
                share = share_of_rise([Rise.of(estimate.flatten(1), line.flatten(1), last.flatten(1))])
                measured_over = self.places[step] - self.places[known[-2][0]]
            if skipped and before is not None:
                # The line's points and the one at hand tell better what the skipped outputs should have been.
                scheduler, sample = copy.deepcopy(before[0]), before[1]
                points = [(self.places[one], value) for one, value in (*known[-2:], (step, estimate))]
                for one in skipped:
                    value = self._said(sample, interpolate(points, self.places[one]), one)
                    sample = scheduler.step(value, scheduler.timesteps[one], sample, return_dict=False)[0]
                estimate = self.estimate(sample, output, step)
            known, skipped = [*known, (step, estimate)][-2:], []
            sample = scheduler.step(output, time, sample, return_dict=False)[0]
            before = copy.deepcopy(scheduler), sample
        return sample

    def _forecast(self, known: Sequence[tuple[int, Tensor]], step: int, share: Tensor | None, over: float) -> Tensor:
        """Along the line; what it is known to miss grows with the distance."""
        if share is not None:
            reach = (self.places[step] - self.places[known[-2][0]]) / over
            share = (1 - (1 - share) * reach).clamp(0, 1)
        return extrapolate([(self.places[one], value) for one, value in known], self.places[step], share)

    def _said(self, sample: Tensor, estimate: Tensor, step: int) -> Tensor:
        return from_quantity("noise", self.prediction, sample, estimate, self.levels[step])

    def fewer(self, steps: int) -> Tensor:
        """The final samples of the plain sampler with fewer steps, spread as the pipeline spreads them."""
        scheduler, sample = self._scheduler("", num_inference_steps=steps), self.noise
        for time in scheduler.timesteps:
            sample = scheduler.step(self.output(sample, time), time, sample, return_dict=False)[0]
        return sample

    def psnr(self, sample: Tensor, plain: Tensor) -> list[float]:
        """Of each clip, over all pixels in [-1, 1]."""
        first, second = (self.pipe.vae.decode(one).sample.clamp(-1, 1).flatten(1) for one in (sample, plain))
        return (10 * torch.log10(4 / (first - second).square().mean(1).clamp_min(1e-10))).tolist()


class _Noted(Exception):
    """The pipeline has set its scheduler, and need not go on."""


def best_schedule(
    count: int, products: Products, shares: Sequence[float], parts: Sequence[float], levels: Sequence[NoiseLevel]
) -> tuple[int, ...]:
    """The full steps of least predicted loss.

    Args:
        count: How many.
        products: Of noise estimates at these steps.
        shares: Of each output in the final sample, as `response` gives them.
        parts: Of the output in the noise estimate, by step.
        levels: Of the steps.
    """
    steps = len(shares)
    weights = [
        abs(share) / part * max(1e-3, 1 - level.sigma) ** -EARLY for share, part, level in zip(shares, parts, levels)
    ]

    def change(before: int, last: int, following: int) -> float:
        points = (before, last, following) if following < steps else (before, last)
        return math.fsum(weights[step] * products.error(points, step) for step in range(last + 1, following))

    found: list[tuple[float, tuple[int, ...]]] = []
    # The first window has one full step before it: what is skipped there lies between that and the next.
    for second in (1, 2, 3):
        first = math.fsum(weights[step] * products.error((0, second), step) for step in range(1, second))
        path = best_paths(steps, change, (0, second), max_window=MAX_WINDOW, max_reach=REACH).get(count)
        if path is not None:
            found.append((first + path.loss, path.computed))
    return min(found)[1]


def widening(count: int, steps: int, power: float) -> tuple[int, ...]:
    """Full steps at (steps - 2) * u ** power, u evenly spread; those that fall together take the next free ones."""
    places = {round((steps - 2) * (one / (count - 1)) ** power) for one in range(count)}
    free = (step for step in range(steps) if step not in places)
    while len(places) < count:
        places.add(next(free))
    return tuple(sorted(places))


def rows_of(name: str, clips: int, others: Sequence[Products], told: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows of one test-bed. others: what plain runs of other test-beds recorded."""
    _, own = Loop(name, clips).plain()
    loop = Loop(name, clips, first=clips)
    plain, _ = loop.plain()
    shares = response(loop.scheduler)
    pooled = Products(np.mean([one.read_at(loop.places) for one in others], axis=0), loop.places)
    found = []
    for count in COUNTS:
        schedules = {
            "widening, power 1.3": widening(count, loop.steps, 1.3),
            "widening, power 1.6": widening(count, loop.steps, 1.6),
            "least loss, own": best_schedule(count, own, shares, loop.parts, loop.levels),
            "least loss, others": best_schedule(count, pooled, shares, loop.parts, loop.levels),
        }
        made: dict[str, tuple[Sequence[int], Tensor]] = {"fewer steps": ((), loop.fewer(count))}
        for kind, computed in schedules.items():
            made[kind] = computed, loop.run(computed)
            made[f"{kind}, undamped"] = computed, loop.run(computed, is_damped=False)
        for kind, (computed, sample) in made.items():
            psnr = loop.psnr(sample, plain)
            row = {"model": name, "schedule": kind, "full steps": count, "of": loop.steps, "clips": clips}
            row |= {"mean": round(float(np.mean(psnr)), 1), "worst": round(min(psnr), 1)}
            found.append(row | {"steps": " ".join(map(str, computed))})
            told(f"{name} {count} {kind}: {row['mean']} / {row['worst']} dB")
    return found


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each test-bed and number of full steps: mean / worst dB of each schedule."""
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        start = {"model": row["model"], "full steps": f"{row['full steps']} of {row['of']}"}
        line = lines.setdefault((row["model"], row["full steps"]), start)
        line[row["schedule"]] = f"{row['mean']:.1f} / {row['worst']:.1f}"
    return list(lines.values())


def main() -> None:
    """The command line; see the module's docstring."""

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beds", default=",".join(BEDS))
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("build/bench/schedules.json"))
    options = parser.parse_args()
    with torch.no_grad():
        names = options.beds.split(",")
        recorded = {name: Loop(name, options.clips).plain()[1] for name in names}
        rows = []
        for name in names:
            others = [one for other, one in recorded.items() if other != name]
            rows += rows_of(name, options.clips, others, lambda line: print(line, flush=True))
            write_text(options.out, json.dumps({"early": EARLY, "table": table(rows), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
