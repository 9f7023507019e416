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


def shorten(
    scheduler: Any,
    steps: int,
    chosen: Sequence[int],
    again: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> bool:
    """Shortens the run that a scheduler was just set to.

    Args:
        scheduler: As it was set.
        steps: Of the shorter run.
        chosen: Which steps of the whole run these are, rising; empty = evenly spaced ones.
        again: The scheduler's own `set_timesteps`.
        args: What it was called with.
        kwargs: What it was called with.

    Returns:
        Whether it did. What cannot be done is not: chosen steps of a scheduler whose steps are evenly spaced, and
        another number of evenly spaced steps where the caller names its own noise levels.
    """
    if chosen:
        if can_choose(scheduler):
            _take(scheduler, chosen)
            return True
    elif kwargs.get("sigmas") is None and kwargs.get("timesteps") is None and len(args) <= 2:
        _set(again, steps, args, kwargs)
        return True
    return False


@contextmanager
def only_steps(scheduler: Any, steps: int, chosen: Sequence[int]) -> Iterator[None]:
    """Within the block runs of this scheduler take the `chosen` steps of a run of `steps` steps, whatever they ask for.

    chosen: from 0, rising. Raises InputError for a scheduler whose steps are evenly spaced.
    """
    if not can_choose(scheduler):
        raise InputError("chosen steps", f"a {type(scheduler).__name__}, whose steps are evenly spaced", "use a preset")
    only = _Only(scheduler, steps, tuple(chosen))
    observer.watch(only, [scheduler])
    observer.listen(only)
    try:
        yield
    finally:
        observer.leave(only)


class _Only:
    """Shortens the runs of one scheduler, and of no copy of it."""

    def __init__(self, scheduler: Any, steps: int, chosen: Sequence[int]):
        self._scheduler, self._steps, self._chosen = scheduler, steps, chosen

    def was_set(self, run: SamplerRun, scheduler: Any, again: Any, args: tuple[Any, ...], kwargs: Any) -> None:
        if scheduler is self._scheduler:
            _set(again, self._steps, args, kwargs)
            _take(scheduler, self._chosen)


def _set(again: Callable[..., Any], steps: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The scheduler's own call with another number of steps: the first argument of every scheduler."""
    rest = {name: value for name, value in kwargs.items() if name != "num_inference_steps"}
    again(steps, *args[1:], **rest)


def _take(scheduler: Any, chosen: Sequence[int]) -> None:
    """Leaves the scheduler, set to a whole run, with these of its steps."""
    places = list(chosen)
    scheduler.sigmas = scheduler.sigmas[[*places, -1]]
    scheduler.timesteps = scheduler.timesteps[places]
    scheduler.num_inference_steps = len(places)
