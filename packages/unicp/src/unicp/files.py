"""Versioned JSON files, checked when they are read.

A file is a dataclass, which pydantic checks strictly; the types of its fields hold bounds of numbers (`Within`). JSON
has no NaN and no infinity: they are written as the strings "nan", "inf" and "-inf". This module also has the names of
`unicp.disk`, through which all files are written.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, from_json, to_json
from pydantic_core.core_schema import no_info_before_validator_function

from unicp.disk import (
    append_line,
    check_appendable,
    check_writable,
    reason,
    replacing,
    replacing_folder,
    write_text,
)
from unicp.errors import FileFormatError, InputError, UniCPError

__all__ = ["append_line", "check_appendable", "check_writable", "reason", "replacing", "replacing_folder", "write_text"]

# Far beyond every file of ours: a trace of a thousand runs has 50 MB.
LARGEST_FILE = 256 * 2**20
NOT_FINITE = ("nan", "inf", "-inf")  # how such numbers stand in our files
# A sum of a million squares of it is still finite.
LARGEST = 1e100
LONGEST_TEXT = 100_000  # characters; the longest of ours is a prompt
MOST_STEPS = 100_000  # a hundred times what schedulers are trained with; maps of a run have a column for each
HEADER = ("type", "version", "unicp")

R = TypeVar("R")
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]


class MisfitError(Exception):
    """A value that its field does not take; `str` says which in a few words."""


@dataclass(frozen=True)
class Within:
    """Bounds of a number, beside its type: `Annotated[float, Within(0, 1)]`.

    Attributes:
        low: Least value.
        high: Largest value.
        endless: Whether infinity is allowed (and minus infinity if `low` has no limit).
        missing: Whether NaN is allowed, for a value that was not measured.
    """

    low: float
    high: float
    endless: bool = False
    missing: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(self._checked, handler(source))

    def _checked(self, value: Any) -> Any:
        """The number; pydantic checks whatever is no number."""
        if isinstance(value, str) and value in NOT_FINITE:
            number = float(value)
            if self.missing if math.isnan(number) else self.endless and (number > 0 or self.low <= -LARGEST):
                return number
            raise ValueError("no finite number")
        if isinstance(value, (int, float)) and not self.low <= value <= self.high:
            raise ValueError("out of range")
        return value


Number = Annotated[float, Within(-LARGEST, LARGEST, endless=True, missing=True)]
Positive = Annotated[float, Within(1e-30, 1e30)]
NotNegative = Annotated[float, Within(0, 1e30, endless=True)]
Finite = Annotated[float, Within(-1e30, 1e30)]
Decibels = Annotated[float, Within(-1000, 1000, endless=True)]
Whole = Annotated[int, Within(-(2**63), 2**63 - 1)]  # what a count of bytes or operations can be
Step = Annotated[int, Within(0, MOST_STEPS)]


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    # In a list, because pydantic takes no configuration for a dataclass itself.
    holder: Any = list[kind]  # type: ignore[valid-type]
    return TypeAdapter(holder, config={"strict": True, "extra": "forbid", "str_max_length": LONGEST_TEXT})


def read_as(kind: Any, value: Any) -> Any:
    """Reads a value from JSON as a dataclass, or as another type that a field of one can have.

    Raises:
        MisfitError: The value does not fit.

    Example:
        >>> read_as(dict[str, Step], {"steps": 30})
        {'steps': 30}
    """
    try:
        # As text, because in text pydantic takes an object for a dataclass and stays strict in all else.
        return _adapter(kind).validate_json(to_json([value], inf_nan_mode="constants"))[0]
    except ValidationError as error:
        raise MisfitError(_told(error.errors(include_url=False))) from error


def _told(errors: list[Any]) -> str:
    """What pydantic found wrong first, in our words."""
    first = errors[0]
    where, value = _where(first["loc"]), first["input"]
    strange = {"unexpected_keyword_argument": "unknown", "missing": "missing"}
    if first["type"] in strange:
        place = first["loc"][:-1]
        found: dict[str, list[str]] = {}
        for error in errors:
            if error["type"] in strange and error["loc"][:-1] == place:
                found.setdefault(strange[error["type"]], []).append(str(error["loc"][-1])[:40])
        words = " and ".join(f"{word} {', '.join(sorted(names))}" for word, names in sorted(found.items()))
        return f"fields {words[:150]}{f' in {_where(place)}' if len(place) > 1 else ''}"
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UniCPError):
        return cause.found
    if cause is not None:
        return f"{where} is a number out of range: {_shown(value)}"
    if first["type"] == "string_too_long":
        return f"{where} is a text of more than {LONGEST_TEXT} characters"
    return f"{where} is {_shown(value)}"


def _where(place: tuple[Any, ...]) -> str:
    """Such as entries[3].step; the first part belongs to the list of one that `read_as` makes."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part[:40]}" for part in place[1:])
    return "".join(parts).removeprefix(".")[:100] or "the file"


def _shown(value: Any) -> str:
    # A container may be as large as the file.
    return f"a JSON {type(value).__name__}" if isinstance(value, (list, dict)) else f"{value!r:.40}"


def save_record(record: Any, kind: str, version: int, path: str | Path, *, check: bool = True) -> None:
    """Writes a dataclass as JSON. The file at `path` is the old one or the whole new one, also after a crash.

    Args:
        record: An instance of a dataclass.
        kind: Type of the file, such as "unicp.plan".
        version: Of the type.
        path: Of the file.
        check: Whether to check first that it can be read again, which doubles the time.

    Raises:
        InputError: The path cannot be written, or JSON cannot hold the record.
    """
    try:
        text = json_line({"type": kind, "version": version, "unicp": package_version(), **json_ready(record)})
        if check:
            read_as(type(record), json_ready(record))
    except MisfitError as error:
        raise InputError(f"to write {path}", str(error), "see what made such numbers") from error
    except (TypeError, ValueError) as error:
        found = f"a value JSON cannot hold ({reason(error)})"
        raise InputError(f"the {_noun(kind)} in {path}", found, "keep plain values in it") from error
    with replacing(path) as part:
        part.write_text(text, encoding="ascii")


def load_record(
    record: type[R],
    kind: str,
    version: int,
    path: str | Path,
    again: str,
    upgrades: Mapping[int, Upgrade] = MappingProxyType({}),
) -> R:
    """Reads what `save_record` wrote.

    Args:
        record: The dataclass.
        kind: As it was written.
        version: As it is written today.
        path: The file.
        again: How to get a good file, for errors.
        upgrades: By version, a function from the values of that version to those of the next.

    Raises:
        InputError: There is no readable file.
        FileFormatError: It is damaged, foreign, of another version, or has unknown, missing or mistyped fields.
    """
    body, noun = read_json(path), _noun(kind)
    if not isinstance(body, dict) or body.get("type") != kind:
        found = f"type {body.get('type')!r:.40}" if isinstance(body, dict) else f"a JSON {type(body).__name__}"
        raise FileFormatError(f"a {noun} in {path}", found, f"pass a file of type {kind!r}")
    found = body.get("version")
    while isinstance(found, int) and found in upgrades:
        body, found = upgrades[found](body), found + 1
    if found != version:
        raise FileFormatError(
            f"a {noun} of version {version} in {path}",
            f"version {found!r:.40} (written by unicp {body.get('unicp')!r:.40})",
            f"read it with that release, or {again}",
        )
    try:
        return read_as(record, {name: value for name, value in body.items() if name not in HEADER})
    except MisfitError as error:
        raise FileFormatError(f"a {noun} in {path}", str(error), again) from error


def renamed(fields: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Fields of an older version under their names of today. names: today's, by the older one."""
    return {names.get(name, name): value for name, value in fields.items()}


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: It cannot be read.
        FileFormatError: It is no JSON.
    """
    return parse_json(read_bytes(path), f"JSON in {path}")


def read_bytes(path: str | Path) -> bytes:
    """Reads a whole file of at most `LARGEST_FILE` bytes.

    Raises:
        InputError: It is larger, or cannot be read.
    """
    try:
        # Reading a pipe or a device might never end.
        if os.path.exists(path) and not os.path.isfile(path):
            found = "a folder" if os.path.isdir(path) else "a device or pipe"
            raise InputError(f"to read {path}", found, "name a file")
        with Path(path).open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, UniCPError):
            raise
        raise InputError(f"to read {path}", reason(error), "name a file that can be read") from error
    if len(raw) > LARGEST_FILE:
        raise InputError(f"to read {path}", f"more than {LARGEST_FILE >> 20} MB", "name a file that UniCP wrote")
    return raw


def parse_json(raw: bytes, asked: str, do: str = "make it again") -> Any:
    """Parses JSON text in UTF-8, nested at most 200 deep.

    Args:
        raw: The text.
        asked, do: For the error.

    Raises:
        FileFormatError: It is no JSON.
    """
    try:
        return from_json(raw, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(asked, f"a damaged file ({reason(error)})", do) from error


def json_ready(value: Any) -> Any:
    """A copy for strict JSON: objects for dataclasses, lists for tuples, strings for NaN and infinities.

    Example:
        >>> json_ready({"psnr": float("inf"), "steps": (0, 1)})
        {'psnr': 'inf', 'steps': [0, 1]}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if is_dataclass(value) and not isinstance(value, type):
        # Not dataclasses.asdict, which copies every list of every entry.
        return {field.name: json_ready(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    return value


def json_line(value: Any) -> str:
    """A value as one line of strict JSON in ASCII, with its line break.

    Raises:
        TypeError, ValueError: JSON cannot hold the value, or could not be read again.
    """
    # Lone surrogates would be written and could not be read.
    json.dumps(value := json_ready(value), ensure_ascii=False).encode()
    return json.dumps(value, allow_nan=False) + "\n"


def package_version() -> str:
    """The version of the installed package, "unknown" if it is not installed."""
    try:
        return importlib.metadata.version("unicp")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _noun(kind: str) -> str:
    return kind.removeprefix("unicp.")
