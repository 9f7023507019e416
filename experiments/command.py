"""What the measuring commands of this folder share: their options, and the pipeline these name."""

from __future__ import annotations

import argparse
from pathlib import Path

from unicp.cli.loading import SAMPLERS
from unicp_bench.harness import Harness
from unicp_bench.suites import STEPS, models
from unicp_testbeds import DEFAULT


def measuring_parser(about: str | None, prompts: int, out: str) -> argparse.ArgumentParser:
    """Options --model, --sampler, --prompts, --frames and --out. about: of the module; the others are defaults."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT, help="a test-bed, or a folder")
    parser.add_argument("--sampler", default="default", choices=SAMPLERS)
    parser.add_argument("--prompts", type=int, default=prompts)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--out", type=Path, default=Path("build/bench") / out)
    return parser


def harness_of(options: argparse.Namespace) -> Harness:
    """The pipeline that these options name, under their sampler."""
    model = models().get(options.model, Path(options.model))
    return Harness(model, options.sampler, STEPS, frames=options.frames)
