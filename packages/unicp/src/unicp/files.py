"""Reading and writing of what UniCP keeps on disk: versioned JSON, never half-written, loaded with suspicion.

JSON has no NaN and no infinity: such numbers are written as the strings "nan", "inf" and "-inf". Whatever writes a file
does so through `replacing` or `append_line`: what was there is lost at no moment, on a full disk neither.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from unicp.checked import Checker, MisfitError, Step, Within, saved_fields
from unicp.disk import append_line as append_line
from unicp.disk import check_appendable as check_appendable
from unicp.disk import check_writable as check_writable
from unicp.disk import reason as reason
from unicp.disk import replacing as replacing
from unicp.disk import replacing_folder as replacing_folder
from unicp.disk import write_text as write_text
from unicp.errors import FileFormatError, InputError, UniCPError
from unicp.records import Trace

TRACE_TYPE, TRACE_VERSION = "unicp.trace", 2
# Far beyond every file of ours (a trace of a thousand runs has 50 MB), and still held in memory with ease.
LARGEST_FILE = 256 * 2**20
# Of a map of a run, units times steps: a page or a terminal has no room for more.
MOST_CELLS = 20_000_000

_HEADER = ("type", "version", "unicp")
_TRACE_FIELDS: dict[str, Any] = {
    "step": Step,
    "action": Literal["full", "slice", "forecast", "reuse"],
    "seconds": Annotated[float, Within(0, 1e30)],
    "run_steps": dict[str, Step],
}
_R = TypeVar("_R")


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
    trace = load_record(Trace, TRACE_TYPE, TRACE_VERSION, path, "record it again")
    steps = 1 + max((entry.step for entry in trace.entries), default=0)
    lines = len({(entry.run, entry.unit, entry.branch) for entry in trace.entries})
    if steps * lines > MOST_CELLS:
        raise FileFormatError(f"a trace in {path}", f"{lines} units of {steps} steps", "record it again")
    return trace


def save_record(record: Any, kind: str, version: int, path: str | Path) -> None:
    """Writes a dataclass, with those in it, as JSON under the name `kind`; errors as for `save_trace`."""
    values = _plain_values(record)
    body = {"type": kind, "version": version, "unicp": package_version(), **values}
    try:
        text = json_line(body)
        if kind != TRACE_TYPE:  # what nobody could read again is told while it still can be mended
            _checker(type(record)).read(json_ready(values))
    except MisfitError as error:
        raise InputError(f"to write {path}", str(error), "see what made such numbers") from error
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the {_noun(kind)} in {path}", f"a value JSON cannot hold ({reason(error)})", "keep plain values in it"
        ) from error
    with replacing(path) as part:
        part.write_text(text, encoding="ascii")


def load_record(record: type[_R], kind: str, version: int, path: str | Path, again: str) -> _R:
    """Reads what `save_record` wrote, as a `record`; errors as for `load_trace`. again: how to get a good file."""
    body, noun = read_json(path), _noun(kind)
    if not isinstance(body, dict) or body.get("type") != kind:
        found = f"type {body.get('type')!r:.40}" if isinstance(body, dict) else f"a JSON {type(body).__name__}"
        raise FileFormatError(f"a {noun} in {path}", found, f"pass a file of type {kind!r}")
    if upgrade := _UPGRADES.get((kind, body.get("version"))):
        body = upgrade(body)
    if body.get("version") != version:
        raise FileFormatError(
            f"a {noun} of version {version} in {path}",
            f"version {body.get('version')!r:.40} (written by unicp {body.get('unicp')!r:.40})",
            f"read it with that release, or {again}",
        )
    try:
        return _checker(record).read({name: value for name, value in body.items() if name not in _HEADER})
    except MisfitError as error:
        raise FileFormatError(f"a {noun} in {path}", str(error), again) from error


def _trace_of_version_1(body: dict[str, Any]) -> dict[str, Any]:
    """The names of version 2: an entry had "why" for "reason", "choice" for "predictor", "compute" for "full"."""
    names, entries = {"why": "reason", "choice": "predictor"}, body.get("entries")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return body
    renamed = [{names.get(key, key): value for key, value in entry.items()} for entry in entries]
    renamed = [entry | {"action": "full"} if entry.get("action") == "compute" else entry for entry in renamed]
    return body | {"version": 2, "entries": renamed}


_UPGRADES: dict[Any, Callable[[dict[str, Any]], dict[str, Any]]] = {(TRACE_TYPE, 1): _trace_of_version_1}


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Raises InputError where it cannot be read, FileFormatError where it is no JSON."""
    return parse_json(read_bytes(path), f"JSON in {path}")


def read_bytes(path: str | Path) -> bytes:
    """All of a file, of at most `LARGEST_FILE`. Raises InputError where it is larger, or cannot be read."""
    try:
        # Of a pipe or a device there is no end to wait for.
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
    """The value of JSON text in UTF-8, nested at most 200 deep. asked, do: for the FileFormatError where it is none."""
    from pydantic_core import from_json

    try:
        return from_json(raw, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(asked, f"a damaged file ({reason(error)})", do) from error


def json_ready(value: Any) -> Any:
    """A copy with lists for tuples and the strings "nan", "inf", "-inf" for such numbers, as strict JSON needs it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if is_dataclass(value) and not isinstance(value, type):
        return json_ready(_plain_values(value))
    if isinstance(value, Mapping):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    return value


def _plain_values(record: Any) -> dict[str, Any]:
    """Not dataclasses.asdict, which copies every list of every entry."""
    return {name: getattr(record, name) for name in saved_fields(type(record))}


def json_line(value: Any) -> str:
    """A value as one line of strict JSON in ASCII, with its line break.

    Raises TypeError or ValueError for what JSON cannot hold, or nobody could read again.
    """
    # Halves of surrogate pairs, as in an argument that is no text, would be written and could not be read.
    json.dumps(value := json_ready(value), ensure_ascii=False).encode()
    return json.dumps(value, allow_nan=False) + "\n"


def package_version() -> str:
    """The version of the installed package, "unknown" where it is run without being installed."""
    try:
        return importlib.metadata.version("unicp")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _noun(kind: str) -> str:
    return kind.removeprefix("unicp.")


@lru_cache(maxsize=32)
def _checker(record: type) -> Checker:
    return Checker(record, _TRACE_FIELDS if record is Trace else {})
