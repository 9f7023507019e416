"""Golden cases of every pipeline that the tests can build, in every way of using it."""

from __future__ import annotations

import functools
from typing import Any

import unicp
from tests.golden.case import Case, joined
from tests.pipelines.rows import Row
from tests.pipelines.table import ROWS

OFTEN = ("wan", "wan_two_experts", "cogvideox", "cogvideox_video", "ltx_long", "framepack", "flux_img2img", "sd3_pag")
# Whatever can be served is: errors of random weights are large, and runs of 6 steps short.
_ALL: dict[str, Any] = {"tolerance": 1e6, "weighting": "uniform", "first": 1, "store_factor": 64.0}
KINDS = {
    "forecasts": {"settings": unicp.preset("balanced", **_ALL)},
    "units": {"settings": unicp.Settings(**_ALL | {"level": "unit", "predictor": "reuse", "tolerance": 0.5})},
}
_built = functools.cache(Row.build)


def _case(row: Row, kind: str, options: dict[str, Any]) -> Case:
    build = functools.partial(_built, row)
    return Case(
        "pipelines",
        kind,
        row.name,
        row.name,
        build,
        lambda pipe: joined(row.call(pipe)),
        options,
        slow=row.name not in OFTEN,
    )


CASES = [_case(row, kind, options) for kind, options in KINDS.items() for row in ROWS]
