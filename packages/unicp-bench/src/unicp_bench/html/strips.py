"""Maps of what was done at which step: how much work each method spends where, and the actions of one trace."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from unicp.context import Action
from unicp.records import Trace
from unicp_bench.html.markup import number, scroll, speed, tag, text_tag
from unicp_bench.html.parts import Part, is_ours
from unicp_bench.statistics import Group

LEVELS = 10
# UniCP's parts, outermost last: a call that a larger span served never reaches the smaller one.
_ACTIONS = {
    Action.FULL: "computed in full",
    Action.SLICE: "attention on fewer channels",
    Action.FORECAST: "forecast, not computed",
    Action.REUSE: "the last output again",
}


def work_strips(part: Part) -> str:
    """One strip per setting: the work of each step as a share of a plain step, mean over clips."""
    rows = []
    shown = [part.plain] if part.plain else []
    before = ""
    for group in [*shown, *(group for groups in part.families.values() for group in groups)]:
        work = mean_work(group)
        if work:
            rows.append(_work_row(group, work, group.method != before))
            before = group.method
    if not rows:
        return text_tag("p", "These rows do not say how much work each step took.")
    return _scale() + tag("div", "".join(rows), class_="strips")


def mean_work(group: Group) -> list[float]:
    """Work by step, mean over the clips that have the usual number of steps; [] where no row says it."""
    rows = [row.work for row in group.rows if row.work]
    if not rows:
        return []
    usual = Counter(len(work) for work in rows).most_common(1)[0][0]
    return [statistics.fmean(values) for values in zip(*(work for work in rows if len(work) == usual))]


def trace_map(trace: Trace) -> str:
    """What every unit did at every step of the last run, one line per unit and branch."""
    last = max((entry.run for entry in trace.entries), default=0)
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for entry in trace.entries:
        if entry.run == last:
            cells.setdefault((entry.unit, entry.branch), {})[entry.step] = entry.action
    if not cells:
        return text_tag("p", "The trace has no entries: the model was not called.")
    steps = 1 + max(step for row in cells.values() for step in row)
    lines = "".join(_trace_row(*name, row, steps) for name, row in cells.items())
    used = {action for row in cells.values() for action in row.values()}
    about = f"{trace.model}, preset {trace.preset or 'own settings'}, {trace.device}, {trace.dtype}. "
    about += f"Last run, {steps} steps."
    return (
        text_tag("p", about)
        + _action_legend(used)
        + scroll("Actions by unit and step", tag("div", lines, class_="strips trace"), "tall")
    )


def _work_row(group: Group, work: Sequence[float], begins: bool) -> str:
    levels = [str(round(LEVELS * min(1.0, max(0.0, value)))) for value in work]
    strip = _strip(
        [f"w{level}" for level in levels],
        f"{group.name}: work of {len(work)} steps, mean {number(sum(work) / len(work), 2)}",
    )
    values = ",".join(f"{value:.2f}" for value in work)
    cells = text_tag("span", group.name, class_="label") + tag("span", strip, class_="strip", data_w=values)
    cells += text_tag("span", speed(group.operations), class_="num")
    return tag(
        "div",
        cells,
        class_="strip-row" + (" ours-row" if is_ours(group.method) else "") + (" begins" if begins else ""),
    )


def _trace_row(unit: str, branch: str, row: Mapping[int, str], steps: int) -> str:
    actions = [row.get(step, "") for step in range(steps)]
    counts = Counter(action for action in actions if action)
    said = ", ".join(f"{count} {action}" for action, count in counts.items())
    strip = _strip([f"a-{action}" if action else "" for action in actions], f"{unit}, {branch}: {said}")
    cells = text_tag("span", f"{unit} · {branch}" if branch else unit, class_="label")
    cells += tag("span", strip, class_="strip", data_w=",".join(action or "not called" for action in actions))
    return tag("div", cells, class_="strip-row")


def _strip(looks: Sequence[str], label: str) -> str:
    """One rectangle per step; those that look alike share a path, which keeps the file small."""
    alike: dict[str, list[int]] = {}
    for index, look in enumerate(looks):
        if look:
            alike.setdefault(look, []).append(index)
    paths = "".join(
        tag("path", class_=look, d="".join(f"M{index} 0h1v1h-1z" for index in places))
        for look, places in sorted(alike.items())
    )
    return tag("svg", paths, viewBox=f"0 0 {len(looks)} 1", preserveAspectRatio="none", role="img", aria_label=label)


def _scale() -> str:
    steps = "".join(tag("i", class_=f"w{level}") for level in range(LEVELS + 1))
    return tag("p", f"nothing {tag('span', steps, class_='ramp', aria_hidden='true')} a full step", class_="key")


def _action_legend(used: set[str]) -> str:
    words = [
        (f"a-{action.value}", f"{action.value}: {about}") for action, about in _ACTIONS.items() if action.value in used
    ]
    items = "".join(tag("span", tag("i", class_=look) + text_tag("span", text)) for look, text in words)
    return tag("p", items, class_="key actions")
