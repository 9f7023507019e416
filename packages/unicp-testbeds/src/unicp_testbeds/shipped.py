"""The test-beds for `unicp`: one object each, named in the entry-point group `unicp.testbeds`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unicp_testbeds import folder
from unicp_testbeds.prompts import prompts_of


@dataclass(frozen=True)
class ShippedPipeline:
    """A test-bed, as `unicp.cli.plugins.ShippedPipeline` describes."""

    name: str

    @property
    def folder(self) -> Path:
        """The folder, which `DiffusionPipeline.from_pretrained` loads."""
        return folder(self.name)

    def prompts(self, split: str) -> tuple[str, ...]:
        """The prompts of a split: "table", "tuning" or "calibration"."""
        return prompts_of(split, self.name)


glyphs = ShippedPipeline("glyphs")
latte = ShippedPipeline("latte")
film = ShippedPipeline("film")
letters = ShippedPipeline("letters")
ripples = ShippedPipeline("ripples")
stickers = ShippedPipeline("stickers")
chimes = ShippedPipeline("chimes")
