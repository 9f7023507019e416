"""What a calibration found out about one model, sampler and device, keyed by noise level; a versioned JSON file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from unicp.errors import FileFormatError
from unicp.files import Decibels, Finite, NotNegative, Number, Positive, Step, Whole, Within, load_record, save_record
from unicp.numerics.noise_levels import NoiseLevel, coefficients

PROFILE_TYPE, PROFILE_VERSION = "unicp.profile", 8


@dataclass(frozen=True)
class Fingerprint:
    """What a profile is valid for.

    model: class of the transformer. config: hash of its configuration. dtype, prediction: as words. scheduler: class,
    which decides what an error does to the steps after it. branches: calls a step (guidance makes two).
    """

    model: str
    config: str
    dtype: str
    prediction: str
    scheduler: str
    branches: Annotated[int, Within(1, 1000)]

    def differences(self, other: Fingerprint) -> list[str]:
        """One phrase per field in which `other` differs, "" for none."""
        pairs = ((name, mine, getattr(other, name)) for name, mine in vars(self).items())
        return [f"{name} {theirs}, not {mine}" for name, mine, theirs in pairs if mine != theirs]


@dataclass(frozen=True)
class Recording:
    """One plain run of one prompt, as far as errors of forecasts need it; all numbers are means over branches.

    power: mean square of the model's output, by step. products: by quantity ("output", "noise", "clean"), the mean
    product of that quantity at two steps, on the positions that UniCP measures errors on: the lower triangle of
    the matrix, row by row. The error of any forecast follows from it, because forecasts are sums of what is stored.
    """

    prompt: str
    power: list[Positive]
    products: dict[str, list[Finite]]


@dataclass(frozen=True)
class Probe:
    """A run with the outputs of one step forecast over the log-SNR from those of the two steps before.

    error: relative, of the outputs at that step. displacement: relative, of the final latent. psnr: of the clip, in dB.
    """

    prompt: str
    step: Step
    error: Positive
    displacement: NotNegative
    psnr: Decibels

    @property
    def change(self) -> float:
        """Root mean square of the change of the clip's pixels, as a share of their range."""
        return 10 ** (-self.psnr / 20)


@dataclass(frozen=True)
class WindowProbe:
    """A run in which several steps in a row are forecast from the two steps before.

    first: of the steps served. errors: relative, of their outputs, one for each. psnr: of the clip, in dB.
    """

    prompt: str
    first: Step
    errors: list[NotNegative]
    psnr: Decibels

    @property
    def change(self) -> float:
        """As that of a `Probe`."""
        return 10 ** (-self.psnr / 20)


@dataclass(frozen=True)
class Trial:
    """A run of a solved plan on a calibration prompt that it was solved without.

    planned, saved: steps the plan computes and serves. computed: steps computed in the end. allowed: change of the clip
    that was predicted, and that the guard allowed. displacement: of the final latent. psnr: of the clip, in dB.
    guarded: whether the guard could compute more, as under a target of fidelity, or not, as under one of speed.
    """

    prompt: str
    planned: Step
    computed: Step
    saved: Step
    allowed: NotNegative
    displacement: NotNegative
    psnr: Decibels
    guarded: bool = True


@dataclass(frozen=True)
class OnlineTrial:
    """A run of the online rule of `balanced` with this tolerance on a calibration prompt.

    computed: steps. psnr: of the clip, in dB.
    """

    prompt: str
    tolerance: Positive
    computed: Step
    psnr: Decibels


@dataclass(frozen=True)
class FewerSteps:
    """The plain pipeline with fewer steps on a calibration prompt, against its full run. psnr: of the clip, in dB.

    computed: which steps of the full run they were, those that a plan would compute; [] = evenly spaced ones.
    allowed: change of the clip that was predicted of that plan.
    """

    prompt: str
    steps: Step
    psnr: Decibels
    computed: list[Step] = field(default_factory=list)
    allowed: NotNegative = 0.0


@dataclass(frozen=True)
class Seconds:
    """Wall time on the device of the calibration: of a computed and of a served step, and of all the rest of a run.

    added: what UniCP itself costs, as a share of each computed step; median over trials, at least 0.
    """

    computed: Positive
    served: NotNegative
    rest: NotNegative
    added: NotNegative = 0.0


@dataclass(frozen=True)
class Profile:
    """Everything a plan is made from.

    shape: of the latent, batch first. signal, noise: parts of the sample at each step of the recorded runs, with one
    more for the level after the last step. power: with which the changes by windows add. mended: whether served steps
    were taken again in probes and trials once a step was computed after them (docs/method.md, 3.6). left: whether plans
    count what stays of a served step then, and not what its forecast missed: see `unicp.planning.curves.counted`.
    """

    fingerprint: Fingerprint
    device: str
    shape: list[Whole]
    signal: list[NotNegative]
    noise: list[NotNegative]
    power: Number
    seconds: Seconds
    recordings: list[Recording]
    probes: list[Probe]
    windows: list[WindowProbe]
    trials: list[Trial]
    online: list[OnlineTrial]
    fewer: list[FewerSteps]
    mended: bool = False
    left: bool = False

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise FileFormatError("a profile", problem, "calibrate again")

    @property
    def steps(self) -> int:
        """Steps of the recorded runs."""
        return len(self.signal) - 1

    @property
    def levels(self) -> list[NoiseLevel]:
        """The noise level of each step of the recorded runs, and the one after the last."""
        return [NoiseLevel(signal, noise) for signal, noise in zip(self.signal, self.noise)]


def save_profile(profile: Profile, path: str | Path) -> None:
    """Writes a profile; errors as for `unicp.files.save_trace`."""
    save_record(profile, PROFILE_TYPE, PROFILE_VERSION, path)


def load_profile(path: str | Path) -> Profile:
    """Reads a profile.

    Raises InputError where there is no readable file, FileFormatError where it is damaged, foreign, of another version,
    or holds numbers that no calibration gives.
    """
    return load_record(Profile, PROFILE_TYPE, PROFILE_VERSION, path, "calibrate again")


def _problem(profile: Profile) -> str:
    """What is wrong with the numbers of a profile, "" for nothing."""
    steps = len(profile.signal) - 1
    if steps < 4 or len(profile.noise) != steps + 1:
        return f"{len(profile.signal)} and {len(profile.noise)} noise levels"
    parts = [*profile.signal, *profile.noise]
    if not all(math.isfinite(part) and part >= 0 for part in parts):
        return "noise levels that are not finite and at least 0"
    sigmas = [level.sigma for level in profile.levels]
    if any(later >= earlier for earlier, later in zip(sigmas, sigmas[1:])):
        return "noise levels that do not fall"
    if not profile.recordings or not profile.probes:
        return "no recorded run or no probe"
    for recording in profile.recordings:
        lengths = {len(values) for values in recording.products.values()}
        if len(recording.power) != steps or lengths != {steps * (steps + 1) // 2}:
            return f"a recording of {len(recording.power)} steps beside {steps} noise levels"
        if not all(math.isfinite(one) for values in recording.products.values() for one in values):
            return "products that are not finite"
        if not all(math.isfinite(one) and one > 0 for one in recording.power):
            return "an output without power"
    if any(
        not 0 <= probe.step < steps or not probe.error > 0 or not 0 < probe.change < math.inf
        for probe in profile.probes
    ):
        return "a probe without an error, or outside the run"
    if any(
        not 0 <= window.first < window.first + len(window.errors) <= steps
        or not sum(window.errors) > 0
        or not 0 < window.change < math.inf
        for window in profile.windows
    ):
        return "a probed window without errors, or outside the run"
    if any(not 0 < one.tolerance < math.inf or not 0 <= one.computed <= steps for one in profile.online):
        return "a trial of the online rule without a tolerance, or of another run"
    if any(one.computed and not _is_part(one.computed, one.steps, steps) for one in profile.fewer):
        return "fewer steps that are not of the run"
    seconds = profile.seconds
    if not 1 <= profile.power <= 2 or not seconds.computed > 0 or not 0 <= seconds.added < math.inf:
        return "a power that is not from 1 to 2, or seconds that are not positive"
    return _unknown_names(profile)


def _is_part(computed: list[int], count: int, steps: int) -> bool:
    """Whether `computed` are `count` steps of a run, in order."""
    return len(computed) == count and computed == sorted(set(computed)) and 0 <= computed[0] <= computed[-1] < steps


def _unknown_names(profile: Profile) -> str:
    quantities = {name for recording in profile.recordings for name in recording.products}
    try:
        for name in quantities:
            coefficients(name, profile.fingerprint.prediction, profile.levels[0])
    except ValueError:
        return f"quantities {', '.join(sorted(quantities))} of prediction {profile.fingerprint.prediction!r}"
    return ""
