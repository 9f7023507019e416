"""Policies that follow a plan: its full steps and those of its guard, or the rule of `balanced`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.fake_parts import FakeSeen, at, pattern, started
from unicp.context import Forecast, RunInfo
from unicp.policies.error_window import ErrorWindowPolicy
from unicp.policies.guard import Schedule
from unicp.policies.planned import Course, PlannedPolicy
from unicp.policies.step_paths import WindowLoss
from unicp.settings import Settings, preset

STEPS = 12
PLAN = (0, 1, 2, 4, 7, 10)


def settings(**changes: Any) -> Settings:
    plain: dict[str, Any] = {"tolerance": 0.1, "weighting": "uniform", "max_window": 1, "first": 9, "last": 1}
    return Settings(**(plain | changes))


def announced(before: int, last: int, skipped: int) -> float:
    """The remainder of a straight line of curvature 0.02."""
    return 0.01 * (skipped - last) * (skipped - before)


def schedule(allowance: float = 1e9, most: int = STEPS) -> Schedule:
    return Schedule(STEPS, PLAN, announced, [1.0] * STEPS, WindowLoss(2.0), allowance, most)


def run(policy: PlannedPolicy, times: float, vetoed: int = -1) -> dict[int, str]:
    """Why steps of a run are computed, of two branches whose errors are so many times those announced."""
    points: list[int] = []
    reasons: dict[int, str] = {}
    for step in range(STEPS):
        for branch in ("cond", "uncond"):
            seen = FakeSeen(veto="sample" if step == vetoed else "")
            decision = policy.decide(at(step, branch, STEPS), seen)
            assert policy.guard.events == []  # warned of at once
            if not decision.skip:
                errors = [times * announced(*points[-2:], step)] if len(points) >= 2 else None
                policy.observe(at(step, branch, STEPS), seen, errors)
                reasons[step] = decision.reason
        if step in reasons:
            points.append(step)
    return reasons


def test_errors_as_announced_give_the_full_steps_of_the_plan_whatever_the_settings_say():
    reasons = run(started(PlannedPolicy(schedule(), settings()), 2), 1.0)
    assert tuple(reasons) == PLAN and set(reasons.values()) == {"plan"}


def test_where_errors_are_larger_the_guard_adds_full_steps_and_warns():
    told: list[tuple[str, str]] = []
    policy = PlannedPolicy(schedule(allowance=schedule().change(0, 1, 3)), settings())
    policy.start_run(RunInfo("model", 2, lambda key, message: told.append((key, message))))
    reasons = run(policy, 3.0)
    assert set(PLAN) < set(reasons)
    assert {reasons[step] for step in set(reasons) - set(PLAN)} == {"guard"}
    assert told and all(key == "guard" and "run 0, step" in message for key, message in told)


def test_a_step_that_is_computed_against_the_plan_counts_in_its_account():
    policy = started(PlannedPolicy(schedule(most=len(PLAN)), settings()), 2)
    reasons = run(policy, 1.0, vetoed=5)
    assert tuple(reasons) == (0, 1, 2, 4, 5, 7, 10) and reasons[5] == "sample"
    assert 5 in policy.guard._points


def test_the_plan_waits_for_a_measurement():
    # As where a run was told to follow it with nothing known: the line's third step is not the plan's to give.
    policy = started(PlannedPolicy(schedule(), settings()), 2)
    policy.decide(at(0, steps=STEPS), FakeSeen())
    assert policy.decide(at(3, steps=STEPS), FakeSeen()).reason == "learning"


def test_tolerance_zero_skips_nothing_of_a_plan():
    reasons = run(started(PlannedPolicy(schedule(), settings(tolerance=0.0)), 2), 1.0)
    assert tuple(reasons) == tuple(range(STEPS))


def test_a_course_with_a_schedule_is_a_planned_policy():
    policy = Course(Forecast("output", "step"), schedule()).policy(settings())
    assert isinstance(policy, PlannedPolicy) and policy.guard.schedule == schedule()


def test_a_course_without_one_has_the_rule_of_balanced():
    # Four steps first, then windows widen by one step at a time.
    policy = Course(Forecast("output", "step"), tolerance=1.0).policy(settings(tolerance=0.0))
    assert pattern(policy, 14, 0.0, points=2) == "ffffsfssfsssfs"


@pytest.mark.parametrize("fixed", [{"full_every": 3}, {"full_steps": (0, 1)}])
def test_that_rule_is_the_preset_s_whatever_the_settings_are(fixed: dict[str, Any]):
    own = settings(store_factor=7.0, **fixed)
    policy, known = Course(Forecast("output", "step"), tolerance=0.1).policy(own), preset("balanced")
    assert type(policy) is ErrorWindowPolicy
    names = ("weighting", "max_window", "max_reach", "first", "last", "full_every", "full_steps")
    expected = replace(own, tolerance=0.1, **{name: getattr(known, name) for name in names})
    assert policy.settings == expected and policy.settings.store_factor == 7.0
