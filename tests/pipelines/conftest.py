"""What the suite of pipelines notes for docs/models.md; `tests.matrix` writes it down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.pipelines.rows import Row


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Writes down what came of a row."""

    def write(row: Row, **found: Any) -> None:
        known = {"pipeline": row.pipeline, "way": row.way, "guidance": row.guidance}
        record_property("pipeline", [row.name, known | found])

    return write
