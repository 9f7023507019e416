"""How UniCP does on models that it was not made on: its margin over the best peer, model by model.

Whatever is learnt from recorded runs is learnt without the model of the line (`unicp_bench.left_out`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from unicp_bench.comparison import COMPUTE, SPEEDS, at_each_speed, sweeps
from unicp_bench.formats import counted
from unicp_bench.parts import split
from unicp_bench.rows import Row
from unicp_bench.statistics import worst_name


@dataclass(frozen=True)
class Margin:
    """UniCP's best setting minus the best peer's, in dB, at one speed: in the mean, and in the worst clips."""

    mean: float
    worst: float


@dataclass(frozen=True)
class Cells:
    """The margins of one model and sampler.

    Attributes:
        model, sampler: Names.
        clips: How many each number is over.
        by_speed: In the order of `SPEEDS`; `None` where one of the two goes not so far.
    """

    model: str
    sampler: str
    clips: int
    by_speed: tuple[Margin | None, ...]


def margins_of(rows: Sequence[Row]) -> list[Cells]:
    """The margins of each model and sampler in these rows, in order of appearance."""
    found = []
    for part in split(rows, together=True):
        mean, worst = (at_each_speed(families) for families in sweeps(part, COMPUTE).values())
        pairs = [Margin(a.margin, b.margin) for a, b in zip(mean, worst)]
        known = tuple(None if math.isnan(one.mean) or math.isnan(one.worst) else one for one in pairs)
        found.append(Cells(part.groups[0].model, part.groups[0].sampler, part.clips, known))
    return found


def summary(cells: Sequence[Cells]) -> dict[str, float]:
    """The mean and the lowest margin over all cells, in the mean and in the worst clips, and how many are negative."""
    every = [one for line in cells for one in line.by_speed if one is not None]
    return {
        "cells": len(every),
        "mean": fmean(one.mean for one in every),
        "worst": fmean(one.worst for one in every),
        "lowest mean": min(one.mean for one in every),
        "lowest worst": min(one.worst for one in every),
        "behind": sum(one.mean < 0 or one.worst < 0 for one in every),
    }


def transfer_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]], str]:
    """Head, lines and the note of the table."""
    cells = margins_of(rows)
    lines = [[line.model, line.sampler, str(line.clips), *map(_told, line.by_speed)] for line in cells]
    means = [[one for line in cells if (one := line.by_speed[at]) is not None] for at in range(len(SPEEDS))]
    over = [Margin(fmean(m.mean for m in found), fmean(m.worst for m in found)) if found else None for found in means]
    lines.append(["**mean**", "", "", *map(_told, over)])
    lowest = [Margin(min(m.mean for m in found), min(m.worst for m in found)) if found else None for found in means]
    lines.append(["**lowest**", "", "", *map(_told, lowest)])
    told = summary(cells)
    note = (
        f"Over {counted(int(told['cells']), 'cell')}: {told['mean']:+.1f} dB in the mean and {told['worst']:+.1f} dB "
        f"in the worst clips; the lowest are {told['lowest mean']:+.1f} and {told['lowest worst']:+.1f} dB; "
        f"{int(told['behind'])} cells have a negative number."
    )
    clips = max(line.clips for line in cells)
    return ["model", "sampler", f"clips (mean / {worst_name(clips)})", *(f"{at:g}x" for at in SPEEDS)], lines, note


def _told(margin: Margin | None) -> str:
    return "-" if margin is None else f"{margin.mean:+.1f} / {margin.worst:+.1f}"
