"""Records the built-in products, by which runs are planned of models that nobody calibrated.

python -m experiments.prior                                # all test-beds; a quarter of an hour on one core
python -m experiments.prior --each build/prior              # one file for each test-bed, for `unicp bench transfer`
"""

from __future__ import annotations

import argparse
from pathlib import Path

from unicp.calibration.plain_run import SamplerRecorder, mean_products, products_of
from unicp.errors import InputError, run_main
from unicp.models.noise import read_schedule
from unicp.planning.prior import FILE, load_products, pooled, save_products
from unicp.planning.products import Products
from unicp_bench.harness import Harness
from unicp_bench.left_out import FOLDER
from unicp_bench.suites import models
from unicp_testbeds.prompts import prompts_of

BEDS = ("glyphs", "latte", "film", "letters", "ripples", "stickers")
STEPS, CLIPS = 30, 4


def recorded(name: str) -> Products:
    """The mean products of plain clips of a test-bed under its own sampler."""
    harness = Harness(models()[name], "default", STEPS)
    schedule = read_schedule(harness.pipe.scheduler)
    if schedule is None:
        raise InputError(f"products of {name}", "a sampler whose noise levels are not known", "leave it out")
    matrices = []
    for seed, prompt in enumerate(prompts_of("calibration", name)[:CLIPS]):
        recorder = SamplerRecorder(harness.pipe.scheduler)
        with recorder.recording():
            harness.latent(prompt, seed)
        levels = schedule.levels()
        assert levels is not None
        matrices.append(products_of(recorder.given, levels[:-1], schedule.sampler_prediction))
        print(f"{name}: {prompt}", flush=True)
    levels = schedule.levels()
    assert levels is not None
    return mean_products(matrices, levels[:-1])


def main() -> None:
    """Records all test-beds, and writes one file for each and the mean of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=Path, default=FOLDER, help="where the file of each test-bed goes; kept if there")
    options = parser.parse_args()
    found: dict[str, Products] = {}
    for name in BEDS:
        path = options.each / f"{name}.json"
        found[name] = load_products(path) if path.exists() else recorded(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_products(found[name], path)
    save_products(pooled(list(found.values())), FILE)


if __name__ == "__main__":
    run_main(main)
