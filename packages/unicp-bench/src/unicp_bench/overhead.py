"""What deciding and recording cost when every step is forced to be full, as tokens, blocks and steps grow.

    unicp bench overhead --out docs/results/overhead.json

Plain and forced runs alternate. Each repeat gives one ratio of the whole pipeline's seconds; median and range are
reported. Other numbers of blocks than the test-bed's have random weights, because only their time counts.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import unicp
from unicp.files import write_text
from unicp.settings import Level, preset
from unicp_bench.harness import Harness, environment
from unicp_bench.suites import models
from unicp_testbeds.prompts import prompts_of

TOKENS_PER_LATENT_FRAME = 96
BLOCKS, FRAMES, STEPS, REPEATS = 8, 9, 10, 5


@dataclass(frozen=True)
class Size:
    """One measurement: the level of the cache points, and the size of model and run."""

    level: Level = "model"
    frames: int = FRAMES
    blocks: int = BLOCKS
    steps: int = STEPS


SIZES = (
    *(Size(frames=frames) for frames in (9, 21, 41, 81)),
    *(Size(blocks=blocks) for blocks in (2, 4, 16)),
    *(Size(steps=steps) for steps in (20, 40)),
    *(Size("unit", frames=frames) for frames in (9, 21, 41)),
    *(Size("unit", blocks=blocks) for blocks in (2, 4, 16)),
    *(Size("unit", steps=steps) for steps in (20, 40)),
)


def measure(out: Path, say: Callable[[str], None], sizes: Sequence[Size] = SIZES, repeats: int = REPEATS) -> None:
    """Writes one row per size to `out` as JSON; `say` gets a line for each."""
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    for size in sizes:
        harness = Harness(models()["glyphs"], "unipc", size.steps, frames=size.frames)
        _resize(harness.pipe, size.blocks)
        found = environment(harness.pipe)
        row = _row(harness, size, repeats)
        rows.append(row)
        what = f"{size.level}, {row['tokens']} tokens, {size.blocks} blocks, {size.steps} steps"
        spread = f"{row['lowest %']:.2f} to {row['highest %']:.2f}"
        say(f"{what}: {row['plain seconds']:.2f} s, overhead {row['overhead %']:.2f} % ({spread})")
    write_text(out, json.dumps({"repeats": repeats, "environment": found, "rows": rows}, indent=1) + "\n")


def _row(harness: Harness, size: Size, repeats: int) -> dict[str, Any]:
    prompt = prompts_of("table")[0]
    forced = preset("balanced", level=size.level, tolerance=0.0, text_keys_values=False)
    harness.seconds(prompt, 0, 2)
    pairs = []
    for repeat in range(repeats):
        plain = harness.seconds(prompt, repeat, size.steps)
        with unicp.enable(harness.pipe, forced):
            harness.seconds(prompt, repeat, 1)  # operations are counted in the first call of a shape
            watched = harness.seconds(prompt, repeat, size.steps)
        pairs.append((plain, watched))
    shares = sorted(100 * (watched / plain - 1) for plain, watched in pairs)
    return {
        "level": size.level,
        "tokens": TOKENS_PER_LATENT_FRAME * (size.frames // 2 + 1),
        "blocks": size.blocks,
        "steps": size.steps,
        "plain seconds": statistics.median(plain for plain, _ in pairs),
        "overhead %": statistics.median(shares),
        "lowest %": shares[0],
        "highest %": shares[-1],
    }


def _resize(pipe: Any, blocks: int) -> None:
    if blocks != pipe.transformer.config["num_layers"]:
        config = {**pipe.transformer.config, "num_layers": blocks}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe.transformer = type(pipe.transformer).from_config(config).eval()
