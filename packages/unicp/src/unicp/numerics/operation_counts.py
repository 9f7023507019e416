"""Operations of attention and linear algebra, by formula and by watching a model run.

One multiply-add counts as 2 operations, everywhere. Softmax, norms, activations, biases and sums of tensors are not
counted; they are a few per cent of a transformer and are limited by memory, not arithmetic. All counts are integers.
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
    A mask or causality changes nothing, as dense kernels compute what is masked.
    """
    return 2 * batch * heads * queries * keys * (key_width + value_width)


def sliced_attention_operations(batch: int, heads: int, queries: int, keys: int, width: int, head_width: int) -> int:
    """Operations (2 per multiply-add) of `sliced_attention`: all of it, over all batch x heads.

    Projection of queries, keys and values from head_width to width channels, attention at that width, and the lift
    of the result back. It is cheaper than full attention only where keys and queries are many.
    """
    rows_projected_or_lifted = batch * heads * (2 * queries + 2 * keys)
    change_of_width = linear_operations(rows_projected_or_lifted, head_width, width)
    return change_of_width + attention_operations(batch, heads, queries, keys, width, width)


def slice_fit_operations(heads: int, tokens: int, head_width: int) -> int:
    """Operations of fitting bases, about: three second moments, and what is decomposed (30 d^3 for three of them)."""
    return heads * (3 * linear_operations(tokens, head_width, head_width) + 30 * head_width**3)


def convolution_operations(results: int, inputs: int, taps: int) -> int:
    """Operations (2 per multiply-add) of a convolution with `results` output values (batch x channels x positions).

    inputs: input channels that one output channel sees (all of them / groups); taps: positions of the kernel.
    """
    return 2 * results * inputs * taps


class OperationCounter(TorchFunctionMode):
    """Counts the operations that PyTorch executes inside `with OperationCounter() as counter:`, changing no result.

    Counted, at 2 per multiply-add: linear, the matrix products (matmul, @, mm, bmm, addmm, baddbmm, in-place too),
    conv1d to conv3d, and scaled_dot_product_attention with its own key and value widths. Not counted: anything else,
    among them einsum, transposed convolutions, torch.nn.MultiheadAttention, other attention libraries and compiled
    code; only eager calls can be seen. Counts add up over repeated use; make a new counter to start at zero.

    total: all operations. attention: those of scaled_dot_product_attention alone. by_label: those executed inside
    `with counter.label(name):`; labels may be nested, and each one on the stack gets the operations once.
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
        """Count what is executed inside as so many operations of attention, whatever it takes."""
        was_paused, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = was_paused
        if not was_paused:
            self._add(operations, is_attention=True)

    @contextmanager
    def label(self, name: str) -> Iterator[None]:
        """Attribute operations executed inside to `name` as well; the label is listed even if there are none."""
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
