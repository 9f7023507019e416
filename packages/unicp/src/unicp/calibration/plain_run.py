"""Watches a plain run: what the sampler was given at each step, as spread values, and how long the model took."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unicp.errors import InputError
from unicp.numerics.error_measures import strided_sample
from unicp.numerics.forecasting import to_quantity
from unicp.numerics.noise_levels import NoiseLevel, Prediction, is_invertible
from unicp.planning.products import Products
from unicp.runtime.model_call import read_output
from unicp.sampler.response import output_shares

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POSITIONS = 4096  # per sample


class SamplerRecorder:
    """Stands before `scheduler.step` of one scheduler object for the length of a run.

    Attributes:
        given: By step, (sample, output), spread values, (B, n) each.
        shares: Of each output in the final sample; `None` = the scheduler does not tell.
    """

    def __init__(self, scheduler: Any):
        self._scheduler = scheduler
        self.given: list[tuple[Tensor, Tensor]] = []
        self.shares: tuple[float, ...] | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records the run in this block."""
        self.given, own = [], self._scheduler.step

        @functools.wraps(own)  # pipelines look at the signature
        def step(*args: Any, **kwargs: Any) -> Any:
            if not self.given:
                self.shares = output_shares(self._scheduler, 0)
            named = {**dict(zip(("model_output", "timestep", "sample"), args)), **kwargs}
            sample, output = (
                strided_sample(named[name].detach(), POSITIONS).double() for name in ("sample", "model_output")
            )
            self.given.append((sample, output))
            return own(*args, **kwargs)

        self._scheduler.step = step
        try:
            yield
        finally:
            del self._scheduler.step


class CallTimer:
    """Times the calls of a transformer for the length of a run.

    Attributes:
        seconds: Of each call, in order.
        shape: Of the sample in the first call, batch first.
    """

    def __init__(self, transformer: Any, sample_name: str):
        self._transformer, self._sample_name = transformer, sample_name
        self._names = list(inspect.signature(type(transformer).forward).parameters)[1:]
        self.seconds: list[float] = []
        self.shape: list[int] = []
        self._begin = 0.0

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Times the run in this block."""
        self.seconds = []
        handles = [
            self._transformer.register_forward_pre_hook(self._before, with_kwargs=True),
            self._transformer.register_forward_hook(self._after),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.shape:
            self.shape = list({**dict(zip(self._names, args)), **kwargs}[self._sample_name].shape)
        self._begin = time.perf_counter()

    def _after(self, module: Any, args: Any, output: Any) -> None:
        read = read_output(output)
        if read is not None:
            # Reading a value waits for an asynchronous device.
            float(read[1][0].flatten()[0])
        self.seconds.append(time.perf_counter() - self._begin)


def products_of(
    given: Sequence[tuple[Tensor, Tensor]], levels: Sequence[NoiseLevel], prediction: Prediction
) -> NDArray[np.float64]:
    """Mean products of the noise and the clean estimates of one run, (2 N, 2 N).

    Args:
        given: By step, (sample, output), (B, n) each.
        levels: Of each step.
        prediction: What the output is.

    Raises:
        InputError: An output is not of the sample's shape, or an estimate does not exist at a level.
    """
    if len(given) != len(levels) or any(sample.shape != output.shape for sample, output in given):
        found = "steps whose outputs are not of the sample's shape, or not one for each noise level"
        raise InputError("to record this run", found, "use a preset")
    rows = []
    for quantity in ("noise", "clean"):
        for (sample, output), level in zip(given, levels):
            if not is_invertible(quantity, prediction, level, 0.0):
                raise InputError("to record this run", f"no {quantity} estimate at {level}", "use a preset")
            rows.append(to_quantity(quantity, prediction, sample, output, level).flatten())
    table = torch.stack(rows)
    return (table @ table.T / table.shape[1]).cpu().numpy()


def mean_products(matrices: Sequence[NDArray[np.float64]], levels: Sequence[NoiseLevel]) -> Products:
    """The mean over runs at the same noise levels.

    Args:
        matrices: As `products_of` gives them.
        levels: Of each step.
    """
    return Products.of(sum(matrices[1:], matrices[0]) / len(matrices), [level.log_snr for level in levels])
