"""Forecasts of a model's outputs from those stored of one branch, and how much of a line's rise came true.

A straight line through two outputs goes on rising; what came may have risen less, or turned. At every computed step it
is measured how much of the line's rise came true, by least squares, and until the next one lines follow that share
alone (a damped trend whose damping is measured; ours).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unicp.control.windows import Candidate, ErrorWindow, Position
from unicp.execution.model_call import Tensors
from unicp.execution.store import OutputStore
from unicp.models.noise import NoiseSchedule
from unicp.numerics.error_measures import strided_sample
from unicp.numerics.forecasting import Rise, extrapolate, from_quantity, share_of_rise, to_quantity
from unicp.numerics.noise_levels import SERVING_FLOOR, NoiseLevel, is_invertible
from unicp.records import Moment

PROBE = 4096  # positions per sample on which errors, rises and drift are measured


@dataclass
class Branch:
    """What is known of one branch of the run; its outputs lie in the store."""

    window: ErrorWindow
    levels: list[NoiseLevel | None] = field(default_factory=list)
    probe: Tensor | None = None
    drift: list[float] | None = None
    outputs: int = 1
    called_at: tuple[int, int] | None = None
    # By candidate, for each output: what the last computation said of its line, and the share that lines follow.
    rises: dict[Candidate, list[Rise]] = field(default_factory=dict)
    shares: dict[Candidate, list[Tensor]] = field(default_factory=dict)


def share_rises(branches: Iterable[Branch]) -> None:
    """Sets what lines follow in the step that begins, the same for all branches whose batches are of one size.

    Branches are combined afterwards, their difference many times over: shares of their own would tear them apart.
    Those that were not called at the step before have left the run.
    """
    branches = list(branches)
    newest = max((branch.called_at for branch in branches if branch.called_at is not None), default=None)
    branches = [branch for branch in branches if branch.called_at == newest]
    for branch in branches:
        for candidate, own in branch.rises.items():
            known = [other.rises[candidate] for other in branches if candidate in other.rises]
            alike = [rises for rises in known if [r.size.shape for r in rises] == [r.size.shape for r in own]]
            branch.shares[candidate] = [share_of_rise(rises) for rises in zip(*alike)]


class Forecaster:
    """Makes the forecasts of a branch from the store. schedule: noise levels, None = not known."""

    def __init__(self, store: OutputStore, schedule: NoiseSchedule | None):
        self.store, self.schedule = store, schedule

    def forecast(
        self,
        moment: Moment,
        branch: Branch,
        candidate: Candidate,
        position: Position,
        samples: Tensors,
        probe: bool = False,
        shares: list[Tensor] | None = None,
    ) -> Tensors:
        """The outputs forecast at `position`. probe: of sampled positions only. shares: None = those of the branch."""
        shares = branch.shares.get(candidate) if shares is None else shares
        points = self.store.get(("model", moment.branch), like=samples[0])
        shapes = [tensor.shape for tensor in points[-1]]
        if probe:
            points = [tuple(strided_sample(tensor, PROBE) for tensor in point) for point in points]
            samples = tuple(strided_sample(sample, PROBE) for sample in samples)
        axis = candidate.abscissa
        places = [point[axis] for point in branch.window.points]
        now, forecasts = position[axis], []
        for place in range(branch.outputs):
            earlier = branch.outputs + place
            outputs = [point[place] for point in points]
            share = None if shares is None else shares[place]
            if candidate.quantity == "output" or earlier >= len(shapes) or shapes[earlier] != shapes[place]:
                forecasts.append(extrapolate(list(zip(places, outputs)), now, share))
                continue
            known = [(x, point[earlier], point[place]) for x, point in zip(places, points)]
            forecasts.append(self._estimate(moment, branch, candidate, known, now, samples[place], share))
        return tuple(forecasts)

    def _estimate(
        self,
        moment: Moment,
        branch: Branch,
        candidate: Candidate,
        points: list[tuple[float, Tensor, Tensor]],
        place: float,
        sample: Tensor,
        share: Tensor | None,
    ) -> Tensor:
        """An output by way of the noise or the clean estimate. points: place, sample and output of each."""
        assert self.schedule is not None
        quantity, kind = candidate.quantity, self.schedule.prediction
        known = [
            (x, to_quantity(quantity, kind, earlier, output, at))
            for (x, earlier, output), at in zip(points, branch.levels)
            if at is not None
        ]
        forecast = extrapolate(known, place, share)
        return from_quantity(quantity, kind, sample, forecast, self._level(moment)).to(sample.dtype)

    def rises(
        self,
        moment: Moment,
        branch: Branch,
        candidate: Candidate,
        position: Position,
        samples: Tensors,
        true: list[Tensor],
    ) -> list[Rise]:
        """What the computed outputs, as probed, say of the whole line of a candidate; one for each output."""
        copies = copies_in(strided_sample(samples[0], PROBE))
        ones = [torch.ones(len(output), device=output.device) for output in true]
        line = self.forecast(moment, branch, candidate, position, samples, probe=True, shares=ones)
        nothing = [torch.zeros_like(one) for one in ones]
        last = self.forecast(moment, branch, candidate, position, samples, probe=True, shares=nothing)
        return [Rise.of(*three, copies) for three in zip(true, line, last)]

    def usable(self, candidate: Candidate, moment: Moment, branch: Branch, floor: float = SERVING_FLOOR) -> bool:
        """Whether a candidate can be forecast at this moment. floor: least part of the output in its quantity."""
        if candidate.quantity == "output":
            return True
        if self.schedule is None or self.schedule.level(moment.timestep) is None:
            return False
        quantity, kind = candidate.quantity, self.schedule.prediction
        known = all(level is not None and is_invertible(quantity, kind, level, 0.0) for level in branch.levels)
        return known and is_invertible(quantity, kind, self._level(moment), floor)

    def _level(self, moment: Moment) -> NoiseLevel:
        level = None if self.schedule is None else self.schedule.level(moment.timestep)
        assert level is not None
        return level


def copies_in(probe: Tensor) -> int:
    """How many times over a batch, (B, n), holds the same samples: guidance may put its branches into one batch."""
    rows = len(probe)
    for single in range(1, rows):
        if rows % single == 0 and torch.equal(probe[single:], probe[:-single]):
            return rows // single
    return 1
