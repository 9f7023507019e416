"""Operations of attention and linear algebra, by formula and by watching a model run.

One multiply-add counts as 2 operations. Softmax, norms, activations, biases and sums are not counted: they are a few
per cent of a transformer, and memory limits them. All counts are integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def linear_operations(rows: int, inputs: int, outputs: int) -> int:
    """Operations (2 per multiply-add) of a matrix product (rows, inputs) x (inputs, outputs), bias not counted."""
    return 2 * rows * inputs * outputs


def attention_operations(batch: int, heads: int, queries: int, keys: int, key_width: int, value_width: int) -> int:
    """Operations (2 per multiply-add) of both products of attention, over all batch x heads.

    Scores: queries x keys x key_width; weighted values: queries x keys x value_width. Widths are channels of a head.
    A mask changes nothing, because dense kernels compute what is masked.
    """
    return 2 * batch * heads * queries * keys * (key_width + value_width)


def sliced_attention_operations(batch: int, heads: int, queries: int, keys: int, width: int, head_width: int) -> int:
    """Operations (2 per multiply-add) of `sliced_attention`, over all batch x heads.

    They are the projection of queries, keys and values from head_width to width channels, attention at that width, and
    the lift of the result.
    """
    rows_projected_or_lifted = batch * heads * (2 * queries + 2 * keys)
    change_of_width = linear_operations(rows_projected_or_lifted, head_width, width)
    return change_of_width + attention_operations(batch, heads, queries, keys, width, width)


def slice_fit_operations(heads: int, tokens: int, head_width: int) -> int:
    """Approximate operations of fitting bases: three second moments, and three decompositions (30 d^3)."""
    return heads * (3 * linear_operations(tokens, head_width, head_width) + 30 * head_width**3)


def convolution_operations(results: int, inputs: int, taps: int) -> int:
    """Operations (2 per multiply-add) of a convolution.

    Args:
        results: Output values, batch x channels x positions.
        inputs: Input channels that one output channel sees (all of them / groups).
        taps: Positions of the kernel.
    """
    return 2 * results * inputs * taps


class OperationCounter(TorchFunctionMode):
    """Counts the operations that PyTorch executes inside `with OperationCounter() as counter:`.

    It counts linear layers, matrix products (matmul, @, mm, bmm, addmm, baddbmm, in-place too), conv1d to conv3d, and
    scaled_dot_product_attention. It does not count anything else, such as einsum, transposed convolutions,
    torch.nn.MultiheadAttention, other attention libraries and compiled code. Counts add up over repeated use.

    Attributes:
        total: All operations, 2 per multiply-add.
        attention: Those of scaled_dot_product_attention.
        by_label: Those inside `with counter.label(name):`; nested labels each get them once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.attention = 0
        self.by_label: dict[str, int] = {}
        self._labels: list[str] = []
        self._is_paused = False

    @contextmanager
    def counted_as(self, operations: int) -> Iterator[None]:
        """Counts what runs inside as so many operations of attention."""
        was_paused, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = was_paused
        if not was_paused:
            self._add(operations, is_attention=True)

    @contextmanager
    def label(self, name: str) -> Iterator[None]:
        """Counts operations inside for `name` too; the label is listed even if there are none."""
        self.by_label.setdefault(name, 0)
        self._labels.append(name)
        try:
            yield
        finally:
            self._labels.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        rule = _RULES.get(func)
        if rule is not None and not self._is_paused:
            self._add(rule(result, args, kwargs), is_attention=rule is _count_attention)
        return result

    def _add(self, operations: int, is_attention: bool) -> None:
        self.total += operations
        self.attention += operations if is_attention else 0
        for name in set(self._labels):
            self.by_label[name] += operations


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Tensor:
    return args[position] if len(args) > position else kwargs[name]


def _count_linear(result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    weight = _argument(args, kwargs, 1, "weight")
    return linear_operations(1, weight.shape[-1], result.numel())


def _count_product(result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return linear_operations(1, _argument(args, kwargs, 0, "input").shape[-1], result.numel())


def _count_matrix_added_product(name: str) -> Callable[[Tensor, tuple[Any, ...], dict[str, Any]], int]:
    def count(result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        return linear_operations(1, _argument(args, kwargs, 1, name).shape[-1], result.numel())

    return count


def _count_convolution(result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    weight = _argument(args, kwargs, 1, "weight")
    return convolution_operations(result.numel(), weight.shape[1], math.prod(weight.shape[2:]))


def _count_attention(result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    query, key = _argument(args, kwargs, 0, "query"), _argument(args, kwargs, 1, "key")
    matrices = math.prod(result.shape[:-2])
    return attention_operations(1, matrices, query.shape[-2], key.shape[-2], query.shape[-1], result.shape[-1])


_PRODUCTS = (torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm)
_RULES: dict[Callable[..., Any], Callable[[Tensor, tuple[Any, ...], dict[str, Any]], int]] = {
    F.linear: _count_linear,
    F.scaled_dot_product_attention: _count_attention,
    **dict.fromkeys(_PRODUCTS, _count_product),
    **dict.fromkeys((torch.addmm, Tensor.addmm, Tensor.addmm_), _count_matrix_added_product("mat1")),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm, Tensor.baddbmm_), _count_matrix_added_product("batch1")),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d), _count_convolution),
}
