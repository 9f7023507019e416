"""The full table of a model and sampler: every setting with every number, and what could not run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unicp_bench.html.comparison import METRIC
from unicp_bench.html.markup import MISSING, number, scroll, size, speed, tag, text_tag
from unicp_bench.html.parts import Failure, Part, is_ours
from unicp_bench.rows import PLAIN
from unicp_bench.statistics import FEWEST_FOR_INTERVAL, Group, bootstrap, worst_name

# name in the rows: heading, digits, what it is
METRICS = {
    "ssim": ("SSIM", 4, "structural similarity to the plain clip, 1 = equal"),
    "vmaf": ("VMAF", 1, "0 to 100, higher is better"),
    "feature_distance": ("feature distance", 4, "distance of deep features, 0 = equal"),
    "lpips": ("LPIPS", 4, "perceptual distance, 0 = equal"),
    "temporal_psnr": ("temporal PSNR", 1, "PSNR of the changes from frame to frame, dB"),
    "motion_energy_ratio": ("motion energy", 3, "motion over that of the plain clip, 1 = as much"),
    "latent_error": ("latent error", 4, "relative root mean square error of the last latent"),
    "adherence_glyph": ("glyph as asked", 2, "share of clips that show the glyph of the prompt"),
    "adherence_colour": ("colour as asked", 2, "share of clips that show the colour of the prompt"),
    "adherence_motion": ("motion as asked", 2, "share of clips that show the motion of the prompt"),
    "adherence_background": ("background as asked", 2, "share of clips that show the background of the prompt"),
}
# Not every model has it: LPIPS needs weights from elsewhere, adherence the test-bed's prompts.
ONLY_IF_THERE = ("lpips", *(name for name in METRICS if name.startswith("adherence_")))


@dataclass(frozen=True)
class Column:
    """One column. value: what it is sorted by; shown: its text; about: the tooltip of its heading."""

    title: str
    about: str
    value: Callable[[Group], float]
    shown: Callable[[Group], str]


def settings_table(part: Part) -> str:
    """Table of the measured settings, the plain run in the first line, sorted by a click on a heading."""
    every = [*part.groups, *([part.plain] if part.plain else [])]
    shown = columns(every)
    heads = [text_tag("th", "setting", scope="col", class_="word")]
    for column in shown:
        button = tag("button", text_tag("span", column.title), type="button")
        heads.append(tag("th", button, scope="col", title=column.about, aria_sort="none"))
    body = ""
    if part.plain:
        body += _row("plain run (the reference)", part.plain, shown, "plain-row")
    for family, groups in part.families.items():
        for group in groups:
            body += _row(group.name, group, shown, "ours-row" if is_ours(family) else None)
    table = tag("table", tag("thead", tag("tr", "".join(heads))) + tag("tbody", body), class_="settings")
    return scroll(f"All settings, {part.name}", table, "tall")


def failures_table(failures: Sequence[Failure]) -> str:
    """What could not run and why; settings with the same reason share a line."""
    if not failures:
        return ""
    together: dict[tuple[str, int, int], list[str]] = {}
    for one in failures:
        together.setdefault((one.reason, one.count, one.clips), []).append(one.name)
    rows = ""
    for (reason, count, clips), names in together.items():
        where = "every clip" if count == clips else f"{count} of {clips} clips"
        cells = (
            text_tag("th", "; ".join(names), scope="row")
            + text_tag("td", where)
            + text_tag("td", reason, class_="reason")
        )
        rows += tag("tr", cells)
    head = tag("tr", "".join(text_tag("th", name, scope="col") for name in ("could not run", "on", "reason")))
    table = tag("table", tag("thead", head) + tag("tbody", rows), class_="failures")
    return text_tag("h4", "What could not run") + scroll("What could not run", table)


def columns(groups: Sequence[Group]) -> list[Column]:
    """All columns; metrics that this report does not know by name come behind those it does."""
    names = list(dict.fromkeys(name for group in groups for row in group.rows for name in row.fidelity))
    wanted = [name for name in METRICS if name in names or name not in ONLY_IF_THERE]
    wanted += [name for name in names if name not in METRICS and name != METRIC]
    clips = max((len(group.rows) for group in groups), default=0)
    timed = any(group.paired for group in groups if group.method != PLAIN)
    metrics = [_metric(name) for name in wanted]
    return [*_costs(), *(_times() if timed else ()), *_psnr(clips), *metrics, *_memory(), *(_rest() if timed else ())]


def _costs() -> list[Column]:
    return [
        Column("clips", "the same for every setting", lambda g: len(g.rows), lambda g: str(len(g.rows))),
        Column("steps", "denoising steps", lambda g: g.rows[0].steps, lambda g: str(g.rows[0].steps)),
        Column(
            "less compute", "operations, plain over executed", lambda g: g.operations, lambda g: speed(g.operations)
        ),
    ]


def _times() -> list[Column]:
    def spread(group: Group) -> str:
        low, high = group.seconds_spread
        return f"{speed(group.seconds)} ({number(low, 2)}–{number(high, 2)})"

    about = "plain over accelerated, of pairs run one right after the other: median, lowest and highest"
    return [
        Column("speed-up in seconds", about, lambda g: g.seconds, spread),
        Column("seconds", "mean of a clip", lambda g: g.seconds_each, lambda g: number(g.seconds_each, 2)),
    ]


def _rest() -> list[Column]:
    def outside(group: Group) -> str:
        return number(group.outside_seconds, 2)

    return [Column("outside the model", "mean seconds of a clip", lambda g: g.outside_seconds, outside)]


def _psnr(clips: int) -> list[Column]:
    def interval(group: Group) -> str:
        values = group.by_prompt(METRIC)
        low, high = bootstrap(values)
        return f"{number(low)}–{number(high)}" if len(values) >= FEWEST_FOR_INTERVAL else MISSING

    def mean(group: Group) -> float:
        return group.mean(METRIC)

    def worst(group: Group) -> float:
        return group.worst(METRIC)

    return [
        Column("PSNR mean", "to the plain clip of the same seed, dB", mean, lambda g: number(mean(g))),
        Column("95 % interval", f"of the mean, bootstrap over {FEWEST_FOR_INTERVAL} prompts or more", mean, interval),
        Column(worst_name(clips), "lowest PSNR, dB; of several their mean", worst, lambda g: number(worst(g))),
    ]


def _metric(name: str) -> Column:
    title, digits, about = METRICS.get(name, (name.replace("_", " "), 3, "mean over clips"))
    return Column(title, about, lambda g: g.mean(name), lambda g: number(g.mean(name), digits))


def _memory() -> list[Column]:
    def peak(group: Group) -> float:
        # 0 is what a machine writes that cannot tell.
        return float(max(row.peak_bytes for row in group.rows)) or math.nan

    def cache(group: Group) -> float:
        return statistics.fmean(row.cache_bytes for row in group.rows)

    def shown_peak(group: Group) -> str:
        return MISSING if math.isnan(peak(group)) else size(peak(group))

    return [
        Column("peak memory", "most memory above that before the call, worst clip", peak, shown_peak),
        Column("cache", "tensors kept beyond the plain run's, mean", cache, lambda g: size(cache(g))),
    ]


def _row(name: str, group: Group, shown: Sequence[Column], look: str | None) -> str:
    cells = text_tag("th", name, scope="row")
    for column in shown:
        value = column.value(group)
        empty = math.isnan(value) or (group.method == PLAIN and column.title == "cache")
        key = None if empty else f"{value:.6g}"
        cells += text_tag("td", MISSING if empty else column.shown(group), data_v=key)
    return tag("tr", cells, class_=look)
