"""Impact of an error made at one noise level on the final latent, by injection.

    python -m experiments.impact --out docs/results/impact.json

At one step the model's outputs are replaced by their forecast over the noise level from the two steps before. The run
is finished, and its final latent is compared with that of the untouched run. Impact = relative displacement of the
final latent / relative error of the outputs, scaled to a mean of 1 over the probed steps. The built-in curve of
`unicp.policies.impact` comes from this.
"""

from __future__ import annotations

import json
import statistics

from torch import Tensor

from experiments.command import harness_of, measuring_parser
from unicp.errors import run_main
from unicp.files import write_text
from unicp.numerics.error_measures import relative_error
from unicp_bench.harness import Harness
from unicp_bench.injection import Injection, injected
from unicp_bench.suites import STEPS
from unicp_testbeds.prompts import prompts_of

PROBED = (2, 3, 5, 8, 11, 14, 17, 20, 23, 26, 28, 29)


def measure(harness: Harness, prompts: list[str]) -> list[dict[str, float]]:
    """One dict per probed step: noise level, mean error of the outputs, displacement, impact (mean 1)."""
    rows: dict[int, list[tuple[float, float]]] = {step: [] for step in PROBED}
    sigmas: list[float] = []
    for index, prompt in enumerate(prompts):
        final = _latent(harness, prompt, index, None)[0]
        for step in PROBED:
            moved, injection = _latent(harness, prompt, index, step)
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


def _latent(harness: Harness, prompt: str, seed: int, step: int | None) -> tuple[Tensor, Injection]:
    with injected(harness.pipe, step, STEPS) as injection:
        return harness.latent(prompt, seed), injection


def main() -> None:
    """The command line; see the module's docstring."""
    parser = measuring_parser(__doc__, 2, "impact.json")
    options = parser.parse_args()
    harness = harness_of(options)
    prompts = list(prompts_of("calibration", options.model)[: options.prompts])
    table = measure(harness, prompts)
    record = {"sampler": options.sampler, "steps": STEPS, "prompts": prompts, "device": "cpu", "rows": table}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(record, indent=1) + "\n")
    for row in table:
        print(f"sigma {row['sigma']:.3f}  impact {row['impact']:.3f}  error {row['error']:.4f}")


if __name__ == "__main__":
    run_main(main)
