"""Whether the sample of a call goes on from where a run was left.

A run is a chain: what the sampler made of one step is what the model is given at the next. Where the steps of the
scheduler are seen, the sample must be the one that the last of them made, or hold it: models are also given it twice
(guidance in one batch), scaled, or with conditions beside it. Where no step is seen, as in a loop written by hand, a
sample goes on if it is near the one before, or is made of that and of what the model said (a step of first order).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from unicp.numerics.error_measures import strided_sample

PROBE = 4096  # values of each sample that are compared

# Distances are between directions, sqrt(2 - 2 cos): 0 = the same up to a scale, sqrt(2) = nothing in common.
# Rounding to half precision moves a sample by less than 0.01.
SAME = 0.02
# Where more than that of a sample was replaced between two steps it is another run's; less is an edit, after which one
# call is computed.
EDITED = 0.05
EDITS_IN_A_ROW = 4  # calls of about two steps
# Of the samples of neighbouring steps, where what the sampler makes cannot be compared: packed in another way, or
# conditions put into it at every step. Runs of 30 steps stay below 0.2 and those of 6 below 0.7 (as measured on
# diffusers' pipelines with tiny models); independent noise is at 1.4.
NEAR = 0.9
# A step of first order leaves nothing of the new sample unexplained but rounding.
EXPLAINED = 0.05


class Link(Enum):
    """How a call's sample relates to the run.

    It is the one that the sampler made; it goes on as far as anyone can tell; it was edited in between; or it is of
    another run.
    """

    MADE = "made by the sampler"
    GOES_ON = "goes on"
    EDITED = "edited"
    OTHER = "other"


@dataclass
class _Last:
    """Of one branch: the sample of its last call, and what was answered."""

    shape: torch.Size
    sample: Tensor
    outputs: Tensor | None = None


@dataclass(frozen=True)
class _Made:
    """Values of a sample that a sampler made, and its shape."""

    shape: torch.Size
    probe: Tensor

    @classmethod
    def of(cls, sample: Tensor) -> _Made:
        return cls(sample.shape, _probe(sample))

    def distance_to(self, sample: Tensor) -> float | None:
        """The distance to the part of a sample that holds it; None where no part can."""
        parts = parts_like(sample, self.shape)
        return min((_distance(_probe(part), self.probe) for part in parts), default=None)


class SampleChain:
    """The chain of samples of one run. Holds at most 4,096 values of each sample, and of what the sampler made last."""

    def __init__(self) -> None:
        self._made: _Made | None = None
        self._seen_made, self._edits = False, 0
        self._last: dict[str, _Last] = {}
        self._newest: tuple[Tensor, Link] | None = None

    def made(self, sample: Tensor) -> None:
        """The sampler has made this sample of the step that was under way."""
        self._made = _Made.of(sample) if sample.dim() else None

    def link(self, branch: str, sample: Tensor, is_same_step: bool = False) -> tuple[Link, float]:
        """How the sample of a call relates to the run, and how far it is from what was expected. Changes nothing.

        is_same_step: another branch was called at this step before.
        """
        now = _probe(sample)
        newest = self._newest if is_same_step else None
        if newest is not None and newest[0].shape == now.shape and _distance(now, newest[0]) <= SAME:
            return newest[1], 0.0
        made = None if self._made is None else self._made.distance_to(sample)
        last = self._last.get(branch)
        if made is not None and made <= SAME:
            # The first steps of a long run hardly move a sample. What is still nearer to the one before is that one
            # again: of another run with the same noise.
            is_again = last is not None and last.sample.shape == now.shape and _distance(now, last.sample) < made
            return Link.OTHER if is_again else Link.MADE, made
        if made is not None and self._seen_made:
            return Link.EDITED if made <= EDITED else Link.OTHER, made
        if last is None:
            # A branch that was not called before: what its sample should be nobody knows.
            return Link.GOES_ON, math.inf
        if now.shape != last.sample.shape:
            return Link.OTHER, math.inf
        distance = _distance(now, last.sample)
        return Link.GOES_ON if distance <= NEAR or self._explains(now, last) else Link.OTHER, distance

    def take(self, branch: str, sample: Tensor, link: Link) -> None:
        """A call of this run has this sample, with this link to it."""
        self._edits = self._edits + 1 if link is Link.EDITED else 0
        # Where every step is followed by an edit, as in some inpainting, edits are no news.
        self._seen_made = (self._seen_made or link is Link.MADE) and self._edits < EDITS_IN_A_ROW
        probe = _probe(sample)
        self._newest, self._last[branch] = (probe, link), _Last(sample.shape, probe)

    def answered(self, branch: str, output: Tensor) -> None:
        """The call was answered with this: what a step by hand is made of."""
        last = self._last.get(branch)
        # A learned variance may follow the output proper.
        parts = [] if last is None else parts_like(output, last.shape)
        if last is not None and parts:
            last.outputs = _probe(parts[0])

    def _explains(self, now: Tensor, last: _Last) -> bool:
        """Whether a sample is a sum of the one before and of what the model said then, in whatever shares."""
        outputs = [one.outputs for one in self._last.values() if one.outputs is not None]
        known = [last.sample, *(one for one in outputs if one.shape == now.shape)]
        if len(known) < 2:
            return False
        basis = torch.stack([one.flatten().double() for one in known], dim=1).cpu()
        wanted = now.flatten().double().cpu()
        if not bool(torch.isfinite(basis).all() and torch.isfinite(wanted).all()) or len(wanted) <= 2 * len(known):
            return False
        shares = torch.linalg.lstsq(basis, wanted[:, None], driver="gelsd").solution[:, 0]
        return bool(((basis * shares).sum(dim=1) - wanted).norm() <= EXPLAINED * wanted.norm())


def holds(sample: Tensor, made: Tensor) -> bool:
    """Whether a sample is, or holds, the sample of a sampler."""
    distance = _Made.of(made).distance_to(sample) if made.dim() else None
    return distance is not None and distance <= SAME


def parts_like(sample: Tensor, shape: torch.Size) -> list[Tensor]:
    """The parts of a sample that may be one of `shape`: all of it, its first rows, or one end of one axis."""
    if not shape or sample.dim() == 0 or not shape.numel() or len(sample) % shape[0]:
        return []
    rows = sample[: shape[0]]
    if rows.numel() == shape.numel():
        return [rows.reshape(shape)]
    if rows.dim() != len(shape):
        return []
    longer = [axis for axis in range(1, len(shape)) if rows.shape[axis] != shape[axis]]
    if len(longer) != 1 or rows.shape[longer[0]] < shape[longer[0]]:
        return []
    (axis,), length = longer, shape[longer[0]]
    return [rows.narrow(axis, 0, length), rows.narrow(axis, rows.shape[axis] - length, length)]


def _probe(tensor: Tensor) -> Tensor:
    return strided_sample(tensor.detach(), PROBE)


def _distance(one: Tensor, other: Tensor) -> float:
    """Distance of two directions over all values; 0 for two zeros, and not a number where a value is none."""
    a, b = one.flatten().double(), other.to(one.device).flatten().double()
    dot, first, second = torch.stack([(a * b).sum(), (a * a).sum(), (b * b).sum()]).tolist()
    if first == 0 or second == 0:
        return 0.0 if first == second else 2.0
    return max(0.0, 2.0 - 2.0 * dot / (first * second) ** 0.5) ** 0.5
