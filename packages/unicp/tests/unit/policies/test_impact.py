"""How much error a step may have."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicp.context import StepContext
from unicp.numerics.noise_levels import NoiseLevel
from unicp.policies.impact import (
    IMPACT,
    LATE,
    NARROWEST,
    impact,
    later_weight,
    step_tolerance,
    usual_width,
)

CURVE = ((0.0, 1.0), (0.5, 2.0), (1.0, 6.0))


def at(sigma: float | None, timestep: float = 500.0, width: float | None = None) -> StepContext:
    level = None if sigma is None else NoiseLevel(1.0 - sigma, sigma)
    return StepContext(0, 3, "cond", timestep, 1, level, 10, width)


@pytest.mark.parametrize(
    ("sigma", "expected"), [(0.0, 1.0), (0.25, 1.5), (0.5, 2.0), (0.75, 4.0), (1.0, 6.0), (-3.0, 1.0), (7.0, 6.0)]
)
def test_impact_is_linear_between_points_and_flat_outside(sigma, expected):
    assert impact(sigma, CURVE) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tolerance", "count"), [(0.0, 2.0), (0.01, 2.0), (0.1, 2.0), (0.2, 1.5), (0.4, 1.0), (10.0, 1.0)]
)
def test_errors_that_no_replay_undoes_count_twice_where_little_is_allowed_and_once_where_much_is(tolerance, count):
    assert later_weight(tolerance) == pytest.approx(count)


def test_a_curve_of_one_point_is_constant():
    assert [impact(sigma, ((0.5, 2.0),)) for sigma in (0.0, 0.5, 1.0)] == [2.0] * 3


@given(st.floats(0, 1))
def test_the_built_in_impact_is_positive_and_within_its_points(sigma):
    values = [value for _, value in IMPACT]
    assert 0 < min(values) - 1e-12 <= impact(sigma) <= max(values) + 1e-12


def test_the_built_in_curve_is_in_order_of_noise():
    levels = [level for level, _ in IMPACT]
    assert levels == sorted(set(levels)) and levels[0] == 0.0 and levels[-1] == 1.0


@given(st.floats(0, 10), st.floats(0, 1))
def test_uniform_weighting_is_the_tolerance_itself(tolerance, sigma):
    assert step_tolerance(tolerance, "uniform", at(sigma)) == tolerance


@pytest.mark.parametrize("sigma", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_impact_weighting_divides_by_the_impact_of_the_noise_level(sigma):
    assert step_tolerance(0.1, "impact", at(sigma)) * impact(sigma) == pytest.approx(0.1)


@pytest.mark.parametrize("sigma", [0.3, 0.9])
def test_impact_counts_to_a_power(sigma):
    allowed = step_tolerance(0.1, "impact", at(sigma), power=1.5)
    assert allowed * impact(sigma) * math.sqrt(impact(sigma)) == pytest.approx(0.1)
    assert step_tolerance(0.1, "uniform", at(sigma), power=1.5) == 0.1


def test_an_early_error_may_be_smaller_than_a_late_one():
    assert step_tolerance(0.1, "impact", at(1.0)) < step_tolerance(0.1, "impact", at(0.2))


@pytest.mark.parametrize("weighting", ["uniform", "impact"])
def test_tolerance_zero_stays_zero(weighting):
    assert step_tolerance(0.0, weighting, at(0.5)) == 0.0


def test_an_unknown_noise_level_is_taken_from_the_timestep():
    assert step_tolerance(0.1, "impact", at(None, 900.0)) == pytest.approx(step_tolerance(0.1, "impact", at(0.9)))


@pytest.mark.parametrize("timestep", [-5.0, 4000.0])
def test_a_timestep_outside_the_usual_range_still_gives_a_tolerance(timestep):
    assert step_tolerance(0.1, "impact", at(None, timestep)) > 0


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.29])
def test_a_late_step_twice_as_wide_as_usual_may_err_half_as_much(sigma):
    usual = step_tolerance(0.1, "impact", at(sigma))
    assert step_tolerance(0.1, "impact", at(sigma, width=usual_width(sigma))) == pytest.approx(usual)
    assert step_tolerance(0.1, "impact", at(sigma, width=2 * usual_width(sigma))) == pytest.approx(usual / 2)
    assert step_tolerance(0.1, "uniform", at(sigma, width=2 * usual_width(sigma))) == 0.1


@pytest.mark.parametrize("sigma", [LATE + 0.01, 0.9])
def test_before_that_widths_do_not_count(sigma):
    assert step_tolerance(0.1, "impact", at(sigma, width=5.0)) == step_tolerance(0.1, "impact", at(sigma))


def test_the_usual_widths_are_those_of_flow_matching_with_a_shift_of_three():
    steps, shift = 1000, 3.0
    even = [1 - step / steps for step in range(steps + 1)]
    sigmas = [shift * u / (1 + (shift - 1) * u) for u in even]
    angles = [NoiseLevel(1 - sigma, sigma).angle for sigma in sigmas]
    for step in (10, 300, 700, 990):
        assert steps * (angles[step] - angles[step + 1]) == pytest.approx(usual_width(sigmas[step]), rel=0.01)
    total = sum(usual_width(sigma) for sigma in sigmas) / steps
    assert total == pytest.approx(1, rel=0.01)


def test_a_step_that_goes_nowhere_has_a_finite_tolerance():
    allowed = step_tolerance(0.1, "impact", at(0.2, width=0.0))
    assert allowed == step_tolerance(0.1, "impact", at(0.2, width=NARROWEST)) < math.inf
