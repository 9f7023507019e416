"""UniCP beside the best peer of all, at equal cost and at equal fidelity, as Markdown tables.

The fidelity of each family is read off its own sweep, linear between settings; a dash where no setting goes so far. The
best peer of the mean and of the worst tenth may be two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from unicp.benchmarking.html.comparison import (
    COSTS,
    FIDELITIES,
    METRIC,
    SPEEDS,
    WORTHS,
    Points,
    fastest_at,
    fidelity_at,
    sweeps,
    worths,
)
from unicp.benchmarking.html.parts import CHOSEN, is_ours, is_peer, split
from unicp.benchmarking.rows import Row
from unicp.benchmarking.statistics import at_speed

UNITS = {"psnr": "dB", "temporal_psnr": "dB"}


def margins(rows: list[Row], what: str = "") -> str:
    """The families of UniCP beside the best peer at each speed-up.

    what: "" for PSNR by operations saved, "seconds" for PSNR by seconds saved, or another metric, by operations.
    """
    (part,) = split(rows)
    cost, metric = ("seconds", METRIC) if what == "seconds" else ("operations", what or METRIC)
    found = {worth: sweeps(part, COSTS[cost], number) for worth, number in worths(metric).items()}
    read: Callable[[Points, float], float | None] = fidelity_at if metric == METRIC else at_speed
    ours = [name for name in part.families if is_ours(name) or name == CHOSEN]
    unit = UNITS.get(metric, "")
    lines = _head(f"{cost} saved" if metric == METRIC else f"{metric}, {cost} saved", ours)
    for speed in SPEEDS:
        values = {w: {name: read(points, speed) for name, points in found[w].items()} for w in WORTHS}
        lines.append(_line(f"{speed:g}x", values, ours, unit, over=_minus, form="+.1f"))
    return "\n".join(lines)


def faster(rows: list[Row]) -> str:
    """Operations saved by the families of UniCP and by the best peer at each PSNR, and the ratio of the two."""
    (part,) = split(rows)
    found = {worth: sweeps(part, COSTS["operations"], number) for worth, number in WORTHS.items()}
    ours = [name for name in part.families if is_ours(name) or name == CHOSEN]
    lines = _head("PSNR kept", ours)
    for least in FIDELITIES:
        values = {w: {name: fastest_at(points, least) for name, points in found[w].items()} for w in WORTHS}
        lines.append(_line(f"{least:g} dB", values, ours, "x", over=_over, form=".2f"))
    return "\n".join(lines)


def _head(first: str, ours: list[str]) -> list[str]:
    names = [first, *ours, "best peer", "which (mean; worst tenth)", "UniCP over it"]
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


def _line(
    at: str,
    values: Mapping[str, Mapping[str, float | None]],
    ours: list[str],
    unit: str,
    over: Callable[[float | None, float | None], float | None],
    form: str,
) -> str:
    """One line of a table. values: by worth and family. over: how much the first of two values is beyond the other."""
    peers = {w: _best(values[w], is_peer) for w in WORTHS}
    best = {w: _best(values[w], is_ours) for w in WORTHS}
    plain = ".2f" if unit == "x" else ".1f"
    cells = [_pair((values[w][name] for w in WORTHS), plain, unit) for name in ours]
    cells += [_pair((peers[w][1] for w in WORTHS), plain, unit), "; ".join(dict.fromkeys(peers[w][0] for w in WORTHS))]
    cells.append(_pair((over(best[w][1], peers[w][1]) for w in WORTHS), form, unit))
    return f"| {at} | {' | '.join(cells)} |"


def _best(values: Mapping[str, float | None], is_wanted: Callable[[str], bool]) -> tuple[str, float | None]:
    known = [(value, name) for name, value in values.items() if value is not None and is_wanted(name)]
    value, name = max(known, key=lambda pair: pair[0]) if known else (None, "-")
    return name, value


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def _pair(values: Iterable[float | None], form: str, unit: str) -> str:
    shown = ["-" if value is None else f"{value:{form}}" for value in values]
    if unit == "x":
        return " / ".join(one if one == "-" else f"{one}x" for one in shown)
    return f"{' / '.join(shown)} {unit}".strip()
