"""Three hundred runs with everything changing between them: each has a fresh session's bits, and memory stays flat."""

from __future__ import annotations

import gc
import random
import threading
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models
from tests.reliability.loops import KINDS, Loop, View, flow, resident_bytes, unipc
from unicp.session import Session, enable

RUNS = 300
MODELS = ("wan", "hunyuan_video")
USED = ("exact", "balanced", "fast", "fixed window", "reuse", "stack", "block, tight", "unit", "unit, sliced")


class Failure(Exception):
    pass


@dataclass(frozen=True)
class Dice:
    """What one run is. fails: the step at which it raises, None = it does not."""

    name: str
    kind: str
    sampler: str
    seed: int
    steps: int
    context: bool
    fails: int | None = None


def held_bytes() -> int:
    """Bytes of all tensors that are alive."""
    gc.collect()
    # Plain tensors and parameters only: what a compiler leaves behind has no storage.
    tensors = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def run(pipe: View, dice: Dice) -> Tensor:
    """A run over the pipeline's scheduler; raises Failure in a call of the model if asked to."""
    loop = Loop(pipe.transformer, pipe.scheduler, dice.seed, dice.steps, dice.context, dice.name)

    def fail(*_: Any) -> None:
        if loop.done == dice.fails and threading.current_thread() is mine:
            raise Failure

    mine = threading.current_thread()
    handle = list(pipe.transformer.children())[-1].register_forward_pre_hook(fail)
    try:
        return loop.run()
    finally:
        handle.remove()


_known: dict[Dice, Tensor] = {}


def fresh(dice: Dice) -> Tensor:
    """The result in a session of its own, on a model of its own."""
    dice = replace(dice, fails=None)
    if dice not in _known:
        pipe = View(tiny_models.build(dice.name), {"flow": flow, "unipc": unipc}[dice.sampler]())
        with enable(pipe, KINDS[dice.kind]):
            _known[dice] = run(pipe, dice)
    return _known[dice]


def throw(chance: random.Random, name: str, kind: str, sampler: str) -> Dice:
    steps = chance.choice([1, 4, 9])
    fails = chance.randrange(steps) if chance.random() < 0.15 else None
    return Dice(name, kind, sampler, chance.randrange(2), steps, chance.random() < 0.5, fails)


def requests(pipe: View, throws: list[Dice]) -> list[Tensor | BaseException]:
    """Runs at once, a thread and a scheduler each."""
    found: list[Any] = [None] * len(throws)

    def work(place: int) -> None:
        try:
            found[place] = run(pipe.for_request(), throws[place])
        except Failure as error:
            found[place] = error

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(throws))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.mark.slow
def test_three_hundred_runs():
    chance, session, done = random.Random(6), None, 0
    pipes = {name: View(tiny_models.build(name), flow()) for name in MODELS}
    name, kind, samplers = "wan", "balanced", dict.fromkeys(MODELS, "flow")
    skipped, memory, resident = 0, [], []
    while done < RUNS:
        if session is None or chance.random() < 0.15:
            skipped += closed(session)
            name, kind = chance.choice(MODELS), chance.choice(USED)
            session = enable(pipes[name], KINDS[kind])
        pipe = pipes[name]
        if chance.random() < 0.2:
            samplers[name] = chance.choice(["flow", "unipc"])
            pipe.scheduler = {"flow": flow, "unipc": unipc}[samplers[name]]()
        throws = [throw(chance, name, kind, samplers[name]) for _ in range(3 if chance.random() < 0.2 else 1)]
        outputs = requests(pipe, throws) if len(throws) > 1 else [attempt(pipe, throws[0])]
        for dice, output in zip(throws, outputs):
            if isinstance(output, Tensor):
                assert torch.equal(output, fresh(dice)), (done, dice)
            else:
                assert dice.fails is not None and isinstance(output, Failure), (done, dice, output)
        if chance.random() < 0.1:
            session.reset()
        if done // 50 < (done + len(throws)) // 50:
            session.reset()
            _known.clear()
            memory.append(held_bytes())
            resident.append(resident_bytes())
        done += len(throws)
    skipped += closed(session)
    assert skipped > 500
    assert max(memory[1:]) <= memory[0] + 1_000_000, memory
    assert max(resident[1:]) <= resident[0] + 20_000_000, resident
    for name, pipe in pipes.items():
        plain = Loop(tiny_models.build(name), flow(), 9, name=name).run()
        assert torch.equal(Loop(pipe.transformer, flow(), 9, name=name).run(), plain)


def attempt(pipe: View, dice: Dice) -> Tensor | BaseException:
    try:
        return run(pipe, dice)
    except Failure as error:
        return error


def closed(session: Session | None) -> int:
    """Leaves a session; how many calls it skipped."""
    if session is None:
        return 0
    session.disable()
    assert session.is_empty
    return sum(entry.action in ("forecast", "reuse") for entry in session.trace.entries)
