import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.benchmarking.test_rows import row
from unicp.benchmarking.statistics import (
    at_speed,
    bootstrap,
    frontier,
    group_rows,
    markdown,
    speed_at,
    worst_tenth,
)

POINTS = [(1.5, 50.0), (2.0, 40.0), (3.0, 30.0)]


def test_the_worst_tenth_of_twenty_is_the_mean_of_the_two_lowest():
    assert worst_tenth([float(n) for n in range(20)]) == 0.5


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_the_worst_tenth_is_never_above_the_mean(values):
    assert worst_tenth(values) <= sum(values) / len(values) + 1e-9


def test_operations_are_a_ratio_of_sums_and_seconds_a_median_of_ratios():
    rows = [
        row(operations=25, seconds=0.5),
        row(operations=75, seconds=1.0, psnr=20.0, seed=1),
        row(seconds=2.0, seed=2),
    ]
    (group,) = group_rows(rows)
    assert group.operations == 2.0
    assert group.seconds == 2.0
    assert group.seconds_spread == (1.5, 3.0)
    assert group.mean("psnr") == pytest.approx(100 / 3)
    assert group.worst("psnr") == 20.0
    assert math.isnan(group.mean("vmaf"))


def test_what_is_not_a_number_is_left_out():
    (group,) = group_rows([row(psnr=math.nan), row(psnr=30.0, seed=1)])
    assert group.mean("psnr") == 30.0


def test_methods_samplers_and_models_are_kept_apart():
    groups = group_rows([row(), row("fast"), row(sampler="euler"), row(model="film"), row(seed=1)])
    assert [len(group.rows) for group in groups] == [2, 1, 1, 1]


def test_clips_on_which_a_method_fails_stay_out_of_its_numbers():
    rows = [row(), row(seed=1, reason="out of memory", seconds=0.0, operations=0)]
    measured, failed = group_rows(rows)
    assert (measured.seconds, len(measured.rows)) == (2.0, 1)
    assert failed.reason == "out of memory"
    assert markdown([measured, failed]).count("\n") == 3


def test_the_bootstrap_interval_holds_the_mean_and_is_the_same_twice():
    values = [float(n % 7) for n in range(40)]
    low, high = bootstrap(values)
    assert low < statistics.fmean(values) < high
    assert bootstrap(values) == (low, high)
    assert bootstrap([3.0]) == (3.0, 3.0)


def test_the_frontier_leaves_out_what_a_faster_setting_beats():
    rows = [
        row("slow and bad", 30.0, operations=80),
        row("good", 40.0, operations=50),
        row("fast", 20.0, operations=25),
        row("cannot", reason="no block"),
    ]
    points = frontier(group_rows(rows), lambda g: g.operations, lambda g: g.mean("psnr"))
    assert points == [(2.0, 40.0), (4.0, 20.0)]


@pytest.mark.parametrize(("speed", "value"), [(1.0, 50.0), (1.75, 45.0), (2.0, 40.0), (2.5, 35.0), (3.0, 30.0)])
def test_fidelity_at_a_speed_is_linear_between_settings(speed, value):
    assert at_speed(POINTS, speed) == pytest.approx(value)


def test_nothing_is_extrapolated_beyond_the_fastest_setting():
    assert at_speed(POINTS, 3.01) is None
    assert at_speed([], 1.0) is None


@pytest.mark.parametrize(("fidelity", "speed"), [(60.0, None), (45.0, 1.75), (30.0, 3.0), (10.0, 3.0)])
def test_speed_at_a_fidelity(fidelity, speed):
    assert speed_at(POINTS, fidelity) == (None if speed is None else pytest.approx(speed))


def test_markdown_has_a_line_per_setting_and_says_why_one_cannot_run():
    text = markdown(group_rows([row(), row("x", reason="no block"), row(method="plain", setting="")]))
    assert "| UniCP balanced | 1 | 2.00x | 2.00x | 1.0 | 40.0 dB | 40.0 dB |" in text
    assert "cannot run: no block" in text
    assert "plain" not in text
