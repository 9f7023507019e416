"""Files as nobody should have them: a sound file, damaged in every way one can think of. The same seed, the same."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

HUGE = "1" + "0" * 400
# Written as they stand, so that what JSON libraries disagree about is among them.
RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    HUGE,
    "1" * 5000,
    '"\\ud800"',
    '"\\u0000"',
    "[" * 10_000,
    "01",
)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 0.5, -0.5, 1e-320, 1e-30, 1e300, -1e300, 10**9, 10**12, 2**63, -(2**63), 10**30),
    *("", "x", "nan", "inf", "-inf", "\x00", "\x1b[2J\n", "é" * 300, "a" * 200_000, "psnr>=35", "UniCP", "plain"),
    *([], {}, [[]], [1, 2], [None], ["nan"] * 3, {"a": {"b": 1}}, {"": None}, [0.0] * 40),
)


def damaged(lines: list[Any], dice: random.Random) -> bytes:
    """Values, one a line, of which something is wrong."""
    kind = dice.random()
    if kind < 0.3:
        return "".join(json.dumps(_absurd(one, dice, dice.choice((0.003, 0.02, 0.1)))) + "\n" for one in lines).encode()
    if kind < 0.4:
        return _torn("".join(json.dumps(one) + "\n" for one in lines).encode(), dice)
    lines = copy.deepcopy(lines)
    marker, raw = "\x7fhere\x7f", None
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        place = dice.randrange(len(lines))
        holder: Any = {"": lines[place]}
        key: Any = ""
        # Down to any value, most often to one of the last.
        while isinstance(holder[key], (dict, list)) and holder[key] and dice.random() < 0.9:
            holder = holder[key]
            key = dice.choice(list(holder)) if isinstance(holder, dict) else dice.randrange(len(holder))
        what = dice.random()
        if key == "":
            lines[place] = dice.choice(ODD)
        elif what < 0.1:
            del holder[key]
        elif what < 0.15 and isinstance(holder, dict):
            holder[dice.choice(("extra", "", "type", "\x1b]0;x\x07"))] = dice.choice(ODD)
        elif what < 0.25 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif what < 0.6 and type(holder[key]) in (int, float):
            holder[key] = _scaled(holder[key], dice)
        elif what < 0.75:
            raw = dice.choice(RAW)
            holder[key] = marker
        else:
            holder[key] = copy.deepcopy(dice.choice(ODD))
    text = "".join(json.dumps(one) + "\n" for one in lines)
    if raw is not None:
        text = text.replace(json.dumps(marker), raw)
    if dice.random() < 0.03:
        text = text.replace("{", '{"steps": 3, "value": 1, "steps": 4, ', 1)
    return text.encode()


def _absurd(value: Any, dice: random.Random, share: float) -> Any:
    """The same with a share of its numbers far off, but of their type and sign."""
    if isinstance(value, dict):
        return {key: _absurd(one, dice, share) for key, one in value.items()}
    if isinstance(value, list):
        return [_absurd(one, dice, share) for one in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or dice.random() > share:
        return value
    if isinstance(value, int):
        return max(0, value + dice.choice((-3, -1, 1, 2, 7, 90, 9_000)))
    return value * 10.0 ** dice.choice((-25, -12, -6, -3, -1, 1, 3, 6, 12, 25))


def _scaled(number: float, dice: random.Random) -> Any:
    if isinstance(number, int):
        return dice.choice((number + 1, number - 1, -number, 10 * number, number * 10**6, float(number)))
    return dice.choice((-number, number * 10.0 ** dice.randint(-40, 40), number * 10.0 ** dice.randint(-8, 8), 0.0))


def _torn(raw: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(raw))
    return dice.choice(
        (
            b"",
            raw[:place],
            b"\xef\xbb\xbf" + raw,
            raw[:place] + b"\x00" + raw[place:],
            raw[:place] + bytes([raw[place] ^ (1 << dice.randrange(8))]) + raw[place + 1 :],
            raw.replace(b"\n", b"\r\n"),
            raw.decode().encode("utf-16"),
            raw[:place] + b"\xed\xa0\x80" + raw[place:],
            raw + raw[:place],
            b"[" * 10_000 + raw,
            raw[place:],
            bytes(dice.randrange(256) for _ in range(200)),
        )
    )
