"""Output to the terminal without control characters, lost output, and Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from unicp.errors import clean


class OutputLostError(Exception):
    """Stdout cannot be written.

    Attributes:
        reason: In words.
        has_left: Whether the reader has left, as after `| head`.
    """

    def __init__(self, error: OSError):
        self.reason, self.has_left = error.strerror or str(error), error.errno == errno.EPIPE
        super().__init__(self.reason)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Passes everything printed inside through `clean`, and drops what stderr cannot take.

    Raises:
        OutputLostError: Stdout cannot be written.
    """
    _fill_closed()
    before = sys.stdout, sys.stderr
    sys.stdout = None if before[0] is None else _Cleaned(before[0], is_needed=True)  # type: ignore[assignment]
    sys.stderr = None if before[1] is None else _Cleaned(before[1], is_needed=False)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Remembers a Ctrl-C: libraries swallow it while they are imported, or raise another error."""
    _interrupts.clear()
    try:
        before = signal.signal(signal.SIGINT, _interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def was_interrupted() -> bool:
    """Whether there was a Ctrl-C since this command began."""
    return bool(_interrupts)


def check_interrupt() -> None:
    """Raises KeyboardInterrupt if there was a Ctrl-C that something swallowed."""
    if _interrupts:
        raise KeyboardInterrupt


_interrupts: list[int] = []


def _interrupt(number: int, _frame: Any) -> None:
    _interrupts.append(number)
    raise KeyboardInterrupt


def give_up_stdout() -> None:
    """Sends the rest of stdout to nowhere, so that Python does not fail again when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        place = os.open(os.devnull, os.O_WRONLY)
        os.dup2(place, raw(sys.stdout).fileno())
        os.close(place)


def raw(stream: Any) -> Any:
    """The stream behind a cleaned one, for code that draws on a terminal and cleans its own texts."""
    return stream.raw_stream if isinstance(stream, _Cleaned) else stream


class _Cleaned(io.TextIOBase):
    """A text stream in front of another one."""

    def __init__(self, stream: Any, is_needed: bool):
        self.raw_stream, self._is_needed = stream, is_needed

    def write(self, text: str, /) -> int:
        # Not every terminal can encode every letter.
        name = self.encoding or "utf-8"
        shown = clean(text).encode(name, "backslashreplace").decode(name)
        self._try(lambda: self.raw_stream.write(shown))
        return len(text)

    def flush(self) -> None:
        self._try(lambda: self.raw_stream.flush())

    def _try(self, act: Any) -> None:
        try:
            act()
        except OSError as error:
            if self._is_needed:
                raise OutputLostError(error) from error

    @property
    def encoding(self) -> str | None:  # type: ignore[override]
        return getattr(self.raw_stream, "encoding", None)

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return getattr(self.raw_stream, "errors", None)

    def isatty(self) -> bool:
        return self.raw_stream.isatty()

    def fileno(self) -> int:
        return self.raw_stream.fileno()

    def writable(self) -> bool:
        return True


def _fill_closed() -> None:
    """Opens /dev/null for closed standard streams.

    Otherwise the next opened file takes their number, and what a library prints goes into the video.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
