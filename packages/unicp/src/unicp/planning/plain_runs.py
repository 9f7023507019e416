"""Fewer steps with nothing served: what calibration measured of the plain pipeline with some of its steps left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unicp.planning.fidelity import FidelityLine, Psnr, fewer_steps_psnr, fit_changes
from unicp.planning.profile import FewerSteps, Profile


@dataclass(frozen=True)
class PlainRun:
    """The plain pipeline with fewer steps. chosen: which steps of the whole run, () = evenly spaced ones.

    psnr: of its clips against those of the whole run, as far as is known.
    """

    steps: int
    chosen: tuple[int, ...]
    psnr: Psnr


@dataclass(frozen=True)
class Tried:
    """A schedule that a plan would follow: its computed steps, and the change of the clip it is predicted to make."""

    computed: tuple[int, ...]
    change: float


def plain_runs(profile: Profile, schedules: Mapping[int, Tried]) -> list[PlainRun]:
    """All shorter runs whose PSNR can be told.

    schedules: the best by number of computed steps. Evenly spaced steps are known where just that number was measured.
    Steps that a schedule would compute are known between the fewest and the most that were: the line through what was
    measured tells the PSNR by the change that is predicted of serving the others.
    """
    found = []
    for steps in sorted({one.steps for one in profile.fewer if not one.computed and one.steps < profile.steps}):
        psnr = fewer_steps_psnr(profile.fewer, steps)
        if psnr is not None:
            found.append(PlainRun(steps, (), psnr))
    placed = [one for one in profile.fewer if one.computed]
    line = _line(placed)
    if line is None:
        return found
    least, most = min(one.steps for one in placed), max(one.steps for one in placed)
    for count, schedule in sorted(schedules.items()):
        if least <= count <= min(most, profile.steps - 1) and schedule.change > 0:
            found.append(PlainRun(count, schedule.computed, line.psnr(schedule.change)))
    return found


def _line(placed: Sequence[FewerSteps]) -> FidelityLine | None:
    known = [(one.allowed, one.psnr) for one in placed if one.allowed > 0 and math.isfinite(one.psnr)]
    return fit_changes(known) if len(known) >= 3 else None
