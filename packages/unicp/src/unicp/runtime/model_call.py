"""What a call of a transformer takes and gives: samples, timestep and text out of its arguments, tensors in its output.

Most models take one tensor and give one. Some take video and audio, and some take and give a list of one tensor per
sample; here all of them become tuples of batched tensors.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unicp.models.finder import ModelMap
from unicp.settings import Level

Tensors = tuple[Tensor, ...]
_SKIPPING = "diffusers.hooks.layer_skip"
# Arguments that are others at each step by their nature: further timesteps, and what a control net says of the sample.
STEP_ARGUMENTS = frozenset(
    {
        "timestep_r",
        "r_timestep",
        "audio_timestep",
        "sigma",
        "audio_sigma",
        "controlnet_block_samples",
        "controlnet_single_block_samples",
        "block_controlnet_hidden_states",
    }
)
_DEEPEST = 4  # levels of lists and dicts in which conditions are looked for


@dataclass(frozen=True)
class CallInputs:
    """Of one call: samples (batch first; empty = none that can be followed), timestep, and text or None.

    conditions: by name, every tensor that the model is given besides samples, timesteps and what changes at each step:
    texts, pictures, poses, masks. kind: differs between calls of one branch that ask for something else: layers to
    skip, and every argument that is no tensor. texts: which of the conditions are of the text.
    """

    samples: Tensors
    timestep: Any
    text: Tensor | None
    kind: Hashable = ()
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    texts: tuple[str, ...] = ()

    @property
    def shapes(self) -> tuple[Any, ...]:
        """What the costs of the call depend on."""
        return (
            *(tuple(sample.shape) for sample in self.samples),
            None if self.text is None else tuple(self.text.shape),
        )


class CallReader:
    """Reads the arguments of one transformer's forward by the names in its table row."""

    def __init__(self, model: ModelMap):
        self._family = model.family
        self._names = list(inspect.signature(type(model.transformer).forward).parameters)[1:]
        self._parts = [(block.name, block.module) for block in model.blocks]
        self._parts += [(unit.name, unit.module) for unit in model.units]
        row = model.family
        told_elsewhere = {row.sample_argument, row.timestep_argument, *row.more_samples, *row.branch_arguments}
        self._changing = told_elsewhere | STEP_ARGUMENTS | set(row.step_arguments) | {"return_dict"}

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallInputs:
        """Samples in the order of the outputs that belong to them; samples that are not there are left out."""
        named = {**dict(zip(self._names, args)), **kwargs}
        family = self._family
        first = batched(named[family.sample_argument])
        others = (batched(named.get(name)) for name in family.more_samples)
        samples = () if first is None else (first, *(other for other in others if other is not None))
        timestep, text = named[family.timestep_argument], _text(named.get(family.text_argument))
        conditions: dict[str, Tensor] = {}
        asked = [(name, _plain(named.get(name))) for name in family.branch_arguments]
        for name in sorted(named.keys() - self._changing):
            asked += [(place, _plain(value)) for place, value in _leaves(name, named[name], conditions)]
        kind = (*(one for one in asked if one[1] is not None), *_skipped_parts(self._parts))
        texts = [name for name in conditions if name.partition("[")[0] == family.text_argument]
        return CallInputs(samples, timestep, text, kind, conditions, tuple(texts))


def why_not_followed(transformer: nn.Module, given: CallInputs, level: Level) -> str:
    """Why a call is computed as if UniCP were not there; "" = it can be followed."""
    if level != "model" and getattr(transformer, "_parallel_config", None) is not None:
        return "the model was made parallel after UniCP was enabled; enable it again"
    if not given.samples:
        return "samples of several sizes in one call"
    if not all(sample.numel() for sample in given.samples):
        return "a call without samples"
    # What is predicted has no gradient. Parameters are looked at only where one would be recorded at all.
    if torch.is_grad_enabled() and any(one.requires_grad for one in (*given.samples, *transformer.parameters())):
        return "gradients are recorded; call the model under torch.no_grad()"
    return ""


@dataclass(frozen=True)
class OutputForm:
    """How an output holds its tensors, so that others can be put in their place.

    kind: Tensor, tuple, or the class of the output. parts: name and shape of each part: "tensor", "list" (one tensor
    per sample) or "none"; names matter for classes only.
    """

    kind: Any
    parts: tuple[tuple[str, str], ...]

    def fill(self, tensors: Tensors) -> Any:
        """An output of this form that holds these tensors."""
        if self.kind is Tensor:
            return tensors[0]
        rest = iter(tensors)
        values = {name: _part(shape, rest) for name, shape in self.parts}
        return tuple(values.values()) if self.kind is tuple else self.kind(**values)


def read_output(output: Any) -> tuple[OutputForm, Tensors] | None:
    """The form of an output and its tensors, batch first; None where it holds anything else."""
    if isinstance(output, Tensor):
        return OutputForm(Tensor, ()), (output,)
    if isinstance(output, tuple) and not hasattr(output, "_fields"):
        kind, named = tuple, {str(place): value for place, value in enumerate(output)}
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        kind, named = type(output), {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    else:
        return None
    parts, tensors = [], []
    for name, value in named.items():
        tensor = batched(value)
        if tensor is None and value is not None:
            return None
        parts.append((name, "none" if value is None else "tensor" if isinstance(value, Tensor) else "list"))
        tensors += [] if tensor is None else [tensor]
    return (OutputForm(kind, tuple(parts)), tuple(tensors)) if tensors else None


def batched(value: Any) -> Tensor | None:
    """A tensor as it is; a list of equally large tensors, one per sample, as one; None for anything else."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(one, Tensor) for one in value):
        return None
    same = all(one.shape == value[0].shape and one.dtype == value[0].dtype for one in value)
    return torch.stack(list(value)) if same else None


def _plain(value: Any) -> Hashable:
    """An argument as something to compare; None for one that asks for nothing. Tensors only count as being there."""
    if isinstance(value, Tensor):
        return "tensor"
    if isinstance(value, (list, tuple)):
        return tuple(_plain(one) for one in value) or None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return str(value.dtype), value.tobytes()  # of numpy
    return type(value).__name__


def _leaves(name: str, value: Any, tensors: dict[str, Tensor], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """What an argument holds that is no tensor, with its place; tensors are put into `tensors` by theirs."""
    if isinstance(value, Tensor):
        tensors[name] = value
    elif isinstance(value, (list, tuple)) and depth < _DEEPEST:
        for place, one in enumerate(value):
            yield from _leaves(f"{name}[{place}]", one, tensors, depth + 1)
    elif isinstance(value, Mapping) and depth < _DEEPEST:
        for key, one in value.items():
            yield from _leaves(f"{name}.{key}", one, tensors, depth + 1)
    else:
        yield name, value


def _skipped_parts(parts: Sequence[tuple[str, nn.Module]]) -> Iterator[str]:
    """The parts that a hook of diffusers skips or perturbs now, as its guiders do for one call of a step."""
    for name, module in parts:
        registry = getattr(module, "_diffusers_hook", None)
        if registry is not None and any(type(hook).__module__ == _SKIPPING for hook in registry.hooks.values()):
            yield name


def _part(shape: str, rest: Any) -> Any:
    if shape == "none":
        return None
    tensor = next(rest)
    return list(tensor.unbind()) if shape == "list" else tensor


def _text(value: Any) -> Tensor | None:
    """The text of a call as one tensor, by which its branch is known again."""
    if isinstance(value, tuple):
        # Text and image context: the text comes first.
        value = value[0] if value else None
    if isinstance(value, list):
        tensors = [one for one in value if isinstance(one, Tensor)]
        # A list holds one text per sample, each of its own length.
        value = tensors[0] if len(tensors) == 1 else torch.cat([one.flatten() for one in tensors]) if tensors else None
    return value if isinstance(value, Tensor) else None
