"""Denoising loops for tests of runs: over a real scheduler, a step at a time, so that they can be mixed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor, nn

from tests import tiny_models
from unicp.settings import Settings, Slicing, preset

SHAPE = (1, 4, 3, 8, 8)
# Every level, policy and kind of slicing. Errors of random weights are large: what can be skipped is.
SLICES = Slicing(widths=(8,), tolerance=1e6, min_saving=-1e6)
KINDS: dict[str, Settings] = {
    "exact": preset("balanced", tolerance=0.0),
    "balanced": preset("balanced", tolerance=1e3),
    "fast": preset("fast"),
    "fixed window": preset("fast", full_every=2),
    "fixed schedule": preset("fast", full_steps=(0, 1, 2, 4, 7)),
    "reuse": preset("fast", predictor="reuse", quantity="output", axis="step", first=2),
    "stack": preset("balanced", level="stack", tolerance=1e3, first=2),
    "block": preset("balanced", level="block", tolerance=1e3, first=2, store_factor=64.0),
    "block, tight": preset("balanced", level="block", tolerance=1e3, first=2, store_factor=1.5),
    "unit": preset("paper", slicing=Slicing()),
    "sliced": preset("balanced", first=99, slicing=SLICES),
    "unit, sliced": preset("paper", slicing=SLICES),
}


def flow(shift: float = 3.0) -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def unipc(shift: float = 3.0) -> Any:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


class Loop:
    """A guided run over a scheduler of its own, which is advanced a step at a time. conditions: of both branches.

    The scheduler is set when the first step is taken, as a pipeline does when it is called.
    """

    def __init__(
        self, model: nn.Module, scheduler: Any, seed: int = 0, steps: int = 9, context: bool = False, name: str = "wan"
    ):
        self.model, self.scheduler, self.steps, self.name, self.context = model, scheduler, steps, name, context
        self.conditions = [tiny_models.inputs(name, seed=2 * seed + place) for place in range(2)]
        self.sample = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
        self.timesteps: list[Tensor] = []
        self.done = 0

    @torch.no_grad()
    def step(self) -> None:
        if self.done == 0:
            self.scheduler.set_timesteps(self.steps)
            self.timesteps = list(self.scheduler.timesteps)
        timestep = self.timesteps[self.done]
        outputs = []
        for name, given in zip(("cond", "uncond"), self.conditions):
            arguments = given | {"hidden_states": self.sample, "timestep": timestep.reshape(1)}
            if self.context:
                with self.model.cache_context(name):  # type: ignore[operator]
                    outputs.append(self.model(**arguments)[0])
            else:
                outputs.append(self.model(**arguments)[0])
        guided = outputs[1] + 3 * (outputs[0] - outputs[1])
        self.sample = self.scheduler.step(guided, timestep, self.sample, return_dict=False)[0]
        self.done += 1

    def run(self) -> Tensor:
        while self.done < max(1, len(self.timesteps)):
            self.step()
        return self.sample


class View:
    """A pipeline around a transformer, as a server copies one for a request."""

    def __init__(self, transformer: nn.Module, scheduler: Any):
        self.transformer, self.scheduler = transformer, scheduler

    def for_request(self) -> View:
        view = copy.copy(self)
        view.scheduler = type(self.scheduler).from_config(self.scheduler.config)
        return view

    def __call__(self, seed: int = 0, steps: int = 9, context: bool = False) -> Tensor:
        return Loop(self.transformer, self.scheduler, seed, steps, context).run()


def turns(loops: list[Loop]) -> Iterator[None]:
    """Advances loops by turns until all are done."""
    while any(loop.done < max(1, len(loop.timesteps)) for loop in loops):
        for loop in loops:
            if loop.done < max(1, len(loop.timesteps)):
                loop.step()
        yield


def resident_bytes() -> int:
    """Bytes of memory that this process has."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS:"))
