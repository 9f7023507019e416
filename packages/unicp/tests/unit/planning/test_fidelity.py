"""The line from predicted change to PSNR."""

from __future__ import annotations

import math

import pytest

from tests.made_profiles import made
from unicp.planning.fidelity import fewer_steps_psnr, fit_line, fit_online, student
from unicp.planning.profile import FewerSteps, OnlineTrial, Trial


def trial(change: float, psnr: float, planned: int = 8, computed: int = 8) -> Trial:
    return Trial("a", planned, computed, 8, change, change, psnr)


@pytest.mark.parametrize(("freedom", "value"), [(1, 6.314), (2, 2.920), (5, 2.015), (14, 1.761), (1000, 1.646)])
def test_students_quantile(freedom, value):
    assert student(freedom) == pytest.approx(value, abs=0.06)


def test_a_straight_line_is_found_with_its_spread():
    line = fit_line(made().trials)
    assert line.offset == pytest.approx(0, abs=1e-9) and line.slope == pytest.approx(1)
    # Eight points, each 2 dB off: a standard deviation of sqrt(8 * 4 / 6).
    assert line.margin == pytest.approx(student(6) * math.sqrt(32 / 6) * math.sqrt(9 / 8))
    assert line.added_share == 0
    assert line.psnr(0.01).mean == pytest.approx(40)
    assert line.psnr(0.01).low == pytest.approx(40 - line.margin)


def test_the_change_that_95_percent_of_clips_can_have():
    line = fit_line(made().trials)
    assert line.psnr(line.change(35.0)).low == pytest.approx(35)


def test_caution_and_doubt_promise_less():
    plain, careful = fit_line(made().trials), fit_line(made().trials, 6.0)
    assert careful.psnr(0.01).low == pytest.approx(plain.psnr(0.01).low - 6)
    assert plain.psnr(0.01, 3.0).low < plain.psnr(0.01).low and plain.psnr(0.01, 3.0).mean == plain.psnr(0.01).mean


def test_what_the_guard_computed_is_expected_again():
    assert fit_line([trial(0.1, 20, 8, 10), trial(0.01, 40, 8, 12), trial(0.03, 30)]).added_share == 0.25


def test_too_few_trials_promise_little():
    assert fit_line([]).margin == 10 and fit_line([trial(0.1, math.inf)] * 5).margin == 10


def test_nothing_served_is_equal():
    assert fit_line([]).psnr(0.0).low == math.inf


def test_fewer_steps_only_as_measured():
    fewer = [FewerSteps("a", 8, 30.0), FewerSteps("b", 8, 34.0), FewerSteps("a", 4, 20.0)]
    found = fewer_steps_psnr(fewer, 8)
    assert found is not None and found.mean == 32 and found.low < 30
    assert fewer_steps_psnr(fewer, 6) is None
    one = fewer_steps_psnr(fewer, 4)
    assert one is not None and one.low < 0


def online(tolerance: float, computed: int, psnr: float) -> OnlineTrial:
    return OnlineTrial("a", tolerance, computed, psnr)


def test_what_the_online_rule_does_is_read_off_its_trials():
    known = fit_online([online(0.1, 12, 50), online(0.1, 14, 50), online(1.0, 8, 30), online(1.0, 6, 30)])
    assert known is not None and known.tried == (0.1, 1.0)
    # 20 dB a decade; halfway in the logarithm it is halfway in everything.
    assert known.line.psnr(math.sqrt(0.1)).mean == pytest.approx(40)
    assert known.computed(math.sqrt(0.1)) == pytest.approx(10)
    assert (known.computed(0.01), known.computed(0.1), known.computed(1.0), known.computed(5.0)) == (13, 13, 7, 7)


def test_too_few_trials_of_the_online_rule_say_nothing():
    assert fit_online([]) is None
    assert fit_online([online(0.1, 12, 50)] * 4) is None
    assert fit_online([online(0.1, 30, math.inf), online(0.2, 30, math.inf), online(1.0, 8, 30)]) is None
