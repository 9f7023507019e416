"""From prompts to a profile: plain runs, probes, trials of solved plans and of the online rule, fewer steps.

Every run but the plain ones begins as its prompt's plain run does. What is equal is played from a tape and costs
nothing, so a probe late in a run, or a trial, takes a part of a clip's time.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import unicp
from unicp.calibration.notes import AGAIN, Facts, Notes, PlainSeconds
from unicp.calibration.recording import Tape, recording_of
from unicp.calibration.running import Outcome, Reference, Runs
from unicp.context import Forecast
from unicp.errors import FileFormatError, InputError
from unicp.numerics.error_measures import relative_error
from unicp.numerics.fidelity import psnr
from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.curves import counted, forecast_errors, probed_way, servable
from unicp.planning.fingerprint import fingerprint_of
from unicp.planning.plan import Plan
from unicp.planning.profile import (
    FewerSteps,
    Fingerprint,
    OnlineTrial,
    Probe,
    Profile,
    Recording,
    Seconds,
    Trial,
    WindowProbe,
    save_profile,
)
from unicp.planning.solver import Choice, best_choices, plan_to_try
from unicp.sampler.shorten import can_choose, only_steps
from unicp.settings import preset

LEAST_STEPS = 8
# Places of the probes, as shares of the run; between them the impact is interpolated. Most are where it falls steeply.
PROBED = (0.14, 0.17, 0.2, 0.24, 0.28, 0.34, 0.42, 0.6, 0.8, 0.93, 1.0)
# Shares of the steps that the plans which are tried compute, each with a guard that may compute more and with none.
TRIED = (0.24, 0.3, 0.4, 0.52, 0.66)
# Tolerances with which the online rule is tried.
ONLINE = (0.02, 0.07, 0.25, 0.9, 2.5)
FEWER = (0.5, 1 / 3, 0.24)
# The same of runs at the noise levels that a plan would compute.
PLACED = (2 / 3, 0.6, 0.5, 1 / 3)
# Windows that are probed as a whole: where they begin, and how long they are, as shares of the run.
WINDOWS = ((0.4, 0.1), (0.65, 0.1), (0.83, 0.17))
# Cost of all runs of one prompt in plain runs, about; for the estimate only.
PLAIN_RUNS = 17.4
POWER = 2.0
# Notes that are of no run of their own.
BESIDE = ("facts ", "served ", "added ")
Say = Callable[[str], None]


@dataclass
class _Progress:
    """Tells what was done, and what is left."""

    total: int
    say: Say
    done: int = 0

    def step(self, what: str) -> None:
        self.done += 1
        self.say(f"{self.done} of {self.total}: {what}")


class Calibration:
    """One calibration. `run` does what is not in the notes yet, and writes the profile.

    arguments: of every call of the pipeline, without prompt, steps and generator. say: gets a line for each run.
    Raises InputError where the pipeline cannot be calibrated, or the notes are of another calibration.
    """

    def __init__(
        self, pipe: Any, prompts: Sequence[str], steps: int, arguments: Mapping[str, Any], out: Path, say: Say
    ):
        if steps < LEAST_STEPS:
            raise InputError(f"to calibrate at {steps} steps", "too few to learn from", f"use {LEAST_STEPS} or more")
        if not prompts or len(set(prompts)) < len(prompts):
            raise InputError("to calibrate", "no prompts, or one of them twice", "give different prompts")
        self.runs, self.prompts, self.out, self.say = Runs(pipe, arguments, steps), list(prompts), out, say
        self.fingerprint = fingerprint_of(self.runs.transformer, pipe.scheduler, self.runs.schedule.prediction, 0)
        given = {name: str(value) for name, value in arguments.items()}
        about = {"model": vars(self.fingerprint), "steps": steps, "prompts": self.prompts, "arguments": given}
        self.notes = Notes.open(out, about)
        self._levels: tuple[NoiseLevel, ...] = ()
        self._choices: dict[str, dict[int, Choice]] = {}

    def _way(self, prompt: str) -> Forecast:
        return probed_way(self.notes.known[f"recording {prompt}"])

    def _probed(self, prompt: str) -> list[int]:
        steps, way = self.runs.steps, self._way(prompt)
        usable = [k for k, level in enumerate(self._levels[:-1]) if k > 2 and servable(way, self._kind, level)]
        if not usable:
            raise InputError("to calibrate this pipeline", "no step that could be served", "use more steps")
        return sorted({min(usable, key=lambda k: abs(k - share * (steps - 1))) for share in PROBED})

    @property
    def _kind(self) -> str:
        return self.fingerprint.prediction

    def estimate(self) -> float:
        """Seconds that what is left will take, from two steps that are run for it."""
        self.runs.run(self.prompts[0], 0, 2)
        tape = Tape(self.runs.transformer, self.runs.sample_name)
        with tape.recording():
            outcome = self.runs.run(self.prompts[0], 0, 2)
        step = sum(tape.seconds) / 2
        rest = max(0.0, outcome.seconds - sum(tape.seconds))
        runs = len(self.prompts) * _runs_of_prompt(len(PROBED), len(self._placed))
        left = max(0.0, 1 - sum(not key.startswith(BESIDE) for key in self.notes.known) / runs)
        return left * (len(self.prompts) * PLAIN_RUNS * step * self.runs.steps + runs * rest)

    def run(self) -> Profile:
        """Does what is left and writes the profile."""
        references: dict[str, Reference] = {}
        progress = _Progress(0, self.say)
        for number, prompt in enumerate(self.prompts):
            references[prompt] = self._plain(number, prompt)
            progress.total = _runs_of_prompt(len(self._probed(prompt)), len(self._placed)) * len(self.prompts)
            progress.step(f"plain run of {prompt!r}")
            for step in self._probed(prompt):
                self._probe(references[prompt], step)
                progress.step(f"probe at step {step} of {prompt!r}")
            for start, length in WINDOWS:
                first = round(start * self.runs.steps)
                served = range(first, min(self.runs.steps, first + max(2, round(length * self.runs.steps))))
                self._probe_window(references[prompt], served)
                progress.step(f"probe of steps {first} to {served[-1]} of {prompt!r}")
        for prompt in self.prompts:
            for share, guarded in itertools.product(TRIED, (True, False)):
                trial = self._trial(references[prompt], share, guarded)
                progress.step(f"trial of {prompt!r}: {trial.computed} steps computed, {trial.psnr:.1f} dB")
            for tolerance in ONLINE:
                online = self._online(references[prompt], tolerance)
                progress.step(f"online rule on {prompt!r}: {online.computed} steps computed, {online.psnr:.1f} dB")
        for number, prompt in enumerate(self.prompts):
            for share in FEWER:
                self._fewer(references[prompt], number, max(2, round(share * self.runs.steps)))
                progress.step(f"plain run of fewer steps of {prompt!r}")
            for share in self._placed:
                self._fewer_placed(references[prompt], number, round(share * self.runs.steps))
                progress.step(f"plain run of chosen steps of {prompt!r}")
        profile = counted(self.profile_of_notes())
        save_profile(profile, self.out)
        self.notes.done()
        return profile

    def profile_of_notes(self) -> Profile:
        """The profile, once everything is known. Raises FileFormatError where the notes do not make one."""
        return self._profile(self.notes.of("trial"), self.notes.of("fewer"), online=self.notes.of("online"))

    def _plain(self, seed: int, prompt: str) -> Reference:
        """The plain run, always made: what comes after is compared with it and begins with its outputs."""
        tape = Tape(self.runs.transformer, self.runs.sample_name)
        with tape.recording():
            outcome = self.runs.run(prompt, seed)
        self._levels = self.runs.levels()
        branches = len(tape.calls[0]) if tape.calls else 0
        if len(tape.calls) != self.runs.steps or any(len(step) != branches for step in tape.calls):
            found = f"{len(tape.calls)} steps instead of {self.runs.steps}, or not always as many calls"
            raise InputError("to calibrate this pipeline", found, "use a scheduler with one call a step and branch")
        if not {f"recording {prompt}", f"facts {prompt}"} <= set(self.notes.known):
            recording = recording_of(prompt, tape.calls, self._levels[:-1], self.runs.schedule.prediction)
            steps = [sum(tape.seconds[i : i + branches]) for i in range(0, len(tape.seconds), branches)]
            seconds = PlainSeconds(statistics.median(steps), max(0.0, outcome.seconds - sum(tape.seconds)))
            self.notes.add(f"facts {prompt}", Facts(list(tape.calls[0][0][0].shape), branches, seconds))
            self.notes.add(f"recording {prompt}", recording)
        tape.forget_samples()
        return Reference(prompt, seed, outcome, tape)

    def _served(
        self, reference: Reference, plan: Plan | unicp.Settings, computed: Sequence[int], key: str = ""
    ) -> tuple[Outcome, Any]:
        """A run of the prompt under a plan or settings; the first steps, computed in any case, are played.

        key: of a trial; what UniCP cost in it is noted under it, as a share of its computed steps.
        """
        first = next((step for step in range(self.runs.steps) if step not in computed), self.runs.steps)
        with reference.tape.playing(first):
            options: dict[str, Any] = {"plan": plan} if isinstance(plan, Plan) else {"settings": plan}
            with unicp.enable(self.runs.pipe, **options) as session:
                outcome = self.runs.run(reference.prompt, reference.seed)
        if key:
            own = sum(e.seconds for e in session.trace.entries if e.action == "full" and e.step >= first)
            self.notes.add(f"added {key}", own / reference.tape.played_on - 1 if reference.tape.played_on else 0.0)
        return outcome, session.trace

    def _probe(self, reference: Reference, step: int) -> None:
        key = f"probe {step} {reference.prompt}"
        if key in self.notes.known:
            return
        outcome = self._run_with_window(reference, range(step, step + 1))
        error = self._errors(reference.prompt, range(step, step + 1))[0]
        quality = psnr(reference.outcome.frames, outcome.frames).total
        self.notes.add(key, Probe(reference.prompt, step, error, _displacement(outcome, reference), quality))

    def _probe_window(self, reference: Reference, served: range) -> None:
        key = f"window {served[0]} {reference.prompt}"
        if key in self.notes.known:
            return
        quality = psnr(reference.outcome.frames, self._run_with_window(reference, served).frames).total
        self.notes.add(key, WindowProbe(reference.prompt, served[0], self._errors(reference.prompt, served), quality))

    def _run_with_window(self, reference: Reference, served: range) -> Outcome:
        """A run in which these steps alone are served, from the two before."""
        computed = [one for one in range(self.runs.steps) if one not in served]
        settings = preset("balanced", full_steps=tuple(computed), max_window=self.runs.steps)
        outcome, trace = self._served(reference, settings, computed)
        done = {entry.step for entry in trace.entries if entry.action == "forecast"}
        left = [step for step in served if step not in done]
        if left:
            raise InputError(
                "to calibrate this pipeline", f"step {left[0]}, which UniCP does not serve", "use more steps"
            )
        return outcome

    def _errors(self, prompt: str, served: range) -> list[float]:
        """Relative errors of the steps served, as recorded on the plain run."""
        recording = self.notes.known[f"recording {prompt}"]
        profile = self._profile([], [], [Probe(prompt, served[0], 1.0, 1.0, 20.0)], [recording], [])
        errors = forecast_errors(profile, [recording], self._way(prompt), self._levels[:-1])
        assert errors is not None
        return [errors(served[0] - 2, served[0] - 1, step) for step in served]

    def _trial(self, reference: Reference, share: float, guarded: bool) -> Trial:
        kind = "trial" if guarded else "trial unguarded"
        key = f"{kind} {share:.3f} {reference.prompt}"
        if key not in self.notes.known:
            plan, change = self._plan_to_try(reference.prompt, round(share * self.runs.steps), guarded)
            outcome, trace = self._served(reference, plan, plan.full_steps, key)
            made = {entry.step for entry in trace.entries if entry.action == "full"}
            served = [entry.seconds for entry in trace.entries if entry.action != "full"]
            quality = psnr(reference.outcome.frames, outcome.frames).total
            planned, moved = len(plan.full_steps), _displacement(outcome, reference)
            saved = self.runs.steps - planned
            trial = Trial(reference.prompt, planned, len(made), saved, change, moved, quality, guarded)
            self.notes.add(
                f"served {kind} {share:.3f} {reference.prompt}", statistics.median(served) if served else 0.0
            )
            self.notes.add(key, trial)
        return self.notes.known[key]

    def _online(self, reference: Reference, tolerance: float) -> OnlineTrial:
        key = f"online {tolerance:g} {reference.prompt}"
        if key not in self.notes.known:
            settings = preset("balanced", tolerance=tolerance)
            outcome, trace = self._served(reference, settings, range(settings.first), key)
            made = {entry.step for entry in trace.entries if entry.action == "full"}
            quality = psnr(reference.outcome.frames, outcome.frames).total
            self.notes.add(key, OnlineTrial(reference.prompt, tolerance, len(made), quality))
        return self.notes.known[key]

    def _fewer(self, reference: Reference, seed: int, steps: int) -> None:
        key = f"fewer {steps} {reference.prompt}"
        if key not in self.notes.known:
            outcome = self.runs.run(reference.prompt, seed, steps)
            quality = psnr(reference.outcome.frames, outcome.frames).total
            self.notes.add(key, FewerSteps(reference.prompt, steps, quality))

    @property
    def _placed(self) -> tuple[float, ...]:
        return PLACED if can_choose(self.runs.pipe.scheduler) else ()

    def _fewer_placed(self, reference: Reference, seed: int, steps: int) -> None:
        """A plain run at the noise levels that a plan would compute, solved without this prompt."""
        plan, change = self._plan_to_try(reference.prompt, steps)
        # Of short runs two lengths may have the same plan.
        key = f"fewer placed {len(plan.full_steps)} {reference.prompt}"
        if key not in self.notes.known:
            with only_steps(self.runs.pipe.scheduler, self.runs.steps, plan.full_steps):
                outcome = self.runs.run(reference.prompt, seed, len(plan.full_steps))
            quality = psnr(reference.outcome.frames, outcome.frames).total
            self.notes.add(key, FewerSteps(reference.prompt, len(plan.full_steps), quality, plan.full_steps, change))

    def _plan_to_try(self, prompt: str, count: int, guarded: bool = True) -> tuple[Plan, float]:
        """Of this many steps, solved without this prompt: once for all numbers of steps, when all probes are known."""
        profile = counted(self._profile([], []))
        if prompt not in self._choices:
            self._choices[prompt] = best_choices(profile, self._levels, prompt)
        return plan_to_try(profile, self._levels, self._choices[prompt], count, guarded)

    def _profile(
        self,
        trials: list[Trial],
        fewer: list[FewerSteps],
        probes: list[Probe] | None = None,
        recordings: list[Recording] | None = None,
        windows: list[WindowProbe] | None = None,
        online: list[OnlineTrial] | None = None,
    ) -> Profile:
        facts, served, added = (self.notes.of(word) for word in ("facts", "served", "added"))
        if not facts:
            raise FileFormatError(f"to go on with {self.notes.path}", "no plain run", AGAIN)
        seconds = Seconds(
            statistics.median(one.seconds.computed for one in facts),
            facts[0].branches * statistics.median(served) if served else 0.0,
            statistics.median(one.seconds.rest for one in facts),
            max(0.0, statistics.median(added)) if added else 0.0,
        )
        return Profile(
            Fingerprint(**{**vars(self.fingerprint), "branches": facts[0].branches}),
            str(self.runs.transformer.device),
            facts[0].shape,
            [level.signal for level in self._levels],
            [level.noise for level in self._levels],
            POWER,
            seconds,
            self.notes.of("recording") if recordings is None else recordings,
            self.notes.of("probe") if probes is None else probes,
            self.notes.of("window") if windows is None else windows,
            trials,
            online or [],
            fewer,
            self.runs.mended,
        )


def _runs_of_prompt(probes: int, placed: int) -> int:
    """How many runs one prompt takes, the plain one among them. placed: at chosen noise levels."""
    return 1 + probes + len(WINDOWS) + 2 * len(TRIED) + len(ONLINE) + len(FEWER) + placed


def _displacement(outcome: Outcome, reference: Reference) -> float:
    return float(relative_error(outcome.latent, reference.outcome.latent).max())
