"""UniCP: training-free acceleration of diffusers video pipelines by caching and slicing under one error rule.

with unicp.enable(pipe, "balanced") as session:
    video = pipe(prompt).frames
print(session.summary())
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unicp.calibration.calibrating import calibrate as calibrate
    from unicp.context import Decision as Decision
    from unicp.context import Forecast as Forecast
    from unicp.context import Observation as Observation
    from unicp.context import RunInfo as RunInfo
    from unicp.context import StepContext as StepContext
    from unicp.errors import UniCPError as UniCPError
    from unicp.models.families import BlockListRow as BlockListRow
    from unicp.models.families import Family as Family
    from unicp.models.families import UnitRow as UnitRow
    from unicp.models.families import register as register
    from unicp.planning.plan import Plan as Plan
    from unicp.planning.plan import load_plan as load_plan
    from unicp.policies.base import CachePolicy as CachePolicy
    from unicp.policies.base import register_policy as register_policy
    from unicp.predictors.base import Point as Point
    from unicp.predictors.base import Predictor as Predictor
    from unicp.predictors.base import PredictorInfo as PredictorInfo
    from unicp.predictors.base import register_predictor as register_predictor
    from unicp.records import Trace as Trace
    from unicp.records import load_trace as load_trace
    from unicp.reducers.attention_call import AttentionCall as AttentionCall
    from unicp.reducers.base import AttentionReducer as AttentionReducer
    from unicp.reducers.base import Reduced as Reduced
    from unicp.reducers.base import register_reducer as register_reducer
    from unicp.reporting.summary import Summary as Summary
    from unicp.session import Session as Session
    from unicp.session import disable as disable
    from unicp.session import enable as enable
    from unicp.settings import Settings as Settings
    from unicp.settings import Slicing as Slicing
    from unicp.settings import preset as preset

__version__ = "0.1.0"

_HOMES = {
    "AttentionCall": "reducers.attention_call",
    "AttentionReducer": "reducers.base",
    "BlockListRow": "models.families",
    "CachePolicy": "policies.base",
    "calibrate": "calibration.calibrating",
    "Decision": "context",
    "Forecast": "context",
    "Observation": "context",
    "Point": "predictors.base",
    "Predictor": "predictors.base",
    "PredictorInfo": "predictors.base",
    "Reduced": "reducers.base",
    "RunInfo": "context",
    "StepContext": "context",
    "register_policy": "policies.base",
    "register_predictor": "predictors.base",
    "register_reducer": "reducers.base",
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
    "AttentionCall",
    "AttentionReducer",
    "BlockListRow",
    "CachePolicy",
    "Decision",
    "Family",
    "Forecast",
    "Observation",
    "Plan",
    "Point",
    "Predictor",
    "PredictorInfo",
    "Reduced",
    "RunInfo",
    "Session",
    "Settings",
    "Slicing",
    "StepContext",
    "Summary",
    "Trace",
    "UniCPError",
    "UnitRow",
    "__version__",
    "calibrate",
    "disable",
    "enable",
    "load_plan",
    "load_trace",
    "preset",
    "register",
    "register_policy",
    "register_predictor",
    "register_reducer",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `import unicp` and the command line's help stay quick.
    if name not in _HOMES:
        raise AttributeError(f"module 'unicp' has no attribute {name!r}")
    return getattr(importlib.import_module(f"unicp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
