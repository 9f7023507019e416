"""What served outputs did to a sampler is taken back at the next computed step, and nothing else of it is touched."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections import Counter, deque

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from unicp.control.windows import Candidate

import unicp
from tests import tiny_models
from unicp.models.noise import read_schedule
from unicp.numerics.forecasting import from_quantity, output_at
from unicp.sampler import replay as sampler_replay
from unicp.sampler.replay import can_repeat
from unicp_testbeds.components import build_scheduler


def SamplerReplay(counts: Counter, on_move=None) -> sampler_replay.SamplerReplay:
    return sampler_replay.SamplerReplay(lambda key: counts.update([key]), on_move)


STEPS = 9
NOISE = Candidate("noise", "log_snr")


class Watched(UniPCMultistepScheduler):
    """Notes at which steps the corrector was on: in no list, for a replay puts a scheduler's lists back."""

    def step(self, model_output, timestep, sample, return_dict=True):
        index = 0 if self.step_index is None else self.step_index
        if index > 0 and index - 1 not in self.disable_corrector:
            self.corrected.append(index)
        return super().step(model_output, timestep, sample, return_dict=return_dict)


def scheduler() -> Watched:
    made = Watched.from_config(build_scheduler().config)
    made.corrected = deque()
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
    # Steps 3, 4 and 6 are served: those after them that are computed are 5 and 7. Nothing is taken again over sigma.
    return unicp.preset("balanced", full_steps=(0, 1, 2, 5, 7, 8), abscissas=("sigma",), **changes)


def test_where_nothing_can_be_taken_again_the_corrector_is_left_out():
    model, schedule = tiny_models.wan(), scheduler()
    with unicp.enable(model, settings(), scheduler=schedule) as session:
        denoise(model, schedule)
    assert list(schedule.corrected) == [1, 2, 3, 4, 6, 8]
    assert session.trace.counts["corrector_held"] == 2
    assert session.trace.counts["replayed"] == 0


def test_it_can_be_left_alone():
    model, schedule = tiny_models.wan(), scheduler()
    with unicp.enable(model, settings(replay=False), scheduler=schedule):
        denoise(model, schedule)
    assert list(schedule.corrected) == list(range(1, STEPS))


@pytest.mark.parametrize("quantity", ["output", "noise"])
@pytest.mark.parametrize("stop", [None, 6, 8])
def test_the_scheduler_gets_its_own_list_back_and_the_plain_run_its_bits(stop, quantity):
    model, schedule = tiny_models.wan(), scheduler()
    own = schedule.disable_corrector = [4]
    plain = denoise(model, schedule)
    before = set(vars(schedule))
    chosen = unicp.preset("balanced", full_steps=(0, 1, 2, 5, 7, 8), quantities=(quantity,))
    with unicp.enable(model, chosen, scheduler=schedule):
        denoise(model, schedule, stop=stop)
    assert schedule.disable_corrector is own and own == [4]
    assert torch.equal(denoise(model, schedule), plain) and set(vars(schedule)) == before


def test_tolerance_zero_leaves_the_corrector_on():
    model, schedule = tiny_models.wan(), scheduler()
    plain = denoise(model, schedule)
    with unicp.enable(model, unicp.preset("balanced", tolerance=0.0), scheduler=schedule) as session:
        assert torch.equal(denoise(model, schedule), plain)
    assert session.trace.counts["corrector_held"] == session.trace.counts["replayed"] == 0


def test_served_steps_are_taken_again():
    model, schedule = tiny_models.wan(), scheduler()
    # Served: 4, then 6 and 7. Computed after them: 5 and 8.
    chosen = unicp.preset("balanced", full_steps=(0, 1, 2, 3, 5, 8))
    with unicp.enable(model, chosen, scheduler=schedule) as session:
        denoise(model, schedule)
    assert [e.action for e in session.trace.entries if e.unit == "model" and e.branch == "cond"].count("forecast") == 3
    assert list(schedule.corrected) == [1, 2, 3, 4, 4, 5, 6, 7, 6, 7, 8]
    assert session.trace.counts["replayed"] == 2
    assert session.trace.counts["corrector_held"] == 0


def noise_at(level) -> torch.Tensor:
    """A noise estimate that is a parabola of the log-SNR, whatever the sample."""
    return torch.tensor([[1.0, -2.0]], dtype=torch.float64) * (1.0 + 0.1 * level.log_snr + 0.02 * level.log_snr**2)


def sampler_of(name: str):
    made = {
        "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
        "ddim": lambda: DDIMScheduler(prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"),
        "unipc": lambda: UniPCMultistepScheduler.from_config(build_scheduler().config),
        "dpm": lambda: DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }[name]()
    made.set_timesteps(12)
    return made


def heard(name: str):
    """Such a sampler, which notes the samples and outputs that its steps are given, and what it remembers then."""
    kind = type(sampler_of(name))

    class Heard(kind):
        def step(self, model_output, timestep, sample, *args, **kwargs):
            remembered = [one for one in getattr(self, "model_outputs", ()) if one is not None]
            self.steps.append((sample, remembered))
            self.outputs.append(model_output)
            return kind.step(self, model_output, timestep, sample, *args, **kwargs)

    made = Heard.from_config(sampler_of(name).config)
    made.set_timesteps(12)
    made.steps, made.outputs = deque(), deque()
    return made


def walk(schedule, served=(), replay=None, until=8, way=NOISE, between=None, **kwargs) -> torch.Tensor:
    """The sample after steps whose noise estimates are `noise_at`, and lines through the last two where served.

    between: (step, sample) -> the sample that the step is given.
    """
    levels, known = read_schedule(schedule), []
    sample = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    for index, time in enumerate(schedule.timesteps[: until + 1]):
        level = levels.level(float(time))
        position = {"step": float(index), "sigma": level.sigma, "log_snr": level.log_snr}
        sample = sample if between is None else between(index, sample)
        noise = noise_at(level)
        if index in served:
            (x0, y0), (x1, y1) = known[-2:]
            noise = y1 + (level.log_snr - x1) / (x1 - x0) * (y1 - y0)
            if replay is not None:
                replay.served(levels, position, float(time), way)
        else:
            known.append((level.log_snr, noise))
            if replay is not None:
                replay.computed(levels, position, float(time))
        output = from_quantity("noise", levels.prediction, sample, noise, level) if level.signal else noise
        given = (output, time, sample), {"return_dict": False, **kwargs}
        if replay is None:
            sample = schedule.step(*given[0], **given[1])[0].double()
        else:
            sample = replay.step(schedule, schedule.step, *given)[0].double()
    return sample


@pytest.mark.parametrize("served", [{4}, {7}, {4, 5, 6, 7}, {6, 7}])
@pytest.mark.parametrize("name", ["euler", "ddim", "unipc", "dpm"])
def test_nothing_of_a_forecast_stays_where_the_truth_lies_on_a_parabola(name, served):
    # The computed step after the window begins where the plain run has it, and remembers what that remembers.
    until, counts = max(served) + 1, Counter()
    plain, left, replayed = heard(name), heard(name), heard(name)
    walk(plain, until=until)
    walk(left, served, until=until)
    walk(replayed, served, SamplerReplay(counts), until)
    (true, memory), (other, _), (again, mended) = (one.steps[-1] for one in (plain, left, replayed))
    torch.testing.assert_close(again, true, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mended, memory, rtol=1e-4, atol=1e-4)
    assert (other - true).norm() > 20 * (again - true).norm()
    assert (counts["replayed"], counts["corrector_held"]) == (1, 0)


@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_the_output_follows_the_sample_and_what_forecasts_go_on_from_is_told(name):
    told = []
    schedule, replay = heard(name), SamplerReplay(Counter(), lambda sample, moved: told.append((sample, moved)))
    walk(schedule, {4, 5}, replay, 6)
    levels, time = read_schedule(schedule), float(schedule.timesteps[6])
    ((sample, moved),) = told
    assert torch.equal(moved, schedule.steps[-1][0]) and not torch.equal(sample, moved)
    said = from_quantity("noise", levels.prediction, sample, noise_at(levels.level(time)), levels.level(time))
    wanted = output_at(levels.prediction, sample, said, moved, levels.level(time))
    torch.testing.assert_close(schedule.outputs[-1], wanted)


@pytest.mark.parametrize("name", ["euler", "unipc"])
@pytest.mark.parametrize("way", [Candidate("noise", "sigma"), Candidate("output", "step"), None])
def test_what_was_not_forecast_over_log_snr_is_not_taken_again(name, way):
    counts = Counter()
    walk(sampler_of(name), {5}, SamplerReplay(counts), 6, way)
    assert counts["replayed"] == 0
    assert counts["corrector_held"] == int(name == "unipc")


def test_outputs_forecast_as_they_are_are_taken_again_too():
    # So are those that have a learned variance beside them, of which the sampler is not told.
    counts = Counter()
    walk(sampler_of("ddim"), {5}, SamplerReplay(counts), 6, Candidate("output", "log_snr"))
    assert counts["replayed"] == 1


@pytest.mark.parametrize(("step", "replayed"), [(4, 1), (5, 0), (6, 0), (7, 1)])
def test_a_sample_that_was_changed_between_steps_is_not_overwritten(step, replayed):
    # Steps 5 is served, 6 computed: what begins at step 4, or after the window, has no part in it.
    def change(index, sample):
        return sample + 3.0 if index == step else sample

    counts = Counter()
    served = walk(sampler_of("euler"), {5}, SamplerReplay(counts), 6, between=change)
    assert counts["replayed"] == replayed
    if not replayed:
        assert torch.equal(served, walk(sampler_of("euler"), {5}, None, 6, between=change))


def test_steps_with_fresh_noise_are_not_taken_again():
    counts = Counter()
    walk(sampler_of("ddim"), {5}, SamplerReplay(counts), 6, eta=0.0)
    assert counts["replayed"] == 1
    walk(sampler_of("ddim"), {5}, SamplerReplay(counts), 6, eta=0.5)
    assert counts["replayed"] == 1


def test_what_is_held_is_counted():
    replay = SamplerReplay(Counter())
    walk(sampler_of("euler"), {5}, replay)
    # Of three steps the outputs and the noise estimates, and the newest sample: two float64 numbers each.
    assert replay.bytes == 7 * 16


def test_an_error_while_steps_are_taken_again_leaves_the_scheduler_as_it_was():
    class Failing(FlowMatchEulerDiscreteScheduler):
        calls = 0

        def step(self, *args, **kwargs):
            Failing.calls += 1
            if Failing.calls == 7:
                raise RuntimeError("no memory left")
            return super().step(*args, **kwargs)

    schedule = Failing(shift=3.0)
    schedule.set_timesteps(12)
    with pytest.raises(RuntimeError, match="no memory"):
        walk(schedule, {5}, SamplerReplay(Counter()), 6)
    assert schedule.step_index == 6


def test_how_much_of_a_rise_came_true_is_told_of_what_the_sampler_was_given():
    replay, schedule = SamplerReplay(Counter()), sampler_of("euler")
    walk(schedule, (), replay, 3)
    assert replay.share(Candidate("clean", "log_snr")) is None
    assert 0.0 <= float(replay.share(Candidate("output", "sigma"))) <= 1.0
    levels = [read_schedule(schedule).level(float(time)) for time in schedule.timesteps[1:4]]
    (x0, y0), (x1, y1), (x2, y2) = ((level.log_snr, noise_at(level)) for level in levels)
    rise = (x2 - x1) / (x1 - x0) * (y1 - y0)
    wanted = min(1.0, max(0.0, float(((y2 - y1) * rise).sum() / (rise * rise).sum())))
    assert replay.share(NOISE).tolist() == pytest.approx([wanted], rel=1e-5)
    walk(sampler_of("euler"), (), fresh := SamplerReplay(Counter()), 1)
    assert fresh.share(NOISE) is None


def test_a_step_in_which_only_some_branches_were_served_is_no_truth():
    def walked(mixed: bool) -> tuple[torch.Tensor, Counter]:
        counts = Counter()
        replay, schedule = SamplerReplay(counts), sampler_of("unipc")
        levels = read_schedule(schedule)
        sample = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
        for index, time in enumerate(schedule.timesteps[:8]):
            level = levels.level(float(time))
            place = levels, {"step": float(index), "sigma": level.sigma, "log_snr": level.log_snr}, float(time)
            if index == 5:
                replay.served(*place, NOISE, "cond")
            for branch in ("uncond",) if index == 5 and mixed else () if index == 5 else ("cond", "uncond"):
                replay.computed(*place, branch)
            output = from_quantity("noise", levels.prediction, sample, noise_at(level), level)
            sample = replay.step(schedule, schedule.step, (output, time, sample), {"return_dict": False})[0].double()
        return sample, counts

    # Mixed, or of other branches than the steps around it: nothing can be taken again, and no corrector takes it for
    # curvature.
    for mixed in (True, False):
        _, counts = walked(mixed)
        assert (counts["replayed"], counts["corrector_held"]) == (0, 1)


def test_steps_of_other_branches_are_not_made_one_parabola():
    counts = Counter()
    replay, schedule = SamplerReplay(counts), sampler_of("euler")
    levels = read_schedule(schedule)
    sample = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    # Guidance pauses at steps 3 to 6; step 5 is served.
    for index, time in enumerate(schedule.timesteps[:9]):
        level = levels.level(float(time))
        place = levels, {"step": float(index), "sigma": level.sigma, "log_snr": level.log_snr}, float(time)
        for branch in ("cond",) if 3 <= index <= 6 else ("cond", "uncond"):
            replay.served(*place, NOISE, branch) if index == 5 else replay.computed(*place, branch)
        noise = noise_at(level)
        output = from_quantity("noise", levels.prediction, sample, noise, level) if level.signal else noise
        sample = replay.step(schedule, schedule.step, (output, time, sample), {"return_dict": False})[0].double()
        if index == 6:
            assert counts["replayed"] == 1  # steps 3, 4 and 6 are of the same branches as 5
        if index == 7:
            assert replay.share(NOISE) is None


def test_nothing_is_put_on_a_scheduler():
    model, schedule = tiny_models.wan(), scheduler()
    own = set(vars(schedule))
    with unicp.enable(model, settings(), scheduler=schedule):
        assert set(vars(schedule)) == own
        denoise(model, schedule, stop=5)
        assert not {"step", "set_timesteps"} & set(vars(schedule))
        assert list(inspect.signature(schedule.step).parameters)[-3:] == ["timestep", "sample", "return_dict"]
        theirs = schedule.step = lambda *args, **kwargs: (args[2],)
        denoise(model, schedule)
        assert schedule.step is theirs


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_of_a_scheduler_steps_itself(make):
    model, schedule = tiny_models.wan(), sampler_of("euler")
    with unicp.enable(model, settings(), scheduler=schedule):
        denoise(model, schedule, stop=1)
        other = make(schedule)
        before = schedule.step_index
        other.set_timesteps(12)
        other.step(torch.zeros(1, 1), other.timesteps[0], torch.ones(1, 1))
        assert (other.step_index, schedule.step_index) == (1, before)


@pytest.mark.parametrize(
    "made",
    [
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        None,
    ],
)
def test_samplers_that_add_noise_are_not_repeated(made):
    assert not can_repeat(made)


@pytest.mark.parametrize("name", ["euler", "ddim", "unipc", "dpm"])
def test_samplers_without_noise_are(name):
    assert can_repeat(sampler_of(name)) and can_repeat(scheduler())


def test_a_scheduler_of_another_kind_is_left_alone():
    class Plain:
        step_index = 3

    plain, replay = Plain(), SamplerReplay(Counter())
    replay.computed(None, {"step": 3.0}, 500.0)
    assert replay.step(plain, lambda *args: args, (1, 2), {}) == (1, 2)
    assert vars(plain) == {} and replay.bytes == 0


def test_the_shared_default_list_is_never_written_to():
    first, second = scheduler(), scheduler()
    model = tiny_models.wan()
    with unicp.enable(model, settings(), scheduler=first) as session:
        denoise(model, first)
    assert session.trace.counts["corrector_held"] == 2
    assert first.disable_corrector == [] and second.disable_corrector == []
