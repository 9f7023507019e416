"""What a calibration measured of one model, sampler and device, keyed by noise level; a versioned JSON file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from unicp.errors import FileFormatError, InputError
from unicp.files import (
    Decibels,
    Finite,
    NotNegative,
    Positive,
    Step,
    Whole,
    Within,
    json_ready,
    load_record,
    renamed,
    save_record,
)
from unicp.numerics.noise_levels import NoiseLevel, coefficients

PROFILE_TYPE, PROFILE_VERSION = "unicp.profile", 9
# The profiles that ship with the package.
FOLDER = Path(__file__).parent / "profiles"
# dB taken off what a profile of another model predicts: as far as the lines of the shipped profiles lie apart. At a
# predicted change of 0.03, `fit_line(profile.trials).psnr(0.03).mean` is from 28.7 dB (glyphs, Euler) to 35.2 (film),
# and with `guarded=False` from 22.0 to 27.5.
CAUTION = 6.0


@dataclass(frozen=True)
class Fingerprint:
    """What a profile is valid for.

    Attributes:
        model: Class of the transformer.
        config: Twelve digits of a hash of the model's configuration.
        dtype: Such as "float32".
        prediction: What the model's output is, such as "flow".
        scheduler: Its class, which decides what an error does to the steps after it.
        branches: Calls a step (guidance makes two); 0 = not known yet, which no file holds.
    """

    model: str
    config: str
    dtype: str
    prediction: str
    scheduler: str
    branches: Annotated[int, Within(1, 1000)]

    @classmethod
    def of(cls, transformer: Any, scheduler: Any, prediction: str, branches: int = 0) -> Fingerprint:
        """The fingerprint of a model as it is. Needs none of the libraries that the model is from."""
        config = getattr(transformer, "config", None)
        values = dict(config) if isinstance(config, Mapping) else {}
        public = {key: value for key, value in values.items() if not key.startswith("_")}
        text = json.dumps(json_ready(public), sort_keys=True, default=str)
        return cls(
            model=type(transformer).__name__,
            config=hashlib.sha256(text.encode()).hexdigest()[:12],
            dtype=str(getattr(transformer, "dtype", "unknown")).removeprefix("torch."),
            prediction=prediction,
            scheduler=type(scheduler).__name__,
            branches=branches,
        )

    def differences(self, other: Fingerprint) -> list[str]:
        """One phrase for each field in which `other` differs, except `branches` if those of `other` are not known."""
        pairs = ((name, mine, getattr(other, name)) for name, mine in vars(self).items())
        return [f"{name} {theirs}, not {mine}" for name, mine, theirs in pairs if mine != theirs and theirs != 0]


@dataclass(frozen=True)
class Recording:
    """What errors of forecasts need of one plain run; all numbers are means over branches.

    Attributes:
        prompt: Of the run.
        power: Mean square of the model's output, by step.
        products: By quantity ("output", "noise", "clean"), the mean product of that quantity at two steps, on the
            positions that UniCP measures errors on: the lower triangle of the matrix, row by row.
    """

    prompt: str
    power: list[Positive]
    products: dict[str, list[Finite]]


@dataclass(frozen=True)
class Probe:
    """A run that skips one step, forecast over the log-SNR from the two steps before.

    Attributes:
        prompt: Of the run.
        step: The skipped one.
        error: Relative, of the outputs at that step.
        displacement: Relative, of the final latent.
        psnr: Of the clip against the plain one, in dB.
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
    """A run that skips several steps in a row, all forecast from the two steps before.

    Attributes:
        prompt: Of the run.
        first: First of the skipped steps.
        errors: Relative, of their outputs, one for each.
        psnr: Of the clip against the plain one, in dB.
    """

    prompt: str
    first: Step
    errors: list[NotNegative]
    psnr: Decibels

    @property
    def change(self) -> float:
        """As `Probe.change`."""
        return 10 ** (-self.psnr / 20)


@dataclass(frozen=True)
class Trial:
    """A run of a solved plan on a calibration prompt that it was solved without.

    Attributes:
        prompt: Of the run.
        planned: Full steps of the plan.
        computed: Full steps in the end.
        saved: Steps that the plan skips.
        allowed: Predicted change of the clip, which the guard allowed.
        displacement: Relative, of the final latent.
        psnr: Of the clip against the plain one, in dB.
        guarded: Whether the guard could make more steps full, as under a target of fidelity.
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
    """A run of the online rule of `balanced`.

    Attributes:
        prompt: Of the run.
        tolerance: Of the rule.
        computed: Full steps.
        psnr: Of the clip against the plain one, in dB.
    """

    prompt: str
    tolerance: Positive
    computed: Step
    psnr: Decibels


@dataclass(frozen=True)
class FewerSteps:
    """The plain pipeline with fewer steps on a calibration prompt, against its whole run.

    Attributes:
        prompt: Of the run.
        steps: How many.
        psnr: Of the clip against that of the whole run, in dB.
        computed: The steps of the whole run, which a plan would make full; [] = evenly spaced ones.
        allowed: Predicted change of the clip under that plan.
    """

    prompt: str
    steps: Step
    psnr: Decibels
    computed: list[Step] = field(default_factory=list)
    allowed: NotNegative = 0.0


@dataclass(frozen=True)
class Seconds:
    """Wall time on the device of the calibration, in seconds.

    Attributes:
        computed: Of a full step.
        skipped: Of a skipped step.
        rest: Of the rest of a run.
        added: What UniCP itself costs, as a share of a full step; median over trials, at least 0.
    """

    computed: Positive
    skipped: NotNegative
    rest: NotNegative
    added: NotNegative = 0.0


@dataclass(frozen=True)
class Profile:
    """Everything that a plan is made from.

    Attributes:
        fingerprint: What it is valid for.
        device: Where it was made.
        shape: Of the latent, batch first.
        signal, noise: Parts of the sample at each step of the recorded runs, and at the level after the last.
        power: Exponent with which the changes by windows add.
        seconds: Wall time.
        recordings, probes, windows, trials, online, fewer: What calibration ran.
        replayed: Whether the sampler replayed skipped steps in probes and trials (docs/method.md, 3.4).
        left: Whether plans count what stays of a skipped step, rather than what its forecast missed; see
            `unicp.planning.curves.counted`.

    Raises:
        FileFormatError: The parts do not fit together.
    """

    fingerprint: Fingerprint
    device: str
    shape: list[Whole]
    signal: list[NotNegative]
    noise: list[NotNegative]
    power: Annotated[float, Within(1, 2)]
    seconds: Seconds
    recordings: list[Recording]
    probes: list[Probe]
    windows: list[WindowProbe]
    trials: list[Trial]
    online: list[OnlineTrial]
    fewer: list[FewerSteps]
    replayed: bool = False
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
    """Writes a profile as JSON.

    Raises:
        InputError: The path cannot be written.
    """
    save_record(profile, PROFILE_TYPE, PROFILE_VERSION, path)


def load_profile(path: str | Path) -> Profile:
    """Reads a profile of this version or of version 8.

    Raises:
        InputError: There is no readable file.
        FileFormatError: It is damaged, foreign, of another version, or holds numbers that no calibration gives.
    """
    return load_record(Profile, PROFILE_TYPE, PROFILE_VERSION, path, "calibrate again", {8: _from_version_8})


def _from_version_8(body: dict[str, Any]) -> dict[str, Any]:
    """Version 8 called `replayed` `mended`, and `skipped` of the seconds `served`."""
    body = renamed(body, {"mended": "replayed"})
    seconds = body.get("seconds")
    return body | {"seconds": renamed(seconds, {"served": "skipped"})} if isinstance(seconds, dict) else body


def _problem(profile: Profile) -> str:
    """What does not fit together in a profile, "" for nothing. The types check single numbers."""
    steps = len(profile.signal) - 1
    if steps < 4 or len(profile.noise) != steps + 1:
        return f"{len(profile.signal)} and {len(profile.noise)} noise levels"
    if not all(map(math.isfinite, [*profile.signal, *profile.noise])):
        return "noise levels that are not finite"
    sigmas = [level.sigma for level in profile.levels]
    if any(later >= earlier for earlier, later in zip(sigmas, sigmas[1:])):
        return "noise levels that do not fall"
    if not profile.recordings or not profile.probes:
        return "no recorded run or no probe"
    for recording in profile.recordings:
        lengths = {len(values) for values in recording.products.values()}
        if len(recording.power) != steps or lengths != {steps * (steps + 1) // 2}:
            return f"a recording of {len(recording.power)} steps beside {steps} noise levels"
    if any(probe.step >= steps or not probe.change > 0 for probe in profile.probes):
        return "a probe without a change, or outside the run"
    for window in profile.windows:
        if not window.errors or window.first + len(window.errors) > steps:
            return "a probed window outside the run"
        if not 0 < sum(window.errors) < math.inf or not window.change > 0:
            return "a probed window without errors or a change"
    if any(one.computed > steps for one in profile.online):
        return "a trial of the online rule of another run"
    if any(one.computed and not _is_part(one.computed, one.steps, steps) for one in profile.fewer):
        return "fewer steps that are not of the run"
    if not math.isfinite(profile.seconds.added):
        return "a cost of UniCP without end"
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


def builtin_profile(fingerprint: Fingerprint) -> tuple[Profile, float]:
    """The shipped profile that fits a model best.

    Returns:
        The profile, and the dB to take off what it predicts: 0 if it is of this very model.

    Raises:
        InputError: No profile is shipped.
    """
    profiles = _shipped()
    if not profiles:
        raise InputError("a target without a profile", "no built-in profile", "make one with unicp calibrate")
    for profile in profiles:
        if not profile.fingerprint.differences(fingerprint):
            return profile, 0.0

    def likeness(profile: Profile) -> tuple[bool, bool]:
        shipped = profile.fingerprint
        return shipped.scheduler == fingerprint.scheduler, shipped.prediction == fingerprint.prediction

    return max(profiles, key=likeness), CAUTION


@lru_cache(maxsize=1)
def _shipped() -> tuple[Profile, ...]:
    return tuple(load_profile(path) for path in sorted(FOLDER.glob("*.json")))
