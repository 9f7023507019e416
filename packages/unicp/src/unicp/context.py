"""The plain data that flows between the parts: where a call is, what is seen there, and what is decided. No tensors.

`StepContext` says where in a denoising run one call of the model is. A cache point shows its policy an `Observation`,
the policy answers with a `Decision`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

from unicp.numerics.noise_levels import NoiseLevel

Quantity = Literal["output", "noise", "clean"]
Axis = Literal["sigma", "log_snr", "step"]


class Action(str, Enum):
    """What was done at one cache point in one call."""

    FULL = "full"
    SLICE = "slice"
    FORECAST = "forecast"
    REUSE = "reuse"

    @property
    def skipped(self) -> bool:
        """True when the output came from stored ones and nothing was computed."""
        return self in (Action.FORECAST, Action.REUSE)


@dataclass(frozen=True)
class StepContext:
    """Where in a denoising run one call of the model is.

    Attributes:
        run: Number of the run in its session.
        step: Index of the noise level in the run, from 0.
        branch: Name of the denoising call within the step ("call0", or what `cache_context` says, such as "cond").
        timestep: What the model was given, turned so that it falls along the run.
        samples: Batch size of the call.
        noise_level: Of the sample, `None` where the scheduler does not tell it.
        steps: Length of the run, `None` where it is not known.
        width: How far the step goes, as an angle between noise and clean, over the mean of all steps of a run from
            noise alone; `None` where it is not known.
    """

    run: int
    step: int
    branch: str
    timestep: float
    samples: int
    noise_level: NoiseLevel | None = None
    steps: int | None = None
    width: float | None = None

    @property
    def sigma(self) -> float | None:
        """Normalised noise level in [0, 1]: 0 is a clean sample, 1 is noise alone."""
        return None if self.noise_level is None else self.noise_level.sigma

    @property
    def progress(self) -> float:
        """1 - normalised noise level: 0 at pure noise, 1 at the clean sample; by timestep / 1000 if unknown."""
        sigma = self.timestep / 1000.0 if self.sigma is None else self.sigma
        return min(1.0, max(0.0, 1.0 - sigma))

    def at(self, axis: Axis) -> float | None:
        """Where the step lies on an axis that predictions are made over; `None` where that is not known.

        The timestep / 1000 stands in for an unknown sigma.
        """
        if axis == "step":
            return float(self.step)
        if axis == "sigma":
            return self.timestep / 1000.0 if self.sigma is None else self.sigma
        return None if self.noise_level is None else self.noise_level.log_snr


@dataclass(frozen=True)
class RunInfo:
    """What a policy is told when a run begins.

    Attributes:
        point: Name of the cache point the policy decides for: "model", "stack", or that of a block or unit.
        points: How many full steps the predictor needs before a step can be skipped.
        warn: Takes (key, message): counts an event in the trace, and keeps its message once.
    """

    point: str
    points: int
    warn: Callable[[str, str], None] = lambda key, message: None


class Observation(Protocol):
    """What a policy may ask about one call, before it is computed. Asking costs a little; what is not asked is free."""

    @property
    def veto(self) -> str:
        """Why this call must be full whatever a policy decides, "" = nothing is against skipping it."""
        ...

    @property
    def others(self) -> Sequence[str]:
        """The other branches that the step before had, at the first call of a step; empty at later calls."""
        ...

    @property
    def base_error(self) -> float:
        """Relative error of the kept outputs themselves, where they were computed at reduced width."""
        ...

    @property
    def not_ready(self) -> str:
        """Why the predictor cannot predict this call, "" = it can."""
        ...

    def since_full(self, signal: str = "input") -> list[float] | None:
        """Relative change (rms) of a signal since the last full step of this branch, one number per sample.

        `None` where it is not known. The signal "input" is what enters the cache point: for the whole model the
        sample; further signals are those that the policy names.
        """
        ...

    def since_last(self, signal: str = "input") -> list[float] | None:
        """The same since the last call of this branch, full or skipped."""
        ...


@dataclass(frozen=True)
class Decision:
    """What a policy decides about one call.

    Attributes:
        skip: Whether the step is skipped at this cache point: the predictor fills in for the model.
        reason: One word for the trace ("first", "window", "spike", "tolerance", "within", …).
        tolerance: Largest error that skipping may have at this step, in units of the policy, for the trace.
        predicted: Predicted error of skipping, one number per sample; `None` where nothing was predicted.
    """

    skip: bool
    reason: str
    tolerance: float = 0.0
    predicted: tuple[float, ...] | None = None


@dataclass(frozen=True, order=True)
class Forecast:
    """What a predictor carries forward, and over which axis.

    Attributes:
        quantity: The model's "output" itself, or the "noise" or "clean" estimate that it stands for.
        axis: What a straight line through earlier values is drawn over.
    """

    quantity: Quantity = "output"
    axis: Axis = "step"

    def __str__(self) -> str:
        return f"{self.quantity} over {self.axis}"
