"""Shortest paths over pairs of computed steps, against every schedule there is."""

from __future__ import annotations

import itertools
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicp.planning.curves import forecast_errors, levels_of, probed_forecast, step_weights
from unicp.planning.profile import FOLDER, load_profile
from unicp.policies.step_paths import WARM_UP, StepPath, WindowLoss, best_paths, one_by_one, path_loss

STEPS = 8


def every_schedule(steps, start, required=()):
    free = [step for step in range(max(start) + 1, steps) if step not in required]
    for count in range(len(free) + 1):
        for chosen in itertools.combinations(free, count):
            yield tuple(sorted({*start, *required, *chosen}))


def longest_window(computed, steps):
    edges = [*computed, steps]
    return max(later - earlier - 1 for earlier, later in zip(edges, edges[1:]))


def farthest_reach(computed, steps):
    edges = [*computed, steps]
    triples = zip(edges, edges[1:], edges[2:])
    return max((following - 1 - last) / (last - before) for before, last, following in triples)


def table_of(numbers):
    keys = [(b, a, c) for b in range(STEPS) for a in range(b + 1, STEPS) for c in range(a + 1, STEPS)]
    return dict(zip(keys, itertools.cycle(numbers)))


@given(
    numbers=st.lists(st.floats(0, 10) | st.just(math.inf), min_size=7, max_size=53),
    required=st.sets(st.integers(3, STEPS - 1), max_size=2),
    window=st.integers(1, 5),
    reach=st.sampled_from([1.0, 1.5, 9.0]),
    rule=st.builds(WindowLoss, *(st.sampled_from(known) for known in ([1.0, 2.0], [0.5, 1.0, 3.0], [0.5, 1.0, 3.0]))),
)
def test_every_budget_is_solved_as_brute_force_solves_it(numbers, required, window, reach, rule):
    table = table_of(numbers)

    @one_by_one
    def loss(before, last, skipped):
        return table[before, last, skipped]

    best: dict[int, float] = {}
    for computed in every_schedule(STEPS, WARM_UP, required):
        total = path_loss(computed, STEPS, loss, rule)
        fits = longest_window(computed, STEPS) <= window and farthest_reach(computed, STEPS) <= reach
        if fits and total < math.inf:
            best[len(computed)] = min(total, best.get(len(computed), math.inf))
    found = best_paths(STEPS, loss, WARM_UP, required, window, reach, rule)
    assert sorted(found) == sorted(best)
    for count, path in found.items():
        assert path.loss == pytest.approx(best[count])
        assert path.loss == pytest.approx(path_loss(path.computed, STEPS, loss, rule))
        assert len(path.computed) == count and {*WARM_UP, *required} <= set(path.computed)


def test_a_known_answer():
    # Serving costs 1 for the first step of a window and 10 for each further one, but nothing at all at step 5.
    @one_by_one
    def loss(before, last, skipped):
        return 0.0 if skipped == 5 else 1.0 if skipped == last + 1 else 10.0

    found = best_paths(7, loss, max_reach=9.0)
    assert found[7].computed == tuple(range(7)) and found[7].loss == 0
    assert found[6].computed == (0, 1, 2, 3, 4, 6)
    assert found[5].loss == 1 and path_loss(found[5].computed, 7, loss) == 1
    assert found[3].loss == 1 + 10 + 0 + 10


def test_changes_add_within_a_window_and_windows_as_powers():
    @one_by_one
    def loss(before, last, skipped):
        return 1.0

    # Served: 3 and 4, then 6.
    assert path_loss((0, 1, 2, 5), 7, loss, WindowLoss(2.0)) == 2**2 + 1
    # Two windows of one step are better than one of two, where the sum would not care.
    found = best_paths(7, loss, max_reach=9.0, rule=WindowLoss(2.0))
    assert found[5].loss == 2 and found[5].computed != (0, 1, 2, 5, 6)
    assert best_paths(7, loss, max_reach=9.0)[5].loss == 2


def test_the_last_window_counts_more_where_nothing_mends_it():
    @one_by_one
    def loss(before, last, skipped):
        return 1.0

    dear_end = WindowLoss(1.0, end=5.0)
    # Served: 3, then 5 and 6, after which nothing is computed.
    assert path_loss((0, 1, 2, 4), 7, loss, dear_end) == 1 + 5 * 2
    assert path_loss((0, 1, 2, 4, 6), 7, loss, dear_end) == 1 + 1
    found = best_paths(7, loss, max_reach=9.0, rule=dear_end)
    assert 6 in found[4].computed and found[4].loss == 3


def test_windows_of_several_steps_may_count_more_than_single_ones():
    @one_by_one
    def loss(before, last, skipped):
        return 1.0

    dear_rows = WindowLoss(2.0, row=3.0)
    # Served: 3, then 5 and 6, then 8; then the last two.
    assert path_loss((0, 1, 2, 4, 7, 9), 10, loss, dear_rows) == 1 + (3 * 2) ** 2 + 1
    assert path_loss((0, 1, 2, 4), 7, loss, WindowLoss(1.0, row=3.0, end=5.0)) == 1 + 5 * 2
    found = best_paths(7, loss, max_reach=9.0, rule=dear_rows)
    assert found[5].loss == 2 and found[5].computed != (0, 1, 2, 5, 6)


def test_a_path_goes_on_from_where_a_run_is():
    found = best_paths(9, one_by_one(lambda b, a, c: float(a - b)), start=(0, 1, 2, 5), required={7})
    assert min(found) == 5 and found[5].computed == (0, 1, 2, 5, 7)
    assert found[5].loss == 3 + 2  # step 6 from 2 and 5, step 8 from 5 and 7; what was skipped before 5 is not counted


def test_a_short_run_is_computed():
    assert best_paths(2, lambda *_: 0.0)[2].computed == (0, 1)
    assert list(best_paths(3, lambda *_: 0.0)) == [3]
    with pytest.raises(ValueError, match="a path of 9 steps"):
        best_paths(9, lambda *_: 0.0, start=(0,))


def test_a_loss_that_is_not_a_number_is_computed():
    assert list(best_paths(5, lambda *_: math.nan)) == [5]


def test_a_window_is_asked_about_as_a_whole_with_the_step_that_is_computed_after_it():
    asked = []

    def loss(before, last, following):
        asked.append((before, last, following))
        return float(following - last)

    # Served: 3 and 4 between 2 and 5, then 7 and 8 at the end of a run of nine steps.
    assert path_loss((0, 1, 2, 5, 6), 9, loss) == 3 + 3
    assert asked == [(1, 2, 5), (5, 6, 9)]
    assert one_by_one(lambda before, last, skipped: 10 * before + skipped)(3, 4, 7) == 30 + 5 + 30 + 6


def paths_by_loops(steps, change, max_reach, rule, max_window=8):
    """What `best_paths` finds, one path after the other: too slow for long runs, easy to read."""
    layer, found = {WARM_UP[-2:]: StepPath(WARM_UP, 0.0)}, {}
    while layer:
        longer = {}
        for (before, last), path in layer.items():
            for following in range(last + 1, steps + 1):
                skipped = following - last - 1
                if skipped > min(max_window, max_reach * (last - before)):
                    break
                told = rule(change(before, last, following), skipped, following == steps) if skipped else 0.0
                if not told < math.inf:
                    break
                loss, count = path.loss + told, len(path.computed)
                if following == steps:
                    if count not in found or loss < found[count].loss:
                        found[count] = StepPath(path.computed, loss)
                elif (last, following) not in longer or loss < longer[last, following].loss:
                    longer[last, following] = StepPath((*path.computed, following), loss)
        layer = longer
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
@pytest.mark.parametrize(("steps", "reach"), [(30, 1.0), (30, 3.0), (50, 1.0)])
def test_arrays_find_the_very_paths_that_loops_find(path, steps, reach):
    profile = load_profile(path)
    levels = levels_of(profile, steps)
    errors = forecast_errors(profile, profile.recordings, probed_forecast(profile.recordings[0]), levels[:-1])
    weights = step_weights(profile, probed_forecast(profile.recordings[0]), levels)

    @one_by_one
    def change(before, last, skipped):
        return math.inf if math.isinf(weights[skipped]) else weights[skipped] * errors(before, last, skipped)

    rule = WindowLoss(profile.power, 1.3, 1.7)
    found = best_paths(steps, change, max_reach=reach, rule=rule)
    assert found == paths_by_loops(steps, change, reach, rule) and len(found) > steps // 2


def test_paths_of_a_thousand_steps_take_seconds():
    """By loops they took two minutes."""
    begin = time.process_time()
    found = best_paths(1000, lambda before, last, following: (following - last) / (last - before + 1.0))
    assert len(found) > 800 and time.process_time() - begin < 10
