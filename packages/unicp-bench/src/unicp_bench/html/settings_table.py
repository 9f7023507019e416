"""The full table of one part: every setting with every number."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
import scipy.stats

from unicp_bench.comparison import METRIC
from unicp_bench.formats import MISSING, number, speed
from unicp_bench.parts import Failure, Part
from unicp_bench.rows import PLAIN
from unicp_bench.statistics import Group, worst_name

RESAMPLES = 2000
# A bootstrap's interval is too narrow where values are few: of ten normal ones it holds the mean in 90 of 100 cases
# instead of 95, of four in 80, of two in 50.
FEWEST_FOR_INTERVAL = 10
MIB = 2**20
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
    """One column. about: the tooltip of its heading; shown: the text of a cell, which is sorted by its first number."""

    title: str
    about: str
    shown: Callable[[Group], str]


def columns(part: Part) -> list[Column]:
    """All columns; metrics that this report does not know by name come behind those it does."""
    names = {name: None for group in _groups(part) for row in group.rows for name in row.fidelity}
    wanted = [name for name in METRICS if name in names or name not in ONLY_IF_THERE]
    wanted += [name for name in names if name not in METRICS and name != METRIC]
    about_pairs = "plain over accelerated, of pairs run one right after the other: median, lowest and highest"
    timed = [
        Column("speed-up in seconds", about_pairs, _spread),
        Column("seconds", "mean of a clip", lambda g: number(g.seconds_each, 2)),
        Column("outside the model", "mean seconds of a clip", lambda g: number(g.outside_seconds, 2)),
    ]
    interval = f"of the mean, bootstrap over {FEWEST_FOR_INTERVAL} prompts or more"
    return [
        Column("clips", "the same for every setting", lambda g: str(len(g.rows))),
        Column("steps", "denoising steps", lambda g: str(g.rows[0].steps)),
        Column("less compute", "operations, plain over executed", lambda g: speed(g.operations)),
        *(timed if any(group.paired for group in part.groups) else ()),
        Column("PSNR mean", "to the plain clip of the same seed, dB", lambda g: number(g.mean(METRIC))),
        Column("95 % interval", interval, _interval),
        Column(worst_name(part.clips), "lowest PSNR, dB; of several their mean", lambda g: number(g.worst(METRIC))),
        *map(_metric, wanted),
        Column("peak memory, MiB", "most memory above that before the call, worst clip", _peak),
        Column("cache, MiB", "tensors kept beyond the plain run's, mean", _cache),
    ]


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """Percentile interval of the mean, 95 % (seeded: the same values give the same interval); NaN for too few values.

    It resamples `RESAMPLES` times.
    """
    if len(values) < FEWEST_FOR_INTERVAL:
        return math.nan, math.nan
    found = scipy.stats.bootstrap(
        (values,), numpy.mean, n_resamples=RESAMPLES, method="percentile", rng=numpy.random.default_rng(0)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def failures(part: Part) -> list[tuple[str, str, str]]:
    """What could not run, on which clips and why; settings with the same reason share a line."""
    together: dict[tuple[str, str], list[str]] = {}
    for one in part.failures:
        together.setdefault((_where(one), one.reason), []).append(one.name)
    return [("; ".join(names), where, reason) for (where, reason), names in together.items()]


def _where(failure: Failure) -> str:
    return "every clip" if failure.count == failure.clips else f"{failure.count} of {failure.clips} clips"


def _groups(part: Part) -> list[Group]:
    return [*part.groups, *([part.plain] if part.plain else [])]


def _spread(group: Group) -> str:
    low, high = group.seconds_spread
    return f"{speed(group.seconds)} ({number(low, 2)}–{number(high, 2)})" if group.paired else MISSING


def _interval(group: Group) -> str:
    low, high = bootstrap(group.by_prompt(METRIC))
    return MISSING if math.isnan(low) else f"{number(low)}–{number(high)}"


def _metric(name: str) -> Column:
    title, digits, about = METRICS.get(name, (name.replace("_", " "), 3, "mean over clips"))
    return Column(title, about, lambda g: number(g.mean(name), digits))


def _peak(group: Group) -> str:
    # 0 is what a machine writes that cannot tell.
    return number((max(row.peak_bytes for row in group.rows) or math.nan) / MIB)


def _cache(group: Group) -> str:
    return MISSING if group.method == PLAIN else number(statistics.fmean(row.cache_bytes for row in group.rows) / MIB)
