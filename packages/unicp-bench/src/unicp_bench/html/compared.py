"""Tables of the best fidelity at a speed and the best speed at a fidelity, as cells for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unicp_bench.comparison import (
    SPEEDS,
    Comparison,
    at_each_fidelity,
    at_each_speed,
    best,
    costs,
    fidelity_at,
    is_slower,
    sweeps,
    verdict,
)
from unicp_bench.formats import MISSING, counted, number, signed, speed
from unicp_bench.parts import BASELINE, Part, is_ours, is_peer
from unicp_bench.statistics import Points


class Cell(NamedTuple):
    """One cell. look: its class."""

    text: str
    look: str = ""


class Line(NamedTuple):
    """One line of a table. reach: slowest to fastest setting of a family."""

    name: str
    cells: list[Cell]
    look: str = ""
    reach: str = ""


class SpeedTable(NamedTuple):
    """Fidelity of each family at each speed, by one cost. said: where UniCP loses; last: margins and who it is over."""

    cost: str
    said: str
    worths: list[str]
    families: list[Line]
    last: list[Line]


def speed_tables(part: Part) -> list[SpeedTable]:
    """One table per cost that may be compared."""
    return [_speed_table(part, cost) for cost in costs(part)]


def _speed_table(part: Part, cost: str) -> SpeedTable:
    found = sweeps(part, cost)
    results = {worth: at_each_speed(families) for worth, families in found.items()}
    columns = [(worth, results[worth][index]) for index in range(len(SPEEDS)) for worth in found]
    families = []
    for family in _ordered(part, found["mean"]):
        points = found["mean"][family]
        reach = f"{speed(points[0][0])} to {speed(points[-1][0])}" if points else MISSING
        look = "ours" if is_ours(family) else "base" if family == BASELINE else ""
        cells = [_fidelity(family, one, found[worth][family]) for worth, one in columns]
        families.append(Line(family, cells, look, reach))
    clips = "this clip" if part.clips == 1 else f"these {counted(part.clips, 'clip')}"
    last = [
        Line("UniCP over the best peer, dB", [_margin(one) for _, one in columns], "margin"),
        Line("the best peer", [Cell(one.peer_name or MISSING) for _, one in columns], "peers"),
    ]
    return SpeedTable(cost, f"On {clips}: {verdict(results, cost)}", [*found], families, last)


def _ordered(part: Part, found: Mapping[str, Points]) -> Sequence[str]:
    """Ours first, then peers by their fidelity at 2x and their reach, best first."""
    ours = [name for name in part.families if not is_peer(name)]

    def worth(name: str) -> tuple[float, float]:
        value = fidelity_at(found[name], 2.0)
        return -1.0 if math.isnan(value) else value, found[name][-1][0] if found[name] else 0.0

    return [*ours, *sorted((name for name in part.families if name not in ours), key=worth, reverse=True)]


def _fidelity(family: str, one: Comparison, points: Points) -> Cell:
    value = one.values[family]
    mark = "†" if is_slower(points, one.at) else ""
    return Cell(number(value) + mark, "best" if value == best(one.values, lambda _: True)[1] else "")


def _margin(one: Comparison) -> Cell:
    if math.isnan(one.margin):
        return Cell(MISSING, "lost" if one.lost else "")
    return Cell(
        signed(one.margin) + ("†" if one.is_slowest else ""), "lost" if one.lost else "" if one.equal else "won"
    )


def fidelity_table(part: Part) -> list[Line]:
    """For each mean PSNR, and by each cost: UniCP, its baseline, the best peer, who that is, and the ratio."""
    results = {cost: at_each_fidelity(sweeps(part, cost)["mean"]) for cost in costs(part)}
    lines = []
    for by_cost in zip(*results.values()):
        lines.append(Line(f"{by_cost[0].at:g} dB", [cell for one in by_cost for cell in _speeds(one)]))
    return lines


def _speeds(one: Comparison) -> list[Cell]:
    over = one.ours / one.peer
    lost = not math.isnan(one.peer) and not round(over, 2) >= 1
    look = "lost" if lost else "won" if over > 1 else ""
    window = one.values.get(BASELINE, math.nan)
    cells = [Cell(speed(one.ours), "ours"), Cell(speed(window)), Cell(speed(one.peer))]
    return [*cells, Cell(one.peer_name or MISSING, "word"), Cell(speed(over), look)]
