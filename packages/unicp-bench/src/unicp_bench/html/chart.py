"""The few pieces of a line chart as SVG text: scales, ticks, a frame with axes, marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from unicp_bench.html.markup import escape, tag, text_tag


@dataclass(frozen=True)
class Canvas:
    """Sizes in the units of the figure, which are CSS pixels at its intended width."""

    name: str
    width: float
    height: float
    left: float = 46.0
    right: float = 14.0
    top: float = 12.0
    bottom: float = 42.0
    x_ticks: int = 8

    @property
    def inner_width(self) -> float:
        """Width between the axes."""
        return self.width - self.left - self.right

    @property
    def inner_height(self) -> float:
        """Height between the axes."""
        return self.height - self.top - self.bottom


# Text in a figure shrinks with it, so there is a second drawing for narrow screens; the style sheet shows one of them.
WIDE = Canvas("wide", 560, 380)
NARROW = Canvas("narrow", 340, 320, left=40, right=10, x_ticks=5)
BANNER = Canvas("wide", 1120, 380, x_ticks=16)
CANVASES = (WIDE, NARROW)
BANNERS = (BANNER, NARROW)


@dataclass(frozen=True)
class Axis:
    """One axis: its range, and the text beside it. unit: behind each tick."""

    low: float
    high: float
    label: str
    unit: str = ""

    def share(self, value: float) -> float:
        """Where a value stands between low (0) and high (1); not clipped."""
        return (value - self.low) / (self.high - self.low)

    def holds(self, value: float) -> bool:
        """Whether a value is on the axis."""
        return self.low <= value <= self.high

    def ticks(self, count: int) -> list[float]:
        """At most `count` + 1 round values within the range."""
        raw = (self.high - self.low) / max(1, count)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def position(canvas: Canvas, x_axis: Axis, y_axis: Axis, x: float, y: float) -> tuple[float, float]:
    """Where a point stands within the axes, from the upper left corner of the inner area."""
    return x_axis.share(x) * canvas.inner_width, (1 - y_axis.share(y)) * canvas.inner_height


def short(value: float) -> str:
    """A coordinate with a tenth of a pixel, without needless zeros."""
    return f"{round(value, 1) + 0.0:g}"


def figure(canvas: Canvas, x_axis: Axis, y_axis: Axis, clipped: str, marks: str, label: str) -> str:
    """A whole figure. clipped: SVG that is cut at the axes; marks: SVG that is not; both in inner coordinates."""
    width, height = short(canvas.inner_width), short(canvas.inner_height)
    area = tag("svg", clipped, width=width, height=height)
    inner = tag(
        "g", _grid(canvas, x_axis, y_axis) + area + marks, transform=f"translate({canvas.left:g} {canvas.top:g})"
    )
    captions = text_tag(
        "text", x_axis.label, class_="axis", x=short(canvas.left + canvas.inner_width / 2), y=short(canvas.height - 6)
    )
    return tag(
        "svg",
        inner + captions,
        class_=f"chart {canvas.name}",
        viewBox=f"0 0 {canvas.width:g} {canvas.height:g}",
        role="img",
        tabindex="0",
        aria_label=label,
    )


def path(points: Sequence[tuple[float, float]], **values: str | int) -> str:
    """A line through points."""
    steps = "L".join(f"{short(x)} {short(y)}" for x, y in points)
    return tag("path", "", d=f"M{steps}", **values)


def marker(shape: int, x: float, y: float, radius: float, **values: str | int) -> str:
    """A dot: 0 circle, 1 square, 2 triangle, 3 diamond; all of about the same area."""
    if shape == 0:
        return tag("circle", "", cx=short(x), cy=short(y), r=short(radius), **values)
    r = radius * (0.9, 1.35, 1.3)[shape - 1]
    corners = (
        ((-r, -r), (r, -r), (r, r), (-r, r)),
        ((0, -r), (r, r * 0.8), (-r, r * 0.8)),
        ((0, -r), (r, 0), (0, r), (-r, 0)),
    )[shape - 1]
    steps = "L".join(f"{short(x + dx)} {short(y + dy)}" for dx, dy in corners)
    return tag("path", "", d=f"M{steps}Z", **values)


def _grid(canvas: Canvas, x_axis: Axis, y_axis: Axis) -> str:
    parts = []
    for value in y_axis.ticks(6):
        _, y = position(canvas, x_axis, y_axis, x_axis.low, value)
        parts.append(path([(0, y), (canvas.inner_width, y)], class_="grid"))
        parts.append(tag("text", _tick(value, y_axis.unit), class_="tick y", x="-8", y=short(y + 4)))
    base = canvas.inner_height
    for value in x_axis.ticks(canvas.x_ticks):
        x, _ = position(canvas, x_axis, y_axis, value, y_axis.low)
        parts.append(path([(x, base), (x, base + 4)], class_="grid"))
        parts.append(tag("text", _tick(value, x_axis.unit), class_="tick x", x=short(x), y=short(base + 17)))
    parts.append(path([(0, base), (canvas.inner_width, base)], class_="base"))
    return "".join(parts)


def _tick(value: float, unit: str) -> str:
    return escape(f"{round(value, 6):g}{unit}")
