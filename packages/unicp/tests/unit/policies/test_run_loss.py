"""The loss of a run, against sums done by hand and the best of all choices."""

from __future__ import annotations

import itertools
import math

import pytest

from tests.made_profiles import CUBE, euler_shares, flow_levels, products
from unicp.planning.solver import loss_of_run
from unicp.policies import run_loss
from unicp.policies.run_loss import EARLY, RunLoss


def made(steps: int = 10, is_replayed: bool = True) -> RunLoss:
    levels = flow_levels(steps)
    return loss_of_run(products(levels[:-1]), "flow", levels[:-1], euler_shares(levels), is_replayed)


def test_the_parabola_through_three_full_steps_misses_what_a_cubic_does():
    loss = made()
    a, b, c, x = (loss.places[step] for step in (2, 4, 7, 5))
    expected = CUBE * abs((x - a) * (x - b) * (x - c)) / math.sqrt(3)
    assert loss.error((2, 4, 7), 5) == pytest.approx(expected, rel=1e-6)


def test_a_window_costs_shares_times_errors():
    loss, levels = made(), flow_levels(10)
    expected = 0.0
    for step in (5, 6):
        share = levels[step].noise - levels[step + 1].noise
        expected += share * levels[step].signal ** -EARLY * loss.error((2, 4, 7), step)
    assert loss.window(2, 4, 7) == pytest.approx(expected, rel=1e-9)


def test_no_full_step_follows_the_last_window_and_none_precedes_the_first():
    loss = made()
    assert loss.window(5, 7, 10) == pytest.approx(
        sum(loss._weights[step] * loss.error((5, 7), step) for step in (8, 9))
    )
    assert loss.window(-1, 0, 2) == pytest.approx(loss._weights[1] * loss.error((0, 2), 1))


def test_without_replay_it_is_the_error_of_the_forecast_that_counts():
    loss = made(is_replayed=False)
    assert loss.window(2, 4, 6) == pytest.approx(loss._weights[5] * loss.error((2, 4), 5))
    assert loss.window(2, 4, 6) > made().window(2, 4, 6)


def test_the_loss_of_a_run_is_that_of_its_windows():
    loss = made()
    assert loss.loss([0, 1, 2, 4, 7]) == pytest.approx(
        loss.window(1, 2, 4) + loss.window(2, 4, 7) + loss.window(4, 7, 10)
    )
    assert loss.loss(range(10)) == 0


def allowed(full: tuple[int, ...], steps: int, reach: float) -> bool:
    if full[1] - 1 > run_loss.FIRST_WINDOW:
        return False
    ends = [*full, steps]
    for before, last, following in zip(ends, ends[1:], ends[2:]):
        skipped = following - last - 1
        if skipped > run_loss.MAX_WINDOW or skipped > reach * (last - before):
            return False
    return True


@pytest.mark.parametrize("is_replayed", [True, False])
def test_the_best_path_is_the_best_of_all_choices(is_replayed):
    steps, loss = 9, made(9, is_replayed)
    found = loss.best([0])
    for count in range(4, steps + 1):
        choices = [(0, *rest) for rest in itertools.combinations(range(1, steps), count - 1)]
        near = [full for full in choices if allowed(full, steps, run_loss.NEAR)]
        if near:
            assert found[count].loss == pytest.approx(min(map(loss.loss, near)))
            assert loss.loss(found[count].computed) == pytest.approx(found[count].loss)


def test_a_run_under_way_goes_on_from_its_full_steps():
    loss = made()
    for count, path in loss.best([0, 2, 3]).items():
        assert path.computed[:3] == (0, 2, 3) and len(path.computed) == count
        # What is over is not counted again.
        assert path.loss == pytest.approx(loss.loss(path.computed) - loss.window(-1, 0, 2))


def test_two_steps_at_one_level_cannot_stand_for_each_other():
    loss = RunLoss([0.0, 0.0, 1.0, 2.0], [[1.0] * (n + 1) for n in range(4)], [0.1] * 4, [0.5] * 4)
    assert loss.error((0, 1), 2) == math.inf and loss.best([0])[4].loss == 0


def test_more_full_steps_never_cost_more():
    losses = [path.loss for _, path in sorted(made(16).best([0]).items())]
    assert losses == sorted(losses, reverse=True) and losses[-1] == 0
