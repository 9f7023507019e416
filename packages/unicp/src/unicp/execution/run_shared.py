"""What the runs of one transformer have in common: plain facts, the trace they write to, and who plans them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unicp.control.controller import Course
from unicp.errors import InputError
from unicp.execution.block_spans import BlockCall
from unicp.execution.recorder import CostBook
from unicp.execution.run_tracker import RunTracker
from unicp.execution.trace_log import TraceLog
from unicp.models.finder import ModelMap
from unicp.settings import Settings

Forward = Callable[..., Any]
# (what the run is known by, step under way, shape of the sample) -> the plan it follows, None = online rule.
Planner = Callable[[RunTracker, int, tuple[int, ...]], Course]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


@dataclass(frozen=True)
class Shared:
    """What the runs of one transformer have in common; nothing of it changes what a run computes.

    unseen: names of compiled units whose attention nobody has seen yet.
    """

    map: ModelMap
    settings: Settings
    log: TraceLog
    book: CostBook
    block_calls: dict[str, BlockCall]
    sliced: frozenset[str]
    unseen: set[str]
    planner: Planner | None = None


def two_threads(scheduler: Any) -> InputError:
    """The error of one scheduler that steps two runs at once: with or without UniCP their clips would be mixed up."""
    return InputError(
        "a run of this thread to go on",
        f"another thread has set the same {type(scheduler).__name__} since",
        "give each thread a copy of the pipeline (copy.copy) with a scheduler of its own (from_config)",
    )
