"""Sorts rows into parts that can be compared within, with families in a fixed order and failures apart."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unicp.errors import InputError
from unicp_bench.conditions import differences
from unicp_bench.formats import listed
from unicp_bench.references import Reference, references
from unicp_bench.rows import PLAIN, PLANNED, Row, read_rows
from unicp_bench.statistics import Clip, Group, Shared, group_rows, share

OURS, BASELINE, CHOSEN = "UniCP", "fixed window", "fewer steps, placed"
LEAST_PAIRS = 3  # one disturbed pair of two moves their median
_Kind = tuple[str, str, Reference]  # model, sampler, plain run


@dataclass(frozen=True)
class Failure:
    """A setting that could not run on `count` of `clips` clips."""

    name: str
    reason: str
    count: int
    clips: int


@dataclass(frozen=True)
class Part:
    """All rows of one model, sampler, plain run and set of conditions, over the clips that all settings have.

    Attributes:
        model, sampler, reference: What they have in common.
        suites: Those that were measured on the same clips.
        plain: The plain run; `None` if it has no row.
        groups: Settings that could run.
        failures: Settings that could not.
        shared: How many clips, and what was left out.
        apart: How its conditions differ from those of parts that are equal otherwise.
    """

    model: str
    sampler: str
    reference: Reference
    suites: tuple[str, ...]
    plain: Group | None
    groups: tuple[Group, ...]
    failures: tuple[Failure, ...]
    shared: Shared
    apart: str = ""

    @property
    def name(self) -> str:
        """For headings."""
        names = [self.model, f"sampler {self.sampler}", self.reference.name, listed(self.suites), self.apart]
        return ", ".join(filter(None, names))

    @property
    def clips(self) -> int:
        """How many clips each number is over."""
        return self.shared.clips

    @property
    def timed(self) -> list[Group]:
        """Settings whose seconds may be compared: those with enough pairs."""
        return [group for group in self.groups if group.paired and len(group.rows) >= LEAST_PAIRS]

    @property
    def families(self) -> dict[str, list[Group]]:
        """Groups by family: UniCP online and planned, what is made from it, then the others in order."""
        found: dict[str, list[Group]] = {}
        for group in sorted(self.groups, key=lambda g: _rank(g.method)):
            found.setdefault(group.method, []).append(group)
        return found


def is_ours(family: str) -> bool:
    """Whether a family is UniCP, by its online rule or by a plan."""
    return family in (OURS, PLANNED)


def is_peer(family: str) -> bool:
    """Whether a family is neither UniCP nor made from it (fixed windows, placed steps) nor the plain run."""
    return not is_ours(family) and family not in (BASELINE, CHOSEN, PLAIN)


def load_rows(files: Sequence[Path]) -> list[Row]:
    """Reads all rows of the files; of two rows of the same measurement the later one counts.

    Raises:
        InputError: A file cannot be read, or there are no rows.
        FileFormatError: A file is damaged.
    """
    rows: list[Row] = []
    for file in files:
        if not os.path.exists(file):
            raise InputError(f"rows in {file}", "no file there", "name a file that `unicp bench` wrote")
        rows += read_rows(file)
    # With the key alone, rows of short clips would replace those of long ones.
    found = {(row.key, row.suite, against): row for row, against in zip(rows, references(rows))}
    if not found:
        names = ", ".join(str(file) for file in files) or "no file"
        raise InputError("a report of measured rows", f"no rows in {names}", "measure first: unicp bench quick")
    return list(found.values())


def split(rows: Iterable[Row], together: bool = False) -> list[Part]:
    """One part per model, sampler, plain run, conditions and set of clips, in order of appearance.

    Suites with the same clips are one part, and of two rows of the same measurement the later one counts.

    Args:
        rows: Of any suites.
        together: Puts suites with different clips in one part too.
    """
    rows = list(rows)
    suites: dict[_Kind, dict[str, dict[str, list[Row]]]] = {}
    for row, against in zip(rows, references(rows)):
        of_kind = suites.setdefault((row.model, row.sampler, against), {})
        of_kind.setdefault(row.conditions, {}).setdefault(row.suite, []).append(row)
    return [
        replace(part, apart=_apart(of_kind, conditions))
        for kind, of_kind in suites.items()
        for conditions, by_suite in of_kind.items()
        for part in _parts_of(kind, by_suite, together)
    ]


def _parts_of(kind: _Kind, by_suite: Mapping[str, list[Row]], together: bool) -> Iterator[Part]:
    alike: dict[frozenset[Clip], list[str]] = {}
    for suite, members in by_suite.items():
        clips = frozenset[Clip]() if together else frozenset((row.prompt, row.seed) for row in members)
        alike.setdefault(clips, []).append(suite)
    plain = [row for members in by_suite.values() for row in members if row.method == PLAIN]
    for names in alike.values():
        found = {row.key: row for row in [*plain, *(row for name in names for row in by_suite[name])]}
        yield _part(*kind, tuple(names), group_rows(found.values()))


def _apart(of_kind: Mapping[str, Mapping[str, list[Row]]], conditions: str) -> str:
    """The facts in which these rows differ from others of the same kind; "" if there are no others."""
    facts = {name: next(iter(by_suite.values()))[0].environment for name, by_suite in of_kind.items()}
    own = facts.pop(conditions)
    names = sorted({name for other in facts.values() for name in differences(own, other)})
    told = [f"{name} {own[name]!s:.60}" for name in names if name in own]
    return ", ".join(told or ["without conditions" if not conditions else f"conditions {conditions}"]) if facts else ""


def _part(model: str, sampler: str, reference: Reference, suites: tuple[str, ...], groups: list[Group]) -> Part:
    shared = share(groups)
    measured: list[Group] = []
    failures: list[Failure] = []
    plain: Group | None = None
    for group in groups:
        if group.reason:
            # A method may fail on some clips only; the others are another group.
            clips = sum(len(other.rows) for other in groups if other.name == group.name)
            reasons = dict.fromkeys(row.reason for row in group.rows)
            failures.append(Failure(group.name, "; ".join(reasons), len(group.rows), clips))
    for group in shared.groups:
        if group.method == PLAIN:
            plain = group
        elif not group.reason:
            measured.append(group)
    return Part(model, sampler, reference, suites, plain, tuple(measured), tuple(failures), shared)


def _rank(family: str) -> int:
    return {OURS: 0, PLANNED: 1, CHOSEN: 2, BASELINE: 3}.get(family, 4)
