"""How much faster attention at reduced width is, with all its costs, as tokens and head widths grow.

    python -m experiments.slice_speed --out docs/results/slice_speed.json
    python -m experiments.slice_speed --device cuda --dtype bfloat16 --tokens 8192 32768 65536 --width 128

Queries, keys and values are random, because seconds depend on shapes alone. "kernel" is the attention call on tensors
of the reduced width, which no slice can beat. "attention" is that call with its projections and its lift. "all" adds
what UniCP does around it: bases, kept for `Slicing.refresh` calls, and the trial rows. "operations" is the gain of
"all" in operations. Full and sliced calls alternate, and each repeat gives one ratio; reported are the median, and the
range of "all". With one thread on a CPU, times are those that the thread ran, so other jobs disturb little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from unicp.attention.slicing import UnitSlicer
from unicp.context import StepContext
from unicp.errors import run_main
from unicp.files import write_text
from unicp.models.finder import Unit
from unicp.reducers.attention_call import plain_call
from unicp.reducers.base import full_operations
from unicp.reducers.bases import fit_bases
from unicp.reducers.pca_slices import PcaSlices, sliced_attention
from unicp.settings import Settings, Slicing
from unicp_bench.harness import environment_of

SHARES = (0.25, 0.5, 0.75)
TOKENS = (512, 1024, 2048, 4096, 8192)
HEADS = 2
STEP = StepContext(run=0, step=1, branch="call0", timestep=500.0, samples=1)


@dataclass(frozen=True)
class Shape:
    """One attention call; heads of `width` channels."""

    tokens: int
    width: int
    heads: int = HEADS
    batch: int = 1


def measure(
    shape: Shape, shares: Sequence[float], device: torch.device, dtype: torch.dtype, repeats: int
) -> list[dict[str, Any]]:
    """One row per share of the width."""
    generator = torch.Generator().manual_seed(0)
    size = (shape.batch, shape.heads, shape.tokens, shape.width)
    query, key, value = (torch.randn(size, generator=generator).to(device, dtype) for _ in range(3))
    rows = []
    for share in shares:
        slicing = Slicing(widths=(share,), min_saving=-1e6, tolerance=1e6)
        width = slicing.widths_for(shape.width)[0]
        bases, slicer = fit_bases(query, key, value, slicing.basis), slicer_of(shape.heads, shape.width, slicing)
        parts = tuple(x[..., :width].contiguous() for x in (query, key, value))

        def full() -> Any:
            return F.scaled_dot_product_attention(query, key, value)

        def kernel(parts: tuple[torch.Tensor, ...] = parts) -> Any:
            return F.scaled_dot_product_attention(parts[0], parts[1], parts[2])

        def sliced(bases: Any = bases, width: int = width) -> Any:
            return sliced_attention(query, key, value, bases, width)

        def everything(slicer: UnitSlicer = slicer, slicing: Slicing = slicing) -> None:
            for _ in range(slicing.refresh):
                slicer.run(STEP, full)

        gains: dict[str, list[float]] = {"kernel": [], "attention": [], "all": []}
        fulls = []
        for repeat in range(-1, repeats):  # the first is a warm-up
            before = seconds_of(full, device)
            found = {
                "kernel": seconds_of(kernel, device),
                "attention": seconds_of(sliced, device),
                "all": seconds_of(everything, device) / slicing.refresh,
            }
            if repeat >= 0:
                fulls.append(before)
                for name, seconds in found.items():
                    gains[name].append(before / seconds)
        call, reducer = plain_call(query, key, value), PcaSlices(slicing)
        spent = reducer.operations(call, width) + reducer.probe_operations(call, [width], None)
        spent += reducer.fit_operations(call, None) / slicing.refresh
        rows.append(
            {
                **vars(shape),
                "share": share,
                "sliced to": width,
                "full ms": 1000 * statistics.median(fulls),
                "kernel": statistics.median(gains["kernel"]),
                "attention": statistics.median(gains["attention"]),
                "all": statistics.median(gains["all"]),
                "lowest": min(gains["all"]),
                "highest": max(gains["all"]),
                "operations": full_operations(call) / spent,
            }
        )
    return rows


def slicer_of(heads: int, width: int, slicing: Slicing) -> UnitSlicer:
    """What UniCP slices the attention of a unit with, of which no output projection is known."""
    unit = Unit("attention", torch.nn.Identity(), "self", 0, heads, width, True, "", False)
    return UnitSlicer(unit, Settings(weighting="uniform", slicing=slicing))


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, by the clock of `clock_of`."""
    clock = time.thread_time if clock_of(device) == "thread" else time.perf_counter
    _wait(device)
    begin = clock()
    call()
    _wait(device)
    return clock() - begin


def clock_of(device: torch.device) -> str:
    """Which clock times are taken by: "thread" = what this thread ran, where one thread does the work; else "wall"."""
    return "thread" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--width", type=int, nargs="+", default=[64, 128], help="channels of a head")
    parser.add_argument("--heads", type=int, default=HEADS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/bench/slice_speed.json"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    rows: list[dict[str, Any]] = []
    record = {"repeats": options.repeats, "basis": Slicing().basis, "refresh": Slicing().refresh}
    record |= {"clock": clock_of(device), "environment": environment_of(device, dtype)}
    with torch.no_grad():
        for width in options.width:
            for tokens in options.tokens:
                shape = Shape(tokens, width, options.heads, options.batch)
                for row in measure(shape, SHARES, device, dtype, options.repeats):
                    rows.append(row)
                    gains = ", ".join(
                        f"{name} {row[name]:.2f}x" for name in ("kernel", "attention", "all", "operations")
                    )
                    print(f"{tokens} tokens, {width} -> {row['sliced to']}: {gains}", flush=True)
                # After each shape, so that a run that is stopped keeps what it has.
                write_text(options.out, json.dumps(record | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
