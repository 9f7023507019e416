"""Plans of runs: solved when a run shows its levels, refused or done without where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.made_profiles import STEPS, euler_shares, flow_levels, made
from unicp.errors import InputError
from unicp.planning import run_planner
from unicp.planning.profile import Fingerprint, Profile
from unicp.planning.run_planner import PlannedRun, RunPlanner
from unicp.planning.solver import Solver
from unicp.planning.targets import Target, parse_target

SHAPE = (1, 4, 2, 4, 4)
PRINT = Fingerprint("Made", "0", "float32", "flow", "MadeScheduler", 2)


def run(steps: int = STEPS, **changes: Any) -> PlannedRun:
    levels = flow_levels(steps)
    return replace(PlannedRun(levels, euler_shares(levels), 2, SHAPE, (0,), True), **changes)


def planner(
    source: str | float = "psnr>=35", profile: Profile | None = None, said: list[str] | None = None, **options: Any
) -> RunPlanner:
    wanted: Target | float = parse_target(source) if isinstance(source, str) else source
    return RunPlanner(wanted, PRINT, profile, (said if said is not None else []).append, **options)


@pytest.mark.parametrize("source", ["psnr>=35", "speedup>=1.5", 0.05])
def test_a_run_gets_the_plan_of_its_levels(source):
    own = planner(source, None if isinstance(source, float) else made())
    assert own.plan is None
    schedule = own(run())
    assert schedule is not None and own.plan is not None
    assert schedule.full == tuple(own.plan.full) and 3 < len(schedule.full) < STEPS
    other = own(run(20))
    assert other is not None and other.steps == 20


def test_a_run_that_began_in_the_middle_goes_on_from_there():
    levels = flow_levels()
    shares = [0.0] * 6 + euler_shares(levels)[6:]
    schedule = planner(0.05)(run(shares=shares, known=(6,)))
    assert schedule is not None and schedule.full[0] == 6


def test_a_run_with_other_guidance_is_planned_without_its_profile_and_it_is_said_once():
    said: list[str] = []
    own = planner(profile=made(), said=said)
    for _ in range(2):
        assert own(run(branches=1)) is not None
    assert own.plan is not None and own.plan.psnr is not None and len(said) == 1
    assert "2 calls a step and this run makes 1" in said[0]
    bare = planner()
    bare(run(branches=1))
    assert own.plan == bare.plan


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"levels": None}, "does not tell the noise levels"),
        ({"shares": None}, "what it makes of each output"),
        # As samplers have it that call the model twice a step.
        ({"levels": [level for level in flow_levels() for _ in range(2)]}, "two steps of this run are at one"),
    ],
)
def test_a_run_that_cannot_be_planned_is_left_to_the_online_rule(changes, found):
    said: list[str] = []
    own = planner(said=said, profile=made())
    assert own(run(**changes)) is None and own(run(**changes)) is None
    assert own.plan is None and len(said) == 1 and found in said[0]
    assert "the target may be missed" in said[0]
    assert planner(0.05, said=said)(run(**changes)) is None and "missed" not in said[-1]


def test_seconds_of_a_shipped_profile_are_not_promised():
    with pytest.raises(InputError, match="at this size on this device"):
        planner("seconds<=12", made(), knows_seconds=False)(run())


def test_seconds_are_for_the_size_of_the_profile():
    own = planner("seconds<=12", made())
    assert own(run()) is not None
    with pytest.raises(InputError, match="at this size on this device"):
        own(run(shape=(1, 4, 2, 8, 8)))


def test_a_plan_is_followed_on_its_own_levels_only():
    own = planner(profile=made())
    own(run())
    assert own.plan is not None
    follower = RunPlanner(own.plan, PRINT, None, lambda text: None)
    schedule = follower(run(shares=None))
    assert schedule is not None and schedule.full == tuple(own.plan.full)
    with pytest.raises(InputError, match=f"a plan of {STEPS} steps"):
        follower(run(20))


def test_sessions_solve_once_for_one_profile_target_and_run(monkeypatch):
    solved: list[str] = []
    plan = Solver.plan
    monkeypatch.setattr(Solver, "plan", lambda self, target: solved.append(str(target)) or plan(self, target))
    profile = made()

    def planned(target: str, known_profile: Profile = profile, **changes: Any):
        own = planner(target, known_profile)
        own(run(**changes))
        return own.plan

    first = planned("psnr>=35")
    assert planned("psnr>=35") is first and solved == ["psnr>=35"]
    others = [planned("psnr>=34"), planned("psnr>=35", made()), planned("psnr>=35", is_replayed=False)]
    others.append(planned("psnr>=35", known=(0, 1)))
    others.append(planned("psnr>=35", shape=(2, 4, 2, 4, 4)))
    assert len(solved) == 6 and all(one is not first for one in others)


def test_only_so_many_solved_plans_are_kept(monkeypatch):
    monkeypatch.setattr(run_planner, "KEPT", 2)
    profile = made()
    for value in range(30, 36):
        planner(f"psnr>={value}", profile)(run())
    assert len(run_planner._SOLVED) == 2
