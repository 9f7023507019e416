"""Every exception a user can meet. Each message is one line: what was asked, what was found, what to do."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

# Control characters but for line breaks and tabs, what turns the direction of text, and halves of characters (names of
# files that are no UTF-8). Escape sequences begin with one of these.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_LONGEST_WORD = 300


class UniCPError(Exception):
    """Base of all UniCP errors. `str(error)` is one line: "asked: …; found: …; do: …"."""

    def __init__(self, asked: str, found: str, do: str):
        self.asked, self.found, self.do = one_line(asked), one_line(found), one_line(do)
        super().__init__(f"asked: {self.asked}; found: {self.found}; do: {self.do}")


def clean(text: str) -> str:
    """The text with everything visible that would steer a terminal: "\\x1b" for an escape character."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def one_line(text: str) -> str:
    """A message as one line, cleaned; of words that no line has room for the beginning and the end.

    Names and contents of files may hold anything.
    """
    words = (
        word if len(word) <= _LONGEST_WORD else f"{word[: _LONGEST_WORD // 2]}…{word[-_LONGEST_WORD // 4 :]}"
        for word in text.split()
    )
    return clean(" ".join(words))


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
