"""Atomic writes: aside and then renamed, or appended. A full disk or a kill leaves the old content as it was."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unicp.errors import InputError, UniCPError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Letters of the name that a temporary name repeats: at up to four bytes each they leave room for the rest.
_TAKEN = 50


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary file beside `path`, which replaces `path` at the end or is removed on any error.

    Raises:
        InputError: The place cannot be written.
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
    """Gives a temporary folder beside `folder`, whose files are moved there at the end. Other files there stay.

    Raises:
        InputError: The place cannot be written; the folder is then as it was.
    """
    target = _target(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name[:_TAKEN]}.", suffix=".part") as name:
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

    Removes first what a kill left of a half-written line.

    Raises:
        InputError: The line cannot be written; the file is then as it was.
    """
    try:
        # No buffer: it would try again to write its rest when the file is closed.
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
    """Checks that a file can be written at `path`, and leaves an existing one as it is.

    Raises:
        InputError: It cannot.
    """
    part = _open_part(path, _target(path))
    part.unlink(missing_ok=True)


def check_appendable(path: str | Path) -> None:
    """Checks that a line can be added to the file at `path`, which need not exist.

    Raises:
        InputError: It cannot.
    """
    if not os.path.isfile(path):
        return check_writable(path)
    try:
        with Path(path).open("ab"):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from error


def _target(path: str | Path) -> Path:
    """The file to replace, through links, so that a link stays one."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from error


def _open_part(path: str | Path, target: Path) -> Path:
    if not str(path):
        raise InputError("to write a file", "an empty name", "name the file")
    # os.path answers "no" for a name that is too long; Path would raise.
    if not os.path.isdir(target.parent):
        raise InputError(f"to write {path}", f"no folder {target.parent}", "make the folder first")
    if os.path.exists(target) and not os.path.isfile(target):
        raise InputError(f"to write {path}", "a folder or device there", "name a file")
    _check_length(path, target)
    part = target.with_name(f".{target.name[:_TAKEN]}.{uuid.uuid4().hex[:12]}.part")
    try:
        part.touch(exist_ok=False)
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from error
    return part


def _check_length(path: str | Path, target: Path) -> None:
    """Checks the length of the real name, which otherwise fails only at the end: the temporary name is short."""
    try:
        most = os.pathconf(target.parent, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        return
    length = len(os.fsencode(target.name))
    if length > most:
        raise InputError(f"to write {path}", f"a name of {length} bytes, at most {most} are possible", "shorten it")


def _told(path: str | Path, error: Exception, part: Path) -> Exception:
    """The error to raise when writing to `part` failed. Libraries raise errors of their own for a full disk."""
    if isinstance(error, UniCPError):
        return error
    cause = error if isinstance(error, OSError) else _disk_is_full(part)
    return error if cause is None else _cannot_write(path, cause)


def _cannot_write(path: str | Path, error: OSError | ValueError) -> InputError:
    if isinstance(error, OSError) and error.errno in _FULL:
        found = f"no room on the disk ({reason(error)}); what was there is as it was"
        return InputError(f"to write {path}", found, "make room or name another place")
    return InputError(f"to write {path}", reason(error), "name a place that can be written")


def _disk_is_full(part: Path) -> OSError | None:
    """The error of writing more to `part`, None if that works."""
    try:
        with part.open("ab", buffering=0) as file:
            file.write(bytes(2**16))
            file.write(bytes(2**16))
            os.fsync(file.fileno())
    except OSError as error:
        return error if error.errno in _FULL else None
    return None


def _sync_folder(folder: Path) -> None:
    """Writes the new name to the disk, if the system can do that."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _lock(file: Any) -> None:
    """Keeps others from appending until the file is closed, if the file system can do that."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def _last_line(file: Any) -> tuple[int, bytes]:
    """Length of a file up to its last line break, and the bytes behind it; read from the end."""
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
    """The message of an error in one line."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(message.split())[:200] or type(error).__name__
