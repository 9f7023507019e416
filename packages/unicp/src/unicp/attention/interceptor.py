"""Where UniCP takes hold of attention: one interceptor for eager and compiled modules, and for every attention backend.

A torch function mode around the attention module sees `scaled_dot_product_attention`, and, while `attention_backends`
is in place, every backend of diffusers' dispatcher before it runs. In eager mode the call is handled there and then.
Where a compiler traces the module it traces through the mode, and what it finds in place of the attention is one
opaque operator, `unicp::attention`: the graph says nothing of widths, and what is done is decided at each run of it.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function
from torch.utils._device import DeviceContext

from unicp.numerics.operation_counts import OperationCounter
from unicp.reducers.attention_call import SDPA, AttentionCall

_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_PLAIN = ("query", "key", "value", "attn_mask", "scale")
FLEX = "flex"


def call_of(backend: str, function: Callable[..., Tensor], named: dict[str, Any]) -> AttentionCall:
    """The call of `function` with these arguments; a backend's tensors are (B, S, H, d)."""
    query, key, value = named["query"], named["key"], named["value"]
    mask, scale = named.get("attn_mask"), named.get("scale")
    if backend == SDPA:

        def compute(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
            return function(**{**named, "query": query, "key": key, "value": value, "scale": scale})

        return AttentionCall(query, key, value, mask, scale, compute, SDPA, is_perturbed())

    def compute_turned(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        turned = {"query": query.transpose(1, 2), "key": key.transpose(1, 2), "value": value.transpose(1, 2)}
        return function(**{**named, **turned, "scale": scale}).transpose(1, 2)

    if mask is not None and mask.dim() == 2 and mask.shape == key.shape[:2]:
        mask = mask[:, None, None, :]  # diffusers takes one row of keys for each sample
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return AttentionCall(query, key, value, mask, scale, compute_turned, backend, is_perturbed())


def is_perturbed() -> bool:
    """Whether another mode stands around the interceptor, such as diffusers' perturbed-attention guidance."""
    around = (torch._C._get_function_stack_at(place) for place in range(torch._C._len_torch_function_stack()))
    return any(not isinstance(mode, (DeviceContext, OperationCounter)) for mode in around)


# (function, arguments by name) of scaled_dot_product_attention, or with the name of a backend as well -> the attention,
# (B, H, S, d).
Handle = Callable[..., Tensor]


class AttentionInterceptor(TorchFunctionMode):
    """Hands the one attention call of a module to `handle`. calls: 1 = there was one, and it was plain attention.

    others: is told of every further call, which is computed plainly.
    """

    def __init__(self, handle: Handle, others: Handle | None = None):
        super().__init__()
        self._handle, self._others = handle, others
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(SDPA, func, {**dict(zip(_ARGUMENTS, args)), **kwargs})
        if func is by_backend:
            return self._attention(args[0], args[1], kwargs)
        if func is Tensor.unflatten:
            # Its own Python calls super(), which torch.compile cannot follow under a mode (torch 2.13).
            func = torch.unflatten
        return func(*args, **kwargs)

    def _attention(self, backend: str, function: Callable[..., Tensor], named: dict[str, Any]) -> Tensor:
        self.calls += 1
        plain = _is_plain(backend, named)
        handle = self._handle if self.calls == 1 else self._others
        if self.calls > 1 or not plain:
            self.calls += 1
        if handle is None or not plain:
            return function(**named)
        if backend == SDPA:
            return handle(function, named)
        return handle(function, named, backend).transpose(1, 2)


def _is_plain(backend: str, named: dict[str, Any]) -> bool:
    if any(value for name, value in named.items() if name not in _PLAIN):
        return False
    # At a lesser width the scale must be told. A mask of flex attention is an object of its own.
    takes_scale = backend == SDPA or "scale" in named
    return takes_scale and isinstance(named.get("attn_mask"), (Tensor, type(None)))


def by_backend(backend: str, function: Callable[..., Tensor], **named: Any) -> Tensor:
    """Attention by a backend of diffusers' dispatcher, (B, S, H, d) each.

    An interceptor right around the call gets it first. Modes further out are not asked: they would see this call
    instead of the one that the backend ends in.
    """
    place = torch._C._len_torch_function_stack() - 1
    if place >= 0 and isinstance(torch._C._get_function_stack_at(place), AttentionInterceptor):
        return handle_torch_function(by_backend, (named["query"],), backend, function, **named)
    return function(**named)


# What attends for a unit whose module is compiled: (call, whether it is the module's first) -> the attention.
Attend = Callable[[AttentionCall, bool], Tensor]
_numbers = itertools.count()
_interceptors: weakref.WeakValueDictionary[int, CompiledInterceptor] = weakref.WeakValueDictionary()
# By name, the functions of diffusers' dispatcher; filled by `attention_backends`.
backend_functions: dict[str, Callable[..., Tensor]] = {}


@dataclass(eq=False)
class CompiledInterceptor:
    """Stands in front of the forward of an attention module that is compiled, alone or with its block.

    number: by which the operator finds it again; a tensor, so that it is an input of the graph and one graph is enough
    for all blocks. is_on: False once it was taken off.
    """

    original: Callable[..., Any]
    attend: Attend
    number: Tensor = field(default_factory=lambda: torch.tensor(next(_numbers), device="cpu"))
    is_on: bool = True

    def __post_init__(self) -> None:
        _interceptors[int(self.number)] = self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward, its attention by the operator."""
        if not self.is_on:
            return self.original(*args, **kwargs)
        with AttentionInterceptor(self._first, self._other):
            return self.original(*args, **kwargs)

    def _first(self, function: Callable[..., Tensor], named: dict[str, Any], backend: str = SDPA) -> Tensor:
        return self._operator(backend, function, named, True)

    def _other(self, function: Callable[..., Tensor], named: dict[str, Any], backend: str = SDPA) -> Tensor:
        return self._operator(backend, function, named, False)

    def _operator(self, backend: str, function: Callable[..., Tensor], named: dict[str, Any], first: bool) -> Tensor:
        query, key, value = named["query"], named["key"], named["value"]
        differentiated = query.requires_grad or key.requires_grad or value.requires_grad
        if is_perturbed() or differentiated or backend == FLEX:
            # The operator has no derivative, and would hide the call from whoever stands in front of it, or from the
            # compiler, without which flex attention is slow.
            output = function(**named)
            return output if backend == SDPA else output.transpose(1, 2)
        options = named.get("attn_mask"), named.get("scale"), self.number, backend, first
        operator = torch.ops.unicp.attention.default
        if backend == SDPA:
            return operator(query, key, value, *options)
        turned = (part.transpose(1, 2) for part in (query, key, value))
        return operator(*turned, *options)


@torch.library.custom_op("unicp::attention", mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    interceptor: Tensor,
    backend: str,
    first: bool,
) -> Tensor:
    """(B, H, S, d) each; the result lies in memory as (B, S, H, d), as output projections want it."""
    found = _interceptors.get(int(interceptor))
    named: dict[str, Any] = {"query": query, "key": key, "value": value, "scale": scale}
    if mask is not None:
        named["attn_mask"] = mask
    if backend == SDPA:
        call = call_of(SDPA, F.scaled_dot_product_attention, named)
    else:
        turned = {name: named[name].transpose(1, 2) for name in ("query", "key", "value")}
        call = call_of(backend, backend_functions[backend], {**named, **turned})
    # Without an interceptor the module has gone, or UniCP was taken off while the graph ran.
    output = call.full() if found is None or not found.is_on else found.attend(call, first)
    return output.transpose(1, 2).contiguous().transpose(1, 2)


@_attention.register_fake
def _attention_shape(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    interceptor: Tensor,
    backend: str,
    first: bool,
) -> Tensor:
    batch, heads, queries, _ = query.shape
    return cast(Tensor, query.new_empty(batch, queries, heads, value.shape[-1])).transpose(1, 2)
