"""Text into HTML: escaping, tags, and numbers as people read them."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable
from typing import Any

MISSING = "–"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def escape(text: object) -> str:
    """Text that is safe between tags and in quoted attributes."""
    return html.escape(str(text), quote=True)


def attributes(**values: object) -> str:
    """Attributes of a tag: `class_` for class, `data_i` for data-i; None leaves one out."""
    words = [
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in values.items()
        if value is not None
    ]
    return "".join(words)


def tag(name: str, inner: str = "", **values: object) -> str:
    """An element around `inner`, which is HTML already."""
    return f"<{name}{attributes(**values)}>{inner}</{name}>"


def void_tag(name: str, **values: object) -> str:
    """An element that has no inside."""
    return f"<{name}{attributes(**values)}>"


def text_tag(name: str, text: object, **values: object) -> str:
    """An element around plain text."""
    return tag(name, escape(text), **values)


def script_json(value: Any, **values: object) -> str:
    """A value as JSON in a script element; no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False, sort_keys=True)
    safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json"{attributes(**values)}>{safe}</script>'


def scroll(label: str, inner: str, extra: str = "") -> str:
    """A container of its own for what may be wider than the page; the keyboard can scroll it."""
    return tag("div", inner, class_=f"scroll {extra}".strip(), role="region", tabindex="0", aria_label=label)


def number(value: float | None, digits: int = 1) -> str:
    """Fixed digits; a dash for None and what is not a number."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}f}".replace("-", "−")


def speed(value: float | None) -> str:
    """A speed-up: "2.00x"."""
    if value is not None and value >= 1000:
        return "over 1000x"
    shown = number(value, 2)
    return shown if shown == MISSING else shown + "x"


def signed(value: float) -> str:
    """A difference in tenths, always with its sign; "0.0" has none."""
    rounded = round(value, 1)
    return f"+{rounded:.1f}" if rounded > 0 else number(abs(rounded) if rounded == 0 else rounded)


def size(count: float) -> str:
    """Bytes in the largest unit that keeps a whole number in front."""
    for unit in _UNITS[:-1]:
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_UNITS[-1]}"


def counted(count: int, noun: str) -> str:
    """ "1 clip", "2 clips"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(words: Iterable[object]) -> str:
    """Words in a row: "a, b and c"."""
    *first, last = [str(word) for word in words] or [""]
    return f"{', '.join(first)} and {last}" if first else last
