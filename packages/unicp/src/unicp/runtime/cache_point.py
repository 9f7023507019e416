"""A cache point: one place in the model whose outputs can be kept and predicted.

The same class is used at all levels: the whole model, the stack of blocks, a block, an attention or feed-forward unit.
It shows its policy what it sees, has its predictor fill in what is skipped, and at full steps measures what skipping
would have cost, and keeps what the predictor needs. It knows no rule of its own but two: what cannot be predicted, or
is not finite, is computed; and where branches are combined afterwards, a branch that is full makes those after it in
the step full too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unicp.context import Action, Decision, Forecast, RunInfo, StepContext
from unicp.errors import InputError
from unicp.numerics.error_measures import all_finite, relative_error, strided_sample
from unicp.policies.base import CachePolicy
from unicp.predictors.base import Point, Predictor, Tensors
from unicp.runtime.part_checks import checked_decision, checked_outputs
from unicp.runtime.store import OutputStore

# Values per sample on which errors and changes are measured: evenly spread, always the same ones.
PROBE = 4096
NON_FINITE = "non-finite"


@dataclass
class _Branch:
    """What is known of one branch; its outputs lie in the store.

    aligned: for each output, whether the input of its shape is kept too. full, last: spread values of the signals at
    the last full step and at the last call. base_error: of the kept outputs themselves, which may have been computed at
    reduced width.
    """

    steps: list[StepContext] = field(default_factory=list)
    aligned: tuple[bool, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    full: dict[str, Tensor] = field(default_factory=dict)
    last: dict[str, Tensor] = field(default_factory=dict)
    base_error: float = 0.0
    called_at: tuple[int, int] | None = None


class Seen:
    """What a policy may ask about one call (`unicp.context.Observation`). Each change is computed once, if asked."""

    def __init__(
        self,
        branch: _Branch,
        step: StepContext,
        signals: Mapping[str, Tensor],
        veto: str,
        others: Sequence[str],
        not_ready: Callable[[], str],
        tracked: set[str],
        known: Sequence[str] = ("input",),
    ):
        self.veto, self.others, self.base_error = veto, others, branch.base_error
        self._branch, self._step, self._signals, self._tracked = branch, step, signals, tracked
        self._not_ready, self._known = not_ready, known
        self._probes: dict[str, Tensor] = {}
        self._changes: dict[tuple[str, str], list[float] | None] = {}

    @property
    def not_ready(self) -> str:
        """Why the predictor cannot predict this call, "" = it can."""
        return self._not_ready()

    def since_full(self, signal: str = "input") -> list[float] | None:
        """Relative change of a signal since the last full step of this branch, one number per sample."""
        return self._change("full", signal, self._branch.full)

    def since_last(self, signal: str = "input") -> list[float] | None:
        """The same since the last call of this branch; known from the second call on in which a policy asks."""
        self._tracked.add(signal)
        return self._change("last", signal, self._branch.last)

    def probe(self, signal: str) -> Tensor | None:
        """Spread values of a signal, (B, n)."""
        if signal not in self._probes and signal in self._signals:
            self._probes[signal] = strided_sample(self._signals[signal].detach(), PROBE)
        return self._probes.get(signal)

    def _change(self, kind: str, signal: str, before: Mapping[str, Tensor]) -> list[float] | None:
        if signal not in self._known:
            asked, found = f"the signal {signal!r}", f"a policy that names {', '.join(self._known)}"
            raise InputError(asked, found, "name it in the policy's signals")
        if (kind, signal) not in self._changes:
            now, then = self.probe(signal), before.get(signal)
            known = now is not None and then is not None and now.shape == then.shape
            rows = relative_error(now, then).tolist() if known else None  # type: ignore[arg-type]
            self._changes[kind, signal] = None if rows is None else per_sample(rows, self._step.samples)
        return self._changes[kind, signal]


@dataclass(frozen=True)
class Outcome:
    """What becomes of one call.

    Attributes:
        decision: Of the policy, or of the cache point where it overruled it.
        action: Skipped how, or `Action.FULL`.
        outputs: Of a skipped call; `None` = it is to be computed, and handed to `CachePoint.full`.
        predictor: How the outputs were predicted, for the trace.
        forecast: The same for the sampler; `None` = it cannot replay the step.
    """

    decision: Decision
    action: Action = Action.FULL
    outputs: Tensors | None = None
    predictor: str | None = None
    forecast: Forecast | None = None


@dataclass(frozen=True)
class Measured:
    """What a full step told.

    Attributes:
        errors: Relative error that skipping it would have had, one per sample; `None` = not known.
        predictor: How it would have been predicted.
        is_kept: False = its outputs are beyond the byte budget.
    """

    errors: list[float] | None = None
    predictor: str | None = None
    is_kept: bool = True


class CachePoint:
    """One cache point in one run.

    Args:
        name: As the trace names it.
        policy: Decides what is skipped.
        predictor: Fills in what is skipped.
        store: Keeps outputs, within the budget of the run.
        adds: Whether the point adds to the streams that enter it (a block, the stack): then what it added is kept, so
            that what enters a skipped block is always fresh.
        keeps_inputs: Whether inputs of the shape of an output are kept beside it, so that predictors may use them.
        judges_all: Whether errors are those of the worst of all outputs, or of the first alone.
        by_stream: Whether errors are relative to the stream that comes out, or to what is predicted itself.
        is_coherent: Whether all branches of a step do the same: a branch that is computed makes those after it compute
            too, and the first branch of a step is shown the others.
        may_skip: False = nothing is skipped, whatever the policy says (tolerance 0).
        warn: As in `RunInfo`.
    """

    def __init__(
        self,
        name: str,
        policy: CachePolicy,
        predictor: Predictor,
        store: OutputStore,
        *,
        adds: bool = False,
        keeps_inputs: bool = False,
        judges_all: bool = False,
        by_stream: bool = False,
        is_coherent: bool = False,
        may_skip: bool = True,
        warn: Callable[[str, str], None] = lambda key, message: None,
    ):
        self.name, self.predictor, self._store = name, predictor, store
        self._adds, self._keeps_inputs, self._judges_all = adds, keeps_inputs, judges_all
        self._by_stream, self._is_coherent, self._may_skip = by_stream, is_coherent, may_skip
        self._info = RunInfo(name, predictor.points, warn)
        self._branches: dict[str, _Branch] = {}
        self._at: tuple[int, int] | None = None
        self._is_computed_at_step = self._is_skipped_at_step = False
        self._seen: Seen | None = None
        self._tracked: set[str] = set()
        self._use(policy)

    def _use(self, policy: CachePolicy) -> None:
        self.policy = policy
        policy.start_run(self._info)

    @property
    def full_steps(self) -> list[int]:
        """The full steps that are kept, of the branch that has fewest."""
        kept = [[step.step for step in branch.steps] for branch in self._branches.values()]
        return min(kept, key=len, default=[])

    def follow(self, policy: CachePolicy, predictor: Predictor | None = None) -> None:
        """From here on another policy decides, and another predictor fills in. It is told of the full steps so far."""
        self.predictor = predictor or self.predictor
        self._info = RunInfo(self.name, self.predictor.points, self._info.warn)
        self._use(policy)
        for branch in self._branches.values():
            for step in branch.steps:
                policy.observe(step, Seen(branch, step, {}, "", (), lambda: "", self._tracked), None)

    def decide(
        self, step: StepContext, inputs: Tensors, veto: str = "", signals: Mapping[str, Tensor] | None = None
    ) -> Outcome:
        """What to do with one call, and if it is skipped its outputs.

        Args:
            step: Where the call is.
            inputs: What enters the cache point; the first is the signal "input".
            veto: Why it must be computed, "" = nothing is against skipping it.
            signals: Further signals, by name.
        """
        others = self._enter(step)
        branch = self._branches.setdefault(step.branch, _Branch())
        branch.called_at = self._at
        if self._is_coherent and self._is_computed_at_step:
            veto = veto or "together"
        named = {**(signals or {}), **({"input": inputs[0]} if inputs else {})}
        known = ("input", *self.policy.signals)
        seen = Seen(branch, step, named, veto, others, lambda: self._not_ready(branch, step), self._tracked, known)
        self._seen = seen
        outcome = self._decide(step, branch, seen, inputs)
        self._tell_of_mixed_steps(outcome)
        self._is_computed_at_step |= outcome.outputs is None
        self._is_skipped_at_step |= outcome.outputs is not None
        self._remember(branch.last, self._tracked)
        return outcome

    def _tell_of_mixed_steps(self, outcome: Outcome) -> None:
        """Branches that do not do the same are combined afterwards, their difference many times over."""
        is_mixed = self._is_coherent and self._is_skipped_at_step and outcome.outputs is None
        if is_mixed and not self.policy.asks_for_others:
            name = type(self.policy).__name__
            message = f"{name} skipped some branches of a step and not others (see Observation.others): clips suffer"
            self._info.warn("mixed_steps", message)

    def _decide(self, step: StepContext, branch: _Branch, seen: Seen, inputs: Tensors) -> Outcome:
        decision = checked_decision(self.policy.decide(step, seen), self.policy, step)
        refusal = seen.veto or ("" if self._may_skip else "tolerance")
        if decision.skip and (reason := refusal or seen.not_ready):
            decision = Decision(False, reason, decision.tolerance)
        if not decision.skip:
            return Outcome(decision)
        points = self._points(step.branch)
        predicted = self.predictor.predict(points, step, inputs)
        kept = points[-1].outputs
        outputs = checked_outputs(predicted, self.predictor, [one.shape for one in kept], [one.dtype for one in kept])
        if self._adds:
            # In the dtype of what the block gives, which under autocast is not that of what it takes.
            outputs = tuple((a + b).to(dtype) for a, b, dtype in zip(inputs, outputs, branch.dtypes))
        if not bool(torch.stack([all_finite(output) for output in outputs]).all()):
            return Outcome(Decision(False, NON_FINITE, decision.tolerance))
        is_aligned = branch.aligned[0]
        described, forecast = self.predictor.describe(is_aligned), self.predictor.forecast(is_aligned)
        return Outcome(decision, self.predictor.action, outputs, described, forecast)

    def full(
        self, step: StepContext, inputs: Tensors, outputs: Tensors, branches: int = 1, base_error: float = 0.0
    ) -> Measured:
        """Takes in a computed call: measures what skipping it would have cost, and keeps it.

        Args:
            step, inputs: As `decide` was given them.
            outputs: What came out.
            branches: How many branches share the byte budget.
            base_error: Relative error of these outputs themselves, where they were computed at reduced width.
        """
        branch, seen = self._branches[step.branch], self._seen
        assert seen is not None
        values = tuple(after - before for before, after in zip(inputs, outputs)) if self._adds else outputs
        aligned = tuple(
            self._keeps_inputs and place < len(inputs) and inputs[place].shape == value.shape
            for place, value in enumerate(values)
        )
        if branch.steps and branch.aligned != aligned:
            self.forget(step.branch)
            branch = self._branches[step.branch] = _Branch(called_at=branch.called_at)
        branch.aligned, branch.dtypes = aligned, tuple(output.dtype for output in outputs)
        errors = self._measure(step, branch, inputs, values, outputs)
        kept_inputs = [tensor for tensor, is_kept in zip(inputs, aligned) if is_kept]
        described, keep = None if errors is None else self.predictor.describe(aligned[0]), self.predictor.points
        if not self._store.put((self.name, step.branch), (*values, *kept_inputs), keep, branches):
            self.forget(step.branch)
            return Measured(errors, described, False)
        self.policy.observe(step, seen, errors)
        branch.steps, branch.base_error = [*branch.steps, step][-keep:], base_error
        self._remember(branch.full, ("input", *self.policy.signals))
        return Measured(errors, described)

    def _remember(self, kept: dict[str, Tensor], signals: Sequence[str] | set[str]) -> None:
        assert self._seen is not None
        found = ((signal, self._seen.probe(signal)) for signal in signals)
        kept.update({signal: probe for signal, probe in found if probe is not None})

    def forget(self, name: str) -> None:
        """Drops what is kept of one branch."""
        self._store.drop((self.name, name))
        self._branches.pop(name, None)
        self.predictor.forget(name)

    def move(self, sample: Tensor, moved: Tensor) -> None:
        """The sampler has put `moved` in the place of the sample that this step was computed from.

        Outputs stay what they are. Samples of another shape than the sampler's stay, too.
        """
        for name, branch in self._branches.items():
            # A branch that was not computed at this step has an older output, of another sample.
            if not branch.steps or not branch.aligned[0]:
                continue
            last = branch.steps[-1]
            if (last.run, last.step) != self._at or last.noise_level is None:
                continue
            newest = list(self._store.get((self.name, name))[-1])
            place = len(branch.aligned)
            own = newest[place]
            if own.shape[1:] != sample.shape[1:] or len(own) % len(sample):
                continue
            there = moved.repeat(len(own) // len(sample), *[1] * (moved.dim() - 1)).to(own)
            newest[place] = there
            self._store.replace_last((self.name, name), newest)

    def _enter(self, step: StepContext) -> Sequence[str]:
        """Opens a step at its first call; the other branches that the step before had, if this is it."""
        at = (step.run, step.step)
        if at == self._at:
            return ()
        before, self._at, self._is_computed_at_step = self._at, at, False
        self._is_skipped_at_step = False
        # A branch that was not called at the step before is gone: guidance may stop in mid-run.
        present = [name for name, branch in self._branches.items() if branch.called_at == before]
        self.predictor.start_step(present)
        return [name for name in present if name != step.branch] if self._is_coherent else ()

    def _not_ready(self, branch: _Branch, step: StepContext) -> str:
        fewest = self.predictor.fewest if self.policy.starts_early else 0
        if len(branch.steps) < (fewest or self.predictor.points):
            return "learning"
        return self.predictor.refusal(branch.steps[-self.predictor.points :], branch.aligned[0], step)

    def _measure(
        self, step: StepContext, branch: _Branch, inputs: Tensors, values: Tensors, outputs: Tensors
    ) -> list[float] | None:
        """The relative error that skipping this call would have had, one number per sample; `None` = not known.

        Measured wherever a prediction exists at all: what was measured where it is not good enough yet tells how the
        first one that is will be.
        """
        if len(branch.steps) < self.predictor.points:
            return None
        if not self.predictor.is_defined(branch.steps[-self.predictor.points :], branch.aligned[0], step):
            return None
        points = self._points(step.branch, PROBE)
        spread = tuple(strided_sample(tensor, PROBE) for tensor in inputs if self._keeps_inputs)
        true = tuple(strided_sample(value, PROBE) for value in values)
        shapes, dtypes = [one.shape for one in true], [one.dtype for one in true]
        predicted = checked_outputs(self.predictor.predict(points, step, spread), self.predictor, shapes, dtypes)
        self.predictor.learn(points, step, spread, true)
        scale = strided_sample(outputs[0], PROBE) if self._by_stream else None
        judged = len(true) if self._judges_all else 1
        rows = [relative_error(a, b, scale) for a, b in zip(predicted[:judged], true[:judged])]
        # amax keeps a NaN, which must not be hidden by the other output.
        return per_sample(torch.stack(rows).amax(dim=0).tolist(), step.samples)

    def _points(self, name: str, probe: int | None = None) -> list[Point]:
        """The full steps that are kept of a branch. probe: spread values of each sample only."""
        branch, points = self._branches[name], []
        for step, tensors in zip(branch.steps, self._store.get((self.name, name)), strict=True):
            if probe is not None:
                tensors = tuple(strided_sample(tensor, probe) for tensor in tensors)
            outputs, rest = tensors[: len(branch.aligned)], iter(tensors[len(branch.aligned) :])
            points.append(Point(step, outputs, tuple(next(rest) if one else None for one in branch.aligned)))
        # Another predictor may have needed more of them.
        return points[-self.predictor.points :]


def per_sample(errors: list[float], samples: int) -> list[float]:
    """Worst error of each sample, where a unit sees a sample as several rows (frames or positions in Latte)."""
    if len(errors) == samples or samples == 0 or len(errors) % samples:
        return errors
    rows = len(errors) // samples
    # NaN compares with nothing, so max() alone could hide one.
    return [
        math.nan if any(math.isnan(error) for error in group) else max(group)
        for group in (errors[i * rows : (i + 1) * rows] for i in range(samples))
    ]
