"""Who keeps most fidelity at a given speed, and who is fastest at a given fidelity: numbers, no HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from unicp_bench.html.markup import listed, number, speed
from unicp_bench.html.parts import Part, is_ours, is_peer
from unicp_bench.statistics import Group, at_speed, frontier, speed_at, worst_name

METRIC = "psnr"
SPEEDS = (1.5, 2.0, 2.5, 3.0, 4.0)
FIDELITIES = (30.0, 35.0, 40.0, 45.0)
# Above it a clip differs from the plain one by less than a tenth of an 8-bit level. Equal clips count as 100 dB, which
# is a convention and no measurement, so nothing is interpolated towards such a setting.
SAME = 70.0
Number = Callable[[Group], float]
Points = Sequence[tuple[float, float]]

COMPUTE, SECONDS = "less compute", "speed-up in seconds"


def costs(part: Part) -> dict[str, Number]:
    """What can be compared of a part, by its name in headings: seconds only where pairs of runs tell them."""
    timed = [group.name for group in part.timed]
    found: dict[str, Number] = {COMPUTE: lambda g: g.operations}
    if timed:
        found[SECONDS] = lambda g: g.seconds if g.name in timed else math.nan
    return found


def worths(clips: int, metric: str = METRIC) -> dict[str, Number]:
    """What of a metric is compared over so many clips: its mean, and that of the worst ones."""
    return {"mean": lambda group: group.mean(metric), worst_name(clips): lambda group: group.worst(metric)}


@dataclass(frozen=True)
class Comparison:
    """UniCP, online or planned, against the best peer at one speed or fidelity; None: nothing that goes so far."""

    at: float
    ours: float | None
    peer: float | None
    peer_name: str

    @property
    def margin(self) -> float | None:
        """Ours minus the peer's; None where one is missing."""
        return None if self.ours is None or self.peer is None else self.ours - self.peer

    @property
    def lost(self) -> bool:
        """True where the peer is better by what the table shows, or goes where UniCP does not."""
        if self.peer is None:
            return False
        return self.margin is None or round(self.margin, 1) < 0

    @property
    def level(self) -> bool:
        """True where the table shows no difference."""
        return self.margin is not None and round(self.margin, 1) == 0


def sweeps(part: Part, cost: Number, worth: Number) -> dict[str, list[tuple[float, float]]]:
    """The frontier of every family, with nothing in it for a family without this number."""
    return {family: frontier(groups, cost, worth) for family, groups in part.families.items()}


def fidelity_at(points: Points, wanted: float) -> float | None:
    """`at_speed` on a frontier, with nothing interpolated towards a setting above SAME."""
    same = [point for point in points if point[1] >= SAME]
    if same and wanted <= same[-1][0]:
        return at_speed(same, wanted)
    return at_speed([point for point in points if point[1] < SAME], wanted)


def fastest_at(points: Points, fidelity: float) -> float | None:
    """`speed_at` on a frontier, with nothing interpolated towards a setting above SAME."""
    found = speed_at([point for point in points if point[1] < SAME], fidelity)
    same = [speed for speed, value in points if value >= SAME and value >= fidelity]
    return same[-1] if found is None and same else found


def at_each_speed(found: Mapping[str, Points]) -> list[Comparison]:
    """One comparison per speed of SPEEDS."""
    return [_compare(at, {name: fidelity_at(points, at) for name, points in found.items()}) for at in SPEEDS]


def at_each_fidelity(found: Mapping[str, Points]) -> list[Comparison]:
    """One comparison per fidelity of FIDELITIES."""
    return [_compare(at, {name: fastest_at(points, at) for name, points in found.items()}) for at in FIDELITIES]


def verdict(by_worth: Mapping[str, Sequence[Comparison]], cost: str) -> str:
    """Sentences that name every speed at which UniCP loses or is level. by_worth: by the names of `worths`."""
    every = [one for rows in by_worth.values() for one in rows]
    if all(one.peer is None for one in every):
        return f"Nothing to compare with: no other method reaches {SPEEDS[0]:g}x {cost}."
    if all(one.ours is None for one in every):
        return f"No setting of UniCP reaches {SPEEDS[0]:g}x {cost}."
    lost = _by_worth(by_worth, lambda one: _loss(one) if one.lost else "")
    level = _by_worth(by_worth, lambda one: f"{one.at:g}x" if one.level else "")
    alone = _by_worth(by_worth, lambda one: f"{one.at:g}x" if one.peer is None and one.ours is not None else "")
    text = f"UniCP loses {'; '.join(lost)}." if lost else "UniCP loses at no speed of this table."
    if level:
        text += f" It is level with the best peer {'; '.join(level)}."
    if alone:
        text += f" No peer goes as far {'; '.join(alone)}."
    return text


def _by_worth(by_worth: Mapping[str, Sequence[Comparison]], say: Callable[[Comparison], str]) -> list[str]:
    """For each worth of which there is something to say: "in the mean at 3x … and 4x …"."""
    found = {worth: [word for one in rows if (word := say(one))] for worth, rows in by_worth.items()}
    return [f"in the {worth} at {listed(words)}" for worth, words in found.items() if words]


def _loss(one: Comparison) -> str:
    if one.margin is None:
        return f"{one.at:g}x (no setting of it goes so far; {one.peer_name} keeps {number(one.peer)} dB)"
    return f"{one.at:g}x (by {number(-one.margin)} dB to {one.peer_name})"


def _compare(at: float, values: Mapping[str, float | None]) -> Comparison:
    peers = [(value, name) for name, value in values.items() if value is not None and is_peer(name)]
    # max() keeps the first of equals, so the order of families decides and the file stays the same.
    peer, name = max(peers, key=lambda pair: pair[0]) if peers else (None, "")
    ours = max((value for name, value in values.items() if value is not None and is_ours(name)), default=None)
    return Comparison(at, ours, peer, name)


def ratio(one: Comparison) -> str:
    """How many times faster than the best peer."""
    return speed(one.ours / one.peer) if one.ours is not None and one.peer else speed(None)
