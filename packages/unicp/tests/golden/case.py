"""One golden case: a model, how it is accelerated and called, and what is recorded of that.

Cases use nothing of UniCP but what a user can see: `unicp.enable`, the session, its trace and plan, and the output of
the pipeline. So they say the same before and after any change behind that.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import unicp
from tests.golden.words import FIELDS, FLOATS, SKIPPED, STRUCTURE

Call = Callable[[Any], Tensor]
# How many values of an output are kept, for machines whose arithmetic is another.
KEPT = 64


@dataclass(frozen=True, eq=False)
class Case:
    """One run under UniCP.

    file: of the recorded ones. kind: cases of one kind are counted together. plain: names what is the same without
    UniCP. build: the model or pipeline. call: its output as one tensor. options: of `unicp.enable`.
    replay: follow the plan that a first run under these options leaves.
    slow: not of the part that is run often.
    """

    file: str
    kind: str
    name: str
    plain: str
    build: Callable[[], Any]
    call: Call
    options: dict[str, Any] = field(default_factory=dict)
    replay: bool = False
    slow: bool = False

    @property
    def key(self) -> str:
        """Of this case among all."""
        return f"{self.file}/{self.kind}/{self.name}"


_plain: dict[str, Tensor] = {}


def play(case: Case) -> dict[str, Any]:
    """Runs a case without and with UniCP, and says what happened, in plain values."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as folder:
            return _play(case, Path(folder))
    finally:
        torch.set_num_threads(before)


def _play(case: Case, folder: Path) -> dict[str, Any]:
    model = case.build()
    key = f"{case.file}/{case.plain}"
    if key not in _plain:
        _plain[key] = case.call(model)
    plain = _plain[key]
    found: dict[str, Any] = {"key": case.key, "plain": digest(plain)}
    try:
        options = case.options
        if case.replay:
            with unicp.enable(model, **options) as session:
                case.call(model)
            session.save_plan(folder / "plan.json")
            options = {"plan": folder / "plan.json"}
        with unicp.enable(model, **options) as session:
            output = case.call(model)
    except unicp.UniCPError as error:
        return found | {"refused": type(error).__name__}
    return found | told(session) | {"output": digest(output), "far": far(output, plain), "values": sampled(output)}


def told(session: unicp.Session) -> dict[str, Any]:
    """What a session says it did."""
    trace, plan = session.trace, session.plan
    columns = {name: [getattr(entry, FIELDS.get(name, name)) for entry in trace.entries] for name in STRUCTURE}
    floats = {name: [getattr(entry, FIELDS.get(name, name)) for entry in trace.entries] for name in FLOATS}
    return {
        "entries": len(trace.entries),
        "skipped": sum(action in SKIPPED for action in columns["action"]),
        "columns": {name: packed(values) for name, values in columns.items()},
        "floats": {name: packed(rounded(values)) for name, values in floats.items()},
        "counts": dict(sorted(trace.counts.items())),
        "warnings": len(trace.warnings),
        "run_steps": trace.run_steps,
        "most_bytes": max((entry.stored_bytes for entry in trace.entries), default=0),
        "plan": None if plan is None else of_plan(plan),
    }


def of_plan(plan: unicp.Plan) -> dict[str, Any]:
    """What a plan says is done."""
    return {"full": plan.full, "can_add": plan.can_add}


def packed(values: list[Any]) -> Any:
    """A column as pairs of a value and how often it follows itself, where that is shorter."""
    pairs = [[value, len(list(same))] for value, same in itertools.groupby(values, key=lambda one: json.dumps(one))]
    pairs = [[json.loads(value), count] for value, count in pairs]
    return {"pairs": pairs} if 2 * len(pairs) < len(values) else values


def unpacked(column: Any) -> list[Any]:
    """Inverse of `packed`."""
    return column if isinstance(column, list) else [value for value, count in column["pairs"] for _ in range(count)]


def rounded(value: Any) -> Any:
    """Floats with six digits, in lists too; what is not finite as a word."""
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


def digest(output: Tensor) -> str:
    """SHA-256 of the bytes of an output as float32."""
    return hashlib.sha256(output.detach().float().contiguous().cpu().numpy().tobytes()).hexdigest()


def sampled(output: Tensor) -> list[float]:
    """Evenly strided values of an output."""
    flat = output.detach().float().flatten()
    return rounded(flat[:: max(1, len(flat) // KEPT)][:KEPT].tolist())


def far(output: Tensor, plain: Tensor) -> float:
    """Root mean square of the difference, relative to that of the plain output."""
    if output.shape != plain.shape:
        return math.inf
    return rounded(float((output - plain).double().norm() / plain.double().norm().clamp_min(1e-12)))


def joined(outputs: list[Tensor]) -> Tensor:
    """Several outputs as one tensor."""
    return torch.cat([output.detach().float().flatten() for output in outputs])


def seeded(call: Callable[[], Any]) -> Any:
    """A call that gets the same random numbers every time, and leaves the generator of torch as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return call()


def context(model: Any, name: str | None) -> Any:
    """The model's context of a branch, where one is named."""
    return nullcontext() if name is None else model.cache_context(name)
