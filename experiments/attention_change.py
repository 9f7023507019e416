"""The paper's U shape: how much attention outputs change between neighbouring steps, per block.

    python -m experiments.attention_change --out docs/results/attention_change.json --figure docs/img/u_shape.png

Change = root mean square of the difference to the step before, relative to the output's own root mean square, over all
positions; mean over prompts, seeds and branches.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.command import harness_of, measuring_parser
from experiments.step_count import StepCount
from unicp.errors import run_main
from unicp.files import replacing, write_text
from unicp.models.finder import map_model
from unicp.numerics.error_measures import relative_error
from unicp_bench.html.attention import AttentionChange, load_attention
from unicp_bench.html.charts import attention_figure
from unicp_bench.suites import STEPS
from unicp_testbeds.prompts import SPLITS, prompts_of


class Changes:
    """Forward hooks on the self-attention units; sums the changes per unit and step."""

    def __init__(self, pipe: Any):
        found = map_model(pipe.transformer)
        self.units = found.units_with(("self", "spatial", "temporal", "joint"))
        self.sums = torch.zeros(len(self.units), STEPS)
        self.counts = torch.zeros(len(self.units), STEPS)
        self.runs = 0
        self._now = StepCount(found)
        self._last: dict[tuple[int, int], Tensor] = {}
        self.handles = [u.module.register_forward_hook(self._hook(i)) for i, u in enumerate(self.units)]

    def _hook(self, index: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            last = self._last.get((index, self._now.branch))
            if last is not None:
                self.sums[index, self._now.step] += float(relative_error(last, out).mean())
                self.counts[index, self._now.step] += 1
            self._last[index, self._now.branch] = out

        return hook

    def end_run(self) -> None:
        """Call after each clip."""
        self.runs += 1
        self._last.clear()
        self._now.begin_run()

    @property
    def mean(self) -> Tensor:
        """Mean change by unit and step, (units, steps); 0 at the first step."""
        return self.sums / self.counts.clamp(min=1)

    def remove(self) -> None:
        """Takes the hooks off."""
        self._now.remove()
        for handle in self.handles:
            handle.remove()


def draw(record: AttentionChange, path: Path) -> None:
    """The figure of the documents, that of `unicp report`; the file at `path` is the old one or the whole new one."""
    with replacing(path) as part:
        attention_figure(record, width=8).savefig(part, format=path.suffix[1:] or "png", dpi=150)


def main() -> None:
    """The command line; see the module's docstring."""
    parser = measuring_parser(__doc__, 4, "attention_change.json")
    parser.add_argument("--split", default="table", choices=SPLITS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    harness = harness_of(options)
    changes = Changes(harness.pipe)
    for index, prompt in enumerate(prompts_of(options.split, options.model)[: options.prompts]):
        for seed in range(options.seeds):
            harness.seconds(prompt, 1000 * seed + index, STEPS)
            changes.end_run()
            print(f"{prompt} #{seed}", flush=True)
    changes.remove()
    record = {
        "model": str(Path(options.model).name),
        "sampler": options.sampler,
        "steps": STEPS,
        "clips": changes.runs,
        "units": [unit.name for unit in changes.units],
        "change": changes.mean.tolist(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(record) + "\n")
    mean = changes.mean.mean(0)
    print("mean over blocks:", " ".join(f"{value:.3f}" for value in mean[1:].tolist()))
    if options.figure:
        draw(load_attention(options.out), options.figure)


if __name__ == "__main__":
    run_main(main)
