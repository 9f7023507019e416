"""The corrector of UniPC is left out where it would correct with a served output, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

import unicp
from tests import tiny_models
from unicp.execution.corrector import CorrectorHold
from unicp.testbed.components import build_scheduler

STEPS = 9


class Watched(UniPCMultistepScheduler):
    """Notes at which steps the corrector was on."""

    def step(self, model_output, timestep, sample, return_dict=True):
        index = 0 if self.step_index is None else self.step_index
        if index > 0 and index - 1 not in self.disable_corrector:
            self.corrected.append(index)
        return super().step(model_output, timestep, sample, return_dict=return_dict)


def scheduler() -> Watched:
    made = Watched.from_config(build_scheduler().config)
    made.corrected = []
    return made


def denoise(model, schedule, steps=STEPS, stop=None):
    torch.manual_seed(0)
    sample = torch.randn(1, model.config["in_channels"], 3, 8, 8)
    texts = [torch.randn(1, 7, model.config["text_dim"]) for _ in range(2)]
    schedule.set_timesteps(steps)
    for index, time in enumerate(schedule.timesteps):
        if index == stop:
            return sample
        outputs = []
        for name, text in zip(("cond", "uncond"), texts):
            with torch.no_grad(), model.cache_context(name):
                call = {"hidden_states": sample, "timestep": time.reshape(1), "encoder_hidden_states": text}
                outputs.append(model(**call, return_dict=False)[0])
        sample = schedule.step(outputs[1] + 3 * (outputs[0] - outputs[1]), time, sample, return_dict=False)[0]
    return sample


def settings(**changes) -> unicp.Settings:
    # Steps 3, 4 and 6 are served: those after them that are computed are 5 and 7.
    return unicp.preset("balanced", computed_steps=(0, 1, 2, 5, 7, 8), quantities=("output",), **changes)


def test_only_computed_steps_after_served_ones_go_without():
    model, schedule = tiny_models.wan(), scheduler()
    with unicp.enable(model, settings(), scheduler=schedule) as session:
        denoise(model, schedule)
    assert schedule.corrected == [1, 2, 3, 4, 6, 8]
    assert session.trace.counts["corrector_held"] == 2


def test_it_can_be_left_alone():
    model, schedule = tiny_models.wan(), scheduler()
    with unicp.enable(model, settings(hold_corrector=False), scheduler=schedule):
        denoise(model, schedule)
    assert schedule.corrected == list(range(1, STEPS))


@pytest.mark.parametrize("stop", [None, 6, 8])
def test_the_scheduler_gets_its_own_list_back_and_the_plain_run_its_bits(stop):
    model, schedule = tiny_models.wan(), scheduler()
    own = schedule.disable_corrector = [4]
    plain = denoise(model, schedule)
    with unicp.enable(model, settings(), scheduler=schedule):
        denoise(model, schedule, stop=stop)
    assert schedule.disable_corrector is own and own == [4]
    assert torch.equal(denoise(model, schedule), plain)


def test_tolerance_zero_leaves_the_corrector_on():
    model, schedule = tiny_models.wan(), scheduler()
    plain = denoise(model, schedule)
    with unicp.enable(model, unicp.preset("balanced", tolerance=0.0), scheduler=schedule) as session:
        assert torch.equal(denoise(model, schedule), plain)
    assert session.trace.counts["corrector_held"] == 0


def test_a_scheduler_without_a_corrector_is_left_alone():
    class Plain:
        step_index = 3

    hold = CorrectorHold()
    assert not hold.hold(Plain())
    assert not hold.hold(None)
    hold.release()


def test_the_shared_default_list_is_never_written_to():
    first, second = scheduler(), scheduler()
    first.set_timesteps(4)
    first._step_index = 2
    hold = CorrectorHold()
    assert hold.hold(first) and not hold.hold(first)
    assert first.disable_corrector == [1] and second.disable_corrector == []
    first._step_index = 3
    assert hold.hold(first)
    assert first.disable_corrector == [2]
    hold.release()
    assert first.disable_corrector == []
