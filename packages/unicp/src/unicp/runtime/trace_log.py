"""Writes into the trace of a session, from several threads, and keeps it within its bound."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from unicp.records import Entry, Trace

_logs: weakref.WeakSet[TraceLog] = weakref.WeakSet()


class TraceLog:
    """The trace of a session, to be written to. limit: entries kept, None = all.

    Beyond the limit whole runs are dropped, the oldest first, and counted ("dropped_runs"); the newest one stays.
    """

    def __init__(self, trace: Trace, limit: int | None = None):
        self.trace, self.limit = trace, limit
        # Re-entrant: a session may be disabled by the garbage collector or a signal in the middle of it.
        self._lock = threading.RLock()
        self._runs = itertools.count()
        # Which number a run of a sampler has, and the transformers that have had it.
        self._numbers: weakref.WeakKeyDictionary[Any, tuple[int, set[object]]] = weakref.WeakKeyDictionary()
        _logs.add(self)

    def number(self, key: Any, model: object) -> int:
        """A number for a run of this transformer. key: what its scheduler was set to, None = unknown.

        Two experts that take turns under one scheduler share it; a second run of one of them has a number of its own.
        """
        with self._lock:
            if key is None:
                return next(self._runs)
            number, models = self._numbers.get(key, (-1, set()))
            if number < 0 or model in models:
                number, models = next(self._runs), set()
            self._numbers[key] = number, {*models, model}
            return number

    def add(self, entries: Sequence[Entry]) -> None:
        """Appends the entries of one call."""
        with self._lock:
            self.trace.entries.extend(entries)
            if self.limit is not None and len(self.trace.entries) > self.limit:
                self._drop(self.limit)

    def began(self, run: int, steps: int | None) -> None:
        """A run was called whose scheduler is set to so many steps, None = not known."""
        if steps is not None:
            self.trace.run_steps[str(run)] = steps

    def warn(self, key: str, message: str) -> None:
        """Counts an event, and keeps its message once."""
        with self._lock:
            self.trace.counts[key] += 1
            if message not in self.trace.warnings:
                self.trace.warnings.append(message)

    def count(self, key: str, by: int = 1) -> None:
        """Counts events."""
        with self._lock:
            self.trace.counts[key] += by

    def tell(self, message: str) -> None:
        """Keeps a message once."""
        with self._lock:
            if message not in self.trace.warnings:
                self.trace.warnings.append(message)

    def _drop(self, limit: int) -> None:
        entries = self.trace.entries
        sizes: dict[int, int] = {}
        for entry in entries:
            sizes[entry.run] = sizes.get(entry.run, 0) + 1
        left, dropped = len(entries), set[int]()
        for run in list(sizes)[:-1]:
            if left <= limit:
                break
            dropped.add(run)
            left -= sizes[run]
        if dropped:
            # In place: users hold the list.
            entries[:] = [entry for entry in entries if entry.run not in dropped]
            self.trace.counts["dropped_runs"] += len(dropped)
            for run in dropped:
                self.trace.run_steps.pop(str(run), None)

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()


def _renew_locks() -> None:
    for log in list(_logs):
        log._renew_lock()


if hasattr(os, "register_at_fork"):
    # A thread that held a lock when the process was forked is not in the child to give it back.
    os.register_at_fork(after_in_child=_renew_locks)
