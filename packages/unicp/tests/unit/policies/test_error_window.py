"""Error windows and the policy made of them, against answers found by hand. Floats only."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_parts import FakeSeen, at, learnt, pattern, started
from unicp.context import Decision
from unicp.policies.error_window import ErrorWindow, ErrorWindowPolicy
from unicp.policies.fixed import FixedStepsPolicy, FixedWindowPolicy
from unicp.settings import Settings

# --- one window


def reuse(error: float = 0.2) -> ErrorWindow:
    """Of one point, full at steps 0 and 1: error 0.2 per step, unless told otherwise."""
    window = ErrorWindow(1)
    window.observe(0, None)
    window.observe(1, [error])
    return window


def line(error: float = 0.06) -> ErrorWindow:
    """Of two points, full at steps 0, 1 and 2."""
    window = ErrorWindow(2)
    window.observe(0, None)
    window.observe(1, None)
    window.observe(2, [error])
    return window


def moving(*drift: float, errors: tuple[float, ...] = (0.1,)) -> ErrorWindow:
    """Of one point, full at steps 0 and 1, whose samples have drifted so far in between."""
    window = ErrorWindow(1)
    window.observe(0, None)
    window.observe(1, errors, drift)
    return window


def test_the_error_of_reuse_grows_with_the_distance():
    window = reuse(0.2)
    assert window.predict(2) == pytest.approx([0.2])
    assert window.predict(4) == pytest.approx([0.6])


def test_that_of_a_line_grows_with_distance_times_distance_and_gap():
    # Measured at distance 1 after a gap of 1: growth 1 * (1 + 1) = 2, factor 0.06 / 2 = 0.03.
    window = line(0.06)
    assert window.factors == pytest.approx([0.03])
    assert window.predict(3) == pytest.approx([0.03 * 1 * 2])
    assert window.predict(5) == pytest.approx([0.03 * 3 * 4])


def test_a_line_over_a_wider_gap_is_trusted_less():
    window = line(0.06)
    window.observe(5, [0.03 * 3 * 4])
    assert window.factors == pytest.approx([0.03])
    assert window.predict(6) == pytest.approx([0.03 * 1 * (1 + 3)])


def test_reach_is_the_distance_in_gaps_between_the_two_points():
    window = line()
    assert [window.reach(step) for step in (3, 4)] == [1.0, 2.0]
    window.observe(6, None)
    assert [window.reach(step) for step in (8, 10)] == [0.5, 1.0]
    window.observe(6, None)
    assert window.reach(7) == math.inf
    assert reuse().reach(9) == 0.0


@pytest.mark.parametrize("points", [1, 2])
def test_a_window_needs_its_points_and_a_measurement(points: int):
    window = ErrorWindow(points)
    for step in range(points):
        assert not window.ready
        window.observe(step, None)
    assert not window.ready
    window.observe(points, [0.1])
    assert window.ready


def test_a_measurement_does_not_stand_for_a_missing_point():
    window = ErrorWindow(3)
    window.observe(0, None)
    window.observe(1, [0.1])
    assert not window.ready
    window.observe(2, [0.1])
    assert window.ready


def test_predicting_before_any_measurement_is_an_error():
    with pytest.raises(RuntimeError):
        ErrorWindow(1).predict(1)


def test_a_rise_of_the_error_is_followed_at_once():
    window = reuse(0.1)
    window.observe(2, [0.4])
    assert window.predict(3) == pytest.approx([0.4])


def test_a_fall_of_the_error_is_believed_slowly():
    window = reuse(0.4)
    for step, expected in ((2, 0.25), (3, 0.175)):
        window.observe(step, [0.1])
        assert window.predict(step + 1) == pytest.approx([expected])


def test_a_changed_number_of_samples_starts_the_factor_anew():
    window = reuse(0.4)
    window.observe(2, [0.1, 0.2])
    assert window.predict(3) == pytest.approx([0.1, 0.2])


def test_errors_are_predicted_for_each_sample():
    window = ErrorWindow(1)
    window.observe(0, None)
    window.observe(1, [0.1, 0.3])
    assert window.predict(3) == pytest.approx([0.2, 0.6])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_measurement_that_is_not_finite_is_forgotten_with_all_before_it_until_a_finite_one(bad: float):
    window = reuse(0.4)
    window.observe(2, [bad])
    assert not window.ready
    window.observe(3, [0.1])
    assert window.ready and window.predict(4) == pytest.approx([0.1])


def test_one_bad_sample_of_several_is_enough():
    window = reuse(0.4)
    window.observe(2, [0.1, math.nan])
    assert not window.ready


def test_drift_as_announced_changes_nothing():
    window = moving(0.05)
    assert window.predict(2, [0.05]) == pytest.approx([0.1])
    assert window.predict(3, [0.10]) == pytest.approx([0.2])


def test_a_spike_of_the_drift_multiplies_the_prediction_of_its_sample():
    window = moving(0.05, 0.05, errors=(0.1, 0.1))
    assert window.predict(2, [0.05, 0.25]) == pytest.approx([0.1, 0.5])


def test_a_small_drift_does_not_lower_the_prediction():
    assert moving(0.05).predict(2, [0.0]) == pytest.approx([0.1])


def test_the_drift_of_another_number_of_samples_tells_nothing():
    assert moving(0.05).predict(2, [0.5, 0.5]) == pytest.approx([0.1])


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_movement_after_stillness_is_an_infinite_spike(error: float):
    assert moving(0.0, errors=(error,)).predict(2, [0.01]) == [math.inf]


@pytest.mark.parametrize("drift", [math.nan, math.inf])
def test_drift_that_is_not_finite_is_an_infinite_spike(drift: float):
    assert moving(0.05).predict(2, [drift]) == [math.inf]


def test_errors_of_a_window_add_up_and_are_reset_by_a_full_step():
    window = reuse()
    window.errors += [0.1, 0.2]
    assert (window.skipped, window.total(0.1), window.total(0.1, 2.0)) == (2, pytest.approx(0.4), pytest.approx(0.7))
    window.observe(4, [0.1])
    assert (window.skipped, window.total(0.1, 2.0)) == (0, 0.1)


def test_only_as_many_steps_are_kept_as_a_prediction_needs():
    for window, kept in ((reuse(), 1), (line(), 2)):
        window.observe(7, None)
        window.observe(8, None)
        assert window.steps == [7, 8][-kept:]


errors = st.floats(0, 1e6, allow_subnormal=False)
distances = st.integers(1, 100)


@given(
    st.sampled_from([1, 2]),
    st.lists(st.tuples(distances, errors, errors), min_size=3, max_size=6),
    st.tuples(distances, distances),
    errors,
)
def test_predictions_are_never_negative_never_nan_and_grow_with_the_distance(points, history, ahead, drift):
    window, step = ErrorWindow(points), 0
    for index, (distance, error, moved) in enumerate(history):
        step += distance
        window.observe(step, [error] if index >= points else None, [moved])
    near, far = sorted(ahead)
    for seen in (None, [drift]):
        (close,) = window.predict(step + near, seen)
        assert close >= 0 and not math.isnan(close)
    # Drift grows with the distance too: for the same drift only the plain prediction must be in order.
    assert window.predict(step + near)[0] <= window.predict(step + far)[0]


@given(st.integers(0, 2), st.floats(0, 1e300), st.floats(0, 1e300))
def test_extreme_but_finite_measurements_never_predict_nan(distance, error, drift):
    window = ErrorWindow(1)
    window.observe(0, None)
    window.observe(distance, [error], [0.1])
    assert window.ready == (distance > 0)
    if window.ready:
        assert not math.isnan(window.predict(distance, [drift])[0])


# --- the policy: a window for each branch


def settings(**changes: Any) -> Settings:
    plain: dict[str, Any] = {
        "tolerance": 0.1,
        "weighting": "uniform",
        "first": 2,
        "last": 1,
        "max_window": 3,
    }
    return Settings(**(plain | changes))


def policy(**changes: Any) -> ErrorWindowPolicy:
    return ErrorWindowPolicy(settings(**changes))


def decide(made: ErrorWindowPolicy, step: int, seen: FakeSeen | None = None, steps: int | None = 20) -> Decision:
    return made.decide(at(step, steps=steps), seen or FakeSeen())


def test_a_small_predicted_error_is_skipped():
    decision = decide(learnt(policy(), 0.05), 4)
    assert decision == Decision(True, "within", 0.1, (pytest.approx(0.05),))


def test_a_predicted_error_above_the_tolerance_is_computed():
    decision = decide(learnt(policy(), 0.2), 4)
    assert decision == Decision(False, "tolerance", 0.1, (pytest.approx(0.2),))


@given(
    st.sampled_from([1, 2]),
    st.floats(0, 1),
    st.one_of(st.none(), st.floats(0, 1)),
    st.integers(4, 30),
    st.one_of(st.none(), st.integers(1, 40)),
    st.sampled_from([{}, {"full_every": 3}, {"full_steps": (0, 9)}]),
    st.sampled_from(["impact", "uniform"]),
)
def test_tolerance_zero_skips_nothing(points, error, drift, step, steps, fixed, weighting):
    set_to = settings(tolerance=0.0, weighting=weighting, first=1, last=0, max_reach=99, **fixed)
    kinds = {"full_every": FixedWindowPolicy, "full_steps": FixedStepsPolicy}
    kind = next((kinds[name] for name in fixed), ErrorWindowPolicy)
    made = learnt(kind(set_to), error, drift=0.1, points=points)
    assert not decide(made, step, FakeSeen(None if drift is None else [drift]), steps).skip


@pytest.mark.parametrize(
    ("step", "steps", "reason"),
    [(0, 20, "first"), (1, 20, "first"), (19, 20, "last"), (18, 20, "within"), (19, None, "within")],
)
def test_the_first_and_last_steps_are_computed(step: int, steps: int | None, reason: str):
    assert decide(learnt(policy(tolerance=1e9), 0.05), step, steps=steps).reason == reason


def test_a_branch_without_a_measurement_is_computed():
    assert decide(started(policy()), 5) == Decision(False, "learning", 0.1)


def test_no_more_steps_in_a_row_are_skipped_than_allowed():
    made = learnt(policy(tolerance=1e9, max_window=2), 0.0)
    assert [decide(made, step).reason for step in (4, 5, 6)] == ["within", "within", "window"]


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        # Predicted 0.025 a step: 0.025, 0.05, 0.075 for three steps in a row. Two are 0.075, or 0.125 with the second
        # counted twice, beyond the tolerance of 0.1.
        ({}, "ffsfsfsf"),
        ({"replay": False}, "ffssfssf"),
        ({"level": "unit"}, "ffssfssf"),
        # Four times as much is allowed: errors count once. 0.1 + 0.2 are within 0.4, 0.6 is not.
        ({"tolerance": 0.4, "factor": 4}, "ffssfssf"),
    ],
)
def test_where_little_is_allowed_a_replayed_window_of_several_steps_counts_more(changes: dict, done: str):
    changes = dict(changes)
    factor = changes.pop("factor", 1)
    assert pattern(policy(**changes), 8, 0.025 * factor) == done


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
    for error, reason in ((0.99 * allowed, "within"), (1.01 * allowed, "tolerance")):
        decision = decide(learnt(policy(last=0, **changes), error, upto=step), step, steps=steps)
        assert (decision.reason, decision.tolerance) == (reason, pytest.approx(allowed))


@pytest.mark.parametrize(("max_reach", "reason"), [(0.5, "reach"), (1.0, "within"), (1.5, "within")])
def test_a_line_reaches_no_farther_than_allowed(max_reach: float, reason: str):
    made = learnt(policy(tolerance=1e9, max_reach=max_reach), 0.01, points=2)
    assert decide(made, 4).reason == reason


def test_with_a_reach_of_one_windows_of_a_line_widen_by_one_step_at_a_time():
    # Gaps between full steps of 1, 1, 2, 3, 4: the last one is cut short by the longest window of 3.
    done = pattern(policy(tolerance=1e9, max_reach=1.0, last=0), 17, 0.0, points=2)
    assert done == "fff" + "s" + "f" + "ss" + "f" + "sss" + "f" + "sss" + "f" + "s"


def test_reuse_has_no_reach_to_be_limited():
    assert decide(learnt(policy(tolerance=1e9, max_reach=0.0), 0.01), 4).reason == "within"


@pytest.mark.parametrize("seen", [FakeSeen(veto="sample"), FakeSeen(not_ready="level")])
def test_what_stands_against_skipping_is_the_reason_and_nothing_is_predicted(seen: FakeSeen):
    decision = decide(learnt(policy(tolerance=1e9), 0.0), 5, seen)
    assert decision == Decision(False, seen.veto or seen.not_ready, 1e9)


def test_a_spike_of_the_drift_closes_the_window_at_once():
    made = learnt(policy(), 0.05, drift=0.02)
    decision = decide(made, 4, FakeSeen([0.2]))
    assert (decision.skip, decision.reason) == (False, "spike")
    assert decide(made, 4, FakeSeen([0.02])).skip


def test_a_spike_of_one_sample_closes_the_window_of_the_batch():
    made = started(policy())
    made.observe(at(0), FakeSeen(), None)
    made.observe(at(1), FakeSeen([0.02, 0.0]), [0.01, 0.0])
    assert not decide(made, 2, FakeSeen([0.02, 0.5])).skip
    assert decide(made, 2, FakeSeen([0.02, 0.0])).skip


def test_the_error_of_what_is_kept_counts_in_the_steps_skipped_with_it():
    # 0.02 + 0.04 are within 0.1; with 0.05 more for the step that is skipped already they are not.
    plain, sliced = (learnt(policy(tolerance=0.1, level="unit"), 0.02) for _ in range(2))
    assert [decide(plain, step).skip for step in (4, 5)] == [True, True]
    assert [decide(sliced, step, FakeSeen(base_error=0.05)).skip for step in (4, 5)] == [True, False]


def test_branches_have_windows_of_their_own():
    made = started(policy())
    for step in range(3):
        for branch, error in (("cond", 0.01), ("uncond", 0.5)):
            made.observe(at(step, branch), FakeSeen(), [error] if step else None)
    assert made.decide(at(3), FakeSeen()).skip
    assert not made.decide(at(3, "uncond"), FakeSeen()).skip


def test_a_branch_that_is_shown_others_waits_for_all_of_them():
    made = started(policy())
    for step in range(3):
        for branch, error in (("cond", 0.01), ("wild", 0.5)):
            made.observe(at(step, branch), FakeSeen(), [error] if step else None)
    made.observe(at(0, "new"), FakeSeen(), None)
    for others, reason in ((("wild",), "other branch"), (("new",), "other branch"), ((), "within")):
        assert made.decide(at(3), FakeSeen(others=others)).reason == reason


def test_a_new_run_begins_with_nothing():
    made = learnt(policy(tolerance=1e9), 0.0)
    assert decide(made, 4).skip
    assert decide(started(made), 4).reason == "learning"


def test_a_larger_tolerance_skips_no_less():
    skipped = [pattern(policy(tolerance=t), 30, 0.05).count("s") for t in (0.0, 0.04, 0.06, 0.2, 10.0)]
    assert skipped == sorted(skipped)
    assert skipped[0] == 0 and skipped[-1] > 0


@given(
    st.sampled_from([1, 2]),
    st.lists(st.floats(0, 1), min_size=16, max_size=16),
    st.floats(0, 2),
    st.integers(1, 5),
    st.booleans(),
)
def test_no_window_is_ever_predicted_to_err_by_more_than_its_tolerance(points, errors, tolerance, longest, replay):
    made = started(policy(tolerance=tolerance, max_window=longest, last=0, replay=replay), points)
    row: list[float] = []
    for step, error in enumerate(errors):
        decision = decide(made, step, steps=len(errors))
        if decision.skip:
            assert decision.predicted is not None
            row.append(max(decision.predicted))
            assert len(row) <= longest and math.fsum(row) <= decision.tolerance * (1 + 1e-9)
        else:
            row = []
            made.observe(at(step), FakeSeen(), [error] if step >= points else None)
