"""Commands and test-beds of other installed packages, found through entry points."""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Protocol

COMMANDS, TESTBEDS = "unicp.commands", "unicp.testbeds"


class ShippedPipeline(Protocol):
    """A pipeline that a package ships, under a name in the group `unicp.testbeds`."""

    @property
    def folder(self) -> Path:
        """The folder of the pipeline, which `DiffusionPipeline.from_pretrained` loads."""
        ...

    def prompts(self, split: str) -> tuple[str, ...]:
        """Prompts that the pipeline understands. split: "calibration" = for profiles."""
        ...


def entry_points(group: str) -> dict[str, EntryPoint]:
    """Entry points of installed packages in a group (COMMANDS or TESTBEDS), by name. Imports none of them."""
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}


def shipped_pipeline(name: str) -> ShippedPipeline | None:
    """The test-bed of this name; `None` if no installed package has one."""
    point = entry_points(TESTBEDS).get(name)
    return None if point is None else point.load()
