"""Rows sorted for the report: one part per model and sampler, families in a fixed order, failures apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unicp.benchmarking.rows import PLAIN, PLANNED, Row, read_rows
from unicp.benchmarking.statistics import Group, group_rows
from unicp.errors import InputError

OURS, BASELINE, CHOSEN = "UniCP", "fixed window", "fewer steps, placed"
COLOURS, SHAPES = 5, 4


@dataclass(frozen=True)
class Failure:
    """A setting that could not run on `count` of `clips` clips."""

    name: str
    reason: str
    count: int
    clips: int


@dataclass(frozen=True)
class Part:
    """Everything of one model and sampler under one set of conditions.

    groups: with measured rows only. plain: None where it has no row. apart: what tells it from other parts of the same
    model and sampler.
    """

    model: str
    sampler: str
    plain: Group | None
    groups: tuple[Group, ...]
    failures: tuple[Failure, ...]
    apart: str = ""

    @property
    def name(self) -> str:
        """What a heading says."""
        return f"{self.model}, sampler {self.sampler}{self.apart and f', {self.apart}'}"

    @property
    def families(self) -> dict[str, list[Group]]:
        """Groups by family: UniCP online and planned, what is made of it, then the others as they appear."""
        found: dict[str, list[Group]] = {}
        for group in sorted(self.groups, key=lambda g: _rank(g.method)):
            found.setdefault(group.method, []).append(group)
        return found


@dataclass(frozen=True)
class Style:
    """How a family is drawn. colour: a CSS class; shape: 0 circle, 1 square, 2 triangle, 3 diamond."""

    index: int
    colour: str
    shape: int


def is_ours(family: str) -> bool:
    """True for UniCP, by its online rule or by a plan."""
    return family in (OURS, PLANNED)


def is_peer(family: str) -> bool:
    """True for what is neither UniCP nor made of it: its forecast in fixed windows, the plain run of steps it chose."""
    return not is_ours(family) and family not in (BASELINE, CHOSEN, PLAIN)


def load_rows(files: Sequence[Path]) -> list[Row]:
    """All rows of the files; of two rows of the same measurement the later one. Raises InputError, FileFormatError."""
    found: dict[tuple[object, ...], Row] = {}
    for file in files:
        if not file.is_file():
            raise InputError(f"rows in {file}", "no file there", "name a file that `unicp bench` wrote")
        for row in read_rows(file):
            found[row.key] = row
    if not found:
        names = ", ".join(str(file) for file in files) or "no file"
        raise InputError("a report of measured rows", f"no rows in {names}", "measure first: unicp bench quick")
    return list(found.values())


def split(rows: Iterable[Row]) -> list[Part]:
    """One part per model, sampler and conditions, in order of appearance."""
    apart: dict[tuple[str, str, str], list[Group]] = {}
    for group in group_rows(rows):
        apart.setdefault((group.model, group.sampler, group.conditions), []).append(group)
    return [
        replace(_part(model, sampler, groups), apart=_apart(apart, model, sampler, conditions))
        for (model, sampler, conditions), groups in apart.items()
    ]


def _apart(groups: Mapping[tuple[str, str, str], list[Group]], model: str, sampler: str, conditions: str) -> str:
    """In which facts these rows differ from others of the same model and sampler; "" where there are no others."""
    facts = {key[2]: found[0].rows[0].environment for key, found in groups.items() if key[:2] == (model, sampler)}
    own = facts.pop(conditions)
    names = sorted({name for other in facts.values() for name in {*own, *other} if own.get(name) != other.get(name)})
    told = [f"{name} {own[name]!s:.60}" for name in names if name in own and name != "commit"]
    return ", ".join(told or ["without conditions" if not conditions else f"conditions {conditions}"]) if facts else ""


def styles(parts: Iterable[Part]) -> dict[str, Style]:
    """One style per family, the same in every figure."""
    names = sorted({name: None for part in parts for name in part.families}, key=_rank)
    found: dict[str, Style] = {}
    peers = 0
    for index, name in enumerate(names):
        if is_peer(name):
            found[name] = Style(index, f"c{peers % COLOURS}", (peers // COLOURS) % SHAPES)
            peers += 1
        else:
            found[name] = Style(index, "ours" if is_ours(name) else "base", {PLANNED: 2, CHOSEN: 3}.get(name, 0))
    return found


def _part(model: str, sampler: str, groups: list[Group]) -> Part:
    measured: list[Group] = []
    failures: list[Failure] = []
    plain: Group | None = None
    for group in groups:
        if group.reason:
            # A method may end with an error on some clips only; the others are a group of their own.
            clips = sum(len(other.rows) for other in groups if other.name == group.name)
            reasons = dict.fromkeys(row.reason for row in group.rows)
            failures.append(Failure(group.name, "; ".join(reasons), len(group.rows), clips))
        elif group.method == PLAIN:
            plain = group
        else:
            measured.append(group)
    return Part(model, sampler, plain, tuple(measured), tuple(failures))


def _rank(family: str) -> int:
    return {OURS: 0, PLANNED: 1, CHOSEN: 2, BASELINE: 3}.get(family, 4)
