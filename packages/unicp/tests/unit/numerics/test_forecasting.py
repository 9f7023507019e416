from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unicp.errors import InputError
from unicp.numerics.forecasting import (
    NoiseLevel,
    Prediction,
    QuantityKind,
    Rise,
    extrapolate,
    from_quantity,
    interpolate,
    is_invertible,
    share_of_rise,
    to_quantity,
)

KINDS: tuple[QuantityKind, ...] = get_args(QuantityKind)
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
CLEAN = torch.tensor([[1.0, -2.0, 0.5]])
EPS = torch.tensor([[0.25, 1.0, -3.0]])
FLOOR = 0.05


def level_of(prediction: Prediction, sigma: float) -> NoiseLevel:
    """signal + noise = 1 for flow matching, signal^2 + noise^2 = 1 for the others."""
    if prediction == "flow":
        return NoiseLevel(1 - sigma, sigma)
    return NoiseLevel(math.cos(sigma * math.pi / 2), math.sin(sigma * math.pi / 2))


def output_of(prediction: Prediction, level: NoiseLevel) -> torch.Tensor:
    velocity = level.signal * EPS - level.noise * CLEAN
    return {"flow": EPS - CLEAN, "turned_flow": CLEAN - EPS, "epsilon": EPS, "sample": CLEAN, "v_prediction": velocity}[
        prediction
    ]


def test_a_line_through_the_last_two_points_is_forecast_exactly():
    slope, offset = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 8.0])
    points = [(9.0, torch.zeros(2)), *((x, offset + x * slope) for x in (1.0, 0.75))]
    assert torch.equal(extrapolate(points, 0.25), offset + 0.25 * slope)


def test_one_point_or_one_abscissa_gives_the_last():
    a, b = torch.ones(3), torch.zeros(3)
    assert extrapolate([(1.0, a)], 0.5) is a
    assert extrapolate([(1.0, a), (1.0, b)], 0.5) is b
    assert extrapolate([(0.0, a), (5e-324, b)], 1e300) is b


def test_forecast_of_halves_is_made_in_float32():
    a, b = torch.full((2,), 60000.0, dtype=torch.float16), torch.full((2,), -60000.0, dtype=torch.float16)
    forecast = extrapolate([(0.0, a), (1.0, b)], 0.5)
    assert forecast.dtype == torch.float16
    assert forecast.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_forecast_refuses_what_cannot_be_forecast(bad: float):
    x = torch.ones(2)
    for points, at in (([(0.0, x), (bad, x)], 1.0), ([(0.0, x)], bad), ([], 1.0), ([(0.0, x), (1.0, x[:1])], 2.0)):
        with pytest.raises(InputError):
            extrapolate(points, at)


def test_noise_level_by_hand():
    level = NoiseLevel(signal=0.6, noise=0.2)
    assert level.sigma == pytest.approx(0.25)
    assert level.log_snr == pytest.approx(2 * math.log(3))
    assert (NoiseLevel(1, 0).log_snr, NoiseLevel(0, 1).log_snr) == (20.0, -20.0)
    assert (NoiseLevel(1, 1e-30).log_snr, NoiseLevel(1, 1e-30).sigma) == (20.0, pytest.approx(1e-30))


@pytest.mark.parametrize("parts", [(0.0, 0.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_noise_level_refuses(parts: tuple[float, float]):
    with pytest.raises(InputError):
        NoiseLevel(*parts)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.9])
def test_quantities_are_what_the_sample_was_mixed_of(prediction: Prediction, sigma: float):
    level = level_of(prediction, sigma)
    sample, output = level.signal * CLEAN + level.noise * EPS, output_of(prediction, level)
    assert torch.allclose(to_quantity("noise", prediction, sample, output, level), EPS, atol=1e-5)
    assert torch.allclose(to_quantity("clean", prediction, sample, output, level), CLEAN, atol=1e-5)
    assert to_quantity("output", prediction, sample, output, level) is output


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(PREDICTIONS), st.floats(0, 1), st.floats(-10, 10), st.floats(-10, 10))
def test_round_trip(kind: QuantityKind, prediction: Prediction, sigma: float, x: float, y: float):
    level = level_of(prediction, sigma)
    if not is_invertible(kind, prediction, level, FLOOR):
        return
    sample, output = torch.tensor([x], dtype=torch.float64), torch.tensor([y], dtype=torch.float64)
    quantity = to_quantity(kind, prediction, sample, output, level)
    # The forward coefficients grow without limit near the ends, and rounding of the quantity with them.
    rounding = 1e-12 * max(1.0, float(quantity.abs()))
    assert from_quantity(kind, prediction, sample, quantity, level).item() == pytest.approx(y, abs=rounding)


def test_round_trip_through_halves_loses_nothing():
    level = level_of("flow", 0.1)
    sample, output = CLEAN.to(torch.bfloat16), EPS.to(torch.bfloat16)
    quantity = to_quantity("clean", "flow", sample, output, level)
    assert quantity.dtype == torch.float32
    assert torch.equal(from_quantity("clean", "flow", sample, quantity, level).to(torch.bfloat16), output)


def test_what_is_invertible():
    assert not is_invertible("noise", "flow", NoiseLevel(0.01, 0.99), FLOOR)
    assert is_invertible("noise", "flow", NoiseLevel(0.01, 0.99), floor=0.001)
    assert not is_invertible("clean", "flow", NoiseLevel(1.0, 0.0), FLOOR)
    assert is_invertible("clean", "flow", NoiseLevel(0.0, 1.0), FLOOR)
    assert is_invertible("output", "flow", NoiseLevel(1.0, 0.0), FLOOR)
    assert not is_invertible("clean", "epsilon", NoiseLevel(0.0, 1.0), FLOOR)


def test_quantities_that_do_not_exist_are_refused():
    with pytest.raises(InputError):
        to_quantity("clean", "epsilon", EPS, EPS, NoiseLevel(0.0, 1.0))
    with pytest.raises(InputError):
        from_quantity("clean", "flow", EPS, EPS, NoiseLevel(1.0, 0.0))
    with pytest.raises(InputError):
        to_quantity("colour", "flow", EPS, EPS, NoiseLevel(0.5, 0.5))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError):
        to_quantity("clean", "score", EPS, EPS, NoiseLevel(0.5, 0.5))  # pyright: ignore[reportArgumentType]


def test_a_damped_line_follows_its_share_of_the_rise():
    points = [(0.0, torch.zeros(2, 3)), (1.0, torch.ones(2, 3))]
    forecast = extrapolate(points, 3.0, torch.tensor([0.0, 0.25]))
    assert torch.equal(forecast, torch.tensor([[1.0] * 3, [1.5] * 3]))
    assert torch.equal(extrapolate(points, 3.0, torch.ones(2)), extrapolate(points, 3.0))


def test_the_share_of_a_rise_by_hand():
    # The line rises by (2, 2), what came rose by (1, 0): 2 of 8.
    rise = Rise.of(torch.tensor([[2.0, 1.0]]), torch.tensor([[3.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
    assert share_of_rise([rise]).tolist() == [0.25]
    # Together with one that came true whole and is as large: 10 of 16.
    whole = Rise.of(torch.tensor([[2.0, 2.0]]), torch.tensor([[2.0, 2.0]]), torch.zeros(1, 2))
    assert share_of_rise([rise, whole]).tolist() == [0.625]


@pytest.mark.parametrize(
    ("true", "line", "share"),
    [(-1.0, 2.0, 0.0), (9.0, 2.0, 1.0), (5.0, 0.0, 1.0), (math.nan, 2.0, 1.0), (math.inf, 2.0, 1.0)],
)
def test_the_share_of_a_rise_has_limits(true: float, line: float, share: float):
    rise = Rise.of(torch.tensor([[true]]), torch.tensor([[line]]), torch.zeros(1, 1))
    assert share_of_rise([rise]).tolist() == [share]


def test_copies_in_one_batch_share_one_share():
    last = torch.zeros(4, 1)
    true, line = torch.tensor([[1.0], [0.0], [0.0], [1.0]]), torch.ones(4, 1)
    assert share_of_rise([Rise.of(true, line, last)]).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert share_of_rise([Rise.of(true, line, last, copies=2)]).tolist() == [0.5, 0.5, 0.5, 0.5]


def test_no_rises_have_no_share():
    with pytest.raises(InputError, match="no rises"):
        share_of_rise([])


def test_a_polynomial_through_all_points_is_found_again():
    points = [(x, torch.tensor([1.0, 2.0 * x - 3.0, x * x])) for x in (0.0, 1.0, 3.0)]
    torch.testing.assert_close(interpolate(points, 2.0), torch.tensor([1.0, 1.0, 4.0]))
    torch.testing.assert_close(interpolate(points[:2], 2.0), torch.tensor([1.0, 1.0, 2.0]))
    assert torch.equal(interpolate(points, 3.0), points[2][1])
    assert interpolate([(0.0, EPS.half())], 5.0).dtype == torch.float32


@pytest.mark.parametrize("places", [(), (1.0, 1.0), (0.0, math.nan), (0.0, math.inf)])
def test_no_polynomial_goes_through_such_points(places: tuple[float, ...]):
    with pytest.raises(InputError):
        interpolate([(x, EPS) for x in places], 2.0)
