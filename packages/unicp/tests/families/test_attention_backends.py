"""Attention by kernels that are not here: the registry of diffusers with a function in the place of one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import Tensor

from tests import tiny_models
from tests.families.helpers import denoise
from unicp.models.finder import map_model
from unicp.session import enable
from unicp.settings import Slicing, preset

SAGE = AttentionBackendName.SAGE
HALF = preset("balanced", first=99, slicing=Slicing(widths=(8,), min_saving=-1e6, tolerance=1e6))
REGISTRY = attention_dispatch._AttentionBackendRegistry


@contextmanager
def kernel_in_place(refuses: int = 0, takes_scale: bool = True) -> Iterator[list[int]]:
    """A kernel in the place of SageAttention's; gives the widths that it was called with.

    refuses: a width of heads that it does not take.
    """
    widths: list[int] = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, **more: Any) -> Tensor:
        if not torch.compiler.is_compiling():
            widths.append(query.shape[-1])
        if query.shape[-1] == refuses:
            raise AssertionError(f"head_dim {refuses} is not supported\nsee the manual")
        heads = (part.transpose(1, 2) for part in (query, key, value))
        return F.scaled_dot_product_attention(*heads, scale=scale).transpose(1, 2)

    backend, names = REGISTRY._backends[SAGE], REGISTRY._supported_arg_names[SAGE]
    REGISTRY._backends[SAGE] = kernel
    REGISTRY._supported_arg_names[SAGE] = {"query", "key", "value"} | ({"scale"} if takes_scale else set())
    try:
        yield widths
        assert REGISTRY._backends[SAGE] is kernel
    finally:
        REGISTRY._backends[SAGE], REGISTRY._supported_arg_names[SAGE] = backend, names


def model_with_kernel() -> Any:
    model: Any = tiny_models.build("wan")
    for unit in map_model(model).sliced_units:
        module: Any = unit.module
        module.processor._attention_backend = SAGE
    return model


def sliced_widths(session: Any) -> set[int]:
    return {entry.width for entry in session.trace.entries if entry.width is not None}


def test_a_kernel_of_its_own_computes_the_attention_at_the_sliced_width():
    with kernel_in_place() as widths:
        model = model_with_kernel()
        plain = denoise(model, "wan")
        assert set(widths) == {16}
        with enable(model, replace(HALF, tolerance=0.0)):
            assert torch.equal(denoise(model, "wan"), plain)
        assert set(widths) == {16}
        with enable(model, HALF) as session:
            denoise(model, "wan")
        assert set(widths) == {8, 16} and sliced_widths(session) == {8}
        assert torch.equal(denoise(model, "wan"), plain)


def test_a_kernel_that_does_not_take_the_width_is_told_and_computes_at_full_width():
    with kernel_in_place(refuses=8) as widths:
        model = model_with_kernel()
        plain = denoise(model, "wan")
        with enable(model, HALF) as session:
            assert torch.equal(denoise(model, "wan"), plain)
        assert widths.count(8) == len(map_model(model).sliced_units)  # tried once each
    (told,) = (line for line in session.trace.warnings if line.startswith("blocks.0.attn1 cannot be sliced"))
    assert "backend sage" in told and "8 channels (head_dim 8 is not" in told


def test_a_kernel_that_takes_no_scale_is_told_and_left_alone():
    with kernel_in_place(takes_scale=False) as widths:
        model = model_with_kernel()
        plain = denoise(model, "wan")
        with enable(model, HALF) as session:
            assert torch.equal(denoise(model, "wan"), plain)
        assert set(widths) == {16}
    assert any("attn1 cannot be sliced" in warning for warning in session.trace.warnings)


def test_the_registry_is_as_it_was_once_the_last_of_two_models_is_left():
    before = dict(REGISTRY._backends)
    first, second = tiny_models.build("wan"), tiny_models.build("flux")
    with enable(first, preset("balanced")):
        assert REGISTRY._backends == before  # without slices it is not touched
    outer = enable(first, HALF)
    with enable(second, HALF):
        seen = dict(REGISTRY._backends)
        assert seen.keys() == before.keys() and not set(seen.values()) & set(before.values())
    assert REGISTRY._backends == seen
    outer.disable()
    assert REGISTRY._backends == before


@pytest.mark.slow
@pytest.mark.parametrize("refuses", [0, 8])
def test_a_kernel_of_its_own_inside_compiled_blocks(refuses):
    torch._dynamo.reset()
    with kernel_in_place(refuses) as widths:
        model = model_with_kernel()
        plain = denoise(model, "wan")
        model.compile_repeated_blocks(backend="eager", fullgraph=True)
        with enable(model, HALF) as session:
            output = denoise(model, "wan")
        assert set(widths) == {8, 16}
        assert sliced_widths(session) == (set() if refuses else {8})
        assert torch.equal(output, plain) is bool(refuses)
        assert torch.equal(denoise(model, "wan"), plain)


@pytest.mark.slow
def test_flex_attention_inside_compiled_blocks_is_told_and_left_alone():
    torch._dynamo.reset()
    model: Any = tiny_models.build("wan")
    model.set_attention_backend("flex")
    REGISTRY.set_active_backend(AttentionBackendName.NATIVE)  # set_attention_backend set that of the process too
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    plain = denoise(model, "wan")
    with enable(model, HALF) as session:
        assert torch.equal(denoise(model, "wan"), plain)
    told = ("attn1 cannot be sliced", "not one plain call", "inside compiled code")
    assert any(all(part in warning for part in told) for warning in session.trace.warnings)
