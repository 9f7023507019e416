"""Reads what `experiments.attention_change` measured: the paper's U shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from unicp.errors import FileFormatError
from unicp.files import MisfitError, Step, Within, read_as, read_json

_Change = Annotated[float, Within(0, 1e12)]


@dataclass(frozen=True)
class AttentionChange:
    """Relative change of attention outputs between neighbouring steps.

    change: by unit and step; the first step has none before it.
    """

    units: list[str]
    change: list[list[_Change]]
    model: str = ""
    sampler: str = ""
    steps: Step = 0
    clips: Step = 0

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.change}
        if len(self.change) != len(self.units) or len(widths) != 1 or min(widths) < 2:
            raise FileFormatError("changes of attention", "no table of units and steps", "measure again")

    @property
    def mean(self) -> list[float]:
        """Mean over units of each step."""
        return [sum(step) / len(self.change) for step in zip(*self.change)]


def load_attention(file: Path) -> AttentionChange:
    """Reads a file of `experiments.attention_change`.

    Raises:
        InputError: It cannot be read.
        FileFormatError: It is damaged.
    """
    record = read_json(file)
    try:
        return read_as(AttentionChange, record)
    except MisfitError as error:
        do = "name a file written by python -m experiments.attention_change"
        raise FileFormatError(f"changes of attention in {file}", str(error), do) from error
