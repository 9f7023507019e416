"""The tables of who keeps most at a speed and who is fastest at a fidelity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unicp_bench.html.comparison import (
    FIDELITIES,
    SPEEDS,
    Comparison,
    Points,
    at_each_fidelity,
    at_each_speed,
    costs,
    fastest_at,
    fidelity_at,
    ratio,
    sweeps,
    verdict,
    worths,
)
from unicp_bench.html.markup import MISSING, number, scroll, signed, speed, tag, text_tag
from unicp_bench.html.parts import BASELINE, OURS, Part, is_ours, is_peer

Sweeps = Mapping[str, Mapping[str, Points]]  # by worth, then by family


def best_at_speed(part: Part) -> str:
    """The tables of one part: by compute, and by seconds where they may be compared, each with its sentence."""
    return "".join(_speed_table(part, cost) for cost in costs(part))


def best_at_fidelity(part: Part) -> str:
    """Largest speed-up of UniCP, its baseline and the best peer at each mean PSNR."""
    known = costs(part)
    found = {cost: sweeps(part, known[cost], worths(part.clips)["mean"]) for cost in known}
    results = {cost: at_each_fidelity(families) for cost, families in found.items()}
    groups = "".join(text_tag("th", cost, colspan="5", scope="colgroup") for cost in known)
    names = "".join(
        text_tag("th", name, scope="col", class_=look)
        for name, look in (
            (OURS, "first"),
            (BASELINE, None),
            ("best peer", None),
            ("which", "word"),
            ("UniCP : peer", None),
        )
    )
    head = tag("tr", tag("th", "mean PSNR", rowspan="2", scope="col") + groups) + tag("tr", names * len(known))
    body = []
    for index, fidelity in enumerate(FIDELITIES):
        cells = text_tag("th", f"{fidelity:g} dB", scope="row")
        for cost, rows in results.items():
            window = fastest_at(found[cost].get(BASELINE, ()), fidelity)
            cells += _fidelity_cells(rows[index], window)
        body.append(tag("tr", cells))
    label = f"{' and '.join(known)} at equal fidelity, {part.name}"
    return scroll(label, tag("table", tag("thead", head) + tag("tbody", "".join(body)), class_="compact"))


def _fidelity_cells(one: Comparison, window: float | None) -> str:
    cells = text_tag("td", speed(one.ours), class_="num ours-cell first") + text_tag("td", speed(window), class_="num")
    cells += text_tag("td", speed(one.peer), class_="num") + text_tag("td", one.peer_name or MISSING, class_="word")
    worse = one.ours is None and one.peer is not None
    lost = worse or (one.ours is not None and one.peer is not None and round(one.ours / one.peer, 2) < 1)
    return cells + text_tag("td", ratio(one), class_=f"num {'lost' if lost else 'won' if one.margin else ''}".strip())


def _speed_table(part: Part, cost: str) -> str:
    known = worths(part.clips)
    found = {worth: sweeps(part, costs(part)[cost], value) for worth, value in known.items()}
    results = {worth: at_each_speed(families) for worth, families in found.items()}
    reach = text_tag("th", "sweep", rowspan="2", scope="col", title="slowest to fastest setting that nothing beats")
    groups = "".join(text_tag("th", f"{at:g}x", colspan="2", scope="colgroup") for at in SPEEDS)
    names = "".join(text_tag("th", worth, scope="col", class_="first" if worth == "mean" else None) for worth in known)
    names *= len(SPEEDS)
    head = tag("tr", text_tag("th", "family", rowspan="2", scope="col") + reach + groups) + tag("tr", names)
    best = {(w, i): _best(found[w], at) for w in known for i, at in enumerate(SPEEDS)}
    body = "".join(_family_row(family, found, best) for family in _ordered(part, found["mean"]))
    foot = _margin_row(results, found) + _peer_row(results)
    table = tag("table", tag("thead", head) + tag("tbody", body) + tag("tfoot", foot), class_="compact")
    said = f"On {'this clip' if part.clips == 1 else f'these {part.clips} clips'}: {verdict(results, cost)}"
    heading = text_tag("h4", f"By {cost}") + text_tag("p", said, class_="verdict")
    return heading + scroll(f"Best fidelity by {cost}, {part.name}", table)


def _ordered(part: Part, found: Mapping[str, Points]) -> Sequence[str]:
    """Ours first, then peers by their fidelity at 2x and their reach, best first."""
    ours = [name for name in part.families if not is_peer(name)]
    peers = [name for name in part.families if name not in ours]

    def worth(name: str) -> tuple[float, float]:
        value = fidelity_at(found[name], 2.0)
        reach = found[name][-1][0] if found[name] else 0.0
        return (-1.0 if value is None else value, reach)

    return [*ours, *sorted(peers, key=worth, reverse=True)]


def _best(found: Mapping[str, Points], at: float) -> float | None:
    values = [value for points in found.values() if (value := fidelity_at(points, at)) is not None]
    return max(values, default=None)


def _family_row(family: str, found: Sweeps, best: Mapping[tuple[str, int], float | None]) -> str:
    points = found["mean"][family]
    span = f"{speed(points[0][0])} to {speed(points[-1][0])}" if points else MISSING
    cells = text_tag("th", family, scope="row") + text_tag("td", span, class_="num muted")
    for index, at in enumerate(SPEEDS):
        for worth in found:
            points = found[worth][family]
            value = fidelity_at(points, at)
            shown = number(value) + ("†" if value is not None and _is_slower(points, at) else "")
            top = value is not None and value == best[worth, index]
            classes = "num" + (" first" if worth == "mean" else "") + (" best" if top else "")
            cells += text_tag("td", shown, class_=classes)
    return tag("tr", cells, class_="ours-row" if is_ours(family) else "base-row" if family == BASELINE else None)


def _is_slower(points: Points, at: float) -> bool:
    """Whether a speed is below the slowest setting of a frontier, which then counts for it."""
    return bool(points) and at < points[0][0]


def _margin_row(results: Mapping[str, Sequence[Comparison]], found: Sweeps) -> str:
    cells = text_tag("th", "UniCP over the best peer, dB", scope="row") + tag("td")
    for index in range(len(SPEEDS)):
        for worth, rows in results.items():
            one = rows[index]
            look = "lost" if one.lost else "won" if one.margin is not None and not one.level else ""
            mark = "†" if _is_slower(found[worth].get(one.peer_name, ()), one.at) else ""
            shown = MISSING if one.margin is None else signed(one.margin) + mark
            cells += text_tag("td", shown, class_=f"num {look}{' first' if worth == 'mean' else ''}")
    return tag("tr", cells, class_="margin")


def _peer_row(results: Mapping[str, Sequence[Comparison]]) -> str:
    cells = text_tag("th", "the best peer", scope="row") + tag("td")
    for index in range(len(SPEEDS)):
        for worth, rows in results.items():
            name = rows[index].peer_name or MISSING
            cells += text_tag("td", name, class_="word small" + (" first" if worth == "mean" else ""))
    return tag("tr", cells, class_="peers")
