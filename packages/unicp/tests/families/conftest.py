"""What the contract suite notes for docs/models.md; `tests.matrix` writes it down."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import tiny_models


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "test_contract" in item.nodeid and {"name", "kind"} <= set(parameters):
            name = type(tiny_models.shared(parameters["name"])).__name__
            item.user_properties.append(("contract", [name, parameters["kind"]]))


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Writes down for docs/models.md what came of a combination on a model."""

    def write(what: str, name: str, outcome: str = "works") -> None:
        record_property("combined", [what, type(tiny_models.shared(name)).__name__, outcome])

    return write
