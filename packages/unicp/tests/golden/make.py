"""Records the golden cases anew: `python -m tests.golden.make [FILE…]`, or `make golden` for all.

Only for a change that is meant to change what UniCP does, and with a look at what `git diff --stat` and the tests say.
The examples of saved files (trace, plan, profile) are written only where they are missing: what an older version wrote
must be read for ever.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import transformers

import unicp
from tests.golden import paths
from tests.golden.case import play, unpacked
from tests.golden.table import CASES, FILES, write
from tests.golden.words import COMPUTED

# Cases in which nothing can be skipped, by what they ask for, do not count.
_IDLE = ("tolerance 0", "no bytes")


def main(files: list[str]) -> int:
    """Records these files, or all; 1 where too few cases skip anything."""
    _be_quiet()
    make_examples()
    fails = 0
    for file in files or FILES:
        start, records, idle = time.monotonic(), [], defaultdict[str, list[bool]](list)
        for case in CASES:
            if case.file != file:
                continue
            records.append(record := play(case))
            if "refused" not in record and case.name not in _IDLE:
                idle[case.kind].append(_is_idle(record))
        path = write(file, records)
        refused = sum("refused" in record for record in records)
        idles = sum(map(sum, idle.values()))
        print(
            f"{file}: {len(records)} cases in {time.monotonic() - start:.0f} s, {refused} refused, "
            f"{len(records) - refused - idles} skip something, {path.stat().st_size // 1024} KiB"
        )
        for kind, found in idle.items():
            if 2 * sum(found) > len(found):
                fails += 1
                print(f"  {kind}: {sum(found)} of {len(found)} cases skip nothing, so that they guard nothing")
    return int(fails > 0)


def _be_quiet() -> None:
    """What is told of each of a thousand runs hides the few lines that count."""
    warnings.simplefilter("ignore")
    logging.getLogger("unicp").setLevel(logging.ERROR)
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _is_idle(record: dict[str, Any]) -> bool:
    """Whether every call was computed."""
    return set(unpacked(record["columns"]["action"])) <= {COMPUTED}


def make_examples() -> None:
    """Writes the saved files that are missing: a profile, a plan that has a guard, and a trace of a run under it."""
    paths.DATA.mkdir(exist_ok=True)
    if not paths.PROFILE.exists():
        _calibrate(paths.PROFILE)
    if paths.PLAN.exists() and paths.TRACE.exists():
        return
    pipe = paths.pipeline()
    with unicp.enable(pipe, target="psnr>=30") as session:
        paths.called(pipe)
    session.save_plan(paths.PLAN)
    session.save_trace(paths.TRACE)


def _calibrate(path: Path) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths.pipeline().save_pretrained(folder / "model")
        (folder / "prompts.txt").write_text("a red star\na blue square moving\n", encoding="utf-8")
        options = f"--steps {paths.STEPS} --frames 9 --height 32 --width 32 --cfg 3"
        command = ["calibrate", folder / "model", "--prompts", folder / "prompts.txt", "--out", path, *options.split()]
        start = "import sys; from unicp.cli.main import app; app()"
        subprocess.run([sys.executable, "-c", start, *map(str, command)], check=True, capture_output=True)
    # A tiny model spends its time on everything else: with those of a large one a target for speed can be met.
    profile = json.loads(path.read_text(encoding="utf-8"))
    profile["seconds"] |= {"full": 1.0, "plain": 1.0, "skipped": 0.05, "rest": 0.5}
    path.write_text(json.dumps(profile, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
