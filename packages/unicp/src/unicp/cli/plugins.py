"""What other installed packages add: commands of the command line, and test-beds. Found through entry points."""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Protocol

COMMANDS, TESTBEDS = "unicp.commands", "unicp.testbeds"


class ShippedPipeline(Protocol):
    """A pipeline that a package brings with it: what a name in the group `unicp.testbeds` stands for."""

    @property
    def folder(self) -> Path:
        """The folder of the pipeline, which `DiffusionPipeline.from_pretrained` loads."""
        ...

    def prompts(self, split: str) -> tuple[str, ...]:
        """Prompts that the pipeline understands. split: "calibration" for those that profiles are made from."""
        ...


def entry_points(group: str) -> dict[str, EntryPoint]:
    """What installed packages offer in a group (COMMANDS or TESTBEDS), by name. Imports none of it."""
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}


def shipped_pipeline(name: str) -> ShippedPipeline | None:
    """The test-bed of this name, None where no installed package has one."""
    point = entry_points(TESTBEDS).get(name)
    return None if point is None else point.load()
