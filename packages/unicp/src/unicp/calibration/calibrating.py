"""Calibration, from prompts to a profile: plain runs, and trials of plans on the same prompts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from unicp.calibration.checkpoint_log import AGAIN, CheckpointLog, PlainRun, TrialRun
from unicp.calibration.clip_maker import ClipMaker, of_function, of_pipeline
from unicp.calibration.plain_run import CallTimer, SamplerRecorder, mean_products, products_of
from unicp.context import Action
from unicp.errors import FileFormatError, InputError, SettingsError
from unicp.numerics.fidelity import psnr
from unicp.planning.plan import Plan
from unicp.planning.products import Products
from unicp.planning.profile import Fingerprint, Profile, Seconds, Trial, save_profile
from unicp.planning.solver import Solver, check_steps, loss_of_run
from unicp.policies.run_loss import RunLoss
from unicp.records import Trace
from unicp.sampler.scheduler_state import can_repeat
from unicp.session import enable


@dataclass(frozen=True)
class CalibrationConfig:
    """Which runs a calibration makes.

    Attributes:
        prompts: How many of those given.
        trials: Shares of full steps of the plans that are tried on each prompt.
        least_steps: Shortest run: windows need a few steps.
    """

    prompts: int = 3
    trials: tuple[float, ...] = (0.5, 1 / 3)
    least_steps: int = 8

    @property
    def clips(self) -> float:
        """What all runs cost, in plain clips."""
        return self.prompts * (1 + sum(self.trials))


# At most 6 clips, of which a line and a rough spread can be told; and at most 20, for a spread of the model's own.
QUICK = CalibrationConfig()
THOROUGH = CalibrationConfig(prompts=8, trials=(0.6, 0.45, 0.3))


class Calibration:
    """One calibration: `run` makes the runs that are not in the log yet, and writes the profile.

    Args:
        maker: Makes the clips.
        prompts: Different ones; each is run with its number as seed.
        out: The profile to write; results so far are kept beside it.
        on_progress: Gets a line for each run.
        config: Which runs are made.

    Raises:
        InputError: There are too few prompts, or the log belongs to another calibration.
    """

    def __init__(
        self,
        maker: ClipMaker,
        prompts: Sequence[str],
        out: Path,
        on_progress: Callable[[str], None] = lambda line: None,
        config: CalibrationConfig = QUICK,
    ):
        if not prompts or len(set(prompts)) < len(prompts):
            raise InputError("to calibrate", "no prompts, or one of them twice", "give different prompts")
        self.maker, self.config, self.out, self._say = maker, config, out, on_progress
        self.prompts = list(prompts)[: config.prompts]
        self.fingerprint = Fingerprint.of(maker.transformer, maker.scheduler, maker.schedule.prediction)
        about = {"model": vars(self.fingerprint), "prompts": self.prompts, "arguments": dict(maker.about)}
        self.log = CheckpointLog.open(out, {**about, "config": vars(config)})
        self._done = 0

    @property
    def runs(self) -> int:
        """How many runs there are in all."""
        return len(self.prompts) * (1 + len(self.config.trials))

    @property
    def clips(self) -> float:
        """What all runs cost, in plain clips."""
        return self.config.clips * len(self.prompts) / self.config.prompts

    def run(self) -> Profile:
        """Makes the runs that are left and writes the profile."""
        references = {prompt: self._plain(seed, prompt) for seed, prompt in enumerate(self.prompts)}
        loss = self._loss()
        for seed, prompt in enumerate(self.prompts):
            for share in self.config.trials:
                self._trial(seed, prompt, references[prompt], loss, share)
        device = str(next(self.maker.transformer.parameters()).device)
        profile = profile_of(self._known(), self.log.of("trial"), self.fingerprint, device)
        save_profile(profile, self.out)
        self.log.done()
        return profile

    def _tell(self, what: str) -> None:
        self._done += 1
        self._say(f"{self._done} of {self.runs}: {what}")

    def _plain(self, seed: int, prompt: str) -> Tensor:
        """Makes the plain run, also if it is in the log: trials are compared with its clip."""
        maker = self.maker
        timer = CallTimer(maker.transformer, maker.map.family.sample_argument)
        recorder = SamplerRecorder(maker.scheduler)
        with timer.timing(), recorder.recording():
            clip, total = _timed(maker, prompt, seed)
        if ("plain", prompt) not in self.log.known:
            self.log.add(("plain", prompt), self._read(timer, recorder, total))
        self._tell(f"plain run of {prompt!r}")
        return clip

    def _read(self, timer: CallTimer, recorder: SamplerRecorder, total: float) -> PlainRun:
        maker, steps, calls = self.maker, len(recorder.given), len(timer.seconds)
        levels = maker.schedule.levels()
        if levels is None or len(levels) != steps + 1 or not steps or calls % steps:
            found = f"{calls} calls of the model and {steps} steps of the scheduler in one run"
            do = "give the scheduler that the loop steps, one step for each call and branch"
            raise InputError("to calibrate", found, do)
        if steps < self.config.least_steps:
            raise InputError(
                f"to calibrate at {steps} steps", "too few to skip any", f"use {self.config.least_steps} or more"
            )
        check_steps(steps)
        if recorder.shares is None:
            found = f"a {type(maker.scheduler).__name__} that does not tell what it makes of each output"
            raise InputError("to calibrate", found, "use another scheduler or a preset")
        matrix = products_of(recorder.given, levels[:-1], maker.schedule.sampler_prediction)
        branches = calls // steps
        by_step = [sum(timer.seconds[at : at + branches]) for at in range(0, calls, branches)]
        products = mean_products([matrix], levels[:-1])
        signal, noise = [level.signal for level in levels], [level.noise for level in levels]
        rest = max(0.0, total - sum(timer.seconds))
        return PlainRun(
            products, signal, noise, list(recorder.shares), timer.shape, branches, statistics.median(by_step), rest
        )

    def _known(self) -> list[PlainRun]:
        return [self.log.known["plain", prompt] for prompt in self.prompts]

    def _loss(self) -> RunLoss:
        levels, is_replayed = self.maker.schedule.levels(), can_repeat(self.maker.scheduler)
        assert levels is not None
        prediction = self.maker.schedule.prediction
        return loss_of_run(mean_of(self._known()), prediction, levels[:-1], self._known()[0].shares, is_replayed)

    def _trial(self, seed: int, prompt: str, plain: Tensor, loss: RunLoss, share: float) -> None:
        if ("trial", prompt, share) not in self.log.known:
            paths = loss.best([0])
            count = min(paths, key=lambda one: abs(one - share * loss.steps))
            plan = Solver(self.fingerprint.model, loss).made("", paths[count], can_add=True)
            self.log.add(("trial", prompt, share), self._tried(seed, prompt, plain, plan, paths[count].loss))
        trial = self.log.known["trial", prompt, share].trial
        self._tell(f"trial of {prompt!r}: {trial.full} full steps, {trial.psnr:.1f} dB")

    def _tried(self, seed: int, prompt: str, plain: Tensor, plan: Plan, loss: float) -> TrialRun:
        maker = self.maker
        with enable(maker.target, plan=plan, scheduler=maker.scheduler) as session:
            clip, total = _timed(maker, prompt, seed)
        if clip.shape != plain.shape:
            found = f"clips of shapes {tuple(plain.shape)} and {tuple(clip.shape)}"
            raise InputError("to calibrate", found, "make clips of one size")
        full, skipped = (_seconds_by_step(session.trace, is_full) for is_full in (True, False))
        if not full:
            raise InputError("to calibrate", "a trial in which UniCP saw no call", "give the transformer of the loop")
        # What the sampler does more than in a plain run comes at full steps, where skipped ones are replayed.
        rest = self.log.known["plain", prompt].rest
        more = max(0.0, total - sum(full.values()) - sum(skipped.values()) - rest) / len(full)
        trial = Trial(prompt, len(full), loss, psnr(clip, plain).total)
        return TrialRun(trial, statistics.median(full.values()) + more, _median(skipped.values()))


def profile_of(plain: Sequence[PlainRun], tried: Sequence[TrialRun], fingerprint: Fingerprint, device: str) -> Profile:
    """The profile of runs that were made.

    Args:
        plain: Plain runs, at least one, all at the same noise levels.
        tried: Trials, at least one.
        fingerprint: Of the model; the calls a step are taken from the runs.
        device: Where they were made.

    Raises:
        FileFormatError: They do not belong together.
    """
    first = plain[0]
    seconds = Seconds(
        statistics.median(run.full for run in tried),
        statistics.median(run.step for run in plain),
        _median([run.skipped for run in tried]),
        statistics.median(run.rest for run in plain),
    )
    trials = [run.trial for run in tried]
    whole = replace(fingerprint, branches=first.branches)
    levels = first.signal, first.noise, first.shares
    return Profile(whole, device, first.shape, *levels, mean_of(plain), trials, seconds)


def mean_of(plain: Sequence[PlainRun]) -> Products:
    """The mean products of plain runs. Raises FileFormatError where they are at different noise levels."""
    places = plain[0].products.places
    if any(run.products.places != places for run in plain):
        raise FileFormatError("plain runs of one calibration", "different noise levels", AGAIN)
    total = plain[0].products.matrix
    for run in plain[1:]:
        total = total + run.products.matrix
    return Products.of(total / len(plain), places)


def calibrate(
    model: Any,
    prompts: Sequence[str],
    *,
    steps: int | None = None,
    out: str | Path = "profile.json",
    thorough: bool = False,
    transformer: Any = None,
    scheduler: Any = None,
    on_progress: Callable[[str], None] = lambda line: None,
    **arguments: Any,
) -> Profile:
    """Measures a profile, with which targets are promises: plain runs, and trials of plans on the same prompts.

    It takes as long as 6 plain clips, or 20 for a thorough one, whose bounds are tighter. If it is stopped, the same
    call continues. The model may be any that is in memory, with LoRA or quantised.

    Args:
        model: A pipeline, or a function that makes a clip of a prompt and a seed: any loop of your own, image-to-video
            among them. The clip is a tensor or an array with values in [0, 1].
        prompts: Different ones, like those that will be run: 3 are used, or 8 for a thorough profile.
        steps: Of each run of a pipeline.
        out: The profile to write.
        thorough: Whether 20 clips are spent.
        transformer, scheduler: Of a function's loop: the very objects that it calls and steps.
        on_progress: Gets a line for each run.
        arguments: Further ones for each call of a pipeline, such as height, num_frames or image.

    Returns:
        The profile, which is also written to `out`; give either to `unicp.enable(…, target=…, profile=…)`.

    Raises:
        InputError: The pipeline or the loop cannot be calibrated, or `out` cannot be written.
        SettingsError: Something is missing.

    Example:
        >>> import unicp
        >>> def profile_of(pipe):
        ...     prompts = ["a cat", "a ship at sea", "two children running"]
        ...     return unicp.calibrate(pipe, prompts, steps=30, height=480, width=832)
    """
    config = THOROUGH if thorough else QUICK
    if hasattr(model, "scheduler") and not (transformer or scheduler):
        if steps is None:
            raise SettingsError("to calibrate a pipeline", "no number of steps", "give steps=…")
        maker = of_pipeline(model, steps, arguments)
    elif callable(model):
        if arguments or steps is not None:
            names = ", ".join([*arguments, *(["steps"] if steps is not None else [])])
            raise SettingsError("to calibrate a function", f"{names} as well", "let the function hold them")
        maker = of_function(model, transformer, scheduler)
    else:
        raise SettingsError("to calibrate", f"a {type(model).__name__}", "give a pipeline or a function")
    return Calibration(maker, prompts, Path(out), on_progress, config).run()


def _timed(maker: ClipMaker, prompt: str, seed: int) -> tuple[Tensor, float]:
    begin = time.perf_counter()
    clip = maker.clip(prompt, seed)
    return clip, time.perf_counter() - begin


def _seconds_by_step(trace: Trace, is_full: bool) -> dict[int, float]:
    """Seconds of the full steps of a trace, or of the others, by step."""
    found: dict[int, float] = {}
    for entry in trace.entries:
        if (entry.action == Action.FULL.value) == is_full:
            found[entry.step] = found.get(entry.step, 0.0) + entry.seconds
    return found


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else 0.0
