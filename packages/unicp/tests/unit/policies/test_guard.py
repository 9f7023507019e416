"""The guard: follows the plan while errors are as announced, spends more where they are larger, never less."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicp.policies.guard import LARGEST, Guard, Schedule
from unicp.policies.step_paths import WARM_UP, WindowLoss, best_paths

STEPS = 16


def announced(before: int, last: int, skipped: int) -> float:
    """The remainder of a straight line of curvature 0.02."""
    return 0.01 * (skipped - last) * (skipped - before)


def schedule(count: int = 9, allowance: float | None = None, most: int = STEPS, weights=None) -> Schedule:
    parts = dict(error=announced, weights=weights or [1.0] * STEPS, rule=WindowLoss(2.0))
    change = Schedule(STEPS, (), allowance=0.0, most=STEPS, **parts).change
    path = best_paths(STEPS, change, rule=WindowLoss(2.0))[count]
    return Schedule(STEPS, path.computed, allowance=path.loss if allowance is None else allowance, most=most, **parts)


def run(guard: Guard, times, branches=("cond", "uncond")) -> dict[int, str]:
    """Why each step is computed, "" if skipped, in a run whose errors are `times(step)` as large as announced."""
    points: list[int] = []
    whys = {}
    for step in range(STEPS):
        whys[step] = guard.reason(step)
        if whys[step]:
            for branch in branches:
                error = announced(*points[-2:], step) * times(step) if len(points) >= 2 else None
                guard.computed(step, branch, error)
            points.append(step)
    return whys


def computed(whys) -> list[int]:
    return [step for step, why in whys.items() if why]


def test_errors_as_announced_give_the_plan():
    plan = schedule()
    guard = Guard(plan)
    whys = run(guard, lambda step: 1.0)
    assert computed(whys) == list(plan.computed) and set(whys.values()) == {"plan", ""}
    assert guard.events == [] and guard.ratio == pytest.approx(1.0)


def test_smaller_errors_do_not_lead_to_less_than_the_plan():
    plan = schedule()
    assert computed(run(Guard(plan), lambda step: 0.1)) == list(plan.computed)


def test_larger_errors_are_met_with_more_computed_steps_and_it_is_said_when_and_why():
    plan = schedule(8)
    guard = Guard(plan)
    whys = run(guard, lambda step: 2.0)
    assert set(plan.computed) < set(computed(whys))
    assert all(whys[step] == "guard" for step in set(computed(whys)) - set(plan.computed))
    assert "times those announced, also computes" in guard.events[0] and guard.events[0].startswith("step 4: errors 2 ")


def test_a_rise_is_followed_at_once_and_forgotten_by_halves():
    # Step 3 misses by four times what was announced, no other does: half of the ratio stays, as a logarithm.
    guard, seen = Guard(schedule(STEPS)), {}
    run(guard, lambda step: seen.setdefault(step, guard.ratio) and (4.0 if step == 3 else 1.0))
    assert [seen[step] for step in (3, 4, 5, 6)] == pytest.approx([1.0, 4.0, 2.0, math.sqrt(2.0)])


def test_the_harder_the_run_the_more_is_computed():
    counts = [len(computed(run(Guard(schedule(8)), lambda step, t=t: t))) for t in (1, 1.2, LARGEST, math.inf)]
    assert counts == sorted(counts) and counts[0] == 8 < counts[1] < counts[-1] == STEPS - 1


def test_ratios_beyond_the_largest_are_taken_for_it():
    runs = [computed(run(Guard(schedule(8)), lambda step, t=t: t)) for t in (LARGEST, 3 * LARGEST, 100 * LARGEST)]
    assert runs[0] == runs[1] == runs[2]


def test_what_is_spent_stays_within_the_allowance():
    plan = schedule(8)
    guard = Guard(plan)
    whys = run(guard, lambda step: 1.2)
    points, true, window = [], 0.0, 0.0
    for step in range(STEPS):
        if whys[step]:
            points.append(step)
            true, window = true + window**2, 0.0
        else:
            window += 1.2 * announced(*points[-2:], step)
    true += window**2
    assert 0 < true <= plan.allowance


def test_an_allowance_above_the_plan_is_used_up_before_more_is_computed():
    plan = schedule(8)
    roomy = Schedule(STEPS, plan.computed, announced, plan.weights, plan.rule, plan.allowance * 8, STEPS)
    assert computed(run(Guard(roomy), lambda step: 1.9)) == list(plan.computed)


def test_a_target_of_speed_leaves_nothing_to_spend():
    plan = schedule(8, most=8)
    assert computed(run(Guard(plan), lambda step: 50.0)) == list(plan.computed)
    assert len(computed(run(Guard(schedule(8, most=10)), lambda step: 50.0))) == 10


def test_steps_that_cannot_be_served_are_computed_when_the_rest_is_solved_anew():
    weights = [math.inf if step < 6 else 1.0 for step in range(STEPS)]
    plan = schedule(10, weights=weights)
    assert set(range(6)) <= set(computed(run(Guard(plan), lambda step: 3.0)))


@pytest.mark.parametrize("error", [math.inf, math.nan])
def test_an_error_that_is_no_number_has_the_rest_computed(error):
    guard = Guard(schedule(8))
    for step in range(6):
        if guard.reason(step):
            guard.computed(step, "cond", None if step < 2 else error)
    assert all(guard.reason(step) for step in range(6, STEPS))


def test_a_step_computed_against_the_plan_is_taken_into_account():
    plan = schedule(8)
    guard = Guard(plan)
    skipped = next(step for step in range(STEPS) if step not in plan.computed)
    for step in range(skipped):
        assert guard.reason(step)
        guard.computed(step, "cond", 0.0 if step >= 2 else None)
    assert guard.reason(skipped) == ""
    guard.computed(skipped, "cond", 0.0)  # computed all the same: a forecast that was not finite, say
    assert {skipped, *range(skipped)} <= set(guard._points) | {skipped}
    guard.reason(skipped + 1)
    assert guard._points[-1] == skipped


def test_the_answer_is_the_same_for_all_calls_of_a_step():
    guard = Guard(schedule(8))
    for step in range(STEPS):
        first = guard.reason(step)
        assert guard.reason(step) == first
        if first:
            guard.computed(step, "cond", 0.5 if step >= 2 else None)
            assert guard.reason(step) == first


def test_steps_before_the_guard_was_asked_were_computed():
    plan = schedule(8, most=8)
    late, early = Guard(plan), Guard(plan)
    for guard, first in ((late, 1), (early, 0)):
        for step in range(first, 6):
            if guard.reason(step):
                guard.computed(step, "cond", 0.01 if step >= 2 else None)
    assert late._points == early._points and late.ratio == early.ratio and late.spent == early.spent


@given(times=st.lists(st.floats(0.01, 100), min_size=STEPS, max_size=STEPS), count=st.integers(7, STEPS))
def test_never_less_than_the_plan_and_never_more_than_allowed(times, count):
    most = min(STEPS, count + 2)
    plan = schedule(count, most=most)
    chosen = set(computed(run(Guard(plan), lambda step: times[step])))
    assert set(plan.computed) <= chosen and len(chosen) <= most and set(WARM_UP) <= chosen
