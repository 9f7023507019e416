import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicp_bench.step_schedule import best_schedule


def cost(schedule, steps, order, weights, error):
    total = 0.0
    for step in range(steps):
        if step not in schedule:
            before = [s for s in schedule if s < step][-(order + 1) :]
            total += weights[step] * error(before, step)
    return total


@given(st.integers(0, 1), st.integers(3, 7), st.lists(st.floats(0.1, 5), min_size=8, max_size=8), st.integers(0, 99))
def test_no_other_schedule_of_that_length_is_better(order, computed, weights, salt):
    def error(tail, served):
        return 1.0 + ((salt + 7 * sum(tail) + 13 * served) % 11) * (served - tail[-1])

    steps = 8
    begin = tuple(range(order + 2))
    found = best_schedule(steps, computed, order, weights, error)
    assert len(found) == computed and found[: order + 2] == begin
    others = [(*begin, *rest) for rest in itertools.combinations(range(order + 2, steps), computed - len(begin))]
    least = min(cost(other, steps, order, weights, error) for other in others)
    assert cost(found, steps, order, weights, error) == pytest.approx(least)


def test_steps_where_errors_weigh_most_are_computed():
    weights = [1.0] * 10
    weights[5] = weights[8] = 100.0
    assert best_schedule(10, 4, 0, weights, lambda tail, served: float(served - tail[-1])) == (0, 1, 5, 8)


def test_a_length_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="2 of 10"):
        best_schedule(10, 2, 1, [1.0] * 10, lambda tail, served: 1.0)
