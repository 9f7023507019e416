"""Plans each run of a session once its noise levels are known."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unicp.errors import InputError
from unicp.numerics.noise_levels import NoiseLevel
from unicp.planning.plan import Plan
from unicp.planning.products import Products
from unicp.planning.profile import Fingerprint, Profile
from unicp.planning.solver import Solver, loss_of_run, products_for
from unicp.planning.targets import Target
from unicp.policies.planned import Schedule

Levels = Sequence[NoiseLevel]
# Plans solved in this process, the newest last: solving takes as long as a few steps of a small model. The key has the
# id of the products, which are kept with the plan so that no others can get the same id.
_SOLVED: dict[tuple[object, ...], tuple[Products, Plan]] = {}
_lock = threading.Lock()
KEPT = 32


@dataclass(frozen=True)
class PlannedRun:
    """What a planner is told of a run.

    Attributes:
        levels: Of the run's steps, and the one after the last; `None` = not known.
        shares: Of each output in the final sample, from the step under way on; `None` = the sampler does not tell.
        branches: Calls a step.
        shape: Of the sample, batch first.
        known: Full steps so far, rising; the step under way where there are none.
        is_replayed: Whether the sampler replays skipped steps.
    """

    levels: Levels | None
    shares: Sequence[float] | None
    branches: int
    shape: Sequence[int]
    known: Sequence[int]
    is_replayed: bool


class RunPlanner:
    """Makes or checks the plan of each run of one model under one kind of sampler.

    Args:
        source: A target, a tolerance, or a plan to follow as it is.
        fingerprint: Of the model.
        profile: Of the model; `None` = nobody calibrated it.
        on_warning: Gets each warning once.
        knows_seconds: Whether the profile was made on this device.

    Attributes:
        plan: Of the last run; `None` if there is none.
    """

    def __init__(
        self,
        source: Target | float | Plan,
        fingerprint: Fingerprint,
        profile: Profile | None,
        on_warning: Callable[[str], None],
        knows_seconds: bool = True,
    ):
        self._source, self._fingerprint, self.profile = source, fingerprint, profile
        self._on_warning, self._knows_seconds = on_warning, knows_seconds
        self._told: set[str] = set()
        self.plan: Plan | None = source if isinstance(source, Plan) else None

    def __call__(self, run: PlannedRun) -> Schedule | None:
        """Returns what a run follows.

        Returns:
            `None` where no plan can be made. A warning says so, and the online rule decides.

        Raises:
            InputError: The target cannot be met, or the plan is of another run.
        """
        if isinstance(self._source, Plan):
            return self._follow(self._source, run.levels)
        if run.levels is None:
            return self._without("the scheduler does not tell the noise levels of this run")
        if len({level.log_snr for level in run.levels[:-1]}) < len(run.levels) - 1:
            return self._without("two steps of this run are at one noise level")
        if run.shares is None:
            return self._without("the scheduler does not tell what it makes of each output")
        profile = self.profile
        if profile is not None and profile.fingerprint.branches != run.branches:
            known = profile.fingerprint.branches
            found = f"the profile is of {known} calls a step and this run makes {run.branches} (guidance)"
            self._tell(f"{found}: planned as if nobody had calibrated the model")
            profile = None
        # Another thread may plan its run at the same time, so this one does not read self.plan again.
        plan = self.plan = self._solved(run, run.levels, run.shares, profile)
        return plan.schedule

    def _follow(self, plan: Plan, levels: Levels | None) -> Schedule | None:
        if levels is None:
            return self._without("the scheduler does not tell the noise levels of this run")
        if not plan.fits(levels[:-1]):
            found = f"a run of {len(levels) - 1} steps at other noise levels"
            raise InputError(f"to follow a plan of {plan.steps} steps", found, "plan for this run, by target")
        return plan.schedule

    def _solved(self, run: PlannedRun, levels: Levels, shares: Sequence[float], profile: Profile | None) -> Plan:
        products = products_for(profile)
        seconds_hold = self._knows_seconds and (profile is None or list(run.shape) == profile.shape)
        places = tuple((level.signal, level.noise) for level in levels)
        key = (id(products), str(self._source), self._fingerprint, seconds_hold, places, tuple(shares))
        key = (*key, tuple(run.known), run.is_replayed)
        with _lock:
            solved = _SOLVED.get(key)
        if solved is None:
            loss = loss_of_run(products, self._fingerprint.prediction, levels[:-1], shares, run.is_replayed)
            solver = Solver(self._fingerprint.model, loss, run.known, profile, seconds_hold)
            source = self._source
            plan = solver.plan(source) if isinstance(source, Target) else solver.within(source)  # type: ignore[arg-type]
            solved = products, plan
            with _lock:
                _SOLVED[key] = solved
                for oldest in list(_SOLVED)[:-KEPT]:
                    _SOLVED.pop(oldest, None)
        return solved[1]

    def _without(self, reason: str) -> None:
        self.plan = None
        missed = ", and the target may be missed" if isinstance(self._source, Target) else ""
        self._tell(f"no plan: {reason}; the online rule decides{missed}")

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._on_warning(text)
