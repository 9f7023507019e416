"""A plan followed in one run: its full steps, those that a leap adds, and nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.fake_parts import FakeSeen, at, pattern, started
from tests.made_profiles import euler_shares, flow_levels, products
from unicp.context import RunInfo
from unicp.planning.solver import loss_of_run
from unicp.policies.base import policies
from unicp.policies.error_window import ErrorWindowPolicy
from unicp.policies.planned import LEAP, RULE_TOLERANCE, PlannedPolicy, Schedule
from unicp.policies.run_loss import RunLoss
from unicp.settings import preset

STEPS = 16
PLAN = (0, 1, 3, 5, 7, 9, 12)


def loss() -> RunLoss:
    levels = flow_levels(STEPS)
    return loss_of_run(products(levels[:-1]), "flow", levels[:-1], euler_shares(levels))


def schedule(can_add: bool = True) -> Schedule:
    return Schedule(STEPS, PLAN, loss(), can_add)


def run(
    policy: PlannedPolicy,
    times: Any = lambda step: 1.0,
    vetoed: int = -1,
    told: list[tuple[str, str]] | None = None,
) -> dict[int, str]:
    """Why steps of a run are full, of two branches whose errors are so many times those announced."""
    policy.start_run(RunInfo("model", 2, lambda key, text: told.append((key, text)) if told is not None else None))
    known: list[int] = []
    reasons: dict[int, str] = {}
    for step in range(STEPS):
        for branch in ("cond", "uncond"):
            seen = FakeSeen(veto="sample" if step == vetoed else "")
            decision = policy.decide(at(step, branch, STEPS), seen)
            if not decision.skip:
                announced = loss().relative(*known[-2:], step) if len(known) >= 2 else 0.0
                policy.observe(at(step, branch, STEPS), seen, [times(step) * announced] if len(known) >= 2 else None)
                reasons[step] = decision.reason
        if step in reasons:
            known.append(step)
    return reasons


@pytest.mark.parametrize("times", [0.1, 1.0, 30.0])
def test_errors_in_proportion_to_those_announced_leave_the_plan_as_it_is(times):
    reasons = run(PlannedPolicy(schedule()), lambda step: times)
    assert tuple(reasons) == PLAN and set(reasons.values()) == {"plan"}


def test_where_errors_leap_full_steps_are_added_and_it_is_said():
    told: list[tuple[str, str]] = []
    reasons = run(PlannedPolicy(schedule()), lambda step: 20.0 if step == 9 else 1.0, told=told)
    assert set(PLAN) < set(reasons) and {step for step, why in reasons.items() if why == "guard"} == set(reasons) - set(
        PLAN
    )
    assert min(set(reasons) - set(PLAN)) > 9
    (key, text), *_ = told
    assert key == "guard" and "errors 20 times those before" in text


def test_a_larger_leap_adds_more():
    added = [
        len(run(PlannedPolicy(schedule()), lambda step, n=n: n if step == 9 else 1.0)) for n in (5.0, 50.0, math.inf)
    ]
    assert added == sorted(added) and added[0] < added[-1]


def test_what_is_no_number_has_the_rest_computed():
    reasons = run(PlannedPolicy(schedule()), lambda step: math.nan if step == 9 else 1.0)
    assert set(range(10, STEPS)) <= set(reasons)


def test_a_leap_just_below_the_limit_is_none():
    assert tuple(run(PlannedPolicy(schedule()), lambda step: LEAP if step == 9 else 1.0)) == PLAN


def test_one_measurement_is_too_few_to_tell_a_leap_from():
    # Step 3 is told from the first step at noise alone and says nothing, step 5 is the first that does.
    for quiet in (3, 5, 7):
        assert tuple(run(PlannedPolicy(schedule()), lambda step, quiet=quiet: 100.0 if step == quiet else 1.0)) == PLAN
    assert tuple(run(PlannedPolicy(schedule()), lambda step: 100.0 if step == 9 else 1.0)) != PLAN


def test_a_plan_that_may_not_add_adds_nothing():
    policy = PlannedPolicy(schedule(can_add=False))
    reasons = run(policy, lambda step: 1000.0 if step > 8 else 1.0)
    assert tuple(reasons) == PLAN


def test_a_plan_without_losses_is_followed_as_it_is():
    policy = PlannedPolicy(Schedule(STEPS, PLAN, None, False))
    assert tuple(run(policy, lambda step: 1000.0)) == PLAN


def test_a_vetoed_step_is_full_and_counts_as_one():
    policy = PlannedPolicy(schedule())
    reasons = run(policy, vetoed=6)
    assert reasons[6] == "sample" and set(reasons) == {*PLAN, 6} and 6 in policy._known


def test_steps_beyond_the_plan_are_full():
    policy = started(PlannedPolicy(schedule()), 2)
    assert not policy.decide(at(STEPS, steps=None), FakeSeen()).skip


def test_a_skipped_step_says_what_was_announced_as_often_as_measured():
    policy = started(PlannedPolicy(schedule()), 2)
    for step in range(7):
        decision = policy.decide(at(step, steps=STEPS, samples=2), FakeSeen())
        if not decision.skip:
            known = [one for one in PLAN if one < step]
            errors = [3.0 * loss().relative(*known[-2:], step)] * 2 if len(known) > 1 else None
            policy.observe(at(step, steps=STEPS, samples=2), FakeSeen(), errors)
    assert decision.predicted == pytest.approx((3.0 * loss().relative(3, 5, 6),) * 2)


def test_until_a_run_is_planned_the_online_rule_decides_with_a_tolerance_of_its_kind():
    settings = preset("balanced", tolerance=0.1)
    policy = policies["planned"](settings)
    assert isinstance(policy, ErrorWindowPolicy)
    assert policy.settings.tolerance == pytest.approx(RULE_TOLERANCE * 0.1)
    assert "s" in pattern(policy, 20, 0.001, 2)
