"""Plain data that flows between the stages: what was asked, decided, done and measured. No tensors."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Action(str, Enum):
    """What was done with one unit or span at one step (DESIGN 2)."""

    COMPUTE = "compute"
    SLICE = "slice"
    FORECAST = "forecast"
    REUSE = "reuse"

    @property
    def served(self) -> bool:
        """True when the output came from the store and nothing was computed."""
        return self in (Action.FORECAST, Action.REUSE)


@dataclass(frozen=True)
class Moment:
    """Where in a denoising run one call of the model is.

    run: counts pipeline calls. step: index of the noise level within the run, from 0. branch: name of the
    denoising call of a step. sigma: normalised noise level in [0, 1], or None when unknown. steps: how many steps
    the run has, or None when unknown. samples: batch size of the call. width: how far the step goes, as an angle
    between noise and clean, over the mean of all steps of a run from noise alone; None when unknown.
    """

    run: int
    step: int
    branch: str
    timestep: float
    samples: int
    sigma: float | None = None
    steps: int | None = None
    width: float | None = None

    @property
    def progress(self) -> float:
        """1 - normalised noise level: 0 at pure noise, 1 at the clean sample; by timestep / 1000 if unknown."""
        level = self.timestep / 1000.0 if self.sigma is None else self.sigma
        return min(1.0, max(0.0, 1.0 - level))


@dataclass(frozen=True)
class Decision:
    """The controller's answer for one unit or span at one step.

    width: channels per head when the action is SLICE. predicted: predicted relative error of that action, one
    number per sample, None when nothing was predicted. tolerance: largest error allowed at this step.
    why: one word for the table ("first", "window", "spike", "tolerance", …).
    """

    action: Action
    tolerance: float
    why: str
    predicted: tuple[float, ...] | None = None
    width: int | None = None


@dataclass
class Entry:
    """One line of a trace: one unit or span, at one step, in one branch.

    measured: relative error that serving would have had, one number per sample, known only where the true
    output was computed. operations / full_operations: what was executed and what the plain model would have (two per
    multiply-add). seconds: wall time of the call. stored_bytes: bytes held in the store after it.
    """

    run: int
    step: int
    branch: str
    unit: str
    action: str
    why: str
    sigma: float | None
    tolerance: float
    predicted: list[float] | None = None
    measured: list[float] | None = None
    width: int | None = None
    choice: str | None = None
    operations: int = 0
    full_operations: int = 0
    seconds: float = 0.0
    stored_bytes: int = 0


@dataclass
class Trace:
    """What every unit did at every step, why, and what it cost. Written and read by `unicp.files`.

    run_steps: how many steps the scheduler of a run was set to, by the number of the run as text; runs of which that is
    not known are left out.
    """

    model: str
    device: str
    dtype: str
    settings: dict[str, Any]
    preset: str | None = None
    entries: list[Entry] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    run_steps: dict[str, int] = field(default_factory=dict)

    def clear(self) -> None:
        """Forgets all entries, warnings and counts."""
        self.entries.clear()
        self.run_steps.clear()
        self.warnings.clear()
        self.counts.clear()
