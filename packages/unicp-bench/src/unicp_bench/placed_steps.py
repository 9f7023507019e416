"""Fewer steps at chosen noise levels: the plain pipeline at its best, which UniCP has to beat as well.

The levels are those of the full steps that UniCP would plan. The sampler jumps from one to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from unicp.models.noise import read_schedule
from unicp.planning.prior import prior, standing_in
from unicp.planning.solver import loss_of_run
from unicp.sampler.response import output_shares
from unicp_bench.methods import Bench, CannotRunError, Method
from unicp_bench.shorten import can_choose, only_steps

FAMILY = "fewer steps, placed"  # the report knows it by this name


def placed_steps(steps: int) -> Method:
    """The plain pipeline with `steps` of the reference's steps, the ones that a plan would make full."""

    def choose(scheduler: Any) -> tuple[int, ...]:
        chosen_from = prior()
        schedule = read_schedule(scheduler)
        levels, shares = None if schedule is None else schedule.levels(), output_shares(scheduler, 0)
        if schedule is None or levels is None or shares is None:
            raise CannotRunError(f"a {type(scheduler).__name__}, which does not tell its noise levels")
        paths = loss_of_run(chosen_from, schedule.sampler_prediction, levels[:-1], shares).best([0])
        if steps not in paths:
            raise CannotRunError(f"no plan of {steps} full steps: there are plans of {min(paths)} to {max(paths)}")
        return paths[steps].computed

    @contextmanager
    def attach(bench: Bench) -> Iterator[None]:
        if not can_choose(bench.pipe.scheduler):
            raise CannotRunError(f"a {type(bench.pipe.scheduler).__name__}, whose steps are evenly spaced")
        with standing_in(bench.prior), only_steps(bench.pipe.scheduler, choose):
            yield

    # The pipeline is asked for the whole run, of which chosen steps are left.
    return Method(FAMILY, str(steps), attach)
