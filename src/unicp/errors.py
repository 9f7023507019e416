"""Every exception a user can meet. Each message is one line: what was asked, what was found, what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn


class UniCPError(Exception):
    """Base of all UniCP errors. `str(error)` is one line: "asked: …; found: …; do: …"."""

    def __init__(self, asked: str, found: str, do: str):
        self.asked, self.found, self.do = one_line(asked), one_line(found), one_line(do)
        super().__init__(f"asked: {self.asked}; found: {self.found}; do: {self.do}")


def one_line(text: str) -> str:
    """Text in one line, without anything that a terminal obeys: names and contents of files may hold anything."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)


class SettingsError(UniCPError, ValueError):
    """A setting or preset that cannot be used."""


class UnsupportedModelError(UniCPError, TypeError):
    """A model in which nothing that UniCP knows was found, or that lacks what a setting needs."""


class AttachmentError(UniCPError, RuntimeError):
    """Attaching twice, attaching beside another cache, or detaching what is not attached."""


class FileFormatError(UniCPError, ValueError):
    """A file that is damaged, foreign or of another version."""


class InputError(UniCPError, ValueError):
    """A prompt, path or number given by the user that cannot be used."""


def run_main(main: Callable[[], Any]) -> NoReturn:
    """Runs the `main` of a module and leaves with its exit code, or with one line for what a user can cause."""
    try:
        code = main()
    except UniCPError as error:
        code = f"error: {error}"
    sys.exit(code)
