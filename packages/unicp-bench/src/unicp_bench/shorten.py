"""Runs that take chosen steps of a longer one: fewer steps, at noise levels that were chosen and not spread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from unicp.errors import InputError
from unicp.sampler import observer
from unicp.sampler.observer import SamplerRun


def can_choose(scheduler: Any) -> bool:
    """Whether runs under this scheduler may take chosen steps: one without a table of noise levels (DDIM) takes its
    steps for evenly spaced."""
    return getattr(scheduler, "sigmas", None) is not None and getattr(scheduler, "timesteps", None) is not None


@contextmanager
def only_steps(scheduler: Any, choose: Callable[[Any], Sequence[int]]) -> Iterator[None]:
    """Within the block runs of this scheduler take chosen steps of those that they ask for.

    choose: takes the scheduler, set to the whole run, and gives the steps from 0, rising. Raises InputError for a
    scheduler whose steps are evenly spaced.
    """
    if not can_choose(scheduler):
        raise InputError("chosen steps", f"a {type(scheduler).__name__}, whose steps are evenly spaced", "use a preset")
    only = _Only(scheduler, choose)
    observer.watch(only, [scheduler])
    observer.listen(only)
    try:
        yield
    finally:
        observer.leave(only)


class _Only:
    """Shortens the runs of one scheduler, and of no copy of it."""

    def __init__(self, scheduler: Any, choose: Callable[[Any], Sequence[int]]):
        self._scheduler, self._choose = scheduler, choose

    def was_set(self, run: SamplerRun, scheduler: Any, again: Any, args: tuple[Any, ...], kwargs: Any) -> None:
        if scheduler is self._scheduler:
            take(scheduler, self._choose(scheduler))


def take(scheduler: Any, chosen: Sequence[int]) -> None:
    """Leaves the scheduler, set to a whole run, with these of its steps."""
    places = list(chosen)
    scheduler.sigmas = scheduler.sigmas[[*places, -1]]
    scheduler.timesteps = scheduler.timesteps[places]
    scheduler.num_inference_steps = len(places)
