"""Error windows, against answers found by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unicp.control.windows import Candidate, ErrorWindow

STEP = Candidate("output", "step")
SIGMA = Candidate("output", "sigma")
NOISE = Candidate("noise", "sigma")


def at(step: float, sigma: float = 0.5) -> dict:
    return {"step": float(step), "sigma": sigma}


def reuse(error: float = 0.2) -> ErrorWindow:
    """Order 0, computed at steps 0 and 1: error 0.2 per step, unless told otherwise."""
    window = ErrorWindow((STEP,), 0)
    window.observe(at(0), None)
    window.observe(at(1), {STEP: [error]})
    return window


def forecast(error: float = 0.06) -> ErrorWindow:
    """Order 1, computed at steps 0, 1 and 2."""
    window = ErrorWindow((STEP,), 1)
    window.observe(at(0), None)
    window.observe(at(1), None)
    window.observe(at(2), {STEP: [error]})
    return window


def test_reuse_grows_with_the_distance():
    window = reuse(0.2)
    assert window.predict(at(2))[1] == pytest.approx([0.2])
    assert window.predict(at(4))[1] == pytest.approx([0.6])


def test_a_forecast_grows_with_distance_times_distance_and_gap():
    # Measured at distance 1 after a gap of 1: growth 1 * (1 + 1) = 2, factor 0.06 / 2 = 0.03.
    window = forecast(0.06)
    assert window.factors[STEP] == pytest.approx([0.03])
    assert window.predict(at(3))[1] == pytest.approx([0.03 * 1 * 2])
    assert window.predict(at(5))[1] == pytest.approx([0.03 * 3 * 4])


def test_a_forecast_over_a_wider_gap_is_trusted_less():
    window = forecast(0.06)
    window.observe(at(5), {STEP: [0.03 * 3 * 4]})
    assert window.factors[STEP] == pytest.approx([0.03])
    assert window.predict(at(6))[1] == pytest.approx([0.03 * 1 * (1 + 3)])


def test_growth_is_measured_in_steps_whatever_the_variable_of_the_forecast():
    window = ErrorWindow((SIGMA,), 0)
    window.observe(at(0, 1.0), None)
    window.observe(at(1, 0.9), {SIGMA: [0.05]})
    assert window.predict(at(3, 0.6))[1] == pytest.approx([0.1])


def test_reach_is_the_distance_in_gaps_between_the_two_points():
    window = forecast()
    assert [window.reach(at(step)) for step in (3, 4)] == [1.0, 2.0]
    window.observe(at(6), None)
    assert [window.reach(at(step)) for step in (8, 10)] == [0.5, 1.0]
    window.observe(at(6), None)
    assert window.reach(at(7)) == math.inf
    assert reuse().reach(at(9)) == 0.0


def test_order_0_needs_one_point_and_a_measurement():
    window = ErrorWindow((STEP,), 0)
    assert not window.ready
    window.observe(at(0), None)
    assert not window.ready
    window.observe(at(1), {STEP: [0.1]})
    assert window.ready


def test_order_1_needs_two_points_and_a_measurement():
    window = ErrorWindow((STEP,), 1)
    for step in (0, 1):
        window.observe(at(step), None)
        assert not window.ready
    window.observe(at(2), {STEP: [0.1]})
    assert window.ready


def test_predicting_before_any_measurement_is_an_error():
    with pytest.raises(RuntimeError):
        ErrorWindow((STEP,), 0).predict(at(1))


def test_a_rise_of_the_error_is_followed_at_once():
    window = reuse(0.1)
    window.observe(at(2), {STEP: [0.4]})
    assert window.predict(at(3))[1] == pytest.approx([0.4])


def test_a_fall_of_the_error_is_believed_slowly():
    window = reuse(0.4)
    window.observe(at(2), {STEP: [0.1]})
    after_one = window.predict(at(3))[1][0]
    assert 0.1 < after_one < 0.4
    window.observe(at(3), {STEP: [0.1]})
    after_two = window.predict(at(4))[1][0]
    assert 0.1 < after_two < after_one


def test_a_changed_number_of_samples_starts_the_factor_anew():
    window = reuse(0.4)
    window.observe(at(2), {STEP: [0.1, 0.2]})
    assert window.predict(at(3))[1] == pytest.approx([0.1, 0.2])


def test_errors_are_predicted_for_each_sample():
    window = ErrorWindow((STEP,), 0)
    window.observe(at(0), None)
    window.observe(at(1), {STEP: [0.1, 0.3]})
    assert window.predict(at(3))[1] == pytest.approx([0.2, 0.6])


def test_the_candidate_with_the_smallest_worst_error_is_taken():
    window = ErrorWindow((SIGMA, NOISE), 0)
    window.observe(at(0, 1.0), None)
    window.observe(at(1, 0.9), {SIGMA: [0.01, 0.5], NOISE: [0.2, 0.2]})
    chosen, errors = window.predict(at(2, 0.8))
    assert chosen == NOISE
    assert errors == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_measurement_that_is_not_finite_drops_the_candidate(bad):
    window = ErrorWindow((SIGMA, NOISE), 0)
    window.observe(at(0, 1.0), None)
    window.observe(at(1, 0.9), {SIGMA: [0.1], NOISE: [0.2]})
    window.observe(at(2, 0.8), {SIGMA: [bad], NOISE: [0.2]})
    assert window.ready
    assert window.predict(at(3, 0.7))[0] == NOISE
    window.observe(at(3, 0.7), {NOISE: [bad]})
    assert not window.ready


def test_a_dropped_candidate_comes_back_with_a_finite_measurement():
    window = reuse(0.1)
    window.observe(at(2), {STEP: [math.nan]})
    assert not window.ready
    window.observe(at(3), {STEP: [0.1]})
    assert window.ready


def test_drift_as_announced_changes_nothing():
    window = ErrorWindow((STEP,), 0)
    window.observe(at(0), None)
    window.observe(at(1), {STEP: [0.1]}, [0.05])
    assert window.predict(at(2), [0.05])[1] == pytest.approx([0.1])
    assert window.predict(at(3), [0.10])[1] == pytest.approx([0.2])


def test_a_drift_spike_multiplies_the_prediction_of_its_sample():
    window = ErrorWindow((STEP,), 0)
    window.observe(at(0), None)
    window.observe(at(1), {STEP: [0.1, 0.1]}, [0.05, 0.05])
    assert window.predict(at(2), [0.05, 0.25])[1] == pytest.approx([0.1, 0.5])


def test_a_small_drift_does_not_lower_the_prediction():
    window = ErrorWindow((STEP,), 0)
    window.observe(at(0), None)
    window.observe(at(1), {STEP: [0.1]}, [0.05])
    assert window.predict(at(2), [0.0])[1] == pytest.approx([0.1])


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_movement_after_stillness_is_an_infinite_spike(error):
    window = ErrorWindow((STEP,), 0)
    window.observe(at(0), None)
    window.observe(at(1), {STEP: [error]}, [0.0])
    assert window.predict(at(2), [0.01])[1] == [math.inf]


@pytest.mark.parametrize("drift", [math.nan, math.inf])
def test_drift_that_is_not_finite_is_an_infinite_spike(drift):
    window = ErrorWindow((STEP,), 0)
    window.observe(at(0), None)
    window.observe(at(1), {STEP: [0.1]}, [0.05])
    assert window.predict(at(2), [drift])[1] == [math.inf]


def test_served_and_spent_add_up_and_are_reset_by_a_computation():
    window = reuse()
    window.serve(0.1)
    window.serve(0.2)
    assert (window.served, window.total(0.1), window.total(0.1, 2.0)) == (2, pytest.approx(0.4), pytest.approx(0.7))
    window.observe(at(4), {STEP: [0.1]})
    assert (window.served, window.total(0.1, 2.0)) == (0, 0.1)


def test_only_as_many_points_are_kept_as_a_forecast_needs():
    for window, kept in ((reuse(), 1), (forecast(), 2)):
        window.observe(at(7), None)
        window.observe(at(8), None)
        assert [point["step"] for point in window.points] == [7.0, 8.0][-kept:]


errors = st.floats(0, 1e6, allow_subnormal=False)
distances = st.floats(0.5, 100)


@given(
    st.sampled_from([0, 1]),
    st.lists(st.tuples(distances, errors, errors), min_size=3, max_size=6),
    st.tuples(distances, distances),
    errors,
)
def test_predictions_are_never_negative_never_nan_and_grow_with_the_distance(order, history, ahead, drift):
    window = ErrorWindow((STEP,), order)
    step = 0.0
    for index, (distance, error, moved) in enumerate(history):
        step += distance
        window.observe(at(step), {STEP: [error]} if index > order else None, [moved])
    near, far = sorted(ahead)
    for seen in (None, [drift]):
        close = window.predict(at(step + near), seen)[1][0]
        assert close >= 0 and not math.isnan(close)
    # Drift grows with the distance, too: for the same drift only the plain prediction must be in order.
    assert window.predict(at(step + near))[1][0] <= window.predict(at(step + far))[1][0]


@given(st.floats(0, 1e-300), st.floats(0, 1e300))
def test_extreme_but_finite_measurements_never_predict_nan(distance, error):
    window = ErrorWindow((STEP,), 0)
    window.observe(at(0), None)
    window.observe(at(distance), {STEP: [error]}, [0.1])
    if window.ready:
        assert not math.isnan(window.predict(at(distance), [0.1])[1][0])
