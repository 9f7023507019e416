"""The share of each output in the final sample, against samplers stepped by hand."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from unicp.sampler.response import output_shares

FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SAMPLERS = {
    "euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**FLOW),
    "dpm": lambda: diffusers.DPMSolverMultistepScheduler(**FLOW),
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "cogvideox": lambda: diffusers.CogVideoXDDIMScheduler(),
    "pndm": lambda: diffusers.PNDMScheduler(skip_prk_steps=True),
}
STEPS = 8


def final(scheduler: Any, outputs: list[torch.Tensor], sample: torch.Tensor, first: int = 0) -> torch.Tensor:
    for output, time in zip(outputs[first:], scheduler.timesteps[first:]):
        sample = scheduler.step(output, time, sample, return_dict=False)[0]
    return sample


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("first", [0, 1, 3])
def test_a_changed_output_moves_the_final_sample_by_its_share(name, first):
    scheduler = SAMPLERS[name]()
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(1, 2, 3, 4, generator=generator) for _ in scheduler.timesteps]
    sample = torch.randn(1, 2, 3, 4, generator=generator)
    for output, time in zip(outputs[:first], scheduler.timesteps[:first]):
        sample = scheduler.step(output, time, sample, return_dict=False)[0]
    shares = output_shares(scheduler, first)
    assert shares is not None and shares[:first] == (0.0,) * first and len(shares) == len(scheduler.timesteps)
    plain = final(copy.deepcopy(scheduler), outputs, sample, first)
    for step in range(first, len(outputs)):
        changed = [output + (0.1 if at == step else 0.0) for at, output in enumerate(outputs)]
        moved = final(copy.deepcopy(scheduler), changed, sample, first) - plain
        assert moved.mean().item() == pytest.approx(0.1 * shares[step], rel=2e-3, abs=2e-5)


def test_an_euler_sampler_takes_outputs_as_its_steps_are_wide():
    scheduler = SAMPLERS["euler"]()
    scheduler.set_timesteps(STEPS)
    assert output_shares(scheduler, 0) == pytest.approx(scheduler.sigmas.diff().tolist(), rel=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_scheduler_is_left_as_it_is(name):
    scheduler = SAMPLERS[name]()
    scheduler.set_timesteps(STEPS)
    sample = torch.randn(1, 2, 3, 4)
    sample = scheduler.step(torch.randn(1, 2, 3, 4), scheduler.timesteps[0], sample, return_dict=False)[0]
    before, random = copy.deepcopy(vars(scheduler)), torch.get_rng_state()
    output_shares(scheduler, 1)
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: told(value) for name, value in vars(scheduler).items()} == {
        name: told(value) for name, value in before.items()
    }


def told(value: Any) -> str:
    """A value in words, tensors with all of theirs."""
    if isinstance(value, list):
        return str([told(one) for one in value])
    return str(value.tolist()) if isinstance(value, torch.Tensor | np.ndarray) else str(value)


def test_a_random_sampler_is_asked_with_the_same_noise_twice():
    scheduler = diffusers.EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    scheduler.is_scale_input_called = True
    first, again = output_shares(scheduler, 0), output_shares(scheduler, 0)
    assert first == again and first is not None
    # Its first output is scaled by the whole noise of the run, its last by the last step alone.
    assert abs(first[0]) > 100 * abs(first[-1]) > 0


class Broken:
    timesteps = torch.arange(3.0)
    config: dict[str, Any] = {}

    def step(self, output: Any, time: Any, sample: Any) -> Any:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "scheduler",
    [
        SimpleNamespace(),
        Broken(),
        diffusers.CogVideoXDPMScheduler(),
        diffusers.DPMSolverMultistepScheduler(thresholding=True),
    ],
)
def test_a_scheduler_that_cannot_tell_is_no_error(scheduler):
    if hasattr(scheduler, "set_timesteps"):
        scheduler.set_timesteps(STEPS)
    assert output_shares(scheduler, 0) is None


def test_a_run_that_is_over_has_no_shares():
    scheduler = SAMPLERS["euler"]()
    scheduler.set_timesteps(STEPS)
    assert output_shares(scheduler, STEPS) is None
