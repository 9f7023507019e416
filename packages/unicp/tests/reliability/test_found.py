"""Faults that a second look at the handling of runs found."""

from __future__ import annotations

import copy
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tests import tiny_models
from tests.made_profiles import euler_shares, flow_levels, made
from tests.reliability.loops import KINDS, Loop, flow
from unicp.models.finder import map_model
from unicp.numerics.digests import digest
from unicp.planning.run_planner import PlannedRun, RunPlanner
from unicp.planning.targets import parse_target
from unicp.runtime.model_call import CallReader
from unicp.sampler import observer
from unicp.session import enable


@pytest.mark.parametrize("kind", ["balanced", "fast", "fixed window", "reuse", "block"])
def test_a_run_left_after_one_short_step_is_not_gone_on_with_by_one_of_the_same_noise(kind):
    """The first of 50 steps moves a sample by less than half precision does."""

    def walked(model: Any, seed: int) -> Any:
        return Loop(model, flow(5.0), seed, 50)

    model = tiny_models.wan()
    with enable(model, KINDS[kind]):
        expected = walked(model, 0).run()
    with enable(model, KINDS[kind]) as session:
        walked(model, 0).step()
        assert torch.equal(walked(model, 0).run(), expected)
    assert {entry.run for entry in session.trace.entries} == {0, 1}


def test_a_copy_that_looks_a_step_ahead_is_not_taken_for_the_scheduler_of_the_run():
    class Looking(Loop):
        @torch.no_grad()
        def step(self) -> None:
            if self.done:
                timestep = self.timesteps[self.done]
                copy.deepcopy(self.scheduler).step(self.sample, timestep, self.sample)
            super().step()

    expected, runs = [], []
    for kind in (Loop, Looking):
        model = tiny_models.wan()
        with enable(model, KINDS["fast"]) as session:
            expected.append(kind(model, flow(), 0).run())
        runs.append(len({entry.run for entry in session.trace.entries}))
    assert torch.equal(*expected) and runs == [1, 1]


def test_two_threads_under_one_target_follow_a_plan_of_their_own():
    profile = made()
    planner = RunPlanner(parse_target("psnr>=35"), profile.fingerprint, profile, lambda text: None)
    runs = {}
    for steps in (12, 20):
        levels = flow_levels(steps)
        runs[steps] = PlannedRun(levels, euler_shares(levels), 2, (1, 4, 2, 4, 4), (0,), True)
    wrong: list[int] = []

    def work(steps: int) -> None:
        for _ in range(300):
            schedule = planner(runs[steps])
            if schedule is None or schedule.steps != steps:
                wrong.append(steps)

    planner(runs[12]), planner(runs[20])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(steps,)) for steps in (12, 20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_a_session_may_be_disabled_while_a_lock_of_ours_is_held():
    """As the garbage collector and signals may do: a lock that cannot be entered again would wait for ever."""
    session = enable(tiny_models.wan(), KINDS["fast"])
    done: list[bool] = []

    def work() -> None:
        with observer._lock, session._log._lock:
            session.disable()
            session._tell("told")
        done.append(True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert done


def test_where_a_scheduler_class_cannot_be_watched_nothing_is_left_on():
    class Refusing(type):
        def __setattr__(cls, name: str, value: object) -> None:
            raise TypeError("no attributes here")

    class Sealed(metaclass=Refusing):
        def set_timesteps(self, steps: int) -> None:
            pass

    model, own = tiny_models.wan(), FlowMatchEulerDiscreteScheduler.step
    with pytest.raises(TypeError, match="no attributes"):
        enable(model, KINDS["fast"], scheduler=Sealed())
    assert FlowMatchEulerDiscreteScheduler.step is own and "forward" not in vars(model)
    with enable(model, KINDS["fast"]):
        pass


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (None, {"scale": 0.0}),
        ({"scale": np.float32(1)}, {"scale": np.float32(0.5)}),
        ({"mask": np.zeros(3)}, {"mask": np.ones(3)}),
    ],
)
def test_arguments_that_are_no_tensors_are_told_apart(one, other):
    model = tiny_models.wan()
    reader = CallReader(map_model(model))
    first, second, again = (
        reader.read((), tiny_models.inputs("wan") | {"attention_kwargs": value}) for value in (one, other, one)
    )
    assert first.kind != second.kind and first.kind == again.kind


def test_conditions_of_unusual_tensors_are_known_again_or_taken_for_changed():
    conjugated = torch.randn(5, dtype=torch.complex64).conj()
    assert digest(conjugated) == digest(conjugated.resolve_conj())
    sparse = torch.eye(3).to_sparse()
    assert digest(sparse) != digest(sparse)


def test_rows_of_a_batch_at_different_levels_are_computed():
    model = tiny_models.wan()
    scheduler = flow()
    with enable(model, KINDS["fast"], scheduler=scheduler) as session, torch.no_grad():
        scheduler.set_timesteps(12)
        given = tiny_models.inputs("wan", batch=2)
        for step in range(7):
            timestep = torch.stack([scheduler.timesteps[step], scheduler.timesteps[step + 5]])
            model(**given | {"timestep": timestep})
    assert {entry.action for entry in session.trace.entries} == {"full"}
