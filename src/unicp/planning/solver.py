"""From a profile, the noise levels of a run and a target to the best plan: all budgets at once, one is chosen."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from unicp.control.guard import Schedule
from unicp.control.step_paths import StepPath, WindowLoss, best_paths, path_loss
from unicp.control.windows import Candidate
from unicp.errors import InputError
from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.curves import (
    ForecastErrors,
    Shares,
    forecast_errors,
    of_prompt,
    probed_way,
    step_weights,
    window_factors,
)
from unicp.planning.fidelity import FidelityLine, Psnr, fit_line, fit_online
from unicp.planning.plain_runs import PlainRun, Tried, plain_runs
from unicp.planning.plan import Curves, Plan
from unicp.planning.profile import Profile, Recording
from unicp.planning.targets import Target

CANDIDATES = tuple(Candidate(q, a) for q in ("noise", "output", "clean") for a in ("log_snr", "sigma", "step"))
# Impact was measured with errors of one way to forecast: another must be predicted to change the clip so many times
# less to be taken (2 dB). With UniPC the output over the log-SNR was predicted to do a little better, and did worse.
LEAD = 1.26
# Reach of forecasts where so few steps are computed that those of `MAX_REACH` hardly come to the end of the run.
FAR_REACH = 3.0
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
class Choice:
    """The best schedule with a certain number of computed steps: how, and the change it is predicted to make."""

    path: StepPath
    errors: ForecastErrors
    weights: Sequence[float]
    rule: WindowLoss

    @property
    def change(self) -> float:
        """Predicted change of the clip."""
        return self.path.loss ** (1.0 / self.rule.power)

    def schedule(self, allowance: float, most: int) -> Schedule:
        """What a guard follows."""
        steps, errors = len(self.weights), self.errors
        parts = (errors, self.weights, self.rule, allowance, most, errors.candidate, errors.left)
        return Schedule(steps, self.path.computed, *parts)


def best_choices(
    profile: Profile,
    levels: Sequence[NoiseLevel],
    without: str | None = None,
    candidates: Sequence[Candidate] | None = None,
) -> dict[int, Choice]:
    """For each possible number of computed steps the best candidate and schedule.

    levels: of the steps of the run, and the one after the last. without: a prompt whose recording is left out.
    candidates: ways to serve; None = all, or that of the probes alone where served steps are taken again: most of what
    a forecast missed is mended then, and it is only over the log-SNR.

    A prompt whose clips come apart would count for all others in a sum of losses, though no schedule helps it much. So
    prompts count as one over what the schedule of half the steps costs them: near it the sum of losses then changes as
    the mean of their logarithms does, which is the mean PSNR.
    """
    recordings = [one for one in profile.recordings if one.prompt != without] or profile.recordings
    if candidates is None:
        candidates = [probed_way(profile.recordings[0])] if profile.mended else CANDIDATES
    alike = _choices(profile, recordings, levels, candidates, {})
    middle = alike[min(alike, key=lambda count: abs(2 * count - len(levels) + 1))]
    losses = {one.prompt: _loss_of(_of_prompt(profile, one, levels, middle)) for one in recordings}
    if not all(loss > 0 for loss in losses.values()):
        return alike
    return _choices(profile, recordings, levels, candidates, {prompt: 1 / loss for prompt, loss in losses.items()})


def _choices(
    profile: Profile,
    recordings: Sequence[Recording],
    levels: Sequence[NoiseLevel],
    candidates: Sequence[Candidate],
    shares: Shares,
) -> dict[int, Choice]:
    found: dict[int, list[Choice]] = {}
    rule, probed = WindowLoss(profile.power, *window_factors(profile, shares)), probed_way(profile.recordings[0])
    for candidate in candidates:
        errors = forecast_errors(profile, recordings, candidate, levels[:-1], shares)
        if errors is None:
            continue
        weights = step_weights(profile, candidate, levels, shares)
        schedule = Schedule(len(weights), (), errors, weights, rule, 0.0, 0, candidate, errors.left)
        for count, path in _paths(schedule, rule).items():
            found.setdefault(count, []).append(Choice(path, errors, weights, rule))

    def handicapped(choice: Choice) -> float:
        return choice.change * (1.0 if choice.errors.candidate.quantity == probed.quantity else LEAD)

    return {count: min(choices, key=handicapped) for count, choices in found.items()}


def _paths(schedule: Schedule, rule: WindowLoss) -> dict[int, StepPath]:
    """Paths of short reach; of far reach where there are none, or where they do worse than far ones of fewer steps."""
    change = functools.cache(schedule.change)
    near = best_paths(schedule.steps, change, rule=rule)
    far = best_paths(schedule.steps, change, max_reach=FAR_REACH, rule=rule)
    return far | {n: path for n, path in near.items() if n - 1 not in far or path.loss <= far[n - 1].loss}


def hardness_spread(profile: Profile, levels: Sequence[NoiseLevel], choice: Choice) -> float:
    """Spread over prompts of what a schedule costs, as a standard deviation in dB; 0 for one prompt."""
    found = []
    for recording in profile.recordings:
        loss = _loss_of(_of_prompt(profile, recording, levels, choice))
        if loss > 0:
            found.append(20 * math.log10(loss) / choice.rule.power)
    if len(found) < 2:
        return 0.0
    mean = math.fsum(found) / len(found)
    return math.sqrt(math.fsum((one - mean) ** 2 for one in found) / (len(found) - 1))


def _of_prompt(profile: Profile, recording: Recording, levels: Sequence[NoiseLevel], choice: Choice) -> Choice:
    """The same schedule with the errors and the impact of one prompt."""
    candidate = choice.errors.candidate
    errors = forecast_errors(profile, [recording], candidate, levels[:-1])
    weights = step_weights(profile, candidate, levels, of_prompt(profile, recording.prompt))
    return choice if errors is None else replace(choice, errors=errors, weights=weights)


def _loss_of(choice: Choice) -> float:
    return path_loss(choice.path.computed, len(choice.weights), choice.schedule(0.0, 0).change, choice.rule)


@dataclass(frozen=True)
class Solver:
    """Plans for one run. levels: of its steps, and the one after the last. caution: dB taken off predicted PSNR.

    knows_seconds: whether the profile's seconds hold for the size of this run.
    """

    profile: Profile
    levels: Sequence[NoiseLevel]
    caution: float = 0.0
    knows_seconds: bool = True

    def plan(self, target: Target) -> Plan:
        """The cheapest plan that meets the target. Raises InputError where none does, and says what can be had."""
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
        cost = self.profile.seconds
        return cost.rest + computed * cost.computed * (1 + cost.added) + (self.steps - computed) * cost.served

    def speed_up(self, computed: float) -> float:
        """How many times faster than the plain run."""
        cost = self.profile.seconds
        return (cost.rest + self.steps * cost.computed) / self.seconds(computed)

    def _for_psnr(self, target: Target, choices: dict[int, Choice], line: FidelityLine) -> Plan:
        allowed = line.change(target.value)
        count = next(count for count in sorted(choices) if choices[count].change <= allowed)
        choice = choices[count]
        expected = count + line.served_again * (self.steps - count)
        plan = self.made(str(target), choice, allowed**choice.rule.power, self.steps, expected)
        plan = _promising(plan, line.psnr(allowed if count < self.steps else 0.0))
        online = self._online(target)
        if online is not None and online.expected < plan.expected:
            plan = online
        elif count == self.steps:
            return replace(plan, notes=[*plan.notes, "no step can be served at this quality: nothing is saved"])
        return self._or_plain(plan, target, choices)

    def _for_time(self, target: Target, choices: dict[int, Choice], line: FidelityLine) -> Plan:
        fits = [count for count in choices if self._is_fast_enough(target, count)]
        if not fits:
            return self._only_plain(target, choices)
        count = max(fits)
        choice = choices[count]
        # The guard must not spend what the target forbids: it has nothing to spend.
        plan = self.made(str(target), choice, 0.0, count, float(count))
        psnr = line.psnr(choice.change, 1.645 * hardness_spread(self.profile, self.levels, choice))
        return self._or_plain(_promising(plan, psnr), target, choices)

    def _online(self, target: Target) -> Plan | None:
        """The online rule with the tolerance that keeps this PSNR on 95 % of clips by its trials; None if none does.

        Trials tell of runs of their own number of steps, and of longer ones with caution: as many times more steps are
        then computed as the root of the run's length over theirs says (our reading: windows grow where steps are
        narrow). Targets of speed are left to schedules: the online rule gives each clip another number of steps, and a
        schedule has the better mean for the same number.
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
        plan = self._plan(str(target), [], way, expected, tolerance=tolerance)
        return _promising(plan, known.line.psnr(tolerance))

    def _is_fast_enough(self, target: Target, computed: int) -> bool:
        if target.kind == "speedup":
            return self.speed_up(computed) >= target.value
        if not self.knows_seconds:
            found = "no profile made on this device at the size of this run"
            raise InputError(f"target {target}", found, "calibrate at this size, or name a speedup")
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
        computed, way = choice.path.computed, errors.candidate
        return self._plan(target, computed, way, expected, allowance=allowance, most=most, curves=curves)

    def _plan(self, target: str, computed: Sequence[int], way: Candidate, expected: float, **more: Any) -> Plan:
        return Plan(
            target=target,
            model=self.profile.fingerprint.model,
            steps=self.steps,
            sigmas=[level.sigma for level in self.levels[:-1]],
            computed=list(computed),
            quantity=way.quantity,
            abscissa=way.abscissa,
            expected=expected,
            speed_up=self.speed_up(expected),
            seconds=self.seconds(expected) if self.knows_seconds else None,
            **more,
        )

    def _plain_runs(self, choices: dict[int, Choice]) -> list[PlainRun]:
        """Shorter plain runs, as calibration measured them at the length of this run and of this very model."""
        if self.steps != self.profile.steps or self.caution:
            return []
        return plain_runs(self.profile, {n: Tried(one.path.computed, one.change) for n, one in choices.items()})

    def _plain_speed_up(self, steps: int) -> float:
        cost = self.profile.seconds
        return (cost.rest + self.steps * cost.computed) / (cost.rest + steps * cost.computed)

    def _or_plain(self, plan: Plan, target: Target, choices: dict[int, Choice]) -> Plan:
        """The plan, or a shorter plain run where that does better.

        Better is faster where the target is a fidelity that both keep, by a margin if it promises less; and a higher
        mean PSNR where the target is a speed.
        """
        for run in self._plain_runs(choices):
            speed_up = self._plain_speed_up(run.steps)
            if plan.psnr is None or plan.psnr_low is None or plan.speed_up is None:
                continue
            if target.kind == "psnr":
                margin = 1.0 if run.psnr.low > plan.psnr_low else NEARLY
                better = run.psnr.low >= target.value and speed_up > margin * plan.speed_up
            else:
                better = self._is_plain_fast_enough(target, run.steps) and run.psnr.mean > plan.psnr
            if better:
                plan = self._shortened(plan, run)
        return plan

    def _shortened(self, plan: Plan, run: PlainRun) -> Plan:
        speed_up, seconds = self._plain_speed_up(run.steps), None
        if self.knows_seconds:
            seconds = self.profile.seconds.rest + run.steps * self.profile.seconds.computed
        plan = replace(_promising(plan, run.psnr), expected=float(run.steps), speed_up=speed_up, seconds=seconds)
        return replace(plan, fewer=run.steps, fewer_computed=list(run.chosen))

    def _is_plain_fast_enough(self, target: Target, steps: int) -> bool:
        if target.kind == "speedup":
            return self._plain_speed_up(steps) >= target.value
        return self.profile.seconds.rest + steps * self.profile.seconds.computed <= target.value

    def _only_plain(self, target: Target, choices: dict[int, Choice]) -> Plan:
        """No plan is fast enough: a shorter plain run is, or the target cannot be met."""
        fits = [run for run in self._plain_runs(choices) if self._is_plain_fast_enough(target, run.steps)]
        least = min(choices)
        if not fits:
            limit = f"speedup>={math.floor(100 * self.speed_up(least)) / 100:g}"
            if target.kind == "seconds":
                limit = f"seconds<={math.ceil(100 * self.seconds(least)) / 100:g}"
            found = f"at most {limit} can be had with {self.steps} steps"
            raise InputError(f"target {target}", found, f"ask for {limit}")
        plan = self.made(str(target), choices[least], 0.0, least, float(least))
        return self._shortened(plan, max(fits, key=lambda run: run.psnr.mean))


def _promising(plan: Plan, psnr: Psnr) -> Plan:
    return replace(plan, psnr=psnr.mean, psnr_low=psnr.low, psnr_high=psnr.high)


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
