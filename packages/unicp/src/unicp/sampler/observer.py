"""Sees what samplers are told, `set_timesteps` and `step`, wherever it is said and in the thread that says it.

The methods are wrapped at the classes of schedulers while UniCP is enabled anywhere. Nothing is put on a scheduler
itself, so that copies and pickles of one are what they are without UniCP, and a copy that was made for a request is
seen like any other. In return a session must find out whose steps it sees: a run of the model knows the scheduler that
steps it, and the thread (`SamplerRun`).
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

_SET, _STEP = "set_timesteps", "step"
# Schedulers that one thread has set since a model was last called there: a pipeline of video and audio sets two.
_MOST_SETS = 8

Call = Callable[..., Any]


class SamplerRun:
    """What begins when a scheduler is set to its timesteps. thread: where that was."""

    def __init__(self, scheduler: Any, order: int):
        self.scheduler = _reference(scheduler)
        self.thread = threading.get_ident()
        self.order = order


class StepTaker(Protocol):
    """A run of a model, which takes part in the steps of its scheduler."""

    def take_step(self, scheduler: Any, own: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Does a step in place of the scheduler, whose own one is `own`."""
        ...


class SetListener(Protocol):
    """Told of each `set_timesteps` once it is done."""

    def was_set(self, run: SamplerRun, scheduler: Any, again: Call, args: tuple[Any, ...], kwargs: Any) -> None:
        """again: the scheduler's own `set_timesteps`, which was called with these arguments."""
        ...


class _Here(threading.local):
    """What one thread does. inside: schedulers whose own method is under way, for methods call those they override."""

    def __init__(self) -> None:
        self.sets: list[SamplerRun] = []
        self.inside: list[int] = []
        self.taker: weakref.ref[Any] | None = None


_here = _Here()
# Re-entrant: a session may be disabled by the garbage collector or a signal in the middle of it.
_lock = threading.RLock()
_users: weakref.WeakSet[Any] = weakref.WeakSet()
_listeners: weakref.WeakSet[Any] = weakref.WeakSet()
_wrapped: dict[tuple[type, str], tuple[Call, Call]] = {}
_latest: dict[int, SamplerRun] = {}
_order = 0


def _mend_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    # Another thread may have held it when the process was forked, and that thread is not in the child.
    os.register_at_fork(after_in_child=_mend_lock)


def watch(user: Any, schedulers: Iterable[Any] = ()) -> None:
    """Watches schedulers until `leave(user)`, or until `user` is gone: all of diffusers', and the classes of these."""
    with _lock:
        _users.add(user)
        _wrap_all(schedulers)


def leave(user: Any) -> None:
    """Gives classes their own methods back once nobody watches any more. May be repeated."""
    with _lock:
        _users.discard(user)
        _listeners.discard(user)
        if _users:
            return
        for (kind, name), (wrapper, own) in list(_wrapped.items()):
            # Somebody else may have put something in front of ours: then it stays, and passes everything on.
            if vars(kind).get(name) is wrapper:
                setattr(kind, name, own)
        _wrapped.clear()
        _latest.clear()


def see_new_classes(scheduler: Any = None) -> None:
    """Has classes that were loaded since watched too."""
    if any((kind, name) not in _wrapped for kind in _classes([scheduler]) for name in _own_methods(kind)):
        with _lock:
            _wrap_all([scheduler])


def listen(listener: SetListener) -> None:
    """Has a watching user told of each `set_timesteps`."""
    with _lock:
        _listeners.add(listener)


def latest_run(scheduler: Any) -> SamplerRun | None:
    """The run that a scheduler was last set to, in whatever thread; None where that was not seen."""
    run = _latest.get(id(scheduler))
    return run if run is not None and run.scheduler() is scheduler else None


def newest_order() -> int:
    """The order of the newest run of any scheduler."""
    return _order


def runs_set_here(since: int) -> list[SamplerRun]:
    """What this thread has set since a run of that order, the newest last; schedulers that are gone are left out."""
    return [run for run in _here.sets if run.order > since and run.scheduler() is not None]


def expect_step(taker: StepTaker) -> None:
    """The next step in this thread belongs to this run, which just had a call of its model."""
    _here.taker = weakref.ref(taker)


def calling_frames(depth: int = 14) -> Iterator[Any]:
    """The objects (`self`) in whose methods this thread is, innermost first."""
    frame = sys._getframe(1)
    for _ in range(depth):
        if frame is None:
            return
        found = frame.f_locals.get("self")
        if found is not None:
            yield found
        frame = frame.f_back


def _wrap_all(schedulers: Iterable[Any]) -> None:
    for kind in _classes(schedulers):
        for name, own in _own_methods(kind).items():
            if (kind, name) not in _wrapped:
                wrapper = _around(name, own)
                setattr(kind, name, wrapper)
                _wrapped[kind, name] = wrapper, own


def _classes(schedulers: Iterable[Any]) -> set[type]:
    module = sys.modules.get("diffusers.schedulers.scheduling_utils")
    found: set[type] = set() if module is None else _subclasses(module.SchedulerMixin)
    return found.union(*(type(scheduler).__mro__ for scheduler in schedulers)) - {object}


def _subclasses(kind: type) -> set[type]:
    below = kind.__subclasses__()
    return {*below, *(one for child in below for one in _subclasses(child))}


def _own_methods(kind: type) -> dict[str, Call]:
    """The methods that are watched, as far as this class defines them itself, without our wrappers."""
    found = {name: vars(kind).get(name) for name in (_SET, _STEP)}
    return {name: own for name, own in found.items() if inspect.isfunction(own) and not hasattr(own, "unicp_watches")}


def _around(name: str, own: Call) -> Call:
    do = _set_timesteps if name == _SET else _step

    @functools.wraps(own)  # pipelines look at the signature
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _users or id(self) in _here.inside:
            return own(self, *args, **kwargs)
        _here.inside.append(id(self))
        try:
            return do(self, functools.partial(own, self), args, kwargs)
        finally:
            _here.inside.remove(id(self))

    method.unicp_watches = True  # type: ignore[attr-defined]
    return method


def _set_timesteps(scheduler: Any, own: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    global _order
    result = own(*args, **kwargs)
    with _lock:
        _order += 1
        run = SamplerRun(scheduler, _order)
        _latest[id(scheduler)] = run
        for key in [key for key, one in _latest.items() if one.scheduler() is None]:
            del _latest[key]
        listeners = list(_listeners)
    _here.sets = [*_here.sets, run][-_MOST_SETS:]
    for listener in listeners:
        listener.was_set(run, scheduler, own, args, kwargs)
    return result


def _step(scheduler: Any, own: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    taker = None if _here.taker is None else _here.taker()
    # A method of the instance itself is somebody else's, who calls this one.
    if taker is None or _STEP in vars(scheduler):
        return own(*args, **kwargs)
    return taker.take_step(scheduler, own, args, kwargs)


def _reference(scheduler: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(scheduler)
    except TypeError:
        return lambda: scheduler
