"""Stand-ins for the parts around a policy or a cache point, so that one of them can be tried alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unicp.context import Decision, Observation, RunInfo, StepContext
from unicp.numerics.noise_levels import NoiseLevel
from unicp.policies.base import CachePolicy


def at(step: int, branch: str = "cond", steps: int | None = 20, samples: int = 1, **more: Any) -> StepContext:
    """A step of a run of flow matching whose noise level falls by 0.04 a step."""
    level = NoiseLevel(0.04 * step, 1.0 - 0.04 * step) if step <= 25 else None
    known: dict[str, Any] = {"timestep": 1000.0 - 40.0 * step, "noise_level": level} | more
    return StepContext(run=0, step=step, branch=branch, samples=samples, steps=steps, **known)


@dataclass
class FakeSeen:
    """What a policy sees of one call. drift: change of the input since the last full step."""

    drift: list[float] | None = None
    veto: str = ""
    others: Sequence[str] = ()
    base_error: float = 0.0
    not_ready: str = ""

    def since_full(self, signal: str = "input") -> list[float] | None:
        return self.drift

    def since_last(self, signal: str = "input") -> list[float] | None:
        return self.drift


def started(policy: CachePolicy, points: int = 1) -> Any:
    """A policy in a run, with a predictor that needs so many full steps."""
    policy.start_run(RunInfo("model", points))
    return policy


def learnt(policy: CachePolicy, error: float, upto: int = 4, drift: float | None = None, points: int = 1) -> Any:
    """A policy that has seen full steps before `upto`, with this error per unit of growth and this drift of a step."""
    policy = started(policy, points)
    for step in range(upto):
        observe(policy, step, error, drift, points)
    return policy


def observe(policy: Any, step: int, error: float, drift: float | None = None, points: int = 1) -> None:
    """Shows a policy of windows one full step, with an error where there were enough full steps before it."""
    window, where = policy.windows.get("cond"), at(step)
    errors = [error * window.growth(step)] if window is not None and len(window.steps) >= points else None
    policy.observe(where, FakeSeen(None if drift is None or not step else [drift]), errors)


def pattern(policy: CachePolicy, steps: int, error: float, points: int = 1) -> str:
    """What a policy makes of a whole run whose error is `error` per unit of growth: f = full, s = skipped."""
    policy, done = started(policy, points), ""
    for step in range(steps):
        decision = policy.decide(at(step, steps=steps), FakeSeen())
        if not decision.skip:
            observe(policy, step, error, points=points)
        done += "s" if decision.skip else "f"
    return done


class Always(CachePolicy):
    """Skips whatever can be skipped."""

    def decide(self, step: StepContext, seen: Observation) -> Decision:
        return Decision(True, "always")


class Never(CachePolicy):
    """Skips nothing."""

    def decide(self, step: StepContext, seen: Observation) -> Decision:
        return Decision(False, "never")


class Listed(CachePolicy):
    """Skips all calls but those of the listed steps, and keeps what it was told."""

    def __init__(self, full: Sequence[int] = ()):
        self.full = full
        self.seen: list[tuple[int, str]] = []
        self.errors: dict[tuple[int, str], list[float] | None] = {}

    def decide(self, step: StepContext, seen: Observation) -> Decision:
        self.seen.append((step.step, step.branch))
        return Decision(step.step not in self.full, "listed")

    def observe(self, step: StepContext, seen: Observation, errors: Sequence[float] | None) -> None:
        self.errors[step.step, step.branch] = None if errors is None else list(errors)
