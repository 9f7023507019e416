"""Keeps a predictor-corrector scheduler (UniPC) from taking the error of a served output for curvature.

At every step UniPC compares the fresh output with the one before it, which it remembers: its corrector moves the sample
by what that difference says, its predictor extrapolates it. Where the one before was served, the difference holds the
error of the forecast as well. At a computed step that error is known at last, so (ours; docs/method.md, section 3.6):

* the remembered output is mended: a straight line through two computed outputs becomes the parabola through three;
* the corrector is left out: it would move the sample by the error of one served step, after the output was made for the
  sample as it was. That mends single windows and makes rows of them swing.

The scheduler's `step` is replaced for the one call that follows a computed output, and is its own again in that call.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from unicp.control.windows import Candidate, Position
from unicp.models.noise import NoiseSchedule
from unicp.numerics.forecasting import NoiseLevel, extrapolate, is_invertible, to_quantity

_SWITCH = "disable_corrector"


@dataclass(frozen=True)
class _Place:
    """Where a step lies: on every abscissa, and between noise and clean."""

    position: Position
    level: NoiseLevel | None


class _Step:
    """Stands in for the `step` of a scheduler.

    A copy of the scheduler gets its own `step`, not this one, which would move the original instead: SkyReels-V2's
    diffusion forcing steps a copy for each frame.
    """

    def __init__(self, scheduler: Any, call: Callable[..., Any]):
        self._scheduler, self._call = scheduler, call
        functools.update_wrapper(self, type(scheduler).step)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return MethodType(type(self._scheduler).step, memo.get(id(self._scheduler), self._scheduler))


class SamplerMemory:
    """What one scheduler remembers of one run. Holds the noise estimates of the last two computed steps.

    counts: where "history_mended" and "corrector_held" are counted.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._scheduler: Any = None
        self._points: list[tuple[_Place, Tensor]] = []
        self._served: _Place | None = None
        self._way: Candidate | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the tensors held."""
        return sum(noise.numel() * noise.element_size() for _, noise in self._points)

    def reset(self) -> None:
        """Forgets the run and gives the scheduler its own `step` back. May be repeated."""
        self._release()
        self._points, self._served, self._way = [], None, None

    def served(
        self, schedule: NoiseSchedule | None, position: Position, timestep: float, way: Candidate | None
    ) -> None:
        """A call at `position` was served: the scheduler's next step remembers a forecast. May be repeated in a step.

        way: how it was forecast; None = not as a quantity of the whole sample.
        """
        self._release()
        self._way, self._served = way, _place(schedule, position, timestep)

    def computed(self, scheduler: Any, schedule: NoiseSchedule | None, position: Position, timestep: float) -> None:
        """A call at `position` is being computed: the scheduler's next step gets the truth. May be repeated in a step.

        A scheduler without a corrector, and one whose `step` somebody else has replaced, is left alone.
        """
        self._release()
        if not isinstance(getattr(scheduler, _SWITCH, None), (list, tuple)) or "step" in vars(scheduler):
            return
        place = _place(schedule, position, timestep)

        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._release()
            held = self._take_in(scheduler, place, _noise(schedule, place, model_output, sample))
            with _without_corrector(scheduler) if held else nullcontext():
                return scheduler.step(model_output, timestep, sample, *args, **kwargs)

        self._scheduler, scheduler.step = scheduler, _Step(scheduler, step)

    def _release(self) -> None:
        if self._scheduler is not None:
            vars(self._scheduler).pop("step", None)
        self._scheduler = None

    def _take_in(self, scheduler: Any, now: _Place, noise: Tensor | None) -> bool:
        """A step was computed: mends the memory of the served one before it, if there is one, and whether there was."""
        served, self._served = self._served, None
        if served is not None:
            self._counts["corrector_held"] += 1
            self._counts["history_mended"] += noise is not None and self._mend(scheduler, now, served, noise)
        self._points = [] if noise is None else [*self._points, (now, noise)][-2:]
        return served is not None

    def _mend(self, scheduler: Any, now: _Place, served: _Place, noise: Tensor) -> bool:
        """Adds to the remembered clean estimate of the served step what the true noise at `now` says of it."""
        way, history = self._way, getattr(scheduler, "model_outputs", None)
        if way is None or way.quantity != "noise" or len(self._points) < 2 or served.level is None:
            return False
        if not history or history[-1] is None or history[-1].shape != noise.shape or not served.level.signal:
            return False
        if not scheduler.config.get("predict_x0", False):
            return False
        at = now.position.get(way.abscissa, math.nan)
        places = [place.position.get(way.abscissa, math.nan) for place, _ in self._points]
        share = parabola_share(places, at, served.position.get(way.abscissa, math.nan))
        if not math.isfinite(share):
            return False
        error = noise - extrapolate([(x, known) for x, (_, known) in zip(places, self._points)], at)
        # Of one and the same sample: what is more in its noise is less in its clean part.
        clean = to_quantity("clean", "epsilon", torch.zeros_like(error), share * error, served.level)
        history[-1] = (history[-1].to(clean.dtype) + clean).to(history[-1].dtype)
        return True


@contextmanager
def _without_corrector(scheduler: Any) -> Iterator[None]:
    own = getattr(scheduler, _SWITCH)
    # A new list: the scheduler's own may be the default that all schedulers of a process share.
    setattr(scheduler, _SWITCH, [*own, int(scheduler.step_index or 0) - 1])
    try:
        yield
    finally:
        setattr(scheduler, _SWITCH, own)


def parabola_share(places: list[float], now: float, served: float) -> float:
    """Error of a line at abscissa `served` if it is 1 at `now`, both beyond `places`, the abscissas of its two points.

    The remainder of a straight line, (x - x0)(x - x1), scaled; not finite where `now` is one of `places`.
    """
    before, last = places
    whole = (now - last) * (now - before)
    return (served - last) * (served - before) / whole if whole else math.inf


def _place(schedule: NoiseSchedule | None, position: Position, timestep: float) -> _Place:
    return _Place(position, None if schedule is None else schedule.level(timestep))


def _noise(schedule: NoiseSchedule | None, place: _Place, output: Tensor, sample: Tensor) -> Tensor | None:
    """The noise estimate of a computed output; None where there is none."""
    if schedule is None or place.level is None or output.shape != sample.shape:
        return None
    if not is_invertible("noise", schedule.sampler_prediction, place.level, 0.0):
        return None
    return to_quantity("noise", schedule.sampler_prediction, sample, output, place.level)
