"""The attention of one unit: measured in the call itself, at the least width that is good enough."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from torch import Tensor, nn

from tests import tiny_models
from tests.fake_models import noise
from tests.fake_parts import at
from unicp.attention.slicing import GROUPED, NOT_CAUGHT, PATIENCE, TOO_SHORT, Sliced, UnitSlicer
from unicp.context import Action
from unicp.models.finder import Unit, map_model
from unicp.numerics.operation_counts import OperationCounter, attention_operations
from unicp.policies.impact import step_tolerance
from unicp.predictors.base import PredictorInfo, predictors
from unicp.reducers.attention_call import AttentionCall, plain_call
from unicp.reducers.base import AttentionReducer, Reduced, reducers
from unicp.reducers.pca_slices import PcaSlices
from unicp.runtime.cache_point import CachePoint, Outcome
from unicp.runtime.part_checks import make_policy
from unicp.runtime.store import OutputStore
from unicp.settings import Basis, Settings, Slicing

HEADS, TOKENS, WIDTH = 2, 20, 16
ANY_COST, ANY_ERROR = -1e6, 1e6
MEASURED = Path(__file__).resolve().parents[5] / "docs" / "results" / "slice_speed.json"


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


def turned() -> Tensor:
    """What matters lies in the channels that mattered least."""
    return falling(torch.arange(WIDTH))


def attention_of_nan() -> Tensor:
    query, key, value = (noise(part, 2, HEADS, TOKENS, WIDTH) for part in range(3))
    return F.scaled_dot_product_attention(query * math.nan, key, value)


def slicer(*widths: int, tolerance: float = ANY_ERROR, projection: Tensor | None = None, **changes: Any) -> UnitSlicer:
    """Of widths 8 and 16 where none are named; of two that are good enough the narrower one is taken."""
    settings = {name: changes.pop(name) for name in ("weighting", "counting") if name in changes}
    plain = {"widths": widths or (8, 16), "tolerance": tolerance, "min_saving": ANY_COST}
    set_to = Settings(slicing=Slicing(**(plain | changes)), **({"weighting": "uniform"} | settings))

    class Fitted(Unit):
        output_projection = projection  # type: ignore[assignment]

    return UnitSlicer(Fitted("blocks.0.attn1", nn.Identity(), "self", 0, HEADS, WIDTH, True, "", False), set_to)


def sliced(call: Callable[[], Any], made: UnitSlicer | None = None, step: int = 0) -> tuple[Any, Sliced]:
    return (made or slicer()).run(at(step), call)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at each fit of bases."""
    done, fit = [], PcaSlices.fit

    def counted(*args: Any) -> Any:
        done.append(1)
        return fit(*args)

    monkeypatch.setattr(PcaSlices, "fit", counted)
    return done


# --- which width is taken


class FakeReduced(Reduced):
    """Gives the width in place of the attention."""

    def __init__(self, call: AttentionCall, found: Mapping[int, float]):
        super().__init__(call)
        self._found = found

    def errors(self, widths: Sequence[int], rows: int = 0) -> Tensor:
        # The second of two samples is the worse one.
        return torch.tensor([[0.0, self._found[width]] for width in widths], dtype=torch.float64)

    def attend(self, width: int) -> Tensor:
        return torch.full_like(self.call.query, float(width))


Taken = Callable[..., "int | None"]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """(errors, costs, step) -> the width that is taken. Costs: shares of full attention."""

    def take(found: dict[int, float], costs: dict[int, float], step: int = 5, **changes: Any) -> int | None:
        class Fake(AttentionReducer):
            def reduce(self, call: Any, fitted: Any, widths: Any, projection: Any) -> Reduced:
                return FakeReduced(call, found)

            def operations(self, call: AttentionCall, width: int) -> int:
                return width

            def share(self, call: AttentionCall, width: int, projection: Any) -> float:
                return costs[width]

        monkeypatch.setitem(reducers._makers, "fake", Fake)
        slicing = Slicing(widths=tuple(found), tolerance=0.1, reducer="fake", min_saving=0.0)
        set_to = Settings(**({"weighting": "uniform"} | changes), slicing=slicing)
        unit = Unit("blocks.0.attn1", nn.Identity(), "self", 0, HEADS, WIDTH, True, "", False)
        output, outcome = UnitSlicer(unit, set_to).run(at(step), attention)
        if outcome.width is None:
            assert torch.equal(output, attention())
        else:
            assert output.unique().tolist() == [outcome.width] and outcome.error == pytest.approx(found[outcome.width])
        return outcome.width

    return take


def test_the_cheapest_width_within_the_tolerance_is_taken(taken: Taken):
    costs = {8: 0.6, 16: 0.8}
    assert taken({8: 0.05, 16: 0.01}, costs) == 8
    assert taken({8: 0.2, 16: 0.01}, costs) == 16
    assert taken({8: 0.2, 16: 0.11}, costs) is None
    # A narrower one may cost more.
    assert taken({8: 0.05, 16: 0.01}, {8: 0.8, 16: 0.6}) == 16


def test_an_error_that_is_not_a_number_and_a_cost_of_all_are_no_slices(taken: Taken):
    assert taken({8: math.nan, 16: math.inf}, {8: 0.6, 16: 0.8}) is None
    assert taken({8: 0.0}, {8: 1.0}) is None


@pytest.mark.parametrize("weighting", ["impact", "uniform"])
def test_tolerance_zero_slices_nothing_though_nothing_would_be_missed(taken: Taken, weighting: str):
    assert taken({8: 0.0}, {8: 0.5}, weighting=weighting) == 8
    assert taken({8: 0.0}, {8: 0.5}, weighting=weighting, tolerance=0.0) is None


def test_slices_are_weighed_by_the_impact_of_their_step(taken: Taken):
    """An error early in a run steers it: what is allowed late is not allowed there."""
    widths = [taken({8: 0.1}, {8: 0.5}, step, weighting="impact") for step in range(20)]
    assert widths[0] is None and widths[-1] == 8
    assert {taken({8: 0.1}, {8: 0.5}, step) for step in range(20)} == {8}


@pytest.mark.parametrize("weighting", ["impact", "uniform"])
def test_the_tolerance_of_a_step_is_told(weighting: Any):
    made = slicer(tolerance=0.1, weighting=weighting)
    for step in (0, 5, 20):
        expected = step_tolerance(0.1, weighting, at(step))
        assert sliced(attention, made, step)[1].tolerance == expected


# --- what it gives


@pytest.mark.parametrize("basis", get_args(Basis))
def test_a_call_that_is_not_sliced_is_bit_equal_to_the_plain_module(basis: Basis):
    made = slicer(8, basis=basis, tolerance=1e-9)
    output, outcome = sliced(attention, made)
    assert torch.equal(output, attention())
    assert (outcome.width, made.refusal) == (None, "")
    assert outcome.saved < 0  # what measuring took


def test_attention_that_a_guidance_perturbs_is_not_sliced():
    # Perturbed-attention guidance puts the values in the place of attention, around the whole module.
    made = slicer(8)
    with AttentionScoreSkipFunctionMode():
        output, outcome = sliced(attention, made)
        assert torch.equal(output, attention())
    assert outcome == Sliced() and made.bytes == 0
    assert sliced(attention, made)[1].width == 8


@pytest.mark.parametrize("basis", get_args(Basis))
def test_full_width_equals_plain_attention_within_rounding_also_with_bases_of_other_inputs(basis: Basis, fits: list):
    made = slicer(16, basis=basis, refresh=4)
    for seed in (0, 5):
        output, outcome = sliced(lambda seed=seed: attention(seed), made)
        torch.testing.assert_close(output, attention(seed))
        assert outcome.width == 16 and outcome.error < 1e-5
    assert len(fits) == 1


def test_the_error_that_is_told_is_about_that_of_the_output_and_chooses_the_width():
    true = attention()
    output, outcome = sliced(attention, slicer(tolerance=9.0))
    error = float((output - true).norm() / true.norm())
    assert outcome.width == 8 and error > 0.01
    assert outcome.error == pytest.approx(error, rel=0.5)
    assert sliced(attention, slicer(tolerance=error / 3))[1].width == 16


def test_a_mask_reaches_the_sliced_attention():
    mask = torch.ones(2, 1, 1, TOKENS, dtype=torch.bool)
    mask[..., 12:] = False
    output, outcome = sliced(lambda: attention(attn_mask=mask), slicer(16))
    torch.testing.assert_close(output, attention(attn_mask=mask))
    assert outcome.error < 1e-5


def test_the_error_is_that_after_the_projection_and_axes_are_fitted_to_it():
    # The projection sees one channel of each head.
    weight = torch.zeros(3, HEADS * WIDTH)
    weight[0, 5], weight[1, WIDTH + 2] = 1.0, 1.0

    def told(basis: Basis, projection: Tensor | None) -> float:
        return sliced(attention, slicer(8, basis=basis, projection=projection))[1].error

    assert told("output_pca", weight) < 0.8 * told("output_pca", None)
    assert told("kq_svd", weight) == told("kq_svd", None)
    # A weight that is not where the queries are is left alone.
    assert told("output_pca", weight.to("meta")) == told("output_pca", None)


# --- bases over several calls


def test_bases_serve_until_they_are_old(fits: list):
    made = slicer(refresh=4)
    for _ in range(8):
        assert sliced(attention, made)[1].width == 8
    assert len(fits) == 2


def test_bases_that_no_longer_serve_are_fitted_anew_in_the_same_call(fits: list):
    def before() -> Tensor:
        return falling(torch.arange(WIDTH).flip(0))

    made = slicer(8, refresh=4)
    sliced(before, made)
    aged, fresh = sliced(turned, made)[1].error, sliced(turned, slicer(8))[1].error
    assert fresh < aged / 2 and len(fits) == 2
    strict = slicer(8, refresh=4, tolerance=(fresh + aged) / 2)
    sliced(before, strict)
    outcome = sliced(turned, strict)[1]
    assert (outcome.width, outcome.error) == (8, pytest.approx(fresh))
    assert len(fits) == 4


def test_what_was_far_from_good_enough_is_not_measured_at_every_call():
    made = slicer(8, tolerance=1e-9)
    spent = [sliced(attention, made)[1].saved for _ in range(2 * (PATIENCE + 1))]
    assert [saved < 0 for saved in spent] == [True, *[False] * PATIENCE] * 2


def test_where_more_is_allowed_it_is_tried_at_once():
    error = sliced(attention, slicer(8))[1].error
    made = slicer(8, tolerance=error, weighting="impact")
    # At step 0, at noise alone, a quarter of it is allowed; at step 14 more than twice as much.
    assert [sliced(attention, made, step)[1].width for step in (0, 0, 14)] == [None, None, 8]


def test_bases_of_other_heads_are_not_used(fits: list):
    made = slicer(16, refresh=4)
    sliced(attention, made)
    output, _ = sliced(lambda: attention(heads=3), made)
    torch.testing.assert_close(output, attention(heads=3))
    assert len(fits) == 2


def test_nan_in_the_inputs_is_computed_and_leaves_no_bases():
    made = slicer(8)
    output, outcome = sliced(attention_of_nan, made)
    assert output.isnan().all() and outcome.width is None
    assert made.bytes == 0 and not made.refusal
    assert sliced(attention, made)[1].width == 8


def test_nan_that_comes_while_bases_are_fresh_is_never_within_a_tolerance_and_ends_them():
    made = slicer(8, refresh=4)
    sliced(attention, made)
    output, outcome = sliced(attention_of_nan, made)
    assert output.isnan().all() and outcome.width is None
    assert made.bytes == 0
    assert sliced(attention, made)[1].width == 8


def test_each_branch_has_bases_of_its_own(fits: list):
    made, errors = slicer(8, refresh=4), dict[tuple[str, int], float]()
    inputs = {"a": turned, "b": lambda: falling(torch.arange(WIDTH).flip(0))}
    for step in range(2):
        for branch, call in inputs.items():
            errors[branch, step] = made.run(at(step, branch), call)[1].error
        if step == 0:
            alone = slicer(8)
            alone.run(at(0, "a"), turned)
            assert 2 * alone.bytes == made.bytes > 0
    assert max(errors.values()) < 0.2 and len(fits) == 3


# --- what cannot be sliced


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
def test_what_is_not_one_plain_attention_call_is_told_and_computed_plainly(module: Any, name: str):
    made = slicer(8)
    for _ in range(2):
        output, outcome = sliced(module, made)
        assert torch.equal(output, module()), name
        assert (outcome, made.refusal, made.bytes) == (Sliced(), NOT_CAUGHT, 0)


def test_heads_that_share_keys_are_told_and_computed_plainly():
    made = slicer(8)
    output, outcome = sliced(shared, made)
    assert torch.equal(output, shared())
    assert (outcome, made.refusal) == (Sliced(), GROUPED)


def test_of_two_attention_calls_the_second_is_computed_plainly_and_the_unit_refused():
    made = slicer(16)
    output, outcome = sliced(lambda: attention() + attention(5), made)
    torch.testing.assert_close(output, attention() + attention(5))
    assert (outcome.width, made.refusal) == (16, NOT_CAUGHT)
    assert sliced(attention, made)[1] == Sliced()


def test_attention_too_short_to_save_anything_is_told_and_longer_one_is_sliced():
    made = slicer(8, min_saving=0.1)
    output, outcome = sliced(attention, made)
    assert torch.equal(output, attention())
    assert (outcome, made.refusal) == (Sliced(), TOO_SHORT)
    longer = sliced(lambda: attention(tokens=1500), made)[1]
    assert longer.width == 8 and longer.saved > 0 and not made.refusal


def test_a_unit_that_cannot_be_sliced_has_no_widths():
    def of(sliceable: bool) -> UnitSlicer:
        unit = Unit("blocks.0.attn1", nn.Identity(), "self", 0, HEADS, WIDTH, sliceable, "", False)
        return UnitSlicer(unit, Settings(slicing=Slicing(widths=(8, 16), min_saving=ANY_COST, tolerance=ANY_ERROR)))

    assert (of(False).widths, of(True).widths) == ((), (8, 16))
    output, outcome = of(False).run(at(0), attention)
    assert torch.equal(output, attention()) and outcome == Sliced()


# --- what it saves


@pytest.mark.parametrize("width", [8, 16])
def test_the_saved_operations_are_those_that_are_not_executed_but_for_the_fit(width: int):
    def call() -> Tensor:
        return attention(tokens=1000)

    with OperationCounter() as full:
        call()
    made = slicer(width, refresh=4)
    sliced(call, made)
    with OperationCounter() as executed:
        outcome = sliced(call, made)[1]
    saved = full.total - executed.total
    # Fewer queries than asked for may be probed, so that their stride meets every column of the video.
    assert outcome.width == width and outcome.saved <= saved < outcome.saved + 0.02 * full.total


@pytest.mark.parametrize("basis", get_args(Basis))
def test_a_fit_is_paid_for_by_the_call_that_makes_it(basis: Basis):
    made = slicer(8, basis=basis, refresh=4)
    first, second = (sliced(lambda: attention(tokens=1000), made)[1].saved for _ in range(2))
    call = plain_call(*(noise(part, 2, HEADS, 1000, WIDTH) for part in range(3)))
    plain, own = (PcaSlices(Slicing(basis=one)).fit_operations(call, None) for one in ("kq_svd", basis))
    assert second - first == own > 0
    rows = attention_operations(2, HEADS, 128, 1000, WIDTH, WIDTH) if basis == "output_pca" else 0
    assert own == plain + rows


def test_what_measuring_after_the_projection_takes_is_counted():
    made = slicer(8, refresh=4, projection=noise(9, 24, HEADS * WIDTH))
    for _ in range(2):
        with OperationCounter() as executed:
            outcome = sliced(lambda: attention(tokens=1000), made)[1]
    with OperationCounter() as full:
        attention(tokens=1000)
    assert outcome.saved <= full.total - executed.total < outcome.saved + 0.02 * full.total


# What the speeds were measured with, where the file does not say.
WITH = {"basis": "kq_svd", "refresh": 4}


@pytest.mark.parametrize("row", json.loads(MEASURED.read_text())["rows"])
def test_widths_are_refused_where_they_were_measured_not_to_pay_and_taken_where_they_did(row: dict[str, Any]):
    tensor = torch.empty(row["batch"], row["heads"], row["tokens"], row["width"])
    measured = WITH | json.loads(MEASURED.read_text())
    reducer = PcaSlices(Slicing(basis=measured["basis"], refresh=measured["refresh"]))
    share = reducer.share(plain_call(tensor, tensor, tensor), row["sliced to"], None)
    is_taken = share < 1 - Slicing().min_saving
    if row["highest"] < 1:
        assert not is_taken
    if row["lowest"] > 1 / (1 - Slicing().min_saving):
        assert is_taken


# --- in every family


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_the_attention_of_every_family_is_caught_and_exact_at_full_width(name: str):
    transformer = tiny_models.build(name)

    def answer() -> Tensor:
        return tiny_models.first(tiny_models.call(transformer, name, tiny_models.inputs(name)))

    with torch.no_grad():
        plain = answer()
        for unit in map_model(transformer).units:
            if not unit.sliceable:
                continue
            forward = unit.module.forward
            for width, tolerance in ((8, 1e-9), (unit.head_width or 0, ANY_ERROR)):
                slicing = Slicing(widths=(width,), min_saving=ANY_COST, tolerance=tolerance)
                made, found = UnitSlicer(unit, Settings(slicing=slicing, weighting="uniform")), []

                def run(*args: Any, made: Any = made, found: Any = found, forward: Any = forward, **kw: Any) -> Any:
                    output, outcome = made.run(at(0), partial(forward, *args, **kw))
                    found.append(outcome.width)
                    return output

                unit.module.forward = run
                if tolerance < 1:
                    assert torch.equal(answer(), plain), unit.name
                else:
                    torch.testing.assert_close(answer(), plain, rtol=1e-3, atol=1e-4)
                assert (found, made.refusal) == ([None if tolerance < 1 else width], ""), unit.name
                del unit.module.forward


# --- together with a cache point, as at level "unit"


class Attention(nn.Module):
    """Each token attends to those around it; no weights."""

    def forward(self, hidden: Tensor) -> Tensor:
        heads = hidden.unflatten(2, (HEADS, WIDTH)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads.roll(1, 2), heads).transpose(1, 2).flatten(2)


def run_unit(steps: int, bad: int = -1, module: Any = None, **changes: Any) -> list[tuple[Outcome, Any, Sliced]]:
    """What becomes of the calls of a unit that is skipped, or sliced, or computed."""
    plain: dict[str, Any] = {"tolerance": 1e6, "predictor": "reuse", "weighting": "uniform", "last": 0}
    set_to = Settings(**(plain | {"max_window": 2, "max_reach": 9, "level": "unit"} | changes))
    unit = Unit("blocks.0.attn1", nn.Identity(), "self", 0, HEADS, WIDTH, True, "", False)
    predictor = predictors[set_to.predictor](set_to, PredictorInfo(unit.name))
    point = CachePoint(unit.name, make_policy(set_to), predictor, OutputStore(set_to))
    own, module, done = UnitSlicer(unit, set_to), module or Attention(), []
    for step in range(steps):
        hidden = noise(0, 1, 96, HEADS * WIDTH) * (math.nan if step == bad else 1.0) + 0.01 * step
        outcome, became = point.decide(at(step), (hidden,)), Sliced()
        output = outcome.outputs and outcome.outputs[0]
        if output is None:
            output, became = own.run(at(step), partial(module, hidden))
            point.full(at(step), (hidden,), (output,), base_error=became.error)
        done.append((outcome, output, became))
    return done


SLICES = Slicing(widths=(8, 16), tolerance=ANY_ERROR, min_saving=ANY_COST)


def test_a_unit_that_may_not_be_skipped_is_sliced():
    done = run_unit(6, tolerance=1e-9, slicing=SLICES)
    assert [(outcome.action, became.width) for outcome, _, became in done] == [(Action.FULL, 8)] * 6


def test_what_is_reused_of_a_slice_has_its_error_too_so_the_window_closes_earlier():
    slices = Slicing(widths=(8,), tolerance=ANY_ERROR, min_saving=ANY_COST)
    skipped = [
        [outcome.action.skipped for outcome, *_ in run_unit(4, tolerance=0.1, slicing=slicing)]
        for slicing in (Slicing(), slices)
    ]
    assert skipped == [[False, False, True, True], [False, False, True, False]]


def test_a_measured_error_above_the_tolerance_is_not_sliced():
    done = run_unit(4, tolerance=1e-9, slicing=Slicing(widths=(8,), tolerance=1e-6, min_saving=ANY_COST))
    assert {became.width for *_, became in done} == {None} and done[0][2].saved < 0


def test_nothing_is_sliced_where_the_tolerance_is_zero():
    done = run_unit(3, tolerance=0.0, slicing=SLICES)
    assert {(outcome.action, became) for outcome, _, became in done} == {(Action.FULL, Sliced())}


def test_a_module_whose_attention_is_not_caught_computes_plainly():
    done = run_unit(4, module=lambda hidden: hidden * 3, tolerance=1e-9, slicing=SLICES)
    for step, (_, output, became) in enumerate(done):
        assert became == Sliced()
        assert torch.equal(output, (noise(0, 1, 96, HEADS * WIDTH) + 0.01 * step) * 3)


def test_attention_over_nan_does_not_raise_and_slicing_comes_back():
    done = run_unit(6, bad=2, tolerance=1e-9, slicing=SLICES)
    assert [became.width for *_, became in done] == [8, 8, None, 8, 8, 8]
