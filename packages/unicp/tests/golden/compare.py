"""Whether a run is still the recorded one, and if not, where it first differs.

On a machine whose plain output is bit-equal to the recorded one everything is compared: the structure of the trace and
the bytes of the output exactly, floats within 1e-4. On another one, rounding may tip a decision at its threshold: there
a trace that is the same must lead to nearly the same output, and one that is not, to about as many skipped calls and an
output about as far from the plain one.
"""

from __future__ import annotations

import math
from typing import Any

from tests.golden.case import unpacked
from tests.golden.words import FLOATS, STRUCTURE, today

CLOSE, TINY = 1e-4, 1e-7
CLOSE_ELSEWHERE, SHARE_ELSEWHERE, FAR_ELSEWHERE = 1e-3, 0.1, 0.05


def is_same_machine(recorded: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether both come of machines that compute to the same bits."""
    return recorded["plain"] == found["plain"]


def differences(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What is not as recorded, a line or a few each; none = all is."""
    lines = _of_refusal(recorded, found)
    if lines or "refused" in recorded:
        return lines
    lines = _of_entries(recorded, found)
    if not is_same_machine(recorded, found):
        return _elsewhere(recorded, found, is_same_course=not lines)
    lines += _of_floats(recorded, found) if recorded["entries"] == found["entries"] else []
    counts = {str(today("counts", name)): count for name, count in recorded["counts"].items()}
    expected = recorded | {"counts": dict(sorted(counts.items()))}
    for name in ("counts", "run_steps", "warnings", "most_bytes"):
        if expected[name] != found[name]:
            lines.append(f"{name}: expected {expected[name]}, got {found[name]}")
    lines += _of_plan(recorded["plan"], found["plan"])
    if recorded["output"] != found["output"]:
        lines.append(
            f"output: expected {recorded['output'][:12]}, got {found['output'][:12]}; "
            f"values differ by up to {_apart(recorded['values'], found['values']):.3g} of their size"
        )
    return lines


def _of_refusal(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    expected, got = today("refused", recorded.get("refused")), found.get("refused")
    return [] if expected == got else [f"refused: expected {expected or 'no'}, got {got or 'no'}"]


def _rows(record: dict[str, Any], is_recorded: bool) -> list[tuple[Any, ...]]:
    columns = []
    for name in STRUCTURE:
        values = unpacked(record["columns"][name])
        columns.append([today(name, value) for value in values] if is_recorded else values)
    return list(zip(*columns))


def _of_entries(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    expected, got = _rows(recorded, True), _rows(found, False)
    unlike = [at for at, (one, other) in enumerate(zip(expected, got)) if one != other]
    if expected == got:
        return []
    first = unlike[0] if unlike else min(len(expected), len(got))
    many = f"{len(unlike)} of {len(expected)} entries differ" if unlike else "the entries at hand agree"
    if len(expected) != len(got):
        many += f", and there are {len(got)} of them"
    return [
        f"trace: {many}; the first is entry {first}\n"
        f"  expected: {_shown(expected, first)}\n"
        f"  got:      {_shown(got, first)}"
    ]


def _shown(rows: list[tuple[Any, ...]], at: int) -> str:
    if at >= len(rows):
        return "no entry"
    return " ".join(f"{name}={value}" for name, value in zip(STRUCTURE, rows[at]) if value is not None)


def _of_floats(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    lines, rows = [], _rows(found, False)
    for name in FLOATS:
        pairs = list(zip(unpacked(recorded["floats"][name]), unpacked(found["floats"][name])))
        unlike = [at for at, (one, other) in enumerate(pairs) if not _is_close(one, other)]
        if unlike:
            expected, got = pairs[unlike[0]]
            lines.append(
                f"{name}: {len(unlike)} of {len(pairs)} differ; the first is of entry {unlike[0]} "
                f"({_shown(rows, unlike[0])})\n  expected: {expected}\n  got:      {got}"
            )
    return lines


def _is_close(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_close, one, other))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=CLOSE, abs_tol=TINY)
    return one == other


def _of_plan(recorded: dict[str, Any] | None, found: dict[str, Any] | None) -> list[str]:
    if recorded is None or found is None:
        return [] if recorded == found else [f"plan: expected {recorded}, got {found}"]
    unlike = [name for name, value in recorded.items() if not _is_close(value, found.get(name))]
    return [f"plan, {name}: expected {recorded[name]}, got {found.get(name)}" for name in unlike]


def _elsewhere(recorded: dict[str, Any], found: dict[str, Any], is_same_course: bool) -> list[str]:
    apart = _apart(recorded["values"], found["values"])
    if is_same_course:
        return [] if apart <= CLOSE_ELSEWHERE else [f"output: values differ by {apart:.3g} of their size"]
    lines = []
    expected, got = (record["skipped"] / max(1, record["entries"]) for record in (recorded, found))
    if abs(expected - got) > SHARE_ELSEWHERE:
        lines.append(f"skipped: expected {expected:.0%} of the calls, got {got:.0%}")
    # Two outputs, each so far from the plain one, are at most twice as far from one another.
    if apart > max(FAR_ELSEWHERE, 2 * max(recorded["far"], found["far"])):
        lines.append(f"output: values differ by {apart:.3g} of their size")
    if found["far"] > max(FAR_ELSEWHERE, 2 * recorded["far"]):
        lines.append(f"output: {found['far']:.3g} from the plain one, expected {recorded['far']:.3g}")
    return lines


def _apart(expected: list[Any], got: list[Any]) -> float:
    """Largest difference of two lists of values, relative to the root mean square of the first."""
    if len(expected) != len(got):
        return math.inf
    numbers = [(float(one), float(other)) for one, other in zip(expected, got)]
    size = math.sqrt(sum(one * one for one, _ in numbers) / max(1, len(numbers))) or 1.0
    unlike = [abs(one - other) for one, other in numbers if one != other and not (one != one and other != other)]
    return max(unlike, default=0.0) / size
