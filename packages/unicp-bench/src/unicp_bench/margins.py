"""UniCP beside the best peer of all, at equal cost and at equal fidelity, as Markdown tables.

The fidelity of each family is read off its own sweep, linear between settings; a dash where no setting goes so far. The
best peer of the mean and of the worst clips may be two. All numbers are over the clips that every setting has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from unicp.errors import InputError
from unicp_bench.html.comparison import (
    COMPUTE,
    FIDELITIES,
    METRIC,
    SECONDS,
    SPEEDS,
    Points,
    costs,
    fastest_at,
    fidelity_at,
    sweeps,
    worths,
)
from unicp_bench.html.markup import counted
from unicp_bench.html.parts import CHOSEN, LEAST_PAIRS, Part, is_ours, is_peer, split
from unicp_bench.rows import Row
from unicp_bench.statistics import at_speed

UNITS = {"psnr": "dB", "temporal_psnr": "dB"}
SLOWEST = "†"
_SLOWEST_NOTE = f"{SLOWEST} read at the slowest setting of its method, which saves more than the line asks for."
Values = Mapping[str, Mapping[str, float | None]]  # by worth, then by family


def margins(rows: list[Row], what: str = "") -> str:
    """The families of UniCP beside the best peer at each speed-up.

    what: "" for PSNR by compute, "seconds" for PSNR by seconds, or another metric, by compute. Raises InputError where
    the rows do not tell seconds: they do where runs were made in pairs.
    """
    part = _only_part(rows)
    cost, metric = (SECONDS, METRIC) if what == "seconds" else (COMPUTE, what or METRIC)
    if cost not in costs(part):
        found = f"no {LEAST_PAIRS} pairs of plain and accelerated runs of a setting in these rows"
        raise InputError("a comparison in seconds", found, "measure them: unicp bench seconds")
    found = {worth: sweeps(part, costs(part)[cost], number) for worth, number in worths(part.clips, metric).items()}
    read: Callable[[Points, float], float | None] = fidelity_at if metric == METRIC else at_speed
    ours = _ours(part)
    unit = UNITS.get(metric, "")
    lines = _head(cost if metric == METRIC else f"{metric}, {cost}", part, ours, "UniCP minus it")
    for speed in SPEEDS:
        values = {w: {name: read(points, speed) for name, points in found[w].items()} for w in found}
        slowest = {
            name
            for points_of in found.values()
            for name, points in points_of.items()
            if points and speed < points[0][0]
        }
        lines.append(_line(f"{speed:g}x", values, ours, unit, over=_minus, form="+.1f", slowest=slowest))
    return _with_notes(lines, part)


def faster(rows: list[Row]) -> str:
    """How much less compute the families of UniCP and the best peer take at each PSNR, and the ratio of the two."""
    part = _only_part(rows)
    found = {worth: sweeps(part, costs(part)[COMPUTE], number) for worth, number in worths(part.clips).items()}
    ours = _ours(part)
    lines = _head("PSNR kept", part, ours, f"{COMPUTE} than it")
    for least in FIDELITIES:
        values = {w: {name: fastest_at(points, least) for name, points in found[w].items()} for w in found}
        lines.append(_line(f"{least:g} dB", values, ours, "x", over=_over, form=".2f"))
    return _with_notes(lines, part)


def _only_part(rows: list[Row]) -> Part:
    parts = split(rows, together=True)
    if len(parts) != 1:
        found = f"rows against {', '.join(part.name for part in parts)}"
        raise InputError("one table of these rows", found, "keep rows of other lengths in a file of their own")
    return parts[0]


def _ours(part: Part) -> list[str]:
    return [name for name in part.families if is_ours(name) or name == CHOSEN]


def _with_notes(lines: list[str], part: Part) -> str:
    notes = [_SLOWEST_NOTE] if any(SLOWEST in line for line in lines) else []
    notes += [part.shared.note] if part.shared.note else []
    return "\n\n".join(["\n".join(lines), *notes])


def _head(first: str, part: Part, ours: list[str], last: str) -> list[str]:
    which = f"which ({'; '.join(worths(part.clips))})"
    names = [f"{first} ({counted(part.clips, 'clip')})", *ours, "best peer", which, last]
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


def _line(
    at: str,
    values: Values,
    ours: list[str],
    unit: str,
    over: Callable[[float | None, float | None], float | None],
    form: str,
    slowest: Iterable[str] = (),
) -> str:
    """One line of a table. over: how much the first of two values is beyond the other. slowest: families to mark."""
    slowest = set(slowest)
    peers = {w: _best(values[w], is_peer) for w in values}
    best = {w: _best(values[w], is_ours) for w in values}
    plain = ".2f" if unit == "x" else ".1f"

    def mark(*names: str) -> str:
        return f" {SLOWEST}" if slowest.intersection(names) else ""

    cells = [_pair((values[w][name] for w in values), plain, unit) + mark(name) for name in ours]
    names = dict.fromkeys(name for name, _ in peers.values())
    cells += [_pair((value for _, value in peers.values()), plain, unit) + mark(*names), "; ".join(names)]
    cells.append(_pair((over(best[w][1], peers[w][1]) for w in values), form, unit) + mark(*names))
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
    if set(shown) == {"-"}:
        return "-"
    if unit == "x":
        return " / ".join(one if one == "-" else f"{one}x" for one in shown)
    return f"{' / '.join(shown)} {unit}".strip()
