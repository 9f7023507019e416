"""What a sampler makes of each output it is given: the share of each in the final sample.

A sampler is linear in the outputs of the model, as long as it does not clip its samples: each output enters the final
sample times a number that its noise levels decide. That number is what comes out of the sampler if one output is 1 and
all else is 0, the sample included. All steps are asked at once, each in a row of one batch.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

# Small, so that no clipping of a sampler begins to act.
IMPULSE = 1e-3
# Axes of samples: at least those of (batch, tokens, channels).
LEAST_AXES, USUAL_AXES = 3, 4


def output_shares(scheduler: Any, first: int) -> tuple[float, ...] | None:
    """The share of the output of each step in the final sample of a run.

    Args:
        scheduler: Set to its run, and stepped up to step `first`. It is left as it is.
        first: The first step whose share is asked for.

    Returns:
        One number for each step, 0 for those before `first`; `None` where the scheduler cannot tell: it cannot be
        stepped like this, or is not linear.
    """
    times = getattr(scheduler, "timesteps", None)
    config = getattr(scheduler, "config", None) or {}
    if times is None or not 0 <= first < len(times) or config.get("thresholding", False):
        return None
    try:
        # The same noise twice, so that the shares of a random sampler are what differs.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            made = [_final(scheduler, first, size) for size in (IMPULSE, 0.0)]
    except Exception:  # a scheduler of somebody else may not take such samples
        return None
    shares = ((made[0] - made[1]) / IMPULSE).tolist()
    # A sampler that clips its samples makes nothing of an impulse.
    return (*[0.0] * first, *shares) if any(shares) and all(map(math.isfinite, shares)) else None


def _final(scheduler: Any, first: int, size: float) -> Tensor:
    """The final sample, (rows,), where the output of step `first` + i is `size` in row i, and else all is 0."""
    # Of the CPU alone, which is forked: torch.manual_seed would seed every device.
    torch.default_generator.manual_seed(0)
    own, shape = _emptied(scheduler, len(scheduler.timesteps) - first)
    times, state = own.timesteps[first:], torch.zeros(shape)
    for row, time in enumerate(times):
        output = torch.zeros_like(state)
        output[row] = size
        made = own.step(output, time, state)
        state = made if isinstance(made, Tensor) else made[0] if isinstance(made, tuple) else made.prev_sample
    return state.flatten().double()


def _emptied(scheduler: Any, rows: int) -> tuple[Any, tuple[int, ...]]:
    """A copy of a scheduler on the CPU that remembers zeros for each sample or output it holds, and their shape."""
    own, kept = copy.copy(scheduler), vars(scheduler)
    held = [*kept.values(), *(one for value in kept.values() if isinstance(value, list) for one in value)]
    # Tables of noise levels have one axis.
    axes = next((one.dim() for one in held if isinstance(one, Tensor) and one.dim() >= LEAST_AXES), USUAL_AXES)
    shape = (rows, *[1] * (axes - 1))

    def emptied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.zeros(shape) if value.dim() >= LEAST_AXES else value.cpu()
        return [emptied(one) for one in value] if isinstance(value, list) else value

    vars(own).update({name: emptied(value) for name, value in kept.items()})
    # What was put before its own method is not asked: it may be watching the run.
    vars(own).pop("step", None)
    return own, shape
