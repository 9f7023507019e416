"""The paper's U shape as a figure: change of attention outputs per block over steps (`attention_change` records)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from unicp.errors import FileFormatError
from unicp.files import MisfitError, Step, Within, read_as, read_json
from unicp_bench.html.chart import BANNERS, Axis, Canvas, figure, path, position
from unicp_bench.html.markup import counted, escape, number, scroll, tag, text_tag

DEPTHS = 6


_Change = Annotated[float, Within(0, 1e12)]


@dataclass(frozen=True)
class AttentionChange:
    """What `experiments.attention_change` writes.

    change: by unit and step; the first step has none before it.
    """

    units: list[str]
    change: list[list[_Change]]
    model: str = ""
    sampler: str = ""
    steps: Step = 0
    clips: Step = 0

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.change}
        if len(self.change) != len(self.units) or len(widths) != 1 or min(widths) < 2:
            raise FileFormatError("changes of attention", "no table of units and steps", "measure again")


def load_attention(file: Path) -> AttentionChange:
    """A record of `experiments.attention_change`. Raises InputError, FileFormatError."""
    record = read_json(file)
    try:
        return read_as(AttentionChange, record)
    except MisfitError as error:
        do = "name a file written by python -m experiments.attention_change"
        raise FileFormatError(f"changes of attention in {file}", str(error), do) from error


def attention_figure(record: AttentionChange) -> str:
    """One thin line per block, shallow to deep, and their mean."""
    change = record.change
    lines = [list(enumerate(row))[1:] for row in change]
    mean = [(step, sum(row[step] for row in change) / len(change)) for step in range(1, len(change[0]))]
    top = max((value for row in change for value in row[1:]), default=1.0) or 1.0
    x_axis = Axis(1, max(2, len(change[0]) - 1), "step")
    y_axis = Axis(0, top * 1.05, "relative change")
    label = f"Relative change of attention outputs by step, {counted(len(change), 'block')} and their mean"
    drawings = "".join(_draw(lines, mean, canvas, x_axis, y_axis, label) for canvas in BANNERS)
    facts = [record.model, f"sampler {record.sampler}", counted(record.clips, "clip")]
    heading = text_tag("b", "Change of attention output between neighbouring steps") + " "
    caption = tag("figcaption", heading + text_tag("span", ", ".join(facts), class_="muted"))
    return tag("figure", caption + _key(len(change)) + drawings, class_="attention") + _table(record, mean)


def _draw(
    lines: Sequence[Sequence[tuple[int, float]]],
    mean: Sequence[tuple[int, float]],
    canvas: Canvas,
    x_axis: Axis,
    y_axis: Axis,
    label: str,
) -> str:
    def placed(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
        return [position(canvas, x_axis, y_axis, x, y) for x, y in points]

    drawn = "".join(path(placed(line), class_=f"line depth{_depth(i, len(lines))}") for i, line in enumerate(lines))
    drawn += path(placed(mean), class_="line mean")
    x, y = placed(mean)[len(mean) // 2]
    return figure(
        canvas,
        x_axis,
        y_axis,
        drawn,
        text_tag("text", "mean", class_="name mean", x=f"{x:.1f}", y=f"{y - 14:.1f}"),
        label,
    )


def _key(blocks: int) -> str:
    steps = "".join(tag("i", class_=f"depth{depth}") for depth in range(min(DEPTHS, blocks)))
    return tag("p", f"first block {tag('span', steps, class_='ramp', aria_hidden='true')} last block", class_="key")


def _table(record: AttentionChange, mean: Sequence[tuple[int, float]]) -> str:
    head = text_tag("th", "unit", scope="col") + "".join(text_tag("th", step, scope="col") for step, _ in mean)
    body = ""
    rows = [*zip(record.units, record.change), ("mean", [math.nan, *(value for _, value in mean)])]
    for name, row in rows:
        cells = "".join(text_tag("td", number(value, 3), class_="num") for value in row[1:])
        body += tag("tr", text_tag("th", name, scope="row") + cells)
    table = tag("table", tag("thead", tag("tr", head)) + tag("tbody", body), class_="compact")
    return tag(
        "details", tag("summary", escape("The same in numbers")) + scroll("Change by unit and step", table, "tall")
    )


def _depth(index: int, count: int) -> int:
    return min(DEPTHS - 1, index * DEPTHS // max(1, count))
