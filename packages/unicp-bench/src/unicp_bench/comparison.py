"""The best fidelity at a given speed, and the best speed at a given fidelity; NaN if no method goes so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from unicp_bench.formats import listed, number
from unicp_bench.parts import Part, is_ours, is_peer
from unicp_bench.statistics import Number, Points, at_speed, frontier, speed_at, worst_name

METRIC = "psnr"
SPEEDS = (1.5, 2.0, 2.5, 3.0, 4.0)
FIDELITIES = (30.0, 35.0, 40.0, 45.0)
# Above it a clip differs from the plain one by less than a tenth of an 8-bit level. Equal clips count as 100 dB by
# convention, so nothing is interpolated towards such a setting.
SAME = 70.0
COMPUTE, SECONDS = "less compute", "speed-up in seconds"


def costs(part: Part) -> dict[str, Number]:
    """What can be compared in a part, by its name in headings; seconds only of runs in pairs."""
    timed = [group.name for group in part.timed]
    found: dict[str, Number] = {COMPUTE: lambda g: g.operations}
    if timed:
        found[SECONDS] = lambda g: g.seconds if g.name in timed else math.nan
    return found


def worths(clips: int, metric: str = METRIC) -> dict[str, Number]:
    """What is compared of a metric: its mean over all clips, and over the worst ones."""
    return {"mean": lambda group: group.mean(metric), worst_name(clips): lambda group: group.worst(metric)}


def sweeps(part: Part, cost: str, metric: str = METRIC) -> dict[str, dict[str, Points]]:
    """The frontier of every family by the names of `worths`; empty for a family without these numbers."""
    value = costs(part)[cost]
    return {
        name: {family: frontier(groups, value, worth) for family, groups in part.families.items()}
        for name, worth in worths(part.clips, metric).items()
    }


def fidelity_at(points: Points, wanted: float) -> float:
    """`at_speed` on a frontier, with nothing interpolated towards a setting above SAME."""
    same = [point for point in points if point[1] >= SAME]
    if same and wanted <= same[-1][0]:
        return at_speed(same, wanted)
    return at_speed([point for point in points if point[1] < SAME], wanted)


def fastest_at(points: Points, fidelity: float) -> float:
    """`speed_at` on a frontier, with nothing interpolated towards a setting above SAME."""
    found = speed_at([point for point in points if point[1] < SAME], fidelity)
    same = [speed for speed, value in points if value >= SAME and value >= fidelity]
    return same[-1] if math.isnan(found) and same else found


def best(values: Mapping[str, float], is_wanted: Callable[[str], bool]) -> tuple[str, float]:
    """The wanted family with the highest value, and that value; ("", NaN) if there is none."""
    known = [(name, value) for name, value in values.items() if is_wanted(name) and not math.isnan(value)]
    return max(known, key=lambda pair: pair[1]) if known else ("", math.nan)


@dataclass(frozen=True)
class Comparison:
    """UniCP, online or planned, against the best peer at one speed or fidelity.

    Attributes:
        at: That speed or fidelity.
        values: Of every family.
        ours, peer: The best of UniCP's, and of the others.
        peer_name: Of the best peer.
        is_slowest: Whether the peer is read at its slowest setting, which saves more than `at` asks for.
    """

    at: float
    values: Mapping[str, float]
    ours: float
    peer: float
    peer_name: str
    is_slowest: bool = False

    @property
    def margin(self) -> float:
        """Ours minus the peer's."""
        return self.ours - self.peer

    @property
    def lost(self) -> bool:
        """Whether the peer is better by what the table shows, or UniCP has no value."""
        return not math.isnan(self.peer) and not round(self.margin, 1) >= 0

    @property
    def equal(self) -> bool:
        """Whether the table shows no difference."""
        return round(self.margin, 1) == 0


def at_each_speed(
    found: Mapping[str, Points], read: Callable[[Points, float], float] = fidelity_at
) -> list[Comparison]:
    """One comparison per speed of SPEEDS. read: fidelity at a speed (metrics other than PSNR have no SAME)."""
    return [_compare(at, {name: read(points, at) for name, points in found.items()}, found) for at in SPEEDS]


def at_each_fidelity(found: Mapping[str, Points]) -> list[Comparison]:
    """One comparison per fidelity of FIDELITIES."""
    return [_compare(at, {name: fastest_at(points, at) for name, points in found.items()}) for at in FIDELITIES]


def _compare(at: float, values: Mapping[str, float], found: Mapping[str, Points] | None = None) -> Comparison:
    name, peer = best(values, is_peer)
    return Comparison(at, values, best(values, is_ours)[1], peer, name, bool(found) and is_slower(found.get(name), at))


def is_slower(points: Points | None, at: float) -> bool:
    """Whether a speed is below the slowest setting of a frontier."""
    return bool(points) and at < points[0][0]


def verdict(by_worth: Mapping[str, Sequence[Comparison]], cost: str) -> str:
    """Sentences that name every speed at which UniCP loses or is equal. by_worth: by the names of `worths`."""
    every = [one for rows in by_worth.values() for one in rows]
    if all(math.isnan(one.peer) for one in every):
        return f"Nothing to compare with: no other method reaches {SPEEDS[0]:g}x {cost}."
    if all(math.isnan(one.ours) for one in every):
        return f"No setting of UniCP reaches {SPEEDS[0]:g}x {cost}."
    lost = _where(by_worth, lambda one: one.lost, _loss)
    equal = _where(by_worth, lambda one: one.equal)
    alone = _where(by_worth, lambda one: math.isnan(one.peer) and not math.isnan(one.ours))
    text = f"UniCP loses {lost}." if lost else "UniCP loses at no speed of this table."
    if equal:
        text += f" It equals the best peer {equal}."
    if alone:
        text += f" No peer goes as far {alone}."
    return text


def _where(
    by_worth: Mapping[str, Sequence[Comparison]],
    holds: Callable[[Comparison], bool],
    say: Callable[[Comparison], str] = lambda one: f"{one.at:g}x",
) -> str:
    """The speeds at which something holds: "in the mean at 3x and 4x; in the worst clip at 4x"."""
    found = {worth: [say(one) for one in rows if holds(one)] for worth, rows in by_worth.items()}
    return "; ".join(f"in the {worth} at {listed(words)}" for worth, words in found.items() if words)


def _loss(one: Comparison) -> str:
    if math.isnan(one.ours):
        return f"{one.at:g}x (no setting of it goes so far; {one.peer_name} keeps {number(one.peer)} dB)"
    return f"{one.at:g}x (by {number(-one.margin)} dB to {one.peer_name})"
