"""Runs that take chosen steps of a longer one: fewer steps, at noise levels that were chosen and not spread."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

from unicp.errors import InputError


@dataclass(frozen=True)
class Fewer:
    """As many steps instead of those that a run was set to. chosen: which of them, from 0, rising; () = spread."""

    steps: int
    chosen: Sequence[int] = ()


# Asked whenever a run has set its steps; None = it takes all of them.
Choose = Callable[[], "Fewer | None"]


def can_choose(scheduler: Any) -> bool:
    """Whether runs under this scheduler may take chosen steps: one without a table of noise levels (DDIM) takes its
    steps for evenly spaced."""
    return getattr(scheduler, "sigmas", None) is not None and getattr(scheduler, "timesteps", None) is not None


class ShortenedRuns:
    """Stands in for the `set_timesteps` of a scheduler until it is removed, and shortens the runs that it sets.

    choose: see `Choose`. took: told of what a run was shortened to, once the scheduler is set to it. whole: how many
    steps runs have before they are shortened, None = as many as they ask for. What cannot be done is not: chosen steps
    of a scheduler whose steps are evenly spaced, and another number of evenly spaced steps where the pipeline names its
    own noise levels. A copy of the scheduler gets its own `set_timesteps`.
    """

    def __init__(
        self,
        scheduler: Any,
        choose: Choose,
        took: Callable[[Fewer], None] = lambda _: None,
        whole: int | None = None,
    ):
        self._scheduler, self._choose, self._took, self._whole = scheduler, choose, took, whole
        self._own, self._before = scheduler.set_timesteps, vars(scheduler).get("set_timesteps")
        self._is_on = True
        # Pipelines look at the signature. What the other holds, which may be one like this, stays its own.
        functools.update_wrapper(self, self._own, updated=())
        scheduler.set_timesteps = self

    def remove(self) -> None:
        """Puts back what was there before, bit for bit. May be repeated."""
        self._is_on = False
        if vars(self._scheduler).get("set_timesteps") is self:
            if self._before is None:
                del self._scheduler.set_timesteps
            else:
                self._scheduler.set_timesteps = self._before

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Arguments as the scheduler's own `set_timesteps` takes them."""
        if self._whole is None:
            self._own(*args, **kwargs)
        else:
            self._set(self._whole, args, kwargs)
        wish = self._choose() if self._is_on else None
        if wish is None:
            return
        if wish.chosen:
            if not can_choose(self._scheduler):
                return
            _take(self._scheduler, wish.chosen)
        elif kwargs.get("sigmas") is None and kwargs.get("timesteps") is None and len(args) <= 2:
            self._set(wish.steps, args, kwargs)
        else:
            return
        self._took(wish)

    def _set(self, steps: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The scheduler's own call with another number of steps: the first argument of every scheduler."""
        rest = {name: value for name, value in kwargs.items() if name != "num_inference_steps"}
        self._own(steps, *args[1:], **rest)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return MethodType(type(self._scheduler).set_timesteps, memo.get(id(self._scheduler), self._scheduler))


@contextmanager
def only_steps(scheduler: Any, steps: int, chosen: Sequence[int]) -> Iterator[None]:
    """Within the block runs take the `chosen` steps of a run of `steps` steps, whatever number they ask for.

    chosen: from 0, rising. Raises InputError for a scheduler whose steps are evenly spaced.
    """
    if not can_choose(scheduler):
        raise InputError("chosen steps", f"a {type(scheduler).__name__}, whose steps are evenly spaced", "use a preset")
    fewer = Fewer(len(chosen), tuple(chosen))
    runs = ShortenedRuns(scheduler, lambda: fewer, whole=steps)
    try:
        yield
    finally:
        runs.remove()


def _take(scheduler: Any, chosen: Sequence[int]) -> None:
    """Leaves the scheduler, set to a whole run, with these of its steps."""
    places = list(chosen)
    scheduler.sigmas = scheduler.sigmas[[*places, -1]]
    scheduler.timesteps = scheduler.timesteps[places]
    scheduler.num_inference_steps = len(places)
