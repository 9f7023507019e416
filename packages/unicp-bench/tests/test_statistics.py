import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_rows import row
from unicp_bench.html.settings_table import bootstrap
from unicp_bench.statistics import (
    at_speed,
    frontier,
    group_rows,
    is_paired,
    share,
    speed_at,
    worst_name,
    worst_tenth,
)
from unicp_bench.tables import measured as markdown

POINTS = [(1.5, 50.0), (2.0, 40.0), (3.0, 30.0)]


def test_the_worst_tenth_of_twenty_is_the_mean_of_the_two_lowest():
    assert worst_tenth([float(n) for n in range(20)]) == 0.5


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_the_worst_tenth_is_never_above_the_mean(values):
    assert worst_tenth(values) <= sum(values) / len(values) + 1e-9


def test_operations_are_a_ratio_of_sums_and_seconds_a_median_of_ratios():
    rows = [
        row(operations=25, seconds=0.5, paired=True),
        row(operations=75, seconds=1.0, psnr=20.0, seed=1, paired=True),
        row(seconds=2.0, seed=2, paired=True),
    ]
    (group,) = group_rows(rows)
    assert group.operations == 2.0
    assert group.seconds == 2.0
    assert group.seconds_spread == (1.0, 4.0)
    assert group.mean("psnr") == pytest.approx(100 / 3)
    assert group.worst("psnr") == 20.0
    assert math.isnan(group.mean("vmaf"))


def test_a_mean_without_the_clip_that_broke_is_none():
    (group,) = group_rows([row(psnr=math.nan), row(psnr=30.0, seed=1)])
    assert math.isnan(group.mean("psnr")) and math.isnan(group.worst("psnr"))
    assert frontier([group], lambda g: g.operations, lambda g: g.mean("psnr")) == []


def test_seconds_are_known_only_where_every_run_has_a_plain_run_beside_it():
    (group,) = group_rows([row(paired=True), row(seed=1)])
    assert not group.paired
    assert all(math.isnan(n) for n in (group.seconds, *group.seconds_spread, group.seconds_each, group.outside_seconds))
    assert frontier([group], lambda g: g.seconds, lambda g: g.mean("psnr")) == []


def test_older_rows_are_paired_where_their_suite_made_pairs_and_nothing_came_between_the_two_runs():
    assert is_paired(row(suite="seconds")) and not is_paired(row(suite="peers"))
    assert not is_paired(row(suite="seconds", method="diffusers MagCache"))
    assert is_paired(row(suite="seconds", method="diffusers MagCache", paired=True))
    assert not is_paired(row(suite="seconds", conditions="a")) and is_paired(row(conditions="a", paired=True))


def clips(setting, count, **changes):
    return [row(setting, seed=seed, **changes) for seed in range(count)]


def test_all_rows_of_a_table_are_over_the_clips_that_all_of_them_have():
    easy = [row("long", 60.0, seed=seed) for seed in range(6, 32)]
    shared = share(group_rows([*clips("long", 6, psnr=20.0), *easy, *clips("short", 6, psnr=30.0)]))
    assert [(len(group.rows), group.mean("psnr")) for group in shared.groups] == [(6, 20.0), (6, 30.0)]
    assert (shared.clips, shared.beyond, shared.left_out) == (6, 26, ())
    assert "over the 6 clips" in shared.note and "26 more" in shared.note


def test_a_setting_that_would_leave_too_few_clips_is_left_out_and_named():
    rows = [*clips("whole", 8), *clips("begun", 2), row("x", reason="no block")]
    shared = share(group_rows(rows))
    assert [group.setting for group in shared.groups] == ["whole", "x"] and shared.clips == 8
    assert "too few clips in common with the others: UniCP begun (2)" in shared.note
    assert "UniCP begun |" not in markdown(group_rows(rows)) and "UniCP begun (2)" in markdown(group_rows(rows))


def test_settings_of_no_common_clip_are_no_table_of_two():
    shared = share(group_rows([row("a", prompt="a"), row("b", prompt="b")]))
    assert [group.setting for group in shared.groups] == ["a"]
    assert [group.setting for group in shared.left_out] == ["b"]


def test_the_plain_run_is_held_to_the_clips_of_the_others():
    plain, own = share(group_rows([*clips("", 9, method="plain"), *clips("a", 4)])).groups
    assert (len(plain.rows), len(own.rows)) == (4, 4)


@given(st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=1, max_size=5))
def test_shared_clips_are_the_same_for_every_setting_whatever_was_measured(measured):
    rows = [row(str(index), seed=seed) for index, seeds in enumerate(measured) for seed in sorted(seeds)]
    shared = share(group_rows(rows))
    assert {frozenset(group.clips) for group in shared.groups} == {frozenset(shared.groups[0].clips)}
    assert len(shared.groups[0].rows) == shared.clips >= min(4, max(map(len, measured)))
    assert len(shared.groups) + len(shared.left_out) == len(measured)


@pytest.mark.parametrize(("count", "name"), [(1, "worst clip"), (10, "worst clip"), (12, "worst 2 of 12 clips")])
def test_the_worst_tenth_is_called_what_it_is(count, name):
    assert worst_name(count) == name


def test_methods_samplers_and_models_are_kept_apart():
    groups = group_rows([row(), row("fast"), row(sampler="euler"), row(model="film"), row(seed=1)])
    assert [len(group.rows) for group in groups] == [2, 1, 1, 1]


def test_clips_on_which_a_method_fails_stay_out_of_its_numbers():
    rows = [row(paired=True), row(seed=1, reason="out of memory", seconds=0.0, operations=0)]
    measured, failed = group_rows(rows)
    assert (measured.seconds, len(measured.rows)) == (2.0, 1)
    assert failed.reason == "out of memory"
    assert markdown([measured, failed]).count("\n") == 3


def test_the_bootstrap_interval_holds_the_mean_and_is_the_same_twice():
    values = [float(n % 7) for n in range(40)]
    low, high = bootstrap(values)
    assert low < statistics.fmean(values) < high
    assert bootstrap(values) == (low, high)
    # Nine values are too few for an interval that would hold the mean in 95 of 100 cases.
    assert all(map(math.isnan, bootstrap(values[:9])))
    assert bootstrap([3.0] * 10) == (3.0, 3.0)


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
    assert math.isnan(at_speed(POINTS, 3.01))
    assert math.isnan(at_speed([], 1.0))


@pytest.mark.parametrize(("fidelity", "speed"), [(60.0, math.nan), (45.0, 1.75), (30.0, 3.0), (10.0, 3.0)])
def test_speed_at_a_fidelity(fidelity, speed):
    assert speed_at(POINTS, fidelity) == pytest.approx(speed, nan_ok=True)


def test_markdown_has_a_line_per_setting_and_says_why_one_cannot_run():
    text = markdown(group_rows([row(), row("x", reason="no block"), row(method="plain", setting="")]))
    assert "| method | clips | less compute | PSNR mean | worst clip |" in text
    assert "| UniCP balanced | 1 | 2.00x | 40.0 dB | 40.0 dB |" in text
    assert "| UniCP x | cannot run: no block |  |  |  |" in text
    assert "plain" not in text


def test_a_table_has_seconds_of_pairs_alone_with_the_spread_of_the_pairs():
    rows = [row("a", seconds=0.5, paired=True), row("a", seed=1, paired=True), *clips("b", 2), row("c", reason="no")]
    text = markdown(group_rows(rows))
    assert "| method | clips | less compute | speed-up in seconds, pairs | seconds a clip |" in text
    assert "| UniCP a | 2 | 2.00x | 3.00x (2.00 to 4.00) | 0.8 | 40.0 dB | 40.0 dB |" in text
    assert "| UniCP b | 2 | 2.00x | - | - | 40.0 dB | 40.0 dB |" in text
    assert "seconds" not in markdown(group_rows(clips("b", 2)))
