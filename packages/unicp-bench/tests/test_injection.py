import torch

from unicp_bench.injection import Injection

SIGMAS = [1.0, 0.8, 0.5, 0.1]


def outputs(injection: Injection, steps: int) -> list[torch.Tensor]:
    times = [torch.tensor([1000.0 - 10 * step]) for step in range(steps) for _ in range(2)]
    return [injection(timestep=time)[0] for time in times]


def test_a_forecast_of_a_linear_output_moves_nothing():
    calls = iter(s for s in SIGMAS for _ in range(2))
    injection = Injection(lambda timestep: (torch.full((1, 3), next(calls)),), SIGMAS, step=2)
    found = torch.stack(outputs(injection, 4))[:, 0, 0]
    assert torch.allclose(found, torch.tensor([1, 1, 0.8, 0.8, 0.5, 0.5, 0.1, 0.1]))
    assert len(injection.errors) == 2
    assert max(injection.errors) < 1e-6


def test_the_injected_error_is_the_one_reported():
    values = iter([1.0, 1.0, 1.0, 1.0, 2.0, 2.0])
    injection = Injection(lambda timestep: (torch.full((1, 3), next(values)),), [1.0, 0.9, 0.8], step=2)
    found = outputs(injection, 3)
    assert found[4][0, 0] == 1.0
    assert abs(injection.errors[0] - 0.5) < 1e-6


def test_nothing_is_changed_without_a_step_and_branches_are_kept_apart():
    values = iter(range(8))
    injection = Injection(lambda timestep: (torch.full((1, 3), float(next(values))),), SIGMAS, step=None)
    found = outputs(injection, 4)
    assert [float(f[0, 0]) for f in found] == list(range(8))
    assert [[float(o[0, 0]) for o in step] for step in injection.history] == [[0, 1], [2, 3], [4, 5], [6, 7]]
