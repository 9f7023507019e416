"""The contract of every pipeline: exact at tolerance 0, really served with a generous one, and nothing left behind."""

from __future__ import annotations

import functools
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.pipelines import parts
from tests.pipelines.cross_video import ltx
from tests.pipelines.joint_video import easy_animate
from tests.pipelines.rows import LATENT, Row, Unbuilt
from tests.pipelines.table import BROKEN, ROWS, UNBUILT
from unicp.context import Action
from unicp.models.families import family_named
from unicp.models.family_rows import VIDEO
from unicp.models.finder import transformers_of
from unicp.records import Entry
from unicp.session import enable
from unicp.settings import preset

EXACT = preset("balanced", tolerance=0.0)
# Whatever can be served is: errors of random weights are large, and this is about wiring.
GENEROUS = preset("balanced", tolerance=1e6, weighting="uniform", first=1, store_factor=64.0)
Note = Callable[..., None]
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@dataclass(frozen=True)
class Call:
    """One call of a transformer, seen from outside. text: tells texts apart."""

    samples: int
    text: tuple[Any, ...]


@functools.cache
def built(row: Row) -> Any:
    return row.build()


@functools.cache
def plain(row: Row) -> list[Tensor]:
    return row.call(built(row))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) > 0 and all(map(torch.equal, one, other))


@contextmanager
def watched(pipe: Any) -> Iterator[list[Call]]:
    """All calls of the pipeline's transformers, served or not."""
    calls: list[Call] = []

    def see(module: Any, args: Any, kwargs: Any) -> None:
        family = family_named(type(module).__name__)
        assert family is not None
        given = inspect.signature(type(module).forward).bind_partial(module, *args, **kwargs).arguments
        text = parts.tensors(given.get(family.text_argument))
        calls.append(
            Call(
                len(given[family.sample_argument]), tuple((one.shape, float(one.double().abs().sum())) for one in text)
            )
        )

    handles = [module.register_forward_pre_hook(see, with_kwargs=True) for module in transformers_of(pipe).values()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def check_trace(row: Row, entries: list[Entry], calls: list[Call]) -> None:
    """The trace of one call of a pipeline has its runs, steps and branches, and no branch has two texts."""
    done = row.steps if row.done is None else row.done
    assert [call.samples for call in calls] == list(row.calls) * (done * row.runs)
    assert len(entries) == len(calls)
    found: dict[int, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    texts: dict[tuple[int, str], set[Any]] = defaultdict(set)
    for entry, call in zip(entries, calls):
        found[entry.run][entry.step].append(entry.branch)
        texts[entry.run, entry.branch].add(call.text)
    assert len(found) == row.runs
    # Where some levels are known, a timestep without one was not recognised.
    assert len({entry.sigma is None for entry in entries}) == 1
    for steps in found.values():
        assert list(steps) == list(range(min(steps), min(steps) + done))
        branches = list(steps.values())
        assert len(set(branches[0])) == len(row.calls) and all(step == branches[0] for step in branches)
    assert all(len(one) == 1 for one in texts.values())
    if len(row.calls) > 1:
        assert len(set().union(*texts.values())) > 1, "prompts that make no difference prove nothing"


@every_row
def test_tolerance_0_changes_nothing_and_nothing_is_left_afterwards(row: Row, note: Note):
    note(row)
    pipe, before = built(row), plain(row)
    assert all(bool(torch.isfinite(one).all()) for one in before)
    with enable(pipe, EXACT) as session:
        assert same(row.call(pipe), before)
    assert session.trace.entries and session.is_empty
    assert same(row.call(pipe), before)


@every_row
def test_what_is_served_is_what_the_pipeline_asked_for_and_no_call_leaks_into_the_next(row: Row, note: Note):
    note(row)
    pipe = built(row)
    with watched(pipe) as calls, enable(pipe, GENEROUS) as session:
        first = row.call(pipe)
        entries, seen = list(session.trace.entries), list(calls)
        second = row.call(pipe, 1)
    check_trace(row, entries, seen)
    served = sum(Action(entry.action).skipped for entry in entries)
    assert served, [entry.reason for entry in entries]
    assert not same(first, plain(row))
    assert all(bool(torch.isfinite(one).all()) for one in (*first, *second))
    with enable(pipe, GENEROUS) as fresh:
        assert same(row.call(pipe, 1), second)
    # Which of them were served, and why, is the same too: numbers of runs and times are not.
    told = [[(e.step, e.branch, e.action, e.reason, e.measured) for e in s.trace.entries] for s in (session, fresh)]
    assert told[0][len(entries) :] == told[1]
    uses_context = not entries[0].branch.startswith("call")
    transformer = type(next(iter(transformers_of(pipe).values()))).__name__
    note(row, transformer=transformer, context=uses_context, served=served, calls=len(entries), result="works")


@every_row
def test_few_steps_other_numbers_of_them_and_an_interrupt(row: Row, note: Note):
    note(row)
    pipe = built(row)
    takes_callback = "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters
    # Where a run begins in mid-schedule, so few steps may be none.
    numbers = row.few if row.done is None else ()
    expected = [freshly(row, pipe, steps) for steps in numbers]

    def stop(pipe: Any, step: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 3
        return {}

    with enable(pipe, GENEROUS) as session:
        if takes_callback:
            row.call(pipe, 1, callback_on_step_end=stop)
        # As in a session of its own: nothing that is skipped here was left from before.
        for steps, output in zip(numbers, expected):
            assert same(row.call(pipe, steps=steps), output), steps
        assert same(row.call(pipe), generously(row))
    assert session.is_empty and same(row.call(pipe), plain(row))


def freshly(row: Row, pipe: Any, steps: int) -> list[Tensor]:
    """A run of so many steps in a session of its own."""
    with enable(pipe, GENEROUS):
        return row.call(pipe, steps=steps)


@functools.cache
def generously(row: Row) -> list[Tensor]:
    pipe = row.build()
    with enable(pipe, GENEROUS):
        return row.call(pipe)


def test_calls_with_tokens_at_several_noise_levels_are_computed_and_the_rest_is_served():
    # A picture of strength 0.5 keeps a noise level of its own until all the rest is below it.
    given = {"image": parts.picture(), "strength": 0.5, "height": parts.SIZE, "width": parts.SIZE, "num_frames": 9}
    row = Row("", "LTXConditionPipeline", ltx, given | LATENT | {"max_sequence_length": 16}, steps=24)
    pipe = row.build()
    before = row.call(pipe)
    with enable(pipe, EXACT):
        assert same(row.call(pipe), before)
    with enable(pipe, GENEROUS) as session:
        output = row.call(pipe)
    entries = session.trace.entries
    several = [entry for entry in entries if entry.sigma is not None and entry.sigma > 0.5]
    assert len(several) > 3 and len({entry.run for entry in several}) == len(several)
    assert not any(Action(entry.action).skipped for entry in several)
    assert any(Action(entry.action).skipped for entry in entries) and bool(torch.isfinite(output[0]).all())


@pytest.mark.parametrize("pipeline", UNBUILT, ids=lambda one: one.pipeline)
def test_a_pipeline_without_a_row_says_why(pipeline: Unbuilt, note_unbuilt: Note):
    assert hasattr(diffusers, pipeline.pipeline) and pipeline.pipeline not in {row.pipeline for row in ROWS}
    family = family_named(pipeline.transformer)
    assert family is not None and pipeline.why
    note_unbuilt(pipeline)


def test_every_video_pipeline_has_a_row_or_a_reason():
    if not diffusers.__version__.startswith("0.42."):
        pytest.skip("the table is that of diffusers 0.42")
    families = "|".join(family.transformer for family in VIDEO)
    found: set[str] = set()
    for file in Path(diffusers.__file__).parent.glob("pipelines/*/pipeline_*.py"):
        text = file.read_text(encoding="utf-8")
        if re.search(rf"transformer: .*\b({families})\b", text):
            found |= set(re.findall(r"^class (\w+Pipeline)\b", text, re.MULTILINE))
    assert len(found) > 40
    assert found <= {one.pipeline for one in (*ROWS, *UNBUILT)}


def test_a_pipeline_that_diffusers_cannot_call_is_still_broken():
    # When this fails it has been mended: make it a row like the others.
    row = Row("", BROKEN.pipeline, easy_animate, {"height": parts.SIZE, "width": parts.SIZE, "num_frames": 5})
    with pytest.raises(TypeError, match="encode_prompt"):
        row.call(row.build())
