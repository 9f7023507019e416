"""What a cache policy is: at each call it decides whether a cache point may skip. Floats only, no tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unicp.context import Decision, Observation, RunInfo, StepContext
from unicp.registry import Registry
from unicp.settings import Settings


class CachePolicy:
    """Decides, call by call, whether one cache point skips. One object for each cache point of each run.

    A subclass needs `decide` alone. Everything it keeps belongs to one run, and is dropped with it.

    Attributes:
        signals: What it wants to see besides the input of the cache point. "block0.modulated" is what enters the first
            attention of the first block, where the timestep has been put in.
    """

    signals: tuple[str, ...] = ()
    # Whether it looks at `Observation.others`, and so takes care itself that the branches of a step do the same.
    asks_for_others: bool = False
    # Whether it may skip before the predictor has all its full steps, where that can do with fewer.
    starts_early: bool = False

    def start_run(self, run: RunInfo) -> None:
        """A run begins: everything that was known of the one before is forgotten."""

    def decide(self, step: StepContext, seen: Observation) -> Decision:
        """Whether this call is skipped. Called once for each call, in the order of the run.

        Where `seen.veto` or `seen.not_ready` says that it cannot be, it is computed whatever the answer.
        """
        raise NotImplementedError(f"{type(self).__name__} has no decide(step, seen)")

    def observe(self, step: StepContext, seen: Observation, errors: Sequence[float] | None) -> None:
        """The call was computed in full.

        Args:
            step: Where the call is.
            seen: As `decide` was given it.
            errors: The relative error that skipping this call would have had, one number per sample; `None` where
                nothing could have been predicted yet.
        """


policies: Registry[Callable[[Settings], CachePolicy]] = Registry("policy")


def register_policy(name: str, maker: Callable[[Settings], CachePolicy], *, replace: bool = False) -> None:
    """Adds a cache policy, so that settings can ask for it by name.

    Args:
        name: For `Settings.policy`.
        maker: Takes the `Settings` of the session and makes the policy of one cache point in one run; a subclass of
            `CachePolicy` whose constructor takes settings will do.
        replace: Whether it may take the place of another of this name.

    Raises:
        SettingsError: The name is taken and `replace` is false.

    Example:
        >>> import unicp
        >>> class EveryOther(unicp.CachePolicy):
        ...     def __init__(self, settings):
        ...         pass
        ...
        ...     def decide(self, step, seen):
        ...         return unicp.Decision(skip=step.step % 2 == 1, reason="odd")
        >>> unicp.register_policy("every other", EveryOther, replace=True)
        >>> settings = unicp.preset("balanced", policy="every other")
    """
    policies.add(name, maker, replace=replace)
