"""Plain runs of a chosen part of a run's steps."""

from __future__ import annotations

import copy
import inspect
import pickle
from contextlib import contextmanager

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from unicp.errors import InputError
from unicp.sampler import observer
from unicp.sampler.shorten import only_steps, shorten


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
    with only_steps(scheduler := make(), 9, range(9)):
        assert torch.equal(walk(scheduler, 4), plain)


def test_the_levels_are_those_of_the_steps_chosen():
    whole, scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0), FlowMatchEulerDiscreteScheduler(shift=3.0)
    whole.set_timesteps(9)
    with only_steps(scheduler, 9, (0, 1, 5)):
        moved = walk(scheduler, 3)
    levels = [float(whole.sigmas[index]) for index in (0, 1, 5)] + [0.0]
    times = [float(whole.timesteps[index]) / 1000 for index in (0, 1, 5)]
    factor = 1.0
    for time, level, after in zip(times, levels, levels[1:]):
        factor *= 1 + (after - level) * time
    torch.testing.assert_close(moved, factor * torch.tensor([[1.0, -2.0]]))


def test_afterwards_the_scheduler_is_as_it_was():
    scheduler = unipc()
    plain = walk(scheduler, 7)
    with only_steps(scheduler, 7, (0, 3)):
        walk(scheduler, 2)
    assert "set_timesteps" not in vars(scheduler)
    assert torch.equal(walk(scheduler, 7), plain)


def test_a_sampler_of_evenly_spaced_steps_is_refused():
    with pytest.raises(InputError, match="evenly spaced"), only_steps(DDIMScheduler(), 9, (0, 1)):
        pass


# As many steps, and which ones; () = evenly spaced.
Wish = tuple[int, tuple[int, ...]]


class Shortening:
    """Shortens the runs of one scheduler while it is watched."""

    def __init__(self, scheduler, wish: Wish | None, seen: list[Wish]):
        self.scheduler, self.wish, self.seen = scheduler, wish, seen

    def was_set(self, run, scheduler, again, args, kwargs) -> None:
        if (
            scheduler is self.scheduler
            and self.wish is not None
            and shorten(scheduler, *self.wish, again, args, kwargs)
        ):
            self.seen.append(self.wish)


@contextmanager
def shortened(scheduler, wish: Wish | None, seen: list[Wish] | None = None):
    listener = Shortening(scheduler, wish, [] if seen is None else seen)
    observer.watch(listener, [scheduler])
    observer.listen(listener)
    try:
        yield
    finally:
        observer.leave(listener)
        observer.leave(listener)


@pytest.mark.parametrize("make", [FlowMatchEulerDiscreteScheduler, unipc])
def test_a_shortened_run_is_the_one_of_the_steps_chosen(make):
    with only_steps(scheduler := make(), 9, (0, 1, 2, 5)):
        plain = walk(scheduler, 9)
    scheduler, seen = make(), []
    with shortened(scheduler, (4, (0, 1, 2, 5)), seen):
        assert torch.equal(walk(scheduler, 9), plain) and seen == [(4, (0, 1, 2, 5))]
    assert "set_timesteps" not in vars(scheduler) and torch.equal(walk(scheduler, 9), walk(make(), 9))


def test_evenly_spaced_steps_are_the_schedulers_own():
    scheduler, seen = DDIMScheduler(), []
    with shortened(scheduler, (4, ()), seen):
        scheduler.set_timesteps(9, "cpu")
    whole = DDIMScheduler()
    whole.set_timesteps(4)
    assert torch.equal(scheduler.timesteps, whole.timesteps) and len(seen) == 1


@pytest.mark.parametrize(
    ("make", "wish", "given"),
    [
        (DDIMScheduler, (4, (0, 1, 2, 5)), {"num_inference_steps": 9}),
        (FlowMatchEulerDiscreteScheduler, (2, ()), {"sigmas": [0.9, 0.6, 0.3]}),
        (FlowMatchEulerDiscreteScheduler, None, {"num_inference_steps": 9}),
    ],
)
def test_what_cannot_be_shortened_is_left_whole_and_nobody_is_told_it_was(make, wish, given):
    scheduler, whole, seen = make(), make(), []
    with shortened(scheduler, wish, seen):
        scheduler.set_timesteps(**given)
    whole.set_timesteps(**given)
    assert torch.equal(scheduler.timesteps, whole.timesteps) and not seen


def test_a_pipeline_that_names_its_levels_is_shortened_to_chosen_ones():
    scheduler = FlowMatchEulerDiscreteScheduler()
    with shortened(scheduler, (2, (0, 2))):
        scheduler.set_timesteps(sigmas=[0.9, 0.6, 0.3])
    assert scheduler.sigmas.tolist() == pytest.approx([0.9, 0.3, 0.0])


def test_pipelines_still_see_what_the_scheduler_takes():
    scheduler = FlowMatchEulerDiscreteScheduler()
    with shortened(scheduler, None):
        assert "sigmas" in inspect.signature(scheduler.set_timesteps).parameters
    with only_steps(scheduler, 9, (0, 1)):
        assert "sigmas" in inspect.signature(scheduler.set_timesteps).parameters


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copied_scheduler_sets_itself_and_whole_runs(make):
    scheduler = FlowMatchEulerDiscreteScheduler()
    with shortened(scheduler, (2, (0, 5))):
        other = make(scheduler)
        other.set_timesteps(9)
    whole = FlowMatchEulerDiscreteScheduler()
    whole.set_timesteps(9)
    assert torch.equal(other.timesteps, whole.timesteps) and len(other.sigmas) == 10
    assert torch.equal(scheduler.timesteps, FlowMatchEulerDiscreteScheduler().timesteps)


def test_afterwards_the_classes_have_their_own_methods_and_somebody_elses_are_left_alone():
    kind = FlowMatchEulerDiscreteScheduler
    own = kind.set_timesteps, kind.step
    with shortened(kind(), None):
        assert kind.set_timesteps is not own[0] and kind.step is not own[1]
    assert (kind.set_timesteps, kind.step) == own
    try:
        with shortened(kind(), (2, (0, 5))):
            ours = kind.set_timesteps
            kind.set_timesteps = theirs = lambda self, *args, **kwargs: ours(self, *args, **kwargs)
        assert kind.set_timesteps is theirs
        scheduler = kind()
        scheduler.set_timesteps(9)
        assert len(scheduler.timesteps) == 9
    finally:
        kind.set_timesteps = own[0]
