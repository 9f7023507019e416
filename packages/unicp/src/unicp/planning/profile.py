"""What a calibration measured of one model, sampler and device; a versioned JSON file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from unicp.errors import FileFormatError
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
    save_record,
)
from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.products import Products

PROFILE_TYPE, PROFILE_VERSION = "unicp.profile", 10
# The profiles that ship with the package.
FOLDER = Path(__file__).parent / "profiles"


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
class Trial:
    """A run of a plan on a calibration prompt.

    Attributes:
        prompt: Of the run.
        full: Full steps in the end.
        loss: Predicted, see `unicp.policies.run_loss`.
        psnr: Of the clip against the plain one, in dB.
    """

    prompt: str
    full: Step
    loss: NotNegative
    psnr: Decibels


@dataclass(frozen=True)
class Seconds:
    """Wall time on the device of the calibration, in seconds; medians over runs.

    Attributes:
        full: Of a full step, with what UniCP adds to it.
        plain: Of a step of the plain pipeline.
        skipped: Of a skipped step.
        rest: Of the rest of a run.
    """

    full: Positive
    plain: Positive
    skipped: NotNegative
    rest: NotNegative

    def of(self, steps: int, full: float) -> float:
        """Seconds of a run with so many full steps."""
        return self.rest + full * self.full + (steps - full) * self.skipped

    def speed_up(self, steps: int, full: float) -> float:
        """Seconds of the plain run over those of a run with so many full steps."""
        return (self.rest + steps * self.plain) / self.of(steps, full)


@dataclass(frozen=True)
class Profile:
    """Everything that a plan is made from.

    Attributes:
        fingerprint: What it is valid for.
        device: Where it was made.
        shape: Of the sample, batch first.
        signal, noise: Parts of the sample at each step of the recorded runs, and at the level after the last.
        shares: Of each output in the final sample of these runs.
        products: What the plain runs recorded.
        trials: Plans that were tried.
        seconds: Wall time.

    Raises:
        FileFormatError: The parts do not fit together.
    """

    fingerprint: Fingerprint
    device: str
    shape: list[Whole]
    signal: list[NotNegative]
    noise: list[NotNegative]
    shares: list[Finite]
    products: Products
    trials: list[Trial]
    seconds: Seconds

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise FileFormatError("a profile", problem, "calibrate again")

    @property
    def steps(self) -> int:
        """Steps of the recorded runs."""
        return len(self.signal) - 1

    @property
    def prompts(self) -> int:
        """How many prompts were tried."""
        return len({trial.prompt for trial in self.trials})

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
    """Reads a profile of this version.

    Raises:
        InputError: There is no readable file.
        FileFormatError: It is damaged, foreign, of another version, or holds numbers that no calibration gives.
    """
    return load_record(Profile, PROFILE_TYPE, PROFILE_VERSION, path, "calibrate again")


def _problem(profile: Profile) -> str:
    """What does not fit together in a profile, "" for nothing. The types check single numbers."""
    steps = len(profile.signal) - 1
    if steps < 4 or len(profile.noise) != steps + 1:
        return f"{len(profile.signal)} and {len(profile.noise)} noise levels"
    if not all(map(math.isfinite, [*profile.signal, *profile.noise])):
        return "noise levels that are not finite"
    if any(signal == noise == 0 for signal, noise in zip(profile.signal, profile.noise)):
        return "a noise level without signal and noise"
    sigmas = [level.sigma for level in profile.levels]
    if any(later >= earlier for earlier, later in zip(sigmas, sigmas[1:])):
        return "noise levels that do not fall"
    if len(profile.shares) != steps:
        return f"shares of {len(profile.shares)} steps beside {steps} noise levels"
    if any(trial.full > steps for trial in profile.trials):
        return "a trial of another run"
    if not all(map(math.isfinite, vars(profile.seconds).values())):
        return "seconds without end"
    return ""


def builtin_profile(fingerprint: Fingerprint) -> Profile | None:
    """The shipped profile of this very model and sampler, if there is one."""
    return next((profile for profile in _shipped() if not profile.fingerprint.differences(fingerprint)), None)


@lru_cache(maxsize=1)
def _shipped() -> tuple[Profile, ...]:
    return tuple(load_profile(path) for path in sorted(FOLDER.glob("*.json")))
