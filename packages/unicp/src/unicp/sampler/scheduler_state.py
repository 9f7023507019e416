"""What a scheduler remembers between its steps: kept, put back, and held apart for one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_SWITCH = "disable_corrector"
# Samplers whose step depends on nothing but its arguments and the attributes of the scheduler.
_REPEATABLE = (
    "FlowMatchEulerDiscreteScheduler",
    "DDIMScheduler",
    "CogVideoXDDIMScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
)


def can_repeat(scheduler: Any) -> bool:
    """Whether a step of this scheduler, taken again from the same state, gives the same sample."""
    config = getattr(scheduler, "config", {})
    known = any(ancestor.__name__ in _REPEATABLE for ancestor in type(scheduler).__mro__)
    is_random = config.get("stochastic_sampling", False) or str(config.get("algorithm_type", "")).startswith("sde")
    return known and not is_random


@dataclass(frozen=True)
class StepCall:
    """One call of a scheduler's own `step`, apart from its tensors."""

    own: Callable[..., Any]
    timestep: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def take(self, output: Tensor, sample: Tensor) -> Any:
        """Takes the step with this model output, from this sample."""
        return self.own(output, self.timestep, sample, *self.args, **self.kwargs)


class Snapshot:
    """The attributes of a scheduler, lists with what they hold: those are written to, its tensors never are."""

    def __init__(self, scheduler: Any):
        self._scheduler = scheduler
        own = vars(scheduler).items()
        self._values = {name: (value, tuple(value) if isinstance(value, list) else None) for name, value in own}

    def put_back(self) -> None:
        """Makes the scheduler what it was."""
        for name, (value, held) in self._values.items():
            if held is not None:
                value[:] = held
            vars(self._scheduler)[name] = value


def has_corrector(scheduler: Any) -> bool:
    """Whether the scheduler is a predictor-corrector whose corrector can be left out for a step (UniPC)."""
    return isinstance(getattr(scheduler, _SWITCH, None), (list, tuple))


@contextmanager
def without_corrector(scheduler: Any) -> Iterator[None]:
    """A step of the scheduler without its corrector."""
    own = getattr(scheduler, _SWITCH)
    # A new list: the scheduler's own may be the default that all schedulers of a process share.
    setattr(scheduler, _SWITCH, [*own, int(scheduler.step_index or 0) - 1])
    try:
        yield
    finally:
        setattr(scheduler, _SWITCH, own)
