import torch

from unicp.benchmarking.impact import Injection


def test_a_forecast_of_a_linear_output_moves_nothing():
    sigmas = [1.0, 0.8, 0.5, 0.1]
    calls = iter(s for s in sigmas for _ in range(2))
    injection = Injection(lambda: (torch.full((1, 3), next(calls)),), sigmas, step=2)
    outputs = [injection()[0] for _ in range(8)]
    assert torch.allclose(torch.stack(outputs)[:, 0, 0], torch.tensor([1, 1, 0.8, 0.8, 0.5, 0.5, 0.1, 0.1]))
    assert len(injection.errors) == 2
    assert max(injection.errors) < 1e-6


def test_the_injected_error_is_the_one_reported():
    values = iter([1.0, 1.0, 1.0, 1.0, 2.0, 2.0])
    injection = Injection(lambda: (torch.full((1, 3), next(values)),), [1.0, 0.9, 0.8], step=2)
    outputs = [injection()[0] for _ in range(6)]
    assert outputs[4][0, 0] == 1.0
    assert abs(injection.errors[0] - 0.5) < 1e-6
