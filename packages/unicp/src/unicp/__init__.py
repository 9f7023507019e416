"""UniCP: training-free acceleration of diffusers video pipelines by caching and slicing under one error rule.

with unicp.enable(pipe, "balanced") as session:
    video = pipe(prompt).frames
print(session.summary())
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unicp.errors import UniCPError as UniCPError
    from unicp.models.families import BlockListRow as BlockListRow
    from unicp.models.families import Family as Family
    from unicp.models.families import UnitRow as UnitRow
    from unicp.models.families import register as register
    from unicp.planning.plan import Plan as Plan
    from unicp.planning.plan import load_plan as load_plan
    from unicp.records import Trace as Trace
    from unicp.records import load_trace as load_trace
    from unicp.reporting.summary import Summary as Summary
    from unicp.session import Session as Session
    from unicp.session import disable as disable
    from unicp.session import enable as enable
    from unicp.settings import Settings as Settings
    from unicp.settings import Slicing as Slicing
    from unicp.settings import preset as preset

__version__ = "0.1.0"

_HOMES = {
    "BlockListRow": "models.families",
    "Family": "models.families",
    "UnitRow": "models.families",
    "register": "models.families",
    "UniCPError": "errors",
    "load_trace": "records",
    "Plan": "planning.plan",
    "load_plan": "planning.plan",
    "Trace": "records",
    "Summary": "reporting.summary",
    "Session": "session",
    "disable": "session",
    "enable": "session",
    "Settings": "settings",
    "Slicing": "settings",
    "preset": "settings",
}
__all__ = [
    "BlockListRow",
    "Family",
    "Plan",
    "Session",
    "Settings",
    "Slicing",
    "Summary",
    "Trace",
    "UniCPError",
    "UnitRow",
    "__version__",
    "disable",
    "enable",
    "load_plan",
    "load_trace",
    "preset",
    "register",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `import unicp` and the command line's help stay quick.
    if name not in _HOMES:
        raise AttributeError(f"module 'unicp' has no attribute {name!r}")
    return getattr(importlib.import_module(f"unicp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
