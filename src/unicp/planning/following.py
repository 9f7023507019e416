"""Gives each run of a session the plan that it follows: solved when the run shows its noise levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unicp.control.controller import Course
from unicp.errors import InputError
from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.plan import Plan
from unicp.planning.profile import Profile
from unicp.planning.solver import Solver
from unicp.planning.targets import Target

Levels = Sequence[NoiseLevel]


class RunPlanner:
    """Makes or checks the plan of each run. plan: of the last run, None before the first and where none could be had.

    source: a target to be solved for under a profile, or a plan to be followed as it is. caution: dB taken off what
    the profile promises, because it is another model's. say: told, once, what a user must know. knows_seconds: whether
    the profile was made on this device.
    """

    def __init__(
        self,
        source: tuple[Target, Profile] | Plan,
        caution: float,
        say: Callable[[str], None],
        knows_seconds: bool = True,
    ):
        self._source, self.caution, self._say, self._knows_seconds = source, caution, say, knows_seconds
        self._solved: dict[tuple[float, ...], Plan] = {}
        self._said: set[str] = set()
        self.plan: Plan | None = source if isinstance(source, Plan) else None

    def __call__(self, levels: Levels | None, branches: int, shape: Sequence[int]) -> Course:
        """What a run follows; None = no plan fits it, which was said: the online rule decides.

        levels: of the run's steps, and the one after the last. shape: of the sample. Raises InputError where the target
        cannot be met, or fewer steps would meet it better than any plan.
        """
        if levels is None:
            return self._without("the scheduler does not tell the noise levels of this run")
        if isinstance(self._source, Plan):
            if not self._source.fits(levels[:-1]):
                found = f"a run of {len(levels) - 1} steps at other noise levels"
                raise InputError(
                    f"to follow a plan of {self._source.steps} steps", found, "plan for this run, by target"
                )
            return self._source.course
        target, profile = self._source
        known = profile.fingerprint.branches
        if branches != known and not self.caution:
            return self._without(f"the profile is of {known} calls a step and this run makes {branches} (guidance)")
        self.plan = self.solve(levels, shape)
        self._tell_of_fewer(self.plan, target)
        return self.plan.course

    def solve(self, levels: Levels, shape: Sequence[int] | None = None) -> Plan:
        """The plan of a run. shape: of the sample; None = taken for that of the profile. Raises InputError."""
        if isinstance(self._source, Plan):
            return self._source
        target, profile = self._source
        same_size = (shape is None or list(shape) == list(profile.shape)) and self._knows_seconds
        key = (*(level.sigma for level in levels), float(same_size))
        if key not in self._solved:
            self._solved[key] = Solver(profile, levels, self.caution, same_size).plan(target)
        return self._solved[key]

    def _tell_of_fewer(self, plan: Plan, target: Target) -> None:
        if plan.fewer is None:
            return
        do = f"call the pipeline without UniCP, with num_inference_steps={plan.fewer}"
        if plan.fewer_computed:
            do += (
                f", within only_steps(pipe.scheduler, {plan.steps}, {plan.fewer_computed}) of unicp.models.chosen_steps"
            )
        found = f"plain {plan.fewer} steps do better than any plan of {plan.steps}"
        if target.kind != "psnr":
            raise InputError(f"target {target}", found, do)
        self._tell(f"{found}: {do}")

    def _without(self, reason: str) -> None:
        self.plan = None
        self._tell(f"no plan: {reason}; the online rule decides, and the target is not promised")

    def _tell(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)
