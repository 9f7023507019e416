"""The online rule in floats: no tensor, no model."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unicp.control.controller import Controller, OnlineRule, Question
from unicp.control.windows import Candidate, ErrorWindow, Position

from unicp.records import Action, Decision, Moment
from unicp.settings import Settings, Slicing, preset

STEP = Candidate("output", "step")


def settings(**changes: Any) -> Settings:
    plain: dict[str, Any] = {
        "tolerance": 0.1,
        "order": 0,
        "weighting": "uniform",
        "abscissas": ("step",),
        "first": 2,
        "last": 1,
        "max_window": 3,
    }
    return Settings(**(plain | changes))


def moment(step: int, steps: int | None = 20) -> Moment:
    return Moment(0, step, "cond", 1000.0 - 40 * step, 1, 1.0 - 0.04 * step, steps)


def question(step: int, steps: int | None = 20, **more: Any) -> Question:
    return Question(moment(step, steps), {"step": float(step)}, **more)


def learnt(controller: Controller, error: float, upto: int = 4, drift: float | None = None) -> ErrorWindow:
    """A window computed at the steps before `upto`, with this error per step and the drift of a step."""
    window = controller.new_window((STEP,))
    for step in range(upto):
        known = len(window.points) > controller.settings.order
        errors = {STEP: [error * window.growth({"step": float(step)})]} if known else None
        window.observe({"step": float(step)}, errors, None if drift is None or not step else [drift])
    return window


def decide(controller: Controller, window: ErrorWindow, asked: Question) -> Decision:
    return controller.decide(window, asked)[0]


def actions(controller: Controller, steps: int, error: float) -> str:
    """A whole run in which serving has `error` per unit of growth: c = computed, s = served."""
    window, done = controller.new_window((STEP,)), ""
    for step in range(steps):
        decision = decide(controller, window, question(step, steps))
        position: Position = {"step": float(step)}
        if decision.action.served:
            assert decision.predicted is not None
            window.serve(max(decision.predicted))
        else:
            known = len(window.points) > controller.settings.order
            window.observe(position, {STEP: [error * window.growth(position)]} if known else None)
        done += "s" if decision.action.served else "c"
    return done


def test_a_small_predicted_error_is_served_by_the_best_candidate():
    controller = Controller(settings())
    window = learnt(controller, 0.05)
    decision, candidate = controller.decide(window, question(4))
    assert (decision.action, decision.why, candidate) == (Action.REUSE, "within", STEP)
    assert decision.predicted == pytest.approx((0.05,))
    assert decision.tolerance == 0.1


def test_order_1_serves_forecasts():
    controller = Controller(settings(predictor="line"))
    assert decide(controller, learnt(controller, 0.01), question(4)).action is Action.FORECAST


def test_a_predicted_error_above_the_tolerance_is_computed():
    controller = Controller(settings())
    decision, candidate = controller.decide(learnt(controller, 0.2), question(4))
    assert (decision.action, decision.why, candidate) == (Action.FULL, "tolerance", None)


@given(
    st.sampled_from([0, 1]),
    st.floats(0, 1),
    st.one_of(st.none(), st.floats(0, 1)),
    st.integers(0, 30),
    st.one_of(st.none(), st.integers(1, 40)),
    st.one_of(st.none(), st.integers(1, 5)),
    st.sampled_from(["impact", "uniform"]),
)
def test_tolerance_zero_serves_and_slices_nothing(order, error, drift, step, steps, every, weighting):
    slicing = Slicing(widths=(8,), tolerance=100.0, min_saving=0.0)
    controller = Controller(
        settings(tolerance=0.0, order=order, full_every=every, weighting=weighting, slicing=slicing, first=1, last=0)
    )
    asked = question(step, steps, drift=None if drift is None else [drift])
    decision, candidate = controller.decide(learnt(controller, error, drift=0.1), asked)
    assert decision.action is Action.FULL and candidate is None
    assert controller.choose_width(moment(step, steps), {8: 0.0}, {8: 0.5}) is None


@pytest.mark.parametrize(
    ("step", "steps", "why"),
    [(0, 20, "first"), (1, 20, "first"), (19, 20, "last"), (18, 20, "within"), (19, None, "within")],
)
def test_the_first_and_last_steps_are_computed(step, steps, why):
    controller = Controller(settings(tolerance=1e9))
    assert decide(controller, learnt(controller, 0.05), question(step, steps)).why == why


def test_a_window_without_a_measurement_computes():
    controller = Controller(settings())
    decision = decide(controller, controller.new_window((STEP,)), question(5))
    assert (decision.action, decision.why, decision.predicted) == (Action.FULL, "learning", None)


def test_a_window_serves_no_more_steps_than_allowed():
    controller = Controller(settings(tolerance=1e9, max_window=2))
    window = learnt(controller, 0.0)
    for step in (4, 5):
        assert decide(controller, window, question(step)).action.served
        window.serve(0.0)
    assert decide(controller, window, question(6)).why == "window"


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        # Predicted 0.025 a step: 0.025, 0.05, 0.075 for three steps in a row. Two are 0.075, or 0.125 with the second
        # counted twice, beyond the tolerance of 0.1.
        ({}, "ccscscsc"),
        ({"replay": False}, "ccsscssc"),
        ({"level": "unit"}, "ccsscssc"),
        # Four times as much is allowed: errors count once. 0.1 + 0.2 are within 0.4, 0.6 is not.
        ({"tolerance": 0.4, "factor": 4}, "ccsscssc"),
    ],
)
def test_where_little_is_allowed_a_window_of_several_steps_counts_more_than_one_that_is_mended(changes, done):
    factor = changes.pop("factor", 1)
    assert actions(Controller(settings(**changes)), 8, 0.025 * factor) == done


@pytest.mark.parametrize(
    ("step", "steps", "changes", "allowed"),
    [
        (17, 20, {}, 0.1),
        (18, 20, {}, 0.05),
        (19, 20, {}, 0.05),
        (19, None, {}, 0.1),
        (19, 20, {"replay": False}, 0.1),
        (19, 20, {"level": "unit"}, 0.1),
        (19, 20, {"level": "stack"}, 0.05),
        (19, 20, {"tolerance": 0.2}, 0.2 / 1.5),
        (19, 20, {"tolerance": 0.4}, 0.4),
    ],
)
def test_at_the_last_two_steps_half_as_much_is_allowed_where_little_is(step, steps, changes, allowed):
    controller = Controller(settings(last=0, **changes))
    for error, why in ((0.99 * allowed, "within"), (1.01 * allowed, "tolerance")):
        decision = decide(controller, learnt(controller, error), Question(moment(step, steps), {"step": 4.0}))
        assert (decision.why, decision.tolerance) == (why, pytest.approx(allowed))


@pytest.mark.parametrize(("max_reach", "why"), [(0.5, "reach"), (1.0, "within"), (1.5, "within")])
def test_a_forecast_reaches_no_farther_than_allowed(max_reach, why):
    controller = Controller(settings(predictor="line", tolerance=1e9, max_reach=max_reach))
    assert decide(controller, learnt(controller, 0.01), question(4)).why == why


def test_with_a_reach_of_one_windows_of_a_forecast_widen_by_one_step_at_a_time():
    # Gaps between computed steps of 1, 1, 2, 3, 4: the last one is cut short by the longest window of 3.
    controller = Controller(settings(predictor="line", tolerance=1e9, max_reach=1.0, last=0))
    assert actions(controller, 17, 0.0) == "ccc" + "s" + "c" + "ss" + "c" + "sss" + "c" + "sss" + "c" + "s"


def test_reuse_has_no_reach_to_be_limited():
    controller = Controller(settings(tolerance=1e9, max_reach=0.0))
    assert decide(controller, learnt(controller, 0.01), question(4)).why == "within"


def test_an_outside_doubt_computes_and_is_the_reason():
    controller = Controller(settings(tolerance=1e9))
    decision = decide(controller, learnt(controller, 0.0), question(5, doubt="non-finite"))
    assert (decision.action, decision.why) == (Action.FULL, "non-finite")


def test_a_spike_of_the_drift_closes_the_window_at_once():
    controller = Controller(settings())
    window = learnt(controller, 0.05, drift=0.02)
    assert decide(controller, window, question(4, drift=[0.02])).action.served
    decision = decide(controller, window, question(4, drift=[0.2]))
    assert (decision.action, decision.why) == (Action.FULL, "spike")


def test_a_spike_of_one_sample_closes_the_window_of_the_batch():
    controller = Controller(settings())
    window = controller.new_window((STEP,))
    window.observe({"step": 0.0}, None)
    window.observe({"step": 1.0}, {STEP: [0.01, 0.0]}, [0.02, 0.0])
    assert decide(controller, window, question(2, drift=[0.02, 0.0])).action.served
    assert not decide(controller, window, question(2, drift=[0.02, 0.5])).action.served


@pytest.mark.parametrize("full_every", [1, 2, 3, 4])
@pytest.mark.parametrize("error", [0.0, 1e6])
def test_fixed_windows_give_exactly_their_pattern_whatever_the_error(every, error):
    # The two first steps are computed, which is all that reuse must learn from; then k - 1 served and one computed,
    # and the last step is computed in any case.
    controller = Controller(settings(full_every=every, max_window=1))
    body = "".join("c" if index % every == 0 else "s" for index in range(1, 18))
    assert actions(controller, 20, error) == "cc" + body + "c"


@pytest.mark.parametrize("error", [0.0, 1e6])
def test_a_fixed_schedule_is_followed_whatever_the_error(error):
    # Two steps are computed in any case, which is all that reuse must learn from.
    controller = Controller(settings(full_steps=(0, 4, 5, 9), max_window=1))
    assert actions(controller, 12, error) == "ccssccssscss"


def test_a_larger_tolerance_serves_no_less():
    patterns = [actions(Controller(settings(tolerance=t)), 30, 0.05) for t in (0.0, 0.04, 0.06, 0.2, 10.0)]
    served = [pattern.count("s") for pattern in patterns]
    assert served == sorted(served)
    assert served[0] == 0 and served[-1] > 0


def width_at(step: int, errors: dict[int, float], costs: dict[int, float], **changes: Any) -> int | None:
    slicing = Slicing(widths=(8, 16), tolerance=0.1)
    return Controller(settings(slicing=slicing, **changes)).choose_width(moment(step), errors, costs)


def test_the_cheapest_width_within_the_tolerance_is_taken():
    costs = {8: 0.6, 16: 0.8}
    assert width_at(5, {8: 0.05, 16: 0.01}, costs) == 8
    assert width_at(5, {8: 0.2, 16: 0.01}, costs) == 16
    assert width_at(5, {8: 0.2, 16: 0.11}, costs) is None


def test_an_error_that_is_not_a_number_and_a_cost_of_all_are_no_slices():
    assert width_at(5, {8: math.nan, 16: math.inf}, {8: 0.6, 16: 0.8}) is None
    assert width_at(5, {8: 0.0}, {8: 1.0}) is None


def test_slices_are_weighed_by_the_impact_of_their_step():
    """An error early in a run steers it: what is allowed late is not allowed there."""
    errors, costs = {8: 0.1}, {8: 0.5}
    widths = [width_at(step, errors, costs, weighting="impact") for step in range(20)]
    assert widths[0] is None and widths[-1] == 8
    assert {width_at(step, errors, costs) for step in range(20)} == {8}


def test_an_online_rule_of_a_plan_decides_until_it_is_taken_off():
    controller = Controller(settings(predictor="line", tolerance=0.0, max_window=1, first=9))
    controller.follow(OnlineRule(1.0, Candidate("output", "step")))
    assert controller.guard is None and controller.candidate == STEP
    # The rule of `balanced`: four steps first, windows widen by one step at a time.
    assert actions(controller, 14, 0.0) == "ccccscsscssscs"
    controller.follow(None)
    assert controller.candidate is None and actions(controller, 14, 0.0) == "c" * 14


def test_an_online_rule_is_that_of_the_preset_whatever_the_settings_are():
    course = OnlineRule(0.1, STEP)
    own = settings(predictor="line", full_every=3, store_factor=7.0)
    known = preset("balanced")
    rule = course.within(own)
    assert (rule.tolerance, rule.full_every, rule.store_factor) == (0.1, None, 7.0)
    assert (rule.first, rule.last, rule.max_window, rule.weighting) == (
        known.first,
        known.last,
        known.max_window,
        known.weighting,
    )
