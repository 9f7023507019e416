"""Ten thousand damaged files of every kind: read, then used as the product does. One line or a result, no traceback.

Absurd values that are well formed are among them: a step of a thousand million, errors of 1e300, a PSNR of 1e-30.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import made_profiles
from tests.damage import damaged
from tests.fake_parts import FakeSeen
from unicp.calibration.calibrating import profile_of
from unicp.calibration.checkpoint_log import CheckpointLog, PlainRun, TrialRun
from unicp.context import RunInfo, StepContext
from unicp.errors import UniCPError, one_line
from unicp.files import json_ready, parse_json
from unicp.planning.plan import PLAN_TYPE, PLAN_VERSION, load_plan, plan_of_trace
from unicp.planning.profile import PROFILE_TYPE, PROFILE_VERSION, load_profile
from unicp.planning.solver import plan_of_profile
from unicp.planning.targets import parse_target
from unicp.records import Entry, Trace, load_trace
from unicp.reporting.summary import summarise
from unicp_bench import report
from unicp_bench.html import charts
from unicp_bench.html.attention import load_attention
from unicp_bench.html.page import Extras, last_run, page
from unicp_bench.parts import LEAST_PAIRS, load_rows
from unicp_bench.rows import Row, append_row
from unicp_bench.statistics import group_rows
from unicp_bench.tables import measured

STEPS = 8
TARGETS = ("psnr>=30", "speedup>=1.3", "seconds<=7")


def profile() -> Any:
    return made_profiles.made(STEPS)


def use_profile(path: Path) -> None:
    known = load_profile(path)
    target = TARGETS[path.stat().st_size % len(TARGETS)]  # one of the three by chance
    steps = (known.steps, known.steps, 5, 12)[path.stat().st_size % 4]
    use_plan_text(plan_of_profile(known, parse_target(target), steps))


def use_plan_text(plan: Any) -> None:
    assert plan.text() and plan.drawing()


def use_plan(path: Path) -> None:
    plan = load_plan(path)
    use_plan_text(plan)
    policy = plan.schedule.policy()
    policy.start_run(RunInfo("model", 2))
    for number in range(min(plan.steps, 12)):
        step = StepContext(0, number, "cond", 1000.0 - number, 1)
        if not policy.decide(step, FakeSeen()).skip:
            policy.observe(step, FakeSeen(), [0.3])


def use_trace(path: Path) -> None:
    trace = load_trace(path)
    assert summarise(trace).text() and summarise(trace).to_dict()
    last_run(trace)
    use_plan_text(plan_of_trace(trace))


def use_rows(path: Path) -> None:
    rows = load_rows([path])
    measured(group_rows(rows))
    if path.stat().st_size % 8 == 0:  # by chance: figures take a tenth of a second
        page(rows, Extras())
    for kind in ("", "equal", "met", "need", "best", "margins", "margins-seconds", "faster"):
        report.fill(f"<!-- table {path.stem}:unipc:{kind} -->\n<!-- end -->", path.parent)


def use_attention(path: Path) -> None:
    charts.attention(load_attention(path))


def use_table(path: Path) -> None:
    report.fill(f"<!-- table {path.stem} -->\n<!-- end -->", path.parent)


ABOUT = {"model": {"model": "Made"}, "steps": STEPS, "prompts": ["a", "b"], "arguments": {}}


def use_notes(path: Path) -> None:
    """As a calibration goes on whose runs are all done."""
    notes = CheckpointLog.open(path.with_suffix(""), ABOUT)
    plain, tried = notes.of("plain"), notes.of("trial")
    if plain and tried:
        found = profile_of(plain, tried, profile().fingerprint, "cpu")
        plan_of_profile(found, parse_target("speedup>=1.3"), found.steps)


def row(setting: str = "", psnr: float = 40.0, **changes: Any) -> Row:
    about = {"suite": "presets", "model": "glyphs", "sampler": "unipc", "method": "UniCP", "prompt": "a", "seed": 0}
    numbers = {"operations": 50, "full_operations": 100, "seconds": 1.0, "plain_seconds": 2.0, "work": [1.0, 0.5, 0.0]}
    fidelity = {"psnr": psnr, "ssim": 0.9, "vmaf": 80.0}
    environment = {"device": "here", "commit": "abc", "call": {"num_frames": 9}}
    return Row(
        **{**about, **numbers, "steps": 30, "setting": setting, "fidelity": fidelity, "environment": environment}
        | changes
    )


def rows() -> list[Row]:
    methods = [("UniCP", "fast"), ("UniCP planned", "psnr>=35"), ("fixed window", "2"), ("fewer steps", "15")]
    found = [row(method="plain", psnr=100.0, operations=100)]
    found += [row(setting, 30.0 + 5 * i, method=method) for i, (method, setting) in enumerate(methods)]
    found += [row("x", method="peer"), row("y", method="stuck", reason="no such block", fidelity={}, work=[])]
    return [replace(one, seed=seed, paired=one.measured) for seed in range(LEAST_PAIRS) for one in found]


def trace() -> Trace:
    found = Trace("WanTransformer3DModel", "cpu", "float32", {"tolerance": 0.05}, "balanced", [], ["a note"])
    actions = ["full"] * 3 + ["forecast", "full", "forecast"]
    for step, action in enumerate(actions):
        entry = Entry(
            0, step, "cond", "model", action, "window", 1 - step / 6, 0.1, [0.1], [0.2], None, "noise over step"
        )
        entry.operations, entry.full_operations, entry.seconds = 10, 20, 0.5
        found.entries.append(entry)
    found.counts.update({"non_finite": 1})
    return found


def write_notes(path: Path) -> None:
    made = profile()
    notes = CheckpointLog.open(path.with_suffix(""), ABOUT)
    levels = made.signal, made.noise, made.shares
    for prompt in "ab":
        notes.add(("plain", prompt), PlainRun(made.products, *levels, [1, 4, 2, 4, 4], 2, 1.0, 0.5))
    for number, trial in enumerate(made.trials):
        notes.add(("trial", trial.prompt, number), TrialRun(trial, 1.0, 0.02))


def lines_of(kind: str, folder: Path) -> list[Any]:
    """A sound file of each kind, as values."""
    if kind == "rows":
        for one in rows():
            append_row(folder / "sound.jsonl", one)
        return [parse_json(line, "a row") for line in (folder / "sound.jsonl").read_bytes().splitlines()]
    if kind == "notes":
        write_notes(folder / "sound.unfinished")
        return [parse_json(line, "a note") for line in (folder / "sound.unfinished").read_bytes().splitlines()]
    if kind == "attention":
        change = [[0.0, 0.2, 0.1, 0.3], [0.0, 0.4, 0.2, 0.1]]
        return [{"model": "glyphs", "sampler": "unipc", "steps": 4, "clips": 2, "units": ["a", "b"], "change": change}]
    if kind == "table":
        return [{"environment": {"device": "here"}, "rows": [{"tokens": 512, "full ms": 1.5, "age": "0"}] * 2}]
    made = profile()
    plan = plan_of_profile(made, parse_target("speedup>=1.3"), STEPS)
    heads = {"profile": (PROFILE_TYPE, PROFILE_VERSION), "plan": (PLAN_TYPE, PLAN_VERSION), "trace": ("unicp.trace", 2)}
    records = {"profile": made, "plan": plan, "trace": trace()}
    return [json_ready({"type": heads[kind][0], "version": heads[kind][1], "unicp": "0.1", **vars(records[kind])})]


# How many files of each kind, its ending, and what is done with one.
KINDS: dict[str, tuple[int, str, Callable[[Path], None]]] = {
    "rows": (2500, ".jsonl", use_rows),
    "profile": (1700, ".json", use_profile),
    "plan": (2000, ".json", use_plan),
    "trace": (1800, ".json", use_trace),
    "notes": (1200, ".unfinished", use_notes),
    "attention": (500, ".json", use_attention),
    "table": (300, ".json", use_table),
}
assert sum(count for count, _, _ in KINDS.values()) == 10_000


@pytest.fixture
def place(tmp_path) -> Iterator[Path]:
    """In memory where there is such a folder: on a disk, half the time goes into making the files."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_ends_in_a_traceback(kind, place):
    def too_slow(*_: object) -> None:
        raise TimeoutError("more than 20 s")

    count, ending, use = KINDS[kind]
    signal.signal(signal.SIGALRM, too_slow)
    sound, dice, path = lines_of(kind, place), random.Random(kind), place / f"file{ending}"
    refused, faults = 0, []
    for number in range(count):
        raw = damaged(sound, dice)
        path.write_bytes(raw)
        try:
            signal.alarm(20)
            use(path)
        except UniCPError as error:
            refused += 1
            if one_line(str(error)) != str(error) or len(str(error)) > 1500:
                faults.append((number, str(error)[:300], raw[:200]))
        except Exception as error:
            faults.append((number, repr(error)[:300], raw[:200]))
        finally:
            signal.alarm(0)
    assert not faults, (len(faults), faults[:3])
    assert 0.2 < refused / count < 1  # most are refused, and some are so little damaged that they can be used


@pytest.mark.parametrize("kind", KINDS)
def test_the_sound_files_are_used(kind, tmp_path):
    count, ending, use = KINDS[kind]
    path = tmp_path / f"file{ending}"
    path.write_bytes(b"".join(json_line(one) for one in lines_of(kind, tmp_path)))
    use(path)


def json_line(value: Any) -> bytes:
    return (json.dumps(value) + "\n").encode()
