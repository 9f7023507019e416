"""From the change of the clip that a plan is predicted to make to the PSNR that comes out, with an interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unicp.files import Decibels
from unicp.planning.profile import FewerSteps, OnlineTrial, Profile, Trial
from unicp.policies.impact import between

ONE_SIDED = 1.645  # 95 % of a normal distribution lie above its mean minus this many standard deviations
# Least spread of clips about a line, in dB: a few trials may agree by chance. Chosen; the shipped profiles have 4.7 to
# 9.1.
LEAST_SPREAD = 0.5
# Where trials tell no spread, in dB: chosen above that of every shipped profile.
UNKNOWN_SPREAD = 10.0
# Slopes of PSNR over -20 log10 of the predicted change, which is 1 where losses add as predicted. Chosen around those
# of the shipped profiles: from 0.86 to 1.05 by trials of plans, and from 0.42 to 0.71 by trials of the online rule.
SLOPES = (0.5, 1.5)


@dataclass(frozen=True)
class Psnr:
    """Predicted PSNR of a clip in dB.

    Attributes:
        mean: Of clips.
        low: 95 % of clips are above.
        high: 95 % of clips are below.
    """

    mean: Decibels
    low: Decibels
    high: Decibels


@dataclass(frozen=True)
class FidelityLine:
    """psnr = offset - slope * 20 log10(change) +- spread, a normal distribution over clips.

    Attributes:
        offset, slope: Of the line, in dB.
        margin: dB between the mean and either bound.
        added_share: Of the steps that a plan skips, the share that its guard makes full; mean over trials.
    """

    offset: float
    slope: float
    margin: float
    added_share: float

    def psnr(self, change: float, doubt: float = 0.0) -> Psnr:
        """The PSNR of a clip with this predicted change.

        Args:
            change: Root mean square of the change of its pixels.
            doubt: More spread of clips, in dB.
        """
        if change <= 0:
            return Psnr(math.inf, math.inf, math.inf)
        mean = self.offset - self.slope * 20 * math.log10(change)
        margin = math.hypot(self.margin, doubt)
        return Psnr(mean, mean - margin, mean + margin)

    def change(self, psnr: float) -> float:
        """The largest predicted change with which 95 % of clips reach this PSNR."""
        return 10 ** ((self.offset - self.margin - psnr) / (20 * self.slope))


def fit_line(trials: Sequence[Trial], caution: float = 0.0, guarded: bool = True) -> FidelityLine:
    """Least squares over trials; the margin has Student's factor for their number.

    Trials equal to the plain clip are left out. With fewer than three others the line has the slope 1 and a margin of
    `UNKNOWN_SPREAD`.

    Args:
        trials: Of a profile.
        caution: dB taken off the offset.
        guarded: Which trials to use: those whose guard could make more steps full, or those whose guard could not.
            All are used if there are none of that kind.
    """
    trials = [trial for trial in trials if trial.guarded == guarded] or trials
    usable = [trial for trial in trials if math.isfinite(trial.psnr) and trial.allowed > 0]
    added = [(t.computed - t.planned) / t.saved for t in trials if t.saved > 0]
    share = min(1.0, max(0.0, statistics.fmean(added))) if added else 0.0
    if len(usable) < 3:
        return FidelityLine(-caution, 1.0, UNKNOWN_SPREAD, share)
    return fit_changes([(trial.allowed, trial.psnr) for trial in usable], caution, share)


def fit_changes(points: Sequence[tuple[float, float]], caution: float = 0.0, added_share: float = 0.0) -> FidelityLine:
    """The line through three or more points (change, PSNR in dB).

    Args:
        points: What was measured.
        caution: dB taken off the offset.
        added_share: Of the line.
    """
    xs, ys = [-20 * math.log10(change) for change, _ in points], [psnr for _, psnr in points]
    x, y = statistics.fmean(xs), statistics.fmean(ys)
    variance = math.fsum((one - x) ** 2 for one in xs)
    slope = math.fsum((a - x) * (b - y) for a, b in zip(xs, ys)) / variance if variance > 1.0 else 1.0
    slope = min(SLOPES[1], max(SLOPES[0], slope))
    offset = y - slope * x
    rests = [b - offset - slope * a for a, b in zip(xs, ys)]
    freedom = len(points) - 2
    spread = max(LEAST_SPREAD, math.sqrt(math.fsum(rest * rest for rest in rests) / freedom))
    return FidelityLine(
        offset - caution, slope, student(freedom) * spread * math.sqrt(1 + 1 / len(points)), added_share
    )


@dataclass(frozen=True)
class OnlineLine:
    """What the online rule does by its tolerance.

    Attributes:
        line: To the PSNR of a clip, with the tolerance in place of the change.
        counts: (tolerance, mean of full steps) at the tolerances that were tried, rising.
    """

    line: FidelityLine
    counts: tuple[tuple[float, float], ...]

    @property
    def tried(self) -> tuple[float, float]:
        """The smallest and the largest tolerance that was tried."""
        return self.counts[0][0], self.counts[-1][0]

    def computed(self, tolerance: float) -> float:
        """Mean number of full steps, linear over the logarithm of the tolerance, flat outside of those tried."""
        return between([(math.log(tried), count) for tried, count in self.counts], math.log(tolerance))


def fit_online(trials: Sequence[OnlineTrial], caution: float = 0.0) -> OnlineLine | None:
    """Fits a line to trials of the online rule, with `caution` dB taken off.

    Returns:
        `None` with fewer than three clips that differ from the plain ones, or with one tolerance.
    """
    known = [(one.tolerance, one.psnr) for one in trials if math.isfinite(one.psnr)]
    by_tolerance: dict[float, list[int]] = {}
    for one in trials:
        by_tolerance.setdefault(one.tolerance, []).append(one.computed)
    if len(known) < 3 or len(by_tolerance) < 2:
        return None
    counts = tuple((tolerance, statistics.fmean(by_tolerance[tolerance])) for tolerance in sorted(by_tolerance))
    return OnlineLine(fit_changes(known, caution), counts)


def fewer_steps_psnr(fewer: Sequence[FewerSteps], steps: int) -> Psnr | None:
    """PSNR of the plain pipeline with this many evenly spaced steps; `None` if calibration did not measure it."""
    found = [one.psnr for one in fewer if one.steps == steps and not one.computed]
    if not found:
        return None
    mean = statistics.fmean(found)
    spread = statistics.stdev(found) if len(found) > 1 else UNKNOWN_SPREAD
    margin = student(max(1, len(found) - 1)) * spread * math.sqrt(1 + 1 / len(found))
    return Psnr(mean, mean - margin, mean + margin)


def student(freedom: int) -> float:
    """The 95 % quantile of Student's distribution, to 0.1 from 2 degrees of freedom, exact for 1.

    Source: the expansion of Cornish and Fisher in 1 / freedom, three terms.
    """
    if freedom <= 1:
        return 6.314
    z = ONE_SIDED
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


@dataclass(frozen=True)
class PlainRun:
    """The plain pipeline with fewer steps.

    Attributes:
        steps: How many.
        chosen: Which steps of the whole run; () = evenly spaced ones.
        psnr: Of its clips against those of the whole run.
    """

    steps: int
    chosen: tuple[int, ...]
    psnr: Psnr


@dataclass(frozen=True)
class Tried:
    """A schedule that a plan would follow: its full steps, and the change of the clip that it is predicted to make."""

    computed: tuple[int, ...]
    change: float


def plain_runs(profile: Profile, schedules: Mapping[int, Tried]) -> list[PlainRun]:
    """All shorter plain runs whose PSNR can be predicted.

    Evenly spaced steps need a measurement of just that number. Steps that a schedule would make full need a number
    between the fewest and the most that were measured: their PSNR follows by a line from the change that skipping the
    others would make.

    Args:
        profile: What calibration measured.
        schedules: The best ones, by number of full steps.
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
