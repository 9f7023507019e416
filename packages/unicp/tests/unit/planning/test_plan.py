"""Plans on disk and on screen, and plans that replay a trace."""

from __future__ import annotations

import dataclasses
import json

import pytest
from tests.made_profiles import STEPS, flow_levels, made

from unicp.errors import FileFormatError, InputError
from unicp.planning.curves import LEAST_LEFT
from unicp.planning.plan import Plan, load_plan, plan_of_trace, save_plan
from unicp.planning.profile import OnlineTrial
from unicp.planning.solver import Solver
from unicp.planning.targets import parse_target
from unicp.policies.planned import Course
from unicp.records import Entry, Trace


def solved(target: str = "psnr>=35") -> Plan:
    return Solver(made(), flow_levels()).plan(parse_target(target))


def trace(actions: str, choice: str = "noise over log_snr", unit: str = "model") -> Trace:
    levels = flow_levels(len(actions))
    kinds = {"C": "full", "F": "forecast", "R": "reuse"}
    entries = [
        Entry(0, step, branch, unit, kinds[one], "plan", levels[step].sigma, 0.1, predictor=choice)
        for step, one in enumerate(actions)
        for branch in ("cond", "uncond")
    ]
    return Trace("Made", "cpu", "float32", {}, entries=entries)


def test_a_plan_says_all_there_is_to_know():
    plan = solved()
    lines = plan.text().splitlines()
    assert lines[0] == f"plan for psnr>=35: {len(plan.computed)} of {STEPS} steps computed"
    assert lines[1].strip() == plan.drawing() and plan.drawing().count("C") == len(plan.computed)
    assert [index for index, one in enumerate(plan.drawing()) if one == "C"] == plan.computed
    assert any("x, " in line and "s a clip" in line and "with the guard" in line for line in lines)
    assert any("90 % of clips from 35.0 to" in line for line in lines)


def test_round_trip(tmp_path):
    for plan in (solved(), solved("speedup>=1.5"), solved("psnr>=200"), plan_of_trace(trace("CCCFCF"))):
        save_plan(plan, tmp_path / "plan.json")
        assert load_plan(tmp_path / "plan.json") == plan


def test_a_loaded_plan_has_the_same_errors_to_compare_with(tmp_path):
    plan = solved()
    save_plan(plan, tmp_path / "plan.json")
    before, after = plan.schedule, load_plan(tmp_path / "plan.json").schedule
    assert [before.change(3, 5, step) for step in range(7, STEPS + 1)] == [
        after.change(3, 5, step) for step in range(7, STEPS + 1)
    ]


def test_a_loaded_plan_still_knows_that_served_steps_are_mended(tmp_path):
    plan = Solver(dataclasses.replace(made(), mended=True, left=True), flow_levels()).plan(parse_target("speedup>=1.5"))
    save_plan(plan, tmp_path / "plan.json")
    before, after = plan.schedule, load_plan(tmp_path / "plan.json").schedule
    assert before.change(5, 7, 10) == after.change(5, 7, 10) != plan.schedule.change(5, 7, STEPS)
    # The made noise estimate is a parabola: nothing but the least stays of a step that is served inside the run.
    schedule = plan.schedule
    served = sum(schedule.weights[step] * schedule.error(5, 7, step) for step in (8, 9))
    assert after.change(5, 7, 10) == pytest.approx(LEAST_LEFT * served)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"computed": [0, 2, 1]}, "computed steps that are not in order"),
        ({"computed": [0, 1, 99]}, "computed steps that are not in order"),
        ({"steps": 3}, "noise levels for 3 steps"),
        ({"quantity": "sound"}, "a forecast of 'sound'"),
        ({"computed": "CCC"}, "computed is 'CCC'"),
        ({"version": 7}, "version 7"),
        ({"type": "unicp.trace"}, "type 'unicp.trace'"),
        ({"extra": 1}, "unknown extra"),
    ],
)
def test_a_damaged_plan_is_refused_in_one_line(tmp_path, changes, found):
    path = tmp_path / "plan.json"
    save_plan(solved(), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(FileFormatError) as caught:
        load_plan(path)
    assert found in str(caught.value) and "\n" not in str(caught.value)


def test_curves_of_another_length_are_refused(tmp_path):
    plan = solved()
    assert plan.curves is not None
    shorter = dataclasses.replace(plan.curves, places=plan.curves.places[:-1])
    with pytest.raises(FileFormatError, match="curves of another number of steps"):
        dataclasses.replace(plan, curves=shorter)


def test_a_plan_is_for_its_own_noise_levels():
    plan, levels = solved(), flow_levels()[:-1]
    assert plan.fits(levels) and not plan.fits(levels[:-1]) and not plan.fits(flow_levels(STEPS, 5.0)[:-1])


def test_a_trace_becomes_a_plan():
    plan = plan_of_trace(trace("CCCCFCFFC"))
    assert plan.computed == [0, 1, 2, 3, 5, 8] and plan.steps == 9
    assert (plan.quantity, plan.abscissa, plan.curves) == ("noise", "log_snr", None)
    assert "a replay" in plan.text()


def test_a_replay_has_a_guard_that_only_follows():
    from unicp.policies.guard import Guard

    guard = Guard(plan_of_trace(trace("CCCCFCFFC")).schedule)
    whys = []
    for step in range(9):
        whys.append(bool(guard.reason(step)))
        if whys[-1]:
            guard.computed(step, "cond", 100.0 if step > 1 else None)
    assert whys == [True, True, True, True, False, True, False, False, True] and guard.events == []


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (trace("CCCRC"), "neither computed nor forecast"),
        (trace("CCCFC", unit="blocks.0"), "no such run of level model"),
        (trace(""), "no such run of level model"),
    ],
)
def test_a_trace_that_no_plan_can_replay(bad, found):
    with pytest.raises(InputError, match=found):
        plan_of_trace(bad)


def test_a_trace_that_changed_its_way_is_not_replayed():
    mixed = trace("CCCFCF")
    mixed.entries[-1].predictor = "output over sigma"
    with pytest.raises(InputError, match="several ways to forecast"):
        plan_of_trace(mixed)


def by_the_rule() -> Plan:
    online = [
        OnlineTrial("a", tolerance, computed, psnr)
        for tolerance, computed, psnr in ((0.1, 9, 60.0), (0.3, 7, 50.0), (1.0, 6, 41.0), (1.0, 6, 40.0))
    ]
    return Solver(made(online=online), flow_levels()).plan(parse_target("psnr>=35"))


def test_a_plan_may_leave_the_steps_to_the_online_rule(tmp_path):
    plan = by_the_rule()
    assert plan.tolerance is not None and plan.course == Course(plan.forecast, None, plan.tolerance)
    assert plan.drawing() == "?" * STEPS
    lines = plan.text().splitlines()
    assert lines[0] == f"plan for psnr>=35: the online rule with tolerance {plan.tolerance:.3g} decides"
    assert lines[1].startswith(f"  about {plan.expected:.1f} of {STEPS} steps computed")
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("changes", [{"computed": [0, 1, 2]}, {"tolerance": 0.0}, {"tolerance": float("inf")}])
def test_an_online_rule_that_is_none_is_refused(changes):
    with pytest.raises(FileFormatError, match="online rule"):
        dataclasses.replace(by_the_rule(), **changes)
