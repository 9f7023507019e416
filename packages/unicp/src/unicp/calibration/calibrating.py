"""Calibration, from prompts to a profile: plain runs, probes, trials of plans and of the online rule, fewer steps.

Every run begins like the plain run of its prompt. The equal part is played from memory, so a probe late in a run costs
a part of a run.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import unicp
from unicp.calibration.call_recorder import CallRecorder, recording_of
from unicp.calibration.checkpoint_log import AGAIN, CheckpointLog, Facts, Key, PlainSeconds
from unicp.calibration.pipeline_runner import Outcome, PipelineRunner, Reference
from unicp.context import Forecast
from unicp.errors import FileFormatError, InputError
from unicp.numerics.error_measures import relative_error
from unicp.numerics.fidelity import psnr
from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.curves import counted, errors_among, is_skippable, probed_forecast
from unicp.planning.plan import Plan
from unicp.planning.profile import (
    FewerSteps,
    Fingerprint,
    OnlineTrial,
    Probe,
    Profile,
    Seconds,
    Trial,
    WindowProbe,
    save_profile,
)
from unicp.planning.solver import Choice, best_choices, plan_to_try
from unicp.records import Trace
from unicp.sampler.shorten import can_choose, only_steps
from unicp.settings import preset


@dataclass(frozen=True)
class CalibrationConfig:
    """Which runs a calibration makes of each prompt.

    Values without another source were chosen: enough points for a line or a curve, in the time of about seventeen plain
    runs a prompt. docs/planning.md has what was measured with them.

    Attributes:
        probes: Places of the steps that are skipped one by one, as shares of the run. Between them impact is
            interpolated, so most are where it falls steeply.
        windows: (begin, length) of windows that are skipped as a whole, as shares of the run: two inside, and the last
            one, after which no full step corrects anything.
        trials: Shares of full steps of the plans that are tried, each with a guard and without.
        tolerances: Of the trials of the online rule, from nearly nothing skipped to as much as possible.
        fewer: Lengths of plain runs with evenly spaced steps, as shares of the run.
        chosen: The same for plain runs at the noise levels that a plan would make full, from where leaving out equals
            skipping, about 2/3 (docs/planning.md), to where it is far worse.
        power: Exponent with which the changes by windows add. Windows are hardly in phase, so their squares add.
        least_steps: Shortest run: three steps that are always full, and a few to probe.
    """

    probes: tuple[float, ...] = (0.14, 0.17, 0.2, 0.24, 0.28, 0.34, 0.42, 0.6, 0.8, 0.93, 1.0)
    windows: tuple[tuple[float, float], ...] = ((0.4, 0.1), (0.65, 0.1), (0.83, 0.17))
    trials: tuple[float, ...] = (0.24, 0.3, 0.4, 0.52, 0.66)
    tolerances: tuple[float, ...] = (0.02, 0.07, 0.25, 0.9, 2.5)
    fewer: tuple[float, ...] = (0.5, 1 / 3, 0.24)
    chosen: tuple[float, ...] = (2 / 3, 0.6, 0.5, 1 / 3)
    power: float = 2.0
    least_steps: int = 8

    @property
    def cost(self) -> float:
        """Estimated cost of all runs of one prompt, in plain runs.

        The online rule is taken to make two of five steps full, over all tolerances.
        """
        skipped = sum(1 - place for place in self.probes) + sum(1 - start for start, _ in self.windows)
        return 1 + skipped + 2 * sum(self.trials) + 0.4 * len(self.tolerances) + sum(self.fewer) + sum(self.chosen)

    def runs(self, probes: int, can_choose: bool) -> int:
        """How many runs one prompt takes, with the plain one. probes: number of probed steps."""
        tried = 2 * len(self.trials) + len(self.tolerances) + len(self.fewer)
        return 1 + probes + len(self.windows) + tried + (len(self.chosen) if can_choose else 0)


# Kinds of results that come with a run of another kind.
BESIDE = ("facts", "skipped", "added")


@dataclass
class _Progress:
    """Reports which run is done, and how many are left."""

    total: int
    tell: Callable[[str], None]
    done: int = 0

    def expect(self, total: int) -> None:
        """Sets the number of all runs, once it is known."""
        self.total = total

    def step(self, what: str) -> None:
        self.done += 1
        self.tell(f"{self.done} of {self.total}: {what}")


class Calibration:
    """One calibration: `run` makes the runs that are not in the log yet, and writes the profile.

    Args:
        pipe: A pipeline with one transformer, whose scheduler tells noise levels.
        prompts: Different ones; each is run with its number as seed.
        steps: Length of the runs.
        arguments: Of every call of the pipeline, without prompt, steps and generator.
        out: The profile to write; results so far are kept beside it.
        on_progress: Gets a line for each run.
        config: Which runs are made.

    Raises:
        InputError: The pipeline cannot be calibrated, or the log belongs to another calibration.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str],
        steps: int,
        arguments: Mapping[str, Any],
        out: Path,
        on_progress: Callable[[str], None] = lambda line: None,
        config: CalibrationConfig = CalibrationConfig(),
    ):
        if steps < config.least_steps:
            do = f"use {config.least_steps} or more"
            raise InputError(f"to calibrate at {steps} steps", "too few to probe", do)
        if not prompts or len(set(prompts)) < len(prompts):
            raise InputError("to calibrate", "no prompts, or one of them twice", "give different prompts")
        self.runner, self.config = PipelineRunner(pipe, arguments, steps), config
        self.prompts, self.out, self.on_progress = list(prompts), out, on_progress
        self.fingerprint = Fingerprint.of(self.runner.transformer, pipe.scheduler, self.runner.schedule.prediction)
        given = {name: str(value) for name, value in arguments.items()}
        about = {"model": vars(self.fingerprint), "steps": steps, "prompts": self.prompts, "arguments": given}
        self.log = CheckpointLog.open(out, {**about, "config": vars(config)})
        self._levels: tuple[NoiseLevel, ...] = ()
        self._choices: dict[str, dict[int, Choice]] = {}

    @property
    def _can_choose(self) -> bool:
        return can_choose(self.runner.pipe.scheduler)

    def _forecast(self, prompt: str) -> Forecast:
        return probed_forecast(self.log.known["recording", prompt])

    def _probed(self, prompt: str) -> list[int]:
        steps, forecast, prediction = self.runner.steps, self._forecast(prompt), self.fingerprint.prediction
        usable = [k for k, level in enumerate(self._levels[:-1]) if k > 2 and is_skippable(forecast, prediction, level)]
        if not usable:
            raise InputError("to calibrate this pipeline", "no step that could be skipped", "use more steps")
        return sorted({min(usable, key=lambda k: abs(k - share * (steps - 1))) for share in self.config.probes})

    def estimate(self) -> float:
        """Estimated seconds of the runs that are left; runs two steps to find out."""
        self.runner.run(self.prompts[0], 0, 2)
        recorder = CallRecorder(self.runner.transformer, self.runner.sample_name)
        with recorder.recording():
            outcome = self.runner.run(self.prompts[0], 0, 2)
        step = sum(recorder.seconds) / 2
        rest = max(0.0, outcome.seconds - sum(recorder.seconds))
        runs = len(self.prompts) * self.config.runs(len(self.config.probes), self._can_choose)
        left = max(0.0, 1 - sum(key[0] not in BESIDE for key in self.log.known) / runs)
        return left * (len(self.prompts) * self.config.cost * step * self.runner.steps + runs * rest)

    def run(self) -> Profile:
        """Makes the runs that are left and writes the profile."""
        references: dict[str, Reference] = {}
        progress, config, steps = _Progress(0, self.on_progress), self.config, self.runner.steps
        for number, prompt in enumerate(self.prompts):
            references[prompt] = self._plain(number, prompt)
            probed = self._probed(prompt)
            progress.expect(config.runs(len(probed), self._can_choose) * len(self.prompts))
            progress.step(f"plain run of {prompt!r}")
            for step in probed:
                self._probe(references[prompt], step)
                progress.step(f"probe at step {step} of {prompt!r}")
            for start, length in config.windows:
                first = round(start * steps)
                window = range(first, min(steps, first + max(2, round(length * steps))))
                self._probe_window(references[prompt], window)
                progress.step(f"probe of steps {first} to {window[-1]} of {prompt!r}")
        for prompt in self.prompts:
            for share, guarded in itertools.product(config.trials, (True, False)):
                trial = self._trial(references[prompt], share, guarded)
                progress.step(f"trial of {prompt!r}: {trial.computed} full steps, {trial.psnr:.1f} dB")
            for tolerance in config.tolerances:
                online = self._online(references[prompt], tolerance)
                progress.step(f"online rule on {prompt!r}: {online.computed} full steps, {online.psnr:.1f} dB")
        for prompt in self.prompts:
            for share in config.fewer:
                self._fewer(references[prompt], max(2, round(share * steps)))
                progress.step(f"plain run of fewer steps of {prompt!r}")
            for share in config.chosen if self._can_choose else ():
                self._fewer_chosen(references[prompt], round(share * steps))
                progress.step(f"plain run of chosen steps of {prompt!r}")
        profile = counted(self.profile_of_log())
        save_profile(profile, self.out)
        self.log.done()
        return profile

    def profile_of_log(self) -> Profile:
        """The profile, once all runs are in the log.

        Raises:
            FileFormatError: Runs are missing.
        """
        of = self.log.of
        return replace(self._probes_alone(), trials=of("trial"), online=of("online"), fewer=of("fewer"))

    def _once(self, key: Key, make: Callable[[], Any]) -> Any:
        """A result from the log; otherwise makes it and adds it."""
        if key not in self.log.known:
            self.log.add(key, make())
        return self.log.known[key]

    def _plain(self, seed: int, prompt: str) -> Reference:
        """Makes the plain run, also if it is in the log: other runs are compared with it and play its outputs."""
        recorder = CallRecorder(self.runner.transformer, self.runner.sample_name)
        with recorder.recording():
            outcome = self.runner.run(prompt, seed)
        calls, seconds = recorder.calls, recorder.seconds
        self._levels = self.runner.levels()
        branches = len(calls[0]) if calls else 0
        if len(calls) != self.runner.steps or any(len(step) != branches for step in calls):
            found = f"{len(calls)} steps instead of {self.runner.steps}, or not always as many calls"
            raise InputError("to calibrate this pipeline", found, "use a scheduler with one call a step and branch")

        def facts() -> Facts:
            steps = [sum(seconds[i : i + branches]) for i in range(0, len(seconds), branches)]
            plain = PlainSeconds(statistics.median(steps), max(0.0, outcome.seconds - sum(seconds)))
            return Facts(list(calls[0][0][0].shape), branches, plain)

        self._once(("facts", prompt), facts)
        prediction = self.runner.schedule.prediction
        self._once(("recording", prompt), lambda: recording_of(prompt, calls, self._levels[:-1], prediction))
        recorder.forget_samples()
        return Reference(prompt, seed, outcome, recorder)

    def _enabled(
        self, reference: Reference, plan: Plan | unicp.Settings, full: Sequence[int], key: Key = ()
    ) -> tuple[Outcome, Trace]:
        """A run of the prompt under a plan or settings; the first steps, which are full in any case, are played.

        For a trial, with a key, the log also gets what UniCP cost in it, as a share of its full steps.
        """
        first = next((step for step in range(self.runner.steps) if step not in full), self.runner.steps)
        with reference.recorder.playing(first):
            options: dict[str, Any] = {"plan": plan} if isinstance(plan, Plan) else {"settings": plan}
            with unicp.enable(self.runner.pipe, **options) as session:
                outcome = self.runner.run(reference.prompt, reference.seed)
        if key:
            seconds = sum(e.seconds for e in session.trace.entries if e.action == "full" and e.step >= first)
            plain = reference.recorder.played_on
            self.log.add(("added", *key), seconds / plain - 1 if plain else 0.0)
        return outcome, session.trace

    def _probe(self, reference: Reference, step: int) -> None:
        def made() -> Probe:
            outcome = self._run_with_window(reference, range(step, step + 1))
            (error,) = self._errors(reference.prompt, range(step, step + 1))
            return Probe(reference.prompt, step, error, _displacement(outcome, reference), _psnr(outcome, reference))

        self._once(("probe", reference.prompt, step), made)

    def _probe_window(self, reference: Reference, window: range) -> None:
        def made() -> WindowProbe:
            quality = _psnr(self._run_with_window(reference, window), reference)
            return WindowProbe(reference.prompt, window[0], self._errors(reference.prompt, window), quality)

        self._once(("window", reference.prompt, window[0]), made)

    def _run_with_window(self, reference: Reference, window: range) -> Outcome:
        """A run that skips only these steps, forecast from the two before."""
        full = tuple(one for one in range(self.runner.steps) if one not in window)
        settings = preset("balanced", full_steps=full, max_window=self.runner.steps)
        outcome, trace = self._enabled(reference, settings, full)
        done = {entry.step for entry in trace.entries if entry.action == "forecast"}
        left = [step for step in window if step not in done]
        if left:
            found = f"step {left[0]}, which UniCP does not skip"
            raise InputError("to calibrate this pipeline", found, "use more steps")
        return outcome

    def _errors(self, prompt: str, window: range) -> list[float]:
        """Relative errors of the skipped steps, from the recording of the plain run."""
        recording, levels = self.log.known["recording", prompt], self._levels[:-1]
        errors = errors_among([recording], self._forecast(prompt), self.runner.schedule.prediction, levels, levels)
        assert errors is not None
        return [errors(window[0] - 2, window[0] - 1, step) for step in window]

    def _trial(self, reference: Reference, share: float, guarded: bool) -> Trial:
        prompt = reference.prompt
        key: Key = ("trial", prompt, share, int(guarded))

        def made() -> Trial:
            plan, change = self._plan_to_try(prompt, round(share * self.runner.steps), guarded)
            planned = plan.full_steps
            outcome, trace = self._enabled(reference, plan, planned, key)
            full = {entry.step for entry in trace.entries if entry.action == "full"}
            skipped = [entry.seconds for entry in trace.entries if entry.action != "full"]
            self.log.add(("skipped", *key), statistics.median(skipped) if skipped else 0.0)
            saved, moved = self.runner.steps - len(planned), _displacement(outcome, reference)
            quality = _psnr(outcome, reference)
            return Trial(prompt, len(planned), len(full), saved, change, moved, quality, guarded)

        return self._once(key, made)

    def _online(self, reference: Reference, tolerance: float) -> OnlineTrial:
        key: Key = ("online", reference.prompt, tolerance)

        def made() -> OnlineTrial:
            settings = preset("balanced", tolerance=tolerance)
            outcome, trace = self._enabled(reference, settings, range(settings.first), key)
            full = {entry.step for entry in trace.entries if entry.action == "full"}
            return OnlineTrial(reference.prompt, tolerance, len(full), _psnr(outcome, reference))

        return self._once(key, made)

    def _fewer(self, reference: Reference, steps: int) -> None:
        def made() -> FewerSteps:
            outcome = self.runner.run(reference.prompt, reference.seed, steps)
            return FewerSteps(reference.prompt, steps, _psnr(outcome, reference))

        self._once(("fewer", reference.prompt, steps), made)

    def _fewer_chosen(self, reference: Reference, steps: int) -> None:
        """A plain run at the full steps of a plan that is solved without this prompt."""
        plan, change = self._plan_to_try(reference.prompt, steps)
        chosen = plan.full_steps

        def made() -> FewerSteps:
            with only_steps(self.runner.pipe.scheduler, self.runner.steps, chosen):
                outcome = self.runner.run(reference.prompt, reference.seed, len(chosen))
            return FewerSteps(reference.prompt, len(chosen), _psnr(outcome, reference), chosen, change)

        # In short runs two shares may give the same number of steps.
        self._once(("fewer", reference.prompt, len(chosen), "chosen"), made)

    def _plan_to_try(self, prompt: str, count: int, guarded: bool = True) -> tuple[Plan, float]:
        """A plan with this many full steps, solved without this prompt once all probes are in the log."""
        profile = counted(self._probes_alone())
        if prompt not in self._choices:
            self._choices[prompt] = best_choices(profile, self._levels, prompt)
        return plan_to_try(profile, self._levels, self._choices[prompt], count, guarded)

    def _probes_alone(self) -> Profile:
        """The profile without trials and shorter runs."""
        facts, skipped, added = (self.log.of(kind) for kind in ("facts", "skipped", "added"))
        if not facts:
            raise FileFormatError(f"to continue {self.log.path}", "no plain run", AGAIN)
        seconds = Seconds(
            statistics.median(one.seconds.computed for one in facts),
            facts[0].branches * statistics.median(skipped) if skipped else 0.0,
            statistics.median(one.seconds.rest for one in facts),
            max(0.0, statistics.median(added)) if added else 0.0,
        )
        return Profile(
            fingerprint=replace(self.fingerprint, branches=facts[0].branches),
            device=str(self.runner.transformer.device),
            shape=facts[0].shape,
            signal=[level.signal for level in self._levels],
            noise=[level.noise for level in self._levels],
            power=self.config.power,
            seconds=seconds,
            recordings=self.log.of("recording"),
            probes=self.log.of("probe"),
            windows=self.log.of("window"),
            trials=[],
            online=[],
            fewer=[],
            replayed=self.runner.replays,
        )


def _psnr(outcome: Outcome, reference: Reference) -> float:
    """PSNR of the clip against the plain one, in dB."""
    return psnr(reference.outcome.frames, outcome.frames).total


def _displacement(outcome: Outcome, reference: Reference) -> float:
    """Relative error of the final latent."""
    return float(relative_error(outcome.latent, reference.outcome.latent).max())
