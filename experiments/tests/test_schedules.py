"""The study of schedules: which ones it compares, its tables, and one test-bed of it."""

from __future__ import annotations

import math

import pytest

from experiments import schedules
from experiments.schedules import Bed, line_table, table, widening


def test_widening_schedules_by_hand():
    # 8 * (0, 1/4, 1/2, 3/4, 1)^2 = 0, 0.5, 2, 4.5, 8: round(0.5) falls together with 0, and 1 is free.
    assert widening(5, 10, 2.0) == (0, 1, 2, 4, 8)
    assert widening(9, 10, 1.0) == tuple(range(9))


@pytest.mark.parametrize("count", [4, 8, 12, 20])
def test_a_widening_schedule_has_as_many_steps_as_were_asked_for(count):
    for power in (1.0, 1.6, 3.0):
        found = widening(count, 30, power)
        assert len(found) == count == len(set(found)) and found[0] == 0 and found[-1] < 30


def rows():
    kind = f"least loss, others, {schedules.run_loss.EARLY}"
    return [
        {
            "model": "a",
            "schedule": kind,
            "full steps": 8,
            "loss": 0.1,
            "mean": 41.0,
            "worst": 40.0,
            "psnr": [40.0, 42.0],
        },
        {
            "model": "a",
            "schedule": "fewer steps",
            "full steps": 8,
            "loss": 0.0,
            "mean": 30.0,
            "worst": 29.0,
            "psnr": [],
        },
    ]


def test_one_line_for_each_number_of_full_steps():
    (line,) = table(rows())
    assert line["fewer steps"] == "30.0 / 29.0" and line["model"] == "a" and line["full steps"] == 8


def test_the_offset_is_what_psnr_has_over_the_predicted_loss():
    (line,) = line_table(rows())
    assert line["offset, dB"] == pytest.approx(21.0)
    assert line["deviation of clips, dB"] == pytest.approx(math.sqrt(2))


@pytest.mark.slow
def test_all_steps_full_is_the_plain_run():
    bed = Bed("letters", 1)
    assert bed.fidelity(range(schedules.STEPS)) == [math.inf]
    (some,) = bed.fidelity((0, 1, 3, 6, 10, 15, 20, 25))
    assert 10 < some < 60
