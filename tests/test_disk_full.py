"""Every kind of file that UniCP writes, on a disk that becomes full: one line, and what was there is as it was.

The limit on a process's file sizes stands for the disk: a write beyond it fails as one on a full disk does.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "packages").glob("*/src"))
LIMIT = 60_000
RUN = """
import json, resource, sys, traceback
from pathlib import Path
# What is imported where files may not grow would be compiled into files cut short, and stay broken for everybody.
sys.dont_write_bytecode = True
place = Path(sys.argv[1])
scripts = json.loads((place / "scripts.json").read_text())
start, outcomes = scripts.pop("start"), {}
whole = resource.getrlimit(resource.RLIMIT_FSIZE)
for kind, script in scripts.items():
    folder = place / kind.replace(" ", "_")
    folder.mkdir()
    try:
        exec(start + script, {"folder": folder})
        outcomes[kind] = "well"
    except BaseException:
        outcomes[kind] = traceback.format_exc()[-1500:]
    resource.setrlimit(resource.RLIMIT_FSIZE, whole)
(place / "outcomes.json").write_text(json.dumps(outcomes))
"""
START = f"""
import resource, signal
from unicp.errors import UniCPError

def fill(write, *files):
    '''Writes once while there is room, and then again and again until there is none.'''
    write(0)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    before = None
    for number in range(1, 100):
        before = {{file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}}
        try:
            write(number)
        except UniCPError as error:
            assert "no room on the disk" in str(error), error
            after = {{file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}}
            assert after == before, (set(after) ^ set(before), [f for f in before if after.get(f) != before[f]])
            assert before and all(before.values())
            return
    raise SystemExit("never full")
"""
# Each writes more than the limit: at once from the second time on, or little by little.
WRITERS = {
    "trace": """
from unicp.records import save_trace
from unicp.records import Entry, Trace
entry = Entry(0, 1, "cond", "model", "full", "first", 0.5, 0.1)
def write(n):
    save_trace(Trace("M", "cpu", "float32", {}, None, [entry] * (1 + 1000 * n)), folder / "trace.json")
fill(write)
""",
    "profile": """
from tests.made_profiles import made
from unicp.planning.profile import save_profile
fill(lambda n: save_profile(made(8 + 90 * n), folder / "profile.json"))
""",
    "plan": """
from unicp.context import Forecast
from unicp.planning.plan import Plan, save_plan
def write(n):
    notes = ["x" * 90_000 * n]
    plan = Plan("", "M", 4, [0.9, 0.5, 0.2, 0.1], Forecast("noise", "log_snr"), [0, 1], notes=notes)
    save_plan(plan, folder / "plan.json")
fill(write)
""",
    "notes": """
from unicp.calibration.checkpoint_log import CheckpointLog
from unicp.calibration.checkpoint_log import TrialRun
from unicp.planning.profile import Trial
notes = CheckpointLog.open(folder / "profile.json", {"steps": 8})
fill(lambda n: notes.add(("trial", "a", n), TrialRun(Trial("a" * 5000, n, 0.1, 30.0), 1.0, 0.1)))
known = CheckpointLog.open(folder / "profile.json", {"steps": 8}).known
assert known == notes.known and len(known) > 5
""",
    "rows": """
from tests.test_rows import row
from unicp_bench.rows import append_row, read_rows
fill(lambda n: append_row(folder / "rows.jsonl", row(prompt="a" * 5000, seed=n)))
assert len(read_rows(folder / "rows.jsonl")) > 5
""",
    "report": """
from tests.test_rows import row
from unicp_bench.html.page import write_report
fill(lambda n: write_report([row(prompt="a" * (5 + 90_000 * n))], folder / "report.html"))
""",
    "document": """
from unicp.files import write_text
fill(lambda n: write_text(folder / "results.md", "x" * (5 + 90_000 * n)))
""",
    "figure": """
from unicp_bench.html.attention import AttentionChange
from experiments import attention_change
def draw(n):
    change = [[(7 * i * j % 11) / 11 for i in range(3 + 60 * n)] for j in range(2 + 9 * n)]
    record = AttentionChange([str(j) for j in range(len(change))], change)
    attention_change.draw(record, folder / "figure.svg")
import matplotlib; matplotlib.rcParams["svg.hashsalt"] = "a"
def write(n):
    if n == 0:
        (folder / "figure.svg").write_text("an older one")
    else:
        draw(n)
fill(write)
""",
    "video.mp4": """
import numpy as np
from unicp.cli.video import write_video
noise = np.random.default_rng(0).integers(0, 255, (60, 64, 96, 3), dtype=np.uint8)
fill(lambda n: write_video(noise[: 1 + 50 * n], folder / "video.mp4", 16))
""",
    "video.gif": """
import numpy as np
from unicp.cli.video import write_video
noise = np.random.default_rng(0).integers(0, 255, (60, 64, 96, 3), dtype=np.uint8)
fill(lambda n: write_video(noise[: 1 + 50 * n], folder / "video.gif", 16))
""",
    "checkpoint": """
import torch
from unicp_testbeds.training_loop import resume_state, save_state
def write(n):
    model = torch.nn.Linear(10 + 190 * n, 100)
    save_state(folder / "state.pt", n, model=model)
fill(write)
assert resume_state(folder / "state.pt", model=torch.nn.Linear(10, 100))["step"] == 0
""",
    "training log": """
from unicp_testbeds.training_loop import Log, Stage
log, stage = Log(folder / "log.jsonl"), Stage("s" * 5000, 1, 1, 1, 1e-3, 1e-3)
fill(lambda n: log.step(stage, 0, 0.5))
""",
    "film": """
import numpy as np
from unicp_testbeds.film_data import Clips, load_clips, save_clips
noise = np.random.default_rng(0).integers(0, 255, (9, 2, 64, 96, 3), dtype=np.uint8)
def write(n):
    count = 1 + 8 * n
    clips = Clips(noise[:count, :, : 8 + 50 * n], np.zeros(count, int), ("a",) * count)
    save_clips(clips, folder / "clips.npz")
fill(write)
assert len(load_clips(folder / "clips.npz").frames) == 1
""",
    "pipeline": """
import torch
from safetensors.torch import save_file
from unicp.files import replacing_folder
(folder / "scores.json").write_text("{}")
def write(n):
    with replacing_folder(folder) as part:
        (part / "model_index.json").write_text("{}")
        (part / "vae").mkdir()
        save_file({"weight": torch.zeros(10 + 90_000 * n)}, str(part / "vae" / "model.safetensors"))
fill(write)
""",
}


# What writes besides: the functions themselves; frames for another program, in a folder that is removed; the kernel.
ELSEWHERE = {"unicp/disk.py", "unicp_bench/vmaf.py", "unicp_bench/harness.py"}
# A call that writes a file, and to what: a name, or its first argument.
WRITES = (
    re.compile(r"([\w.]+)\.write_(?:text|bytes)\("),
    re.compile(r"([\w.]+)\.open\((?:mode=)?[\"'][wax]"),
    re.compile(r"\bopen\(([\w.()]+), (?:mode=)?[\"'][wax]"),
    re.compile(r"\b(?:torch\.save|json\.dump|pickle\.dump|save_file)\((?:.*, )?(\w+)\)"),
    re.compile(r"\.(?:savefig|save_pretrained|savez|savez_compressed)\((\w+)"),
)


def test_nothing_writes_but_aside_or_behind():
    """Else the next kind of file would be half-written again."""
    found, files = [], {path: path.relative_to(source) for source in SOURCES for path in source.rglob("*.py")}
    files |= {path: path.relative_to(ROOT) for path in (ROOT / "experiments").glob("*.py")}
    for path, inside in sorted(files.items()):
        if inside.as_posix() not in ELSEWHERE:
            text = path.read_text(encoding="utf-8")
            written = [match for pattern in WRITES for match in pattern.finditer(text)]
            found += [f"{path.name}: {match[0]}" for match in written if match[1] not in ("part", "file", "str(part)")]
    assert not found


def test_nothing_reads_json_but_with_bounds():
    # Command lines and the answers of other programs are not files of ours.
    beside = ("disk.py", "methods.py", "vmaf.py", "conditions.py")
    paths = [path for source in SOURCES for path in source.rglob("*.py") if path.name not in beside]
    assert not [path.name for path in paths if re.search(r"json\.loads?\(", path.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, str]:
    """What became of each, in one process of its own, since importing torch takes longer than all of them."""
    place = tmp_path_factory.mktemp("full")
    (place / "scripts.json").write_text(json.dumps({"start": START, **WRITERS}))
    paths = os.pathsep.join(map(str, (*SOURCES, ROOT, ROOT / "packages/unicp", ROOT / "packages/unicp-bench")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(place)}
    command = [sys.executable, "-c", RUN, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=place, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((place / "outcomes.json").read_text())


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_loses_nothing_and_is_one_line(kind, outcomes):
    assert outcomes[kind] == "well"
