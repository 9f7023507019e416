"""Undoes what a served output did to the sampler, as soon as the error of its forecast is known.

That is at the next computed step: what was forecast before it becomes the parabola through three computed outputs, and
so it is known what the forecast missed (ours; docs/method.md, section 3.6).

A sampler of first order (Euler, DDIM) remembers nothing but the sample. After a window of one step it is moved back by
what the step did too much: the forecast was a predictor, and this is its corrector. After wider windows the outputs in
between were made for another sample, and moving it made clips worse.

A predictor-corrector (UniPC) compares the fresh output with the one before it, which it remembers: its corrector moves
the sample by what that difference says, its predictor extrapolates it. Where the one before was served, the difference
holds the error of the forecast as well, which is then taken for curvature. So

* the remembered output is mended;
* the corrector, which then undoes what the forecast did to the sample, runs only where one step was served and its
  forecast was good. After wider windows, and where forecasts are bad, the output was made for another sample than the
  one the corrector moves to, and runs swing; there it is left out.

The scheduler's `step` is replaced for the one call that follows an output, and is its own again in that call.
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
from unicp.numerics.error_measures import relative_error
from unicp.numerics.forecasting import NoiseLevel, extrapolate, is_invertible, to_quantity
from unicp.numerics.noise_levels import coefficients

_SWITCH = "disable_corrector"
# Relative error, of the output that the scheduler is given, up to which the corrector runs after a served step. Chosen
# by trial: 0.2 was 2 dB worse in the mean on one schedule and 0.4 in the worst clip on another; without limit hard
# prompts came apart.
TRUSTED = 0.3
# Samplers of first order: their step is linear in the noise estimate and remembers nothing.
_FIRST_ORDER = ("FlowMatchEulerDiscreteScheduler", "DDIMScheduler", "CogVideoXDDIMScheduler")


@dataclass(frozen=True)
class _Place:
    """Where a step lies: on every abscissa, and between noise and clean. after: the level that it leads to."""

    position: Position
    level: NoiseLevel | None = None
    after: NoiseLevel | None = None


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


@dataclass(frozen=True)
class _Mending:
    """What to do about a step. held: leave the corrector out. move: to be added to the sample that it makes."""

    held: bool = False
    move: Tensor | None = None


class SamplerMemory:
    """What one scheduler remembers of one run.

    Holds the noise estimates of the last two computed steps and of the last served one.

    counts: where "history_mended", "sample_mended" and "corrector_held" are counted.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._scheduler: Any = None
        self._points: list[tuple[_Place, Tensor]] = []
        self._served: _Place | None = None
        self._forecast: Tensor | None = None
        self._window = 0
        self._way: Candidate | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the tensors held."""
        held = [noise for _, noise in self._points] + ([] if self._forecast is None else [self._forecast])
        return sum(noise.numel() * noise.element_size() for noise in held)

    def reset(self) -> None:
        """Forgets the run and gives the scheduler its own `step` back. May be repeated."""
        self._release()
        self._points, self._served, self._forecast, self._way, self._window = [], None, None, None, 0

    def served(
        self,
        scheduler: Any,
        schedule: NoiseSchedule | None,
        position: Position,
        timestep: float,
        way: Candidate | None,
    ) -> None:
        """A call at `position` was served: the scheduler's next step remembers a forecast. May be repeated in a step.

        way: how it was forecast; None = not as a quantity of the whole sample.
        """
        self._release()
        if self._served is None or self._served.position != position:
            self._window += 1
        self._way, self._served, self._forecast = way, _place(schedule, position, timestep), None
        place = self._served

        def note(output: Tensor, sample: Tensor) -> _Mending:
            self._forecast = _noise(schedule, place, output, sample)
            return _Mending()

        if way is not None and way.quantity == "noise":
            self._watch(scheduler, note)

    def computed(self, scheduler: Any, schedule: NoiseSchedule | None, position: Position, timestep: float) -> None:
        """A call at `position` is being computed: the scheduler's next step gets the truth. May be repeated in a step.

        A scheduler of another kind, and one whose `step` somebody else has replaced, is left alone.
        """
        self._release()
        place = _place(schedule, position, timestep)
        self._watch(scheduler, lambda output, sample: self._take_in(scheduler, schedule, place, output, sample))

    def _watch(self, scheduler: Any, look: Callable[[Tensor, Tensor], _Mending]) -> None:
        """Has the next step of the scheduler looked at first, (output, sample)."""
        if not (_has_corrector(scheduler) or is_first_order(scheduler)) or "step" in vars(scheduler):
            return

        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._release()
            mending = look(model_output, sample)
            with _without_corrector(scheduler) if mending.held else nullcontext():
                out = scheduler.step(model_output, timestep, sample, *args, **kwargs)
            return out if mending.move is None else _moved(out, mending.move)

        self._scheduler, scheduler.step = scheduler, _Step(scheduler, step)

    def _release(self) -> None:
        if self._scheduler is not None:
            vars(self._scheduler).pop("step", None)
        self._scheduler = None

    def _take_in(
        self, scheduler: Any, schedule: NoiseSchedule | None, now: _Place, output: Tensor, sample: Tensor
    ) -> _Mending:
        """A step was computed: mends what a served one before it has left behind."""
        noise = _noise(schedule, now, output, sample)
        served, window, forecast = self._served, self._window, self._forecast
        self._served, self._window, self._forecast = None, 0, None
        held, move = served is not None and _has_corrector(scheduler), None
        if served is not None and schedule is not None and noise is not None and forecast is not None:
            error = self._error(now, noise)
            missed = None if error is None else self._missed_at(served, now, error, forecast)
            if error is None or missed is None:
                pass
            elif not held:
                move = _move(served, now, missed) if window == 1 else None
                self._counts["sample_mended"] += move is not None
            elif _mend_history(scheduler, served, missed):
                self._counts["history_mended"] += 1
                held = window > 1 or not _missed(schedule, now, output, error) <= TRUSTED
        self._counts["corrector_held"] += held
        self._points = [] if noise is None else [*self._points, (now, noise)][-2:]
        return _Mending(held, move)

    def _error(self, now: _Place, noise: Tensor) -> Tensor | None:
        """True noise minus the line through the two points at `now`; None where the noise was not what was forecast."""
        way = self._way
        if way is None or way.quantity != "noise" or len(self._points) < 2:
            return None
        return noise - self._line(way, now)

    def _line(self, way: Candidate, place: _Place) -> Tensor:
        points = [(x, known) for x, (_, known) in zip(self._places(way), self._points)]
        return extrapolate(points, place.position.get(way.abscissa, math.nan))

    def _places(self, way: Candidate) -> list[float]:
        return [place.position.get(way.abscissa, math.nan) for place, _ in self._points]

    def _missed_at(self, served: _Place, now: _Place, error: Tensor, forecast: Tensor) -> Tensor | None:
        """What the noise estimate of a served step should have been, less what it was; None where that is not known.

        error: of the line at `now`. forecast: the noise estimate that the served step was given.
        """
        way = self._way
        if way is None or error.shape != forecast.shape:
            return None
        at, before = (place.position.get(way.abscissa, math.nan) for place in (now, served))
        share = parabola_share(self._places(way), at, before)
        return self._line(way, served) + share * error - forecast if math.isfinite(share) else None


def is_first_order(scheduler: Any) -> bool:
    """Whether a step of this scheduler is linear in the noise estimate, without memory and without fresh noise."""
    config = getattr(scheduler, "config", {})
    known = any(ancestor.__name__ in _FIRST_ORDER for ancestor in type(scheduler).__mro__)
    return known and not config.get("stochastic_sampling", False) and not config.get("clip_sample", False)


def _has_corrector(scheduler: Any) -> bool:
    return isinstance(getattr(scheduler, _SWITCH, None), (list, tuple))


def _move(served: _Place, now: _Place, missed: Tensor) -> Tensor | None:
    """What the step from `served` to `now` should have moved the sample by, less what it did, after the step at `now`.

    missed: of the noise estimate. A sample over its signal moves by the noise estimate times the change of
    noise / signal. Exact where the noise estimate does not depend on the sample (our reading: it changes little).
    """
    before, level, after = served.level, now.level, now.after
    if before is None or level is None or after is None or not before.signal or not level.signal:
        return None
    return after.signal * (level.noise / level.signal - before.noise / before.signal) * missed


def _moved(out: Any, move: Tensor) -> Any:
    """A scheduler's result, a tuple or an object, with its new sample moved."""
    sample = out[0]
    sample = (sample.to(move.dtype) + move).to(sample.dtype)
    if isinstance(out, tuple):
        return (sample, *out[1:])
    out.prev_sample = sample
    return out


def _mend_history(scheduler: Any, served: _Place, missed: Tensor) -> bool:
    """Adds what was missed to the clean estimate that the scheduler remembers of a served step."""
    history = getattr(scheduler, "model_outputs", None)
    if served.level is None or not served.level.signal:
        return False
    if not history or history[-1] is None or history[-1].shape != missed.shape:
        return False
    if not scheduler.config.get("predict_x0", False):
        return False
    # Of one and the same sample: what is more in its noise is less in its clean part.
    clean = to_quantity("clean", "epsilon", torch.zeros_like(missed), missed, served.level)
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
    return (
        _Place(position)
        if schedule is None
        else _Place(position, schedule.level(timestep), schedule.next_level(timestep))
    )


def _missed(schedule: NoiseSchedule, place: _Place, output: Tensor, error: Tensor) -> float:
    """Relative error of an output, of the worst sample, by the error of the noise estimate that it stands for."""
    assert place.level is not None
    _, of_output = coefficients("noise", schedule.sampler_prediction, place.level)
    return float(relative_error(error, torch.zeros_like(error), of_output * output).max())


def _noise(schedule: NoiseSchedule | None, place: _Place, output: Tensor, sample: Tensor) -> Tensor | None:
    """The noise estimate of a computed output; None where there is none."""
    if schedule is None or place.level is None or output.shape != sample.shape:
        return None
    if not is_invertible("noise", schedule.sampler_prediction, place.level, 0.0):
        return None
    return to_quantity("noise", schedule.sampler_prediction, sample, output, place.level)
