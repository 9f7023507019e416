"""Targets to plans: the cheapest that keeps the promise, and what is said where there is none."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from tests.made_profiles import STEPS, flow_levels, made
from unicp.errors import InputError
from unicp.planning.choices import FORECASTS, best_choices
from unicp.planning.curves import levels_of
from unicp.planning.fidelity import fit_line
from unicp.planning.profile import FewerSteps, OnlineTrial, Recording, Seconds
from unicp.planning.solver import Solver, check_feasible, plan_to_try
from unicp.planning.targets import parse_target
from unicp.policies.step_paths import path_loss


def solver(**changes) -> Solver:
    return Solver(made(**changes), flow_levels())


def test_every_budget_is_solved_and_more_computed_steps_never_cost_more():
    choices = best_choices(made(), flow_levels())
    assert sorted(choices)[-1] == STEPS and choices[STEPS].change == 0
    changes = [choices[count].change for count in sorted(choices)]
    assert changes == sorted(changes, reverse=True)


def test_the_best_schedule_of_all_is_found():
    steps = 10
    profile, levels = made(steps), flow_levels(steps)
    choices = best_choices(profile, levels, forecasts=FORECASTS[:1])
    count = min(choices) + 2
    schedule = choices[count].schedule(0.0, steps)
    possible = [(0, 1, 2, *rest) for rest in itertools.combinations(range(3, steps), count - 3)]
    best = min(path_loss(computed, steps, schedule.change, schedule.rule) for computed in possible)
    assert choices[count].path.loss == pytest.approx(best)


def test_the_cheapest_plan_whose_lower_bound_meets_the_psnr():
    made_solver = solver()
    plan = made_solver.plan(parse_target("psnr>=35"))
    line, choices = fit_line(made_solver.profile.trials), best_choices(made_solver.profile, made_solver.levels)
    count = len(plan.full_steps)
    assert line.psnr(choices[count].change).low >= 35 > line.psnr(choices[count - 1].change).low
    assert plan.psnr.low == pytest.approx(35) and plan.followed.allowance == pytest.approx(line.change(35) ** 2)
    assert plan.course.schedule.allowance >= choices[count].path.loss


def test_higher_quality_costs_more():
    counts = [len(solver().plan(parse_target(f"psnr>={psnr}")).full_steps) for psnr in (20, 30, 40, 50, 60)]
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_a_quality_that_nothing_served_has_is_computed_and_said():
    plan = solver().plan(parse_target("psnr>=200"))
    assert (
        plan.full_steps == list(range(STEPS))
        and plan.psnr is not None
        and plan.psnr.mean == math.inf
        and plan.speed_up == 1
    )
    assert plan.notes == ["no step can be skipped at this quality: nothing is saved"]


def test_caution_computes_more():
    profile = made()
    target = parse_target("psnr>=35")
    assert len(Solver(profile, flow_levels(), 12.0).plan(target).full_steps) > len(
        Solver(profile, flow_levels()).plan(target).full_steps
    )


def test_a_speed_is_met_with_as_many_computed_steps_as_it_leaves():
    made_solver = solver()
    plan = made_solver.plan(parse_target("speedup>=1.5"))
    count = len(plan.full_steps)
    assert made_solver.speed_up(count) >= 1.5 > made_solver.speed_up(count + 1)
    assert plan.speed_up == made_solver.speed_up(count) and plan.followed.most == count
    # 0.5 s for the rest, 1 s a computed step, 0.05 s a served one.
    assert plan.seconds == pytest.approx(0.5 + count + 0.05 * (STEPS - count))
    assert plan.psnr is not None and plan.psnr.low < plan.psnr.mean


def test_seconds_are_met():
    made_solver = solver()
    plan = made_solver.plan(parse_target("seconds<=12"))
    assert plan.seconds is not None and plan.seconds <= 12 < made_solver.seconds(len(plan.full_steps) + 1)


@pytest.mark.parametrize("target", ["speedup>=1.5", "seconds<=12"])
def test_what_unicp_adds_to_a_computed_step_is_counted(target):
    own = solver(seconds=Seconds(1.0, 0.05, 0.5, added=0.25))
    count = len(own.plan(parse_target(target)).full_steps)
    assert own.seconds(4) == pytest.approx(0.5 + 4 * 1.25 + 0.05 * (STEPS - 4))

    def is_met(computed: int) -> bool:
        return (0.5 + STEPS) / own.seconds(computed) >= 1.5 if target == "speedup>=1.5" else own.seconds(computed) <= 12

    assert is_met(count) and not is_met(count + 1)


def test_seconds_of_another_size_are_not_promised():
    other = Solver(made(), flow_levels(), knows_seconds=False)
    with pytest.raises(InputError, match="calibrate at this size"):
        other.plan(parse_target("seconds<=12"))
    assert other.plan(parse_target("speedup>=1.5")).seconds is None


@pytest.mark.parametrize("target", ["speedup>=9", "seconds<=1"])
@pytest.mark.parametrize("rest", [0.5, 3.7123, 1234567.0])
@pytest.mark.parametrize("fewer", [[], [FewerSteps("a", 1, 20.0), FewerSteps("b", 1, 21.0)]])
def test_an_infeasible_target_says_what_is_feasible(target, rest, fewer):
    own = solver(seconds=Seconds(1.0, 0.05, rest), fewer=fewer)
    value = "99" if target.startswith("speedup") else "0.5"
    with pytest.raises(InputError) as caught:
        own.plan(parse_target(target[:9] + value))
    said = caught.value.do.removeprefix("ask for ")
    if rest < 1e6 or target.startswith("seconds"):
        assert said in caught.value.found
    own.plan(parse_target(said))


@pytest.mark.parametrize("steps", [2, 3])
def test_a_speed_below_that_of_the_plain_run_is_never_advised(steps):
    own = Solver(made(seconds=Seconds(1.0, 0.05, 0.5, added=0.1)), flow_levels(steps))
    with pytest.raises(InputError) as caught:
        own.plan(parse_target("speedup>=1.3"))
    assert caught.value.found == f"nothing is faster than the plain run of {steps} steps"
    assert "ask for" not in caught.value.do


@pytest.mark.parametrize("target", ["speedup>=10", "speedup>=100", "seconds<=1.49"])
def test_what_no_run_of_a_profile_can_meet_is_refused_by_the_profile_alone(target):
    profile = made(seconds=Seconds(1.0, 0.0, 0.5))
    with pytest.raises(InputError) as caught:
        check_feasible(profile, parse_target(target))
    said = parse_target(caught.value.do.removeprefix("ask for "))
    check_feasible(profile, said)
    Solver(profile, profile.levels).plan(said)


@pytest.mark.parametrize("target", ["speedup>=8.9", "seconds<=1.5", "psnr>=1000", "speedup>=1"])
def test_what_some_run_may_have_is_not_refused_by_the_profile_alone(target):
    # With nothing for the rest and for served steps: nine steps for one, in the limit of long runs.
    check_feasible(made(seconds=Seconds(1.0, 0.0, 0.5 if "seconds" in target else 0.0)), parse_target(target))


def test_plain_runs_of_few_steps_make_a_speed_feasible_that_plans_have_not():
    fewer = [FewerSteps(prompt, 1, 12.0) for prompt in "ab"]
    profile, target = made(seconds=Seconds(1.0, 0.5, 0.0), fewer=fewer), parse_target("speedup>=16")
    check_feasible(profile, target)
    assert Solver(profile, profile.levels).plan(target).subset.count == 1
    with pytest.raises(InputError):  # they are of the model of the profile
        check_feasible(profile, target, caution=6.0)


def test_seconds_of_another_device_are_refused_by_the_profile_alone():
    with pytest.raises(InputError, match="calibrate at this size"):
        check_feasible(made(), parse_target("seconds<=12"), knows_seconds=False)


def test_runs_beyond_the_longest_that_is_planned_are_refused():
    with pytest.raises(InputError, match="up to 1000 steps"):
        Solver(made(), [flow_levels()[0]] * 1002).plan(parse_target("psnr>=30"))


def test_fewer_steps_are_taken_where_they_were_measured_to_do_better():
    good = [FewerSteps(prompt, 6, psnr) for prompt, psnr in (("a", 60.0), ("b", 61.0))]
    plan = solver(fewer=good).plan(parse_target("psnr>=45"))
    assert (
        plan.subset is not None
        and plan.subset.count == 6
        and plan.psnr is not None
        and plan.psnr.mean == 60.5
        and "the plain pipeline with 6 steps" in plan.text()
    )
    fast = solver(fewer=good).plan(parse_target("speedup>=2"))
    assert fast.subset is not None and fast.subset.count == 6
    bad = [FewerSteps(prompt, 6, psnr) for prompt, psnr in (("a", 10.0), ("b", 11.0))]
    assert solver(fewer=bad).plan(parse_target("psnr>=45")).subset is None
    assert solver(fewer=bad).plan(parse_target("speedup>=2")).subset is None


@pytest.mark.parametrize(("low", "served", "taken"), [(35.0, 0.01, False), (35.0, 0.05, True), (50.0, 0.01, True)])
def test_of_two_that_keep_a_target_the_one_that_promises_less_must_be_clearly_faster(low, served, taken):
    # The largest tolerance tried keeps more than the target, with 5 steps: plain ones are 2 % faster, or 10.
    trials = ((0.1, 9, 60.0), (1.0, 6, 50.0), (2.0, 5, 46.0))
    online = [OnlineTrial(prompt, *trial) for prompt in "ab" for trial in trials]
    seconds = Seconds(1.0, served, 0.5, 0.0)
    ours = solver(online=online, seconds=seconds).plan(parse_target("psnr>=20"))
    assert ours.tolerance == 2.0 and ours.psnr is not None and 40 < ours.psnr.low < 50
    fewer = [FewerSteps(prompt, 5, low + 2 + off) for prompt, off in (("a", 0.0), ("b", 0.1))]
    both = solver(online=online, fewer=fewer, seconds=seconds)
    subset = both.plan(parse_target("psnr>=20")).subset
    assert (subset is not None and subset.count == 5) == taken


def test_fewer_steps_at_chosen_levels_are_taken_where_they_do_better_than_spread_ones():
    choices = best_choices(made(), flow_levels())
    spread = [FewerSteps(prompt, 7, psnr) for prompt, psnr in (("a", 50.0), ("b", 51.0))]
    # 70 dB at the change predicted of nine steps, and a dB less for each dB of change.
    placed = [
        FewerSteps(
            prompt,
            count,
            70 + 20 * math.log10(choices[9].change / choices[count].change) + off,
            [*range(count)],
            change,
        )
        for prompt, off in (("a", 1.0), ("b", -1.0))
        for count, change in ((count, choices[count].change) for count in (6, 9, 12))
    ]
    plan = solver(fewer=[*spread, *placed]).plan(parse_target("speedup>=1.7"))
    assert (
        plan.subset is not None
        and plan.subset.count == 9
        and plan.psnr is not None
        and plan.psnr.mean == pytest.approx(70)
    )
    # Those of a plan from all prompts, not the ones tried on one of them; and of a number that was not tried, too.
    assert plan.subset.chosen == list(choices[9].path.computed)
    assert f"9 steps, the steps {plan.subset.chosen} of {STEPS}" in plan.text()
    between = solver(fewer=[*spread, *placed]).plan(parse_target("speedup>=1.9"))
    assert (
        between.subset is not None
        and between.subset.count == 8
        and between.psnr is not None
        and 50.5 < between.psnr.mean < 70
    )
    worse = [replace(one, psnr=one.psnr - 40) for one in placed]
    assert solver(fewer=[*spread, *worse]).plan(parse_target("speedup>=1.9")).subset.chosen == []


def test_a_speed_is_promised_by_trials_without_a_guard():
    """Those with one came out as predicted, those without 10 dB lower."""
    guarded = made().trials
    free = [replace(one, psnr=one.psnr - 10, guarded=False) for one in guarded]
    both = solver(trials=[*guarded, *free])
    speed, plain = both.plan(parse_target("speedup>=2")), solver().plan(parse_target("speedup>=2"))
    assert speed.psnr is not None and plain.psnr is not None and speed.psnr.mean == pytest.approx(plain.psnr.mean - 10)
    fidelity = both.plan(parse_target("psnr>=35"))
    assert fidelity.full_steps == solver().plan(parse_target("psnr>=35")).full_steps


def test_a_speed_that_only_fewer_steps_have():
    fewer = [FewerSteps(prompt, 2, psnr) for prompt, psnr in (("a", 15.0), ("b", 16.0))]
    plan = solver(fewer=fewer, seconds=Seconds(1.0, 0.5, 0.0)).plan(parse_target("speedup>=6"))
    assert plan.subset is not None and plan.subset.count == 2 and plan.speed_up == 8


def test_a_plan_to_try_leaves_its_own_prompt_out():
    profile, levels = made(), flow_levels()
    from_b, from_a = (
        plan_to_try(profile, levels, best_choices(profile, levels, prompt), 8)[0] for prompt in ("a", "b")
    )
    # Prompt b has twice the curvature, so four times the squared error.
    assert from_b.followed.allowance == pytest.approx(4 * from_a.followed.allowance)
    assert len(from_a.full_steps) == 8


@pytest.mark.parametrize("steps", [10, 25])
def test_levels_of_other_step_counts_are_near_those_of_the_scheduler(steps):
    for mine, true in zip(levels_of(made(), steps), flow_levels(steps)):
        assert mine.sigma == pytest.approx(true.sigma, abs=0.02)


@pytest.mark.parametrize(("steps", "less"), [(STEPS // 2, 10 * math.log(2)), (STEPS, 0.0), (2 * STEPS, 0.0)])
def test_schedules_of_runs_shorter_than_the_trials_are_promised_less(steps, less, monkeypatch):
    target = parse_target("speedup>=1.3")
    told = Solver(made(), flow_levels(steps)).plan(target)
    monkeypatch.setattr("unicp.planning.solver.SHORTER_CAUTION", 0.0)
    naive = Solver(made(), flow_levels(steps)).plan(target)
    assert told.full_steps == naive.full_steps and told.psnr is not None and naive.psnr is not None
    assert naive.psnr.mean - told.psnr.mean == pytest.approx(less)


def test_another_number_of_steps_is_planned_too():
    plan = Solver(made(), flow_levels(25)).plan(parse_target("psnr>=35"))
    assert plan.steps == 25 and 3 < len(plan.full_steps) < 25


def test_a_prompt_that_comes_apart_does_not_decide_for_all_others():
    plain, levels = made(), flow_levels()
    # Errors of another shape, three hundred times as large, and an impact to match.
    rows = [(1.0, 0.1 * level.log_snr, 3.0 * math.sin(level.log_snr)) for level in levels[:-1]]
    products = [sum(a * b for a, b in zip(rows[i], rows[j])) / 3 for i in range(STEPS) for j in range(i + 1)]
    wild = Recording("wild", [1.0] * STEPS, {"noise": products})
    probes = [replace(probe, prompt="wild", psnr=probe.psnr - 40) for probe in plain.probes if probe.prompt == "a"]
    mixed = replace(plain, recordings=[*plain.recordings, wild], probes=[*plain.probes, *probes])
    best, chosen = best_choices(plain, levels), best_choices(mixed, levels)
    for count in range(8, STEPS):
        schedule = best[count].schedule(0.0, STEPS)
        loss = path_loss(chosen[count].path.computed, STEPS, schedule.change, schedule.rule)
        assert loss <= 1.5 * best[count].path.loss


def online_trials(lead: float, most: int = 12) -> list[OnlineTrial]:
    """Of a rule whose clips are `lead` dB above 20 at a tolerance of 1, 20 dB more for each tenth of it."""
    return [
        OnlineTrial(prompt, tolerance, computed, 20 * (1 - math.log10(tolerance)) + lead + off)
        for prompt, off in (("a", 0.1), ("b", -0.1))
        for tolerance, computed in ((0.03, most), (0.1, 10), (0.3, 8), (1.0, 6))
    ]


def test_the_online_rule_is_taken_where_its_trials_say_it_computes_less():
    target = parse_target("psnr>=35")
    schedule = solver().plan(target)
    easy = solver(online=online_trials(15.0)).plan(target)
    assert easy.tolerance is not None and not easy.full_steps and easy.expected < schedule.expected
    assert easy.psnr.low == pytest.approx(35) and easy.speed_up is not None and easy.speed_up > 1.5
    # Clips 30 dB worse at each tolerance: no tolerance that was tried is enough, and none beyond is guessed.
    assert solver(online=online_trials(-10.0)).plan(target) == schedule
    assert solver(online=online_trials(0.0, most=16)).plan(target) == schedule


def test_a_tolerance_beyond_those_tried_is_never_taken():
    plan = solver(online=online_trials(60.0)).plan(parse_target("psnr>=25"))
    assert plan.tolerance == 1.0 and plan.expected == 6


def test_targets_of_speed_are_left_to_schedules():
    for text in ("speedup>=1.5", "seconds<=12"):
        target = parse_target(text)
        assert solver(online=online_trials(30.0)).plan(target) == solver().plan(target)


def test_trials_of_the_online_rule_tell_of_longer_runs_with_caution_and_of_others_nothing():
    profile, target = made(online=online_trials(8.0)), parse_target("psnr>=35")
    own = Solver(profile, flow_levels()).plan(target)
    other = Solver(profile, flow_levels(25)).plan(target)
    assert own.tolerance is not None and other.tolerance is not None
    # 20 dB more for each tenth of the tolerance, so two dB are a tenth of its decade.
    assert other.tolerance == pytest.approx(own.tolerance / 10**0.1)
    assert other.psnr.low == pytest.approx(35)
    computed = 8 + 2 * math.log(0.3 / other.tolerance) / math.log(3)
    assert other.expected == pytest.approx(computed * math.sqrt(25 / STEPS), rel=0.05)
    for steps in (12, 40):
        assert Solver(profile, flow_levels(steps)).plan(target).tolerance is None


def test_a_plan_to_try_without_a_guard_computes_no_more_than_it_plans():
    choices = best_choices(made(), flow_levels(), "a")
    plan, change = plan_to_try(made(), flow_levels(), choices, 8, guarded=False)
    assert plan.followed.allowance == 0 and plan.followed.most == len(plan.full_steps) == 8
    assert change**2 == pytest.approx(plan_to_try(made(), flow_levels(), choices, 8)[0].followed.allowance)
