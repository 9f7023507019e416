"""Noise levels against the schedulers they are read from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from tests import tiny_models
from unicp.models.families import FAMILIES, Family
from unicp.models.noise import NoiseSchedule, read_schedule, schedule_of
from unicp.numerics.forecasting import from_quantity, to_quantity

FLOW = {
    "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "unipc": lambda: UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, timestep_spacing="linspace"
    ),
    "dpm": lambda: DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
}


def _read(scheduler: Any) -> NoiseSchedule:
    schedule = read_schedule(scheduler)
    assert schedule is not None
    return schedule


@pytest.mark.parametrize("name", FLOW)
def test_flow_levels_are_the_sigmas(name):
    scheduler = FLOW[name]()
    schedule = _read(scheduler)
    scheduler.set_timesteps(30)
    assert schedule.prediction == "flow"
    assert schedule.steps == 30
    for index, timestep in enumerate(scheduler.timesteps):
        level = schedule.level(timestep.item())
        following = schedule.next_level(timestep.item())
        assert level is not None and following is not None
        assert level.noise == pytest.approx(scheduler.sigmas[index].item(), abs=1e-7)
        assert level.signal == pytest.approx(1.0 - scheduler.sigmas[index].item(), abs=1e-7)
        assert following.noise == pytest.approx(scheduler.sigmas[index + 1].item(), abs=1e-7)
        assert schedule.step_index(timestep.item()) == index


@pytest.mark.parametrize("name", FLOW)
def test_flow_timesteps_outside_the_run_are_unknown(name):
    scheduler = FLOW[name]()
    scheduler.set_timesteps(30)
    schedule = _read(scheduler)
    between = 0.5 * (scheduler.timesteps[10] + scheduler.timesteps[11]).item() + 0.3
    for timestep in (between, -5.0, 2000.0, math.nan):
        assert schedule.level(timestep) is None
        assert schedule.step_index(timestep) is None
        assert schedule.next_level(timestep) is None


@pytest.mark.parametrize("name", FLOW)
def test_flow_levels_are_unknown_before_a_run(name):
    assert _read(FLOW[name]()).level(999.0) is None


def test_multistep_solvers_fall_back_on_the_alphas_before_a_run():
    scheduler = UniPCMultistepScheduler()
    level = _read(scheduler).level(100.0)
    assert level is not None
    assert level.signal == pytest.approx(scheduler.alphas_cumprod[100].sqrt().item())


def test_changed_timesteps_are_seen_at_once():
    scheduler = FLOW["euler"]()
    schedule = _read(scheduler)
    assert schedule.steps is None
    assert schedule.step_index(1000.0) is None
    for steps in (4, 7):
        scheduler.set_timesteps(steps)
        assert schedule.steps == steps
        assert schedule.step_index(scheduler.timesteps[-1].item()) == steps - 1
    scheduler.timesteps.mul_(0.5)
    assert schedule.step_index(scheduler.timesteps[-1].item()) == 6


def test_timesteps_are_converted_once_per_run(monkeypatch):
    scheduler = FLOW["euler"]()
    scheduler.set_timesteps(4)
    schedule, calls = _read(scheduler), []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: calls.append(len(self)) or original(self))
    timesteps = original(scheduler.timesteps)
    for timestep in timesteps:
        schedule.level(timestep)
        schedule.next_level(timestep)
    assert calls.count(4) <= 3 and calls.count(5) == 1  # timesteps themselves, and rounded to both half precisions


def test_schedules_made_in_inference_mode_are_read():
    scheduler = FLOW["euler"]()
    schedule = _read(scheduler)
    with torch.inference_mode():
        for steps in (4, 7):
            scheduler.set_timesteps(steps)
            assert schedule.steps == steps
            assert schedule.step_index(scheduler.timesteps[2].item()) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_timesteps_rounded_to_half_precision_are_recognised(dtype):
    """As HunyuanVideo's pipeline passes them; the first steps of a shifted schedule then look alike."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    scheduler.set_timesteps(50)
    schedule = _read(scheduler)
    sample = torch.zeros(1)
    for index, timestep in enumerate(scheduler.timesteps):
        level = schedule.level(timestep.to(dtype).item())
        assert level is not None
        assert level.noise == pytest.approx(scheduler.sigmas[index].item(), rel=4e-3)
        assert schedule.step_index(timestep.to(dtype).item()) == index
        sample = scheduler.step(sample, timestep, sample, return_dict=False)[0]


def test_timesteps_cut_to_whole_numbers_are_recognised():
    # Helios' pipelines cut them.
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = _read(scheduler)
    scheduler.set_timesteps(7)
    for index, timestep in enumerate(scheduler.timesteps.tolist()):
        assert schedule.step_index(float(int(timestep))) == index
        level = schedule.level(float(int(timestep)))
        assert level is not None and level.noise == pytest.approx(scheduler.sigmas[index].item(), abs=1e-7)
    # Not where they run from 1 to 0: 0 would be each of them.
    small = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1)
    small.set_timesteps(7)
    assert _read(small).step_index(0.0) is None and _read(small).level(0.0) is None


def test_ambiguous_timesteps_have_a_level_but_no_step():
    scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    schedule = _read(scheduler)
    twice = scheduler.timesteps[1].item()
    level = schedule.level(twice)
    assert level is not None and level.noise == pytest.approx(twice / 1000.0)
    assert schedule.step_index(twice) is None
    assert schedule.next_level(twice) is None
    assert schedule.step_index(scheduler.timesteps[0].item()) == 0


@pytest.mark.parametrize(
    ("kind", "config", "prediction"),
    [
        (DDIMScheduler, {}, "epsilon"),
        (DDPMScheduler, {}, "epsilon"),
        (DDIMScheduler, {"prediction_type": "sample"}, "sample"),
        (CogVideoXDDIMScheduler, {"prediction_type": "v_prediction", "snr_shift_scale": 3.0}, "v_prediction"),
        (CogVideoXDPMScheduler, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, "v_prediction"),
    ],
)
def test_variance_preserving_levels_are_the_alphas(kind, config, prediction):
    scheduler = kind(**config)
    scheduler.set_timesteps(20)
    schedule = _read(scheduler)
    assert schedule.prediction == prediction
    assert schedule.steps == 20
    timesteps = scheduler.timesteps.tolist()
    for index, timestep in enumerate(timesteps):
        level = schedule.level(float(timestep))
        following = schedule.next_level(float(timestep))
        alpha = scheduler.alphas_cumprod[timestep].item()
        assert level is not None and following is not None
        assert (level.signal, level.noise) == pytest.approx((math.sqrt(alpha), math.sqrt(1.0 - alpha)))
        assert schedule.step_index(float(timestep)) == index
        if index + 1 < len(timesteps):
            assert following == schedule.level(float(timesteps[index + 1]))
        else:
            assert following.signal == pytest.approx(1.0, abs=1e-3)


def test_variance_preserving_timesteps_outside_the_run_have_a_level_but_no_step():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    schedule = _read(scheduler)
    assert schedule.level(533.4) == schedule.level(533.0) is not None
    assert schedule.step_index(533.0) is None
    assert schedule.next_level(533.0) is None
    assert schedule.level(1000.0) is None
    assert schedule.level(-1.0) is None
    assert schedule.level(math.inf) is None


@pytest.mark.parametrize("karras", [False, True])
def test_multistep_solvers_use_the_sigmas_they_solve_with(karras):
    for kind in (UniPCMultistepScheduler, DPMSolverMultistepScheduler):
        scheduler = kind(use_karras_sigmas=karras)
        scheduler.set_timesteps(12)
        schedule = _read(scheduler)
        assert schedule.prediction == "epsilon"
        for index, timestep in enumerate(scheduler.timesteps.tolist()):
            level = schedule.level(float(timestep))
            assert level is not None
            assert level.noise / level.signal == pytest.approx(scheduler.sigmas[index].item(), rel=1e-5)
            assert level.signal**2 + level.noise**2 == pytest.approx(1.0)
            if not karras:
                assert level.signal == pytest.approx(scheduler.alphas_cumprod[timestep].sqrt().item(), rel=1e-4)


def test_pndm_repeats_a_timestep_and_leaves_it_without_a_step():
    scheduler = PNDMScheduler(skip_prk_steps=True)
    assert _read(scheduler).steps is None
    scheduler.set_timesteps(10)
    schedule = _read(scheduler)
    assert schedule.steps == 11
    indices = [schedule.step_index(timestep) for timestep in scheduler.timesteps.tolist()]
    assert indices == [0, None, None, *range(3, 11)]
    assert all(schedule.level(timestep) is not None for timestep in scheduler.timesteps.tolist())


@pytest.mark.parametrize(
    "build",
    [
        HeunDiscreteScheduler,
        EDMEulerScheduler,
        pytest.param(lambda: UniPCMultistepScheduler(prediction_type="flow_prediction"), id="flow without its sigmas"),
        pytest.param(lambda: None, id="None"),
        object,
    ],
)
def test_schedulers_that_scale_are_unknown(build):
    assert read_schedule(build()) is None


@pytest.mark.parametrize("build", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_euler_gives_the_model_a_sample_of_unit_variance(build):
    scheduler = build(prediction_type="v_prediction")
    scheduler.set_timesteps(6)
    schedule = _read(scheduler)
    timesteps = scheduler.timesteps.tolist()
    assert schedule.level(timesteps[0]) is None  # a loop that does not scale gives the model another sample
    sigma = scheduler.sigmas[2].item()
    clean, noise = torch.full((1,), 3.0), torch.full((1,), -2.0)
    for timestep in scheduler.timesteps[:3]:
        scaled = scheduler.scale_model_input(clean + sigma * noise, timestep)
        scheduler.step(torch.zeros(1), timestep, torch.zeros(1))
    level = schedule.level(timesteps[2])
    assert level is not None
    assert scaled.item() == pytest.approx(level.signal * 3.0 - level.noise * 2.0)
    assert level.signal**2 + level.noise**2 == pytest.approx(1.0)
    last = schedule.next_level(timesteps[-1])
    assert last is not None and last.noise == 0.0


def test_levels_are_known_throughout_a_run():
    scheduler = FLOW["unipc"]()
    schedule, transformer, seen = _read(scheduler), tiny_models.wan(), []

    def note(module, args, kwargs):
        timestep = kwargs["timestep"][0].item()
        level = schedule.level(timestep)
        seen.append((schedule.step_index(timestep), None if level is None else level.noise))

    transformer.register_forward_pre_hook(note, with_kwargs=True)
    tiny_models.denoise(transformer, "wan", steps=4, scheduler=scheduler, branches=1)
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert [noise for _, noise in seen] == pytest.approx(scheduler.sigmas[:-1].tolist())


def _path(scheduler: Any, turned: bool) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Timestep, sample and output of a model that knows noise and clean sample, in a loop as its pipeline's."""
    clean, gaussian = torch.tensor([[3.0, -1.0]]), torch.tensor([[-2.0, 0.5]])
    scheduler.set_timesteps(7)
    sample = gaussian
    for timestep in scheduler.timesteps:
        given = clean - gaussian if scheduler.config.invert_sigmas else gaussian - clean
        yield float(timestep), sample, -given if turned else given
        sample = scheduler.step(given, timestep, sample, return_dict=False)[0]
    torch.testing.assert_close(sample, clean)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", ["mochi", "z_image", "lumina2"])
def test_models_whose_timestep_rises_tell_noise_and_clean_sample_exactly(name, shift):
    family = FAMILIES[type(tiny_models.build(name)).__name__]
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=name == "mochi", shift=shift)
    schedule, steps = schedule_of(family, scheduler), 0
    assert schedule is not None
    for timestep, sample, output in _path(scheduler, turned=name != "mochi"):
        # What Mochi's, Z-Image's and Lumina's pipelines give the model.
        given = timestep if name == "mochi" else (1000 - timestep) / 1000
        counted = family.timestep_shift + family.timestep_scale * given
        level = schedule.level(counted)
        assert level is not None and schedule.step_index(counted) == steps
        for kind, expected in (("noise", [[-2.0, 0.5]]), ("clean", [[3.0, -1.0]])):
            found = to_quantity(kind, schedule.prediction, sample, output, level)
            torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)
            if level.signal and level.noise:
                back = from_quantity(kind, schedule.prediction, sample, found, level)
                torch.testing.assert_close(back, output, rtol=1e-3, atol=1e-3)
        steps += 1
    assert schedule.steps == steps == 7
    levels = schedule.levels()
    assert levels is not None and [level.sigma for level in levels] == sorted((x.sigma for x in levels), reverse=True)
    assert (levels[0].sigma, levels[-1].sigma) == (1.0, 0.0)


def test_a_rising_timestep_that_was_rounded_to_half_precision_is_known_again():
    # Mochi's pipeline casts the timestep to the dtype of its latents.
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(64)
    schedule = _read(scheduler)
    for step, timestep in enumerate(scheduler.timesteps.to(torch.bfloat16).tolist()):
        found = schedule.step_index(1000 - timestep)
        assert found in (step, None)
        scheduler.set_begin_index(0)
        scheduler._step_index = step
        assert schedule.step_index(1000 - timestep) == step


def test_what_a_turned_model_gives_is_not_what_the_sampler_gets():
    schedule = schedule_of(Family("One", output_turned=True), FlowMatchEulerDiscreteScheduler())
    assert schedule is not None and (schedule.prediction, schedule.sampler_prediction) == ("turned_flow", "flow")
    assert schedule_of(Family("One", output_turned=True), DDIMScheduler()) is None
    assert schedule_of(Family("One", noise_refusal="no"), FlowMatchEulerDiscreteScheduler()) is None
