"""Seconds and outputs of this tree beside those of an earlier commit, in turns, on the glyphs test-bed.

    python scripts/compare_versions.py BEFORE --rounds 7

BEFORE is a commit. Each round runs one process of each version, the first one in turns, so that what else the machine
does falls on both. Prints the median of the paired ratios of seconds for the plain pipeline and each preset, and
whether the videos are equal bit for bit. Exit code 1 where one is not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKER = """
import hashlib, json, sys, time
import torch, diffusers, unicp
try:
    from unicp_testbeds import folder
except ModuleNotFoundError:
    from unicp.testbed import folder
diffusers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
pipe = diffusers.DiffusionPipeline.from_pretrained(str(folder("glyphs")), dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
def clip(steps=30):
    generator = torch.Generator().manual_seed(0)
    return pipe("a red star moving left on a striped background", num_inference_steps=steps, num_frames=9, height=64,
                width=96, max_sequence_length=32, guidance_scale=4.0, generator=generator, output_type="pt").frames
clip(2)
found = {}
for name in ("plain", "quality", "balanced", "fast", "paper"):
    if name == "plain":
        begin = time.perf_counter(); frames = clip(); seconds = time.perf_counter() - begin
    else:
        with unicp.enable(pipe, name):
            clip(2)
            begin = time.perf_counter(); frames = clip(); seconds = time.perf_counter() - begin
    found[name] = [seconds, hashlib.sha256(frames.numpy().tobytes()).hexdigest()]
print(json.dumps(found))
"""


def sources(tree: Path) -> str:
    """What PYTHONPATH must be for a tree of any layout that this repository had."""
    return os.pathsep.join(
        str(path) for path in ([tree / "src"] if (tree / "src").is_dir() else tree.glob("packages/*/src"))
    )


def measured(tree: Path) -> dict[str, list]:
    """One process of one version: seconds and hash of each video, by preset."""
    environment = os.environ | {"PYTHONPATH": sources(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", WORKER]
    result = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    before = ROOT / "build" / "before"
    subprocess.run(["git", "worktree", "remove", "--force", str(before)], cwd=ROOT, capture_output=True, check=False)
    subprocess.run(["git", "worktree", "add", "--detach", str(before), options.before], cwd=ROOT, check=True)
    try:
        rounds = []
        for number in range(options.rounds):
            pair = {tree: measured(tree) for tree in ([before, ROOT] if number % 2 else [ROOT, before])}
            rounds.append((pair[before], pair[ROOT]))
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(before)], cwd=ROOT, check=False)
    is_equal = True
    for name in rounds[0][0]:
        ratios = sorted(now[name][0] / then[name][0] for then, now in rounds)
        hashes = {run[name][1] for pair in rounds for run in pair}
        is_equal &= len(hashes) == 1
        seconds = [statistics.median(run[name][0] for run in runs) for runs in zip(*rounds)]
        print(
            f"{name}: {seconds[0]:.3f} s before, {seconds[1]:.3f} s now; ratio {statistics.median(ratios):.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f}); videos {'equal' if len(hashes) == 1 else 'DIFFER'}"
        )
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
