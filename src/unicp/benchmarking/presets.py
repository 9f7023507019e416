"""Presets against fixed windows and fewer steps, on the same prompts and seeds.

    python -m unicp.benchmarking.presets --sampler unipc --prompts 16 --seeds 2 --out docs/results/presets.jsonl

Every row compares with the plain run of the same prompt, seed and sampler at 30 steps; methods are interleaved
clip by clip, so that a slow minute of the machine falls on all of them.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import unicp
from unicp.benchmarking.rows import PSNR_CAP, Row, aggregate, append_row, markdown, read_rows
from unicp.errors import InputError
from unicp.models.loading import generation_defaults, load_pipeline, sampler
from unicp.numerics import fidelity
from unicp.settings import Settings, preset
from unicp.testbed import folder
from unicp.testbed.clips import held_out_scenes

STEPS = 30


@dataclass(frozen=True)
class Method:
    """Settings to run under (None = plain), and the number of steps."""

    name: str
    settings: Settings | None = None
    steps: int = STEPS


def default_methods() -> list[Method]:
    """The presets, fixed windows with the same forecast as "balanced", and fewer steps."""
    presets = [Method(name, preset(name)) for name in ("quality", "balanced", "fast", "paper")]
    windows = [Method(f"fixed window {n}", preset("balanced", every=n)) for n in (2, 3, 4)]
    fewer = [Method(f"{n} steps", None, n) for n in (20, 15, 14, 12, 10, 9)]
    return presets + windows + fewer


def parse_method(text: str) -> Method:
    """A method by name: a preset, "fixed window N", "N steps", or 'PRESET {"tolerance": 0.1, …}'."""
    for method in default_methods():
        if method.name == text:
            return method
    words = text.split(maxsplit=1)
    if len(words) == 2 and words[1] == "steps" and words[0].isdigit() and int(words[0]) > 0:
        return Method(text, None, int(words[0]))
    if len(words) == 2 and words[1].startswith("{"):
        changes = json.loads(words[1])
        base = preset(words[0]).to_dict()
        return Method(text, Settings.from_dict({**base, **changes}))
    raise InputError(f"method {text!r}", "no such method", 'name a preset, "fixed window 2" or "12 steps"')


class Bench:
    """A loaded pipeline and the defaults it is run with."""

    def __init__(self, model: str | Path, sampler_name: str, frames: int | None = None):
        self.pipe: Any = load_pipeline(model)
        sampler(self.pipe, sampler_name)
        self.pipe.set_progress_bar_config(disable=True)
        keys = ("height", "width", "num_frames", "guidance_scale", "max_sequence_length")
        self.options = {k: v for k, v in generation_defaults(model).items() if k in keys}
        if frames is not None:
            self.options["num_frames"] = frames

    def clip(self, prompt: str, seed: int, steps: int = STEPS) -> tuple[Tensor, float]:
        """One clip, (frames, height, width, 3) in [0, 1], and the seconds of the whole call."""
        generator = torch.Generator().manual_seed(seed)
        start = time.perf_counter()
        out = self.pipe(prompt, num_inference_steps=steps, generator=generator, output_type="np", **self.options)
        return torch.from_numpy(out.frames[0]).float(), time.perf_counter() - start


def psnr(clip: Tensor, reference: Tensor) -> float:
    """Decibels over all values of two clips in [0, 1], at most `PSNR_CAP`."""
    return min(PSNR_CAP, fidelity.psnr(clip, reference).total)


def measure(bench: Bench, methods: list[Method], sampler_name: str, prompt: str, seed: int, out: Path) -> None:
    """All methods on one prompt and seed that have no row yet."""
    known = {row.key for row in read_rows(out)}
    missing = [m for m in methods if (m.name, sampler_name, prompt, seed) not in known]
    if not missing:
        return
    reference, plain_seconds = bench.clip(prompt, seed)
    # Every call of a plain run costs the same: one counted step tells what 30 cost.
    with unicp.enable(bench.pipe, preset("balanced", tolerance=0.0, text_keys_values=False)) as session:
        bench.clip(prompt, seed, 1)
    per_step = sum(entry.full_operations for entry in session.trace.entries)
    for method in missing:
        operations, peak = per_step * method.steps, 0
        if method.settings is None:
            clip, seconds = bench.clip(prompt, seed, method.steps)
        else:
            with unicp.enable(bench.pipe, method.settings) as session:
                clip, seconds = bench.clip(prompt, seed, method.steps)
            operations = sum(entry.operations for entry in session.trace.entries)
            peak = max(entry.stored_bytes for entry in session.trace.entries)
        row = Row(
            method=method.name,
            sampler=sampler_name,
            prompt=prompt,
            seed=seed,
            steps=method.steps,
            psnr=psnr(clip, reference),
            operations=operations,
            full_operations=per_step * STEPS,
            seconds=seconds,
            plain_seconds=plain_seconds,
            peak_bytes=peak,
        )
        append_row(out, row)
        saved = row.full_operations / max(1, operations)
        print(
            f"{sampler_name} {prompt} #{seed} {method.name}: {saved:.2f}x {row.psnr:.1f} dB {seconds:.1f} s", flush=True
        )


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(folder()))
    parser.add_argument("--sampler", default="unipc", choices=["unipc", "euler"])
    parser.add_argument("--prompts", type=int, default=16, help="how many held-out prompts")
    parser.add_argument("--skip", type=int, default=0, help="how many held-out prompts to leave out first")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--frames", type=int, help="frames per clip (default: the model's own)")
    parser.add_argument("--method", action="append", help="one method by name; repeat for more (default: all)")
    parser.add_argument("--out", type=Path, default=Path("build/bench/presets.jsonl"))
    options = parser.parse_args()
    methods = [parse_method(text) for text in options.method] if options.method else default_methods()
    bench = Bench(options.model, options.sampler, options.frames)
    scenes = held_out_scenes()[options.skip : options.skip + options.prompts]
    for index, scene in enumerate(scenes):
        for seed in range(options.seeds):
            measure(bench, methods, options.sampler, scene.caption, 1000 * seed + index + options.skip, options.out)
    print(markdown(aggregate(row for row in read_rows(options.out) if row.sampler == options.sampler)))


if __name__ == "__main__":
    main()
