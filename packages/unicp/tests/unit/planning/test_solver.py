"""Plans for targets and tolerances, on a model of known errors."""

from __future__ import annotations

import pytest

from tests.made_profiles import STEPS, euler_shares, flow_levels, made, products
from unicp.errors import InputError
from unicp.planning.plan import OUTPUT
from unicp.planning.profile import Profile, Seconds
from unicp.planning.solver import Solver, check_steps, loss_of_run, plan_of_profile
from unicp.planning.targets import parse_target
from unicp.policies.run_loss import RunLoss


def loss(steps: int = STEPS) -> RunLoss:
    levels = flow_levels(steps)
    return loss_of_run(products(levels[:-1]), "flow", levels[:-1], euler_shares(levels))


def solver(profile: Profile | None = None, **changes) -> Solver:
    return Solver("Made", loss(), (0,), profile, **changes)


def test_a_tolerance_gets_the_fewest_full_steps_that_keep_it():
    own = solver()
    paths = own.loss.best([0])
    for tolerance in (0.01, 0.05, 0.3):
        plan = own.within(tolerance)
        assert own.loss.loss(plan.full) <= tolerance
        fewer = [path.loss for count, path in paths.items() if count < len(plan.full)]
        assert all(one > tolerance for one in fewer)
        assert plan.can_add and plan.forecast == OUTPUT and plan.target == ""
        # Nobody asked for a PSNR, and nobody knows it.
        assert plan.psnr is None


def test_a_tighter_tolerance_never_has_fewer_full_steps():
    counts = [len(solver().within(tolerance).full) for tolerance in (0.001, 0.01, 0.1, 1.0, 10.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_a_fidelity_is_kept_by_95_of_100_clips():
    plan = solver(made()).plan(parse_target("psnr>=30"))
    assert plan.psnr is not None and plan.psnr.low >= 30 and plan.can_add
    cheaper = [path for count, path in loss().best([0]).items() if count < len(plan.full)]
    assert all(solver(made()).line.psnr(path.loss).low < 30 for path in cheaper)


def test_nobody_calibrated_it_the_interval_is_wider():
    known, unknown = (solver(profile).plan(parse_target("psnr>=30")) for profile in (made(), None))
    assert len(unknown.full) > len(known.full)


def test_a_fidelity_that_allows_nothing_is_said():
    plan = solver(made()).plan(parse_target("psnr>=300"))
    assert len(plan.full) == STEPS and "no step can be skipped" in plan.notes[0]


def test_a_speed_gets_as_many_full_steps_as_it_leaves():
    plan = solver(made(seconds=Seconds(full=1.0, plain=1.0, skipped=0.0, rest=0.0))).plan(parse_target("speedup>=2"))
    assert len(plan.full) == STEPS // 2 and plan.speed_up == 2.0 and not plan.can_add
    assert plan.seconds == STEPS // 2


def test_what_unicp_costs_counts():
    costly = Seconds(full=1.2, plain=1.0, skipped=0.1, rest=0.0)
    plan = solver(made(seconds=costly)).plan(parse_target("speedup>=2"))
    assert plan.speed_up == pytest.approx(STEPS / costly.of(STEPS, len(plan.full))) and len(plan.full) < STEPS // 2


def test_without_a_profile_a_speed_is_one_of_steps():
    plan = solver().plan(parse_target("speedup>=2"))
    assert len(plan.full) == STEPS // 2 and plan.speed_up == 2.0 and plan.seconds is None


def test_seconds_are_those_of_the_profile():
    plan = solver(made()).plan(parse_target("seconds<=10"))
    assert plan.seconds is not None and plan.seconds <= 10
    more = made().seconds.of(STEPS, len(plan.full) + 1)
    assert more > 10


@pytest.mark.parametrize(
    ("target", "profile", "holds", "found"),
    [
        ("speedup>=9", None, True, "at most"),
        ("speedup>=9", made(), True, "at most"),
        ("seconds<=0.6", made(), True, "at least"),
        ("seconds<=10", None, True, "no profile of this model"),
        ("seconds<=10", made(), False, "no profile of this model at this size"),
    ],
)
def test_a_target_that_cannot_be_met_says_what_can(target, profile, holds, found):
    with pytest.raises(InputError, match=found):
        solver(profile, knows_seconds=holds).plan(parse_target(target))


@pytest.mark.parametrize("steps", [STEPS, 12, 20, 50])
def test_the_plan_of_a_profile_at_any_length(steps):
    plan = plan_of_profile(made(), parse_target("speedup>=1.5"), steps)
    assert plan.steps == steps and plan.speed_up is not None and plan.speed_up >= 1.5
    if steps == STEPS:
        levels = flow_levels()
        assert plan.sigmas == [level.sigma for level in levels[:-1]]


def test_stretched_shares_sum_to_the_same():
    plan = plan_of_profile(made(), parse_target("speedup>=1.5"), 40)
    assert plan.loss is not None and sum(plan.loss.shares) == pytest.approx(sum(made().shares))


def test_a_run_of_more_steps_than_samplers_have():
    with pytest.raises(InputError, match="up to 1000"):
        check_steps(1001)
