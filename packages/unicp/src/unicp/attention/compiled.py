"""Attention units inside compiled code: no hook is called there, so an interceptor stands in front of their forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from unicp.attention.interceptor import CompiledInterceptor
from unicp.models.finder import ModelMap, Unit
from unicp.reducers.attention_call import AttentionCall


def is_compiled(module: nn.Module) -> bool:
    """Whether this module was compiled, in place or by being wrapped."""
    return getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules


def compiled_blocks(model_map: ModelMap) -> list[nn.Module]:
    """The blocks that were compiled, in execution order."""
    return [block.module for block in model_map.blocks if is_compiled(block.module)]


def compiled_parts(model_map: ModelMap) -> set[int]:
    """Every module that runs inside a compiled block, or is a compiled unit, by its id."""
    blocks = {id(part) for block in compiled_blocks(model_map) for part in block.modules()}
    return blocks | {id(unit.module) for unit in model_map.units if is_compiled(unit.module)}


def put_interceptor(unit: Unit, attend: Callable[[Unit, AttentionCall, bool], Tensor]) -> None:
    """Lets `attend` compute the attention of a unit that is compiled; its block compiles once more."""
    module: Any = unit.module
    module = module._modules.get("_orig_mod", module)
    interceptor = CompiledInterceptor(module.forward, lambda call, first: attend(unit, call, first))
    # A bound method and not a hook of diffusers: its number apart, one block is then to the compiler like the other.
    module.forward = interceptor.forward


def take_interceptors(transformer: nn.Module) -> None:
    """Takes all of them off again; one that something else has wrapped since passes everything on."""
    for module in transformer.modules():
        interceptor = getattr(module.__dict__.get("forward"), "__self__", None)
        for inner in (interceptor, *_buried(module)):
            if isinstance(inner, CompiledInterceptor):
                inner.is_on = False
        if isinstance(interceptor, CompiledInterceptor):
            if getattr(interceptor.original, "__func__", None) is type(module).forward:
                del module.__dict__["forward"]
            else:
                module.forward = interceptor.original


def _buried(module: nn.Module) -> list[Any]:
    """What hooks of diffusers that were put on later go on to call."""
    registry = getattr(module, "_diffusers_hook", None)
    references = [] if registry is None else registry._fn_refs
    return [getattr(getattr(ref, "original_forward", None), "__self__", None) for ref in references]
