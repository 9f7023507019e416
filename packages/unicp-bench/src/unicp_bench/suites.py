"""Which methods a suite measures, and on how many prompts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from unicp.errors import InputError
from unicp.settings import Basis, Settings, Slicing, preset
from unicp_bench.methods import (
    PLAIN_EVERY,
    Method,
    fewer_steps,
    fixed_window,
    other_sampler,
    unicp_method,
    with_preset,
    with_target,
)
from unicp_bench.peers import cache_dit_methods, diffusers_methods
from unicp_bench.placed_steps import placed_steps
from unicp_bench.step_schedule import schedule_methods
from unicp_testbeds import NAMES, folder

STEPS = 30
# From nearly nothing skipped to as much as plans skip.
TOLERANCES = (0.015, 0.03, 0.06, 0.1, 0.16, 0.25, 0.4, 0.7)


@dataclass(frozen=True)
class Suite:
    """Methods, and the prompts, seeds and frames they are measured on.

    Attributes:
        methods: Of the suite.
        about: What it compares.
        prompts, seeds: Numbers of them.
        frames: `None` = the model's own.
        plain_every: The plain run is timed again before so many methods.
    """

    methods: tuple[Method, ...]
    about: str
    prompts: int = 16
    seeds: int = 2
    frames: int | None = None
    plain_every: int = PLAIN_EVERY


def models() -> dict[str, Path]:
    """The folders of the shipped test-beds by name."""
    return {name: folder(name) for name in NAMES if folder(name).is_dir()}


def suite(name: str) -> Suite:
    """A suite by name.

    Raises:
        InputError: There is none of this name.
    """
    known = {
        "presets": _presets,
        "quick": _quick,
        "peers": _peers,
        "rivals": _rivals,
        "leaders": _leaders,
        "ablation": _ablation,
        "paper": _paper,
        "slices": _slices,
        "seconds": _seconds,
        "transfer": _transfer,
    }
    if name not in known:
        raise InputError(f"suite {name!r}", f"the suites {', '.join(known)}", "name one of them")
    return known[name]()


def _presets() -> Suite:
    named = [with_preset(name) for name in ("quality", "balanced", "fast", "paper")]
    windows = [fixed_window(n) for n in (2, 3)]
    fewer = [fewer_steps(n) for n in (15, 10)]
    return Suite((*named, *windows, *fewer), "the presets, fixed windows and fewer steps")


def _quick() -> Suite:
    named = [with_preset(name) for name in ("quality", "balanced", "fast")]
    peers = [m for m in diffusers_methods() if m.name in ("diffusers FirstBlockCache threshold 0.1",)]
    peers += [m for m in diffusers_methods() if m.name == "diffusers TaylorSeer order 1 interval 2"]
    methods = (*named, fixed_window(2), fewer_steps(15), *peers)
    return Suite(methods, "a few methods on short clips", prompts=2, seeds=1, frames=9)


def _peers() -> Suite:
    ours = [with_preset("balanced", tolerance=tolerance) for tolerance in TOLERANCES]
    # So close that there is a plan for every number of full steps down to ten.
    slow = ("1.3", "1.35", "1.4", "1.5", "1.6", "1.65", "1.7", "1.85")
    speeds = (*slow, "2", "2.1", "2.2", "2.35", "2.5", "2.7", "3", "3.4", "4")
    planned = [with_target(f"speedup>={x}") for x in speeds]
    planned += [with_target(f"psnr>={x}") for x in (40, 35, 30, 25)]
    windows = [fixed_window(n) for n in (2, 3, 4, 5)]
    fewer = [fewer_steps(n) for n in (20, 15, 12, 10, 8, 7)]
    fewer += [placed_steps(n) for n in (20, 15, 12, 10, 8)]
    others = [other_sampler(name, n) for name in ("unipc", "dpm", "euler") for n in (20, 15, 12, 10, 8)]
    methods = (
        *ours,
        *planned,
        *windows,
        *schedule_methods(),
        *fewer,
        *others,
        *diffusers_methods(),
        *cache_dit_methods(),
    )
    return Suite(
        methods, "the caches of diffusers and cache-dit, samplers, schedules and fewer steps, each with its sweep"
    )


# Settings of peers that are worth a long table, chosen from the whole sweep on two tuning prompts of the glyphs, 9
# frames, both samplers: clips kept about 26 dB, no faster setting of the method was better, and no other version of it
# was clearly better.
_STRONG = {
    "fewer steps": ("20", "15", "12", "10", "8", "7"),
    "fewer steps, unipc": ("20", "10", "8"),
    "fewer steps, dpm": ("20", "10", "8"),
    "global schedule": ("forecast 57 %", "forecast 50 %", "forecast 40 %", "reuse 33 %", "reuse 27 %"),
    "diffusers FirstBlockCache": ("threshold 0.06",),
    "diffusers TaylorSeer": tuple(f"order 1 interval {n}" for n in (2, 3, 4, 5)),
    "cache-dit DBCache + Taylor": ("F1 threshold 0.06", "F1 threshold 0.12"),
    "cache-dit DBCache + DMD": ("F1 threshold 0.12", "F1 threshold 0.24"),
    "cache-dit DBPrune": ("threshold 0.03", "threshold 0.06"),
}
_WHOLE = ("UniCP", "UniCP planned", "fewer steps, placed", "fixed window", "diffusers SeaCache", "diffusers MagCache")


# The best settings in the tables of "rivals", for clips that take three times as long.
_LEADERS = {
    "UniCP": tuple(f"balanced tolerance {tolerance}" for tolerance in (0.03, 0.06, 0.1, 0.16, 0.25, 0.4)),
    "UniCP planned": tuple(f"speedup>={x}" for x in ("1.5", "1.7", "2", "2.5", "3", "3.4", "4")),
    "global schedule": ("forecast 57 %", "forecast 50 %", "forecast 40 %", "reuse 33 %", "reuse 27 %"),
    "fewer steps": ("20", "15", "10", "8"),
}

# The setting of each method that takes about half the compute of 30 steps on the test-beds.
_AT_TWO = {
    "UniCP": ("balanced tolerance 0.1",),
    "UniCP planned": ("speedup>=1.85",),
    "fixed window": ("2",),
    "fewer steps": ("15",),
    "global schedule": ("reuse 50 %", "forecast 50 %"),
    "diffusers SeaCache": ("threshold 0.25 skips 2",),
    "diffusers MagCache": ("threshold 0.06 skips 3",),
    "diffusers TaylorSeer": ("order 1 interval 2",),
    "diffusers FirstBlockCache": ("threshold 0.1",),
    "cache-dit DBCache + Taylor": ("F1 threshold 0.12",),
}


def _some_of_peers(chosen: Mapping[str, Collection[str]], whole: Collection[str] = ()) -> tuple[Method, ...]:
    """Of the peers' sweep the chosen settings of each family, and whole families."""
    methods = _peers().methods
    return tuple(one for one in methods if one.family in whole or one.setting in chosen.get(one.family, ()))


def _seconds() -> Suite:
    about = "methods at about 2x less compute, each right after a plain run"
    return Suite(_some_of_peers(_AT_TWO), about, prompts=2, seeds=1, plain_every=1)


def _rivals() -> Suite:
    methods = _some_of_peers(_STRONG, _WHOLE)
    return Suite(methods, "the settings of peers that are worth a long table", prompts=4, seeds=1)


def _leaders() -> Suite:
    methods = _some_of_peers(_LEADERS, ("diffusers SeaCache",))
    return Suite(methods, "UniCP and the best peers, for long clips", prompts=4, seeds=1)


def _transfer() -> Suite:
    """For models that are left out of what is learnt."""
    ours = [with_preset("balanced", tolerance=tolerance) for tolerance in TOLERANCES]
    fewer = [fewer_steps(n) for n in (20, 15, 12, 10, 8, 7)] + [placed_steps(n) for n in (20, 15, 12, 10, 8)]
    chosen = {
        "diffusers TaylorSeer": tuple(f"order 1 interval {n}" for n in (2, 3, 4, 5)),
        "diffusers MagCache": ("threshold 0.06 skips 3", "threshold 0.24 skips 4", "threshold 0.5 skips 6"),
        "cache-dit DBCache + Taylor": ("F1 threshold 0.06", "F1 threshold 0.12", "F1 threshold 0.24"),
    }
    methods = (*ours, *fewer, *_some_of_peers(chosen, ("diffusers SeaCache",)))
    about = "UniCP and the best peers on a model that it was not made on"
    # No seconds are shown, so the plain run need not be timed again.
    return Suite(methods, about, prompts=12, seeds=1, plain_every=len(methods))


def _ablation() -> Suite:
    base = preset("balanced")
    methods = [with_preset("balanced"), fixed_window(2), fixed_window(3)]
    for weighting in ("uniform",):
        methods.append(with_preset("balanced", weighting=weighting))
    methods += [with_preset("balanced", predictor="reuse"), with_preset("balanced", damping=False)]
    for quantity in ("output", "clean", "noise"):
        for axis in ("sigma", "log_snr", "step"):
            if (quantity, axis) != ("noise", "log_snr"):
                changed = dataclasses.replace(base, quantity=quantity, axis=axis)
                methods.append(unicp_method(f"balanced, {quantity} over {axis}", changed))
    for level in ("stack", "block", "unit"):
        # With the usual limit on stored bytes a finer level gives way to a coarser one.
        finer = dataclasses.replace(base, level=level, store_factor=1000.0)
        methods.append(unicp_method(f"balanced, level {level}", finer))
    methods += _slicing_ablation(base)
    return Suite(tuple(methods), "each part of the method on and off", prompts=8, seeds=1)


def _slicing_ablation(base: Settings) -> list[Method]:
    found = []
    for basis in get_args(Basis):
        slicing = Slicing(widths=(0.5,), tolerance=100.0, basis=basis)
        found.append(unicp_method(f"balanced + half width, {basis}", dataclasses.replace(base, slicing=slicing)))
    for tolerance in (0.015, 0.03, 0.06):
        careful = Slicing(widths=(0.25, 0.5, 0.75), tolerance=tolerance)
        found.append(unicp_method(f"balanced + DWS within {tolerance}", dataclasses.replace(base, slicing=careful)))
    return found


def _slices() -> Suite:
    """For runs of a few steps, of which few can be skipped."""
    off = dataclasses.replace(preset("balanced"), tolerance=1e-9)  # windows that never open
    methods = []
    for share in (0.75, 0.5, 0.25):
        slicing = Slicing(widths=(share,), tolerance=100.0)
        methods.append(unicp_method(f"slices of {share}", dataclasses.replace(off, slicing=slicing)))
    for share, basis in itertools.product((0.5, 0.25), get_args(Basis)):
        if basis != Slicing().basis:
            slicing = Slicing(widths=(share,), tolerance=100.0, basis=basis)
            methods.append(unicp_method(f"slices of {share}, {basis}", dataclasses.replace(off, slicing=slicing)))
    for tolerance in (0.015, 0.03, 0.06, 0.12):
        slicing = Slicing(widths=(0.25, 0.5, 0.75), tolerance=tolerance)
        methods.append(unicp_method(f"slices within {tolerance}", dataclasses.replace(off, slicing=slicing)))
    methods += [with_preset(name) for name in ("quality", "balanced", "fast")]
    both = Slicing(widths=(0.25, 0.5, 0.75), tolerance=0.03)
    methods.append(unicp_method("balanced, slices within 0.03", dataclasses.replace(preset("balanced"), slicing=both)))
    peers = (*diffusers_methods(), *cache_dit_methods())
    methods = (*methods, *(fewer_steps(n) for n in (7, 6, 5, 4, 3)), *peers)
    return Suite(methods, "slices of attention and caches, for runs of 4 to 8 steps (--steps)", prompts=8, seeds=1)


def _paper() -> Suite:
    paper = preset("paper")
    no_slicing = Slicing(widths=())
    never = dataclasses.replace(paper, tolerance=1e-9)  # windows that never open: slicing alone
    methods = [unicp_method("paper", paper)]
    for tolerance in (0.05, 0.1, 0.2, 0.4):
        changed = dataclasses.replace(paper, tolerance=tolerance)
        methods.append(
            unicp_method(f"paper, caching alone {tolerance}", dataclasses.replace(changed, slicing=no_slicing))
        )
        methods.append(unicp_method(f"paper, caching and slicing {tolerance}", changed))
    for window in (2, 3, 4):
        fixed = dataclasses.replace(paper, full_every=window, slicing=no_slicing)
        methods.append(unicp_method(f"paper's units, fixed window {window}", fixed))
    for width in (0.75, 0.5, 0.25):
        slicing = dataclasses.replace(paper.slicing, widths=(width,))
        methods.append(unicp_method(f"paper, slicing alone {width}", dataclasses.replace(never, slicing=slicing)))
    methods.append(with_preset("balanced"))
    return Suite(tuple(methods), "the paper's claims one by one", prompts=8, seeds=1)
