"""Fixed schedules: followed whatever the error."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fake_parts import pattern
from unicp.policies.fixed import FixedStepsPolicy, FixedWindowPolicy
from unicp.settings import Settings


def settings(**changes: Any) -> Settings:
    plain: dict[str, Any] = {"tolerance": 0.1, "weighting": "uniform", "first": 2, "last": 1, "max_window": 1}
    return Settings(**(plain | changes))


@pytest.mark.parametrize("every", [1, 2, 3, 4])
@pytest.mark.parametrize("error", [0.0, 1e6])
def test_fixed_windows_give_exactly_their_pattern(every: int, error: float):
    # The two first steps are computed, which is all that reuse must learn from; then k - 1 skipped and one full, and
    # the last step is computed in any case.
    body = "".join("f" if index % every == 0 else "s" for index in range(1, 18))
    assert pattern(FixedWindowPolicy(settings(full_every=every)), 20, error) == "ff" + body + "f"


@pytest.mark.parametrize("error", [0.0, 1e6])
def test_a_fixed_schedule_is_followed(error: float):
    assert pattern(FixedStepsPolicy(settings(full_steps=(0, 4, 5, 9))), 12, error) == "fsssffsssfss"
    assert pattern(FixedStepsPolicy(settings(full_steps=(0, 2, 3))), 6, error, points=2) == "fsffss"


def test_a_fixed_window_opens_once_a_line_was_measured():
    # Two steps for the line, and a third at which its error is measured.
    assert pattern(FixedWindowPolicy(settings(full_every=3)), 6, 1e6, points=2).startswith("fffs")


def test_a_fixed_schedule_may_skip_from_the_second_step_on():
    assert FixedStepsPolicy(settings(full_steps=(0,))).starts_early
    assert not FixedWindowPolicy(settings(full_every=3)).starts_early
