"""Which run, step and branch a call of the model belongs to, found without help from the pipeline where need be.

`cache_context` names branches and steps in some pipelines and is believed there. Everywhere else: a call at the same
timestep as the one before is the next branch of that step, a lower timestep is the next step, a higher one a
new run. A changed shape, dtype, device, text or thread is a new run too. When in doubt: a new run, in which nothing is
stored yet, so that everything is computed.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unicp.models.noise import NoiseSchedule
from unicp.records import Moment


@dataclass
class _Branch:
    text: weakref.ref[Tensor] | None = None
    version: int | None = None
    values: Tensor | None = None
    last_timestep: float | None = None


@dataclass
class Trajectory:
    """Follows the calls of one transformer. `enter` is called before each, `reset` forgets the run.

    timestep_scale, timestep_shift: shift + scale x what the model is given falls along a run, as `Family` says.
    """

    schedule: NoiseSchedule | None = None
    timestep_scale: float = 1.0
    timestep_shift: float = 0.0
    run: int = -1
    _signature: tuple[Any, ...] | None = None
    _branches: dict[str, _Branch] = field(default_factory=dict)
    _timestep: float = float("inf")
    _step: int = -1
    _calls_at_step: int = 0
    text_unchanged: bool = False

    def enter(
        self, sample: Tensor, timestep: Any, text: Tensor | None, context: Any, others: tuple[Tensor, ...] = ()
    ) -> tuple[Moment, bool]:
        """The moment of this call, and whether it opens a new run.

        sample, others: the model's input, batch first, and further ones such as audio. timestep: number or tensor.
        text: the text states, or None. context: diffusers' CacheContext, or None.
        """
        value = self.timestep_shift + self.timestep_scale * _number(timestep)
        shapes = tuple(tuple(one.shape) for one in (sample, *others))
        signature = (shapes, sample.dtype, sample.device, threading.get_ident())
        name = None if context is None else context.name
        fresh = self._opens_run(value, signature, name)
        if self.schedule is not None and _has_several_levels(timestep):
            # The schedule would tell the level of some tokens only, and forecasts of the others would be wrong.
            fresh = True
        if not fresh:
            fresh = not self._text_matches(name or self._next_branch(value), text)
        if fresh:
            self._begin(signature)
        self._advance(value)
        branch = name or f"call{self._calls_at_step - 1}"
        self._remember(branch, value, text, fresh)
        return self._moment(branch, value, sample.shape[0], context), fresh

    @property
    def branches(self) -> int:
        """How many branches the run has shown so far."""
        return len(self._branches)

    def reset(self) -> None:
        """Forgets the run; the next call opens a new one."""
        self._signature = None
        self._branches.clear()
        self._timestep, self._step, self._calls_at_step = float("inf"), -1, 0
        self.text_unchanged = False

    def _opens_run(self, timestep: float, signature: tuple[Any, ...], name: str | None) -> bool:
        if signature != self._signature or timestep > self._timestep:
            return True
        known = self._branches.get(name) if name is not None else None
        return known is not None and known.last_timestep == timestep

    def _next_branch(self, timestep: float) -> str:
        return f"call{self._calls_at_step if timestep == self._timestep else 0}"

    def _text_matches(self, name: str, text: Tensor | None) -> bool:
        branch = self._branches.get(name)
        self.text_unchanged = False
        if branch is None or text is None or branch.values is None:
            return True
        # Tensors made in inference mode have no version: only their values tell whether they were written to.
        known = branch.text is not None and branch.text() is text and branch.version is not None
        if known and branch.version == _version(text):
            self.text_unchanged = True
            return True
        same = branch.values.shape == text.shape and branch.values.dtype == text.dtype
        self.text_unchanged = same and bool(torch.equal(branch.values.to(text.device), text))
        return self.text_unchanged

    def _begin(self, signature: tuple[Any, ...]) -> None:
        self.reset()
        self.run += 1
        self._signature = signature

    def _advance(self, timestep: float) -> None:
        if timestep != self._timestep:
            self._step, self._calls_at_step, self._timestep = self._step + 1, 0, timestep
        self._calls_at_step += 1

    def _remember(self, name: str, timestep: float, text: Tensor | None, fresh: bool) -> None:
        branch = self._branches.setdefault(name, _Branch())
        branch.last_timestep = timestep
        if text is None or (self.text_unchanged and not fresh and branch.text is not None and branch.text() is text):
            return
        branch.text, branch.version = weakref.ref(text), _version(text)
        if branch.values is None:
            # A copy: the caller may write into its tensor, and then text that looks the same would not be.
            branch.values = text.detach().clone()

    def _moment(self, branch: str, timestep: float, samples: int, context: Any) -> Moment:
        step, sigma, steps = self._step, None, None
        if self.schedule is not None:
            index, level = self.schedule.step_index(timestep), self.schedule.level(timestep)
            step = self._step if index is None else index
            sigma = None if level is None else level.sigma
            steps = self.schedule.steps
        if context is not None:
            step = step if context.step_index is None else int(context.step_index)
            steps = steps if context.num_inference_steps is None else int(context.num_inference_steps)
        return Moment(self.run, step, branch, timestep, samples, sigma, steps)


def _number(timestep: Any) -> float:
    # Image-to-video models give a timestep per token, 0 for given frames: the largest is the step's.
    return float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)


def _has_several_levels(timestep: Any) -> bool:
    """Whether tokens of one call are at several noise levels, apart from given ones at 0."""
    if not isinstance(timestep, Tensor) or timestep.ndim < 2:
        return False
    lowest = timestep.where(timestep > 0, timestep.max()).min()
    return bool(lowest < timestep.max())


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
