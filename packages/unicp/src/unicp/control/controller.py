"""Numbers in, decision out: what is to be done with one span or unit at one step. Knows no tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unicp.control.guard import Guard
from unicp.control.shift import FULL, Option, cheapest_within_tolerance
from unicp.control.tolerance import LAST_STEPS, SERVING_POWER, step_tolerance, unmended_count
from unicp.control.windows import Candidate, ErrorWindow, Position
from unicp.records import Action, Decision, Moment
from unicp.settings import Settings, preset


@dataclass(frozen=True)
class Question:
    """Everything a decision may depend on, for one span or unit in one branch.

    drift: relative change of the span's input since the last computation, per sample; None = not known.
    doubt: a reason to compute ("" = none), found outside (a spike elsewhere, a value that is not finite).
    """

    moment: Moment
    position: Position
    drift: Sequence[float] | None = None
    doubt: str = ""


@dataclass(frozen=True)
class OnlineRule:
    """The online rule as a plan asks for it: that of `balanced`, as it was calibrated, with this tolerance.

    candidate: the one way to serve.
    """

    tolerance: float
    candidate: Candidate

    def within(self, settings: Settings) -> Settings:
        """Settings with the rule of `balanced` and nothing else changed."""
        known = preset("balanced")
        names = ("weighting", "max_window", "max_reach", "first", "last", "every", "computed_steps")
        return replace(settings, tolerance=self.tolerance, **{name: getattr(known, name) for name in names})


Course = Guard | OnlineRule | None


class Controller:
    """The online rule (EDCW for serving, PCAS for widths, DWS between them) under one `Settings`.

    guard: follows a plan in the run under way, instead of the online rule for serving; None = no plan. candidate: the
    one way to serve that a plan names; None = the settings name it.
    """

    def __init__(self, settings: Settings):
        self.settings = self._rule = settings
        self.guard: Guard | None = None
        self.candidate: Candidate | None = None

    def follow(self, course: Course) -> None:
        """From here on this plan decides on serving; None = the settings alone do."""
        self.guard, self.candidate, self._rule = None, None, self.settings
        if isinstance(course, Guard):
            self.guard, self.candidate = course, course.schedule.candidate
        elif course is not None:
            self.candidate, self._rule = course.candidate, course.within(self.settings)

    def new_window(self, candidates: tuple[Candidate, ...]) -> ErrorWindow:
        """An empty window for one span or unit in one branch."""
        return ErrorWindow(candidates, self.settings.order)

    def may_serve(self, window: ErrorWindow, question: Question) -> str:
        """Why serving is out of the question before any prediction; "" if it is not."""
        moment, settings = question.moment, self._rule
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
        tolerance = self.serving_tolerance(question.moment)
        refusal = self.may_serve(window, question)
        options: list[Option] = []
        candidate: Candidate | None = None
        predicted: tuple[float, ...] | None = None
        serve = Action.FORECAST if self.settings.order else Action.REUSE
        if not refusal:
            candidate, errors = window.predict(question.position, question.drift)
            predicted = tuple(errors)
            worst = window.total(max(errors, default=0.0), self._unmended)
            # Tolerance 0 serves nothing, even where the prediction is 0.
            if tolerance > 0:
                options.append(Option(serve, 0.0, 0.0 if self._is_fixed else worst, tolerance))
            calm = window.total(max(window.predict(question.position)[1], default=0.0), self._unmended)
            refusal = "spike" if calm <= tolerance < worst else "tolerance"
        if cheapest_within_tolerance(options) is FULL:
            return Decision(Action.COMPUTE, tolerance, refusal, predicted), None
        return Decision(serve, tolerance, "within", predicted), candidate

    def serving_tolerance(self, moment: Moment) -> float:
        """Largest total of predicted errors of a window that serves this step; smaller at the last steps of a run."""
        tolerance = step_tolerance(self._rule.tolerance, self._rule.weighting, moment, SERVING_POWER)
        is_end = moment.steps is not None and moment.step >= moment.steps - LAST_STEPS
        return tolerance / self._unmended if is_end else tolerance

    @property
    def _unmended(self) -> float:
        """How many times errors count that the sampler is not mended for, where it is mended at all."""
        is_mended = self.settings.mend_sampler and self.settings.span in ("model", "stack")
        return unmended_count(self._rule.tolerance) if is_mended else 1.0

    @property
    def _is_fixed(self) -> bool:
        """A window or schedule that no error closes."""
        return self.guard is not None or self._rule.every is not None or self._rule.computed_steps is not None

    def computed(self, moment: Moment, errors: Mapping[Candidate, Sequence[float]] | None) -> None:
        """A call of the whole model was computed: errors that serving it would have had, by candidate and sample."""
        if self.guard is not None:
            known = (errors or {}).get(self.guard.schedule.candidate)
            self.guard.computed(moment.step, moment.branch, max(known) if known else None)

    def slice_tolerance(self, moment: Moment) -> float:
        """Largest relative error of a sliced attention at this step; 0 where nothing may differ from the plain run."""
        if self.settings.tolerance == 0:
            return 0.0
        return step_tolerance(self.settings.slicing.tolerance, self.settings.weighting, moment)

    def choose_width(self, moment: Moment, errors: Mapping[int, float], costs: Mapping[int, float]) -> int | None:
        """The cheapest width of an attention that is being computed, None = full width.

        errors: measured in this call, by width. costs: shares of the most that a slice may cost.
        """
        tolerance = self.slice_tolerance(moment)
        options = [Option(Action.SLICE, costs[width], error, tolerance, width) for width, error in errors.items()]
        return cheapest_within_tolerance(options).width if tolerance > 0 else None
