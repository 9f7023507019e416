"""What folding the directions of sliced values into the weights around the attention would gain.

    OMP_NUM_THREADS=1 python -m experiments.folded_weights --out docs/results/folded_weights.json

A whole self-attention is timed with its four linear layers and random weights and inputs; norms, positions and biases
would cost the same in all rows. "sliced" is what UniCP does: the model projects values, which are sliced, attended and
lifted. "folded" projects them by W_v·B and takes the lift into W_o, as B'·W_o, for B the axes of the values of a head.
Queries and keys are sliced in both, since norms and positions follow their weights. Both make bases ("kq_svd"), and for
"folded" the weights, once for four calls, and measure errors in each call. "folded" never makes values of full width:
its trial rows average the inputs, and project the averages.

Gains are in time against the plain module, medians of alternating repeats; "operations" counts the whole module.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.slice_speed import STEP, clock_of, seconds_of, slicer_of
from unicp.attention.slicing import UnitSlicer
from unicp.errors import run_main
from unicp.files import write_text
from unicp.numerics.error_measures import coprime_stride, relative_error
from unicp.numerics.operation_counts import linear_operations
from unicp.reducers.attention_call import plain_call
from unicp.reducers.base import ROWS, full_operations
from unicp.reducers.bases import FIT_TOKENS, Bases, fit_bases
from unicp.reducers.pca_slices import PcaSlices
from unicp.settings import Slicing
from unicp_bench.harness import environment_of

SHARES = (0.25, 0.5)
BASIS = "kq_svd"
CALLS = 4  # for which bases and weights are kept; with a fit in every call folding would make its weights each time
TOKENS = (256, 512, 1024, 2048)
# (heads, channels of a head) of the shipped glyphs and of Wan 1.3B.
HEADS = ((2, 64), (12, 128))


@dataclass(frozen=True)
class Module:
    """Self-attention of one sample. Weights are (outputs, inputs), all of width heads x d."""

    heads: int
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor

    def split(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """(1, S, channels) -> (1, H, S, channels of a head)."""
        return F.linear(hidden, weight).unflatten(2, (self.heads, -1)).transpose(1, 2)

    def full(self, hidden: Tensor) -> Tensor:
        """The plain module: (1, S, channels) of both."""
        query, key, value = (self.split(hidden, weight) for weight in (self.query, self.key, self.value))
        return self._joined(F.scaled_dot_product_attention(query, key, value), self.out)

    def sliced(self, hidden: Tensor, slicer: UnitSlicer) -> Tensor:
        """As UniCP slices it."""
        query, key, value = (self.split(hidden, weight) for weight in (self.query, self.key, self.value))
        attended, _ = slicer.run(STEP, lambda: F.scaled_dot_product_attention(query, key, value))
        return self._joined(attended, self.out)

    def folded(self, hidden: Tensor, width: int, fold: Fold | None = None) -> tuple[Tensor, Fold]:
        """With the values' axes in the weights, made here if not given; the error is measured and not used."""
        query, key = self.split(hidden, self.query), self.split(hidden, self.key)
        fold = fold or self.fold(hidden, query, key, width)
        value = self.split(hidden, fold.value)
        scale = 1.0 / math.sqrt(self.query.shape[0] // self.heads)
        narrow_query, narrow_key = query @ fold.bases.query, key @ fold.bases.key
        every = coprime_stride(query.shape[2], ROWS)
        rows = (query[:, :, ::every] @ key.mT * scale).softmax(-1)
        true = (rows @ hidden[:, None]) @ self.value.unflatten(0, (self.heads, -1)).mT
        tried = F.scaled_dot_product_attention(narrow_query[:, :, ::every], narrow_key, value, scale=scale)
        relative_error(tried @ fold.bases.value.mT + fold.mean[:, None], true)
        attended = F.scaled_dot_product_attention(narrow_query, narrow_key, value, scale=scale)
        return self._joined(attended, fold.out) + fold.constant, fold

    def fold(self, hidden: Tensor, query: Tensor, key: Tensor, width: int) -> Fold:
        """Bases of this width, fitted on some tokens, and the weights made of them."""
        every = coprime_stride(hidden.shape[1], FIT_TOKENS)
        value = self.split(hidden[:, ::every], self.value)
        bases = fit_bases(query[:, :, ::every], key[:, :, ::every], value, BASIS).narrowed(width)
        narrow = (bases.value.mT @ self.value.unflatten(0, (self.heads, -1))).flatten(0, 1)
        out = torch.einsum("ohd,hdr->ohr", self.out.unflatten(1, (self.heads, -1)), bases.value).flatten(1)
        mean = bases.value_mean[:, None]
        mean = (mean - mean @ bases.value @ bases.value.mT)[:, 0]
        return Fold(bases, narrow, out, mean, self.out @ mean.flatten())

    def _joined(self, attended: Tensor, weight: Tensor) -> Tensor:
        return F.linear(attended.transpose(1, 2).flatten(2), weight)


@dataclass(frozen=True)
class Fold:
    """Weights with bases in them. mean: (H, d), what the axes leave of the values' mean; constant: that, put out."""

    bases: Bases
    value: Tensor
    out: Tensor
    mean: Tensor
    constant: Tensor


def operations(tokens: int, heads: int, channels: int, width: int, calls: int) -> tuple[int, float, float]:
    """Operations of a call of the plain, the sliced and the folded module, all that it takes counted."""
    model = heads * channels
    inputs = torch.empty(1, heads, tokens, channels, device="meta")
    call, reducer = plain_call(inputs, inputs, inputs), PcaSlices(Slicing(basis=BASIS))
    linear = linear_operations(tokens, model, model)
    full = 4 * linear + full_operations(call)
    sliced = 4 * linear + reducer.operations(call, width) + reducer.probe_operations(call, [width], None)
    sliced += reducer.fit_operations(call, None) / calls
    narrow = linear_operations(tokens, model, heads * width)
    change = linear_operations(heads * tokens, channels, width)
    averages = linear_operations(heads * min(ROWS, tokens), tokens, model)
    made = 2 * heads * linear_operations(model, channels, width) + linear_operations(
        min(FIT_TOKENS, tokens), model, model
    )
    # Without the values' projection, the lift and the rows' full values; with what stands in their place.
    folded = sliced - 2 * (linear - narrow) - 2 * change + averages + made / calls
    return full, sliced, folded


def measure(tokens: int, heads: int, channels: int, share: float, repeats: int) -> dict[str, Any]:
    """One row: gains in time and operations of one shape at this share of the width."""
    generator, model = torch.Generator().manual_seed(0), heads * channels
    query, key, value, out = (torch.randn(model, model, generator=generator) / math.sqrt(model) for _ in range(4))
    module, hidden = Module(heads, query, key, value, out), torch.randn(1, tokens, model, generator=generator)
    slicing = Slicing(widths=(share,), min_saving=-1e6, tolerance=1e6, basis=BASIS, refresh=CALLS)
    width, calls = slicing.widths_for(channels)[0], slicing.refresh
    slicer, device = slicer_of(heads, channels, slicing), hidden.device

    def sliced() -> None:
        for _ in range(calls):
            module.sliced(hidden, slicer)

    def folded() -> None:
        weights = None
        for _ in range(calls):
            _, weights = module.folded(hidden, width, weights)

    made, gains = [], {"sliced": [], "folded": []}
    for repeat in range(-1, repeats):  # the first is a warm-up
        plain = seconds_of(lambda: module.full(hidden), device)
        found = {"sliced": seconds_of(sliced, device) / calls, "folded": seconds_of(folded, device) / calls}
        if repeat >= 0:
            made.append(plain)
            for name, seconds in found.items():
                gains[name].append(plain / seconds)
    full, of_sliced, of_folded = operations(tokens, heads, channels, width, calls)
    return {
        "tokens": tokens,
        "heads": heads,
        "width": channels,
        "sliced to": width,
        "full ms": 1000 * statistics.median(made),
        "sliced": statistics.median(gains["sliced"]),
        "folded": statistics.median(gains["folded"]),
        "operations, sliced": full / of_sliced,
        "operations, folded": full / of_folded,
    }


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--heads", type=int, nargs=2, help="heads and channels of each (two shapes without it)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/bench/folded_weights.json"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with torch.no_grad():
        for heads, channels in [tuple(options.heads)] if options.heads else HEADS:
            for tokens in options.tokens:
                for share in SHARES:
                    rows.append(measure(tokens, heads, channels, share, options.repeats))
                    print(", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    device = torch.device("cpu")
    conditions = {"clock": clock_of(device), "environment": environment_of(device, torch.float32)}
    record = {"repeats": options.repeats, **conditions, "rows": rows}
    write_text(options.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
