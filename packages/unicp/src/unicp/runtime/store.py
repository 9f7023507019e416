"""Stored outputs, within a byte budget."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unicp.settings import Settings

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class _Shelved:
    """A tensor as it is kept, and how the model made it."""

    tensor: Tensor
    dtype: torch.dtype
    device: torch.device

    def as_made(self) -> Tensor:
        return self.tensor.to(device=self.device, dtype=self.dtype)


class OutputStore:
    """The last outputs of each cache point in each branch, as tuples of tensors.

    `limit` is in bytes; None = no limit known yet. Keys are grouped by their first part for counting branches.
    """

    def __init__(self, settings: Settings):
        self._dtype = _DTYPES.get(settings.store_dtype)
        self._device = None if settings.store_device == "same" else torch.device(settings.store_device)
        self._fixed = settings.store_bytes
        self._factor = settings.store_factor
        self._stream_bytes = 0
        self._points: dict[Hashable, list[tuple[_Shelved, ...]]] = {}
        self.bytes = 0
        self.peak_bytes = 0

    def note_stream(self, stream: Tensor) -> None:
        """Tells the size of a residual stream, from which the default budget follows."""
        self._stream_bytes = max(self._stream_bytes, stream.numel() * stream.element_size())

    def limit(self, branches: int) -> int | None:
        """Bytes that may be stored with this many branches; None where nothing limits them."""
        if self._fixed is not None:
            return self._fixed
        if self._stream_bytes == 0:
            return None
        return int(self._factor * self._stream_bytes * max(1, branches))

    def put(self, key: Hashable, tensors: Sequence[Tensor], keep: int, branches: int) -> bool:
        """Stores one more output under `key`, keeping the last `keep`. False, and nothing stored, beyond the budget."""
        held = self._points.get(key, [])
        dropped = held[: max(0, len(held) + 1 - keep)]
        kept = tuple(self._shelve(tensor) for tensor in tensors)
        after = self.bytes - _size(dropped) + _size([kept])
        limit = self.limit(branches)
        if limit is not None and after > limit:
            return False
        self._points[key] = [*held[len(dropped) :], kept]
        self.bytes = after
        self.peak_bytes = max(self.peak_bytes, after)
        return True

    def replace_last(self, key: Hashable, tensors: Sequence[Tensor]) -> None:
        """Puts others of the same shapes in the place of the newest output of `key`."""
        self._points[key][-1] = tuple(
            _Shelved(new.detach().to(old.tensor, copy=True), old.dtype, old.device)
            for new, old in zip(tensors, self._points[key][-1], strict=True)
        )

    def get(self, key: Hashable) -> list[tuple[Tensor, ...]]:
        """The stored outputs, oldest first, in the dtype and on the device in which the model made each."""
        return [tuple(one.as_made() for one in point) for point in self._points.get(key, [])]

    def held(self, key: Hashable) -> list[tuple[Tensor, ...]]:
        """The stored outputs as they are kept."""
        return [tuple(one.tensor for one in point) for point in self._points.get(key, [])]

    def drop(self, key: Hashable) -> None:
        """Forgets one key."""
        self.bytes -= _size(self._points.pop(key, []))

    def clear(self) -> None:
        """Forgets everything."""
        self._points.clear()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._points)

    def _shelve(self, tensor: Tensor) -> _Shelved:
        # Shelved tensors are copies: a caller may write into what it was given.
        kept = tensor.detach().to(device=self._device, dtype=self._dtype or tensor.dtype, copy=True)
        return _Shelved(kept, tensor.dtype, tensor.device)


def _size(points: Sequence[tuple[_Shelved, ...]]) -> int:
    return sum(one.tensor.numel() * one.tensor.element_size() for point in points for one in point)
