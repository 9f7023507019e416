"""Slicing at the attention call inside a module."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from torch import Tensor

from tests import tiny_models
from tests.fake_models import noise
from unicp.errors import InputError
from unicp.execution.attention_seam import SliceState, run_full, run_sliced
from unicp.models.finder import map_model
from unicp.numerics.operation_counts import OperationCounter
from unicp.settings import Slicing

SHAPE = (2, 2, 20, 16)
SLICING = Slicing(widths=(8, 16))


def attention(seed: int = 0, heads: int = 2, causal: bool = False) -> Tensor:
    query, key, value = (noise(seed + part, 2, heads, 20, 16) for part in range(3))
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal)


def observed(slicing: Slicing = SLICING, call: Any = attention) -> SliceState:
    state = SliceState()
    _, caught = run_full(call, state, slicing, slicing.widths_for(16))
    assert caught
    return state


@pytest.mark.parametrize("basis", ["pca", "centred_pca", "kq_svd"])
def test_an_observed_run_is_bit_equal_to_the_plain_module(basis):
    state = SliceState()
    output, caught = run_full(attention, state, Slicing(widths=(8,), basis=basis), (8,))
    assert caught
    assert torch.equal(output, attention())


def test_attention_that_a_guidance_perturbs_is_not_sliced():
    # Perturbed-attention guidance puts the values in the place of attention, around the whole module.
    known = observed(Slicing(widths=(8,)))
    with AttentionScoreSkipFunctionMode():
        perturbed, state = attention(), SliceState()
        output, caught = run_full(attention, state, SLICING, (8, 16))
        assert torch.equal(output, perturbed)
        assert caught and state.errors == {} and state.bases is None
        # Known from a time without guidance: the perturbed result must come out all the same.
        assert torch.equal(run_sliced(attention, known, 8), perturbed)
    assert not torch.equal(attention(), perturbed)


@pytest.mark.parametrize("basis", ["pca", "centred_pca", "kq_svd"])
def test_full_width_equals_plain_attention_within_rounding(basis):
    state = observed(Slicing(widths=(8, 16), basis=basis, correction=False))
    for seed in (0, 5):
        torch.testing.assert_close(run_sliced(lambda seed=seed: attention(seed), state, 16), attention(seed))


def test_a_narrow_slice_differs_by_about_the_probed_error():
    state = observed(Slicing(widths=(8, 16), correction=False))
    true = attention()
    error = float((run_sliced(attention, state, 8) - true).norm() / true.norm())
    assert error > 0.01
    assert state.errors[8] == pytest.approx(error, rel=0.5)
    assert state.errors[16] < 1e-5


def test_with_its_correction_a_slice_of_unchanged_inputs_is_the_full_output():
    torch.testing.assert_close(run_sliced(attention, observed(), 8), attention(), rtol=1e-5, atol=1e-6)


def test_without_correction_no_full_sized_tensor_is_held():
    with_it, without = observed(), observed(Slicing(widths=(8, 16), correction=False))
    assert without.corrections == {}
    assert with_it.bytes - without.bytes == 2 * math.prod(SHAPE) * 4


def test_a_new_full_run_renews_the_correction():
    state = observed()
    run_full(lambda: attention(7), state, SLICING, (8, 16))
    torch.testing.assert_close(run_sliced(lambda: attention(7), state, 8), attention(7), rtol=1e-5, atol=1e-6)


def test_a_mask_reaches_the_sliced_attention():
    mask = torch.ones(2, 1, 1, 20, dtype=torch.bool)
    mask[..., 12:] = False

    def masked() -> Tensor:
        query, key, value = (noise(part, *SHAPE) for part in range(3))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    state = observed(Slicing(widths=(8, 16), correction=False), masked)
    torch.testing.assert_close(run_sliced(masked, state, 16), masked())


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (lambda: torch.ones(3), "no attention call"),
        (lambda: attention() + attention(5), "two attention calls"),
        (lambda: attention(causal=True), "causal"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_one_plain_attention_call_is_told_and_computed_plainly(module, name):
    state = SliceState()
    output, caught = run_full(module, state, SLICING, (8, 16))
    assert not caught, name
    assert torch.equal(output, module())
    assert (state.bases, state.errors, state.corrections) == (None, {}, {})
    assert torch.equal(run_sliced(module, state, 8), module())


def test_only_the_first_of_two_calls_could_be_sliced_so_an_old_state_is_dropped():
    state = observed()
    run_full(lambda: attention() + attention(5), state, SLICING, (8, 16))
    assert state.errors == {}


def test_other_heads_than_those_observed_are_computed_in_full():
    state = observed()

    def wider() -> Tensor:
        return attention(heads=3)

    assert torch.equal(run_sliced(wider, state, 8), wider())


def test_nan_in_the_inputs_is_the_one_error_that_the_unit_knows():
    with pytest.raises(InputError):
        run_full(attention_of_nan, SliceState(), SLICING, (8,))
    state = observed()
    assert run_sliced(attention_of_nan, state, 8).isnan().any()


def attention_of_nan() -> Tensor:
    query, key, value = (noise(part, *SHAPE) for part in range(3))
    return F.scaled_dot_product_attention(query * math.nan, key, value)


def test_the_saved_operations_are_those_that_are_not_executed():
    state = observed(Slicing(widths=(8,), correction=False))
    with OperationCounter() as full:
        attention()
    with OperationCounter() as sliced:
        run_sliced(attention, state, 8)
    assert full.total - sliced.total == state.saved[8]


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_the_attention_of_every_family_is_caught_and_exact_at_full_width(name):
    transformer = tiny_models.build(name)

    def answer() -> Tensor:
        return tiny_models.first(tiny_models.call(transformer, name, tiny_models.inputs(name)))

    with torch.no_grad():
        plain = answer()
        for unit in map_model(transformer).units:
            if not unit.sliceable:
                continue
            forward, state = unit.module.forward, SliceState()
            results: list[bool] = []

            def full(*args: Any, forward: Any = forward, state: Any = state, results: Any = results, **kw: Any) -> Any:
                output, caught = run_full(lambda: forward(*args, **kw), state, Slicing(widths=(16,)), (16,))
                results.append(caught)
                return output

            def sliced(*args: Any, forward: Any = forward, state: Any = state, **kwargs: Any) -> Any:
                return run_sliced(lambda: forward(*args, **kwargs), state, 16)

            unit.module.forward = full
            assert torch.equal(answer(), plain)
            assert results == [True], unit.name
            unit.module.forward = sliced
            torch.testing.assert_close(answer(), plain, rtol=1e-3, atol=1e-4)
            del unit.module.forward
