"""Whatever order calls come in, whatever they hold: nothing raises, and nobody is given what belongs to another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.fake_models import FakeTransformer, noise
from unicp.context import Action
from unicp.session import enable
from unicp.settings import preset

TEXTS = [noise(seed, 1, 2, 3) for seed in range(3)]
SETTINGS = {
    "model": preset("balanced", tolerance=1e9, store_factor=1e6),
    "reuse": preset("balanced", tolerance=1e9, predictor="reuse", first=1, quantity="output", max_window=5),
    "exact": preset("balanced", tolerance=0.0),
}


@dataclass(frozen=True)
class Call:
    """One call. timestep may be out of order, repeated or no number; batch may be 0; other: noise of its own."""

    timestep: float
    text: int
    batch: int
    size: int
    context: str | None
    spoilt: bool
    fails: bool
    other: bool = False


calls = st.builds(
    Call,
    timestep=st.sampled_from([1000.0, 900.0, 800.0, 700.0, 600.0, 500.0, 400.0, 300.0, 0.0, math.nan, math.inf]),
    text=st.integers(0, 2),
    batch=st.sampled_from([1, 1, 1, 2, 0]),
    size=st.sampled_from([4, 4, 4, 5]),
    context=st.sampled_from([None, None, "cond", "uncond"]),
    spoilt=st.sampled_from([False] * 9 + [True]),
    fails=st.sampled_from([False] * 12 + [True]),
    other=st.sampled_from([False] * 6 + [True]),
)
# Runs that mostly fall, as real ones do, so that much is served before something odd comes.
falling = st.lists(st.integers(0, 12), min_size=8, max_size=20).map(
    lambda odd: [Call(1000.0 - 50 * place, min(one % 4, 2), 1, 4, None, False, False) for place, one in enumerate(odd)]
)
mixed = st.tuples(falling, st.lists(calls, max_size=10), falling).map(lambda parts: [*parts[0], *parts[1], *parts[2]])


def expected(sample: Tensor, text: Tensor) -> Tensor:
    """The model's answer: a number of the text's own, so that what came from another branch shows."""
    return text.mean() + torch.zeros_like(sample)


class Failure(Exception):
    pass


def play(sequence: list[Call], kind: str) -> tuple[list[tuple[Call, Tensor, Tensor]], Any]:
    """Makes the calls; gives those that returned, with what they should have given."""
    fails = False

    def answer(sample: Tensor, timestep: Tensor, hidden: Tensor) -> Tensor:
        if fails:
            raise Failure
        return text.mean() + 0 * sample

    transformer = FakeTransformer(answer)
    found = []
    with enable(transformer, SETTINGS[kind]) as session:
        engine = session._engines[0]
        for place, call in enumerate(sequence):
            text, fails = TEXTS[call.text], call.fails
            sample = noise(place if call.other else 0, call.batch, call.size, 3) * 0.97**place
            if call.spoilt:
                sample = torch.full_like(sample, math.nan)
            context = None if call.context is None else _Context(call.context)
            forward: Callable[..., Any] = type(transformer).forward.__get__(transformer)
            arguments = {"hidden_states": sample, "timestep": torch.tensor([call.timestep])}
            try:
                output = engine.call(forward, (), arguments | {"encoder_hidden_states": text}, context)[0]
            except Failure:
                continue
            found.append((call, output, expected(sample, text)))
        assert all(entry.operations >= 0 for entry in session.trace.entries)
        session.reset()
        assert session.is_empty
    return found, session.trace


@dataclass(frozen=True)
class _Context:
    name: str
    step_index: int | None = None
    num_inference_steps: int | None = None


@pytest.mark.parametrize("kind", list(SETTINGS))
@given(sequence=st.one_of(falling, st.lists(calls, max_size=25), mixed))
def test_any_sequence_of_calls_gives_each_text_its_own_answer(kind, sequence):
    found, trace = play(sequence, kind)
    for call, output, true in found:
        assert output.shape == true.shape
        if not call.spoilt:
            assert torch.isfinite(output).all()
            torch.testing.assert_close(output, true, rtol=1e-4, atol=1e-4)
    if kind == "exact":
        assert not any(Action(entry.action).skipped for entry in trace.entries)
    followed = [call for call, *_ in found if call.batch]
    assert len(trace.entries) >= len(followed) - trace.counts["not_followed"]


def test_the_sequences_above_do_serve():
    straight = [Call(1000.0 - 50 * place, 0, 1, 4, None, False, False) for place in range(12)]
    for kind in ("model", "reuse"):
        _, trace = play(straight, kind)
        assert sum(Action(entry.action).skipped for entry in trace.entries) >= 3, kind
