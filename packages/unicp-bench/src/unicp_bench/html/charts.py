"""The figures of the page, which matplotlib draws as SVG, with tooltips and classes of families.

Why matplotlib: its SVG needs no script, keeps text as text, is the same for the same rows, and distinguishes twenty
families by colour, marker and dash. pygal has one marker and needs a script for tooltips. altair's SVG has no tooltips,
and its script (0.9 MB), like those of plotly and bokeh, would be most of the page.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unicp_bench.comparison import METRIC, SAME, costs, sweeps, worths
from unicp_bench.formats import counted, listed, number, speed
from unicp_bench.html.attention import AttentionChange
from unicp_bench.parts import CHOSEN, Part, is_ours, is_peer
from unicp_bench.rows import PLANNED
from unicp_bench.statistics import Group, worst_name

# Above it no difference survives the rounding to 8 bits. Without it one lossless setting (100 dB by convention) would
# squeeze everything else into the lower half.
TOP, SPAN = 60.0, 40.0
FASTEST = 6.0
# Each peer has a colour and a marker of its own: twenty together.
_COLOURS = ("#0069a8", "#00805e", "#9b4f96", "#9a7300", "#7b776e")
_MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆"}  # of matplotlib, and the sign in the legend
_DASHES = {"o": "-", "s": (0, (7, 3)), "^": (0, (2, 3)), "D": (0, (8, 3, 2, 3))}
_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# Text stays text, so that it can be searched; a fixed salt gives the same names to the same pieces.
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "unicp",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.edgecolor": "#67635b",
    "grid.color": "#dedad0",
    "xtick.color": "#67635b",
    "ytick.color": "#67635b",
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Look:
    """How a family is drawn in every figure. name: its class in the page."""

    name: str
    colour: str
    marker: str
    is_ours: bool = False

    @property
    def gid(self) -> str:
        """What it is called in a figure."""
        return f"family {self.name}{' ours' if self.is_ours else ''}"

    @property
    def sign(self) -> str:
        """The marker as a letter."""
        return _MARKERS[self.marker]


@dataclass(frozen=True)
class Dot:
    """One setting in a figure."""

    group: Group
    x: float
    y: float


@dataclass(frozen=True)
class Chart:
    """A drawn figure. svg: trusted; beyond: which settings its axes do not hold, "" where they hold all."""

    title: str
    svg: str
    beyond: str = ""


def looks(parts: Iterable[Part]) -> dict[str, Look]:
    """One look per family, the same in every figure; UniCP first."""
    names = dict.fromkeys(name for part in parts for name in part.families)
    found: dict[str, Look] = {}
    peers = [name for name in names if is_peer(name)]
    for index, name in enumerate(sorted(names, key=is_peer)):
        colour, marker = "#c2410c" if is_ours(name) else "#1d1c1a", {PLANNED: "^", CHOSEN: "D"}.get(name, "o")
        if name in peers:
            turn = peers.index(name)
            colour = _COLOURS[turn % len(_COLOURS)]
            marker = list(_MARKERS)[turn // len(_COLOURS) % len(_MARKERS)]
        found[name] = Look(f"f{index}", colour, marker, is_ours(name))
    return found


def pareto(part: Part, styles: Mapping[str, Look]) -> list[Chart]:
    """Fidelity against saved cost, for each cost and worth; [] if no setting has a PSNR."""
    if all(math.isnan(group.mean(METRIC)) for group in part.groups):
        return []
    return [_pareto(part, styles, cost, worth) for cost in costs(part) for worth in worths(part.clips)]


def _pareto(part: Part, styles: Mapping[str, Look], cost: str, worth: str) -> Chart:
    x_of, y_of = costs(part)[cost], worths(part.clips)[worth]
    dots = [Dot(group, x_of(group), y_of(group)) for group in part.groups]
    dots = [dot for dot in dots if not (math.isnan(dot.x) or math.isnan(dot.y))]
    (left, right), (bottom, top) = limits(dots)
    figure, axes = _figure(7, 4.75, cost, f"PSNR, {worth}, dB")
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.xaxis.set_major_formatter("{x:g}x")
    if left < 1:
        axes.axvline(1, color="#67635b", linestyle=":", linewidth=1)
    for family, points in sweeps(part, cost)[worth].items():
        look, ours = styles[family], is_ours(family)
        best = [point for point in points if point[1] < SAME]
        (line,) = axes.plot([x for x, _ in best], [y for _, y in best], color=look.colour, gid=look.gid)
        # UniCP is drawn last, on top.
        line.set(linestyle=_DASHES[look.marker], linewidth=2.6 if ours else 1.2, zorder=4 if ours else 3)
    tips = {}
    for index, dot in enumerate(dots):
        look, ours = styles[dot.group.method], is_ours(dot.group.method)
        x, y = min(max(dot.x, left), right), min(max(dot.y, bottom), top)
        is_within = (x, y) == (dot.x, dot.y)
        (mark,) = axes.plot([x], [y], look.marker, color=look.colour if is_within else "white", clip_on=False)
        mark.set(markeredgecolor="white" if is_within else look.colour, markeredgewidth=0.8)
        mark.set(markersize=7 if ours else 5.5, zorder=6 if ours else 5, gid=f"{look.gid} dot {index}")
        tips[mark.get_gid()] = tooltip(dot.group)
    title = f"PSNR, {worth}, against {cost}"
    return Chart(title, _svg(figure, f"{part.name}: {title}", tips), beyond(dots))


def tooltip(group: Group) -> str:
    """The numbers of a setting, one a line."""
    lines = [
        group.name,
        f"{speed(group.operations)} less compute",
        f"PSNR {number(group.mean(METRIC))} dB mean, {number(group.worst(METRIC))} dB {worst_name(len(group.rows))}",
        counted(len(group.rows), "clip"),
    ]
    if group.paired:
        low, high = group.seconds_spread
        pairs = f"{counted(len(group.rows), 'pair')} ({number(low, 2)} to {number(high, 2)})"
        lines.append(f"{speed(group.seconds)} in seconds, median of {pairs}")
    return "\n".join(lines)


def limits(dots: Sequence[Dot]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Axes that hold what can be compared: TOP dB and SPAN below it at most, up to FASTEST times the speed."""
    values = [dot.y for dot in dots if dot.y <= TOP] or [TOP]
    top = 5 * math.ceil(max(values) / 5 + 1e-9)
    bottom = max(5 * math.floor(min(values) / 5), top - SPAN)
    speeds = [dot.x for dot in dots if dot.y >= bottom]
    right = max(2.0, math.ceil(min(FASTEST, max(speeds, default=2.0)) * 2 + 0.1) / 2)
    left = min(1.0, max(0.5, math.floor(min(speeds, default=1.0) * 4) / 4))
    return (left, right), (min(bottom, top - 10), min(TOP, top))


def beyond(dots: Sequence[Dot]) -> str:
    """How many settings are beyond each end of the axes; "" for none."""
    (left, right), (bottom, top) = limits(dots)
    ends = {
        f"above {top:g} dB": sum(dot.y > top for dot in dots),
        f"below {bottom:g} dB": sum(dot.y < bottom for dot in dots),
        f"beyond {right:g}x": sum(dot.x > right for dot in dots),
        f"below {left:g}x": sum(dot.x < left for dot in dots),
    }
    return listed(f"{counted(count, 'setting')} {where}" for where, count in ends.items() if count)


def attention(record: AttentionChange) -> Chart:
    """`attention_figure` with the name of each block as its tooltip."""
    title = "Change of attention output between neighbouring steps"
    tips = {f"block {index}": name for index, name in enumerate(record.units)}
    label = f"{title}, {counted(len(record.units), 'block')} and their mean"
    return Chart(title, _svg(attention_figure(record), label, tips))


def attention_figure(record: AttentionChange, width: float = 14) -> Figure:
    """Change of attention over steps: one thin line per block, shallow to deep, and their mean. width: in inches."""
    figure, axes = _figure(width, 4.75, "step", "relative change")
    steps = range(1, len(record.mean))
    axes.set(xlim=(1, max(2, steps[-1])))
    axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    colours = matplotlib.colormaps["viridis_r"]
    last = len(record.units) - 1
    for index, row in enumerate(record.change):
        label = {0: "first block", last: "last block"}.get(index)
        colour = colours(0.15 + 0.85 * index / max(1, last))
        axes.plot(steps, row[1:], color=colour, linewidth=1, label=label, gid=f"block {index}")
    axes.plot(steps, record.mean[1:], color="#1d1c1a", linewidth=3, label="mean")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="upper center", ncols=3)
    return figure


def _figure(width: float, height: float, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0.75 / width, 0.11, 1 - 0.95 / width, 0.85))
        axes.set_xlabel(x_label, color="#67635b")
        axes.set_ylabel(y_label, color="#67635b")
        return figure, axes


def _svg(figure: Figure, label: str, tips: Mapping[str, str]) -> str:
    """The figure as SVG for a page. tips: tooltips by the name (gid) of what they belong to."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    root = ElementTree.fromstring(file.getvalue())
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label, "class": "chart"}
    for element in root.iter():
        element.tail = None
        element.text = (element.text or "").strip()
        if "d" in element.attrib:
            element.set("d", " ".join(element.attrib["d"].split()))
        if element.tag == f"{{{_SVG}}}g":
            name = element.attrib.pop("id", "")
            if name.startswith("family"):
                element.set("class", name)
            if name in tips:
                title = ElementTree.Element(f"{{{_SVG}}}title")
                title.text = tips[name]
                element.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")
