"""Numbers in, decision out: what is to be done with one span or unit at one step. Knows no tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unicp.control.guard import Guard
from unicp.control.shift import FULL, Option, cheapest_within_tolerance
from unicp.control.tolerance import step_tolerance
from unicp.control.windows import Candidate, ErrorWindow, Position
from unicp.records import Action, Decision, Moment
from unicp.settings import Settings


@dataclass(frozen=True)
class SliceReport:
    """What is known of slicing at this moment, from the last full computation.

    errors: probed relative error by width. savings: share of the call's operations that each width saves.
    since_full: computations since the last full one.
    """

    errors: Mapping[int, float]
    savings: Mapping[int, float]
    since_full: int


@dataclass(frozen=True)
class Question:
    """Everything a decision may depend on, for one span or unit in one branch.

    drift: relative change of the span's input since the last computation, per sample; None = not known.
    doubt: a reason to compute ("" = none), found outside (a spike elsewhere, a value that is not finite).
    """

    moment: Moment
    position: Position
    drift: Sequence[float] | None = None
    slices: SliceReport | None = None
    doubt: str = ""


class Controller:
    """The online rule (EDCW for serving, PCAS for widths, DWS between them) under one `Settings`.

    guard: follows a plan in the run under way, instead of the online rule for serving; None = no plan.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.guard: Guard | None = None

    def new_window(self, candidates: tuple[Candidate, ...]) -> ErrorWindow:
        """An empty window for one span or unit in one branch."""
        return ErrorWindow(candidates, self.settings.order)

    def may_serve(self, window: ErrorWindow, question: Question) -> str:
        """Why serving is out of the question before any prediction; "" if it is not."""
        moment, settings = question.moment, self.settings
        if question.doubt:
            return question.doubt
        if self.guard is not None:
            return self.guard.why(moment.step) or ("" if window.ready else "learning")
        if settings.computed_steps is not None:
            if moment.step in settings.computed_steps:
                return "schedule"
            return "" if window.ready else "learning"
        if moment.step < settings.first:
            return "first"
        if moment.steps is not None and moment.step >= moment.steps - settings.last:
            return "last"
        if not window.ready:
            return "learning"
        if settings.every is not None:
            return "window" if window.served >= settings.every - 1 else ""
        if window.served >= settings.max_window:
            return "window"
        if window.reach(question.position) > settings.max_reach:
            return "reach"
        return ""

    def decide(self, window: ErrorWindow, question: Question) -> tuple[Decision, Candidate | None]:
        """The cheapest action within the tolerance of this step, and the way to serve if it is to be served."""
        tolerance = step_tolerance(self.settings.tolerance, self.settings.weighting, question.moment)
        refusal = self.may_serve(window, question)
        options: list[Option] = []
        candidate: Candidate | None = None
        predicted: tuple[float, ...] | None = None
        serve = Action.FORECAST if self.settings.order else Action.REUSE
        if not refusal:
            candidate, errors = window.predict(question.position, question.drift)
            predicted = tuple(errors)
            worst = window.spent + max(errors, default=0.0)
            # Tolerance 0 serves nothing, even where the prediction is 0.
            if tolerance > 0:
                options.append(Option(serve, 0.0, 0.0 if self._is_fixed else worst, tolerance))
            calm = max(window.predict(question.position)[1], default=0.0)
            refusal = "spike" if window.spent + calm <= tolerance < worst else "tolerance"
        options += self._slices(question)
        chosen = cheapest_within_tolerance(options)
        if chosen.action is serve:
            return Decision(serve, tolerance, "within", predicted), candidate
        return Decision(chosen.action, tolerance, refusal, predicted, chosen.width), None

    @property
    def _is_fixed(self) -> bool:
        """A window or schedule that no error closes."""
        return self.guard is not None or self.settings.every is not None or self.settings.computed_steps is not None

    def computed(self, moment: Moment, errors: Mapping[Candidate, Sequence[float]] | None) -> None:
        """A call of the whole model was computed: errors that serving it would have had, by candidate and sample."""
        if self.guard is not None:
            known = (errors or {}).get(self.guard.schedule.candidate)
            self.guard.computed(moment.step, moment.branch, max(known) if known else None)

    def slice_or_compute(self, decision: Decision, question: Question) -> Decision:
        """A decision to compute, turned into a slice where one is allowed."""
        if decision.action is not Action.COMPUTE:
            return decision
        chosen = cheapest_within_tolerance(self._slices(question))
        if chosen is FULL:
            return decision
        return replace(decision, action=chosen.action, width=chosen.width)

    def _slices(self, question: Question) -> list[Option]:
        report, slicing = question.slices, self.settings.slicing
        if report is None or self.settings.tolerance == 0 or report.since_full >= slicing.refresh:
            return []
        return [
            Option(Action.SLICE, 1.0 - report.savings[width], error, slicing.tolerance, width)
            for width, error in report.errors.items()
            if report.savings[width] >= slicing.min_saving
        ]
