"""Solves the best plan for a target, from a profile and the noise levels of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unicp.context import Forecast
from unicp.errors import InputError
from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.choices import Choice, best_choices, hardness_spread
from unicp.planning.curves import probed_forecast
from unicp.planning.fidelity import ONE_SIDED, FidelityLine, PlainRun, Tried, fit_line, fit_online, plain_runs
from unicp.planning.plan import Curves, OnlineRule, Plan, PlannedSteps, StepSubset
from unicp.planning.profile import Profile, Seconds
from unicp.planning.targets import Target
from unicp.policies.step_paths import fewest_computed

# Steps of the longest run that is planned; samplers are trained on as many noise levels. Solving takes ten seconds.
MOST_STEPS = 1000
# Trials of the online rule are used for runs up to so many times longer, with so many dB taken off. Measured with
# profiles of 30 steps (docs/planning.md): at 50 steps 46 of 48 clips kept their targets.
LONGEST, LONGER_CAUTION = 1.75, 2.0
# Trials of schedules predict too much for shorter runs, whose steps are wider than any recorded: dB taken off for each
# e-fold of length, 4 dB at 20 steps of a profile of 30 (docs/planning.md).
SHORTER_CAUTION = 10.0
# A plain run with fewer steps must be so many times faster than a plan that predicts a higher PSNR: seconds are not
# known better than that.
NEARLY = 1.05


@dataclass(frozen=True)
class Solver:
    """Plans for one run.

    Attributes:
        profile: Of the model.
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
            InputError: No plan meets it; the message says what is possible.
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
        """Seconds of a clip with this many full steps, under UniCP."""
        return _seconds(self.profile.seconds, self.steps, computed)

    def speed_up(self, computed: float) -> float:
        """How many times faster than the plain run a run with this many full steps is."""
        return _speed_up(self.profile.seconds, self.steps, computed)

    def _for_psnr(self, target: Target, choices: dict[int, Choice], line: FidelityLine) -> Plan:
        allowed = line.change(target.value)
        count = next(count for count in sorted(choices) if choices[count].change <= allowed)
        choice = choices[count]
        expected = count + line.added_share * (self.steps - count)
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
        # The guard may add nothing, because the target forbids more full steps.
        plan = self.made(str(target), choice, 0.0, count, float(count))
        psnr = line.psnr(choice.change, ONE_SIDED * hardness_spread(self.profile, self.levels, choice))
        return self._or_plain(replace(plan, psnr=psnr), target, choices)

    def _online(self, target: Target) -> Plan | None:
        """The online rule with the tolerance that keeps this PSNR on 95 % of clips by its trials; None if none does.

        In runs longer than the trials the number of full steps is taken to grow with the root of the length (our
        reading: windows grow where steps are narrow).
        """
        longer = self.steps / self.profile.steps
        if not 1 <= longer <= LONGEST:
            return None
        online = fit_online(self.profile.online, self.caution + (LONGER_CAUTION if longer > 1 else 0.0))
        if online is None:
            return None
        least, most = online.tried
        tolerance = min(online.line.change(target.value), most)
        if tolerance < least:
            return None
        forecast = probed_forecast(self.profile.recordings[0])
        expected = min(float(self.steps), online.computed(tolerance) * math.sqrt(longer))
        plan = self._plan(str(target), forecast, OnlineRule(tolerance), expected)
        return replace(plan, psnr=online.line.psnr(tolerance))

    def _is_fast_enough(self, target: Target, computed: int) -> bool:
        if target.kind == "speedup":
            return self.speed_up(computed) >= target.value
        return self.seconds(computed) <= target.value

    def made(self, target: str, choice: Choice, allowance: float, most: int, expected: float) -> Plan:
        """A plan of a choice, without its PSNR; arguments as the fields of `Plan` and `PlannedSteps`."""
        errors = choice.errors
        curves = Curves(
            list(errors.places),
            [list(row) for row in errors.products],
            list(errors.scales),
            list(choice.weights),
            choice.rule.power,
            choice.rule.row,
            choice.rule.end,
            errors.replayed,
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
        """Shorter plain runs, if calibration measured them for this model and length."""
        if self.steps != self.profile.steps or self.caution:
            return []
        return plain_runs(self.profile, {n: Tried(one.path.computed, one.change) for n, one in choices.items()})

    def _plain_seconds(self, steps: int) -> float:
        return self.profile.seconds.rest + steps * self.profile.seconds.computed

    def plain_speed_up(self, steps: int) -> float:
        """How many times faster than the plain run the plain pipeline with fewer steps is."""
        return self._plain_seconds(self.steps) / self._plain_seconds(steps)

    def _or_plain(self, plan: Plan, target: Target, choices: dict[int, Choice]) -> Plan:
        """The plan, or a shorter plain run if that is better.

        For a fidelity, better is faster, by a margin if its lower bound is lower. For a speed, better is a higher mean
        PSNR.
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
    """Checks that a run is not too long to be planned.

    Raises:
        InputError: It is.
    """
    if steps > MOST_STEPS:
        raise InputError(f"a plan of {steps} steps", f"runs of up to {MOST_STEPS} steps can be planned", "use fewer")


def check_feasible(profile: Profile, target: Target, caution: float = 0.0, knows_seconds: bool = True) -> None:
    """Checks that a run of some number of steps can meet a target, before the length of a run is known.

    Args:
        profile, caution, knows_seconds: As the fields of `Solver`.
        target: What is asked for. Every PSNR can be met, by skipping nothing.

    Raises:
        InputError: No run can meet it.
    """
    if target.kind == "psnr":
        return
    if target.kind == "seconds" and not knows_seconds:
        raise _unknown_seconds(target)
    cost, solver = profile.seconds, Solver(profile, profile.levels, caution, knows_seconds)
    ends = [(steps, one) for steps in range(1, MOST_STEPS + 1) for one in (fewest_computed(steps), steps)]
    if target.kind == "seconds":
        least = min(_seconds(cost, steps, computed) for steps, computed in ends)
        is_met = min(least, cost.rest + cost.computed) <= target.value
    else:
        most = max(_speed_up(cost, steps, computed) for steps, computed in ends)
        fewer = [] if caution else [one.steps for one in profile.fewer if 0 < one.steps < profile.steps]
        is_met = max([most, *map(solver.plain_speed_up, fewer)]) >= target.value
    if not is_met:
        solver.plan(target)  # its error says what runs like the recorded ones can meet
        raise InputError(f"target {target}", "faster than any run of this profile", "ask for less")


def _seconds(cost: Seconds, steps: int, computed: float) -> float:
    return cost.rest + computed * cost.computed * (1 + cost.added) + (steps - computed) * cost.skipped


def _speed_up(cost: Seconds, steps: int, computed: float) -> float:
    return (cost.rest + steps * cost.computed) / _seconds(cost, steps, computed)


def _unknown_seconds(target: Target) -> InputError:
    found = "no profile made on this device at the size of this run"
    return InputError(f"target {target}", found, "calibrate at this size, or name a speedup")


def _too_fast(target: Target, steps: int, speed_up: float, plain_seconds: float) -> InputError:
    """The error that names what is possible, rounded so that it can be met. speed_up: the largest."""
    if target.kind == "seconds":
        value = math.ceil(100 * plain_seconds / speed_up + 1e-9) / 100
        limit = f"seconds<={value:.2f}"
    else:
        value = math.floor(100 * speed_up - 1e-9) / 100
        limit = f"speedup>={value:.2f}"
        if value < 1:
            found = f"nothing is faster than the plain run of {steps} steps"
            return InputError(f"target {target}", found, "take more steps, or run it without UniCP")
    return InputError(f"target {target}", f"at most {limit} is possible with {steps} steps", f"ask for {limit}")


def plan_to_try(
    profile: Profile, levels: Sequence[NoiseLevel], choices: dict[int, Choice], count: int, guarded: bool = True
) -> tuple[Plan, float]:
    """The best plan with `count` full steps, or the nearest possible number, for a trial.

    Args:
        profile: What calibration measured so far.
        levels: Of the run's steps, and the one after the last.
        choices: The best schedules, solved without the prompt of the trial.
        count: Number of full steps.
        guarded: Whether its guard may spend as much as the plan is predicted to cost, or nothing.

    Returns:
        The plan, and the change of the clip that is predicted for it.
    """
    choice = choices[min(choices, key=lambda one: (abs(one - count), one))]
    solver, computed = Solver(profile, levels), len(choice.path.computed)
    allowance, most = (choice.path.loss, solver.steps) if guarded else (0.0, computed)
    return solver.made(f"{count} steps", choice, allowance, most, float(count)), choice.change
