"""Options that the commands of this folder share, and the pipeline that they name."""

from __future__ import annotations

import argparse
from pathlib import Path

from unicp.cli.loading import SAMPLERS
from unicp_bench.harness import Harness
from unicp_bench.suites import STEPS, models
from unicp_testbeds import DEFAULT


def measuring_parser(about: str | None, prompts: int, out: str) -> argparse.ArgumentParser:
    """A parser with --model, --sampler, --prompts, --frames and --out.

    Args:
        about: Description of the command.
        prompts: Default number of prompts.
        out: Default name of the file.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT, help="a test-bed, or a folder")
    parser.add_argument("--sampler", default="default", choices=SAMPLERS)
    parser.add_argument("--prompts", type=int, default=prompts)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--out", type=Path, default=Path("build/bench") / out)
    return parser


def harness_of(options: argparse.Namespace) -> Harness:
    """The pipeline of these options, under their sampler."""
    model = models().get(options.model, Path(options.model))
    return Harness(model, options.sampler, STEPS, frames=options.frames)
