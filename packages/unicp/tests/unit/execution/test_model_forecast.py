"""Lines follow the share of their rise that came true, one for all branches that are combined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from unicp.control.controller import Controller
from unicp.execution.model_forecast import copies_in
from unicp.execution.model_span import ModelSpan

from unicp.records import Moment
from unicp.runtime.store import OutputStore
from unicp.settings import Settings

ONE = torch.ones(1, 4)
TWO = torch.stack([torch.ones(4), 3 * torch.ones(4)])


def span(combined: Any = None, **changes: Any) -> ModelSpan:
    set_to = Settings(tolerance=1e6, quantities=("output",), abscissas=("step",), weighting="uniform", **changes)
    return ModelSpan(set_to, Controller(set_to), OutputStore(set_to), None, combined)


def run(made: ModelSpan, steps: list[dict[str, Tensor]], samples: Tensor | None = None) -> dict[str, Tensor]:
    """Outputs of computed steps by branch; what the step after them would be served with."""
    served = {}
    for step in range(len(steps) + 1):
        for branch in steps[min(step, len(steps) - 1)]:
            moment = Moment(0, step, branch, 900.0 - step, 1)
            sample = torch.ones_like(steps[0][branch]) if samples is None else samples
            answer = made.decide(moment, (sample,))
            if step == len(steps):
                assert answer.outputs is not None
                served[branch] = answer.outputs[0]
            else:
                assert answer.outputs is None
                made.computed(moment, (sample,), (steps[step][branch],))
    return served


# 0, 4, then 5: of a rise by 4 one came true, so a quarter of the next rise by 1 is followed.
SLOWING = [0.0, 4.0, 5.0]


def test_a_rise_that_slows_down_is_followed_in_part():
    steps = [{"cond": value * ONE} for value in SLOWING]
    assert torch.equal(run(span(), steps)["cond"], 5.25 * ONE)
    assert torch.equal(run(span(damping=False), steps)["cond"], 6.0 * ONE)


@pytest.mark.parametrize(("last", "expected"), [(10.0, 16.0), (2.0, 2.0)])
def test_it_is_never_followed_further_nor_backwards(last: float, expected: float):
    steps = [{"cond": value * ONE} for value in (0.0, 4.0, last)]
    assert torch.equal(run(span(), steps)["cond"], expected * ONE)


def test_branches_follow_one_share():
    # "uncond" rises by 4 twice: together 4 + 16 of 16 + 16 came true.
    steps = [{"cond": a * ONE, "uncond": b * ONE} for a, b in zip(SLOWING, (0.0, 4.0, 8.0))]
    served = run(span(), steps)
    assert torch.equal(served["cond"], 5.625 * ONE)
    assert torch.equal(served["uncond"], 10.5 * ONE)


def test_branches_of_another_batch_size_follow_their_own():
    steps = [{"cond": a * ONE, "uncond": b * TWO} for a, b in zip(SLOWING, (0.0, 4.0, 8.0))]
    served = run(span(), steps)
    assert torch.equal(served["cond"], 5.25 * ONE)
    assert torch.equal(served["uncond"], 12.0 * TWO)


def test_where_the_branches_are_seen_combined_all_follow_the_share_of_that():
    steps = [{"cond": a * ONE, "uncond": b * TWO} for a, b in zip(SLOWING, (0.0, 4.0, 8.0))]
    made = span(lambda way: torch.tensor([0.5]))
    served = run(made, steps)
    assert torch.equal(served["cond"], 5.5 * ONE)
    assert torch.equal(served["uncond"], 10.0 * TWO)
    made = span(lambda way: torch.tensor([0.5, 0.5, 0.5]))  # of another batch
    assert torch.equal(run(made, steps)["cond"], 5.25 * ONE)


def test_a_branch_that_left_the_run_is_not_asked():
    made = span()
    run_one = [{"cond": a * ONE, "gone": -a * ONE} for a in (0.0, 1.0, 1.0)]
    for step, outputs in enumerate([*run_one, {"cond": 2 * ONE}, {"cond": 3 * ONE}, {"cond": 4 * ONE}]):
        for branch, output in outputs.items():
            moment = Moment(0, step, branch, 900.0 - step, 1)
            made.decide(moment, (ONE,))
            made.computed(moment, (ONE,), (output,))
    made.decide(Moment(0, 6, "cond", 894.0, 1), (ONE,))
    (shares,) = made.branches["cond"].shares.values()
    assert shares[0].tolist() == [1.0]


def test_guidance_in_one_batch_follows_one_share_and_other_prompts_their_own():
    rows = [torch.stack([a * torch.ones(4), b * torch.ones(4)]) for a, b in zip(SLOWING, (0.0, 4.0, 8.0))]
    steps = [{"batch": row} for row in rows]
    together = run(span(), steps, torch.ones(2, 4))["batch"]
    apart = run(span(), steps, TWO)["batch"]
    assert together[:, 0].tolist() == [5.625, 10.5]
    assert apart[:, 0].tolist() == [5.25, 12.0]


@pytest.mark.parametrize(
    ("rows", "copies"), [([1], 1), ([1, 1], 2), ([1, 2], 1), ([1, 2, 1, 2], 2), ([1, 1, 1], 3), ([1, 2, 2, 1], 1)]
)
def test_copies_of_samples_in_a_batch(rows: list[int], copies: int):
    assert copies_in(torch.tensor(rows)[:, None].float()) == copies
