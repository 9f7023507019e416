"""What skipped steps did to a sampler is undone at the next full step, and nothing else of it is touched."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections import Counter, deque
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st

import unicp
from tests import tiny_models
from tests.fake_parts import at
from unicp.context import Forecast, StepContext
from unicp.models.noise import read_schedule
from unicp.sampler.replay import SamplerReplay, can_repeat
from unicp_testbeds.components import build_scheduler


def replaying(schedule, counts: Counter | None = None, on_move=None) -> SamplerReplay:
    counts = Counter() if counts is None else counts
    on_move = on_move or (lambda sample, moved: None)
    return SamplerReplay(read_schedule(schedule), lambda key: counts.update([key]), on_move)


STEPS = 9
OUTPUT = Forecast("output", "log_snr")


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
    # Steps 3, 4 and 6 are skipped, the full ones after them are 5 and 7. Nothing is taken again over sigma.
    return unicp.preset("balanced", full_steps=(0, 1, 2, 5, 7, 8), axis="sigma", **changes)


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
    chosen = unicp.preset("balanced", full_steps=(0, 1, 2, 5, 7, 8), quantity=quantity)
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


def test_skipped_steps_are_taken_again():
    model, schedule = tiny_models.wan(), scheduler()
    # Skipped: 4, then 6 and 7. In full after them: 5 and 8.
    chosen = unicp.preset("balanced", full_steps=(0, 1, 2, 3, 5, 8))
    with unicp.enable(model, chosen, scheduler=schedule) as session:
        denoise(model, schedule)
    assert [e.action for e in session.trace.entries if e.point == "model" and e.branch == "cond"].count("forecast") == 3
    assert list(schedule.corrected) == [1, 2, 3, 4, 4, 5, 6, 7, 6, 7, 8]
    assert session.trace.counts["replayed"] == 2
    assert session.trace.counts["corrector_held"] == 0


def output_at(level) -> torch.Tensor:
    """An output that is a parabola of the log-SNR, whatever the sample."""
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


def place(schedule, index: int, branch: str = "cond") -> StepContext:
    """A step of the scheduler's own."""
    time = float(schedule.timesteps[index])
    return at(index, branch, len(schedule.timesteps), timestep=time, noise_level=read_schedule(schedule).level(time))


def walk(
    schedule, skipped=(), replay=None, until=8, forecast=OUTPUT, between=None, output_of=output_at, **kwargs
) -> torch.Tensor:
    """The sample after steps whose outputs are `output_of`, and lines through the last two where skipped.

    between: (step, sample) -> the sample that the step is given.
    """
    known = []
    sample = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    for index, time in enumerate(schedule.timesteps[: until + 1]):
        step = place(schedule, index)
        sample = sample if between is None else between(index, sample)
        output = output_of(step.noise_level)
        if index in skipped and len(known) == 1:
            output = known[0][1]
        elif index in skipped:
            (x0, y0), (x1, y1) = known[-2:]
            output = y1 + (step.noise_level.log_snr - x1) / (x1 - x0) * (y1 - y0)
        else:
            known.append((step.noise_level.log_snr, output))
        if replay is not None:
            replay.called(step, index in skipped, forecast if index in skipped else None)
        given = (output, time, sample), {"return_dict": False, **kwargs}
        if replay is None:
            sample = schedule.step(*given[0], **given[1])[0].double()
        else:
            sample = replay.step(schedule, schedule.step, *given)[0].double()
    return sample


@pytest.mark.parametrize("skipped", [{4}, {7}, {4, 5, 6, 7}, {6, 7}])
@pytest.mark.parametrize("name", ["euler", "ddim", "unipc", "dpm"])
def test_nothing_of_a_forecast_stays_where_the_truth_lies_on_a_parabola(name, skipped):
    # The full step after the window begins where the plain run has it, and remembers what that remembers.
    until, counts = max(skipped) + 1, Counter()
    plain, left, replayed = heard(name), heard(name), heard(name)
    walk(plain, until=until)
    walk(left, skipped, until=until)
    walk(replayed, skipped, replaying(replayed, counts), until)
    (true, memory), (other, _), (again, mended) = (one.steps[-1] for one in (plain, left, replayed))
    torch.testing.assert_close(again, true, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mended, memory, rtol=1e-4, atol=1e-4)
    assert (other - true).norm() > 20 * (again - true).norm()
    assert (counts["replayed"], counts["corrector_held"]) == (1, 0)


def repeatable() -> dict[str, Any]:
    """All samplers that can be repeated, for all kinds of models that they are made for."""
    trained, kinds = {"beta_schedule": "scaled_linear"}, ("epsilon", "v_prediction", "sample")
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    made: dict[str, Any] = {
        "euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "unipc": UniPCMultistepScheduler.from_config(build_scheduler().config),
        "unipc, order 3": UniPCMultistepScheduler(**flow, solver_order=3),
        "dpm": DPMSolverMultistepScheduler(**flow),
        "dpm, order 3": DPMSolverMultistepScheduler(**flow, solver_order=3),
        "cogvideox": CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    }
    for kind in kinds:
        own = {**trained, "prediction_type": kind}
        made |= {
            f"unipc, {kind}": UniPCMultistepScheduler(**own),
            f"dpm, {kind}": DPMSolverMultistepScheduler(**own),
            f"dpm without ++, {kind}": DPMSolverMultistepScheduler(
                **own, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"
            ),
            f"ddim, {kind}": DDIMScheduler(**own, clip_sample=False),
            f"cogvideox, {kind}": CogVideoXDDIMScheduler(prediction_type=kind),
        }
    return made


REPEATABLE = repeatable()


@pytest.mark.parametrize("name", REPEATABLE)
@given(
    skipped=st.sets(st.integers(3, 10), min_size=1),
    bend=st.floats(0.005, 0.05),
    slope=st.floats(-0.2, 0.2),
)
def test_a_replayed_run_ends_where_the_plain_one_does(name, skipped, bend, slope):
    """Whatever steps are skipped, of a model whose output is a parabola over log-SNR whatever the sample."""

    def output_of(level):
        return torch.tensor([[1.0, -2.0]], dtype=torch.float64) * (
            1.0 + slope * level.log_snr + bend * level.log_snr**2
        )

    def schedule():
        made = copy.deepcopy(REPEATABLE[name])
        made.set_timesteps(12)
        return made

    one, other, counts = schedule(), schedule(), Counter()
    plain = walk(one, until=11, output_of=output_of)
    found = walk(other, skipped, replaying(other, counts), 11, output_of=output_of)
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-6)
    windows = sum(step - 1 not in skipped for step in skipped)
    assert (counts["replayed"], counts["corrector_held"]) == (windows, 0)


@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_the_output_of_the_full_step_is_kept_and_its_new_sample_is_told(name):
    told = []
    schedule = heard(name)
    replay = replaying(schedule, on_move=lambda sample, moved: told.append((sample, moved)))
    walk(schedule, {4, 5}, replay, 6)
    level = read_schedule(schedule).level(float(schedule.timesteps[6]))
    ((sample, moved),) = told
    assert torch.equal(moved, schedule.steps[-1][0]) and not torch.equal(sample, moved)
    assert torch.equal(schedule.outputs[-1], output_at(level))
    assert torch.equal(replay._points[-1].output, output_at(level))


@pytest.mark.parametrize("name", ["euler", "unipc", "dpm", "ddim"])
def test_what_was_skipped_after_the_very_first_step_lies_on_the_line_to_the_next_full_one(name):
    def straight(level):
        return torch.tensor([[1.0, -2.0]], dtype=torch.float64) * (1.0 + 0.1 * level.log_snr)

    plain, replayed, counts = sampler_of(name), sampler_of(name), Counter()
    expected = walk(plain, until=6, output_of=straight)
    found = walk(replayed, {1, 2}, replaying(replayed, counts), 6, output_of=straight)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert counts["replayed"] == 1


@pytest.mark.parametrize("name", ["euler", "unipc"])
@pytest.mark.parametrize("forecast", [Forecast("output", "sigma"), Forecast("output", "step"), None])
def test_what_was_not_forecast_over_log_snr_is_not_taken_again(name, forecast):
    counts, schedule = Counter(), sampler_of(name)
    walk(schedule, {5}, replaying(schedule, counts), 6, forecast)
    assert counts["replayed"] == 0
    assert counts["corrector_held"] == int(name == "unipc")


def test_outputs_forecast_as_they_are_are_taken_again_too():
    # So are those that have a learned variance beside them, of which the sampler is not told.
    counts, schedule = Counter(), sampler_of("ddim")
    walk(schedule, {5}, replaying(schedule, counts), 6, Forecast("output", "log_snr"))
    assert counts["replayed"] == 1


@pytest.mark.parametrize(("step", "replayed"), [(4, 1), (5, 0), (6, 0), (7, 1)])
def test_a_sample_that_was_changed_between_steps_is_not_overwritten(step, replayed):
    # Step 5 is skipped, 6 is full: what begins at step 4, or after the window, has no part in it.
    def change(index, sample):
        return sample + 3.0 if index == step else sample

    counts, schedule = Counter(), sampler_of("euler")
    found = walk(schedule, {5}, replaying(schedule, counts), 6, between=change)
    assert counts["replayed"] == replayed
    if not replayed:
        assert torch.equal(found, walk(sampler_of("euler"), {5}, None, 6, between=change))


@pytest.mark.parametrize(("eta", "replayed"), [(0.0, 1), (0.5, 0)])
def test_steps_with_fresh_noise_are_not_taken_again(eta, replayed):
    counts, schedule = Counter(), sampler_of("ddim")
    walk(schedule, {5}, replaying(schedule, counts), 6, eta=eta)
    assert counts["replayed"] == replayed


def test_what_is_held_is_counted():
    schedule = sampler_of("euler")
    replay = replaying(schedule)
    walk(schedule, {5}, replay)
    # The outputs of three steps, and the newest sample: two float64 numbers each.
    assert replay.bytes == 4 * 16


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
        walk(schedule, {5}, replaying(schedule), 6)
    assert schedule.step_index == 6


def test_how_much_of_a_rise_came_true_is_told_of_what_the_sampler_was_given():
    schedule = sampler_of("euler")
    replay = replaying(schedule)
    walk(schedule, (), replay, 3)
    for quantity in ("clean", "noise"):
        assert replay.guided_share(Forecast(quantity, "log_snr")) is None
    assert 0.0 <= float(replay.guided_share(Forecast("output", "sigma"))) <= 1.0
    levels = [read_schedule(schedule).level(float(time)) for time in schedule.timesteps[1:4]]
    (x0, y0), (x1, y1), (x2, y2) = ((level.log_snr, output_at(level)) for level in levels)
    rise = (x2 - x1) / (x1 - x0) * (y1 - y0)
    wanted = min(1.0, max(0.0, float(((y2 - y1) * rise).sum() / (rise * rise).sum())))
    assert replay.guided_share(OUTPUT).tolist() == pytest.approx([wanted], rel=1e-5)
    schedule = sampler_of("euler")
    walk(schedule, (), fresh := replaying(schedule), 1)
    assert fresh.guided_share(OUTPUT) is None


def stepped(schedule, replay, calls) -> list[torch.Tensor]:
    """The samples that steps make. calls: (step) -> the branches that are skipped in it, and those that are full."""
    sample, made = torch.tensor([[0.5, -1.0]], dtype=torch.float64), []
    for index, time in enumerate(schedule.timesteps[:9]):
        skipped, full = calls(index)
        for branch in (*skipped, *full):
            replay.called(place(schedule, index, branch), branch in skipped, OUTPUT if branch in skipped else None)
        output = output_at(place(schedule, index).noise_level)
        sample = replay.step(schedule, schedule.step, (output, time, sample), {"return_dict": False})[0].double()
        made.append(sample)
    return made


@pytest.mark.parametrize("full", [("uncond",), ()])
def test_a_step_in_which_only_some_branches_were_skipped_is_no_truth(full):
    # Mixed, or of other branches than the steps around it: nothing can be taken again, and no corrector takes it for
    # curvature.
    counts, schedule = Counter(), sampler_of("unipc")
    both = ((), ("cond", "uncond"))
    stepped(schedule, replaying(schedule, counts), lambda step: (("cond",), full) if step == 5 else both)
    assert (counts["replayed"], counts["corrector_held"]) == (0, 1)


def test_steps_of_other_branches_are_not_made_one_parabola():
    counts, schedule = Counter(), sampler_of("euler")
    replay = replaying(schedule, counts)

    def calls(step: int):
        # Guidance pauses at steps 3 to 6; step 5 is skipped.
        if step == 7:
            assert counts["replayed"] == 1  # steps 3, 4 and 6 are of the same branches as 5
        if step == 8:
            assert replay.guided_share(OUTPUT) is None
        branches = ("cond",) if 3 <= step <= 6 else ("cond", "uncond")
        return (branches, ()) if step == 5 else ((), branches)

    assert len(stepped(schedule, replay, calls)) == 9


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

    plain, replay = Plain(), SamplerReplay(None, lambda key: None)
    replay.called(at(3, noise_level=None), False)
    assert replay.step(plain, lambda *args: args, (1, 2), {}) == (1, 2)
    assert vars(plain) == {} and replay.bytes == 0


def test_the_shared_default_list_is_never_written_to():
    first, second = scheduler(), scheduler()
    model = tiny_models.wan()
    with unicp.enable(model, settings(), scheduler=first) as session:
        denoise(model, first)
    assert session.trace.counts["corrector_held"] == 2
    assert first.disable_corrector == [] and second.disable_corrector == []
