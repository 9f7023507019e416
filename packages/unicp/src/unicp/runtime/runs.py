"""Which run a call of the transformer belongs to.

Runs are kept apart by thread and by scheduler, so several requests may use one transformer at once, each with a
scheduler of its own. A call goes on with the run whose sampler made its sample; else with the one whose sample is
nearest; and where it goes on with none it begins one.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from unicp.models.family_form import Family
from unicp.models.noise import schedule_of
from unicp.runtime.model_call import CallInputs
from unicp.runtime.run_state import RunState, two_threads
from unicp.runtime.run_tracker import Going, RunTracker, falling_timestep
from unicp.runtime.sample_chain import Link
from unicp.sampler import observer

# Runs of one thread that are kept, since loops may take turns, and a request may be made while another is under way.
# A run whose scheduler is not seen is taken for given up after so many calls of others; of one that is seen it is known
# when it is over. Below the whole model, where runs hold much, none waits for longer than loops that take turns need.
MOST_RUNS, LONGEST_WAIT, SHORT_WAIT = 3, 32, 2


class _Thread:
    """The runs of one thread, the newest last. now: the one whose call is under way.

    order: of the newest run of a sampler that was looked at.
    """

    def __init__(self, order: int) -> None:
        self.runs: list[RunState] = []
        self.now: RunState | None = None
        self.order = order


class _Here(threading.local):
    def __init__(self) -> None:
        self.own: _Thread | None = None


class Runs:
    """The runs of one transformer.

    Args:
        family: Row of the transformer.
        is_small: Whether a run holds little (the outputs of the whole model alone).
        usual_scheduler: Gives the scheduler of a run whose own one is not seen, or `None`.
        number: Numbers a new run, by what its sampler was set to.
        open_run: Makes the state of a new run from its tracker and its usual scheduler. Raises where UniCP can no
            longer be used on the transformer.
    """

    def __init__(
        self,
        family: Family,
        is_small: bool,
        usual_scheduler: Callable[[], Any],
        number: Callable[[Any], int],
        open_run: Callable[[RunTracker, Any], RunState],
    ):
        self._family, self._is_small, self._usual = family, is_small, usual_scheduler
        self._number, self._open_run = number, open_run
        self._here, self._order = _Here(), observer.newest_order()
        # What a thread has here goes with it.
        self._known: dict[int, weakref.ref[_Thread]] = {}

    @property
    def now(self) -> RunState | None:
        """The run of this thread whose call is under way."""
        return self._thread.now

    @property
    def is_empty(self) -> bool:
        """True when nothing of a run is held."""
        return not any(thread.runs for thread in self._threads())

    def reset(self) -> None:
        """Drops all runs, in all threads: the next call of the model opens a new one."""
        for thread in self._threads():
            for run in thread.runs:
                run.drop()
            thread.runs = []

    def drop_here(self) -> None:
        """Drops the runs of this thread."""
        self._thread.runs = []

    def end_newest(self) -> None:
        """Drops the run of this thread that was called last: its pipeline has ended."""
        self._thread.runs = self._thread.runs[:-1]

    @contextmanager
    def inside_call(self, run: RunState) -> Iterator[None]:
        """A call of this run is under way. If it fails the run is dropped: nothing that is kept of it survives."""
        here = self._thread
        before, here.now = here.now, run
        try:
            yield
        except BaseException:
            here.runs = [one for one in here.runs if one is not run]
            raise
        finally:
            here.now = before
            run.leave_call()

    def locate(self, call: CallInputs, context: Any, weights: Any) -> tuple[RunState, Going]:
        """The run that a call goes on with or begins, the newest of this thread from then on.

        Args:
            call: What the model is given.
            context: diffusers' `CacheContext`, or `None`.
            weights: Says by a change that the model has become another one, for instance by a LoRA.
        """
        run, going = self._going_on(call, context, weights)
        if run is None or going is None or run.is_stale:
            # A stale one is no run to go on with, but tells the scheduler of the one that takes its place.
            run, going = self._opened(call, context, weights, None if run is None else run.found)
        self._put_last(run)
        return run, going

    def _going_on(self, call: CallInputs, context: Any, weights: Any) -> tuple[RunState | None, Going | None]:
        here = self._thread
        # What this thread has set since is for another run, unless the sample is the one that this run's sampler made.
        newest = max([here.order, *(run.order for run in observer.runs_set_here(here.order))])
        found: list[tuple[RunState, Going]] = []
        for run in reversed(here.runs):
            if run.tracker.is_set_elsewhere:
                here.runs = [one for one in here.runs if one is not run]
                if run.tracker.goes_on(call, context, weights, even_if_set_anew=True):
                    raise two_threads(run.tracker.scheduler)
            elif (going := run.tracker.goes_on(call, context, weights)) and (
                newest == here.order or going.link is Link.MADE
            ):
                found.append((run, going))
                if going.link is Link.MADE:
                    break
        if not found:
            return None, None
        # The sampler's own sample is sure; else the run with the nearest one is meant.
        run, going = found[-1] if found[-1][1].link is Link.MADE else min(found, key=lambda one: one[1].distance)
        here.order = newest
        run.check_scheduler(going)
        return run, going

    def _put_last(self, run: RunState) -> None:
        here = self._thread
        others = [one for one in here.runs if one is not run]
        for one in others:
            one.wait()
        if self._is_small:
            waiting = [one for one in others if one.tracker.set_by is not None or one.waited <= LONGEST_WAIT]
        else:
            waiting = [one for one in others if one.waited <= SHORT_WAIT]
        run.resume()
        here.runs = [*waiting, run][-MOST_RUNS:]

    def _opened(self, call: CallInputs, context: Any, weights: Any, found: tuple[Any] | None) -> tuple[RunState, Going]:
        """A new run of this thread, begun by this call. found: (scheduler,) where that is known already."""
        here, family = self._thread, self._family
        scheduler = self._scheduler(call) if found is None else found[0]
        set_by = None if scheduler is None else observer.latest_run(scheduler)
        # A prompt that changes, say, begins a run in the middle of what the scheduler was set to.
        left = [run.tracker.last_index for run in here.runs if run.tracker.is_under(scheduler, set_by)]
        # The pipeline has left what it had begun with this scheduler, and what was stale has been found out.
        here.runs = [run for run in here.runs if not run.is_stale and not run.tracker.is_left_for(scheduler)]
        tracker = RunTracker(
            run=self._number(set_by),
            schedule=schedule_of(family, scheduler),
            scheduler=scheduler,
            set_by=set_by,
            timestep_scale=family.timestep_scale,
            timestep_shift=family.timestep_shift,
            last_index=left[-1] if left else -1,
        )
        going = tracker.goes_on(call, context, weights)
        assert going is not None
        return self._open_run(tracker, self._usual()), going

    def _scheduler(self, call: CallInputs) -> Any:
        """The scheduler of a run that begins: one that this thread has set since the last one began, …"""
        here, family = self._thread, self._family
        observer.see_new_classes(usual := self._usual())
        fresh = observer.runs_set_here(here.order)
        here.order = max([here.order, *(run.order for run in fresh)])
        schedulers = [run.scheduler() for run in fresh]
        if any(scheduler is usual for scheduler in schedulers):
            return usual
        # … else the one of the run before, for a prompt may change in mid-run, and else that of the pipeline.
        before = [run.tracker.scheduler for run in reversed(here.runs) if run.tracker.set_by is not None]
        timestep = falling_timestep(call.timestep, family.timestep_scale, family.timestep_shift)
        for scheduler in (*reversed(schedulers), *before):
            schedule = schedule_of(family, scheduler)
            if schedule is None or schedule.step_indices(timestep):
                return scheduler
        return usual

    @property
    def _thread(self) -> _Thread:
        if self._here.own is None:
            own, known = _Thread(self._order), self._known
            key = id(own)
            known[key] = weakref.ref(own, lambda _: known.pop(key, None))
            self._here.own = own
        return self._here.own

    def _threads(self) -> list[_Thread]:
        return [thread for thread in (known() for known in list(self._known.values())) if thread is not None]
