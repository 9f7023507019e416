"""The log from which a stopped calibration continues: one JSON line per finished run, beside the output file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from unicp.errors import FileFormatError, InputError
from unicp.files import (
    Finite,
    MisfitError,
    NotNegative,
    Positive,
    Within,
    append_line,
    json_line,
    json_ready,
    parse_json,
    read_as,
    read_bytes,
)
from unicp.planning.products import Products
from unicp.planning.profile import Trial

SUFFIX = ".unfinished"
AGAIN = "delete it to start over"

# Kind of result, prompt, and what distinguishes it from others of its kind, such as a step or a share.
Key = tuple[str | float, ...]


@dataclass(frozen=True)
class PlainRun:
    """What a plain run told.

    Attributes:
        products: Of the run.
        signal, noise: Parts of the sample at each step, and at the level after the last.
        shares: Of each output in the final sample.
        shape: Of the sample in the model's call, batch first.
        branches: Calls a step.
        step: Median seconds of a step.
        rest: Seconds of the rest of the run.
    """

    products: Products
    signal: list[NotNegative]
    noise: list[NotNegative]
    shares: list[Finite]
    shape: list[Annotated[int, Within(1, 10**9)]]
    branches: Annotated[int, Within(1, 1000)]
    step: Positive
    rest: NotNegative


@dataclass(frozen=True)
class TrialRun:
    """A trial, and the median seconds of its full steps and of its skipped ones, with what UniCP adds to either."""

    trial: Trial
    full: Positive
    skipped: NotNegative


# Type of a line's value, by the kind of its key.
KINDS: dict[str, Any] = {"about": dict[str, Any], "plain": PlainRun, "trial": TrialRun}


@dataclass(frozen=True)
class _Line:
    """One line of the file. value: of the kind that the key begins with."""

    key: list[str | int | float]
    value: Any


@dataclass
class CheckpointLog:
    """Results by key, each written to disk at once.

    Attributes:
        path: Of the file.
        about: The calibration that the results belong to; a log of another one is refused.
        known: The results so far.
    """

    path: Path
    about: dict[str, Any]
    known: dict[Key, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, out: Path, about: dict[str, Any]) -> CheckpointLog:
        """Opens the log beside `out`, new or continued. A last line that was cut off is dropped.

        Raises:
            InputError: It belongs to another calibration or an older version, or cannot be written.
            FileFormatError: It is damaged.
        """
        log = cls(out.with_name(out.name + SUFFIX), json_ready(about))
        path = log.path
        raw = read_bytes(path) if path.exists() else b""
        if not raw or (b"\n" not in raw and raw.startswith(b'{"key": ["about"]')):  # no result yet
            log._append(("about",), log.about)
            return log
        if raw.startswith(b'{"key": "'):
            raise InputError(f"to continue {path}", "a log of an older version of UniCP", AGAIN)
        lines = raw.split(b"\n")
        for number, line in enumerate(lines):
            try:
                key, value = _read(line, path)
            except FileFormatError:
                # Every whole line ends with a line break, so only the last one can be cut off.
                if number == len(lines) - 1 and number > 0:
                    break
                raise
            if number == 0 and (key != ("about",) or value != log.about):
                old = value if key == ("about",) else {}
                names = ", ".join(sorted(name for name, new in log.about.items() if new != old.get(name)))
                raise InputError(f"to continue {path}", f"another {names or 'calibration'}", AGAIN)
            if number > 0:
                log.known[key] = value
        return log

    def add(self, key: Key, value: Any) -> None:
        """Adds a result, of the kind that its key begins with.

        Raises:
            InputError: It cannot be written, or could not be read again.
        """
        self._append(key, value)
        self.known[key] = value

    def of(self, kind: str) -> list[Any]:
        """All results of one kind, in the order in which they were added."""
        return [value for key, value in self.known.items() if key[0] == kind]

    def done(self) -> None:
        """Deletes the log once the output is written."""
        self.path.unlink(missing_ok=True)

    def _append(self, key: Key, value: Any) -> None:
        try:
            line = json_line({"key": key, "value": value})
            _read(line.encode(), self.path)
        except (FileFormatError, TypeError, ValueError) as error:
            found = getattr(error, "found", str(error))
            raise InputError(f"to log {key!r:.60}", found, "see what made such a value") from error
        append_line(self.path, line)


def _read(line: bytes, path: Path) -> tuple[Key, Any]:
    """Key and value of a line. Raises FileFormatError."""
    asked = f"to continue {path}"
    raw = parse_json(line, asked, AGAIN)
    try:
        read = read_as(_Line, raw)
        kind = KINDS.get(str(read.key[0]) if read.key else "")
        if kind is None:
            raise MisfitError("a key of no known kind")
        return tuple(read.key), read_as(kind, read.value)
    except MisfitError as error:
        raise FileFormatError(asked, f"a damaged file ({error})", AGAIN) from error
