"""The command that trains a small test-bed; see the package."""

from __future__ import annotations

import argparse
from pathlib import Path

from unicp.errors import run_main
from unicp_testbeds import beds
from unicp_testbeds.beds.definitions import bed
from unicp_testbeds.beds.training import save, train


def main() -> None:
    """Trains one, or goes on with it, and writes its pipeline."""
    parser = argparse.ArgumentParser(description=beds.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=beds.NAMES)
    parser.add_argument("--out", type=Path, help="working folder with checkpoints (default: build/NAME)")
    parser.add_argument("--save", type=Path, help="where to write the finished pipeline (default: OUT/pipeline)")
    options = parser.parse_args()
    out = options.out or Path("build") / options.name
    one = bed(options.name)
    save(one, train(one, out), options.save or out / "pipeline")


if __name__ == "__main__":
    run_main(main)
