"""Markdown tables of measured rows, for the documents and the end of `unicp bench`.

Every table is over the clips that all its rows have, and says if that leaves some out. The fidelity of a family at a
speed-up is interpolated between its settings.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from unicp.errors import InputError
from unicp.planning.targets import Target, parse_target
from unicp_bench.comparison import (
    COMPUTE,
    METRIC,
    SECONDS,
    Comparison,
    at_each_fidelity,
    at_each_speed,
    costs,
    fidelity_at,
    is_slower,
    sweeps,
    worths,
)
from unicp_bench.formats import counted
from unicp_bench.parts import CHOSEN, LEAST_PAIRS, Part, is_ours, split
from unicp_bench.rows import PLAIN, PLANNED, Row
from unicp_bench.statistics import Group, at_speed, frontier, share, worst_name

RIVALS = ("fixed window", "fewer steps")
TIMED = ("speed-up in seconds, pairs", "seconds a clip")
UNITS = {"psnr": "dB", "temporal_psnr": "dB"}
SLOWEST = "†"
LEAST = 1.005  # a saving that a table shows as more than 1.00x


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], *notes: str) -> str:
    """Cells as a Markdown table, with the notes that are not empty as paragraphs below it."""
    lines = [f"| {' | '.join(cells)} |" for cells in [head, *rows]]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n\n".join(["\n".join(lines), *filter(None, notes)])


def measured(groups: Iterable[Group]) -> str:
    """One line for each setting, or the reason why it cannot run. Seconds are shown of paired rows only."""
    shared = share(groups)
    shown = [group for group in shared.groups if group.method != PLAIN]
    timed = any(group.paired for group in shown if not group.reason)
    head = ["method", "clips", "less compute", *(TIMED if timed else ()), "PSNR mean", worst_name(shared.clips)]
    rows = []
    for group in shown:
        if group.reason:
            rows.append([group.name, f"cannot run: {group.reason}", *[""] * (len(head) - 2)])
            continue
        costs_of = [str(len(group.rows)), f"{group.operations:.2f}x", *(_seconds(group) if timed else ())]
        rows.append([group.name, *costs_of, decibels(group.mean("psnr")), decibels(group.worst("psnr"))])
    return markdown(head, rows, shared.note)


def decibels(*values: float) -> str:
    """One decimal each, with slashes between them; a dash for NaN."""
    return _several(values, ".1f", "dB")


def _seconds(group: Group) -> list[str]:
    if not group.paired:
        return ["-", "-"]
    low, high = group.seconds_spread
    spread = f" ({low:.2f} to {high:.2f})" if len(group.rows) > 1 else ""
    return [f"{group.seconds:.2f}x{spread}", f"{group.seconds_each:.1f}"]


def _several(values: Iterable[float], form: str, unit: str) -> str:
    """Numbers with slashes between them; one dash if all are NaN."""
    each = "x" if unit == "x" else ""
    shown = ["-" if math.isnan(value) else f"{value:{form}}{each}" for value in values]
    if set(shown) == {"-"}:
        return "-"
    return " / ".join(shown) + (f" {unit}" if unit and not each else "")


def margins(rows: list[Row], what: str = "") -> str:
    """The families of UniCP and the best peer at each speed-up.

    Args:
        rows: Of one model, sampler and plain run.
        what: "" = PSNR by compute, "seconds" = PSNR by seconds, or another metric, by compute.

    Raises:
        InputError: Rows are of several plain runs, or seconds are asked for and runs were not made in pairs.
    """
    part = _only_part(rows)
    cost, metric = (SECONDS, METRIC) if what == "seconds" else (COMPUTE, what or METRIC)
    if cost not in costs(part):
        found = f"no {LEAST_PAIRS} pairs of plain and accelerated runs of a setting in these rows"
        raise InputError("a comparison in seconds", found, "measure them: unicp bench seconds")
    found = sweeps(part, cost, metric)
    compared = [at_each_speed(families, fidelity_at if metric == METRIC else at_speed) for families in found.values()]
    lines = []
    for by_worth in zip(*compared):
        at, unit = by_worth[0].at, UNITS.get(metric, "")
        slowest = {name for families in found.values() for name in families if is_slower(families[name], at)}
        over = _several((one.margin for one in by_worth), "+.1f", unit)
        lines.append(_line(f"{at:g}x", part, by_worth, (".1f", unit), over, slowest))
    note = f"{SLOWEST} read at the slowest setting of its method, which saves more than the line asks for."
    marked = any(SLOWEST in cell for line in lines for cell in line)
    head = _head(cost if metric == METRIC else f"{metric}, {cost}", part, "UniCP minus it")
    return markdown(head, lines, note if marked else "", part.shared.note)


def faster(rows: list[Row]) -> str:
    """How much less compute the families of UniCP and the best peer take at each PSNR, and the ratio of the two."""
    part = _only_part(rows)
    compared = [at_each_fidelity(families) for families in sweeps(part, COMPUTE).values()]
    lines = []
    for by_worth in zip(*compared):
        over = _several((one.ours / one.peer for one in by_worth), ".2f", "x")
        lines.append(_line(f"{by_worth[0].at:g} dB", part, by_worth, (".2f", "x"), over))
    return markdown(_head("PSNR kept", part, f"{COMPUTE} than it"), lines, part.shared.note)


def _only_part(rows: list[Row]) -> Part:
    parts = split(rows, together=True)
    if len(parts) != 1:
        found = f"rows against {', '.join(part.name for part in parts)}"
        raise InputError("one table of these rows", found, "keep rows of other lengths in a file of their own")
    return parts[0]


def _ours(part: Part) -> list[str]:
    return [name for name in part.families if is_ours(name) or name == CHOSEN]


def _head(first: str, part: Part, last: str) -> list[str]:
    which = f"which ({'; '.join(worths(part.clips))})"
    return [f"{first} ({counted(part.clips, 'clip')})", *_ours(part), "best peer", which, last]


def _line(
    at: str,
    part: Part,
    by_worth: Sequence[Comparison],
    form: tuple[str, str],
    over: str,
    slowest: Iterable[str] = (),
) -> list[str]:
    """One line of `margins` or `faster`. form: of numbers, and their unit. slowest: families to mark."""
    peers = dict.fromkeys(one.peer_name or "-" for one in by_worth)

    def marked(text: str, *names: str) -> str:
        return f"{text} {SLOWEST}" if {*names} & {*slowest} else text

    cells = [marked(_several((one.values[name] for one in by_worth), *form), name) for name in _ours(part)]
    best = marked(_several((one.peer for one in by_worth), *form), *peers)
    return [at, *cells, best, "; ".join(peers), marked(over, *peers)]


def equal_compute(groups: list[Group]) -> str:
    """Each setting of UniCP and its rivals at the same compute.

    A rival's fidelity is interpolated between its settings, mean and worst clips separately. If its slowest setting
    takes less compute, that one counts and is marked; if its fastest takes more, the cell says "not reached".

    Args:
        groups: Over the same clips.
    """
    ours = [group for group in groups if group.method == "UniCP" and not group.reason]
    clips = max((len(group.rows) for group in ours), default=0)
    first = f"PSNR, mean / {worst_name(clips)} ({counted(clips, 'clip')})"
    rows = []
    for group in ours:
        own = decibels(group.mean("psnr"), group.worst("psnr"))
        others = (_rival([g for g in groups if g.method == name], group.operations) for name in RIVALS)
        rows.append([group.name, f"{group.operations:.2f}x", own, *others])
    slowest = (f"{name} {_slowest(groups, name):.2f}x" for name in RIVALS if any(g.method == name for g in groups))
    note = f"{SLOWEST} read at its slowest setting, which takes less compute: {', '.join(slowest)}."
    marked = any(SLOWEST in cell for row in rows for cell in row)
    return markdown([first, "less compute", "UniCP", *RIVALS], rows, note if marked else "")


def _slowest(groups: Sequence[Group], method: str) -> float:
    return min(group.operations for group in groups if group.method == method and not group.reason)


def targets_met(groups: list[Group]) -> str:
    """How often each target was met: PSNR against the plain clip, speed in seconds of the whole pipeline call.

    Runs that are not in pairs have no comparable seconds. Their speed is counted in compute.
    """
    rows = []
    for group in groups:
        if group.method != PLANNED or group.reason:
            continue
        target = parse_target(group.setting)
        psnr = [row.fidelity.get("psnr", math.nan) for row in group.rows]
        met = _met(target, group)
        fidelity = f"{group.mean('psnr'):.1f} dB", f"{min(psnr):.1f} dB"
        rows.append([str(target), str(len(psnr)), met, f"{group.operations:.2f}x", *fidelity])
    return markdown(["target", "clips", "met", "less compute", "PSNR mean", "lowest"], rows)


def _met(target: Target, group: Group) -> str:
    if target.kind == "psnr":
        return str(sum(row.fidelity.get("psnr", math.nan) >= target.value for row in group.rows))
    if group.paired:
        fits = {
            "speedup": lambda row: row.plain_seconds / row.seconds >= target.value,
            "seconds": lambda row: row.seconds <= target.value,
        }[target.kind]
        return f"{sum(map(fits, group.rows))} in seconds"
    if target.kind == "seconds":
        return "-"
    met = sum(row.full_operations >= target.value * row.operations for row in group.rows)
    return f"{met} in compute"


def targets_need(groups: list[Group]) -> str:
    """What targets of PSNR spent beside the least that would have met them, over all settings of UniCP in the sweep.

    "One setting" is the fastest that met the target on all clips. "Clip by clip" is the fastest that met it on each;
    a clip on which none did counts as a plain run.
    """
    head = ("target", "clips", "met", "less compute", "one setting", "spent over it", "clip by clip", "spent over it")
    rows = []
    ours = [group for group in groups if is_ours(group.method) and not group.reason]
    for group in groups:
        if group.method != PLANNED or group.reason or not group.setting.startswith("psnr"):
            continue
        least = parse_target(group.setting).value
        met = sum(row.fidelity.get("psnr", math.nan) >= least for row in group.rows)
        fastest = {(row.prompt, row.seed): 1.0 for row in group.rows}
        one = 1.0
        for other in ours:
            found = [
                r for r in other.rows if (r.prompt, r.seed) in fastest and r.fidelity.get("psnr", math.nan) >= least
            ]
            for row in found:
                clip = row.prompt, row.seed
                fastest[clip] = min(fastest[clip], _spent([row]))
            if len(found) == len(fastest):
                one = min(one, _spent(found))
        spent, best = _spent(group.rows), sum(fastest.values()) / len(fastest)
        needs = (cell for need in (one, best) for cell in (f"{1 / need:.2f}x", f"{spent / need - 1:+.0%}"))
        rows.append([group.setting, str(len(fastest)), str(met), f"{1 / spent:.2f}x", *needs])
    return markdown(head, rows)


def _spent(rows: Sequence[Row]) -> float:
    """Executed share of the plain runs' operations."""
    return max(1, sum(row.operations for row in rows)) / max(1, sum(row.full_operations for row in rows))


def best_settings(groups: list[Group]) -> str:
    """All settings of UniCP, and those of other methods that save something and are not beaten by another one.

    A setting is beaten if another of its method saves as much with the same mean PSNR or more. Below the table are the
    methods that cannot run and why, and how many settings saved nothing.
    """
    shown, idle, unable = [], Counter[str](), dict[str, str]()
    fronts = {method: set(_front(groups, method)) for method in {group.method for group in groups}}
    for group in groups:
        place = group.operations, group.mean("psnr")
        if group.method == PLAIN:
            continue
        if group.reason:
            unable.setdefault(group.method, group.reason)
        elif group.method == "UniCP":
            shown.append(group)
        elif group.operations < LEAST:
            idle[group.method] += 1
        elif place in fronts[group.method]:
            fronts[group.method].remove(place)  # of equal settings one is enough
            shown.append(group)
    lines = [measured(shown)]
    if idle:
        names = (f"{method} ({count})" for method, count in idle.items())
        lines.append(f"Settings that saved nothing: {', '.join(names)}.")
    lines += [f"{method} cannot run: {reason.rstrip('.')}." for method, reason in unable.items()]
    return "\n\n".join(lines)


def _front(groups: list[Group], method: str) -> list[tuple[float, float]]:
    alike = (group for group in groups if group.method == method)
    return frontier(alike, lambda group: group.operations, lambda group: group.mean("psnr"))


def _rival(groups: list[Group], speed: float) -> str:
    fastest = max((g.operations for g in groups if not g.reason), default=0.0)
    # Ten of 30 steps and ten full ones are both 3x, except for rounding.
    speed = min(speed, fastest) if speed < 1.01 * fastest else speed
    found = [
        at_speed(frontier(groups, lambda g: g.operations, worth), speed)
        for worth in (lambda g: g.mean("psnr"), lambda g: g.worst("psnr"))
    ]
    if any(map(math.isnan, found)):
        return "not reached"
    slowest = min(g.operations for g in groups if not g.reason)
    return decibels(*found) + (f" {SLOWEST}" if round(speed, 2) < round(slowest, 2) else "")
