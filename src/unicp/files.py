"""Reading and writing of what UniCP keeps on disk: versioned JSON, never half-written, loaded with suspicion.

JSON has no NaN and no infinity: such numbers are written as the strings "nan", "inf" and "-inf". Whatever writes a file
does so through `replacing` or `append_line`: what was there is lost at no moment, on a full disk neither.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import math
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from unicp.checked import Checker, MisfitError, Step, Within, saved_fields
from unicp.errors import FileFormatError, InputError, UniCPError
from unicp.records import Trace

TRACE_TYPE, TRACE_VERSION = "unicp.trace", 1
# Far beyond every file of ours (a trace of a thousand runs has 50 MB), and still held in memory with ease.
LARGEST_FILE = 256 * 2**20
# Of a map of a run, units times steps: a page or a terminal has no room for more.
MOST_CELLS = 20_000_000

_HEADER = ("type", "version", "unicp")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TRACE_FIELDS: dict[str, Any] = {
    "step": Step,
    "action": Literal["compute", "slice", "forecast", "reuse"],
    "seconds": Annotated[float, Within(0, 1e30)],
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


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Raises InputError where it cannot be read, FileFormatError where it is no JSON."""
    return parse_json(read_bytes(path), f"JSON in {path}")


def read_bytes(path: str | Path) -> bytes:
    """All of a file, of at most `LARGEST_FILE`. Raises InputError where it is larger, or cannot be read."""
    try:
        # Of a pipe or a device there is no end to wait for.
        if Path(path).exists() and not Path(path).is_file():
            raise InputError(f"to read {path}", "a folder or device there", "name a file")
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
        _sync_folder(target.parent)
    except Exception as error:
        raise _told(path, error, part) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """Gives a temporary folder beside `folder`; at the end its files go there, each as a whole.

    What else is there stays. Raises InputError where the place cannot be written; what was there is then as it was.
    """
    target = _target(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=".part") as name:
            part = Path(name)
            try:
                yield part
                made = [file for file in sorted(part.rglob("*")) if file.is_file()]
                for file in made:
                    with file.open("rb+") as opened:
                        os.fsync(opened.fileno())
                for file in made:
                    place = target / file.relative_to(part)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, place)
            except Exception as error:
                raise _told(folder, error, part / "probe") from error
    except OSError as error:
        raise _cannot_write(folder, error) from error


def write_text(path: str | Path, text: str) -> None:
    """Writes a whole text file in UTF-8, by `replacing`."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def append_line(path: str | Path, line: str) -> None:
    """Adds a line, with its line break, and waits until it is on the disk.

    What a kill left of a half-written line is taken away first. Where the line cannot be written, the file is what it
    was. Raises InputError.
    """
    try:
        # No buffer: what it could not write it would write again when it is closed.
        with Path(path).open("ab+", buffering=0) as file:
            _lock(file)
            whole, rest = _last_line(file)
            if rest and _is_json(rest):
                line = "\n" + line  # somebody's editor left out the last line break
                whole += len(rest)
            elif rest:
                file.truncate(whole)
            try:
                rest = line.encode("ascii")
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), whole)
                raise
    except OSError as error:
        raise _cannot_write(path, error) from error


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


def _target(path: str | Path) -> Path:
    """The file to replace, through links, so that a link stays one."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        raise InputError(f"to write {path}", reason(error), "name a place that can be written") from error


def _open_part(path: str | Path, target: Path) -> Path:
    if not str(path):
        raise InputError("to write a file", "an empty name", "name the file")
    part = target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex[:12]}.part")
    try:
        if not target.parent.is_dir():
            raise InputError(f"to write {path}", f"no folder {target.parent}", "make the folder first")
        # Also tells of a name that is too long, which the unfinished file has not.
        if target.exists() and not target.is_file():
            raise InputError(f"to write {path}", "a folder or device there", "name a file")
        part.touch(exist_ok=False)
    except OSError as error:
        raise _cannot_write(path, error) from error
    return part


@lru_cache(maxsize=32)
def _checker(record: type) -> Checker:
    return Checker(record, _TRACE_FIELDS if record is Trace else {})


def _told(path: str | Path, error: Exception, part: Path) -> Exception:
    """The error to raise where writing to `part` failed. Libraries have errors of their own for a disk that is full."""
    if isinstance(error, UniCPError):
        return error
    cause = error if isinstance(error, OSError) else _disk_is_full(part)
    return error if cause is None else _cannot_write(path, cause)


def _cannot_write(path: str | Path, error: OSError) -> InputError:
    if error.errno in _FULL:
        found = f"no room on the disk ({reason(error)}); what was there is as it was"
        return InputError(f"to write {path}", found, "make room or name another place")
    return InputError(f"to write {path}", reason(error), "name a place that can be written")


def _disk_is_full(part: Path) -> OSError | None:
    """The error of writing on behind what is there, None where that can be done."""
    try:
        with part.open("ab", buffering=0) as file:
            file.write(bytes(2**16))
            file.write(bytes(2**16))
            os.fsync(file.fileno())
    except OSError as error:
        return error if error.errno in _FULL else None
    return None


def _sync_folder(folder: Path) -> None:
    """The new name too, where the system can do that."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _lock(file: Any) -> None:
    """Until the file is closed nobody else appends, where the system and the file system can do that."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def _last_line(file: Any) -> tuple[int, bytes]:
    """Bytes of a file up to its last line break, and what stands behind it; read from the end."""
    end = file.seek(0, os.SEEK_END)
    rest, begin = b"", end
    while begin > 0 and b"\n" not in rest:
        begin = max(0, begin - 2**16)
        file.seek(begin)
        rest = file.read(min(2**16, end - begin)) + rest
    rest = rest[rest.rfind(b"\n") + 1 :]
    return end - len(rest), rest


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(message.split())[:200] or type(error).__name__
