"""Finds the blocks and units of a transformer by the rows of `families`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from unicp.errors import UnsupportedModelError
from unicp.models.families import BlockListRow, Family, UnitRow, family_named
from unicp.settings import Level, Role

_NEW_MODEL = "see docs/models.md for those, or describe yours with unicp.register: a model is one table row"
_MISSING = object()
_TRANSFORMER_NAMES = ("transformer", "transformer_2")


@dataclass(frozen=True, eq=False)
class Unit:
    """One skippable call in one block.

    Attributes:
        name: Dotted, from the transformer ("blocks.3.attn1").
        module: The module.
        role: What it does.
        block: Execution index of its block.
        heads: Of its attention; `None` = unknown, or no attention.
        head_width: Channels of a head's queries and keys, likewise.
        sliceable: Whether its attention can run at reduced width.
        why_not: Why it is not sliceable; "" = it is.
        text_keys: Whether its keys and values are the same at every step.
    """

    name: str
    module: nn.Module
    role: Role
    block: int
    heads: int | None
    head_width: int | None
    sliceable: bool
    why_not: str
    text_keys: bool

    @property
    def output_projection(self) -> Tensor | None:
        """Weight (outputs, heads x channels) of the linear layer after its attention; `None` = unknown."""
        layer = getattr(self.module, "to_out", None)
        if isinstance(layer, (nn.ModuleList, nn.Sequential)) and len(layer):
            layer = layer[0]
        weight = getattr(layer, "weight", None)
        # Quantised and sharded weights are tensors of a class of their own.
        if not isinstance(weight, Tensor) or type(weight.data) is not Tensor or not weight.is_floating_point():
            return None
        fits = weight.dim() == 2 and weight.shape[1] == (self.heads or 0) * (self.head_width or 0)
        return weight.detach() if fits and not weight.is_meta else None


@dataclass(frozen=True, eq=False)
class Block:
    """One block.

    Attributes:
        name: Dotted, from the transformer.
        module: The module.
        index: In execution order, over all lists.
        units: In execution order.
        row: What its forward takes and returns.
    """

    name: str
    module: nn.Module
    index: int
    units: tuple[Unit, ...]
    row: BlockListRow


@dataclass(frozen=True, eq=False)
class ModelMap:
    """A transformer (unwrapped from torch.compile), its table row, and its blocks in execution order."""

    transformer: nn.Module
    family: Family
    blocks: tuple[Block, ...]

    @property
    def units(self) -> tuple[Unit, ...]:
        """All units in execution order."""
        return tuple(unit for block in self.blocks for unit in block.units)

    @property
    def stack_refusal(self) -> str:
        """Why all blocks cannot be skipped as one; "" = they can."""
        return self.family.stack_refusal

    @property
    def sliced_units(self) -> tuple[Unit, ...]:
        """Units whose attention is over the video's own tokens; over a text of few tokens slicing does not pay."""
        return tuple(unit for unit in self.units if unit.sliceable and unit.role != "cross")

    def level_refusal(self, level: Level) -> str:
        """Why nothing can be skipped at this level, "" = something can."""
        if level == "stack":
            return self.family.stack_refusal
        reasons = {row.refusal for row in self.family.block_lists}
        return "; ".join(sorted(reasons)) if level == "block" and "" not in reasons else ""

    def units_with(self, roles: Collection[Role]) -> tuple[Unit, ...]:
        """The units that have one of these roles, in execution order."""
        return tuple(unit for unit in self.units if unit.role in roles)


def map_model(transformer: Any) -> ModelMap:
    """Maps a transformer of a known class, or of a subclass of one, also inside torch.compile's wrapper.

    Raises:
        UnsupportedModelError: The class is unknown or refused, or lacks an attribute of its row.
    """
    transformer = unwrapped(transformer)
    family = _family_of(transformer)
    blocks = tuple(
        _map_block(index, name, module, row, family)
        for index, (name, module, row) in enumerate(_blocks_in_order(transformer, family))
    )
    return ModelMap(transformer, family, blocks)


def transformers_of(pipe_or_transformer: Any) -> dict[str, nn.Module]:
    """The transformers of a pipeline by component, "transformer" and "transformer_2"; a module counts as the first.

    Raises:
        UnsupportedModelError: There is no transformer.
    """
    if isinstance(pipe_or_transformer, nn.Module):
        return {"transformer": pipe_or_transformer}
    found = {name: _component(pipe_or_transformer, name) for name in _TRANSFORMER_NAMES}
    modules = {name: module for name, module in found.items() if isinstance(module, nn.Module)}
    if not modules:
        raise UnsupportedModelError(
            "a diffusers pipeline with a transformer, or a transformer",
            f"a {type(pipe_or_transformer).__name__} without one",
            "pass the pipeline or its transformer, loaded",
        )
    return modules


def _component(pipe: Any, name: str) -> Any:
    # The attribute first: diffusers' `components` raises for a pipeline that was given extra attributes.
    component = getattr(pipe, name, None)
    if component is None:
        components = getattr(pipe, "components", None)
        component = components.get(name) if isinstance(components, Mapping) else None
    return component


def unwrapped(module: Any) -> Any:
    """A module without the wrappers that torch.compile puts around it."""
    while isinstance(module, nn.Module) and isinstance(getattr(module, "_orig_mod", None), nn.Module):
        module = module._orig_mod
    return module


def _family_of(transformer: Any) -> Family:
    if isinstance(transformer, nn.Module):
        for ancestor in type(transformer).__mro__:
            family = family_named(ancestor.__name__)
            if family is not None and family.refusal:
                raise UnsupportedModelError(f"UniCP on {family.transformer}", family.refusal, "use it without UniCP")
            if family is not None:
                return family
        base = getattr(transformer, "get_base_model", None)
        if callable(base) and family_named(type(base()).__name__) is not None:
            found = f"a {type(transformer).__name__} around a {type(base()).__name__}"
            do = "pass model.get_base_model(), which has its adapters, or the pipeline with load_lora_weights"
            raise UnsupportedModelError("a transformer UniCP knows", found, do)
        found = type(transformer).__name__
    else:
        found = f"a {type(transformer).__name__}, which is no torch module"
    raise UnsupportedModelError("a transformer UniCP knows", found, _NEW_MODEL)


def _blocks_in_order(transformer: nn.Module, family: Family) -> list[tuple[str, nn.Module, BlockListRow]]:
    lists = [
        [
            (f"{row.attribute}.{place}", module, row)
            for place, module in enumerate(_block_list(transformer, row, family))
        ]
        for row in family.block_lists
    ]
    if family.interleaved:
        # Without strict: the transformers zip their lists too, so that the shortest one ends the run.
        return [entry for turn in zip(*lists, strict=False) for entry in turn]
    return [entry for entries in lists for entry in entries]


def _block_list(transformer: nn.Module, row: BlockListRow, family: Family) -> list[nn.Module]:
    blocks = getattr(transformer, row.attribute, None)
    if not isinstance(blocks, nn.ModuleList):
        raise _changed(family, f"a list of blocks in {row.attribute}", f"{_described(blocks)} there")
    return list(blocks)


def _map_block(index: int, name: str, module: nn.Module, row: BlockListRow, family: Family) -> Block:
    units = []
    for unit_row in row.units:
        unit_name = f"{name}.{unit_row.attribute}"
        unit_module = _inside(module, unit_row.attribute)
        if unit_module is _MISSING:
            raise _changed(family, f"{unit_name} ({unit_row.role})", f"a {type(module).__name__} without it")
        if unit_module is None or (unit_row.needs and getattr(module, unit_row.needs, None) is None):
            continue
        if not isinstance(unit_module, nn.Module):
            raise _changed(family, f"{unit_name} ({unit_row.role})", f"{_described(unit_module)} there")
        units.append(_map_unit(unit_name, unit_module, unit_row, index))
    return Block(name, module, index, tuple(units), row)


def _inside(module: nn.Module, dotted: str) -> Any:
    found: Any = module
    for name in dotted.split("."):
        found = getattr(found, name, _MISSING)
    return found


def _map_unit(name: str, module: nn.Module, row: UnitRow, block: int) -> Unit:
    if row.role == "feed_forward":
        heads, head_width, why_not = None, None, "no attention"
    else:
        heads, head_width = _head_shape(module)
        why_not = row.slice_refusal or ("" if head_width else "its heads cannot be told")
    return Unit(name, module, row.role, block, heads, head_width, not why_not, why_not, row.text_keys)


def _head_shape(attention: nn.Module) -> tuple[int | None, int | None]:
    """Heads and channels per head of an attention module; None = unknown."""
    # The names in Kandinsky's attention come second.
    heads = getattr(attention, "heads", getattr(attention, "num_heads", None))
    if not isinstance(heads, int) or heads < 1:
        return None, None
    inner = getattr(attention, "inner_dim", None)
    if not isinstance(inner, int):
        queries = getattr(attention, "to_q", getattr(attention, "to_query", None))
        inner = getattr(queries, "out_features", None)
    if not isinstance(inner, int) or inner % heads:
        return heads, None
    return heads, inner // heads


def _described(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _changed(family: Family, asked: str, found: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{asked} of {family.transformer}",
        found,
        "use the diffusers version UniCP is tested with, or correct the table row (see CONTRIBUTING)",
    )
