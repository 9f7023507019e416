"""The recorder, and what a profile keeps of a run: against tensors."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from tests.fake_models import noise
from tests.made_profiles import flow_levels, made
from unicp.calibration.call_recorder import CallRecorder, recording_of
from unicp.context import Forecast
from unicp.numerics.error_measures import relative_error
from unicp.numerics.forecasting import extrapolate, from_quantity, to_quantity
from unicp.planning.curves import forecast_errors

SHAPE = (1, 4, 2, 4, 4)


class Model(nn.Module):
    """Counts its calls; puts out its input times their number."""

    calls = 0

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        self.calls += 1
        return (hidden_states * self.calls,)


def run(model: Model, steps: int = 5, branches: int = 2) -> list[Tensor]:
    found = []
    for step in range(steps):
        for branch in range(branches):
            timestep = torch.tensor([1000.0 - step])
            found.append(model(noise(10 * step + branch, *SHAPE), timestep=timestep, return_dict=False)[0])
    return found


def test_a_recorder_records_and_plays_the_first_steps():
    model = Model()
    recorder = CallRecorder(model, "hidden_states")
    with recorder.recording():
        first = run(model)
    assert len(recorder.calls) == 5 and all(len(step) == 2 for step in recorder.calls) and len(recorder.seconds) == 10
    assert torch.equal(recorder.calls[3][1][0], noise(31, *SHAPE))
    with recorder.playing(3):
        again = run(model)
    assert model.calls == 10 + 4
    assert all(torch.equal(a, b) for a, b in zip(first[:6], again[:6]))
    assert not torch.equal(first[6], again[6])
    assert "forward" not in vars(model)


def test_only_calls_that_were_not_played_take_seconds(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr("unicp.calibration.call_recorder.time.perf_counter", lambda: float(next(clock)))
    model = Model()
    recorder = CallRecorder(model, "hidden_states")
    with recorder.recording():
        run(model)
    assert recorder.seconds == [1.0] * 10
    for played, seconds in ((3, 4.0), (5, 0.0)):
        with recorder.playing(played):
            run(model)
        assert recorder.played_on == seconds


def test_a_recorder_is_taken_off_after_an_error():
    model = Model()
    with pytest.raises(RuntimeError), CallRecorder(model, "hidden_states").recording():
        raise RuntimeError
    assert "forward" not in vars(model)


@pytest.mark.parametrize("quantity", ["output", "noise", "clean"])
@pytest.mark.parametrize("abscissa", ["sigma", "log_snr", "step"])
def test_errors_from_a_recording_are_those_of_real_forecasts(quantity, abscissa):
    steps = 9
    levels = flow_levels(steps)
    calls = [[(noise(100 + step, *SHAPE), noise(step, *SHAPE))] for step in range(steps)]
    recording = recording_of("a", calls, levels[:-1], "flow")
    errors = forecast_errors(made(steps), [recording], Forecast(quantity, abscissa), levels[:-1])
    assert errors is not None
    for before, last, served in ((3, 4, 5), (2, 5, 7), (4, 6, 8)):
        places = {"sigma": [v.sigma for v in levels], "log_snr": [v.log_snr for v in levels], "step": range(steps)}
        points = [
            (float(places[abscissa][k]), to_quantity(quantity, "flow", *calls[k][0], levels[k])) for k in (before, last)
        ]
        sample, true = calls[served][0]
        forecast = extrapolate(points, float(places[abscissa][served]))
        output = from_quantity(quantity, "flow", sample, forecast, levels[served])
        assert errors(before, last, served) == pytest.approx(float(relative_error(output, true)), rel=1e-3)


def test_branches_are_averaged():
    levels = flow_levels(8)
    seeds = range(8)
    calls = [[(noise(50 + k, *SHAPE), noise(k, *SHAPE)), (noise(80 + k, *SHAPE), noise(90 + k, *SHAPE))] for k in seeds]
    both = recording_of("a", calls, levels[:-1], "flow")
    alone = [recording_of("a", [[step[b]] for step in calls], levels[:-1], "flow") for b in (0, 1)]
    assert both.power[3] == pytest.approx(sum(one.power[3] for one in alone) / 2)
    for name, products in both.products.items():
        mean = [(a + b) / 2 for a, b in zip(alone[0].products[name], alone[1].products[name])]
        assert products == pytest.approx(mean, abs=1e-9)


def test_outputs_of_another_shape_are_only_forecast_as_they_are():
    levels = flow_levels(8)
    calls = [[(noise(k, 1, 4, 4), noise(k, 1, 8, 4))] for k in range(8)]
    assert list(recording_of("a", calls, levels[:-1], "flow").products) == ["output"]
