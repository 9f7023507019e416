"""What a calibration has found so far, beside its output file: one JSON line per finished run, so that it can go on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unicp.errors import FileFormatError, InputError
from unicp.files import json_ready

SUFFIX = ".unfinished"


@dataclass
class Notes:
    """Results by key, each written to the file the moment it is known. about: what they hold for."""

    path: Path
    about: dict[str, Any]
    known: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, out: Path, about: dict[str, Any]) -> Notes:
        """The notes beside `out`, new or gone on with. A last line that was cut off is dropped.

        Raises InputError where they are of another calibration or cannot be written, FileFormatError where damaged.
        """
        path = out.with_name(out.name + SUFFIX)
        about = json.loads(json.dumps(json_ready(about)))
        notes = cls(path, about)
        lines = _lines(path)
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line)
                key, value = entry["key"], entry["value"]
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines) - 1 and number > 0:
                    break
                raise FileFormatError(f"to go on with {path}", "a damaged file", "delete it to begin anew") from error
            if number == 0 and value != about:
                names = ", ".join(sorted(name for name in about if about[name] != (value or {}).get(name)))
                raise InputError(f"to go on with {path}", f"another {names}", "delete it to begin anew")
            notes.known[key] = value
        notes._write_all()
        return notes

    def add(self, key: str, value: Any) -> None:
        """Keeps a result: a dataclass or plain values."""
        plain = json_ready(asdict(value) if hasattr(value, "__dataclass_fields__") else value)
        self.known[key] = plain
        with self.path.open("a", encoding="ascii") as file:
            file.write(_line(key, plain))

    def done(self) -> None:
        """The output is written: the notes are not needed any more."""
        self.path.unlink(missing_ok=True)

    def _write_all(self) -> None:
        # Anew, so that a line that was cut off does not spoil the next.
        results = [_line(key, value) for key, value in self.known.items() if key != "about"]
        try:
            self.path.write_text("".join([_line("about", self.about), *results]), encoding="ascii")
        except OSError as error:
            raise InputError(f"to write {self.path}", str(error), "name a place that can be written") from error


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"to go on with {path}", "a damaged file", "delete it to begin anew") from error


def _line(key: str, value: Any) -> str:
    return json.dumps({"key": key, "value": value}, allow_nan=False) + "\n"
