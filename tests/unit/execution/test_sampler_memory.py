"""What UniPC remembers of served outputs is mended or not used, and nothing else of it is touched."""

from __future__ import annotations

import copy
import inspect
import math
from collections import Counter

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

import unicp
from tests import tiny_models
from unicp.control.windows import Candidate
from unicp.execution.sampler_memory import TRUSTED, SamplerMemory, is_first_order, parabola_share
from unicp.models.noise import read_schedule
from unicp.numerics.forecasting import from_quantity
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
    with unicp.enable(model, settings(mend_sampler=False), scheduler=schedule):
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


def test_served_noise_estimates_are_mended():
    model, schedule = tiny_models.wan(), scheduler()
    # Served: 4, then 6 and 7. Computed after them: 5 and 8.
    chosen = unicp.preset("balanced", computed_steps=(0, 1, 2, 3, 5, 8))
    with unicp.enable(model, chosen, scheduler=schedule) as session:
        denoise(model, schedule)
    assert [e.action for e in session.trace.entries if e.unit == "model" and e.branch == "cond"].count("forecast") == 3
    assert schedule.corrected == [1, 2, 3, 4, 6, 7]
    assert session.trace.counts["history_mended"] == 2
    assert session.trace.counts["corrector_held"] == 2


def test_the_share_of_a_parabola():
    # (x - 0)(x - 1) is 6 at 3 and 2 at 2.
    assert parabola_share([0.0, 1.0], 3.0, 2.0) == pytest.approx(1 / 3)
    assert parabola_share([0.0, 1.0], 3.0, 3.0) == 1.0
    assert parabola_share([0.0, 1.0], 3.0, 1.0) == 0.0
    assert not math.isfinite(parabola_share([0.0, 1.0], 1.0, 2.0))


class Remembering:
    """Keeps clean estimates as UniPC does, and nothing else of it."""

    def __init__(self):
        self.config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "predict_x0": True}
        self.sigmas = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.0], dtype=torch.float64)
        self.timesteps = self.sigmas[:-1] * 1000
        self.num_inference_steps = 5
        self.model_outputs = [None, None]
        self.disable_corrector = []
        self.step_index = 0

    def step(self, model_output, timestep, sample, return_dict=True):
        clean = sample - self.sigmas[self.step_index] * model_output
        self.seen = list(self.model_outputs), list(self.disable_corrector)
        self.model_outputs = [self.model_outputs[1], clean]
        self.step_index += 1
        return (sample,)


def noise_at(level, bend: float = 0.5) -> torch.Tensor:
    """A noise estimate that is a parabola of the log-SNR."""
    return torch.tensor([[1.0 + 2.0 * level.log_snr + bend * level.log_snr**2]], dtype=torch.float64)


def run(served: set[int], way: Candidate, until: int, bend: float = 0.5) -> tuple[Remembering, SamplerMemory, Counter]:
    """Steps in which `served` ones get the straight line through the last two computed ones."""
    schedule, counts = Remembering(), Counter()
    memory, levels = SamplerMemory(counts), read_schedule(schedule)
    known = []
    for index in range(until + 1):
        time = float(schedule.timesteps[index])
        level = levels.level(time)
        position = {"step": float(index), "sigma": level.sigma, "log_snr": level.log_snr}
        sample = torch.tensor([[3.0 + index]], dtype=torch.float64)
        if index in served:
            (x0, y0), (x1, y1) = known[-2:]
            noise = y1 + (level.log_snr - x1) / (x1 - x0) * (y1 - y0)
            memory.served(schedule, levels, position, time, way)
        else:
            noise = noise_at(level, bend)
            known.append((level.log_snr, noise))
            memory.computed(schedule, levels, position, time)
        schedule.step((noise - sample) / level.signal, time, sample)
    return schedule, memory, counts


@pytest.mark.parametrize(("served", "until"), [({2}, 3), ({2, 3}, 4)])
def test_the_remembered_output_becomes_the_true_one_where_the_noise_is_a_parabola(served, until):
    schedule, memory, counts = run(served, Candidate("noise", "log_snr"), until)
    level = read_schedule(schedule).level(float(schedule.timesteps[until - 1]))
    sample = torch.tensor([[3.0 + until - 1]], dtype=torch.float64)
    true = (sample - level.noise * noise_at(level)) / level.signal
    remembered, switched_off = schedule.seen
    torch.testing.assert_close(remembered[-1], true)
    assert switched_off == [until - 1]
    assert counts["history_mended"] == 1 and schedule.disable_corrector == []
    assert memory.bytes == 16
    memory.reset()
    assert memory.bytes == 0


def bad_bend(trusted: float) -> float:
    """The bend with which the line through steps 0 and 1 misses the output of step 3 by this share of it."""
    schedule = Remembering()
    levels = [read_schedule(schedule).level(float(time)) for time in schedule.timesteps]

    def share(bend):
        (x0, y0), (x1, y1) = ((level.log_snr, noise_at(level, bend)) for level in levels[:2])
        true = noise_at(levels[3], bend)
        line = y1 + (levels[3].log_snr - x1) / (x1 - x0) * (y1 - y0)
        # The output at a sample of 6, as `run` has it.
        return abs(float(true - line)) / abs(float(true - 6.0))

    low, high = 0.0, 0.5
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) < trusted else (low, middle)
    return low


@pytest.mark.parametrize(
    ("served", "until", "share", "is_held"),
    [({2}, 3, 0.99, False), ({2}, 3, 1.01, True), ({2, 3}, 4, 0.01, True)],
)
def test_the_corrector_runs_after_one_served_step_that_was_forecast_well(served, until, share, is_held):
    bend = bad_bend(share * TRUSTED)
    schedule, _, counts = run(served, Candidate("noise", "log_snr"), until, bend)
    assert schedule.seen[1] == ([until - 1] if is_held else [])
    assert (counts["history_mended"], counts["corrector_held"]) == (1, int(is_held))


@pytest.mark.parametrize("way", [Candidate("output", "log_snr"), None])
def test_what_cannot_be_mended_is_not_corrected_with(way):
    schedule, _, counts = run({2}, way, 3)
    remembered, switched_off = schedule.seen
    plain, _, _ = run({2}, way, 2)
    assert torch.equal(remembered[-1], plain.model_outputs[-1])
    assert switched_off == [2]
    assert (counts["history_mended"], counts["corrector_held"]) == (0, 1)


def test_the_step_of_a_scheduler_is_its_own_again():
    schedule, memory = Remembering(), SamplerMemory(Counter())
    levels, time = read_schedule(schedule), float(schedule.timesteps[0])
    memory.computed(schedule, levels, {"step": 0.0}, time)
    assert "step" in vars(schedule)
    assert list(inspect.signature(schedule.step).parameters)[-3:] == ["timestep", "sample", "return_dict"]
    memory.reset()
    assert "step" not in vars(schedule)
    theirs = schedule.step = lambda *args: None
    memory.computed(schedule, levels, {"step": 0.0}, time)
    memory.served(schedule, levels, {"step": 1.0}, time, None)
    assert schedule.step is theirs


def test_a_copy_of_a_scheduler_steps_itself():
    schedule, memory = Remembering(), SamplerMemory(Counter())
    memory.computed(schedule, read_schedule(schedule), {"step": 0.0}, float(schedule.timesteps[0]))
    other = copy.deepcopy(schedule)
    other.step(torch.zeros(1, 1), 900.0, torch.ones(1, 1))
    assert (other.step_index, schedule.step_index) == (1, 0)
    assert "step" in vars(schedule)


def first_order(name: str):
    if name == "euler":
        made = FlowMatchEulerDiscreteScheduler(shift=3.0)
    else:
        made = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing")
    made.set_timesteps(12)
    return made


def walk(schedule, served: set[int], memory: SamplerMemory | None, until: int) -> torch.Tensor:
    """The sample after steps whose noise estimate is a parabola of the log-SNR, whatever the sample."""
    levels, way, known = read_schedule(schedule), Candidate("noise", "log_snr"), []
    sample = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    for index, time in enumerate(schedule.timesteps[: until + 1]):
        level = levels.level(float(time))
        position = {"step": float(index), "sigma": level.sigma, "log_snr": level.log_snr}
        noise = noise_at(level).expand(1, 2)
        if memory is not None and index in served:
            (x0, y0), (x1, y1) = known[-2:]
            noise = y1 + (level.log_snr - x1) / (x1 - x0) * (y1 - y0)
            memory.served(schedule, levels, position, float(time), way)
        else:
            known.append((level.log_snr, noise))
            if memory is not None:
                memory.computed(schedule, levels, position, float(time))
        output = from_quantity("noise", levels.prediction, sample, noise, level) if level.signal else noise
        sample = schedule.step(output, time, sample, return_dict=False)[0].double()
    return sample


@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_the_sample_is_moved_to_where_the_plain_run_has_it(name):
    # Served one by one: what each did is undone at the computed step after it.
    counts, until = Counter(), 8
    plain = walk(first_order(name), set(), None, until)
    served = walk(first_order(name), {4, 6}, SamplerMemory(counts), until)
    torch.testing.assert_close(served, plain, rtol=1e-4, atol=1e-4)
    assert counts["sample_mended"] == 2 and counts["corrector_held"] == 0
    assert not torch.allclose(walk(first_order(name), {4, 6}, SamplerMemory(counts), 6), plain, rtol=1e-2)


def test_after_wider_windows_the_sample_is_left_where_it_is():
    counts = Counter()
    walk(first_order("euler"), {4, 5, 7, 8, 9}, SamplerMemory(counts), 11)
    assert counts["sample_mended"] == 0


@pytest.mark.parametrize("changes", [{"stochastic_sampling": True}, {"clip_sample": True}])
def test_samplers_that_are_not_linear_are_not_of_first_order(changes):
    kind = FlowMatchEulerDiscreteScheduler if "stochastic_sampling" in changes else DDIMScheduler
    assert not is_first_order(kind(**changes))
    assert is_first_order(kind(**{name: False for name in changes}))
    assert not is_first_order(None) and not is_first_order(scheduler())


def test_a_scheduler_without_a_corrector_is_left_alone():
    class Plain:
        step_index = 3

    plain, memory = Plain(), SamplerMemory(Counter())
    memory.computed(plain, None, {"step": 3.0}, 500.0)
    memory.computed(None, None, {"step": 3.0}, 500.0)
    assert vars(plain) == {} and memory.bytes == 0


def test_the_shared_default_list_is_never_written_to():
    first, second = scheduler(), scheduler()
    model = tiny_models.wan()
    with unicp.enable(model, settings(), scheduler=first) as session:
        denoise(model, first)
    assert session.trace.counts["corrector_held"] == 2
    assert first.disable_corrector == [] and second.disable_corrector == []
