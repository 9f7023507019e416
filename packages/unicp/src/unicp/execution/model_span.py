"""The whole model output as one span: the largest, and by our measurements the best (DESIGN 3.5).

What is stored is the output and the sample it was computed from; what is forecast is the output, the noise estimate or
the clean estimate, anchored on the sample at hand, over noise level, log-SNR or step. A model of video and audio has
several outputs, each with a sample of its own: they are served together, and the worst of their errors counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unicp.control.controller import Controller, Course, Question
from unicp.control.windows import Candidate, Position
from unicp.execution.block_spans import ResidualSpan
from unicp.execution.model_call import Tensors
from unicp.execution.model_forecast import PROBE, Branch, Combined, Forecaster, share_rises
from unicp.execution.store import OutputStore
from unicp.models.noise import NoiseSchedule
from unicp.numerics.error_measures import all_finite, relative_error, strided_sample
from unicp.numerics.forecasting import output_at
from unicp.records import Decision, Moment
from unicp.settings import Abscissa, Settings


@dataclass(frozen=True)
class Served:
    """A decision for one call, with the output if it is served and the way it was made."""

    decision: Decision
    outputs: Tensors | None = None
    candidate: Candidate | None = None


class ModelSpan:
    """Decides about, serves and measures the output of the whole model, per branch."""

    def __init__(
        self,
        settings: Settings,
        controller: Controller,
        store: OutputStore,
        schedule: NoiseSchedule | None,
        combined: Combined | None = None,
    ):
        self.settings, self.controller, self.store, self._combined = settings, controller, store, combined
        self._forecaster = Forecaster(store, schedule)
        self.branches: dict[str, Branch] = {}
        self.guidance = ResidualSpan("guidance", settings, controller, store)
        self._step: tuple[int, int] | None = None
        self._computed_at_step = False
        self._leader: tuple[str, Tensors] | None = None
        self.over_budget = False

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise levels of the run; None = not known."""
        return self._forecaster.schedule

    @property
    def is_empty(self) -> bool:
        """True when nothing of a run is held."""
        return not self.branches and self.guidance.is_empty

    def follow(self, course: Course) -> None:
        """From here on a plan decides what is served in this run, and how; None = the online rule of the settings.

        To be called before anything of the run was measured: its windows begin anew.
        """
        self.controller.follow(course)
        if self.controller.candidate is not None:
            for branch in self.branches.values():
                branch.window.candidates, branch.window.factors = (self.controller.candidate,), {}

    def decide(self, moment: Moment, samples: Tensors, doubt: str = "") -> Served:
        """What to do with this call. All branches of a step are served together or computed together.

        samples: one for each output, in their order; an output beyond them is forecast as it is. doubt: why this call
        must be computed, "" = nothing is against serving it.

        A branch that must be computed makes those after it in the step compute too; the first branch of a step asks
        for all that the step before had. (Our reading of coherence, DESIGN 3.1.)
        """
        before, self._step = self._step, (moment.run, moment.step)
        first = self._step != before
        # A branch that was not called at the step before is gone: guidance may stop in mid-run.
        present = [branch for branch in self.branches.values() if branch.called_at == before] if first else []
        if first:
            self._computed_at_step, self._leader = False, None
            share_rises(present, self._combined)
        branch = self.branches.get(moment.branch)
        if branch is None:
            branch = self.branches[moment.branch] = Branch(self.controller.new_window(self._candidates(moment)))
        position = self.position(moment)
        doubt = doubt or ("together" if self._computed_at_step else "")
        plain = Question(moment, position, None, doubt)
        if not doubt and not self.controller.may_serve(branch.window, plain):
            doubt = self._doubt_of(present, moment, position)
        branch.called_at = self._step
        served = self._ask(moment, branch, position, samples, doubt)
        if not served.decision.action.served:
            self._computed_at_step = True
        return served

    def _doubt_of(self, present: list[Branch], moment: Moment, position: Position) -> str:
        for other in present:
            if other is not self.branches[moment.branch]:
                decision, _ = self.controller.decide(other.window, Question(moment, position))
                if not decision.action.served:
                    return "other branch"
        return ""

    def _ask(
        self,
        moment: Moment,
        branch: Branch,
        position: Position,
        samples: Tensors,
        doubt: str,
    ) -> Served:
        window = branch.window
        question = Question(moment, position, None, doubt)
        if self.controller.may_serve(window, question):
            branch.drift = None
            return Served(self.controller.decide(window, question)[0])
        candidate, _ = window.predict(position)
        if not self._forecaster.usable(candidate, moment, branch):
            branch.drift = None
            return Served(self.controller.decide(window, replace(question, doubt="level"))[0])
        outputs = self._forecaster.forecast(self._forecaster.known(moment, branch, position, samples), candidate)
        # One synchronisation for both questions: how far the sample has moved, and is the forecast finite?
        drift = self._drift(branch, samples[0])
        finite = torch.stack([all_finite(output) for output in outputs]).all()
        numbers = torch.cat([drift, finite.to(drift.dtype).reshape(1)]).tolist()
        branch.drift = numbers[:-1]
        if not numbers[-1]:
            doubt = "non-finite"
        question = Question(moment, position, branch.drift, doubt)
        decision, _ = self.controller.decide(window, question)
        if not decision.action.served:
            return Served(decision)
        window.serve(max(decision.predicted or (0.0,)))
        return Served(decision, outputs, candidate)

    def by_guidance(self, moment: Moment, samples: Tensors) -> Served | None:
        """A computed step whose first branch is done: this branch as that output plus a forecast difference.

        The output becomes the newest point of its branch, without a measurement.
        None where `Settings.guidance` is off or this is the first branch of the step.
        """
        if not self.settings.guidance or self._leader is None or self._leader[0] == moment.branch:
            return None
        outcome, streams = self.guidance.decide(moment, self.position(moment), self._leader[1])
        if streams is None:
            return None
        self._store(moment, self.branches[moment.branch], self.position(moment), samples, streams, None)
        return Served(outcome.decision, streams, Candidate("output", "step"))

    def computed(self, moment: Moment, samples: Tensors, outputs: Tensors) -> dict[Candidate, list[float]] | None:
        """Takes in computed outputs: measures what each candidate would have served, and stores them.

        Returns the measured relative errors per candidate and sample, or None where nothing could have been served.
        """
        branch = self.branches[moment.branch]
        position = self.position(moment)
        if outputs[0].shape != samples[0].shape:
            # A learned variance, or a sample with a conditioning image: no estimate of its parts can be had.
            plain = (Candidate("output", candidate.abscissa) for candidate in branch.window.candidates)
            branch.window.candidates = tuple(dict.fromkeys(plain))
        errors = self._measure(moment, branch, position, samples, outputs)
        self.controller.computed(moment, errors)
        self._follow_guidance(moment, position, outputs)
        self._store(moment, branch, position, samples, outputs, errors)
        return errors

    def move(self, sample: Tensor, moved: Tensor) -> None:
        """The sampler has put `moved` in the place of the sample that this step was computed from.

        Forecasts go on from what the model would have said there. Samples of another shape than the sampler's stay.
        """
        for name, branch in self.branches.items():
            level = branch.levels[-1] if branch.levels else None
            if level is None or self.schedule is None or self._step is None:
                continue
            # A branch that was not computed at this step has an older output, of another sample.
            if branch.called_at != self._step or branch.window.points[-1]["step"] != self._step[1]:
                continue
            newest = self.store.get(("model", name))[-1]
            output, own = newest[0], newest[branch.outputs]
            if own.shape[1:] != sample.shape[1:] or own.shape != output.shape or len(own) % len(sample):
                continue
            there = moved.repeat(len(own) // len(sample), *[1] * (moved.dim() - 1)).to(own)
            fresh = [*newest]
            fresh[0], fresh[branch.outputs] = output_at(self.schedule.prediction, own, output, there, level), there
            self.store.replace_last(("model", name), fresh)

    def _follow_guidance(self, moment: Moment, position: Position, outputs: Tensors) -> None:
        if not self.settings.guidance:
            return
        if self._leader is None:
            self._leader = (moment.branch, outputs)
        elif self._leader[0] != moment.branch and self._leader[1][0].shape == outputs[0].shape:
            # Of batches of different size no difference can be had.
            self.guidance.computed(moment, position, self._leader[1], outputs, len(self.branches))

    def _store(
        self,
        moment: Moment,
        branch: Branch,
        position: Position,
        samples: Tensors,
        outputs: Tensors,
        errors: dict[Candidate, list[float]] | None,
    ) -> None:
        if branch.drift is None and branch.probe is not None:
            branch.drift = self._drift(branch, samples[0]).tolist()
        branch.window.observe(position, errors, branch.drift)
        branch.drift, branch.probe = None, strided_sample(samples[0], PROBE).clone()
        level = None if self.schedule is None else self.schedule.level(moment.timestep)
        keep = self.settings.order + 1
        stored = self.store.put(("model", moment.branch), (*outputs, *samples), keep, len(self.branches))
        branch.outputs = len(outputs)
        if not stored:
            self.over_budget = True
            branch.window = self.controller.new_window(branch.window.candidates)
            branch.levels.clear()
            branch.rises, branch.shares = {}, {}
            self.store.drop(("model", moment.branch))
            return
        branch.levels = [*branch.levels, level][-keep:]

    def _measure(
        self, moment: Moment, branch: Branch, position: Position, samples: Tensors, outputs: Tensors
    ) -> dict[Candidate, list[float]] | None:
        if len(branch.window.points) < self.settings.order + 1:
            return None
        # Measured wherever a forecast exists at all: what was measured at a level that is not served yet tells how
        # the first one that is will be.
        usable = [c for c in branch.window.candidates if self._forecaster.usable(c, moment, branch, 0.0)]
        if not usable:
            return None
        true = [strided_sample(output, PROBE) for output in outputs]
        known = self._forecaster.known(moment, branch, position, samples, probe=True)
        rows = []
        for candidate in usable:
            served = self._forecaster.forecast(known, candidate)
            if self.settings.damped and self.settings.order:
                branch.rises[candidate] = self._forecaster.rises(known, candidate, true)
            # amax keeps a NaN, which must not be hidden by the other output.
            rows.append(torch.stack([relative_error(a, b) for a, b in zip(served, true)]).amax(dim=0))
        return dict(zip(usable, torch.stack(rows).tolist()))

    def _candidates(self, moment: Moment) -> tuple[Candidate, ...]:
        """All pairs of the settings' quantities and abscissas that can be known for this model and scheduler."""
        if self.controller.candidate is not None:
            return (self.controller.candidate,)
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

    def _drift(self, branch: Branch, sample: Tensor) -> Tensor:
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
