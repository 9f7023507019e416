"""What a calibration has found so far, beside its output file: one JSON line per finished run, so that it can go on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from unicp.errors import FileFormatError, InputError
from unicp.files import (
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
from unicp.planning.profile import FewerSteps, OnlineTrial, Probe, Recording, Trial, WindowProbe

SUFFIX = ".unfinished"
AGAIN = "delete it to begin anew"


@dataclass(frozen=True)
class PlainSeconds:
    """Seconds of a plain run: of a computed step (median), and of all the rest."""

    computed: Positive
    rest: NotNegative


@dataclass(frozen=True)
class Facts:
    """Of a plain run. shape: of its latent, batch first. branches: calls a step."""

    shape: list[Annotated[int, Within(1, 10**9)]]
    branches: Annotated[int, Within(1, 1000)]
    seconds: PlainSeconds


# What a note holds, by the first word of its key.
KINDS: dict[str, Any] = {
    "about": dict[str, Any],
    "facts": Facts,
    "recording": Recording,
    "probe": Probe,
    "window": WindowProbe,
    "trial": Trial,
    "online": OnlineTrial,
    "fewer": FewerSteps,
    # Median seconds of a step served in a trial, and what UniCP cost in one as a share of its computed steps.
    "served": NotNegative,
    "added": Annotated[float, Within(-1e30, 1e30)],
}


@dataclass(frozen=True)
class Note:
    """One line of the file. value: of the kind that the first word of the key says."""

    key: str
    value: Any


@dataclass
class Notes:
    """Results by key, each on the disk the moment it is known. about: what they hold for."""

    path: Path
    about: dict[str, Any]
    known: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, out: Path, about: dict[str, Any]) -> Notes:
        """The notes beside `out`, new or gone on with. A last line that was cut off is dropped.

        Raises InputError where they are of another calibration or cannot be written, FileFormatError where damaged.
        """
        notes = cls(out.with_name(out.name + SUFFIX), json_ready(about))
        path = notes.path
        raw = read_bytes(path) if path.exists() else b""
        if not raw or (b"\n" not in raw and raw.startswith(b'{"key": "about"')):  # nothing was found out yet
            notes._append("about", notes.about)
            return notes
        lines = raw.split(b"\n")
        for number, line in enumerate(lines):
            try:
                note = _note(line, path)
            except FileFormatError:
                # Every whole line ends with a line break: only what stands behind the last one can be half a line.
                if number == len(lines) - 1 and number > 0:
                    break
                raise
            if number == 0 and (note.key != "about" or note.value != notes.about):
                old = note.value if note.key == "about" else {}
                names = ", ".join(sorted(name for name, value in notes.about.items() if value != old.get(name)))
                raise InputError(f"to go on with {path}", f"another {names or 'calibration'}", AGAIN)
            if number > 0:
                notes.known[note.key] = note.value
        return notes

    def add(self, key: str, value: Any) -> None:
        """Keeps a result, of the kind that the first word of its key stands for. Raises InputError."""
        self._append(key, value)
        self.known[key] = value

    def of(self, word: str) -> list[Any]:
        """All results whose keys begin with this word."""
        return [value for key, value in self.known.items() if key.partition(" ")[0] == word]

    def done(self) -> None:
        """The output is written: the notes are not needed any more."""
        self.path.unlink(missing_ok=True)

    def _append(self, key: str, value: Any) -> None:
        try:
            line = json_line({"key": key, "value": value})
            _note(line.encode(), self.path)
        except (FileFormatError, TypeError, ValueError) as error:
            found = getattr(error, "found", str(error))
            raise InputError(f"to note {key!r:.60}", found, "see what made such a value") from error
        append_line(self.path, line)


def _note(line: bytes, path: Path) -> Note:
    """The note of a line. Raises FileFormatError."""
    asked = f"to go on with {path}"
    raw = parse_json(line, asked, AGAIN)
    try:
        note = read_as(Note, raw)
        return Note(note.key, read_as(KINDS.get(note.key.partition(" ")[0], Note), note.value))
    except MisfitError as error:
        raise FileFormatError(asked, f"a damaged file ({error})", AGAIN) from error
