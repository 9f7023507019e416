"""Shortest paths over pairs of full steps, against every schedule there is."""

from __future__ import annotations

import itertools
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicp.policies.step_paths import StepPath, best_paths

STEPS = 8
BEGIN = (0, 1, 2)


def total(computed, steps, change):
    edges = [*computed, steps]
    triples = [three for three in zip(edges, edges[1:], edges[2:]) if three[2] - three[1] > 1]
    return math.fsum(change(*three) for three in triples)


def every_schedule(steps, start):
    free = range(max(start) + 1, steps)
    for count in range(len(free) + 1):
        for chosen in itertools.combinations(free, count):
            yield (*start, *chosen)


def longest_window(computed, steps):
    edges = [*computed, steps]
    return max(later - earlier - 1 for earlier, later in zip(edges, edges[1:]))


def farthest_reach(computed, steps):
    edges = [*computed, steps]
    triples = zip(edges, edges[1:], edges[2:])
    return max((following - 1 - last) / (last - before) for before, last, following in triples)


@given(
    numbers=st.lists(st.floats(0, 10) | st.just(math.inf), min_size=7, max_size=53),
    window=st.integers(1, 5),
    reach=st.sampled_from([1.0, 1.5, 9.0]),
)
def test_every_budget_is_solved_as_brute_force_solves_it(numbers, window, reach):
    keys = [(b, a, c) for b in range(STEPS) for a in range(b + 1, STEPS) for c in range(a + 1, STEPS + 1)]
    table = dict(zip(keys, itertools.cycle(numbers)))

    def change(before, last, following):
        return table[before, last, following]

    best: dict[int, float] = {}
    for computed in every_schedule(STEPS, BEGIN):
        loss = total(computed, STEPS, change)
        fits = longest_window(computed, STEPS) <= window and farthest_reach(computed, STEPS) <= reach
        if fits and loss < math.inf:
            best[len(computed)] = min(loss, best.get(len(computed), math.inf))
    found = best_paths(STEPS, change, BEGIN, window, reach)
    assert sorted(found) == sorted(best)
    for count, path in found.items():
        assert path.loss == pytest.approx(best[count])
        assert path.loss == pytest.approx(total(path.computed, STEPS, change))
        assert len(path.computed) == count and set(BEGIN) <= set(path.computed)


def test_a_known_answer():
    # Skipping costs 1 for the first step of a window and 10 for each further one, but nothing at all at step 5.
    def change(before, last, following):
        return sum(0.0 if step == 5 else 1.0 if step == last + 1 else 10.0 for step in range(last + 1, following))

    found = best_paths(7, change, BEGIN, 8, 9.0)
    assert found[7].computed == tuple(range(7)) and found[7].loss == 0
    assert found[6].computed == (0, 1, 2, 3, 4, 6)
    assert found[5].loss == 1 and total(found[5].computed, 7, change) == 1
    assert found[3].loss == 1 + 10 + 0 + 10


def test_a_path_goes_on_from_where_a_run_is():
    found = best_paths(9, lambda before, last, following: float(last - before), (0, 1, 2, 5), 8, 1.0)
    # Steps 6 and 7 may be skipped from 2 and 5; what was skipped before 5 is not counted.
    assert found[5].computed == (0, 1, 2, 5, 8) and found[5].loss == 3


def test_a_short_run_is_computed():
    assert best_paths(2, lambda *_: 0.0, BEGIN, 8, 1.0)[2].computed == (0, 1)
    assert list(best_paths(3, lambda *_: 0.0, BEGIN, 8, 1.0)) == [3]
    with pytest.raises(ValueError, match="a path of 9 steps"):
        best_paths(9, lambda *_: 0.0, (0,), 8, 1.0)


def test_a_loss_that_is_not_a_number_is_computed():
    assert list(best_paths(5, lambda *_: math.nan, BEGIN, 8, 1.0)) == [5]


def test_a_window_is_asked_about_as_a_whole_with_the_full_step_after_it():
    asked = []

    def change(before, last, following):
        asked.append((before, last, following))
        return 0.0

    best_paths(5, change, BEGIN, 8, 9.0)
    assert {(1, 2, 4), (1, 2, 5), (2, 3, 5)} <= set(asked)


def paths_by_loops(steps, change, max_reach, max_window):
    """What `best_paths` finds, one path after the other: too slow for long runs, easy to read."""
    layer, found = {BEGIN[-2:]: StepPath(BEGIN, 0.0)}, {}
    while layer:
        longer = {}
        for (before, last), path in layer.items():
            for following in range(last + 1, steps + 1):
                skipped = following - last - 1
                if skipped > min(max_window, max_reach * (last - before)):
                    break
                told = change(before, last, following) if skipped else 0.0
                if not told < math.inf:
                    continue
                loss, count = path.loss + told, len(path.computed)
                if following == steps:
                    if count not in found or loss < found[count].loss:
                        found[count] = StepPath(path.computed, loss)
                elif (last, following) not in longer or loss < longer[last, following].loss:
                    longer[last, following] = StepPath((*path.computed, following), loss)
        layer = longer
    return found


@pytest.mark.parametrize(("steps", "reach"), [(30, 1.0), (30, 3.0), (50, 1.0)])
def test_arrays_find_the_very_paths_that_loops_find(steps, reach):
    def change(before, last, following):
        return sum(
            (step - last) * (step - before) / (1.0 + 0.3 * math.sin(7 * step)) for step in range(last + 1, following)
        )

    found = best_paths(steps, change, BEGIN, 8, reach)
    assert found == paths_by_loops(steps, change, reach, 8) and len(found) > steps // 2


def test_paths_of_a_thousand_steps_take_seconds():
    """By loops they took two minutes."""
    begin = time.process_time()
    found = best_paths(1000, lambda before, last, following: (following - last) / (last - before + 1.0), BEGIN, 8, 1.0)
    assert len(found) > 800 and time.process_time() - begin < 10
