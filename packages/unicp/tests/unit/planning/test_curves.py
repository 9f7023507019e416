"""Errors of forecasts read off a profile, where the true ones are known."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from tests.made_profiles import CURVATURE, STEPS, flow_levels, made
from unicp.context import Forecast
from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.curves import (
    counted,
    covers,
    forecast_errors,
    impact_curve,
    is_skippable,
    step_weights,
    window_factors,
)
from unicp.planning.profile import Probe, Recording, WindowProbe
from unicp.planning.solver import best_choices
from unicp.policies.step_paths import path_loss

WAY = Forecast("noise", "log_snr")


def true_error(levels, before, last, served, curvature=CURVATURE):
    """The remainder of a straight line through a parabola, turned back into an output of power 1."""
    b, a, c = (levels[step].log_snr for step in (before, last, served))
    return curvature * abs((c - a) * (c - b)) / math.sqrt(3) / levels[served].signal


def test_errors_at_recorded_levels_are_exact():
    profile, levels = made(), flow_levels()
    errors = forecast_errors(profile, profile.recordings[:1], WAY, levels[:-1])
    assert errors is not None
    for triple in ((3, 4, 5), (3, 4, 7), (3, 6, 7), (8, 10, 15)):
        assert errors(*triple) == pytest.approx(true_error(levels, *triple), rel=1e-5)


def test_several_prompts_give_the_root_of_the_mean_square():
    profile, levels = made(), flow_levels()
    errors = forecast_errors(profile, profile.recordings, WAY, levels[:-1])
    assert errors is not None
    both = [true_error(levels, 5, 6, 8, curvature) for curvature in (CURVATURE, 2 * CURVATURE)]
    assert errors(5, 6, 8) == pytest.approx(math.hypot(*both) / math.sqrt(2), rel=1e-5)


@pytest.mark.parametrize("steps", [11, 24])
def test_errors_between_recorded_levels_are_near(steps):
    profile, levels = made(), flow_levels(steps)
    errors = forecast_errors(profile, profile.recordings[:1], WAY, levels[:-1])
    assert errors is not None
    middle = range(steps // 3, steps - 3)
    for step in middle:
        assert errors(step - 1, step, step + 2) == pytest.approx(true_error(levels, step - 1, step, step + 2), rel=0.2)


def test_what_a_profile_does_not_hold_it_does_not_tell():
    profile = made()
    assert forecast_errors(profile, profile.recordings, Forecast("clean", "sigma"), flow_levels()[:-1]) is None


def test_other_abscissas_have_other_errors():
    profile, levels = made(), flow_levels()[:-1]
    errors = [forecast_errors(profile, profile.recordings, Forecast("noise", a), levels) for a in ("sigma", "step")]
    values = [error(5, 6, 8) for error in errors if error is not None]
    assert len(values) == 2 and values[0] != values[1] and all(value > 0 for value in values)


def test_a_level_at_which_an_error_would_blow_up_is_not_served():
    assert not is_skippable(WAY, "flow", NoiseLevel(0.04, 0.96)) and is_skippable(WAY, "flow", NoiseLevel(0.05, 0.95))
    assert is_skippable(Forecast("output", "sigma"), "flow", NoiseLevel(0.0, 1.0))
    assert not is_skippable(Forecast("clean", "sigma"), "flow", NoiseLevel(0.99, 0.01))


def test_a_level_far_outside_the_recorded_ones_or_noisier_than_any_probe_is_not_covered():
    profile = made()
    last = profile.levels[-2].sigma
    assert covers(profile, profile.levels[4]) and not covers(profile, profile.levels[3])
    assert covers(profile, NoiseLevel(1 - last / 2, last / 2))
    assert not covers(made(), NoiseLevel(0.999, 0.001))


def test_impact_is_per_unit_of_noise_level():
    for _, value in impact_curve(made()):
        assert value == pytest.approx(0.5)
    profile, levels = made(), flow_levels()
    weights = step_weights(profile, WAY, levels)
    assert weights[3] == math.inf > weights[4] and weights[10] == pytest.approx(
        0.5 * (levels[10].sigma - levels[11].sigma)
    )
    # Twice the steps are half as long, and an error does half as much at each.
    finer = step_weights(profile, WAY, flow_levels(32))
    assert finer[20] + finer[21] == pytest.approx(weights[10], rel=0.05)


def test_impact_is_the_mean_over_prompts_and_shares_say_how_much_each_counts():
    profile = made()
    probe = profile.probes[0]
    # 20 dB more is a tenth of the change. Of one step: changes of 1 and 0.1 of what the made profile says.
    pair = [replace(probe, prompt="a"), replace(probe, prompt="b", psnr=probe.psnr + 20)]
    ((_, usual),) = impact_curve(replace(profile, probes=pair[:1]))
    ((_, both),) = impact_curve(replace(profile, probes=pair))
    ((_, mostly),) = impact_curve(replace(profile, probes=pair), {"a": 3.0, "b": 1.0})
    assert (both, mostly) == (pytest.approx(0.55 * usual), pytest.approx(0.775 * usual))


def windowed(*windows: tuple[int, int, float]):
    """A profile with windows (first, length, how many times the change that the impact of their steps adds up to)."""
    profile = made()
    sigmas, probes = [level.sigma for level in profile.levels], []
    for first, length, times in windows:
        # The impact of the made profile is 0.5 per unit of noise level, everywhere.
        told = sum(0.1 * 0.5 * (sigmas[k] - sigmas[k + 1]) for k in range(first, first + length))
        probes.append(WindowProbe("a", first, [0.1] * length, -20 * math.log10(told * times)))
    return replace(profile, windows=probes)


def test_windows_are_compared_with_their_steps_one_by_one():
    assert window_factors(made()) == (1, 1)
    assert window_factors(windowed((STEPS - 3, 3, 2.0))) == pytest.approx((1, 2))
    found = window_factors(windowed((STEPS - 3, 3, 2.0), (STEPS - 4, 4, 4.5), (5, 3, 0.5), (8, 2, 1.125)))
    assert found == pytest.approx((0.75, 3.0))


def test_a_plan_for_dear_rows_has_shorter_windows():
    def rows(choices):
        return sum(b - a > 2 for count in (8, 9, 10) for a, b in pairwise(choices[count].path.computed))

    levels = flow_levels()
    assert rows(best_choices(windowed((6, 2, 8.0)), levels)) < rows(best_choices(made(), levels))


def test_a_plan_for_a_dear_end_computes_later_steps():
    levels = flow_levels()
    plain = best_choices(made(), levels)
    dear = best_choices(windowed((STEPS - 3, 3, 8.0), (6, 2, 1.0)), levels)
    for count in (7, 8, 9):
        assert max(dear[count].path.computed) >= max(plain[count].path.computed)
        # Where the end is dear, the plan for a usual one is dearer, unless it computes the last step.
        change, rule = dear[count].schedule(0.0, 0).change, dear[count].rule
        usual = path_loss(plain[count].path.computed, STEPS, change, rule)
        assert dear[count].path.loss <= usual + 1e-12
        assert usual > plain[count].path.loss or plain[count].path.computed[-1] == STEPS - 1
    assert any(max(dear[count].path.computed) > max(plain[count].path.computed) for count in (7, 8, 9))


CUBIC = 0.001


def mended(**changes):
    """A profile of one prompt whose noise estimate is a cubic over the log-SNR, and whose served steps are mended."""
    levels = flow_levels()
    rows = [(1.0, 0.1 * level.log_snr, CUBIC * level.log_snr**3) for level in levels[:-1]]
    products = [sum(a * b for a, b in zip(rows[i], rows[j])) / 3 for i in range(STEPS) for j in range(i + 1)]
    profile = replace(made(), recordings=[Recording("a", [1.0] * STEPS, {"noise": products})], replayed=True, left=True)
    return replace(profile, **{"probes": [one for one in profile.probes if one.prompt == "a"], **changes})


def remainder(levels, before, last, following, served):
    """What a parabola through three points of the cubic misses, turned back into an output of power 1."""
    at = levels[served].log_snr
    missed = math.prod(at - levels[step].log_snr for step in (before, last, following))
    return CUBIC * abs(missed) / math.sqrt(3) / levels[served].signal


def test_what_stays_of_a_mended_step_is_what_the_parabola_misses():
    profile, levels = mended(), flow_levels()
    errors = forecast_errors(profile, profile.recordings, WAY, levels[:-1])
    assert errors is not None
    for before, last, following, served in ((4, 5, 7, 6), (4, 6, 9, 7), (4, 6, 9, 8), (3, 8, 15, 11)):
        expected = remainder(levels, before, last, following, served)
        assert errors.left(before, last, following, served) == pytest.approx(expected, rel=1e-4)
        assert errors.left(before, last, following, served) < errors(before, last, served)
    unmended = forecast_errors(replace(profile, left=False), profile.recordings, WAY, levels[:-1])
    assert unmended is not None and unmended.left(4, 6, 9, 7) == unmended(4, 6, 7) == errors(4, 6, 7)


def test_the_impact_of_a_mended_step_is_of_what_stays():
    """A probe whose clip moved as it does by half of what stays per unit of noise level has an impact of a half."""
    levels = flow_levels()
    sigmas = [level.sigma for level in levels]
    left = remainder(levels, 6, 7, 9, 8)
    change = 0.5 * left * (sigmas[8] - sigmas[9])
    probes = [Probe("a", 8, 7.0, 1.0, -20 * math.log10(change))]
    ((_, impact),) = impact_curve(mended(probes=probes))
    assert impact == pytest.approx(0.5, rel=1e-4)
    # Nothing mends the last step: what counts there is the error of its forecast.
    end = [Probe("a", STEPS - 1, 0.2, 1.0, -20 * math.log10(0.5 * 0.2 * sigmas[STEPS - 1]))]
    ((_, impact),) = impact_curve(mended(probes=end))
    assert impact == pytest.approx(0.5)


def test_windows_of_mended_steps_are_compared_by_what_stays_too():
    levels = flow_levels()
    sigmas = [level.sigma for level in levels]
    left = {step: remainder(levels, 6, 7, 10, step) for step in (8, 9)}
    single = remainder(levels, 6, 7, 9, 8) * (sigmas[8] - sigmas[9])
    told = sum(left[step] * (sigmas[step] - sigmas[step + 1]) for step in left)
    probe = Probe("a", 8, 1.0, 1.0, -20 * math.log10(0.5 * single))
    window = WindowProbe("a", 8, [1.0, 1.0], -20 * math.log10(1.5 * 0.5 * told))
    assert window_factors(mended(probes=[probe], windows=[window])) == (pytest.approx(1.5, rel=1e-4), 1)


def test_a_profile_of_mended_runs_is_planned_in_the_way_it_was_probed():
    levels = flow_levels()
    choices = best_choices(mended(), levels)
    assert {choice.errors.forecast for choice in choices.values()} == {WAY}
    # What stays of a window inside the run is what the parabola misses; the end of the run is never mended.
    schedule = choices[10].schedule(0.0, STEPS)
    assert schedule.change(6, 7, 9) == pytest.approx(schedule.weights[8] * remainder(levels, 6, 7, 9, 8), rel=1e-4)
    assert schedule.change(13, 14, STEPS) == schedule.weights[15] * schedule.error(13, 14, 15)


def test_plans_count_that_by_which_windows_do_what_their_steps_do():
    levels = flow_levels()
    sigmas = [level.sigma for level in levels]
    single = Probe("a", 8, 0.1, 1.0, -20 * math.log10(0.5 * 0.1 * (sigmas[8] - sigmas[9])))
    # A window that does what its steps do by what their forecasts missed, and less than they do by what stays of them.
    told = sum(0.5 * error * (sigmas[step] - sigmas[step + 1]) for step, error in ((8, 0.1), (9, 0.3)))
    window = WindowProbe("a", 8, [0.1, 0.3], -20 * math.log10(told))
    profile = mended(probes=[single], windows=[window], left=False)
    by_left = replace(profile, left=True)
    assert window_factors(profile)[0] == pytest.approx(1) != pytest.approx(window_factors(by_left)[0])
    assert not counted(profile).left and not counted(by_left).left
    stays = -20 * math.log10(told / window_factors(by_left)[0])
    assert counted(replace(profile, windows=[replace(window, psnr=stays)])).left
    # Samplers that take nothing again have no choice, and without probed windows the theory decides.
    assert not counted(replace(profile, replayed=False)).left and counted(replace(profile, windows=[])).left
