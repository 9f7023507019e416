"""Which adapters (LoRA) a transformer runs with: outputs kept under others must not be used."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import nn


def adapters_in_use(transformer: nn.Module) -> Hashable:
    """Active adapters with their scales and weights, merged or not; () without any. Changes when any of them does.

    Duck-typed after peft's layers. diffusers marks models that have adapters.
    """
    if not getattr(transformer, "_hf_peft_config_loaded", False):
        return ()
    return tuple(_of_layer(module) for module in transformer.modules() if isinstance(_scales(module), dict))


def _scales(module: Any) -> Any:
    return getattr(module, "scaling", None)


def _of_layer(layer: Any) -> Hashable:
    active = tuple(getattr(layer, "active_adapters", ()))
    weights: list[Hashable] = []
    for name in ("lora_A", "lora_B"):
        kept = getattr(layer, name, {})
        # Swapping an adapter in place changes the weight's memory or its version.
        found = [getattr(kept[one], "weight", None) for one in active if one in kept]
        weights += [(weight.data_ptr(), weight._version) for weight in found if weight is not None]
    merged = tuple(getattr(layer, "merged_adapters", ()))
    return active, tuple(_scales(layer).items()), merged, bool(getattr(layer, "disable_adapters", False)), *weights
