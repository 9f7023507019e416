"""From rows to numbers one can compare: means, worst tenths, intervals, and the best fidelity at a given speed."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from unicp.benchmarking.rows import PLAIN, Row

RESAMPLES = 2000


def worst_tenth(values: Sequence[float]) -> float:
    """Mean of the lowest tenth of the values (rounded up, at least one)."""
    count = max(1, math.ceil(len(values) / 10))
    return statistics.fmean(sorted(values)[:count])


def bootstrap(
    values: Sequence[float], statistic: Callable[[Sequence[float]], float] = statistics.fmean, share: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of a statistic over resampled values (seeded: the same values give the same interval)."""
    if len(values) < 2:
        return (values[0], values[0]) if values else (math.nan, math.nan)
    source = random.Random(0)
    found = sorted(statistic(source.choices(values, k=len(values))) for _ in range(RESAMPLES))
    cut = (1 - share) / 2
    return found[int(cut * RESAMPLES)], found[min(RESAMPLES - 1, int((1 - cut) * RESAMPLES))]


@dataclass(frozen=True)
class Group:
    """All rows of one method and setting with one model and sampler, measured under the same conditions."""

    model: str
    sampler: str
    method: str
    setting: str
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """Method and setting in one string."""
        return f"{self.method} {self.setting}".strip()

    @property
    def conditions(self) -> str:
        """Of all rows; "" where they do not say."""
        return self.rows[0].conditions

    @property
    def reason(self) -> str:
        """Why the method cannot run; "" if it can."""
        return self.rows[0].reason

    @property
    def operations(self) -> float:
        """Operations saved: plain over executed, of all clips together."""
        return sum(r.full_operations for r in self.rows) / max(1, sum(r.operations for r in self.rows))

    @property
    def seconds(self) -> float:
        """Seconds saved: the median over clips of plain over accelerated (each pair ran one after the other)."""
        return statistics.median(r.plain_seconds / r.seconds for r in self.rows)

    @property
    def seconds_spread(self) -> tuple[float, float]:
        """First and third quartile of the same ratio."""
        ratios = sorted(r.plain_seconds / r.seconds for r in self.rows)
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, high

    @property
    def seconds_each(self) -> float:
        """Mean seconds of a clip."""
        return statistics.fmean(r.seconds for r in self.rows)

    @property
    def outside_seconds(self) -> float:
        """Mean seconds of a clip spent outside the transformer."""
        return statistics.fmean(r.seconds - r.model_seconds for r in self.rows)

    def values(self, metric: str) -> list[float]:
        """One metric of all clips that have it, without those that are not a number."""
        found = (r.fidelity.get(metric, math.nan) for r in self.rows)
        return [value for value in found if not math.isnan(value)]

    def mean(self, metric: str) -> float:
        """Mean over clips; NaN where no clip has it."""
        values = self.values(metric)
        return statistics.fmean(values) if values else math.nan

    def worst(self, metric: str) -> float:
        """Mean of the worst tenth (lowest values); NaN where no clip has it."""
        values = self.values(metric)
        return worst_tenth(values) if values else math.nan


def group_rows(rows: Iterable[Row]) -> list[Group]:
    """One group per conditions, model, sampler, method and setting, in order of appearance.

    A method that runs on some clips and fails on others makes two groups: the measured rows, and the others.
    """
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = row.model, row.sampler, row.method, row.setting, row.conditions, row.measured
        found.setdefault(key, []).append(row)
    return [
        Group(rows[0].model, rows[0].sampler, rows[0].method, rows[0].setting, tuple(rows)) for rows in found.values()
    ]


Cost = Callable[[Group], float]
Worth = Callable[[Group], float]


def frontier(groups: Iterable[Group], cost: Cost, worth: Worth) -> list[tuple[float, float]]:
    """(speed-up, fidelity) of the settings that no faster setting of the same method equals or beats; slowest first."""
    points = sorted(((cost(g), worth(g)) for g in groups if not g.reason), reverse=True)
    kept: list[tuple[float, float]] = []
    for speed, value in points:
        if not math.isnan(value) and (not kept or value > kept[-1][1]):
            kept.append((speed, value))
    return kept[::-1]


def at_speed(points: Sequence[tuple[float, float]], speed: float) -> float | None:
    """Best fidelity at `speed` on a frontier, linear between its points; None beyond its fastest point.

    Below its slowest point the slowest point counts: it saves more than was asked.
    """
    if not points or speed > points[-1][0]:
        return None
    if speed <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if x0 <= speed <= x1:
            return y0 + (y1 - y0) * (speed - x0) / (x1 - x0)
    return None


def speed_at(points: Sequence[tuple[float, float]], fidelity: float) -> float | None:
    """Largest speed-up on a frontier that keeps at least `fidelity`; None if none does."""
    best: float | None = None
    for index, (speed, value) in enumerate(points):
        if value >= fidelity:
            best = speed
            if index + 1 < len(points):
                next_speed, next_value = points[index + 1]
                if next_value < fidelity:
                    best = speed + (next_speed - speed) * (value - fidelity) / (value - next_value)
    return best


def markdown(groups: Iterable[Group]) -> str:
    """Groups as a Markdown table; what cannot run says why."""
    head = "| method | clips | operations saved | seconds saved | seconds a clip | PSNR mean | worst tenth |\n"
    lines = [head + "|---|---|---|---|---|---|---|"]
    for group in groups:
        if group.method == PLAIN:
            continue
        if group.reason:
            lines.append(f"| {group.name} | cannot run: {group.reason} | | | | | |")
            continue
        lines.append(
            f"| {group.name} | {len(group.rows)} | {group.operations:.2f}x | {group.seconds:.2f}x | "
            f"{group.seconds_each:.1f} | {group.mean('psnr'):.1f} dB | {group.worst('psnr'):.1f} dB |"
        )
    return "\n".join(lines)
