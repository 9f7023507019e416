"""What the suite of pipelines notes for docs/models.md; `tests.matrix` writes it down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.pipelines.rows import Row, Unbuilt


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Writes down what came of a row."""

    def write(row: Row, **found: Any) -> None:
        known = {"pipeline": row.pipeline, "way": row.way, "guidance": row.guidance}
        record_property("pipeline", [row.name, known | found])

    return write


@pytest.fixture
def note_unbuilt(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Writes down a pipeline that is not tested."""

    def write(one: Unbuilt) -> None:
        told = {"pipeline": one.pipeline, "way": "", "guidance": "", "transformer": one.transformer}
        record_property("pipeline", [one.pipeline, told | {"result": f"not tested: {one.why}"}])

    return write
