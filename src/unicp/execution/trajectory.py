"""Which run, step and branch a call of the model belongs to, found without help from the pipeline where need be.

`cache_context` names branches and steps in some pipelines and is believed there. Everywhere else: a call at the same
timestep as the one before is the next branch of that step, a lower timestep is the next step, a higher one a
new run. Where the scheduler has stepped in between, a call at the same timestep is the next step: samplers of second
order (Heun) call the model twice at one. Branches of a step may have batches of different size; another batch in a
known branch is a new run, as is a changed shape, dtype, device, text or thread, or a call of another kind (with layers
skipped, say) in its place. When in doubt: a new run, in which nothing is stored yet, so that everything is computed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unicp.models.noise import NoiseSchedule
from unicp.records import Moment

# So many calls at one timestep are no branches: a loop that never changes it would otherwise store ever more.
MOST_BRANCHES = 64
# Where a call is in a run: its timestep, and how often the scheduler has stepped without leaving it.
_Place = tuple[float, int]


@dataclass
class _Branch:
    text: weakref.ref[Tensor] | None = None
    version: int | None = None
    values: Tensor | None = None
    batch: tuple[int, ...] = ()
    last_place: _Place | None = None
    kind: Hashable = ()


@dataclass
class Trajectory:
    """Follows the calls of one transformer. `enter` is called before each, `reset` forgets the run.

    timestep_scale, timestep_shift: shift + scale x what the model is given falls along a run, as `Family` says.
    schedule, scheduler: what the scheduler says of noise, and itself, whose `step_index` is read; None = unknown.
    """

    schedule: NoiseSchedule | None = None
    scheduler: Any = None
    timestep_scale: float = 1.0
    timestep_shift: float = 0.0
    run: int = -1
    _signature: tuple[Any, ...] | None = None
    _branches: dict[str, _Branch] = field(default_factory=dict)
    _place: _Place = (float("inf"), 0)
    _counted: int = 0
    _last_index: int = -1
    _step: int = -1
    _calls_at_step: int = 0
    _sample: tuple[Tensor, int | None] | None = None
    text_unchanged: bool = False

    def enter(
        self,
        sample: Tensor,
        timestep: Any,
        text: Tensor | None,
        context: Any,
        others: tuple[Tensor, ...] = (),
        weights: Hashable = (),
        kind: Hashable = (),
    ) -> tuple[Moment, bool]:
        """The moment of this call, and whether it opens a new run.

        sample, others: the model's input, batch first, and further ones such as audio. timestep: number or tensor.
        text: the text states, or None. context: diffusers' CacheContext, or None. weights: says by a change that the
        model has become another one, for instance by a LoRA. kind: as `CallInputs.kind`.
        """
        value = self.timestep_shift + self.timestep_scale * _number(timestep, self.timestep_scale < 0)
        place = self._place_of(value)
        samples = (sample, *others)
        shapes = tuple(tuple(one.shape[1:]) for one in samples)
        batch = tuple(one.shape[0] for one in samples)
        signature = (shapes, sample.dtype, sample.device, threading.get_ident(), weights)
        name = None if context is None else context.name
        fresh = self._opens_run(place, signature, name) or (name is None and self._repeats(place, sample, text))
        if self.schedule is not None and _has_several_levels(timestep):
            # The schedule would tell the level of some tokens only, and forecasts of the others would be wrong.
            fresh = True
        if not fresh:
            fresh = not self._is_that_branch(name or self._next_branch(place), batch, text, kind)
        if fresh:
            self._begin(signature)
        self._advance(place)
        branch = name or f"call{self._calls_at_step - 1}"
        self._remember(branch, place, batch, text, fresh)
        self._branches[branch].kind = kind
        self._sample = sample, _version(sample)
        return self._moment(branch, value, sample.shape[0], context), fresh

    @property
    def branches(self) -> int:
        """How many branches the run has shown so far."""
        return len(self._branches)

    def reset(self) -> None:
        """Forgets the run; the next call opens a new one."""
        self._signature = None
        self._branches.clear()
        self._place, self._step, self._calls_at_step = (float("inf"), 0), -1, 0
        self._sample = None
        self.text_unchanged = False

    def _place_of(self, timestep: float) -> _Place:
        counted, before = int(getattr(self.scheduler, "step_index", None) or 0), self._counted
        self._counted = counted
        if timestep != self._place[0]:
            return timestep, 0
        return timestep, self._place[1] + (counted > before)

    def _opens_run(self, place: _Place, signature: tuple[Any, ...], name: str | None) -> bool:
        # A timestep that is no number is never the next one.
        if signature != self._signature or not place[0] <= self._place[0]:
            return True
        if place == self._place and self._calls_at_step >= MOST_BRANCHES:
            return True
        known = self._branches.get(name) if name is not None else None
        return known is not None and known.last_place == place

    def _repeats(self, place: _Place, sample: Tensor, text: Tensor | None) -> bool:
        """Whether a call at the timestep of the one before begins a run that starts where the last one was left.

        It does if it has the text of a branch that was called at this step and another sample. Asked only while the
        branches of a run are not all known, so that values are compared at its first step alone.
        """
        if place != self._place or self._calls_at_step == 0 or self._next_branch(place) in self._branches:
            return False
        if self._sample is not None:
            last, version = self._sample
            # Written to since, it tells nothing.
            if version == _version(last) and _is_same_sample(last, sample):
                return False
            if last.shape != sample.shape:
                return True
        return any(_is_text_of(branch, text) for branch in self._branches.values())

    def _next_branch(self, place: _Place) -> str:
        return f"call{self._calls_at_step if place == self._place else 0}"

    def _is_that_branch(self, name: str, batch: tuple[int, ...], text: Tensor | None, kind: Hashable) -> bool:
        """Whether a branch of that name has had such a batch, this text and such a call, or is not known yet."""
        branch = self._branches.get(name)
        self.text_unchanged = False
        if branch is not None and (branch.batch, branch.kind) != (batch, kind):
            return False
        if branch is None or text is None or branch.values is None:
            return True
        self.text_unchanged = _is_text_of(branch, text)
        return self.text_unchanged

    def _begin(self, signature: tuple[Any, ...]) -> None:
        self.reset()
        self.run += 1
        self._signature = signature

    def _advance(self, place: _Place) -> None:
        if place != self._place:
            self._step, self._calls_at_step, self._place = self._step + 1, 0, place
        self._calls_at_step += 1

    def _remember(self, name: str, place: _Place, batch: tuple[int, ...], text: Tensor | None, fresh: bool) -> None:
        branch = self._branches.setdefault(name, _Branch())
        branch.last_place, branch.batch = place, batch
        if text is None or (self.text_unchanged and not fresh and branch.text is not None and branch.text() is text):
            return
        branch.text, branch.version = weakref.ref(text), _version(text)
        if branch.values is None:
            # A copy: the caller may write into its tensor, and then text that looks the same would not be.
            branch.values = text.detach().clone()

    def _index(self, possible: tuple[int, ...]) -> int | None:
        """Which step of the schedule this is, of those at its timestep: as far as nobody tells, the next of them."""
        if len(possible) > 1:
            is_same = self._calls_at_step > 1 and self._last_index in possible
            later = [index for index in possible if index > self._last_index]
            possible = (self._last_index,) if is_same else (*later, *possible)
        self._last_index = possible[0] if possible else -1
        return possible[0] if possible else None

    def _moment(self, branch: str, timestep: float, samples: int, context: Any) -> Moment:
        step, sigma, steps, width = self._step, None, None, None
        if self.schedule is not None:
            index, level = self._index(self.schedule.step_indices(timestep)), self.schedule.level(timestep)
            after = self.schedule.next_level(timestep)
            step = self._step if index is None else index
            sigma = None if level is None else level.sigma
            steps = self.schedule.steps
            if level is not None and after is not None and steps is not None:
                width = steps * abs(level.angle - after.angle)
        if context is not None:
            step = step if context.step_index is None else int(context.step_index)
            steps = steps if context.num_inference_steps is None else int(context.num_inference_steps)
        return Moment(self.run, step, branch, timestep, samples, sigma, steps, width)


def _is_same_sample(last: Tensor, sample: Tensor) -> bool:
    """Whether two calls got the same sample, which one of them may have got more often: branches of a step do."""
    if last is sample or last.shape == sample.shape:
        return last is sample or torch.equal(last, sample)
    return last.shape[1:] == sample.shape[1:] and torch.equal(last[:1], sample[:1])


def _is_text_of(branch: _Branch, text: Tensor | None) -> bool:
    if branch.values is None or text is None:
        return branch.values is text
    # Tensors made in inference mode have no version: only their values tell whether they were written to.
    known = branch.text is not None and branch.text() is text and branch.version is not None
    if known and branch.version == _version(text):
        return True
    same = branch.values.shape == text.shape and branch.values.dtype == text.dtype
    return same and bool(torch.equal(branch.values.to(text.device), text))


def _number(timestep: Any, rises: bool) -> float:
    # Image-to-video models give a timestep per token, that of no noise for given frames: the noisiest is the step's.
    if not isinstance(timestep, Tensor):
        return float(timestep)
    return float(timestep.min() if rises else timestep.max())


def _has_several_levels(timestep: Any) -> bool:
    """Whether tokens of one call are at several noise levels, apart from given ones at 0."""
    if not isinstance(timestep, Tensor) or timestep.ndim < 2:
        return False
    lowest = timestep.where(timestep > 0, timestep.max()).min()
    return bool(lowest < timestep.max())


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
