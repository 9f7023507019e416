"""Keeps a predictor-corrector scheduler (UniPC) from taking the error of a served output for curvature.

At every step UniPC compares the fresh output with the one before it and moves the sample it had predicted accordingly.
Where the one before was served, the difference holds the error of the forecast as well; the sample is moved the wrong
way, the next forecast is worse, and on hard prompts the run comes apart. So the corrector is left out at a computed
step that follows a served one; at served steps, and between computed ones, it works as ever (ours; docs/method.md,
section 3.6). The scheduler has a switch for that, `disable_corrector`, a list of steps; it gets its own list back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_SWITCH = "disable_corrector"


class CorrectorHold:
    """The switch of one scheduler at a time; holds nothing between runs."""

    def __init__(self) -> None:
        self._scheduler: Any = None
        self._own: Sequence[int] = ()

    def hold(self, scheduler: Any) -> bool:
        """Leaves the corrector out at the step that `scheduler` takes next.

        False where it has none to leave out, or where that is done already (by another branch of the step).
        """
        own, index = getattr(scheduler, _SWITCH, None), getattr(scheduler, "step_index", None)
        if not isinstance(own, (list, tuple)) or index is None:
            return False
        if self._scheduler is scheduler:
            if own and own[-1] == index - 1:
                return False
            own = self._own
        self.release()
        self._scheduler, self._own = scheduler, own
        # A new list: the scheduler's own may be the default that all schedulers of a process share.
        setattr(scheduler, _SWITCH, [*own, int(index) - 1])
        return True

    def release(self) -> None:
        """Gives the scheduler its own list back. May be repeated."""
        if self._scheduler is not None:
            setattr(self._scheduler, _SWITCH, self._own)
        self._scheduler, self._own = None, ()
