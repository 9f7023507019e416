"""Reading and writing of what UniCP keeps on disk: versioned JSON, never half-written, loaded with suspicion.

JSON has no NaN and no infinity: such numbers are written as the strings "nan", "inf" and "-inf".
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from unicp.errors import FileFormatError, InputError, UniCPError
from unicp.records import Action, Entry, Trace

TRACE_TYPE, TRACE_VERSION = "unicp.trace", 1

_NOT_FINITE = ("nan", "inf", "-inf")
_HEADER = ("type", "version", "unicp")
_R = TypeVar("_R")


class _Misfit(Exception):
    """A value that is not what its field takes."""


def save_trace(trace: Trace, path: str | Path) -> None:
    """Writes a trace as JSON; the file at `path` is the old one or the whole new one, never a part.

    Raises InputError where the path cannot be written or a setting cannot be expressed in JSON.
    """
    save_record(trace, TRACE_TYPE, TRACE_VERSION, path)


def load_trace(path: str | Path) -> Trace:
    """Reads a trace written by `save_trace`.

    Raises InputError where there is no readable file, FileFormatError where it is damaged, foreign, of another
    version, or has unknown, missing or mistyped fields.
    """
    return load_record(Trace, TRACE_TYPE, TRACE_VERSION, path, "record it again")


def save_record(record: Any, kind: str, version: int, path: str | Path) -> None:
    """Writes a dataclass, with those in it, as JSON under the name `kind`; errors as for `save_trace`."""
    body = {"type": kind, "version": version, "unicp": package_version(), **vars(record)}
    try:
        # Not dataclasses.asdict: it copies every list of every entry.
        text = json.dumps(json_ready(body), allow_nan=False)
    except TypeError as error:
        raise InputError(
            f"the {_noun(kind)} in {path}", f"a value JSON cannot hold ({error})", "keep plain values in it"
        ) from error
    with replacing(path) as part:
        part.write_text(text + "\n", encoding="ascii")


def load_record(record: type[_R], kind: str, version: int, path: str | Path, again: str) -> _R:
    """Reads what `save_record` wrote, as a `record`; errors as for `load_trace`. again: how to get a good file."""
    body, noun = read_json(path), _noun(kind)
    if not isinstance(body, dict) or body.get("type") != kind:
        found = f"type {body.get('type')!r:.40}" if isinstance(body, dict) else f"a JSON {type(body).__name__}"
        raise FileFormatError(f"a {noun} in {path}", found, f"pass a file of type {kind!r}")
    if body.get("version") != version:
        raise FileFormatError(
            f"a {noun} of version {version} in {path}",
            f"version {body.get('version')!r:.40} (written by unicp {body.get('unicp')!r:.40})",
            f"read it with that release, or {again}",
        )
    try:
        return _read_record(record, {name: value for name, value in body.items() if name not in _HEADER}, "")
    except (_Misfit, UniCPError) as error:
        raise FileFormatError(f"a {noun} in {path}", getattr(error, "found", str(error)), again) from error


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Raises InputError where it cannot be read, FileFormatError where it is no JSON."""
    try:
        raw = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"to read {path}", _reason(error), "name a file that can be read") from error
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"JSON in {path}", f"a damaged file ({_reason(error)})", "make it again") from error


def json_ready(value: Any) -> Any:
    """A copy with lists for tuples and the strings "nan", "inf", "-inf" for such numbers, as strict JSON needs it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if is_dataclass(value) and not isinstance(value, type):
        return json_ready(vars(value))
    if isinstance(value, Mapping):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    return value


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary file beside `path` to write to, which replaces `path` at the end or is removed on any error.

    Raises InputError where the place cannot be written.
    """
    target = _target(path)
    part = _open_part(path, target)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        raise InputError(f"to write {path}", _reason(error), "name a place that can be written") from error
    finally:
        part.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raises InputError unless a file can be written at `path`; an existing one is left as it is."""
    part = _open_part(path, _target(path))
    part.unlink(missing_ok=True)


def package_version() -> str:
    """The version of the installed package, "unknown" where it is run without being installed."""
    try:
        return importlib.metadata.version("unicp")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _noun(kind: str) -> str:
    return kind.removeprefix("unicp.")


def _open_part(path: str | Path, target: Path) -> Path:
    if not str(path):
        raise InputError("to write a file", "an empty name", "name the file")
    # os.path answers "no" where a name is too long to be asked for; Path would raise.
    if not os.path.isdir(target.parent):
        raise InputError(f"to write {path}", f"no folder {target.parent}", "make the folder first")
    if os.path.exists(target) and not os.path.isfile(target):
        raise InputError(f"to write {path}", "a folder or device there", "name a file")
    _check_length(path, target)
    # Of the name only as much as leaves room for the rest, whatever its letters: they have up to four bytes each.
    part = target.with_name(f".{target.name[:50]}.{uuid.uuid4().hex[:12]}.part")
    try:
        part.touch(exist_ok=False)
    except (OSError, ValueError) as error:
        raise InputError(f"to write {path}", _reason(error), "name a place that can be written") from error
    return part


def _target(path: str | Path) -> Path:
    """Where `path` leads, through links, so that the file is replaced and not the link to it."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        raise InputError(f"to write {path}", _reason(error), "name a place that can be written") from error


def _check_length(path: str | Path, target: Path) -> None:
    """The temporary file has a short name: that the real one is too long would be seen only when all is made."""
    try:
        most = os.pathconf(target.parent, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        return
    length = len(os.fsencode(target.name))
    if length > most:
        raise InputError(f"to write {path}", f"a name of {length} bytes, at most {most} are possible", "shorten it")


def _read_record(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise _Misfit(f"{where or 'the file'} is {values!r:.40}, no {kind.__name__.lower()}")
    hints = get_type_hints(kind)
    unknown, missing = sorted(set(values) - set(hints)), sorted(set(hints) - set(values))
    if unknown or missing:
        kinds = [f"{word} {', '.join(names)}" for word, names in (("unknown", unknown), ("missing", missing)) if names]
        raise _Misfit(f"fields {' and '.join(kinds)}{f' in {where}' if where else ''}"[:200])
    prefix = f"{where}." if where else ""
    return kind(**{name: _read(hint, values[name], prefix + name) for name, hint in hints.items()})


def _read(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type that `hint` names: a plain type, `X | None`, list[X], dict, Counter or a dataclass."""
    if get_origin(hint) is list:
        (item,) = get_args(hint)
        if isinstance(value, list):
            return [_read(item, one, f"{where}[{index}]") for index, one in enumerate(value)]
    elif type(None) in get_args(hint):
        return None if value is None else _read(get_args(hint)[0], value, where)
    elif get_origin(hint) in (dict, Counter):
        if isinstance(value, dict):
            item = get_args(hint)[1] if get_origin(hint) is dict else int
            read = value if item is Any else {k: _read(item, v, where) for k, v in value.items()}
            return read if get_origin(hint) is dict else Counter(read)
    elif is_dataclass(hint):
        record = _read_record(hint, value, where)  # type: ignore[arg-type]
        if isinstance(record, Entry) and record.action not in [action.value for action in Action]:
            raise _Misfit(f"{where}.action is {record.action!r:.40}")
        return record
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return _finite(value, where)
        if value in _NOT_FINITE:
            return float(value)
    elif type(value) is hint:
        return value
    raise _Misfit(f"{where} is {value!r:.40}")


def _finite(value: float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # A number too large for a float is read as infinity, which `save_trace` never writes as a number.
    if not math.isfinite(number):
        raise _Misfit(f"{where} is a number out of range")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _reason(error: Exception) -> str:
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(message.split())[:200] or type(error).__name__
