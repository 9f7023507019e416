"""Finds the run that a call of the transformer belongs to, and has it done there.

The hooks in `attachment` call in here: `call` around the whole transformer, `block_call` and `unit_call` around the
modules inside, `projection_call` around projections of the text. All state is in runs (`run_state`), which are kept
apart by thread: several requests may use one transformer at once, each with a scheduler of its own.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor

from unicp.execution.attention_call import AttentionCall
from unicp.execution.block_spans import BlockCall
from unicp.execution.model_call import CallInputs, CallReader, why_not_followed
from unicp.execution.recorder import CostBook
from unicp.execution.run_shared import Arguments, Forward, Keywords, Planner, Shared, two_threads
from unicp.execution.run_state import RunState
from unicp.execution.run_tracker import Going, RunTracker, falling_timestep
from unicp.execution.sample_chain import Link
from unicp.execution.trace_log import TraceLog
from unicp.models import scheduler_watch
from unicp.models.adapters import adapters_in_use
from unicp.models.finder import Block, ModelMap, Unit
from unicp.models.noise import schedule_of
from unicp.settings import Settings

# Runs of one thread that are kept, since loops may take turns, and a request may be made while another is under way.
# A run whose scheduler is not seen is taken for given up after so many calls of others; of one that is seen it is known
# when it is over. Under smaller spans, which hold much, no run waits for longer than loops that take turns need.
MOST_RUNS, LONGEST_WAIT, SHORT_WAIT = 3, 32, 2


class _Thread:
    """The runs of one thread, the newest last. now: the one whose call is under way.

    order: of the newest run of a sampler that was looked at.
    """

    def __init__(self, order: int) -> None:
        self.runs: list[RunState] = []
        self.now: RunState | None = None
        self.order = order

    def drop(self, run: RunState) -> None:
        """Forgets one run."""
        self.runs = [one for one in self.runs if one is not run]


class _Threads(threading.local):
    def __init__(self) -> None:
        self.own: _Thread | None = None


class Runner:
    """One transformer under UniCP. `scheduler_of` gives the scheduler of a run whose own one is not seen, or None.

    check: asked when a run begins; raises where UniCP can no longer be used on the transformer.
    """

    def __init__(
        self,
        model_map: ModelMap,
        settings: Settings,
        log: TraceLog,
        scheduler_of: Callable[[], Any],
        planner: Planner | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        self.map, self.settings = model_map, settings
        for unit in model_map.sliced_units:
            settings.slicing.widths_for(unit.head_width or 0)  # a width that no head has is refused at once
        sliced = (
            frozenset(unit.name for unit in model_map.sliced_units) if settings.slicing.widths else frozenset[str]()
        )
        calls = {block.name: BlockCall(block) for block in model_map.blocks}
        self.shared = Shared(model_map, settings, log, CostBook(model_map), calls, sliced, set(), planner)
        self._scheduler_of, self._check = scheduler_of, check
        self._reader = CallReader(model_map)
        self._threads, self._order = _Threads(), scheduler_watch.newest_order()
        # What a thread has here goes with it.
        self._known: dict[int, weakref.ref[_Thread]] = {}
        # Calls under way, and what is to be done once there are none. Lists, whose changes no other thread can split.
        self._under_way: list[object] = []
        self._afterwards: list[Callable[[], None]] = []
        self.is_off = False

    def reset(self) -> None:
        """Drops all runs: the next call of the model opens a new one. A call under way ends as it would have."""
        for thread in self._all_threads():
            for run in thread.runs:
                run.drop()
            thread.runs = []

    def close(self, take_off: Callable[[], None]) -> None:
        """Lets further calls pass by, and has the hooks taken off as soon as no call is under way that needs them."""
        self.is_off = True
        self.reset()
        self._afterwards.append(take_off)
        self._do_afterwards()

    def _do_afterwards(self) -> None:
        while self._afterwards and not self._under_way:
            try:
                self._afterwards.pop()()
            except IndexError:
                return

    def _all_threads(self) -> list[_Thread]:
        return [thread for thread in (known() for known in list(self._known.values())) if thread is not None]

    def end_run(self) -> None:
        """Drops the run of this thread that was called last: its pipeline has ended."""
        self._here.runs = self._here.runs[:-1]

    @property
    def is_empty(self) -> bool:
        """True when nothing of a run is held."""
        return not any(thread.runs for thread in self._all_threads())

    @property
    def _here(self) -> _Thread:
        if self._threads.own is None:
            own, known = _Thread(self._order), self._known
            key = id(own)
            known[key] = weakref.ref(own, lambda _: known.pop(key, None))
            self._threads.own = own
        return self._threads.own

    def call(self, forward: Forward, args: Arguments, kwargs: Keywords, context: Any) -> Any:
        """One call of the transformer. Whatever ends it early also ends the run: nothing stored of it survives."""
        # Counted first: who switches off then waits for this call, or this call sees that it is off.
        self._under_way.append(token := object())
        try:
            if self.is_off:
                return forward(*args, **kwargs)
            return self._call(self._here, forward, args, kwargs, context)
        finally:
            self._under_way.remove(token)
            self._do_afterwards()

    def _call(self, here: _Thread, forward: Forward, args: Arguments, kwargs: Keywords, context: Any) -> Any:
        given = self._reader.read(args, kwargs)
        if reason := why_not_followed(self.map.transformer, given, self.settings.span):
            here.runs = []
            self.shared.log.warn("not_followed", f"computed: {reason}")
            return forward(*args, **kwargs)
        weights = adapters_in_use(self.map.transformer)
        run, going = self._going_on(here, given, context, weights)
        if run is None or going is None or run.is_stale:
            run, going = self._opened(here, given, context, weights, None if run is None else run.found)
        before, here.now = here.now, run
        try:
            return run.call(forward, args, kwargs, given, going)
        except BaseException:
            here.drop(run)
            raise
        finally:
            here.now = before

    def _going_on(
        self, here: _Thread, given: CallInputs, context: Any, weights: Any
    ) -> tuple[RunState | None, Going | None]:
        """The run of this thread that a call goes on with, the newest of several; it is the newest from then on.

        A stale one is no run to go on with, but tells the scheduler of the one that takes its place.
        """
        # What this thread has set since is for another run, unless the sample is the one that this run's sampler made.
        newest = max([here.order, *(run.order for run in scheduler_watch.runs_set_here(here.order))])
        found: list[tuple[RunState, Going]] = []
        for run in reversed(here.runs):
            if run.tracker.is_set_elsewhere:
                here.drop(run)
                if run.tracker.goes_on(given, context, weights, even_if_set_anew=True):
                    raise two_threads(run.tracker.scheduler)
            elif (going := run.tracker.goes_on(given, context, weights)) and (
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
        self._put_last(here, run)
        return run, going

    def _put_last(self, here: _Thread, run: RunState) -> None:
        others = [one for one in here.runs if one is not run]
        for one in others:
            one.waited += 1
        if self.settings.span == "model":
            waiting = [one for one in others if one.tracker.set_by is not None or one.waited <= LONGEST_WAIT]
        else:
            waiting = [one for one in others if one.waited <= SHORT_WAIT]
        here.runs = [*waiting, run][-MOST_RUNS:]

    def _opened(
        self, here: _Thread, given: CallInputs, context: Any, weights: Any, found: tuple[Any] | None
    ) -> tuple[RunState, Going]:
        """A new run of this thread, begun by this call. found: (scheduler,) where that is known already."""
        self._check()
        scheduler = self._scheduler(here, given) if found is None else found[0]
        set_by = None if scheduler is None else scheduler_watch.latest_run(scheduler)
        # A prompt that changes, say, begins a run in the middle of what the scheduler was set to.
        left = [run.tracker.last_index for run in here.runs if run.tracker.is_under(scheduler, set_by)]
        # The pipeline has left what it had begun with this scheduler, and what was stale has been found out.
        here.runs = [run for run in here.runs if not run.is_stale and not run.tracker.is_left_for(scheduler)]
        family = self.map.family
        tracker = RunTracker(
            run=self.shared.log.number(set_by, self),
            schedule=schedule_of(family, scheduler),
            scheduler=scheduler,
            set_by=set_by,
            timestep_scale=family.timestep_scale,
            timestep_shift=family.timestep_shift,
            last_index=left[-1] if left else -1,
        )
        going = tracker.goes_on(given, context, weights)
        assert going is not None
        run = RunState(self.shared, tracker, self._scheduler_of())
        self._put_last(here, run)
        return run, going

    def _scheduler(self, here: _Thread, given: CallInputs) -> Any:
        """The scheduler of a run that begins: one that this thread has set since the last one began, …"""
        scheduler_watch.see_new_classes(usual := self._scheduler_of())
        fresh = scheduler_watch.runs_set_here(here.order)
        here.order = max([here.order, *(run.order for run in fresh)])
        schedulers = [run.scheduler() for run in fresh]
        if any(scheduler is usual for scheduler in schedulers):
            return usual
        # … else the one of the run before, for a prompt may change in mid-run, and else that of the pipeline.
        before = [run.tracker.scheduler for run in reversed(here.runs) if run.tracker.set_by is not None]
        for scheduler in (*reversed(schedulers), *before):
            schedule = schedule_of(self.map.family, scheduler)
            if schedule is None or schedule.step_indices(self._falling(given.timestep)):
                return scheduler
        return usual

    def _falling(self, timestep: Any) -> float:
        return falling_timestep(timestep, self.map.family.timestep_scale, self.map.family.timestep_shift)

    def block_call(self, block: Block, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """One call of one block."""
        run = self._here.now
        return forward(*args, **kwargs) if run is None else run.block_call(block, forward, args, kwargs)

    def unit_call(self, unit: Unit, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """One call of one unit."""
        run = self._here.now
        return forward(*args, **kwargs) if run is None else run.unit_call(unit, forward, args, kwargs)

    def projection_call(self, name: str, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """One call of a projection that sees nothing but the text."""
        run = self._here.now
        return forward(*args, **kwargs) if run is None else run.projection_call(name, forward, args, kwargs)

    def attend(self, unit: Unit, call: AttentionCall, first: bool) -> Tensor:
        """The attention of a compiled unit. first: False for a further call of the same module."""
        run = self._here.now
        return call.full() if run is None else run.slices.attend(unit, call, first)
