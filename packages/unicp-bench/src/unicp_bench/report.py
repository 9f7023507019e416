"""Writes the measured tables into the documents, or checks that they are what was measured.

    python -m unicp_bench.report            # rewrite the documents
    python -m unicp_bench.report --check    # exit code 1 if a table differs from its rows

A table stands between `<!-- table NAME -->` and `<!-- end -->`. NAME is a file of docs/results without its suffix,
after a colon the sampler, and behind another one

    equal            the rivals at the compute of each setting of UniCP
    margins          UniCP beside the best peer at each speed-up; "margins-seconds" by seconds, where rows are
                     paired, "margins-METRIC" of another metric than PSNR
    faster           the same at each fidelity
    met, need        how often targets were met, and what they spent beside the least that was possible
    best             long sweeps of peers, without the settings that others of the same peer beat

Of a JSON file it is the list "rows", or after two colons another one ("slices::projected").

Every table is over the clips that all its rows have. It says below it where that leaves some out.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unicp.errors import FileFormatError, InputError, run_main
from unicp.files import MisfitError, read_as, read_json, reason, write_text
from unicp.planning.targets import Target, parse_target
from unicp_bench.html.markup import counted
from unicp_bench.html.parts import is_ours
from unicp_bench.margins import SLOWEST, faster, margins
from unicp_bench.rows import PLAIN, PLANNED, Row, read_rows
from unicp_bench.statistics import (
    Group,
    at_speed,
    decibels,
    frontier,
    group_rows,
    markdown,
    share,
    worst_name,
)

DOCUMENTS = ("README.md", "docs/results.md", "docs/planning.md")
RESULTS = Path("docs/results")
RIVALS = ("fixed window", "fewer steps")
LEAST = 1.005  # a saving that a table shows as more than 1.00x
_BLOCK = re.compile(r"<!-- table (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def fill(text: str, results: Path) -> str:
    """The document with every marked table made anew. Raises InputError for a table without measured rows."""
    return _BLOCK.sub(lambda match: f"<!-- table {match[1]} -->\n{_table(match[1], results)}\n<!-- end -->", text)


def _table(name: str, results: Path) -> str:
    stem, sampler, kind = (*name.split(":"), "", "")[:3]
    rows = [row for row in read_rows(results / f"{stem}.jsonl") if row.sampler == sampler]
    if rows:
        if len({(row.model, row.conditions) for row in rows}) > 1:
            found = f"rows of several models or measured under different conditions in {results / stem}.jsonl"
            raise InputError(f"table {name}", found, "keep those of one measurement in the file")
        if kind.startswith("margins"):
            return margins(rows, kind.removeprefix("margins").removeprefix("-"))
        if kind == "faster":
            return faster(rows)
        shared = share(_one_length(name, _ordered(group_rows(rows))))
        kinds = {"equal": equal_compute, "met": targets_met, "need": targets_need, "best": best_settings}
        table = kinds.get(kind, markdown)([*shared.groups])
        return f"{table}\n\n{shared.note}" if shared.note else table
    path = results / f"{stem}.json"
    if not path.is_file():
        raise InputError(f"table {name}", f"no rows in {results}", "run the benchmark that makes them")
    record = read_json(path)
    try:
        return _plain_table(read_as(list[dict[str, str | int | float]], record[kind or "rows"]))
    except (MisfitError, KeyError, TypeError) as error:
        found = f"no such table in {path} ({reason(error)})"
        raise FileFormatError(f"table {name}", found, "run the benchmark that makes it") from error


def _one_length(name: str, groups: list[Group]) -> list[Group]:
    against = {group.reference.name for group in groups if not group.reason}
    if len(against) > 1:
        found = f"rows against {', '.join(sorted(against))}"
        raise InputError(f"table {name}", found, "keep rows of other lengths in a file of their own")
    return groups


def equal_compute(groups: list[Group]) -> str:
    """Each setting of UniCP beside its rivals at the compute it takes, as a Markdown table.

    groups: over the same clips. A rival's fidelity is read off its own sweep, linear between settings; where its
    slowest takes less compute, that one counts and is marked; "not reached" where its fastest takes more. Mean and
    worst clips are read off separately.
    """
    ours = [group for group in groups if group.method == "UniCP" and not group.reason]
    clips = max((len(group.rows) for group in ours), default=0)
    first = f"PSNR, mean / {worst_name(clips)} ({counted(clips, 'clip')})"
    lines = [f"| {first} | less compute | UniCP | {' | '.join(RIVALS)} |", "|" + "---|" * (3 + len(RIVALS))]
    for group in ours:
        own = decibels(group.mean("psnr"), group.worst("psnr"))
        others = (_rival([g for g in groups if g.method == name], group.operations) for name in RIVALS)
        lines.append(f"| {group.name} | {group.operations:.2f}x | {own} | {' | '.join(others)} |")
    if any(SLOWEST in line for line in lines):
        slowest = (f"{name} {_slowest(groups, name):.2f}x" for name in RIVALS if any(g.method == name for g in groups))
        lines += ["", f"{SLOWEST} read at its slowest setting, which takes less compute: {', '.join(slowest)}."]
    return "\n".join(lines)


def _slowest(groups: Sequence[Group], method: str) -> float:
    return min(group.operations for group in groups if group.method == method and not group.reason)


def targets_met(groups: list[Group]) -> str:
    """How often each target was met: PSNR against the plain clip, speed in seconds of the whole pipeline call.

    Where runs are not in pairs nobody knows the seconds: then a speed is counted in compute, and seconds are not.
    """
    lines = ["| target | clips | met | less compute | PSNR mean | lowest |", "|---|---|---|---|---|---|"]
    for group in groups:
        if group.method != PLANNED or group.reason:
            continue
        target = parse_target(group.setting)
        psnr = [row.fidelity.get("psnr", math.nan) for row in group.rows]
        met = _met(target, group)
        saved, lowest = f"{group.operations:.2f}x", f"{min(psnr):.1f} dB"
        lines.append(f"| {target} | {len(psnr)} | {met} | {saved} | {group.mean('psnr'):.1f} dB | {lowest} |")
    return "\n".join(lines)


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
    """What targets of PSNR spent beside the need, which is known only afterwards, with the plain clips at hand.

    Found by search over all settings of UniCP in the sweep: online tolerances, plans and guards. "One setting": the
    fastest that met the target on all of these clips. "Clip by clip": for each the fastest that met it; clips on which
    nothing did count as computed in full.
    """
    head = "| target | clips | met | less compute | one setting | spent over it | clip by clip | spent over it |"
    lines = [head, "|" + "---|" * 8]
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
        cells = f"{len(fastest)} | {met} | {1 / spent:.2f}x | {1 / one:.2f}x | {spent / one - 1:+.0%}"
        lines.append(f"| {group.setting} | {cells} | {1 / best:.2f}x | {spent / best - 1:+.0%} |")
    return "\n".join(lines)


def _spent(rows: Sequence[Row]) -> float:
    """Share of the operations of the plain runs that was executed."""
    return max(1, sum(row.operations for row in rows)) / max(1, sum(row.full_operations for row in rows))


def best_settings(groups: list[Group]) -> str:
    """All settings of UniCP, and of other methods those that save something and that no other setting beats.

    A setting is left out where another of its method saves as much with the same mean PSNR or more. Below the table it
    says which methods cannot run and why, and how many settings saved nothing.
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
            fronts[group.method].remove(place)  # one of those that are alike is enough
            shown.append(group)
    lines = [markdown(shown)]
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
    # Ten of 30 steps and ten computed ones are 3x both, but for a rounding.
    speed = min(speed, fastest) if speed < 1.01 * fastest else speed
    found = [
        at_speed(frontier(groups, lambda g: g.operations, worth), speed)
        for worth in (lambda g: g.mean("psnr"), lambda g: g.worst("psnr"))
    ]
    known = [value for value in found if value is not None]
    if len(known) < len(found):
        return "not reached"
    slowest = min(g.operations for g in groups if not g.reason)
    return decibels(*known) + (f" {SLOWEST}" if round(speed, 2) < round(slowest, 2) else "")


def _ordered(groups: list[Group]) -> list[Group]:
    """UniCP first, then windows, then everything else; each method by compute."""

    def place(group: Group) -> tuple[int, str, float]:
        kind = 0 if group.method == "UniCP" else 1 if group.method == "fixed window" else 2
        return kind, group.method, 0.0 if group.reason else group.operations

    return sorted(groups, key=place)


def _plain_table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]) if rows else []
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = []
    for name in DOCUMENTS:
        path = Path(name)
        before = path.read_text(encoding="utf-8")
        after = fill(before, RESULTS)
        if before != after:
            stale.append(name)
            if not options.check:
                write_text(path, after)
    if stale and options.check:
        print(f"tables differ from the measured rows in {', '.join(stale)}: run python -m unicp_bench.report")
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
