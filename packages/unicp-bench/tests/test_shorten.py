"""Plain runs of a chosen part of a run's steps."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from unicp.errors import InputError
from unicp_bench.shorten import only_steps


def unipc() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def walk(scheduler, steps: int) -> torch.Tensor:
    """The sample after a run of a model whose output is its sample, shrunk by the timestep."""
    scheduler.set_timesteps(steps, device="cpu")
    sample = torch.tensor([[1.0, -2.0]])
    for time in scheduler.timesteps:
        sample = scheduler.step(sample * (time / 1000), time, sample, return_dict=False)[0]
    return sample


@pytest.mark.parametrize("make", [FlowMatchEulerDiscreteScheduler, unipc])
def test_all_steps_chosen_is_the_plain_run(make):
    plain = walk(make(), 9)
    with only_steps(scheduler := make(), lambda scheduler: range(9)):
        assert torch.equal(walk(scheduler, 9), plain)


def test_the_levels_are_those_of_the_steps_chosen():
    whole, scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0), FlowMatchEulerDiscreteScheduler(shift=3.0)
    whole.set_timesteps(9)
    asked: list[int] = []

    def choose(scheduler):
        asked.append(len(scheduler.timesteps))
        return (0, 1, 5)

    with only_steps(scheduler, choose):
        moved = walk(scheduler, 9)
    levels = [float(whole.sigmas[index]) for index in (0, 1, 5)] + [0.0]
    times = [float(whole.timesteps[index]) / 1000 for index in (0, 1, 5)]
    factor = 1.0
    for time, level, after in zip(times, levels, levels[1:]):
        factor *= 1 + (after - level) * time
    torch.testing.assert_close(moved, factor * torch.tensor([[1.0, -2.0]]))
    assert asked == [9]


def test_afterwards_the_scheduler_is_as_it_was():
    scheduler = unipc()
    plain = walk(scheduler, 7)
    with only_steps(scheduler, lambda scheduler: (0, 3)):
        walk(scheduler, 7)
    assert "set_timesteps" not in vars(scheduler)
    assert torch.equal(walk(scheduler, 7), plain)


def test_a_sampler_of_evenly_spaced_steps_is_refused():
    with pytest.raises(InputError, match="evenly spaced"), only_steps(DDIMScheduler(), lambda scheduler: (0, 1)):
        pass


def test_a_pipeline_that_names_its_levels_is_shortened_too():
    scheduler = FlowMatchEulerDiscreteScheduler()
    with only_steps(scheduler, lambda scheduler: (0, 2)):
        scheduler.set_timesteps(sigmas=[0.9, 0.6, 0.3])
    assert scheduler.sigmas.tolist() == pytest.approx([0.9, 0.3, 0.0])
