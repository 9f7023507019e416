"""The worst clips of every family and their plain clips, as videos inside the file."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unicp.errors import InputError
from unicp_bench.comparison import METRIC
from unicp_bench.formats import number, speed
from unicp_bench.parts import Part
from unicp_bench.rows import Row, clip_file
from unicp_bench.statistics import Group, is_paired

WORST, NEAREST = 6, 2.0


@dataclass
class Clips:
    """Kept clips of a folder. videos: base64 of those that the report shows, each once."""

    folder: Path
    worst: int = WORST
    families: tuple[str, ...] = ()
    videos: dict[str, str] = field(default_factory=dict)
    missing: int = 0

    def take(self, names: Sequence[str]) -> bool:
        """Reads clips that belong together; False if the folder lacks one of them."""
        files = [self.folder / name for name in names]
        absent = sum(not os.path.isfile(file) for file in files)
        self.missing += absent
        if absent:
            return False
        for name, file in zip(names, files):
            try:
                data = file.read_bytes()
            except OSError as error:
                raise InputError(f"the clip {file}", str(error), "make it readable") from None
            self.videos.setdefault(name, base64.b64encode(data).decode("ascii"))
        return True


@dataclass(frozen=True)
class Card:
    """One clip beside the plain one. plain, fast: names of their videos."""

    row: Row
    plain: str
    fast: str

    @property
    def numbers(self) -> str:
        """All measured numbers in a line."""
        row, fidelity = self.row, self.row.fidelity
        found = [f"seed {row.seed}", f"PSNR {number(fidelity.get(METRIC, math.nan))} dB"]
        found += [f"SSIM {number(fidelity['ssim'], 3)}"] if "ssim" in fidelity else []
        found += [f"VMAF {number(fidelity['vmaf'])}"] if "vmaf" in fidelity else []
        found += [f"{speed(row.full_operations / max(1, row.operations))} less compute"]
        found += [f"{speed(row.plain_seconds / row.seconds)} in seconds"] if is_paired(row) else []
        return ", ".join(found)


@dataclass(frozen=True)
class Panel:
    """The worst clips of one setting."""

    group: Group
    cards: list[Card]


def check_clips(clips: Clips, parts: Sequence[Part]) -> None:
    """Checks that folder and families exist.

    Raises:
        InputError: They do not.
    """
    if not clips.folder.is_dir():
        raise InputError(f"clips in {clips.folder}", "no such folder", "name the folder of `unicp bench --clips`")
    known = dict.fromkeys(family for part in parts for family in part.families)
    for family in clips.families:
        if family not in known:
            raise InputError(f"clips of {family!r}", f"the families {', '.join(known)}", "name one of them")


def worst_clips(parts: Sequence[Part], clips: Clips) -> list[tuple[Part, list[Panel]]]:
    """Makes the panels of all parts, and reads their videos into `clips`.

    Raises:
        InputError: There is no panel.
    """
    found = []
    for part in parts:
        panels = [_panel(part, group, clips) for group in _chosen(part, clips.families)]
        found.append((part, [panel for panel in panels if panel.cards]))
    if not clips.videos:
        do = "name the folder that `unicp bench --clips` filled with these rows"
        raise InputError(f"clips in {clips.folder}", "none of the clips of these rows", do)
    return [(part, panels) for part, panels in found if panels]


def nearest(groups: Sequence[Group]) -> Group:
    """The setting nearest to half the compute; the first of equals."""
    # By ratio: 1x is as far from 2x as 4x is.
    return min(groups, key=lambda group: abs(math.log(max(1e-9, group.operations) / NEAREST)))


def worst_rows(group: Group, count: int) -> list[Row]:
    """The clips of lowest PSNR, worst first; those without one come last."""

    def worth(row: Row) -> float:
        value = row.fidelity.get(METRIC, math.nan)
        return math.inf if math.isnan(value) else value

    return sorted(group.rows, key=worth)[:count]


def _chosen(part: Part, families: Sequence[str]) -> list[Group]:
    return [nearest(groups) for family, groups in part.families.items() if not families or family in families]


def _panel(part: Part, group: Group, clips: Clips) -> Panel:
    plain = {(row.prompt, row.seed): row for row in part.plain.rows} if part.plain else {}
    cards = []
    for row in worst_rows(group, clips.worst):
        reference = plain.get((row.prompt, row.seed))
        if reference is not None:
            names = clip_file(reference), clip_file(row)
            cards += [Card(row, *names)] if clips.take(names) else []
    return Panel(group, cards)
