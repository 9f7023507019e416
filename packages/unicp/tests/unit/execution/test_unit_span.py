"""One unit on its own: served, sliced, computed."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.fake_models import noise
from torch import Tensor, nn
from unicp.control.controller import Controller
from unicp.execution.attention_seam import NOT_CAUGHT
from unicp.execution.unit_span import UnitSpan

from unicp.models.finder import Unit
from unicp.records import Action, Moment
from unicp.runtime.store import OutputStore
from unicp.settings import Settings, Slicing

HEADS, WIDTH, TOKENS = 2, 16, 96


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.calls = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        heads = hidden.unflatten(2, (HEADS, WIDTH)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads.roll(1, 2), heads).transpose(1, 2).flatten(2)


def settings(**changes: Any) -> Settings:
    plain: dict[str, Any] = {
        "tolerance": 1e6,
        "order": 0,
        "weighting": "uniform",
        "last": 0,
        "max_window": 2,
        "max_reach": 9,
        "level": "unit",
    }
    return Settings(**(plain | changes))


def span(set_to: Settings, module: nn.Module | None = None, sliceable: bool = True) -> UnitSpan:
    unit = Unit("blocks.0.attn1", module or Attention(), "self", 0, HEADS, WIDTH, sliceable, "", False)
    return UnitSpan(unit, set_to, Controller(set_to), OutputStore(set_to))


def run(
    unit: UnitSpan, step: int, hidden: Tensor, call: Any, samples: int = 1, branch: str = "cond", **more: Any
) -> Any:
    at = Moment(0, step, branch, 1000.0 - 10 * step, samples, 1.0 - 0.01 * step, 100)
    return unit.run(at, {"step": float(step), "sigma": 1.0 - 0.01 * step}, call, hidden, 1, **more)


def test_a_unit_is_reused_bit_for_bit_and_not_called():
    unit, calls = span(settings()), []
    outputs = []
    for step in range(4):
        hidden = noise(step, 1, TOKENS, HEADS * WIDTH)
        outputs.append(run(unit, step, hidden, lambda hidden=hidden: calls.append(1) or hidden * 2))
    assert [one.decision.action for one in outputs] == [Action.FULL] * 2 + [Action.REUSE] * 2
    assert len(calls) == 2
    assert torch.equal(outputs[3].output, outputs[1].output)


def test_an_output_linear_in_the_noise_level_is_forecast_exactly():
    unit = span(settings(predictor="line", abscissas=("sigma",)))
    a, b = noise(0, 1, 5, 3), noise(1, 1, 5, 3)
    served = 0
    for step in range(9):
        true = a + b * (1.0 - 0.01 * step)
        outcome = run(unit, step, a + 0.01 * step, lambda true=true: true)
        if outcome.decision.action is Action.FORECAST:
            served += 1
            torch.testing.assert_close(outcome.output, true, rtol=0, atol=1e-4)
    assert served == 4


def test_a_unit_with_two_outputs_gives_back_two():
    unit, pair = span(settings()), (noise(0, 1, 5, 3), noise(1, 1, 2, 3))
    for step in range(2):
        run(unit, step, pair[0], lambda: pair)
    outcome = run(unit, 2, pair[0], lambda: pair)
    assert outcome.decision.action is Action.REUSE
    assert all(torch.equal(*two) for two in zip(outcome.output, pair, strict=True))


@pytest.mark.parametrize("kind", ["measured", "predicted"])
def test_errors_are_one_per_sample_where_a_unit_sees_a_sample_as_several_rows(kind):
    unit, rows = span(settings()), 6
    base = noise(0, rows, 5, 3)
    for step in range(3):
        # Rows 0 to 2 are the first sample and do not change.
        change = torch.cat([torch.zeros(3, 5, 3), 0.1 * step * torch.ones(3, 5, 3)])
        outcome = run(unit, step, base + change, lambda change=change: base + change, samples=2)
        if step == 1:
            measured = outcome.measured
    errors = measured if kind == "measured" else outcome.decision.predicted
    assert errors is not None and len(errors) == 2
    assert errors[0] == 0.0 < errors[1]


def test_an_infinite_output_is_computed_again_until_it_is_gone():
    unit, good = span(settings()), noise(0, 1, 5, 3)
    bad = torch.full_like(good, math.inf)
    actions = []
    for step in range(8):
        outcome = run(unit, step, good + 0.01 * step, lambda step=step: bad if step == 3 else good)
        actions.append((outcome.decision.action.served, bool(torch.isfinite(outcome.output).all())))
    assert all(finite for served, finite in actions if served)
    assert any(served for served, _ in actions[4:])


SLICES = Slicing(widths=(8, 16), tolerance=1e6, min_saving=-1e6)


def sliced_run(set_to: Settings, steps: int, **more: Any) -> tuple[UnitSpan, list[Any]]:
    module = Attention()
    unit = span(set_to, module)
    outcomes = []
    for step in range(steps):
        hidden = noise(0, 1, TOKENS, HEADS * WIDTH) + 0.01 * step
        outcomes.append(run(unit, step, hidden, lambda hidden=hidden: module(hidden), **more))
    return unit, outcomes


def test_a_unit_that_may_not_be_served_is_sliced():
    _, outcomes = sliced_run(settings(tolerance=1e-9, slicing=SLICES), 6)
    assert [outcome.decision.action for outcome in outcomes] == [Action.SLICE] * 6
    assert {outcome.decision.width for outcome in outcomes} == {8}


def test_what_is_served_from_a_slice_has_its_error_too_so_the_window_closes_earlier():
    slices = Slicing(widths=(8,), tolerance=1e6, min_saving=-1e6)
    served = []
    for slicing in (Slicing(), slices):
        _, outcomes = sliced_run(settings(tolerance=0.1, slicing=slicing), 4)
        served.append([outcome.decision.action.served for outcome in outcomes])
    assert served == [[False, False, True, True], [False, False, True, False]]


def test_a_measured_error_above_the_tolerance_is_not_sliced():
    slicing = Slicing(widths=(8,), tolerance=1e-6, min_saving=-1e6)
    _, outcomes = sliced_run(settings(tolerance=1e-9, slicing=slicing), 4)
    assert {outcome.decision.action for outcome in outcomes} == {Action.FULL}
    assert outcomes[0].saved < 0


def test_nothing_is_sliced_where_the_tolerance_is_zero():
    _, outcomes = sliced_run(settings(tolerance=0.0, slicing=SLICES), 3)
    assert {(outcome.decision.action, outcome.saved) for outcome in outcomes} == {(Action.FULL, 0)}


def test_a_unit_that_cannot_be_sliced_has_no_widths():
    assert span(settings(slicing=SLICES), sliceable=False).widths == ()
    assert span(settings(slicing=SLICES)).widths == (8, 16)


def test_a_module_whose_attention_is_not_caught_computes_plainly():
    unit = span(settings(tolerance=1e-9, slicing=SLICES))
    for step in range(4):
        hidden = noise(step, 1, TOKENS, HEADS * WIDTH)
        outcome = run(unit, step, hidden, lambda hidden=hidden: hidden * 3)
        assert outcome.decision.action is Action.FULL
        assert torch.equal(outcome.output, hidden * 3)
    assert unit.refusal == NOT_CAUGHT


def test_attention_over_nan_does_not_raise_and_slicing_comes_back():
    module = Attention()
    unit = span(settings(tolerance=1e-9, slicing=SLICES), module)
    kinds = []
    for step in range(6):
        hidden = noise(0, 1, TOKENS, HEADS * WIDTH) * (math.nan if step == 2 else 1.0) + 0.01 * step
        outcome = run(unit, step, hidden, lambda hidden=hidden: module(hidden))
        kinds.append(outcome.decision.action)
    assert kinds == [Action.SLICE] * 2 + [Action.FULL] + [Action.SLICE] * 3


def test_each_branch_has_bases_of_its_own():
    module, errors = Attention(), dict[tuple[str, int], float]()
    unit = span(settings(tolerance=1e-9, slicing=Slicing(widths=(8,), tolerance=1e6, min_saving=-1e6)), module)
    fall = 0.7 ** torch.arange(HEADS * WIDTH)
    # What matters in one branch is what matters least in the other.
    inputs = {branch: noise(0, 1, TOKENS, HEADS * WIDTH) * fade for branch, fade in (("a", fall), ("b", fall.flip(0)))}
    for step in range(2):
        for branch, hidden in inputs.items():
            call = partial(module, hidden)
            run(unit, step, hidden, call, branch=branch)
            output = unit.compute(Moment(0, step, branch, 0.0, 1, 0.5, 100), call)[0]
            errors[branch, step] = float((output - call()).norm() / call().norm())
    assert max(errors.values()) < 0.2
    alone = span(settings(tolerance=1e-9, slicing=Slicing(widths=(8,), tolerance=1e6, min_saving=-1e6)), module)
    run(alone, 0, inputs["a"], partial(module, inputs["a"]), branch="a")
    assert 2 * alone.bytes == unit.bytes
