"""Targets: "psnr>=35", "speedup>=2" or "seconds<=40"."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from unicp.errors import InputError

TargetKind = Literal["psnr", "speedup", "seconds"]

_FORM = re.compile(r"\s*(psnr|speedup|seconds)\s*(>=|<=)\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(dB|x|s)?\s*")
_SIGNS: dict[str, str] = {"psnr": ">=", "speedup": ">=", "seconds": "<="}


@dataclass(frozen=True)
class Target:
    """What a run must reach.

    Attributes:
        kind: What is named.
        value: Least PSNR of a clip against its plain run in dB, least speed-up, or most seconds.
    """

    kind: TargetKind
    value: float

    def __str__(self) -> str:
        # As many digits as were given: plans are known by this text.
        return f"{self.kind}{_SIGNS[self.kind]}{self.value:.12g}"


def parse_target(text: str) -> Target:
    """Reads a target.

    Raises:
        InputError: The text is no target, or no run can have the value.
    """
    match = _FORM.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[2] != _SIGNS[match[1]]:
        raise InputError(f"target {text!r}", "not a target", 'use "psnr>=35", "speedup>=2" or "seconds<=40"')
    value = float(match[3])
    if match[1] == "psnr":
        target = Target("psnr", value)
    else:
        target = Target("speedup" if match[1] == "speedup" else "seconds", value)
    if not 0 < value < math.inf or (target.kind == "speedup" and value < 1):
        least = "1 or more" if target.kind == "speedup" else "more than 0"
        raise InputError(f"target {text!r}", f"a value of {value:g}", f"use {least}")
    return target
