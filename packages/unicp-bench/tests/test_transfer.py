"""Margins over the best peer, model by model; and what a test-bed is planned with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unicp_bench.harness import frames_of
from unicp_bench.left_out import FOLDER, prior_without
from unicp_bench.rows import Row
from unicp_bench.transfer import margins_of, summary, transfer_table


def row(model: str, method: str, setting: str, operations: int, psnr: float, prompt: str = "a") -> Row:
    return Row(
        suite="transfer",
        model=model,
        sampler="default",
        method=method,
        setting=setting,
        prompt=prompt,
        seed=0,
        steps=30,
        operations=operations,
        full_operations=1200,
        seconds=1.0,
        plain_seconds=2.0,
        fidelity={"psnr": psnr},
        work=[1.0],
        environment={"device": "here", "call": {"num_frames": 9}},
    )


def rows(model: str, ours: float, peer: float) -> list[Row]:
    """UniCP and a peer with settings at 1.5x, 2x and 3x; the second clip is 10 dB lower under the peer."""
    found = []
    for prompt, lower in (("a", 0.0), ("b", 10.0)):
        found.append(row(model, "plain", "", 1200, 100.0, prompt))
        for operations, less in ((800, 0.0), (600, 4.0), (400, 8.0)):
            found.append(row(model, "UniCP", str(operations), operations, ours - less, prompt))
            found.append(row(model, "fewer steps", str(operations), operations, peer - less - lower, prompt))
            found.append(row(model, "fixed window", str(operations), operations, 60.0, prompt))
    return found


def test_margins_by_hand():
    (cells,) = margins_of(rows("letters", 50.0, 40.0))
    assert (cells.model, cells.sampler, cells.clips) == ("letters", "default", 2)
    by_speed = [one and (one.mean, one.worst) for one in cells.by_speed]
    # At 1.5x, 2x, 2.5x and 3x; neither goes to 4x. Windows made from UniCP are no peer.
    assert by_speed[:4] == [pytest.approx((15.0, 20.0))] * 4 and by_speed[4] is None


def test_the_summary_is_over_all_cells_of_all_models():
    told = summary(margins_of([*rows("letters", 50.0, 40.0), *rows("glyphs", 40.0, 46.0)]))
    assert told["cells"] == 8 and told["behind"] == 4
    assert told["mean"] == pytest.approx((15.0 - 1.0) / 2) and told["lowest mean"] == pytest.approx(-1.0)
    assert told["worst"] == pytest.approx((20.0 + 4.0) / 2) and told["lowest worst"] == pytest.approx(4.0)


def test_the_table_has_a_line_for_each_model_and_two_for_all():
    head, lines, note = transfer_table([*rows("letters", 50.0, 40.0), *rows("glyphs", 40.0, 46.0)])
    assert head[3:] == ["1.5x", "2x", "2.5x", "3x", "4x"]
    assert [line[0] for line in lines] == ["letters", "glyphs", "**mean**", "**lowest**"]
    assert lines[0][3] == "+15.0 / +20.0" and lines[1][3] == "-1.0 / +4.0" and lines[3][3] == "-1.0 / +4.0"
    assert lines[0][-1] == "-" and "8 cells" in note and "4 cells have a negative number" in note


def test_a_test_bed_is_planned_with_what_was_recorded_on_the_others():
    names = sorted(file.stem for file in FOLDER.glob("*.json"))
    assert len(names) >= 6
    without = {name: prior_without(name) for name in names}
    assert prior_without("a model of one's own") is None
    tables = [np.array(one.table[5]) for one in without.values() if one is not None]
    assert len(tables) == len(names) and len({tuple(table) for table in tables}) == len(names)


def test_pictures_and_sounds_are_clips_of_one_frame():
    assert frames_of(torch.zeros(5, 4, 6, 3)).shape == (5, 4, 6, 3)
    assert frames_of(np.zeros((4, 6, 3))).shape == (1, 4, 6, 3)
    sound = frames_of(torch.tensor([[-1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]))
    # Six samples of two channels: two rows of three.
    assert sound.shape == (1, 2, 3, 3) and sound[0, 0, :, 1].tolist() == [0.0, 0.5, 1.0]
