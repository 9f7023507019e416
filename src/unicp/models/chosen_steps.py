"""A plain run that takes chosen steps of a longer one: fewer steps, at noise levels that were chosen and not spread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from unicp.errors import InputError


def can_choose(scheduler: Any) -> bool:
    """Whether runs under this scheduler may take chosen steps: one without a table of noise levels (DDIM) takes its
    steps for evenly spaced."""
    return getattr(scheduler, "sigmas", None) is not None and getattr(scheduler, "timesteps", None) is not None


@contextmanager
def only_steps(scheduler: Any, steps: int, chosen: Sequence[int]) -> Iterator[None]:
    """Within the block runs take the `chosen` steps of a run of `steps` steps, whatever number they ask for.

    chosen: from 0, rising. Raises InputError for a scheduler whose steps are evenly spaced.
    """
    if not can_choose(scheduler):
        raise InputError("chosen steps", f"a {type(scheduler).__name__}, whose steps are evenly spaced", "use a preset")
    own, before = scheduler.set_timesteps, vars(scheduler).get("set_timesteps")
    places = list(chosen)

    def set_timesteps(*_: Any, device: Any = None, **kwargs: Any) -> None:
        kwargs.pop("num_inference_steps", None)
        own(steps, device=device, **kwargs)
        scheduler.sigmas = scheduler.sigmas[[*places, -1]]
        scheduler.timesteps = scheduler.timesteps[places]
        scheduler.num_inference_steps = len(places)

    scheduler.set_timesteps = set_timesteps
    try:
        yield
    finally:
        if before is None:
            vars(scheduler).pop("set_timesteps", None)
        else:
            scheduler.set_timesteps = before
