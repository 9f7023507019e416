"""One of two processes that share a tiny Wan by context parallelism; started by tests/families/test_parallel.py.

Prints one line of JSON: what was decided at each call, and how far the result is from the plain one.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig

from tests import tiny_models
from unicp.errors import UnsupportedModelError
from unicp.session import enable
from unicp.settings import preset


def work(rank: int, store: str) -> dict[str, Any]:
    # diffusers takes the rank modulo the number of accelerators, of which there are none here.
    torch.accelerator.device_count = lambda: 1
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model: Any = tiny_models.build("wan")
    alone = tiny_models.denoise(model, "wan", steps=9)
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    plain = tiny_models.denoise(model, "wan", steps=9)
    with enable(model, preset("balanced", tolerance=0.0)):
        exact = torch.equal(tiny_models.denoise(model, "wan", steps=9), plain)
    with enable(model, preset("balanced", tolerance=0.5, weighting="uniform")) as session:
        output = tiny_models.denoise(model, "wan", steps=9)
    refused = {}
    for span in ("stack", "block", "unit"):
        try:
            enable(model, preset("balanced", span=span))
        except UnsupportedModelError as error:
            refused[span] = error.found
    return {
        "parallel_is_right": bool(torch.allclose(alone, plain, rtol=1e-3, atol=1e-4)),
        "exact": exact,
        "actions": [entry.action for entry in session.trace.entries],
        "output": output.flatten()[:20].tolist(),
        "close": float((output - plain).norm() / plain.norm()),
        "refused": refused,
    }


if __name__ == "__main__":
    found = work(int(sys.argv[1]), sys.argv[2])
    print(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
