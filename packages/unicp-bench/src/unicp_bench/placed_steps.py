"""Fewer steps at chosen noise levels: the plain pipeline at its best, which UniCP has to beat as well.

The levels are those of a plan's full steps, solved from the profile of the model. The sampler jumps from one to the
next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from unicp.errors import InputError
from unicp.plan_request import shipped_profile
from unicp.planning.curves import levels_of
from unicp.planning.profile import Profile, load_profile
from unicp.planning.solver import best_choices
from unicp.sampler.shorten import can_choose, only_steps
from unicp_bench.methods import Bench, CannotRunError, Method

FAMILY = "fewer steps, placed"  # the report knows it by this name


def placed_steps(steps: int) -> Method:
    """The plain pipeline with `steps` of the reference's steps, the ones that a plan would make full."""

    @contextmanager
    def attach(bench: Bench) -> Iterator[None]:
        if not can_choose(bench.pipe.scheduler):
            raise CannotRunError(f"a {type(bench.pipe.scheduler).__name__}, whose steps are evenly spaced")
        with only_steps(bench.pipe.scheduler, bench.steps, _chosen(bench, steps)):
            yield

    return Method(FAMILY, str(steps), attach, steps)


def _chosen(bench: Bench, steps: int) -> tuple[int, ...]:
    key = f"{FAMILY} {bench.steps}"
    if key not in bench.notes:
        profile = _profile(bench)
        bench.notes[key] = best_choices(profile, levels_of(profile, bench.steps))
    choices = bench.notes[key]
    if steps not in choices:
        raise CannotRunError(f"no plan of {steps} full steps: there are plans of {min(choices)} to {max(choices)}")
    return choices[steps].path.computed


def _profile(bench: Bench) -> Profile:
    if bench.profile is not None:
        return load_profile(bench.profile)
    try:
        profile, caution = shipped_profile(bench.pipe)
    except InputError as error:
        raise CannotRunError(error.found) from None
    if caution:
        raise CannotRunError("no profile of this model is shipped: unicp calibrate makes one for --profile")
    return profile
