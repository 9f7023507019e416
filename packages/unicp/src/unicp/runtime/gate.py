"""Counts the calls of a model that are under way, so that nobody takes hooks off that a call still needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Gate:
    """Open until it is closed; what is to be done afterwards waits for the calls under way.

    Attributes:
        is_closed: Whether further calls pass by.
    """

    def __init__(self) -> None:
        self.is_closed = False
        # Lists, whose changes no other thread can split.
        self._under_way: list[object] = []
        self._afterwards: list[Callable[[], None]] = []

    @contextmanager
    def passing(self) -> Iterator[bool]:
        """A call is under way; gives whether it passes by, since the gate is closed."""
        # Counted first: who closes the gate then waits for this call, or this call sees that it is closed.
        self._under_way.append(token := object())
        try:
            yield self.is_closed
        finally:
            self._under_way.remove(token)
            self._do_afterwards()

    def close(self, afterwards: Callable[[], None]) -> None:
        """Lets further calls pass by, and does `afterwards` as soon as no call is under way."""
        self.is_closed = True
        self._afterwards.append(afterwards)
        self._do_afterwards()

    def _do_afterwards(self) -> None:
        while self._afterwards and not self._under_way:
            try:
                self._afterwards.pop()()
            except IndexError:
                return
