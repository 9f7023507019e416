"""The study of schedules: shares of outputs, errors from products, the path of least loss; and one run of its loop."""

from __future__ import annotations

import itertools
import math

import diffusers
import numpy as np
import pytest
import torch

from experiments.schedules import EARLY, REACH, Loop, Products, best_schedule, response, table, widening
from unicp.numerics.noise_levels import NoiseLevel


def products_of(curve, places) -> Products:
    """Of noise estimates of two values each, curve(place)."""
    values = np.array([curve(place) for place in places])
    return Products(values @ values.T / 2, places)


def test_shares_of_flow_by_euler_are_the_widths_of_its_steps():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(7)
    assert response(scheduler) == pytest.approx(scheduler.sigmas.diff().tolist(), rel=1e-5)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(),
        diffusers.DPMSolverMultistepScheduler(),
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
    ],
    ids=lambda one: type(one).__name__,
)
def test_shares_of_all_outputs_make_the_final_sample(scheduler):
    if "clip_sample" in scheduler.config:
        scheduler.register_to_config(clip_sample=False)
    scheduler.set_timesteps(8)
    shares, generator = response(scheduler), torch.Generator().manual_seed(0)
    outputs, sample = torch.randn(8, generator=generator), torch.zeros(1, 1, 1, 1)
    for output, time in zip(outputs, scheduler.timesteps):
        sample = scheduler.step(output.view(1, 1, 1, 1), time, sample, return_dict=False)[0]
    assert float(sample) == pytest.approx(float(outputs @ torch.tensor(shares)), rel=1e-3, abs=1e-4)


def test_errors_are_those_of_the_polynomial_through_the_points():
    places = [-3.0, -2.0, 0.0, 1.0, 3.0]
    square = products_of(lambda x: (x * x, 2 * x), places)
    # A parabola is met by three points; the line through -3 and -2 misses the first value at 0 by 3 * 2 and the rms
    # over both is 6 / sqrt(2); the last value instead of one 3 steps on misses by (9, 6).
    assert square.error((0, 1, 4), 2) == pytest.approx(0.0, abs=1e-6)
    assert square.error((0, 1), 2) == pytest.approx(6 / math.sqrt(2))
    assert square.error((2,), 4) == pytest.approx(math.sqrt((81 + 36) / 2))


def test_products_are_read_at_other_places_by_cubics():
    places = [-20.0, -4.0, -2.5, -1.0, 0.5, 2.0]
    cubic = products_of(lambda x: (1.0, 5.0) if x == -20 else (x**3 - x, 2.0), places)
    wanted = products_of(lambda x: (1.0, 5.0) if x == -20 else (x**3 - x, 2.0), [-20.0, -3.0, 1.0])
    np.testing.assert_allclose(cubic.read_at(wanted.places), wanted.matrix, atol=1e-9)
    beyond = cubic.read_at([-9.0, 2.0])
    np.testing.assert_allclose(beyond, cubic.read_at([-4.0, 2.0]))


def test_the_schedule_is_the_best_of_all():
    steps = 9
    levels = [NoiseLevel(0.1 * step, 1 - 0.1 * step) for step in range(steps)]
    places = [-20.0, *(level.log_snr for level in levels[1:])]
    products = products_of(lambda x: (math.sin(x), math.exp(-((x + 1) ** 2))), places)
    shares, parts = [-0.1 - 0.02 * step for step in range(steps)], [1.0 + 0.1 * step for step in range(steps)]

    def loss(computed) -> float:
        total, known = 0.0, [None, *computed, steps]
        for before, last, following in zip(known, known[1:], known[2:]):
            if before is not None and following - last - 1 > REACH * (last - before):
                return math.inf
            points = [one for one in (before, last, following) if one is not None and one < steps]
            for step in range(last + 1, following):
                weight = abs(shares[step]) / parts[step] * (1 - levels[step].sigma) ** -EARLY
                total += weight * products.error(points, step)
        return total

    for count in (4, 5, 7):
        every = [(0, *rest) for rest in itertools.combinations(range(1, steps), count - 1) if rest[0] <= 3]
        found = best_schedule(count, products, shares, parts, levels)
        assert loss(found) == pytest.approx(min(map(loss, every))) and len(found) == count


def test_widening_schedules():
    assert widening(4, 12, 1.0) == (0, 3, 7, 10)
    assert widening(12, 30, 1.6) == (0, 1, 2, 4, 6, 8, 11, 14, 17, 20, 24, 28)
    # Steps that fall together take the next free ones.
    assert widening(8, 10, 3.0) == (0, 1, 2, 3, 4, 5, 6, 8)


def test_a_run_whose_steps_are_all_full_is_the_plain_one():
    loop = Loop("letters", clips=1)
    with torch.no_grad():
        plain, products = loop.plain()
        assert torch.equal(loop.run(range(loop.steps)), plain)
        assert products.matrix.shape == (30, 30) and loop.places[0] == -20.0
        skipped = loop.run(range(loop.steps - 1))
        assert loop.psnr(plain, plain) == [pytest.approx(100.0, abs=7)] and 25 < loop.psnr(skipped, plain)[0] < 70


def test_a_table_has_one_line_for_each_model_and_number():
    start = {"of": 30, "clips": 2, "steps": ""}
    rows = [
        start | {"model": name, "full steps": count, "schedule": kind, "mean": 40.04, "worst": 31.0 + count}
        for name, count, kind in (("a", 8, "x"), ("a", 8, "y"), ("a", 9, "x"), ("b", 8, "x"))
    ]
    found = table(rows)
    assert [(line["model"], line["full steps"]) for line in found] == [
        ("a", "8 of 30"),
        ("a", "9 of 30"),
        ("b", "8 of 30"),
    ]
    assert found[0]["y"] == "40.0 / 39.0" and "y" not in found[1]
