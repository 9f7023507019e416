"""Fidelity against what was saved: the figures of one part, and the legend that they share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unicp_bench.html.chart import CANVASES, Axis, Canvas, figure, marker, path, position
from unicp_bench.html.comparison import METRIC, SAME, Number, costs, worths
from unicp_bench.html.markup import counted, listed, number, speed, tag, text_tag
from unicp_bench.html.parts import OURS, Part, Style, is_ours
from unicp_bench.statistics import Group, frontier, worst_name

# Above it no difference survives the rounding to 8 bits; without a top, one lossless setting (100 dB by convention)
# would press everything else into the lower half.
TOP, SPAN = 60.0, 40.0
FASTEST = 6.0


@dataclass(frozen=True)
class Dot:
    """One setting in a figure. index: of its tooltip."""

    index: int
    family: str
    x: float
    y: float


def pareto(part: Part, style: Mapping[str, Style]) -> str:
    """Legend and figures of one part; a sentence where there is nothing to draw."""
    if not any(not math.isnan(group.mean(METRIC)) for group in part.groups):
        return text_tag("p", "No setting of this model and sampler has a PSNR, so there is nothing to draw.")
    known = costs(part)
    figures = [_figure(part, style, (cost, worth)) for cost in known for worth in worths(part.clips)]
    return legend(part, style) + tag("div", "".join(figures), class_="grid2")


def tooltips(parts: Sequence[Part]) -> list[list[list[str]]]:
    """For every part and setting, in order: its name and what the tooltip says below it."""
    return [[_tooltip(group) for group in part.groups] for part in parts]


def legend(part: Part, style: Mapping[str, Style]) -> str:
    """A button per family that shows and hides it in all figures of the part."""
    buttons = []
    for family in part.families:
        look = style[family]
        sign = path([(1, 7), (27, 7)], class_="line") + marker(look.shape, 14, 7, 4, class_="dot")
        swatch = tag("svg", sign, class_=f"swatch {_classes(look)}", viewBox="0 0 28 14", aria_hidden="true")
        inner = swatch + text_tag("span", family)
        buttons.append(tag("button", inner, type="button", aria_pressed="true", data_f=look.index))
    hint = tag("button", "all", type="button", class_="plain-button", data_all="1")
    hint += (
        tag("button", "none but UniCP", type="button", class_="plain-button", data_only=style[OURS].index)
        if (OURS in part.families)
        else ""
    )
    return tag("div", "".join(buttons) + hint, class_="legend", role="group", aria_label="Families in the figures")


def _tooltip(group: Group) -> list[str]:
    clips = len(group.rows)
    psnr = f"PSNR {number(group.mean(METRIC))} dB mean, {number(group.worst(METRIC))} dB {worst_name(clips)}"
    lines = [group.name, f"{speed(group.operations)} less compute", psnr, counted(clips, "clip")]
    if group.paired:
        low, high = group.seconds_spread
        spread = f"{number(low, 2)} to {number(high, 2)}"
        lines.append(f"{speed(group.seconds)} in seconds, median of {counted(clips, 'pair')} ({spread})")
    return lines


def _figure(part: Part, style: Mapping[str, Style], names: tuple[str, str]) -> str:
    cost, worth = costs(part)[names[0]], worths(part.clips)[names[1]]
    placed = ((index, group, cost(group), worth(group)) for index, group in enumerate(part.groups))
    dots = [Dot(index, group.method, x, y) for index, group, x, y in placed if not (math.isnan(x) or math.isnan(y))]
    x_axis, y_axis = axes(dots, names[0])
    title = f"PSNR, {names[1]}, against {names[0]}"
    drawings = "".join(_draw(part, style, dots, (cost, worth), (names, canvas), x_axis, y_axis) for canvas in CANVASES)
    heading = text_tag("b", title) + " " + text_tag("span", "dB, higher is better", class_="muted")
    note = beyond(dots, x_axis, y_axis)
    caption = tag("figcaption", heading)
    return tag("figure", caption + drawings + text_tag("p", note, class_="note"))


def beyond(dots: Sequence[Dot], x_axis: Axis, y_axis: Axis) -> str:
    """Where the axes end, and how many settings lie beyond each end; "" where all are within."""
    ends = {
        f"above {y_axis.high:g} dB": sum(dot.y > y_axis.high for dot in dots),
        f"below {y_axis.low:g} dB": sum(dot.y < y_axis.low for dot in dots),
        f"beyond {x_axis.high:g}x": sum(dot.x > x_axis.high for dot in dots),
        f"below {x_axis.low:g}x": sum(dot.x < x_axis.low for dot in dots),
    }
    said = [f"{counted(count, 'setting')} {where}" for where, count in ends.items() if count]
    if not said:
        return ""
    return f"The axes do not hold {listed(said)}: drawn hollow on the edge, and lines are cut there."


def axes(dots: Sequence[Dot], cost: str) -> tuple[Axis, Axis]:
    """Ranges that hold what can be compared: TOP dB and SPAN below it at most, up to FASTEST times the speed."""
    values = [dot.y for dot in dots if dot.y <= TOP] or [TOP]
    top = 5 * math.ceil(max(values) / 5 + 1e-9)
    bottom = max(5 * math.floor(min(values) / 5), top - SPAN)
    speeds = [dot.x for dot in dots if dot.y >= bottom]
    right = max(2.0, math.ceil(min(FASTEST, max(speeds, default=2.0)) * 2 + 0.1) / 2)
    left = min(1.0, max(0.5, math.floor(min(speeds, default=1.0) * 4) / 4))
    return Axis(left, right, cost, "x"), Axis(min(bottom, top - 10), min(TOP, top), "PSNR")


def _draw(
    part: Part,
    style: Mapping[str, Style],
    dots: Sequence[Dot],
    numbers: tuple[Number, Number],
    shown: tuple[tuple[str, str], Canvas],
    x_axis: Axis,
    y_axis: Axis,
) -> str:
    (cost, worth), (names, canvas) = numbers, shown
    lines, marks = [], []
    # The first family is UniCP: drawn last, so that nothing hides it.
    for family, groups in reversed(part.families.items()):
        look = style[family]
        best = [point for point in frontier(groups, cost, worth) if point[1] < SAME]
        points = [position(canvas, x_axis, y_axis, x, y) for x, y in best]
        if len(points) > 1:
            lines.append(path(points, class_=f"line {_classes(look)}", data_f=look.index))
        own = [dot for dot in dots if dot.family == family]
        signs = "".join(_mark(dot, look, canvas, x_axis, y_axis) for dot in own)
        if is_ours(family):
            signs += _direct_label(points, canvas, family)
        marks.append(tag("g", signs, class_=_classes(look), data_f=look.index))
    if x_axis.low < 1:
        x, _ = position(canvas, x_axis, y_axis, 1, y_axis.low)
        lines.insert(0, path([(x, 0), (x, canvas.inner_height)], class_="unity"))
    label = f"{part.name}: PSNR, {names[1]}, in dB against {names[0]}. Left and right arrow keys go through settings."
    return figure(canvas, x_axis, y_axis, "".join(lines), "".join(marks), label)


def _mark(dot: Dot, look: Style, canvas: Canvas, x_axis: Axis, y_axis: Axis) -> str:
    inside = x_axis.holds(dot.x) and y_axis.holds(dot.y)
    x = min(max(dot.x, x_axis.low), x_axis.high)
    y = min(max(dot.y, y_axis.low), y_axis.high)
    place = position(canvas, x_axis, y_axis, x, y)
    radius = 4.6 if is_ours(dot.family) else 3.4
    return marker(look.shape, *place, radius, class_="dot" if inside else "dot beyond", data_i=dot.index)


def _direct_label(points: Sequence[tuple[float, float]], canvas: Canvas, family: str) -> str:
    inside = [(x, y) for x, y in points if 0 <= x <= canvas.inner_width and 14 <= y <= canvas.inner_height]
    if not inside:
        return ""
    x, y = inside[len(inside) // 2]
    room = x < canvas.inner_width - 60
    place = {"x": f"{x + 9:.1f}", "y": f"{y - 8:.1f}"} if room else {"x": f"{x - 9:.1f}", "y": f"{y - 8:.1f}"}
    return text_tag("text", family, class_="name" if room else "name end", **place)


def _classes(look: Style) -> str:
    return f"{look.colour} s{look.shape}"
