"""Whether a call of the model goes on with a run, and which step and branch of it the call is.

`cache_context` names branches and steps in some pipelines and is believed there. Everywhere else: a call at the same
timestep as the one before is the next branch of that step, a lower timestep is the next step, a higher one belongs to
another run. Where the scheduler has stepped in between, a call at the same timestep is the next step: samplers of
second order (Heun) call the model twice at one.

A run is known by everything the model is given. What does not go on with it: another shape, dtype, device or adapter;
another batch in a known branch; any other text, picture, pose or mask than that branch had, and any other argument; a
scheduler that was set anew or whose count of steps fell; and a sample that does not follow (`sample_chain`). When in
doubt it does not go on: nothing is stored of a new run, so that everything is computed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unicp.context import StepContext
from unicp.models.noise import NoiseSchedule
from unicp.numerics.digests import Digest, digest, version_of
from unicp.runtime.model_call import CallInputs
from unicp.runtime.sample_chain import Link, SampleChain, holds
from unicp.sampler.observer import SamplerRun, latest_run

# So many calls at one timestep are no branches: a loop that never changes it would otherwise store ever more.
MOST_BRANCHES = 64
# Where a call is in a run: its timestep, and how often the scheduler has stepped without leaving it.
_Place = tuple[float, int]


class Condition:
    """One tensor that a branch is given, known again without a copy: the very tensor unwritten, or equal bits."""

    def __init__(self, tensor: Tensor):
        self._digest: Digest = digest(tensor)
        self._remember(tensor)

    def is_now(self, tensor: Tensor) -> bool:
        """Whether this tensor holds what the branch had."""
        # Tensors made in inference mode have no version: only their values tell whether they were written to.
        if self._tensor() is tensor and self._version is not None and self._version == version_of(tensor):
            return True
        if digest(tensor) != self._digest:
            return False
        self._remember(tensor)
        return True

    def _remember(self, tensor: Tensor) -> None:
        self._tensor, self._version = weakref.ref(tensor), version_of(tensor)


@dataclass
class _Branch:
    conditions: dict[str, Condition]
    batch: tuple[int, ...]
    kind: Hashable
    last_place: _Place


@dataclass(frozen=True)
class Going:
    """What a call is of the run it goes on with, or begins.

    link, distance: how its sample relates to the run, and how far it is from what was expected.
    """

    place: _Place
    branch: str
    signature: tuple[Any, ...]
    context: Any = None
    link: Link = Link.GOES_ON
    distance: float = 0.0


@dataclass
class RunTracker:
    """Follows the calls of one run. Ask `goes_on` of a call, then `take` it.

    run: its number. schedule, scheduler: what the scheduler says of noise, and itself; None = unknown. set_by: what the
    scheduler was set to when the run began. timestep_scale, timestep_shift: shift + scale x what the model is given
    falls along a run, as `Family` says. last_index: step of the schedule that was called last, -1 = none; it tells
    where a run is when two steps have one timestep.
    """

    run: int = 0
    schedule: NoiseSchedule | None = None
    scheduler: Any = None
    set_by: SamplerRun | None = None
    timestep_scale: float = 1.0
    timestep_shift: float = 0.0
    last_index: int = -1
    chain: SampleChain = field(default_factory=SampleChain)
    _signature: tuple[Any, ...] | None = None
    _branches: dict[str, _Branch] = field(default_factory=dict)
    _place: _Place = (float("inf"), 0)
    _counted: int = 0
    _step: int = -1
    _calls_at_step: int = 0
    _sample: tuple[Tensor, int | None] | None = None
    conditions_unchanged: bool = False

    @property
    def branches(self) -> int:
        """How many branches the run has shown so far."""
        return len(self._branches)

    @property
    def is_set_elsewhere(self) -> bool:
        """Whether another thread has set the scheduler since the run began."""
        latest = None if self.set_by is None else latest_run(self.scheduler)
        return latest is not None and latest is not self.set_by and latest.thread != threading.get_ident()

    @property
    def was_set_anew(self) -> bool:
        """Whether the scheduler was set again since the run began, or has gone."""
        if self.set_by is not None and self.set_by.scheduler() is None:
            return True
        return self.scheduler is not None and latest_run(self.scheduler) is not self.set_by

    def is_under(self, scheduler: Any, set_by: SamplerRun | None) -> bool:
        """Whether the run belongs to what this scheduler is set to."""
        return scheduler is not None and self.scheduler is scheduler and self.set_by is set_by

    def is_left_for(self, scheduler: Any) -> bool:
        """Whether the run is over where one under this scheduler begins: its own was set anew, or is taken for that."""
        return self.was_set_anew or (self.set_by is not None and self.scheduler is scheduler)

    def goes_on(
        self, call: CallInputs, context: Any, weights: Hashable = (), even_if_set_anew: bool = False
    ) -> Going | None:
        """What this call is of the run; None = it is of another one. Changes nothing.

        context: diffusers' CacheContext, or None. weights: says by a change that the model has become another one, for
        instance by a LoRA. even_if_set_anew: do not ask the scheduler.
        """
        signature = _signature(call, weights)
        if self._signature is None:
            name = "call0" if context is None else context.name
            return Going((self._falling(call.timestep), 0), name, signature, context)
        if signature != self._signature:
            return None
        if not even_if_set_anew and (self.was_set_anew or self._is_over or self._step_count < self._counted):
            return None
        # The schedule would tell the level of some tokens only, and forecasts of the others would be wrong.
        if self.schedule is not None and _has_several_levels(call.timestep):
            return None
        place, name = self._place_of(call.timestep), None if context is None else context.name
        # A timestep that is no number is never the next one.
        if not place[0] <= self._place[0] or (place == self._place and self._calls_at_step >= MOST_BRANCHES):
            return None
        branch = name or self._next_branch(place)
        known = self._branches.get(branch)
        if known is not None and (known.last_place == place or not _is_like(known, call)):
            return None
        if name is None and self._begins_again(place, call):
            return None
        is_same_step = place == self._place and self._calls_at_step > 0
        link, distance = self.chain.link(branch, call.samples[0], is_same_step)
        return None if link is Link.OTHER else Going(place, branch, signature, context, link, distance)

    def take(self, call: CallInputs, going: Going) -> StepContext:
        """Where a call is that goes on with the run, or begins it."""
        self._signature = going.signature
        self._counted = self._step_count
        if going.place != self._place:
            self._step, self._calls_at_step, self._place = self._step + 1, 0, going.place
        self._calls_at_step += 1
        batch, known = _batch(call), self._branches.get(going.branch)
        self.conditions_unchanged = known is not None
        if known is None:
            conditions = {name: Condition(tensor) for name, tensor in call.conditions.items()}
            known = self._branches[going.branch] = _Branch(conditions, batch, call.kind, going.place)
        known.last_place = going.place
        self._sample = call.samples[0], version_of(call.samples[0])
        self.chain.take(going.branch, call.samples[0], going.link)
        return self._context(going.branch, going.place[0], batch[0], going.context)

    def moves_on(self, going: Going) -> bool:
        """Whether a call is at another step than the one before it."""
        return self.branches > 0 and going.place != self._place

    def was_given(self, sample: Tensor) -> bool:
        """Whether the last call had this sample, or one that holds it."""
        return self._sample is not None and holds(self._sample[0], sample)

    @property
    def _step_count(self) -> int:
        return int(getattr(self.scheduler, "step_index", None) or 0)

    @property
    def _is_over(self) -> bool:
        """Whether the scheduler has taken the last step of the run."""
        steps = None if self.schedule is None else self.schedule.steps
        return steps is not None and self._step_count >= steps

    def _falling(self, timestep: Any) -> float:
        return falling_timestep(timestep, self.timestep_scale, self.timestep_shift)

    def _place_of(self, timestep: Any) -> _Place:
        value = self._falling(timestep)
        if value != self._place[0]:
            return value, 0
        return value, self._place[1] + (self._step_count > self._counted)

    def _begins_again(self, place: _Place, call: CallInputs) -> bool:
        """Whether a call at the timestep of the one before begins a run that starts where this one was left.

        It does if it has the text of a branch that was called at this step and another sample. Asked only while the
        branches of a run are not all known, so that values are compared at its first step alone.
        """
        if place != self._place or self._calls_at_step == 0 or self._next_branch(place) in self._branches:
            return False
        if self.set_by is not None and hasattr(self.scheduler, "step_index"):
            return False  # the scheduler would have been set anew, or have counted a step
        sample = call.samples[0]
        if self._sample is not None:
            last, version = self._sample
            # Written to since, it tells nothing.
            if version == version_of(last) and _is_same_sample(last, sample):
                return False
            if last.shape != sample.shape:
                return True
        return any(_has_text(branch, call) for branch in self._branches.values())

    def _next_branch(self, place: _Place) -> str:
        return f"call{self._calls_at_step if place == self._place else 0}"

    def _index(self, possible: tuple[int, ...]) -> int | None:
        """Which step of the schedule this is, of those at its timestep: as far as nobody tells, the next of them."""
        if len(possible) > 1:
            is_same = self._calls_at_step > 1 and self.last_index in possible
            later = [index for index in possible if index > self.last_index]
            possible = (self.last_index,) if is_same else (*later, *possible)
        self.last_index = possible[0] if possible else -1
        return possible[0] if possible else None

    def _context(self, branch: str, timestep: float, samples: int, context: Any) -> StepContext:
        step, level, steps, width = self._step, None, None, None
        if self.schedule is not None:
            index, level = self._index(self.schedule.step_indices(timestep)), self.schedule.level(timestep)
            after = self.schedule.next_level(timestep)
            step = self._step if index is None else index
            steps = self.schedule.steps
            if level is not None and after is not None and steps is not None:
                width = steps * abs(level.angle - after.angle)
        if context is not None:
            step = step if context.step_index is None else int(context.step_index)
            steps = steps if context.num_inference_steps is None else int(context.num_inference_steps)
        return StepContext(self.run, step, branch, timestep, samples, level, steps, width)


def _signature(call: CallInputs, weights: Hashable) -> tuple[Any, ...]:
    first = call.samples[0]
    return tuple(tuple(one.shape[1:]) for one in call.samples), first.dtype, first.device, weights


def _batch(call: CallInputs) -> tuple[int, ...]:
    return tuple(one.shape[0] for one in call.samples)


def _is_like(branch: _Branch, call: CallInputs) -> bool:
    """Whether a branch has had such a batch, such a call and these conditions."""
    return (branch.batch, branch.kind) == (_batch(call), call.kind) and _has_conditions(branch, call.conditions)


def _has_conditions(branch: _Branch, conditions: Mapping[str, Tensor]) -> bool:
    if branch.conditions.keys() != conditions.keys():
        return False
    return all(condition.is_now(conditions[name]) for name, condition in branch.conditions.items())


def _has_text(branch: _Branch, call: CallInputs) -> bool:
    return all(
        name in branch.conditions and branch.conditions[name].is_now(call.conditions[name]) for name in call.texts
    )


def _is_same_sample(last: Tensor, sample: Tensor) -> bool:
    """Whether two calls got the same sample, which one of them may have got more often: branches of a step do."""
    if last is sample or last.shape == sample.shape:
        return last is sample or torch.equal(last, sample)
    return last.shape[1:] == sample.shape[1:] and torch.equal(last[:1], sample[:1])


def falling_timestep(timestep: Any, scale: float, shift: float) -> float:
    """shift + scale x the timestep of a call, a number or a tensor of any shape: what falls along a run."""
    return shift + scale * _number(timestep, scale < 0)


def _number(timestep: Any, rises: bool) -> float:
    # Image-to-video models give a timestep per token, that of no noise for given frames: the noisiest is the step's.
    if not isinstance(timestep, Tensor):
        return float(timestep)
    return float(timestep.min() if rises else timestep.max())


def _has_several_levels(timestep: Any) -> bool:
    """Whether tokens or samples of one call are at several noise levels, apart from given ones at 0."""
    if not isinstance(timestep, Tensor) or timestep.numel() < 2:
        return False
    lowest = timestep.where(timestep > 0, timestep.max()).min()
    return bool(lowest < timestep.max())
