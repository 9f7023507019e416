"""Golden cases of every family: a tiny transformer of each in a loop, under every preset and level."""

from __future__ import annotations

import functools
from typing import Any

import unicp
from tests import tiny_models
from tests.golden.case import Case

STEPS = 10
# One of each topology, for the part that is run often.
OFTEN = ("wan", "cogvideox", "latte", "ltx", "hunyuan_video", "flux", "wan_vace", "kandinsky6", "sana_video", "ltx2")
_UNITS: dict[str, Any] = {"level": "unit", "roles": ("self", "spatial", "temporal", "joint", "cross", "feed_forward")}


def _level(order: int, **changes: Any) -> unicp.Settings:
    # Room for every unit, so that no coarser span takes over; random weights make large errors.
    loose: dict[str, Any] = {"tolerance": 0.5, "weighting": "uniform", "store_factor": 64.0}
    loose["predictor"] = ("reuse", "line")[order]
    return unicp.Settings(**loose | changes)


_SLICES = unicp.Slicing(widths=(8,), tolerance=1.0, min_saving=-1e6)
KINDS: dict[str, dict[str, Any]] = {
    **{name: {"settings": name} for name in ("paper", "quality", "balanced", "fast")},
    **{f"model, order {order}": {"settings": _level(order)} for order in (0, 1)},
    **{
        f"{span}, order {order}": {"settings": _level(order, level=span)}
        for span in ("stack", "block")
        for order in (0, 1)
    },
    **{f"unit, order {order}": {"settings": _level(order, **_UNITS)} for order in (0, 1)},
    # Small enough a tolerance that units are computed at many steps, where slices show.
    "unit, slices": {"settings": _level(0, **_UNITS | {"tolerance": 0.02, "slicing": _SLICES})},
    "every third step": {"settings": _level(1, full_every=3)},
    "own scheduler": {"settings": "balanced"},
}


def _case(name: str, kind: str, options: dict[str, Any]) -> Case:
    own = kind == "own scheduler"

    def call(model: Any) -> Any:
        scheduler = tiny_models.flow_scheduler(name) if own else None
        return tiny_models.denoise(model, name, steps=STEPS, scheduler=scheduler)

    plain = f"{name}, own scheduler" if own else name
    build = functools.partial(tiny_models.shared, name)
    return Case("families", kind, name, plain, build, call, options, slow=name not in OFTEN)


CASES = [_case(name, kind, options) for kind, options in KINDS.items() for name in tiny_models.NAMES]
