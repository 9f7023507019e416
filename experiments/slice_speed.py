"""How much faster attention at reduced width is, with all that it takes, as tokens and head widths grow.

    python -m experiments.slice_speed --out docs/results/slice_speed.json
    python -m experiments.slice_speed --device cuda --dtype bfloat16 --tokens 8192 32768 65536 --width 128

Random queries, keys and values: seconds depend on shapes alone. "kernel" is the attention call alone, on tensors of the
reduced width: what no slice can beat. "attention" is that call with its projections and its lift; "all" adds what
`Slicing` does around it, bases that serve four calls and the trial rows in each. Full and sliced calls alternate; each
repeat gives one ratio: the median, and of "all" the range. With one thread on a CPU times are those that the thread
ran, so that other jobs on the machine add nothing but what they take from its caches. "operations" is the gain of "all"
in operations. Whether UniCP slices a call is decided by `Costs.share`, which counts small matrices more.
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
from unicp.execution.attention_seam import Costs, SliceState, run_sliced

from unicp.errors import run_main
from unicp.files import write_text
from unicp.reducers.bases import fit_bases
from unicp.reducers.pca_slices import sliced_attention
from unicp.settings import Slicing
from unicp_bench.harness import environment_of

SHARES = (0.25, 0.5, 0.75)
TOKENS = (512, 1024, 2048, 4096, 8192)
HEADS = 2


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
        bases, state = fit_bases(query, key, value, slicing.basis), SliceState()
        parts = tuple(x[..., :width].contiguous() for x in (query, key, value))

        def full() -> Any:
            return F.scaled_dot_product_attention(query, key, value)

        def kernel(parts: tuple[torch.Tensor, ...] = parts) -> Any:
            return F.scaled_dot_product_attention(parts[0], parts[1], parts[2])

        def sliced(bases: Any = bases, width: int = width) -> Any:
            return sliced_attention(query, key, value, bases, width)

        def everything(state: SliceState = state, slicing: Slicing = slicing, width: int = width) -> None:
            for _ in range(slicing.refresh):
                run_sliced(full, state, slicing, (width,), lambda errors, costs: width)

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
        costs = Costs(query, key, slicing.basis)
        spent = costs.attend(width) + costs.probe([width]) + costs.fit / slicing.refresh
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
                "operations": costs.full / spent,
            }
        )
    return rows


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
