"""From a profile, the noise levels of a run and a target to the best plan: all budgets at once, one is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unicp.context import Forecast
from unicp.errors import InputError
from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.choices import Choice, best_choices, hardness_spread
from unicp.planning.curves import probed_way
from unicp.planning.fidelity import ONE_SIDED, FidelityLine, PlainRun, Tried, fit_line, fit_online, plain_runs
from unicp.planning.plan import Curves, OnlineRule, Plan, PlannedSteps, StepSubset
from unicp.planning.profile import Profile, Seconds
from unicp.planning.targets import Target
from unicp.policies.step_paths import fewest_computed

# Steps of the longest run that is planned: samplers are trained on as many noise levels. It takes ten seconds.
MOST_STEPS = 1000
# Trials of the online rule tell of longer runs too, up to so many times their own length, where what they promise is
# lowered by so many dB. Tried on eight tuning prompts of the glyphs with profiles of 30 steps: at 50 46 of 48 clips
# kept their targets and computed less than schedules; at 20 fewer kept them than of schedules.
LONGEST, LONGER_CAUTION = 1.75, 2.0
# Trials of schedules promise too much of runs shorter than their own, whose steps are wider than any that was recorded:
# so many dB for each e-fold, 4 dB at 20 steps of profiles of 30 (3 to 5 with Euler, 1 to 3 with UniPC, tuning prompts).
SHORTER_CAUTION = 10.0
# A plain run with fewer steps must be so many times faster than a plan that promises more of the same target. Seconds
# are not known better: with UniPC at 25 dB a plain run of 11 steps, 1.00 times as fast, had 32 dB where the online rule
# has 34.
NEARLY = 1.05


@dataclass(frozen=True)
class Solver:
    """Plans for one run.

    Attributes:
        profile: What is known of the model.
        levels: Of the steps of the run, and the one after the last.
        caution: dB taken off predicted PSNR.
        knows_seconds: Whether the profile's seconds hold for the size of this run.
    """

    profile: Profile
    levels: Sequence[NoiseLevel]
    caution: float = 0.0
    knows_seconds: bool = True

    def plan(self, target: Target) -> Plan:
        """The cheapest plan that meets the target.

        Raises:
            InputError: None does; the message says what can be had.
        """
        check_steps(self.steps)
        if target.kind == "seconds" and not self.knows_seconds:
            raise _unknown_seconds(target)
        choices = best_choices(self.profile, self.levels)
        line = fit_line(self.profile.trials, self.caution + self._shorter_caution, guarded=target.kind == "psnr")
        if target.kind == "psnr":
            return self._for_psnr(target, choices, line)
        return self._for_time(target, choices, line)

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return len(self.levels) - 1

    @property
    def _shorter_caution(self) -> float:
        return SHORTER_CAUTION * max(0.0, math.log(self.profile.steps / self.steps))

    def seconds(self, computed: float) -> float:
        """Seconds of a clip with this many computed steps, under UniCP."""
        return _seconds(self.profile.seconds, self.steps, computed)

    def speed_up(self, computed: float) -> float:
        """How many times faster than the plain run."""
        return _speed_up(self.profile.seconds, self.steps, computed)

    def _for_psnr(self, target: Target, choices: dict[int, Choice], line: FidelityLine) -> Plan:
        allowed = line.change(target.value)
        count = next(count for count in sorted(choices) if choices[count].change <= allowed)
        choice = choices[count]
        expected = count + line.served_again * (self.steps - count)
        plan = self.made(str(target), choice, allowed**choice.rule.power, self.steps, expected)
        plan = replace(plan, psnr=line.psnr(allowed if count < self.steps else 0.0))
        online = self._online(target)
        if online is not None and online.expected < plan.expected:
            plan = online
        elif count == self.steps:
            return replace(plan, notes=[*plan.notes, "no step can be skipped at this quality: nothing is saved"])
        return self._or_plain(plan, target, choices)

    def _for_time(self, target: Target, choices: dict[int, Choice], line: FidelityLine) -> Plan:
        fits = [count for count in choices if self._is_fast_enough(target, count)]
        if not fits:
            return self._only_plain(target, choices)
        count = max(fits)
        choice = choices[count]
        # The guard must not spend what the target forbids: it has nothing to spend.
        plan = self.made(str(target), choice, 0.0, count, float(count))
        psnr = line.psnr(choice.change, ONE_SIDED * hardness_spread(self.profile, self.levels, choice))
        return self._or_plain(replace(plan, psnr=psnr), target, choices)

    def _online(self, target: Target) -> Plan | None:
        """The online rule with the tolerance that keeps this PSNR on 95 % of clips by its trials; None if none does.

        Trials tell of runs of their own number of steps, and of longer ones with caution: as many times more steps are
        then full as the root of the run's length over theirs says (our reading: windows grow where steps are narrow).
        Targets of speed are left to schedules: the online rule gives each clip another number of steps, and a schedule
        has the better mean for the same number.
        """
        longer = self.steps / self.profile.steps
        if not 1 <= longer <= LONGEST:
            return None
        known = fit_online(self.profile.online, self.caution + (LONGER_CAUTION if longer > 1 else 0.0))
        if known is None:
            return None
        least, most = known.tried
        tolerance = min(known.line.change(target.value), most)
        if tolerance < least:
            return None
        way = probed_way(self.profile.recordings[0])
        expected = min(float(self.steps), known.computed(tolerance) * math.sqrt(longer))
        plan = self._plan(str(target), way, OnlineRule(tolerance), expected)
        return replace(plan, psnr=known.line.psnr(tolerance))

    def _is_fast_enough(self, target: Target, computed: int) -> bool:
        if target.kind == "speedup":
            return self.speed_up(computed) >= target.value
        return self.seconds(computed) <= target.value

    def made(self, target: str, choice: Choice, allowance: float, most: int, expected: float) -> Plan:
        """A plan of a choice, without a prediction of its PSNR; arguments as the fields of `Plan`."""
        errors = choice.errors
        curves = Curves(
            list(errors.places),
            [list(row) for row in errors.products],
            list(errors.scales),
            list(choice.weights),
            choice.rule.power,
            choice.rule.row,
            choice.rule.end,
            errors.mended,
        )
        how = PlannedSteps(list(choice.path.computed), allowance, most, curves)
        return self._plan(target, errors.forecast, how, expected)

    def _plan(self, target: str, forecast: Forecast, how: PlannedSteps | OnlineRule, expected: float) -> Plan:
        return Plan(
            target,
            self.profile.fingerprint.model,
            self.steps,
            [level.sigma for level in self.levels[:-1]],
            forecast,
            how,
            expected,
            speed_up=self.speed_up(expected),
            seconds=self.seconds(expected) if self.knows_seconds else None,
        )

    def _plain_runs(self, choices: dict[int, Choice]) -> list[PlainRun]:
        """Shorter plain runs, as calibration measured them at the length of this run and of this very model."""
        if self.steps != self.profile.steps or self.caution:
            return []
        return plain_runs(self.profile, {n: Tried(one.path.computed, one.change) for n, one in choices.items()})

    def _plain_seconds(self, steps: int) -> float:
        return self.profile.seconds.rest + steps * self.profile.seconds.computed

    def plain_speed_up(self, steps: int) -> float:
        """How many times faster than the plain run the plain pipeline with fewer steps is."""
        return self._plain_seconds(self.steps) / self._plain_seconds(steps)

    def _or_plain(self, plan: Plan, target: Target, choices: dict[int, Choice]) -> Plan:
        """The plan, or a shorter plain run where that does better.

        Better is faster where the target is a fidelity that both keep, by a margin if it promises less; and a higher
        mean PSNR where the target is a speed.
        """
        for run in self._plain_runs(choices):
            speed_up = self.plain_speed_up(run.steps)
            if plan.psnr is None or plan.speed_up is None:
                continue
            if target.kind == "psnr":
                margin = 1.0 if run.psnr.low > plan.psnr.low else NEARLY
                better = run.psnr.low >= target.value and speed_up > margin * plan.speed_up
            else:
                better = self._is_plain_fast_enough(target, run.steps) and run.psnr.mean > plan.psnr.mean
            if better:
                plan = self._shortened(plan, run)
        return plan

    def _shortened(self, plan: Plan, run: PlainRun) -> Plan:
        return replace(
            plan,
            how=StepSubset(run.steps, list(run.chosen), plan.followed),
            expected=float(run.steps),
            psnr=run.psnr,
            speed_up=self.plain_speed_up(run.steps),
            seconds=self._plain_seconds(run.steps) if self.knows_seconds else None,
        )

    def _is_plain_fast_enough(self, target: Target, steps: int) -> bool:
        if target.kind == "speedup":
            return self.plain_speed_up(steps) >= target.value
        return self._plain_seconds(steps) <= target.value

    def _only_plain(self, target: Target, choices: dict[int, Choice]) -> Plan:
        """No plan is fast enough: a shorter plain run is, or the target cannot be met."""
        runs, least = self._plain_runs(choices), min(choices)
        fits = [run for run in runs if self._is_plain_fast_enough(target, run.steps)]
        if not fits:
            fastest = max([self.speed_up(least), *(self.plain_speed_up(run.steps) for run in runs)])
            raise _too_fast(target, self.steps, fastest, self._plain_seconds(self.steps))
        plan = self.made(str(target), choices[least], 0.0, least, float(least))
        return self._shortened(plan, max(fits, key=lambda run: run.psnr.mean))


def check_steps(steps: int) -> None:
    """Raises InputError for a run that is too long to be planned."""
    if steps > MOST_STEPS:
        raise InputError(f"a plan of {steps} steps", f"runs of up to {MOST_STEPS} steps can be planned", "use fewer")


def check_feasible(profile: Profile, target: Target, caution: float = 0.0, knows_seconds: bool = True) -> None:
    """Raises InputError for a target that no run of whatever number of steps can meet by this profile.

    Arguments as the fields of `Solver`. Every PSNR can be had: by computing everything. Numbers of steps differ in what
    can be had; what the run itself has is told when it is planned.
    """
    if target.kind == "psnr":
        return
    if target.kind == "seconds" and not knows_seconds:
        raise _unknown_seconds(target)
    cost, own = profile.seconds, Solver(profile, profile.levels, caution, knows_seconds)
    ends = [(steps, one) for steps in range(1, MOST_STEPS + 1) for one in (fewest_computed(steps), steps)]
    if target.kind == "seconds":
        least = min(_seconds(cost, steps, computed) for steps, computed in ends)
        is_met = min(least, cost.rest + cost.computed) <= target.value
    else:
        most = max(_speed_up(cost, steps, computed) for steps, computed in ends)
        fewer = [] if caution else [one.steps for one in profile.fewer if 0 < one.steps < profile.steps]
        is_met = max([most, *map(own.plain_speed_up, fewer)]) >= target.value
    if not is_met:
        own.plan(target)  # says what runs like the recorded ones have
        raise InputError(f"target {target}", "faster than any run of this profile", "ask for less")


def _seconds(cost: Seconds, steps: int, computed: float) -> float:
    return cost.rest + computed * cost.computed * (1 + cost.added) + (steps - computed) * cost.served


def _speed_up(cost: Seconds, steps: int, computed: float) -> float:
    return (cost.rest + steps * cost.computed) / _seconds(cost, steps, computed)


def _unknown_seconds(target: Target) -> InputError:
    found = "no profile made on this device at the size of this run"
    return InputError(f"target {target}", found, "calibrate at this size, or name a speedup")


def _too_fast(target: Target, steps: int, speed_up: float, plain_seconds: float) -> InputError:
    """What can be had instead, rounded so that it is met and not refused again. speed_up: the largest."""
    if target.kind == "seconds":
        value = math.ceil(100 * plain_seconds / speed_up + 1e-9) / 100
        limit = f"seconds<={value:.2f}"
    else:
        value = math.floor(100 * speed_up - 1e-9) / 100
        limit = f"speedup>={value:.2f}"
        if value < 1:
            found = f"nothing is faster than the plain run of {steps} steps"
            return InputError(f"target {target}", found, "take more steps, or run it without UniCP")
    return InputError(f"target {target}", f"at most {limit} can be had with {steps} steps", f"ask for {limit}")


def plan_to_try(
    profile: Profile, levels: Sequence[NoiseLevel], choices: dict[int, Choice], count: int, guarded: bool = True
) -> tuple[Plan, float]:
    """The best plan that computes `count` steps, or the nearest possible number, for a run that nothing is known of.

    And the change of the clip that is predicted of it. choices: the best, without the prompt that is to be tried as a
    new one. guarded: whether its guard may spend as much as the plan is predicted to, or nothing.
    """
    choice = choices[min(choices, key=lambda one: (abs(one - count), one))]
    solver, computed = Solver(profile, levels), len(choice.path.computed)
    allowance, most = (choice.path.loss, solver.steps) if guarded else (0.0, computed)
    return solver.made(f"{count} steps", choice, allowance, most, float(count)), choice.change
