"""Chooses the full steps of a run for a target or a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unicp.errors import InputError
from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.fidelity import UNTRIED, FidelityLine, fit_line
from unicp.planning.plan import OUTPUT, Plan
from unicp.planning.prior import prior
from unicp.planning.products import Products
from unicp.planning.profile import Profile, Seconds
from unicp.planning.targets import Target
from unicp.policies.run_loss import RunLoss
from unicp.policies.step_paths import StepPath

# Steps of the longest run that is planned; samplers are trained on as many noise levels. Solving takes ten seconds.
MOST_STEPS = 1000


def check_steps(steps: int) -> None:
    """Checks that a run is not too long to be planned.

    Raises:
        InputError: It is.
    """
    if steps > MOST_STEPS:
        raise InputError(f"a plan of {steps} steps", f"runs of up to {MOST_STEPS} steps can be planned", "use fewer")


def loss_of_run(
    products: Products,
    prediction: str,
    levels: Sequence[NoiseLevel],
    shares: Sequence[float],
    is_replayed: bool = True,
) -> RunLoss:
    """The loss of any choice of full steps in a run.

    Args:
        products: Of the model, or the built-in ones.
        prediction: What the sampler is given, as "flow".
        levels: Of the steps.
        shares: Of each output in the final sample, 0 for steps that are over.
        is_replayed: Whether the sampler replays skipped steps.
    """
    matrix = products.outputs(prediction, levels)
    table = [[float(matrix[i, j]) for j in range(i + 1)] for i in range(len(levels))]
    places, sigmas = [level.log_snr for level in levels], [level.sigma for level in levels]
    return RunLoss(places, table, list(shares), sigmas, is_replayed)


@dataclass(frozen=True)
class Solver:
    """Plans for one run.

    Args:
        model: Class of the transformer, for the plan.
        loss: Of the run.
        known: Full steps so far.
        profile: Of the model; `None` = nobody calibrated it.
        knows_seconds: Whether the profile's seconds hold for the size of this run.
    """

    model: str
    loss: RunLoss
    known: Sequence[int] = (0,)
    profile: Profile | None = None
    knows_seconds: bool = True

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self.loss.steps

    @property
    def line(self) -> FidelityLine:
        """From losses to PSNR."""
        if self.profile is None:
            return UNTRIED
        return fit_line([(trial.prompt, trial.loss, trial.psnr) for trial in self.profile.trials])

    @property
    def _seconds(self) -> Seconds | None:
        return None if self.profile is None else self.profile.seconds

    def within(self, tolerance: float) -> Plan:
        """The fewest full steps with which the predicted loss is within a tolerance."""
        paths = self.loss.best(self.known)
        count = min(count for count, path in paths.items() if path.loss <= tolerance)
        return self.made("", paths[count], can_add=True)

    def plan(self, target: Target) -> Plan:
        """The plan of least loss that meets a target of speed, or of fewest full steps that meets one of fidelity.

        Raises:
            InputError: No plan meets it; the message says what is possible.
        """
        check_steps(self.steps)
        paths = self.loss.best(self.known)
        if target.kind == "psnr":
            allowed = self.line.loss(target.value)
            count = min(count for count, path in paths.items() if path.loss <= allowed)
            plan = self.made(str(target), paths[count], can_add=True)
            if count == self.steps:
                plan = replace(plan, notes=["no step can be skipped at this quality: nothing is saved"])
            return plan
        fits = [count for count in paths if self._is_fast_enough(target, count)]
        if not fits:
            raise self._too_fast(target, min(paths))
        return self.made(str(target), paths[max(fits)], can_add=False)

    def made(self, target: str, path: StepPath, can_add: bool) -> Plan:
        """A plan with the full steps of a path."""
        full, seconds = len(path.computed), self._seconds
        # Without a profile a PSNR is a guess, which is told to who asked for one.
        is_told = self.profile is not None or target.startswith("psnr")
        return Plan(
            target,
            self.model,
            self.steps,
            list(self.loss.sigmas),
            OUTPUT,
            list(path.computed),
            self.loss,
            can_add,
            psnr=self.line.psnr(path.loss) if is_told else None,
            speed_up=self.steps / full if seconds is None else seconds.speed_up(self.steps, full),
            seconds=seconds.of(self.steps, full) if seconds is not None and self.knows_seconds else None,
        )

    def _is_fast_enough(self, target: Target, full: int) -> bool:
        seconds = self._seconds
        if target.kind == "speedup":
            reached = self.steps / full if seconds is None else seconds.speed_up(self.steps, full)
            return reached >= target.value
        if seconds is None or not self.knows_seconds:
            raise unknown_seconds(target)
        return seconds.of(self.steps, full) <= target.value

    def _too_fast(self, target: Target, least: int) -> InputError:
        seconds = self._seconds
        if target.kind == "speedup" or seconds is None:
            fastest = self.steps / least if seconds is None else seconds.speed_up(self.steps, least)
            found = f"at most {fastest:.2f}x in {self.steps} steps"
            return InputError(f"target {target}", found, f'ask for "speedup>={int(fastest * 100) / 100:g}" or less')
        found = f"at least {seconds.of(self.steps, least):.3g} s for {self.steps} steps"
        return InputError(f"target {target}", found, "ask for more seconds, or use fewer steps")


def unknown_seconds(target: Target) -> InputError:
    """The error of a target of seconds where they are not known."""
    return InputError(
        f"target {target}",
        "no profile of this model at this size on this device",
        "make one with unicp calibrate, or ask for a speedup",
    )


def plan_of_profile(profile: Profile, target: Target, steps: int) -> Plan:
    """The plan of a whole run under the profile's own sampler.

    With another number of steps its noise levels and shares are interpolated.

    Raises:
        InputError: No plan meets the target.
    """
    check_steps(steps)
    levels, shares = profile.levels, profile.shares
    if steps != profile.steps:
        levels, shares = _stretched(profile, steps)
    loss = loss_of_run(profile.products, profile.fingerprint.prediction, levels[:-1], shares)
    return Solver(profile.fingerprint.model, loss, (0,), profile).plan(target)


def _stretched(profile: Profile, steps: int) -> tuple[list[NoiseLevel], list[float]]:
    """Levels and shares of a run of other length: each along the run, a share as its step is wide."""
    known = profile.steps
    places = [known * step / steps for step in range(steps + 1)]

    def between(values: Sequence[float], at: float) -> float:
        left = min(int(at), len(values) - 2)
        return values[left] + (values[left + 1] - values[left]) * (at - left)

    sums = [0.0]
    for share in profile.shares:
        sums.append(sums[-1] + share)
    levels = [NoiseLevel(between(profile.signal, at), between(profile.noise, at)) for at in places]
    totals = [between(sums, at) for at in places]
    return levels, [after - before for before, after in zip(totals, totals[1:])]


def products_for(profile: Profile | None) -> Products:
    """What a plan is made from: the products of a profile, or the built-in ones."""
    return prior() if profile is None else profile.products
