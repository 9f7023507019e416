"""What a row of the table of pipelines says: how to build one, how to call it, what a call does to the transformer."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor

from tests.pipelines import parts


@dataclass(frozen=True, eq=False)
class Row:
    """One pipeline in one way of using it.

    name: of the test. pipeline: its class in diffusers. parts: makes its components.
    way: in which it is used, for the documents, where there are several.
    given: arguments of a call besides prompt, generator and number of steps.
    steps: asked for. done: steps that run, None = all that were asked for.
    calls: those of the transformer in a step, as the number of samples in each.
    runs: how often a call goes through the steps.
    settings: attributes of the pipeline that fit its parts to their size.
    stages: how many of a pyramid go through the steps, each a run; 0 = no pyramid.
    few: numbers of steps that are too few to serve anything.
    levels: whether steps are asked for as their noise levels.
    """

    name: str
    pipeline: str
    parts: Callable[[], dict[str, Any]]
    given: dict[str, Any] = field(default_factory=dict)
    way: str = ""
    steps: int = 6
    done: int | None = None
    calls: tuple[int, ...] = (1, 1)
    runs: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    stages: int = 0
    few: tuple[int, ...] = (3, 1, 2)
    levels: bool = False

    @property
    def guidance(self) -> str:
        """How the pipeline guides, as this row calls it."""
        kinds = (["batched"] if max(self.calls) > 1 else []) + (["sequential"] if len(self.calls) > 1 else [])
        return " and ".join(kinds) or "none"

    def build(self) -> Any:
        """The pipeline, silent."""
        kind = getattr(diffusers, self.pipeline)
        module = sys.modules[kind.__module__]
        if "ftfy.fix_text" in inspect.getsource(module) and not hasattr(module, "ftfy"):
            # Some pipelines call it without asking whether it is installed; prompts here need no fixing.
            module.ftfy = SimpleNamespace(fix_text=str)  # type: ignore[attr-defined]
        pipe = kind(**self.parts())
        pipe.set_progress_bar_config(disable=True)
        for name, value in self.settings.items():
            assert hasattr(pipe, name), name
            setattr(pipe, name, value)
        return pipe

    def _asked(self, steps: int) -> dict[str, Any]:
        if self.stages:
            return {"pyramid_num_inference_steps_list": [steps] * self.stages}
        if self.levels:
            return {"sigmas": [1.0 - step / steps for step in range(steps)]}
        return {"num_inference_steps": steps}

    def call(self, pipe: Any, prompt: int = 0, steps: int | None = None, **more: Any) -> list[Tensor]:
        """What the pipeline makes of a prompt (and a seed of the same number), as tensors."""
        arguments = {
            "generator": torch.Generator().manual_seed(prompt),
            **self._asked(self.steps if steps is None else steps),
            **self.given,
            **more,
        }
        with torch.random.fork_rng(devices=[]):
            # CogView4ControlPipeline encodes its picture without the generator that it was given.
            torch.manual_seed(prompt)
            return parts.tensors(pipe(**{"prompt": parts.PROMPTS[prompt]} | arguments))


@dataclass(frozen=True)
class Unbuilt:
    """A pipeline that is not tested, and why."""

    pipeline: str
    transformer: str
    why: str


VIDEO = {"height": parts.SIZE, "width": parts.SIZE, "num_frames": parts.FRAMES, "max_sequence_length": 16}
GUIDED = {"negative_prompt": parts.NEGATIVE, "guidance_scale": 3.0}
LATENT = {"output_type": "latent"}
