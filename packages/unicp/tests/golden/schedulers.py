"""Golden cases of every scheduler, on a tiny pipeline of each kind of prediction.

The list is that of the suite of schedulers, written down again so that these cases import nothing that changes.
"""

from __future__ import annotations

import functools
from typing import Any

import diffusers

import unicp
from tests.golden.case import Case, joined, seeded
from tests.pipelines.rows import LATENT, Row
from tests.pipelines.samplers import DIFFUSION, FLOW
from tests.pipelines.table import BY_NAME

STEPS = 12
SCHEDULERS = [
    *(("wan_unguided", "flow", kind, config) for kind, config in FLOW.items()),
    *(
        (row, prediction, kind, {"prediction_type": prediction})
        for row, prediction in (("allegro", "epsilon"), ("cogvideox", "v_prediction"))
        for kind in DIFFUSION
        # Its step takes more, which CogVideoX's pipelines alone give.
        if (row, kind) != ("allegro", "CogVideoXDPM")
    ),
]
OFTEN = (
    "FlowMatchEulerDiscrete",
    "UniPCMultistep",
    "DPMSolverMultistep",
    "DDIM",
    "HeunDiscrete",
    "PNDM",
    "CogVideoXDPM",
)
KINDS: dict[str, dict[str, Any]] = {
    "balanced": {"settings": "balanced"},
    "fast": {"settings": "fast"},
    "model, order 0": {
        "settings": unicp.Settings(predictor="reuse", tolerance=0.5, weighting="uniform", store_factor=64.0)
    },
    "unmended": {"settings": unicp.preset("fast", replay=False)},
    "replayed plan": {"settings": "fast"},
    "target": {"target": "speedup>=1.4"},
}


@functools.cache
def _row(name: str) -> Row:
    row = BY_NAME[name]
    return Row(name, row.pipeline, row.parts, row.given | {"guidance_scale": 1.0} | LATENT, steps=STEPS, calls=(1,))


@functools.cache
def _built(name: str) -> Any:
    return _row(name).build()


def with_scheduler(pipe: Any, kind: str, config: dict[str, Any]) -> Any:
    """The pipeline, with a new scheduler that keeps the variances that its own one was trained on."""
    known = {key: value for key, value in dict(pipe.scheduler.config).items() if key.startswith("beta")}
    new = getattr(diffusers, f"{kind.partition(',')[0]}Scheduler")
    pipe.scheduler = new.from_config(known | {"clip_sample": False, "skip_prk_steps": True} | config)
    return pipe


def _case(kind: str, options: dict[str, Any], name: str, prediction: str, scheduler: str, config: Any) -> Case:
    return Case(
        "schedulers",
        kind,
        f"{prediction}-{scheduler}",
        f"{prediction}-{scheduler}",
        lambda: with_scheduler(_built(name), scheduler, config),
        lambda pipe: seeded(lambda: joined(_row(name).call(pipe))),
        options,
        replay=kind == "replayed plan",
        slow=scheduler not in OFTEN,
    )


CASES = [_case(kind, options, *one) for kind, options in KINDS.items() for one in SCHEDULERS]
