"""Plans each run of a session once its noise levels are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unicp.errors import InputError
from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.plan import Plan, all_full
from unicp.planning.profile import Profile
from unicp.planning.solver import Solver
from unicp.planning.targets import Target
from unicp.policies.planned import Course

Levels = Sequence[NoiseLevel]
# Plans solved in this process, the newest last: solving takes as long as a few steps of a small model. The key has the
# id of the profile, which is kept with the plan so that no other profile can get the same id.
_SOLVED: dict[tuple[object, ...], tuple[Profile, Plan]] = {}
KEPT = 32


class RunPlanner:
    """Makes or checks the plan of each run.

    Args:
        source: A target with its profile, or a plan to follow as it is.
        caution: dB taken off what the profile predicts, because it is of another model.
        on_warning: Gets each warning once.
        knows_seconds: Whether the profile was made on this device.

    Attributes:
        plan: Of the last run; `None` if there is none.
    """

    def __init__(
        self,
        source: tuple[Target, Profile] | Plan,
        caution: float,
        on_warning: Callable[[str], None],
        knows_seconds: bool = True,
    ):
        self._source, self.caution, self._on_warning, self._knows_seconds = source, caution, on_warning, knows_seconds
        self._told: set[str] = set()
        self.plan: Plan | None = source if isinstance(source, Plan) else None

    def shorten(self, levels: Levels) -> Plan | None:
        """The plan of a run with these levels if that is a shorter plain run, else `None`.

        Raises:
            InputError: The target cannot be met.
        """
        plan = self.solve(levels)
        return None if plan.subset is None or not plan.fits(levels[:-1]) else plan

    def __call__(
        self,
        levels: Levels | None,
        branches: int,
        shape: Sequence[int],
        step: int = 1,
        shortened: Plan | None = None,
    ) -> Course | None:
        """Returns what a run follows.

        Args:
            levels: Of the run's steps, and the one after the last; `None` = not known.
            branches: Calls a step.
            shape: Of the sample, batch first.
            step: Step at which the run is; 1 unless it began in the middle.
            shortened: The plan by which the run was shortened when it was set.

        Returns:
            `None` where no plan fits. A warning says so, and the online rule decides.

        Raises:
            InputError: The target cannot be met, or only by a shorter plain run, and this run cannot be shortened.
        """
        if levels is None:
            return self._without("the scheduler does not tell the noise levels of this run")
        if shortened is not None:
            self._check_shortened(shortened, branches, shape, step)
            return all_full(len(levels) - 1)
        if isinstance(self._source, Plan):
            if not self._source.fits(levels[:-1]):
                found = f"a run of {len(levels) - 1} steps at other noise levels"
                raise InputError(
                    f"to follow a plan of {self._source.steps} steps", found, "plan for this run, by target"
                )
            self._tell_of_subset(self._source, is_speed=False)
            return self._source.course
        target, profile = self._source
        other = self._other_guidance(branches)
        if other:
            return self._without(other)
        # Another thread may plan its run at the same time, so this one does not read self.plan again.
        plan = self.plan = self.solve(levels, shape)
        if target.kind == "psnr" and plan.steps < profile.steps and not self.caution:
            asked = f"{target} in {plan.steps} steps"
            found = f"a profile of {profile.steps}, whose steps are narrower"
            do = f"calibrate with --steps {plan.steps}, or expect more clips below the target"
            self._tell(f"asked: {asked}; found: {found}; do: {do}")
        self._tell_of_subset(plan, is_speed=target.kind != "psnr")
        return plan.course

    def _check_shortened(self, plan: Plan, branches: int, shape: Sequence[int], step: int) -> None:
        """Stops a shortened run that turns out to be of a kind for which the target does not hold."""
        self.plan = plan
        found = self._other_guidance(branches)
        if step > 1:
            found = f"a run that begins at step {step} of those that were chosen for a whole one"
        elif not isinstance(self._source, Plan) and self._source[0].kind == "seconds":
            profiled = self._source[1].shape
            if list(shape) != profiled:
                found = f"a sample of shape {tuple(shape)}, and the profile's seconds are of {tuple(profiled)}"
        if found:
            asked = f"to leave out steps for {plan.target or 'a plan'}"
            raise InputError(asked, found, "use a preset, or calibrate runs like this one")

    def _other_guidance(self, branches: int) -> str:
        if isinstance(self._source, Plan) or self.caution:
            return ""
        known = self._source[1].fingerprint.branches
        if branches == known:
            return ""
        return f"the profile is of {known} calls a step and this run makes {branches} (guidance)"

    def solve(self, levels: Levels, shape: Sequence[int] | None = None) -> Plan:
        """The plan of a run.

        Args:
            levels: Of the run's steps, and the one after the last.
            shape: Of the sample; `None` = that of the profile.

        Raises:
            InputError: The target cannot be met.
        """
        if isinstance(self._source, Plan):
            return self._source
        target, profile = self._source
        same_size = (shape is None or list(shape) == list(profile.shape)) and self._knows_seconds
        places = tuple((level.signal, level.noise) for level in levels)
        key = (id(profile), str(target), self.caution, same_size, places)
        solved = _SOLVED.get(key)
        if solved is None:
            solved = _SOLVED[key] = profile, Solver(profile, levels, self.caution, same_size).plan(target)
            for oldest in list(_SOLVED)[:-KEPT]:
                _SOLVED.pop(oldest, None)
        return solved[1]

    def _tell_of_subset(self, plan: Plan, is_speed: bool) -> None:
        """Warns of a run that was not shortened as its plan says, or refuses it if the target is a speed."""
        if plan.subset is None:
            return
        count, chosen = plan.subset.count, plan.subset.chosen
        do = f"call the pipeline without UniCP, with num_inference_steps={count}"
        if chosen:
            do = f"enable UniCP on the pipeline, or run the steps {chosen} alone"
        found = f"plain {count} steps do better than any plan of {plan.steps}"
        if is_speed:
            raise InputError(f"target {plan.target}", found, do)
        self._tell(f"{found}: {do}")

    def _without(self, reason: str) -> None:
        self.plan = None
        self._tell(f"no plan: {reason}; the online rule decides, and the target may be missed")

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._on_warning(text)
