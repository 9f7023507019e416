"""Records a transformer's outputs at each step from outside, and makes an error at one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from unicp.numerics.error_measures import relative_error
from unicp.numerics.forecasting import extrapolate


class Injection:
    """Replaces a transformer's forward. A step is a row of calls with one timestep.

    Args:
        forward: The transformer's own.
        sigmas: Noise level of each step.
        step: Whose outputs are forecast over the noise level from the two steps before; `None` = no step.

    Attributes:
        history: Outputs by step and branch.
        errors: Relative errors made.
    """

    def __init__(self, forward: Any, sigmas: list[float], step: int | None):
        self.forward, self.sigmas, self.step = forward, sigmas, step
        self.history: list[list[Tensor]] = []
        self.errors: list[float] = []
        self._time: float | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The transformer's forward with `return_dict=False` and the timestep by name, as pipelines call it."""
        time = float(kwargs["timestep"].flatten()[0])
        if time != self._time:
            self._time = time
            self.history.append([])
        output = self.forward(*args, **kwargs)[0]
        step, branch = len(self.history) - 1, len(self.history[-1])
        if step == self.step:
            points = [(self.sigmas[step - d], self.history[step - d][branch]) for d in (2, 1)]
            forecast = extrapolate(points, self.sigmas[step])
            self.errors += relative_error(forecast, output).tolist()
            output = forecast
        self.history[-1].append(output)
        return (output,)


@contextmanager
def injected(pipe: Any, step: int | None, steps: int) -> Iterator[Injection]:
    """Replaces the transformer's forward in the block, which makes one run of `steps` steps."""
    pipe.scheduler.set_timesteps(steps)
    levels = getattr(pipe.scheduler, "sigmas", None)
    if levels is None or len(levels) < steps or float(max(levels)) > 1.0:
        levels = pipe.scheduler.timesteps / pipe.scheduler.config["num_train_timesteps"]
    injection = Injection(pipe.transformer.forward, [float(level) for level in levels], step)
    before = pipe.transformer.__dict__.get("forward")
    pipe.transformer.forward = injection
    try:
        yield injection
    finally:
        if before is None:
            del pipe.transformer.forward
        else:
            pipe.transformer.forward = before
