"""What an accelerated run should take by its plain run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unicp.calibration.running import Outcome, Reference


def reference() -> Reference:
    """Four steps of two calls each: 3, 5, 5 and 7 seconds; the whole run took 22."""
    tape: Any = SimpleNamespace(calls=[[None, None]] * 4, seconds=[1.0, 2.0, 2.0, 3.0, 2.0, 3.0, 3.0, 4.0])
    return Reference("a", 0, Outcome(torch.zeros(1), torch.zeros(1), 22.0), tape)


def trace(actions: str) -> Any:
    """Two calls a step, c = computed, s = served in 0.25 seconds a call."""
    entries = [
        SimpleNamespace(step=step, action="compute" if action == "c" else "forecast", seconds=0.25)
        for step, action in enumerate(actions)
        for _ in range(2)
    ]
    return SimpleNamespace(entries=entries)


def test_a_plain_run_tells_the_seconds_of_a_step_and_of_the_rest():
    assert (reference().step_seconds, reference().rest_seconds) == (5.0, 2.0)


@pytest.mark.parametrize(
    ("actions", "played", "seconds"),
    # The rest, 5 for each computed step that was not played, and 0.5 for each served one.
    [("cccc", 0, 22.0), ("ccsc", 2, 2 + 5 + 0.5), ("ccsc", 0, 2 + 15 + 0.5), ("csss", 1, 2 + 1.5)],
)
def test_an_accelerated_run_should_take_the_rest_its_computed_steps_and_what_serving_took(actions, played, seconds):
    assert reference().seconds_of(trace(actions), played) == pytest.approx(seconds)
