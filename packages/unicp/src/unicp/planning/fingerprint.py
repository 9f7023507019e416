"""What a profile is valid for, read off a transformer and a scheduler without importing either's library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from unicp.files import json_ready
from unicp.planning.profile import Fingerprint


def fingerprint_of(transformer: Any, scheduler: Any, prediction: str, branches: int) -> Fingerprint:
    """The fingerprint of a model as it stands. branches: calls a step; 0 = not known yet."""
    return Fingerprint(
        model=type(transformer).__name__,
        config=_config_hash(getattr(transformer, "config", None)),
        dtype=str(getattr(transformer, "dtype", "unknown")).removeprefix("torch."),
        prediction=prediction,
        scheduler=type(scheduler).__name__,
        branches=branches,
    )


def _config_hash(config: Any) -> str:
    """Twelve digits that change with any setting of the model, but not with where and when it was saved."""
    values = dict(config) if isinstance(config, Mapping) else {}
    values = {key: value for key, value in values.items() if not key.startswith("_")}
    text = json.dumps(json_ready(values), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
