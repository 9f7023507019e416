"""What deciding and recording cost when every action is forced to compute.

    python -m unicp.benchmarking.overhead --out docs/results/overhead.json

Plain and forced runs alternate; each repeat gives one ratio of the whole pipeline's seconds; median and range are
reported for growing token counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import unicp
from unicp.benchmarking.harness import Harness
from unicp.benchmarking.suites import models, prompts_of
from unicp.settings import preset

TOKENS_PER_LATENT_FRAME = 96


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[9, 21, 41, 81])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/bench/overhead.json"))
    options = parser.parse_args()
    prompt = prompts_of("table")[0]
    forced = preset("balanced", tolerance=0.0, text_keys_values=False)
    rows = []
    for frames in options.frames:
        harness = Harness(models()["glyphs"], "unipc", options.steps, frames=frames)
        harness.seconds(prompt, 0, 2)
        pairs = []
        for repeat in range(options.repeats):
            plain = harness.seconds(prompt, repeat, options.steps)
            with unicp.enable(harness.pipe, forced):
                harness.seconds(prompt, repeat, 1)  # operations are counted in the first call ever of a shape
                watched = harness.seconds(prompt, repeat, options.steps)
            pairs.append((plain, watched))
        ratios = sorted(watched / plain - 1 for plain, watched in pairs)
        row = {
            "tokens": TOKENS_PER_LATENT_FRAME * (frames // 2 + 1),
            "frames": frames,
            "plain_seconds": statistics.median(plain for plain, _ in pairs),
            "overhead_median": statistics.median(ratios),
            "overhead_min": ratios[0],
            "overhead_max": ratios[-1],
        }
        rows.append(row)
        print(
            f"{row['tokens']} tokens: {row['plain_seconds']:.2f} s, overhead {100 * row['overhead_median']:.2f} % "
            f"({100 * ratios[0]:.2f} to {100 * ratios[-1]:.2f})",
            flush=True,
        )
    record = {"steps": options.steps, "repeats": options.repeats, "device": "cpu", "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
