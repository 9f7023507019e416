"""Records the calls of a plain run, and plays its outputs again without computing them."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from unicp.errors import InputError
from unicp.numerics.error_measures import strided_sample
from unicp.numerics.forecasting import to_quantity
from unicp.numerics.noise_levels import NoiseLevel, Prediction, QuantityKind, is_invertible
from unicp.planning.profile import Recording
from unicp.runtime.model_call import OutputForm, read_output

POSITIONS = 4096  # per sample, the same on which UniCP measures errors
QUANTITIES: tuple[QuantityKind, ...] = ("output", "noise", "clean")


class CallRecorder:
    """Replaces a transformer's `forward`: records the calls of a plain run, or plays its first steps again.

    A step is a row of calls with one timestep. Played outputs are the recorded tensors, so a run that differs from some
    step on costs only the steps from there.

    Args:
        transformer: Whose `forward` is replaced within `recording` and `playing`.
        sample_name: Name of the argument that is the sample.

    Attributes:
        calls: By step and branch, (sample, output) of the plain run.
        seconds: Wall time of its calls, in order.
        played_on: Wall time of the calls after the played ones, in seconds.
    """

    def __init__(self, transformer: Any, sample_name: str):
        self._transformer, self._sample_name = transformer, sample_name
        self._names = list(inspect.signature(type(transformer).forward).parameters)[1:]
        self._forward: Any = None
        self.calls: list[list[tuple[Tensor, Tensor]]] = []
        self.seconds: list[float] = []
        self.played_on = 0.0
        self._form: OutputForm | None = None
        self._recording, self._played = False, 0
        self._step, self._branch, self._time = -1, 0, float("nan")

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records the run in this block as the plain one."""
        self.calls, self.seconds = [], []
        with self._installed(True, 0):
            yield

    @contextmanager
    def playing(self, steps: int) -> Iterator[None]:
        """Plays this many steps in the run in this block."""
        self.played_on = 0.0
        with self._installed(False, steps):
            yield

    @contextmanager
    def _installed(self, recording: bool, played: int) -> Iterator[None]:
        self._recording, self._played = recording, played
        self._step, self._branch, self._time = -1, 0, float("nan")
        self._forward = self._transformer.forward
        before = self._transformer.__dict__.get("forward")
        self._transformer.forward = self
        try:
            yield
        finally:
            if before is None:
                del self._transformer.forward
            else:
                self._transformer.forward = before
            self._forward = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The transformer's call."""
        named = {**dict(zip(self._names, args)), **kwargs}
        timestep = named["timestep"]
        now = float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)
        if now != self._time:
            self._step, self._branch, self._time = self._step + 1, 0, now
        branch, self._branch = self._branch, self._branch + 1
        if self._recording:
            return self._record(named[self._sample_name], branch, args, kwargs)
        if self._step < self._played:
            assert self._form is not None
            return self._form.fill((self.calls[self._step][branch][1].clone(),))
        output, _, seconds = self._timed(args, kwargs)
        self.played_on += seconds
        return output

    def _timed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Tensor, float]:
        """The output as the transformer gives it, its one tensor, and the seconds of the call."""
        begin = time.perf_counter()
        output = self._forward(*args, **kwargs)
        read = read_output(output)
        if read is None or len(read[1]) != 1:
            raise InputError("to calibrate this pipeline", "an output of several tensors", "use a preset")
        self._form, (tensor,) = read
        # Reading a value waits for an asynchronous device.
        float(tensor.flatten()[0])
        return output, tensor, time.perf_counter() - begin

    def _record(self, sample: Tensor, branch: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output, tensor, seconds = self._timed(args, kwargs)
        self.seconds.append(seconds)
        if branch == 0:
            self.calls.append([])
        self.calls[-1].append((sample.clone(), tensor.clone()))
        return output

    def forget_samples(self) -> None:
        """Drops the samples; only outputs are played."""
        self.calls = [[(output, output) for _, output in step] for step in self.calls]


def recording_of(
    prompt: str,
    calls: Sequence[Sequence[tuple[Tensor, Tensor]]],
    levels: Sequence[NoiseLevel],
    prediction: Prediction,
) -> Recording:
    """Reduces a plain run to what a profile keeps.

    Args:
        prompt: Of the run.
        calls: By step and branch, (sample, output), each (B, ...).
        levels: Noise level of each step.
        prediction: What the model's output is.
    """
    branches = len(calls[0])
    power = [sum(float(_rms2(output)) for _, output in step) / branches for step in calls]
    products: dict[str, list[float]] = {}
    for quantity in QUANTITIES:
        if not all(is_invertible(quantity, prediction, level, 0.0) for level in levels):
            continue
        if quantity != "output" and any(x.shape != output.shape for step in calls for x, output in step):
            continue
        total: Tensor | None = None
        for branch in range(branches):
            rows = [
                to_quantity(quantity, prediction, _probe(step[branch][0]), _probe(step[branch][1]), level).flatten()
                for step, level in zip(calls, levels)
            ]
            table = torch.stack(rows)
            product = table @ table.T / table.shape[1]
            total = product if total is None else total + product
        assert total is not None
        mean = (total / branches).tolist()
        products[quantity] = [round(mean[i][j], 12) for i in range(len(levels)) for j in range(i + 1)]
    return Recording(prompt, power, products)


def _probe(tensor: Tensor) -> Tensor:
    return strided_sample(tensor, POSITIONS).double()


def _rms2(tensor: Tensor) -> Tensor:
    return _probe(tensor).square().mean()
