"""The worst clips of every family beside the plain ones, as videos inside the file."""

from __future__ import annotations

import base64
import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unicp.errors import InputError
from unicp_bench.html.comparison import METRIC
from unicp_bench.html.markup import counted, number, script_json, speed, tag, text_tag, void_tag
from unicp_bench.html.parts import Part, is_ours
from unicp_bench.rows import Row
from unicp_bench.statistics import Group, is_paired

WORST, NEAREST = 6, 2.0
FALLBACK = (3, 2)


@dataclass
class Clips:
    """Kept clips of a folder. videos: base64 of those that the report shows, each once."""

    folder: Path
    worst: int = WORST
    families: tuple[str, ...] = ()
    videos: dict[str, str] = field(default_factory=dict)
    missing: int = 0

    def take(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Takes clips that belong together into the report; their sizes, [] where the folder lacks one of them."""
        files = [self.folder / name for name in names]
        absent = sum(not os.path.isfile(file) for file in files)
        self.missing += absent
        if absent:
            return []
        sizes = []
        for name, file in zip(names, files):
            try:
                data = file.read_bytes()
            except OSError as error:
                raise InputError(f"the clip {file}", str(error), "make it readable") from None
            self.videos.setdefault(name, base64.b64encode(data).decode("ascii"))
            sizes.append(video_size(data))
        return sizes


def check_clips(clips: Clips, parts: Sequence[Part]) -> None:
    """Raises InputError where there is no such folder or family."""
    if not clips.folder.is_dir():
        raise InputError(f"clips in {clips.folder}", "no such folder", "name the folder of `unicp bench --clips`")
    known = dict.fromkeys(family for part in parts for family in part.families)
    for family in clips.families:
        if family not in known:
            raise InputError(f"clips of {family!r}", f"the families {', '.join(known)}", "name one of them")


def worst_clips(parts: Sequence[Part], clips: Clips, file_name: Callable[[Row], str]) -> str:
    """Panels of all parts, and the videos. Raises InputError where the folder has none of these clips."""
    body = ""
    for part in parts:
        panels = [_panel(part, group, clips, file_name) for group in _chosen(part, clips.families)]
        if any(panels):
            body += text_tag("h3", part.name) + "".join(panels)
    if not clips.videos:
        do = "name the folder that `unicp bench --clips` filled with these rows"
        raise InputError(f"clips in {clips.folder}", "none of the clips of these rows", do)
    if clips.missing:
        body += text_tag("p", f"Not in the folder: {counted(clips.missing, 'clip')}.", class_="note")
    return body + script_json(clips.videos, id="videos")


def nearest(groups: Sequence[Group]) -> Group:
    """The setting that takes about half the compute; of two equally near ones the first."""
    # By ratio: 1x is as far from 2x as 4x is.
    return min(groups, key=lambda group: abs(math.log(max(1e-9, group.operations) / NEAREST)))


def worst_rows(group: Group, count: int) -> list[Row]:
    """The clips of lowest PSNR, worst first; those without one come last."""

    def worth(row: Row) -> float:
        value = row.fidelity.get(METRIC, math.nan)
        return math.inf if math.isnan(value) else value

    return sorted(group.rows, key=worth)[:count]


def video_size(data: bytes) -> tuple[int, int]:
    """Width and height from the track header of an mp4; 3:2 where it has none."""
    place = data.find(b"tkhd")
    if place < 4:
        return FALLBACK
    (length,) = struct.unpack(">I", data[place - 4 : place])
    end = place - 4 + length
    if length < 92 or end > len(data):
        return FALLBACK
    # The last two fields, as 16.16 fixed-point numbers.
    width, height = (value >> 16 for value in struct.unpack(">II", data[end - 8 : end]))
    return (width, height) if width and height else FALLBACK


def _chosen(part: Part, families: Sequence[str]) -> list[Group]:
    return [nearest(groups) for family, groups in part.families.items() if not families or family in families]


def _panel(part: Part, group: Group, clips: Clips, file_name: Callable[[Row], str]) -> str:
    plain: Mapping[tuple[str, int], Row] = {(r.prompt, r.seed): r for r in part.plain.rows} if part.plain else {}
    cards = ""
    for row in worst_rows(group, clips.worst):
        reference = plain.get((row.prompt, row.seed))
        if reference is not None:
            cards += _card(row, file_name(reference), file_name(row), clips)
    if not cards:
        return ""
    numbers = f"{speed(group.operations)} less compute, {number(group.mean(METRIC))} dB mean"
    title = text_tag("b", group.name) + " " + text_tag("span", numbers, class_="muted")
    opened = {"open": "open"} if is_ours(group.method) else {}
    return tag("details", tag("summary", title) + tag("div", cards, class_="cards"), class_="panel", **opened)


def _card(row: Row, plain: str, fast: str, clips: Clips) -> str:
    sizes = clips.take((plain, fast))
    if not sizes:
        return ""
    shape = sizes[0]
    ratio = f"aspect-ratio:{shape[0]}/{shape[1]}"
    panes = ""
    for kind, name in (("plain", plain), ("accelerated", fast)):
        video = tag(
            "video",
            data_video=name,
            muted="muted",
            playsinline="playsinline",
            preload="auto",
            aria_label=f"{kind}: {row.prompt}",
        )
        panes += tag("div", tag("div", video, class_="frame", style=ratio) + text_tag("span", kind), class_="pane")
    canvas = tag("canvas", width=shape[0], height=shape[1], role="img", aria_label="difference of the two, amplified")
    gain = tag("output", "8x")
    panes += tag(
        "div", tag("div", canvas, class_="frame", style=ratio) + tag("span", f"difference, {gain}"), class_="pane"
    )
    caption = text_tag("p", row.prompt, class_="prompt") + text_tag("p", _numbers(row), class_="muted small")
    return tag("div", caption + tag("div", panes, class_="panes") + _controls(), class_="card")


def _numbers(row: Row) -> str:
    found = [f"seed {row.seed}", f"PSNR {number(row.fidelity.get(METRIC))} dB"]
    found += [f"{name} {number(row.fidelity[key], 3)}" for key, name in (("ssim", "SSIM"),) if key in row.fidelity]
    found += [f"VMAF {number(row.fidelity['vmaf'])}"] if "vmaf" in row.fidelity else []
    found += [f"{speed(row.full_operations / max(1, row.operations))} less compute"]
    found += [f"{speed(row.plain_seconds / row.seconds)} in seconds"] if is_paired(row) else []
    return ", ".join(found)


def _controls() -> str:
    play = text_tag("button", "Play", type="button", class_="play")
    scrub = void_tag("input", type="range", min="0", max="1000", value="0", class_="scrub", aria_label="Time")
    gain = void_tag("input", type="range", min="1", max="32", value="8", class_="gain", aria_label="Amplification")
    return tag("div", play + scrub + tag("label", text_tag("span", "difference ×") + gain), class_="controls")
