"""At which step and branch of a run a transformer is being called, seen from outside."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from unicp.models.finder import ModelMap


class StepCount:
    """Hooks on a transformer: `step` and `branch` of the call under way, counted from 0.

    A step is a row of calls with one timestep; the calls of a step are its branches. `begin_run` before each run,
    `remove` at the end.
    """

    def __init__(self, model_map: ModelMap):
        self._argument = model_map.family.timestep_argument
        self._names = _parameters(model_map.transformer)
        self.begin_run()
        self._handle = model_map.transformer.register_forward_pre_hook(self._enter, with_kwargs=True)

    def begin_run(self) -> None:
        """Counts from the start again."""
        self.step, self.branch = -1, 0
        self._timestep: float | None = None

    def remove(self) -> None:
        """Takes the hook off."""
        self._handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep = float({**dict(zip(self._names, args)), **kwargs}[self._argument].flatten()[0])
        if timestep == self._timestep:
            self.branch += 1
        else:
            self.step, self.branch, self._timestep = self.step + 1, 0, timestep


def _parameters(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)
