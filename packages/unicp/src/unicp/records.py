"""Plain data that flows between the stages: what was asked, decided, done and measured. No tensors."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Entry:
    """One line of a trace: one cache point, at one step, in one branch.

    measured: relative error that skipping would have had, one number per sample, known only where the true
    output was computed. operations / full_operations: what was executed and what the plain model would have (two per
    multiply-add). seconds: wall time of the call. stored_bytes: bytes held in the store after it.
    """

    run: int
    step: int
    branch: str
    unit: str
    action: str
    reason: str
    sigma: float | None
    tolerance: float
    predicted: list[float] | None = None
    measured: list[float] | None = None
    width: int | None = None
    predictor: str | None = None
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
