"""Figures from recorded numbers, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unicp.files import replacing

_INK, _MUTED = "#1a1a1a", "#767676"


def draw_attention_change(record: dict[str, Any], path: Path) -> None:
    """Change of attention outputs over steps, one line a block and their mean (record of `attention_change`)."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7.2, 4.0), dpi=150)
    colours = plt.get_cmap("viridis")
    change: Sequence[Sequence[float]] = record["change"]
    for index, row in enumerate(change):
        colour = colours(index / max(1, len(change) - 1))
        axes.plot(range(1, len(row)), row[1:], color=colour, lw=1.1, alpha=0.8, label=f"block {index}")
    mean = [sum(row[s] for row in change) / len(change) for s in range(1, len(change[0]))]
    axes.plot(range(1, len(mean) + 1), mean, color=_INK, lw=2.4, label="mean")
    axes.set_xlabel("step")
    axes.set_ylabel("relative change of attention output")
    axes.set_ylim(bottom=0)
    title = f"Change between neighbouring steps ({record['sampler']}, {record['steps']} steps, {record['clips']} clips)"
    _finish(plt, figure, axes, title, path)


def _save(plt: Any, figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        figure.savefig(part, format=path.suffix[1:] or "png")
    plt.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _finish(plt: Any, figure: Any, axes: Any, title: str, path: Path) -> None:
    axes.set_title(title, fontsize=10, color=_INK)
    axes.tick_params(colors=_MUTED)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=7, ncol=3)
    figure.tight_layout()
    _save(plt, figure, path)
