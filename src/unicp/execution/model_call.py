"""What a call of a transformer takes and gives: samples, timestep and text out of its arguments, tensors in its output.

Most models take one tensor and give one. Some take video and audio, and some take and give a list of one tensor per
sample; here all of them become tuples of batched tensors.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unicp.models.finder import ModelMap
from unicp.settings import SpanKind

Tensors = tuple[Tensor, ...]
_SKIPPING = "diffusers.hooks.layer_skip"


@dataclass(frozen=True)
class CallInputs:
    """Of one call: samples (batch first; empty = none that can be followed), timestep, and text or None.

    kind: differs between calls that a guidance makes with the same text and sample, but of another model, as it were.
    """

    samples: Tensors
    timestep: Any
    text: Tensor | None
    kind: Hashable = ()

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

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallInputs:
        """Samples in the order of the outputs that belong to them; samples that are not there are left out."""
        named = {**dict(zip(self._names, args)), **kwargs}
        family = self._family
        first = batched(named[family.sample_argument])
        others = (batched(named.get(name)) for name in family.more_samples)
        samples = () if first is None else (first, *(other for other in others if other is not None))
        asked = ((name, _plain(named.get(name))) for name in family.branch_arguments)
        kind = (*(one for one in asked if one[1] is not None), *_skipped_parts(self._parts))
        return CallInputs(samples, named[family.timestep_argument], _text(named.get(family.text_argument)), kind)


def why_not_followed(transformer: nn.Module, given: CallInputs, span: SpanKind) -> str:
    """Why a call is computed as if UniCP were not there; "" = it can be followed."""
    if span != "model" and getattr(transformer, "_parallel_config", None) is not None:
        return "the model was made parallel after UniCP was enabled; enable it again"
    if not given.samples:
        return "samples of several sizes in one call"
    if not all(sample.numel() for sample in given.samples):
        return "a call without samples"
    # What is served has no gradient. Parameters are looked at only where one would be recorded at all.
    if torch.is_grad_enabled() and any(one.requires_grad for one in (*given.samples, *transformer.parameters())):
        return "gradients are recorded; call the model under torch.no_grad() to have it served"
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
    return value or None if isinstance(value, (bool, int, float, str)) else type(value).__name__ if value else None


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
