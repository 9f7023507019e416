"""What happens when the transformer is called: locate the run, decide, act, record.

The root hook in `unicp.hooks.diffusers` calls `Engine.call` in place of the transformer's forward. Start to read at
`Engine._call` and `Engine._whole`. What happens inside the transformer is in `unicp.runtime.inside`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from unicp.context import Action
from unicp.models.adapters import adapters_in_use
from unicp.models.finder import ModelMap
from unicp.predictors.base import PredictorInfo
from unicp.runtime.cache_point import Measured
from unicp.runtime.gate import Gate
from unicp.runtime.inside import Arguments, Forward, Inside, Keywords, Skipped, count_non_finite
from unicp.runtime.model_call import CallReader, read_output, why_not_followed
from unicp.runtime.part_checks import make_policy, make_predictor, make_reducer
from unicp.runtime.recorder import MODEL, CostBook, Recorder
from unicp.runtime.run_state import Planner, RunState, Underway
from unicp.runtime.run_tracker import RunTracker
from unicp.runtime.runs import Runs
from unicp.runtime.trace_log import TraceLog
from unicp.sampler import observer
from unicp.settings import Settings


class Engine:
    """One transformer under UniCP.

    Args:
        model_map: Of the transformer.
        settings: Of the session.
        log: The trace.
        usual_scheduler: Gives the scheduler of a run whose own one is not seen, or `None`.
        planner: Gives each run what it follows; `None` = all runs follow the settings.
        check: Asked when a run begins; raises where UniCP can no longer be used on the transformer.

    Raises:
        SettingsError: The settings name a part that nobody registered, or a width that no head has.
    """

    def __init__(
        self,
        model_map: ModelMap,
        settings: Settings,
        log: TraceLog,
        usual_scheduler: Callable[[], Any],
        planner: Planner | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        self.map, self.settings, self.log = model_map, settings, log
        for unit in model_map.sliced_units:
            settings.slicing.widths_for(unit.head_width or 0)
        # Made once, so that what cannot be made is told now.
        make_predictor(settings, PredictorInfo(MODEL))
        make_reducer(settings.slicing)
        self.signals = make_policy(settings).signals
        self._planner, self._check, self._book = planner, check, CostBook(model_map)
        self._reader = CallReader(model_map)
        is_small = settings.level == "model"
        self.runs = Runs(model_map.family, is_small, usual_scheduler, self._number, self._open)
        self.inside = Inside(model_map, settings, log, self.runs)
        self.gate = Gate()

    def call(self, forward: Forward, args: Arguments, kwargs: Keywords, context: Any) -> Any:
        """One call of the transformer.

        Args:
            forward: What UniCP stands in front of.
            args, kwargs: What the transformer was called with.
            context: diffusers' `CacheContext`, or `None`.
        """
        with self.gate.passing() as is_off:
            return forward(*args, **kwargs) if is_off else self._call(forward, args, kwargs, context)

    def _call(self, forward: Forward, args: Arguments, kwargs: Keywords, context: Any) -> Any:
        """Locates the run, has the call done there, and writes it down. What ends it early also ends the run."""
        given = self._reader.read(args, kwargs)
        if reason := why_not_followed(self.map.transformer, given, self.settings.level):
            self.runs.drop_here()
            self.log.warn("not_followed", f"computed: {reason}")
            return forward(*args, **kwargs)
        run, going = self.runs.locate(given, context, adapters_in_use(self.map.transformer))
        started = time.perf_counter()
        with self.runs.inside_call(run):
            now = run.begin_call(given, going, self._planner)
            act = self._whole if run.level == "model" else self.inside.model_call
            output = act(run, now, forward, args, kwargs)
        if read := read_output(output):
            run.tracker.chain.answered(now.step.branch, read[1][0])
        run.end_call(time.perf_counter() - started)
        observer.expect_step(run)
        return output

    def _whole(self, run: RunState, now: Underway, forward: Forward, args: Arguments, kwargs: Keywords) -> Any:
        """The whole model is the cache point: decides, and skips or computes it."""
        as_dict = bool(kwargs.get("return_dict", True))
        if run.forms and as_dict not in run.forms:
            # What is skipped has the form of an earlier output: a caller that asks for another gets a computed one.
            now.refuse("output kind")
        signals = run.model.policy.signals
        if not signals:
            now.decided(run.model.decide(now.step, now.samples, now.veto))
        output = None
        if now.outcome is None or now.outcome.outputs is None:
            # A policy that wants to see more decides in the first block, and may end the call there.
            with suppress(Skipped):
                output = run.recorder.execute(forward, args, kwargs)
        outcome = now.outcome or run.model.decide(now.step, now.samples, now.veto or "no signal")
        count_non_finite(self.log, outcome)
        run.tell_sampler(outcome)
        if outcome.outputs is not None:
            spent = run.recorder.operations_before_signal if signals else 0
            run.recorder.note(MODEL, outcome.action, outcome.decision, predictor=outcome.predictor, saved=-spent)
            return run.forms[as_dict].fill(outcome.outputs)
        measured = self._take_in(run, now, output, as_dict)
        run.recorder.note(MODEL, Action.FULL, outcome.decision, measured.errors, measured.predictor)
        return output

    def _take_in(self, run: RunState, now: Underway, output: Any, as_dict: bool) -> Measured:
        """A computed output of the whole model: measured and kept."""
        self.inside.tell_unseen(run)
        read = read_output(output)
        if read is None or any(tensor.shape[:1] != now.samples[0].shape[:1] for tensor in read[1]):
            self.log.warn("output", "the model's output is no tensors with the batch first: no step is skipped")
            return Measured()
        run.forms[as_dict] = read[0]
        measured = run.model.full(now.step, now.samples, read[1], run.branches)
        count_non_finite(self.log, measured)
        if not measured.is_kept:
            limit = run.store.limit(run.branches)
            self.log.warn("budget", f"{limit} bytes are too few to store any output: everything is computed")
        return measured

    def close(self, take_off: Callable[[], None]) -> None:
        """Lets further calls pass by, and has the hooks taken off as soon as no call is under way that needs them."""
        self.runs.reset()
        self.gate.close(take_off)

    def _number(self, set_by: Any) -> int:
        return self.log.number(set_by, self)

    def _open(self, tracker: RunTracker, usual: Any) -> RunState:
        self._check()
        return RunState(self.map, self.settings, tracker, Recorder(self.log, self._book), usual)
