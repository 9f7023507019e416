"""What a transformer gives out: a tensor, a tuple of one, or an object with a `sample`."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def get_tensor(output: Any) -> Tensor | None:
    """The tensor in what a transformer gave out; None where it is not one tensor, alone or as the `sample`."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple) and len(output) == 1 and isinstance(output[0], Tensor):
        return output[0]
    sample = getattr(output, "sample", None)
    return sample if isinstance(sample, Tensor) else None


def without_tensor(output: Any) -> Any:
    """What is needed besides a tensor to make an output of the same kind."""
    if isinstance(output, Tensor):
        return None
    return () if isinstance(output, tuple) else type(output)


def put_tensor(template: Any, tensor: Tensor) -> Any:
    """An output of the kind that `without_tensor` was asked about, with this tensor in it."""
    if template is None:
        return tensor
    return (tensor,) if template == () else template(sample=tensor)
