"""Takes back what served outputs did to the sampler, as soon as it is known what they should have been.

That is at the next computed step: the noise estimates of the served steps are then no forecast any more but lie between
computed ones, on the parabola through three of them. So the sampler is put back to where it was after the last computed
step, takes the served steps again with these, and goes on from where that leads to (ours; docs/method.md, section 3.6).
What was forecast served to see where the run goes; nothing of it stays, neither in the sample nor in what the sampler
remembers.

Where that cannot be done, a predictor-corrector (UniPC) is left without its corrector for the step: it would take the
error of the forecast for curvature.

Steps in which some branches were served and others computed are no truth: they are taken as served ones that cannot be
taken again. So are steps with other branches than those around them, for guidance that pauses changes what the sampler
is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unicp.context import Forecast, StepContext
from unicp.errors import InputError
from unicp.models.noise import NoiseSchedule
from unicp.numerics.forecasting import (
    Rise,
    extrapolate,
    from_quantity,
    interpolate,
    is_invertible,
    output_at,
    share_of_rise,
    to_quantity,
)

_SWITCH = "disable_corrector"
# Samplers whose step depends on nothing but its arguments and the attributes of the scheduler.
_REPEATABLE = (
    "FlowMatchEulerDiscreteScheduler",
    "DDIMScheduler",
    "CogVideoXDDIMScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
)


@dataclass(frozen=True)
class _Full:
    """A full step: what the sampler was given, and the noise estimate that it stands for."""

    step: StepContext
    noise: Tensor
    output: Tensor
    branches: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Skipped:
    """A skipped step of the scheduler: enough to take it again with another output.

    forecast: how it was filled. goes_on: whether it began with the sample that the step before had made.
    """

    step: StepContext
    forecast: Forecast | None
    goes_on: bool
    timestep: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    branches: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Computed:
    """What the last computed step left behind: the scheduler's attributes, and the sample it made."""

    state: Mapping[str, Any]
    sample: Tensor


@dataclass(frozen=True)
class _List:
    """A list of a scheduler, and what it held."""

    own: list[Any]
    held: tuple[Any, ...]


@dataclass
class _Pending:
    """The step whose calls are being made: what the scheduler's next step will be given.

    forecasts: how the skipped calls were filled. has_full: whether a call was computed.
    """

    step: StepContext
    branches: set[str] = field(default_factory=set)
    forecasts: set[Forecast | None] = field(default_factory=set)
    has_full: bool = False


class SamplerReplay:
    """Takes part in the steps of one scheduler in one run, and takes served ones again.

    Holds the outputs of the last three computed steps and their noise estimates, the sample that the last of them made,
    what the scheduler remembered then, and the newest sample.

    on_move: called with the sample that the newest outputs were computed from and the one that takes its place.
    count: told of windows that were taken again ("replayed") and of steps without their corrector ("corrector_held").
    """

    def __init__(
        self,
        schedule: NoiseSchedule | None,
        count: Callable[[str], None],
        on_move: Callable[[Tensor, Tensor], None] | None = None,
    ) -> None:
        self._schedule, self._count, self._on_move = schedule, count, on_move
        self._pending: _Pending | None = None
        self._points: list[_Full] = []
        self._last: _Computed | None = None
        self._window: list[_Skipped] = []
        self._newest: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the tensors held, without those that the scheduler remembers itself."""
        samples = (self._newest, None if self._last is None else self._last.sample)
        held = [tensor for point in self._points for tensor in (point.noise, point.output)]
        different = {id(tensor): tensor for tensor in (*held, *samples) if tensor is not None}
        return sum(tensor.numel() * tensor.element_size() for tensor in different.values())

    def called(self, step: StepContext, is_skipped: bool, forecast: Forecast | None = None) -> None:
        """A call at `step` was skipped, or is computed: that is what the scheduler's next step is given.

        forecast: how a skipped one was filled; `None` = not as a quantity of the whole sample.
        """
        pending = self._pending
        if pending is None or (pending.step.step, pending.step.timestep) != (step.step, step.timestep):
            pending = self._pending = _Pending(step)
        pending.branches.add(step.branch)
        if is_skipped:
            pending.forecasts.add(forecast)
        else:
            pending.has_full = True

    def step(self, scheduler: Any, own: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A step of the scheduler, whose own one is `own`, with what was served before taken again.

        A scheduler of another kind is left alone, and so is a step that no call of the model came before.
        """
        pending, self._pending = self._pending, None
        names = {*("model_output", "timestep", "sample")[: len(args)], *kwargs}
        if pending is None or not can_repeat(scheduler) or not names >= {"model_output", "timestep", "sample"}:
            return own(*args, **kwargs)
        return (self._skipped_step if pending.forecasts else self._full_step)(scheduler, own, pending, *args, **kwargs)

    def _skipped_step(
        self,
        scheduler: Any,
        own: Callable[..., Any],
        pending: _Pending,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        # Steps in which some branches were computed are no forecast as a whole, and cannot be replayed.
        is_one = len(pending.forecasts) == 1 and not pending.has_full
        forecast, branches = next(iter(pending.forecasts)) if is_one else None, frozenset(pending.branches)
        self._window.append(_Skipped(pending.step, forecast, self._goes_on(sample), timestep, args, kwargs, branches))
        return self._noted(own(model_output, timestep, sample, *args, **kwargs))

    def _full_step(
        self,
        scheduler: Any,
        own: Callable[..., Any],
        pending: _Pending,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        schedule, at, output = self._schedule, pending.step, model_output
        branches = frozenset(pending.branches)
        if self._points and self._points[-1].branches != branches:
            self._points = []
        noise = _noise(schedule, at, output, sample)
        goes_on = bool(self._window) and self._goes_on(sample)
        moved = self._replay(scheduler, own, at, noise, branches) if goes_on else None
        if moved is not None:
            assert schedule is not None and at.level is not None
            output = output_at(schedule.sampler_prediction, sample, output, moved, at.level)
            noise = _noise(schedule, at, output, moved)
            if self._on_move is not None:
                self._on_move(sample, moved)
            sample = moved
        held = bool(self._window) and moved is None and _has_corrector(scheduler)
        if held:
            self._count("corrector_held")
        with _without_corrector(scheduler) if held else nullcontext():
            out = self._noted(own(output, timestep, sample, *args, **kwargs))
        self._points = [] if noise is None else [*self._points, _Full(at, noise, output.clone(), branches)][-3:]
        assert self._newest is not None
        self._last, self._window = _Computed(_state(scheduler), self._newest), []
        return out

    def guided_share(self, forecast: Forecast) -> Tensor | None:
        """How much of the rise of a line came true at the last full step, (B,); `None` where that is not known.

        Of what the sampler was given, all branches combined as the pipeline combines them.
        """
        known = [(point.step, point.noise if forecast.quantity == "noise" else point.output) for point in self._points]
        if forecast.quantity == "clean" or len(known) < 3 or len({tensor.shape for _, tensor in known}) > 1:
            return None
        before, last, true = (tensor.flatten(1) for _, tensor in known)
        x0, x1, now = (step.at(forecast.axis) for step, _ in known)
        if x0 is None or x1 is None or now is None:
            return None
        return share_of_rise([Rise.of(true, extrapolate([(x0, before), (x1, last)], now), last)])

    def _noted(self, out: Any) -> Any:
        """Keeps the sample that a step made: a copy, for a pipeline may write into its own."""
        self._newest = out[0].clone()
        return out

    def _goes_on(self, sample: Tensor) -> bool:
        """Whether a step begins with what the one before made: pipelines and callbacks may change it in between."""
        newest = self._newest
        return newest is not None and newest.shape == sample.shape and torch.equal(newest.to(sample), sample)

    def _replay(
        self,
        scheduler: Any,
        own: Callable[..., Any],
        now: StepContext,
        noise: Tensor | None,
        branches: frozenset[str],
    ) -> Tensor | None:
        """Takes the served steps again with what is known at `now`: the sample that they lead to, or None.

        The scheduler's attributes are then as if these had been its steps; where None is returned they are untouched.
        """
        schedule = self._schedule
        if schedule is None or noise is None or self._last is None or len(self._points) < 2:
            return None
        if any(skipped.branches != branches for skipped in self._window):
            return None
        points = [*((point.step, point.noise) for point in self._points[-2:]), (now, noise)]
        estimates = [_between(points, skipped) for skipped in self._window]
        levels = [skipped.step.level for skipped in self._window]
        if any(estimate is None for estimate in estimates):
            return None
        sample, present = self._last.sample, _state(scheduler)
        _put_back(scheduler, self._last.state)
        try:
            for skipped, estimate, level in zip(self._window, estimates, levels):
                assert estimate is not None and level is not None
                output = from_quantity("noise", schedule.sampler_prediction, sample, estimate, level).to(sample.dtype)
                sample = own(output, skipped.timestep, sample, *skipped.args, **skipped.kwargs)[0]
        except BaseException:
            _put_back(scheduler, present)
            raise
        self._count("replayed")
        return sample


def can_repeat(scheduler: Any) -> bool:
    """Whether a step of this scheduler, taken again from the same state, gives the same sample."""
    config = getattr(scheduler, "config", {})
    known = any(ancestor.__name__ in _REPEATABLE for ancestor in type(scheduler).__mro__)
    is_random = config.get("stochastic_sampling", False) or str(config.get("algorithm_type", "")).startswith("sde")
    return known and not is_random


def _between(points: list[tuple[StepContext, Tensor]], skipped: _Skipped) -> Tensor | None:
    """The noise estimate of a skipped step, of the full ones before and after it; `None` where it cannot be told.

    Over log-SNR: forecasts over another axis are left alone, so that rules made of them stay what they were.
    """
    forecast, level = skipped.forecast, skipped.step.level
    if forecast is None or forecast.axis != "log_snr" or level is None or not level.signal:
        return None
    if not skipped.goes_on or skipped.kwargs.get("eta") or len({noise.shape for _, noise in points}) > 1:
        return None
    try:
        known = [(step.level.log_snr, noise) for step, noise in points if step.level is not None]
        return interpolate(known, level.log_snr)
    except InputError:
        return None


def _state(scheduler: Any) -> dict[str, Any]:
    """The attributes of a scheduler, lists with what they hold now: those are written to, its tensors never are."""
    own = vars(scheduler).items()
    return {name: _List(value, tuple(value)) if isinstance(value, list) else value for name, value in own}


def _put_back(scheduler: Any, state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        if isinstance(value, _List):
            value.own[:] = value.held
        vars(scheduler)[name] = value.own if isinstance(value, _List) else value


def _has_corrector(scheduler: Any) -> bool:
    return isinstance(getattr(scheduler, _SWITCH, None), (list, tuple))


@contextmanager
def _without_corrector(scheduler: Any) -> Iterator[None]:
    own = getattr(scheduler, _SWITCH)
    # A new list: the scheduler's own may be the default that all schedulers of a process share.
    setattr(scheduler, _SWITCH, [*own, int(scheduler.step_index or 0) - 1])
    try:
        yield
    finally:
        setattr(scheduler, _SWITCH, own)


def _noise(schedule: NoiseSchedule | None, step: StepContext, output: Tensor, sample: Tensor) -> Tensor | None:
    """The noise estimate of an output; None where there is none."""
    if schedule is None or step.level is None or not step.level.signal or output.shape != sample.shape:
        return None
    if not is_invertible("noise", schedule.sampler_prediction, step.level, 0.0):
        return None
    return to_quantity("noise", schedule.sampler_prediction, sample, output, step.level)
