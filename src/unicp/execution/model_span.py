"""The whole model output as one span: the largest, and by our measurements the best (DESIGN 3.5).

What is stored is the output and the sample it was computed from; what is forecast is the output, the noise estimate or
the clean estimate, anchored on the sample at hand, over noise level, log-SNR or step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from unicp.control.controller import Controller, Question, SliceReport
from unicp.control.guard import Guard
from unicp.control.windows import Candidate, ErrorWindow, Position
from unicp.execution.block_spans import ResidualSpan
from unicp.execution.store import OutputStore
from unicp.models.noise import NoiseSchedule
from unicp.numerics.error_measures import all_finite, relative_error, strided_sample
from unicp.numerics.forecasting import extrapolate, from_quantity, to_quantity
from unicp.numerics.noise_levels import SERVING_FLOOR, NoiseLevel, is_invertible
from unicp.records import Decision, Moment
from unicp.settings import Abscissa, Settings

PROBE = 4096  # positions per sample on which errors and drift are measured


@dataclass
class _Branch:
    window: ErrorWindow
    levels: list[NoiseLevel | None] = field(default_factory=list)
    probe: Tensor | None = None
    drift: list[float] | None = None


@dataclass(frozen=True)
class Served:
    """A decision for one call, with the output if it is served and the way it was made."""

    decision: Decision
    output: Tensor | None = None
    candidate: Candidate | None = None


class ModelSpan:
    """Decides about, serves and measures the output of the whole model, per branch."""

    def __init__(self, settings: Settings, controller: Controller, store: OutputStore, schedule: NoiseSchedule | None):
        self.settings, self.controller, self.store, self.schedule = settings, controller, store, schedule
        self.branches: dict[str, _Branch] = {}
        self.guidance = ResidualSpan("guidance", settings, controller, store)
        self._step: tuple[int, int] | None = None
        self._computed_at_step = False
        self._leader: tuple[str, Tensor] | None = None
        self.over_budget = False

    @property
    def is_empty(self) -> bool:
        """True when nothing of a run is held."""
        return not self.branches and self.guidance.is_empty

    def follow(self, guard: Guard | None) -> None:
        """From here on a plan decides what is served in this run, and how; None = the online rule.

        To be called before anything of the run was measured: its windows begin anew.
        """
        self.controller.guard = guard
        if guard is not None:
            for branch in self.branches.values():
                branch.window.candidates, branch.window.factors = (guard.schedule.candidate,), {}

    def reset(self) -> None:
        """Forgets the run."""
        self.controller.guard = None
        self.branches.clear()
        self.guidance.reset()
        self._step, self._leader, self.over_budget = None, None, False

    def decide(self, moment: Moment, sample: Tensor, slices: SliceReport | None) -> Served:
        """What to do with this call. All branches of a step are served together or computed together.

        A branch that must be computed makes those after it in the step compute too; the first branch of a step asks
        for all that are known. (Our reading of coherence, DESIGN 3.1.)
        """
        first = self._step != (moment.run, moment.step)
        if first:
            self._step, self._computed_at_step, self._leader = (moment.run, moment.step), False, None
        branch = self.branches.get(moment.branch)
        if branch is None:
            branch = self.branches[moment.branch] = _Branch(self.controller.new_window(self._candidates(moment)))
        position = self.position(moment)
        doubt = "together" if self._computed_at_step else ""
        plain = Question(moment, position, None, slices, doubt)
        if not doubt and not self.controller.may_serve(branch.window, plain) and first:
            doubt = self._doubt_of_others(moment, position)
        served = self._ask(moment, branch, position, sample, slices, doubt)
        if not served.decision.action.served:
            self._computed_at_step = True
        return served

    def _doubt_of_others(self, moment: Moment, position: Position) -> str:
        for name, other in self.branches.items():
            if name != moment.branch:
                decision, _ = self.controller.decide(other.window, Question(moment, position))
                if not decision.action.served:
                    return "other branch"
        return ""

    def _ask(
        self,
        moment: Moment,
        branch: _Branch,
        position: Position,
        sample: Tensor,
        slices: SliceReport | None,
        doubt: str,
    ) -> Served:
        window = branch.window
        question = Question(moment, position, None, slices, doubt)
        if self.controller.may_serve(window, question):
            branch.drift = None
            return Served(self.controller.decide(window, question)[0])
        candidate, _ = window.predict(position)
        if not self._usable(candidate, moment, branch):
            branch.drift = None
            return Served(self.controller.decide(window, replace(question, doubt="level"))[0])
        output = self._forecast(moment, branch, candidate, position, sample)
        # One synchronisation for both questions: how far the sample has moved, and is the forecast finite?
        drift = self._drift(branch, sample)
        numbers = torch.cat([drift, all_finite(output).to(drift.dtype).reshape(1)]).tolist()
        branch.drift = numbers[:-1]
        if not numbers[-1]:
            doubt = "non-finite"
        question = Question(moment, position, branch.drift, slices, doubt)
        decision, _ = self.controller.decide(window, question)
        if not decision.action.served:
            return Served(decision)
        window.serve(max(decision.predicted or (0.0,)))
        return Served(decision, output, candidate)

    def by_guidance(self, moment: Moment, sample: Tensor) -> Served | None:
        """A computed step whose first branch is done: this branch as that output plus a forecast difference.

        The output becomes the newest point of its branch, without a measurement.
        None where `Settings.guidance` is off or this is the first branch of the step.
        """
        if not self.settings.guidance or self._leader is None or self._leader[0] == moment.branch:
            return None
        outcome, streams = self.guidance.decide(moment, self.position(moment), (self._leader[1],))
        if streams is None:
            return None
        self._store(moment, self.branches[moment.branch], self.position(moment), sample, streams[0], None)
        return Served(outcome.decision, streams[0], Candidate("output", "step"))

    def computed(self, moment: Moment, sample: Tensor, output: Tensor) -> dict[Candidate, list[float]] | None:
        """Takes in a computed output: measures what each candidate would have served, and stores it.

        Returns the measured relative errors per candidate and sample, or None where nothing could have been served.
        """
        branch = self.branches[moment.branch]
        position = self.position(moment)
        if output.shape != sample.shape:
            # A learned variance, or a sample with a conditioning image: no estimate of its parts can be had.
            outputs = (Candidate("output", candidate.abscissa) for candidate in branch.window.candidates)
            branch.window.candidates = tuple(dict.fromkeys(outputs))
        errors = self._measure(moment, branch, position, sample, output)
        self.controller.computed(moment, errors)
        self._follow_guidance(moment, position, output)
        self._store(moment, branch, position, sample, output, errors)
        return errors

    def _follow_guidance(self, moment: Moment, position: Position, output: Tensor) -> None:
        if not self.settings.guidance:
            return
        if self._leader is None:
            self._leader = (moment.branch, output)
        elif self._leader[0] != moment.branch:
            leading = (self._leader[1],)
            self.guidance.computed(moment, position, leading, (output,), len(self.branches))

    def _store(
        self,
        moment: Moment,
        branch: _Branch,
        position: Position,
        sample: Tensor,
        output: Tensor,
        errors: dict[Candidate, list[float]] | None,
    ) -> None:
        if branch.drift is None and branch.probe is not None:
            branch.drift = self._drift(branch, sample).tolist()
        branch.window.observe(position, errors, branch.drift)
        branch.drift, branch.probe = None, strided_sample(sample, PROBE).clone()
        level = None if self.schedule is None else self.schedule.level(moment.timestep)
        keep = self.settings.order + 1
        stored = self.store.put(("model", moment.branch), (output, sample), keep, len(self.branches))
        if not stored:
            self.over_budget = True
            branch.window = self.controller.new_window(branch.window.candidates)
            branch.levels.clear()
            self.store.drop(("model", moment.branch))
            return
        branch.levels = [*branch.levels, level][-keep:]

    def _measure(
        self, moment: Moment, branch: _Branch, position: Position, sample: Tensor, output: Tensor
    ) -> dict[Candidate, list[float]] | None:
        if len(branch.window.points) < self.settings.order + 1:
            return None
        # Measured wherever a forecast exists at all: what was measured at a level that is not served yet tells how
        # the first one that is will be.
        usable = [c for c in branch.window.candidates if self._usable(c, moment, branch, 0.0)]
        if not usable:
            return None
        true = strided_sample(output, PROBE)
        served = [self._forecast(moment, branch, c, position, sample, probe=True) for c in usable]
        table = torch.stack([relative_error(one, true) for one in served]).tolist()
        return dict(zip(usable, table))

    def _forecast(
        self,
        moment: Moment,
        branch: _Branch,
        candidate: Candidate,
        position: Position,
        sample: Tensor,
        probe: bool = False,
    ) -> Tensor:
        points = self.store.get(("model", moment.branch), like=sample)
        now = sample
        if probe:
            points = [tuple(strided_sample(tensor, PROBE) for tensor in point) for point in points]
            now = strided_sample(sample, PROBE)
        axis, quantity = candidate.abscissa, candidate.quantity
        places = [point[axis] for point in branch.window.points]
        if quantity == "output":
            return extrapolate([(x, output) for x, (output, _) in zip(places, points)], position[axis])
        assert self.schedule is not None
        kind = self.schedule.prediction
        level = self._level(moment)
        known = [
            (x, to_quantity(quantity, kind, earlier, output, at))
            for x, (output, earlier), at in zip(places, points, branch.levels)
            if at is not None
        ]
        forecast = extrapolate(known, position[axis])
        return from_quantity(quantity, kind, now, forecast, level).to(sample.dtype)

    def _usable(self, candidate: Candidate, moment: Moment, branch: _Branch, floor: float = SERVING_FLOOR) -> bool:
        if candidate.quantity == "output":
            return True
        if self.schedule is None or self.schedule.level(moment.timestep) is None:
            return False
        quantity, kind = candidate.quantity, self.schedule.prediction
        known = all(level is not None and is_invertible(quantity, kind, level, 0.0) for level in branch.levels)
        return known and is_invertible(quantity, kind, self._level(moment), floor)

    def _level(self, moment: Moment) -> NoiseLevel:
        level = None if self.schedule is None else self.schedule.level(moment.timestep)
        assert level is not None
        return level

    def _candidates(self, moment: Moment) -> tuple[Candidate, ...]:
        """All pairs of the settings' quantities and abscissas that can be known for this model and scheduler."""
        if self.controller.guard is not None:
            return (self.controller.guard.schedule.candidate,)
        level_known = self.schedule is not None and self.schedule.level(moment.timestep) is not None
        quantities = self.settings.quantities if level_known else ("output",)
        axes: tuple[Abscissa, ...] = tuple(a for a in self.settings.abscissas if level_known or a != "log_snr")
        return tuple(Candidate(q, a) for q in quantities for a in axes or ("step",))

    def position(self, moment: Moment) -> Position:
        """Where a moment lies on every abscissa that is known; the timestep / 1000 stands in for an unknown sigma."""
        sigma = moment.timestep / 1000.0 if moment.sigma is None else moment.sigma
        position: dict[Abscissa, float] = {"step": float(moment.step), "sigma": sigma}
        level = None if self.schedule is None else self.schedule.level(moment.timestep)
        if level is not None:
            position["log_snr"] = level.log_snr
        return position

    def _drift(self, branch: _Branch, sample: Tensor) -> Tensor:
        now = strided_sample(sample, PROBE)
        assert branch.probe is not None
        return relative_error(now, branch.probe)


def errors_as_lists(
    errors: Mapping[Candidate, list[float]] | None, candidate: Candidate | None
) -> tuple[list[float] | None, str | None]:
    """What a trace keeps of a measurement: the errors of the best candidate (or of the one given), and its name."""
    if not errors:
        return None, None if candidate is None else str(candidate)
    best = candidate if candidate in errors else min(errors, key=lambda c: max(errors[c], default=0.0))
    assert best is not None
    return errors[best], str(best)
