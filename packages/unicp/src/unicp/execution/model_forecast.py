"""Forecasts of a model's outputs from those stored of one branch, and how much of a line's rise came true.

A straight line through two outputs goes on rising; what came may have risen less, or turned. At every computed step it
is measured how much of the line's rise came true, by least squares, and until the next one lines follow that share
alone (a damped trend whose damping is measured; ours).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Known:
    """What forecasts for one call are made from.

    samples: of the call. points: of each stored call, oldest first, its outputs and then its samples. shapes: of the
    tensors of a stored call, whole; the tensors themselves may be sampled.
    """

    moment: Moment
    branch: Branch
    position: Position
    samples: Tensors
    points: list[Tensors]
    shapes: list[torch.Size]


# The share of a candidate's line that came true where all branches are combined, (B,); None where that is not known.
Combined = Callable[[Candidate], Tensor | None]


def share_rises(branches: Sequence[Branch], combined: Combined | None = None) -> None:
    """Sets what lines follow in the step that begins, the same for all branches whose batches are of one size.

    Branches are combined afterwards, their difference many times over: shares of their own would tear them apart. So
    where it is known how the first output's line did after that (`combined`), all follow this share.
    """
    candidates = {candidate for branch in branches for candidate in branch.rises}
    wholes = {} if combined is None else {candidate: combined(candidate) for candidate in candidates}
    for branch in branches:
        for candidate, own in branch.rises.items():
            known = [other.rises[candidate] for other in branches if candidate in other.rises]
            alike = [rises for rises in known if [r.size.shape for r in rises] == [r.size.shape for r in own]]
            shares = [share_of_rise(rises) for rises in zip(*alike)]
            whole = wholes.get(candidate)
            # Guidance may put its branches into one batch.
            if whole is not None and len(shares[0]) % len(whole) == 0:
                shares[0] = whole.to(shares[0]).repeat(len(shares[0]) // len(whole))
            branch.shares[candidate] = shares


class Forecaster:
    """Makes the forecasts of a branch from the store. schedule: noise levels, None = not known."""

    def __init__(self, store: OutputStore, schedule: NoiseSchedule | None):
        self.store, self.schedule = store, schedule

    def known(self, moment: Moment, branch: Branch, position: Position, samples: Tensors, probe: bool = False) -> Known:
        """What is stored of a branch beside the call at hand. probe: sampled positions only."""
        points = self.store.get(("model", moment.branch))
        shapes = [tensor.shape for tensor in points[-1]]
        if probe:
            points = [tuple(strided_sample(tensor, PROBE) for tensor in point) for point in points]
            samples = tuple(strided_sample(sample, PROBE) for sample in samples)
        return Known(moment, branch, position, samples, points, shapes)

    def forecast(self, known: Known, candidate: Candidate, shares: list[Tensor] | None = None) -> Tensors:
        """The outputs as this candidate forecasts them. shares: of the lines' rises; None = those of the branch."""
        branch, shapes, axis = known.branch, known.shapes, candidate.abscissa
        shares = branch.shares.get(candidate) if shares is None else shares
        places = [point[axis] for point in branch.window.points]
        now, forecasts = known.position[axis], []
        for place in range(branch.outputs):
            earlier = branch.outputs + place
            share = None if shares is None else shares[place]
            if candidate.quantity == "output" or earlier >= len(shapes) or shapes[earlier] != shapes[place]:
                outputs = [point[place] for point in known.points]
                forecasts.append(extrapolate(list(zip(places, outputs)), now, share))
            else:
                forecasts.append(self._estimate(known, candidate, place, share))
        # A forecast may be the stored tensor itself, into which a caller must not write.
        stored = {id(tensor) for point in known.points for tensor in point}
        return tuple(one.clone() if id(one) in stored else one for one in forecasts)

    def _estimate(self, known: Known, candidate: Candidate, place: int, share: Tensor | None) -> Tensor:
        """The output at `place`, by way of the noise or the clean estimate."""
        assert self.schedule is not None
        quantity, kind, axis = candidate.quantity, self.schedule.prediction, candidate.abscissa
        branch, sample = known.branch, known.samples[place]
        estimates = [
            (at[axis], to_quantity(quantity, kind, point[branch.outputs + place], point[place], level))
            for at, point, level in zip(branch.window.points, known.points, branch.levels)
            if level is not None
        ]
        forecast = extrapolate(estimates, known.position[axis], share)
        output = from_quantity(quantity, kind, sample, forecast, self._level(known.moment))
        # In the dtype of what the model gives, which under autocast is not that of the sample.
        return output.to(known.points[-1][place].dtype)

    def rises(self, known: Known, candidate: Candidate, true: list[Tensor]) -> list[Rise]:
        """What computed outputs, sampled like `known`, say of a candidate's whole line; one for each output."""
        copies = copies_in(known.samples[0])
        ones = [torch.ones(len(output), device=output.device) for output in true]
        line = self.forecast(known, candidate, ones)
        last = self.forecast(known, candidate, [torch.zeros_like(one) for one in ones])
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
