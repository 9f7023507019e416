"""One HTML file from measured rows: everything is in it, so it opens anywhere and needs nothing.

The same rows give the same bytes: no dates, no random names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unicp.errors import InputError
from unicp.files import replacing
from unicp.records import Trace
from unicp_bench.html import attention, clips, compared, header, pareto, settings_table, strips
from unicp_bench.html.comparison import SAME
from unicp_bench.html.markup import counted, script_json, tag, text_tag
from unicp_bench.html.parts import Part, Style, split, styles
from unicp_bench.rows import Row

_AT_SPEED = (
    "The best fidelity that each family reaches at a given saving. Every family is interpolated on its own sweep, "
    "linearly between the settings that no faster setting of it beats; nothing is extrapolated beyond the last (–). "
    "† the family, or the best peer, has no setting this slow, so its slowest counts. Settings above "
    f"{SAME:.0f} dB are not interpolated from. Peers are all other families; fixed window, a baseline of UniCP's own "
    "parts, and fewer steps, placed, the plain run at steps that a plan chose, are none."
)
_AT_FIDELITY = (
    "The largest saving that still keeps a mean PSNR, interpolated in the same way. The last column is UniCP's number "
    "over that of the best peer. Less compute is counted in operations and is not time."
)
_WORK = (
    "One strip per setting, from the first step (left) to the last (right): operations of each step as a share of a "
    "plain step, mean over the clips with the usual number of steps. A shade in between is a step that was done in "
    "part, or computed on some clips only. Methods with fewer steps have wider ones."
)
_TRACE = "What UniCP did with each unit at each step of one run. A gap: not called, because a larger span was served."
_CLIPS = (
    "For each family its setting nearest to 2x less compute and its worst clips by PSNR. The difference is taken in "
    "the browser between the two videos as they are stored (compressed), and amplified."
)


@dataclass
class Extras:
    """What a report shows besides rows; None = not asked for."""

    attention: attention.AttentionChange | None = None
    trace: Trace | None = None
    clips: clips.Clips | None = None


def write_report(rows: Sequence[Row], out: Path, extras: Extras | None = None) -> None:
    """Writes the report; the file at `out` is the old one or the whole new one. Raises InputError."""
    text = page(rows, extras or Extras())
    with replacing(out) as part:
        # Half a surrogate pair, which a prompt in JSON may hold, has no UTF-8.
        part.write_text(text, encoding="utf-8", errors="replace")


def page(rows: Sequence[Row], extras: Extras) -> str:
    """The whole document. Raises InputError where there are no rows, or clips do not fit to them."""
    if not rows:
        raise InputError("a report of measured rows", "no rows", "measure first: unicp bench quick")
    parts = split(rows)
    style = styles(parts)
    if extras.clips is not None:
        clips.check_clips(extras.clips, parts)
    sections = _sections(parts, style, extras)
    content = "".join(_section(title, about, inner) for title, about, inner in sections)
    links = [text_tag("a", title, href=f"#{_anchor(title)}") for title, _, _ in sections]
    top = header.header(rows, parts, tag("nav", "".join(links), aria_label="Contents"))
    body = tag("main", top + content)
    body += '<div id="tip" role="status" hidden></div>' + script_json(pareto.tooltips(parts), id="tips")
    scripts = _asset("page.js") + (_asset("clips.js") if extras.clips is not None else "")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"{text_tag('title', header.title(parts))}<style>{_asset('page.css')}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}<script>{scripts}</script></body></html>\n'


def _sections(parts: Sequence[Part], style: Mapping[str, Style], extras: Extras) -> list[tuple[str, str, str]]:
    """Heading, introduction and HTML of each section."""

    def per_part(make: Callable[[Part], str]) -> str:
        pieces = [(index, part, make(part)) for index, part in enumerate(parts)]
        return "".join(
            tag("div", text_tag("h3", part.name) + _clips(part) + inner, class_="part", data_part=index)
            for index, part, inner in pieces
            if inner
        )

    measured = any(part.groups for part in parts)
    found: list[tuple[str, str, str]] = []
    if measured:
        about = (
            "Up and to the right is better. Each dot is a setting; the line joins those that no faster setting beats. "
            f"Figures end at {pareto.TOP:g} dB, {pareto.SPAN:g} dB below their top, and {pareto.FASTEST:g}x at most; "
            "what lies beyond is counted below each."
        )
        found += [
            ("Fidelity against compute", about, per_part(lambda part: pareto.pareto(part, style))),
            ("Best fidelity at equal compute", _AT_SPEED, per_part(compared.best_at_speed)),
            ("Least compute at equal fidelity", _AT_FIDELITY, per_part(compared.best_at_fidelity)),
        ]
    about = "Click a heading to sort. The plain run stays in the first line."
    found.append(("All settings", about, per_part(_tables)))
    if measured:
        found.append(("Where the work went", _WORK, per_part(strips.work_strips)))
    if extras.trace is not None:
        found.append(("Decisions of one run", _TRACE, strips.trace_map(extras.trace)))
    if extras.attention is not None:
        about = "Low change in the middle of a run is what caching lives on; the two ends are where it must not skip."
        found.append(("How much attention changes", about, attention.attention_figure(extras.attention)))
    if extras.clips is not None:
        from unicp_bench.sweep import clip_file  # loads torch, which nothing else here needs

        found.append(("Worst clips", _CLIPS, clips.worst_clips(parts, extras.clips, clip_file)))
    return found


def _clips(part: Part) -> str:
    return text_tag("p", f"{counted(part.clips, 'clip')}, the same for every setting.", class_="note")


def _tables(part: Part) -> str:
    table = settings_table.settings_table(part) if part.groups or part.plain else ""
    return table + settings_table.failures_table(part.failures)


def _section(title: str, about: str, inner: str) -> str:
    return tag("section", text_tag("h2", title, id=_anchor(title)) + text_tag("p", about, class_="about") + inner)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
