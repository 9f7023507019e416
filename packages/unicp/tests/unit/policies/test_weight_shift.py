"""Dynamic weight shift: the cheapest action within its tolerance."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicp.policies.weight_shift import COMPUTED, FULL, SKIP, SLICED, Option, cheapest_within_tolerance


def sliced(width: int, cost: float, error: float, tolerance: float = 0.1) -> Option:
    return Option(SLICED, cost, error, tolerance, width)


def test_nothing_to_choose_from_is_a_full_computation():
    assert cheapest_within_tolerance([]) is FULL
    assert (FULL.action, FULL.error) == (COMPUTED, 0.0)


def test_the_cheapest_within_its_tolerance_is_taken():
    free = Option(SKIP, 0.0, 0.3, 0.2)
    options = [free, sliced(8, 0.3, 0.11), sliced(16, 0.5, 0.09), sliced(24, 0.7, 0.01)]
    assert cheapest_within_tolerance(options).width == 16


def test_skipping_goes_before_slicing():
    free = Option(SKIP, 0.0, 0.1, 0.1)
    assert cheapest_within_tolerance([sliced(8, 0.3, 0.0), free]) is free


def test_an_error_as_large_as_the_tolerance_is_within_it():
    assert cheapest_within_tolerance([sliced(8, 0.5, 0.1, 0.1)]).width == 8


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_an_error_that_is_not_finite_is_never_chosen(error):
    assert cheapest_within_tolerance([sliced(8, 0.1, error)]) is FULL


def test_a_tie_in_cost_computes():
    assert cheapest_within_tolerance([sliced(8, 1.0, 0.0)]) is FULL


def test_an_option_dearer_than_computing_is_never_chosen():
    assert cheapest_within_tolerance([sliced(16, 1.4, 0.0)]) is FULL


options = st.builds(
    Option,
    st.just(SLICED),
    st.floats(0, 2),
    st.floats(allow_nan=True),
    st.floats(0, 10),
    st.integers(1, 9),
)


@given(st.lists(options, max_size=6))
def test_whatever_is_offered_the_choice_is_allowed_and_nothing_allowed_is_cheaper(offered):
    chosen = cheapest_within_tolerance(offered)
    assert chosen is FULL or chosen.error <= chosen.tolerance
    assert all(option.cost >= chosen.cost for option in offered if option.error <= option.tolerance)
