"""Slicing at the attention call inside a module: measured in the call itself, at the width that was chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from tests.fake_models import noise
from torch import Tensor
from unicp.execution import attention_seam
from unicp.execution.attention_seam import (
    GROUPED,
    NOT_CAUGHT,
    TOO_SHORT,
    Choose,
    Costs,
    SliceOutcome,
    SliceState,
    run_sliced,
)

from tests import tiny_models
from unicp.models.finder import map_model
from unicp.numerics.operation_counts import OperationCounter, attention_operations
from unicp.settings import Basis, Slicing

HEADS, TOKENS, WIDTH = 2, 20, 16
ANY_COST = -1e6
MEASURED = Path(__file__).resolve().parents[5] / "docs" / "results" / "slice_speed.json"
SLICING = Slicing(widths=(8, 16), min_saving=ANY_COST, refresh=4)


def attention(seed: int = 0, heads: int = HEADS, tokens: int = TOKENS, **options: Any) -> Tensor:
    query, key, value = (noise(seed + part, 2, heads, tokens, WIDTH) for part in range(3))
    return F.scaled_dot_product_attention(query, key, value, **options)


def grouped(**options: Any) -> Tensor:
    """Twice as many heads of queries as of keys and values."""
    query, key, value = (noise(part, 2, heads, TOKENS, WIDTH) for part, heads in enumerate((4, 2, 2)))
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True, **options)


def shared() -> Tensor:
    """One head of keys and values for all of queries."""
    query, key, value = (noise(part, 2, heads, TOKENS, WIDTH) for part, heads in enumerate((4, 1, 1)))
    return F.scaled_dot_product_attention(query, key, value)


def falling(powers: Tensor) -> Tensor:
    query, key, value = (noise(part, 2, HEADS, TOKENS, WIDTH) * 0.7**powers for part in range(3))
    return F.scaled_dot_product_attention(query, key, value)


def always(width: int | None) -> Choose:
    return lambda errors, costs: width


def within(tolerance: float) -> Choose:
    """The narrowest width within a tolerance, whatever it costs."""

    def choose(errors: Mapping[int, float], costs: Mapping[int, float]) -> int | None:
        return min((width for width, error in errors.items() if error <= tolerance), default=None)

    return choose


def sliced(
    call: Callable[[], Any], choose: Choose, state: SliceState | None = None, slicing: Slicing = SLICING
) -> tuple[Any, SliceOutcome]:
    return run_sliced(call, state or SliceState(), slicing, slicing.widths_for(WIDTH), choose)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at each fit of bases."""
    done, fit = [], attention_seam.fit_bases

    def counted(*args: Any, **options: Any) -> Any:
        done.append(1)
        return fit(*args, **options)

    monkeypatch.setattr(attention_seam, "fit_bases", counted)
    return done


@pytest.mark.parametrize("basis", get_args(Basis))
def test_a_call_that_is_not_sliced_is_bit_equal_to_the_plain_module(basis):
    output, outcome = sliced(attention, always(None), slicing=Slicing(widths=(8,), basis=basis, min_saving=ANY_COST))
    assert torch.equal(output, attention())
    assert (outcome.width, outcome.refusal) == (None, "")
    assert outcome.saved < 0  # what measuring took


def test_attention_that_a_guidance_perturbs_is_not_sliced():
    # Perturbed-attention guidance puts the values in the place of attention, around the whole module.
    state = SliceState()
    with AttentionScoreSkipFunctionMode():
        output, outcome = sliced(attention, always(8), state)
        assert torch.equal(output, attention())
    assert outcome == SliceOutcome() and state.bases is None
    assert sliced(attention, always(8), state)[1].width == 8


@pytest.mark.parametrize("basis", get_args(Basis))
def test_full_width_equals_plain_attention_within_rounding_also_with_bases_of_other_inputs(basis):
    state = SliceState()
    for seed in (0, 5):
        slicing = Slicing(widths=(8, 16), basis=basis, min_saving=ANY_COST)
        output, outcome = sliced(lambda seed=seed: attention(seed), always(16), state, slicing)
        torch.testing.assert_close(output, attention(seed))
        assert outcome.width == 16 and outcome.error < 1e-5


def test_the_error_that_is_told_is_about_that_of_the_output_and_chooses_the_width():
    true = attention()
    output, outcome = sliced(attention, within(9.0))
    error = float((output - true).norm() / true.norm())
    assert outcome.width == 8 and error > 0.01
    assert outcome.error == pytest.approx(error, rel=0.5)
    assert sliced(attention, within(error / 3))[1].width == 16


def test_bases_serve_until_they_are_old(fits):
    state = SliceState()
    for _ in range(2 * SLICING.refresh):
        assert sliced(attention, within(9.0), state)[1].width == 8
    assert len(fits) == 2


def test_bases_that_no_longer_serve_are_fitted_anew_in_the_same_call(fits):
    def turned() -> Tensor:
        """What matters lies in the channels that mattered least."""
        return falling(torch.arange(WIDTH))

    state = SliceState()
    sliced(lambda: falling(torch.arange(WIDTH).flip(0)), within(9.0), state)
    aged = sliced(turned, within(9.0), state)[1].error
    fresh = sliced(turned, within(9.0))[1].error
    assert fresh < aged / 2 and len(fits) == 2
    half = Slicing(widths=(8,), min_saving=ANY_COST, refresh=4)
    outcome = sliced(turned, within((fresh + aged) / 2), state, half)[1]
    assert (outcome.width, outcome.error) == (8, pytest.approx(fresh))
    assert len(fits) == 3


def test_what_was_far_from_good_enough_is_not_measured_at_every_call(fits):
    state = SliceState()
    spent = [
        sliced(attention, within(1e-9), state, Slicing(widths=(8,), min_saving=ANY_COST))[1].saved for _ in range(10)
    ]
    assert [saved < 0 for saved in spent] == [True, False, False, False, False] * 2
    # A tolerance that would now do is tried at once.
    assert sliced(attention, within(9.0), state)[1].width == 8


def test_a_mask_reaches_the_sliced_attention():
    mask = torch.ones(2, 1, 1, TOKENS, dtype=torch.bool)
    mask[..., 12:] = False
    output, outcome = sliced(lambda: attention(attn_mask=mask), always(16))
    torch.testing.assert_close(output, attention(attn_mask=mask))
    assert outcome.error < 1e-5


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (lambda: torch.ones(3), "no attention call"),
        (lambda: attention(is_causal=True), "causal"),
        (lambda: attention(is_causal=True) + attention(5), "causal first"),
        (grouped, "grouped queries"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_one_plain_attention_call_is_told_and_computed_plainly(module, name):
    state = SliceState()
    output, outcome = sliced(module, always(8), state)
    assert torch.equal(output, module()), name
    assert outcome == SliceOutcome(refusal=NOT_CAUGHT)
    assert state.bases is None


def test_heads_that_share_keys_are_told_and_computed_plainly():
    output, outcome = sliced(shared, always(8))
    assert torch.equal(output, shared())
    assert outcome == SliceOutcome(refusal=GROUPED)


def test_of_two_attention_calls_the_second_is_computed_plainly_and_the_unit_refused():
    output, outcome = sliced(lambda: attention() + attention(5), always(16))
    torch.testing.assert_close(output, attention() + attention(5))
    assert outcome.refusal == NOT_CAUGHT


def test_attention_too_short_to_save_anything_is_told_and_computed_plainly():
    output, outcome = sliced(attention, always(8), slicing=Slicing(widths=(8,)))
    assert torch.equal(output, attention())
    assert outcome == SliceOutcome(refusal=TOO_SHORT)
    longer = sliced(lambda: attention(tokens=1500), always(8), slicing=Slicing(widths=(8,)))[1]
    assert longer.width == 8 and longer.saved > 0 and not longer.refusal


def test_bases_of_other_heads_are_not_used(fits):
    state = SliceState()
    sliced(attention, always(16), state)
    output, _ = sliced(lambda: attention(heads=3), always(16), state)
    torch.testing.assert_close(output, attention(heads=3))
    assert len(fits) == 2


def attention_of_nan() -> Tensor:
    query, key, value = (noise(part, 2, HEADS, TOKENS, WIDTH) for part in range(3))
    return F.scaled_dot_product_attention(query * math.nan, key, value)


def test_nan_in_the_inputs_is_computed_and_leaves_no_bases():
    state = SliceState()
    output, outcome = sliced(attention_of_nan, within(9.0), state)
    assert output.isnan().all() and outcome.width is None
    assert state.bases is None
    assert sliced(attention, within(9.0), state)[1].width == 8


def test_nan_that_comes_while_bases_are_fresh_is_never_within_a_tolerance():
    state = SliceState()
    sliced(attention, within(9.0), state)
    output, outcome = sliced(attention_of_nan, within(9.0), state)
    assert output.isnan().all() and outcome.width is None
    assert sliced(attention, within(9.0), state)[1].width == 8


@pytest.mark.parametrize("width", [8, 16])
def test_the_saved_operations_are_those_that_are_not_executed_but_for_the_fit(width):
    def call() -> Tensor:
        return attention(tokens=1000)

    with OperationCounter() as full:
        call()
    state = SliceState()
    sliced(call, always(width), state)
    with OperationCounter() as executed:
        outcome = sliced(call, always(width), state)[1]
    saved = full.total - executed.total
    # Fewer queries than asked for may be probed, so that their stride meets every column of the video.
    assert outcome.saved <= saved < outcome.saved + 0.02 * full.total


@pytest.mark.parametrize("basis", get_args(Basis))
def test_a_fit_is_paid_for_by_the_call_that_makes_it(basis):
    def call() -> Tensor:
        return attention(tokens=1000)

    state, slicing = SliceState(), Slicing(widths=(8, 16), min_saving=ANY_COST, basis=basis, refresh=4)
    first = sliced(call, always(8), state, slicing)[1].saved
    second = sliced(call, always(8), state, slicing)[1].saved
    query, key, _ = (noise(part, 2, HEADS, 1000, WIDTH) for part in range(3))
    assert second - first == Costs(query, key, basis).fit > 0
    rows = attention_operations(2, HEADS, 128, 1000, WIDTH, WIDTH) if basis == "output_pca" else 0
    assert Costs(query, key, basis).fit == Costs(query, key).fit + rows


def test_the_error_is_that_after_the_projection_and_axes_are_fitted_to_it(fits):
    # The projection sees one channel of each head.
    weight = torch.zeros(3, HEADS * WIDTH)
    weight[0, 5], weight[1, WIDTH + 2] = 1.0, 1.0

    def told(basis: Basis, projection: Tensor | None) -> float:
        slicing = Slicing(widths=(8,), min_saving=ANY_COST, basis=basis)
        return run_sliced(attention, SliceState(), slicing, (8,), always(8), projection)[1].error

    assert told("output_pca", weight) < 0.8 * told("output_pca", None)
    assert told("kq_svd", weight) == told("kq_svd", None)
    # A weight that is not where the queries are is left alone.
    assert told("output_pca", weight.to("meta")) == told("output_pca", None)


def test_what_measuring_after_the_projection_takes_is_counted():
    weight = noise(9, 24, HEADS * WIDTH)
    state, slicing = SliceState(), Slicing(widths=(8,), min_saving=ANY_COST, refresh=4)
    for _ in range(2):
        with OperationCounter() as executed:
            outcome = run_sliced(lambda: attention(tokens=1000), state, slicing, (8,), always(8), weight)[1]
    with OperationCounter() as full:
        attention(tokens=1000)
    assert outcome.saved <= full.total - executed.total < outcome.saved + 0.02 * full.total


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_the_attention_of_every_family_is_caught_and_exact_at_full_width(name):
    transformer = tiny_models.build(name)
    slicing = Slicing(widths=(16,), min_saving=ANY_COST)

    def answer() -> Tensor:
        return tiny_models.first(tiny_models.call(transformer, name, tiny_models.inputs(name)))

    with torch.no_grad():
        plain = answer()
        for unit in map_model(transformer).units:
            if not unit.sliceable:
                continue
            forward, outcomes = unit.module.forward, []
            width: list[int | None] = [None]

            def run(*args: Any, forward: Any = forward, outcomes: Any = outcomes, width: Any = width, **kw: Any) -> Any:
                output, outcome = sliced(lambda: forward(*args, **kw), always(width[0]), None, slicing)
                outcomes.append(outcome)
                return output

            unit.module.forward = run
            assert torch.equal(answer(), plain)
            width[0] = 16
            torch.testing.assert_close(answer(), plain, rtol=1e-3, atol=1e-4)
            assert [outcome.width for outcome in outcomes] == [None, 16], unit.name
            assert not any(outcome.refusal for outcome in outcomes), unit.name
            del unit.module.forward


# What the speeds were measured with, where the file does not say.
WITH = {"basis": "kq_svd", "refresh": 4}


@pytest.mark.parametrize("row", json.loads(MEASURED.read_text())["rows"])
def test_widths_are_refused_where_they_were_measured_not_to_pay_and_taken_where_they_did(row):
    call = torch.empty(row["batch"], row["heads"], row["tokens"], row["width"])
    measured = WITH | json.loads(MEASURED.read_text())
    share = Costs(call, call, measured["basis"]).share(row["sliced to"], measured["refresh"])
    is_taken = share < 1 - Slicing().min_saving
    if row["highest"] < 1:
        assert not is_taken
    if row["lowest"] > 1 / (1 - Slicing().min_saving):
        assert is_taken
