"""Numbers of measured rows: means, worst tenths, and the best fidelity at a given speed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy

from unicp_bench.references import Reference, references
from unicp_bench.rows import PLAIN, Row

# A setting is left out, and named, if it would take a table below so many clips (or as many as any setting has).
LEAST_CLIPS = 4
# Old rows do not say whether they are paired. In this suite every method had a plain run right before it, except that
# these two calibrate on the first clip.
_PAIRED_SUITE, _CALIBRATED = "seconds", ("diffusers MagCache", "global schedule")
Clip = tuple[str, int]


def is_paired(row: Row) -> bool:
    """Whether a row's seconds and those of its plain run were measured one right after the other."""
    is_older = not row.conditions
    return row.paired or (is_older and row.suite == _PAIRED_SUITE and row.method not in _CALIBRATED)


def worst_name(clips: int) -> str:
    """Name of the mean of the lowest tenth: "worst clip" for up to ten clips."""
    count = _tenth(clips)
    return "worst clip" if count == 1 else f"worst {count} of {clips} clips"


def _tenth(clips: int) -> int:
    return max(1, math.ceil(clips / 10))


def worst_tenth(values: Sequence[float]) -> float:
    """Mean of the lowest tenth of the values (rounded up, at least one)."""
    return statistics.fmean(sorted(values)[: _tenth(len(values))])


@dataclass(frozen=True)
class Group:
    """All rows of one method and setting with one model, sampler and kind of plain run, under the same conditions."""

    model: str
    sampler: str
    reference: Reference
    method: str
    setting: str
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """Method and setting in one string."""
        return f"{self.method} {self.setting}".strip()

    @property
    def clips(self) -> set[Clip]:
        """(prompt, seed) of each row."""
        return {(row.prompt, row.seed) for row in self.rows}

    @property
    def conditions(self) -> str:
        """Of all rows; "" in old rows."""
        return self.rows[0].conditions

    @property
    def reason(self) -> str:
        """Why the method cannot run; "" if it can."""
        return self.rows[0].reason

    @property
    def operations(self) -> float:
        """Plain over executed operations, of all clips together."""
        return sum(r.full_operations for r in self.rows) / max(1, sum(r.operations for r in self.rows))

    @property
    def paired(self) -> bool:
        """Whether each run has a plain run right before it, so that seconds may be shown."""
        return all(is_paired(r) for r in self.rows)

    @property
    def seconds(self) -> float:
        """Plain over accelerated seconds, median over pairs; NaN if the rows are not paired."""
        return statistics.median(self._ratios()) if self.paired else math.nan

    @property
    def seconds_spread(self) -> tuple[float, float]:
        """Lowest and highest pair of that ratio; NaN if the rows are not paired."""
        ratios = self._ratios() if self.paired else [math.nan]
        return min(ratios), max(ratios)

    @property
    def seconds_each(self) -> float:
        """Mean seconds of a clip; NaN if the rows are not paired."""
        return statistics.fmean(r.seconds for r in self.rows) if self.paired else math.nan

    @property
    def outside_seconds(self) -> float:
        """Mean seconds of a clip outside the transformer; NaN if the rows are not paired."""
        return statistics.fmean(r.seconds - r.model_seconds for r in self.rows) if self.paired else math.nan

    def _ratios(self) -> list[float]:
        return [r.plain_seconds / r.seconds for r in self.rows]

    def values(self, metric: str) -> list[float]:
        """One metric of every clip; [] if one has no number, since a mean without it would flatter."""
        found = [r.fidelity.get(metric, math.nan) for r in self.rows]
        return [] if any(math.isnan(value) for value in found) else found

    def by_prompt(self, metric: str) -> list[float]:
        """The mean of each prompt, since clips of one prompt are not independent; [] as `values`."""
        found: dict[str, list[float]] = {}
        for row, value in zip(self.rows, self.values(metric)):
            found.setdefault(row.prompt, []).append(value)
        return [statistics.fmean(values) for values in found.values()]

    def mean(self, metric: str) -> float:
        """Mean over clips; NaN if a clip has no number."""
        values = self.values(metric)
        return statistics.fmean(values) if values else math.nan

    def worst(self, metric: str) -> float:
        """Mean of the lowest tenth, see `worst_name`; NaN if a clip has no number."""
        values = self.values(metric)
        return worst_tenth(values) if values else math.nan


def group_rows(rows: Iterable[Row]) -> list[Group]:
    """One group per model, sampler, kind of plain run, method, setting and conditions, in order of appearance.

    A method that runs on some clips and fails on others makes two groups: the measured rows, and the others.
    """
    rows = list(rows)
    found: dict[tuple[str, str, Reference, str, str, str, bool], list[Row]] = {}
    for row, against in zip(rows, references(rows)):
        key = row.model, row.sampler, against, row.method, row.setting, row.conditions, row.measured
        found.setdefault(key, []).append(row)
    return [Group(*key[:5], tuple(members)) for key, members in found.items()]


@dataclass(frozen=True)
class Shared:
    """Settings over the same clips.

    Attributes:
        groups: In the order given, also those that cannot run.
        clips: How many clips all of them have.
        beyond: How many more some of them have.
        left_out: Settings with too few clips in common with the others.
    """

    groups: tuple[Group, ...]
    clips: int
    beyond: int = 0
    left_out: tuple[Group, ...] = ()

    @property
    def note(self) -> str:
        """What was left out; "" for nothing."""
        said = []
        if self.beyond:
            said.append(
                f"All numbers are over the {self.clips} clips (prompt and seed) that every setting shown has; "
                f"{self.beyond} more, which only some of them have, do not count."
            )
        if self.left_out:
            names = ", ".join(f"{group.name} ({len(group.rows)})" for group in self.left_out)
            said.append(f"Left out, because they have too few clips in common with the others: {names}.")
        return " ".join(said)


def share(groups: Iterable[Group]) -> Shared:
    """Reduces groups to the clips that all of them have.

    It keeps as many settings as leave LEAST_CLIPS clips. The plain run is reduced to the clips of the others, and what
    cannot run is kept.
    """
    groups = list(groups)
    measured = [group for group in groups if not group.reason and group.method != PLAIN]
    most = max((len(group.clips) for group in measured), default=0)
    common: set[Clip] | None = None
    left_out: list[Group] = []
    for group in sorted(measured, key=lambda group: -len(group.clips)):
        both = group.clips if common is None else common & group.clips
        if len(both) < min(LEAST_CLIPS, most):
            left_out.append(group)
        else:
            common = both
    if common is None:
        return Shared(tuple(groups), 0)
    kept = [group for group in groups if group not in left_out]
    beyond = set[Clip]().union(*(group.clips for group in kept if group in measured)) - common
    held = (group if group.reason else _held_to(group, common) for group in kept)
    return Shared(tuple(group for group in held if group.rows), len(common), len(beyond), tuple(left_out))


def _held_to(group: Group, clips: set[Clip]) -> Group:
    return replace(group, rows=tuple(row for row in group.rows if (row.prompt, row.seed) in clips))


Number = Callable[[Group], float]
Points = Sequence[tuple[float, float]]  # (speed-up, fidelity), slowest first


def frontier(groups: Iterable[Group], cost: Number, worth: Number) -> list[tuple[float, float]]:
    """(speed-up, fidelity) of the settings that no faster one equals or beats, slowest first; without NaN."""
    known = ((cost(g), worth(g)) for g in groups if not g.reason)
    points = sorted((point for point in known if not any(map(math.isnan, point))), reverse=True)
    kept: list[tuple[float, float]] = []
    for speed, value in points:
        if not kept or value > kept[-1][1]:
            kept.append((speed, value))
    return kept[::-1]


def at_speed(points: Points, speed: float) -> float:
    """Best fidelity at `speed` on a frontier, linear between its points; NaN beyond its fastest point.

    Below its slowest point that point counts, which saves more than was asked.
    """
    if not points:
        return math.nan
    speeds, values = zip(*points)
    return float(numpy.interp(speed, speeds, values, right=math.nan))


def speed_at(points: Points, fidelity: float) -> float:
    """Largest speed-up on a frontier that keeps at least `fidelity`, linear between its points; NaN if none does."""
    if not points:
        return math.nan
    speeds, values = zip(*reversed(points))
    return float(numpy.interp(fidelity, values, speeds, right=math.nan))
