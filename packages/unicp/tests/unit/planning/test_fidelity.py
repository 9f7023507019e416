"""The line from predicted loss to PSNR."""

from __future__ import annotations

import math

import pytest

from tests.made_profiles import made
from unicp.planning.fidelity import CLIP_SPREAD, ONE_SIDED, PRIOR_TRIALS, UNTRIED, FidelityLine, Psnr, fit_line


def trials(*offsets: float, loss: float = 0.1, prompts: int = 1000) -> list[tuple[str, float, float]]:
    return [(f"prompt {n % prompts}", loss, offset - 20 * math.log10(loss)) for n, offset in enumerate(offsets)]


def test_ten_times_less_loss_is_20_db():
    line = FidelityLine(20.0, 3.0)
    assert line.psnr(0.1) == Psnr(40.0, 37.0, 43.0) and line.psnr(0.01).mean == 60.0
    assert line.loss(37.0) == pytest.approx(0.1) and line.psnr(line.loss(33.3)).low == pytest.approx(33.3)


def test_no_loss_is_the_plain_clip():
    assert FidelityLine(20.0, 3.0).psnr(0.0).low == math.inf


def test_the_offset_is_the_mean_over_prompts_not_over_trials():
    found = fit_line(
        [*trials(20.0), ("other", 0.1, 26.0 + 20), ("other", 0.01, 26.0 + 40), ("other", 0.02, 26 + 33.9794)]
    )
    assert found.offset == pytest.approx(23.0, abs=1e-3)


def test_few_trials_leave_the_spread_to_the_test_beds():
    one = fit_line(trials(20.0))
    assert one.offset == 20.0 and one.margin == pytest.approx(ONE_SIDED * CLIP_SPREAD * math.sqrt(2))


def test_many_trials_tell_it_themselves():
    many = fit_line(trials(*[18.0, 22.0] * 200))
    assert many.margin == pytest.approx(ONE_SIDED * 2.0, rel=0.05)


def test_a_spread_by_hand():
    # Offsets of 18 and 22: squares of 8 about their mean, with the test-beds' as four more prompts.
    found = fit_line(trials(18.0, 22.0))
    variance = (8 + PRIOR_TRIALS * CLIP_SPREAD**2) / (1 + PRIOR_TRIALS)
    assert found.margin == pytest.approx(ONE_SIDED * math.sqrt(variance * 1.5))


def test_trials_of_one_prompt_that_differ_widen_the_interval():
    calm = fit_line(trials(20.0, 20.0, 20.0, 20.0, prompts=2))
    wild = fit_line(trials(14.0, 14.0, 26.0, 26.0, prompts=2))
    assert calm.offset == wild.offset and wild.margin > calm.margin + 5


def test_what_tells_nothing_is_left_out():
    assert fit_line([]) == UNTRIED == fit_line([("a", 0.0, math.inf), ("b", 0.1, math.inf)])


def test_the_line_of_a_profile():
    profile = made()
    found = fit_line([(trial.prompt, trial.loss, trial.psnr) for trial in profile.trials])
    assert found.offset == pytest.approx(20.0)
