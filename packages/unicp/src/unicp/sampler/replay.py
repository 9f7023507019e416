"""Replay: at the next full step the sampler takes the skipped steps again, with what they should have been (ours).

By then the noise estimates of the skipped steps are no forecast any more, but lie between full steps, on the parabola
through three of them. So the sampler is put back to where it was after the last full step, takes the skipped steps
again with these estimates, and goes on from where that leads to. Forecasts only showed where the run goes;
nothing of it stays, neither in the sample nor in what the sampler remembers.

Where that cannot be done, a predictor-corrector (UniPC) is left without its corrector for the step: it would take the
error of the forecast for curvature. Steps in which only some branches were skipped are not replayed, nor are steps with
other branches than those around them, since guidance that pauses changes what the sampler is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unicp.context import Forecast, StepContext
from unicp.errors import InputError
from unicp.models.noise import NoiseSchedule
from unicp.numerics.forecasting import Rise, extrapolate, interpolate, share_of_rise
from unicp.sampler.scheduler_state import Snapshot, StepCall, can_repeat, has_corrector, without_corrector


@dataclass(frozen=True)
class _Full:
    """A full step, and what the sampler was given there."""

    step: StepContext
    output: Tensor
    branches: frozenset[str]


@dataclass(frozen=True)
class _Skipped:
    """A skipped step. forecast: how it was filled. goes_on: whether it began with the sample of the step before."""

    step: StepContext
    forecast: Forecast | None
    goes_on: bool
    call: StepCall
    branches: frozenset[str]


@dataclass
class _Pending:
    """The step whose calls are being made. forecasts: of the skipped calls. has_full: whether a call was computed."""

    step: StepContext
    branches: set[str] = field(default_factory=set)
    forecasts: set[Forecast | None] = field(default_factory=set)
    has_full: bool = False


class SamplerReplay:
    """Takes part in the steps of one scheduler in one run, and replays skipped ones.

    Holds the outputs of the last three full steps and their noise estimates, the sample that the last of them made, and
    the newest sample.

    Args:
        schedule: Noise levels; `None` = not known, and nothing is replayed.
        count: Told of windows that were replayed ("replayed") and of steps without corrector ("corrector_held").
        on_move: Called with the sample that the newest outputs were computed from, and the one that takes its place.
    """

    def __init__(
        self,
        schedule: NoiseSchedule | None,
        count: Callable[[str], None],
        on_move: Callable[[Tensor, Tensor], None] = lambda sample, moved: None,
    ) -> None:
        self._schedule, self._count, self._on_move = schedule, count, on_move
        self._pending: _Pending | None = None
        self._points: list[_Full] = []
        self._window: list[_Skipped] = []
        # After the last full step: what the scheduler remembered, and the sample it made.
        self._last: tuple[Snapshot, Tensor] | None = None
        self._newest: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the tensors held, without those that the scheduler remembers itself."""
        samples = (self._newest, None if self._last is None else self._last[1])
        held = [point.output for point in self._points]
        different = {id(tensor): tensor for tensor in (*held, *samples) if tensor is not None}
        return sum(tensor.numel() * tensor.element_size() for tensor in different.values())

    def called(self, step: StepContext, is_skipped: bool, forecast: Forecast | None = None) -> None:
        """A call at `step` was skipped or computed: the scheduler's next step is given that.

        Args:
            step: Where the call is.
            is_skipped: Whether it was.
            forecast: How it was filled; `None` = not as a quantity of the whole sample.
        """
        pending = self._pending
        if pending is None or (pending.step.step, pending.step.timestep) != (step.step, step.timestep):
            pending = self._pending = _Pending(step)
        pending.branches.add(step.branch)
        pending.has_full |= not is_skipped
        if is_skipped:
            pending.forecasts.add(forecast)

    def step(self, scheduler: Any, own: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A step of the scheduler, with what was skipped before it replayed.

        A scheduler of another kind is left alone, and so is a step that no call of the model came before.

        Args:
            scheduler: The scheduler.
            own: Its own `step`.
            args, kwargs: What it was called with.
        """
        pending, self._pending = self._pending, None
        named = {**dict(zip(("model_output", "timestep", "sample"), args)), **kwargs}
        if pending is None or not can_repeat(scheduler) or not {"model_output", "timestep", "sample"} <= set(named):
            return own(*args, **kwargs)
        output, timestep, sample = (named.pop(name) for name in ("model_output", "timestep", "sample"))
        call = StepCall(own, timestep, args[3:], named)
        if pending.forecasts:
            return self._skipped_step(call, pending, output, sample)
        return self._full_step(scheduler, call, pending, output, sample)

    def _skipped_step(self, call: StepCall, pending: _Pending, output: Tensor, sample: Tensor) -> Any:
        # Where only some branches were skipped there is no forecast of the whole.
        is_one = len(pending.forecasts) == 1 and not pending.has_full
        forecast = next(iter(pending.forecasts)) if is_one else None
        branches = frozenset(pending.branches)
        self._window.append(_Skipped(pending.step, forecast, self._goes_on(sample), call, branches))
        return self._noted(call.take(output, sample))

    def _full_step(self, scheduler: Any, call: StepCall, pending: _Pending, output: Tensor, sample: Tensor) -> Any:
        step, branches = pending.step, frozenset(pending.branches)
        if self._points and self._points[-1].branches != branches:
            self._points = []
        goes_on = bool(self._window) and self._goes_on(sample)
        moved = self._replayed(scheduler, _Full(step, output, branches)) if goes_on else None
        if moved is not None:
            self._on_move(sample, moved)
            sample = moved
        is_held = bool(self._window) and moved is None and has_corrector(scheduler)
        if is_held:
            self._count("corrector_held")
        with without_corrector(scheduler) if is_held else nullcontext():
            made = self._noted(call.take(output, sample))
        self._points = [*self._points, _Full(step, output.clone(), branches)][-3:]
        assert self._newest is not None
        self._last, self._window = (Snapshot(scheduler), self._newest), []
        return made

    def _replayed(self, scheduler: Any, now: _Full) -> Tensor | None:
        """Takes the skipped steps again with what is known at `now`: the sample that they lead to, or `None`.

        The scheduler is then as if these had been its steps; where `None` is returned it is untouched.
        """
        if self._last is None or not self._points or any(one.branches != now.branches for one in self._window):
            return None
        points = [*self._points[-2:], now]
        outputs = [_between(points, skipped) for skipped in self._window]
        if any(output is None for output in outputs):
            return None
        (remembered, sample), present = self._last, Snapshot(scheduler)
        remembered.put_back()
        try:
            for skipped, output in zip(self._window, outputs):
                assert output is not None
                sample = skipped.call.take(output, sample)[0]
        except BaseException:
            present.put_back()
            raise
        self._count("replayed")
        return sample

    def guided_share(self, forecast: Forecast) -> Tensor | None:
        """How much of the rise of a line came true at the last full step, (B,); `None` where that is not known.

        Of what the sampler was given, all branches combined as the pipeline combines them.
        """
        known = [(point.step, point.output) for point in self._points]
        if forecast.quantity != "output" or len(known) < 3 or len({tensor.shape for _, tensor in known}) > 1:
            return None
        before, last, true = (tensor.flatten(1) for _, tensor in known)
        x0, x1, now = (step.at(forecast.axis) for step, _ in known)
        if x0 is None or x1 is None or now is None:
            return None
        return share_of_rise([Rise.of(true, extrapolate([(x0, before), (x1, last)], now), last)])

    def _noted(self, made: Any) -> Any:
        """Keeps the sample that a step made: a copy, for a pipeline may write into its own."""
        self._newest = made[0].clone()
        return made

    def _goes_on(self, sample: Tensor) -> bool:
        """Whether a step begins with what the one before made: pipelines and callbacks may change it in between."""
        newest = self._newest
        return newest is not None and newest.shape == sample.shape and torch.equal(newest.to(sample), sample)


def _between(points: list[_Full], skipped: _Skipped) -> Tensor | None:
    """The output of a skipped step, of the full ones before and after it; `None` where it cannot be told.

    Over log-SNR: forecasts over another axis are left alone, so that rules made of them stay what they were.
    """
    forecast, level = skipped.forecast, skipped.step.noise_level
    if forecast is None or forecast.axis != "log_snr" or level is None or not skipped.goes_on:
        return None
    if skipped.call.kwargs.get("eta") or len({point.output.shape for point in points}) > 1:
        return None
    known = [(point.step.noise_level.log_snr, point.output) for point in points if point.step.noise_level]
    if len(known) < len(points):
        return None
    try:
        return interpolate(known, level.log_snr).to(points[-1].output.dtype)
    except InputError:
        return None
