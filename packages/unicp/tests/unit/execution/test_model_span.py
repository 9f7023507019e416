"""The whole model's output as one span, on models whose answers are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from tests.fake_models import FakeTransformer, flow_scheduler, noise
from torch import Tensor
from unicp.control.controller import Controller
from unicp.control.windows import Candidate
from unicp.execution.model_span import ModelSpan

from unicp.models.noise import read_schedule
from unicp.records import Moment
from unicp.runtime.store import OutputStore
from unicp.session import enable
from unicp.settings import Settings

STEPS = 10
SHAPE = (2, 3, 4)


def settings(**changes: Any) -> Settings:
    plain: dict[str, Any] = {"tolerance": 1.0, "weighting": "uniform", "max_window": 2, "max_reach": 9, "last": 0}
    return Settings(**(plain | changes))


class Loop:
    """Calls a span the way the runner does; `model(sample, sigma)` is the truth."""

    def __init__(self, set_to: Settings, model: Any, scheduler: Any = None):
        self.scheduler: Any = flow_scheduler(STEPS) if scheduler is None else scheduler
        self.schedule = read_schedule(self.scheduler)
        self.store = OutputStore(set_to)
        self.span = ModelSpan(set_to, Controller(set_to), self.store, self.schedule)
        self.model = model
        self.served: list[tuple[int, Tensor, Tensor]] = []
        self.measured: list[dict[Candidate, list[float]]] = []

    def moment(self, step: int, branch: str = "cond") -> Moment:
        timestep = float(self.scheduler.timesteps[step])
        level = None if self.schedule is None else self.schedule.level(timestep)
        steps = len(self.scheduler.timesteps)
        return Moment(0, step, branch, timestep, SHAPE[0], None if level is None else level.sigma, steps)

    def call(self, step: int, sample: Tensor, branch: str = "cond") -> Tensor:
        moment = self.moment(step, branch)
        true = self.model(sample, moment.sigma)
        answer = self.span.decide(moment, (sample,))
        if answer.outputs is not None:
            self.served.append((step, answer.outputs[0], true))
            return answer.outputs[0]
        errors = self.span.computed(moment, (sample,), (true,))
        if errors is not None:
            self.measured.append(errors)
        return true


def samples(start: Tensor) -> list[Tensor]:
    """A path that bends, so that nothing is exact by accident."""
    drift, bend = noise(11, *SHAPE), noise(12, *SHAPE)
    return [start + 0.03 * step * drift + 0.02 * math.sin(step) * bend for step in range(STEPS)]


def test_an_output_linear_in_the_noise_level_is_forecast_exactly():
    a, b = noise(1, *SHAPE), noise(2, *SHAPE)
    loop = Loop(settings(quantities=("output",), abscissas=("sigma",)), lambda x, sigma: a + b * sigma)
    for step, sample in enumerate(samples(noise(3, *SHAPE))):
        loop.call(step, sample)
    assert [step for step, *_ in loop.served] == [3, 4, 6, 7, 9]
    for _, output, true in loop.served:
        torch.testing.assert_close(output, true, rtol=0, atol=1e-5)
    assert all(max(errors[Candidate("output", "sigma")]) < 1e-5 for errors in loop.measured)


@pytest.mark.parametrize("order", [0, 1])
def test_a_constant_noise_estimate_is_served_exactly_through_the_noise(order):
    eps = noise(1, *SHAPE)

    def velocity(sample: Tensor, sigma: float) -> Tensor:
        # noise = sample + (1 - sigma) * velocity; at noise level 1 the sample is the noise.
        return (eps - sample) / (1 - sigma) if sigma < 1 else torch.zeros_like(sample)

    loop = Loop(settings(order=order, quantities=("noise",), abscissas=("sigma",)), velocity)
    for step, sample in enumerate(samples(eps)):
        loop.call(step, sample)
    assert len(loop.served) >= 5
    for _, output, true in loop.served:
        torch.testing.assert_close(output, true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [0, 1])
def test_a_constant_clean_estimate_is_served_exactly_through_the_clean(order):
    clean = noise(1, *SHAPE)
    loop = Loop(settings(order=order, quantities=("clean",)), lambda x, sigma: (x - clean) / sigma)
    for step, sample in enumerate(samples(noise(3, *SHAPE))):
        loop.call(step, sample)
    assert len(loop.served) >= 5
    for _, output, true in loop.served:
        torch.testing.assert_close(output, true, rtol=1e-4, atol=1e-4)


def test_the_quantity_that_would_have_served_best_is_the_one_that_serves():
    clean = noise(1, *SHAPE)
    loop = Loop(settings(predictor="reuse", tolerance=1e-3), lambda x, sigma: (x - clean) / sigma)
    for step, sample in enumerate(samples(noise(3, *SHAPE))):
        answer = loop.span.decide(loop.moment(step), (sample,))
        if answer.candidate is not None:
            assert answer.candidate.quantity == "clean"
            loop.served.append((step, sample, sample))
        else:
            loop.span.computed(loop.moment(step), (sample,), (loop.model(sample, loop.moment(step).sigma),))
    assert loop.served


def test_reuse_gives_back_the_stored_output_bit_for_bit():
    loop = Loop(settings(predictor="reuse", quantities=("output",), tolerance=1e9), lambda x, sigma: x * sigma)
    last = None
    for step, sample in enumerate(samples(noise(3, *SHAPE))):
        before = len(loop.served)
        output = loop.call(step, sample)
        if len(loop.served) > before:
            assert last is not None and torch.equal(output, last)
        else:
            last = output
    assert loop.served


def test_branches_of_a_step_are_served_or_computed_together_and_from_their_own_outputs():
    loop = Loop(settings(predictor="reuse", quantities=("output",), tolerance=1e9), lambda x, sigma: x)
    constants = {"cond": torch.ones(SHAPE), "uncond": -torch.ones(SHAPE)}
    for step in range(STEPS):
        before = len(loop.served)
        for branch, value in constants.items():
            assert torch.equal(loop.call(step, value * (1 + 0.01 * step), branch).sign(), value)
        assert len(loop.served) - before in (0, 2)
    assert loop.served


def test_a_branch_whose_output_jumps_makes_both_compute():
    set_to = settings(predictor="reuse", quantities=("output",), tolerance=0.05, max_window=1)
    loop = Loop(set_to, lambda x, sigma: x)
    wild = [noise(seed, *SHAPE) for seed in range(STEPS)]
    for step in range(STEPS):
        loop.call(step, torch.ones(SHAPE), "cond")
        loop.call(step, wild[step], "uncond")
    assert not loop.served


def test_several_outputs_are_forecast_each_with_its_own_sample_and_the_worst_error_counts():
    scheduler, set_to = flow_scheduler(STEPS), settings(tolerance=1e9)
    schedule = read_schedule(scheduler)
    span = ModelSpan(set_to, Controller(set_to), OutputStore(set_to), schedule)
    eps, audio_eps, odd = noise(1, *SHAPE), noise(2, SHAPE[0], 5), noise(3, SHAPE[0], 7)
    served, errors = 0, []
    for step, timestep in enumerate(scheduler.timesteps.tolist()):
        assert schedule is not None and (level := schedule.level(timestep)) is not None
        moment = Moment(0, step, "cond", timestep, SHAPE[0], level.sigma, STEPS)
        video, audio = eps * level.sigma + 0.1 * step, audio_eps * level.sigma - 0.2 * step
        # The noise estimate of both is a constant, and the third output, which has no sample, is one too.
        true = tuple((e - x) / max(1 - level.sigma, 1e-3) for e, x in ((eps, video), (audio_eps, audio)))
        answer = span.decide(moment, (video, audio))
        if answer.outputs is None:
            errors.append(span.computed(moment, (video, audio), (*true, odd)))
            continue
        served += 1
        assert [out.shape for out in answer.outputs] == [out.shape for out in (*true, odd)]
        for out, expected in zip(answer.outputs, (*true, odd), strict=True):
            torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
    assert served
    bad = ModelSpan(set_to, Controller(set_to), OutputStore(set_to), None)
    for step in range(4):
        moment = Moment(0, step, "cond", 900.0 - step, 1)
        bad.decide(moment, (torch.ones(1, 3), torch.ones(1, 3)))
        # The first output is as forecast, the second never is.
        found = bad.computed(moment, (torch.ones(1, 3),) * 2, (torch.ones(1, 3), noise(step, 1, 3)))
    assert found is not None and all(row[0] > 0.1 for row in found.values())


def test_without_a_schedule_only_the_output_is_forecast():
    set_to = settings()
    span = ModelSpan(set_to, Controller(set_to), OutputStore(set_to), None)
    moment = Moment(0, 0, "cond", 900.0, 1)
    span.decide(moment, (torch.zeros(1, 3),))
    errors = {candidate.quantity for candidate in span.branches["cond"].window.candidates}
    assert errors == {"output"}
    assert span.position(moment) == {"step": 0.0, "sigma": 0.9}


def test_a_candidate_is_not_served_where_it_cannot_be_turned_back_into_an_output():
    # The clean estimate says nothing about the output at noise level 0.001: an error in it grows 1000-fold.
    scheduler = flow_scheduler(STEPS)
    scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.6, 0.4, 0.2, 0.001])
    clean, wobble = noise(1, *SHAPE), noise(2, *SHAPE)
    model = lambda x, sigma: (x - clean - 0.01 * sigma * wobble) / max(sigma, 0.1)  # noqa: E731
    loop = Loop(settings(predictor="reuse", quantities=("clean",), tolerance=10.0), model, scheduler)
    for step in range(6):
        loop.call(step, noise(3, *SHAPE) * (1 + 0.01 * step))
    # The window of two would be open again at the last step.
    assert [step for step, *_ in loop.served] == [2, 3]


def test_a_quantity_that_does_not_exist_at_a_stored_level_is_passed_over():
    # Zero terminal SNR: at the first step there is no clean estimate of an epsilon model.
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="epsilon")
    scheduler.set_timesteps(STEPS)
    loop = Loop(settings(predictor="line"), lambda x, sigma: x, scheduler)
    for step in range(STEPS):
        loop.call(step, samples(noise(3, *SHAPE))[step])
    assert loop.served


def run(transformer: FakeTransformer, session_settings: Settings, bad_step: int | None, steps: int = 14) -> Any:
    """A loop whose model puts out NaN at one step only; the sample goes on as if nothing had been wrong."""
    levels = [1.0 - step / steps for step in range(steps)]

    def answer(sample: Tensor, timestep: Tensor, hidden: Tensor) -> Tensor:
        sigma = float(timestep) / 1000
        is_bad = bad_step is not None and abs(sigma - levels[bad_step]) < 1e-6
        return torch.full_like(sample, math.nan) if is_bad else torch.ones_like(sample) * sigma

    transformer.answer = answer
    outputs = []
    with enable(transformer, session_settings, scheduler=flow_scheduler(steps)) as session:
        for step, sigma in enumerate(levels):
            sample = noise(3, 1, 4, 2) + 0.01 * step
            outputs.append(transformer(sample, torch.tensor([1000 * sigma]), noise(4, 1, 2, 2), return_dict=False)[0])
    return outputs, session.trace


@pytest.mark.parametrize("span", ["model", "stack", "block", "unit"])
def test_nan_at_one_step_is_never_served_is_counted_warned_of_once_and_gets_over(span):
    set_to = settings(level=span, quantities=("output",), store_factor=64.0, error_scale="own")
    transformer = FakeTransformer()
    if span != "model":
        # The NaN arises inside the block, where the narrower spans can see it.
        block = transformer.blocks[0]
        plain, calls = type(block).forward, iter(range(1000))

        def bad(hidden_states: Tensor, encoder_hidden_states: Tensor | None = None) -> Tensor:
            return plain(block, hidden_states * (math.nan if next(calls) == 2 else 1.0), encoder_hidden_states)

        block.forward = bad
    outputs, trace = run(transformer, set_to, 2 if span == "model" else None)
    inner = [entry for entry in trace.entries if entry.reason != "outside spans"]
    assert trace.counts["non_finite"] >= 1
    assert len([warning for warning in trace.warnings if "NaN" in warning]) == 1
    finite = [bool(torch.isfinite(output).all()) for output in outputs]
    assert finite.count(False) == (1 if span == "model" else 0)
    assert not any(entry.action == "forecast" for entry in inner if entry.step in (2, 3))
    assert any(entry.action == "forecast" for entry in inner if entry.step > 5)


def test_a_window_on_finite_outputs_warns_of_nothing():
    _, trace = run(FakeTransformer(), settings(quantities=("output",)), None)
    assert trace.warnings == []
    assert any(entry.action == "forecast" for entry in trace.entries)


def test_a_sample_that_is_not_finite_is_computed():
    loop = Loop(settings(quantities=("output",)), lambda x, sigma: x)
    path = samples(noise(3, *SHAPE))
    path[3] = torch.full(SHAPE, math.nan)
    for step in range(4):
        loop.call(step, path[step])
    assert not loop.served


@pytest.mark.parametrize("span", ["model", "stack", "block", "unit"])
def test_one_infinity_where_no_error_is_measured_is_found_before_serving(span):
    # Errors are measured on a sample of the values; the second of many is never among them.
    set_to = settings(level=span, roles=("feed_forward",), predictor="reuse", quantities=("output",), store_factor=64.0)
    transformer = FakeTransformer()
    with enable(transformer, set_to) as session:
        for step in range(7):
            sample = 1 + 0.01 * step + torch.zeros(1, 60, 200)
            if step == 1:
                sample[0, 0, 1] = math.inf
            output = transformer(sample, torch.tensor([1000.0 - step]), return_dict=False)[0]
            assert bool(torch.isfinite(output).all()) is (step != 1)
    entries = [entry for entry in session.trace.entries if entry.reason != "outside spans"]
    assert [entry.action for entry in entries if entry.step == 2] == ["full"]
    assert [entry.reason for entry in entries if entry.step == 2] == ["non-finite"]
    assert session.trace.counts["non_finite"] >= 1
    assert any(entry.action == "reuse" for entry in entries if entry.step > 2)


@pytest.mark.parametrize("budget", [0, 100, 400, 10**6])
def test_the_guidance_difference_keeps_to_the_budget_too(budget):
    loop_settings = settings(guidance=True, store_bytes=budget, tolerance=0.5)
    transformer = FakeTransformer(lambda sample, timestep, hidden: sample * float(timestep) / 1000)
    with enable(transformer, loop_settings, scheduler=flow_scheduler(STEPS)) as session:
        for step in range(STEPS):
            for seed in (0, 1):
                sample = noise(3, 1, 4, 2) + 0.01 * step
                timestep = torch.tensor([1000 * (1.0 - step / STEPS)])
                output = transformer(sample, timestep, noise(seed, 1, 2, 2), return_dict=False)[0]
                assert torch.isfinite(output).all()
        (run,) = session._runners[0]._here.runs
        assert run.store.peak_bytes <= budget
    served = sum(entry.action == "forecast" for entry in session.trace.entries)
    assert served == 0 if budget == 0 else served > 0 or budget < 10**6


def test_forecasts_go_on_from_where_the_sampler_has_moved_the_sample_to():
    # What the model says is that of a standard normal, so what it would have said is known: the two spans agree.
    def model(sample: Tensor, sigma: float) -> Tensor:
        clean = (1 - sigma) / ((1 - sigma) ** 2 + sigma**2) * sample
        return (sample - clean) / sigma

    path = samples(noise(3, *SHAPE))
    moved, there = Loop(settings(), model), Loop(settings(), model)
    for step in range(3):
        other = path[step] + (noise(9, *SHAPE) if step == 2 else 0.0)
        for branch in ("cond", "uncond"):
            moved.call(step, path[step], branch)
            there.call(step, other, branch)
    moved.span.move(path[2], other)
    for branch in ("cond", "uncond"):
        for one, two in zip(moved.store.get(("model", branch)), there.store.get(("model", branch))):
            torch.testing.assert_close(one, two)


def test_a_sample_of_another_shape_moves_nothing():
    loop = Loop(settings(), lambda sample, sigma: sample * sigma)
    for step in range(2):
        loop.call(step, noise(step, *SHAPE))
    before = [tensor.clone() for tensor in loop.store.get(("model", "cond"))[-1]]
    for shape in ((2, 3, 5), (3, 3, 4)):
        loop.span.move(noise(5, *shape), noise(6, *shape))
    assert all(torch.equal(one, two) for one, two in zip(before, loop.store.get(("model", "cond"))[-1]))
