"""Plans of runs: solved when a run shows its levels, refused or done without where they do not fit."""

from __future__ import annotations

import pytest

from tests.made_profiles import STEPS, flow_levels, made
from unicp.errors import InputError
from unicp.planning import run_planner
from unicp.planning.plan import Plan
from unicp.planning.profile import FewerSteps
from unicp.planning.run_planner import RunPlanner
from unicp.planning.solver import Solver
from unicp.planning.targets import parse_target
from unicp.policies.guard import Guard

SHAPE = (1, 4, 2, 4, 4)


def planner(target: str = "psnr>=35", caution: float = 0.0, said: list[str] | None = None, **changes) -> RunPlanner:
    return RunPlanner((parse_target(target), made(**changes)), caution, (said if said is not None else []).append)


def test_a_run_gets_the_plan_of_its_levels():
    own = planner()
    assert own.plan is None
    guard = own(flow_levels(), 2, SHAPE)
    assert guard is not None and own.plan is not None
    assert guard.schedule.computed == tuple(own.plan.full_steps)
    other = own(flow_levels(20), 2, SHAPE)
    assert other is not None and other.schedule.steps == 20


def test_each_run_has_a_guard_of_its_own():
    own = planner()
    first, second = own(flow_levels(), 2, SHAPE), own(flow_levels(), 2, SHAPE)
    assert first is not second and first == second


def test_a_run_with_other_guidance_is_left_to_the_online_rule_and_it_is_said_once():
    said: list[str] = []
    own = planner(said=said)
    assert own(flow_levels(), 1, SHAPE) is None and own(flow_levels(), 1, SHAPE) is None
    assert own.plan is None and len(said) == 1 and "2 calls a step and this run makes 1" in said[0]


@pytest.mark.parametrize(
    ("target", "steps", "times"), [("psnr>=35", 12, 1), ("psnr>=35", 20, 0), ("speedup>=1.2", 12, 0)]
)
def test_a_target_of_fidelity_in_fewer_steps_than_the_profile_has_is_said_to_be_less_sure(target, steps, times):
    said: list[str] = []
    own = planner(target, said=said)
    for _ in range(2):
        assert own(flow_levels(steps), 2, SHAPE) is not None
    assert len(said) == times and all("in 12 steps; found: a profile of 16" in line for line in said)


def test_a_run_of_unknown_levels_is_left_to_the_online_rule():
    said: list[str] = []
    assert planner(said=said)(None, 2, SHAPE) is None
    assert "does not tell the noise levels" in said[0]


def test_a_guess_does_not_mind_other_guidance_but_promises_less():
    guess, sure = planner(caution=6.0), planner()
    assert guess(flow_levels(), 1, SHAPE) is not None and sure(flow_levels(), 2, SHAPE) is not None
    assert guess.plan is not None and sure.plan is not None
    assert len(guess.plan.full_steps) > len(sure.plan.full_steps) and sure.plan.seconds is not None


def test_seconds_of_a_shipped_profile_are_not_promised():
    own = RunPlanner((parse_target("seconds<=12"), made()), 0.0, lambda text: None, knows_seconds=False)
    with pytest.raises(InputError, match="calibrate at this size"):
        own(flow_levels(), 2, SHAPE)


def test_seconds_are_for_the_size_of_the_profile():
    own = planner("seconds<=12")
    assert own(flow_levels(), 2, SHAPE) is not None
    with pytest.raises(InputError, match="calibrate at this size"):
        own(flow_levels(), 2, (1, 4, 2, 8, 8))


FEWER = [FewerSteps(prompt, 6, psnr) for prompt, psnr in (("a", 60.0), ("b", 61.0))]


def test_fewer_steps_that_do_better_are_never_passed_over_in_silence():
    said: list[str] = []
    assert planner("psnr>=45", said=said, fewer=FEWER)(flow_levels(), 2, SHAPE) is not None
    assert "num_inference_steps=6" in said[0]
    with pytest.raises(InputError, match="num_inference_steps=6"):
        planner("speedup>=2", fewer=FEWER)(flow_levels(), 2, SHAPE)


def shortened(target: str = "speedup>=2", **changes) -> tuple[RunPlanner, Plan]:
    """One whose run of `flow_levels` is to be set to six steps, and the plan that says so."""
    own = planner(target, fewer=FEWER, **changes)
    plan = own.shorten(flow_levels())
    assert plan is not None and plan.subset is not None and plan.subset.count == 6
    return own, plan


def test_a_shortened_run_is_computed():
    own, plan = shortened()
    course = own(flow_levels(6), 2, SHAPE, 1, plan)
    assert course is not None and course.schedule is not None
    guard = Guard(course.schedule)
    assert [guard.reason(step) for step in range(6)] == ["plan"] * 6
    assert own.plan is not None and own.plan.subset is not None and plan.subset.count == 6
    assert own.shorten(flow_levels(12)) is None


@pytest.mark.parametrize(
    ("target", "branches", "shape", "step", "found"),
    [
        ("speedup>=2", 1, SHAPE, 1, "2 calls a step and this run makes 1"),
        ("speedup>=2", 2, SHAPE, 3, "begins at step 3"),
        ("seconds<=8", 2, (1, 4, 2, 8, 8), 1, "the profile's seconds are of"),
    ],
)
def test_a_shortened_run_that_nothing_was_promised_for_is_stopped(target, branches, shape, step, found):
    with pytest.raises(InputError, match=found):
        own, plan = shortened(target)
        own(flow_levels(6), branches, shape, step, plan)


def test_runs_of_other_models_are_not_shortened_on_a_guess():
    assert planner("psnr>=45", caution=6.0, fewer=FEWER).shorten(flow_levels()) is None


def test_a_plan_with_fewer_steps_shortens_the_runs_it_fits():
    plan = Solver(made(fewer=FEWER), flow_levels()).plan(parse_target("speedup>=2"))
    said: list[str] = []
    own = RunPlanner(plan, 0.0, said.append)
    assert own.shorten(flow_levels()) == plan and own.shorten(flow_levels(20)) is None
    assert own(flow_levels(), 2, SHAPE) is not None and "num_inference_steps=6" in said[0]


def test_a_plan_is_followed_on_its_own_levels_only():
    plan = Solver(made(), flow_levels()).plan(parse_target("psnr>=35"))
    own = RunPlanner(plan, 0.0, lambda text: None)
    guard = own(flow_levels(), 1, SHAPE)
    assert guard is not None and guard.schedule.computed == tuple(plan.full_steps)
    with pytest.raises(InputError, match=f"a plan of {STEPS} steps"):
        own(flow_levels(20), 1, SHAPE)


def test_sessions_solve_once_for_one_profile_target_and_run(monkeypatch):
    solved: list[str] = []
    plan = Solver.plan
    monkeypatch.setattr(Solver, "plan", lambda self, target: solved.append(str(target)) or plan(self, target))
    profile = made()

    def planned(target: str, known=profile, caution: float = 0.0, steps: int = STEPS):
        return RunPlanner((parse_target(target), known), caution, print).solve(flow_levels(steps))

    first = planned("psnr>=35")
    assert planned("psnr>=35") is first and solved == ["psnr>=35"]
    others = [planned("psnr>=34"), planned("psnr>=35", made()), planned("psnr>=35", caution=1.0)]
    others.append(planned("psnr>=35", steps=STEPS - 1))
    assert len(solved) == 5 and all(one is not first for one in others)


def test_only_so_many_solved_plans_are_kept(monkeypatch):
    monkeypatch.setattr(run_planner, "KEPT", 2)
    profile, levels = made(), flow_levels()
    for value in range(30, 36):
        RunPlanner((parse_target(f"psnr>={value}"), profile), 0.0, print).solve(levels)
    assert len(run_planner._SOLVED) == 2
