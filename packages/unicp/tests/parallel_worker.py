"""One of two processes that share a tiny model; started by families/test_parallel.py.

    python -m tests.parallel_worker RANK STORE KIND...

KIND is context, tensor or linears. Prints one line of JSON: for each, what was decided at each call, and how far the
result is from the plain one.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import diffusers
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tests import tiny_models
from unicp.errors import UnsupportedModelError
from unicp.session import enable
from unicp.settings import preset


def share(model: Any, how: str) -> None:
    """context: sequences; tensor: heads and widths by diffusers' own plan; linears: the same by torch alone."""
    if how == "context":
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
        return
    from diffusers.hooks import tensor_parallel

    mesh = init_device_mesh("cpu", (2,))
    if how == "tensor":
        # diffusers names accelerators only; the plan and what carries it out are the same on a CPU.
        tensor_parallel._SUPPORTED_TP_DEVICES = ("cpu",)
        model.enable_parallelism(config=diffusers.TensorParallelConfig(mesh=mesh))
        return
    for block in model.transformer_blocks:
        queries = {f"attn.{name}": ColwiseParallel() for name in ("to_q", "to_k", "to_v")}
        added = {f"attn.add_{name}_proj": ColwiseParallel() for name in "qkv"}
        outs = {"attn.to_out.0": RowwiseParallel(), "attn.to_add_out": RowwiseParallel()}
        parallelize_module(block, mesh, {**queries, **added, **outs})


def work(how: str) -> dict[str, Any]:
    name = "wan" if how == "context" else "flux"
    model: Any = tiny_models.build(name)
    alone = tiny_models.denoise(model, name, steps=9)
    share(model, how)
    plain = tiny_models.denoise(model, name, steps=9)
    with enable(model, preset("balanced", tolerance=0.0)):
        exact = torch.equal(tiny_models.denoise(model, name, steps=9), plain)
    with enable(model, preset("balanced", tolerance=0.5, weighting="uniform")) as session:
        output = tiny_models.denoise(model, name, steps=9)
    refused = {}
    for level in ("block", "unit", "sliced"):
        slicing = {"slicing": preset("paper").slicing} if level == "sliced" else {"level": level}
        try:
            enable(model, preset("balanced", **slicing))
        except UnsupportedModelError as error:
            refused[level] = error.found
    return {
        "parallel_is_right": bool(torch.allclose(alone, plain, rtol=1e-3, atol=1e-4)),
        "exact": exact,
        "actions": [entry.action for entry in session.trace.entries],
        "output": output.flatten()[:20].tolist(),
        "close": float((output - plain).norm() / plain.norm()),
        "refused": refused,
    }


if __name__ == "__main__":
    rank, store, *kinds = sys.argv[1:]
    # diffusers takes the rank modulo the number of accelerators, of which there are none here.
    torch.accelerator.device_count = lambda: 1
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
    print(json.dumps({how: work(how) for how in kinds}))
    dist.barrier()
    dist.destroy_process_group()
