"""Impact of an error made at one noise level on the final latent, by injection.

    python -m unicp.benchmarking.impact --out docs/results/impact.json

At one step the model's outputs are replaced by what a first-order forecast over the noise level from the two steps
before would have served; the run is finished and the final latent compared with that of the untouched run. Impact =
relative displacement of the final latent / relative error of the outputs, scaled so that its mean over the probed steps
is 1. The built-in curve of `unicp.control.tolerance` comes from this.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unicp.benchmarking.presets import STEPS, Bench
from unicp.numerics.error_measures import relative_error
from unicp.numerics.forecasting import extrapolate
from unicp.testbed import folder
from unicp.testbed.clips import held_out_scenes

PROBED = (2, 3, 5, 8, 11, 14, 17, 20, 23, 26, 28, 29)
BRANCHES = 2


class Injection:
    """Stands in for a transformer's forward: forecasts at one step (None = nowhere), remembers the outputs."""

    def __init__(self, forward: Any, sigmas: list[float], step: int | None):
        self.forward, self.sigmas, self.step = forward, sigmas, step
        self.history: list[Tensor] = []
        self.errors: list[float] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The transformer's forward with `return_dict=False`."""
        (output,) = self.forward(*args, **kwargs)
        step = len(self.history) // BRANCHES
        if step == self.step:
            points = [(self.sigmas[step - d], self.history[len(self.history) - d * BRANCHES]) for d in (2, 1)]
            served = extrapolate(points, self.sigmas[step])
            self.errors += relative_error(served, output).tolist()
            self.history.append(output)
            return (served,)
        self.history.append(output)
        return (output,)


@contextmanager
def injected(pipe: Any, step: int | None) -> Iterator[Injection]:
    """Replaces the transformer's forward for the time of the block."""
    pipe.scheduler.set_timesteps(STEPS)
    sigmas = [float(s) for s in pipe.scheduler.sigmas]
    injection = Injection(pipe.transformer.forward, sigmas, step)
    pipe.transformer.forward = injection
    try:
        yield injection
    finally:
        del pipe.transformer.forward


def measure(bench: Bench, prompts: list[str]) -> list[dict[str, float]]:
    """One dict per probed step: noise level, mean error of the outputs, displacement, impact (mean 1)."""
    rows: dict[int, list[tuple[float, float]]] = {step: [] for step in PROBED}
    sigmas: list[float] = []
    for index, prompt in enumerate(prompts):
        final = _latent(bench, prompt, index, None)[0]
        for step in PROBED:
            moved, injection = _latent(bench, prompt, index, step)
            sigmas = injection.sigmas
            displacement = float(relative_error(moved, final)[0])
            rows[step].append((statistics.fmean(injection.errors), displacement))
            print(f"{prompt}: step {step} error {rows[step][-1][0]:.4f} displacement {displacement:.4f}", flush=True)
    table = []
    for step, values in rows.items():
        error, displacement = (statistics.fmean(v[i] for v in values) for i in (0, 1))
        table.append({"step": step, "sigma": sigmas[step], "error": error, "displacement": displacement})
    ratios = [row["displacement"] / row["error"] for row in table]
    mean = statistics.fmean(ratios)
    return [{**row, "impact": ratio / mean} for row, ratio in zip(table, ratios)]


def _latent(bench: Bench, prompt: str, seed: int, step: int | None) -> tuple[Tensor, Injection]:
    with injected(bench.pipe, step) as injection:
        out = bench.pipe(
            prompt,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            **bench.options,
        )
    return out.frames, injection


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(folder()))
    parser.add_argument("--sampler", default="unipc", choices=["unipc", "euler"])
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--out", type=Path, default=Path("build/bench/impact.json"))
    options = parser.parse_args()
    bench = Bench(options.model, options.sampler, options.frames)
    # The last held-out prompts: those of the tables are the first ones.
    prompts = [scene.caption for scene in held_out_scenes()[-options.prompts :]]
    table = measure(bench, prompts)
    record = {"sampler": options.sampler, "steps": STEPS, "prompts": prompts, "device": "cpu", "rows": table}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for row in table:
        print(f"sigma {row['sigma']:.3f}  impact {row['impact']:.3f}  error {row['error']:.4f}")


if __name__ == "__main__":
    main()
