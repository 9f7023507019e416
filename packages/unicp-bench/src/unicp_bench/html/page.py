"""One HTML file of measured rows that needs no other file.

jinja2 templates (unicp_bench/html/templates), one a section, write it and escape all that comes from rows. Python makes
numbers and figures only. The same rows give the same bytes.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from unicp.context import Action
from unicp.errors import InputError
from unicp.files import replacing
from unicp.records import Trace
from unicp_bench import comparison, formats
from unicp_bench import parts as parting
from unicp_bench.html import charts, compared, settings_table
from unicp_bench.html.attention import AttentionChange
from unicp_bench.html.clips import Clips, check_clips, worst_clips
from unicp_bench.parts import Part
from unicp_bench.rows import Row
from unicp_bench.statistics import Group
from unicp_testbeds import FIRST

_FIRST = ("device", "dtype", "threads", "commit")


@dataclass
class Extras:
    """What a report shows besides rows; `None` = nothing."""

    attention: AttentionChange | None = None
    trace: Trace | None = None
    clips: Clips | None = None


def write_report(rows: Sequence[Row], out: Path, extras: Extras | None = None) -> None:
    """Writes the report atomically.

    Raises:
        InputError: As `page`, or `out` cannot be written.
    """
    text = page(rows, extras or Extras())
    with replacing(out) as part:
        # A lone surrogate, which a prompt in JSON may hold, has no UTF-8.
        part.write_text(text, encoding="utf-8", errors="replace")


def page(rows: Sequence[Row], extras: Extras) -> str:
    """The whole document.

    Raises:
        InputError: There are no rows, or clips do not fit them.
    """
    if not rows:
        raise InputError("a report of measured rows", "no rows", "measure first: unicp bench quick")
    parts = parting.split(rows)
    panels = None
    if extras.clips is not None:
        check_clips(extras.clips, parts)
        panels = worst_clips(parts, extras.clips)
    return (
        _templates()
        .get_template("page.html")
        .render(
            rows=rows,
            parts=parts,
            facts=facts(rows, parts),
            prompts=list(dict.fromkeys(row.prompt for row in rows)),
            test_beds=FIRST,
            looks=charts.looks(parts),
            attention=extras.attention,
            trace=None if extras.trace is None else last_run(extras.trace),
            clips=extras.clips,
            panels=panels,
        )
    )


def facts(rows: Sequence[Row], parts: Sequence[Part]) -> dict[str, str]:
    """What was measured, and on what."""
    seeds = Counter(prompt for prompt, _ in {(row.prompt, row.seed) for row in rows}).values()
    told: dict[str, Any] = {
        "model": dict.fromkeys(part.model for part in parts),
        "sampler": dict.fromkeys(part.sampler for part in parts),
        "steps": dict.fromkeys(part.plain.rows[0].steps for part in parts if part.plain)
        or ["unknown, no plain run in these rows"],
        "prompts": [len({row.prompt for row in rows})],
        "seeds per prompt": [min(seeds) if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"],
        "suites": dict.fromkeys(row.suite for row in rows),
    }
    names = {name for row in rows for name in row.environment}
    for name in sorted(names, key=lambda name: (name not in _FIRST, _FIRST.index(name) if name in _FIRST else name)):
        told[name] = dict.fromkeys(str(row.environment[name]) for row in rows if name in row.environment)
    return {name: formats.listed(values) for name, values in told.items()}


def mean_work(group: Group) -> list[float]:
    """Work by step, mean over the clips that have the usual number of steps; [] where no row says it."""
    rows = [row.work for row in group.rows if row.work]
    if not rows:
        return []
    usual = Counter(map(len, rows)).most_common(1)[0][0]
    return [statistics.fmean(values) for values in zip(*(work for work in rows if len(work) == usual))]


def last_run(trace: Trace) -> tuple[Trace, dict[str, list[str]]]:
    """A trace, and what every unit and branch did at every step of its last run; "" where it was not called."""
    last = max((entry.run for entry in trace.entries), default=0)
    entries = [entry for entry in trace.entries if entry.run == last]
    steps = 1 + max((entry.step for entry in entries), default=0)
    found: dict[str, list[str]] = {}
    for entry in entries:
        name = f"{entry.point} · {entry.branch}" if entry.branch else entry.point
        found.setdefault(name, [""] * steps)[entry.step] = entry.action
    return trace, found


@cache  # compiling them takes longer than filling them
def _templates() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("unicp_bench.html"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters.update({kind.__name__: kind for kind in (formats.number, formats.speed, formats.listed)})
    found.tests["ours"] = parting.is_ours
    found.globals.update(
        zip=zip,
        counted=formats.counted,
        mean_work=mean_work,
        actions=[action.value for action in Action],
        charts=charts,
        comparison=comparison,
        compared=compared,
        settings=settings_table,
        LEAST_PAIRS=parting.LEAST_PAIRS,
    )
    return found
