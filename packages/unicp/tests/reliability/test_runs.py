"""A run is what it is: alone, one of several at once, the first or the hundredth of a session: the same bits."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tiny_models
from tests.reliability.loops import KINDS, Loop, View, flow, turns, unipc
from unicp.errors import InputError
from unicp.session import Session, enable

every_kind = pytest.mark.parametrize("kind", KINDS)


def actions(session: Session, run: int | None = None) -> list[Any]:
    return [
        (entry.step, entry.branch, entry.point, entry.action, entry.reason, entry.width, entry.sigma)
        for entry in session.trace.entries
        if run is None or entry.run == run
    ]


def alone(kind: str, seed: int = 0, steps: int = 9, context: bool = False, make: Any = flow) -> tuple[Any, list[Any]]:
    """The result of a run in a session of its own, and what was done in it."""
    pipe = View(tiny_models.wan(), make())
    with enable(pipe, KINDS[kind]) as session:
        return pipe(seed, steps, context), actions(session)


def skipped(session: Session) -> int:
    return sum(entry.action != "full" for entry in session.trace.entries)


@every_kind
def test_eight_requests_at_once_on_one_transformer_are_each_as_alone(kind):
    expected = [alone(kind, seed, 8 + seed % 3, seed % 2 == 1) for seed in range(8)]
    pipe, found = View(tiny_models.wan(), flow()), dict[int, Any]()
    barrier = threading.Barrier(8)

    def request(seed: int) -> None:
        view = pipe.for_request()
        barrier.wait()
        try:
            found[seed] = view(seed, 8 + seed % 3, seed % 2 == 1)
        except BaseException as error:
            found[seed] = error

    with enable(pipe, KINDS[kind]) as session:
        threads = [threading.Thread(target=request, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert kind == "exact" or skipped(session)
    for seed, (output, _) in enumerate(expected):
        assert isinstance(found[seed], torch.Tensor), found[seed]
        assert torch.equal(found[seed], output), seed
    done = sorted(map(str, (actions(session, run) for run in range(8))))
    assert done == sorted(str(told) for _, told in expected)


@every_kind
def test_the_nth_run_of_a_session_is_the_first_of_a_fresh_one(kind):
    pipe = View(tiny_models.wan(), unipc())
    with enable(pipe, KINDS[kind]) as session:
        for run, (seed, steps) in enumerate([(0, 9), (0, 9), (1, 6), (2, 12), (0, 9)]):
            output, told = alone(kind, seed, steps, make=unipc)
            assert torch.equal(pipe(seed, steps), output), run
            assert actions(session, run) == told


@pytest.mark.parametrize("kind", ["balanced", "fast", "fixed window", "block", "unit, sliced", "exact"])
@given(plan=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9), st.booleans(), st.booleans()), max_size=4))
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
def test_whatever_came_before_a_run_it_is_that_of_a_fresh_session(kind, plan):
    """Runs of other seeds and lengths that end, or are given up, or are dropped by a reset."""
    pipe = View(tiny_models.wan(), flow())
    with enable(pipe, KINDS[kind]) as session:
        for seed, stop, resets, context in plan:
            loop = Loop(pipe.transformer, pipe.scheduler, seed, 9, context)
            for _ in range(stop):
                loop.step()
            if resets:
                session.reset()
        assert torch.equal(pipe(5), fresh(kind))


_fresh: dict[str, Any] = {}


def fresh(kind: str) -> Any:
    if kind not in _fresh:
        _fresh[kind] = alone(kind, 5)[0]
    return _fresh[kind]


@pytest.mark.parametrize("kind", ["exact", "balanced", "fast", "fixed window"])
def test_loops_of_one_thread_that_take_turns_are_each_as_alone(kind):
    model = tiny_models.wan()
    expected = [alone(kind, seed)[0] for seed in range(2)]
    with enable(model, KINDS[kind]) as session:
        loops = [Loop(model, flow(), seed) for seed in range(2)]
        for _ in turns(loops):
            pass
    assert kind == "exact" or skipped(session)
    assert all(torch.equal(loop.sample, output) for loop, output in zip(loops, expected))
    assert {entry.run for entry in session.trace.entries} == {0, 1}


@pytest.mark.parametrize("turn", [1, 3])
@pytest.mark.parametrize("same_text", [False, True])
def test_loops_by_hand_that_take_turns_get_nothing_of_each_other(turn, same_text):
    """No scheduler is seen: what tells them apart is the chain of samples."""

    class ByHand:
        def __init__(self, model: Any, seed: int):
            self.model, self.given = model, tiny_models.inputs("wan", seed=0 if same_text else seed)
            self.sample, self.done = tiny_models.inputs("wan", seed=seed)["hidden_states"], 0

        @torch.no_grad()
        def step(self) -> None:
            timestep = torch.tensor([1000.0 * (1 - self.done / 12)])
            output = self.model(**self.given | {"hidden_states": self.sample, "timestep": timestep})[0]
            self.sample, self.done = self.sample - output / 12, self.done + 1

    def walked(seeds: tuple[int, ...]) -> list[Any]:
        model = tiny_models.wan()
        with enable(model, KINDS["fast"]) as session:
            loops = [ByHand(model, seed) for seed in seeds]
            for _ in range(12 // turn):
                for loop in loops:
                    for _ in range(turn):
                        loop.step()
        assert skipped(session)
        return [loop.sample for loop in loops]

    assert all(map(torch.equal, walked((3, 4)), [*walked((3,)), *walked((4,))]))


def test_a_request_within_another_leaves_it_alone():
    pipe = View(tiny_models.wan(), flow())
    expected, inner = alone("fast", 0)[0], alone("fast", 1, 30)[0]
    with enable(pipe, KINDS["fast"]):
        outer = Loop(pipe.transformer, pipe.for_request().scheduler, 0)
        for _ in range(5):
            outer.step()
        assert torch.equal(pipe.for_request()(1, 30), inner)
        assert torch.equal(outer.run(), expected)


@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize("kind", ["exact", "fast", "stack", "unit"])
def test_the_same_seed_under_another_scheduler_is_another_run(kind, steps):
    """After a run of one step, and after one that was given up there: prompt, noise and timestep are the same again."""
    model = tiny_models.wan()
    expected = alone(kind, 0, 9, make=lambda: flow(7.0))[0]
    with enable(model, KINDS[kind]) as session:
        Loop(model, flow(3.0), 0, steps).step()
        assert torch.equal(Loop(model, flow(7.0), 0, 9).run(), expected)
    assert {entry.run for entry in session.trace.entries} == {0, 1}


@pytest.mark.parametrize("by", ["reset", "disable", "stateful cache"])
@pytest.mark.parametrize("kind", ["exact", "balanced", "stack", "unit, sliced"])
def test_a_reset_from_another_thread_drops_a_run_and_does_not_tear_the_call_under_way(kind, by):
    model: Any = tiny_models.wan()
    plain = Loop(model, flow(), 0).run()
    inside, go, found = threading.Event(), threading.Event(), []

    def stop(*_: Any) -> None:
        if len(found) == 0 and loop.done == 5:
            inside.set()
            go.wait(20)

    loop = Loop(model, flow(), 0)
    handle = model.blocks[1].register_forward_pre_hook(stop)
    session = enable(model, KINDS[kind])
    thread = threading.Thread(target=lambda: found.append(loop.run()))
    thread.start()
    if inside.wait(20):
        {"reset": session.reset, "disable": session.disable, "stateful cache": model._reset_stateful_cache}[by]()
        go.set()
    thread.join(60)
    handle.remove()
    session.disable()
    assert found and torch.isfinite(found[0]).all()
    if kind == "exact":
        assert torch.equal(found[0], plain)
    assert torch.equal(Loop(model, flow(), 0).run(), plain)
    assert "forward" not in vars(model) and "forward" not in vars(model.blocks[0])


def test_two_threads_in_one_pipeline_are_told_so_in_one_line():
    pipe = View(tiny_models.wan(), flow())
    with enable(pipe, KINDS["balanced"]):
        first = Loop(pipe.transformer, pipe.scheduler, 0)
        for _ in range(3):
            first.step()
        other = threading.Thread(target=lambda: Loop(pipe.transformer, pipe.scheduler, 1).step())
        other.start()
        other.join()
        with pytest.raises(InputError, match=r"another thread has set the same FlowMatch.*copy\.copy"):
            first.step()
        # Given up in one thread and called in another, a pipeline is used by one at a time: that is fine.
        assert torch.equal(pipe(0), alone("balanced", 0)[0])


def test_a_process_that_is_forked_in_the_middle_of_a_call_goes_on():
    model: Any = tiny_models.wan()
    inside, go = threading.Event(), threading.Event()

    def stop(*_: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            go.wait(20)

    with enable(model, KINDS["balanced"]) as session:
        handle = model.blocks[0].register_forward_pre_hook(stop)
        thread = threading.Thread(target=lambda: Loop(model, flow(), 0).step())
        thread.start()
        assert inside.wait(20)
        child = os.fork()
        if child == 0:  # torch's own threads are not in the child: only what is ours is called here
            session.reset()
            session._log.count("in the child")
            session.disable()
            os._exit(0)
        for _ in range(200):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            threading.Event().wait(0.05)
        go.set()
        thread.join(20)
        handle.remove()
    assert done and status == 0


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("target", [None, "psnr>=35", "speedup>=1.4"])
def test_copies_of_a_scheduler_are_what_they_are_without_unicp(make, target):
    pipe = View(tiny_models.wan(), unipc())
    with enable(pipe, target=target) if target else enable(pipe):
        Loop(pipe.transformer, pipe.scheduler, 0, 30).step() if target is None else None
        other = make(pipe.scheduler)
        other.set_timesteps(12)
        assert (other.num_inference_steps, len(other.timesteps)) == (12, 12)
        assert len(pipe.scheduler.timesteps) != 12
        assert not {"step", "set_timesteps"} & (set(vars(pipe.scheduler)) | set(vars(other)))
        assert type(other).from_config(other.config).config == other.config


@pytest.mark.parametrize("kind", ["balanced", "fast"])
@pytest.mark.parametrize("warm", [None, 9, 5])
def test_noise_levels_are_those_of_the_scheduler_that_steps_the_run(kind, warm):
    """Of a pipeline made around the same parts with another shift, whatever the enabled one did or whether it lives."""
    base = View(tiny_models.wan(), flow(3.0))
    second = View(base.transformer, flow(7.0))
    expected = alone(kind, 0, 9, make=lambda: flow(7.0))
    session = enable(base, KINDS[kind])
    if warm is not None:
        base(0, warm)
    else:
        del base
    session.trace.clear()
    output = second(0)
    session.disable()
    assert torch.equal(output, expected[0])
    assert actions(session) == expected[1]


def test_a_bare_transformer_learns_of_the_scheduler_of_its_loop():
    model = tiny_models.wan()
    with enable(model, KINDS["balanced"]) as session:
        output = Loop(model, flow(), 0).run()
    assert torch.equal(output, alone("balanced", 0)[0])
    assert all(entry.sigma is not None for entry in session.trace.entries)


def test_a_scheduler_that_steps_unannounced_is_found_out():
    """Set before UniCP was enabled, and not the pipeline's: seen when it first steps."""
    base, own = View(tiny_models.wan(), flow(3.0)), flow(7.0)
    loop = Loop(base.transformer, own, 0)
    own.set_timesteps(9)
    loop.timesteps = list(own.timesteps)
    loop.scheduler = own
    own_set, own.set_timesteps = own.set_timesteps, lambda steps: None
    base.scheduler.set_timesteps(9)
    with enable(base, KINDS["balanced"]) as session:
        loop.run()
    del own.set_timesteps
    assert own_set is not None
    sigmas = {entry.step: entry.sigma for entry in session.trace.entries if entry.run == 1}
    assert sigmas and all(sigma == pytest.approx(float(own.sigmas[step])) for step, sigma in sigmas.items())


@pytest.mark.parametrize("kind", ["balanced", "fast", "fixed window", "block"])
def test_a_second_pass_from_another_seed_is_not_given_the_first_ones_outputs(kind):
    """Video-to-video that begins lower down, after a run that was given up there, over the same scheduler."""
    model = tiny_models.wan()

    def lower(loop: Loop) -> Any:
        loop.scheduler.set_timesteps(12)
        loop.timesteps = list(loop.scheduler.timesteps)[5:]
        loop.scheduler.set_begin_index(5)
        loop.done = 0
        while loop.done < len(loop.timesteps):
            set_anew, loop.scheduler.set_timesteps = loop.scheduler.set_timesteps, lambda steps: None
            kept = loop.timesteps
            loop.step()
            loop.timesteps = kept
            del loop.scheduler.set_timesteps
            assert set_anew is not None
        return loop.sample

    with enable(model, KINDS[kind]):
        expected = lower(Loop(model, flow(), 1, 12))
    with enable(model, KINDS[kind]):
        scheduler = flow()
        given_up = Loop(model, scheduler, 0, 12)
        for _ in range(4):
            given_up.step()
        second = Loop(model, scheduler, 1, 12)
        second.conditions = given_up.conditions
        first_try = Loop(model, flow(), 1, 12)
        first_try.conditions = given_up.conditions
        with_text = lower(second)
    with enable(model, KINDS[kind]):
        assert torch.equal(with_text, lower(first_try))
    assert torch.isfinite(expected).all()
